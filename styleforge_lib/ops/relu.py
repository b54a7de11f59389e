"""ReLU, out = max(x, 0): the kernels are in cuda/relu.cu."""

import torch

from styleforge_lib.ops.calls import Known, kind_of
from styleforge_lib.ops.cases import elementwise_cases
from styleforge_lib.ops.elementwise import check_tensors, flat, kernel_applies, run
from styleforge_lib.ops.operator import Cost, Operator

_KNOWN = Known()


def relu(x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Return max(x, 0), as `torch.relu` does: NaN stays NaN.

    x: any shape and dtype. out: where the result goes, of the same shape, dtype and device, sharing no memory with x;
    left out, a new tensor. What the kernel does not take (see `kernel_applies`) PyTorch computes. ValueError,
    TypeError: an `out` that does not fit.
    """
    kind = kind_of((), x) if out is None else None
    known = _KNOWN.get(kind)
    if known is not None:
        return run(known, None, x)
    check_tensors("relu", out, x=x)
    if kernel_applies(out, x):
        return run(_KNOWN.keep(kind, flat("relu", x)), out, x)
    return torch.relu(x) if out is None else out.copy_(torch.relu(x))


def launch(x: torch.Tensor, out: torch.Tensor) -> None:
    """Launch the kernel on the GPU or the emulator: contiguous float32 or float16 tensors of one size."""
    flat("relu", x)(x, out)


def reference(x: torch.Tensor) -> torch.Tensor:
    """Return max(x, 0) by its definition; a comparison with NaN is false, so NaN is returned as it is."""
    return torch.where(x < 0, torch.zeros_like(x), x)


def cost(x: torch.Tensor) -> Cost:
    """Each element is read once and written once, and compared once."""
    return Cost(bytes=2 * x.numel() * x.element_size(), flops=x.numel())


OPERATOR = Operator(
    name="relu",
    inputs=("x",),
    reference=reference,
    pytorch=torch.relu,
    launch=launch,
    cases=elementwise_cases(1),
    cost=cost,
)
