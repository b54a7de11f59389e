"""Instance norm that trains: the backward kernels are in cuda/instance_norm_backward.cu.

Contents
    trained             the forward pass as an operation of torch.library, which autograd and torch.compile know
    gradients           its backward pass, another one
    launch_backward     the kernels
"""

import math

import torch
from torch import Tensor

from styleforge_lib.ops import instance_norm as forward
from styleforge_lib.ops.elementwise import C_TYPES, compiled


@torch.library.custom_op("styleforge::instance_norm", mutates_args=())
def trained(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, eps: float, relu: bool
) -> tuple[Tensor, Tensor]:
    """Return the norm, and what its backward pass needs: float32 [planes, 3], mean, its rounding, 1 / deviation.

    The arguments are those of `instance_norm`, contiguous tensors of one of its dtypes. Gradients can be asked of all
    four tensors, once: a gradient of a gradient is refused.
    """
    out, saved = torch.empty_like(x), _saved(x)
    forward.planes(x, residual, out, eps, relu)(x, weight, bias, residual, out, saved)
    return out, saved


@trained.register_fake
def _(x, weight, bias, residual, eps, relu):
    return torch.empty_like(x), _saved(x)


def _saved(x: Tensor) -> Tensor:
    return torch.empty((x.shape[0] * x.shape[1], 3), dtype=torch.float32, device=x.device)


@torch.library.custom_op("styleforge::instance_norm_backward", mutates_args=())
def gradients(
    x: Tensor, weight: Tensor | None, out: Tensor | None, dout: Tensor, saved: Tensor, added: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return dx, dresidual (empty unless `added`) and the sums of each plane: float32 [planes, 2], dbias and dweight.

    out: the result of the forward pass where it ended with a ReLU, else None. dout: contiguous, of x's shape and dtype.
    """
    dx, dresidual, sums = _gradients(x, added)
    launch_backward(x, weight, out, dout, saved, dx, dresidual if added else None, sums)
    return dx, dresidual, sums


@gradients.register_fake
def _(x, weight, out, dout, saved, added):
    return _gradients(x, added)


def _refuse(ctx, *gradients_of_gradients) -> tuple:
    raise RuntimeError(
        "instance_norm: its backward kernel has no derivative of its own. For a gradient of a gradient use "
        "torch.nn.functional.instance_norm (as a module: torch.nn.InstanceNorm2d)"
    )


gradients.register_autograd(_refuse)


def _gradients(x: Tensor, added: bool) -> tuple[Tensor, Tensor, Tensor]:
    sums = torch.empty((x.shape[0] * x.shape[1], 2), dtype=torch.float32, device=x.device)
    return torch.empty_like(x), torch.empty_like(x) if added else x.new_empty(0), sums


def _keep(ctx, inputs, output) -> None:
    x, weight, bias, residual, _, relu = inputs
    out, saved = output
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.added, ctx.relu = residual is not None, relu
    ctx.save_for_backward(x, weight, out if relu else None, saved)


def _backward(ctx, dout, _) -> tuple:
    x, weight, out, saved = ctx.saved_tensors
    dout = dout.contiguous()
    dx, dresidual, sums = gradients(x, weight, out, dout, saved, ctx.added and ctx.relu)
    dbias, dweight = sums.view(x.shape[0], x.shape[1], 2).sum(0).unbind(1)
    return (
        dx,
        None if weight is None else dweight.to(weight.dtype),
        None if ctx.bias_dtype is None else dbias.to(ctx.bias_dtype),
        (dresidual if ctx.relu else dout.clone()) if ctx.added else None,
        None,
        None,
    )


trained.register_autograd(_backward, setup_context=_keep)


def launch_backward(
    x: Tensor,
    weight: Tensor | None,
    out: Tensor | None,
    dout: Tensor,
    saved: Tensor,
    dx: Tensor,
    dresidual: Tensor | None,
    sums: Tensor,
) -> None:
    """Launch the kernels on the GPU or the emulator: contiguous tensors, as `gradients` says."""
    channels, planes, size = x.shape[1], x.shape[0] * x.shape[1], math.prod(x.shape[2:])
    blocks = forward.multiprocessors(x.device) * forward.SWEEP_RESIDENT
    length, pieces = forward.pieces_to_sweep(planes, size, x.element_size(), blocks)
    lanes = forward.VECTOR_BYTES // x.element_size()
    threads = min(forward.SWEEP_THREADS, max(32, 32 * math.ceil(length / (32 * lanes))))
    kernel = compiled("instance_norm_backward", x.device, TYPE=C_TYPES[x.dtype]).kernel
    partial = torch.empty(2 * planes * pieces, dtype=torch.float32, device=x.device)
    args = (x, out, dout, saved, partial, size, length, pieces)
    kernel("instance_norm_backward_sums")(planes * pieces, threads, args)
    args = (x, out, dout, saved, partial, weight, dx, dresidual, sums, channels, size, length, pieces)
    kernel("instance_norm_backward_apply")(planes * pieces, threads, args)
