"""Sums of products that share their factors: as matrix products they have the bits of one fused product at a time."""

import numpy as np
import pytest
from conftest import compile_ptx

from styleforge_lib.runtime.emulator import Program
from styleforge_lib.runtime.emulator.translate import matrix_sums
from styleforge_lib.runtime.emulator.translate.multiply_add import fma32

THREADS, BLOCKS = 64, 96
FULL, BY_THREAD, BY_BLOCK = (THREADS, BLOCKS), (THREADS, 1), (1, BLOCKS)


def values(rng, shape):
    return np.asarray(rng.standard_normal(shape), np.float32)[()]


def weights(rng, sums, depth, runs):
    """One value for each run of blocks; 0: constants."""
    if not runs:
        return [[np.float32(v) for v in row] for row in rng.standard_normal((sums, depth))]
    wide = np.repeat(rng.standard_normal((sums, depth, 1, runs)), BLOCKS // runs, axis=3).astype(np.float32)
    return [list(row) for row in wide]


def one_by_one(addends, factors, table):
    shape = np.broadcast_shapes(*(np.shape(v) for v in (*addends, *factors)))
    sums = [np.broadcast_to(addend, shape) for addend in addends]
    for number, factor in enumerate(factors):
        sums = [
            fma32(np.asarray(row[number]), np.broadcast_to(factor, shape), c)
            for row, c in zip(table, sums, strict=True)
        ]
    return sums


def assert_same(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        one, other = np.broadcast_arrays(one, other)
        numbers = ~(np.isnan(one) & np.isnan(other))
        assert np.array_equal(one.view(np.uint32)[numbers], other.view(np.uint32)[numbers])


@pytest.fixture(autouse=True)
def quiet():
    with np.errstate(all="ignore"):
        yield


@pytest.mark.parametrize("kept", [None, ()])
@pytest.mark.parametrize("runs", [0, 1, 2, 6, 96])
@pytest.mark.parametrize("sums", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("depth", [2, 9, 31])
def test_the_same_bits(sums, depth, runs, kept):
    rng = np.random.default_rng(sums * depth)
    addends = [values(rng, shape) for shape in (FULL, (), BY_THREAD, BY_BLOCK)][: min(4, sums)]
    addends += [values(rng, FULL) for _ in range(sums - len(addends))]
    factors = [values(rng, FULL if k % 3 else BY_THREAD) for k in range(depth)]
    table, kept = weights(rng, sums, depth, runs), kept if kept is None else list(kept)
    assert_same(matrix_sums.sums_together(addends, factors, table, kept), one_by_one(addends, factors, table))


def test_of_lanes_in_a_row():
    """A set of lanes that is no grid: its values have one axis."""
    rng = np.random.default_rng(1)
    addends, factors = [values(rng, 5001) for _ in range(4)], [values(rng, 5001) for _ in range(5)]
    table = weights(rng, 4, 5, 0)
    assert_same(matrix_sums.sums_together(addends, factors, table, None), one_by_one(addends, factors, table))


HOSTILE = {
    "infinity": (np.inf, 1), "nan": (np.nan, 1), "negative zero": (-0.0, 0), "zero": (0.0, 0),
    "subnormal": (np.float32(1e-40), 1), "tiny": (np.float32(-1e-30), 1), "huge": (np.float32(3e38), 1),
}  # fmt: skip


@pytest.mark.parametrize("where", ["addend", "factor", "all factors", "weight"])
@pytest.mark.parametrize("what", HOSTILE)
def test_numbers_that_a_matrix_product_gets_wrong(what, where):
    value, others = HOSTILE[what]
    rng = np.random.default_rng(2)
    addends = [values(rng, FULL) * np.float32(others) for _ in range(5)]
    factors, table = [values(rng, FULL) for _ in range(4)], weights(rng, 5, 4, 2)
    if where == "addend":
        addends[1][3, 5] = value
    elif where == "factor":
        factors[2][:, 7] = value
    elif where == "all factors":
        factors = [np.full(FULL, value, np.float32)] * 4
    else:
        table[3][1] = np.full(BY_BLOCK, value, np.float32)
    assert_same(matrix_sums.sums_together(addends, factors, table, None), one_by_one(addends, factors, table))


def test_a_negative_zero_from_a_product_that_is_too_small():
    addends, factors = [np.zeros(FULL, np.float32)] * 2, [np.full(FULL, 1e-30, np.float32)] * 2
    table = [[np.float32(-1e-30)] * 2, [np.float32(1e-30)] * 2]
    found = matrix_sums.sums_together(addends, factors, table, None)
    assert np.signbit(found[0]).all()
    assert not np.signbit(found[1]).any()


def test_a_library_that_adds_in_another_order_is_not_used(monkeypatch):
    product = np.matmul
    monkeypatch.setattr(matrix_sums.np, "matmul", lambda a, b: product(a[:, :, ::-1].copy(), b[:, ::-1].copy()))
    assert not matrix_sums._agrees.__wrapped__(2, 2, 9, 64)


def test_one_wrong_element_is_seen(monkeypatch):
    product = np.matmul

    def careless(a, b):
        out = product(a, b)
        out[-1, -1, -1] = np.nextafter(out[-1, -1, -1], np.float32(9))
        return out

    monkeypatch.setattr(matrix_sums.np, "matmul", careless)
    assert not matrix_sums._agrees.__wrapped__(2, 2, 3, 64)


def test_products_that_the_library_would_share_among_threads_are_not_asked_for():
    assert not matrix_sums._agrees(8, 8, 9, 1 << 14)
    for unit in (8, 32, 64, 1024, 4096):
        if (sizes := matrix_sums._sizes(8, 9, 512, 4096, unit)) is not None:
            columns = unit * sizes.height if sizes.gathered else unit
            assert sizes.rows * (sizes.sums + 9) * columns <= 1 << 17


def test_matrices_are_kept_for_the_same_factors_alone():
    rng = np.random.default_rng(5)
    kept = []
    factors = tuple(values(rng, FULL) for _ in range(9))
    for turn in range(4):
        if turn == 2:
            factors = (*factors[:4], values(rng, FULL), *factors[5:])
        addends, table = [values(rng, FULL) for _ in range(3)], weights(rng, 3, 9, 6)
        found = matrix_sums.sums_together(addends, factors, table, kept)
        assert_same(found, one_by_one(addends, factors, table))


KERNEL = """extern "C" __global__ void k(const float* x, const float* w, float* y, int n) {
  __shared__ float weight[6][5]; int i = blockIdx.x * blockDim.x + threadIdx.x, lanes = gridDim.x * blockDim.x;
  if (threadIdx.x < 30) weight[threadIdx.x / 5][threadIdx.x % 5] = w[blockIdx.x / 32 * 30 + threadIdx.x];
  __syncthreads();
  float s[6]; for (int o = 0; o < 6; o++) s[o] = x[i + o];
  for (int j = 0; j < n; j++) {
    #pragma unroll
    for (int k = 0; k < 5; k++) { float v = x[j * lanes + i + k];
      #pragma unroll
      for (int o = 0; o < 6; o++) s[o] = fmaf(v, weight[o][k], s[o]); }
    READ }
  for (int o = 0; o < 6; o++) y[o * lanes + i] = s[o]; }"""
READS = {
    "nothing": "",
    "a step of one sum": "y[(6 + j) * lanes + i] = s[2]; s[2] = fmaf(s[1], 2.f, s[2]);",
    "one sum in another": "s[3] = fmaf(x[i], s[0], s[3]); s[0] = 1;",
}


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("threads", [64, 48])
def test_in_a_kernel(read, threads, monkeypatch):
    ptx = compile_ptx(KERNEL.replace("READ", READS[read]))
    rng = np.random.default_rng(4)
    blocks, turns = 64, 3
    lanes = threads * blocks
    x, w = (rng.standard_normal(size).astype(np.float32) for size in (lanes * turns + 16, 60))
    results, used = [], []
    by_matrices = matrix_sums._by_matrices
    monkeypatch.setattr(matrix_sums, "_by_matrices", lambda *sums: used.append(by_matrices(*sums)) or used[-1])
    for worth in (matrix_sums._WORTH_LANES, 1 << 30):
        monkeypatch.setattr(matrix_sums, "_WORTH_LANES", worth)
        y = np.zeros((6 + turns, lanes), np.float32)
        Program(ptx).launch("k", (blocks,), (threads,), (x, w, y, np.int32(turns)))
        results.append(y.view(np.uint32))
    assert np.array_equal(*results)
    assert used  # the kernel has such sums
    assert used[-1] is None
    assert used[0] is not None or not matrix_sums._agrees(2, 2, 5, 2048)


SCALED = """extern "C" __global__ void k(const float* x, const float* w, float* y, int n) {
  __shared__ float weight[10][10]; int i = blockIdx.x * blockDim.x + threadIdx.x, lanes = gridDim.x * blockDim.x;
  for (int k = threadIdx.x; k < 100; k += blockDim.x) weight[k / 10][k % 10] = w[blockIdx.x / 4 * 100 + k];
  __syncthreads();
  float s[10]; for (int o = 0; o < 10; o++) s[o] = x[i + o];
  for (int j = 0; j < n; j++) {
    float keep = x[j * lanes + i], p[10];
    #pragma unroll
    for (int k = 0; k < 10; k++) p[k] = x[j * lanes + i + k] * keep;
    #pragma unroll
    for (int o = 0; o < 10; o++) { s[o] = fmaf(s[o], keep, p[0] * weight[0][o]);
      #pragma unroll
      for (int k = 1; k < 10; k++) s[o] = fmaf(p[k], weight[k][o], s[o]); } }
  for (int o = 0; o < 10; o++) y[o * lanes + i] = s[o]; }"""


def test_sums_that_are_scaled_first(monkeypatch):
    """Their first product is no matrix's; those behind are, though only four blocks share their weights."""
    ptx = compile_ptx(SCALED)
    rng = np.random.default_rng(8)
    lanes = 32 * 128
    x, w = (rng.standard_normal(size).astype(np.float32) for size in (4 * lanes, 800))
    used, by_matrices, results = [], matrix_sums._by_matrices, []
    monkeypatch.setattr(matrix_sums, "_by_matrices", lambda *sums: used.append(by_matrices(*sums)) or used[-1])
    for worth in (matrix_sums._WORTH_ONE, 1 << 30):
        monkeypatch.setattr(matrix_sums, "_WORTH_ONE", worth)
        used.clear()
        y = np.zeros((10, lanes), np.float32)
        Program(ptx).launch("k", (32,), (128,), (x, w, y, np.int32(3)))
        results.append(y.view(np.uint32))
        together = any(sums is not None and len(sums) == 10 for sums in used)
        assert together == (worth < 99 and matrix_sums._agrees(2, 2, 9, 512))
    assert np.array_equal(*results)
