"""The backward pass of instance norm: kernels against autograd in float64, and what autograd promises."""

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from styleforge_lib import ops
from styleforge_lib.lab.check import ulp
from styleforge_lib.ops.cases import constant_planes, magnitudes, normal
from styleforge_lib.ops.elementwise import C_TYPES
from styleforge_lib.runtime.kernel import DEVICE_VARIABLE, chosen_device, compile_cuda

norm = importlib.import_module("styleforge_lib.ops.instance_norm")
backward = importlib.import_module("styleforge_lib.ops.instance_norm_backward")

DEVICE = "cuda" if chosen_device() == "gpu" else "cpu"
each_dtype = pytest.mark.parametrize("dtype", norm.DTYPES, ids=str)
NAMES = ("x", "weight", "bias", "residual")


@pytest.fixture(autouse=True)
def on_the_kernels_device(monkeypatch):
    if DEVICE == "cpu":
        monkeypatch.setenv(DEVICE_VARIABLE, "emulator")


def draw(shape, dtype, fill=None, seed=0):
    """Draw x, weight, bias, residual and the gradient of the output."""
    generator = torch.Generator().manual_seed(seed)
    x = (fill or normal())(shape, generator, dtype)
    weight, bias = (torch.randn(shape[1], generator=generator).to(dtype) for _ in range(2))
    residual, dout = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    return [value.to(DEVICE) for value in (x, weight, bias, residual, dout)]


def gradients_of(function, tensors, dout, relu, eps):
    """Return the gradients of function(x, weight, bias, residual, relu, eps), and the output."""
    leaves = [None if value is None else value.detach().clone().requires_grad_() for value in tensors]
    out = function(*leaves, relu, eps)
    out.backward(dout)
    return [None if leaf is None else leaf.grad for leaf in leaves], out.detach()


def ours(x, weight, bias, residual, relu, eps):
    return ops.instance_norm(x, weight, bias, eps, relu, residual)


def hold(tensors, dout, relu=False, eps=norm.EPS):
    """Assert that our gradients are the reference's: at most twice PyTorch's error, a floor of float32, half an ulp.

    The floor is 16 units in the last place of float32 of the terms that a gradient is the sum or difference of: the
    distances of a plane of two cancel, so that the result says nothing about them.
    """
    got, out = gradients_of(ours, tensors, dout, relu, eps)
    wide = [None if value is None else value.cpu().double() for value in tensors]
    kept = None
    if relu:  # where the result is rounded to 0 is the forward pass's business
        kept = (out.cpu() > 0) | out.cpu().isnan()
        dout = dout * kept.to(dout.device)
    expected, _ = gradients_of(norm.fused_reference, wide, dout.cpu().double(), False, eps)
    narrow = [None if value is None else value.cpu() for value in tensors]
    peers, _ = gradients_of(norm.fused_pytorch, narrow, dout.cpu(), False, eps)
    x, weight, *_ = wide
    rstd = 1 / (x.var((2, 3), unbiased=False, keepdim=True) + eps).sqrt()
    scale = rstd if weight is None else rstd * weight.abs().view(1, -1, 1, 1)
    size = dout.abs().max().item()
    reach = ((x - x.mean((2, 3), keepdim=True)) * rstd).abs().amax()
    terms = {"x": (scale.max() * size * (1 + reach)).item(), "residual": 0.0}
    terms["weight"] = terms["bias"] = float(x[:, 0].numel() ** 0.5 * size * (1 + reach))
    for name, value, reference, peer in zip(NAMES, got, expected, peers, strict=True):
        if value is None:
            continue
        assert value.dtype is dout.dtype
        value = value.cpu()
        off = (value.double() - reference).abs()
        error = (peer.double() - reference).abs().max()
        floor = 16 * torch.finfo(torch.float32).eps * terms[name]
        allowed = 2 * error + floor + ulp(reference, value.dtype) / 2
        assert value.isfinite().all(), name
        assert (off <= allowed).all(), (name, float(off.max()), float(allowed.max()))


SHAPES = [(2, 3, 5, 7), (1, 4, 16, 16), (3, 2, 1, 2), (2, 5, 2, 1), (2, 9, 3, 3), (1, 3, 17, 31), (1, 2, 61, 67)]


@each_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients(shape, dtype, launched):
    *tensors, dout = draw(shape, dtype)
    hold(tensors, dout)
    hold([tensors[0], tensors[1], None, None], dout, eps=0.1)
    hold([tensors[0], None, None, tensors[3]], dout, relu=True)
    assert launched[-2:] == ["instance_norm_backward_sums", "instance_norm_backward_apply"]


FILLS = {
    "constant planes": constant_planes,
    "mean 4000, deviation 0.5": normal(4000, 0.5),
    "all magnitudes": magnitudes,
    "deviation below the root of eps": normal(0.25, 1e-3),
}


@each_dtype
@pytest.mark.parametrize("fill", FILLS.values(), ids=FILLS)
def test_hostile_data(fill, dtype):
    *tensors, dout = draw((2, 3, 17, 31), dtype, fill)
    hold(tensors, dout)


@each_dtype
def test_pieces_of_planes(dtype, monkeypatch):
    monkeypatch.setattr(norm, "multiprocessors", lambda device: 500)
    monkeypatch.setattr(norm, "SWEEP_THREADS", 32)
    monkeypatch.setattr(norm, "PIECE_BYTES", 512)
    *tensors, dout = draw((2, 3, 37, 41), dtype, normal(3, 2))
    hold(tensors, dout)
    hold(tensors, dout, relu=True)


@settings(max_examples=15, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 20), st.integers(2, 20)),
    dtype=st.sampled_from(norm.DTYPES),
    present=st.tuples(*[st.booleans()] * 4),
    seed=st.integers(0, 2**31),
)
def test_any_shape(shape, dtype, present, seed):
    *tensors, dout = draw(shape, dtype, seed=seed)
    *rest, relu = present
    with pytest.MonkeyPatch.context() as patch:
        if DEVICE == "cpu":
            patch.setenv(DEVICE_VARIABLE, "emulator")
        hold(
            [tensors[0], *(value if here else None for value, here in zip(tensors[1:], rest, strict=True))], dout, relu
        )


def test_views_at_any_alignment(launched):
    """A slice of a batch begins anywhere; a gradient that autograd hands over may be expanded."""
    y = torch.randn(3 * 3 * 5 * 7 + 1, device=DEVICE)[1:].view(3, 3, 5, 7).detach().requires_grad_()
    (ops.instance_norm(y, relu=True) * 2).sum().backward()
    wide = y.detach().cpu().double().requires_grad_()
    (norm.fused_reference(wide, None, None, None, True, norm.EPS) * 2).sum().backward()
    torch.testing.assert_close(y.grad.cpu().double(), wide.grad, rtol=0, atol=1e-5)
    assert launched


def test_a_nan_stays_in_its_plane():
    *tensors, dout = draw((2, 3, 5, 7), torch.float32)
    tensors[0][1, 2, 3, 3] = torch.nan
    got, _ = gradients_of(ours, [tensors[0], None, None, None], dout, True, norm.EPS)
    assert got[0][1, 2].isnan().all()
    assert got[0].isnan().sum() == 35


def test_only_what_is_asked_for():
    x, weight, bias, *_ = draw((2, 3, 5, 7), torch.float32)
    out = ops.instance_norm(x, weight.requires_grad_(), bias)
    out.sum().backward()
    assert weight.grad is not None
    assert x.grad is None
    assert bias.grad is None


def test_the_same_launch_gives_the_same_bits():
    *tensors, dout = draw((2, 3, 33, 35), torch.float16)
    first, second = (gradients_of(ours, tensors, dout, True, norm.EPS)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_gradient_of_the_gradient_is_refused():
    x = draw((2, 3, 5, 7), torch.float32)[0].requires_grad_()
    (gradient,) = torch.autograd.grad(ops.instance_norm(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="instance_norm: its backward kernel has no derivative"):
        gradient.sum().backward()


@pytest.mark.parametrize("relu", [False, True])
def test_what_torch_asks_of_an_operation(relu):
    """opcheck: schema, fake tensors, autograd registration, and the whole under torch.compile's tracing."""
    tensors = [value.requires_grad_() for value in draw((2, 3, 4, 5), torch.float32)[:4]]
    torch.library.opcheck(torch.ops.styleforge.instance_norm.default, (*tensors, 1e-5, relu))
    x, weight, *_, dout = (value.detach() for value in draw((2, 3, 4, 5), torch.float32))
    out, saved = torch.ops.styleforge.instance_norm(x, weight, None, None, 1e-5, relu)
    args = (x, weight, out if relu else None, dout, saved, relu)
    torch.library.opcheck(torch.ops.styleforge.instance_norm_backward.default, args)


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90a"])
@each_dtype
def test_it_compiles_for_each_card_without_spilling(dtype, arch):
    module = compile_cuda("instance_norm_backward.cu", arch=arch, defines={"TYPE": C_TYPES[dtype]})
    assert len(module.kernels) == 2
    assert not module.warnings
    assert ".ftz" not in module.ptx
    assert all(module.kernel(name).resources.local == 0 for name in module.kernels)
    assert all("ld.global.nc.v4" in body or "ld.global.v4" in body for body in module.ptx.split(".entry ")[1:])
