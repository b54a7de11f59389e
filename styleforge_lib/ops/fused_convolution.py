"""Convolutions of tensors of the usual shape, (N, C, H, W), through the kernels: what the drop-in modules stand on.

Contents
    fused_layer         the layer that a kernel computes for this call, or None where PyTorch does
    convolve            one convolution -> its raw output, and scale and shift of the norm that follows
    apply_affine        relu(x * scale + shift) + residual
    residual_block      a residual block in one launch, or None where several are the way

Weights are packed once, and again when they have been changed (those made in inference mode, which do not tell, at each
call). Tensors between two convolutions are (N, H, W, C).
"""

from dataclasses import replace

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from styleforge_lib.ops import residual_blocks_hopper
from styleforge_lib.ops.convolution import architecture, kernel_for, prepare
from styleforge_lib.ops.elementwise import C_TYPES, MAX_BLOCKS, THREADS, compiled, emulator_asked_for, is_watched
from styleforge_lib.ops.layer import VECTOR_BYTES, Layer, Norm, plane_sums

NUMBERS = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32"}
_PACKED = WeakTensorKeyDictionary()  # weight -> {layer and versions: kernel}


def fused_layer(x: torch.Tensor, conv: nn.Conv2d, *norms: nn.InstanceNorm2d, **fused: bool) -> Layer | None:
    """Return the layer, or None: gradients, other dtypes, devices, kinds of convolution or norm, too small a picture.

    float32 is multiplied in TF32 where PyTorch's own convolutions may be, else exactly.
    """
    parameters = [p for module in (conv, *norms) for p in module.parameters()]
    if not isinstance(x, torch.Tensor) or x.dim() != 4 or not x.numel() or is_watched(x, *parameters):
        return None
    if not (x.is_cuda or (x.device.type == "cpu" and emulator_asked_for())) or x.dtype not in NUMBERS:
        return None
    if any(p.dtype is not x.dtype or p.device != x.device for p in parameters):
        return None
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *parameters)):
        return None
    plain = conv.groups == 1 and conv.dilation == (1, 1) and conv.padding == (0, 0) and x.shape[1] == conv.in_channels
    square = conv.kernel_size[0] == conv.kernel_size[1] and conv.stride[0] == conv.stride[1]
    if not plain or not square or any(norm.track_running_stats for norm in norms):
        return None
    size, stride = conv.kernel_size[0], conv.stride[0]
    numbers = "tf32" if x.dtype is torch.float32 and torch.backends.cudnn.allow_tf32 else NUMBERS[x.dtype]
    layer = Layer(c_in=conv.in_channels, c_out=conv.out_channels, kernel=size, stride=stride, numbers=numbers, **fused)
    try:
        layer.out_size(*x.shape[2:])
        kernel_for(layer, architecture(x.device))
    except ValueError:
        return None
    return layer


def convolve(
    x: torch.Tensor, layer: Layer, conv: nn.Conv2d, norm: nn.InstanceNorm2d | None = None, *, affine=None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the output of a layer, (N, H, W, C), and scale and shift of `norm`. x: (N, H, W, C), contiguous."""
    kernel = _packed(layer, conv, norm)
    out = torch.empty(layer.out_shape(x.shape), dtype=layer.dtype, device=x.device)
    if norm is None:
        kernel(x, out, affine=affine)
        return out, None
    made = torch.empty(x.shape[0], layer.c_out, 2, device=x.device)
    kernel(x, out, affine=affine, sums=plane_sums(x.shape[0], x.device), affine_out=made)
    return out, made


def _packed(layer: Layer, conv: nn.Conv2d, norm: nn.InstanceNorm2d | None):
    bias = conv.bias if norm is None else None  # a norm takes it away again
    tensors = (conv.weight, bias, *((norm.weight, norm.bias) if norm is not None else ()))
    after = None if norm is None else Norm(norm.weight, norm.bias, norm.eps)
    if any(t is not None and t.is_inference() for t in tensors):  # nothing tells whether these have been changed
        return prepare(replace(layer, bias=bias is not None), conv.weight, bias, after)
    key = (layer, architecture(conv.weight.device), None if norm is None else norm.eps)
    state = tuple(None if t is None else (t.data_ptr(), t._version) for t in tensors)
    kept = _PACKED.setdefault(conv.weight, {})
    if key not in kept or kept[key][0] != state:
        kept[key] = state, prepare(replace(layer, bias=bias is not None), conv.weight, bias, after)
    return kept[key][1]


def apply_affine(
    x: torch.Tensor, affine: torch.Tensor, residual: torch.Tensor | None = None, *, relu: bool = False
) -> torch.Tensor:
    """Return relu(x * scale + shift) + residual in x's memory. x, residual: (N, H, W, C); affine (N, C, 2) float32."""
    images, height, width, channels = x.shape
    vectors = x[0].numel() * x.element_size() // VECTOR_BYTES
    grid = (min(-(-vectors // THREADS), MAX_BLOCKS), images)
    kernel = compiled("apply_affine", x.device, TYPE=C_TYPES[x.dtype]).only
    kernel(grid, THREADS, (x, affine, residual, x, channels, height * width, int(relu)))
    return x


def residual_block(x: torch.Tensor, conv1: nn.Conv2d, norm1, conv2: nn.Conv2d, norm2) -> torch.Tensor | None:
    """Return x + norm2(conv2(relu(norm1(conv1(x))))) in one launch; None where that does not apply, or is slower.

    x: (N, H, W, C), contiguous; both convolutions are ones that `fused_layer` takes.
    """
    if not residual_blocks_hopper.is_faster(1, x[..., 0].numel()):
        return None
    numbers, arch = NUMBERS[x.dtype], architecture(x.device)
    first, second = (Norm(norm.weight, norm.bias, norm.eps) for norm in (norm1, norm2))
    block = residual_blocks_hopper.ResidualBlock(conv1.weight, first, conv2.weight, second)
    if not residual_blocks_hopper.takes([block], numbers, arch):
        return None
    tensors = (conv1.weight, first.weight, first.bias, conv2.weight, second.weight, second.bias)
    state = (first.eps, *(None if t is None else (t.data_ptr(), t._version) for t in tensors))
    kept, key = _PACKED.setdefault(conv1.weight, {}), ("residual block", numbers, arch)
    if key not in kept or kept[key][0] != state:
        kept[key] = state, residual_blocks_hopper.ResidualBlocks([block], numbers, arch)
    out, inner = torch.empty_like(x), torch.empty_like(x)
    kept[key][1](x, out, inner=inner, sums=residual_blocks_hopper.sums_of(len(x), x.device))
    return out
