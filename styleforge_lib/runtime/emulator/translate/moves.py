"""Moves, packing and unpacking of vectors, address conversions."""

from __future__ import annotations

import numpy as np

from ..address_space import WINDOW
from ..parse import TYPE_BYTES, Imm, Mem, Reg, Sym, Vec
from ..system import CLOCKS
from .emitter import BITS, DTYPES, dtype_name, helper, rule


@rule("mov")
def _mov(e, ins, m):
    kind = m.type()
    m.finish()
    target, source = ins.operands
    if isinstance(source, Reg) and source.name[1:] in CLOCKS:
        upper = f" >> {e.constant(32, 'u64')}" if source.name.endswith("_hi") else ""
        e.set_expression(target, f"(m.ticks(){upper}).astype({dtype_name(DTYPES[kind])})", kind)
        return
    if kind == "b128" and not isinstance(target, Vec):
        if isinstance(source, Vec):
            low, high = (e.use(item, "u64") for item in source.items)
            e.set_expression(target, f"both({low}, {high})", "b128")
        else:
            e.set(target, e.use(source, "b128"), "b128")
    elif kind == "b128":
        whole = e.use(source, "b128")
        for item, half in zip(target.items, ("low", "high"), strict=True):
            if item is not None:
                e.set_expression(item, f"{whole}[{half!r}]", "u64")
    elif isinstance(target, Vec):
        _unpack(e, target, source, kind)
    elif isinstance(source, Vec):
        _pack(e, target, source, kind)
    elif kind == "pred":
        e.set(target, e.use(source, "pred"), "pred")
    elif isinstance(source, Reg):
        variable, dtype = e.bits(source, TYPE_BYTES[kind])
        _set_dtype(e, target, variable, dtype)
    elif isinstance(source, Imm):
        variable, dtype = e.bits(source, TYPE_BYTES[kind]) if kind[0] == "b" else (e.use(source, kind), DTYPES[kind])
        _set_dtype(e, target, variable, dtype)
    else:
        e.set(target, e.use(source, kind), kind)


@helper
def both(low, high):
    """Two 64-bit halves as one value of 128 bits."""
    result = np.empty(np.broadcast_shapes(np.shape(low), np.shape(high)), DTYPES["b128"])
    result["low"], result["high"] = low, high
    return result[()]


def _set_dtype(e, target, variable, dtype):
    names = {"f": f"f{8 * dtype.itemsize}", "u": f"u{8 * dtype.itemsize}", "i": f"s{8 * dtype.itemsize}"}
    e.set(target, variable, names[dtype.kind])


def _unpack(e, target, source, kind):
    part_bits = BITS[kind] // len(target.items)
    whole = e.use(source, f"u{BITS[kind]}")
    part = f"u{part_bits}"
    for position, item in enumerate(target.items):
        if item is None:
            continue
        shifted = f"({whole} >> {e.constant(position * part_bits, f'u{BITS[kind]}')})" if position else whole
        e.set_expression(item, f"{shifted}.astype({dtype_name(DTYPES[part])})", part)


def _pack(e, target, source, kind):
    whole = f"u{BITS[kind]}"
    name = dtype_name(DTYPES[whole])
    part_bits = BITS[kind] // len(source.items)
    terms = []
    for position, item in enumerate(source.items):
        part = e.use(item, f"u{part_bits}")
        wide = e.form(part, name, f"{part}.astype({name})")
        terms.append(f"({wide} << {e.constant(position * part_bits, whole)})" if position else wide)
    e.set_expression(target, " | ".join(terms), whole)


@rule("cvta")
def _cvta(e, ins, m):
    to = m.flag("to")
    space = m.one_of("global", "shared", "local", "const", "param", "shared_cta", "shared_cluster") or m.refuse()
    if "u32" in m.left:
        m.refuse("Compile for 64-bit addresses.")
    kind = m.type("u64")
    m.finish()
    target, source = ins.operands
    space = space.replace("_cta", "").replace("_cluster", "")
    if isinstance(source, (Sym, Mem)):
        symbol = source.base if isinstance(source, Mem) else source
        address = e.address_of(symbol) + (source.offset if isinstance(source, Mem) else 0)
        source = Imm(address, "int")
    value = e.use(source, kind)
    if space in WINDOW:
        window = e.code.constant(np.uint64(WINDOW[space]))
        e.set_expression(target, f"{value} - {window}" if to else f"{value} + {window}", "u64")
    else:
        e.set(target, value, "u64")


@rule("isspacep")
def _isspacep(e, ins, m):
    space = m.one_of("global", "shared", "local", "shared_cta", "shared_cluster") or m.refuse()
    m.finish()
    value = e.use(ins.operands[1], "u64")
    shift = e.constant(40, "u64")
    slot = e.new(f"({value} >> {shift})")
    if space.startswith("shared"):
        e.set_expression(ins.operands[0], f"{slot} == {e.constant(1, 'u64')}", "pred")
    elif space == "local":
        e.set_expression(ins.operands[0], f"{slot} == {e.constant(2, 'u64')}", "pred")
    else:
        e.set_expression(ins.operands[0], f"{slot} > {e.constant(2, 'u64')}", "pred")


@rule("bra")
def _bra(e, ins, m):
    """Do nothing for a jump inside what has become one block: it only counts as an instruction."""
