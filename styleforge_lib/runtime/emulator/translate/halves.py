"""float16 arithmetic, single and in pairs (f16x2).

float32 holds the sum and the product of two float16 with room to spare, and float64 their fused multiply-add: the sum
of a 22-bit product and a float16 is inexact in float64 only where the product is too small to reach a tie. One
rounding to float16 at the end is therefore the correct one.
"""

from __future__ import annotations

import numpy as np

from ..float16 import halved, widened
from .brain_floats import brain_binary, brain_extreme, brain_fused, is_brain
from .emitter import helper

_KINDS = ("f16", "f16x2")
helper(widened)
helper(halved)


@helper
def half_of(pair, which):
    """One float16 of a pair."""
    return (pair >> np.uint32(16) if which else pair).astype(np.uint16).view(np.float16)


@helper
def joined(low, high):
    """Two float16 in one 32-bit word."""
    low, high = low.view(np.uint16).astype(np.uint32), high.view(np.uint16).astype(np.uint32)
    return low | (high << np.uint32(16))


@helper
def flush_half(value):
    """Subnormal float16 to zero of the same sign."""
    return np.where(np.abs(value) < np.float16(2.0**-14), value * np.float16(0), value)[()]


def _apply(e, ins, kind: str, expression, sources, ftz: bool = False) -> None:
    """Set the result of `expression(*names)`, for each half of a pair."""

    def flushed(name: str) -> str:
        return e.form(name, "flush_half", f"flush_half({name})") if ftz else name

    def result(text: str) -> str:
        return f"flush_half({text})" if ftz else text

    if kind == "f16":
        names = [flushed(e.use(value, "f16")) for value in sources]
        e.set_expression(ins.operands[0], result(expression(*names)), "f16")
        return
    pairs = [e.use(value, "f16x2") for value in sources]
    halves = []
    for which in (0, 1):
        names = [flushed(e.form(pair, f"half{which}", f"half_of({pair}, {which})")) for pair in pairs]
        halves.append(e.new(result(expression(*names))))
    found = e.new(f"joined({halves[0]}, {halves[1]})", only_if_used=True)
    e.forms.update({(found, f"half{which}"): half for which, half in enumerate(halves)})
    e.set(ins.operands[0], found, "f16x2")


def wide_half(e, name: str, kind: str = "f32") -> str:
    """Return a float16 value as a wider float, converted once per block."""
    wide = e.form(name, "widened", f"widened({name})")
    return wide if kind == "f32" else e.form(wide, "F8", f"{wide}.astype(F8)")


def half_binary(e, ins, m) -> None:
    """add, sub, mul."""
    if is_brain(m):
        brain_binary(e, ins, m)
        return
    kind = m.type(*_KINDS)
    m.one_of("rn")
    ftz, sat = m.flag("ftz"), m.flag("sat")
    m.finish()
    sign = {"add": "+", "sub": "-", "mul": "*"}[ins.opcode]
    shape = "saturate(halved({} {} {}))" if sat else "halved({} {} {})"
    _apply(e, ins, kind, lambda a, b: shape.format(wide_half(e, a), sign, wide_half(e, b)), ins.operands[1:3], ftz)


def half_fused(e, ins, m) -> None:
    """Fma."""
    if is_brain(m):
        brain_fused(e, ins, m)
        return
    kind = m.type(*_KINDS)
    m.one_of("rn")
    ftz, sat, relu = m.flag("ftz"), m.flag("sat"), m.flag("relu")
    m.finish()

    def expression(a: str, b: str, c: str) -> str:
        a, b, c = (wide_half(e, name, "f64") for name in (a, b, c))
        text = f"halved({a} * {b} + {c})"
        if relu:
            text = f"extreme({text}, {e.constant(0, 'f16')}, True, True)"
        return f"saturate({text})" if sat else text

    _apply(e, ins, kind, expression, ins.operands[1:4], ftz)


def half_sign(e, ins, m) -> None:
    """Abs and neg, of bfloat16 too: on the bits, so that NaN keeps its payload."""
    kind = m.type(*_KINDS, "bf16", "bf16x2")
    ftz = kind in _KINDS and m.flag("ftz")
    m.finish()
    if ftz:
        shape = "-{}" if ins.opcode == "neg" else "np.abs({})"
        _apply(e, ins, kind, shape.format, ins.operands[1:2], ftz)
        return
    single = kind in ("f16", "bf16")
    bits = "u16" if single else "u32"
    value = e.use(ins.operands[1], bits)
    mask = 0x8000 if single else 0x80008000
    if ins.opcode == "neg":
        e.set_expression(ins.operands[0], f"{value} ^ {e.constant(mask, bits)}", bits)
    else:
        e.set_expression(
            ins.operands[0], f"{value} & {e.constant(~mask & (0xFFFF if single else 0xFFFFFFFF), bits)}", bits
        )


def half_extreme(e, ins, m) -> None:
    """Min and max."""
    if is_brain(m):
        brain_extreme(e, ins, m)
        return
    kind = m.type(*_KINDS)
    ftz, propagate = m.flag("ftz"), m.flag("NaN")
    m.finish()
    largest = ins.opcode == "max"
    _apply(e, ins, kind, lambda a, b: f"extreme({a}, {b}, {largest}, {propagate})", ins.operands[1:3], ftz)
