# ruff: noqa: E501 (tables and kernels keep one case to a line)
"""Counts per line against what the programming guide says, and no false alarm on right kernels."""

import numpy as np
import pytest
from conftest import compile_ptx

from styleforge_lib.runtime.emulator import Program, Trace


def traced(text, grid, block, *args, shared_bytes=0, races=True, arch="compute_80", blocks=None):
    trace = Trace(races=races)
    Program(compile_ptx(text, arch)).launch(
        Program(compile_ptx(text, arch)).kernels[0],
        grid,
        block,
        args,
        shared_bytes=shared_bytes,
        trace=trace,
        blocks=blocks,
    )
    return trace


# access -> sectors per request (32 lanes), ideal
GLOBAL = {
    "x[i]": (4, 4),
    "x[i + 1]": (5, 4),
    "x[2 * i]": (8, 4),
    "x[8 * i]": (32, 4),
    "x[32 * i]": (32, 4),
    "x[i & 1]": (1, 4),
    "x[i / 2]": (2, 4),
    "x[31 - i]": (4, 4),
}


@pytest.mark.parametrize("access", GLOBAL)
def test_sectors_per_request(access):
    text = f'extern "C" __global__ void k(const float* x, float* y) {{ int i = threadIdx.x;\n float v = {access};\n y[blockIdx.x * 32 + i] = v; }}'
    metrics = traced(text, (3,), (32,), np.zeros(2048, np.float32), np.zeros(96, np.float32)).lines()
    sectors, ideal = GLOBAL[access]
    line = metrics[2]
    assert (line.global_requests, line.sectors, line.ideal_sectors) == (3, 3 * sectors, 3 * ideal)
    assert line.bytes == {"global": 3 * 128}
    assert metrics[3].sectors_per_request == 4


def test_sectors_of_vectors_and_bytes():
    text = """extern "C" __global__ void k(const float4* x, const unsigned char* b, float* y) { int i = threadIdx.x;
      float4 v = x[i];
      int w = b[i];
      y[i] = v.x + v.w + w; }"""
    metrics = traced(
        text, (1,), (64,), np.zeros((64, 4), np.float32), np.zeros(64, np.uint8), np.zeros(64, np.float32)
    ).lines()
    assert (metrics[2].global_requests, metrics[2].sectors, metrics[2].ideal_sectors) == (2, 32, 32)
    assert (metrics[3].global_requests, metrics[3].sectors, metrics[3].ideal_sectors) == (2, 2, 2)


# index -> ways per request
SHARED = {"i": 1, "2 * i": 2, "4 * i": 4, "32 * i": 32, "33 * i": 1, "3 * i": 1, "i / 4": 1, "0": 1, "(i & 1) * 32": 2}


@pytest.mark.parametrize("index", SHARED)
def test_ways_per_shared_request(index):
    text = f"""extern "C" __global__ void k(float* y) {{ extern __shared__ float s[]; int i = threadIdx.x;
      for (int j = i; j < 1060; j += 32) s[j] = j;
      __syncthreads();
      float v = s[{index}];
      y[i] = v; }}"""
    y = np.zeros(32, np.float32)
    metrics = traced(text, (1,), (32,), y, shared_bytes=4240).lines()
    assert metrics[4].ways_per_request == SHARED[index]
    assert metrics[2].ways_per_request == 1
    assert np.array_equal(y, [eval(index.replace("/", "//")) for i in range(32)])


@pytest.mark.parametrize(("kind", "width", "ways", "ideal"), [("float2", 2, 2, 2), ("float4", 4, 4, 4)])
def test_wide_shared_accesses_go_in_phases(kind, width, ways, ideal):
    text = f"""extern "C" __global__ void k({kind}* y) {{ __shared__ {kind} s[64]; int i = threadIdx.x; s[i] = y[i]; __syncwarp();
      {kind} v = s[i ^ 1];
      y[i] = v; }}"""
    metrics = traced(text, (1,), (32,), np.zeros((32, width), np.float32)).lines()
    lines = metrics.values()  # the compiler may charge the load to the line that uses it
    assert sum(line.shared_requests for line in lines) == 2
    assert (sum(line.ways for line in lines), sum(line.ideal_ways for line in lines)) == (2 * ways, 2 * ideal)


def test_executed_instructions_and_active_lanes():
    text = """extern "C" __global__ void k(float* y, int n) { int i = blockIdx.x * blockDim.x + threadIdx.x; float v = 0;
      if (threadIdx.x < 8)
        for (int j = 0; j < n; j++)
          asm volatile("add.f32 %0, %0, 0f3F800000;" : "+f"(v));
      y[i] = v; }"""
    y = np.zeros(64, np.float32)
    metrics = traced(text, (1,), (64,), y, np.int32(10)).lines()
    assert y[:9].tolist() == [10] * 8 + [0]
    assert (metrics[4].instructions, metrics[4].lanes, metrics[4].active_lanes) == (10, 80, 8)
    assert metrics[5].active_lanes == 32


def test_metrics_of_chosen_blocks_and_of_partial_warps():
    text = 'extern "C" __global__ void k(float* y, int n) { int i = blockIdx.x * blockDim.x + threadIdx.x;\n if (i < n) y[i] = 1; }'
    y = np.zeros(70, np.float32)
    metrics = traced(text, (3,), (32,), y, np.int32(70), blocks=[2]).lines()
    assert (metrics[2].global_requests, metrics[2].sectors, metrics[2].bytes) == (1, 1, {"global": 24})
    assert y.sum() == 6


RIGHT = {
    "double buffer": """extern "C" __global__ void k(float* x, float* y) { __shared__ float s[2][64]; int i = threadIdx.x; float t = 0; s[0][i] = x[i];
        for (int r = 0; r < 4; r++) { __syncthreads(); t += s[r & 1][63 - i]; s[~r & 1][i] = x[i] + r; } y[blockIdx.x * 64 + i] = t; }""",
    "warp-synchronous scan": """extern "C" __global__ void k(float* x, float* y) { __shared__ float s[64]; int i = threadIdx.x, l = i & 31; s[i] = x[i]; __syncwarp();
        for (int o = 1; o < 32; o *= 2) { float t = l >= o ? s[i - o] : 0; __syncwarp(); s[i] += t; __syncwarp(); } y[blockIdx.x * 64 + i] = s[i]; }""",
    "histogram by atomics": """extern "C" __global__ void k(float* x, float* y) { __shared__ int s[8]; int i = threadIdx.x; if (i < 8) s[i] = 0; __syncthreads();
        atomicAdd(&s[i * 7 & 7], 1); __syncthreads(); y[blockIdx.x * 64 + i] = s[i & 7]; }""",
    "everybody writes the same flag": """extern "C" __global__ void k(float* x, float* y) { __shared__ int s; int i = threadIdx.x; if (i == 0) s = 0; __syncthreads();
        if (x[i] > -1) s = 1; __syncthreads(); y[blockIdx.x * 64 + i] = s; }""",
    "the last block sums": """__device__ unsigned ticket = 0; extern "C" __global__ void k(float* x, float* y) { __shared__ bool last; int i = threadIdx.x;
        if (i == 0) { y[64 + blockIdx.x] = x[blockIdx.x]; __threadfence(); last = atomicAdd(&ticket, 1) == gridDim.x - 1; } __syncthreads();
        if (last) { volatile float* v = y; y[i] = v[64 + (i & 3)]; } }""",
    "transpose": """extern "C" __global__ void k(float* x, float* y) { __shared__ float s[8][9]; int u = threadIdx.x & 7, v = threadIdx.x / 8; s[v][u] = x[v * 8 + u];
        __syncthreads(); y[blockIdx.x * 64 + v * 8 + u] = s[u][v]; }""",
    "halves in one word": """#include <cuda_fp16.h>
        extern "C" __global__ void k(float* x, float* y) { __shared__ __half s[64]; int i = threadIdx.x; s[i] = __float2half(x[i]); __syncthreads();
        y[blockIdx.x * 64 + i] = __half2float(s[i ^ 1]); s[i] = __float2half(1.f); }""",
    "tree in one array": """extern "C" __global__ void k(float* x, float* y) { __shared__ float s[64]; int i = threadIdx.x; s[i] = x[i]; __syncthreads();
        for (int o = 32; o; o /= 2) { if (i < o) s[i] += s[i + o]; __syncthreads(); } y[blockIdx.x * 64 + i] = s[0]; }""",
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("arch", ["compute_75", "compute_90"])
def test_right_kernels_raise_no_alarm(name, arch):
    if name == "halves in one word":  # each thread overwrites what its neighbour reads: that one is wrong
        text = RIGHT[name].replace("s[i] = __float2half(1.f);", "")
        trace = traced(text, (4,), (64,), np.ones(64, np.float32), np.zeros(512, np.float32), arch=arch)
        assert not trace.races
        trace = traced(RIGHT[name], (4,), (64,), np.ones(64, np.float32), np.zeros(512, np.float32), arch=arch)
        assert [race.kind for race in trace.races] == ["write after read"]
        return
    trace = traced(RIGHT[name], (4,), (64,), np.ones(64, np.float32), np.zeros(512, np.float32), arch=arch)
    assert not trace.races, trace.races[0].sentence
    assert not trace.faults, trace.faults[0].sentence


def test_tracing_changes_no_result():
    text = RIGHT["warp-synchronous scan"]
    x = np.arange(64, dtype=np.float32)
    plain, seen = np.zeros(256, np.float32), np.zeros(256, np.float32)
    Program(compile_ptx(text)).launch("k", (4,), (64,), (x, plain))
    traced(text, (4,), (64,), x, seen)
    assert np.array_equal(plain, seen)
    assert np.array_equal(plain[:32], np.cumsum(x[:32]))
