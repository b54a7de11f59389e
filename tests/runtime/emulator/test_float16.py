"""float16 conversions by table and by integers: NumPy's own are the reference, bit by bit."""

import numpy as np
import pytest

from styleforge_lib.runtime.emulator.float16 import (
    fused_half,
    halved,
    narrowed,
    narrowed_pair,
    rounded_half,
    widened,
    widened_half,
)

RNG = np.random.default_rng(0)
COUNT = 100_000


def bits_of(value):
    return value.view(f"u{value.dtype.itemsize}")


def test_every_float16_widens():
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    with np.errstate(invalid="ignore"):
        wanted = halves.astype(np.float32)
    assert np.array_equal(bits_of(widened(halves)), bits_of(wanted))
    assert np.array_equal(bits_of(widened(halves[::2])), bits_of(wanted[::2]))
    assert widened(np.float16(1.5)) == np.float32(1.5)


def any_bits():
    return RNG.integers(0, 1 << 32, COUNT, dtype=np.uint64).astype(np.uint32)


def near_float16():
    """Return what float16 can hold and its borders, half of them with the 12 low bits clear: ties."""
    bits = RNG.integers(0x37000000, 0x47900000, COUNT, dtype=np.uint32) | any_bits() & np.uint32(1 << 31)
    return np.where(RNG.random(COUNT) < 0.5, bits & np.uint32(0xFFFFF000), bits)


def ordinary():
    return bits_of(RNG.standard_normal(COUNT).astype(np.float32))


def many_zeros():
    return np.where(RNG.random(COUNT) < 0.5, ordinary() & np.uint32(1 << 31), ordinary())


@pytest.mark.parametrize("bits", [any_bits, near_float16, ordinary, many_zeros])
@pytest.mark.parametrize("nudge", [None, 0.0, 1e-16, -3e-16, 1e-12, -1e-12, 1e-9])
def test_narrowing(bits, nudge):
    """Of float32, and of float64 a little beside float32: one rounding, not two."""
    with np.errstate(all="ignore"):
        value = bits().view(np.float32)
        if nudge is not None:
            value = value.astype(np.float64) * (1 + nudge)
        assert np.array_equal(bits_of(halved(value)), bits_of(value.astype(np.float16)))
        strided = value.reshape(-1, 2)[:, 1]
        assert np.array_equal(bits_of(halved(strided)), bits_of(strided.astype(np.float16)))


def test_few_lanes_and_scalars():
    with np.errstate(over="ignore"):
        assert halved(np.float32(65520)) == np.inf
    assert halved(np.float64(1 + 2**-11)) == 1
    assert np.array_equal(halved(np.array([1e-8, 1 + 3 * 2**-11], np.float32)), np.array([0, 1 + 2**-9], np.float16))


def any_half():
    return RNG.integers(0, 1 << 16, COUNT).astype(np.uint16).view(np.float16)


def ordinary_half():
    return RNG.standard_normal(COUNT).astype(np.float16)


def small_integers_scaled():
    """Return few significant bits at many exponents: sums that are ties, and subnormal ones."""
    with np.errstate(over="ignore"):
        return (RNG.integers(-40, 40, COUNT) * 2.0 ** RNG.integers(-24, 10, COUNT)).astype(np.float16)


def zeros_of_both_signs():
    return np.where(RNG.random(COUNT) < 0.5, np.float16(-0.0), ordinary_half() * np.float16(0))


def same(got, wanted) -> bool:
    """Whether float16 agree bit by bit; of two NaN operands, which one's payload a sum has is left open."""
    return bool(((bits_of(got) == bits_of(wanted)) | (np.isnan(got) & np.isnan(wanted))).all())


def test_every_half_of_a_pair_widens():
    low = np.arange(1 << 16, dtype=np.uint32)
    pair = low | low[::-1] << np.uint32(16)
    wanted = bits_of(widened(low.astype(np.uint16).view(np.float16)))
    assert np.array_equal(bits_of(widened_half(pair, 0)), wanted)
    assert np.array_equal(bits_of(widened_half(pair, 1)), wanted[::-1])
    assert widened_half(np.uint32(0x3E00C000), 1) == 1.5
    assert widened_half(np.uint32(0x3E00C000), 0) == -2


def test_every_rounded_value_narrows():
    with np.errstate(invalid="ignore"):
        value = widened(np.arange(1 << 16, dtype=np.uint16).view(np.float16))
        value = np.where(np.isnan(value), value + value, value)  # arithmetic gives no signalling NaN
        wanted = bits_of(value.astype(np.float16))
        assert np.array_equal(bits_of(narrowed(value)), wanted)
        pair = wanted | wanted[::-1].astype(np.uint32) << np.uint32(16)
        assert np.array_equal(narrowed_pair(value, value[::-1].copy()), pair)
        assert narrowed_pair(np.float32(1.5), np.float32(-2)) == np.uint32(0xC0003E00)


@pytest.mark.parametrize("values", [any_half, ordinary_half, small_integers_scaled, zeros_of_both_signs])
def test_arithmetic_rounds_once(values):
    with np.errstate(all="ignore"):
        for addend in (values, ordinary_half):
            x, y, z = (widened(make()) for make in (values, values, addend))
            wanted = (x.astype(np.float64) * y + z).astype(np.float16)
            assert same(narrowed(fused_half(x, y, z)), wanted)
            for result in (x + z, x - z, x * z):
                assert same(narrowed(rounded_half(result)), result.astype(np.float16))


def test_a_fused_product_of_narrow_operands():
    """One value per row and one per column, as the emulator holds what depends on a thread or a block alone."""
    column, row = (widened(ordinary_half()[:200].reshape(shape)) for shape in ((200, 1), (1, 200)))
    for addend in (column, row, column + row, np.float32(0.25)):
        addend = widened(addend.astype(np.float16))
        wanted = (column.astype(np.float64) * row + addend).astype(np.float16)
        assert np.array_equal(bits_of(narrowed(fused_half(column, row, addend))), bits_of(wanted))
    assert fused_half(np.float32(3), np.float32(2**-12), np.float32(1)) == np.float32(1 + 2**-10)
