"""Check on a GPU what the runtime promises there, and measure what a launch costs.

Contents: the kernels, the checks in their order (each a function under ``@check``), the command line. A check returns a
sentence, or raises; one that fails hides no other. Exits with 1 if any failed, 2 without a GPU.

    python tools/check_gpu.py
    python tools/check_gpu.py --json check_gpu.json --record     # the launch costs become rows of records/
    python tools/check_gpu.py --only launch
"""

import argparse
import json
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import torch

from styleforge_lib.lab import records
from styleforge_lib.paths import data_folder
from styleforge_lib.runtime import compile_cuda, gpu
from styleforge_lib.runtime.resources import LIMITS

LAUNCH_LIMIT_US = 8.0  # the promise for an H200's host; other hosts are measured, not judged
KERNELS = """
#include <cuda_fp16.h>
#include <cuda_bf16.h>
struct Pair { int first; float second; };

extern "C" __global__ void scale(const float* x, float* y, const float* z, float s, int n, int offset) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = s * x[i] + (z ? z[i] : 0.0f) + offset;
}

extern "C" __global__ void numbers(double* out, bool f, short s, unsigned u, long long q, double d, __half h,
                                   __nv_bfloat16 b, Pair p, float4 v) {
  double values[] = {double(f), double(s), double(u), double(q), d, double(__half2float(h)),
                     double(__bfloat162float(b)), double(p.first), double(p.second), double(v.w)};
  for (int i = 0; i < 10; ++i) out[i] = values[i];
}

extern "C" __global__ void reverse(float* x, int n) {
  extern __shared__ float tile[];
  for (int i = threadIdx.x; i < n; i += blockDim.x) tile[i] = x[i];
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += blockDim.x) x[i] = tile[n - 1 - i];
}

extern "C" __global__ void halve(float* x) { x[threadIdx.x] = x[threadIdx.x] * 0.5f; }
extern "C" __global__ void quads(const float4* x, float4* y) { y[threadIdx.x] = x[threadIdx.x]; }

extern "C" __global__ void __launch_bounds__(128) shared_static(float* x) {
  __shared__ float tile[3000];
  tile[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  x[threadIdx.x] = tile[127 - threadIdx.x];
}

extern "C" __global__ void registers(float* x) {
  float a[96];
  #pragma unroll
  for (int i = 0; i < 96; ++i) a[i] = x[i * 64 + threadIdx.x];
  __syncthreads();
  #pragma unroll
  for (int i = 0; i < 96; ++i) x[i * 64 + threadIdx.x] = a[95 - i] * a[i] + i * a[i];
}

extern "C" __global__ void __launch_bounds__(1024) spilling(float* x) {
  float a[96];
  #pragma unroll
  for (int i = 0; i < 96; ++i) a[i] = x[i * 64 + threadIdx.x];
  __syncthreads();
  #pragma unroll
  for (int i = 0; i < 96; ++i) x[i * 64 + threadIdx.x] = a[95 - i] * a[i] + i * a[i];
}
"""

GRID = """
#include <cooperative_groups.h>
extern "C" __global__ void turn(const float* x, float* y, float* z, int n) {
  auto grid = cooperative_groups::this_grid();
  for (int i = grid.thread_rank(); i < n; i += grid.size()) y[i] = x[i] + 1.0f;
  grid.sync();
  for (int i = grid.thread_rank(); i < n; i += grid.size()) z[i] = y[n - 1 - i];
}
"""

# Each block of `follow` lets the next kernel begin, and then takes its time before it writes.
CHAIN = """#include "common/programmatic_launch.cuh"
__device__ unsigned long long now() {
  unsigned long long ns;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
  return ns;
}
extern "C" __global__ void follow(const int* x, int* y, unsigned long long* began, unsigned long long* ended, int n) {
  launch_dependents();
  if (blockIdx.x + threadIdx.x == 0) *began = now();
  wait_for_earlier_kernels();
  for (unsigned long long start = now(); now() - start < 20000;) {}
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) y[i] = x[i] + 1;
  __syncthreads();
  if (blockIdx.x + threadIdx.x == 0) *ended = now();
}
extern "C" __global__ void hasty(int* x) { x[threadIdx.x] = 1; }
"""

VARIABLES = """
__constant__ float weights[4];
__device__ int counter = 5;
extern "C" __global__ void weigh(float* x) {
  x[threadIdx.x] *= weights[threadIdx.x];
  atomicAdd(&counter, 1);
}
"""

CHECKS: list[tuple[str, Callable]] = []


def check(function: Callable) -> Callable:
    """Add a function to the checks, in the order of this file."""
    CHECKS.append((function.__name__, function))
    return function


class Bench:
    """What the checks share: the compiled kernels, and three arrays of 4096 floats."""

    def __init__(self):
        self.module = compile_cuda(KERNELS, name="check_gpu.cu")
        self.rows: list[records.Measurement] = []

    def __getattr__(self, name: str):
        return self.module.kernel(name)

    def arrays(self, n: int = 4096):
        """Return x, y and z for `scale`."""
        return (
            torch.randn(n, device="cuda"),
            torch.full((n,), float("nan"), device="cuda"),
            torch.randn(n, device="cuda"),
        )


def ensure(truth: bool, what: str) -> None:
    """Raise AssertionError, which `python -O` keeps."""
    if not truth:
        raise AssertionError(what)


def refused(kernel, args, words: str, *, grid=(1,), block=(32,), shared_bytes: int = 0) -> None:
    """Hold that a launch is refused with these words, and that nothing ran."""
    torch.cuda.synchronize()
    try:
        kernel(grid, block, args, shared_bytes=shared_bytes)
    except (TypeError, ValueError) as error:
        ensure(words in str(error), f"refused, but in other words: {error}")
    else:
        raise AssertionError(f"not refused, where {words!r} was expected")


# ----------------------------------------------------------------------------------------------------------------------
# The machine, and right results


@check
def compiled_for_the_card(bench: Bench) -> str:
    """Check that the cubin is made for this card's architecture and loads."""
    ensure(bench.module.device == "gpu", f"the device is {bench.module.device}")
    ensure(bench.module.arch == gpu.card_arch(), f"compiled for {bench.module.arch}")
    return f"{bench.module.arch}, {len(bench.module.cubin)} bytes of cubin"


@check
def python_float_into_float(bench: Bench) -> str:
    """Check that a Python float arrives as a float, an int and a NumPy number too."""
    x, y, z = bench.arrays()
    for s in (1.5, 2, np.float64(0.25), np.float32(3), np.float16(0.5), True):
        bench.scale((16,), (256,), (x, y, z, s, 4096, 1))
        # One fused multiply-add rounds once; float64 rounded at the end is that, but for a double rounding.
        expected = (float(s) * x.double() + z.double()).float() + 1
        torch.testing.assert_close(y, expected, rtol=3e-7, atol=3e-7)
    return "1.5, 2, np.float64, np.float32, np.float16, True"


@check
def every_kind_of_number(bench: Bench) -> str:
    """Check that every scalar type, a struct and a vector by value arrive whole."""
    out = torch.zeros(10, dtype=torch.float64, device="cuda")
    pair, vector = struct.pack("<if", -7, 0.5), np.array([1, 2, 3, 4.5], np.float32)
    bench.numbers((1,), (1,), (out, True, -5, 2**32 - 1, -(2**40), 0.1, 1.5, -2.5, pair, vector.tobytes()))
    expected = [1, -5, 2**32 - 1, -(2**40), 0.1, 1.5, -2.5, -7, 0.5, 4.5]
    ensure(out.tolist() == expected, f"{out.tolist()} is not {expected}")
    return "bool, short, unsigned, long long, double, half, bfloat16, struct, float4"


@check
def null_pointer(bench: Bench) -> str:
    """Check that None arrives as a null pointer."""
    x, y, _ = bench.arrays()
    bench.scale((16,), (256,), (x, y, None, 2.0, 4096, 0))
    ensure(torch.equal(y, 2 * x), "wrong values")
    return "z = None"


@check
def variables(bench: Bench) -> str:
    """Check that variables of the module are written and read, from NumPy and torch, in the order of the stream."""
    module = compile_cuda(VARIABLES, name="variables.cu")
    weights, counter, x = module.variable("weights"), module.variable("counter"), torch.ones(4, device="cuda")
    ensure(int(counter.read(np.zeros(1, np.int32))[0]) == 5, "not the initial value")
    for values in (np.array([1, 2, 3, 4], np.float32), torch.tensor([4.0, 3, 2, 1]), torch.full((4,), 0.5).cuda()):
        weights.write(values)
        module(1, 4, (x,))
    ensure(x.tolist() == [2, 3, 3, 2], f"{x.tolist()} is not [2, 3, 3, 2]")
    ensure(int(counter.read(torch.zeros(1, dtype=torch.int32, device="cuda"))) == 17, "the launches did not count")
    ensure(weights.read(torch.zeros(4)).tolist() == [0.5] * 4, "what was written is not read")
    return "__constant__ and __device__; NumPy, torch on the CPU and on the card"


@check
def denormals(bench: Bench) -> str:
    """Check that Denormals are kept, as PyTorch keeps them."""
    x = torch.full((32,), 3e-39, device="cuda")
    expected = x * 0.5
    bench.halve((1,), (32,), (x,))
    ensure(torch.equal(x, expected) and float(x[0]) > 0, f"{float(x[0])}")
    return f"3e-39 / 2 = {float(x[0]):.3g}"


@check
def all_the_shared_memory(bench: Bench) -> str:
    """Check that a block gets all the dynamic shared memory that the card has, and not a byte more."""
    most = torch.cuda.get_device_properties(0).shared_memory_per_block_optin
    n = most // 4
    x = torch.randn(n, device="cuda")
    expected = x.flip(0)
    bench.reverse((1,), (1024,), (x, n), shared_bytes=most)
    ensure(torch.equal(x, expected), "wrong values")
    refused(bench.reverse, (x, n), "more than the", shared_bytes=most + 1)
    table = LIMITS.get(gpu.card_arch().rstrip("a"))
    ensure(table is None or table.shared_per_block == most, f"the table says {table}, the driver {most}")
    return f"{most} bytes"


@check
def cupy_arrays(bench: Bench) -> str:
    """Check that CuPy arrays are taken beside tensors."""
    import cupy

    x, y, z = cupy.arange(4096, dtype=cupy.float32), torch.zeros(4096, device="cuda"), torch.ones(4096, device="cuda")
    cupy.cuda.get_current_stream().synchronize()
    bench.scale((16,), (256,), (x, y, z, 2.0, 4096, 0))
    ensure(torch.equal(y.cpu(), 2 * torch.arange(4096.0) + 1), "wrong values")
    refused(bench.scale, (x.astype("float64"), y, z, 2.0, 4096, 0), "needs float32, not float64")
    refused(bench.scale, (x[::2], y, z, 2.0, 4096, 0), "not C-contiguous")
    return "cupy.ndarray"


# ----------------------------------------------------------------------------------------------------------------------
# The traps


@check
def trap_strides(bench: Bench) -> str:
    """Check that views that are not contiguous are refused, channels_last by name."""
    x, y, z = bench.arrays()
    refused(bench.scale, (x[::2], y, z, 1.0, 8, 0), "not contiguous")
    refused(bench.scale, (x.view(64, 64).t(), y, z, 1.0, 8, 0), "not contiguous")
    nhwc = torch.zeros(1, 4, 32, 32, device="cuda").to(memory_format=torch.channels_last)
    refused(bench.scale, (nhwc, y, z, 1.0, 8, 0), "channels_last")
    bench.scale((16,), (256,), (nhwc.permute(0, 2, 3, 1), y, z, 1.0, 4096, 0))
    ensure(torch.equal(y, z), "the permuted view gives wrong values")
    return "stepped, transposed, channels_last"


@check
def trap_dtype(bench: Bench) -> str:
    """Check that a wrong dtype is refused."""
    x, y, z = bench.arrays()
    for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int32):
        refused(bench.scale, (x.to(dtype), y, z, 1.0, 8, 0), "needs float32")
    refused(bench.scale, (x, y, z, 1.0, 8.0, 0), "needs an integer")
    refused(bench.scale, (x, y, z, 1.0, 2**31, 0), "does not fit")
    refused(bench.scale, (x, y, z, 1e39, 8, 0), "does not fit")
    refused(bench.scale, (x, y, z, x[0], 8, 0), "needs a number")
    return "arrays and numbers"


@check
def trap_device(bench: Bench) -> str:
    """Check that an array on the CPU is refused."""
    x, y, z = bench.arrays()
    refused(bench.scale, (x.cpu(), y, z, 1.0, 8, 0), "on the CPU")
    refused(bench.scale, (x.cpu(), y.cpu(), z.cpu(), 1.0, 8, 0), "on the CPU")
    refused(bench.scale, (x, y.cpu().numpy(), z, 1.0, 8, 0), "on the CPU")
    return "torch and NumPy"


@check
def trap_alignment(bench: Bench) -> str:
    """Check that a view that a float4 cannot read is refused."""
    x, y, _ = bench.arrays()
    refused(bench.quads, (x[1:], y), "multiple of 16 bytes")
    bench.quads((1,), (1024,), (x, y))
    ensure(torch.equal(x, y), "wrong values")
    return "float4"


@check
def trap_launch(bench: Bench) -> str:
    """Check that illegal launches are refused."""
    x, y, z = bench.arrays()
    args = (x, y, z, 1.0, 8, 0)
    refused(bench.scale, args, "more than 1024", block=(1025,))
    refused(bench.scale, args, "1056 threads", block=(32, 33))
    refused(bench.scale, args, "no blocks", grid=(0,))
    refused(bench.scale, args, "more than 65535", grid=(1, 65536))
    refused(bench.shared_static, (x,), "allows at most 128", block=(129,))
    refused(bench.scale, args[:5], "6 parameters")
    return "threads, grid, launch bounds, count"


@check
def trap_architecture(bench: Bench) -> str:
    """Check that code for another card can be looked at, and is refused when it is launched."""
    other = "sm_120" if bench.module.arch != "sm_120a" else "sm_90"
    kernel = compile_cuda(KERNELS, arch=other).kernel("halve")
    registers = kernel.resources.registers
    try:
        kernel((1,), (32,), (torch.zeros(32, device="cuda"),))
    except RuntimeError as error:
        ensure("does not take code" in str(error), f"refused, but in other words: {error}")
    else:
        raise AssertionError(f"{bench.module.arch} ran code for {other}")
    return f"{other}: {registers} registers, not launched"


@check
def older_architecture(bench: Bench) -> str:
    """Check that code for an older card runs, and gives the same bits: the driver compiles its PTX."""
    x, y, z = bench.arrays()
    kernel, expected = compile_cuda(KERNELS, arch="sm_75").kernel("scale"), y.clone()
    for launched, out in ((bench.scale, expected), (kernel, y)):
        launched((16,), (256,), (x, out, z, 3.0, 4096, 0))
    ensure(torch.equal(y, expected) and not expected.isnan().any(), "other results than the card's own code")
    return kernel.module.arch


# ----------------------------------------------------------------------------------------------------------------------
# Streams, graphs, threads, cards


@check
def current_stream(bench: Bench) -> str:
    """Check that a launch waits for what is on torch's current stream, and for nothing else."""
    x, y, z = bench.arrays()
    bench.scale((16,), (256,), (x, y, z, 1.0, 4096, 0))
    torch.cuda.synchronize()
    y.fill_(-1)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)  # about a tenth of a second
        bench.scale((16,), (256,), (x, y, z, 1.0, 4096, 0))
    other = torch.cuda.Stream()
    with torch.cuda.stream(other):
        before = y.cpu()  # this stream does not wait for the sleep
    ensure(not side.query(), "the launch did not wait behind the sleep")
    ensure(bool((before == -1).all()), "the kernel ran on another stream")
    side.synchronize()
    ensure(torch.equal(y, x + z), "wrong values")
    return "a side stream, behind a sleep"


@check
def graph_capture(bench: Bench) -> str:
    """Check that a launch is captured in a CUDA graph and allocates nothing."""
    import cupy

    x, y, z = bench.arrays()
    y.fill_(-1)
    held = cupy.get_default_memory_pool().total_bytes()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        bench.scale((16,), (256,), (x, y, z, 2.0, 4096, 0))
        bench.scale((16,), (256,), (y, y, None, 1.0, 4096, 5))
    torch.cuda.synchronize()
    ensure(bool((y == -1).all()), "it ran during the capture")
    for value in (1.0, 3.0):
        x.fill_(value)
        z.fill_(0)
        graph.replay()
        torch.cuda.synchronize()
        ensure(bool((y == 2 * value + 5).all()), f"the replay gives {float(y[0])}")
    ensure(cupy.get_default_memory_pool().total_bytes() == held, "CuPy allocated")
    return "two launches, replayed twice"


@check
def first_launch_in_a_capture(bench: Bench) -> str:
    """Check that a kernel that was made, but never launched, may be launched first inside a capture."""
    fresh = compile_cuda('extern "C" __global__ void fresh(float* x) { x[threadIdx.x] += 2; }').only
    x = torch.zeros(32, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fresh((1,), (32,), (x,))
    graph.replay()
    torch.cuda.synchronize()
    ensure(bool((x == 2).all()), f"{float(x[0])}")
    return "captured at its first launch"


@check
def cooperative_launch(bench: Bench) -> str:
    """Check that as many blocks as fit wait for each other, in a CUDA graph too, and that one more is refused."""
    kernel = compile_cuda(GRID, name="grid.cu").only
    properties = torch.cuda.get_device_properties(0)
    most = kernel.resources.occupancy(256).blocks * properties.multi_processor_count
    x, y = torch.randn(1 << 20, device="cuda"), torch.empty(1 << 20, device="cuda")
    z = torch.empty_like(x)
    graph = torch.cuda.CUDAGraph()
    kernel(most, 256, (x, y, z, 1 << 20), cooperative=True)
    ensure(torch.equal(z, x.flip(0) + 1), "a block read before another had written")
    with torch.cuda.graph(graph):
        kernel(most, 256, (x, y, z, 1 << 20), cooperative=True)
    x.normal_()
    graph.replay()
    torch.cuda.synchronize()
    ensure(torch.equal(z, x.flip(0) + 1), "the replay gives other values")
    try:
        kernel(most + 1, 256, (x, y, z, 1 << 20), cooperative=True)
    except ValueError as error:
        ensure(f"only {most} can be resident at once on {properties.name}" in str(error), f"in other words: {error}")
    else:
        raise AssertionError(f"{most + 1} blocks were not refused")
    return f"{most} blocks of 256 threads"


@check
def overlapping_launches(bench: Bench) -> str:
    """Check a chain of launches that begin before the one before has ended, in a CUDA graph too."""
    include = f"-I{data_folder('cuda')}"
    module = compile_cuda(CHAIN, name="chain.cu", defines={"OVERLAP": 1}, options=(include,))
    follow, links, n = module.kernel("follow"), 10, 1 << 20
    x, y = (torch.zeros(n, dtype=torch.int32, device="cuda") for _ in range(2))
    began, ended = (torch.zeros(links, dtype=torch.int64, device="cuda").view(torch.uint64) for _ in range(2))

    def chain() -> None:
        for i in range(links):
            source, target = (x, y) if i % 2 == 0 else (y, x)
            follow(100, 256, (source, target, began[i:], ended[i:], n), overlap=True)

    chain()
    ensure(bool((x == links).all()), f"{int(x.min())} to {int(x.max())}, not {links}: a block did not wait")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        chain()
    for turn in (2, 3):
        graph.replay()
        torch.cuda.synchronize()
        ensure(bool((x == turn * links).all()), f"the replay gives {int(x.min())} to {int(x.max())}")
    early = (ended[:-1].view(torch.int64) - began[1:].view(torch.int64)).double().median() / 1000
    if torch.cuda.get_device_capability() < (9, 0):
        return "as any others, before sm_90"
    try:
        module.kernel("hasty")(1, 32, (x,), overlap=True)
    except ValueError as error:
        ensure("never executes griddepcontrol.wait" in str(error), f"in other words: {error}")
    else:
        raise AssertionError("a kernel that does not wait was not refused")
    return f"{links} in a graph, each began {float(early):.1f} us before the end of the one before"


@check
def another_thread(bench: Bench) -> str:
    """Check that a thread that has not touched the card may launch, and two threads may share a kernel."""
    x, y, z = bench.arrays()
    failures: list[BaseException] = []

    def work(offset: int) -> None:
        try:
            out = torch.empty_like(y)
            for _ in range(500):
                bench.scale((16,), (256,), (x, out, z, 1.0, 4096, offset))
            torch.cuda.synchronize()
            ensure(torch.equal(out, x + z + offset), "wrong values: the arguments were mixed up")
        except BaseException as error:
            failures.append(error)

    def launch_only() -> None:
        try:
            bench.scale((16,), (256,), (x, y, z, 1.0, 4096, 9))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=launch_only), *(threading.Thread(target=work, args=(i,)) for i in range(4))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    torch.cuda.synchronize()
    ensure(torch.equal(y, x + z + 9), "wrong values")
    return "a bare thread, and four at once"


@check
def another_card(bench: Bench) -> str:
    """Check that a launch goes to the card of its tensors; tensors of two cards are refused."""
    if torch.cuda.device_count() < 2:
        return "one card only: not tried"
    x, y, z = (array.to("cuda:1") for array in bench.arrays())
    bench.scale((16,), (256,), (x, y, z, 1.0, 4096, 0))
    torch.cuda.synchronize(1)
    ensure(torch.equal(y, x + z), "wrong values")
    ensure(torch.cuda.current_device() == 0, "the current card has changed")
    refused(bench.scale, (x, y.to("cuda:0"), z, 1.0, 8, 0), "one launch has one card")
    return "cuda:1 while cuda:0 is current"


# ----------------------------------------------------------------------------------------------------------------------
# Resources and occupancy


@check
def resources(bench: Bench) -> str:
    """Check that what ptxas reports is what the driver says of the loaded kernel."""
    from cupy.cuda import driver

    for name in bench.module.kernels:
        kernel = bench.module.kernel(name)
        function = kernel._launch._functions[0]
        said = {
            "registers": driver.funcGetAttribute(driver.CU_FUNC_ATTRIBUTE_NUM_REGS, function),
            "shared": driver.funcGetAttribute(driver.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, function),
            "local": driver.funcGetAttribute(driver.CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES, function),
        }
        ours = {key: getattr(kernel.resources, key) for key in said}
        ensure(said == ours, f"{name}: the driver says {said}, ptxas {ours}")
    ensure(bench.spilling.resources.spill_stores > 0, "the spilling kernel does not spill")
    return f"{len(bench.module.kernels)} kernels: registers, shared, local"


@check
def occupancy(bench: Bench) -> str:
    """Check that the table of limits gives the driver's occupancy."""
    from cupy.cuda import driver

    count = 0
    for name in bench.module.kernels:
        kernel = bench.module.kernel(name)
        most = kernel._launch.limits
        for threads in (1, 32, 33, 64, 96, 128, 192, 256, 288, 384, 512, 640, 768, 1024):
            for dynamic in (0, 1, 1000, 1024, 8192, 16384, 33000, 49152, 65536, 100000, 200000):
                if threads > most.max_threads or dynamic + most.static_shared > most.max_shared:
                    continue
                said = driver.occupancyMaxActiveBlocksPerMultiprocessor(kernel._launch._functions[0], threads, dynamic)
                ours = kernel.resources.occupancy(threads, dynamic).blocks
                ensure(said == ours, f"{name}, {threads} threads, {dynamic} bytes: the driver says {said}, we {ours}")
                count += 1
    return f"{count} launches"


# ----------------------------------------------------------------------------------------------------------------------
# What a launch costs


def host_microseconds(function: Callable[[], object], calls: int = 200, batches: int = 60) -> list[float]:
    """Return what one call costs the host, for each batch; the queue is empty when a batch begins and never fills."""
    for _ in range(calls):
        function()
    times = []
    for _ in range(batches):
        torch.cuda.synchronize()
        start = time.perf_counter_ns()
        for _ in range(calls):
            function()
        times.append((time.perf_counter_ns() - start) / calls / 1e3)
    torch.cuda.synchronize()
    return sorted(times)


@check
def launch_cost(bench: Bench) -> str:
    """Check that a call costs the host less than the limit, beside torch.add, CuPy's RawKernel and the driver alone."""
    import cupy
    from cupy.cuda import driver

    x, y, z = bench.arrays()
    kernel, grid, block = bench.scale, (16,), (256,)
    args = (x, y, z, 1.5, 4096, 0)
    raw = cupy.RawKernel(KERNELS, "scale", options=tuple(f"-I{path}" for path in _includes()))
    cx, cy, cz = (cupy.from_dlpack(array) for array in (x, y, z))
    raw_args = (cx, cy, cz, np.float32(1.5), np.int32(4096), np.int32(0))
    kernel(grid, block, args)
    launcher = kernel._launch
    packet = launcher._packets[-1]
    function, shape = launcher._functions[0], launcher._shapes[grid, block, 0]
    stream = launcher._stream(0)
    candidates = {
        "ours": lambda: kernel(grid, block, args),
        "torch.add": lambda: torch.add(x, z, out=y),
        "cupy.RawKernel": lambda: raw(grid, block, raw_args),
        "driver alone": lambda: driver.launchKernel(function, *shape, stream, packet.address, 0),
    }
    run, lines = records.new_run(), []
    for name, call in candidates.items():
        times = host_microseconds(call)
        median, low, high = (times[int(len(times) * q)] for q in (0.5, 0.2, 0.8))
        lines.append(f"{name} {median:.2f}")
        bench.rows.append(
            records.Measurement(
                operator="launch",
                version=name,
                shape="3 arrays, 3 numbers",
                dtype="float32",
                method="host",
                median_ms=median / 1e3,
                p20_ms=low / 1e3,
                p80_ms=high / 1e3,
                run=run,
                **records.machine(),
            )
        )
    ours = bench.rows[-len(candidates)].median_ms * 1e3
    judged = "H200" in torch.cuda.get_device_name()
    ensure(not judged or ours < LAUNCH_LIMIT_US, f"{ours:.2f} us is not below {LAUNCH_LIMIT_US} us: {', '.join(lines)}")
    return f"microseconds: {', '.join(lines)}"


def _includes():
    from cupy.cuda import nvrtc

    from styleforge_lib.runtime.compiler import include_directories

    return include_directories(nvrtc.getVersion())


# ----------------------------------------------------------------------------------------------------------------------
# The command line


def main(argv: list[str] | None = None) -> int:
    """Run the checks; return the exit status."""
    parser = argparse.ArgumentParser(description="Check on a GPU what the runtime promises there.")
    parser.add_argument("--json", metavar="PATH", help="write the results as JSON")
    parser.add_argument("--only", metavar="WORD", default="", help="run only the checks whose name holds this word")
    parser.add_argument("--record", action="store_true", help="append the launch costs to records/")
    options = parser.parse_args(argv)
    if not gpu.available():
        print("no NVIDIA GPU here: these checks need one", file=sys.stderr)
        return 2
    machine = records.machine()
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    results, bench = [], None
    for name, function in CHECKS:
        if options.only not in name:
            continue
        start = time.perf_counter()
        try:
            bench = bench or Bench()
            passed, said = True, function(bench)
            torch.cuda.synchronize()
        except Exception as error:
            passed, said = False, f"{type(error).__name__}: {error}"
            traceback.print_exc()
        seconds = time.perf_counter() - start
        results.append({"check": name, "passed": passed, "said": said, "seconds": round(seconds, 3)})
        print(f"{'pass' if passed else 'FAIL'}  {name:28} {said}", flush=True)
    rows = bench.rows if bench else []
    if options.record and rows:
        print(f"recorded in {records.append(rows)}")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"machine": machine, "checks": results, "rows": [asdict(row) for row in rows]}, file, indent=1)
    failed = [result["check"] for result in results if not result["passed"]]
    print(
        f"{len(results) - len(failed)} of {len(results)} checks passed"
        + (f"; failed: {', '.join(failed)}" if failed else "")
    )
    return 1 if failed or not results else 0


if __name__ == "__main__":
    sys.exit(main())
