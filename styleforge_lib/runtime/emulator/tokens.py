"""Tokens: what the registers of a wgmma accumulator hold until the product is waited for.

A token is a negative quiet NaN: as float32 and, in its upper half, as float16. Its 22 low bits name the accumulator (15
bits, never 0: the processor's own NaN is all zeros there) and the register's number in it (7 bits). It is moved and
stored like any value; only `warpgroups` knows what it stands for.
"""

from __future__ import annotations

import functools

import numpy as np

_BASE = 0xFFC00000
_INDEX_BITS = 7
_NUMBERS = 1 << 15
_HIGH = np.uint32(_BASE)


class Tokens:
    """The tokens of all accumulators, made when they are first needed."""

    @staticmethod
    @functools.lru_cache(maxsize=64)
    def of(number: int, count: int, result: str) -> tuple:
        """Return the tokens of one accumulator's registers, as scalars."""
        bits = np.arange(count, dtype=np.uint32) + np.uint32(_BASE | number << _INDEX_BITS)
        return tuple(bits.view(np.float32 if result == "f32" else np.uint32))

    @staticmethod
    def next_number(last: int, taken) -> int:
        """Return the number of a new accumulator; numbers return after a long while."""
        for step in range(1, _NUMBERS):
            number = (last + step) % _NUMBERS
            if number and number not in taken:
                return number
        raise RuntimeError("more accumulators of wgmma are on their way than the emulator can tell apart")


TOKENS = Tokens()


def is_token(value):
    """Whether a 4-byte value has the bits of a token, lane by lane."""
    bits = value.view(np.uint32)
    if isinstance(bits, np.ndarray):
        return ((bits & _HIGH) == _HIGH) & ((bits ^ _HIGH) >> np.uint32(_INDEX_BITS) != 0)
    return int(bits) & _BASE == _BASE and (int(bits) ^ _BASE) >> _INDEX_BITS != 0


def token_numbers(value):
    """Return the accumulator's number and the register's that a token names."""
    bits = value.view(np.uint32) ^ _HIGH
    return (bits >> np.uint32(_INDEX_BITS)) & np.uint32(_NUMBERS - 1), bits & np.uint32((1 << _INDEX_BITS) - 1)
