"""ex2, lg2, sin, cos, tanh, rsqrt: the approximate functions, computed more exactly than the hardware does."""

from __future__ import annotations

import numpy as np

from .comparisons import operand
from .emitter import helper, rule
from .floats import finish


@rule("ex2", "lg2", "sin", "cos", "tanh", "rsqrt")
def _special(e, ins, m):
    if not m.flag("approx"):
        m.refuse()
    if ins.opcode in ("ex2", "tanh") and any(kind in ("f16", "f16x2") for kind in m.left):
        kind = m.type("f16", "f16x2")
        m.flag("ftz")
        m.finish()
        _half(e, ins, kind)
        return
    kind = m.type("f32", "f64")
    ftz = m.flag("ftz")
    m.finish()
    if kind == "f64" and ins.opcode != "rsqrt":
        m.refuse()
    a = operand(e, ins.operands[1], kind, ftz and kind == "f32")
    if ins.opcode == "rsqrt":
        one = e.constant(1.0, "f64")
        expression = f"({one} / np.sqrt({a}.astype(F8)))" + (".astype(F4)" if kind == "f32" else "")
    else:
        function = {"ex2": "exp2", "lg2": "log2", "sin": "sin", "cos": "cos", "tanh": "tanh"}[ins.opcode]
        expression = f"np.{function}({a})" if ins.opcode in ("ex2", "lg2") else f"{function}_32({a})"
    finish(e, ins.operands[0], expression, kind, ftz and kind == "f32", False)


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


def _half(e, ins, kind):
    function = {"ex2": "exp2", "tanh": "tanh"}[ins.opcode]
    if kind == "f16":
        a = e.use(ins.operands[1], "f16")
        e.set_expression(ins.operands[0], f"np.{function}({a}.astype(F4)).astype(F2)", "f16")
        return
    a = e.use(ins.operands[1], "f16x2")
    halves = [e.form(a, f"half{h}", f"half_of({a}, {h})") for h in (0, 1)]
    low, high = (f"np.{function}({half}.astype(F4)).astype(F2)" for half in halves)
    e.set_expression(ins.operands[0], f"joined({low}, {high})", "f16x2")
