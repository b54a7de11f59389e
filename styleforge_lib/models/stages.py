"""The TransformerNet as a list of stages, in the order in which they run, each with what it costs.

A stage is one operation on one tensor: pad, upsample, conv, norm, relu or add. A layer is a convolution with the stages
that serve it: the upsampling and padding before, the norm, ReLU or addition after. Profiles, cost tables and benchmarks
all read this one list.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from styleforge_lib.models.transformer_net import TransformerNet

Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Stage:
    """One operation: shapes are (N, C, H, W); ``flops`` counts a multiply-add as two; ``run`` does it in eager torch.

    ``elements`` are read and written at least once: every input once, every output once, weights included. Times the
    size of an element that is the least traffic of the stage on its own.
    """

    layer: str
    kind: str
    in_shape: Shape
    out_shape: Shape
    flops: int
    elements: int
    run: Callable[[torch.Tensor], torch.Tensor] = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """Return ``layer.kind``, such as ``conv1.pad``."""
        return f"{self.layer}.{self.kind}"


def stages(net: TransformerNet, shape: Shape) -> list[Stage]:
    """List the stages of ``net`` on an input of ``shape`` (N, 3, H, W)."""
    found: list[Stage] = []

    def add(layer: str, kind: str, run: Callable, out_shape: Shape, flops_per_output: int, extra: int = 0) -> None:
        in_shape = found[-1].out_shape if found else shape
        size_in, size_out = torch.Size(in_shape).numel(), torch.Size(out_shape).numel()
        found.append(
            Stage(layer, kind, in_shape, out_shape, size_out * flops_per_output, size_in + size_out + extra, run)
        )

    for layer, conv, norm, after in _layers(net):
        n, c, h, w = found[-1].out_shape if found else shape
        scale = getattr(conv, "upsample", None)
        if scale:
            h, w = h * scale, w * scale
            add(layer, "upsample", lambda x, s=scale: F.interpolate(x, scale_factor=s), (n, c, h, w), 0)
        conv2d: nn.Conv2d = conv.conv2d
        (k, _), (s, _) = conv2d.kernel_size, conv2d.stride
        h, w = h + 2 * (k // 2), w + 2 * (k // 2)
        add(layer, "pad", conv.reflection_pad, (n, c, h, w), 0)
        h, w, c_out = (h - k) // s + 1, (w - k) // s + 1, conv2d.out_channels
        parameters = conv2d.weight.numel() + c_out  # every one of them has a bias
        add(layer, "conv", conv2d, (n, c_out, h, w), 2 * c * k * k, extra=parameters)
        if norm is not None:
            # subtract, square, add, add for the two statistics; subtract, multiply, multiply, add to apply them
            add(layer, "norm", norm, (n, c_out, h, w), 8, extra=2 * c_out)
        if after == "relu":
            add(layer, "relu", torch.relu, (n, c_out, h, w), 1)
        elif after == "add":
            add(layer, "add", _AddAnother(), (n, c_out, h, w), 1, extra=n * c_out * h * w)
    return found


class _AddAnother:
    """Add a tensor of the same form: one of its own, since ``x + x`` would read memory once only."""

    def __init__(self):
        self.other: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.other is None or (self.other.shape, self.other.dtype, self.other.device) != (
            x.shape,
            x.dtype,
            x.device,
        ):
            self.other = x.clone()
        return x + self.other


def _layers(net: TransformerNet) -> Iterator[tuple[str, nn.Module, nn.Module | None, str | None]]:
    """Yield (name, convolution layer, norm, what follows) in the order of ``TransformerNet.forward``."""
    for name, norm in (("conv1", net.in1), ("conv2", net.in2), ("conv3", net.in3)):
        yield name, getattr(net, name), norm, "relu"
    for name in ("res1", "res2", "res3", "res4", "res5"):
        block = getattr(net, name)
        yield f"{name}.conv1", block.conv1, block.in1, "relu"
        yield f"{name}.conv2", block.conv2, block.in2, "add"
    for name, norm in (("deconv1", net.in4), ("deconv2", net.in5)):
        yield name, getattr(net, name), norm, "relu"
    yield "deconv3", net.deconv3, None, None
