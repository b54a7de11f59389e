"""PTX instructions to NumPy code: the emitter, and one file of rules for each family of instructions."""

from . import (
    async_copies,
    bits,
    brain_floats,
    comparisons,
    conversions,
    eight_bits,
    floats,
    halves,
    integers,
    memory,
    moves,
    packed,
    special,
    tensor_cores,
    warps,
    wmma,
)
from .emitter import RULES, KernelCode, translate_block

__all__ = [
    "RULES",
    "KernelCode",
    "async_copies",
    "bits",
    "brain_floats",
    "comparisons",
    "conversions",
    "eight_bits",
    "floats",
    "halves",
    "integers",
    "memory",
    "moves",
    "packed",
    "special",
    "tensor_cores",
    "translate_block",
    "warps",
    "wmma",
]
