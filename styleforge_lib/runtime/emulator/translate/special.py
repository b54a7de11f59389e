"""ex2, lg2, sin, cos, tanh, rsqrt: the approximate functions, computed more exactly than the hardware does.

Each result lies within the error that the PTX manual states for the instruction. `tools/compare_devices.py` measures
how far a card is from the exact values.

Source of the special cases: PTX ISA 9, "div" (.approx beyond 2^126), "rcp.approx.ftz.f64", "rsqrt.approx.ftz.f64".
"""

from __future__ import annotations

import numpy as np

from .brain_floats import half as brain_half
from .brain_floats import single as brain_single
from .comparisons import operand
from .emitter import helper, rule
from .floats import finish
from .halves import wide_half
from .packed import half_of_pair

_WORTH_SEARCHING = 4096  # elements
_FUNCTIONS = {"ex2": "exp2", "tanh": "tanh"}


@rule("ex2", "lg2", "sin", "cos", "tanh", "rsqrt")
def _special(e, ins, m):
    if not m.flag("approx"):
        m.refuse()
    if ins.opcode in _FUNCTIONS and any(kind in ("f16", "f16x2") for kind in m.left):
        kind = m.type("f16", "f16x2")
        ftz = ins.opcode == "ex2" and m.flag("ftz")
        m.finish()
        _half(e, ins, kind, ftz)
        return
    if ins.opcode in _FUNCTIONS and any(kind in ("bf16", "bf16x2") for kind in m.left):
        kind = m.type("bf16", "bf16x2")
        if ins.opcode == "ex2" and not m.flag("ftz"):
            m.refuse("Write .ftz.")
        m.finish()
        _brain(e, ins, kind)
        return
    kind = m.type("f32", "f64") if ins.opcode == "rsqrt" else m.type("f32")
    ftz = ins.opcode != "tanh" and m.flag("ftz")
    m.finish()
    if kind == "f64" and ftz:
        e.set_expression(ins.operands[0], f"gross_64({e.use(ins.operands[1], 'f64')}, True)", "f64")
        return
    a = operand(e, ins.operands[1], kind, ftz)
    if ins.opcode == "rsqrt":
        one = e.constant(1.0, "f64")
        expression = f"({one} / np.sqrt({a}.astype(F8)))" + (".astype(F4)" if kind == "f32" else "")
    else:
        function = {"ex2": "exp2", "lg2": "log2", "sin": "sin", "cos": "cos", "tanh": "tanh"}[ins.opcode]
        expression = f"np.log2({a})" if ins.opcode == "lg2" else f"{function}_32({a})"
    finish(e, ins.operands[0], expression, kind, ftz, False)


@helper
def exp2_32(a):
    """Return 2**a through float64: NumPy's own float32 exp2 is off by two units in the last place near overflow.

    Where most of a are zero, as by how much a maximum has grown, only the others are computed.
    """
    if isinstance(a, np.ndarray) and a.size >= _WORTH_SEARCHING:
        others = a != 0
        if 4 * np.count_nonzero(others) < a.size:
            powers = np.ones(a.shape, np.float32)
            powers[others] = exp2_32(a[others])
            return powers
    return np.exp2(a.astype(np.float64)).astype(np.float32)


@helper
def sin_32(a):
    """Sine through float64: right to the last bit but rarely, at any size of argument."""
    return np.sin(a.astype(np.float64)).astype(np.float32)


@helper
def cos_32(a):
    """Cosine through float64."""
    return np.cos(a.astype(np.float64)).astype(np.float32)


@helper
def tanh_32(a):
    """Hyperbolic tangent through float64."""
    return np.tanh(a.astype(np.float64)).astype(np.float32)


@helper
def approximate_quotient(a, b):
    """div.approx: a divisor beyond 2^126 makes the quotient zero, and NaN of an infinity."""
    quotient = a / b
    huge = np.abs(b) > np.float32(2.0**126)
    if huge.any():
        quotient = np.where(huge & ~np.isnan(b), a * np.copysign(np.float32(0), b), quotient)[()]
    return quotient


@helper
def gross_64(value, root):
    """1 / a or 1 / sqrt(a) to the 20 bits that the upper half of a float64 holds; the lower half counts as zero."""
    upper = np.uint64(0xFFFFFFFF00000000)
    value = flush_64((np.asarray(value).view(np.uint64) & upper).view(np.float64))
    result = flush_64(1.0 / (np.sqrt(value) if root else value))
    nan = np.float64(np.nan)
    return np.where(np.isnan(result), nan, (result.view(np.uint64) & upper).view(np.float64))[()]


def flush_64(value: np.ndarray) -> np.ndarray:
    """Return float64 with subnormal numbers turned into zero of the same sign."""
    return np.where(np.abs(value) < 2.0**-1022, np.copysign(0.0, value), value)


def _half(e, ins, kind, ftz: bool):
    function = _FUNCTIONS[ins.opcode]

    def result(name: str) -> str:
        name = f"flush_half({name})" if ftz else name
        text = f"halved(np.{function}({wide_half(e, name)}))"
        return f"flush_half({text})" if ftz else text

    if kind == "f16":
        e.set_expression(ins.operands[0], result(e.use(ins.operands[1], "f16")), "f16")
        return
    a = e.use(ins.operands[1], "f16x2")
    low, high = (result(half_of_pair(e, a, h)) for h in (0, 1))
    e.set_expression(ins.operands[0], f"joined({low}, {high})", "f16x2")


def _brain(e, ins, kind):
    function = _FUNCTIONS[ins.opcode]

    def result(name: str) -> str:
        if ins.opcode == "ex2":
            return f"to_brain(flush(np.exp2(flush({name}))))"
        return f"to_brain(np.{function}({name}))"

    if kind == "bf16":
        e.set_expression(ins.operands[0], result(brain_single(e, ins.operands[1])), "u16")
        return
    low, high = (result(brain_half(e, ins.operands[1], which)) for which in (0, 1))
    e.set_expression(ins.operands[0], f"brain_pair({low}, {high})", "u32")
