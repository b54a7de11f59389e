"""Several small integers in one word: 16-bit pairs, and the differences of bytes and half-words of the video unit."""

from __future__ import annotations

import numpy as np

from .emitter import helper, rule

PAIRS = ("u16x2", "s16x2")


def half_of_pair(e, pair: str, which: int) -> str:
    """Return one half of a pair, made once per block, and only if something reads more than its `wide_half`."""
    found = e.forms.get((pair, f"half{which}"))
    if found is None:
        found = e.forms[pair, f"half{which}"] = e.new(f"half_of({pair}, {which})", only_if_used=True)
        e.origins[found] = (pair, which)
    return found


@helper
def field(value, place, bits, signed):
    """Field number `place` of `bits` bits of a 32-bit word, as int64."""
    number = ((value >> np.uint32(place * bits)) & np.uint32((1 << bits) - 1)).astype(np.int64)
    return ((number << np.int64(64 - bits)) >> np.int64(64 - bits)) if signed else number


@helper
def fields_joined(fields, bits):
    """Low bits of int64 fields in one 32-bit word, the first lowest."""
    mask, word = np.int64((1 << bits) - 1), np.int64(0)
    for place, number in enumerate(fields):
        word = word | (number & mask) << np.int64(place * bits)
    return word.astype(np.uint32)


@helper
def pair_arithmetic(a, b, operation, signed, relu):
    """Add, min or max of two pairs of 16-bit integers, each half by itself; .relu: at least zero."""
    function = {"add": np.add, "min": np.minimum, "max": np.maximum}[operation]
    halves = [function(field(a, place, 16, signed), field(b, place, 16, signed)) for place in (0, 1)]
    return fields_joined([np.maximum(half, np.int64(0)) for half in halves] if relu else halves, 16)


def packed_pair(e, ins, m) -> None:
    """add, min, max of .u16x2 and .s16x2."""
    kind = m.one_of(*PAIRS)
    relu = kind == "s16x2" and ins.opcode != "add" and m.flag("relu")
    m.finish()
    a, b = (e.use(value, "u32") for value in ins.operands[1:3])
    call = f"pair_arithmetic({a}, {b}, {ins.opcode!r}, {kind[0] == 's'}, {relu})"
    e.set_expression(ins.operands[0], call, "u32")


@rule("vabsdiff2", "vabsdiff4")
def _absolute_difference(e, ins, m):
    result, first, second = (m.one_of("u32", "s32") for _ in range(3))
    accumulate = m.flag("add")
    m.finish()
    if not (result and first and second) or len(ins.operands) != 4:
        m.refuse("Use __vabsdiffu4, __vabsdiffs2 and the like.")
    a, b, c = (e.use(value, "u32") for value in ins.operands[1:4])
    bits = 8 if ins.opcode == "vabsdiff4" else 16
    call = f"differences({a}, {b}, {c}, {bits}, {first == 's32'}, {second == 's32'}, {accumulate})"
    e.set_expression(ins.operands[0], call, "u32")


@helper
def differences(a, b, c, bits, a_signed, b_signed, accumulate):
    """Return |a - b| of each byte or half-word; with `accumulate` their sum, plus c."""
    sizes = [np.abs(field(a, k, bits, a_signed) - field(b, k, bits, b_signed)) for k in range(32 // bits)]
    if accumulate:
        return (c.astype(np.int64) + sum(sizes)).astype(np.uint32)
    return fields_joined(sizes, bits)
