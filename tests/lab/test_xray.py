"""xray(): known sectors, ways and lanes, faults and races at their lines, the table, and the pictures."""

import itertools
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text

from styleforge_lib import lab
from styleforge_lib.lab.machine import Machine
from styleforge_lib.lab.xray import XRay, sample_blocks, xray
from styleforge_lib.lab.xray_warp import bank_passes, sector_count
from styleforge_lib.runtime import compile_cuda
from styleforge_lib.runtime.emulator import Trace
from styleforge_lib.runtime.emulator.arithmetic import flops
from styleforge_lib.runtime.emulator.parse import Instruction

LINE = 3  # of the body in `kernel`


@pytest.fixture(autouse=True)
def on_the_emulator(monkeypatch):
    monkeypatch.setenv("STYLEFORGE_DEVICE", "emulator")


def kernel(body, name="k"):
    return compile_cuda(
        f'extern "C" __global__ void {name}(float* x, float* y, int n) {{\nint t = threadIdx.x;\n{body}\n}}\n'
    )


def look(body, *, grid=1, block=32, size=4096, n=None, **options):
    x, y = np.arange(1, size + 1, dtype=np.float32), np.zeros(size, np.float32)
    return xray(kernel(body), grid, block, (x, y, size if n is None else n), **options)


def line_of(text, mark):
    return next(number for number, line in enumerate(text.splitlines(), 1) if f"// {mark}" in line)


# --- sectors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "width", "sectors", "ideal"),
    [
        ("((float*)x)[t]", 4, 4, 4),
        ("x[2 * t]", 4, 8, 4),
        ("x[8 * t]", 4, 32, 4),
        ("x[32 * t]", 4, 32, 4),
        ("x[t + 1]", 4, 5, 4),
        ("x[127 - t]", 4, 4, 4),
        ("x[0]", 4, 1, 4),
        ("((float2*)x)[t].x + ((float2*)x)[t].y", 8, 8, 8),
        ("((float4*)x)[t].x + ((float4*)x)[t].w", 16, 16, 16),
        ("((float4*)x)[2 * t].x + ((float4*)x)[2 * t].w", 16, 32, 16),
        ("((unsigned char*)x)[t]", 1, 1, 1),
    ],
)
def test_sectors_of_a_load(index, width, sectors, ideal):
    found = look(f"float v = {index};\ny[t] = v;", block=128)
    asked = found.lines[LINE].accesses["global", "load"]
    assert (asked.requests, asked.units, asked.ideal, asked.bytes) == (4, 4 * sectors, 4 * ideal, 128 * width)
    assert found.lines[LINE].sectors_per_request == sectors
    assert [f.kind for f in found.advice] == (["uncoalesced"] if sectors > ideal else [])
    if sectors > ideal:
        assert (
            f"line {LINE}: a global load touches {sectors} sectors of 32 bytes where {ideal}"
            in found.advice[0].sentence
        )
    stored = found.lines[LINE + 1].accesses
    assert stored.keys() == {("global", "store")}
    assert stored["global", "store"].units == 16


def test_loads_and_stores_of_one_line_are_told_apart():
    found = look("y[32 * t] = x[t];")
    accesses = found.lines[LINE].accesses
    assert (accesses["global", "load"].units, accesses["global", "store"].units) == (4, 32)
    assert [f.sentence.partition(" touches")[0] for f in found.advice] == ["line 3: a global store"]
    assert "load 4 (4), store 32 (4)" in str(found)
    assert found.total.bytes == {"global": 256}
    assert "128 B read (128 B moved), 128 B written (1.02 kB moved)" in " ".join(str(found).split())
    assert "load 128 B, store 1.02 kB" in str(found)


# --- banks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("declared", "index", "ways", "ideal"),
    [
        ("float", "t", 1, 1),
        ("float", "31 - t", 1, 1),
        ("float", "0", 1, 1),
        ("float", "2 * t", 2, 1),
        ("float", "3 * t", 1, 1),
        ("float", "4 * t", 4, 1),
        ("float", "32 * t", 32, 1),
        ("float", "33 * t", 1, 1),
        ("double", "t", 2, 2),
        ("double", "2 * t", 4, 2),
        ("float4", "t", 4, 4),
        ("float4", "2 * t", 8, 4),
        ("unsigned char", "t", 1, 1),
        ("unsigned char", "128 * t", 32, 1),
    ],
)
def test_ways_of_a_shared_load(declared, index, ways, ideal):
    last = ".w" if declared == "float4" else ""
    found = look(
        f"__shared__ {declared} s[{4096 if declared == 'unsigned char' else 1056}]; for (int i = t; i < "
        f"sizeof(s) / 4; i += 32) ((float*)s)[i] = 1; __syncthreads();\n{declared} v = s[{index}];\n"
        f"y[t] = v{last}{' + v.x + v.y + v.z' if last else ''};"
    )
    asked = found.lines[LINE + 1].accesses["shared", "load"]
    assert (asked.requests, asked.units, asked.ideal) == (1, ways, ideal)
    assert found.lines[LINE + 1].ways_per_request == ways
    assert [f.kind for f in found.advice] == (["bank conflict"] if ways > ideal else [])
    visits = found._trace.warp(LINE + 1, 0, 0)
    assert len(bank_passes(visits[0])) == ways


TRANSPOSE = """extern "C" __global__ void transpose(const float* x, float* y, int h, int w) {
  __shared__ float tile[32][PITCH];
  int column = blockIdx.x * 32 + threadIdx.x, row = blockIdx.y * 32 + threadIdx.y;
  for (int k = 0; k < 32; k += 8)
    tile[threadIdx.y + k][threadIdx.x] = x[(row + k) * w + column];
  __syncthreads();
  column = blockIdx.y * 32 + threadIdx.x, row = blockIdx.x * 32 + threadIdx.y;
  for (int k = 0; k < 32; k += 8)
    y[(row + k) * h + column] = tile[threadIdx.x][threadIdx.y + k];
}
"""


@pytest.mark.parametrize(("pitch", "ways"), [(32, 32), (33, 1), (34, 2)])
def test_transpose(pitch, ways):
    x = torch.arange(64 * 96, dtype=torch.float32).reshape(64, 96)
    found = xray(compile_cuda(TRANSPOSE, defines={"PITCH": pitch}), (3, 2), (32, 8), (x, torch.zeros(96, 64), 64, 96))
    write, read = found.lines[5], found.lines[9]
    assert (write.sectors_per_request, write.ways_per_request) == (4, 1)
    assert (read.sectors_per_request, read.ways_per_request) == (4, ways)
    assert write.global_requests == read.shared_requests == 6 * 32
    assert not found.races
    assert not found.faults
    assert [(f.kind, f.line) for f in found.advice] == ([("bank conflict", 9)] if ways > 1 else [])


# --- lanes, loops, samples --------------------------------------------------------------------------------------------


def test_divergence():
    found = look("if (t % 32 < 16)\ny[t] += x[t];\nelse\nx[t] *= 2;", block=64)
    assert found.lines[LINE + 1].active_lanes == found.lines[LINE + 3].active_lanes == 16
    assert (found.lines[LINE].parted, found.lines[LINE].branches) == (2, 2)
    assert [(f.kind, f.line) for f in found.advice] == [("divergence", LINE)]
    assert f"line {LINE}: 2 of 2 warps part here" in found.advice[0].sentence


def test_whole_warps_that_go_different_ways_do_not_diverge():
    found = look("if (t / 32)\ny[t] += x[t];\nelse\nx[t] *= 2;", block=64)
    assert found.lines[LINE + 1].active_lanes == found.lines[LINE + 3].active_lanes == 32
    assert (found.total.parted, found.advice) == (0, ())
    assert "parted" not in str(found)


def test_the_last_warp_of_an_array_is_no_divergence():
    found = look("if (t < n)\ny[t] = x[t];", block=256, n=250)
    assert (found.lines[LINE].parted, found.lines[LINE].branches) == (1, 8)
    assert found.lines[LINE + 1].active_lanes == 250 / 8
    assert found.advice == ()


def test_a_grid_stride_loop_counts_every_turn():
    body = "int i = blockIdx.x * blockDim.x + t;\nfor (; i < n; i += 64)\ny[i] = 2 * x[i];"
    found = look(body, grid=2, size=640)
    load = found.lines[LINE + 2].accesses["global", "load"]
    assert (load.requests, load.units, load.bytes) == (20, 80, 640 * 4)
    assert found.lines[LINE + 2].instructions == 20 * (found.lines[LINE + 2].instructions // 20)
    once = look(body, grid=2, size=64)
    assert found.lines[LINE + 2].instructions == 10 * once.lines[LINE + 2].instructions


def test_a_line_that_nothing_ran_shows_nothing():
    found = look("if (n < 0)\ny[t] = x[t];\ny[0] = n;")
    assert LINE + 1 not in found.lines
    row = next(line for line in str(found).splitlines() if line.endswith("│ y[t] = x[t];"))
    assert re.fullmatch(r"\s+4\s+│ y\[t\] = x\[t\];", row)


def test_a_sample_of_blocks():
    body = "int i = blockIdx.x * blockDim.x + t;\ny[i] = x[i];"
    found = look(body, grid=100, size=3200, blocks=[0, 7, (99,)])
    assert found.blocks == (0, 7, 99)
    assert found.lines[LINE + 1].accesses["global", "store"].requests == 3
    assert "3 of 100 blocks looked at" in str(found)


def test_a_large_grid_is_sampled_with_its_corners():
    assert sample_blocks((8, 8, 1), 256) == list(range(64))
    chosen = sample_blocks((100, 50, 2), 256)
    assert 64 >= len(chosen) >= 32
    corners = {x + 100 * (y + 50 * z) for x in (0, 1, 98, 99) for y in (0, 1, 48, 49) for z in (0, 1)}
    assert corners <= set(chosen)
    found = look("y[blockIdx.x] = t;", grid=4000)  # one value too many is written in each block
    assert 0 < len(found.blocks) < 700
    assert {0, 1, 3998, 3999} <= set(found.blocks)


def test_a_cooperative_launch_runs_whole_and_is_no_race():
    """Blocks write what others have read, with the grid's barrier between."""
    module = compile_cuda("""#include <cooperative_groups.h>
extern "C" __global__ void turn(float* x, float* y, int n) {
    auto grid = cooperative_groups::this_grid();
    for (int i = grid.thread_rank(); i < n; i += grid.size()) y[i] = x[i];
    grid.sync();
    for (int i = grid.thread_rank(); i < n; i += grid.size()) x[n - 1 - i] = y[i];
    grid.sync();
    for (int i = grid.thread_rank(); i < n; i += grid.size()) y[n - 1 - i] = x[i] + 1.0f;
}""")
    x, y = np.arange(9000, dtype=np.float32), np.zeros(9000, np.float32)
    seen = xray(module, 100, 64, (x, y, 9000), cooperative=True)
    assert len(seen.blocks) == 100
    assert not seen.races
    assert not seen.faults
    assert xray(module, 100, 64, (x, y, 9000)).faults[0].kind == "trap"


def test_a_call_that_calls_itself_is_no_finding():
    text = """__device__ __noinline__ int ways(int n) { return n < 2 ? 1 : ways(n - 1) + ways(n - 2); }
extern "C" __global__ void k(int* x, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] = ways(i % 7);
}"""
    seen = xray(compile_cuda(text), 4, 32, (np.zeros(100, np.int32), 100))
    assert not seen.races
    assert not seen.faults


def test_blocks_that_wait_for_each_other_all_run():
    found = look(
        "__shared__ bool last;\nif (t == 0) last = atomicCAS((int*)x, (int)blockIdx.x, blockIdx.x + 1) == 3;\n"
        "__syncthreads(); if (last) y[t] = 1;",
        grid=3000,
    )
    assert len(found.blocks) == 3000


def test_the_missing_guard_of_a_large_grid_is_found():
    found = look("int i = blockIdx.x * blockDim.x + t;\ny[i] = x[i];", grid=5000, size=5000 * 32 - 1)
    assert [(f.kind, f.line, f.block) for f in found.faults] == [("out of bounds", LINE + 1, (4999, 0, 0))]


# --- races and faults -------------------------------------------------------------------------------------------------

WRONG = {
    "missing barrier": (
        "read after write",
        "__shared__ float s[64]; s[t] = x[t]; // OTHER\ny[t] = s[63 - t]; // HERE",
        "put __syncthreads() between them. The reader may come first",
    ),
    "barrier missing in a loop": (
        "write after read",
        "__shared__ float s[64]; float v = 0; for (int k = 0; k < 2; k++) {\ns[t] = x[t + k]; // HERE\n"
        "__syncthreads();\nv += s[63 - t]; // OTHER\n}\ny[t] = v;",
        "The writer may come first",
    ),
    "two writers": ("write after write", "y[0] = t; // HERE OTHER", "left to chance"),
    "missing guard": ("out of bounds", "y[t] = x[t + n - 32]; // HERE", "if (i < n)"),
    "shared overrun": (
        "out of bounds",
        "__shared__ float s[64];\ns[t + n / 100] = 1; // HERE\n__syncthreads(); y[t] = s[t];",
        "larger",
    ),
    "misaligned float4": (
        "misaligned",
        "float4 v = *(float4*)(x + 4 * t + 1); // HERE\ny[t] = v.x + v.w;",
        "every fourth float",
    ),
    "unwritten read": (
        "unwritten read",
        "__shared__ float s[65]; s[t] = 1; __syncthreads();\ny[t] = s[t + 1]; // HERE",
        "borders included",
    ),
    "divergent barrier": (
        "divergent barrier",
        "if (t < n / 100)\n__syncthreads(); // HERE\ny[t] = 1;",
        "out of the if",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_at_its_line(name):
    kind, body, lesson = WRONG[name]
    module = kernel(body)
    x, y = np.ones(1000, np.float32), np.zeros(1000, np.float32)
    found = xray(module, 1, 64, (x, y, 1000))
    (finding,) = (*found.races, *found.faults)
    assert (finding in found.races) == ("after" in kind)
    here = line_of(module.text, "HERE")
    assert (finding.kind, finding.line) == (kind, here)
    assert f"line {here}" in finding.sentence
    assert lesson in finding.sentence
    assert finding.block == (0, 0, 0)
    assert finding.threads
    if "OTHER" in body:
        assert finding.other_line == (here if "HERE OTHER" in body else line_of(module.text, "OTHER"))
        assert f"line {finding.other_line}" in finding.sentence
    shown = " ".join(str(found).split())
    assert f"✗ {finding.sentence}" in shown
    assert re.search(rf"✗ +{here} ", str(found))
    assert found.stopped == (bool(found.faults) and kind != "unwritten read")
    assert ("the run ended there" in shown) == found.stopped


def test_a_null_pointer():
    found = xray(kernel("y[t] = x[t];"), 1, 32, (None, np.zeros(32, np.float32), 1))
    assert [(f.kind, f.line) for f in found.faults] == [("null pointer", LINE)]
    assert "was None" in found.faults[0].sentence


def test_a_sound_kernel_has_nothing_to_show():
    found = look("__shared__ float s[64]; s[t] = x[t];\n__syncthreads();\ny[t] = s[63 - t];", block=64)
    assert (found.races, found.faults, found.advice, found.stopped) == ((), (), (), False)
    assert "✓ no race, no fault" in str(found)
    assert "✗" not in str(found)


# --- arguments --------------------------------------------------------------------------------------------------------


def test_the_arguments_keep_their_values():
    x, y = torch.ones(64), np.zeros(64, np.float32)
    y.flags.writeable = True
    xray(kernel("y[t] = x[t]; x[t] = 5;"), 1, 32, (x, y, 0))
    assert x.eq(1).all()
    assert (y == 0).all()


def test_arrays_that_share_memory_share_it_in_the_copy():
    body = "y[t] = 1; __syncthreads();\nif (x[t + 32] != 1) __trap();"
    x = torch.zeros(96)
    assert not xray(kernel(body), 1, 32, (x, x[32:], 0)).faults
    assert [f.kind for f in xray(kernel(body), 1, 32, (x, torch.zeros(96), 0)).faults] == ["trap"]
    y = np.zeros((3, 32), np.float32)
    assert not xray(kernel(body), 1, 32, (y, y[1:2], 0)).faults


def test_a_view_keeps_its_alignment():
    x = torch.zeros(100)
    for elements, sectors in ((0, 4), (1, 5), (4, 5), (8, 4)):  # a sector is eight floats
        found = xray(kernel("y[t] = x[t];"), 1, 32, (x[elements:], torch.zeros(32), 0))
        assert found.lines[LINE].accesses["global", "load"].units == sectors


def test_a_numpy_array_begins_a_sector_as_on_a_gpu():
    """Wherever malloc has put it; a view of it lies as far from a sector's start as from its array's."""
    for more in range(20):
        x, y = np.zeros(40 + 4 * more, np.float32), np.zeros(32, np.float32)
        assert xray(kernel("y[t] = x[t];"), 1, 32, (x, y, 0)).total.sectors == 8
        assert xray(kernel("y[t] = x[t];"), 1, 32, (x[4:], y, 0)).total.sectors == 9
        trace = Trace()
        kernel("y[t] = x[t];").only.emulate(1, 32, (x[4:], y, 0), trace=trace)
        assert trace.lines()[LINE].sectors == 9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_other_dtypes(dtype):
    names = {torch.bfloat16: "__nv_bfloat16", torch.float16: "__half", torch.int64: "long long", torch.bool: "bool"}
    text = (
        "#include <cuda_bf16.h>\n#include <cuda_fp16.h>\n"
        f'extern "C" __global__ void k(const {names[dtype]}* x, {names[dtype]}* y) {{\n'
        "y[threadIdx.x] = x[threadIdx.x];\n}\n"
    )
    found = xray(compile_cuda(text), 1, 32, (torch.ones(32, dtype=dtype), torch.zeros(32, dtype=dtype)))
    assert found.total.bytes == {"global": 64 * dtype.itemsize}


@pytest.mark.parametrize(
    ("grid", "block", "args", "error", "says"),
    [
        (1, 32, (1, 2), TypeError, "2 arguments were given"),
        (1, 32, (torch.zeros(4, dtype=torch.float64), torch.zeros(4), 1), TypeError, r"x\.to\(torch\.float32\)"),
        (1, 32, (torch.zeros(4, 4).T, torch.zeros(4), 1), ValueError, "not contiguous"),
        (0, 32, (torch.zeros(4), torch.zeros(4), 1), ValueError, "no blocks"),
        (1, 2048, (torch.zeros(4), torch.zeros(4), 1), ValueError, "more than 1024"),
        ("a", 32, (torch.zeros(4), torch.zeros(4), 1), TypeError, "grid must be"),
    ],
)
def test_a_launch_that_does_not_fit_is_refused(grid, block, args, error, says):
    with pytest.raises(error, match=says):
        xray(kernel("y[t] = x[t];"), grid, block, args)


@pytest.mark.parametrize(("blocks", "says"), [([], "empty"), ([2], "block 2"), ([(0, 1)], "grid"), ([-1], "block -1")])
def test_blocks_that_do_not_fit_are_refused(blocks, says):
    with pytest.raises(ValueError, match=says):
        look("y[t] = x[t];", grid=2, blocks=blocks)


def test_only_kernels_are_looked_at():
    with pytest.raises(TypeError, match="kernel must be a Kernel"):
        xray(print, 1, 1, ())
    two = compile_cuda('extern "C" __global__ void a() {}\nextern "C" __global__ void b() {}\n')
    with pytest.raises(TypeError, match=r"choose one with \.kernel"):
        xray(two, 1, 1, ())
    assert isinstance(xray(two.kernel("b"), 1, 1, ()), XRay)


# --- arithmetic and traffic -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "flops"),
    [
        ("y[t] = x[t] + 1;", {"float32": 1}),
        ("y[t] = x[t] * x[t + 1] + x[t + 2];", {"float32": 2}),
        ("y[t] = x[t] / x[t + 1];", {"float32": 1}),
        ("y[t] = rsqrtf(x[t]);", {"float32": 1}),
        ("y[t] = fmaxf(x[t], 0.0f);", {}),
        ("y[t] = t + 3 * n;", {}),
        ("y[t] = (double)x[t] * x[t + 1] + 1e-9;", {"float64": 2}),
        ("((__half2*)y)[t] = __hfma2(((__half2*)x)[t], ((__half2*)x)[t + 1], ((__half2*)x)[t + 2]);", {"float16": 4}),
        ("((__half*)y)[t] = ((__half*)x)[t] + ((__half*)x)[t + 1];", {"float16": 1}),
        ("atomicAdd(y + t, x[t]);", {"float32": 1}),
        ("if (t < 8) y[t] = x[t] + 1;", {"float32": 0.25}),
    ],
)
def test_floating_point_operations(body, flops):
    module = compile_cuda(
        "#include <cuda_fp16.h>\n"
        f'extern "C" __global__ void k(float* x, float* y, int n) {{ int t = threadIdx.x;\n{body}\n}}\n'
    )
    found = xray(module, 2, 32, (np.ones(128, np.float32), np.zeros(128, np.float32), 5))
    assert found.total.flops == {precision: 64 * count for precision, count in flops.items()}
    assert ("FLOP" in str(found)) == bool(flops)


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", ("float16", 2 * 16 * 8 * 16 / 32)),
        ("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", ("tf32", 2 * 16 * 8 * 8 / 32)),
        ("red.global.add.v4.f32", ("float32", 4)),
        ("atom.global.add.noftz.v2.f16x2", ("float16", 4)),
        ("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", ("bfloat16", 2 * 16 * 8 * 16 / 32)),
        ("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32", None),
        ("wmma.mma.sync.aligned.row.col.m16n16k16.f32.f32", ("float16", 2 * 16 * 16 * 16 / 32)),
        ("wmma.load.a.sync.aligned.row.m16n16k16.f16", None),
        ("wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16", ("float16", 2 * 64 * 128 * 16 / 128)),
        ("fma.rn.f32", ("float32", 2)),
        ("fma.rn.bf16x2", ("bfloat16", 4)),
        ("mad.lo.s32", None),
        ("add.s64", None),
        ("min.f32", None),
        ("cvt.rn.f16.f32", None),
        ("red.global.add.f32", ("float32", 1)),
        ("atom.global.exch.b32", None),
    ],
)
def test_operations_of_an_instruction(instruction, expected):
    opcode, *words = instruction.split(".")
    assert flops(Instruction(opcode, tuple(words), ())) == expected


def test_a_matrix_product_counts_its_shape():
    text = """#include <mma.h>
extern "C" __global__ void product(const __half* a, const __half* b, float* c) {
  nvcuda::wmma::fragment<nvcuda::wmma::matrix_a, 16, 16, 16, __half, nvcuda::wmma::row_major> left;
  nvcuda::wmma::fragment<nvcuda::wmma::matrix_b, 16, 16, 16, __half, nvcuda::wmma::row_major> right;
  nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float> sum;
  nvcuda::wmma::fill_fragment(sum, 0.0f);
  nvcuda::wmma::load_matrix_sync(left, a, 16);
  nvcuda::wmma::load_matrix_sync(right, b, 16);
  nvcuda::wmma::mma_sync(sum, left, right, sum);
  nvcuda::wmma::store_matrix_sync(c, sum, 16, nvcuda::wmma::mem_row_major);
}
"""
    half = torch.ones(16, 16, dtype=torch.float16)
    found = xray(compile_cuda(text), 1, 32, (half, half.clone(), torch.zeros(16, 16)))
    assert found.total.flops == {"float16": 2 * 16**3}
    assert found.dram_bytes == {"load": 2 * 512, "store": 1024}
    assert found.intensity == 2 * 16**3 / 2048


def test_bytes_that_dram_moves_at_least():
    found = look("y[t] = x[8 * t] + x[8 * t + 1];", block=64, grid=2)  # both blocks the same
    assert found.dram_bytes == {"load": 64 * 32, "store": 256}
    assert found.total.sectors * 32 == 2 * (2 * 64 * 32 + 256), "moved without caches: by each request"
    assert found.intensity == 128 / (64 * 32 + 256)
    found = look("atomicAdd(y + t % 8, x[0]);")
    assert found.dram_bytes == {"load": 64, "store": 32}, "an atomic reads and writes its sector"
    x = torch.zeros(64)
    found = xray(kernel("y[t] = x[t + 1] + 1;"), 1, 32, (x[1:], torch.zeros(64), 0))
    assert found.dram_bytes == {"load": 5 * 32, "store": 128}, "a view begins inside a sector"


# --- the roofline -----------------------------------------------------------------------------------------------------

GPU = Machine("a card", 1e12, {"float32": 2e13, "float16": 1e14}, "somewhere")


def test_a_kernel_stands_on_the_roof():
    found = look("y[t] = x[t] + 1;")
    widget = found.roofline(GPU)
    (point,) = widget.drawing["points"]
    assert point["label"] == "k at most"
    assert "125 GFLOP/s at 0.125 FLOP/byte is 100 %" in point["words"]
    (point,) = found.roofline(GPU, milliseconds=1e-6).drawing["points"]
    assert point["label"] == "k"
    assert "32.0 GFLOP/s at 0.125 FLOP/byte is 25.6 %" in point["words"]


def test_a_sampled_launch_is_scaled_to_the_whole():
    found = look("y[32 * blockIdx.x + t] = x[32 * blockIdx.x + t] + 1;", grid=100, blocks=[0, 1])
    (point,) = found.roofline(GPU, milliseconds=1e-3).drawing["points"]
    assert "3.20 GFLOP/s" in point["words"]


def test_caches_make_two_points():
    found = look("float v = x[t];\nfor (int i = 0; i < 8; i++) v = v * x[i] + 1;\ny[t] = v;", block=1024)
    words = [point["words"] for point in found.roofline(GPU).drawing["points"]]
    assert [w.partition(":")[0] for w in words] == ["k at most, each sector once", "k at most, no cache"]


def test_a_recorded_gpu_is_found_by_its_name():
    found = look("y[t] = x[t] + 1;")
    assert "H200" in found.roofline("h200").machine["name"]
    with pytest.raises(LookupError, match=r"ceilings of 'Voodoo2'; recorded GPUs: .*H200"):
        found.roofline("Voodoo2")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("y[t] = fmaxf(x[t], 0.0f);", "executed no floating-point operation"),
        ("__shared__ float s[32]; s[t] = t; float v = s[t] + 1; if (v < 0) __trap();", "touched no global memory"),
        (
            "y[t] = (double)x[t] * x[t] + 1e-9;",
            "computes in float64, and the record of a card has ceilings for float32, float16",
        ),
    ],
)
def test_no_place_under_the_roof(body, says):
    with pytest.raises(ValueError, match=says):
        look(body).roofline(GPU)


# --- the timeline -----------------------------------------------------------------------------------------------------

IN_TURN = """float v = t;
if (t < 32) for (int i = 0; i < 20; i++) v = v * x[i] + 1; // LONG
__syncthreads(); // FIRST
if (t % 32 < 8) v = v / x[t];
__syncthreads(); // SECOND
y[t] = v;"""


def timeline_of(found, block=0):
    return found._trace.timeline(block)


def test_warps_wait_for_the_last_one():
    found = look(IN_TURN, block=96, grid=2)
    seen = timeline_of(found, 1)
    assert [row.warp for row in seen.rows] == [0, 1, 2]
    assert [line for _, line in seen.barriers] == [LINE + 2, LINE + 4]
    first = seen.barriers[0][0]
    assert [wait for wait in seen.rows[0].waits if wait.line == LINE + 2] == [], "the slowest waits for nobody"
    for row in seen.rows[1:]:
        (wait,) = (wait for wait in row.waits if wait.line == LINE + 2)
        assert wait.end == first
        assert wait.end - wait.start >= 20
        assert {run.lanes for run in row.runs} >= {32, 8}
    for row in seen.rows:
        spans = sorted([*((r.start, r.end) for r in row.runs), *((w.start, w.end) for w in row.waits)])
        assert spans[0][0] == 0
        assert all(one[1] == two[0] for one, two in itertools.pairwise(spans)), "no gap and no overlap"
    executed = sum(run.end - run.start for row in seen.rows for run in row.runs)
    assert 2 * executed == found.total.instructions, "both blocks do the same"
    assert seen.whole


def test_copies_on_their_way():
    text = """#include <cuda_pipeline.h>
extern "C" __global__ void k(const float* x, float* y) {
  __shared__ float s[2][32]; int t = threadIdx.x;
  __pipeline_memcpy_async(s[0] + t, x + t, 4); __pipeline_commit(); // ONE
  __pipeline_memcpy_async(s[1] + t, x + t, 4); __pipeline_commit(); // TWO
  __pipeline_wait_prior(1);
  y[t] = s[0][t];
  __pipeline_wait_prior(LAST);
  y[t] += s[0][t];
}
"""
    one, two = line_of(text, "ONE"), line_of(text, "TWO")
    for last, ends in ((0, True), (1, False)):
        arguments = (np.ones(32, np.float32), np.zeros(32, np.float32))
        seen = timeline_of(xray(compile_cuda(text, defines={"LAST": last}), 1, 32, arguments))
        first, second = seen.rows[0].copies
        assert (first.line, second.line) == (one, two)
        assert first.start < second.start < first.end
        assert (second.end is not None) == ends
        if ends:
            assert second.end > first.end


def test_a_barrier_that_never_opens():
    found = look("if (t < 32) {\n__syncthreads();\ny[t] = 1; }", block=64)
    assert [f.kind for f in found.faults] == ["divergent barrier"]
    waits = [row.waits for row in timeline_of(found).rows]
    assert [(wait.end, wait.line) for wait in waits[0]] == [(None, LINE + 1)]
    assert not waits[1]
    assert "wait for ever" in drawn_text(found.timeline())


def test_the_timeline_is_drawn():
    figure = look(IN_TURN, block=96, grid=3).timeline((2, 0, 0))
    words = drawn_text(figure)
    assert isinstance(figure, Figure)
    for part in ("k, block (2,0,0): 2 barriers", "warp 2", f"line {LINE + 2}", "It is not time", "waits at a barrier"):
        assert part in words
    assert "copies" not in words


def drawn_text(figure):
    figure.canvas.draw()
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def test_only_blocks_that_were_looked_at_have_a_timeline():
    found = look(IN_TURN, block=32, grid=4, blocks=[3])
    assert "block (3,0,0)" in drawn_text(found.timeline())
    with pytest.raises(ValueError, match=r"block 1 was not looked at: give xray\(..., blocks=\[1\]\)"):
        found.timeline(1)
    with pytest.raises(ValueError, match="not in the grid"):
        found.timeline(4)


def test_a_long_run_keeps_its_beginning(monkeypatch):
    monkeypatch.setattr("styleforge_lib.runtime.emulator.timeline.KEPT_BYTES", 3000)
    found = look("float v = 0; for (int i = 0; i < n; i++) v += x[i & 31] * v;\ny[t] = v;", n=1000)
    seen = timeline_of(found)
    assert not seen.whole
    assert 0 < seen.end < found.total.instructions
    assert "only its beginning was kept" in drawn_text(found.timeline())


# --- what is shown ----------------------------------------------------------------------------------------------------

RELU = """extern "C" __global__ void relu(float* x, int n) {
  int i = blockIdx.x * 64 + threadIdx.x;
  if (i < n)
    x[i] = fmaxf(x[i], 0.0f);
}
"""
GOLDEN = """\
x-ray of relu: grid (2,1,1), block (64,1,1); all blocks looked at
✓ no race, no fault

  line  instructions  lanes  parted                      sectors (ideal)                    moved
     1  █▋         8     32                                                                        │ extern "C" __global__ void relu(float* x, int n) {
     2  ████▏     20   30.6                                                                        │   int i = blockIdx.x * 64 + threadIdx.x;
     3  █▋         8     32  1 of 4                                                                │   if (i < n)
     4  █████     24     25          load 3.25 (3.25), store 3.25 (3.25)  load 416 B, store 416 B  │     x[i] = fmaxf(x[i], 0.0f);
     5  █          5   25.6                                                                        │ }

65 warp instructions, 28.5 lanes active on average; global memory: 400 B read (416 B moved), 400 B written
(416 B moved).
Counts are PTX-level: instructions of warps before ptxas merges, vectorises and predicates them; a GPU's
profiler counts its own code.
lanes: how many of 32 took part, on average. parted: warps that left a branch both ways. sectors: the 32-byte
pieces that one request of a warp touches, and (ideal) the fewest that hold as many bytes; moved: all of them,
before any cache.
"""  # noqa: E501
# Instructions and the lanes of them all, by line: these alone differ from compiler to compiler, and are set.
COUNTS = {1: (8, 256), 2: (20, 612), 3: (8, 256), 4: (24, 600), 5: (5, 128)}


def test_the_text_of_a_small_kernel():
    found = xray(compile_cuda(RELU), 2, 64, (np.ones(100, np.float32), 100))
    assert found.lines.keys() == COUNTS.keys()
    assert (found.lines[3].branches, found.lines[3].parted) == (4, 1)
    for line, (instructions, lanes) in COUNTS.items():
        found.lines[line].instructions, found.lines[line].lanes = instructions, lanes
    found.total.instructions, found.total.lanes = 65, 1852
    assert str(found).splitlines() == GOLDEN.splitlines()
    assert repr(found).startswith("<XRay relu: 2 blocks, 0 races, 0 faults")


class Table(HTMLParser):
    """What is left of HTML where every style is stripped: rows of cells' text, and which tags are open."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.open = [], []
        self.feed(re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL))

    def handle_starttag(self, tag, attributes):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data.replace("\xa0", " ")


def test_html_is_whole_and_legible_without_styles():
    found = look("y[32 * t] = x[t]; // OTHER\n  if (t < n && n > 0) y[63] = t; // HERE")
    bundle = found._repr_mimebundle_()
    assert bundle["text/plain"] == str(found)
    assert " style=" not in bundle["text/html"]
    table = Table(bundle["text/html"])
    assert not table.open
    width = len(table.rows[0]) + 1  # instructions: a bar and a number
    rows = {row[1]: row for row in table.rows[1:] if len(row) == width}
    assert rows["3"][0] == "▲"
    assert rows["3"][-1] == "y[32 * t] = x[t]; // OTHER"
    assert set(rows["3"][2]) <= set("▏▎▍▌▋▊▉█")
    assert rows["4"][0] == "✗"
    assert rows["4"][-1].startswith("  if (t < n && n > 0)")
    said = [row[1] for row in table.rows[1:] if len(row) == 2]
    assert said == [f"▲ {found.advice[0].sentence}", f"✗ {found.races[0].sentence}"]
    assert "PTX-level" in bundle["text/html"]


def test_html_escapes_the_source():
    found = look('if (t < n && n > 0) y[t] = x[t]; // <script>alert("&amp;")</script>')
    text = found._repr_mimebundle_()["text/html"]
    assert "<script" not in text
    rows = [row[-1].replace("  ", " ") for row in Table(text).rows]
    assert any('<script>alert("&amp;")</script>' in re.sub(r"\s+", " ", row) for row in rows)


def test_long_gaps_are_folded():
    body = "y[t] = x[t];\n" + "// nothing\n" * 30 + "y[t] += 1;"
    text = str(look(body))
    assert "⋮ lines 6 to 31" in text or "⋮ lines" in text
    assert text.count("// nothing") < 6


def test_show_prints_in_a_terminal(capsys):
    found = look("y[t] = x[t];")
    found.show()
    assert capsys.readouterr().out == f"{found}\n"


def test_show_displays_in_a_notebook(monkeypatch):
    shown = []
    module = sys.modules["styleforge_lib.lab.xray"]
    monkeypatch.setattr(module, "get_ipython", lambda: object())
    monkeypatch.setattr(module, "display", shown.append)
    found = look("y[t] = x[t];")
    found.show()
    assert shown == [found]


def test_lab_exports_the_function():
    assert lab.xray is xray


# --- one warp ---------------------------------------------------------------------------------------------------------


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts] + [axes.get_title() for axes in figure.axes]


def test_a_warp_is_drawn_into_sectors():
    found = look("y[8 * t] = x[t + 1];", block=64)
    figure = found.warp(LINE, warp=1)
    assert isinstance(figure, Figure)
    load, store = (axes.get_title(loc="left") for axes in figure.axes)
    assert load == "global load from x, 4 bytes a lane: 5 sectors of 32 bytes, 4 would hold it; 80 % of them used"
    assert store == "global store to y, 4 bytes a lane: 32 sectors of 32 bytes, 4 would hold it; 12 % of them used"
    assert {str(lane) for lane in range(32)} <= set(texts(figure))
    assert "byte 128" in texts(figure)
    assert "block (0,0,0), warp 1" in figure.get_suptitle()


def test_a_warp_is_drawn_into_banks():
    found = look("__shared__ float s[64];\ns[2 * t] = x[t];\n__syncthreads(); y[t] = s[2 * t];")
    load, store = found.warp(LINE + 1).axes
    assert load.get_title(loc="left").startswith("global load")
    assert store.get_title(loc="left") == "shared store to s, 4 bytes a lane: 2 passes over the 32 banks, 1 would do"
    assert {"pass 1", "pass 2"} <= {text.get_text() for text in store.texts}


def test_passes_serve_every_lane_once_and_no_bank_twice():
    rng = np.random.default_rng(0)
    from styleforge_lib.runtime.emulator.addresses import Visit

    for width in (1, 2, 4, 8, 16):
        for _ in range(20):
            units = rng.integers(0, 200, 32)
            offsets = np.where(rng.random(32) < 0.8, units * width, -1)
            visit = Visit(1, "shared", "load", width, "s", tuple(offsets.tolist()), 0, 0)
            served = []
            unit = max(4, width)
            for one in bank_passes(visit):
                banks = [address % (128 // unit) for address in one]
                assert len(banks) == len(set(banks))
                served += [lane for lanes in one.values() for lane in lanes]
                assert all(offsets[lane] // unit == address for address, lanes in one.items() for lane in lanes)
            assert sorted(served) == np.flatnonzero(offsets >= 0).tolist()


def test_turns_of_a_loop_that_differ_are_drawn_apart():
    found = look(
        "__shared__ float s[1024]; for (int i = t; i < 1024; i += 32) s[i] = 1;\n__syncthreads(); float v = 0;\n"
        "#pragma unroll 1\nfor (int k = 1; k < n; k *= 2)\nv += s[t * k];\ny[t] = v;",
        n=32,
    )
    titles = [axes.get_title(loc="left") for axes in found.warp(LINE + 4).axes]
    passes = [
        "1 pass over the 32 banks, free of conflicts",
        *(f"{w} passes over the 32 banks, 1 would do" for w in (2, 4, 8)),
    ]
    assert titles == [
        f"shared load from s, 4 bytes a lane{time}: {text}"
        for time, text in zip(["", ", time 2", ", time 3", ", time 4"], passes, strict=True)
    ]


def test_pictures_and_counts_agree():
    """The table's sums are those of the pictures of all warps, drawn by another piece of code."""
    found = look("if (t % 5) y[(t * t) % 97 * 3] = x[(7 * t) % 51];\n", block=96)
    sums = {"load": [0, 0], "store": [0, 0]}
    for block, warp in found._trace.visits(LINE):
        for visit in found._trace.warp(LINE, block, warp):
            sectors, ideal = sector_count(visit)
            sums[visit.verb][0] += sectors
            sums[visit.verb][1] += ideal
    for verb, (sectors, ideal) in sums.items():
        asked = found.lines[LINE].accesses["global", verb]
        assert [asked.units, asked.ideal] == [sectors, ideal]


def test_the_first_turns_of_a_loop_are_kept():
    found = look("#pragma unroll 1\nfor (int k = 0; k < n; k++)\ny[t] += x[t + k * 32 % 512];", n=9)
    visits = [v for v in found._trace.warp(LINE + 2, 0, 0) if v.verb == "load" and v.array == "x"]
    assert visits[0].offsets == tuple(range(0, 128, 4))
    assert visits[1].offsets == tuple(range(128, 256, 4))
    assert [v.number for v in visits] == [0, 1, 2, 3]
    assert isinstance(found.warp(LINE + 2), Figure)


def test_lanes_that_take_no_part():
    found = look("if (t >= 40)\ny[t] = x[t];", block=64)
    with pytest.raises(ValueError, match=r"warp 0 touched no memory at line 4.*warp 1"):
        found.warp(LINE + 1, warp=0)
    (visit, _) = found._trace.warp(LINE + 1, 0, 1)
    assert visit.offsets == (-1,) * 8 + tuple(range(160, 256, 4))
    assert isinstance(found.warp(LINE + 1), Figure)


def test_a_line_without_memory_is_refused():
    found = look("y[t] = x[t];")
    with pytest.raises(ValueError, match="line 2 touched no global or shared memory; lines that did: 3"):
        found.warp(2)
    with pytest.raises(ValueError, match="block 5 is not in the grid"):
        found.warp(LINE, block=5)


# --- the cell magic ---------------------------------------------------------------------------------------------------


def test_the_cell_magic_shows_and_launches(capsys):
    pytest.importorskip("IPython")
    from styleforge_lib.lab.magic import XRayed

    module = XRayed(kernel("y[t] = x[t] + 1;"))
    x, y = torch.ones(32), torch.zeros(32)
    module(1, 32, (x, y, 0))
    assert "x-ray of k: grid (1,1,1)" in capsys.readouterr().out
    assert y.eq(2).all()
