"""wmma.load, wmma.mma and wmma.store, as mma.h emits them for float16 and bfloat16.

Where the elements of these fragments lie in a warp is not specified, and code must not depend on it; only that element
i of every accumulator of one shape is the same place, which is so here. An accumulator lies in the order of its rows,
A and B in the order of memory, element after element along the lanes; what does not fill the registers is repeated.
Sectors and ways are therefore those of this order, not of a GPU's.

Source: PTX ISA, "Warp Level Matrix Multiply-Accumulate Instructions: wmma".
"""

from __future__ import annotations

import numpy as np

from ..address_space import Site
from ..warps import Warps
from .emitter import helper, rule
from .matrices import address_width, elements, items, whole_form

_SHAPES = {"m16n16k16": (16, 16, 16), "m32n8k16": (32, 8, 16), "m8n32k16": (8, 32, 16)}
_HINT = (
    "Use float16 (to float16 or float32) or bfloat16 (to float32) fragments of 16x16x16, 32x8x16 or 8x32x16, or "
    "mma.sync."
)
_WORDS = np.dtype(np.uint32)
_HALVES = np.dtype(np.uint16)


@rule("wmma")
def _wmma(e, ins, m):
    part = m.one_of("load", "store", "mma") or m.refuse(_HINT)
    if not (m.flag("sync") and m.flag("aligned")):
        m.refuse(_HINT)
    shape = m.one_of(*_SHAPES) or m.refuse(_HINT)
    if part == "mma":
        _multiply(e, ins, m, _SHAPES[shape])
    else:
        _move(e, ins, m, part, _SHAPES[shape])


def _move(e, ins, m, part: str, shape) -> None:
    """Load a fragment (a, b, c) or store one (d)."""
    which = m.one_of(*("abc" if part == "load" else "d")) or m.refuse(_HINT)
    layout = m.one_of("row", "col") or m.refuse(_HINT)
    space = m.one_of("global", "shared", "shared_cta", default="generic").replace("_cta", "")
    kind = m.one_of(*(("f16", "bf16") if which in "ab" else ("f16", "f32"))) or m.refuse(_HINT)
    if m.left:
        m.refuse(_HINT)
    rows, columns, depth = shape
    size = {"a": (rows, depth), "b": (depth, columns)}.get(which, (rows, columns))
    operands = list(ins.operands)
    registers = items(operands.pop(0 if part == "load" else 1))
    address, stride = operands[0], e.use(operands[1], "u32") if len(operands) > 1 else None
    if stride is None:
        stride = e.constant(size[1] if layout == "row" else size[0], "u32")
    width = 4 if kind == "f32" or layout == "row" or which in "ab" else 2
    site = e.code.site(ins, space, part, width)
    base = e.use(address.base, "u64" if address_width(e, address.base) == 8 else "u32")
    where = f"{base}, {address.offset}, {space!r}, {stride}, {size}, {layout!r}, {kind!r}, {which in 'ab'}"
    if part == "load":
        found = e.new(f"loaded_fragment(m, L, {site}, {where}, {len(registers)})")
        for number, register in enumerate(registers):
            e.set_expression(register, f"{found}[{number}]", "u32")
    else:
        values = ", ".join(e.use(register, "u32") for register in registers)
        e.line(f"stored_fragment(m, L, {site}, {where}, ({values},))")


def _multiply(e, ins, m, shape) -> None:
    layouts = m.left[:2]
    kinds = m.left[2:]
    if any(word not in ("row", "col") for word in layouts):
        m.refuse(_HINT)
    if kinds == ["f32", "bf16", "bf16", "f32"]:
        kind, result, addend = "bf16", "f32", "f32"
    elif len(kinds) == 2 and set(kinds) <= {"f16", "f32"}:
        kind, (result, addend) = "f16", kinds
    else:
        m.refuse(_HINT)
    target, *sources = ins.operands
    a, b, c = (", ".join(e.use(item, "u32") for item in items(value)) for value in sources)
    site = e.code.site(ins, "warp", ins.opcode, 4)
    found = e.new(
        f"fragment_product(m, L, {site}, ({a},), ({b},), ({c},), {shape}, {tuple(layouts)}, {kind!r}, "
        f"{result!r}, {addend!r})"
    )
    for number, register in enumerate(items(target)):
        e.set_expression(register, f"{found}[{number}]", "u32")


def _offsets(lanes, number: int, half: int, stride, size, layout: str, kind: str, operand: bool):
    """Return the byte offsets from the base of what each lane holds in a register (or in a half of it)."""
    packed = 1 if kind == "f32" else 2
    place = ((number * 32 + (lanes.thread & 31)) * packed + half) % (size[0] * size[1])
    by_memory = size[::-1] if layout == "col" else size  # lines of memory, elements in a line
    if operand or layout == "row":
        line, element = place // by_memory[1], place % by_memory[1]
    else:
        line, element = place % size[1], place // size[1]
    return (line * np.asarray(stride).astype(np.int64) + element) * (4 // packed)


def _begin(m, lanes, site: Site, base, offset: int, stride, kind: str) -> None:
    """Raise where a warp is not whole, or its matrix does not begin every line at a multiple of 16 bytes."""
    whole_form(m, lanes, site)
    width = 4 if kind == "f32" else 2
    start, line = np.asarray(base).astype(np.int64) + offset, np.asarray(stride).astype(np.int64) * width
    bad = (start | line) & 15
    if bad.any():
        raise m.memory.fault(
            "misaligned",
            site,
            lanes.expand(bad) != 0,
            lanes,
            lambda _: "a fragment's address and its leading dimension in bytes must be a multiple of 16",
        )


def _located(m, lanes, site: Site, base, offset: int, space: str, offsets):
    address = np.asarray(base).astype(np.uint64) + np.asarray(offsets).astype(np.uint64)
    return m.memory.locate(address, offset, space, lanes, site)


@helper
def loaded_fragment(m, lanes, site, base, offset, space, stride, size, layout, kind, operand, count):
    """Return the registers of a fragment."""
    _begin(m, lanes, site, base, offset, stride, kind)
    packed = 1 if kind == "f32" else 2
    distinct = min(count, size[0] * size[1] // (32 * packed))
    found = []
    for number in range(distinct):
        halves = []
        for half in range(4 // site.width):
            offsets = _offsets(lanes, number, half, stride, size, layout, kind, operand)
            where = _located(m, lanes, site, base, offset, space, offsets)
            halves.append(m.memory.load_one(where, 0, _WORDS if site.width == 4 else _HALVES, site))
        word = halves[0] if len(halves) == 1 else halves[0].astype(np.uint32) | (halves[1].astype(np.uint32) << 16)
        found.append(word)
    return tuple(found[number % distinct] for number in range(count))


@helper
def stored_fragment(m, lanes, site, base, offset, space, stride, size, layout, kind, operand, values):
    """Store the registers of an accumulator."""
    _begin(m, lanes, site, base, offset, stride, kind)
    for number, value in enumerate(values):
        for half in range(4 // site.width):
            offsets = _offsets(lanes, number, half, stride, size, layout, kind, operand)
            where = _located(m, lanes, site, base, offset, space, offsets)
            if site.width == 2:
                piece = (value >> np.uint32(16 * half)).astype(np.uint16)
                m.memory.store(where, 0, (piece,), _HALVES, site)
            else:
                m.memory.store(where, 0, (value,), _WORDS, site)


def _matrix(form, values: tuple, size, layout: str, kind: str) -> np.ndarray:
    """Return registers as (warps, blocks, *size)."""
    packed = 1 if kind == "f32" else 2
    distinct = size[0] * size[1] // (32 * packed)
    wide = np.stack(np.broadcast_arrays(*(form.spread(value) for value in values[:distinct])))
    words = np.ascontiguousarray(wide.transpose(1, 3, 0, 2)).reshape(wide.shape[1], wide.shape[3], -1)
    numbers = words.view(np.float32) if kind == "f32" else elements(words, kind)
    if layout == "col":
        return numbers.reshape(*words.shape[:2], size[1], size[0]).swapaxes(-1, -2)
    return numbers.reshape(*words.shape[:2], *size)


@helper
def fragment_product(m, lanes, site, a, b, c, shape, layouts, kind, result, addend):
    """Return the registers of A times B plus C, rounded once (see `tensor_cores`)."""
    form = whole_form(m, lanes, site)
    rows, columns, depth = shape
    left = _matrix(form, a, (rows, depth), layouts[0], kind)
    right = _matrix(form, b, (depth, columns), layouts[1], kind)
    total = np.matmul(left, right) + _matrix(form, c, (rows, columns), "row", addend)
    words = np.ascontiguousarray(total.astype(np.float32 if result == "f32" else np.float16)).view(np.uint32)
    words = words.reshape(*total.shape[:2], -1, 32)
    collect = Warps.form(lanes).collect
    return tuple(
        collect(np.ascontiguousarray(words[:, :, number].transpose(0, 2, 1))) for number in range(words.shape[2])
    )
