"""Floating-point operations of an instruction, as they are usually counted.

A sum, difference, product, quotient, root or other function is one operation, a fused multiply-add two, a packed pair
(half2) twice as many, and a matrix instruction 2 * m * n * k for the warp (or warpgroup) that executes it. Comparisons,
minimum and maximum, moves and conversions are none, nor is arithmetic of integers.

Source of the convention: Williams, Waterman and Patterson, "Roofline" (2009).
"""

from __future__ import annotations

import math
import re

from .parse import Instruction

_PRECISIONS = {
    "f64": "float64",
    "f32": "float32",
    "f32x2": "float32",
    "f16": "float16",
    "f16x2": "float16",
    "bf16": "bfloat16",
    "bf16x2": "bfloat16",
}
_ONE = ("add", "sub", "mul", "div", "sqrt", "rcp", "rsqrt", "ex2", "lg2", "sin", "cos", "tanh")
_OPERATIONS = {**dict.fromkeys(_ONE, 1), "fma": 2, "mad": 2}
_MATRIX_LANES = {"mma": 32, "wmma": 32, "wgmma": 128}
_SHAPE = re.compile(r"m(\d+)n(\d+)k(\d+)$")


def flops(instruction: Instruction) -> tuple[str, float] | None:
    """Return the precision ("float32", "tf32" ...) and the operations of one active lane; None where there are none."""
    opcode, words = instruction.opcode, instruction.modifiers
    if opcode in _MATRIX_LANES:
        return _of_matrix(opcode, words)
    if opcode in ("atom", "red"):
        opcode = "add" if "add" in words else ""
    count = _OPERATIONS.get(opcode)
    kind = next((word for word in reversed(words) if word in _PRECISIONS), None)
    if count is None or kind is None:
        return None
    neighbours = next((int(word[1:]) for word in words if word in ("v2", "v4", "v8")), 1)  # of a vector's atomic
    return _PRECISIONS[kind], count * neighbours * (2 if kind.endswith("x2") else 1)


def _of_matrix(opcode: str, words: tuple[str, ...]) -> tuple[str, float] | None:
    shape = next((found for word in words if (found := _SHAPE.match(word))), None)
    if shape is None or (opcode == "wmma" and "mma" not in words) or {"s8", "u8", "s4", "u4", "b1"} & set(words):
        return None
    kinds = [word for word in ("tf32", "bf16", "f64", "e4m3", "e5m2") if word in words]
    precision = {"tf32": "tf32", "bf16": "bfloat16", "f64": "float64", "e4m3": "float8", "e5m2": "float8"}
    operations = 2 * math.prod(map(int, shape.groups()))
    return precision[kinds[0]] if kinds else "float16", operations / _MATRIX_LANES[opcode]
