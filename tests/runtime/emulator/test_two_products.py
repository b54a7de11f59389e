"""Sums of two products that share a factor of each: the bits of a product, rounded, and a fused multiply-add."""

import sys

import numpy as np
import pytest
from conftest import compile_ptx

from styleforge_lib.runtime.emulator import Program
from styleforge_lib.runtime.emulator.translate import two_products
from styleforge_lib.runtime.emulator.translate.multiply_add import fma32

FULL, BY_THREAD, BY_BLOCK = (64, 96), (64, 1), (1, 96)
HOSTILE = (np.inf, -np.inf, np.nan, -0.0, 0.0, 1e-40, -1e-30, 3e38, -3e38)


def values(rng, shape, hostile=False):
    found = np.asarray(rng.standard_normal(shape), np.float32)
    if hostile and shape:
        places = rng.choice(found.size, found.size // 3, replace=False)
        found.reshape(-1)[places] = rng.choice(HOSTILE, places.size)
    return found[()]


def assert_same(found, wanted):
    found, wanted = np.broadcast_arrays(found, wanted)
    numbers = ~(np.isnan(found) & np.isnan(wanted))
    assert np.array_equal(found.view(np.uint32)[numbers], wanted.view(np.uint32)[numbers])


@pytest.fixture(autouse=True)
def quiet():
    with np.errstate(all="ignore"):
        yield


@pytest.mark.parametrize("hostile", [False, True])
@pytest.mark.parametrize("shapes", [
    (FULL, FULL, FULL, BY_BLOCK), (FULL, BY_THREAD, (), BY_BLOCK), (BY_BLOCK, (), BY_THREAD, ()), ((), (), FULL, FULL),
    ((5000,), (5000,), (5000,), ()), ((), (), (), ()),
])  # fmt: skip
def test_the_same_bits(shapes, hostile):
    """Also where a sum goes on from one before, which stays as it was."""
    rng = np.random.default_rng(2)
    a, x, b, _ = (values(rng, shape, hostile) for shape in shapes)
    sums, wanted = two_products.TwoProducts(a, x), b
    for turn in range(4):
        y = values(rng, shapes[3] if turn < 3 else (), hostile)
        before, old = b, b.copy()
        b, wanted = sums.sum(b, y), fma32(a, np.array(wanted)[()], x * y)
        assert_same(b, wanted)
        assert_same(before, old)


def test_a_value_wider_than_the_first():
    rng = np.random.default_rng(3)
    a, x, y = values(rng, BY_BLOCK), values(rng, (1, 1)), values(rng, BY_BLOCK)
    a, x = np.tile(a, 4), np.tile(x, (1, 4 * BY_BLOCK[1]))
    sums = two_products.TwoProducts(a, x)
    for b in (np.tile(y, 4), values(rng, (64, a.size))):
        assert_same(sums.sum(b, a), fma32(a, b, x * a))


def test_rounding_both_products_or_none_is_seen(monkeypatch):
    agrees = two_products.COMPLEX_PRODUCT_FUSES and two_products._complex_product_rounds()
    assert agrees == two_products.COMPLEX_PRODUCT_ROUNDS
    product = np.multiply
    for way in (lambda p, r: product(p, r.astype(np.complex128)).astype(np.complex64),
                lambda p, r: (p.real * r.imag + p.imag * r.real) * np.complex64(1j)):  # fmt: skip
        monkeypatch.setattr(two_products.np, "multiply", way)
        assert not two_products._complex_product_rounds()


@pytest.mark.parametrize("hostile", [False, True])
@pytest.mark.parametrize("others", [0, 1, 40, 3000])
def test_where_most_lanes_only_add(others, hostile, monkeypatch):
    """The bits of a fused multiply-add too, from turn to turn, whether the sums go on from those before or not."""
    rng = np.random.default_rng(5)
    added, added_up = [], two_products._mostly_added
    monkeypatch.setattr(two_products, "_mostly_added", lambda *parts: added.append(len(parts[4])) or added_up(*parts))
    kept, sums = [], [values(rng, FULL, hostile) for _ in range(5)]
    for turn in range(6):
        a, x = np.ones(FULL, np.float32), values(rng, FULL, hostile)
        a.reshape(-1)[rng.choice(a.size, others, replace=False)] = values(rng, (others,), hostile)
        ys = [values(rng, BY_BLOCK, hostile) for _ in sums]
        if turn == 3:
            sums[2] = values(rng, FULL, hostile)  # another in its place
        if turn == 5:
            a = values(rng, FULL)  # 1 nowhere
        wanted = [fma32(a, np.array(b), x * y) for b, y in zip(sums, ys, strict=True)]
        before = [(b, b.copy()) for b in sums]
        sums = two_products.scaled_sums(a, x, list(sums), tuple(ys), kept)
        for found, right in zip(sums, wanted, strict=True):
            assert_same(found, right)
        for now, then in before:
            assert_same(now, then)
    assert added == ([] if others == 3000 else [others] * 5)


@pytest.mark.parametrize("shapes", [
    (BY_THREAD, FULL, FULL, BY_BLOCK), (FULL, BY_BLOCK, FULL, BY_BLOCK), (FULL, FULL, BY_THREAD, BY_BLOCK),
    (FULL, FULL, FULL, ()), (FULL, FULL, FULL, BY_THREAD), ((5000,), (5000,), (5000,), ()), ((), (), FULL, FULL),
])  # fmt: skip
def test_other_shapes_with_a_scale_of_one(shapes):
    rng = np.random.default_rng(6)
    _, x, b, y = (values(rng, shape) for shape in shapes)
    a = np.ones(shapes[0], np.float32)[()]
    for found in two_products.scaled_sums(a, x, [b] * 3, (y,) * 3, []):
        assert_same(found, fma32(a, b, x * y))


KERNEL = """extern "C" __global__ void k(const float* x, const float* w, float* y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x, lanes = gridDim.x * blockDim.x;
  float s[5] = {}, t = 0;
  for (int j = 0; j < n; j++) {
    float keep = x[j * lanes + i], more = x[(j + n) * lanes + i];
    #pragma unroll
    for (int o = 0; o < 5; o++) {
      float p = __fmul_rn(FACTOR, w[blockIdx.x % 7 * 5 + o]); s[o] = __fmaf_rn(s[o], keep, p); READ } }
  for (int o = 0; o < 5; o++) y[o * lanes + i] = s[o];
  y[5 * lanes + i] = t; }"""


@pytest.mark.parametrize(("factor", "read", "folded"), [
    ("more", "", True), ("keep", "", True), ("more", "if (o == 4) t += p;", True), ("more", "t += p;", False),
    ("x[o * lanes + i]", "", False),
])  # fmt: skip
@pytest.mark.parametrize("threads", [64, 48])
def test_in_a_kernel(factor, read, folded, threads, monkeypatch):
    """The multiplication goes only where nothing else reads it, and its factor serves several sums."""
    ptx = compile_ptx(KERNEL.replace("FACTOR", factor).replace("READ", read))
    rng = np.random.default_rng(4)
    lanes = 32 * threads
    x, w = (rng.standard_normal(size).astype(np.float32) for size in (6 * lanes, 35))
    results, made = [], []
    begin = two_products.TwoProducts.__init__
    monkeypatch.setattr(two_products.TwoProducts, "__init__", lambda *parts: made.append(1) or begin(*parts))
    for worth in (two_products._WORTH_SHARING, 1 << 30):
        monkeypatch.setattr(two_products, "_WORTH_SHARING", worth)
        made.clear()
        y = np.zeros((6, lanes), np.float32)
        Program(ptx).launch("k", (32,), (threads,), (x, w, y, np.int32(3)))
        results.append(y.view(np.uint32))
        assert bool(made) == (folded and worth < 9)
    assert np.array_equal(*results)


def test_a_block_holds_no_register_that_it_has_read_last(monkeypatch):
    """So its memory is free for the next result, while it is in the cache."""
    program, seen = Program(compile_ptx(KERNEL.replace("FACTOR", "more").replace("READ", ""))), []
    one_sum = two_products.TwoProducts.sum

    def watched(self, b, y):
        seen.append(sys.getrefcount(b))
        return one_sum(self, b, y)

    monkeypatch.setattr(two_products.TwoProducts, "sum", watched)
    x, y = np.full((6, 2048), 2, np.float32), np.zeros((6, 2048), np.float32)
    program.launch("k", (32,), (64,), (x, x[:1, :35].copy(), y, np.int32(3)))
    # The block's variable, the call's argument, and the caller of getrefcount's: nobody else.
    assert max(seen[-5:]) <= 3 + (sys.version_info < (3, 11))
