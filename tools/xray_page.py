"""What docs/xray.md shows: the comparison with Nsight Compute, how long launches take, and two pictures.

Contents: ncu_words, ncu_table, ncu_explained, emulator_speed (blocks); the kernels of the pictures.
"""

import csv
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
from address import ROOT
from compare_ncu import RECORD, TOLERANCE
from page_blocks import NO_BREAK, PICTURES, block, png, table

from styleforge_lib.lab.xray import XRay, xray
from styleforge_lib.runtime import compile_cuda
from styleforge_lib.runtime.kernel import DEVICE_VARIABLE

ACCESSES = (("global", "load"), ("global", "store"), ("global", "atomic"), ("shared", "load"), ("shared", "store"))
TRANSPOSE = """extern "C" __global__ void transpose(const float* x, float* y) {
  __shared__ float tile[32][36];
  for (int k = 0; k < 32; k += 8) tile[threadIdx.y + k][threadIdx.x] = x[(threadIdx.y + k) * 32 + threadIdx.x];
  __syncthreads();
  for (int k = 0; k < 32; k += 8)
    y[(threadIdx.y + k) * 32 + threadIdx.x] = tile[threadIdx.x][threadIdx.y + k];
}
"""
TREE = """extern "C" __global__ void tree(const float* x, float* sum) {
  __shared__ float s[256];
  int t = threadIdx.x;
  s[t] = x[t];
  __syncthreads();
  for (int half = 128; half > 0; half /= 2) {
    if (t < half) s[t] += s[t + half];
    __syncthreads();
  }
  if (t == 0) *sum = s[0];
}
"""


@cache
def record() -> dict:
    """Return the record of tools/compare_ncu.py."""
    return json.loads(RECORD.read_text("utf-8"))


@block
def ncu_words() -> str:
    """Say how many counts agree, and where they were taken."""
    machine, rows = record()["machine"], record()["rows"]
    agree = sum(row["verdict"] == "agrees" for row in rows)
    kernels = len({row["kernel"] for row in rows})
    exact = sum(row["units"] == row["units_ncu"] for row in rows if row["verdict"] == "agrees")
    return (
        f"On an {machine['gpu']} (driver {machine['driver']}, Nsight Compute {machine['ncu']}), {agree} of {len(rows)} "
        f"counts of {kernels} kernels agree within {TOLERANCE:.0%}, {exact} of them exactly."
    )


@block
def ncu_table() -> str:
    """List each kernel's sectors and passes a request: one figure where both agree, else the emulator's first."""
    rows = record()["rows"]
    found = {(row["kernel"], row["space"], row["verb"]): row for row in rows}

    def cell(kernel: str, access: tuple[str, str]) -> str:
        row = found.get((kernel, *access))
        if row is None:
            return ""
        mine, theirs = row["units"] / row["requests"], row["units_ncu"] / row["requests_ncu"]
        return f"{mine:.4g}" if row["verdict"] == "agrees" else f"**{mine:.4g} / {theirs:.4g}**"

    lines = [
        [f"`{kernel}`", *(cell(kernel, access) for access in ACCESSES)]
        for kernel in dict.fromkeys(row["kernel"] for row in rows)
    ]
    return table(["kernel", *(f"{space} {verb}" for space, verb in ACCESSES)], lines, "lrrrrr")


@block
def ncu_explained() -> str:
    """List the differences with their reasons."""
    rows = [row for row in record()["rows"] if row["verdict"] != "agrees"]
    return "\n".join(f"- `{row['kernel']}`, {row['space']} {row['verb']}: {row['said']}." for row in rows)


@block
def emulator_speed() -> str:
    """List each kernel of the emulator's record: of its newest day, the run that others' work disturbed least."""
    with (ROOT / "records" / "emulator.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    newest = max(row["date"] for row in rows)
    best: dict[str, dict[str, str]] = {}
    for row in rows:
        speed = float(row["mega_warp_instructions_per_s"])
        before = best.get(row["kernel"])
        if row["date"] == newest and (not before or speed > float(before["mega_warp_instructions_per_s"])):
            best[row["kernel"]] = row
    lines = [
        [
            row["kernel"],
            f"{int(row['lanes']):,}".replace(",", NO_BREAK),
            f"{float(row['wall_ms']):.3g}",
            f"{float(row['mega_warp_instructions_per_s']):.3g}",
            f"{float(row['gflop_per_s']):.3g}",
            f"{float(row['times_with_metrics']):.2g}x",
            f"{float(row['times_with_races']):.2g}x",
        ]
        for row in best.values()
    ]
    head = ("kernel", "threads", "ms", "million warp instructions a second", "GFLOP/s", "with counts", "and races")
    return table(head, lines, "lrrrrrr") + (
        f"\n\nTwo cores of a shared {rows[-1]['machine']} machine, which is faster and slower, Python "
        f"{rows[-1]['python']}, NumPy {rows[-1]['numpy']}. Of each kernel's rows of {newest} in "
        "[the record](../records/emulator.csv), the fastest."
    )


# ---- the pictures ----


@contextmanager
def emulated() -> Iterator[None]:
    """Compile for the emulator, so that a picture does not depend on the machine's card."""
    before = os.environ.get(DEVICE_VARIABLE)
    os.environ[DEVICE_VARIABLE] = "emulator"
    try:
        yield
    finally:
        os.environ.pop(DEVICE_VARIABLE) if before is None else os.environ.update({DEVICE_VARIABLE: before})


def looked_at(text: str, block: object, size: int) -> XRay:
    """Return the x-ray of one block of a kernel that takes an input and an output."""
    with emulated():
        return xray(compile_cuda(text), 1, block, (np.arange(size, dtype=np.float32), np.zeros(size, np.float32)))


def _warp() -> tuple[object, Callable[[], bytes]]:
    return TRANSPOSE, lambda: png(looked_at(TRANSPOSE, (32, 8), 1024).warp(6))


def _timeline() -> tuple[object, Callable[[], bytes]]:
    return TREE, lambda: png(looked_at(TREE, 256, 256).timeline())


PICTURES["docs/warp.png"] = _warp
PICTURES["docs/timeline.png"] = _timeline
