"""Hold every convolution kernel against float64 at the network's real sizes, and time it (under a minute on a card).

    python tools/check_convolutions.py                          # 1x3x1024x1024, float16
    python tools/check_convolutions.py --numbers tf32 --size 512x512 --only conv1
    python tools/check_convolutions.py --sanitize               # one launch of each, small: for compute-sanitizer
    python tools/check_convolutions.py --arch sm_75             # the text of an older card, which this one runs, too
    python tools/check_convolutions.py --dry-run                # the emulator, small, untimed

Each line is one layer of the TransformerNet, computed by one kernel that takes it on this card. error: the largest
difference from float64, as a multiple of what PyTorch's own convolution of the same numbers is off by; the kernel is
wrong beyond 2 (and half an ulp). norm: the largest difference of scale and shift of the norm that follows, relative.
cold: L2 flushed before each launch. warm: a graph of twenty launches, back to back.
Exits with 1 where a kernel is wrong, with 2 without a GPU.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch.nn import functional

from styleforge_lib.lab.bench import graphed, time_cold, time_warm
from styleforge_lib.ops import conv2d_hopper, conv2d_hopper_persistent, conv2d_hopper_pictures
from styleforge_lib.ops.convolution import KERNELS, architecture, prepare
from styleforge_lib.ops.layer import STORAGE, Layer, Norm, plane_sums, to_numbers
from styleforge_lib.runtime import gpu

LAUNCHES = 20  # in a graph
SMALL = (33, 70)  # of a dry run: several tiles, ragged
FUSED = {"affine": True, "relu_in": True, "statistics": True}
# name: how many times smaller than the picture the input is, and the layer
NETWORK = {
    "conv1": (1, Layer(c_in=3, c_out=32, kernel=9, statistics=True, picture_in=torch.float32)),
    "conv1 uint8": (1, Layer(c_in=3, c_out=32, kernel=9, statistics=True, picture_in=torch.uint8)),
    "conv2": (1, Layer(c_in=32, c_out=64, stride=2, **FUSED)),
    "conv3": (2, Layer(c_in=64, c_out=128, stride=2, **FUSED)),
    "res1.conv1": (
        4,
        Layer(c_in=128, c_out=128, affine=True, relu_in=True, materialise=True, statistics=True),
    ),
    "res.conv2": (4, Layer(c_in=128, c_out=128, **FUSED)),
    "res.conv1": (4, Layer(c_in=128, c_out=128, affine=True, residual=True, materialise=True, statistics=True)),
    "deconv1": (4, Layer(c_in=128, c_out=64, upsample=True, affine=True, residual=True, statistics=True)),
    "deconv2": (2, Layer(c_in=64, c_out=32, upsample=True, **FUSED)),
    "deconv3": (1, Layer(c_in=32, c_out=3, kernel=9, affine=True, relu_in=True, bias=True, picture_out=torch.float32)),
    "deconv3 uint8": (
        1,
        Layer(c_in=32, c_out=3, kernel=9, affine=True, relu_in=True, bias=True, picture_out=torch.uint8),
    ),
}


@dataclass
class Row:
    """What one kernel did on one layer."""

    layer: str
    kernel: str
    error: float
    norm: float
    passed: bool
    cold_ms: float | None = None
    warm_ms: float | None = None
    flops: int = 0

    def __str__(self) -> str:
        times = "" if self.warm_ms is None else f"{self.cold_ms * 1e3:9.1f} {self.warm_ms * 1e3:9.1f} "
        rate = "" if self.warm_ms is None else f"{self.flops / self.warm_ms / 1e9:8.0f}"
        verdict = "right" if self.passed else "WRONG"
        return f"{self.layer:14} {self.kernel:22} {self.error:8.2f} {self.norm:9.1e} {verdict:6} {times}{rate}"


class Problem:
    """A layer with its data, and what float64 and PyTorch make of them.

    device: where the kernel is launched. apart: whether all else happens on the CPU, where no tool watches it.
    """

    def __init__(self, layer: Layer, images: int, height: int, width: int, device: str, apart: bool = False):
        self.device, device = device, "cpu" if apart else device
        generator = torch.Generator(device).manual_seed(0)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, device=device)

        self.layer = layer
        shape = (images, 3, height, width) if layer.picture_in else (images, height, width, layer.c_in)
        if layer.picture_in:
            self.x = torch.randint(0, 256, shape, generator=generator, device=device).to(layer.picture_in)
        else:
            self.x = normal(*shape).to(layer.dtype)
        weight = normal(layer.c_out, layer.c_in, layer.kernel, layer.kernel) / (layer.c_in * layer.kernel**2) ** 0.5
        self.weight = weight if layer.numbers == "tf32" else weight.to(layer.dtype)
        self.bias = normal(layer.c_out) if layer.bias else None
        self.affine = normal(images, layer.c_in, 2) if layer.affine else None
        self.residual = normal(*shape).to(layer.dtype) if layer.residual else None
        self.norm = Norm(normal(layer.c_out), normal(layer.c_out))
        self.expected, v = self._step_by_step(torch.float64)
        self.v = v.permute(0, 2, 3, 1)

    def _step_by_step(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the output, NCHW, and what the convolution loads, both computed in `dtype`."""
        layer, v = self.layer, self.x.to(dtype)
        v = v if layer.picture_in else v.permute(0, 3, 1, 2)
        if layer.affine:
            scale, shift = self.affine.to(dtype)[..., None, None].unbind(2)
            v = v * scale + shift
        v = v.relu() if layer.relu_in else v
        v = v if self.residual is None else v + self.residual.to(dtype).permute(0, 3, 1, 2)
        loaded, weight = v, self.weight.to(dtype)
        if layer.numbers == "tf32" and dtype is not torch.float64:
            v, weight = (to_numbers(value, "tf32") for value in (v, weight))
        v = functional.interpolate(v, scale_factor=2) if layer.upsample else v
        v = functional.pad(v, (layer.kernel // 2,) * 4, mode="reflect")
        out = functional.conv2d(v, weight, None if self.bias is None else self.bias.to(dtype), stride=layer.stride)
        out = out.relu() if layer.relu_out else out
        return (out.clamp(0, 255).round() if layer.picture_out is torch.uint8 else out), loaded

    def allowed(self) -> float:
        """Return what an output may be off by: twice PyTorch's largest error, and half an ulp of the largest output."""
        with torch.backends.cudnn.flags(allow_tf32=False):
            peer = self._step_by_step(self.layer.dtype)[0].double()
        if self.layer.picture_out is torch.uint8:
            return 1.0  # a sum that lies between two whole numbers
        largest = self.expected.abs().max().item()
        out_dtype = self.layer.picture_out or self.layer.dtype
        return 2 * (peer - self.expected).abs().max().item() + largest * torch.finfo(out_dtype).eps / 2

    def _allowed_of_v(self) -> torch.Tensor:
        """Return what each number that is loaded may be off by: an ulp of its own, and of what it is summed from."""
        scale, shift = self.affine.double().abs()[:, None, None].unbind(-1)
        summed = self.x.double().abs() * scale + shift
        summed = summed if self.residual is None else summed + self.residual.double().abs()
        kind = torch.finfo(self.layer.dtype)
        return kind.eps * (self.v.abs() + kind.smallest_normal) + torch.finfo(torch.float32).eps * summed

    def kernel(self, kind: type, arch: str):
        """Return (kernel, launch, outputs); `launch()` launches once."""
        layer, device = self.layer, self.device
        tensors = (self.x, self.affine, self.residual, self.weight, self.bias, self.norm.weight, self.norm.bias)
        x, affine, residual, weight, bias, *norm = (None if one is None else one.to(device) for one in tensors)
        kernel = prepare(layer, weight, bias, Norm(*norm), arch=arch, kernel=kind)
        out = torch.empty(layer.out_shape(x.shape), dtype=layer.picture_out or layer.dtype, device=device)
        made = {"out": out.view(torch.uint8).fill_(0xFF).view(out.dtype)}  # NaN
        given = {"affine": affine, "residual": residual}
        if layer.materialise:
            made["materialised"] = given["materialised"] = torch.full_like(x, torch.nan)
        if layer.statistics:
            given["sums"] = plane_sums(len(x), device)
            shape = (len(x), layer.c_out, 2)
            made["affine_out"] = given["affine_out"] = torch.full(shape, torch.nan, device=device)
        return kernel, lambda: kernel(x, out, **given), made

    def judge(self, made: dict[str, torch.Tensor], allowed: float) -> tuple[float, float, bool]:
        """Return the error as a multiple of PyTorch's, the error of the norm, and whether both are small enough."""
        made = {name: value.to(self.x.device) for name, value in made.items()}
        out = made["out"].double()
        out = out if self.layer.picture_out else out.permute(0, 3, 1, 2)
        error = (out - self.expected).abs().max().item()
        passed, norm = error <= allowed, 0.0
        if self.layer.materialise:
            passed &= bool(((made["materialised"].double() - self.v).abs() <= self._allowed_of_v()).all())
        if self.layer.statistics:
            deviation = (self.expected.var((2, 3), unbiased=False) + self.norm.eps).sqrt()
            scale = self.norm.weight / deviation
            shift = self.norm.bias - self.expected.mean((2, 3)) * scale
            off = (made["affine_out"] - torch.stack([scale, shift], 2)).abs()
            norm = (off / torch.stack([scale.abs(), shift.abs() + 1], 2)).max().item()
            # What is multiplied has been rounded, TF32 to ten bits as float16 is, and so has what was written.
            rounded = torch.float16 if self.layer.numbers == "tf32" else self.layer.dtype
            passed &= norm < 20 * torch.finfo(rounded).eps
        return error / allowed * 2, norm, bool(passed)

    @property
    def flops(self) -> int:
        """Floating-point operations of the convolution as PyTorch would do it, a multiply-add counting two."""
        layer = self.layer
        return 2 * self.expected.numel() * layer.c_in * layer.kernel**2


def kernels_for(layer: Layer, arch: str) -> Iterator[type]:
    """Yield every kernel that takes a layer."""
    yield from (kernel for kernel in KERNELS if kernel.takes(layer, arch))


def check(name: str, problem: Problem, arch: str, timed: bool) -> Iterator[Row]:
    """Yield a row for each kernel that takes the layer."""
    allowed = problem.allowed()
    for kind in kernels_for(problem.layer, arch):
        _, launch, made = problem.kernel(kind, arch)
        launch()
        first = {key: value.clone() for key, value in made.items()}
        error, norm, passed = problem.judge(made, allowed)
        launch()
        bits = [(a.view(torch.uint8) == made[key].view(torch.uint8)).all() for key, a in first.items()]
        row = Row(name, kind.__name__.removesuffix("Convolution"), error, norm, passed and all(bits))
        if timed:
            row.cold_ms = time_cold(launch)[0]
            row.warm_ms = time_warm(graphed(lambda launch=launch: [launch() for _ in range(LAUNCHES)]))[0] / LAUNCHES
            row.flops = problem.flops
        yield row


def main(argv: list[str] | None = None) -> int:
    """Check and time what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1024x1024", help="of the picture, HEIGHTxWIDTH")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--numbers", default="float16", choices=list(STORAGE))
    parser.add_argument("--arch", help="compile for this architecture, as sm_80; left out, the card's own")
    parser.add_argument("--only", default="", help="layers whose name holds this word")
    parser.add_argument("--layer", choices=list(NETWORK), help="this layer alone")
    parser.add_argument("--sanitize", action="store_true", help="one small launch of each kernel, checked, not timed")
    parser.add_argument("--dry-run", action="store_true", help="without a GPU: small sizes in the emulator")
    options = parser.parse_args(argv)
    if options.dry_run:
        os.environ["STYLEFORGE_DEVICE"] = "emulator"
    elif not gpu.available():
        print("no NVIDIA GPU here: add --dry-run to try the emulator", file=sys.stderr)
        return 2
    if options.sanitize:  # as on a card of one multiprocessor: a block has several tiles, and both phases of each
        for launcher in (conv2d_hopper, conv2d_hopper_persistent, conv2d_hopper_pictures):
            launcher.multiprocessors = lambda _: 1
    device, timed = ("cpu", False) if options.dry_run else ("cuda", not options.sanitize)
    arch = options.arch or architecture(torch.empty(0, device=device).device)
    height, width = (int(n) for n in options.size.split("x")) if timed else SMALL
    title = f"{options.batch}x3x{height}x{width} {options.numbers}, {arch}"
    print(
        f"{title:37} {'error':>8} {'norm':>9} {'':6}"
        + (f"{'cold us':>10} {'warm us':>9} {'TFLOP/s':>8}" if timed else "")
    )
    failed = 0
    with torch.inference_mode():
        for name, (smaller, layer) in NETWORK.items():
            if options.only not in name or options.layer not in (None, name):
                continue
            layer = replace(layer, numbers=options.numbers)
            shape = (options.batch, -(-height // smaller), -(-width // smaller))
            problem = Problem(layer, *shape, device, apart=options.sanitize)
            for row in check(name, problem, arch, timed):
                print(row, flush=True)
                failed += not row.passed
            del problem
    print("all right" if not failed else f"{failed} WRONG")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
