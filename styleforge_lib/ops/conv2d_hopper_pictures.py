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
COLUMNS = 64  # of a strip, down which a warpgroup walks
GROUPS = 2  # warpgroups of a block
LEAST_ROWS = 4  # of a warpgroup's share: each share begins with eight rows that are multiplied and not written
WEIGHT_BYTES = (2 * KERNEL - 1) * 32 * 64
FROM_BYTES = WEIGHT_BYTES + 1024  # as in the kernel
RING = KERNEL  # rows of 32 channels that are under way to a warpgroup
TO_BYTES = WEIGHT_BYTES + GROUPS * (RING * COLUMNS * 2 * CHANNELS + 2 * 3 * KERNEL * (COLUMNS + 8) * 4) + 1024


def _suits(layer: Layer, arch: str) -> bool:
    plain = layer.kernel == KERNEL and layer.stride == 1 and not (layer.upsample or layer.residual or layer.materialise)
    return arch == "sm_90a" and layer.numbers in ("float16", "bfloat16") and plain and not layer.relu_out


def pack(columns: torch.Tensor, numbers: str) -> torch.Tensor:
    """Return the circle of tiles [17][column of D 32][32] of [dy 9][column 32][quad 4][8]: tile m has row -m modulo 9.

    A thread's eight numbers, 4a + 2b + e, are 16a + 8b + 2 * quad + e of the tensor core's k.
    """
    k = columns.reshape(KERNEL, 32, 4, 2, 2, 2).permute(0, 1, 3, 4, 2, 5).reshape(KERNEL, 32, 32)
    circle = k[[-m % KERNEL for m in range(2 * KERNEL - 1)]]
    return packed_rows(circle.reshape(-1, 32), numbers).contiguous().flatten()


class _Pictures:
    """What both have: the compiled kernel, the launch over strips."""

    def __init__(self, layer: Layer, columns: torch.Tensor, name: str, picture: torch.dtype, arch: str):
        self.layer, self.arch, self.weight = layer, arch, pack(columns, layer.numbers).view(torch.uint8)
        macros = {"TYPE": MACRO_TYPES[layer.numbers], "PICTURE": PICTURE_TYPES[picture], "NORM": int(layer.affine)}
        self.kernel = compiled("conv2d_hopper_pictures", columns.device, arch, **macros).kernel(name)

    def launch(self, images: int, height: int, width: int, strip: int, args: tuple, shared_bytes: int) -> None:
        shares = -(-width // strip) * -(-height // LEAST_ROWS)
        blocks = max(1, min(multiprocessors(self.weight.device) // images, -(-shares // GROUPS)))
        self.kernel((blocks, images), 128 * GROUPS, (*args, height, width), shared_bytes=shared_bytes)


class HopperFromPicture(_Pictures):
    """The first layer, with its weights packed: see TensorCoreConvolution."""

    def __init__(self, layer: Layer, weight: torch.Tensor, bias: torch.Tensor | None, norm: Norm, arch: str):
        self.norm = norm
        taps = weight.detach().double().permute(2, 0, 1, 3)  # dy, column, channel, dx
        k = taps.new_zeros(KERNEL, CHANNELS, 4, 8)
        k[:, :, :3] = taps[..., :8]
        k[:, :, 3, 0:6:2] = taps[..., 8]
        # The columns 8i + 2q + e of D, which are thread q's: eight channels that follow each other.
        columns = k.reshape(KERNEL, 4, 4, 2, 4, 8).transpose(1, 2)
        super().__init__(layer, columns, "conv2d_hopper_from_picture", layer.picture_in, arch)

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
        self.launch(images, height, width, COLUMNS, (x, self.weight, out, sums), FROM_BYTES)
        if sums is not None:
            close_planes(sums, self.norm, affine_out, out, self.arch)


class HopperToPicture(_Pictures):
    """The last layer, with its weights packed: see TensorCoreConvolution."""

    def __init__(self, layer: Layer, weight: torch.Tensor, bias: torch.Tensor | None, norm: Norm, arch: str):
        self.bias = bias
        taps = weight.detach().double().permute(2, 0, 3, 1)  # dy, channel, dx, k
        columns = taps.new_zeros(KERNEL, 4, 8, CHANNELS)  # thread q, j = 2i + e
        columns[:, :3] = taps[:, :, :8]
        columns[:, 3, :3] = taps[:, :, 8]
        columns = columns.reshape(KERNEL, 4, 4, 2, CHANNELS).transpose(1, 2)  # 8i + 2q + e
        super().__init__(layer, columns, "conv2d_hopper_to_picture", layer.picture_out, arch)

    @staticmethod
    def takes(layer: Layer, arch: str) -> bool:
        """Whether it is the network's last layer, on a Hopper card."""
        channels = layer.c_in == CHANNELS and layer.c_out == 3 and not layer.statistics
        normed = layer.affine == layer.relu_in
        return bool(layer.picture_out) and not layer.picture_in and channels and normed and _suits(layer, arch)

    def __call__(self, x, out, *, affine=None, residual=None, materialised=None, sums=None, affine_out=None) -> None:
        """Launch on the current stream: x (N, H, W, 32), out (N, 3, H, W)."""
        images, height, width, _ = x.shape
        strip = COLUMNS - KERNEL + 1
        self.launch(images, height, width, strip, (x, affine, self.weight, self.bias, out), TO_BYTES)
