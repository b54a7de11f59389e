"""float16 to and from wider floats, exactly as NumPy's own conversions, in a third of their time.

NumPy converts lane by lane, in software. Here a float16 becomes a float32 when its bits are put where a float32 has
them and the result is multiplied by 2^112, the distance of their exponents; that product is exact, of subnormal numbers
too. Narrowing is integer arithmetic on float32 bits (round half to even at bit 13, move the exponent) wherever the
result is an ordinary number; the few lanes that are zero, subnormal, infinite or NaN go NumPy's way. So do float64
values whose float32 lies exactly between two float16: there, rounding twice could go wrong.

Arithmetic (`rounded_half`, `fused_half`) leaves its result in a float32, rounded to what a float16 can hold, because
the next instruction would only widen it again; `narrowed` and `narrowed_pair` make bits of it where bits are wanted.
"""

from __future__ import annotations

import numpy as np

from .lanes import picked

F2, F4 = np.dtype(np.float16), np.dtype(np.float32)
_WORTH_IT = 512  # lanes
with np.errstate(invalid="ignore"):  # signalling NaN become quiet, as they do on a GPU
    VALUES = np.arange(1 << 16, dtype=np.uint16).view(F2).astype(F4)
_U4 = np.uint32
_LEAST, _MOST = _U4(0x38800000), _U4(0x477FF000)  # 2^-14, the least normal; 65520, which rounds to infinity
_RANGE = _U4(_MOST - _LEAST)
_I4 = np.int32
_MIDPOINT, _BELOW_HALF = _I4(-(2**31)), _I4(19)  # a float32 exactly between two float16, and where its 13 low bits end
_TINY, _HUGE = F4.type(2.0**-14), F4.type(65520)
_SPLITTER = F4.type(2.0**13 + 1)
_UP, _DOWN = F4.type(2.0**112), F4.type(2.0**-112)


# --- wider ------------------------------------------------------------------------------------------------------------


def widened(half):
    """Return float16 as float32."""
    if not isinstance(half, np.ndarray) or half.size < _WORTH_IT:
        return half.astype(F4)
    return widened_half(half.view(np.uint16).astype(_U4), 0)


def widened_half(pair, which):
    """Return one float16 of a 32-bit word as float32."""
    if not isinstance(pair, np.ndarray) or pair.size < _WORTH_IT:
        return (pair >> _U4(16) if which else pair).astype(np.uint16).view(F2).astype(F4)
    bits = pair.view(_I4)
    if which:
        bits = bits >> _I4(3)
    else:
        bits = bits << _I4(16)
        bits >>= _I4(3)
    bits &= _I4(~0x70001FFF)
    value = bits.view(F4)
    value *= _UP
    if value.max() >= 65536 or value.min() <= -65536:  # where the float16 is infinite or NaN
        where = np.abs(value) >= 65536
        value[where] = VALUES[(pair[where] >> _U4(16 * which)) & _U4(0xFFFF)]
    return value


# --- narrower ---------------------------------------------------------------------------------------------------------


def halved(value):
    """Return float32 or float64 rounded to the nearest float16, ties to even."""
    if not isinstance(value, np.ndarray) or value.size < _WORTH_IT:
        return value.astype(F2)
    bits = value.astype(F4, copy=False).view(_U4)
    size = bits & _U4(0x7FFFFFFF)
    rare = (size - _LEAST) >= _RANGE
    if value.dtype != F4:
        rare |= (size & _U4(0x1FFF)) == _U4(0x1000)
    count = np.count_nonzero(rare)
    if count * 4 > rare.size:
        return value.astype(F2)
    last = size >> _U4(13)
    last &= _U4(1)
    last += _U4(0xFFF)
    size += last
    size >>= _U4(13)
    size -= _U4(112 << 10)
    sign = bits >> _U4(16)
    sign &= _U4(0x8000)
    size |= sign
    result = size.astype(np.uint16).view(F2)
    if count:
        result[rare] = value[rare].astype(F2)
    return result


# --- rounded, but still wide ------------------------------------------------------------------------------------------


def rounded_half(value):
    """Return float32 rounded to what a float16 holds, ties to even, as float32."""
    if not isinstance(value, np.ndarray) or value.size < _WORTH_IT:
        return value.astype(F2).astype(F4)
    return _rounded(value, lambda where: value[where])


def fused_half(a, b, c):
    """Return a * b + c of float16 in float32, rounded once to what a float16 holds, as float32.

    The product is exact in float32. Rounding the sum to float32 first goes wrong only where that lies exactly between
    two float16, or is too small for an ordinary float16: there it is taken in float64, which holds it as far as needed.
    """
    value = a * b
    if isinstance(value, np.ndarray) and value.shape == np.broadcast(value, c).shape:
        value += c
    else:
        value = value + c
    if not isinstance(value, np.ndarray) or value.size < _WORTH_IT:
        return (a.astype(np.float64) * b.astype(np.float64) + c).astype(F2).astype(F4)

    def exactly(where: tuple[np.ndarray, ...]) -> np.ndarray:
        x, y, z = (picked(one, where).astype(np.float64) for one in (a, b, c))
        return x * y + z

    return _rounded(value, exactly)


def _rounded(value: np.ndarray, exactly) -> np.ndarray:
    """Round to 11 bits (Veltkamp's splitting); `exactly(where)` are the numbers behind the lanes that it may get wrong.

    It does not say which way ties go, and knows of no subnormal float16, nor of infinity.
    """
    work = np.multiply(value, _SPLITTER)
    result = work - value
    np.subtract(work, result, out=result)
    doubtful = None
    shifted = np.left_shift(value.view(_I4), _BELOW_HALF, out=work.view(_I4))
    if shifted.min() == _MIDPOINT:
        doubtful = shifted == _MIDPOINT
    size = np.abs(value, out=work)
    small = size < _TINY
    if small.any():
        small &= size != 0
        doubtful = small if doubtful is None else np.logical_or(doubtful, small, out=small)
    if not size.max() < _HUGE:
        large = ~(size < _HUGE)
        doubtful = large if doubtful is None else np.logical_or(doubtful, large, out=large)
    if doubtful is not None:
        where = np.unravel_index(np.flatnonzero(doubtful), value.shape)
        if where[0].size:
            result[where] = exactly(where).astype(F2).astype(F4)
    return result


def narrowed(value):
    """Return float32 that a float16 holds exactly (or a NaN) as float16."""
    if not isinstance(value, np.ndarray) or value.size < _WORTH_IT:
        return value.astype(F2)
    return _low_half(value * _DOWN).astype(np.uint16).view(F2)


def narrowed_pair(low, high):
    """Return two such as the float16 of a 32-bit word."""
    if not isinstance(low, np.ndarray) or not isinstance(high, np.ndarray) or min(low.size, high.size) < _WORTH_IT:
        low, high = (narrowed(half).view(np.uint16).astype(_U4) for half in (low, high))
        return low | (high << _U4(16))
    bits = (high * _DOWN).view(_U4)
    word = bits << _U4(3)
    word &= _U4(0x7FFF0000)
    bits &= _U4(0x80000000)
    word |= bits
    return word | _low_half(low * _DOWN)


def _low_half(scaled: np.ndarray) -> np.ndarray:
    """Return the bits of float16 whose values have been scaled by 2^-112, in the low half of 32-bit words.

    Infinity and NaN come out right: what their exponents have more than a float16's is cut off.
    """
    sign = scaled.view(_U4)
    word = sign >> _U4(13)
    word &= _U4(0x7FFF)
    sign >>= _U4(16)
    sign &= _U4(0x8000)
    word |= sign
    return word
