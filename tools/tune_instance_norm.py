"""Try launch shapes of instance norm on this GPU, and print the best of them beside what the rule chooses.

    python tools/tune_instance_norm.py               # a table; nothing is recorded
    python tools/tune_instance_norm.py --dry-run     # no GPU: two shapes of each kind in the emulator

Contiguous: how many bytes of a plane a block holds (whole_bytes: of a plane that is not cut, piece_bytes: of one that
is; beyond 32 KB with 16 vectors a thread, else with 8), and how many blocks sweep, of how many threads, where none is
held; on Hopper also chunks of the copy engine. Channels_last: how many blocks a multiprocessor has. Timed as replays of
a CUDA graph of one call, the L2 cache flushed before each: what a call costs the host is not in it. The rule is a
handful of constants in styleforge_lib/ops/instance_norm.py, which are set and restored.
"""

import argparse
import contextlib
import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator

import torch
from bench_instance_norm import KINDS, SHAPES, TINY, tensors

from styleforge_lib.lab.bench import graphed
from styleforge_lib.runtime.kernel import DEVICE_VARIABLE

norm = importlib.import_module("styleforge_lib.ops.instance_norm")  # `ops.instance_norm` is the function
copies = importlib.import_module("styleforge_lib.ops.instance_norm_hopper")

ALL = 1 << 40
PIECES = [{"PIECE_BYTES": kb << 10, "LARGE_BYTES": ALL} for kb in (64, 48, 32, 24, 16, 8)]
PIECES += [{"WHOLE_BYTES": kb << 10, "PIECE_BYTES": kb << 10, "LARGE_BYTES": ALL} for kb in (32, 16, 8)]
PIECES += [{"WIDE_THREADS": 0}]  # a plane of up to 128 KB is cut, though it may have a multiprocessor to itself
SWEEPS = [
    {"COPY_ENGINE": False, "RESIDENT": {16: 0, 8: 0}, "SWEEP_THREADS": threads, "SWEEP_RESIDENT": blocks}
    for threads in (512, 1024)
    for blocks in (1, 2, 4)
    if threads * blocks <= 2048
]
PIXELS = [{"COPY_ENGINE": False}]
# Blocks whose part the copy engine brings (Hopper): of any planes, and in chunks of other sizes.
COPIES = [
    {"RESIDENT": {16: 0, 8: 0}, "COPY_THREADS": threads, "CHUNK": kb << 10, "SLOTS": slots, "KEPT": kept}
    for threads, kb, slots, kept in (
        (512, 16, 12, 4),
        (512, 16, 12, 2),
        (512, 16, 12, 1),
        (256, 16, 13, 3),
    )
]


@contextlib.contextmanager
def constants(values: dict[str, int]) -> Iterator[None]:
    """Set constants of a rule for a while."""
    owners = {name: next(one for one in (copies, norm) if hasattr(one, name)) for name in values}
    before = {name: getattr(owner, name) for name, owner in owners.items()}
    try:
        for name, value in values.items():
            setattr(owners[name], name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owners[name], name, value)


def clock(dry: bool) -> Callable[[Callable], float]:
    """Return what times a call in ms."""

    def once(run: Callable) -> float:
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)

    if dry:
        return once
    from triton.testing import do_bench

    return lambda run: do_bench(graphed(run), warmup=2, rep=10, return_mode="median")


def main() -> int:
    """Try all launch shapes for each tensor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes in the emulator")
    parser.add_argument("--best", type=int, default=4, help="how many launch shapes to print for each tensor")
    arguments = parser.parse_args()
    if arguments.dry_run:
        os.environ[DEVICE_VARIABLE] = "emulator"
    elif not torch.cuda.is_available():
        print("this measures, so it needs an NVIDIA GPU; --dry-run goes through it without one", file=sys.stderr)
        return 2
    device, time_of = "cpu" if arguments.dry_run else "cuda", clock(arguments.dry_run)
    shapes = TINY if arguments.dry_run else SHAPES
    with torch.inference_mode():
        for shape in shapes:
            for dtype, layout in KINDS:
                x, weight, bias = tensors(shape, dtype, layout, device)
                out = torch.empty_like(x)
                tried = (PIXELS if layout == "nhwc" else PIECES + SWEEPS) + COPIES
                times = {}
                for values in ({}, *(tried[:: len(tried) - 1] if arguments.dry_run else tried)):
                    with constants(values):
                        name = " ".join(f"{key.lower()}={value}" for key, value in values.items()) or "the rule"
                        run = norm.planned(x, weight, bias, None, False, norm.EPS, out)  # the function keeps its plans
                        times[name] = time_of(lambda run=run, args=(x, weight, bias, None, out): run(*args))
                copy = time_of(lambda out=out, x=x: out.copy_(x))
                words = f"{'x'.join(map(str, shape))} {str(dtype).removeprefix('torch.')} {layout}"
                print(f"{words}: copy {copy:.4f} ms, the rule {times.pop('the rule'):.4f} ms", flush=True)
                for name, ms in sorted(times.items(), key=lambda item: item[1])[: arguments.best]:
                    print(f"    {ms:.4f} ms  {ms / copy:5.2f} copies  {name}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
