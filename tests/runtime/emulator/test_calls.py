# ruff: noqa: E501 (tables and kernels keep one case to a line)
"""Recursion, calls through pointers, and calls that NVRTC leaves in the PTX."""

import numpy as np
import pytest
from conftest import compile_ptx

from styleforge_lib.runtime.emulator import EmulatorFault, Program


@pytest.fixture(params=["compute_75", "compute_80", "compute_90", "compute_100"])
def arch(request):
    return request.param


def launch(text, arch, threads, args, blocks=1):
    Program(compile_ptx(text, arch), {"kernel.cu": text}).launch("k", (blocks,), (threads,), args)


def fibonacci(n):
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)


def ackermann(m, n):
    return n + 1 if m == 0 else ackermann(m - 1, 1) if n == 0 else ackermann(m - 1, ackermann(m, n - 1))


def test_recursion_once_and_twice_and_within(arch):
    text = """__device__ int fibonacci(int n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }
      __device__ int ackermann(int m, int n) { return m == 0 ? n + 1 : n == 0 ? ackermann(m - 1, 1) : ackermann(m - 1, ackermann(m, n - 1)); }
      __device__ int odd(int n);
      __device__ __noinline__ int even(int n) { return n == 0 ? 1 : odd(n - 1); }
      __device__ __noinline__ int odd(int n) { return n == 0 ? 0 : even(n - 1); }
      extern "C" __global__ void k(int* out) {
        int i = threadIdx.x, before = i * 7;
        if (i % 3 == 2) out[i] = -fibonacci(i % 9);
        else out[i] = fibonacci(i % 11) + before;
        out[blockDim.x + i] = ackermann(i % 3, i % 4) + even(i);
      }"""
    out = np.zeros((2, 96), np.int32)
    launch(text, arch, 96, (out,))
    numbers = range(96)
    assert out[0].tolist() == [-fibonacci(i % 9) if i % 3 == 2 else fibonacci(i % 11) + 7 * i for i in numbers]
    assert out[1].tolist() == [ackermann(i % 3, i % 4) + 1 - i % 2 for i in numbers]


def test_frames_hold_arrays_structures_doubles_and_predicates(arch):
    """A recursive quicksort by value and by pointer, with locals of its own in each frame."""
    text = """struct Range { short first, last; double sum; bool odd; };
      __device__ __noinline__ Range sort(int* a, Range r) {
        int held[3] = {r.first, r.last, r.first + r.last};
        if (r.first >= r.last) { r.sum = r.first == r.last ? a[r.first] : 0; return r; }
        int pivot = a[held[2] / 2], i = r.first, j = r.last;
        while (i <= j) {
          while (a[i] < pivot) i++;
          while (a[j] > pivot) j--;
          if (i <= j) { int t = a[i]; a[i++] = a[j]; a[j--] = t; }
        }
        double middle = i - j == 2 ? a[i - 1] : 0;
        bool odd = (r.last - r.first) & 1;
        Range low = sort(a, Range{(short)held[0], (short)j, 0, false});
        Range high = sort(a, Range{(short)i, (short)held[1], 0, false});
        held[i % 3] += 1;
        return Range{(short)held[0], (short)held[1], low.sum + middle + high.sum, odd};
      }
      extern "C" __global__ void k(int* x, double* sums, int n) {
        int own[16], *a = x + threadIdx.x * n;
        for (int i = 0; i < n; i++) own[i] = a[i];
        Range r = sort(own, Range{0, (short)(n - 1), 0, false});
        sums[threadIdx.x] = r.sum + (r.odd ? 0.25 : 0.5);
        for (int i = 0; i < n; i++) a[i] = own[i];
      }"""
    x = np.random.default_rng(0).integers(-99, 99, (64, 16)).astype(np.int32)
    wanted, sums = np.sort(x, axis=1), np.zeros(64)
    totals = x.sum(axis=1) + 0.25
    launch(text, arch, 64, (x, sums, np.int32(16)))
    assert np.array_equal(x, wanted)
    assert np.array_equal(sums, totals)


def test_barriers_shuffles_and_printf_inside(arch, capsys):
    text = """__device__ __noinline__ int total(int v, int step) {
        if (step == 0) { if (threadIdx.x == 0) printf("sum %d\\n", v); return v; }
        __syncthreads();
        return total(v + __shfl_xor_sync(0xffffffff, v, step), step / 2);
      }
      extern "C" __global__ void k(int* x) { x[threadIdx.x] = total(x[threadIdx.x], 16); }"""
    x = np.arange(32, dtype=np.int32)
    launch(text, arch, 32, (x,))
    assert (x == 496).all()
    assert capsys.readouterr().out == "sum 496\n"


POINTERS = """typedef float (*Function)(float, int);
      __device__ __noinline__ float twice(float x, int k) { return 2 * x + k; }
      __device__ __noinline__ float square(float x, int k) { return x * x - k; }
      __device__ __noinline__ float again(float x, int k);
      __constant__ Function TABLE[3] = {twice, square, again};
      __device__ float again(float x, int k) { return k <= 0 ? x : TABLE[k % 3](x, k - 2) + 1; }
      extern "C" __global__ void k(float* x, const int* which) {
        int i = threadIdx.x;
        Function f = TABLE[which[i]];
        x[i] = f(x[i], which[i] + 3) + x[i];
      }"""


def test_calls_through_pointers(arch):
    x = np.arange(64, dtype=np.float32) / 4
    which = (np.arange(64) * 5 % 3).astype(np.int32)

    def call(f, v, k):
        if f == 2:
            return v if k <= 0 else call(k % 3, v, k - 2) + 1
        return 2 * v + k if f == 0 else v * v - k

    wanted = [call(f, v, f + 3) + v for f, v in zip(which.tolist(), x.tolist(), strict=True)]
    launch(POINTERS, arch, 64, (x, which))
    assert x.tolist() == wanted


def test_virtual_functions(arch):
    text = """struct Shape { float a; __device__ Shape(float v) : a(v) {} __device__ virtual float area() const { return a; } };
      struct Square : Shape { __device__ Square(float v) : Shape(v) {} __device__ float area() const override { return a * a; } };
      struct Circle : Square { __device__ Circle(float v) : Square(v) {} __device__ float area() const override { return 3 * Square::area(); } };
      extern "C" __global__ void k(float* x) {
        int i = threadIdx.x;
        Shape plain(x[i]); Square square(x[i]); Circle circle(x[i]);
        const Shape* shape = i % 3 == 0 ? &plain : i % 3 == 1 ? (const Shape*)&square : &circle;
        x[i] = shape->area();
      }"""
    x = np.arange(33, dtype=np.float32)
    wanted = [v if i % 3 == 0 else v * v if i % 3 == 1 else 3 * v * v for i, v in enumerate(x.tolist())]
    launch(text, arch, 33, (x,))
    assert x.tolist() == wanted


def test_a_call_without_end_fills_the_stack():
    text = """__device__ __noinline__ int deeper(int n) { return n == -1 ? 0 : deeper(n + 1) * 3 + n; }
extern "C" __global__ void k(int* x) {
    if (threadIdx.x == 5) x[0] = deeper(x[1]);
}"""
    with pytest.raises(EmulatorFault, match=r"thread \(5,0,0\), byte 8\d\d\d of 8192 in the call stack") as caught:
        launch(text, "compute_80", 32, (np.zeros(2, np.int32),))
    assert caught.value.line == 1


def test_a_wild_pointer_is_a_fault():
    text = """typedef void (*Function)(int*);
__device__ __noinline__ void one(int* x) { x[0] = 1; }
__device__ Function known = one;
extern "C" __global__ void k(int* x, Function f, int n) {
    if (n) f = known;
    f(x);
}"""
    x = np.zeros(1, np.int32)
    launch(text, "compute_80", 32, (x, np.uint64(0), np.int32(1)))
    assert x[0] == 1
    with pytest.raises(EmulatorFault, match="a call through a pointer that leads to no function at line 6"):
        launch(text, "compute_80", 32, (x, np.uint64(0), np.int32(0)))


def test_a_switch_of_many_cases(arch):
    cases = "".join(f"case {k}: v = {(k * 37) % 101} + o[{k % 5}] * {k % 7 + 1}; break;\n" for k in range(24))
    text = f'extern "C" __global__ void k(int* o, const int* a) {{ int v = 5; switch (a[threadIdx.x]) {{ {cases} default: v = -1; }} o[32 + threadIdx.x] = v; }}'
    a = np.arange(-4, 28).astype(np.int32)
    out = np.arange(64).astype(np.int32)
    launch(text, arch, 32, (out, a))
    assert out[32:].tolist() == [(k * 37) % 101 + k % 5 * (k % 7 + 1) if 0 <= k < 24 else -1 for k in a.tolist()]


def test_allocation_is_refused_with_what_to_do():
    text = 'extern "C" __global__ void k(int* x) { int* p = (int*)malloc(64); p[threadIdx.x] = 1; x[0] = p[0]; }'
    with pytest.raises(NotImplementedError, match=r"`call malloc` \(line 1\)\. Pass an array as an argument"):
        launch(text, "compute_80", 16, (np.zeros(1, np.int32),))
