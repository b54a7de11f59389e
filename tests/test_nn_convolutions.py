"""The drop-in convolutions against what they replace."""

import copy

import pytest
import torch
from torch import nn

from styleforge_lib import FusedConv2d, FusedConvInstanceNorm2d, FusedResidualBlock, FusedUpsampleConv2d
from styleforge_lib.models.transformer_net import ConvLayer, ResidualBlock, UpsampleConvLayer
from styleforge_lib.ops import convolution, residual_blocks_hopper
from styleforge_lib.runtime.kernel import DEVICE_VARIABLE, chosen_device

DEVICE = "cuda" if chosen_device() == "gpu" else "cpu"


class ConvNormReLU(nn.Module):
    """What FusedConvInstanceNorm2d with ReLU replaces."""

    def __init__(self, *arguments):
        super().__init__()
        self.conv, self.norm = ConvLayer(*arguments), nn.InstanceNorm2d(arguments[1], affine=True)

    def forward(self, x):
        return self.norm(self.conv(x)).relu()


PAIRS = {
    "conv": (FusedConv2d, ConvLayer, (16, 32, 3, 2), {}),
    "conv and ReLU": (FusedConv2d, lambda *a: nn.Sequential(ConvLayer(*a), nn.ReLU()), (16, 16, 5, 1), {"relu": True}),
    "upsample": (FusedUpsampleConv2d, UpsampleConvLayer, (16, 16, 3, 1, 2), {}),
    "norm": (FusedConvInstanceNorm2d, ConvNormReLU, (16, 32, 3, 1), {"relu": True}),
    "block": (FusedResidualBlock, ResidualBlock, (16,), {}),
}
each_pair = pytest.mark.parametrize("name", PAIRS)


@pytest.fixture
def emulated(monkeypatch):
    if DEVICE == "cpu":
        monkeypatch.setenv(DEVICE_VARIABLE, "emulator")


def pair(name, dtype=torch.float32):
    """Make a drop-in and what it replaces, with the same random parameters."""
    torch.manual_seed(0)
    ours, theirs, arguments, options = PAIRS[name]
    ours, theirs = ours(*arguments, **options), theirs(*arguments)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.2)
    values = theirs.state_dict()
    if name == "conv and ReLU":
        values = {key.removeprefix("0."): value for key, value in values.items()}
    ours.load_state_dict(values)
    return ours.to(DEVICE, dtype), theirs.to(DEVICE, dtype)


@each_pair
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_values(name, dtype, emulated, launched):
    ours, theirs = pair(name, dtype)
    x = torch.randn(2, 16, 6, 9).to(DEVICE, dtype)
    with torch.inference_mode():
        got = ours(x)
        assert torch.equal(got, ours(x.to(memory_format=torch.channels_last)))
        expected, peer = copy.deepcopy(theirs).double()(x.double()), theirs(x).double()
    assert launched
    assert got.dtype is dtype
    assert got.shape == expected.shape
    error, allowed = ((y.double() - expected).abs().max().item() for y in (got, peer))
    largest = expected.abs().max().item()
    # float32 is multiplied in TF32, with 10 bits of fraction, where the CPU's PyTorch has 23
    allowed = largest * 2**-9 if dtype is torch.float32 else 2 * allowed + largest * torch.finfo(dtype).eps / 2
    assert error <= allowed


@pytest.mark.parametrize("name", ["conv", "block"])
def test_float32_without_tf32_is_exact(name, emulated, launched):
    ours, theirs = pair(name)
    x = torch.randn(2, 16, 6, 9, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        got, peer = ours(x), theirs(x).double()
        expected = copy.deepcopy(theirs).double()(x.double())
    assert "conv2d_cuda_cores" in launched
    error, allowed = ((y.double() - expected).abs().max().item() for y in (got, peer))
    assert error <= 2 * allowed + expected.abs().max().item() * torch.finfo(torch.float32).eps / 2


@each_pair
def test_changed_weights_are_seen(name, emulated, launched):
    ours, theirs = pair(name, torch.float16)
    x = torch.randn(1, 16, 5, 6).to(DEVICE, torch.float16)
    with torch.inference_mode():
        before = ours(x)
    with torch.no_grad():
        for ours_parameter, theirs_parameter in zip(ours.parameters(), theirs.parameters(), strict=True):
            ours_parameter.mul_(0.5)
            theirs_parameter.mul_(0.5)
    with torch.inference_mode():
        after = ours(x)
        torch.testing.assert_close(after, theirs(x), rtol=2e-2, atol=2e-2)
    assert not torch.equal(before, after)
    assert launched


def test_a_residual_block_in_one_launch(emulated, launched, monkeypatch):
    if DEVICE == "cpu":
        monkeypatch.setattr(convolution, "EMULATED_ARCH", "sm_90a")
    elif convolution.architecture(torch.device("cuda")) != "sm_90a":
        pytest.skip("needs a Hopper card")
    torch.manual_seed(0)
    block, x = FusedResidualBlock(128).to(DEVICE, torch.float16), torch.randn(1, 128, 2, 3).to(DEVICE, torch.float16)
    with torch.inference_mode():
        expected = block(x)
        monkeypatch.setattr(residual_blocks_hopper, "ONE_LAUNCH", {1: ((6, 6),)})
        launched.clear()
        assert torch.equal(block(x), expected)
        assert launched == ["residual_blocks_hopper"]
    with torch.no_grad():
        block.in2.bias.add_(1)
    with torch.inference_mode():
        torch.testing.assert_close(block(x), expected + 1, rtol=2e-3, atol=2e-3)


@each_pair
def test_gradients_and_a_plain_cpu_are_pytorchs(name, launched, monkeypatch):
    monkeypatch.delenv(DEVICE_VARIABLE, raising=False)
    ours, theirs = pair(name)
    x = torch.randn(1, 16, 5, 6, device=DEVICE)
    grads = []
    for module in (ours, theirs):
        y = x.clone().requires_grad_()
        module(y).square().sum().backward()
        grads.append([y.grad, *(p.grad for p in module.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    assert not launched
    if DEVICE == "cpu":
        with torch.inference_mode():
            assert torch.equal(ours(x), theirs(x))
        assert not launched


@each_pair
def test_channels_that_fill_no_fragment_are_pytorchs(name, emulated, launched):
    ours, _, arguments, options = PAIRS[name]
    odd = (12, *arguments[1:]) if len(arguments) > 1 else (12,)
    module = ours(*odd, **options).to(DEVICE)
    with torch.inference_mode():
        assert module(torch.randn(1, 12, 6, 6, device=DEVICE)).isfinite().all()
    assert not launched


def test_a_reflection_wider_than_the_picture_is_refused_as_pytorch_does(emulated):
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"[Pp]adding"):
        pair("conv")[0](torch.randn(1, 16, 1, 5, device=DEVICE))


def test_a_module_that_was_made_in_inference_mode(emulated, launched):
    """Its parameters do not count their changes."""
    with torch.inference_mode():
        ours = FusedConv2d(16, 16, 3).to(DEVICE).half()
        x = torch.randn(1, 16, 5, 6, device=DEVICE).half()
        before = ours(x)
        ours.conv2d.weight.mul_(2)
        ours.conv2d.bias.mul_(2)
        assert torch.equal(ours(x), 2 * before)
    assert len(launched) == 2
