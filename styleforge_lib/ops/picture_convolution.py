"""The first and the last layer, from and to pictures: cuda/conv2d_from_picture.cu and cuda/conv2d_to_picture.cu.

Contents
    FromPicture     (N, 3, H, W) of uint8 or floating numbers to (N, H, W, C), with the statistics of the output
    ToPicture       (N, H, W, C), normalised on load, to (N, 3, H, W)

Both have the face of TensorCoreConvolution.
"""

import torch
from torch.nn import functional

from styleforge_lib.ops.elementwise import compiled
from styleforge_lib.ops.layer import PICTURE_TYPES, VECTOR_BYTES, Layer, Norm, close_planes, packed_rows, to_numbers
from styleforge_lib.ops.tensor_core_convolution import DOUBLE2_BYTES, Tiling, arch_number
from styleforge_lib.runtime.resources import limits

CHANNELS = 3
# From the one to be wished for to the smallest. FromPicture: a warp has 32 or 64 pixels of all columns.
FROM_TILES = ((16, 32, 8), (8, 32, 8), (8, 16, 4), (4, 8, 2))
TO_TILES = ((8, 56, 8), (8, 24, 8), (4, 24, 4), (4, 8, 4))  # columns and the 8 of the halo: whole fragments of 16


def _suits(layer: Layer, arch: str) -> bool:
    plain = layer.stride == 1 and not layer.upsample and not layer.residual and not layer.materialise
    numbers = layer.numbers == "float16" or (layer.numbers in ("bfloat16", "tf32") and arch_number(arch) >= 80)
    return plain and numbers and layer.kernel % 2 == 1


class FromPicture:
    """The first layer, with its weights packed: see TensorCoreConvolution."""

    def __init__(self, layer: Layer, weight: torch.Tensor, bias: torch.Tensor | None, norm: Norm, arch: str):
        self.layer, self.norm, self.bias, self.arch = layer, norm, bias, arch
        self.tiling = _from_tiling(layer, arch)
        self.weight = pack_from_picture(weight, layer)
        macros = {**layer.macros, "PICTURE": PICTURE_TYPES[layer.picture_in]}
        self.kernel = compiled("conv2d_from_picture", weight.device, arch, **macros, **self.tiling.macros).only

    @staticmethod
    def takes(layer: Layer, arch: str) -> bool:
        """Whether the kernel applies."""
        return _from_tiling(layer, arch) is not None

    def __call__(self, x, out, *, affine=None, residual=None, materialised=None, sums=None, affine_out=None) -> None:
        """Launch on the current stream: x (N, 3, H, W), out (N, H, W, c_out)."""
        images, _, height, width = x.shape
        tiles = -(-height // self.tiling.tile_h) * -(-width // self.tiling.tile_w)
        args = (x, self.weight, self.bias, out, sums, height, width)
        shared = _from_shared_bytes(self.layer, self.tiling)
        self.kernel((tiles, images), self.tiling.threads, args, shared_bytes=shared)
        if sums is not None:
            close_planes(sums, self.norm, affine_out, out, self.arch)


def _from_tiling(layer: Layer, arch: str) -> Tiling | None:
    if not layer.picture_in or layer.picture_out or layer.c_in != CHANNELS or not _suits(layer, arch) or layer.affine:
        return None
    if layer.c_out not in (16, 32, 64) or layer.relu_in:
        return None
    most = limits(arch).shared_per_block
    tilings = (Tiling(h, w, warps, 1, layer.c_out, 2, 2) for h, w, warps in FROM_TILES)
    return next((t for t in tilings if _from_shared_bytes(layer, t) <= most), None)


def _from_chunks(layer: Layer) -> tuple[int, int, int]:
    """Return (pixels in a chunk, chunks of a kernel row, chunks in all): COPIES, ROW_CHUNKS, CHUNKS in the kernel."""
    pixels = VECTOR_BYTES // layer.dtype.itemsize // 4
    row = -(-layer.kernel // pixels)
    return pixels, row, -(-layer.kernel * row // 2) * 2


def _from_shared_bytes(layer: Layer, t: Tiling) -> int:
    """Return the dynamic shared memory of a block: the sums are those of the kernel's constants."""
    pixels, row, chunks = _from_chunks(layer)
    pitch = -(-(t.tile_w + pixels * row - 1) // 2) * 2
    copy = -(-(t.tile_h + layer.kernel - 1) * pitch * VECTOR_BYTES // pixels // 128) * 128 + 64 * (pixels - 1)
    used = -(-pixels * copy // 128) * 128 + chunks * t.columns * VECTOR_BYTES
    staging = t.tile_h * t.tile_w * t.columns * layer.dtype.itemsize
    return max(used, staging) + (t.warps_m * t.columns * DOUBLE2_BYTES if layer.statistics else 0)


def pack_from_picture(weight: torch.Tensor, layer: Layer) -> torch.Tensor:
    """Return [chunk][column][pixel][4]: the fourth channel, and pixels beyond the kernel's row, are 0."""
    pixels, row, chunks = _from_chunks(layer)
    size = layer.kernel
    taps = weight.detach().double().permute(2, 3, 0, 1)  # dy, dx, column, channel
    taps = functional.pad(taps, (0, 1, 0, 0, 0, pixels * row - size))
    taps = taps.reshape(size * row, pixels, layer.c_out, 4).transpose(1, 2)
    taps = functional.pad(taps, (0, 0, 0, 0, 0, 0, 0, chunks - size * row))
    return to_numbers(taps, layer.numbers).contiguous().flatten()


class ToPicture:
    """The last layer, with its weights packed: see TensorCoreConvolution."""

    def __init__(self, layer: Layer, weight: torch.Tensor, bias: torch.Tensor | None, norm: Norm, arch: str):
        self.layer, self.bias, self.tiling = layer, bias, _to_tiling(layer, arch)
        self.weight = pack_to_picture(weight, layer)
        macros = {**layer.macros, "PICTURE": PICTURE_TYPES[layer.picture_out]}
        self.kernel = compiled("conv2d_to_picture", weight.device, arch, **macros, **self.tiling.macros).only

    @staticmethod
    def takes(layer: Layer, arch: str) -> bool:
        """Whether the kernel applies."""
        return _to_tiling(layer, arch) is not None

    def __call__(self, x, out, *, affine=None, residual=None, materialised=None, sums=None, affine_out=None) -> None:
        """Launch on the current stream: x (N, H, W, c_in), out (N, 3, H, W)."""
        images, height, width, _ = x.shape
        tiles = -(-height // self.tiling.tile_h) * -(-width // self.tiling.tile_w)
        args = (x, affine, self.weight, self.bias, out, height, width)
        shared = _to_shared_bytes(self.layer, self.tiling)
        self.kernel((tiles, images), self.tiling.threads, args, shared_bytes=shared)


def _to_tiling(layer: Layer, arch: str) -> Tiling | None:
    if not layer.picture_out or layer.picture_in or layer.c_out != CHANNELS or not _suits(layer, arch):
        return None
    if layer.statistics or layer.kernel > 9 or layer.c_in * layer.dtype.itemsize % 32 or layer.c_in > 128:
        return None
    most = limits(arch).shared_per_block
    tilings = (
        # The halo is the tile's columns and kernel - 1 more, together a multiple of 16.
        Tiling(h, w + 9 - layer.kernel, warps, 1, 16, 2, 2)
        for h, w, warps in TO_TILES
    )
    return next((t for t in tilings if _to_shared_bytes(layer, t) <= most), None)


def _to_shared_bytes(layer: Layer, t: Tiling) -> int:
    groups = layer.c_in * layer.dtype.itemsize // VECTOR_BYTES
    width, used = t.tile_w + layer.kernel - 1, CHANNELS * layer.kernel
    halo = (t.tile_h + layer.kernel - 1) * width * groups * VECTOR_BYTES
    weights = layer.kernel * (-(-used // 16) * 16) * groups * VECTOR_BYTES
    return max(halo, t.tile_h * width * (used | 1) * 4) + weights


def pack_to_picture(weight: torch.Tensor, layer: Layer) -> torch.Tensor:
    """Return [dy][column][group][lanes], column = 3 * dx + channel, with columns of 0 up to a multiple of 16."""
    used = CHANNELS * layer.kernel
    rows = weight.detach().double().permute(2, 3, 0, 1).reshape(layer.kernel, used, layer.c_in)
    rows = functional.pad(rows, (0, 0, 0, -used % 16))
    return packed_rows(rows.reshape(-1, layer.c_in), layer.numbers).contiguous().flatten()
