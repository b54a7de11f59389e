"""float32 and float64 arithmetic, exactly rounded, with PTX's rounding modes.

NumPy rounds +, -, *, / and sqrt to nearest as IEEE 754 and PTX (.rn) do. The rest is built on float64:

- fused multiply-add of float32: NumPy's complex product is the one operation of it that uses the processor's fused
  multiply-add, and with a = (a, -1) and b = (b, c) its real part is a * b + c, rounded once: half the time of the
  following, which stands in where a probe at import finds no such instruction, and for few lanes. The product of two
  float32 is exact in float64, so `float32(float64(a) * b + c)` rounds twice only in the sum. Twice rounded goes wrong
  only where the float64 sum sits exactly between two float32 numbers; such lanes are found by their bits and repaired
  with the sum's error term (Knuth's TwoSum), rounding to odd (Boldo and Melquiond 2008).
- directed rounding (.rz .rm .rp): round to nearest, compare with the exact result, step to the neighbour if needed.
- fused multiply-add of float64: Boldo and Melquiond's algorithm, with Python's fractions where exponents are extreme.
"""

from __future__ import annotations

import threading
from fractions import Fraction

import numpy as np

from .comparisons import operand
from .emitter import HELPERS, dtype_name, helper, rule
from .integers import integer_add, integer_divide, integer_extreme, integer_sign

F4, F8, C8 = np.float32, np.float64, np.complex64
_C8 = np.dtype(C8)
_MIDPOINT = np.int32(-(2**31))
_THREE = np.int32(3)
_TWO_SUM_SAFE = 2.0**1000
_WORTH_COMPLEX = 256  # elements; fewer are faster in float64, and a loop over one element need not be fused


class Underflow:
    """Whether the last conversion to float32 gave an inexact subnormal; NumPy calls `note` (see `schedule`)."""

    seen = False

    @classmethod
    def note(cls, _kind: str, _flag: int) -> None:
        """NumPy's error callback."""
        cls.seen = True


# --- fused multiply-add, float32 --------------------------------------------------------------------------------------


class _Scratch(threading.local):
    """The complex operands of the last fused multiply-add of a thread, with the arrays whose copies they hold.

    Values are never changed in place, so an array that comes again (a pixel times eight weights) need not be copied.
    """

    def __init__(self):
        self.room = np.empty(0, C8)  # (factor, addend)
        self.pairs = {sign: np.empty(0, C8) for sign in (1, -1)}  # (other factor, sign)
        self.in_room, self.in_pairs = None, {1: None, -1: None}


_scratch = _Scratch()


def forget_operands() -> None:
    """Let go of the operands that `fma32` remembers."""
    _scratch.__init__()


@helper
def fma32(a, b, c):
    """float32 of a * b + c, rounded once. The result may be a strided view.

    It is one half of a complex array whose other half nobody reads. The next fused multiply-add that takes the result
    puts its second operand there, which is all the copying that a sum of products needs: from (c, b) the product with
    (a, 1) has a * b + c for its imaginary part, from (b, c) that with (a, -1) for its real part. An array that holds
    its result in the imaginary part has an axis more than the result, so that one can tell.
    """
    if a.size > b.size:
        a, b = b, a
    size = b.size if b.size > c.size else c.size
    if size < _WORTH_COMPLEX or not COMPLEX_PRODUCT_FUSES:
        return _fma32_wide(a.astype(F8), b.astype(F8), c)
    for held, other, sign in ((c, b, 1), (b, c, -1)):
        room = held.base
        if room is None or room.dtype is not _C8:
            continue
        shape, axes = held.shape, held.ndim
        if room.shape[-axes:] != shape or room.strides[-axes:] != held.strides:
            continue  # a part of the result
        if other.shape != shape and other.shape and not _fits(other.shape, shape):
            continue
        if room.ndim == axes:
            room.imag = other
        else:
            room, sign = room[0], -sign
            room.real = other
        return _complex_product(a, sign, room)
    scratch, room = _scratch, _scratch.room
    shape = b.shape if b.shape == c.shape else np.broadcast(b, c).shape
    if scratch.in_room is not b or room.shape != shape:
        if room.shape != shape:
            room = scratch.room = np.empty(shape, C8)
        room.real = scratch.in_room = b
    room.imag = c
    return _complex_product(a, -1, room)


def _fits(shape: tuple[int, ...], into: tuple[int, ...]) -> bool:
    """Whether a shape broadcasts into another."""
    return all(have in (1, want) for have, want in zip(shape, into, strict=True))


def _complex_product(a, sign: int, room: np.ndarray):
    """Return the real (sign -1) or imaginary part of (a, sign) times a complex array."""
    if isinstance(a, np.ndarray):
        pair, held = _scratch.pairs[sign], _scratch.in_pairs
        if held[sign] is not a:
            if pair.shape != a.shape:
                pair = _scratch.pairs[sign] = np.empty(a.shape, C8)
                pair.imag = sign
            pair.real = held[sign] = a
    else:
        pair = complex(a, sign)
    if sign < 0:
        return np.multiply(pair, room).real
    return np.multiply(pair, room[None])[0].imag


def _complex_product_fuses() -> bool:
    """Whether both parts of NumPy's complex64 product, as `fma32` uses them, are a * b + c, rounded once.

    They are wherever NumPy's vector loops have the processor's own fused multiply-add (x86-64 with FMA3, ARM64). The
    question is put to every form that such a loop has: contiguous, one operand constant along it, and odd lengths.
    """
    rng = np.random.default_rng(0)
    whole, row, column = (1 + rng.random(shape).astype(F4) for shape in ((37, 41), (1, 41), (37, 1)))
    for a, b in ((whole, whole[::-1]), (row, whole), (column, whole), (row, column), (F4(1.1), whole)):
        exact = a.astype(F8) * b
        c = -exact.astype(F4)  # leaves what rounding the product would lose
        for parts, sign in (((b, c), -1), ((c, b), 1)):
            room = np.empty(c.shape, C8)
            room.real, room.imag = parts
            if (_complex_product(a, sign, room) != exact + c).any():
                return False
    return True


COMPLEX_PRODUCT_FUSES = _complex_product_fuses()


def _fma32_wide(a, b, c):
    """float32 of a * b + c from float64 a and b: the sum's second rounding is repaired where it could tell."""
    total = a * b + c.astype(F8)
    Underflow.seen = False
    if not isinstance(total, np.ndarray):
        result = F4(total)
        if (int(total.view(np.uint64)) & 0x1FFFFFFF) != 0x10000000 and not Underflow.seen:
            return result
        return _repaired(np.array([a * b]), np.array([c]), np.array([total]), "rn")[0]
    result = total.astype(F4)
    if (total.view(np.int32) << _THREE).min() == _MIDPOINT or Underflow.seen:
        _repair(a, b, c, total, result)
    return result


def _repair(a, b, c, total, result) -> None:
    """Redoes the lanes whose float64 sum lies between two float32 numbers, or is subnormal there."""
    doubtful = (total.view(np.uint64) & np.uint64(0x1FFFFFFF)) == np.uint64(0x10000000)
    if Underflow.seen:
        doubtful |= (np.abs(total) < 2.0**-125) & (total != 0)
    where = np.nonzero(doubtful)
    if where[0].size:
        a, b, c, sums = (_picked(value, where) for value in (a, b, c, total))
        result[where] = _repaired(a * b, c.astype(F8), sums, "rn")


def _picked(value, where: tuple[np.ndarray, ...]):
    """Return the elements at some places; an axis of length 1 stands for all."""
    if not isinstance(value, np.ndarray):
        return value
    return value[tuple(index if length > 1 else 0 for index, length in zip(where, value.shape, strict=True))]


def _two_sum_error(a, b, total):
    """Return A + b - total, exactly (Knuth)."""
    from_b = total - a
    return (a - (total - from_b)) + (b - from_b)


def _repaired(a, b, total, mode: str):
    """float32 of a + b under a rounding mode, where total is their float64 sum."""
    error = _two_sum_error(a, b, total)
    error = np.where(np.isfinite(total), error, 0.0)
    if mode == "rn":
        return _to_odd(total, error).astype(F4)
    return _directed(total.astype(F4), total, error, mode)


def _to_odd(total, error):
    """Where the sum was inexact, the neighbour with an odd last bit: rounding that again cannot go wrong."""
    even = (total.view(np.int64) & 1) == 0
    neighbour = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    return np.where((error != 0) & even, neighbour, total)


def _directed(nearest, total, error, mode: str):
    """Return the float32 on the wanted side of total + error, given the nearest one."""
    wide = nearest.astype(F8)
    above = (wide > total) | ((wide == total) & (error < 0))
    below = (wide < total) | ((wide == total) & (error > 0))
    down, up = np.array(-np.inf, nearest.dtype), np.array(np.inf, nearest.dtype)
    lower = np.where(above, np.nextafter(nearest, down), nearest)
    upper = np.where(below, np.nextafter(nearest, up), nearest)
    if mode == "rm":
        result = lower
    elif mode == "rp":
        result = upper
    else:
        result = np.where(np.signbit(nearest), upper, lower)
    # An infinity that came from rounding, not from the operands, steps back above; a true one stays.
    return np.where(np.isfinite(total), result, nearest)


@helper
def rounded_sum(a, b, mode):
    """float32 of a + b under .rz .rm .rp; float64 operands that hold float32 values or their products."""
    total = np.asarray(a + b)
    result = _repaired(np.asarray(a), np.asarray(b), total, mode)
    if mode == "rm":  # x + (-x) is -0 when rounding down
        zero = (total == 0) & ~(np.signbit(a) == np.signbit(b))
        result = np.where(zero & (np.asarray(a) == -np.asarray(b)), F4(-0.0), result)
    return result.astype(F4)[()]


@helper
def rounded_product(a, b, mode):
    """float32 of a * b under .rz .rm .rp."""
    total = np.asarray(a * b)
    return _directed(total.astype(F4), total, np.zeros_like(total), mode).astype(F4)[()]


@helper
def rounded_quotient(a, b, mode):
    """float32 of a / b under .rz .rm .rp: the remainder's sign tells on which side the nearest lies."""
    a, b = np.asarray(a), np.asarray(b)
    nearest = (a / b).astype(F4)
    remainder = a - nearest.astype(F8) * b  # exact: 24 bits times 24 bits
    error = np.where(np.isfinite(nearest) & (b != 0) & np.isfinite(b), remainder * np.sign(b), 0.0)
    wide = nearest.astype(F8)
    total = np.where(np.isfinite(wide), wide, a / b)
    return _directed(nearest, total, error, mode).astype(F4)[()]


@helper
def rounded_root(a, mode):
    """float32 of sqrt(a) under .rz .rm .rp."""
    a = np.asarray(a)
    nearest = np.sqrt(a).astype(F4)
    wide = nearest.astype(F8)
    error = np.where(np.isfinite(wide), a - wide * wide, 0.0)
    return _directed(nearest, wide, error, mode).astype(F4)[()]


# --- float64 ----------------------------------------------------------------------------------------------------------


def _two_product(a, b):
    product = a * b
    split = 134217729.0
    ah = a * split
    ah = ah - (ah - a)
    bh = b * split
    bh = bh - (bh - b)
    al, bl = a - ah, b - bh
    return product, ((ah * bh - product) + ah * bl + al * bh) + al * bl


@helper
def fma64(a, b, c, mode="rn"):
    """float64 of a * b + c, rounded once."""
    shape = np.broadcast_shapes(np.shape(a), np.shape(b), np.shape(c))
    a, b, c = (np.broadcast_to(np.asarray(value, F8), shape).reshape(-1) for value in (a, b, c))
    high, low = _two_product(a, b)
    first, rest = c + low, _two_sum_error(c, low, c + low)
    total = high + first
    tail = _two_sum_error(high, first, total)
    odd = tail + rest
    error = _two_sum_error(tail, rest, odd)
    result = total + _to_odd(odd, error)
    size = np.maximum(np.abs(high), np.abs(c))
    plain = np.isfinite(total) & (size < _TWO_SUM_SAFE) & (np.abs(a) < 2.0**500) & (np.abs(b) < 2.0**500)
    plain &= ((np.abs(high) > 2.0**-900) | (a == 0) | (b == 0)) & (mode == "rn")
    special = ~(np.isfinite(a) & np.isfinite(b) & np.isfinite(c))
    result = np.where(special | (a == 0) | (b == 0), a * b + c, result)
    result = np.where(np.isfinite(a) & np.isfinite(b) & ~np.isfinite(c), c, result)  # even where a * b overflows
    plain |= special
    for place in np.flatnonzero(~plain):
        x, y, z = float(a[place]), float(b[place]), float(c[place])
        zero = _zero_sum(x * y, z, mode)
        result[place] = _round_fraction(Fraction(x) * Fraction(y) + Fraction(z), mode, zero)
    return result.reshape(shape)[()]


def _zero_sum(a: float, b: float, mode: str) -> float:
    """Return a sum that is exactly zero: +0, but rounding down -0 unless both are +0."""
    negative = (np.signbit(a) or np.signbit(b)) if mode == "rm" else (np.signbit(a) and np.signbit(b))
    return -0.0 if negative else 0.0


def _round_fraction(exact: Fraction, mode: str, fallback: float) -> float:
    """Return the float64 of an exact value under a rounding mode; `fallback` stands for an exact zero."""
    if exact == 0:
        return fallback
    try:
        nearest = float(exact)
    except OverflowError:
        nearest = np.inf if exact > 0 else -np.inf
    if mode == "rn":
        return nearest
    above = nearest == np.inf or (nearest != -np.inf and Fraction(nearest) > exact)
    below = nearest == -np.inf or (nearest != np.inf and Fraction(nearest) < exact)
    if above and (mode == "rm" or (mode == "rz" and exact > 0)):
        return float(np.nextafter(nearest, -np.inf))
    if below and (mode == "rp" or (mode == "rz" and exact < 0)):
        return float(np.nextafter(nearest, np.inf))
    return nearest


@helper
def rounded64(a, b, operation, mode):
    """float64 add, mul, div or sqrt under .rz .rm .rp, lane by lane in exact fractions."""
    shape = np.broadcast_shapes(np.shape(a), np.shape(b))
    x, y = (np.broadcast_to(np.asarray(value, F8), shape).reshape(-1) for value in (a, b))
    plain = {"add": x + y, "mul": x * y, "div": x / y, "sqrt": np.sqrt(x)}[operation]
    result = plain.copy()
    inputs = np.isfinite(x) & np.isfinite(y) & ~((y == 0) & (operation == "div")) & ~np.isnan(plain)
    for place in np.flatnonzero(inputs):
        p, q = Fraction(float(x[place])), Fraction(float(y[place]))
        if operation == "sqrt":
            result[place] = _root_fraction(p, float(plain[place]), mode)
            continue
        exact = p + q if operation == "add" else p * q if operation == "mul" else p / q
        zero = _zero_sum(x[place], y[place], mode) if operation == "add" else float(plain[place])
        result[place] = _round_fraction(exact, mode, zero)
    return result.reshape(shape)[()]


def _root_fraction(value: Fraction, nearest: float, mode: str) -> float:
    square = Fraction(nearest) ** 2
    if square > value and mode in ("rm", "rz"):
        return float(np.nextafter(nearest, -np.inf))
    if square < value and mode == "rp":
        return float(np.nextafter(nearest, np.inf))
    return nearest


# --- rules ------------------------------------------------------------------------------------------------------------


def wide(e, name: str) -> str:
    """Return a float32 value as float64, converted once per block."""
    return e.form(name, "F8", f"{name}.astype(F8)")


@helper
def saturate(value):
    """Clamps to [0, 1]; NaN gives +0."""
    clamped = np.minimum(np.fmax(value, value.dtype.type(0)), value.dtype.type(1))
    return clamped + value.dtype.type(0)  # -0 becomes +0


def finish(e, target, expression: str, kind: str, ftz: bool, sat: bool) -> None:
    """Flushes and saturates a float result as the instruction says, and sets the register."""
    if ftz:
        expression = f"flush({expression})"
    if sat:
        expression = f"saturate({expression})"
    e.set_expression(target, expression, kind)


def _mode(m, kind: str):
    rounding = m.one_of("rn", "rz", "rm", "rp", default="rn")
    single = kind == "f32"
    return rounding, single and m.flag("ftz"), single and m.flag("sat")


def float_binary(e, ins, m) -> None:
    """add, sub and mul of floats."""
    from .halves import half_binary

    if any(kind in ("f16", "f16x2", "bf16", "bf16x2") for kind in m.left):
        half_binary(e, ins, m)
        return
    if m.flag("f32x2"):
        _pairwise(e, ins, m, lambda rounding, names: _binary(e, ins.opcode, "f32", rounding, *names))
        return
    kind = m.type("f32", "f64")
    rounding, ftz, sat = _mode(m, kind)
    m.finish()
    a, b = (operand(e, value, kind, ftz) for value in ins.operands[1:3])
    finish(e, ins.operands[0], _binary(e, ins.opcode, kind, rounding, a, b), kind, ftz, sat)


def _binary(e, opcode: str, kind: str, rounding: str, a: str, b: str) -> str:
    """Return the expression of a sum, difference or product."""
    if rounding == "rn":
        return f"{a} {({'add': '+', 'sub': '-', 'mul': '*'})[opcode]} {b}"
    if kind == "f64":
        b = f"-{b}" if opcode == "sub" else b
        return f"rounded64({a}, {b}, {'mul' if opcode == 'mul' else 'add'!r}, {rounding!r})"
    a, b = wide(e, a), wide(e, b)
    b = f"-{b}" if opcode == "sub" else b
    return f"rounded_{'product' if opcode == 'mul' else 'sum'}({a}, {b}, {rounding!r})"


def _pairwise(e, ins, m, expression) -> None:
    """Set the result of an .f32x2 instruction: `expression(rounding, names)` for each float32 of the pair."""
    rounding, ftz = m.one_of("rn", "rz", "rm", "rp", default="rn"), m.flag("ftz")
    m.finish()
    pairs = [e.use(value, "u64") for value in ins.operands[1:]]
    words = []
    for which in (0, 1):
        names = [e.form(pair, f"word{which}", f"word_of({pair}, {which})") for pair in pairs]
        names = [e.form(name, "flushed", f"flush({name})") for name in names] if ftz else names
        text = expression(rounding, names)
        words.append(e.new(f"flush({text})" if ftz else text))
    e.set_expression(ins.operands[0], f"words_joined({words[0]}, {words[1]})", "u64")


@helper
def word_of(pair, which):
    """One float32 of a pair."""
    return (pair >> np.uint64(32 * which)).astype(np.uint32).view(F4)


@helper
def words_joined(low, high):
    """Two float32 in one 64-bit word."""
    return low.view(np.uint32).astype(np.uint64) | high.view(np.uint32).astype(np.uint64) << np.uint64(32)


@rule("add", "sub")
def _add(e, ins, m):
    if any(kind in ("f16", "f16x2", "bf16", "bf16x2", "f32", "f64", "f32x2") for kind in m.left):
        float_binary(e, ins, m)
    else:
        integer_add(e, ins, m, "+" if ins.opcode == "add" else "-")


def fused(e, ins, m) -> None:
    """Fma and mad of floats."""
    from .halves import half_fused

    if any(kind in ("f16", "f16x2", "bf16", "bf16x2") for kind in m.left):
        half_fused(e, ins, m)
        return
    if m.flag("f32x2"):
        _pairwise(e, ins, m, lambda rounding, names: _fused(e, "f32", rounding, *names))
        return
    kind = m.type("f32", "f64")
    rounding, ftz, sat = _mode(m, kind)
    m.finish()
    a, b, c = (operand(e, value, kind, ftz) for value in ins.operands[1:4])
    finish(e, ins.operands[0], _fused(e, kind, rounding, a, b, c), kind, ftz, sat)


def _fused(e, kind: str, rounding: str, a: str, b: str, c: str) -> str:
    """Return the expression of a fused multiply-add."""
    if kind == "f64":
        return f"fma64({a}, {b}, {c}, {rounding!r})"
    if rounding == "rn":
        return f"fma32({a}, {b}, {c})"
    return f"rounded_sum({wide(e, a)} * {wide(e, b)}, {wide(e, c)}, {rounding!r})"


@rule("fma")
def _fma(e, ins, m):
    fused(e, ins, m)


@rule("div")
def _div(e, ins, m):
    if not any(kind in ("f32", "f64") for kind in m.left):
        integer_divide(e, ins, m)
        return
    kind = m.type("f32", "f64")
    approximate = m.one_of("approx", "full")
    rounding = m.one_of("rn", "rz", "rm", "rp", default="rn")
    ftz = kind == "f32" and m.flag("ftz")
    m.finish()
    if approximate and (kind == "f64" or rounding != "rn"):
        m.refuse()
    a, b = (operand(e, value, kind, ftz) for value in ins.operands[1:3])
    if approximate == "approx":
        expression = f"approximate_quotient({a}, {b})"
    elif rounding == "rn":
        expression = f"{a} / {b}"
    elif kind == "f64":
        expression = f"rounded64({a}, {b}, 'div', {rounding!r})"
    else:
        expression = f"rounded_quotient({wide(e, a)}, {wide(e, b)}, {rounding!r})"
    finish(e, ins.operands[0], expression, kind, ftz, False)


@rule("rcp", "sqrt")
def _reciprocal_or_root(e, ins, m):
    kind = m.type("f32", "f64")
    approximate = m.flag("approx")
    rounding = m.one_of("rn", "rz", "rm", "rp", default="rn")
    ftz = m.flag("ftz")
    root = ins.opcode == "sqrt"
    m.finish()
    if kind == "f64" and (approximate or ftz):
        if root or not (approximate and ftz):
            m.refuse()
        e.set_expression(ins.operands[0], f"gross_64({e.use(ins.operands[1], 'f64')}, False)", "f64")
        return
    a = operand(e, ins.operands[1], kind, ftz)
    one = e.constant(1.0, kind)
    if rounding == "rn":
        expression = f"np.sqrt({a})" if root else f"{one} / {a}"
    elif kind == "f64":
        expression = (
            f"rounded64({a}, {a}, 'sqrt', {rounding!r})" if root else f"rounded64({one}, {a}, 'div', {rounding!r})"
        )
    elif root:
        expression = f"rounded_root({wide(e, a)}, {rounding!r})"
    else:
        expression = f"rounded_quotient({e.constant(1.0, 'f64')}, {wide(e, a)}, {rounding!r})"
    finish(e, ins.operands[0], expression, kind, ftz and kind == "f32", False)


@rule("abs", "neg")
def _sign(e, ins, m):
    if any(kind in ("f16", "f16x2", "bf16", "bf16x2") for kind in m.left):
        from .halves import half_sign

        half_sign(e, ins, m)
        return
    if not any(kind in ("f32", "f64") for kind in m.left):
        integer_sign(e, ins, m)
        return
    kind = m.type("f32", "f64")
    ftz = kind == "f32" and m.flag("ftz")
    m.finish()
    a = operand(e, ins.operands[1], kind, ftz)
    e.set_expression(ins.operands[0], f"-{a}" if ins.opcode == "neg" else f"np.abs({a})", kind)


@rule("min", "max")
def _extreme(e, ins, m):
    if any(kind in ("f16", "f16x2", "bf16", "bf16x2") for kind in m.left):
        from .halves import half_extreme

        half_extreme(e, ins, m)
        return
    if not any(kind in ("f32", "f64") for kind in m.left):
        integer_extreme(e, ins, m)
        return
    kind = m.type("f32", "f64")
    ftz, propagate = kind == "f32" and m.flag("ftz"), kind == "f32" and m.flag("NaN")
    m.finish()
    names = [operand(e, value, kind, ftz) for value in ins.operands[1:]]
    result = names[0]
    for other in names[1:]:
        result = e.new(_extreme_expression(e, ins.opcode, result, other, kind, propagate))
    e.set(ins.operands[0], result, kind)


def _extreme_expression(e, opcode: str, a: str, b: str, kind: str, propagate: bool) -> str:
    for x, y in ((a, b), (b, a)):
        constant = e.code.namespace.get(y) if y.startswith("K") else None
        if opcode == "max" and not propagate and constant is not None and constant == 0 and not np.signbit(constant):
            return f"np.fmax({x}, {y}) + {y}"  # ReLU: adding +0 turns -0 into +0
    return f"extreme({a}, {b}, {opcode == 'max'}, {propagate})"


@helper
def extreme(a, b, largest, propagate):
    """Min or max: NaN loses (or wins, .NaN), and -0 is less than +0."""
    function = (np.maximum if propagate else np.fmax) if largest else (np.minimum if propagate else np.fmin)
    result = function(a, b)
    zero = result == 0
    if zero.any():
        # of two zeros, max takes the sign bit both have, min the one either has; a lone zero is its own answer
        both = zero & (a == 0) & (b == 0)
        negative = (np.signbit(a) & np.signbit(b)) if largest else (np.signbit(a) | np.signbit(b))
        signed = np.where(negative, result.dtype.type(-0.0), result.dtype.type(0.0))
        result = np.where(both, signed, result)[()]
    return result


@rule("copysign")
def _copysign(e, ins, m):
    kind = m.type("f32", "f64")
    m.finish()
    sign, size = (e.use(value, kind) for value in ins.operands[1:3])
    e.set_expression(ins.operands[0], f"np.copysign({size}, {sign})", kind)


@rule("testp")
def _testp(e, ins, m):
    test = m.one_of("finite", "infinite", "number", "notanumber", "normal", "subnormal") or m.refuse()
    kind = m.type("f32", "f64")
    m.finish()
    a = e.use(ins.operands[1], kind)
    tiny = e.constant(2.0**-126 if kind == "f32" else 2.0**-1022, kind)
    expression = {
        "finite": f"np.isfinite({a})",
        "infinite": f"np.isinf({a})",
        "number": f"{a} == {a}",
        "notanumber": f"{a} != {a}",
        "normal": f"np.isfinite({a}) & (np.abs({a}) >= {tiny})",
        "subnormal": f"(np.abs({a}) < {tiny}) & ({a} != 0)",
    }[test]
    e.set_expression(ins.operands[0], expression, "pred")


__all__ = ["HELPERS", "dtype_name", "finish", "float_binary", "fused", "wide"]
