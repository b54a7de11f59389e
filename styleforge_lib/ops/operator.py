"""What an operator is: one description that the lesson, the test and the bench share.

Contents
    Case        one set of inputs that an operator must get right
    Cost        the least that one call must move and compute
    Operator    the reference, PyTorch's own implementation, the library's kernel, the cases, the cost

Each operator has one module in this package, named after it, with one constant OPERATOR.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

FAST_DTYPES = (torch.float32, torch.float16)


@dataclass(frozen=True)
class Case:
    """Inputs that an operator must get right.

    name: what a verdict calls it. make(generator, dtype): the operator's inputs, in order: contiguous tensors on the
    CPU (floating ones in dtype), numbers, or None. input_offset, output_offset: how many elements past an aligned
    address each input and output tensor is to start.
    """

    name: str
    make: Callable[[torch.Generator, torch.dtype], tuple]
    input_offset: int = 0
    output_offset: int = 0


@dataclass(frozen=True)
class Cost:
    """What one call takes at least: `bytes`, with each tensor moved once, and `flops`, floating-point operations."""

    bytes: int
    flops: int


@dataclass(frozen=True, kw_only=True)
class Operator:
    """An operator, as everyone who checks or measures it needs it.

    name: the same in ops/, cuda/, the lessons and the records. inputs, outputs: the names of a launcher's parameters.
    reference(*inputs): the result by definition, given float64 tensors. pytorch(*inputs): what PyTorch computes, in the
    inputs' own dtype; its error is the yardstick, its dtypes are those of the outputs. launch(*inputs, *outputs): the
    library's kernel, wherever `compile_cuda` runs it. cost(*inputs): see Cost. dtypes: what the kernel takes.

    Both reference and pytorch return one tensor, or a tuple where there are several outputs.

    pooled: dimensions of the output over which elements share one rounding error, so that PyTorch's largest error along
    them counts for all: (-2, -1) where a whole plane is divided by one deviation, () where each element stands alone.
    floor: what any kernel may be off by besides, as a part of the largest finite result along those dimensions: 0 where
    PyTorch's yardstick has the kernel's own precision, some roundings where it is finer (float64 sums on the CPU).
    terms(*inputs): how large the terms are that a result is the sum of, where they may cancel or a ReLU may drop the
    large ones: what they were rounded to stays in the small results, so the floor is a part of the largest of these.
    signed_zeros: whether -0 and 0 are different answers.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...] = ("out",)
    reference: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]
    pytorch: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]
    launch: Callable[..., None]
    cases: tuple[Case, ...]
    cost: Callable[..., Cost]
    dtypes: tuple[torch.dtype, ...] = FAST_DTYPES
    pooled: tuple[int, ...] = ()
    floor: float = 0.0
    terms: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]] | None = None
    signed_zeros: bool = False
