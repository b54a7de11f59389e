"""The 3x3 convolutions of 16-bit activations on Hopper's tensor cores (`cuda/conv2d_hopper.cu`).

Contents
    LAYERS          (channels in, channels out, stride, upsample) that the kernel is written for
    fits            does a layer run on it, on this card?
    pack            a PyTorch weight -> the tiles that it and conv2d_hopper_persistent read
    launch          one convolution: norm on load, statistics at the end

Reflection, the norm before and the statistics after belong to the kernel; between layers stand the raw sums and their
planes' sums (`cuda/common/plane_sums.cuh`).
"""

import functools
from dataclasses import dataclass

import torch

from styleforge_lib.ops.instance_norm import multiprocessors
from styleforge_lib.runtime import compile_cuda

LAYERS = ((128, 128, 1, False), (128, 64, 1, True), (64, 128, 2, False))
TILE = (16, 8)  # rows and columns of a warpgroup's pixels
DEPENDENTS_EARLY = False  # where launches overlap: early, waiting blocks were measured to slow the working ones


@dataclass(frozen=True)
class Load:
    """What happens to a number of x on its way in: norm, ReLU, and a residual that is added."""

    norm: bool = False
    relu: bool = False
    residual: bool = False


def pack(weight: torch.Tensor, *, stride: int = 1, upsample: bool = False) -> torch.Tensor:
    """Return the tiles of a weight [out, in, 3, 3] in the order in which the kernel reads them, 1-D, of its dtype.

    With `upsample` the nine taps are folded into the four of each phase, in float32.
    """
    channels_out, channels_in = weight.shape[:2]
    w = weight.detach().float().permute(2, 3, 0, 1)  # [y, x, out, in]
    if upsample:
        w = _folded(w)  # [phase y, phase x, 2, 2, out, in]
        if channels_out == 32:  # rows (phase y, phase x, channel); three columns, of which each phase in x has two
            rows = torch.zeros(2, 3, 2, 2, channels_out, channels_in, device=w.device)
            for px in range(2):
                rows[:, px : px + 2, :, px] = w[:, px].permute(1, 2, 0, 3, 4)
            tiles = rows.flatten(2, 4)[None]
        else:  # phases in y one after the other; rows (phase x, channel)
            tiles = w.permute(0, 2, 3, 1, 4, 5).flatten(3, 4)
    elif channels_in == 32:  # two columns make one row of 64 numbers
        pairs = torch.zeros(3, 2, channels_out, 64, device=w.device)
        pairs[:, 0] = torch.cat([w[:, 0], w[:, 1]], dim=-1)
        pairs[:, 1, :, :32] = w[:, 2]
        tiles = pairs[None]
    else:
        tiles = w[None]
    phases, tall, wide, rows, depth = tiles.shape
    chunks = tiles.reshape(phases, tall * wide, rows, depth // 64, 8, 8).permute(
        0, 3, 1, 2, 4, 5
    )  # chunk, tap, row, group
    row = torch.arange(rows, device=w.device)[:, None]
    group = torch.arange(8, device=w.device)[None] ^ (row & 7)
    return chunks[:, :, :, row, group].to(weight.dtype).contiguous().flatten()


def _folded(w: torch.Tensor) -> torch.Tensor:
    """Fold [3, 3, ...] after doubling by nearest neighbour: [phase y, phase x, 2, 2, ...]."""

    def fold(taps: torch.Tensor) -> torch.Tensor:  # along the first axis: [3, ...] -> [phase, 2, ...]
        first, middle, last = taps
        return torch.stack([torch.stack([first, middle + last]), torch.stack([first + middle, last])])

    rows = fold(w)  # [phase y, 2, x, ...]
    return fold(rows.movedim(2, 0)).movedim((2, 0, 3, 1), (0, 1, 2, 3))


@functools.cache
def _kernel(
    layer: tuple[int, int, int, bool],
    load: Load,
    dtype: torch.dtype,
    arch: str | None,
    overlap: bool,
    early: bool,
    keeps: bool = False,
):
    channels_in, channels_out, stride, upsample = layer
    defines = {
        "CHANNELS_IN": channels_in,
        "CHANNELS_OUT": channels_out,
        "STRIDE": stride,
        "UPSAMPLE": int(upsample),
        "NORM": int(load.norm),
        "LOAD_RELU": int(load.relu),
        "RESIDUAL": int(load.residual),
        "KEEPS": int(keeps),
        "TYPE": "__half" if dtype is torch.float16 else "__nv_bfloat16",
        "OVERLAP": int(overlap),
        "DEPENDENTS_EARLY": int(early),
    }
    return compile_cuda("conv2d_hopper.cu", defines=defines, arch=arch).kernel("conv2d_hopper")


def shared_bytes(layer: tuple[int, int, int, bool]) -> int:
    """Return the dynamic shared memory of one block; the same sum as SHARED_BYTES in the kernel."""
    channels_in, _, stride, _ = layer
    rows, pitch, stages = 15 * stride + 3, *((18, 2) if stride == 2 else (10, 4))
    chunk = -(-rows * pitch * 128 // 1024) * 1024
    return chunk * (2 if channels_in == 128 else 1) + stages * 128 * 128 + 1024


def launch(
    x: torch.Tensor,
    weights: torch.Tensor,
    out: torch.Tensor,
    *,
    layer: tuple[int, int, int, bool],
    load: Load,
    affine: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    kept: torch.Tensor | None = None,
    sums: torch.Tensor | None = None,
    arch: str | None = None,
    overlap: bool = False,
) -> None:
    """Launch one convolution.

    x [N, H, W, in] and out [N, H', W', out], contiguous. affine: float32 [N, in, 2], scale and shift of x. sums: see
    `layer.plane_sums`. overlap: the launch may begin before the kernel before has ended, as `Kernel` says.
    """
    images, height, width = x.shape[:3]
    upsample = layer[3]
    rows, columns = (height, width) if upsample else (out.shape[1], out.shape[2])
    tiles = -(-rows // TILE[0]) * -(-columns // TILE[1])
    # Phases in blocks of their own load the same pixels twice: where there are blocks enough, one makes both.
    apart = 2 if upsample and tiles * images <= multiprocessors(x.device) else 1
    inputs = (x, affine, residual, kept, weights.view(torch.uint8), out)
    _kernel(layer, load, x.dtype, arch, overlap, DEPENDENTS_EARLY, kept is not None)(
        (tiles * apart, images),
        (256,),
        (*inputs, sums, height, width, rows, columns),
        shared_bytes=shared_bytes(layer),
        overlap=overlap,
    )
