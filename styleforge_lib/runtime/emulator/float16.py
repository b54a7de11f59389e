"""float16 to and from wider floats, exactly as NumPy's own conversions, in a third of their time.

NumPy converts lane by lane, in software. Here widening is a table of all 65536 values, and narrowing is integer
arithmetic on float32 bits (round half to even at bit 13, move the exponent) wherever the result is an ordinary number;
the few lanes that are zero, subnormal, infinite or NaN go NumPy's way. So do float64 values whose float32 lies exactly
between two float16: there, rounding twice could go wrong.
"""

from __future__ import annotations

import numpy as np

F2, F4 = np.dtype(np.float16), np.dtype(np.float32)
_WORTH_IT = 512  # lanes
with np.errstate(invalid="ignore"):  # signalling NaN become quiet, as they do on a GPU
    VALUES = np.arange(1 << 16, dtype=np.uint16).view(F2).astype(F4)
_U4 = np.uint32
_LEAST, _MOST = _U4(0x38800000), _U4(0x477FF000)  # 2^-14, the least normal; 65520, which rounds to infinity
_RANGE = _U4(_MOST - _LEAST)


def widened(half):
    """Return float16 as float32."""
    if not isinstance(half, np.ndarray) or half.size < _WORTH_IT:
        return half.astype(F4)
    return VALUES.take(half.view(np.uint16))


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
