"""What the operators share: which calls their kernels take, and the launch.

Contents
    check_tensors       refusals: inputs and `out` that do not belong together
    kernel_applies      whether the kernel takes this call, or PyTorch does
    is_watched          whether someone must see the operation itself, and is_observed, whatever the tensors are
    run                 allocate, look at the tensors as flat memory, launch
    flat                the launch of one kernel of a cuda/ file on contiguous tensors
    compiled            a cuda/ file, compiled for the device of a tensor
    C_TYPES             what CUDA C++ calls a dtype: the macro TYPE of files that are compiled for one
"""

import functools
import os
from collections.abc import Callable

import torch

from styleforge_lib.ops.operator import FAST_DTYPES
from styleforge_lib.runtime.kernel import DEVICE_VARIABLE, Module, compile_cuda

VECTOR_BYTES = 16  # what a thread of cuda/common/elementwise.cuh moves at once
THREADS = 256
C_TYPES = {torch.float32: "float", torch.float16: "__half", torch.bfloat16: "__nv_bfloat16"}
PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})  # types of tensors that have no ways of their own
MAX_BLOCKS = 4096  # several times what any card holds at once; beyond it the kernels' grid-stride loop takes over


def check_tensors(operator: str, out: torch.Tensor | None, **inputs: torch.Tensor) -> None:
    """Raise one clear error unless all tensors agree in shape, dtype and device, and `out` shares no memory."""
    named = inputs if out is None else {**inputs, "out": out}
    first, x = next(iter(inputs.items()))
    for name, tensor in named.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{operator}: {name} must be a torch tensor, not {type(tensor).__name__}")
        for what in ("shape", "dtype", "device"):
            mine, other = getattr(tensor, what), getattr(x, what)
            if mine != other:
                mine, other = (tuple(mine), tuple(other)) if what == "shape" else (mine, other)
                raise ValueError(f"{operator}: {name} has {what} {mine}, and {first} has {other}; they must be equal")
    if out is None:
        return
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in named.values()):
        raise ValueError(f"{operator}: out= takes no part in automatic differentiation: leave it out, or use no_grad()")
    for name, tensor in inputs.items():
        if _overlap(tensor, out):
            raise ValueError(
                f"{operator}: out shares memory with {name}, which is only read: pass another tensor, or leave out= out"
            )


def _overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether the spans of memory that two tensors reach over meet."""
    (a_start, a_end), (b_start, b_end) = _span(a), _span(b)
    return a_start < b_end and b_start < a_end


def _span(x: torch.Tensor) -> tuple[int, int]:
    if not x.numel():
        return x.data_ptr(), x.data_ptr()
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size()


def kernel_applies(
    out: torch.Tensor | None, *inputs: torch.Tensor, dtypes: tuple[torch.dtype, ...] = FAST_DTYPES
) -> bool:
    """Return whether the kernel takes this call; if not, PyTorch computes the same.

    It takes tensors of `dtypes` (float32 and float16) and of one dense layout (contiguous or channels_last) on a GPU,
    and on the CPU where STYLEFORGE_DEVICE=emulator asks for the emulator. It has no backward.
    """
    if is_watched(*inputs):
        return False
    x = inputs[0]
    emulated = x.device.type == "cpu" and emulator_asked_for()
    if not (x.is_cuda or emulated) or x.dtype not in dtypes or not x.numel():
        return False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
        return False
    tensors = inputs if out is None else (*inputs, out)
    return any(
        all(tensor.is_contiguous(memory_format=layout) for tensor in tensors)
        for layout in ((torch.contiguous_format, torch.channels_last) if x.dim() == 4 else (torch.contiguous_format,))
    )


def emulator_asked_for() -> bool:
    """Return whether STYLEFORGE_DEVICE names the emulator: nobody is to wait for it by accident."""
    return os.environ.get(DEVICE_VARIABLE, "").strip().lower() == "emulator"


def is_watched(*tensors: torch.Tensor) -> bool:
    """Return whether someone must see the operation itself, where a launch would show nothing.

    That is torch.compile and torch.jit.trace, torch.func (vmap, jvp, ...), forward-mode differentiation, dispatch
    modes, autocast, and subclasses of tensors.
    """
    return (
        is_observed()
        or torch.is_autocast_enabled(tensors[0].device.type)
        or any(type(tensor) not in PLAIN for tensor in tensors)
    )


def is_observed() -> bool:
    """Return whether torch.compile, torch.jit.trace, torch.func, forward-mode differentiation or a mode look on."""
    return (
        torch.compiler.is_compiling()  # first: the others are not for torch.compile to trace
        or torch.jit.is_tracing()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack() > 0
    )


def run(launch, out: torch.Tensor | None, *inputs: torch.Tensor) -> torch.Tensor:
    """Call `launch(*inputs, out)` on contiguous views of tensors that `kernel_applies` to, and return `out`."""
    out = torch.empty_like(inputs[0]) if out is None else out
    # The memory of a channels_last tensor is that of a contiguous one with its dimensions in another order.
    views = [x if x.is_contiguous() else x.permute(0, 2, 3, 1) for x in (*inputs, out)]
    launch(*views)
    return out


def flat(operator: str, x: torch.Tensor) -> Callable[..., None]:
    """Return launch(*tensors), the output last, of `operator`_float32 or _float16 of cuda/operator.cu.

    The launch is for contiguous tensors of x's size, dtype and device.
    """
    dtype, count = str(x.dtype).removeprefix("torch."), x.numel()
    blocks = min(-(-count * x.element_size() // (VECTOR_BYTES * THREADS)), MAX_BLOCKS)
    kernel = compiled(operator, x.device).kernel(f"{operator}_{dtype}")
    return lambda *tensors: kernel(blocks, THREADS, (*tensors, count))


def compiled(operator: str, device: torch.device, arch: str | None = None, **defines: object) -> Module:
    """Return cuda/operator.cu with these macros, compiled once for each device that it is launched on."""
    return _module(operator, device, os.environ.get(DEVICE_VARIABLE), arch, tuple(sorted(defines.items())))


@functools.cache
def _module(operator: str, device: torch.device, wish: str | None, arch: str | None, defines: tuple) -> Module:
    if device.type != "cuda":
        return compile_cuda(f"{operator}.cu", defines=dict(defines), arch=arch)
    with torch.cuda.device(device):
        return compile_cuda(f"{operator}.cu", defines=dict(defines), arch=arch)
