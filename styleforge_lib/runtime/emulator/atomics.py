"""Read-modify-write on an array, lane after lane, without a Python loop over lanes where that can be had.

Lanes that hit different places are independent. Lanes that hit one place take turns in lane order: where few places
are hit often, each place's turns are one `ufunc.accumulate`; where many places are hit a few times, turn k of all
places is one vector operation.
"""

from __future__ import annotations

import numpy as np

from .bfloat16 import from_brain, to_bfloat

_TINY = np.float32(2.0**-126)
_NEVER_TINY = np.float32(2.0**-102)  # sums of numbers at least this large are zero or normal: multiples of 2^-125


def _halves(old: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Add two float16 in one 32-bit word to two others."""
    old, value = np.ascontiguousarray(old), np.ascontiguousarray(value)
    return (old.view(np.float16) + value.view(np.float16)).view(old.dtype)


def _brains(old: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Add bfloat16, one or a pair in a 32-bit word."""
    old, value = np.ascontiguousarray(old), np.ascontiguousarray(value)
    total = from_brain(old.view(np.uint16)) + from_brain(value.view(np.uint16))
    return to_bfloat(total, False).view(old.dtype)


def _flushed(value: np.ndarray) -> np.ndarray:
    return np.where(np.abs(value) < _TINY, np.copysign(np.float32(0), value), value)


def _add_flushed(old: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Add float32 as global memory does: subnormal numbers, found or made, become zero."""
    return _flushed(_flushed(old) + _flushed(value))


def _increment(old, limit):
    return np.where(old >= limit, old.dtype.type(0), old + old.dtype.type(1))


def _decrement(old, limit):
    return np.where((old == 0) | (old > limit), limit, old - old.dtype.type(1))


UFUNCS = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}
STEPS = {
    **UFUNCS,
    "exch": lambda old, value: value,
    "cas": lambda old, compare, value: np.where(old == compare, value, old),
    "inc": _increment,
    "dec": _decrement,
    "add.f16x2": _halves,
    "add.bf16": _brains,
    "add.bf16x2": _brains,
    "add.ftz": _add_flushed,
}


def flushes(found: np.ndarray, value: np.ndarray) -> bool:
    """Whether a float32 addition in global memory, which flushes subnormal numbers, could meet or make one."""
    return any(((size < _NEVER_TINY) & (size != 0)).any() for size in (np.abs(found), np.abs(value)))


def apply_atomic(data: np.ndarray, index: np.ndarray, operation: str, values: tuple, old_needed: bool):
    """Apply `operation` to `data[index]` for all lanes in order; returns what each lane found, or None.

    Args:
        data: 1-D array, changed in place.
        index: (n,) places, repeated ones taking turns.
        operation: a key of `STEPS`.
        values: (n,) operands; compare and new value for "cas".
        old_needed: without it, plain ufuncs need no turns.
    """
    step = STEPS[operation]
    values = tuple(np.ascontiguousarray(value) for value in values)
    if not old_needed and operation in UFUNCS:
        UFUNCS[operation].at(data, index, values[0])
        return None
    order = np.argsort(index, kind="stable")
    places = index[order]
    fresh = np.empty(places.size, bool)
    fresh[:1] = True
    np.not_equal(places[1:], places[:-1], out=fresh[1:])
    starts = np.flatnonzero(fresh)
    sizes = np.diff(np.append(starts, places.size))
    turns = int(sizes.max(initial=0))
    old = np.empty(index.size, data.dtype)
    sorted_values = tuple(value[order] for value in values)
    sorted_old = np.empty(index.size, data.dtype)
    if turns > starts.size and operation in UFUNCS:
        for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
            place = places[start]
            run = np.empty(size + 1, data.dtype)
            run[0] = data[place]
            run[1:] = sorted_values[0][start : start + size]
            UFUNCS[operation].accumulate(run, out=run)
            sorted_old[start : start + size] = run[:-1]
            data[place] = run[-1]
    else:
        for turn in range(turns):
            at = starts[sizes > turn] + turn
            found = data[places[at]]
            sorted_old[at] = found
            data[places[at]] = step(found, *(value[at] for value in sorted_values))
    old[order] = sorted_old
    return old
