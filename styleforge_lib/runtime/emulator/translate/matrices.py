"""ldmatrix and stmatrix: 8 by 8 matrices of 16-bit elements between shared memory and the registers of a warp.

Thread 8 * i + j of the warp gives the address of row j of matrix i; lane l has word l % 4 of row l // 4, or, with
.trans, the elements of column l // 4. What has been read stays together as `Rows`, so that an mma takes its fragment
from there in one piece; the registers are dealt out only where something else reads them.
"""

from __future__ import annotations

import numpy as np

from ..address_space import Site, Snapshot
from ..float16 import widened
from ..located import Located
from ..parse import Reg, Vec
from ..warps import WarpForm, Warps
from .emitter import helper, rule

TF32 = np.uint32(0xFFFFE000)
_WORD = np.dtype(np.uint32)
_WORDS, _ROWS = np.arange(4), np.arange(8)
_PRECISE = dict.fromkeys(("f16", "bf16", "tf32"), np.float64)


def items(operand) -> tuple:
    """Return the registers of an operand, be it one or several in braces."""
    return operand.items if isinstance(operand, Vec) else (operand,)


def whole_form(m, lanes, site: Site) -> WarpForm:
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


def plain_elements(words: np.ndarray, kind: str) -> np.ndarray:
    """32-bit words as the numbers in them, along the last axis: float32, which holds them all."""
    if kind == "f16":
        return widened(words.view(np.float16))
    if kind == "bf16":
        return (words.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    if kind == "tf32":
        return (words & TF32).view(np.float32)
    return words.view(np.int8 if kind == "s8" else np.uint8).astype(np.float32)


def elements(words: np.ndarray, kind: str) -> np.ndarray:
    """Return the same as a product takes them: float64, or float32 of integers (exact to 2^24)."""
    return plain_elements(words, kind).astype(_PRECISE.get(kind, np.float32), copy=False)


# --- the rule ---------------------------------------------------------------------------------------------------------


@rule("ldmatrix", "stmatrix")
def _matrix(e, ins, m):
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
    registers = items(registers)
    if len(registers) != count:
        m.refuse(f".x{count} takes {count} registers.")
    base = e.use(address.base, "u32" if space == "shared" and address_width(e, address.base) == 4 else "u64")
    site = e.code.site(ins, space, "load" if loads else "store", 16)
    arguments = f"{base}, {address.offset}, {space!r}, L, {site}"
    if loads:
        found = e.new(f"loaded_rows(m, {count}, {arguments})")
        for number, register in enumerate(registers):
            if register is not None:
                value = e.new(f"register_of({found}, {number}, {transposed})", only_if_used=True)
                e.origins[value] = (found, number, transposed)
                e.set(register, value, "u32")
    else:
        values = ", ".join(e.use(register, "u32") for register in registers)
        e.line(f"stored_matrices(m, ({values},), {transposed}, {arguments})")


def address_width(e, base) -> int:
    """Return the bytes of an address register."""
    return e.register(base.name)[1].itemsize if isinstance(base, Reg) else 8


# --- ldmatrix ---------------------------------------------------------------------------------------------------------


class Rows:
    """What ldmatrix has read: `words` are (warps, matrices, 8 rows, 4 words, blocks), of one block if all are alike."""

    __slots__ = ("form", "words")

    def __init__(self, form: WarpForm, words: np.ndarray):
        if words.shape[-1] > 1 and (words[..., 0] == words[..., -1]).all() and (words == words[..., :1]).all():
            words = np.ascontiguousarray(words[..., :1])
        self.form, self.words = form, words

    def fragment(self, order: np.ndarray, kind: str) -> np.ndarray:
        """Return rows as numbers, (warps, blocks, rows, K); `order` (rows, K / 8) names them by 8 * matrix + row."""
        warps, _, _, _, blocks = self.words.shape
        words = self.words.reshape(warps, -1, 4, blocks).take(order.reshape(-1), axis=1)
        return elements(_blocks_first(words), kind).reshape(warps, blocks, len(order), -1)


class SnapshotRows:
    """The same of a bank whose words have been kept: `units` (warps, matrices, 8 rows) say which 16 bytes of it."""

    __slots__ = ("form", "snapshot", "units")

    def __init__(self, form: WarpForm, snapshot: Snapshot, units: np.ndarray):
        self.form, self.snapshot, self.units = form, snapshot, units

    @property
    def words(self) -> np.ndarray:
        """The words, as `Rows` has them."""
        words = self.snapshot.words.reshape(len(self.snapshot.words), -1, 4).take(self.units, axis=1)
        return np.ascontiguousarray(np.moveaxis(words, 0, -1))

    def fragment(self, order: np.ndarray, kind: str) -> np.ndarray:
        """Return whole rows as numbers, as `Rows` does."""
        numbers = self.snapshot.form(kind, plain_elements)
        width = numbers.shape[1] * 4 // self.snapshot.words.shape[1]  # elements in 16 bytes
        units = self.units.reshape(len(self.units), -1).take(order, axis=1)
        found = numbers.reshape(len(numbers), -1, width).take(units, axis=1).swapaxes(0, 1)
        return found.astype(_PRECISE.get(kind, found.dtype), "C").reshape(*found.shape[:2], len(order), -1)


@helper
def loaded_rows(m, count, address, offset, space, lanes, site):
    """Read the rows of ldmatrix."""
    form, giving, givers, where = _row_givers(m, address, offset, count, space, lanes, site)
    if form.whole and type(where) is Located and where.region.banked and where.region.shared and givers.every_block:
        place = where.offset
        if isinstance(place, np.ndarray) and place.shape[1] == 1:  # all blocks at the same address: whole rows
            m.memory.check(where, 0, 16, site)
            if m.memory.trace is not None:
                m.memory.trace.access(m.memory, where, 0, site)
            snapshot = where.region.snapshot(4 * place.size)
            if snapshot is not None:
                return SnapshotRows(form, snapshot, (place >> 4).reshape(-1, count, 8))
            rows = (place >> 2).reshape(-1, count, 8, 1) + _WORDS
            return Rows(form, where.region.typed(_WORD).take(rows, axis=0))
    words = m.memory.load(where, 0, _WORD, 4, site)
    if givers is not lanes:
        words = [_among(word, giving, givers, lanes) for word in words]
    wide = np.stack(np.broadcast_arrays(*(form.spread(word) for word in words)))
    wide = wide.reshape(4, wide.shape[1], 4, 8, wide.shape[3])[:, :, :count]
    return Rows(form, np.ascontiguousarray(wide.transpose(1, 2, 3, 0, 4)))


def _row_givers(m, address, offset: int, count: int, space: str, lanes, site: Site):
    """Return the form of the lanes, which of them give an address, and where these point."""
    form = whole_form(m, lanes, site)
    giving = (lanes.thread & 31) < 8 * count
    givers, _ = lanes.split(giving)
    if isinstance(address, np.ndarray) and givers is not lanes:
        if address.ndim == 2 and address.shape[1] == 1 and lanes.index is None:
            address = address[giving[:, 0]]
        else:
            address = lanes.expand(address)[np.broadcast_to(giving, lanes.shape)].reshape(givers.shape)
    return form, giving, givers, m.memory.locate(address, offset, space, givers, site)


def _among(value, giving: np.ndarray, givers, lanes) -> np.ndarray:
    """Put a value of some lanes among zeros for the others."""
    full = np.zeros(lanes.shape, _WORD)
    full[np.broadcast_to(giving, lanes.shape)] = givers.expand(value).reshape(-1)
    return full


@helper
def register_of(rows, number, transposed):
    """Return each lane's register of one matrix: elements 2 * (l % 4) and the next of row (or column) l // 4."""
    matrix = rows.words[:, number]
    if transposed:
        matrix = _turned(matrix.transpose(2, 0, 1, 3)).transpose(1, 2, 0, 3)
    warps, _, _, blocks = matrix.shape
    return rows.form.collect(np.ascontiguousarray(matrix).reshape(warps, 32, blocks))


def _turned(matrix: np.ndarray) -> np.ndarray:
    """Transpose the 8 by 8 elements that lie two by two in (words, warps, rows, blocks)."""
    low, high = matrix & np.uint32(0xFFFF), matrix >> np.uint32(16)
    columns = np.stack((low, high), axis=1)  # (word, half, warps, rows, blocks): column 2 * word + half
    columns = columns.reshape(8, *matrix.shape[1:])
    pairs = columns[:, :, 0::2] | (columns[:, :, 1::2] << np.uint32(16))  # (column, warps, pair of rows, blocks)
    return pairs.transpose(2, 1, 0, 3)


@helper
def loaded_a(rows, numbers, kind, transposed):
    """Return a fragment A, (warps, blocks, 16, K), from the matrices that its registers are."""
    if not transposed:  # registers go down the rows first, then along K
        return rows.fragment((8 * np.array(numbers).reshape(-1, 2, 1) + _ROWS).reshape(-1, 16).T, kind)
    words = rows.words[:, list(numbers)]
    warps, count, _, _, blocks = words.shape
    words = words.reshape(warps, count // 2, 2, 8, 4, blocks)
    found = elements(_blocks_first(words), kind).reshape(warps, blocks, count // 2, 2, 8, 8)
    return found.transpose(0, 1, 3, 5, 2, 4).reshape(warps, blocks, 16, -1)


@helper
def loaded_b(rows, numbers, kind, transposed):
    """Return a fragment B, transposed, (warps, blocks, 8, K), from the matrices that its registers are."""
    if not transposed:
        return rows.fragment((8 * np.array(numbers).reshape(-1, 1) + _ROWS).T, kind)
    words = rows.words[:, list(numbers)]
    warps, _, _, _, blocks = words.shape
    return elements(_blocks_first(words), kind).reshape(warps, blocks, -1, 8).swapaxes(-1, -2)


def _blocks_first(words: np.ndarray) -> np.ndarray:
    """(warps, ..., blocks) as contiguous (warps, blocks, the rest in one)."""
    warps, blocks = words.shape[0], words.shape[-1]
    return np.ascontiguousarray(np.ascontiguousarray(words).reshape(warps, -1, blocks).swapaxes(1, 2))


# --- stmatrix ---------------------------------------------------------------------------------------------------------


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
