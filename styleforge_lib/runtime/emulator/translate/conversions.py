"""cvt: integers, floats, rounding and saturation."""

from __future__ import annotations

import numpy as np

from .comparisons import operand
from .eight_bits import KINDS as EIGHT_BITS
from .eight_bits import eight_bit_convert
from .emitter import BITS, DTYPES, dtype_name, helper, rule
from .floats import wide
from .halves import wide_half
from .multiply_add import directed

_INTEGERS = ("u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64")
_FLOATS = ("f16", "f32", "f64")


@rule("cvt")
def _cvt(e, ins, m):
    if "pack" in m.left:
        _pack(e, ins, m)
        return
    if "tf32" in m.left:
        from .tensor_cores import tf32_convert

        tf32_convert(e, ins, m)
        return
    if any(kind in m.left for kind in EIGHT_BITS):
        eight_bit_convert(e, ins, m)
        return
    kinds = [modifier for modifier in m.left if modifier in DTYPES]
    if len(kinds) != 2:
        m.refuse()
    target, source = kinds
    for kind in kinds:
        m.left.remove(kind)
    if target == "f16x2" and source == "f32":
        _pair(e, ins, m)
        return
    if any(kind.startswith("bf16") for kind in kinds):
        from .brain_floats import brain_convert

        brain_convert(e, ins, m, target, source)
        return
    if target not in (*_INTEGERS, *_FLOATS) or source not in (*_INTEGERS, *_FLOATS):
        m.left = [target, source]
        m.refuse()
    rounding = m.one_of("rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi")
    ftz, saturated = "f32" in (target, source) and m.flag("ftz"), m.flag("sat")
    m.finish()
    value = operand(e, ins.operands[1], source, ftz and source == "f32")
    if source in _INTEGERS:
        expression = _from_integer(e, value, target, source, rounding, saturated)
    elif target in _INTEGERS:
        if rounding not in ("rni", "rzi", "rmi", "rpi"):
            m.refuse()
        expression = f"to_integer({value}, {rounding!r}, {dtype_name(DTYPES[target])})"
    else:
        expression = _float_to_float(e, value, target, source, rounding, saturated, m)
        if ftz and target == "f32":
            expression = f"flush({expression})"
    e.set_expression(ins.operands[0], expression, target)


def _from_integer(e, value: str, target: str, source: str, rounding: str | None, saturated: bool) -> str:
    name = dtype_name(DTYPES[target])
    if target in _INTEGERS:
        if saturated:
            return f"clamped({value}, {name})"
        return f"{value}.astype({name})" if target != source else value
    if saturated:
        return f"saturate({value}.astype({name}))"
    if rounding in (None, "rn"):
        if target == "f16":
            return f"halved({value}.astype(F8))"
        return f"{value}.astype({name})"
    return f"directed_from_integer({value}, {name}, {rounding!r})"


@helper
def clamped(value, dtype):
    """Return an integer clamped to another integer type's range."""
    limits, have = np.iinfo(dtype), np.iinfo(value.dtype)
    low, high = max(limits.min, have.min), min(limits.max, have.max)
    return np.clip(value, value.dtype.type(low), value.dtype.type(high)).astype(dtype)


@helper
def directed_from_integer(value, dtype, mode):
    """Convert an integer to float under .rz .rm .rp: compare the nearest with the integer, exactly."""
    array = np.asarray(value)
    nearest = array.astype(dtype)
    exact = np.array([int(v) for v in array.reshape(-1)], object)
    near = np.array(
        [int(v) if np.isfinite(v) else (1 << 80) * (1 if v > 0 else -1) for v in nearest.reshape(-1)], object
    )
    error = np.sign((exact - near).astype(object)).astype(np.float64).reshape(array.shape)
    wide_nearest = nearest.astype(np.float64)
    if dtype == np.dtype("f8"):
        result = nearest
        down, up = (error < 0), (error > 0)
        toward_down = down & ((mode == "rm") | ((mode == "rz") & (nearest > 0)))
        toward_up = up & ((mode == "rp") | ((mode == "rz") & (nearest < 0)))
        result = np.where(toward_down, np.nextafter(nearest, -np.inf), result)
        result = np.where(toward_up, np.nextafter(nearest, np.inf), result)
        return result[()]
    return directed(nearest, wide_nearest, error, mode).astype(dtype)[()]


_ROUND = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


@helper
def to_integer(value, mode, dtype):
    """Round a float to an integer, clamped to the type's range.

    NaN gives 0, but where the source or the target has 64 bits the highest bit of the target alone, as an H200 does.
    """
    limits = np.iinfo(dtype)
    wide_unit = value.dtype.itemsize == 8 or dtype.itemsize == 8
    whole = _ROUND[mode](value if value.dtype.itemsize == 8 else value.astype(np.float64))
    low, high = float(limits.min), float(limits.max)
    inside = (whole > low) & (whole < high)
    if inside.all():
        return whole.astype(dtype)
    result = np.where(inside, whole, 0.0).astype(dtype)
    result = np.where(whole >= high, dtype.type(limits.max), result)
    result = np.where(whole <= low, dtype.type(limits.min), result)
    if wide_unit:
        highest_bit = limits.min if limits.min < 0 else limits.max // 2 + 1
        result = np.where(np.isnan(whole), dtype.type(highest_bit), result)
    return result[()]


def _float_to_float(e, value: str, target: str, source: str, rounding, saturated: bool, m) -> str:
    name = dtype_name(DTYPES[target])
    if rounding in ("rni", "rzi", "rmi", "rpi"):
        if BITS[target] != BITS[source]:
            m.refuse()
        function = {"rni": "rint", "rzi": "trunc", "rmi": "floor", "rpi": "ceil"}[rounding]
        expression = f"np.{function}({value})"
    elif BITS[target] >= BITS[source]:
        if source == "f16" and target != source:
            value = wide_half(e, value)
        expression = f"{value}.astype({name})" if target not in (source, "f32") else value
    elif rounding in (None, "rn"):
        expression = f"halved({value})" if target == "f16" else f"{value}.astype({name})"
    else:
        exact = value if source == "f64" else wide(e, value)
        expression = f"directed_float({exact}, {name}, {rounding!r})"
    return f"saturate({expression})" if saturated else expression


@helper
def directed_float(value, dtype, mode):
    """float64 to a narrower float under .rz .rm .rp."""
    array = np.asarray(value)
    return directed(array.astype(dtype), array, np.zeros_like(array), mode).astype(dtype)[()]


def _pair(e, ins, m) -> None:
    """cvt.rn.f16x2.f32 d, a, b: a becomes the high half."""
    rounding = m.one_of("rn", "rz") or m.refuse()
    relu = m.flag("relu")
    m.finish()
    halves = []
    for source in (ins.operands[2], ins.operands[1]):
        value = e.use(source, "f32")
        text = f"halved({value})" if rounding == "rn" else f"directed_float({wide(e, value)}, F2, 'rz')"
        halves.append(f"extreme({text}, {e.constant(0, 'f16')}, True, True)" if relu else text)  # NaN stays
    e.set_expression(ins.operands[0], f"joined({halves[0]}, {halves[1]})", "f16x2")


def _pack(e, ins, m) -> None:
    """cvt.pack.sat.u8.s32.b32 d, a, b, c: two values clamped to bytes, in front of c's low half."""
    m.flag("pack")
    if not m.flag("sat"):
        m.refuse()
    third = m.one_of("b32")
    m.left = [kind for kind in m.left if kind != "s32"]
    kind = m.one_of("u8", "s8", "u16", "s16") or m.refuse()
    m.finish()
    a, b = (e.use(value, "s32") for value in ins.operands[1:3])
    name, unsigned = dtype_name(DTYPES[kind]), dtype_name(DTYPES["u" + kind[1:]])
    bits = BITS[kind]
    high, low = (f"clamped({v}, {name}).view({unsigned}).astype(U4)" for v in (a, b))
    expression = f"({high} << {e.constant(bits, 'u32')}) | {low}"
    if third:
        c = e.use(ins.operands[3], "u32")
        expression += f" | ({c} << {e.constant(2 * bits, 'u32')})"
    e.set_expression(ins.operands[0], expression, "u32")
