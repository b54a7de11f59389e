"""float16 arithmetic, single and in pairs (f16x2).

float32 holds the sum and the product of two float16 with room to spare, and float64 their fused multiply-add: the sum
of a 22-bit product and a float16 is inexact in float64 only where the product is too small to reach a tie. One
rounding to float16 at the end is therefore the correct one.

Results stay float32, rounded to what a float16 holds; their bits are made where something asks for bits.
"""

from __future__ import annotations

import numpy as np

from ..float16 import fused_half, halved, narrowed, narrowed_pair, rounded_half, widened, widened_half
from .brain_floats import brain_binary, brain_extreme, brain_fused, is_brain
from .emitter import helper
from .packed import half_of_pair

_KINDS = ("f16", "f16x2")
for function in (widened, widened_half, halved, rounded_half, fused_half, narrowed, narrowed_pair):
    helper(function)


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


def _apply(e, ins, kind: str, expression, sources, ftz: bool = False, wide: bool = False) -> None:
    """Set the result of `expression(*names)`, for each half of a pair; `wide`: it is a float32 that a float16 holds."""

    def flushed(name: str) -> str:
        return e.form(name, "flush_half", f"flush_half({name})") if ftz else name

    def result(names: list[str]) -> str:
        text = expression(*names)
        if not wide:
            return e.new(f"flush_half({text})" if ftz else text)
        found = e.new(text)
        half = e.new(f"narrowed({found})", only_if_used=True)
        e.forms[half, "widened"] = found
        return half

    if kind == "f16":
        e.set(ins.operands[0], result([flushed(e.use(value, "f16")) for value in sources]), "f16")
        return
    pairs = [e.use(value, "f16x2") for value in sources]
    halves = [result([flushed(half_of_pair(e, pair, which)) for pair in pairs]) for which in (0, 1)]
    if wide:
        low, high = (e.forms[half, "widened"] for half in halves)
        found = e.new(f"narrowed_pair({low}, {high})", only_if_used=True)
    else:
        found = e.new(f"joined({halves[0]}, {halves[1]})", only_if_used=True)
    e.forms.update({(found, f"half{which}"): half for which, half in enumerate(halves)})
    e.set(ins.operands[0], found, "f16x2")


def wide_half(e, name: str, kind: str = "f32") -> str:
    """Return a float16 value as a wider float, converted once per block."""
    origin = e.origins.get(name)
    wide = e.form(name, "widened", f"widened_half({origin[0]}, {origin[1]})" if origin else f"widened({name})")
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
    plain = not (ftz or sat)
    shape = "rounded_half({} {} {})" if plain else "saturate(halved({} {} {}))" if sat else "halved({} {} {})"

    def expression(a: str, b: str) -> str:
        return shape.format(wide_half(e, a), sign, wide_half(e, b))

    _apply(e, ins, kind, expression, ins.operands[1:3], ftz, wide=plain)


def half_fused(e, ins, m) -> None:
    """Fma."""
    if is_brain(m):
        brain_fused(e, ins, m)
        return
    kind = m.type(*_KINDS)
    m.one_of("rn")
    ftz, sat, relu = m.flag("ftz"), m.flag("sat"), m.flag("relu")
    m.finish()

    plain = not (ftz or sat or relu)

    def expression(a: str, b: str, c: str) -> str:
        if plain:
            return f"fused_half({', '.join(wide_half(e, name) for name in (a, b, c))})"
        a, b, c = (wide_half(e, name, "f64") for name in (a, b, c))
        text = f"halved({a} * {b} + {c})"
        if relu:
            text = f"extreme({text}, {e.constant(0, 'f16')}, True, True)"
        return f"saturate({text})" if sat else text

    _apply(e, ins, kind, expression, ins.operands[1:4], ftz, wide=plain)


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
