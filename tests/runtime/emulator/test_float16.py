"""float16 conversions by table and by integers: NumPy's own are the reference, bit by bit."""

import numpy as np
import pytest

from styleforge_lib.runtime.emulator.float16 import halved, widened

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
