"""bfloat16: arithmetic, comparisons and conversions, single and in pairs (bf16x2).

A bfloat16 is the high half of a float32. Sums of two are taken in float32: 24 bits of precision are more than twice 8
and two, so rounding a second time cannot go wrong (Figueroa 1995), and where a result is subnormal the sum is exact.
Products and fused multiply-adds are taken in float64, where the product is exact; what is lost of them on the way to
bfloat16 is kept in the last bit (rounding to odd, Boldo and Melquiond 2008), so that one rounding remains.
"""

from __future__ import annotations

import numpy as np

from ..bfloat16 import from_brain, to_bfloat
from ..parse import Imm, Pair
from .comparisons import _compare as compare
from .emitter import DTYPES, dtype_name, helper

helper(from_brain)
helper(to_bfloat)
KINDS = ("bf16", "bf16x2")
_INTEGERS = ("u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64")


def is_brain(m) -> bool:
    """Whether an instruction works on bfloat16."""
    return any(kind in KINDS for kind in m.left)


# --- values -----------------------------------------------------------------------------------------------------------


@helper
def brain_of(pair, which):
    """Return one half of a pair as float32."""
    bits = pair & np.uint32(0xFFFF0000) if which else pair << np.uint32(16)
    return bits.view(np.float32)


@helper
def to_brain(value):
    """Return float32 rounded to bfloat16 bits."""
    return to_bfloat(value, False)


@helper
def brain_pair(low, high):
    """Return two bfloat16 in one 32-bit word."""
    return low.astype(np.uint32) | (high.astype(np.uint32) << np.uint32(16))


@helper
def brain_fma(a, b, c, mode="rn"):
    """Return bfloat16 bits of a * b + c for float32 operands that hold bfloat16 values, rounded once."""
    product, addend = np.asarray(a.astype(np.float64) * b), np.asarray(c.astype(np.float64))
    total = product + addend
    part = total - product
    error = (product - (total - part)) + (addend - part)
    inexact = (error != 0) & np.isfinite(total)
    if inexact.any():
        total = np.where(inexact, _to_odd(total, error), total)
    return _brain_of_double(total)[()]


@helper
def brain_product(a, b):
    """Return bfloat16 bits of a * b, rounded once."""
    return _brain_of_double(np.asarray(a.astype(np.float64) * b))[()]


@helper
def brain_of_double(value):
    """Return float64 rounded to bfloat16 bits, once."""
    return _brain_of_double(np.asarray(value))[()]


def _to_odd(total, error):
    """Where the sum was inexact and its last bit even, the neighbour on the side of what was lost."""
    even = (total.view(np.int64) & 1) == 0
    neighbour = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    return np.where(even, neighbour, total)


def _brain_of_double(total: np.ndarray) -> np.ndarray:
    near = total.astype(np.float32)
    wide = near.astype(np.float64)
    inexact = (wide != total) & (total == total)
    if inexact.any():
        # toward zero, then odd: float32 with something lost has a 1 in its last place
        bits = near.view(np.uint32)
        bits = bits - (np.abs(wide) > np.abs(total)).astype(np.uint32)
        near = np.where(inexact, (bits | np.uint32(1)).view(np.float32), near)
    return np.asarray(to_bfloat(near, False))


# --- rules; the opcodes' own rules come here when the type is bfloat16 ------------------------------------------------


def _apply(e, ins, kind: str, expression, sources) -> None:
    """Set the result of `expression(*float32 names)`, which gives bfloat16 bits, for each half of a pair."""
    if kind == "bf16":
        e.set_expression(ins.operands[0], expression(*(single(e, value) for value in sources)), "u16")
        return
    low, high = (expression(*(half(e, value, which) for value in sources)) for which in (0, 1))
    e.set_expression(ins.operands[0], f"brain_pair({low}, {high})", "u32")


def single(e, operand) -> str:
    """Return a bfloat16 operand as float32."""
    name = e.use(operand, "u16")
    return e.form(name, "brain", f"from_brain({name})")


def half(e, operand, which: int) -> str:
    """Return one half of a pair as float32."""
    name = e.use(operand, "u32")
    return e.form(name, f"brain{which}", f"brain_of({name}, {which})")


def brain_binary(e, ins, m) -> None:
    """add, sub, mul."""
    kind = m.type(*KINDS)
    m.one_of("rn")
    m.finish()
    if ins.opcode == "mul":
        _apply(e, ins, kind, lambda a, b: f"brain_product({a}, {b})", ins.operands[1:3])
        return
    sign = {"add": "+", "sub": "-"}[ins.opcode]
    _apply(e, ins, kind, lambda a, b: f"to_brain({a} {sign} {b})", ins.operands[1:3])


def brain_fused(e, ins, m) -> None:
    """Fma, with .relu: NaN becomes the canonical one, what is negative +0."""
    kind = m.type(*KINDS)
    m.one_of("rn")
    relu = m.flag("relu")
    m.finish()

    def expression(a: str, b: str, c: str) -> str:
        text = f"brain_fma({a}, {b}, {c})"
        return f"brain_relu({text})" if relu else text

    _apply(e, ins, kind, expression, ins.operands[1:4])


@helper
def brain_relu(bits):
    """Return bfloat16 bits with negative numbers and -0 turned into +0; NaN stays."""
    negative = (bits >= np.uint16(0x8000)) & (bits <= np.uint16(0xFF80))
    return np.where(negative, np.uint16(0), bits)[()]


def brain_extreme(e, ins, m) -> None:
    """Min and max."""
    kind = m.type(*KINDS)
    propagate = m.flag("NaN")
    m.finish()
    if len(ins.operands) != 3:
        m.refuse("Take two at a time.")
    largest = ins.opcode == "max"
    _apply(e, ins, kind, lambda a, b: f"to_brain(extreme({a}, {b}, {largest}, {propagate}))", ins.operands[1:3])


# --- setp, set --------------------------------------------------------------------------------------------------------


def brain_setp(e, ins, m, comparisons) -> None:
    """setp.bf16 gives a predicate (and its opposite), setp.bf16x2 one for each half."""
    kind = m.type(*KINDS)
    comparison = m.one_of(*comparisons) or m.refuse()
    m.finish()
    if len(ins.operands) != 3:
        m.refuse("Combine the predicates by and, or, xor.")
    target, *sources = ins.operands
    first, second = (target.first, target.second) if isinstance(target, Pair) else (target, None)
    if kind == "bf16":
        a, b = (single(e, value) for value in sources)
        condition = e.new(compare(e, comparison, "f32", a, b, m))
        e.set(first, condition, "pred")
        if second is not None:
            e.set_expression(second, f"~{condition}", "pred")
        return
    for which, register in enumerate((first, second)):
        if register is not None:
            a, b = (half(e, value, which) for value in sources)
            e.set_expression(register, compare(e, comparison, "f32", a, b, m), "pred")


def brain_set(e, ins, m, comparisons) -> None:
    """Set gives 1.0 or all ones, else 0; of a pair, in each half."""
    kind = m.type(*KINDS)
    result = m.type(kind, "u32", "s32", "u16", "s16") if kind == "bf16" else m.type(kind, "u32", "s32")
    comparison = m.one_of(*comparisons) or m.refuse()
    m.finish()
    if len(ins.operands) != 3:
        m.refuse("Combine the results by and, or, xor.")
    if kind == "bf16":
        one, result = (0x3F80, "u16") if result == "bf16" else (-1, result)
        true = e.literal(Imm(one, "int"), DTYPES[result])
        a, b = (single(e, value) for value in ins.operands[1:3])
        text = f"select({compare(e, comparison, 'f32', a, b, m)}, {true}, {e.constant(0, result)})"
        e.set_expression(ins.operands[0], text, result)
        return
    true, false = e.constant(0x3F80 if result == "bf16x2" else 0xFFFF, "u16"), e.constant(0, "u16")
    halves = []
    for which in (0, 1):
        a, b = (half(e, value, which) for value in ins.operands[1:3])
        halves.append(e.new(f"select({compare(e, comparison, 'f32', a, b, m)}, {true}, {false})"))
    e.set_expression(ins.operands[0], f"brain_pair({halves[0]}, {halves[1]})", "u32")


# --- conversions ------------------------------------------------------------------------------------------------------


def brain_convert(e, ins, m, target: str, source: str) -> None:
    """Cvt to bfloat16 from floats and integers, and from bfloat16 to them, under every rounding mode."""
    rounding = m.one_of("rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi")
    relu = m.flag("relu")
    m.finish()
    if target == "bf16x2":
        if source != "f32" or rounding not in ("rn", "rz"):
            m.refuse()
        halves = [e.new(_narrowed(e, value, rounding, relu)) for value in (ins.operands[2], ins.operands[1])]
        e.set_expression(ins.operands[0], f"brain_pair({halves[0]}, {halves[1]})", "u32")
        return
    if source == "f32" and rounding in ("rn", "rz"):
        e.set_expression(ins.operands[0], _narrowed(e, ins.operands[1], rounding, relu), "u16")
        return
    if relu:
        m.refuse()
    if source == "bf16":
        _from_brain(e, ins, m, target, rounding)
    elif rounding in ("rn", "rz", "rm", "rp") and source in (*_INTEGERS, "f16", "f32", "f64"):
        value = e.use(ins.operands[1], source)
        exact = f"double_of({value})" if source in ("s64", "u64") else f"{value}.astype(F8)"
        e.set_expression(ins.operands[0], f"brain_directed({exact}, {rounding!r})", "u16")
    else:
        m.refuse("Convert through float32.")


def _from_brain(e, ins, m, target: str, rounding: str | None) -> None:
    value = single(e, ins.operands[1])
    whole = rounding in ("rni", "rzi", "rmi", "rpi")
    if target in _INTEGERS and whole:
        e.set_expression(ins.operands[0], f"to_integer({value}, {rounding!r}, {dtype_name(DTYPES[target])})", target)
    elif target == "bf16" and whole:
        function = {"rni": "rint", "rzi": "trunc", "rmi": "floor", "rpi": "ceil"}[rounding]
        e.set_expression(ins.operands[0], f"to_brain(np.{function}({value}))", "u16")
    elif target == "f32" and rounding is None:
        e.set(ins.operands[0], value, "f32")
    elif target == "f64" and rounding is None:
        e.set_expression(ins.operands[0], f"{value}.astype(F8)", "f64")
    elif target == "f16" and rounding == "rn":
        e.set_expression(ins.operands[0], f"{value}.astype(F2)", "f16")
    elif target == "f16" and rounding in ("rz", "rm", "rp"):
        e.set_expression(ins.operands[0], f"directed_float({value}.astype(F8), F2, {rounding!r})", "f16")
    else:
        m.refuse("Convert through float32.")


@helper
def double_of(value):
    """Return 64-bit integers as float64: one with more than 53 bits keeps in its last bit that something was lost."""
    negative = value < 0
    size = np.asarray(np.where(negative, -value, value)).astype(np.uint64)
    lost = (size & np.uint64(0x7FF)) != 0
    odd = (size & ~np.uint64(0x7FF)) | (lost.astype(np.uint64) << np.uint64(11))
    exact = np.where(size >> np.uint64(53) != 0, odd, size).astype(np.float64)
    return np.where(negative, -exact, exact)[()]


@helper
def brain_directed(value, mode):
    """Return bfloat16 bits of float64 under a rounding mode."""
    value = np.asarray(value)
    bits = np.asarray(_brain_of_double(value))
    if mode == "rn":
        return bits[()]
    near, negative = from_brain(bits).astype(np.float64), np.signbit(value)
    above, below = near > value, near < value
    outward = (below & ~negative) if mode == "rp" else (above & negative) if mode == "rm" else np.zeros_like(negative)
    inward = (
        (below & negative if mode == "rp" else above & ~negative) if mode != "rz" else np.where(negative, below, above)
    )
    return (bits + outward.astype(np.uint16) - inward.astype(np.uint16))[()]


def _narrowed(e, operand, rounding: str, relu: bool) -> str:
    text = f"to_bfloat({e.use(operand, 'f32')}, {rounding == 'rz'})"
    return f"brain_relu({text})" if relu else text
