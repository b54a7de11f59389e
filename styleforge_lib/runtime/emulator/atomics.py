"""Read-modify-write on an array, lane after lane, without a Python loop over lanes where that can be had.

Lanes that hit different places are independent. Lanes that hit one place take turns in lane order: where few places
are hit often, each place's turns are one `ufunc.accumulate`; where many places are hit a few times, turn k of all
places is one vector operation.
"""

from __future__ import annotations

import numpy as np


def _pairs(operation):
    """Lifts a float16 operation to two float16 in one 32-bit word."""

    def apply(old: np.ndarray, value: np.ndarray) -> np.ndarray:
        old, value = np.ascontiguousarray(old), np.ascontiguousarray(value)
        return operation(old.view(np.float16), value.view(np.float16)).astype(np.float16).view(old.dtype)

    return apply


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
    "add.f16x2": _pairs(np.add),
}


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
