"""float32 and float64 arithmetic, exactly rounded, with PTX's rounding modes.

NumPy rounds +, -, *, / and sqrt to nearest as IEEE 754 and PTX (.rn) do. The rest is built on float64:

- fused multiply-add of float32: see `multiply_add`, `matrix_sums` and `two_products`.
- directed rounding (.rz .rm .rp): round to nearest, compare with the exact result, step to the neighbour if needed.
- fused multiply-add of float64: Boldo and Melquiond's algorithm, with Python's fractions where exponents are extreme.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from ..control_flow import read
from ..lanes import picked
from .comparisons import operand
from .emitter import HELPERS, dtype_name, helper, rule
from .integers import integer_add, integer_divide, integer_extreme, integer_sign
from .matrix_sums import from_the_first_weight, shared_sums
from .multiply_add import chains, directed, repaired, to_odd, two_sum_error
from .two_products import scaled_sums_of

F4, F8 = np.float32, np.float64
_TWO_SUM_SAFE = 2.0**1000


# --- float32 under other rounding modes -------------------------------------------------------------------------------


@helper
def rounded_sum(a, b, mode):
    """float32 of a + b under .rz .rm .rp; float64 operands that hold float32 values or their products."""
    total = np.asarray(a + b)
    result = repaired(np.asarray(a), np.asarray(b), total, mode)
    if mode == "rm":  # x + (-x) is -0 when rounding down
        zero = (total == 0) & ~(np.signbit(a) == np.signbit(b))
        result = np.where(zero & (np.asarray(a) == -np.asarray(b)), F4(-0.0), result)
    return result.astype(F4)[()]


@helper
def rounded_product(a, b, mode):
    """float32 of a * b under .rz .rm .rp."""
    total = np.asarray(a * b)
    return directed(total.astype(F4), total, np.zeros_like(total), mode).astype(F4)[()]


@helper
def rounded_quotient(a, b, mode):
    """float32 of a / b under .rz .rm .rp: the remainder's sign tells on which side the nearest lies."""
    a, b = np.asarray(a), np.asarray(b)
    nearest = (a / b).astype(F4)
    remainder = a - nearest.astype(F8) * b  # exact: 24 bits times 24 bits
    error = np.where(np.isfinite(nearest) & (b != 0) & np.isfinite(b), remainder * np.sign(b), 0.0)
    wide = nearest.astype(F8)
    total = np.where(np.isfinite(wide), wide, a / b)
    return directed(nearest, total, error, mode).astype(F4)[()]


@helper
def rounded_root(a, mode):
    """float32 of sqrt(a) under .rz .rm .rp."""
    a = np.asarray(a)
    nearest = np.sqrt(a).astype(F4)
    wide = nearest.astype(F8)
    error = np.where(np.isfinite(wide), a - wide * wide, 0.0)
    return directed(nearest, wide, error, mode).astype(F4)[()]


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
    first, rest = c + low, two_sum_error(c, low, c + low)
    total = high + first
    tail = two_sum_error(high, first, total)
    odd = tail + rest
    error = two_sum_error(tail, rest, odd)
    result = total + to_odd(odd, error)
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
    if ins.opcode == "mul" and (kind, rounding, ftz, sat) == ("f32", "rn", False, False):
        product = e.new(f"{a} * {b}", only_if_used=True)
        e.products[product] = (a, b)
        e.set(ins.operands[0], product, kind)
        return
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
    place, count = _place_in_sum(e, ins)
    if (shared := e.shared_sums.get(id(ins))) is not None:
        shared.add(e, ins, a, b, c)
        return
    if (scaled := e.scaled_sums.get(id(ins))) is not None:
        scaled.add(e, ins, (a, b), e.products[c])
        return
    if count < 2:
        finish(e, ins.operands[0], _fused(e, kind, rounding, a, b, c), kind, ftz, sat)
        return
    total = c if place else f"RunningSum({c}, {count})"
    e.set_expression(ins.operands[0], f"{total}.{'total' if place == count - 1 else 'plus'}({a}, {b})", kind)


def _place_in_sum(e, ins) -> tuple[int, int]:
    """Return an instruction's place in a sum of products, and how many these are: 0 and 1 where it is by itself."""
    if e.sums is None:
        graph, block = e.code.graph, e.block
        after = {*graph.names(block.live_out), *e.code.accumulators}
        e.sums = chains(block, after if block.last is None else after | set(read(block.last)))
        e.sums = from_the_first_weight(block, e.sums, e.code.varying)
        e.shared_sums = shared_sums(block, e.sums, e.code.varying)
        e.scaled_sums = scaled_sums_of(block, after, {*e.sums, *e.shared_sums})
    return e.sums.get(id(ins), (0, 1))


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
    # NumPy takes either of two zeros: only a result of -0 may be wrong for a max, and only one of +0 for a min.
    size = 8 * result.itemsize
    wrong, kind = (-1 << (size - 1), f"i{size // 8}") if largest else (0, f"u{size // 8}")
    if result.view(kind).min() != wrong:
        return result
    # Of two zeros, max takes the sign bit both have, as their sum does, min the one either has; a lone zero stays.
    if not isinstance(result, np.ndarray):
        return _extreme_of_zeros(a, b, largest) if a == 0 and b == 0 else result
    where = np.nonzero(result == 0)
    x, y = (picked(value, where) for value in (a, b))
    both = (x == 0) & (y == 0)
    result[where] = np.where(both, _extreme_of_zeros(x, y, largest), result[where])
    return result


def _extreme_of_zeros(a, b, largest: bool):
    return a + b if largest else -(-a - b)


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
