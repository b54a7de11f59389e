"""Measure what a call of the library costs the host, beside PyTorch's own, in microseconds.

Contents
    calls               what is called, on tensors so small that the card never keeps the host waiting
    host                the part `host` of tools/bench.py: measure, append the rows to the records, print them
    main                the command line

    python tools/bench.py --parts host                # into records/measurements.csv
    python tools/bench_host.py                        # into records/local.csv
    python tools/bench_host.py --dry-run              # no GPU: every call in the emulator, where its time says nothing

A call that takes the host longer than its kernel takes the card is paid for in Python. The rows have the operator
"call" and the method "host"; `tools/check_gpu.py --only launch` measures a bare launch in the same way.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from check_gpu import host_microseconds
from torch.nn import functional

from styleforge_lib import FusedInstanceNorm2d, accelerate, load_style
from styleforge_lib.lab import records
from styleforge_lib.lab.bench import quantiles
from styleforge_lib.lab.peers import STYLE
from styleforge_lib.lab.records import Measurement
from styleforge_lib.ops import instance_norm, relu, residual_add
from styleforge_lib.runtime.kernel import DEVICE_VARIABLE

SHAPE = (1, 16, 16, 16)
PICTURE = (1, 3, 64, 64)
CALLS, PAINTED = 200, 20  # in a batch; a painting is several launches, and the queue of a stream holds about a thousand
TINY_PICTURE = (1, 3, 8, 8)


def calls(device: str, picture: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...], int, Callable[[], object]]]:
    """Yield (name, shape, calls in a batch, call): ours, and PyTorch's behind it."""
    x, y = torch.randn(2, *SHAPE, device=device)
    weight, bias = torch.randn(2, SHAPE[1], device=device)
    ours, theirs = (kind(SHAPE[1], affine=True).to(device) for kind in (FusedInstanceNorm2d, torch.nn.InstanceNorm2d))
    painting = torch.rand(picture, device=device) * 255
    net = load_style(STYLE, device)
    fast = accelerate(net)
    last = x.to(memory_format=torch.channels_last)
    small = {
        "instance_norm": lambda: instance_norm(x, weight, bias),
        "instance_norm channels_last": lambda: instance_norm(last, weight, bias),
        "functional.instance_norm": lambda: functional.instance_norm(x, weight=weight, bias=bias),
        "FusedInstanceNorm2d": lambda: ours(x),
        "nn.InstanceNorm2d": lambda: theirs(x),
        "relu": lambda: relu(x),
        "torch.relu": lambda: torch.relu(x),
        "residual_add": lambda: residual_add(x, y),
        "torch.add": lambda: torch.add(x, y),
    }
    yield from ((name, SHAPE, CALLS, call) for name, call in small.items())
    yield "accelerate", picture, PAINTED, lambda: fast(painting)
    yield "TransformerNet", picture, PAINTED, lambda: net(painting)


def host(run: str, *, dry: bool = False) -> list[Measurement]:
    """Measure every call, append the rows to the records as `run`, and print them. dry: each once, nothing recorded."""
    rows = []
    for name, shape, count, call in calls("cpu" if dry else "cuda", TINY_PICTURE if dry else PICTURE):
        median, low, high = quantiles(once(call) if dry else host_microseconds(call, count))
        times = {"median_ms": median / 1e3, "p20_ms": low / 1e3, "p80_ms": high / 1e3}
        about = {"dtype": "float32", "layout": "nhwc" if "channels_last" in name else "nchw", "method": "host"}
        written = "x".join(map(str, shape))
        rows.append(Measurement(operator="call", version=name, shape=written, run=run, **about, **times))
        print(f"{name:30} {written:12} {median:8.2f} us", flush=True)
    if not dry:
        rows = [replace(row, **records.machine()) for row in rows]
        records.append(rows)
    return rows


def once(call: Callable[[], object]) -> list[float]:
    """Return the microseconds of one call by the clock on the wall: it runs, and that is all that they say."""
    start = time.perf_counter()
    call()
    return [1e6 * (time.perf_counter() - start)]


def main() -> int:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="each call once in the emulator; nothing is recorded")
    arguments = parser.parse_args()
    if arguments.dry_run:
        os.environ[DEVICE_VARIABLE] = "emulator"
    elif not torch.cuda.is_available():
        print("this measures, so it needs an NVIDIA GPU; --dry-run goes through it without one", file=sys.stderr)
        return 2
    with torch.inference_mode():
        host(records.new_run(), dry=arguments.dry_run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
