"""What a convolution computes, and how its weights and statistics lie in memory.

Contents
    Layer, Norm             what is to be computed: everything that a choice of kernel may depend on
    plane_sums              room for the statistics of planes (cuda/common/plane_sums.cuh)
    close_planes            the sums -> scale and shift of the norm (cuda/close_planes.cu)
    fold, to_numbers, swizzled, packed_rows       from (c_out, c_in, k, k) to what the kernels read

Activations are (N, H, W, C), contiguous. A convolution writes its raw output, before the norm, and, from the sums of
its planes, scale and shift of that norm; the next convolution applies these and ReLU while it loads. A bias before a
norm is left out: the mean takes it away. Which kernel computes a layer is said in convolution.py.
"""

from dataclasses import dataclass

import torch

from styleforge_lib.ops.elementwise import C_TYPES, compiled

EPS = 1e-5
VECTOR_BYTES = 16
PLANE_ENTRIES = 512  # as in cuda/common/plane_sums.cuh
# How a layer's numbers are held and multiplied. "tf32" are float32 whose products the tensor core takes in TF32;
# of "float32" they are exact, on CUDA cores.
STORAGE = {"float16": torch.float16, "bfloat16": torch.bfloat16, "tf32": torch.float32, "float32": torch.float32}
MACRO_TYPES = {numbers: C_TYPES[dtype] for numbers, dtype in STORAGE.items()}
PICTURE_TYPES = {torch.uint8: "unsigned char", **C_TYPES}


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What a convolution computes: out = relu_out(bias + conv(v)), v = relu_in(x * scale + shift) + residual.

    numbers: a key of STORAGE. kernel: its odd size; reflection padding of kernel // 2 comes before, or, with
    `upsample`, nearest upsampling by 2 and then the padding. affine: scale and shift are given. materialise: v is
    written as well. statistics: a norm follows, whose scale and shift are wanted. picture_in, picture_out: x, or out,
    is a picture of that dtype, (N, 3, H, W).
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
    picture_in: torch.dtype | None = None
    picture_out: torch.dtype | None = None

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

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        """Return the shape of the output for an input of `shape`; ValueError as for `out_size`."""
        height, width = self.out_size(*(shape[2:] if self.picture_in else shape[1:3]))
        return (shape[0], 3, height, width) if self.picture_out else (shape[0], height, width, self.c_out)

    @property
    def macros(self) -> dict[str, object]:
        """The macros that every kernel takes: types, channels, and what is fused."""
        switches = ("affine", "relu_in", "residual", "materialise", "statistics", "bias", "relu_out")
        return {
            "NUMBER": MACRO_TYPES[self.numbers],
            "C_IN": self.c_in,
            "C_OUT": self.c_out,
            "KERNEL": self.kernel,
            "STRIDE": self.stride,
            **{name.upper(): int(getattr(self, name)) for name in switches},
        }


@dataclass(frozen=True)
class Norm:
    """The instance norm that follows a layer: weight and bias, (c_out,) or None for 1 and 0, and eps."""

    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    eps: float = EPS


def plane_sums(images: int, device: torch.device) -> torch.Tensor:
    """Return room for the statistics of a layer's output: zero, as each launch finds and leaves it."""
    return torch.zeros(images, 3 * PLANE_ENTRIES, dtype=torch.int64, device=device)


def close_planes(
    sums: torch.Tensor, norm: Norm, affine_out: torch.Tensor, out: torch.Tensor, arch: str, overlap: bool = False
) -> None:
    """Write scale and shift of the norm of `out`, (N, H, W, C), to affine_out, (N, C, 2) float32; zero the sums."""
    images, height, width, channels = out.shape
    args = (sums, norm.weight, norm.bias, affine_out, channels, height * width, norm.eps)
    kernel = compiled("close_planes", out.device, arch, OVERLAP=int(overlap)).only
    kernel(images, PLANE_ENTRIES, args, overlap=overlap)


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


def packed_rows(rows: torch.Tensor, numbers: str) -> torch.Tensor:
    """Round (..., rows, channels) and cut it into 16-byte groups, which lie as `row_offset` finds them."""
    values = to_numbers(rows, numbers)
    lanes = VECTOR_BYTES // values.element_size()
    return swizzled(values.reshape(*values.shape[:-1], -1, lanes).contiguous())
