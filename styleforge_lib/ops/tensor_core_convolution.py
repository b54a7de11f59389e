"""Convolutions on the tensor cores of any card that has them: cuda/conv2d.cu and cuda/upsample_conv2d.cu.

Contents
    Tiling, TILINGS             how a block's tile is cut; the table for the layers of the TransformerNet
    TensorCoreConvolution       a layer with its weights packed, ready to be launched again and again
"""

from dataclasses import dataclass

import torch

from styleforge_lib.ops.elementwise import compiled
from styleforge_lib.ops.layer import VECTOR_BYTES, Layer, Norm, close_planes, fold, packed_rows
from styleforge_lib.runtime.resources import limits

DOUBLE2_BYTES = 16
WIDEST = 128  # columns of a pass: 64 x 64 sums a warp are 128 registers a thread


@dataclass(frozen=True)
class Tiling:
    """The tile of a block, how its warps divide it, the columns of a pass, the ring's stages, blocks to hope for."""

    tile_h: int
    tile_w: int
    warps_m: int
    warps_n: int
    columns: int
    ring: int
    blocks: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.warps_m * self.warps_n

    @property
    def macros(self) -> dict[str, int]:
        """The macros of cuda/common/layer.cuh."""
        return {name.upper(): value for name, value in vars(self).items()}


# (c_in, c_out, stride, upsample): the layers of the TransformerNet in 16-bit numbers. A ring as long as the stages
# keeps all the weights at once.
TILINGS = {
    (32, 64, 2, False): Tiling(16, 8, 2, 2, 64, 9, 2),
    (64, 128, 2, False): Tiling(8, 8, 2, 2, 128, 3, 2),
    (128, 128, 1, False): Tiling(16, 8, 2, 2, 128, 3, 2),
    (128, 64, 1, True): Tiling(16, 8, 2, 2, 128, 3, 2),
    (64, 32, 1, True): Tiling(16, 8, 2, 2, 128, 4, 2),
}


class TensorCoreConvolution:
    """A layer with its weights: packed once, launched as often as one likes, from any thread.

    weight: (c_out, c_in, k, k), any floating dtype, on the device that is to compute; bias: (c_out,). Later changes of
    them are not seen.
    """

    def __init__(self, layer: Layer, weight: torch.Tensor, bias: torch.Tensor | None, norm: Norm, arch: str):
        self.layer, self.norm, self.bias, self.arch = layer, norm, bias, arch
        self.tiling = tiling_of(layer, arch)
        self.shared_bytes = shared_bytes(layer, self.tiling)
        self.file = "upsample_conv2d" if layer.upsample else "conv2d"
        self.weight = pack(weight, layer, self.tiling.columns)
        self.kernel = compiled(self.file, weight.device, arch, **layer.macros, **self.tiling.macros).only

    @staticmethod
    def takes(layer: Layer, arch: str) -> bool:
        """Whether channels fill the tensor cores' fragments, and the card has them for these numbers."""
        return tiling_of(layer, arch) is not None

    def __call__(
        self,
        x: torch.Tensor,
        out: torch.Tensor,
        *,
        affine: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
        materialised: torch.Tensor | None = None,
        sums: torch.Tensor | None = None,
        affine_out: torch.Tensor | None = None,
    ) -> None:
        """Launch on the current stream.

        out: of `layer.out_shape`. affine, affine_out: (N, channels, 2) float32, of x and of the norm after out. sums:
        `plane_sums`.
        """
        images, height, width, _ = x.shape
        rows, columns = (height, width) if self.layer.upsample else out.shape[1:3]
        tiles = -(-rows // self.tiling.tile_h) * -(-columns // self.tiling.tile_w)
        args = (x, affine, residual, materialised, self.weight, self.bias, out, sums, height, width, rows, columns)
        self.kernel((tiles, images), self.tiling.threads, args, shared_bytes=self.shared_bytes)
        if sums is not None:
            close_planes(sums, self.norm, affine_out, out, self.arch)


def tiling_of(layer: Layer, arch: str) -> Tiling | None:
    """Return the tiling of a layer that fits the architecture's shared memory; None where the kernel does not apply."""
    step = 32 // layer.dtype.itemsize
    if layer.picture_in or layer.picture_out or layer.numbers == "float32":
        return None
    if layer.c_in % step or layer.c_out % 16 or layer.kernel % 2 == 0:
        return None
    if (layer.upsample and (layer.kernel, layer.stride) != (3, 1)) or (layer.statistics and layer.c_out > 512):
        return None
    if arch_number(arch) < 80 and layer.numbers != "float16":
        return None
    fitting = (t for t in _tilings(layer) if shared_bytes(layer, t) <= limits(arch).shared_per_block)
    return next((t for t in fitting if layer.c_in * layer.dtype.itemsize // VECTOR_BYTES <= t.threads), None)


def arch_number(arch: str) -> int:
    """Return 90 of "sm_90a"."""
    return int("".join(c for c in arch if c.isdigit()))


def _tilings(layer: Layer):
    """Yield tilings from the one to be wished for to the smallest, which fits any card."""
    if layer.dtype.itemsize == 2 and layer.kernel == 3:
        known = TILINGS.get((layer.c_in, layer.c_out, layer.stride, layer.upsample))
        if known:
            yield known
    total = layer.c_out * (4 if layer.upsample else 1)
    whole = [n for n in range(16, WIDEST + 1, 16) if total % n == 0 and (n % layer.c_out == 0 or layer.c_out % n == 0)]
    columns, half = whole[-1], whole[-1] // 2
    warps_n = 2 if half % 16 == 0 and (half % layer.c_out == 0 or layer.c_out % half == 0) else 1
    narrow = max(n for n in whole if n <= 64 and layer.c_out % n == 0)
    yield Tiling(16, 8, 2, warps_n, columns, 3, 1)
    yield Tiling(8, 8, 2, warps_n, columns, 3, 1)
    yield Tiling(8, 8, 4, 1, narrow, 2, 1)
    yield Tiling(4, 8, 2, 1, narrow, 2, 1)
    yield Tiling(4, 8, 2, 1, 16, 2, 1)


def depth_of(groups: int) -> int:
    """Return how many 16-byte groups of input channels a stage of weights has: DEPTH in common/implicit_gemm.cuh."""
    return next(depth for depth in (8, 6, 4, 2) if groups % depth == 0)


def shared_bytes(layer: Layer, t: Tiling) -> int:
    """Return the dynamic shared memory of a block: SHARED in common/implicit_gemm.cuh."""
    size = layer.dtype.itemsize
    groups, taps = layer.c_in * size // VECTOR_BYTES, 4 if layer.upsample else layer.kernel**2
    depth = depth_of(groups)
    height, width = ((n - 1) * layer.stride + layer.kernel for n in (t.tile_h, t.tile_w))
    pitch = -(-width // layer.stride) * layer.stride
    weights = min(t.ring, taps * groups // depth) * t.columns * depth * VECTOR_BYTES
    staging = t.tile_h * t.tile_w * t.columns * size
    sums = t.warps_m * t.columns * DOUBLE2_BYTES if layer.statistics else 0
    return height * pitch * groups * VECTOR_BYTES + max(weights, staging) + sums


def pack(weight: torch.Tensor, layer: Layer, columns: int) -> torch.Tensor:
    """Return [pass][chunk][tap][column][group][lanes]: stages, as the kernel's ring takes them."""
    weight = weight.detach().double()
    taps = fold(weight).permute(3, 4, 0, 1, 2) if layer.upsample else weight.permute(2, 3, 0, 1)[:, :, None]
    depth = depth_of(layer.c_in * layer.dtype.itemsize // VECTOR_BYTES) * VECTOR_BYTES // layer.dtype.itemsize
    taps = taps.reshape(taps.shape[0] * taps.shape[1], -1, columns, layer.c_in // depth, depth)
    return packed_rows(taps.permute(1, 3, 0, 2, 4), layer.numbers).contiguous().flatten()
