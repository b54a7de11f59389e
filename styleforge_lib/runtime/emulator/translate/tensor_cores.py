"""mma.sync, ldmatrix, stmatrix and the rounding to tf32: what a warp does with small matrices.

A fragment lies in a warp as the PTX ISA lays it down ("Matrix Fragments for mma.m16n8k16" and its neighbours). With
P elements in a 32-bit register, lane = 4 * g + t and register r, they are all one rule:

    A (16 x K)   row g + 8 * (r % 2), columns P * t + (0 .. P-1) + 4 * P * (r // 2)
    B (K x 8)    rows P * t + (0 .. P-1) + 4 * P * r, column g
    C, D         row g + 8 * (r // 2), column 2 * t + r % 2; with float16, register r holds the pair of row g + 8 * r

Products are exact; they and the addend are summed in float64 and rounded once. A GPU's tensor core does not do that: it
aligns the products to the largest one, cuts off bits below some 24 of it, and adds in an order of its own. Its result
may therefore differ in the last bits of the largest product, and how far it does is to be measured on a card, not here.
Sums of integers are exact on both, and wrap or (.satfinite) saturate.
"""

from __future__ import annotations

import numpy as np

from ..control_flow import read
from ..memory import Site
from ..parse import Reg, Vec
from ..warps import WarpForm, Warps
from .emitter import helper, rule

_SHAPES = {  # type of A and B -> elements in a register, {shape: depth K}
    "f16": (2, {"m16n8k8": 8, "m16n8k16": 16}),
    "bf16": (2, {"m16n8k8": 8, "m16n8k16": 16}),
    "tf32": (1, {"m16n8k4": 4, "m16n8k8": 8}),
    "s8": (4, {"m16n8k16": 16, "m16n8k32": 32}),
    "u8": (4, {"m16n8k16": 16, "m16n8k32": 32}),
}
_HINT = (
    "Use mma.sync.aligned .row.col: m16n8k8 or m16n8k16 of f16 (to f16 or f32) or bf16 (to f32), m16n8k4 or m16n8k8 of "
    "tf32 (to f32), m16n8k16 or m16n8k32 of s8 and u8 (to s32)."
)
_ALL = slice(None)
_WORD = np.dtype(np.uint32)
_TF32 = np.uint32(0xFFFFE000)


# --- mma --------------------------------------------------------------------------------------------------------------


@rule("mma")
def _mma(e, ins, m):
    saturates = m.flag("satfinite")
    if len(m.left) != 9 or m.left[:2] != ["sync", "aligned"] or m.left[3:5] != ["row", "col"]:
        m.refuse(_HINT)
    shape, (result, kind_a, kind_b, addend) = m.left[2], m.left[5:]
    whole = kind_a in ("s8", "u8")
    mixed = kind_a != kind_b and not (whole and kind_b in ("s8", "u8"))
    results = ("s32",) if whole else ("f16", "f32") if kind_a == "f16" else ("f32",)
    if kind_a not in _SHAPES or mixed or shape not in _SHAPES[kind_a][1] or result not in results or addend != result:
        m.refuse(_HINT)
    if saturates and not whole:
        m.refuse(_HINT)
    packed, shapes = _SHAPES[kind_a]
    depth = shapes[shape]
    target, *sources = ins.operands
    site = e.code.site(ins, "warp", ins.opcode, 4)
    kinds = ("b32", "b32", {"f32": "f32", "s32": "s32", "f16": "b32"}[result])
    counts = (depth // packed // 2, depth // packed // 4, 2 if result == "f16" else 4)
    a, b, c = ([e.use(item, kind) for item in _items(v)] for v, kind in zip(sources, kinds, strict=True))
    if (len(a), len(b), len(c)) != counts or len(_items(target)) != counts[2]:
        m.refuse(f"It takes {counts[0]}, {counts[1]} and {counts[2]} registers; `{ins.name}` has others.")
    left = e.form(",".join(a), f"A.{kind_a}", f"fragment_a(L, ({', '.join(a)},), {kind_a!r}, {site}, m)")
    right = e.form(",".join(b), f"B.{kind_b}", f"fragment_b(L, ({', '.join(b)},), {kind_b!r}, {site}, m)")
    add = e.form(",".join(c), f"C.{result}", f"accumulator(L, ({', '.join(c)},), {result!r})")
    found = e.new(f"tile_product({left}, {right}, {add}, {result!r}, {saturates})")
    if _only_accumulates(e, ins):
        # No code reads these names: the next product takes the matrix as it is, out of the forms.
        names = [f"w{found}_{number}" for number in range(counts[2])]
    else:
        names = [e.new(f"from_accumulator(L, {found}, {number})") for number in range(counts[2])]
    for register, name in zip(_items(target), names, strict=True):
        e.set(register, name, kinds[2])
    e.forms[",".join(names), f"C.{result}"] = found


def _items(operand) -> tuple:
    return operand.items if isinstance(operand, Vec) else (operand,)


def _only_accumulates(e, ins) -> bool:
    """Whether a product's result is the addend of further products of the same types in this block, and no more."""
    target, block = ins.operands[0], e.block
    names = {register.name for register in _items(target)}
    after = False
    for other in block.instructions:
        if after and names & set(read(other)):
            same = other.opcode == "mma" and other.modifiers == ins.modifiers and other.operands[3] == target
            if not same or any(names & {r.name for r in _items(v)} for v in other.operands[1:3]):
                return False
        after = after or other is ins
    return not any(block.live_out >> e.code.graph.bit[name] & 1 for name in names)


def _whole_form(m, lanes, site: Site) -> WarpForm:
    """Return how the lanes lie in warps; raises unless every warp is complete."""
    form = Warps.form(lanes)
    if form.present is not None:
        missing = form.present & ~form.present.all(axis=1, keepdims=True)
        if missing.any():
            raise m.memory.fault(
                "inactive lane",
                site,
                form.collect(missing),
                lanes,
                lambda place: "all 32 threads of a warp must execute it together, and some of this warp do not",
            )
    return form


def _stacked(form: WarpForm, values: tuple, shape: tuple[int, ...], place) -> np.ndarray:
    """Return registers as (warps, blocks, *shape): register r fills the (8, 4) lanes at `place(r)`."""
    wide = [form.spread(value) for value in values]
    blocks = max(value.shape[2] for value in wide)
    out = np.empty((wide[0].shape[0], blocks, *shape), wide[0].dtype)
    for number, value in enumerate(wide):
        out[:, :, *place(number)] = value.reshape(-1, 8, 4, value.shape[2]).transpose(0, 3, 1, 2)
    return out


def _elements(words: np.ndarray, kind: str) -> np.ndarray:
    """32-bit words as the numbers in them, along the last axis: float64, or float32 of integers (exact to 2^24)."""
    if kind == "f16":
        return words.view(np.float16).astype(np.float32).astype(np.float64)
    if kind == "bf16":
        return (words.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    if kind == "tf32":
        return (words & _TF32).view(np.float32).astype(np.float64)
    return words.view(np.int8 if kind == "s8" else np.uint8).astype(np.float32)


@helper
def fragment_a(lanes, values, kind, site, m):
    """Return A as (warps, blocks, 16, K)."""
    form = _whole_form(m, lanes, site)
    words = _stacked(form, values, (2, 8, len(values) // 2, 4), lambda r: (r % 2, _ALL, r // 2))
    return _elements(words, kind).reshape(*words.shape[:2], 16, -1)


@helper
def fragment_b(lanes, values, kind, site, m):
    """Return B, transposed: (warps, blocks, 8, K)."""
    form = _whole_form(m, lanes, site)
    words = _stacked(form, values, (8, len(values), 4), lambda r: (_ALL, r))
    return _elements(words, kind).reshape(*words.shape[:2], 8, -1)


@helper
def accumulator(lanes, values, kind):
    """Return C as (warps, blocks, 16, 8)."""
    form = Warps.form(lanes)
    if kind == "f16":
        words = _stacked(form, values, (2, 8, 4), lambda r: (r,))
        return words.view(np.float16).reshape(*words.shape[:2], 16, 8)
    words = _stacked(form, values, (2, 8, 4, 2), lambda r: (r // 2, _ALL, _ALL, r % 2))
    return words.reshape(*words.shape[:2], 16, 8)


@helper
def tile_product(a, b, c, kind, saturates):
    """Return A times B plus C, rounded once."""
    product = np.matmul(a, b.swapaxes(-1, -2))
    if kind == "f16":
        return (product + c).astype(np.float16)
    if kind == "f32":
        return (product + c).astype(np.float32)
    total = product.astype(np.int64) + c
    if saturates:
        total = np.clip(total, -(2**31), 2**31 - 1)
    return total.astype(np.int32)


@helper
def from_accumulator(lanes, matrix, number):
    """Return one register of each lane of C or D."""
    form = Warps.form(lanes)
    warps, blocks = matrix.shape[:2]
    if matrix.dtype == np.float16:
        words = np.ascontiguousarray(matrix).view(np.uint32).reshape(warps, blocks, 2, 32)
        return form.collect(np.ascontiguousarray(words[:, :, number].transpose(0, 2, 1)))
    words = matrix.reshape(warps, blocks, 2, 32, 2)[:, :, number >> 1, :, number & 1]
    return form.collect(np.ascontiguousarray(words.transpose(0, 2, 1)))


def tf32_convert(e, ins, m) -> None:
    """Cvt.rna.tf32.f32 (ties away from zero), .rn and .rz: float32 bits whose last 13 are 0."""
    rounding = m.one_of("rna", "rn", "rz")
    if m.left != ["tf32", "f32"] or rounding is None:
        m.refuse("Use cvt.rna.tf32.f32.")
    e.set_expression(ins.operands[0], f"to_tf32({e.use(ins.operands[1], 'f32')}, {rounding!r})", "u32")


@helper
def to_tf32(value, mode):
    """Return float32 rounded to tf32, as bits; NaN becomes the canonical one."""
    bits = value.view(np.uint32)
    if mode == "rna":
        bits = bits + np.uint32(0x1000)
    elif mode == "rn":
        bits = bits + np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1))
    return np.where(value == value, bits & _TF32, np.uint32(0x7FFFFFFF))[()]


# --- ldmatrix, stmatrix -----------------------------------------------------------------------------------------------


@rule("ldmatrix", "stmatrix")
def _matrix(e, ins, m):
    """Thread 8 * i + j gives the address of row j of matrix i: 16 bytes of eight 16-bit elements."""
    hint = f"Use {ins.opcode}.sync.aligned.m8n8 .x1, .x2 or .x4, with or without .trans, .shared.b16."
    if not (m.flag("sync") and m.flag("aligned") and m.flag("m8n8")):
        m.refuse(hint)
    count = int((m.one_of("x1", "x2", "x4") or m.refuse(hint))[1:])
    transposed = m.flag("trans")
    space = m.one_of("shared", "shared_cta", default="generic").replace("_cta", "")
    if m.one_of("b16") is None or m.left:
        m.refuse(hint)
    loads = ins.opcode == "ldmatrix"
    registers, address = ins.operands if loads else reversed(ins.operands)
    registers = _items(registers)
    if len(registers) != count:
        m.refuse(f".x{count} takes {count} registers.")
    base = e.use(address.base, "u32" if space == "shared" and _width(e, address.base) == 4 else "u64")
    site = e.code.site(ins, space, "load" if loads else "store", 16)
    arguments = f"{base}, {address.offset}, {space!r}, L, {site}"
    if loads:
        found = e.new(f"loaded_matrices(m, {count}, {transposed}, {arguments})")
        for number, register in enumerate(registers):
            if register is not None:
                e.set_expression(register, f"{found}[{number}]", "u32")
    else:
        values = ", ".join(e.use(register, "u32") for register in registers)
        e.line(f"stored_matrices(m, ({values},), {transposed}, {arguments})")


def _width(e, base) -> int:
    return e.register(base.name)[1].itemsize if isinstance(base, Reg) else 8


def _row_givers(m, address, offset: int, count: int, space: str, lanes, site: Site):
    """Return the form of the lanes, which of them give an address, and where these point."""
    form = _whole_form(m, lanes, site)
    giving = (lanes.thread & 31) < 8 * count
    givers, _ = lanes.split(giving)
    if isinstance(address, np.ndarray) and givers is not lanes:
        address = lanes.expand(address)[np.broadcast_to(giving, lanes.shape)].reshape(givers.shape)
    where = m.memory.locate(address, offset, space, givers, site)
    return form, giving, givers, where


@helper
def loaded_matrices(m, count, transposed, address, offset, space, lanes, site):
    """Return each lane's registers of ldmatrix: lane l holds elements 2 * (l % 4) and the next of row l // 4."""
    form, giving, givers, where = _row_givers(m, address, offset, count, space, lanes, site)
    rows = m.memory.load(where, 0, _WORD, 4, site)
    if givers is not lanes:
        rows = [_among(row, giving, givers, lanes) for row in rows]
    # (words, warps, matrix, row, blocks)
    wide = np.stack(np.broadcast_arrays(*(form.spread(row) for row in rows)))
    wide = wide.reshape(4, wide.shape[1], 4, 8, wide.shape[3])
    return tuple(form.collect(_dealt(wide[:, :, number], transposed)) for number in range(count))


def _among(value, giving: np.ndarray, givers, lanes) -> np.ndarray:
    """Put a value of some lanes among zeros for the others."""
    full = np.zeros(lanes.shape, _WORD)
    full[np.broadcast_to(giving, lanes.shape)] = givers.expand(value).reshape(-1)
    return full


def _dealt(matrix: np.ndarray, transposed: bool) -> np.ndarray:
    """(words, warps, rows, blocks) of one matrix as (warps, lanes, blocks)."""
    warps, blocks = matrix.shape[1], matrix.shape[3]
    if transposed:
        matrix = _turned(matrix)
    return np.ascontiguousarray(matrix.transpose(1, 2, 0, 3)).reshape(warps, 32, blocks)


def _turned(matrix: np.ndarray) -> np.ndarray:
    """Transpose the 8 by 8 elements that lie two by two in (words, warps, rows, blocks)."""
    low, high = matrix & np.uint32(0xFFFF), matrix >> np.uint32(16)
    columns = np.stack((low, high), axis=1)  # (word, half, warps, rows, blocks): column 2 * word + half
    columns = columns.reshape(8, *matrix.shape[1:])
    pairs = columns[:, :, 0::2] | (columns[:, :, 1::2] << np.uint32(16))  # (column, warps, pair of rows, blocks)
    return pairs.transpose(2, 1, 0, 3)


@helper
def stored_matrices(m, values, transposed, address, offset, space, lanes, site):
    """stmatrix: the registers of ldmatrix go back to the rows."""
    form, giving, givers, where = _row_givers(m, address, offset, len(values), space, lanes, site)
    wide = np.broadcast_arrays(*(form.spread(value) for value in values))
    warps, _, blocks = wide[0].shape
    rows = np.zeros((4, warps, 4, 8, blocks), _WORD)
    for number, value in enumerate(wide):
        matrix = value.reshape(warps, 8, 4, blocks).transpose(2, 0, 1, 3)
        rows[:, :, number] = _turned(matrix) if transposed else matrix
    words = [lanes.expand(form.collect(row.reshape(warps, 32, blocks))) for row in rows]
    if givers is not lanes:
        mask = np.broadcast_to(giving, lanes.shape)
        words = [word[mask].reshape(givers.shape) for word in words]
    m.memory.store(where, 0, tuple(words), _WORD, site)
