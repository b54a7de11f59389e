"""Residual add, out = a + b: the kernels are in cuda/residual_add.cu."""

import torch

from styleforge_lib.ops.calls import Known, kind_of
from styleforge_lib.ops.cases import elementwise_cases
from styleforge_lib.ops.elementwise import check_tensors, flat, kernel_applies, run
from styleforge_lib.ops.operator import Cost, Operator

_KNOWN = Known()


def residual_add(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Return a + b, for two tensors of one shape and dtype; neither is changed.

    a, b: any shape and dtype, the same for both. out: where the result goes, of the same shape, dtype and device,
    sharing no memory with a or b; left out, a new tensor. What the kernel does not take (see `kernel_applies`) PyTorch
    computes. ValueError, TypeError: tensors that do not belong together.
    """
    kind = kind_of((), a, b) if out is None else None
    known = _KNOWN.get(kind)
    if known is not None:
        return run(known, None, a, b)
    check_tensors("residual_add", out, a=a, b=b)
    if kernel_applies(out, a, b):
        return run(_KNOWN.keep(kind, flat("residual_add", a)), out, a, b)
    return torch.add(a, b, out=out)


def launch(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    """Launch the kernel on the GPU or the emulator: contiguous float32 or float16 tensors of one size."""
    flat("residual_add", a)(a, b, out)


def reference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the sum."""
    return a + b


def cost(a: torch.Tensor, b: torch.Tensor) -> Cost:
    """Two elements are read and one is written for each addition."""
    return Cost(bytes=3 * a.numel() * a.element_size(), flops=a.numel())


OPERATOR = Operator(
    name="residual_add",
    inputs=("a", "b"),
    reference=reference,
    pytorch=torch.add,
    launch=launch,
    cases=elementwise_cases(2),
    cost=cost,
    signed_zeros=True,  # IEEE 754: -0 + -0 is -0, and any other sum of zeros is 0
)
