"""mma.sync and the rounding to tf32: what a warp does with small matrices.

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

import math

import numpy as np

from ..float16 import halved
from ..warps import WarpForm, Warps
from .emitter import helper, rule
from .matrices import TF32, elements, items, whole_form

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
_ROWS_AT_ONCE = 256


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
    a, b, c = ([e.use(item, kind) for item in items(v)] for v, kind in zip(sources, kinds, strict=True))
    if (len(a), len(b), len(c)) != counts or len(items(target)) != counts[2]:
        m.refuse(f"It takes {counts[0]}, {counts[1]} and {counts[2]} registers; `{ins.name}` has others.")
    left = e.form(",".join(a), f"A.{kind_a}", _fragment(e, "a", a, kind_a, site))
    right = e.form(",".join(b), f"B.{kind_b}", _fragment(e, "b", b, kind_b, site))
    add = e.form(",".join(c), f"C.{result}", f"accumulator(L, ({', '.join(c)},), {result!r})")
    found = e.new(f"tile_product({left}, {right}, {add}, {result!r}, {saturates})")
    # The next product takes the matrix as it is, out of the forms; the registers are for others, if there are any.
    registers = e.new(f"dealt(L, {found})", only_if_used=True)
    names = [e.new(f"{registers}[{number}]", only_if_used=True) for number in range(counts[2])]
    for register, name in zip(items(target), names, strict=True):
        e.set(register, name, kinds[2])
    e.forms[",".join(names), f"C.{result}"] = found


def _fragment(e, which: str, registers: list[str], kind: str, site: str) -> str:
    """Return the expression of a fragment: from what ldmatrix read, if that is all in it, else from the registers."""
    loads = [e.origins.get(name) for name in registers]
    if None not in loads and len({(found, transposed) for found, _, transposed in loads}) == 1:
        found, _, transposed = loads[0]
        if not transposed or kind in ("f16", "bf16"):
            return f"loaded_{which}({found}, {tuple(number for _, number, _ in loads)}, {kind!r}, {transposed})"
    return f"fragment_{which}(L, ({', '.join(registers)},), {kind!r}, {site}, m)"


def _stacked(form: WarpForm, values: tuple, shape: tuple[int, ...], place) -> np.ndarray:
    """Return registers as (warps, blocks, *shape): register r fills the (8, 4) lanes at `place(r)`."""
    wide = [form.spread(value) for value in values]
    blocks = max(value.shape[2] for value in wide)
    out = np.empty((wide[0].shape[0], blocks, *shape), wide[0].dtype)
    for number, value in enumerate(wide):
        out[:, :, *place(number)] = value.reshape(-1, 8, 4, value.shape[2]).transpose(0, 3, 1, 2)
    return out


@helper
def fragment_a(lanes, values, kind, site, m):
    """Return A as (warps, blocks, 16, K)."""
    form = whole_form(m, lanes, site)
    words = _stacked(form, values, (2, 8, len(values) // 2, 4), lambda r: (r % 2, _ALL, r // 2))
    return elements(words, kind).reshape(*words.shape[:2], 16, -1)


@helper
def fragment_b(lanes, values, kind, site, m):
    """Return B, transposed: (warps, blocks, 8, K)."""
    form = whole_form(m, lanes, site)
    words = _stacked(form, values, (8, len(values), 4), lambda r: (_ALL, r))
    return elements(words, kind).reshape(*words.shape[:2], 8, -1)


@helper
def accumulator(lanes, values, kind):
    """Return C as (warps, blocks, 16, 8), or a view (warps, blocks, 2, 8, 8) of registers that `dealt` has made."""
    form = Warps.form(lanes)
    if kind == "f16":
        words = _stacked(form, values, (2, 8, 4), lambda r: (r,))
        return words.view(np.float16).reshape(*words.shape[:2], 16, 8)
    if form.whole and (found := _undealt(values)) is not None:
        return found
    words = _stacked(form, values, (2, 8, 4, 2), lambda r: (r // 2, _ALL, _ALL, r % 2))
    return words.reshape(*words.shape[:2], 16, 8)


@helper
def tile_product(a, b, c, kind, saturates):
    """Return A times B plus C, (warps, blocks, 16, 8), rounded once."""
    product = _products(a, b)
    product = product.reshape(*product.shape[:2], *c.shape[2:])
    if kind in ("f16", "f32"):
        total = np.add(product, c, out=product if product.shape == c.shape else None)
        total = halved(total) if kind == "f16" else total.astype(np.float32)
    else:
        total = product.astype(np.int64) + c
        if saturates:
            total = np.clip(total, -(2**31), 2**31 - 1)
        total = total.astype(np.int32)
    return total.reshape(*total.shape[:2], 16, 8)


def _products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return A times B of every warp and block."""
    b = b.swapaxes(-1, -2)
    blocks = a.shape[1]
    together = math.gcd(blocks, _ROWS_AT_ONCE // 16)
    if b.shape[1] > 1 or together == 1:
        return np.matmul(a, b)
    # One B for all blocks: the rows of some blocks make one matrix, which is faster than as many small ones. A product
    # that is too large is no gain: the library under NumPy would spread it over threads that wait for each other.
    rows = a.reshape(len(a), blocks // together, 16 * together, -1)
    return np.matmul(rows, b).reshape(len(a), blocks, 16, 8)


@helper
def dealt(lanes, matrix):
    """Return the registers of each lane of C or D."""
    form = Warps.form(lanes)
    warps, blocks = matrix.shape[:2]
    if matrix.dtype == np.float16:
        words = np.ascontiguousarray(matrix).view(np.uint32).reshape(warps, blocks, 2, 32)
        return tuple(form.collect(np.ascontiguousarray(words[:, :, r].transpose(0, 2, 1))) for r in range(2))
    # (halves, blocks, warps, rows, columns): in this order a register is a view, with threads 8 bytes apart.
    registers = np.empty((2, blocks, warps, 8, 8), matrix.dtype)
    registers.transpose(2, 1, 0, 3, 4)[...] = matrix.reshape(warps, blocks, 2, 8, 8)
    views = [registers.reshape(2, blocks, warps * 32, 2)[r >> 1, :, :, r & 1].T for r in range(4)]
    return views if form.whole else [form.collect(view.reshape(warps, 32, blocks)) for view in views]


def _undealt(values: tuple) -> np.ndarray | None:
    """Return the matrix whose registers `dealt` has made these values, as (warps, blocks, 2, 8, 8)."""
    registers = values[0].base if isinstance(values[0], np.ndarray) else None
    if registers is None or registers.ndim != 5 or registers.shape[3:] != (8, 8) or registers.itemsize != 4:
        return None
    _, blocks, warps, _, _ = registers.shape
    start, half = registers.__array_interface__["data"][0], registers.nbytes // 2
    for number, value in enumerate(values):
        if not isinstance(value, np.ndarray) or value.base is not registers or value.dtype != registers.dtype:
            return None
        if value.shape != (32 * warps, blocks) or value.strides != (8, 256 * warps):
            return None
        if value.__array_interface__["data"][0] - start != (number >> 1) * half + 4 * (number & 1):
            return None
    return registers.transpose(2, 1, 0, 3, 4)


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
    return np.where(value == value, bits & TF32, np.uint32(0x7FFFFFFF))[()]
