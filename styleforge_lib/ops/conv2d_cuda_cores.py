"""Convolutions in exact float32, on the CUDA cores of any card: cuda/conv2d_cuda_cores.cu.

Contents
    Tiling                  how a block's tile is cut, and how many channels it loads at a time
    CudaCoreConvolution     any layer of float32, with the face of TensorCoreConvolution
"""

from dataclasses import dataclass

import torch
from torch.nn import functional

from styleforge_lib.ops.elementwise import compiled
from styleforge_lib.ops.layer import PICTURE_TYPES, PLANE_ENTRIES, Layer, Norm, close_planes, fold
from styleforge_lib.ops.tensor_core_convolution import arch_number
from styleforge_lib.runtime.resources import limits

FLOAT_BYTES = 4
WIDEST = 64  # columns of a block: with 256 pixels 64 sums for each of 256 threads, and two blocks share the registers
DEPTHS = (16, 8, 4)  # input channels that a block loads at a time


@dataclass(frozen=True)
class Tiling:
    """The tile of a block, how warps and threads divide it, the input channels of a chunk, blocks to hope for."""

    tile_h: int
    tile_w: int
    warps_m: int
    warps_n: int
    thread_pixels: int
    thread_columns: int
    depth: int
    blocks: int = 2

    @property
    def columns(self) -> int:
        """Output channels of a block."""
        return self.warps_n * self.thread_columns

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.warps_m * self.warps_n

    @property
    def macros(self) -> dict[str, int]:
        """The macros of the kernel."""
        return {name.upper(): value for name, value in vars(self).items()} | {"COLUMNS": self.columns, "RING": 1}


class CudaCoreConvolution:
    """A layer of float32 with its weights packed: see TensorCoreConvolution.

    Products and sums are float32. On a card without TF32 that is what becomes of a layer of "tf32", too.
    """

    def __init__(self, layer: Layer, weight: torch.Tensor, bias: torch.Tensor | None, norm: Norm, arch: str):
        self.layer, self.norm, self.bias, self.arch = layer, norm, bias, arch
        self.tiling = tiling_of(layer, arch)
        self.passes = layer.c_out * (4 if layer.upsample else 1) // self.tiling.columns
        self.weight = pack(weight, layer, self.tiling)
        pictures = {"PICTURE_IN": layer.picture_in, "PICTURE_OUT": layer.picture_out}
        macros = {name: PICTURE_TYPES[dtype] for name, dtype in pictures.items() if dtype}
        macros |= layer.macros | self.tiling.macros | {"UPSAMPLE": int(layer.upsample)}
        del macros["NUMBER"]
        self.kernel = compiled("conv2d_cuda_cores", weight.device, arch, **macros).only

    @staticmethod
    def takes(layer: Layer, arch: str) -> bool:
        """Whether it is float32, channels come in by fours and go out by eights (or are a picture's), and it fits."""
        return tiling_of(layer, arch) is not None

    def __call__(self, x, out, *, affine=None, residual=None, materialised=None, sums=None, affine_out=None) -> None:
        """Launch on the current stream: x (N, H, W, C) or a picture (N, 3, H, W), out of `layer.out_shape`."""
        images, (height, width) = x.shape[0], x.shape[2:] if self.layer.picture_in else x.shape[1:3]
        rows, columns = (height, width) if self.layer.upsample else self.layer.out_size(height, width)
        tiles = -(-rows // self.tiling.tile_h) * -(-columns // self.tiling.tile_w)
        args = (x, affine, residual, materialised, self.weight, self.bias, out, sums, height, width, rows, columns)
        shared = shared_bytes(self.layer, self.tiling)
        self.kernel((tiles * self.passes, images), self.tiling.threads, args, shared_bytes=shared)
        if sums is not None:
            close_planes(sums, self.norm, affine_out, out, self.arch)


def tiling_of(layer: Layer, arch: str) -> Tiling | None:
    """Return the tiling of a layer on an architecture; None where the kernel does not apply.

    It is the first of which two blocks fit a multiprocessor: one multiplies while the other loads. Else the first of
    which one fits.
    """
    exact = layer.numbers == "float32" or (layer.numbers == "tf32" and arch_number(arch) < 80)
    if not exact or layer.kernel % 2 == 0:
        return None
    if layer.picture_in and (layer.c_in != 3 or layer.affine or layer.relu_in or layer.residual or layer.materialise):
        return None
    if layer.picture_out and (layer.picture_in or layer.c_out != 3 or layer.statistics or layer.stride > 1):
        return None
    if layer.upsample and (layer.kernel, layer.stride) != (3, 1):
        return None
    if (layer.statistics and layer.c_out > PLANE_ENTRIES) or (layer.materialise and layer.stride > 1):
        return None
    card, tilings = limits(arch), list(_tilings(layer))
    half = card.shared_per_block if layer.picture_out else card.shared // 2 - card.reserved
    for room in (half, card.shared_per_block):
        for tiling in tilings:
            if shared_bytes(layer, tiling) <= room:
                return tiling
    return None


def _tilings(layer: Layer):
    """Yield tilings from the one to be wished for to the smallest."""
    depths = (layer.c_in,) if layer.picture_in else [depth for depth in DEPTHS if layer.c_in % depth == 0]
    if layer.picture_out:  # three columns: longer runs, so that a weight is used as often
        yield from (Tiling(32, 64, 4, 1, 16, 3, depth, 4) for depth in sorted(depths))
        yield from (Tiling(8, 32, 1, 1, 8, 3, depth, 4) for depth in sorted(depths))
        return
    for columns in (n for n in range(WIDEST, 0, -8) if layer.c_out % n == 0):
        for depth in depths:
            warps_n = columns // 8
            yield Tiling(16, 32, 2, warps_n, 8, 8, depth) if warps_n <= 4 else Tiling(16, 16, 1, warps_n, 8, 8, depth)


def _up(n: int, step: int) -> int:
    return -(-n // step) * step


def _odd_groups(floats: int) -> int:
    return (-(-floats // 4) | 1) * 4


def shared_bytes(layer: Layer, t: Tiling) -> int:
    """Return the dynamic shared memory of a block: SHARED_BYTES in the kernel."""
    taps, stride = 2 if layer.upsample else layer.kernel, layer.stride
    height, width = ((n - 1) * stride + taps for n in (t.tile_h, t.tile_w))
    pitch = _odd_groups(_up(-(-width // stride), 4) * stride)
    used = t.depth * (_odd_groups(_up(height, stride) * pitch) + taps * taps * _up(t.columns, 4))
    staging = t.columns * t.tile_h * (t.tile_w + 1) if layer.picture_out else 0
    return max(used, staging) * FLOAT_BYTES


def pack(weight: torch.Tensor, layer: Layer, t: Tiling) -> torch.Tensor:
    """Return [pass][chunk][c][dy][dx][column], a pass's columns up to a multiple of 4; folded in float64."""
    phases = fold(weight.double()) if layer.upsample else weight.double()[None]
    size = phases.shape[-1]
    rows = phases.reshape(-1, t.columns, layer.c_in // t.depth, t.depth, size, size).permute(0, 2, 3, 4, 5, 1)
    return functional.pad(rows, (0, -t.columns % 4)).float().contiguous().flatten()
