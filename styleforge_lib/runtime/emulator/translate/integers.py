"""Integer arithmetic.

NumPy's integers wrap as PTX's do. Where PTX and NumPy differ (division rounds to zero, the high half of a product) a
helper says how. Logic, shifts and bit fields are in `bits`.
"""

from __future__ import annotations

import numpy as np

from ..parse import Reg
from .emitter import BITS, DTYPES, dtype_name, helper, rule
from .packed import PAIRS, field, packed_pair

INTEGERS = ("u16", "s16", "u32", "s32", "u64", "s64")
_CARRYING = ("u32", "s32", "u64", "s64")
_WIDER = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}


def _number(value, like):
    return like.dtype.type(value)


# --- add, sub, mul, mad -----------------------------------------------------------------------------------------------


def integer_add(e, ins, m, sign: str) -> None:
    """Add and sub of integers; .sat of s32, .cc and the carry-in forms too."""
    if ins.opcode == "add" and any(kind in PAIRS for kind in m.left):
        packed_pair(e, ins, m)
        return
    carry_in = ins.opcode in ("addc", "subc")
    carry_out = m.flag("cc")
    kind = m.type(*(_CARRYING if carry_in or carry_out else INTEGERS))
    saturate = not (carry_in or carry_out) and kind == "s32" and m.flag("sat")
    m.finish()
    a, b = e.use(ins.operands[1], kind), e.use(ins.operands[2], kind)
    if saturate:
        e.set_expression(ins.operands[0], f"saturated({a}, {b}, {sign == '+'})", kind)
        return
    if not (carry_in or carry_out):
        total = e.new(f"{a} {sign} {b}", only_if_used=True)  # an address is located by its summands
        if sign == "+" and kind in ("s64", "u64"):
            names = {one.name for one in ins.operands[1:] if isinstance(one, Reg)}
            e.sums_of_two[total] = (a, b, any(e.readers[name] > 1 for name in names & e.code.varying))
        e.set(ins.operands[0], total, kind)
        return
    unsigned = "u" + kind[1:]
    a, b = e.use(ins.operands[1], unsigned), e.use(ins.operands[2], unsigned)
    carry = e.use(_CARRY, "u32") if carry_in else e.constant(0, "u32")
    both = e.new(f"with_carry({a}, {b}, {carry}, {sign == '+'})")
    e.set_expression(ins.operands[0], f"{both}[0]", unsigned)
    if carry_out:
        e.set_expression(_CARRY, f"{both}[1]", "u32")


_CARRY = Reg("%carry")


@helper
def with_carry(a, b, carry, adding):
    """Sum or difference with carry-in, and the carry (borrow) out as 0 or 1."""
    carry = carry.astype(a.dtype)
    first = a + b if adding else a - b
    out = (first < a) if adding else (a < b)
    total = first + carry if adding else first - carry
    out = out | ((total < first) if adding else (first < carry))
    return total, np.uint32(out) if not isinstance(out, np.ndarray) else out.astype(np.uint32)


@helper
def saturated(a, b, adding):
    """s32 sum or difference, clamped."""
    wide = a.astype(np.int64) + b.astype(np.int64) if adding else a.astype(np.int64) - b.astype(np.int64)
    return np.clip(wide, -(2**31), 2**31 - 1).astype(np.int32)


@rule("addc", "subc")
def _with_carry(e, ins, m):
    integer_add(e, ins, m, "+" if ins.opcode == "addc" else "-")


def product(e, ins, m, kind: str, half: str) -> tuple[str, str]:
    """Return the expression of a product's low half, high half or full width, and its type."""
    a, b = e.use(ins.operands[1], kind), e.use(ins.operands[2], kind)
    if half == "lo":
        return f"{a} * {b}", kind
    if half == "wide":
        if kind not in _WIDER:
            m.refuse()
        name = dtype_name(DTYPES[_WIDER[kind]])
        wide_a, wide_b = (e.form(v, name, f"{v}.astype({name})") for v in (a, b))
        return f"{wide_a} * {wide_b}", _WIDER[kind]
    if kind in _WIDER:
        wide = _WIDER[kind]
        name = dtype_name(DTYPES[wide])
        wide_a, wide_b = (e.form(v, name, f"{v}.astype({name})") for v in (a, b))
        shift = e.constant(BITS[kind], wide)
        return f"(({wide_a} * {wide_b}) >> {shift}).astype({dtype_name(DTYPES[kind])})", kind
    return f"high_64({a}, {b})", kind


@helper
def high_64(a, b):
    """High 64 bits of a 64 by 64 bit product, signed or unsigned by the operands' dtype."""
    signed = a.dtype.kind == "i"
    x, y = a.view(np.uint64), b.view(np.uint64)
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    x0, x1, y0, y1 = x & mask, x >> half, y & mask, y >> half
    middle = x1 * y0 + ((x0 * y0) >> half)
    other = x0 * y1 + (middle & mask)
    high = x1 * y1 + (middle >> half) + (other >> half)
    if signed:
        high = high - np.where(a < 0, y, np.uint64(0)) - np.where(b < 0, x, np.uint64(0))
    high = high.view(a.dtype)
    return high[()] if high.ndim == 0 else high


@rule("mul")
def _mul(e, ins, m):
    if any(kind in ("f16", "f16x2", "bf16", "bf16x2", "f32", "f64", "f32x2") for kind in m.left):
        from .floats import float_binary

        float_binary(e, ins, m)
        return
    kind = m.type(*INTEGERS)
    half = m.one_of("lo", "hi", "wide") or m.refuse()
    m.finish()
    expression, result = product(e, ins, m, kind, half)
    e.set_expression(ins.operands[0], expression, result)


@rule("mad", "madc")
def _mad(e, ins, m):
    if any(kind in ("f32", "f64") for kind in m.left):
        from .floats import fused

        fused(e, ins, m)
        return
    carry_out = m.flag("cc")
    carrying = carry_out or ins.opcode == "madc"
    kind = m.type(*(_CARRYING if carrying else INTEGERS))
    half = m.one_of("lo", "hi") if carrying else m.one_of("lo", "hi", "wide")
    saturate = not carrying and kind == "s32" and half == "hi" and m.flag("sat")
    m.finish()
    if half is None:
        m.refuse()
    expression, result = product(e, ins, m, kind, half)
    if saturate:
        high = e.new(expression)
        e.set_expression(ins.operands[0], f"saturated({high}, {e.use(ins.operands[3], 's32')}, True)", "s32")
        return
    if carrying:
        unsigned = "u" + result[1:]
        value = e.as_dtype(e.new(expression), DTYPES[result], DTYPES[unsigned])
        carry = e.use(_CARRY, "u32") if ins.opcode == "madc" else e.constant(0, "u32")
        both = e.new(f"with_carry({value}, {e.use(ins.operands[3], unsigned)}, {carry}, True)")
        e.set_expression(ins.operands[0], f"{both}[0]", unsigned)
        if carry_out:
            e.set_expression(_CARRY, f"{both}[1]", "u32")
        return
    e.set_expression(ins.operands[0], f"{expression} + {e.use(ins.operands[3], result)}", result)


@rule("mul24", "mad24")
def _mul24(e, ins, m):
    kind = m.type("u32", "s32")
    half = m.one_of("lo") or m.refuse()
    m.finish()
    a, b = (f"low_24({e.use(value, kind)})" for value in ins.operands[1:3])
    expression = f"{a} * {b}" if half == "lo" else m.refuse()
    if ins.opcode == "mad24":
        expression += f" + {e.use(ins.operands[3], kind)}"
    e.set_expression(ins.operands[0], expression, kind)


@helper
def low_24(value):
    """Return the low 24 bits, sign-extended if the dtype is signed."""
    eight = _number(8, value)
    return (value << eight) >> eight


@rule("sad")
def _sad(e, ins, m):
    kind = m.type(*INTEGERS)
    m.finish()
    a, b, c = (e.use(value, kind) for value in ins.operands[1:4])
    e.set_expression(ins.operands[0], f"{c} + select({a} < {b}, {b} - {a}, {a} - {b})", kind)


# --- division, sign, extremes -----------------------------------------------------------------------------------------


@helper
def quotient(a, b):
    """Division rounded to zero; by zero it gives all ones, as on a GPU."""
    zero = b == 0
    if zero.any():
        b = select_one(zero, b)
    q = a // b
    if a.dtype.kind == "i":
        q = q + ((q * b != a) & ((a < 0) != (b < 0))).astype(a.dtype)
    if zero.any():
        q = np.where(zero, _number(0, q) - _number(1, q), q)
    return q[()] if q.ndim == 0 else q


def select_one(zero, b):
    """Replace a zero divisor by one."""
    replaced = np.where(zero, b.dtype.type(1), b)
    return replaced[()] if replaced.ndim == 0 else replaced


@helper
def remainder(a, b):
    """Remainder with the dividend's sign; by zero it gives the dividend."""
    zero = b == 0
    if zero.any():
        b = select_one(zero, b)
    r = np.fmod(a, b)
    if zero.any():
        r = np.where(zero, a, r)
    return r[()] if r.ndim == 0 else r


def integer_divide(e, ins, m) -> None:
    """Div and rem of integers."""
    kind = m.type(*INTEGERS)
    m.finish()
    name = "quotient" if ins.opcode == "div" else "remainder"
    e.set_expression(ins.operands[0], f"{name}({e.use(ins.operands[1], kind)}, {e.use(ins.operands[2], kind)})", kind)


@rule("rem")
def _rem(e, ins, m):
    integer_divide(e, ins, m)


def integer_sign(e, ins, m) -> None:
    """Abs and neg of integers."""
    kind = m.type("s16", "s32", "s64")
    m.finish()
    a = e.use(ins.operands[1], kind)
    e.set_expression(ins.operands[0], f"-{a}" if ins.opcode == "neg" else f"np.abs({a})", kind)


def integer_extreme(e, ins, m) -> None:
    """Min and max of integers."""
    if any(kind in PAIRS for kind in m.left):
        packed_pair(e, ins, m)
        return
    kind = m.type(*INTEGERS)
    relu = kind == "s32" and m.flag("relu")
    m.finish()
    a, b = (e.use(value, kind) for value in ins.operands[1:3])
    expression = f"np.{'minimum' if ins.opcode == 'min' else 'maximum'}({a}, {b})"
    if relu:
        expression = f"np.maximum({expression}, {e.constant(0, kind)})"
    e.set_expression(ins.operands[0], expression, kind)


# --- dot products -----------------------------------------------------------------------------------------------------


@rule("dp4a", "dp2a")
def _dot_product(e, ins, m):
    second, first = m.type("u32", "s32"), m.type("u32", "s32")
    high = m.one_of("lo", "hi", default="lo") if ins.opcode == "dp2a" else "lo"
    m.finish()
    a, b = e.use(ins.operands[1], "u32"), e.use(ins.operands[2], "u32")
    result = "u32" if first == second == "u32" else "s32"
    c = e.use(ins.operands[3], result)
    e.set_expression(
        ins.operands[0],
        f"{ins.opcode}({a}, {b}, {c}, {first[0] == 's'}, {second[0] == 's'}, {high == 'hi'})",
        result,
    )


@helper
def dp4a(a, b, c, a_signed, b_signed, _high):
    """Dot product of four bytes, plus c."""
    total = sum(field(a, k, 8, a_signed) * field(b, k, 8, b_signed) for k in range(4))
    return (total + c.astype(np.int64)).astype(c.dtype)


@helper
def dp2a(a, b, c, a_signed, b_signed, high):
    """Dot product of two 16-bit values with the low or high two bytes of b, plus c."""
    total = sum(field(a, k, 16, a_signed) * field(b, k + 2 * high, 8, b_signed) for k in range(2))
    return (total + c.astype(np.int64)).astype(c.dtype)
