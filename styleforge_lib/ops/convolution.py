"""Which kernel computes a convolution: the table.

Contents
    KERNELS             the kernels, in the order of preference
    prepare             a layer and its weights -> the first kernel that takes it, ready to be launched
    HopperConvolution   cuda/conv2d_hopper.cu, with the face of the others

A kernel here is a class: `takes(layer, arch)` says whether it applies; an instance holds packed weights, and is called
as `kernel(x, out, affine=, residual=, materialised=, sums=, affine_out=)`. One that `overlaps` takes `overlap=True` as
well: its launches may then begin before the kernel before has ended.
"""

import functools
from dataclasses import replace

import torch

from styleforge_lib.ops import conv2d_hopper
from styleforge_lib.ops.conv2d_cuda_cores import CudaCoreConvolution
from styleforge_lib.ops.conv2d_hopper_persistent import PersistentConvolution
from styleforge_lib.ops.conv2d_hopper_pictures import HopperFromPicture, HopperToPicture
from styleforge_lib.ops.layer import Layer, Norm, close_planes
from styleforge_lib.ops.picture_convolution import FromPicture, ToPicture
from styleforge_lib.ops.tensor_core_convolution import TensorCoreConvolution
from styleforge_lib.runtime.kernel import EMULATED_ARCH, chosen_device


class HopperConvolution:
    """A layer of 16-bit numbers on Hopper's wgmma: see TensorCoreConvolution."""

    overlaps = True

    def __init__(self, layer: Layer, weight: torch.Tensor, bias: torch.Tensor | None, norm: Norm, arch: str):
        self.layer, self.arch = layer, arch
        self.key = (layer.c_in, layer.c_out, layer.stride, layer.upsample)
        # Rounded once, after the folding: `pack` folds in float32 and keeps the dtype of what it is given.
        packed = conv2d_hopper.pack(weight.float(), stride=layer.stride, upsample=layer.upsample)
        self.weight = packed.to(layer.dtype)
        self.norm = norm
        self.load = conv2d_hopper.Load(norm=layer.affine, relu=layer.relu_in, residual=layer.residual)

    @staticmethod
    def takes(layer: Layer, arch: str) -> bool:
        """Whether it is one of the layers that the kernel is written for, on a Hopper card."""
        key = (layer.c_in, layer.c_out, layer.stride, layer.upsample)
        plain = layer.kernel == 3 and not (layer.bias or layer.relu_out or layer.picture_in or layer.picture_out)
        return (
            arch == "sm_90a"
            and layer.numbers in ("float16", "bfloat16")
            and plain
            and key in conv2d_hopper.LAYERS
            and not (layer.relu_in and layer.residual)
        )

    def __call__(
        self,
        x,
        out,
        *,
        affine=None,
        residual=None,
        materialised=None,
        sums=None,
        affine_out=None,
        overlap: bool = False,
    ) -> None:
        """Launch on the current stream."""
        ways = {"affine": affine, "residual": residual, "kept": materialised, "sums": sums, "overlap": overlap}
        conv2d_hopper.launch(x, self.weight, out, layer=self.key, load=self.load, **ways, arch=self.arch)
        if sums is not None:
            close_planes(sums, self.norm, affine_out, out, self.arch, overlap)


KERNELS = [
    PersistentConvolution,
    HopperConvolution,
    HopperFromPicture,
    HopperToPicture,
    FromPicture,
    ToPicture,
    TensorCoreConvolution,
    CudaCoreConvolution,
]


def prepare(
    layer: Layer,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    norm: Norm | None = None,
    *,
    arch: str | None = None,
    kernel: type | None = None,
):
    """Return the layer as the first of KERNELS that takes it: weights packed, ready to be launched.

    weight: (c_out, c_in, k, k) of any floating dtype, on the device that is to compute; bias (c_out,). Later changes of
    them are not seen. norm: what follows, for layer.statistics. arch: another than the device's own. kernel:
    another of KERNELS, which must take the layer. ValueError: no kernel takes the layer.
    """
    layer, arch = replace(layer, bias=bias is not None), arch or architecture(weight.device)
    norm = norm or Norm()
    norm = Norm(*(None if v is None else v.detach().float().contiguous() for v in (norm.weight, norm.bias)), norm.eps)
    bias = None if bias is None else bias.detach().float().contiguous()
    return (kernel or kernel_for(layer, arch))(layer, weight.detach(), bias, norm, arch)


@functools.lru_cache(1024)
def kernel_for(layer: Layer, arch: str):
    """Return the class of KERNELS that takes the layer; ValueError where none does."""
    for kernel in KERNELS:
        if kernel.takes(layer, arch):
            return kernel
    raise ValueError(f"no kernel takes this layer on {arch}: {layer}")


@functools.cache
def _card_arch(device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}{'a' if major >= 9 else ''}"


def architecture(device: torch.device) -> str:
    """Return what is compiled for a device; the emulator is an Ampere card."""
    return EMULATED_ARCH if device.type != "cuda" or chosen_device() == "emulator" else _card_arch(device)
