"""A convolution as one launch: what is fused into it, which kernel computes it, how its weights lie.

Contents
    Layer                   what is to be computed: everything that a choice may depend on
    Choice                  which file, macros, launch shape and layout of weights compute it
    choose, CHOOSERS        the table: the first that takes a layer on this architecture
    tensor_core_choice      cuda/conv2d.cu and cuda/upsample_conv2d.cu, with the tiles of TILINGS
    Convolution             a layer with its weights packed, ready to be launched again and again
    MergedMoments           between two of them: moments of tiles become scale and shift

Activations are (N, H, W, C), contiguous. A convolution writes its raw output, before the norm, with the moments of each
tile; the next one applies scale, shift and ReLU while it loads.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from styleforge_lib.ops.elementwise import compiled
from styleforge_lib.runtime.kernel import EMULATED_ARCH, chosen_device
from styleforge_lib.runtime.resources import limits

EPS = 1e-5
VECTOR_BYTES = 16
MOMENTS = 4  # floats: count, mean, what its rounding lost, M2
# How a layer's numbers are held and multiplied. "tf32" are float32 whose products the tensor core takes in TF32.
STORAGE = {"float16": torch.float16, "bfloat16": torch.bfloat16, "tf32": torch.float32, "float32": torch.float32}
MACRO_TYPES = {"float16": "__half", "bfloat16": "__nv_bfloat16", "tf32": "float", "float32": "float"}


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What a convolution computes: out = relu_out(bias + conv(v)), v = relu_in(x * scale + shift) + residual.

    numbers: a key of STORAGE. kernel: its odd size; reflection padding of kernel // 2 comes before, or, with
    `upsample`, nearest upsampling by 2 and then the padding. affine: scale and shift are given. materialise: v is
    written as well. statistics: the moments of the outputs are gathered.
    """

    c_in: int
    c_out: int
    kernel: int = 3
    stride: int = 1
    upsample: bool = False
    numbers: str = "float16"
    affine: bool = False
    relu_in: bool = False
    residual: bool = False
    materialise: bool = False
    statistics: bool = False
    bias: bool = False
    relu_out: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations and packed weights."""
        return STORAGE[self.numbers]

    def out_size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the output; ValueError where the reflection would be wider than the picture."""
        if self.upsample:
            return 2 * height, 2 * width
        reach = self.kernel // 2
        if min(height, width) <= reach:
            raise ValueError(
                f"x is {height}x{width}, and reflection padding of {reach} needs at least {reach + 1}x{reach + 1} "
                "pixels to reflect: give a larger picture"
            )
        return -(-height // self.stride), -(-width // self.stride)

    @property
    def switches(self) -> dict[str, int]:
        """The macros that switch on what is fused."""
        names = ("affine", "relu_in", "residual", "materialise", "statistics", "bias", "relu_out")
        return {name.upper(): int(getattr(self, name)) for name in names}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How a layer is computed: the kernel `file` of cuda/file.cu, compiled with `defines`.

    A block of `threads` makes `tile` (rows, columns) of the output, or of the input where it upsamples; `rows` of
    partial moments belong to a tile. pack(weight): (c_out, c_in, k, k) float64 to what the kernel reads.
    """

    file: str
    defines: dict[str, object]
    threads: int
    tile: tuple[int, int]
    shared_bytes: int
    pack: Callable[[torch.Tensor], torch.Tensor]
    rows: int = 1


# ----------------------------------------------------------------------------------------------------------------------
# The table


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


# (c_in, c_out, stride, upsample): the layers of the TransformerNet in 16-bit numbers. A ring as long as the stages
# keeps all the weights at once.
TILINGS = {
    (32, 64, 2, False): Tiling(16, 8, 2, 2, 64, 9, 2),
    (64, 128, 2, False): Tiling(8, 8, 2, 2, 128, 3, 2),
    (128, 128, 1, False): Tiling(16, 8, 2, 2, 128, 3, 2),
    (128, 64, 1, True): Tiling(16, 8, 2, 2, 128, 3, 2),
    (64, 32, 1, True): Tiling(16, 8, 2, 2, 128, 4, 2),
}
WIDEST = 128  # columns of a pass: 64 x 64 sums a warp are 128 registers a thread


def choose(layer: Layer, arch: str) -> Choice:
    """Return how `layer` is computed on `arch`; ValueError names what no kernel takes."""
    for chooser in CHOOSERS:
        if (choice := chooser(layer, arch)) is not None:
            return choice
    raise ValueError(f"no kernel takes this layer on {arch}: {layer}")


def tensor_core_choice(layer: Layer, arch: str) -> Choice | None:
    """Take layers whose channels fill the tensor cores' fragments, on any card that has them for these numbers."""
    step = 32 // layer.dtype.itemsize
    if layer.c_in % step or layer.c_out % 16 or layer.numbers == "float32":
        return None
    if layer.kernel % 2 == 0 or (layer.upsample and (layer.kernel, layer.stride) != (3, 1)):
        return None
    if arch_number(arch) < 80 and layer.numbers != "float16":
        return None
    for tiling in _tilings(layer):
        choice = _tiled(layer, tiling)
        if choice is not None and choice.shared_bytes <= limits(arch).shared_per_block:
            return choice
    return None


CHOOSERS: list[Callable[[Layer, str], Choice | None]] = [tensor_core_choice]


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
    columns = next(
        n for n in range(WIDEST, 0, -16) if total % n == 0 and (n % layer.c_out == 0 or layer.c_out % n == 0)
    )
    halves = columns // 2
    warps_n = 2 if halves % 16 == 0 and (halves % layer.c_out == 0 or layer.c_out % halves == 0) else 1
    narrow = max(n for n in (16, 32, 48, 64) if n <= columns and total % n == 0 and layer.c_out % n == 0)
    yield Tiling(16, 8, 2, warps_n, columns, 3, 1)
    yield Tiling(8, 8, 2, warps_n, columns, 3, 1)
    yield Tiling(8, 8, 4, 1, narrow, 2, 1)
    yield Tiling(4, 8, 2, 1, narrow, 2, 1)
    yield Tiling(4, 8, 2, 1, 16, 2, 1)


def depth_of(groups: int) -> int:
    """Return how many 16-byte groups of input channels a stage of weights has: DEPTH in common/implicit_gemm.cuh."""
    return next(depth for depth in (8, 6, 4, 2) if groups % depth == 0)


def _tiled(layer: Layer, t: Tiling) -> Choice | None:
    """Return the choice of a tiling; the sizes are those of `Block` in common/implicit_gemm.cuh."""
    size, threads = layer.dtype.itemsize, 32 * t.warps_m * t.warps_n
    groups, taps, phases = layer.c_in * size // VECTOR_BYTES, 4 if layer.upsample else layer.kernel**2, 1
    if layer.upsample:
        phases = 4
    if groups > threads:
        return None
    reach, depth = layer.kernel - 1, depth_of(groups)
    height, width = ((n - 1) * layer.stride + reach + 1 for n in (t.tile_h, t.tile_w))
    pitch = -(-width // layer.stride) * layer.stride
    stages = taps * groups // depth
    weights = min(t.ring, stages) * t.columns * depth * VECTOR_BYTES
    staging = t.tile_h * t.tile_w * t.columns * size
    moments = t.warps_m * t.columns * MOMENTS * 4 if layer.statistics else 0
    tile = {"TILE_H": t.tile_h, "TILE_W": t.tile_w, "WARPS_M": t.warps_m, "WARPS_N": t.warps_n}
    defines = {
        "NUMBER": MACRO_TYPES[layer.numbers],
        "C_IN": layer.c_in,
        "C_OUT": layer.c_out,
        "KERNEL": layer.kernel,
        "STRIDE": layer.stride,
        **tile,
        "COLUMNS": t.columns,
        "RING": t.ring,
        "BLOCKS": t.blocks,
        **layer.switches,
    }
    return Choice(
        file="upsample_conv2d" if layer.upsample else "conv2d",
        defines=defines,
        threads=threads,
        tile=(t.tile_h, t.tile_w),
        shared_bytes=height * pitch * groups * VECTOR_BYTES + max(weights, staging) + moments,
        pack=functools.partial(_pack, layer=layer, columns=t.columns),
        rows=phases // max(1, t.columns // layer.c_out),
    )


# ----------------------------------------------------------------------------------------------------------------------
# Weights


def fold(weight: torch.Tensor) -> torch.Tensor:
    """Return the four 2x2 kernels of upsampling and a 3x3 convolution: (c_out, c_in, 3, 3) to (4, c_out, c_in, 2, 2).

    Phase 2a + b makes the outputs at (2i + a, 2j + b); see cuda/upsample_conv2d.cu.
    """
    rows = weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])  # [a][r][dy]
    folded = torch.einsum("ary,bsx,kcyx->abkcrs", rows, rows, weight)
    return folded.reshape(4, *weight.shape[:2], 2, 2)


def to_numbers(weight: torch.Tensor, numbers: str) -> torch.Tensor:
    """Round to what a layer's numbers are stored in; of TF32 the ten bits of fraction that the tensor core reads."""
    weight = weight.to(torch.float32).to(STORAGE[numbers])
    if numbers != "tf32":
        return weight
    bits = weight.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)  # to the nearest, ties away from zero


def swizzled(groups: torch.Tensor) -> torch.Tensor:
    """Exchange the 16-byte groups of rows (..., rows, groups, lanes) as `row_offset` finds them."""
    rows, count = groups.shape[-3:-1]
    row = torch.arange(rows, device=groups.device)
    keys = {4: row >> 1 & 3, 2: row >> 2 & 1}
    key = row & 7 if count % 8 == 0 else keys.get(count, torch.zeros_like(row))
    index = torch.arange(count, device=groups.device)[None, :] ^ key[:, None]
    return groups.gather(-2, index[..., None].expand(groups.shape))


def _pack(weight: torch.Tensor, *, layer: Layer, columns: int) -> torch.Tensor:
    """Return [pass][chunk][tap][column][group][lanes]: stages, as the kernel's ring takes them."""
    taps = fold(weight).permute(3, 4, 0, 1, 2) if layer.upsample else weight.permute(2, 3, 0, 1)[:, :, None]
    taps = taps.reshape(taps.shape[0] * taps.shape[1], -1, layer.c_in)  # (tap, column, channel)
    lanes = VECTOR_BYTES // layer.dtype.itemsize
    depth = depth_of(layer.c_in // lanes)
    values = to_numbers(taps, layer.numbers)
    values = values.reshape(len(values), -1, columns, layer.c_in // lanes // depth, depth, lanes)
    return swizzled(values.permute(1, 3, 0, 2, 4, 5)).contiguous().flatten()


# ----------------------------------------------------------------------------------------------------------------------
# Launches


class Convolution:
    """A layer with its weights: packed once, launched as often as one likes, from any thread.

    weight: (c_out, c_in, k, k), any floating dtype, on the device that is to compute; bias: (c_out,). Later changes of
    the two are not seen. arch: another than the device's own. ValueError: no kernel takes the layer on this device.
    """

    def __init__(
        self, layer: Layer, weight: torch.Tensor, bias: torch.Tensor | None = None, *, arch: str | None = None
    ):
        layer, arch = replace(layer, bias=bias is not None), arch or architecture(weight.device)
        self.layer, self.device = layer, weight.device
        self.choice = choose(layer, arch)
        self.weight = self.choice.pack(weight.detach().double())
        self.bias = None if bias is None else bias.detach().float().contiguous()
        self.kernel = compiled(self.choice.file, weight.device, arch, **self.choice.defines).only

    def tiles(self, height: int, width: int) -> int:
        """Return how many blocks make one image, whose input has this height and width."""
        size = (height, width) if self.layer.upsample else self.layer.out_size(height, width)
        rows, columns = (-(-n // t) for n, t in zip(size, self.choice.tile, strict=True))
        return rows * columns

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        """Return (N, H, W, C) of the output for an input of `shape`."""
        return (shape[0], *self.layer.out_size(*shape[1:3]), self.layer.c_out)

    def partial_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        """Return (N, rows, c_out, 4) of the partial moments for an input of `shape`."""
        return (shape[0], self.tiles(*shape[1:3]) * self.choice.rows, self.layer.c_out, MOMENTS)

    def __call__(
        self,
        x: torch.Tensor,
        out: torch.Tensor,
        *,
        affine: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
        materialised: torch.Tensor | None = None,
        partial: torch.Tensor | None = None,
    ) -> None:
        """Launch on the current stream: shapes are those of `out_shape` and `partial_shape`; affine (N, c_in, 2)."""
        images, height, width, _ = x.shape
        size = (height, width) if self.layer.upsample else tuple(out.shape[1:3])
        args = (x, affine, residual, materialised, self.weight, self.bias, out, partial, height, width, *size)
        grid = (self.tiles(height, width), 1, images)
        self.kernel(grid, self.choice.threads, args, shared_bytes=self.choice.shared_bytes)


class MergedMoments:
    """The instance norm between two convolutions: partial moments to (N, channels, 2), scale and shift.

    weight, bias: of the norm, (channels,) or None.
    """

    THREADS, CHANNELS = 1024, 4  # as in cuda/merge_moments.cu

    def __init__(self, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float, device: torch.device):
        self.weight, self.bias = (None if v is None else v.detach().float().contiguous() for v in (weight, bias))
        self.eps = eps
        self.kernel = compiled("merge_moments", device).only

    def __call__(self, partial: torch.Tensor, affine: torch.Tensor) -> None:
        """Launch: partial (N, rows, channels, 4) to affine (N, channels, 2)."""
        images, rows, channels, _ = partial.shape
        args = (partial, self.weight, self.bias, affine, channels, rows, self.eps)
        self.kernel((-(-channels // self.CHANNELS), images), self.THREADS, args)


@functools.cache
def architecture(device: torch.device) -> str:
    """Return what is compiled for a device; the emulator is an Ampere card."""
    if device.type != "cuda" or chosen_device() == "emulator":
        return EMULATED_ARCH
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}{'a' if major >= 9 else ''}"
