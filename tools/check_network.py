"""Hold the accelerated network and the drop-in modules to float64, on a small picture with ragged edges.

    python tools/check_network.py                        # float16, bfloat16, TF32 and exact float32: a minute on a card
    python tools/check_network.py --numbers tf32
    python tools/check_network.py --dry-run              # no GPU: the same in the emulator

The network paints each picture three times: launched one by one, captured, and replayed as the CUDA graph whose
launches begin before the one before has ended; a second picture goes through the graph, too. The paintings of one
picture must be equal bit by bit. error: the root of the mean square difference from float64, as a multiple of that of
PyTorch on the CPU in the same numbers; float16 stands for TF32, which rounds what is multiplied to as many bits. It may
be 2. What only checks runs on the CPU, where compute-sanitizer (tools/sanitize.py) does not watch.
Exits with 1 where something is wrong, with 2 without a GPU.
"""

import argparse
import copy
import os
import sys
from collections.abc import Iterator

import torch
from torch import nn

from styleforge_lib import FusedConv2d, FusedConvInstanceNorm2d, FusedResidualBlock, FusedUpsampleConv2d, accelerate
from styleforge_lib.lab.bench import errors
from styleforge_lib.models.checkpoints import load_style
from styleforge_lib.ops.layer import STORAGE
from styleforge_lib.runtime import gpu
from styleforge_lib.runtime.kernel import DEVICE_VARIABLE

STYLE = "starry_night"
PICTURES = (2, 3, 33, 70)  # a batch; no tile of a kernel divides its sides, at no layer
FEATURES = (2, 32, 9, 18)
PEERS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "tf32": torch.float16, "float32": torch.float32}


def modules() -> dict[str, nn.Module]:
    """Return the drop-ins with random parameters."""
    torch.manual_seed(0)
    made = {
        "FusedConv2d": FusedConv2d(32, 64, 3, 2, relu=True),
        "FusedUpsampleConv2d": FusedUpsampleConv2d(32, 32, 3, 1, 2),
        "FusedConvInstanceNorm2d": FusedConvInstanceNorm2d(32, 64, 3, relu=True),
        "FusedResidualBlock": FusedResidualBlock(32),
    }
    for module in made.values():
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.2)
    return made


def through_pytorch(module: nn.Module, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return what PyTorch computes on the CPU: it does so wherever gradients are wanted."""
    return copy.deepcopy(module).to(dtype)(x.to(dtype).requires_grad_()).detach()


def error_of(out: torch.Tensor, module: nn.Module, x: torch.Tensor, numbers: str) -> float:
    """Return the error of out as a multiple of PyTorch's in these numbers."""
    expected = through_pytorch(module, x, torch.float64)
    ours, theirs = (errors(y, expected)["rel_error"] for y in (out.cpu(), through_pytorch(module, x, PEERS[numbers])))
    return ours / theirs


def check_network(numbers: str, device: str) -> Iterator[tuple[str, float, bool]]:
    """Yield a row for each picture: what it is, its error, and whether it is right."""
    net = load_style(STYLE)
    fast = accelerate(copy.deepcopy(net).to(device), dtype=STORAGE[numbers], tf32=numbers == "tf32")
    for seed in range(2):
        x = torch.rand(PICTURES, generator=torch.Generator().manual_seed(seed)) * 255
        with torch.inference_mode():
            first, *others = (fast(x.to(device)).cpu() for _ in range(3))
        error = error_of(first, net, x, numbers)
        same = all(torch.equal(first, other) for other in others)
        yield f"the network, picture {seed + 1}", error, error <= 2 and same


def check_modules(numbers: str, device: str) -> Iterator[tuple[str, float, bool]]:
    """Yield a row for each drop-in."""
    for name, module in modules().items():
        x = torch.randn(FEATURES, generator=torch.Generator().manual_seed(0))
        # Both sides begin with the same numbers, whatever these can hold.
        module, x = copy.deepcopy(module).to(STORAGE[numbers]), x.to(STORAGE[numbers])
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=numbers == "tf32"):
            out = copy.deepcopy(module).to(device)(x.to(device))
        error = error_of(out, module, x, numbers)
        yield name, error, error <= 2


def main(argv: list[str] | None = None) -> int:
    """Check what was asked for, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--numbers", choices=list(STORAGE), help="these alone")
    parser.add_argument("--dry-run", action="store_true", help="in the emulator")
    options = parser.parse_args(argv)
    if options.dry_run:
        os.environ[DEVICE_VARIABLE] = "emulator"
    elif not gpu.available():
        print("no NVIDIA GPU here: add --dry-run to try the emulator", file=sys.stderr)
        return 2
    device, failed = "cpu" if options.dry_run else "cuda", 0
    for numbers in [options.numbers] if options.numbers else STORAGE:
        for check in (check_network, check_modules):
            for name, error, right in check(numbers, device):
                print(f"{numbers:9} {name:26} {error:8.2f} {'right' if right else 'WRONG'}", flush=True)
                failed += not right
    print("all right" if not failed else f"{failed} WRONG")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
