# ruff: noqa: E501 (tables and kernels keep one case to a line)
"""Every atomic of every type in every space: what is left and what each thread found, as if they came one by one."""

import numpy as np
import pytest
from conftest import compile_ptx
from emulator_reference import DTYPES

from styleforge_lib.runtime.emulator import EmulatorFault, Program

THREADS, PLACES = 64, 5


def bfloat(value):
    """Round a float32 to bfloat16 bits, to nearest even."""
    bits = int(np.float32(value).view(np.uint32))
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16


def from_bfloat(bits):
    return np.array(int(bits) << 16, np.uint32).view(np.float32)[()]


def halves(function, old, value):
    """Do two 16-bit operations in one word."""
    low, high = (function(np.uint16(old >> s & 0xFFFF), np.uint16(value >> s & 0xFFFF)) for s in (0, 16))
    return int(low) | int(high) << 16


def add_brain(old, value):
    return bfloat(from_bfloat(old) + from_bfloat(value))


def add_half(old, value):
    return (np.uint16(old).view(np.float16) + np.uint16(value).view(np.float16)).view(np.uint16)


OPERATIONS = {
    "add": lambda old, b: old + b, "min": min, "max": max, "and": lambda old, b: old & b, "or": lambda old, b: old | b,
    "xor": lambda old, b: old ^ b, "exch": lambda old, b: b,
    "inc": lambda old, b: 0 if old >= b else old + 1, "dec": lambda old, b: b if old == 0 or old > b else old - 1,
}  # fmt: skip
CASES = [
    *(("add", kind) for kind in ("u32", "s32", "u64", "s64", "f32", "f64", "f16", "bf16", "f16x2", "bf16x2")),
    *((name, kind) for name in ("min", "max") for kind in ("u32", "s32", "u64", "s64")),
    *((name, kind) for name in ("and", "or", "xor") for kind in ("b32", "b64")),
    ("exch", "b32"), ("exch", "b64"), ("inc", "u32"), ("dec", "u32"), ("cas", "b16"), ("cas", "b32"), ("cas", "b64"),
]  # fmt: skip
WIDTHS = {"bf16": 2, "bf16x2": 4, **{kind: dtype.itemsize for kind, dtype in DTYPES.items()}}


def kernel(opcode: str, name: str, width: int, space: str) -> str:
    """Each thread applies the instruction at its place of `cells`; in shared memory, on a copy that goes back."""
    b, r = 8 * width, "%rd" if width == 8 else "%h" if width == 2 else "%r"
    third = f", {r}3" if ".cas." in name else ""
    returned = f"{r}1, " if opcode == "atom" else ""
    place = f"mul.lo.u32 %r8, %r7, {width};"
    return f""".version 8.6
.target sm_90
.address_size 64
.shared .align 16 .b8 near[128];
.visible .entry k(.param .u64 cells, .param .u64 where, .param .u64 what, .param .u64 other, .param .u64 found)
{{
.reg .b16 %h<9>; .reg .b32 %r<12>; .reg .b64 %rd<20>; .reg .pred %p<2>;
ld.param.u64 %rd10, [cells]; ld.param.u64 %rd11, [where]; ld.param.u64 %rd12, [what]; ld.param.u64 %rd13, [other]; ld.param.u64 %rd14, [found];
mov.u32 %r9, %tid.x; mul.wide.u32 %rd15, %r9, 4; add.u64 %rd15, %rd15, %rd11; ld.global.u32 %r7, [%rd15];
mul.wide.u32 %rd15, %r9, {width}; add.u64 %rd16, %rd15, %rd12; ld.global.b{b} {r}2, [%rd16]; add.u64 %rd16, %rd15, %rd13; ld.global.b{b} {r}3, [%rd16];
add.u64 %rd18, %rd15, %rd14; {place} cvt.u64.u32 %rd17, %r8; mov.b{b} {r}1, 0;
setp.lt.u32 %p1, %r9, {PLACES}; mov.u32 %r6, near; mad.lo.u32 %r5, %r9, {width}, %r6; add.u64 %rd9, %rd10, %rd15;
@%p1 ld.global.b{b} {r}4, [%rd9]; @%p1 st.shared.b{b} [%r5], {r}4; bar.sync 0;
{{ .reg .u64 at; .reg .u32 near_at;
{"add.u32 near_at, %r6, %r8;" if space == "shared" else "add.u64 at, %rd10, %rd17;"}
{opcode}{"" if space == "generic" else "." + space}{name} {returned}[{"near_at" if space == "shared" else "at"}], {r}2{third}; }}
bar.sync 0; {f"@%p1 ld.shared.b{b} {r}4, [%r5]; @%p1 st.global.b{b} [%rd9], {r}4;" if space == "shared" else ""}
st.global.b{b} [%rd18], {r}1; ret;
}}
"""


def operands(kind: str, rng):
    """Return cells, operands and second operands of a type: hostile integers, ordinary floats."""
    shapes = (PLACES, THREADS, THREADS)
    if kind in ("f32", "f64"):
        return [(rng.standard_normal(n) * 100).astype(DTYPES[kind]) for n in shapes]
    if kind in ("f16", "f16x2"):
        return [
            rng.standard_normal(n * (2 if kind == "f16x2" else 1)).astype(np.float16).view(f"u{WIDTHS[kind]}")
            for n in shapes
        ]
    if kind in ("bf16", "bf16x2"):
        wide = [rng.standard_normal(n * (2 if kind == "bf16x2" else 1)).astype(np.float32) for n in shapes]
        return [(w.view(np.uint32) >> 16).astype(np.uint16).view(f"u{WIDTHS[kind]}") for w in wide]
    bits = [rng.integers(0, 2**63, n, dtype=np.int64).astype(DTYPES[kind]) for n in shapes]
    small = [rng.integers(0, 4, n).astype(DTYPES[kind]) for n in shapes]
    return [np.where(rng.random(n) < 0.5, a, b) for n, a, b in zip(shapes, bits, small, strict=True)]


def one_by_one(name, kind, cells, where, what, other):
    """Return what is left and what each thread finds."""
    function = OPERATIONS.get(name)
    if name == "add" and kind in ("f16", "bf16"):
        function = add_half if kind == "f16" else add_brain
    elif name == "add" and kind in ("f16x2", "bf16x2"):
        single = add_half if kind == "f16x2" else add_brain
        function = lambda old, b: halves(single, old, b)  # noqa: E731
    cells, found = cells.copy(), []
    mask = (1 << 8 * cells.itemsize) - 1
    for place, b, c in zip(where, what, other, strict=True):
        old = cells[place]
        found.append(old)
        if name == "cas":
            cells[place] = c if old == b else old
        elif cells.dtype.kind == "f":
            cells[place] = function(old, b)
        else:
            result = int(function(int(old), int(b))) & mask
            cells[place] = np.array(result, f"u{cells.itemsize}").view(cells.dtype)[()]
    return cells, np.array(found, cells.dtype)


@pytest.mark.parametrize("space", ["global", "shared", "generic"])
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_one_by_one(name, kind, space):
    rng = np.random.default_rng(len(name) + len(kind))
    cells, what, other = operands(kind, rng)
    where = rng.integers(0, PLACES, THREADS).astype(np.uint32)
    if name == "cas":
        what = np.where(rng.random(THREADS) < 0.5, cells[where], what)
    noftz = ".noftz" if kind in ("f16", "bf16", "f16x2", "bf16x2") else ""
    left, found = one_by_one(name, kind, cells, where, what, other)
    for opcode in ("atom", "red"):
        if opcode == "red" and name in ("exch", "cas"):
            continue
        got, seen = cells.copy(), np.zeros(THREADS, cells.dtype)
        text = kernel(opcode, f".{name}{noftz}.{kind}", cells.itemsize, space)
        Program(text).launch("k", (1,), (THREADS,), (got, where, what, other, seen))
        unsigned = f"u{cells.itemsize}"
        assert np.array_equal(got.view(unsigned), left.view(unsigned))
        if opcode == "atom":
            assert np.array_equal(seen.view(unsigned), found.view(unsigned))


@pytest.mark.parametrize("words", ["relaxed.cta", "acquire.gpu", "release.sys", "acq_rel.gpu", "relaxed.cluster"])
def test_orders_and_scopes_change_no_value(words):
    cells, where = np.zeros(PLACES, np.uint32), np.zeros(THREADS, np.uint32)
    one, seen = np.ones(THREADS, np.uint32), np.zeros(THREADS, np.uint32)
    text = kernel("atom", ".add.u32", 4, "global").replace("atom.global", f"atom.{words}.global")
    Program(text).launch("k", (1,), (THREADS,), (cells, where, one, one, seen))
    assert cells.tolist() == [THREADS, 0, 0, 0, 0]
    assert seen.tolist() == list(range(THREADS))


@pytest.mark.parametrize("space", ["global", "shared"])
def test_subnormal_sums_are_flushed_in_global_memory_alone(space):
    """PTX ISA, atom: .add of .f32 flushes subnormal inputs and results in global memory, not in shared memory."""
    tiny = np.float32(1e-39)
    cells = np.array([tiny, 1e-38, -2e-38, 0, -0.0], np.float32)
    where = np.arange(THREADS, dtype=np.uint32) % PLACES
    what = np.where(
        np.arange(THREADS) < PLACES, np.array([tiny, tiny, 1.5e-38, -tiny, -tiny], np.float32)[where], 0
    ).astype(np.float32)
    got, seen = cells.copy(), np.zeros(THREADS, np.float32)
    Program(kernel("red", ".add.f32", 4, space)).launch("k", (1,), (THREADS,), (got, where, what, what, seen))
    if space == "shared":
        assert np.array_equal(
            got, [tiny + tiny, np.float32(1e-38) + tiny, np.float32(-2e-38) + np.float32(1.5e-38), -tiny, -tiny]
        )
    else:
        assert got.tolist() == [0, 0, 0, 0, 0]


VECTORS = """extern "C" __global__ void k(float4* a, float2* b, unsigned* h, float4* found) {
  int i = threadIdx.x; float4 r;
  asm volatile("atom.global.add.v4.f32 {%0, %1, %2, %3}, [%4], {%5, %6, %7, %8};" : "=f"(r.x), "=f"(r.y), "=f"(r.z), "=f"(r.w)
    : "l"(a), "f"(1.0f), "f"(2.0f), "f"(i * 1.0f), "f"(-1.0f) : "memory");
  found[i] = r;
  asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" :: "l"(b), "f"(0.5f), "f"(i * 1.0f) : "memory");
  asm volatile("red.global.add.noftz.v2.f16x2 [%0], {%1, %2};" :: "l"(h), "r"(0x3C003C00), "r"(0x40003C00) : "memory");
  asm volatile("red.global.add.noftz.v4.bf16x2 [%0], {%1, %1, %1, %2};" :: "l"(h + 4), "r"(0x3F803F80), "r"(0x40003F80) : "memory");
}"""


def test_vectors_of_neighbours():
    program = Program(compile_ptx(VECTORS, "compute_90"))
    a, b = np.zeros((1, 4), np.float32), np.zeros((1, 2), np.float32)
    h, found = np.zeros(8, np.uint32), np.zeros((THREADS, 4), np.float32)
    program.launch("k", (1,), (THREADS,), (a, b, h, found))
    total = THREADS * (THREADS - 1) / 2
    assert a.tolist() == [[THREADS, 2 * THREADS, total, -THREADS]]
    assert b.tolist() == [[THREADS / 2, total]]
    assert found[:, 0].tolist() == list(range(THREADS))
    assert h[:2].view(np.float16).tolist() == [THREADS, THREADS, THREADS, 2 * THREADS]
    assert h[4:].tolist() == [0x42804280] * 3 + [0x43004280]  # 64 and 128 as bfloat16
    with pytest.raises(EmulatorFault, match=r"misaligned|multiple of 16"):
        program.launch("k", (1,), (1,), (np.zeros(9, np.float32)[1:], b, h, found))


def test_intrinsics_of_halves_on_every_architecture():
    """Before sm_90 bfloat16 is added by compare-and-swap, before sm_80 in software: the sums are the same."""
    text = """#include <cuda_fp16.h>
      #include <cuda_bf16.h>
      extern "C" __global__ void k(__half* a, __half2* b, __nv_bfloat16* c, __nv_bfloat162* d) {
        __shared__ __nv_bfloat162 near; if (threadIdx.x == 0) near = __nv_bfloat162(__nv_bfloat16(0.0f), __nv_bfloat16(1.0f)); __syncthreads();
        atomicAdd(a, __half(1.0f)); atomicAdd(b, __half2(__half(0.5f), __half(-1.0f)));
        atomicAdd(c, __nv_bfloat16(2.0f)); atomicAdd(d, __nv_bfloat162(__nv_bfloat16(1.0f), __nv_bfloat16(0.25f)));
        atomicAdd(&near, __nv_bfloat162(__nv_bfloat16(1.0f), __nv_bfloat16(1.0f))); __syncthreads(); if (threadIdx.x == 0) d[1] = near; }"""
    for arch in ("compute_75", "compute_80", "compute_90", "compute_100"):
        a, b, c, d = np.zeros(2, np.float16), np.zeros(2, np.float16), np.zeros(2, np.uint16), np.zeros(4, np.uint16)
        Program(compile_ptx(text, arch)).launch("k", (1,), (32,), (a, b, c, d))
        assert a[0] == 32, arch
        assert b.tolist() == [16, -32], arch
        assert [from_bfloat(v) for v in (c[0], *d)] == [64, 32, 8, 32, 33], arch


def test_sixteen_bytes_at_once():
    text = """struct alignas(16) Pair { unsigned long long x, y; };
      extern "C" __global__ void k(Pair* a, Pair* seen) { int i = threadIdx.x;
        seen[i] = atomicCAS(a, Pair{i ? 7ull : 5ull, 1}, Pair{7, 1}); seen[32 + i] = atomicExch(a + 1, Pair{(unsigned long long)i, 9}); }"""
    a, seen = np.array([5, 1, 3, 3], np.uint64), np.zeros((64, 2), np.uint64)
    Program(compile_ptx(text, "compute_90")).launch("k", (1,), (32,), (a, seen))
    assert a.tolist() == [7, 1, 31, 9]
    assert seen[:32].tolist() == [[5, 1]] + [[7, 1]] * 31
    assert seen[32:].tolist() == [[3, 3], *([i, 9] for i in range(31))]


@pytest.mark.parametrize("name", [".min.noftz.f16", ".add.v2.u32", ".min.f32", ".exch.u8"])
def test_refused_by_name(name):
    with pytest.raises(NotImplementedError, match=name.replace(".", r"\.")):
        Program(kernel("atom", name, 4, "global")).plan("k")
