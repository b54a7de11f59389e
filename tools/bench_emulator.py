"""Measures the emulator: a table of kernels, and with `--csv PATH` one row each.

    python tools/bench_emulator.py [--repeat 5] [--csv PATH] [--only NAME]

The kernels are those of bench_emulator.cu. Columns: lanes in a launch, milliseconds of translation, milliseconds of a
launch by the processor's clock (all threads together) and by the wall's, million warp instructions and GFLOP (two for
a fused multiply-add) per second, how many times longer a launch takes with metrics, and with metrics and races, on all
blocks, and in how many threads it ran. Each time is the least of the repeats. Speeds come from the processor's time
where one thread ran, so that others' work on the machine changes less, and from the wall's where several did; with
metrics or races there is one thread, and their times are compared by the processor's. A row without a number of threads
(before there were several) is of one. Others' work changes something all the same, as caches and processors are shared:
each row also says how long NumPy took for a fixed piece of work at that time (see `yardstick`), and how many processes
wanted to run. Warp instructions are PTX-level.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from styleforge_lib.runtime.compiler import compile_to_ptx
from styleforge_lib.runtime.emulator import Program, Trace

KERNELS = Path(__file__).with_suffix(".cu")


class Case(NamedTuple):
    """One launch, and the floating-point operations that it is worth."""

    kernel: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    arguments: Sequence
    operations: float


def cases() -> dict[str, Case]:
    """Return name -> launch."""
    rng = np.random.default_rng(0)
    i32, f32 = np.int32, np.float32

    def normal(*shape: int, dtype=np.float32) -> np.ndarray:
        return rng.standard_normal(shape).astype(dtype)

    plane, picture, square = normal(32, 64, 64), normal(32, 128, 128), normal(256, 256)
    halves, taps = normal(128, 128, 64, dtype=np.float16), normal(9, 64, 64, dtype=np.float16)
    heads, rows, columns = normal(16, 500, 32), normal(256, 128, dtype=np.float16), normal(128, 512, dtype=np.float16)
    long, short = normal(1_000_003), normal(256)
    side = (i32(128), i32(128))
    return {
        "instance norm 32x64x64": Case(
            "instance_norm", (32,), (256,), (plane, plane * 0, i32(4096), f32(1e-5)), 8 * plane.size
        ),
        "conv 3x3 32->32 128x128": Case(
            "conv3x3", (8, 8, 4), (16, 16), (picture, normal(32, 32, 3, 3), picture * 0, i32(32), *side),
            2 * 9 * 32 * picture.size,
        ),
        "mma conv 3x3 64->64 128x128 float16": Case(
            "conv3x3_mma", (16, 8), (256,), (halves, taps, halves * 0, *side), 2 * 9 * 64 * halves.size
        ),
        "attention 16x500x32": Case(
            "attention", (4, 16), (128,), (heads, heads[::-1].copy(), heads + 1, heads * 0, i32(500)),
            4 * heads.size * 500,
        ),
        "attention by tiles 16x500x32": Case(
            "attention_by_tiles", (4, 16), (128,), (heads, heads[::-1].copy(), heads + 1, heads * 0, i32(500)),
            4 * heads.size * 500,
        ),
        "ffn half2 256x128x512": Case(
            "ffn", (1, 256), (256,), (rows, columns, np.zeros((256, 512), np.float16), i32(128), i32(256)),
            2 * 256 * 128 * 512,
        ),
        "matmul 256": Case("matmul", (16, 16), (16, 16), (square, square, square * 0, i32(256)), 2 * 256**3),
        "saxpy 1000003": Case("saxpy", (3907,), (256,), (long, long * 0, f32(2), i32(long.size)), 2 * long.size),
        "saxpy 256, one block": Case("saxpy", (1,), (256,), (short, short * 0, f32(2), i32(256)), 512),
    }  # fmt: skip


def program() -> Program:
    """Return the compiled kernels."""
    source = KERNELS.read_text("utf-8")
    return Program(compile_to_ptx(source, arch="sm_80", name=KERNELS.name), {KERNELS.name: source})


def best(repeat: int, function: Callable[[], object]) -> tuple[float, float]:
    """Return the least processor time and the least wall time of some runs, in seconds."""
    times = []
    for _ in range(max(1, repeat)):
        wall, cpu = time.perf_counter(), time.process_time()
        function()
        times.append((time.process_time() - cpu, time.perf_counter() - wall))
    return min(cpu for cpu, _ in times), min(wall for _, wall in times)


def yardstick() -> float:
    """Return the microseconds that NumPy needs to copy 65536 float32 into a complex array and multiply that by another.

    It is what a fused multiply-add comes down to; eight arrays take turns, as the sums of a kernel would.
    """
    rooms = [np.ones(1 << 16, np.complex64) for _ in range(8)]
    pair, value = np.ones(1 << 16, np.complex64), np.ones(1 << 16, np.float32)

    def turn() -> None:
        for number in range(8):
            rooms[number].imag = value
            rooms[number] = np.multiply(pair, rooms[number])

    return 1e6 / 8 * best(50, turn)[0]


def measure(name: str, case: Case, repeat: int) -> dict[str, object]:
    """Return one row."""
    fresh = program()
    translation, _ = best(1, lambda: fresh.plan(case.kernel))

    def launch(trace: Trace | None = None) -> float:
        fresh.launch(case.kernel, case.grid, case.block, case.arguments, trace=trace)

    counting = Trace(races=False)
    launch(counting)
    instructions = sum(line.instructions for line in counting.lines().values())
    cpu, wall = best(repeat, launch)
    threads = fresh.threads_used
    seconds = cpu if threads == 1 else wall
    metrics, _ = best(repeat // 2, lambda: launch(Trace(races=False)))
    races, _ = best(repeat // 2, lambda: launch(Trace()))
    return {
        "kernel": name,
        "lanes": int(np.prod(case.grid) * np.prod(case.block)),
        "translation_ms": round(1e3 * translation, 2),
        "cpu_ms": round(1e3 * cpu, 3),
        "wall_ms": round(1e3 * wall, 3),
        "warp_instructions": instructions,
        "mega_warp_instructions_per_s": round(instructions / seconds / 1e6, 2),
        "gflop_per_s": round(case.operations / seconds / 1e9, 3),
        "times_with_metrics": round(metrics / cpu, 2),
        "times_with_races": round(races / cpu, 2),
        "yardstick_us": round(yardstick(), 1),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else "",
        "threads": threads,
    }


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--csv", type=Path, help="append the rows to this file")
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    options = parser.parse_args()
    heads = (
        "lanes",
        "transl. ms",
        "CPU ms",
        "wall ms",
        "Mwarp/s",
        "GFLOP/s",
        "metrics",
        "races",
        "yardstick",
        "threads",
    )
    print(f"{'kernel':36s}" + "".join(f"{head:>11s}" for head in heads))
    rows = []
    for name, case in cases().items():
        if options.only not in name:
            continue
        row = measure(name, case, options.repeat)
        rows.append(row)
        speed, operations = row["mega_warp_instructions_per_s"], row["gflop_per_s"]
        print(
            f"{name:36s}{row['lanes']:11d}{row['translation_ms']:11.1f}{row['cpu_ms']:11.2f}{row['wall_ms']:11.2f}"
            f"{speed:11.1f}{operations:11.2f}{row['times_with_metrics']:10.1f}x{row['times_with_races']:10.1f}x"
            f"{row['yardstick_us']:11.1f}{row['threads']:11d}",
            flush=True,
        )
    if options.csv:
        stamp = {
            "date": datetime.date.today().isoformat(),
            "numpy": np.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "cores": os.cpu_count(),
        }
        fresh = not options.csv.exists()
        with options.csv.open("a", newline="") as file:
            writer = csv.DictWriter(file, [*stamp, *rows[0]])
            if fresh:
                writer.writeheader()
            writer.writerows({**stamp, **row} for row in rows)


if __name__ == "__main__":
    main()
