"""The first and the last layer on Hopper's tensor cores: cuda/conv2d_hopper_pictures.cu.

Contents
    HopperFromPicture       (N, 3, H, W) to (N, H, W, 32), with the statistics of the output
    HopperToPicture         (N, H, W, 32), normalised on load, to (N, 3, H, W)

Both have the face of TensorCoreConvolution.
"""

import torch

from styleforge_lib.ops.elementwise import compiled
from styleforge_lib.ops.instance_norm import multiprocessors
from styleforge_lib.ops.layer import MACRO_TYPES, PICTURE_TYPES, Layer, Norm, close_planes, packed_rows

KERNEL, CHANNELS = 9, 32
TILE_H, COLUMNS = 8, 64
SHARED_BYTES = (TILE_H + KERNEL - 1) * COLUMNS * 64 + (KERNEL + 1) * 64 * 64 + 1024  # as in the kernel
BLOCKS = 2  # that a multiprocessor holds


def _suits(layer: Layer, arch: str) -> bool:
    plain = layer.kernel == KERNEL and layer.stride == 1 and not (layer.upsample or layer.residual or layer.materialise)
    return arch == "sm_90a" and layer.numbers in ("float16", "bfloat16") and plain and not layer.relu_out


def pack(rows: torch.Tensor, numbers: str) -> torch.Tensor:
    """Return [input row 10][row of D 64][32] of [dy 9][row 32][32]: two rows of the picture share ten input rows."""
    tiles = rows.new_zeros(KERNEL + 1, 2, 32, 32)
    for row in range(2):
        tiles[row : row + KERNEL, row] = rows
    return packed_rows(tiles.reshape(-1, 32), numbers).contiguous().flatten()


class _Pictures:
    """What both have: the compiled kernel, the launch over tiles."""

    def __init__(self, layer: Layer, rows: torch.Tensor, name: str, picture: torch.dtype, arch: str):
        self.layer, self.arch, self.weight = layer, arch, pack(rows, layer.numbers).view(torch.uint8)
        macros = {"TYPE": MACRO_TYPES[layer.numbers], "PICTURE": PICTURE_TYPES[picture]}
        self.kernel = compiled("conv2d_hopper_pictures", rows.device, arch, **macros).kernel(name)

    def launch(self, images: int, height: int, width: int, tile_w: int, args: tuple) -> None:
        tiles = -(-height // TILE_H) * -(-width // tile_w)
        blocks = min(tiles, -(-BLOCKS * multiprocessors(self.weight.device) // images))
        self.kernel((blocks, images), 256, (*args, height, width), shared_bytes=SHARED_BYTES)


class HopperFromPicture(_Pictures):
    """The first layer, with its weights packed: see TensorCoreConvolution."""

    def __init__(self, layer: Layer, weight: torch.Tensor, bias: torch.Tensor | None, norm: Norm, arch: str):
        self.norm = norm
        rows = (
            weight.detach().double().permute(2, 0, 3, 1).reshape(KERNEL, CHANNELS, 3 * KERNEL)
        )  # k = 3 * dx + channel
        rows = torch.nn.functional.pad(rows, (0, 32 - 3 * KERNEL))
        super().__init__(layer, rows, "conv2d_hopper_from_picture", layer.picture_in, arch)

    @staticmethod
    def takes(layer: Layer, arch: str) -> bool:
        """Whether it is the network's first layer, on a Hopper card."""
        channels = layer.c_in == 3 and layer.c_out == CHANNELS and not layer.bias
        return (
            bool(layer.picture_in) and not layer.picture_out and channels and not layer.affine and _suits(layer, arch)
        )

    def __call__(self, x, out, *, affine=None, residual=None, materialised=None, sums=None, affine_out=None) -> None:
        """Launch on the current stream: x (N, 3, H, W), out (N, H, W, 32)."""
        images, _, height, width = x.shape
        self.launch(images, height, width, COLUMNS, (x, self.weight, out, sums))
        if sums is not None:
            close_planes(sums, self.norm, affine_out, out, self.arch)


class HopperToPicture(_Pictures):
    """The last layer, with its weights packed: see TensorCoreConvolution."""

    def __init__(self, layer: Layer, weight: torch.Tensor, bias: torch.Tensor | None, norm: Norm, arch: str):
        self.bias = bias
        rows = (
            weight.detach().double().permute(2, 3, 0, 1).reshape(KERNEL, 3 * KERNEL, CHANNELS)
        )  # row 3 * dx + channel
        rows = torch.nn.functional.pad(rows, (0, 0, 0, 32 - 3 * KERNEL))
        super().__init__(layer, rows, "conv2d_hopper_to_picture", layer.picture_out, arch)

    @staticmethod
    def takes(layer: Layer, arch: str) -> bool:
        """Whether it is the network's last layer, on a Hopper card."""
        channels = layer.c_in == CHANNELS and layer.c_out == 3 and not layer.statistics
        normed = layer.affine == layer.relu_in
        return bool(layer.picture_out) and not layer.picture_in and channels and normed and _suits(layer, arch)

    def __call__(self, x, out, *, affine=None, residual=None, materialised=None, sums=None, affine_out=None) -> None:
        """Launch on the current stream: x (N, H, W, 32), out (N, 3, H, W)."""
        images, height, width, _ = x.shape
        self.launch(images, height, width, COLUMNS - KERNEL + 1, (x, affine, self.weight, self.bias, out))
