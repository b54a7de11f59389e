# ruff: noqa: E501 (tables and kernels keep one case to a line)
"""Fragments of mma.h: loads and stores in both layouts, from global and shared memory, and the product."""

import numpy as np
import pytest
from conftest import compile_ptx

from styleforge_lib.runtime.emulator import EmulatorFault, Program, Trace

RNG = np.random.default_rng(0)


def kernel(shape, kind, result, a_layout, b_layout, c_layout, strides, shared):
    m, n, k = shape
    load_c = f"wmma::load_matrix_sync(fc, c + w * {m * n}, {strides[2]}, wmma::mem_{c_layout}_major);"
    a, b = "a + w * ASIZE", "b + w * BSIZE"
    stage = ""
    if shared:
        stage = f"__shared__ __align__(32) {kind} s[2][ASIZE]; for (int i = threadIdx.x % 32; i < ASIZE; i += 32) s[threadIdx.x / 32][i] = a[w * ASIZE + i]; __syncwarp();"
        a = "s[threadIdx.x / 32]"
    text = f"""#include <cuda_bf16.h>
#include <mma.h>
using namespace nvcuda;
extern "C" __global__ void k(const {kind}* a, const {kind}* b, const {result}* c, {result}* d) {{
  int w = (blockIdx.x * blockDim.x + threadIdx.x) / 32; {stage}
  wmma::fragment<wmma::matrix_a, {m}, {n}, {k}, {kind}, wmma::{a_layout}_major> fa; wmma::fragment<wmma::matrix_b, {m}, {n}, {k}, {kind}, wmma::{b_layout}_major> fb;
  wmma::fragment<wmma::accumulator, {m}, {n}, {k}, {result}> fc;
  wmma::load_matrix_sync(fa, {a}, {strides[0]}); wmma::load_matrix_sync(fb, {b}, {strides[1]}); {load_c}
  wmma::mma_sync(fc, fa, fb, fc); for (int i = 0; i < fc.num_elements; i++) fc.x[i] = fc.x[i] * ({result})2.0f;
  wmma::store_matrix_sync(d + w * {m * n}, fc, {strides[2]}, wmma::mem_{c_layout}_major); }}"""
    sizes = {
        "ASIZE": strides[0] * (m if a_layout == "row" else k),
        "BSIZE": strides[1] * (k if b_layout == "row" else n),
    }
    for name, size in sizes.items():
        text = text.replace(name, str(size))
    return text


@pytest.mark.parametrize(("shape", "kind", "result", "layouts", "arch", "shared"), [
    ((16, 16, 16), "half", "float", ("row", "col", "row"), "compute_75", False), ((16, 16, 16), "half", "half", ("col", "row", "col"), "compute_80", True),
    ((32, 8, 16), "half", "float", ("row", "row", "col"), "compute_80", True), ((8, 32, 16), "half", "half", ("col", "col", "row"), "compute_90", False),
    ((16, 16, 16), "__nv_bfloat16", "float", ("row", "row", "row"), "compute_80", True), ((8, 32, 16), "__nv_bfloat16", "float", ("col", "col", "col"), "compute_90", False),
])  # fmt: skip
def test_product(shape, kind, result, layouts, arch, shared):
    m, n, k = shape
    sizes = ((m, k), (k, n), (m, n))
    pad = (8, 8, 0)
    stored, values, strides = [], [], []
    for (rows, columns), layout, extra in zip(sizes, layouts, pad, strict=True):
        lines, line = (rows, columns) if layout == "row" else (columns, rows)
        strides.append(line + extra)
        data = (RNG.integers(-32, 33, (4, lines, line + extra)) / 4).astype(np.float32)
        stored.append(data)
        values.append(data[..., :line] if layout == "row" else data[..., :line].swapaxes(-1, -2))
    if kind == "half":
        a, b = (data.astype(np.float16).view(np.uint16) for data in stored[:2])
    else:
        a, b = ((data.view(np.uint32) >> 16).astype(np.uint16) for data in stored[:2])
    c = stored[2].astype(np.float16 if result == "half" else np.float32)
    d = np.full_like(c, np.nan)
    trace = Trace()
    text = kernel(shape, kind, result, *layouts, strides, shared)
    Program(compile_ptx(text, arch)).launch(
        "k", (2,), (64,), (a, b, c.view(f"u{c.itemsize}"), d.view(f"u{c.itemsize}")), trace=trace
    )
    wanted = (values[0].astype(np.float64) @ values[1] + values[2]) * 2
    got = d if layouts[2] == "row" else d.swapaxes(-1, -2)
    assert np.array_equal(got, wanted.astype(c.dtype))
    assert not trace.races
    assert not trace.faults


@pytest.mark.parametrize(("offset", "stride"), [(4, 16), (0, 20)])
def test_alignment(offset, stride):
    text = f"""#include <mma.h>
      extern "C" __global__ void k(const half* a, half* b) {{ nvcuda::wmma::fragment<nvcuda::wmma::matrix_a, 16, 16, 16, half, nvcuda::wmma::row_major> f;
      nvcuda::wmma::load_matrix_sync(f, a + {offset}, {stride}); b[threadIdx.x] = f.x[0]; }}"""
    a, b = np.zeros(400, np.uint16), np.zeros(32, np.uint16)
    with pytest.raises(EmulatorFault, match="multiple of 16") as caught:
        Program(compile_ptx(text)).launch("k", (1,), (32,), (a, b))
    assert (caught.value.kind, caught.value.line) == ("misaligned", 3)


def test_refused_by_name():
    text = """#include <mma.h>
      extern "C" __global__ void k(const signed char* a) { nvcuda::wmma::fragment<nvcuda::wmma::matrix_a, 16, 16, 16, signed char, nvcuda::wmma::row_major> f;
      nvcuda::wmma::load_matrix_sync(f, a, 16); asm volatile("" :: "r"((int)f.x[0])); }"""
    with pytest.raises(NotImplementedError, match=r"wmma\.load\.a.*line 3.*mma\.sync"):
        Program(compile_ptx(text)).plan("k")
