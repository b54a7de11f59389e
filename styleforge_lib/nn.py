"""Drop-in modules: the state_dict and the behaviour of what they replace, through the library's kernels."""

import torch
from torch import nn

from styleforge_lib.models.transformer_net import ConvLayer, ResidualBlock, UpsampleConvLayer
from styleforge_lib.ops import instance_norm
from styleforge_lib.ops.fused_convolution import apply_affine, convolve, fused_layer, residual_block


class FusedInstanceNorm2d(nn.InstanceNorm2d):
    """A drop-in for `torch.nn.InstanceNorm2d`: the same arguments, parameters, state_dict, errors and values.

    Input: (N, C, H, W), or (C, H, W) without a batch; contiguous or channels_last memory is kept. The kernel of
    `styleforge_lib.ops.instance_norm` runs where the plane's own statistics are all that is asked for: float32, float16
    or bfloat16 on a GPU, input and parameters of one dtype; and its backward kernel where contiguous tensors want
    gradients. All else PyTorch computes: running statistics (track_running_stats, in training and in eval), gradients
    of channels_last tensors, other dtypes and devices, autocast, torch.compile and torch.func.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise each plane."""
        if isinstance(input, torch.Tensor) and input.dim() == 4 and input.shape[1] == self.num_features:
            return self._apply_instance_norm(input)  # what nn.InstanceNorm2d would come to
        return super().forward(input)

    def _apply_instance_norm(self, input: torch.Tensor) -> torch.Tensor:
        own_statistics = self.training or not self.track_running_stats
        if not own_statistics or self._held("running_mean") is not None or self._held("running_var") is not None:
            return super()._apply_instance_norm(input)
        return instance_norm(input, self._held("weight"), self._held("bias"), self.eps)

    def _held(self, name: str) -> torch.Tensor | None:
        """Return a parameter or buffer; nn.Module looks for it through Python code, a microsecond for each."""
        for held in (self._parameters, self._buffers):
            if name in held:
                return held[name]
        return getattr(self, name)  # parametrized or pruned


# ----------------------------------------------------------------------------------------------------------------------
# Convolutions. Inside they are channels_last, (N, H, W, C) in memory: an input of that layout is not copied, and the
# output has it. float32 is multiplied in TF32 where `torch.backends.cudnn.allow_tf32` lets PyTorch do so, else exactly.
# Where no kernel applies (gradients, a CPU, other dtypes, channels that fill no fragment), PyTorch computes the same.


def _rows(x: torch.Tensor) -> torch.Tensor:
    """Return (N, C, H, W) as contiguous (N, H, W, C)."""
    return x.permute(0, 2, 3, 1).contiguous()


class FusedConv2d(ConvLayer):
    """Reflection padding of kernel_size // 2, a convolution with its bias, and ReLU if wanted, in one kernel.

    A drop-in for the ConvLayer of pytorch/examples: the same arguments, state_dict and values.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, *, relu: bool = False):
        super().__init__(in_channels, out_channels, kernel_size, stride)
        self.relu = relu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pad, convolve, and ReLU."""
        layer = fused_layer(x, self.conv2d, relu_out=self.relu)
        if layer is None:
            out = super().forward(x)
            return out.relu() if self.relu else out
        return convolve(_rows(x), layer, self.conv2d)[0].permute(0, 3, 1, 2)


class FusedUpsampleConv2d(UpsampleConvLayer):
    """Nearest upsampling by 2, reflection padding and a 3x3 convolution, as four 2x2 convolutions of the small picture.

    A drop-in for the UpsampleConvLayer of pytorch/examples: the same arguments, state_dict and values.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Upsample, pad and convolve."""
        layer = fused_layer(x, self.conv2d, upsample=True) if self.upsample == 2 else None
        if layer is None:
            return super().forward(x)
        return convolve(_rows(x), layer, self.conv2d)[0].permute(0, 3, 1, 2)


class FusedConvInstanceNorm2d(nn.Module):
    """A ConvLayer, an instance norm and ReLU if wanted: `relu(norm(conv(x)))`, statistics gathered by the convolution.

    state_dict: that of a module with a ConvLayer `conv` and an `nn.InstanceNorm2d` `norm`.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, *, relu: bool = False):
        super().__init__()
        self.conv = ConvLayer(in_channels, out_channels, kernel_size, stride)
        self.norm = nn.InstanceNorm2d(out_channels, affine=True)
        self.relu = relu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pad, convolve, norm, and ReLU."""
        layer = fused_layer(x, self.conv.conv2d, self.norm, statistics=True)
        if layer is None or torch.Size(layer.out_size(*x.shape[2:])).numel() == 1:  # PyTorch refuses a single element
            out = self.norm(self.conv(x))
            return out.relu() if self.relu else out
        out, affine = convolve(_rows(x), layer, self.conv.conv2d, self.norm)
        return apply_affine(out, affine, relu=self.relu).permute(0, 3, 1, 2)


class FusedResidualBlock(ResidualBlock):
    """`x + norm(conv(relu(norm(conv(x)))))` in two convolution kernels and one that adds, or one for all, if faster.

    A drop-in for the ResidualBlock of pytorch/examples: the same arguments, state_dict and values.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Two convolutions with their norms, and the input added on."""
        first = fused_layer(x, self.conv1.conv2d, self.in1, statistics=True)
        second = fused_layer(x, self.conv2.conv2d, self.in2, statistics=True, affine=True, relu_in=True)
        if first is None or second is None:
            return super().forward(x)
        rows = _rows(x)
        whole = residual_block(rows, self.conv1.conv2d, self.in1, self.conv2.conv2d, self.in2)
        if whole is not None:
            return whole.permute(0, 3, 1, 2)
        y, affine = convolve(rows, first, self.conv1.conv2d, self.in1)
        z, affine = convolve(y, second, self.conv2.conv2d, self.in2, affine=affine)
        return apply_affine(z, affine, rows).permute(0, 3, 1, 2)
