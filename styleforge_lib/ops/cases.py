"""Hostile data: values and shapes that find what random numbers of a round shape hide.

Contents
    normal, magnitudes, constant_planes, drawn_from     ways to fill a tensor: fill(shape, generator, dtype)
    SPECIAL_VALUES                                      fills of infinities, NaN, denormals, zeros, largest numbers
    elementwise_cases(count)                            the cases of an operator of `count` tensors of one shape
"""

from collections.abc import Callable, Sequence

import torch

from styleforge_lib.ops.operator import Case

Fill = Callable[[tuple[int, ...], torch.Generator, torch.dtype], torch.Tensor]

EVEN = (1, 4, 16, 16)  # 1024 elements: whole vectors, whole warps, whole blocks of any usual size
RAGGED = (1, 3, 17, 31)  # 1581 elements: not a multiple of 2
SIZES = (1, 2, 3, 5, 7, 31, 33, 40, 127, 255, 256, 257, 511, 513, 1023, 1025, 4099)  # around warps, blocks, vectors
LARGE = (1, 3, 389, 457)  # 533319 elements: in blocks of 256, twice what an H200 holds at once


def normal(mean: float = 0.0, deviation: float = 1.0) -> Fill:
    """Fill with normally distributed numbers."""
    return lambda shape, generator, dtype: (torch.randn(shape, generator=generator) * deviation + mean).to(dtype)


def magnitudes(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> torch.Tensor:
    """Fill with numbers between 2^-12 and 2^12 in size, all sizes alike, so that sums must round."""
    exponents = torch.rand(shape, generator=generator, dtype=torch.float64) * 24 - 12
    signs = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return (signs * torch.exp2(exponents)).to(dtype)


def constant_planes(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> torch.Tensor:
    """Fill each plane with one number, so that its variance is zero."""
    return (torch.randn((*shape[:-2], 1, 1), generator=generator) * 10).expand(shape).to(dtype).contiguous()


def drawn_from(values: Callable[[torch.finfo], Sequence[float]]) -> Fill:
    """Fill with numbers drawn from `values(torch.finfo(dtype))`."""

    def fill(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> torch.Tensor:
        choice = torch.tensor(values(torch.finfo(dtype)), dtype=torch.float64).to(dtype)
        return choice[torch.randint(0, len(choice), shape, generator=generator)]

    return fill


SPECIAL_VALUES: dict[str, Fill] = {
    "zeros of both signs": drawn_from(lambda info: (0.0, -0.0)),
    "denormals": drawn_from(lambda info: [sign * info.tiny * part for sign in (1, -1) for part in (0.125, 0.5, 0.75)]),
    "the largest numbers": drawn_from(lambda info: (info.max, -info.max, 1.0, -1.0)),
    "infinities": drawn_from(lambda info: (float("inf"), float("-inf"), 1.5, -1.5)),
    "NaN": drawn_from(lambda info: (float("nan"), 1.5, -1.5, 0.0, float("inf"))),
}


def elementwise_cases(count: int) -> tuple[Case, ...]:
    """Return the cases of an operator whose inputs are `count` tensors of one shape."""

    def inputs(shape: tuple[int, ...], fill: Fill) -> Callable:
        return lambda generator, dtype: tuple(fill(shape, generator, dtype) for _ in range(count))

    def case(shape: tuple[int, ...], fill: Fill, name: str, **offsets: int) -> Case:
        return Case(name, inputs(shape, fill), **offsets)

    def drawn(generator: torch.Generator, dtype: torch.dtype) -> tuple:
        shape = tuple(int(torch.randint(1, most + 1, (), generator=generator)) for most in (2, 5, 40, 40))
        return inputs(shape, normal())(generator, dtype)

    return (
        case(EVEN, normal(), "even"),
        *(case((size,), normal(), "flat") for size in SIZES),
        case(RAGGED, normal(), "ragged"),
        case((2, 5, 13, 7), normal(), "ragged"),
        Case("drawn shape", drawn),
        case(RAGGED, constant_planes, "constant planes"),
        case(RAGGED, normal(4000, 0.5), "mean 4000, deviation 0.5"),
        case(RAGGED, magnitudes, "all magnitudes"),
        *(case(RAGGED, fill, words) for words, fill in SPECIAL_VALUES.items()),
        case(RAGGED, normal(), "views one element past alignment", input_offset=1, output_offset=1),
        case(RAGGED, normal(), "inputs one element past alignment", input_offset=1),
        case(RAGGED, normal(), "output one element past alignment", output_offset=1),
        case(LARGE, normal(), "large"),
    )
