"""e4m3 and e5m2: eight-bit floats, converted two at a time to and from float32 and float16.

A code below 128 stands for its number in ascending order, so a table of 128 numbers is the whole format. Rounding is to
nearest even, once, from the exact value: float32 and float16 are exact in float64, where a division by a power of two
and `rint` are exact as well. What is too large becomes the largest number (.satfinite), NaN becomes 0x7F.

Source: PTX ISA 9, "cvt"; OCP 8-bit floating point specification (e4m3 has no infinity).
"""

from __future__ import annotations

import numpy as np

from .emitter import helper
from .packed import half_of_pair

KINDS = ("e4m3x2", "e5m2x2")
NAN = np.uint8(0x7F)


class _Format:
    """One format: its fraction bits, least exponent, largest number, and what each of its 256 codes stands for."""

    def __init__(self, fraction: int, least: int, infinity: int | None):
        self.fraction, self.least = fraction, least
        codes = np.arange(128)
        exponent, mantissa = codes >> fraction, codes & ((1 << fraction) - 1)
        normal = exponent > 0
        size = np.ldexp(
            (mantissa + np.where(normal, 1 << fraction, 0)).astype(np.float64),
            np.where(normal, exponent - 1, 0) + least - fraction,
        )
        self.numbers = size[: 0x7F if infinity is None else infinity]
        size[len(self.numbers) :] = np.nan
        if infinity is not None:
            size[infinity] = np.inf
        self.decoded = np.concatenate([size, -size]).astype(np.float16)

    def encode(self, value: np.ndarray) -> np.ndarray:
        """Return the codes of float64 values."""
        size = np.abs(value)
        _, exponent = np.frexp(size)
        unit = np.ldexp(1.0, np.maximum(exponent - 1, self.least) - self.fraction)
        rounded = np.minimum(np.rint(size / unit) * unit, self.numbers[-1])
        code = np.searchsorted(self.numbers, rounded).astype(np.uint8) | (np.signbit(value) << 7).astype(np.uint8)
        return np.where(np.isnan(value), NAN, code)


FORMATS = {"e4m3x2": _Format(3, -6, None), "e5m2x2": _Format(2, -14, 0x7C)}


@helper
def to_eight_bits(low, high, kind, relu):
    """Return two float16 or float32 as the codes of an eight-bit format, in one 16-bit word."""
    codes = []
    for value in (low, high):
        value = np.asarray(value, np.float64)
        codes.append(FORMATS[kind].encode(np.where(value < 0, 0.0, value) + 0.0 if relu else value).astype(np.uint16))
    return (codes[0] | codes[1] << np.uint16(8))[()]


@helper
def from_eight_bits(pair, kind):
    """Return the two float16 that 16 bits of codes stand for, in one 32-bit word; NaN becomes 0x7FFF."""
    table = FORMATS[kind].decoded.view(np.uint16).astype(np.uint32)
    table = np.where(np.isnan(FORMATS[kind].decoded), np.uint32(0x7FFF), table)
    return table[pair & np.uint16(255)] | table[pair >> np.uint16(8)] << np.uint32(16)


def eight_bit_convert(e, ins, m) -> None:
    """cvt.rn.satfinite{.relu}.e4m3x2.f32 d, a, b (a becomes the high byte); .f16x2 in place of .f32; and back."""
    kinds = [word for word in m.left if word in (*KINDS, "f32", "f16x2")]
    for kind in kinds:
        m.left.remove(kind)
    if not m.flag("rn") or len(kinds) != 2:
        m.refuse("Convert from or to float32 or half2, rounding .rn.")
    target, source = kinds
    relu, saturated = m.flag("relu"), m.flag("satfinite")
    m.finish()
    if target == "f16x2":
        if relu or saturated:
            m.refuse()
        e.set_expression(ins.operands[0], f"from_eight_bits({e.use(ins.operands[1], 'u16')}, {source!r})", "u32")
        return
    if not saturated or source not in ("f32", "f16x2"):
        m.refuse("Use .satfinite.")
    if source == "f32":
        high, low = (e.use(value, "f32") for value in ins.operands[1:3])
    else:
        pair = e.use(ins.operands[1], "u32")
        low, high = (half_of_pair(e, pair, which) for which in (0, 1))
    e.set_expression(ins.operands[0], f"to_eight_bits({low}, {high}, {target!r}, {relu})", "u16")
