"""Does `check` say the same on a GPU and on the emulator? Right kernels and kernels that cheat, on both.

Contents
    Entry       a kernel, how it is launched, and whether it is right
    ENTRIES     the library's own kernels, and cheats, each wrong in its own way
    judge       the verdict on one device
    main        the command line

    python tools/check_verdicts.py --json check_verdicts.json
    python tools/check_verdicts.py --dry-run        # no GPU: the emulator on both sides

Data, reference and tolerance come from the CPU and from one seed, so that the verdict must not depend on the device:
whether a kernel passes, at which case it fails, and in the same words. Two things may differ: whether a right kernel is
right to the last bit (a GPU's square root is approximate), and what is said of a fault, where the emulator stops and a
GPU goes on, so that the guard zones see the rest. Kernels whose result depends on luck (races) are not in this list,
but the x-ray's business.
Exits with 1 where verdicts differ, a cheat passes or a right kernel fails; with 2 without a GPU.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from address import ROOT

from styleforge_lib.lab import Budget, check, records
from styleforge_lib.ops import find_operator, operators
from styleforge_lib.runtime import compile_cuda, gpu
from styleforge_lib.runtime.kernel import DEVICE_VARIABLE

RECORD = ROOT / "records" / "check_verdicts.json"
SEED = 20260
THREADS = 256

RELU = """extern "C" __global__ void relu(const float* x, float* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = x[i] < 0.0f ? 0.0f : x[i];
}"""
ADD = """extern "C" __global__ void residual_add(const float* a, const float* b, float* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = a[i] + b[i];
}"""
RELU_OF = "x[i] < 0.0f ? 0.0f : x[i]"
VECTORS = """extern "C" __global__ void relu(const float4* x, float4* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n / 4) return;
    float4 v = x[i];
    out[i] = make_float4(v.x < 0 ? 0 : v.x, v.y < 0 ? 0 : v.y, v.z < 0 ? 0 : v.z, v.w < 0 ? 0 : v.w);
}"""
REMEMBERS = """__device__ float first[2048];
__device__ int seen[2048];
extern "C" __global__ void relu(const float* x, float* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    if (i >= 2048 || !seen[i]) {
        float v = x[i] < 0.0f ? 0.0f : x[i];
        if (i < 2048) first[i] = v, seen[i] = 1;
        out[i] = v;
    } else out[i] = first[i];
}"""
EVERY_SECOND = """__device__ int launches[2048];
extern "C" __global__ void relu(const float* x, float* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float v = x[i] < 0.0f ? 0.0f : x[i];
    out[i] = i < 2048 && ++launches[i] % 2 == 0 && v > 0 ? __int_as_float(__float_as_int(v) + 1) : v;
}"""
# One block a plane, one thread at a time adds it up: slow, and right but for what NORMALISE makes of it.
NORM = """extern "C" __global__ void instance_norm(const float* x, float* out, int size) {
    const float* plane = x + (size_t)blockIdx.x * size;
    __shared__ float mean, scale;
    if (threadIdx.x == 0) {
        double sum = 0, squares = 0;
        for (int i = 0; i < size; i++) sum += plane[i];
        double m = sum / size;
        for (int i = 0; i < size; i++) squares += (plane[i] - m) * (plane[i] - m);
        mean = m;
        scale = 1 / sqrt(squares / size + 1e-5);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < size; i += blockDim.x)
        out[(size_t)blockIdx.x * size + i] = (plane[i] - mean) * scale;
}"""
ONE_PASS = NORM.replace("double sum", "float sum").replace(
    "        double m = sum / size;\n"
    "        for (int i = 0; i < size; i++) squares += (plane[i] - m) * (plane[i] - m);\n",
    "        for (int i = 0; i < size; i++) squares += plane[i] * plane[i];\n"
    "        float m = sum / size;\n        squares -= m * m * size;\n",
)


@dataclass(frozen=True)
class Entry:
    """A kernel to be checked: CUDA text, or "" for the library's own launcher.

    right: whether it passes. per_thread: elements of a thread. planes: one block a plane, instead of blocks of THREADS.
    faults: whether the emulator stops at a fault where a GPU goes on.
    """

    name: str
    operator: str
    text: str = ""
    right: bool = False
    dtype: torch.dtype = torch.float32
    per_thread: int = 1
    planes: bool = False
    faults: bool = False
    budget: Budget | None = None

    def launcher(self) -> Callable[..., None]:
        """Return what `check` calls, compiled for the device that is chosen now."""
        if not self.text:
            return find_operator(self.operator).launch
        module = compile_cuda(self.text, name=f"{self.name}.cu")

        def launch(*tensors):
            first = tensors[0]
            count = first.shape[-2] * first.shape[-1] if self.planes else first.numel()
            blocks = first.numel() // count if self.planes else -(-count // (THREADS * self.per_thread))
            module(blocks, THREADS, (*tensors, count))

        return launch


def relu(name: str, old: str, new: str, **about) -> Entry:
    """Return a ReLU in which one thing has been replaced."""
    assert old in RELU, old
    return Entry(name, "relu", RELU.replace(old, new), **about)


def library() -> Iterator[Entry]:
    """Yield the library's own kernels."""
    for operator in operators():
        for dtype in operator.dtypes:
            yield Entry(f"{operator.name} {str(dtype).removeprefix('torch.')}", operator.name, right=True, dtype=dtype)


ENTRIES = (
    *library(),
    relu("a first relu", "", "", right=True),
    relu("a first relu, within its budget", "", "", right=True, budget=Budget(loads_per_thread=1, barriers=0)),
    Entry("a first sum", "residual_add", ADD, right=True),
    Entry("a slow instance norm", "instance_norm", NORM, right=True, planes=True),
    # Cheats
    relu("no guard", "if (i < n) ", "", faults=True),
    relu("one too many", "i < n", "i <= n", faults=True),
    relu("one too few", "i < n", "i < n - 1"),
    relu("identity", RELU_OF, "x[i]"),
    relu("absolute value", RELU_OF, "fabsf(x[i])"),
    relu("zeros", RELU_OF, "0.0f"),
    relu("NaN lost", RELU_OF, "fmaxf(x[i], 0.0f)"),
    relu("infinity clipped", RELU_OF, f"fminf({RELU_OF}, 3.4028234e38f)"),
    relu("denormals flushed", RELU_OF, f"fabsf(x[i]) < 1.17549435e-38f ? 0.0f : {RELU_OF}"),
    relu("leaky", RELU_OF, "x[i] < 0.0f ? 1e-3f * x[i] : x[i]"),
    relu("low bits cut off", RELU_OF, f"__int_as_float(__float_as_int({RELU_OF}) & 0xffffe000)"),
    relu("a neighbour's element", RELU_OF, "x[i ^ (n > 1024)] < 0.0f ? 0.0f : x[i ^ (n > 1024)]", faults=True),
    relu("the first quarter million", "if (i < n) ", "if (i < n) out[i] = x[i];\n    if (i < n && i < 1 << 18) "),
    relu("aligned inputs alone", RELU_OF, "x[i] < 0.0f && (size_t)x % 16 == 0 ? 0.0f : x[i]"),
    relu("aligned outputs alone", RELU_OF, "x[i] < 0.0f && (size_t)out % 16 == 0 ? 0.0f : x[i]"),
    relu("it writes its input", "out[i] =", "out[i] = ((float*)x)[i] ="),
    Entry("whole vectors alone", "relu", VECTORS, per_thread=4),
    Entry("it remembers its first answer", "relu", REMEMBERS),
    Entry("every second launch is off", "relu", EVERY_SECOND),
    Entry("it loads twice", "relu", RELU.replace(RELU_OF, f"x[n - 1 - i] == 1e30f ? 1e30f : {RELU_OF}"),
          budget=Budget(loads_per_thread=1)),
    Entry("the sign of zero lost", "residual_add", ADD.replace("a[i] + b[i]", "a[i] + b[i] + 0.0f")),
    Entry("a sum of infinities", "residual_add", ADD.replace("a[i] + b[i]", "isinf(a[i]) ? a[i] : a[i] + b[i]")),
    Entry("a sum cut off", "residual_add", ADD.replace("a[i] + b[i]", "__fadd_rz(a[i], b[i])")),
    Entry("variance in one pass", "instance_norm", ONE_PASS, planes=True),
    Entry("no epsilon", "instance_norm", NORM.replace(" + 1e-5", ""), planes=True),
    Entry("the sample's variance", "instance_norm",
          NORM.replace("squares / size", "squares / (size > 1 ? size - 1 : 1)"), planes=True),
    Entry("no mean", "instance_norm", NORM.replace("plane[i] - mean", "plane[i]"), planes=True),
)  # fmt: skip


@contextmanager
def device(name: str) -> Iterator[None]:
    """Choose the device of what is compiled and checked."""
    before = os.environ.get(DEVICE_VARIABLE)
    os.environ[DEVICE_VARIABLE] = name
    try:
        yield
    finally:
        os.environ.pop(DEVICE_VARIABLE) if before is None else os.environ.update({DEVICE_VARIABLE: before})


def judge(entry: Entry, on: str) -> tuple[bool, str]:
    """Return whether an entry passes on a device, and the words of its verdict."""
    with device(on):
        budget = {"budget": entry.budget} if entry.budget else {}
        found = check(
            entry.operator, entry.launcher(), dtype=entry.dtype, seed=SEED, title=f"{entry.name}, {on}", **budget
        )
    return found.passed, found.words


@dataclass(frozen=True)
class Row:
    """The verdicts of an entry on both devices, and what to make of them."""

    name: str
    operator: str
    right: bool
    emulator: str
    gpu: str
    said: str

    @property
    def agrees(self) -> bool:
        """Whether nothing is to be said against it."""
        return not self.said


def compare(entry: Entry, other: str) -> Row:
    """Check an entry on the emulator and on the other device."""
    (passed, words), (passed_there, words_there) = judge(entry, "emulator"), judge(entry, other)
    said = ""
    if passed != passed_there or case_of(words) != case_of(words_there):
        said = "the verdicts differ"
    elif _but_for_the_last_bit(words) != _but_for_the_last_bit(words_there) and not entry.faults:
        said = "the words differ"
    elif passed != entry.right:
        said = "a cheat passes" if passed else "a right kernel fails"
    return Row(entry.name, entry.operator, entry.right, words, words_there, said)


def _but_for_the_last_bit(words: str) -> str:
    return re.sub(r"right, (to the last bit|within twice PyTorch's own error)", "right", words)


def case_of(words: str) -> str:
    """Return the case that a verdict names; "" where it names none."""
    found = re.search(r" in case '([^']*)'", words)
    return found[1] if found else ""


def main(argv: list[str] | None = None) -> int:
    """Check every entry on both devices, print, and return the exit status."""
    parser = argparse.ArgumentParser(description="Does check say the same on a GPU and on the emulator?")
    parser.add_argument("--json", metavar="PATH", type=Path, default=RECORD, help="the record that is written")
    parser.add_argument("--only", metavar="WORD", default="", help="entries whose name holds this word")
    parser.add_argument("--dry-run", action="store_true", help="without a GPU: the emulator on both sides; no record")
    options = parser.parse_args(argv)
    if not options.dry_run and not gpu.available():
        print("no NVIDIA GPU here: --dry-run holds the emulator against itself", file=sys.stderr)
        return 2
    chosen = [entry for entry in ENTRIES if options.only in entry.name]
    rows = [compare(entry, "emulator" if options.dry_run else "gpu") for entry in chosen]
    failed = [row for row in rows if not row.agrees]
    cheats = sum(not row.right for row in rows)
    print(
        f"{len(rows) - len(failed)} of {len(rows)} verdicts agree: {len(rows) - cheats} right kernels, {cheats} cheats"
    )
    for row in failed:
        print(f"{row.name}: {row.said}\n  emulator: {row.emulator}\n  other:    {row.gpu}")
    if not options.dry_run:
        content = {"machine": records.machine(), "seed": SEED, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    return 1 if failed or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
