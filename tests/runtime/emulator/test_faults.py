# ruff: noqa: E501 (tables and kernels keep one case to a line)
"""Planted faults, each named at its line, and their corrected twins, which raise and report nothing.

A kernel marks the lines that the emulator must name with `// HERE` and `// OTHER`; its twin is the same text with the
wrong line replaced.
"""

import re
from dataclasses import dataclass

import numpy as np
import pytest
from conftest import compile_ptx

from styleforge_lib.runtime.emulator import EmulatorFault, Program, Trace


@dataclass
class Planted:
    kind: str
    wrong: str
    repair: tuple[str, str]
    grid: int = 2
    block: int = 64
    shared: int = 0
    size: int = 100
    says: str = ""
    raised: bool = True


def kernel(body: str) -> str:
    return f'extern "C" __global__ void kernel(float* x, float* y, int n) {{\n{body}\n}}\n'


FAULTS = {
    "missing guard": Planted(
        "out of bounds",
        kernel("int i = blockIdx.x * blockDim.x + threadIdx.x;\n y[i] = x[i]; // HERE"),
        ("y[i] = x[i];", "if (i < n) y[i] = x[i];"),
        says="global load of 4 bytes at line 3: 28 threads, e.g. block (1,0,0) thread (36,0,0), byte 400 of 400 in x",
    ),
    "index before the array": Planted(
        "out of bounds",
        kernel("int i = blockIdx.x * blockDim.x + threadIdx.x;\n if (i < n) y[i] = x[i - 1]; // HERE"),
        ("x[i - 1]", "x[i ? i - 1 : 0]"),
        says="byte -4 of 400 in x",
    ),
    "shared overrun": Planted(
        "out of bounds",
        kernel("__shared__ float a[64], b[64]; b[threadIdx.x] = 1; a[threadIdx.x] = 2; __syncthreads();\n"
               " y[threadIdx.x] = a[threadIdx.x + n / 50] + b[threadIdx.x]; // HERE"),
        ("threadIdx.x + n / 50", "(threadIdx.x + n / 50) % 64"),
        says="byte 256 of 256 in a",
    ),
    "dynamic shared memory too small": Planted(
        "out of bounds",
        kernel("extern __shared__ float a[];\n a[threadIdx.x + 1] = 1; // HERE\n __syncthreads(); if (threadIdx.x) y[threadIdx.x] = a[threadIdx.x];"),
        ("a[threadIdx.x + 1] = 1;", "a[threadIdx.x] = 1;"),
        shared=256,
    ),
    "local array overrun": Planted(
        "out of bounds",
        kernel("float a[4] = {1, 2, 3, 4}; int k = (int)x[0];\n y[threadIdx.x] = a[k + 4]; // HERE"),
        ("k + 4", "(k + 3) & 3"),
    ),
    "misaligned float4": Planted(
        "misaligned",
        kernel("int i = threadIdx.x; if (i > 8) return;\n float4 v = *(float4*)(x + 4 * i + 1); // HERE\n y[i] = v.x + v.w;"),
        ("4 * i + 1", "4 * i"),
        says="multiple of 16",
    ),
    "null pointer": Planted(
        "out of bounds",
        kernel("float* p = (float*)((long long)y * (n / 1000));\n p[threadIdx.x] = 1; // HERE"),
        ("n / 1000", "n / 100"),
        says="null pointer",
    ),
    "divergent barrier: half of the threads leave": Planted(
        "divergent barrier",
        kernel("if (threadIdx.x < n / 5) {\n __syncthreads(); // HERE\n y[threadIdx.x] = 1; }"),
        ("n / 5", "n"),
    ),
    "divergent barrier: two lines": Planted(
        "divergent barrier",
        kernel("if (threadIdx.x < n / 5) { y[threadIdx.x] = 1;\n __syncthreads(); // HERE\n y[threadIdx.x] += x[1]; }"
               " else { y[threadIdx.x] = 2;\n __syncthreads(); // OTHER\n y[threadIdx.x] *= x[2]; }"),
        ("threadIdx.x < n / 5", "n > 5"),
        grid=1,
    ),
    "deadlock of two named barriers": Planted(
        "deadlock",
        kernel("if (threadIdx.x < 32) {\n asm volatile(\"bar.sync 1, 64;\"); // HERE\n } else {\n asm volatile(\"bar.sync 2, 64;\"); // OTHER\n }"),
        ("bar.sync 2", "bar.sync 1"),
    ),
    "a mask that names absent threads": Planted(
        "inactive lane",
        kernel("float v = x[threadIdx.x];\n if (threadIdx.x < 16)\n v += __shfl_down_sync(0xffffffff, v, 8); // HERE\n y[threadIdx.x] = v;"),
        ("0xffffffff", "0xffff"),
    ),
    "a shuffle from a lane that has exited": Planted(
        "inactive lane",
        kernel("float v = x[threadIdx.x]; if (threadIdx.x % 32 >= n / 5) return;\n"
               " v += __shfl_down_sync(0xffffffff, v, 16); // HERE\n y[threadIdx.x] = v;"),
        ("threadIdx.x % 32 >= n / 5", "threadIdx.x % 32 >= n"),
        says="has exited or does not exist",
    ),
    "a shuffle from a lane beyond the block": Planted(
        "inactive lane",
        kernel("float v = x[threadIdx.x];\n v += __shfl_down_sync(0xffffffff, v, 16); // HERE\n y[threadIdx.x] = v;"),
        ("__shfl_down_sync(0xffffffff, v, 16)", "__shfl_down_sync(0xffffffff, v, 16, 16)"),
        block=48,
    ),
    "a thread outside its own mask": Planted(
        "inactive lane",
        kernel("float v = x[threadIdx.x];\n v += __shfl_xor_sync(0xffff, v, 1); // HERE\n y[threadIdx.x] = v;"),
        ("0xffff", "0xffffffff"),
    ),
    "waiting for a flag that nobody sets": Planted(
        "deadlock",
        kernel("volatile float* flag = x;\n while (flag[0] == 0) { // HERE\n } y[threadIdx.x] = 1;"),
        ("== 0", "!= 0"),
        says="has polled memory",
    ),
    "assertion": Planted(
        "assertion",
        kernel("\n assert(x[threadIdx.x] > 0); // HERE\n y[threadIdx.x] = 1;"),
        ("> 0", ">= 0"),
        says="assertion `x[threadIdx.x] > 0` failed",
    ),
    "trap": Planted("trap", kernel("if (x[0] == 0)\n __trap(); // HERE\n y[0] = 1;"), ("== 0", "== 1")),
    "missing barrier": Planted(
        "read after write",
        kernel("__shared__ float a[64];\n a[threadIdx.x] = x[threadIdx.x]; // OTHER\n\n y[threadIdx.x] = a[63 - threadIdx.x]; // HERE"),
        ("OTHER\n\n", "OTHER\n __syncthreads();\n"),
        raised=False,
    ),
    "missing barrier before the tile is overwritten": Planted(
        "write after read",
        kernel("__shared__ float a[64]; float s = 0; for (int k = 0; k < 2; k++) {\n a[threadIdx.x] = x[threadIdx.x] + k; // HERE\n"
               " __syncthreads();\n s += a[63 - threadIdx.x]; // OTHER\n\n }\n y[threadIdx.x] = s;"),
        ("OTHER\n\n", "OTHER\n __syncthreads();\n"),
        raised=False,
    ),
    "two threads write one place": Planted(
        "write after write",
        kernel("__shared__ float a[64];\n a[threadIdx.x / 2] = x[threadIdx.x] + threadIdx.x; // HERE OTHER\n"
               " __syncthreads(); if (threadIdx.x < 32) y[threadIdx.x] = a[threadIdx.x];"),
        ("threadIdx.x / 2", "threadIdx.x"),
        raised=False,
    ),
    "two lines write one place": Planted(
        "write after write",
        kernel("__shared__ float a[64];\n a[threadIdx.x] = 1; // OTHER\n\n a[63 - threadIdx.x] = threadIdx.x; // HERE\n"
               " __syncthreads(); y[threadIdx.x] = a[threadIdx.x];"),
        ("OTHER\n\n", "OTHER\n __syncthreads();\n"),
        raised=False,
    ),
    "missing __syncwarp": Planted(
        "read after write",
        kernel("__shared__ float a[64];\n a[threadIdx.x] = x[threadIdx.x]; // OTHER\n\n y[threadIdx.x] = a[threadIdx.x ^ 1]; // HERE"),
        ("OTHER\n\n", "OTHER\n __syncwarp();\n"),
        raised=False,
        says="__syncwarp",
    ),
    "warps that __syncwarp does not join": Planted(
        "read after write",
        kernel("__shared__ float a[64];\n a[threadIdx.x] = x[threadIdx.x]; // OTHER\n __syncwarp();\n y[threadIdx.x] = a[threadIdx.x ^ 32]; // HERE"),
        ("__syncwarp", "__syncthreads"),
        raised=False,
    ),
    "an atomic beside a plain read": Planted(
        "read after write",
        kernel("__shared__ int a; if (threadIdx.x == 0) a = 0; __syncthreads();\n atomicAdd(&a, 1); // OTHER\n\n y[threadIdx.x] = a; // HERE"),
        ("OTHER\n\n", "OTHER\n __syncthreads();\n"),
        raised=False,
    ),
    "blocks that write one place": Planted(
        "write after write",
        kernel("int i = threadIdx.x;\n y[i] = blockIdx.x; // HERE OTHER"),
        ("int i = threadIdx.x;", "int i = blockIdx.x * blockDim.x + threadIdx.x; if (i < n)"),
        raised=False,
        says="blocks run in any order",
    ),
    "global exchange with no barrier": Planted(
        "read after write",
        kernel("if (blockIdx.x) return; int i = threadIdx.x;\n x[i] = i; // OTHER\n\n y[i] = x[63 - i]; // HERE"),
        ("OTHER\n\n", "OTHER\n __syncthreads();\n"),
        raised=False,
    ),
    "a warp overwrites what it has yet to read": Planted(
        "write after read",
        kernel("__shared__ float a[64]; a[threadIdx.x] = x[threadIdx.x]; __syncthreads();\n float v = a[threadIdx.x ^ 1]; // OTHER\n\n"
               " a[threadIdx.x] = v + threadIdx.x; // HERE\n y[threadIdx.x] = v;"),
        ("OTHER\n\n", "OTHER\n __syncwarp();\n"),
        raised=False,
        says="__syncwarp",
    ),
    "two warps write one place": Planted(
        "write after write",
        kernel("__shared__ float a[32];\n a[threadIdx.x % 32] = threadIdx.x; // HERE OTHER\n __syncthreads(); if (threadIdx.x < 32) y[threadIdx.x] = a[threadIdx.x];"),
        ("a[threadIdx.x % 32]", "if (threadIdx.x < 32) a[threadIdx.x % 32]"),
        raised=False,
        says="__syncthreads",
    ),
    "a block overwrites global memory that it has yet to read": Planted(
        "write after read",
        kernel("if (blockIdx.x) return; int i = threadIdx.x;\n float v = x[63 - i]; // OTHER\n\n x[i] = v + i; // HERE"),
        ("OTHER\n\n", "OTHER\n __syncthreads();\n"),
        raised=False,
        says="global race (write after read) on x",
    ),
    "an array shifted in place": Planted(
        "write after read",
        kernel("if (blockIdx.x) return; int i = threadIdx.x;\n x[i] = x[i + 1] + 1; // HERE OTHER"),
        ("x[i] = x[i + 1] + 1;", "float v = x[i + 1] + 1; __syncthreads(); x[i] = v;"),
        raised=False,
    ),
    "blocks that read their neighbour's half-finished work": Planted(
        "write after read",
        kernel("int i = blockIdx.x * 32 + threadIdx.x;\n float v = x[i ^ 32]; // OTHER\n if (v < 9) __syncthreads();\n x[i] = v + i; // HERE"),
        ("x[i] = v + i;", "y[i] = v + i;"),
        block=32,
        raised=False,
        says="which block (1,0,0) thread (0,0,0) read",
    ),
    "a result that is read without being published": Planted(
        "read after write",
        kernel("__shared__ bool last; if (threadIdx.x == 0) {\n x[blockIdx.x] = 7 + blockIdx.x; // OTHER\n\n"
               " last = atomicAdd((int*)y, 1) == 1; }\n __syncthreads(); if (last && threadIdx.x < 2)\n y[1 + threadIdx.x] = x[threadIdx.x]; // HERE"),
        ("OTHER\n\n", "OTHER\n __threadfence();\n"),
        raised=False,
        says="publish with __threadfence() and an atomic",
    ),
    "a result that is read without a look at the flag": Planted(
        "read after write",
        kernel("int i = blockIdx.x; if (i == 0 && threadIdx.x == 0) {\n x[0] = 7; // OTHER\n __threadfence(); *(volatile float*)y = 1; }\n if (i == 1 && threadIdx.x == 0) {\n\n"
               " y[1] = x[0]; // HERE\n }"),
        ("{\n\n", "{ while (*(volatile float*)y == 0) {}\n"),
        raised=False,
    ),
    "misaligned shared memory": Planted(
        "misaligned",
        kernel("__shared__ float a[68]; a[threadIdx.x] = 1; a[threadIdx.x + 4] = 1; __syncthreads();\n float2 v = *(float2*)(a + threadIdx.x + 1); // HERE\n y[threadIdx.x] = v.x + v.y;"),
        ("a + threadIdx.x + 1", "a + 2 * (threadIdx.x / 2)"),
        says="multiple of 8",
    ),
    "unwritten shared memory": Planted(
        "unwritten read",
        kernel("__shared__ float a[65]; a[threadIdx.x] = 1; __syncthreads();\n y[threadIdx.x] = a[threadIdx.x + 1]; // HERE"),
        ("threadIdx.x + 1", "threadIdx.x"),
        raised=False,
        says="has never been written",
    ),
    "unwritten local array": Planted(
        "unwritten read",
        kernel("float a[8]; for (int k = 0; k < n / 20; k++) a[k] = x[k];\n y[threadIdx.x] = a[(int)x[0] + 6]; // HERE"),
        ("n / 20", "n / 12"),
        raised=False,
    ),
}  # fmt: skip


def line_of(text: str, mark: str) -> int:
    return next(number for number, line in enumerate(text.split("\n"), 1) if re.search(rf"//.*\b{mark}\b", line))


def launch(text: str, case: Planted, trace=None, arch: str = "compute_80"):
    program = Program(compile_ptx(text, arch))
    x, y = np.zeros(case.size, np.float32), np.zeros(case.size, np.float32)
    program.launch(
        "kernel",
        (case.grid,),
        (case.block,),
        (x, y, np.int32(case.size)),
        shared_bytes=case.shared,
        trace=trace,
        names=("x", "y", "n"),
    )


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_named_at_its_line(name):
    case = FAULTS[name]
    trace = Trace()
    if case.raised:
        with pytest.raises(EmulatorFault) as caught:
            launch(case.wrong, case)
        found = caught.value
    else:
        launch(case.wrong, case, trace)
        (found,) = [*trace.races, *trace.faults]
    assert found.kind == case.kind
    assert found.line == line_of(case.wrong, "HERE")
    assert f"line {found.line}" in found.sentence
    if "OTHER" in case.wrong:
        assert found.other_line == line_of(case.wrong, "OTHER")
        assert f"line {found.other_line}" in found.sentence
    assert case.says in found.sentence
    assert found.block is not None
    assert found.threads


@pytest.mark.parametrize("name", FAULTS)
def test_corrected_twin_is_silent(name):
    case = FAULTS[name]
    text = case.wrong.replace(*case.repair)
    assert text != case.wrong
    trace = Trace()
    launch(text, case, trace)
    assert not trace.races, trace.races[0].sentence
    assert not trace.faults, trace.faults[0].sentence


@pytest.mark.parametrize("arch", ["compute_75", "compute_90", "compute_100"])
def test_faults_on_other_architectures(arch):
    for name in ("missing guard", "misaligned float4", "divergent barrier: two lines", "missing barrier"):
        case = FAULTS[name]
        trace = Trace()
        if case.raised:
            with pytest.raises(EmulatorFault) as caught:
                launch(case.wrong, case, arch=arch)
            found = caught.value
        else:
            launch(case.wrong, case, trace, arch=arch)
            (found,) = trace.races
        assert (found.kind, found.line) == (case.kind, line_of(case.wrong, "HERE"))


def test_stale_value_of_an_unnamed_lane_is_a_nan():
    """Reading a lane outside the mask is allowed to give anything; here it gives NaN, so using it shows."""
    text = kernel("float v = 1; if (threadIdx.x < 8) { v += __shfl_down_sync(0xff, v, 4); y[threadIdx.x] = v; }")
    program = Program(compile_ptx(text))
    y = np.zeros(32, np.float32)
    program.launch("kernel", (1,), (32,), (y, y, np.int32(32)))
    assert y[:4].tolist() == [2, 2, 2, 2]
    assert np.isnan(y[4:8]).all()


def test_unknown_instruction_is_refused_by_name_and_line():
    text = kernel('\n asm volatile("fence.proxy.tensormap::generic.release.gpu;");')
    with pytest.raises(NotImplementedError, match=r"`fence\.proxy\.tensormap_generic\.release\.gpu` \(line 3\)"):
        launch(text, FAULTS["trap"], arch="compute_90a")


def test_header_lines_are_charged_to_the_caller():
    text = "#include <cuda_fp16.h>\n" + kernel("\n __half h = __float2half(x[1]);\n y[0] = __half2float(__hadd(h, h));")
    trace = Trace()
    launch(text, FAULTS["trap"], trace)
    assert {4, 5} <= set(trace.lines()) <= {2, 4, 5, 6}
