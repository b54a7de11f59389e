# ruff: noqa: E501 (tables and kernels keep one case to a line)
"""Small CUDA kernels, each compiled for four architectures and held against NumPy."""

import ctypes
import math

import numpy as np
import pytest
from conftest import compile_ptx

from styleforge_lib.runtime.emulator import EmulatorFault, Program

ARCHITECTURES = ["compute_75", "compute_80", "compute_90", "compute_100"]
RNG = np.random.default_rng(0)


@pytest.fixture(params=ARCHITECTURES)
def arch(request):
    return request.param


def run(text, arch, grid, block, *args, shared_bytes=0, name=None, options=()):
    program = Program(compile_ptx(text, arch, options))
    program.launch(name or program.kernels[0], grid, block, args, shared_bytes=shared_bytes)
    return program


def test_grid_stride_and_guard(arch):
    text = """extern "C" __global__ void k(const float* x, float* y, float a, long long n) {
      for (long long i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) y[i] = a * x[i] + y[i]; }"""
    for n in (1, 31, 1000, 5003):
        x, y = RNG.standard_normal((2, n)).astype(np.float32)
        wanted = (np.float64(np.float32(1.7)) * x + y).astype(np.float32)
        run(text, arch, (3,), (96,), x, y, np.float32(1.7), np.int64(n))
        assert np.array_equal(y, wanted)


def test_three_dimensional_indices(arch):
    text = """extern "C" __global__ void k(int* y) {
      int z = blockIdx.z * blockDim.z + threadIdx.z, v = blockIdx.y * blockDim.y + threadIdx.y, u = blockIdx.x * blockDim.x + threadIdx.x;
      int w = gridDim.x * blockDim.x, h = gridDim.y * blockDim.y; y[(z * h + v) * w + u] = z * 10000 + v * 100 + u; }"""
    y = np.zeros((6, 6, 10), np.int32)
    run(text, arch, (2, 3, 2), (5, 2, 3), y)
    z, v, u = np.indices(y.shape)
    assert np.array_equal(y, z * 10000 + v * 100 + u)


def test_tiled_matrix_product(arch):
    text = """extern "C" __global__ void k(const float* a, const float* b, float* c, int n) {
      __shared__ float s[8][8], t[8][9]; int x = threadIdx.x, y = threadIdx.y; float sum = 0;
      for (int k = 0; k < n; k += 8) { s[y][x] = a[(blockIdx.y * 8 + y) * n + k + x]; t[y][x] = b[(k + y) * n + blockIdx.x * 8 + x];
        __syncthreads(); for (int j = 0; j < 8; j++) sum += s[y][j] * t[j][x]; __syncthreads(); }
      c[(blockIdx.y * 8 + y) * n + blockIdx.x * 8 + x] = sum; }"""
    a, b = RNG.integers(-8, 8, (2, 40, 40)).astype(np.float32)
    c = np.empty_like(a)
    run(text, arch, (5, 5), (8, 8), a, b, c, np.int32(40))
    assert np.array_equal(c, a @ b)


def test_sums_of_products_whose_steps_are_read(arch):
    """A sum that a store, a factor, a branch or the next turn of a loop reads in between is not one chain."""
    text = """extern "C" __global__ void k(const float* x, float* y, int n, const float* w) {
      int i = threadIdx.x + blockIdx.x * blockDim.x; float s = x[i], t = 1, u = x[i];
      for (int j = 0; j < 3; j++) {
        float a = w[j], b = x[i + j], c = x[i + 2 * j];
        s = fmaf(a, b, s); s = fmaf(b, c, s); s = fmaf(s, 0.5f, s); s = fmaf(a, c, s); s = fmaf(c, a, s);
        t = fmaf(a, b, t); y[(j * 5 + 0) * n + i] = t; t = fmaf(a, c, t); t = fmaf(t, a, b); t = fmaf(b, b, t); t = fmaf(w[j + 1], b, t);
        float before = u; u = fmaf(w[0], b, u); u = fmaf(w[1], b, u); u = fmaf(w[2], c, u); if (u > 1) { u = fmaf(w[3], c, u); u = fmaf(w[3], b, u); }
        _Pragma("unroll 1") for (int q = 0; q < 20; q++) u = fmaf(a, b, u);
        y[(j * 5 + 1) * n + i] = s; y[(j * 5 + 2) * n + i] = t; y[(j * 5 + 3) * n + i] = u; y[(j * 5 + 4) * n + i] = before; } }"""
    n, threads = 600, 120
    x, w = RNG.standard_normal(n + 8).astype(np.float32), RNG.standard_normal(4).astype(np.float32)
    y = np.zeros((15, n), np.float32)
    run(text, arch, (n // threads,), (threads,), x, y, np.int32(n), w)

    def fma(a, b, c):  # in extended precision, which holds the product, and all but never rounds the sum to a tie
        return (np.longdouble(a) * np.longdouble(b) + np.longdouble(c)).astype(np.float32)

    lanes = np.arange(n)
    s, t, u, one = x[lanes], np.ones(n, np.float32), x[lanes], np.float32(0.5)
    for j in range(3):
        a, b, c = w[j], x[lanes + j], x[lanes + 2 * j]
        s = fma(b, c, fma(a, b, s))
        s = fma(c, a, fma(a, c, fma(s, one, s)))
        t = fma(a, b, t)
        stored = t
        t = fma(w[j + 1], b, fma(b, b, fma(fma(a, c, t), a, b)))
        before, u = u, fma(w[2], c, fma(w[1], b, fma(w[0], b, u)))
        u = np.where(u > 1, fma(w[3], b, fma(w[3], c, u)), u)
        for _ in range(20):
            u = fma(a, b, u)
        for row, wanted in enumerate((stored, s, t, u, before)):
            assert np.array_equal(y[j * 5 + row], wanted), (j, row)


@pytest.mark.parametrize("block", [32, 96, 256])
def test_block_reduction_with_shuffles(arch, block):
    text = """extern "C" __global__ void k(const int* x, int* y, int n) {
      __shared__ int part[32]; int s = 0;
      for (int i = threadIdx.x; i < n; i += blockDim.x) s += x[blockIdx.x * n + i];
      for (int o = 16; o; o >>= 1) s += __shfl_down_sync(~0u, s, o);
      if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = s; __syncthreads();
      if (threadIdx.x < 32) { s = threadIdx.x < blockDim.x / 32 ? part[threadIdx.x] : 0;
        for (int o = 16; o; o >>= 1) s += __shfl_xor_sync(~0u, s, o); if (threadIdx.x == 0) y[blockIdx.x] = s; } }"""
    x = RNG.integers(-1000, 1000, (7, 777)).astype(np.int32)
    y = np.zeros(7, np.int32)
    run(text, arch, (7,), (block,), x, y, np.int32(777))
    assert np.array_equal(y, x.sum(1))


def test_tree_reduction_in_dynamic_shared_memory(arch):
    text = """extern "C" __global__ void k(const float* x, float* y) { extern __shared__ float s[];
      s[threadIdx.x] = x[blockIdx.x * blockDim.x + threadIdx.x]; __syncthreads();
      for (int o = blockDim.x / 2; o; o /= 2) { if (threadIdx.x < o) s[threadIdx.x] += s[threadIdx.x + o]; __syncthreads(); }
      if (threadIdx.x == 0) y[blockIdx.x] = s[0]; }"""
    x = RNG.integers(-50, 50, (5, 128)).astype(np.float32)
    y = np.zeros(5, np.float32)
    run(text, arch, (5,), (128,), x, y, shared_bytes=512)
    assert np.array_equal(y, x.sum(1))


def test_divergence_loops_and_early_exit(arch):
    text = """extern "C" __global__ void k(const int* x, int* y, int n) { int i = blockIdx.x * blockDim.x + threadIdx.x; if (i >= n) return;
      int v = x[i], steps = 0; while (v != 1) { if (v & 1) v = 3 * v + 1; else v /= 2; if (++steps > 90) break; if (steps % 7 == 3) continue; v ^= 0; }
      y[i] = steps; }"""
    x = np.arange(1, 301, dtype=np.int32)
    y = np.zeros_like(x)
    run(text, arch, (5,), (64,), x, y, np.int32(300))

    def collatz(v):
        steps = 0
        while v != 1:
            v = 3 * v + 1 if v & 1 else v // 2
            steps += 1
            if steps > 90:
                break
        return steps

    assert y.tolist() == [collatz(int(v)) for v in x]


def test_switch_calls_local_arrays_and_constants(arch):
    text = """__constant__ float table[4] = {1, 20, 300, 4000}; __device__ int counter = 5;
      __device__ __noinline__ float twice(float v, float* out) { *out = v + 1; return 2 * v + table[(int)v & 3]; }
      struct Pair { float a; int b; };
      __device__ __noinline__ Pair make(Pair p, int k) { p.a += k; p.b *= k; return p; }
      extern "C" __global__ void k(const float* x, float* y, Pair p) { int i = threadIdx.x; float a[8], z; for (int j = 0; j < 8; j++) a[(j * 3 + i) & 7] = x[j];
        float v = twice(x[i], &z); Pair q = make(p, i);
        switch (i % 9) { case 0: v += 1; break; case 1: v *= 2; break; case 2: v -= z; break; case 3: v /= z; break; case 4: v = q.a; break;
          case 5: v = q.b; break; case 6: v = a[i & 7]; break; case 7: v = twice(v, &z) + z; break; default: v = -1; }
        atomicAdd(&counter, 1); y[i] = v; }"""
    x = RNG.integers(0, 9, 40).astype(np.float32)
    y = np.zeros_like(x)
    program = run(text, arch, (1,), (40,), x, y, np.array([(2.5, 7)], "f4,i4").tobytes())
    table = [1, 20, 300, 4000]
    wanted = []
    for i, value in enumerate(x):
        a = np.zeros(8, np.float32)
        a[(np.arange(8) * 3 + i) & 7] = x[:8]
        v, z = 2 * value + table[int(value) & 3], value + 1
        again = 2 * v + table[int(v) & 3] + v + 1
        cases = [v + 1, v * 2, v - z, np.float32(v) / np.float32(z), 2.5 + i, 7 * i, a[i & 7], again, -1]
        wanted.append(np.float32(cases[i % 9]))
    assert y.tolist() == wanted
    assert program.variable("counter").view(np.int32)[0] == 45
    program.launch("k", (1,), (40,), (x, y, np.array([(2.5, 7)], "f4,i4").tobytes()))
    assert program.variable("counter").view(np.int32)[0] == 85


def test_vector_loads_and_narrow_types(arch):
    text = """extern "C" __global__ void k(const float4* x, double2* y, const unsigned char* b, short* s, signed char* c, int2* p) { int i = threadIdx.x;
      float4 v = x[i]; y[i] = make_double2(v.x + v.y, (double)v.z * v.w); s[i] = -(short)b[i]; c[i] = b[i] + 100; p[i] = make_int2(b[i], -i); }"""
    x = RNG.integers(-9, 9, (33, 4)).astype(np.float32)
    b = RNG.integers(0, 256, 33).astype(np.uint8)
    y, s, c, p = np.zeros((33, 2)), np.zeros(33, np.int16), np.zeros(33, np.int8), np.zeros((33, 2), np.int32)
    run(text, arch, (1,), (33,), x, y, b, s, c, p)
    assert np.array_equal(y, np.stack([x[:, 0] + x[:, 1], x[:, 2] * x[:, 3]], 1))
    assert np.array_equal(s, -b.astype(np.int16))
    assert np.array_equal(c, (b + np.uint8(100)).view(np.int8))
    assert np.array_equal(p, np.stack([b, -np.arange(33)], 1))


def test_every_width_in_shared_memory(arch):
    text = """extern "C" __global__ void k(const int* order, double* d, unsigned char* b, short* h, float4* q, long long* l) { int i = threadIdx.x, j = order[i];
      __shared__ double sd[64]; __shared__ unsigned char sb[64]; __shared__ short sh[64]; __shared__ float4 sq[64]; __shared__ long long sl[64];
      sd[j] = i * 1.5; sb[j] = i * 3; sh[j] = -i; sq[j] = make_float4(i, i + 1, i + 2, i + 3); sl[j] = (long long)i << 33; __syncthreads();
      d[i] = sd[i]; b[i] = sb[i]; h[i] = sh[i]; q[i] = sq[i]; l[i] = sl[i] + sb[5] + sh[order[0]]; }"""
    order = RNG.permutation(64).astype(np.int32)
    inverse = np.argsort(order)
    d, b, h = np.zeros(64), np.zeros(64, np.uint8), np.zeros(64, np.int16)
    q, wide = np.zeros((64, 4), np.float32), np.zeros(64, np.int64)
    run(text, arch, (2,), (64,), order, d, b, h, q, wide)
    assert np.array_equal(d, inverse * 1.5)
    assert np.array_equal(b, (inverse * 3).astype(np.uint8))
    assert np.array_equal(h, -inverse)
    assert np.array_equal(q, inverse[:, None] + np.arange(4.0))
    assert np.array_equal(wide, (inverse.astype(np.int64) << 33) + int(b[5]) - 0)


def test_generic_pointers_to_every_space(arch):
    text = """__constant__ float c[4] = {1, 2, 3, 4}; __device__ float g[4] = {10, 20, 30, 40};
      extern "C" __global__ void k(const float* x, float* y) { __shared__ float s[4]; float l[4]; int i = threadIdx.x;
        if (i < 4) s[i] = 100 * (i + 1); for (int j = 0; j < 4; j++) l[j] = 1000 * (j + 1) + x[i]; __syncthreads();
        const float* p = i % 5 == 0 ? s : i % 5 == 1 ? l : i % 5 == 2 ? c : i % 5 == 3 ? g : x; y[i] = p[i & 3]; }"""
    x, y = np.arange(50, dtype=np.float32), np.zeros(50, np.float32)
    run(text, arch, (1,), (50,), x, y)
    i = np.arange(50)
    j = i & 3
    wanted = np.choose(i % 5, [100 * (j + 1), 1000 * (j + 1) + i, j + 1, 10 * (j + 1), j])
    assert np.array_equal(y, wanted)


@pytest.mark.parametrize("space", ["global", "shared"])
def test_atomics(arch, space):
    text = """extern "C" __global__ void k(const int* w, int* out, int* old, float* f, double* d, unsigned long long* u) {
      int i = blockIdx.x * blockDim.x + threadIdx.x;
      TARGET
      old[i] = atomicAdd(&t[w[i] & 3], w[i]); atomicMax(&t[4], w[i]); atomicMin(&t[5], w[i]); atomicAnd(&t[6], w[i]); atomicOr(&t[7], w[i]);
      atomicXor(&t[8], w[i]); atomicInc((unsigned*)&t[9], 6); atomicDec((unsigned*)&t[10], 5); atomicExch(&t[11], 7); atomicCAS(&t[12], 0, 9);
      int seen = t[13], before; do { before = seen; seen = atomicCAS(&t[13], before, before + w[i]); } while (seen != before);
      atomicAdd(f, (float)w[i]); atomicAdd(d, (double)w[i]); atomicAdd(u, 1ull << 40); atomicMax(u + 1, (unsigned long long)w[i] << 33); FINISH }"""
    if space == "global":
        text = text.replace("TARGET", "int* t = out;").replace("FINISH", "")
    else:
        text = text.replace(
            "TARGET", "__shared__ int t[14]; if (threadIdx.x < 14) t[threadIdx.x] = out[threadIdx.x]; __syncthreads();"
        )
        text = text.replace("FINISH", "__syncthreads(); if (threadIdx.x < 14) out[threadIdx.x] = t[threadIdx.x];")
    w = RNG.integers(0, 1000, 64).astype(np.int32)
    out, old = np.zeros(14, np.int32), np.zeros(64, np.int32)
    out[5], out[6] = 10**6, -1
    f, d, u = np.zeros(1, np.float32), np.zeros(1), np.zeros(2, np.uint64)
    run(text, arch, (1,), (64,), w, out, old, f, d, u)
    assert out[:4].tolist() == [w[w & 3 == k].sum() for k in range(4)]
    assert out[4:9].tolist() == [
        w.max(),
        w.min(),
        np.bitwise_and.reduce(w),
        np.bitwise_or.reduce(w),
        np.bitwise_xor.reduce(w),
    ]
    decremented = 0
    for _ in range(64):
        decremented = 5 if decremented == 0 or decremented > 5 else decremented - 1
    assert out[9:].tolist() == [64 % 7, decremented, 7, 9, w.sum()]
    for k in range(4):
        mine = np.flatnonzero(w & 3 == k)
        assert sorted(old[mine].tolist()) == sorted((np.cumsum(w[mine]) - w[mine]).tolist())
    assert f[0] == d[0] == w.sum()
    assert u.tolist() == [64 << 40, int(w.max()) << 33]


def test_warp_votes_match_and_reduce(arch):
    text = """extern "C" __global__ void k(const int* x, unsigned* y) { int i = threadIdx.x, v = x[i]; unsigned* o = y + i * 8;
      o[0] = __ballot_sync(~0u, v > 3); o[1] = __any_sync(~0u, v > 8); o[2] = __all_sync(~0u, v >= 0); o[3] = __match_any_sync(~0u, v);
      o[4] = __shfl_sync(~0u, v, v & 31); o[5] = __shfl_up_sync(~0u, v, 3, 8); o[6] = 0; if (v > 4) o[6] = __activemask();
      #if __CUDA_ARCH__ >= 800
      o[7] = __reduce_add_sync(~0u, v) + __reduce_max_sync(~0u, v);
      #else
      o[7] = 0;
      #endif
    }"""
    x = RNG.integers(0, 10, 64).astype(np.int32)
    y = np.zeros((64, 8), np.uint32)
    run(text, arch, (1,), (64,), x, y)
    for warp in range(2):
        v, out = x[32 * warp : 32 * warp + 32], y[32 * warp : 32 * warp + 32]

        def bits(condition):
            return sum(1 << k for k in np.flatnonzero(condition).tolist())

        assert (out[:, 0] == bits(v > 3)).all()
        assert (out[:, 1] == (v > 8).any()).all()
        assert (out[:, 2] == 1).all()
        assert out[:, 3].tolist() == [bits(v == one) for one in v]
        assert np.array_equal(out[:, 4], v[v & 31])
        lane = np.arange(32)
        assert np.array_equal(out[:, 5], np.where(lane % 8 >= 3, v[lane - 3], v))
        assert np.array_equal(out[:, 6], np.where(v > 4, bits(v > 4), 0))
        assert (out[:, 7] == (0 if arch == "compute_75" else v.sum() + v.max())).all()


def test_barriers_that_count_and_vote(arch):
    text = """extern "C" __global__ void k(const int* x, int* y) { int i = threadIdx.x, v = x[blockIdx.x * 64 + i];
      int c = __syncthreads_count(v > 5), a = __syncthreads_and(v > 0), o = __syncthreads_or(v > 8); y[blockIdx.x * 64 + i] = c * 100 + a * 10 + o; }"""
    x = RNG.integers(0, 10, (4, 64)).astype(np.int32)
    x[1] = 3
    y = np.zeros_like(x)
    run(text, arch, (4,), (64,), x, y)
    wanted = (x > 5).sum(1) * 100 + (x > 0).all(1) * 10 + (x > 8).any(1)
    assert np.array_equal(y, np.repeat(wanted[:, None], 64, 1))


def test_producer_and_consumer_on_named_barriers(arch):
    text = """extern "C" __global__ void k(int* y) { __shared__ int s[32]; int i = threadIdx.x;
      for (int r = 0; r < 3; r++) {
        if (i < 32) { if (r) asm volatile("bar.sync 2, 64;" ::: "memory"); s[i] = i * 10 + r; asm volatile("bar.arrive 1, 64;" ::: "memory"); }
        else { asm volatile("bar.sync 1, 64;" ::: "memory"); y[r * 32 + i - 32] = s[63 - i]; if (r < 2) asm volatile("bar.arrive 2, 64;" ::: "memory"); } } }"""
    y = np.zeros((3, 32), np.int32)
    run(text, arch, (1,), (64,), y)
    assert np.array_equal(y, np.arange(31, -1, -1) * 10 + np.arange(3)[:, None])


def test_syncwarp_after_divergence(arch):
    text = """extern "C" __global__ void k(int* y) { __shared__ int s[64]; int i = threadIdx.x; if (i % 2) s[i] = i; else s[i] = -i; __syncwarp();
      y[i] = s[i ^ 1]; if (i % 32 < 8) { __syncwarp(0xff); y[i] += s[i ^ 2]; } }"""
    y = np.zeros(64, np.int32)
    run(text, arch, (1,), (64,), y)
    i = np.arange(64)

    def signed(k):
        return np.where(k % 2, k, -k)

    assert np.array_equal(y, signed(i ^ 1) + np.where(i % 32 < 8, signed(i ^ 2), 0))


def test_spin_lock(arch):
    text = """extern "C" __global__ void k(int* lock, volatile int* total) {
      for (bool done = false; !done;) { if (atomicCAS(lock, 0, 1) == 0) { total[0] += 1; __threadfence(); atomicExch(lock, 0); done = true; } } }"""
    lock, total = np.zeros(1, np.int32), np.zeros(1, np.int32)
    run(text, arch, (2,), (40,), lock, total)
    assert total[0] == 80


def test_printf(arch, capsys):
    text = r"""extern "C" __global__ void k(float* x) { if (threadIdx.x < 2) printf("block %d thread %2d: %5.2f %s %c %llu %%\n", blockIdx.x, threadIdx.x, x[threadIdx.x], "text", 'c', 1ull << 40); }"""
    run(text, arch, (2,), (32,), np.array([1.5, -2.25], np.float32))
    assert capsys.readouterr().out.splitlines() == [
        f"block {block} thread {thread:2d}: {[1.5, -2.25][thread]:5.2f} text c {1 << 40} %"
        for block in (0, 1)
        for thread in (0, 1)
    ]


def test_printf_formats_as_c_does(capsys):
    """Every conversion with flags, width and precision, against the C library's own."""
    libc = ctypes.CDLL(None)
    cases = [
        *(f"%{flags}{size}" for size in ("d", "i", "u", "x", "X", "o") for flags in ("", "8", "-8", "08", ".5", "8.5")),
        *(f"%{flags}d" for flags in ("+", " ", "+6", "- 6")), *(f"%#{size}" for size in ("x", "o", "X", "8o", "-12x")),
        *(f"%{flags}ll{size}" for size in "dux" for flags in ("", "22", "-22", "022")), "%hhd", "%hd", "%hu", "%ld", "%lu", "%zu",
        *(f"%{flags}{size}" for size in "feEgG" for flags in ("", "12", "-12", "012", ".0", ".3", "14.2", "+", "#.0")),
        "%c", "%3c", "%-3c", "%s", "%8s", "%-8s", "%.2s",
    ]  # fmt: skip
    statements, wanted = [], []
    for number, case in enumerate(cases):
        kind = case[-1]
        if kind in "feEgG":
            value = [1234.5678, -0.00012345, 1e20, 0.5][number % 4]
            argument, host = f"x[{number % 4}]", ctypes.c_double(value)
        elif kind in "sc":
            argument, host = ('"word"', ctypes.c_char_p(b"word")) if kind == "s" else ("n[4]", ctypes.c_int(65))
        else:
            wide = any(mark in case for mark in ("ll", "ld", "lu", "z"))
            value = [123, -45, 0, 2**31 - 1][number % 4]
            argument = f"{'(long long)' if wide else ''}n[{number % 4}]"
            host = ctypes.c_longlong(value) if wide else ctypes.c_int(value)
        statements.append(f'printf("[{case}]\\n", {argument});')
        buffer = ctypes.create_string_buffer(400)
        libc.snprintf(buffer, ctypes.c_size_t(400), f"[{case}]".encode(), host)
        wanted.append(buffer.value.decode())
    text = f'extern "C" __global__ void k(const double* x, const int* n) {{ {" ".join(statements)} }}'
    x, n = np.array([1234.5678, -0.00012345, 1e20, 0.5]), np.array([123, -45, 0, 2**31 - 1, 65], np.int32)
    run(text, "compute_80", (1,), (1,), x, n)
    got = capsys.readouterr().out.splitlines()
    wrong = [(case, a, b) for case, a, b in zip(cases, got, wanted, strict=True) if a != b]
    assert not wrong


def test_the_clock_goes_on(arch):
    """A loop that waits for the clock ends; a later reading is later."""
    text = """extern "C" __global__ void k(long long* out) {
      long long start = clock64(); unsigned low = clock(); unsigned long long t;
      while (clock64() - start < 1000) {}
      asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
      out[threadIdx.x] = (clock64() > start) + 2 * (clock() > low) + 4 * (t > 0); }"""
    out = np.zeros(32, np.int64)
    run(text, arch, (1,), (32,), out)
    assert (out == 7).all()


def test_double_functions(arch):
    """What math.h computes in float64 with helper functions of its own, against the C library."""
    names = [
        "exp",
        "log",
        "sin",
        "cos",
        "tan",
        "tanh",
        "sinh",
        "cosh",
        "atan",
        "exp2",
        "log2",
        "log10",
        "expm1",
        "log1p",
        "cbrt",
        "erf",
        "erfc",
        "lgamma",
        "tgamma",
        "asinh",
    ]
    calls = "".join(f"o[{k}] = {name}(v); " for k, name in enumerate(names))
    text = f'extern "C" __global__ void k(const double* x, double* y) {{ int i = threadIdx.x; double v = x[i]; double* o = y + i * {len(names) + 5}; {calls} double* q = o + {len(names)}; q[0] = pow(v, 1.3); q[1] = atan2(v, 2.0); q[2] = fmod(v, 0.7); q[3] = hypot(v, 3.0); q[4] = rsqrt(v); }}'
    x = np.concatenate([np.linspace(0.1, 20, 60), [1e-9, 1e-3, 100.5, 30.25]])
    y = np.zeros((64, len(names) + 5))
    run(text, arch, (1,), (64,), x, y)
    reference = [{"tgamma": math.gamma, "cbrt": np.cbrt}.get(name) or getattr(math, name) for name in names]
    reference += [
        lambda v: v**1.3,
        lambda v: math.atan2(v, 2),
        lambda v: math.fmod(v, 0.7),
        lambda v: math.hypot(v, 3),
        lambda v: v**-0.5,
    ]
    wanted = np.array([[f(v) for f in reference] for v in x.tolist()])
    np.testing.assert_allclose(y, wanted, rtol=4e-15, atol=4e-15)


def test_mathematical_functions(arch):
    text = """extern "C" __global__ void k(const float* x, float* y) { int i = threadIdx.x; float v = x[i]; float* o = y + i * 12;
      o[0] = sinf(v); o[1] = cosf(v * 1e4f); o[2] = expf(v); o[3] = logf(fabsf(v)); o[4] = sqrtf(fabsf(v)); o[5] = rsqrtf(fabsf(v)); o[6] = tanhf(v);
      o[7] = powf(fabsf(v), 1.7f); o[8] = erff(v); o[9] = __expf(v); o[10] = fmodf(v, 0.7f); o[11] = 1 / (1 + expf(-v)); }"""
    x = RNG.uniform(-4, 4, 128).astype(np.float32)
    y = np.zeros((128, 12), np.float32)
    run(text, arch, (1,), (128,), x, y)
    v = x.astype(np.float64)
    size = np.abs(v)
    erf = np.array([__import__("math").erf(one) for one in v])
    wanted = np.stack([np.sin(v), np.cos((x * np.float32(1e4)).astype(np.float64)), np.exp(v), np.log(size), np.sqrt(size), 1 / np.sqrt(size), np.tanh(v),
                       size ** np.float64(np.float32(1.7)), erf, np.exp(v), np.fmod(v, np.float64(np.float32(0.7))), 1 / (1 + np.exp(-v))], 1)  # fmt: skip
    error = np.abs(y - wanted) / np.spacing(np.maximum(np.abs(wanted), 0.1).astype(np.float32))
    assert error.max(axis=0).tolist() <= [2, 2, 2, 2, 0.51, 2, 2, 8, 2, 8, 0.51, 2.5], error.max(axis=0)


def test_double_precision_and_64_bit_integers(arch):
    text = """extern "C" __global__ void k(const double* x, double* y, const long long* a, long long* b) { int i = threadIdx.x; y[i] = fma(x[i], x[i], 1 / x[i]) + sqrt(fabs(x[i]));
      b[i] = a[i] / (i + 1) + a[i] % 7 + __mul64hi(a[i], a[i] + 1) + (long long)__brevll(a[i]) + __popcll(a[i]) + __clzll(a[i]); }"""
    x = RNG.standard_normal(64)
    a = RNG.integers(-(2**62), 2**62, 64)
    y, b = np.zeros(64), np.zeros(64, np.int64)
    run(text, arch, (1,), (64,), x, y, a, b)
    wanted = np.longdouble(x) * x + np.longdouble(1 / x)
    assert np.allclose(y, (wanted.astype(np.float64) + np.sqrt(np.abs(x))), rtol=3e-16)

    def one(i, v):
        v = int(v)
        bits = v & (2**64 - 1)
        quotient = abs(v) // (i + 1) * (1 if v >= 0 else -1)
        rest = abs(v) % 7 * (1 if v >= 0 else -1)
        reversed_bits = int(f"{bits:064b}"[::-1], 2)
        total = quotient + rest + ((v * (v + 1)) >> 64) + reversed_bits + bin(bits).count("1") + 64 - bits.bit_length()
        return (total + 2**63) % 2**64 - 2**63

    assert b.tolist() == [one(i, v) for i, v in enumerate(a)]


def test_half_precision(arch):
    text = """#include <cuda_fp16.h>
      extern "C" __global__ void k(const __half* x, __half* y, const __half2* p, __half2* q, float* f) { int i = threadIdx.x;
        y[i] = __hfma(x[i], x[i], __float2half(0.5f)); q[i] = __hmul2(__hadd2(p[i], p[i]), __float2half2_rn(0.25f));
        f[i] = __half2float(hexp(x[i])) + (float)(int)__half2int_rn(x[i]); if (__hgt(x[i], __float2half(0.f))) y[i] = __hneg(y[i]); }"""
    x, p = RNG.standard_normal(64).astype(np.float16), RNG.standard_normal((64, 2)).astype(np.float16)
    y, q, f = np.zeros_like(x), np.zeros_like(p), np.zeros(64, np.float32)
    run(text, arch, (1,), (64,), x, y, p, q, f)
    wanted = (x.astype(np.float64) ** 2 + 0.5).astype(np.float16)
    assert np.array_equal(y, np.where(x > 0, -wanted, wanted))
    assert np.array_equal(q, (p + p) * np.float16(0.25))
    assert np.allclose(f, np.exp(x.astype(np.float64)) + np.rint(x), rtol=1e-3, atol=1e-3)


def test_views_and_slices_of_arrays_are_changed_in_place(arch):
    text = 'extern "C" __global__ void k(float* x, const float* z, int n) { for (int i = threadIdx.x; i < n; i += 32) x[i] += z[i]; }'
    buffer = np.arange(100, dtype=np.float32)
    view = buffer[10:50]
    run(text, arch, (1,), (32,), view, view.copy(), np.int32(40))
    assert np.array_equal(buffer[10:50], 2 * np.arange(10, 50))
    assert np.array_equal(buffer[50:], np.arange(50, 100))


def test_fast_math_flushes_subnormals(arch):
    text = 'extern "C" __global__ void k(const float* x, float* y) { int i = threadIdx.x; y[i] = x[i] * 0.5f; y[i + 4] = x[i] / 3.0f; }'
    x = np.array([2.0**-126, -(2.0**-126), 1.0, 2.0**-140], np.float32)
    y = np.ones(8, np.float32)
    run(text, arch, (1,), (4,), x, y, options=("-ftz=true",))
    assert y[:4].tolist() == [0, 0, 0.5, 0]
    assert np.signbit(y[1])
    y[:] = 1
    run(text, arch, (1,), (4,), x, y)
    assert y[:4].tolist() == [2.0**-127, -(2.0**-127), 0.5, 2.0**-141]


def test_templates_and_lambdas(arch):
    text = """template <int N, typename F> __device__ void each(F f) { for (int i = 0; i < N; i++) f(i); }
      extern "C" __global__ void k(float* y) { float s = 0; each<5>([&](int i) { s += i * threadIdx.x; }); y[threadIdx.x] = s; }"""
    y = np.zeros(32, np.float32)
    run(text, arch, (1,), (32,), y)
    assert np.array_equal(y, 10 * np.arange(32))


def test_batches_of_blocks_agree_with_one_at_a_time(arch):
    """More lanes than a batch holds, blocks of a size that is no multiple of 32."""
    text = 'extern "C" __global__ void k(unsigned* y, int n) { unsigned i = blockIdx.x * blockDim.x + threadIdx.x; if (i < n) { unsigned h = i; for (int k = 0; k < (i & 7); k++) h = h * 1664525u + 1013904223u; y[i] = h; } }'
    n = 70001
    y = np.zeros(n, np.uint32)
    program = run(text, arch, (1000,), (71,), y, np.int32(n))
    h = np.arange(n, dtype=np.uint32)
    for k in range(7):
        h = np.where((np.arange(n) & 7) > k, h * np.uint32(1664525) + np.uint32(1013904223), h)
    assert np.array_equal(y, h)
    again = np.zeros(n, np.uint32)
    program.launch("k", (1000,), (71,), (again, np.int32(n)), blocks=[3, 999])
    touched = np.flatnonzero(again)
    assert set(touched // 71) <= {3, 985, 999}
    assert np.array_equal(again[touched], y[touched])


def test_launch_refuses_what_no_gpu_takes():
    text = 'extern "C" __global__ void k(float* x, int n) { x[0] = n; }'
    program = Program(compile_ptx(text))
    x = np.zeros(4, np.float32)
    assert program.kernels == ["k"]
    assert program.parameters("k") == [("u64", 8, 8), ("u32", 4, 4)] or program.parameters("k")[0][1:] == (8, 8)
    with pytest.raises(ValueError, match="at most 1024"):
        program.launch("k", (1,), (1025,), (x, np.int32(1)))
    with pytest.raises(TypeError, match="takes 2 arguments"):
        program.launch("k", (1,), (1,), (x,))
    with pytest.raises(TypeError, match="has 8 bytes"):
        program.launch("k", (1,), (1,), (x, np.int64(1)))
    with pytest.raises(TypeError, match="NumPy array or scalar"):
        program.launch("k", (1,), (1,), (x, 1))
    with pytest.raises(ValueError, match="C-contiguous"):
        program.launch("k", (1,), (1,), (x[::2], np.int32(1)))
    with pytest.raises(KeyError, match="no kernel 'other'"):
        program.launch("other", (1,), (1,), ())
    readonly = np.zeros(4, np.float32)
    readonly.flags.writeable = False
    with pytest.raises(EmulatorFault, match="read-only"):
        program.launch("k", (1,), (1,), (readonly, np.int32(1)))
