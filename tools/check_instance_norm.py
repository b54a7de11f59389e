"""Check instance norm on this GPU at real sizes: forward and backward, every dtype and layout, against float64.

    python tools/check_instance_norm.py               # seconds; exits with 1 where anything is wrong, 2 without a GPU
    python tools/check_instance_norm.py --sanitize    # fewer shapes: for compute-sanitizer (tools/sanitize.py)
    python tools/check_instance_norm.py --dry-run     # no GPU: the same on tiny shapes in the emulator

A result may be off by twice PyTorch's own error on the same device and a floor of 16 units in the last place of float32
of the largest result. Then what only a card shows: a captured graph that is replayed on other data, and launches on
several streams at once, whose blocks compete for the multiprocessors while they wait for each other.
"""

import argparse
import importlib
import os
import sys

import torch

from styleforge_lib.ops import instance_norm
from styleforge_lib.ops.instance_norm import DTYPES, EPS, fused_pytorch, fused_reference
from styleforge_lib.runtime.kernel import DEVICE_VARIABLE

# Held by one block, in pieces, in 127 pieces, by far too large to be held; ragged; many small planes; such as fill a
# block of the copy engine's kernel, whole and by halves.
SHAPES = (
    (8, 128, 128, 128),
    (1, 32, 512, 512),
    (1, 3, 1080, 1920),
    (1, 2, 2500, 2501),
    (2, 5, 333, 517),
    (16, 512, 7, 9),
    (1, 128, 256, 256),
    (1, 64, 512, 512),
)
# For compute-sanitizer: each kernel in each dtype, at its smallest on a card of few multiprocessors; whole planes, then
# planes in pieces, in so many that they are swept, and the copy engine's.
SANITIZED = ((2, 8, 9, 7), (2, 3, 9, 7), (1, 1, 111, 113), (1, 1, 161, 163))
SANITIZED += ((1, 1, 300, 301), (1, 1, 530, 531), (1, 1, 750, 751), (1, 1, 790, 791))
SANITIZED += ((1, 8, 255, 255), (1, 2, 512, 512), (1, 4, 512, 512))
PROCESSORS = 9
TINY = ((2, 8, 9, 7), (1, 3, 17, 31))
NAMES = ("out", "dx", "dweight", "dbias", "dresidual")


def results(function, tensors: tuple, dout: torch.Tensor, relu: bool, device: str) -> list[torch.Tensor]:
    """Return the output and the gradients of function(x, weight, bias, residual, relu, eps), computed on a device."""
    leaves = [tensor.detach().to(device, copy=True).requires_grad_() for tensor in tensors]
    out = function(*leaves, relu, EPS)
    found = [out.detach(), *torch.autograd.grad(out, leaves, dout.to(device))]
    return [value.to(dout.device) for value in found]


def ours(x, weight, bias, residual, relu, eps) -> torch.Tensor:
    """Return the library's, in the order of arguments of the others."""
    return instance_norm(x, weight, bias, eps, relu, residual)


def compare(
    shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, launched_on: str, apart: bool = False
) -> list[str]:
    """Return what is wrong with one shape: names of results, how far they are off, and how far they may be.

    apart: whether all but our kernels runs on the CPU, where no tool watches it.
    """
    torch.manual_seed(0)
    device = "cpu" if apart else launched_on
    x, residual, dout = (torch.randn(shape, device=device).to(dtype).to(memory_format=layout) for _ in range(3))
    weight, bias = torch.randn(2, shape[1], device=device).to(dtype)
    tensors = (x * 3 + 40, weight, bias, residual)
    wrong = []
    for relu in (False, True):
        got = results(ours, tensors, dout, relu, launched_on)
        # Which numbers the ReLU cuts is told by the result; rounding decides at 0, in any order of computing.
        passed = dout * (got[0] > 0) if relu else dout
        with torch.no_grad():
            there = [tensor.to(launched_on) for tensor in tensors]
            got[0] = ours(*there, relu, EPS).to(device)  # the kernels that save nothing
        expected = results(
            fused_reference, tuple(tensor.double() for tensor in tensors), passed.double(), False, device
        )
        peers = results(fused_pytorch, tensors, passed, False, device)
        if relu:
            expected[0], peers[0] = expected[0].relu(), peers[0].relu()
        for name, value, reference, peer in zip(NAMES, got, expected, peers, strict=True):
            off, error = ((result.double() - reference).abs().max().item() for result in (value, peer))
            size = reference.abs().max().item()
            allowed = 2 * error + (16 * torch.finfo(torch.float32).eps + torch.finfo(dtype).eps / 2) * size
            if not off <= allowed:  # NaN is wrong, too
                wrong.append(f"{name}{' with ReLU' if relu else ''} is off by {off:.2g}, {allowed:.2g} is allowed")
    return wrong


def replayed(layout: torch.memory_format) -> list[str]:
    """Return what is wrong with a captured graph, replayed on other data."""
    x = torch.randn(1, 8, 512, 512, device="cuda").to(memory_format=layout)
    instance_norm(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = instance_norm(x)
    for _ in range(50):
        x.copy_(torch.randn_like(x) * 3 + 7)
        graph.replay()
        if not torch.equal(out, instance_norm(x)):
            return ["a replay differs from a launch"]
    return []


def beside_each_other(layout: torch.memory_format) -> list[str]:
    """Return what is wrong with launches on four streams at once, each with planes of half the card's blocks."""
    streams = [torch.cuda.Stream() for _ in range(4)]
    inputs = [torch.randn(1, 8, 1024, 1024, device="cuda").to(memory_format=layout) for _ in streams]
    alone = [instance_norm(x) for x in inputs]
    torch.cuda.synchronize()
    found = []
    for _ in range(20):
        for stream, x in zip(streams, inputs, strict=True):
            with torch.cuda.stream(stream):
                found.append(instance_norm(x))
    torch.cuda.synchronize()
    same = all(torch.equal(out, alone[i % len(alone)]) for i, out in enumerate(found))
    return [] if same else ["launches beside each other differ from launches alone"]


def main() -> int:
    """Run the checks; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes in the emulator")
    parser.add_argument("--sanitize", action="store_true", help="few shapes, and no graphs or streams")
    arguments = parser.parse_args()
    if arguments.sanitize:
        importlib.import_module("styleforge_lib.ops.instance_norm").multiprocessors = lambda _: PROCESSORS
    dry = arguments.dry_run
    if dry:
        os.environ[DEVICE_VARIABLE] = "emulator"
    elif not torch.cuda.is_available():
        print("no NVIDIA GPU here: --dry-run goes through the checks without one", file=sys.stderr)
        return 2
    faults = 0

    def tell(what: str, wrong: list[str]) -> None:
        nonlocal faults
        faults += bool(wrong)
        print(f"{'FAIL' if wrong else 'pass'}  {what:45} {'; '.join(wrong)}", flush=True)

    for shape in TINY if dry else SANITIZED if arguments.sanitize else SHAPES:
        for dtype in DTYPES:
            for layout in (torch.contiguous_format, torch.channels_last):
                words = f"{'x'.join(map(str, shape))} {dtype} {layout}".replace("torch.", "")
                tell(words, compare(shape, dtype, layout, "cpu" if dry else "cuda", arguments.sanitize))
    if not (dry or arguments.sanitize):
        for layout in (torch.contiguous_format, torch.channels_last):
            words = str(layout).removeprefix("torch.")
            tell(f"a graph, replayed on other data, {words}", replayed(layout))
            tell(f"four streams at once, {words}", beside_each_other(layout))
    print("all right" if not faults else f"{faults} checks failed")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
