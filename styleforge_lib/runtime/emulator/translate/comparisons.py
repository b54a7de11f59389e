"""setp, set, selp, slct: comparisons of integers and floats, and choices by predicate."""

from __future__ import annotations

import numpy as np

from ..parse import TYPE_BYTES, Imm, Pair
from .emitter import DTYPES, dtype_name, helper, rule
from .packed import half_of_pair

_ORDERED = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_UNSIGNED = {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
# An unordered comparison is true for NaN: the negation of the opposite ordered one.
_UNORDERED = {"equ": "!=", "neu": "==", "ltu": ">=", "leu": ">", "gtu": "<=", "geu": "<"}


@helper
def select(predicate, a, b):
    """Choose a where the predicate holds, else b; stays a scalar where all three allow."""
    if not isinstance(predicate, np.ndarray):
        return a if predicate else b
    return np.where(predicate, a, b)


@helper
def flush(value):
    """Subnormal float32 to zero of the same sign."""
    tiny = np.abs(value) < np.float32(2.0**-126)
    if isinstance(value, np.ndarray):
        return np.where(tiny, value * np.float32(0), value) if tiny.any() else value
    return np.copysign(np.float32(0), value) if tiny else value


def operand(e, value, kind: str, ftz: bool) -> str:
    """Return an operand, flushed where the instruction says .ftz."""
    name = e.use(value, kind)
    return e.form(name, "flushed", f"flush({name})") if ftz else name


def _compare(e, comparison: str, kind: str, a: str, b: str, m) -> str:
    is_float = kind[0] == "f"
    if is_float and comparison == "ne":
        # PTX's ne is false for NaN; NumPy's != is true.
        return f"(({a} != {b}) & ({a} == {a}) & ({b} == {b}))"
    if is_float and comparison in _UNORDERED:
        if comparison == "neu":
            return f"({a} != {b})"
        if comparison == "equ":
            return f"(({a} == {b}) | ({a} != {a}) | ({b} != {b}))"
        return f"~({a} {_UNORDERED[comparison]} {b})"
    if is_float and comparison == "num":
        return f"(({a} == {a}) & ({b} == {b}))"
    if is_float and comparison == "nan":
        return f"(({a} != {a}) | ({b} != {b}))"
    if comparison in _ORDERED:
        return f"({a} {_ORDERED[comparison]} {b})"
    if not is_float and comparison in _UNSIGNED and kind[0] == "u":
        return f"({a} {_UNSIGNED[comparison]} {b})"
    return m.refuse()


_COMPARISONS = (*_ORDERED, *_UNSIGNED, *_UNORDERED, "num", "nan")
_TYPES = ("b16", "b32", "b64", "u16", "u32", "u64", "s16", "s32", "s64", "f16", "f32", "f64")
_CHOSEN = tuple(kind for kind in _TYPES if kind != "f16")


def _condition(e, ins, m, kind: str, sources) -> str:
    comparison = m.one_of(*_COMPARISONS) or m.refuse()
    combine = m.one_of("and", "or", "xor")
    ftz = kind == "f32" and m.flag("ftz")
    if kind[0] == "b" and comparison not in ("eq", "ne"):
        m.refuse()
    a, b = operand(e, sources[0], kind, ftz and kind == "f32"), operand(e, sources[1], kind, ftz and kind == "f32")
    condition = e.new(_compare(e, comparison, kind, a, b, m))
    return condition, combine


def _combined(e, condition: str, combine: str | None, with_predicate) -> str:
    if combine is None:
        return condition
    other = e.use(with_predicate, "pred")
    return e.new(f"{condition} {({'and': '&', 'or': '|', 'xor': '^'})[combine]} {other}")


@rule("setp")
def _setp(e, ins, m):
    if "bf16" in m.left or "bf16x2" in m.left:
        from .brain_floats import brain_setp

        brain_setp(e, ins, m, _COMPARISONS)
        return
    if "f16x2" in m.left:
        _setp_pairs(e, ins, m)
        return
    kind = m.type(*_TYPES)
    condition, combine = _condition(e, ins, m, kind, ins.operands[1:3])
    m.finish()
    target = ins.operands[0]
    extra = ins.operands[3] if combine else None
    first = target.first if isinstance(target, Pair) else target
    if first is not None:
        e.set(first, _combined(e, condition, combine, extra), "pred")
    if isinstance(target, Pair) and target.second is not None:
        e.set(target.second, _combined(e, e.new(f"~{condition}"), combine, extra), "pred")


def _setp_pairs(e, ins, m):
    kind = m.type("f16x2")
    comparison = m.one_of(*_COMPARISONS) or m.refuse()
    m.finish()
    target = ins.operands[0]
    a, b = (e.use(value, kind) for value in ins.operands[1:3])
    for half, register in enumerate((target.first, target.second)):
        if register is None:
            continue
        x, y = (half_of_pair(e, v, half) for v in (a, b))
        e.set_expression(register, _compare(e, comparison, "f16", x, y, m), "pred")


@rule("set")
def _set(e, ins, m):
    if "bf16" in m.left or "bf16x2" in m.left:
        from .brain_floats import brain_set

        brain_set(e, ins, m, _COMPARISONS)
        return
    if "f16x2" in m.left:
        _set_pairs(e, ins, m)
        return
    kind = m.type(*_TYPES)
    result = m.type("u32", "s32", "f32", "u16", "s16", "f16")
    condition, combine = _condition(e, ins, m, kind, ins.operands[1:3])
    m.finish()
    condition = _combined(e, condition, combine, ins.operands[3] if combine else None)
    true = e.constant(1.0, result) if result[0] == "f" else e.literal(Imm(-1, "int"), DTYPES[result])
    e.set_expression(ins.operands[0], f"select({condition}, {true}, {e.constant(0, result)})", result)


def _set_pairs(e, ins, m):
    """Two comparisons at once; each half becomes 1.0 (or all ones, if the result is an integer) or 0."""
    kind = m.type("f16x2")
    result = m.type("f16x2", "u32", "s32")
    comparison = m.one_of(*_COMPARISONS) or m.refuse()
    m.finish()
    a, b = (e.use(value, kind) for value in ins.operands[1:3])
    true = e.constant(1.0, "f16") if result == "f16x2" else e.constant(0xFFFF, "u16")
    false = e.constant(0, "f16" if result == "f16x2" else "u16")
    halves = []
    for half in (0, 1):
        x, y = (half_of_pair(e, v, half) for v in (a, b))
        halves.append(e.new(f"select({_compare(e, comparison, 'f16', x, y, m)}, {true}, {false})"))
    e.set_expression(ins.operands[0], f"joined({halves[0]}, {halves[1]})", "u32")


@rule("selp")
def _selp(e, ins, m):
    kind = m.type(*_CHOSEN)
    m.finish()
    target, a, b, predicate = ins.operands
    width = TYPE_BYTES[kind]
    if kind[0] == "b":
        (x, dtype), (y, other) = e.bits(a, width), e.bits(b, width)
        if dtype != other:
            y = e.as_dtype(y, other, dtype) if y[0] != "K" else e.use(b, _ptx_type(dtype))
    else:
        x, y, dtype = e.use(a, kind), e.use(b, kind), DTYPES[kind]
    e.set_expression(target, f"select({e.use(predicate, 'pred')}, {x}, {y})", _ptx_type(dtype))


def _ptx_type(dtype: np.dtype) -> str:
    return {"f": "f", "u": "u", "i": "s"}[dtype.kind] + str(8 * dtype.itemsize)


@rule("slct")
def _slct(e, ins, m):
    chooser = m.type("s32", "f32")
    kind = m.type(*_CHOSEN)
    ftz = chooser == "f32" and m.flag("ftz")
    m.finish()
    target, a, b, c = ins.operands
    zero = e.constant(0, chooser)
    predicate = e.new(f"{operand(e, c, chooser, ftz and chooser == 'f32')} >= {zero}")
    e.set_expression(target, f"select({predicate}, {e.use(a, kind)}, {e.use(b, kind)})", kind)


__all__ = ["dtype_name", "flush", "operand", "select"]
