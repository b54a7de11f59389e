"""Measures the emulator: a table of kernels, and with `--csv PATH` one row each.

    python tools/bench_emulator.py [--repeat 5] [--csv PATH] [--only NAME]

Columns: lanes in a launch, milliseconds (best of the repeats, after translation), million warp instructions per second,
GFLOP/s (two for a fused multiply-add), and how many times longer a launch takes with metrics, and with metrics and
races, on all blocks. Warp instructions are PTX-level.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import platform
import time
from pathlib import Path

import numpy as np

from styleforge_lib.runtime.compiler import compile_to_ptx
from styleforge_lib.runtime.emulator import Program, Trace

INSTANCE_NORM = r"""
extern "C" __global__ void instance_norm(const float* __restrict__ x, float* __restrict__ y, int n, float eps) {
  const float4* source = (const float4*)(x + (size_t)blockIdx.x * n);
  float4* target = (float4*)(y + (size_t)blockIdx.x * n);
  __shared__ float part[32];
  __shared__ float mean_, scale_;
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  float s = 0;
  for (int i = threadIdx.x; i < n / 4; i += blockDim.x) { float4 v = source[i]; s += v.x + v.y + v.z + v.w; }
  for (int o = 16; o; o >>= 1) s += __shfl_down_sync(~0u, s, o);
  if (lane == 0) part[warp] = s;
  __syncthreads();
  if (warp == 0) {
    s = lane < warps ? part[lane] : 0;
    for (int o = 16; o; o >>= 1) s += __shfl_down_sync(~0u, s, o);
    if (lane == 0) mean_ = s / n;
  }
  __syncthreads();
  float mean = mean_; s = 0;
  for (int i = threadIdx.x; i < n / 4; i += blockDim.x) {
    float4 v = source[i]; float a = v.x - mean, b = v.y - mean, c = v.z - mean, d = v.w - mean;
    s += a * a + b * b + c * c + d * d;
  }
  for (int o = 16; o; o >>= 1) s += __shfl_down_sync(~0u, s, o);
  if (lane == 0) part[warp] = s;
  __syncthreads();
  if (warp == 0) {
    s = lane < warps ? part[lane] : 0;
    for (int o = 16; o; o >>= 1) s += __shfl_down_sync(~0u, s, o);
    if (lane == 0) scale_ = rsqrtf(s / n + eps);
  }
  __syncthreads();
  float scale = scale_;
  for (int i = threadIdx.x; i < n / 4; i += blockDim.x) {
    float4 v = source[i];
    target[i] = make_float4((v.x - mean) * scale, (v.y - mean) * scale, (v.z - mean) * scale, (v.w - mean) * scale);
  }
}
"""

CONVOLUTION = r"""
#define TILE 16
#define OUT 8
extern "C" __global__ void conv3x3(const float* __restrict__ x, const float* __restrict__ w, float* __restrict__ y,
                                   int channels, int height, int width) {
  __shared__ float tile[TILE + 2][TILE + 2];
  __shared__ float weight[OUT][9];
  int tx = threadIdx.x, ty = threadIdx.y, id = ty * TILE + tx, first = blockIdx.z * OUT;
  float sum[OUT] = {};
  for (int c = 0; c < channels; c++) {
    for (int i = id; i < (TILE + 2) * (TILE + 2); i += TILE * TILE) {
      int r = i / (TILE + 2), q = i % (TILE + 2), v = blockIdx.y * TILE + r - 1, u = blockIdx.x * TILE + q - 1;
      v = v < 0 ? -v : v >= height ? 2 * height - 2 - v : v;
      u = u < 0 ? -u : u >= width ? 2 * width - 2 - u : u;
      tile[r][q] = x[(c * height + v) * width + u];
    }
    if (id < OUT * 9) weight[id / 9][id % 9] = w[((first + id / 9) * channels + c) * 9 + id % 9];
    __syncthreads();
    #pragma unroll
    for (int k = 0; k < 9; k++) {
      float v = tile[ty + k / 3][tx + k % 3];
      #pragma unroll
      for (int o = 0; o < OUT; o++) sum[o] += v * weight[o][k];
    }
    __syncthreads();
  }
  for (int o = 0; o < OUT; o++)
    y[((first + o) * height + blockIdx.y * TILE + ty) * width + blockIdx.x * TILE + tx] = sum[o];
}
"""

SAXPY = r"""
extern "C" __global__ void saxpy(const float* x, float* y, float a, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = a * x[i] + y[i];
}
"""

MATMUL = r"""
extern "C" __global__ void matmul(const float* a, const float* b, float* c, int n) {
  __shared__ float s[16][16], t[16][17];
  int x = threadIdx.x, y = threadIdx.y; float sum = 0;
  for (int k = 0; k < n; k += 16) {
    s[y][x] = a[(blockIdx.y * 16 + y) * n + k + x]; t[y][x] = b[(k + y) * n + blockIdx.x * 16 + x];
    __syncthreads();
    for (int j = 0; j < 16; j++) sum += s[y][j] * t[j][x];
    __syncthreads();
  }
  c[(blockIdx.y * 16 + y) * n + blockIdx.x * 16 + x] = sum;
}
"""


def cases() -> dict[str, tuple]:
    """Return name -> (source, grid, block, arguments, floating-point operations)."""
    rng = np.random.default_rng(0)
    plane = rng.standard_normal((32, 64, 64)).astype(np.float32)
    picture, kernel = (
        rng.standard_normal((32, 128, 128)).astype(np.float32),
        rng.standard_normal((32, 32, 3, 3)).astype(np.float32),
    )
    square = rng.standard_normal((256, 256)).astype(np.float32)
    long, short = rng.standard_normal(1_000_003).astype(np.float32), rng.standard_normal(256).astype(np.float32)
    size, i32 = np.float32(1e-5), np.int32
    side = (i32(128), i32(128))
    return {
        "instance norm 32x64x64": (INSTANCE_NORM, (32,), (256,), (plane, plane * 0, i32(4096), size), 8 * plane.size),
        "conv 3x3 32->32 128x128": (CONVOLUTION, (8, 8, 4), (16, 16), (picture, kernel, picture * 0, i32(32), *side),
                                    2 * 9 * 32 * picture.size),
        "matmul 256": (MATMUL, (16, 16), (16, 16), (square, square, square * 0, i32(256)), 2 * 256**3),
        "saxpy 1000003": (SAXPY, (3907,), (256,), (long, long * 0, np.float32(2), i32(long.size)), 2 * long.size),
        "saxpy 256, one block": (SAXPY, (1,), (256,), (short, short * 0, np.float32(2), i32(256)), 512),
    }  # fmt: skip


def best(repeat: int, function) -> float:
    """Return the shortest of some runs, in seconds."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def measure(name: str, case: tuple, repeat: int) -> dict[str, object]:
    """Return one row."""
    source, grid, block, arguments, operations = case
    program = Program(compile_to_ptx(source, arch="sm_80", name="bench.cu"), {"bench.cu": source})
    (kernel,) = program.kernels
    start = time.perf_counter()
    program.plan(kernel)
    translation = time.perf_counter() - start
    counting = Trace(races=False)
    program.launch(kernel, grid, block, arguments, trace=counting)
    instructions = sum(line.instructions for line in counting.lines().values())
    seconds = best(repeat, lambda: program.launch(kernel, grid, block, arguments))
    metrics = best(
        max(1, repeat // 2), lambda: program.launch(kernel, grid, block, arguments, trace=Trace(races=False))
    )
    races = best(1, lambda: program.launch(kernel, grid, block, arguments, trace=Trace()))
    return {
        "kernel": name,
        "lanes": int(np.prod(grid) * np.prod(block)),
        "translation_ms": round(1e3 * translation, 2),
        "ms": round(1e3 * seconds, 3),
        "warp_instructions": instructions,
        "mega_warp_instructions_per_s": round(instructions / seconds / 1e6, 2),
        "gflop_per_s": round(operations / seconds / 1e9, 3),
        "times_with_metrics": round(metrics / seconds, 2),
        "times_with_races": round(races / seconds, 2),
    }


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--csv", type=Path, help="append the rows to this file")
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    options = parser.parse_args()
    heads = ("lanes", "transl. ms", "ms", "Mwarp/s", "GFLOP/s", "metrics", "races")
    print(f"{'kernel':26s}" + "".join(f"{head:>11s}" for head in heads))
    rows = []
    for name, case in cases().items():
        if options.only not in name:
            continue
        row = measure(name, case, options.repeat)
        rows.append(row)
        speed, operations = row["mega_warp_instructions_per_s"], row["gflop_per_s"]
        print(
            f"{name:26s}{row['lanes']:11d}{row['translation_ms']:11.1f}{row['ms']:11.2f}{speed:11.1f}{operations:11.2f}"
            f"{row['times_with_metrics']:10.1f}x{row['times_with_races']:10.1f}x",
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
