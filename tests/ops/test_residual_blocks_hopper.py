"""Residual blocks in one launch on the emulator: the bits of separate launches, and against float64."""

import pytest
import torch
from torch.nn import functional

from styleforge_lib.ops import conv2d_hopper
from styleforge_lib.ops.convolution import prepare
from styleforge_lib.ops.fused_convolution import apply_affine
from styleforge_lib.ops.layer import Layer, Norm, plane_sums
from styleforge_lib.ops.residual_blocks_hopper import (
    LAYER,
    RESIDENT,
    THREADS,
    ResidualBlock,
    ResidualBlocks,
    sums_of,
    takes,
)

ARCH = "sm_90a"
NUMBERS = {torch.float16: "float16", torch.bfloat16: "bfloat16"}


@pytest.fixture(autouse=True)
def on_the_emulator(monkeypatch):
    monkeypatch.setenv("STYLEFORGE_DEVICE", "emulator")


def block_of(generator, dtype=torch.float16, eps=1e-5, channels=128):
    def normal(*shape):
        return torch.randn(shape, generator=generator)

    def norm():
        return Norm(normal(channels), normal(channels), eps)

    first, second = ((normal(channels, channels, 3, 3) / (9 * channels) ** 0.5).to(dtype) for _ in range(2))
    return ResidualBlock(first, norm(), second, norm())


def drawn(count, shape, dtype=torch.float16, affine=False):
    generator = torch.Generator().manual_seed(sum(shape))
    blocks = [block_of(generator, dtype) for _ in range(count)]
    x = torch.randn((*shape, 128), generator=generator).to(dtype)
    return blocks, x, torch.randn(shape[0], 128, 2, generator=generator) if affine else None


def in_one_launch(blocks, x, affine=None, grid=None):
    out, inner, spare = (torch.full_like(x, torch.nan) for _ in range(3))
    sums = sums_of(len(x), x.device)
    sums[len(x) :] = 77  # what the second half holds does not matter
    kernel = ResidualBlocks(blocks, NUMBERS[x.dtype], ARCH)
    kernel(x, out, inner=inner, spare=spare if len(blocks) > 1 else None, sums=sums, affine=affine, grid=grid)
    assert not sums[: len(x)].any(), "left zero, for the next launch"
    return out


def one_by_one(block, x, affine):
    """Return what conv2d_hopper, close_planes and apply_affine make of a block."""
    fused = {"c_in": 128, "c_out": 128, "numbers": NUMBERS[x.dtype], "statistics": True}
    given = affine is not None
    first = Layer(affine=given, relu_in=given, materialise=given, **fused)
    second = Layer(affine=True, relu_in=True, **fused)
    y, z, v = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x) if given else None
    sums, middle, end = plane_sums(len(x), x.device), *torch.empty(2, len(x), 128, 2)
    conv1 = prepare(first, block.weight1, None, block.norm1, arch=ARCH)
    conv1(x, y, affine=affine, materialised=v, sums=sums, affine_out=middle)
    conv2 = prepare(second, block.weight2, None, block.norm2, arch=ARCH)
    conv2(y, z, affine=middle, sums=sums, affine_out=end)
    return apply_affine(z, end, v if given else x)


def reference(block, v):
    """Return a block of v, (N, H, W, C), in the dtype of v."""

    def layer(v, weight, norm):
        v = functional.conv2d(functional.pad(v, (1, 1, 1, 1), mode="reflect"), weight.to(v.dtype))
        return functional.instance_norm(v, None, None, norm.weight.to(v.dtype), norm.bias.to(v.dtype), eps=norm.eps)

    y = layer(v.permute(0, 3, 1, 2), block.weight1, block.norm1).relu()
    return v + layer(y, block.weight2, block.norm2).permute(0, 2, 3, 1)


def test_ragged_tiles_and_more_than_one_for_a_block():
    """Three tiles on two blocks of threads: y of one lies in `out` meanwhile; neighbours are in the other block."""
    blocks, x, _ = drawn(1, (1, 5, 19))
    out = in_one_launch(blocks, x, grid=2)
    assert torch.equal(out, one_by_one(blocks[0], x, None))
    expected, peer = reference(blocks[0], x.double()), reference(blocks[0], x)
    error, allowed = ((y.double() - expected).abs().max() for y in (out, peer))
    assert error <= 2 * allowed + torch.finfo(x.dtype).eps / 2 * expected.abs().max()


def test_several_blocks_of_several_pictures_after_a_convolution():
    """Three tiles, each a picture, on two blocks of threads: scale and shift change under one of them."""
    blocks, x, affine = drawn(2, (3, 3, 5), affine=True)
    out = in_one_launch(blocks, x, affine, grid=2)
    expected = one_by_one(blocks[1], one_by_one(blocks[0], x, affine), None)
    assert torch.equal(out, expected)


def test_bfloat16_and_norms_without_parameters():
    (drawn_block,), x, _ = drawn(1, (1, 17, 3), torch.bfloat16)
    block = ResidualBlock(drawn_block.weight1, Norm(eps=1e-3), drawn_block.weight2, Norm(eps=1e-3))
    assert torch.equal(in_one_launch([block], x), one_by_one(block, x, None))


def test_a_nan_stays_in_its_picture():
    blocks, x, _ = drawn(1, (2, 3, 4))
    x[0, 1, 2, 3] = torch.nan
    out = in_one_launch(blocks, x)
    assert out[0].isnan().all()
    assert not out[1].isnan().any()


def test_what_is_taken():
    generator = torch.Generator().manual_seed(0)
    block, other = block_of(generator), block_of(generator, eps=1e-3)
    assert takes([block, block], "float16", ARCH)
    assert not takes([block], "tf32", ARCH)
    assert not takes([block], "float16", "sm_90")
    assert not takes([block, other], "float16", ARCH), "one eps for all"
    assert not takes([block_of(generator, channels=64)], "float16", ARCH)


@pytest.mark.parametrize("numbers", NUMBERS.values())
def test_as_many_blocks_fit_on_a_multiprocessor_as_a_launch_makes(numbers):
    """A cooperative launch of more than fit is refused; and what spills, spills beside the products."""
    blocks, _, _ = drawn(1, (1, 2, 2), {value: key for key, value in NUMBERS.items()}[numbers])
    resources = ResidualBlocks(blocks, numbers, ARCH).kernel.resources
    assert resources.occupancy(THREADS, conv2d_hopper.shared_bytes(LAYER)).blocks == RESIDENT
    assert resources.local <= 128


def test_several_blocks_need_spare_room():
    blocks, x, _ = drawn(2, (1, 2, 2))
    kernel = ResidualBlocks(blocks, "float16", ARCH)
    with pytest.raises(ValueError, match="spare: 2 residual blocks need room"):
        kernel(x, torch.empty_like(x), inner=torch.empty_like(x), sums=sums_of(1, x.device))
