"""ld, st, atom, red: which bytes, in which space, of which type. The access itself is `emulator.memory`."""

from __future__ import annotations

import numpy as np

from ..control_flow import read, written
from ..parse import TYPE_BYTES, Imm, Mem, Reg, Sym, Vec
from .emitter import DTYPES, dtype_name, helper, rule

# What may follow each opcode: spaces, memory orders, and hints to the caches.
_SPACES = {
    "ld": ("global", "shared", "local", "const", "param", "shared_cta", "shared_cluster", "param_entry"),
    "st": ("global", "shared", "local", "shared_cta", "shared_cluster"),
    "atom": ("global", "shared", "shared_cta", "shared_cluster"),
}
_ORDERS = {
    "ld": ("weak", "volatile", "relaxed", "acquire"),
    "st": ("weak", "volatile", "relaxed", "release"),
    "atom": ("relaxed", "acquire", "release", "acq_rel"),
    "red": ("relaxed", "release"),
}
_CACHES = {"ld": ("ca", "cg", "cs", "lu", "cv", "nc"), "st": ("wb", "cg", "cs", "wt")}
_SCOPES = ("cta", "gpu", "sys", "cluster")
_NAMES = {
    "const": "constant",
    "param": "parameter",
    "shared_cta": "shared",
    "shared_cluster": "shared",
    "param_entry": "parameter",
}
_SCALARS = tuple(kind for kind in DTYPES if kind not in ("pred", "f16x2", "bf16x2", "bf16", "f16", "b128"))
_WIDE = (*_SCALARS, "b128")
_FEW = 64  # blocks: a loop over so few elements takes longer to begin than to run


def _qualified(m, opcode: str) -> str:
    """Take the space, and what orders or hints and changes no value: memory is in program order here."""
    order = m.one_of(*_ORDERS[opcode])
    if opcode in ("atom", "red") or order not in (None, "weak", "volatile"):
        m.one_of(*_SCOPES)
    if order == "relaxed" and opcode in ("ld", "st"):
        m.flag("mmio")
    if opcode in _CACHES:
        m.one_of(*_CACHES[opcode])
    m.left = [word for word in m.left if not word.startswith(("L1_", "L2_"))]
    space = m.one_of(*_SPACES["atom" if opcode == "red" else opcode], default="generic")
    return _NAMES.get(space, space)


def _located(e, operand: Mem, space: str, site: str) -> tuple[str, int | str]:
    """Return the variable of a located address, and the offset to add to it."""
    base, offset = operand.base, operand.offset
    if isinstance(base, Reg):
        variable, dtype = e.register(base.name)
        if variable in e.sums_of_two and space in ("global", "generic"):
            return _located_sum(e, variable, e.lowest[base.name], offset, space, site)
        address = e.as_dtype(variable, dtype, DTYPES[f"u{8 * dtype.itemsize}"])
        low, invariant = e.lowest[base.name], base.name in e.inputs and e.inputs[base.name] == variable
    else:
        value = e.address_of(base) if isinstance(base, Sym) else base.value
        address, low, invariant = e.literal(Imm(value, "int"), DTYPES["u64"]), min(offset, 0), False
    key = (address, low, space)
    found = e.bases.get(key)
    if found is None:
        function = "m.locate_again" if invariant else "m.locate"
        found = e.bases[key] = e.new(f"{function}({address}, {low}, {space!r}, L, {site})")
    return found, offset - low


def _located_sum(e, variable: str, low: int, offset: int, space: str, site: str) -> tuple[str, str]:
    """Return the same of an address that is the sum of two numbers: the offset is a variable too."""
    key = (variable, low, space)
    found = e.bases.get(key)
    if found is None:
        a, b, again = e.sums_of_two[variable]
        found = e.bases[key] = e.new(f"m.locate_sum({a}, {b}, {again}, {low}, {space!r}, L, {site})")
    return f"{found}[0]", f"{found}[1] + {offset - low}"


def _vector(m) -> int:
    word = m.one_of("v2", "v4", "v8")
    return int(word[1:]) if word else 1


@rule("ld")
def _ld(e, ins, m):
    space = _qualified(m, "ld")
    count = _vector(m)
    kind = m.type(*_WIDE)
    m.finish()
    if len(ins.operands) > 2:
        m.refuse("Cache hints are not emulated.")
    target, address = ins.operands
    if kind == "b128":
        where, delta, site = _wide_access(e, ins, m, space, count, "load")
        both = e.new(f"m.load({where}, {delta}, U8, 2, {site})")
        e.set_expression(target, f"both({both}[0], {both}[1])", kind)
        return
    targets = target.items if isinstance(target, Vec) else (target,)
    width = TYPE_BYTES[kind]
    if space == "parameter" and isinstance(address.base, Sym):
        start = e.code.parameter_offsets[address.base.name] + address.offset
        for position, register in enumerate(targets):
            if register is not None:
                name = dtype_name(_load_dtype(e, register, kind))
                e.set_expression(
                    register, f"m.parameter({start + position * width}, {name})", _kind_of(e, register, kind)
                )
        return
    site = e.code.site(ins, space, "load", width * count)
    where, delta = _located(e, address, space, site)
    first = next(register for register in targets if register is not None)
    name = dtype_name(_load_dtype(e, first, kind))
    if count == 1 and space == "shared" and width == 4 and not delta % 4 and _same_in_block(e, address):
        row = _row(e, where, delta, name, site)
        if first.name in e.code.summands and e.lasts(first):
            row = e.new(f"spread({row}, L)")
        e.set(first, row, _kind_of(e, first, kind))
        return
    if count == 1:
        e.set_expression(first, f"m.load_one({where}, {delta}, {name}, {site})", _kind_of(e, first, kind))
        return
    loaded = e.new(f"m.load({where}, {delta}, {name}, {count}, {site})")
    for position, register in enumerate(targets):
        if register is not None:
            e.set_expression(register, f"{loaded}[{position}]", _kind_of(e, first, kind))


def _same_in_block(e, address: Mem) -> bool:
    return not isinstance(address.base, Reg) or address.base.name not in e.code.varying


def _row(e, where: str, delta: int, dtype: str, site: str) -> str:
    """Emit a load of a word that a whole block reads, together with one before if only arithmetic lies in between."""
    rows = e.rows.get((where, dtype))
    if rows is None or any("m." in line for line in e.lines[rows.seen :]):
        rows = e.rows[where, dtype] = Rows(len(e.lines))
        e.lines.append("")
    rows.seen = len(e.lines)
    e.count += 1
    rows.targets.append(f"v{e.count}")
    rows.deltas.append(delta)
    rows.sites.append(site)
    targets, sites = ", ".join(rows.targets), ", ".join(rows.sites)
    if len(rows.targets) == 1:
        e.lines[rows.place] = f"{targets} = m.load_one({where}, {delta}, {dtype}, {sites})"
    else:
        side_by_side = range(rows.deltas[0], delta + 4, 4)
        deltas = side_by_side if rows.deltas == list(side_by_side) else tuple(rows.deltas)
        e.lines[rows.place] = f"{targets} = m.load_rows({where}, {deltas}, {dtype}, ({sites}))"
    return rows.targets[-1]


@helper
def spread(row, lanes):
    """Return a row of few blocks with one element per lane, which is sooner than to broadcast it in every operation."""
    if not isinstance(row, np.ndarray) or row.shape[0] > 1 or row.shape[1] > _FEW or not lanes.is_full:
        return row
    return row.repeat(lanes.universe.threads, axis=0)


class Rows:
    """Words that are loaded at once: the line of code that does it, and how far nothing behind it concerns memory."""

    def __init__(self, place: int):
        self.place, self.seen = place, place + 1
        self.targets: list[str] = []
        self.deltas: list[int] = []
        self.sites: list[str] = []


def _wide_access(e, ins, m, space: str, count: int, verb: str) -> tuple[str, int, str]:
    """Return where a 16-byte value is moved as two of 8."""
    if count > 1 or space in ("parameter", "constant"):
        m.refuse("Use .v2.b64.")
    site = e.code.site(ins, space, verb, 16)
    return *_located(e, next(value for value in ins.operands if isinstance(value, Mem)), space, site), site


def _load_dtype(e, register, kind: str):
    """Untyped bits are loaded as what the register is used for, which saves a reinterpretation."""
    dtype = DTYPES[kind]
    wanted = e.code.dtypes[register.name]
    return wanted if kind[0] == "b" and wanted.itemsize == dtype.itemsize and wanted != DTYPES["pred"] else dtype


def _kind_of(e, register, kind: str) -> str:
    dtype = _load_dtype(e, register, kind)
    return {"f": "f", "u": "u", "i": "s"}[dtype.kind] + str(8 * dtype.itemsize)


@rule("st")
def _st(e, ins, m):
    space = _qualified(m, "st")
    count = _vector(m)
    kind = m.type(*_WIDE)
    m.finish()
    if len(ins.operands) > 2:
        m.refuse("Cache hints are not emulated.")
    address, source = ins.operands
    if kind == "b128":
        where, delta, site = _wide_access(e, ins, m, space, count, "store")
        value = e.use(source, kind)
        e.line(f"m.store({where}, {delta}, ({value}['low'], {value}['high']), U8, {site})")
        return
    sources = source.items if isinstance(source, Vec) else (source,)
    width = TYPE_BYTES[kind]
    site = e.code.site(ins, space, "store", width * count)
    where, delta = _located(e, address, space, site)
    if kind[0] == "b" and count == 1:
        value, dtype = e.bits(source, width)
        e.line(f"m.store({where}, {delta}, ({value},), {dtype_name(dtype)}, {site})")
        return
    values = [e.use(value, kind) for value in sources]
    e.line(f"m.store({where}, {delta}, ({', '.join(values)},), {dtype_name(DTYPES[kind])}, {site})")


HALVES = ("f16", "f16x2", "bf16", "bf16x2")
_OPERATIONS = ("exch", "cas", "add", "min", "max", "and", "or", "xor", "inc", "dec")  # the first two for atom alone
_ATOMIC_TYPES = {
    "add": ("u32", "s32", "u64", "s64", "f32", "f64", *HALVES),
    "min": ("u32", "s32", "u64", "s64"),
    "max": ("u32", "s32", "u64", "s64"),
    "inc": ("u32",),
    "dec": ("u32",),
    "and": ("b32", "b64"),
    "or": ("b32", "b64"),
    "xor": ("b32", "b64"),
    "exch": ("b32", "b64", "b128"),
    "cas": ("b16", "b32", "b64", "b128"),
}


@rule("atom", "red")
def _atom(e, ins, m):
    space = _qualified(m, ins.opcode)
    operation = m.one_of(*(_OPERATIONS if ins.opcode == "atom" else _OPERATIONS[2:])) or m.refuse()
    count = _vector(m)
    kind = m.type(*_ATOMIC_TYPES[operation])
    if kind in HALVES and not m.flag("noftz"):
        m.refuse("Write .noftz.")
    if count > 1 and (operation != "add" or kind not in ("f32", *HALVES) or count * TYPE_BYTES[kind] > 16):
        m.refuse("Use add, or one atomic for each element.")
    m.finish()
    returns = ins.opcode == "atom"
    target, address, *sources = ins.operands if returns else (None, *ins.operands)
    if len(sources) != (2 if operation == "cas" else 1):
        m.refuse("Cache hints are not emulated.")
    if kind == "b128" and space == "shared":
        m.refuse("Use it on global memory.")
    site = e.code.site(ins, space, "atomic", TYPE_BYTES[kind] * count)
    where, delta = _located(e, address, space, site)
    name = f"add.{kind}" if kind in ("f16x2", "bf16", "bf16x2") else operation
    if count > 1:
        _vector_atomic(e, where, delta, name, target, sources[0], kind, site)
        return
    values = [e.use(value, kind) for value in sources]
    needed = target is not None and _needed(e, ins, target)
    call = f"m.atomic({where}, {delta}, {name!r}, ({', '.join(values)},), {dtype_name(DTYPES[kind])}, {site}, {needed})"
    if needed:
        e.set_expression(target, call, kind)
    else:
        e.line(call)


def _vector_atomic(e, where: str, delta: int, name: str, target, source: Vec, kind: str, site: str) -> None:
    values = ", ".join(e.use(value, kind) for value in source.items)
    found = e.new(f"m.atomic_vector({where}, {delta}, {name!r}, ({values},), {dtype_name(DTYPES[kind])}, {site})")
    for place, register in enumerate(target.items if target is not None else ()):
        if register is not None:
            e.set_expression(register, f"{found}[{place}]", kind)


def _needed(e, ins, target) -> bool:
    """Whether anything reads an atomic's result."""
    block = e.block
    after = False
    for other in block.instructions:
        if after and target.name in read(other):
            return True
        if after and target.name in written(other):
            return False
        after = after or other is ins
    if block.last is not None and target.name in read(block.last):
        return True
    return bool(block.live_out >> e.code.graph.bit[target.name] & 1)


@rule("membar", "fence")
def _fence(e, ins, m):
    """Memory is in program order here; a fence is for a trace alone, which knows of proxies and of other blocks."""
    if m.left[:2] == ["proxy", "async"]:
        m.left = m.left[2:]
        m.one_of("shared_cta", "shared_cluster", "global")
        m.finish()
        e.line("m.observations.fenced(L)")
        return
    wide = {"gl", "gpu", "sys", "cluster"} & set(m.left) and "proxy" not in m.left
    orders = ("sc", "acq_rel", "acquire", "release", "relaxed")
    m.left = [word for word in m.left if word not in ("gl", "proxy", "alias", "mbarrier_init", *_SCOPES, *orders)]
    m.finish()
    if wide:
        e.line("m.fence(L)")


@rule("prefetch", "prefetchu", "discard", "applypriority", "nanosleep", "pmevent", "griddepcontrol")
def _nothing(e, ins, m):
    """Hints and waits: no value changes."""
