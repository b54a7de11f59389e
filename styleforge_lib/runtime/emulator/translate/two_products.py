"""Float32 sums of two products, a * b + x * y with x * y rounded first, where many of a block share a and x.

An online softmax is full of them: each of its sums is scaled by one number, and a value times another is added.

Mostly that number is 1, as a new maximum is rare. Then the sum is an addition, of all sums at once, and the few lanes
with another number are done again by themselves (`_mostly_added`).

Else NumPy's complex product (see `multiply_add`) takes both products at once: (a, x) times (y, b) has a * b + x * y for
its imaginary part, the first product not rounded. (a, x) is put together once for all sums, and what comes out is laid
out as what the next turn of the loop needs: it writes y over the real part (`TwoProducts`).

Contents: `ScaledSums` and `scaled_sums_of` (which instructions of a block are such sums), `scaled_sums` (the sums),
`TwoProducts`, and the probe.
"""

from __future__ import annotations

import math
import operator
from collections import Counter

import numpy as np

from ..control_flow import Block, read, written
from ..parse import Instruction, Reg
from .emitter import helper
from .matrix_sums import undisturbed
from .multiply_add import (
    C8,
    COMPLEX_PRODUCT_FUSES,
    F4,
    F8,
    WORTH_COMPLEX,
    fits,
    fma32,
    fma32_wide,
    sums_products,
)

_C8 = np.dtype(C8)
_WORTH_SHARING = 3  # sums; (a, x) must be put together first
_WORTH_LANES = 1024  # lanes
_RARE = 16  # one lane in so many, at most, is done again


class ScaledSums:
    """Some sums of a block that share a and x, while the block is being translated."""

    def __init__(self, members: list[tuple[Instruction, tuple[int, int]]]):
        self.factors = {id(item): factors for item, factors in members}
        self.targets: list[Reg] = []
        self.addends: list[str] = []
        self.values: list[str] = []

    def add(self, e, item: Instruction, own: tuple[str, str], other: tuple[str, str]) -> None:
        """Take a sum, by the factors of its own product and of the other one; the last sum emits them all."""
        which = self.factors[id(item)]
        self.targets.append(item.operands[0])
        self.addends.append(own[1 - which[0]])
        self.values.append(other[1 - which[1]])
        if len(self.targets) == len(self.factors):
            kept = f"m.kept.setdefault({(e.block.index, e.count)}, [])"
            addends = e.new(f"[{', '.join(self.addends)}]")  # by itself, that only the list holds what is read last
            values = f"({', '.join(self.values)},)"
            found = e.new(f"scaled_sums({own[which[0]]}, {other[which[1]]}, {addends}, {values}, {kept})")
            for number, target in enumerate(self.targets):
                e.set_expression(target, f"{found}[{number}]", "f32")


def scaled_sums_of(block: Block, live_after: set[str], others: set[int]) -> dict[int, ScaledSums]:
    """Find sums of two products that share a factor of each with others.

    Returns {id of an fma.rn.f32: the sums it belongs to}, where nothing else reads what the multiplication of its
    addend made. `live_after` are the registers that are read behind the block's instructions, `others` the ids of
    instructions that are something else.
    """
    made: dict[str, int] = {}
    makers: dict[int, dict[str, int]] = {}
    readers: Counter[int] = Counter()
    for number, item in enumerate(block.instructions):
        makers[number] = {name: made.get(name, -1) for name in read(item)}
        readers.update(makers[number].values())
        made.update(dict.fromkeys(written(item), number))
    lasting = {made[name] for name in live_after if name in made}
    shared: dict[tuple, list[tuple[Instruction, tuple[int, int]]]] = {}
    for number, item in enumerate(block.instructions):
        if id(item) in others or not sums_products(item) or not isinstance(item.operands[3], Reg):
            continue
        maker = makers[number][item.operands[3].name]
        if maker < 0 or maker in lasting or readers[maker] != 1 or not _is_product(block.instructions[maker]):
            continue
        product = block.instructions[maker]
        for own in (0, 1):
            for other in (0, 1):
                a, x = item.operands[1 + own], product.operands[1 + other]
                if isinstance(a, Reg) and isinstance(x, Reg):
                    key = (a.name, makers[number][a.name], x.name, makers[maker][x.name])
                    shared.setdefault(key, []).append((item, (own, other)))
    found: dict[int, ScaledSums] = {}
    for members in sorted(shared.values(), key=len, reverse=True):
        factors = {id(item): which for item, which in members if id(item) not in found}
        free = [[item] for item, _ in members if id(item) in factors]
        free = undisturbed(block, free) if free else []
        if len(free) >= _WORTH_SHARING:
            sums = ScaledSums([(item, factors[id(item)]) for [item] in free])
            found.update(dict.fromkeys(sums.factors, sums))
    return found


def _is_product(item: Instruction) -> bool:
    return item.opcode == "mul" and item.modifiers in (("f32",), ("rn", "f32"))


@helper
def scaled_sums(a, x, addends: list, values, kept: list) -> list:
    """Return a * b + x * y for each b of `addends` and y of `values`: x * y is rounded, then the sum.

    `addends` is emptied. `kept` is a list of the caller's that remembers the sums: a loop's next turn adds to them.
    """
    if isinstance(a, np.ndarray) and a.ndim == 2 and a.size >= _WORTH_LANES and _alike(a.shape, x, addends, values):
        others = a != 1
        if _RARE * np.count_nonzero(others) < a.size:
            return _mostly_added(a, x, addends, values, np.flatnonzero(others), kept)
    both = TwoProducts(a, x)
    addends.reverse()
    return [both.sum(addends.pop(), y) for y in values]


def _alike(shape: tuple[int, int], x, addends, values) -> bool:
    """Whether x and all addends have a number for each lane, and the values one for each block."""
    return x.shape == shape and {b.shape for b in addends} == {shape} and {y.shape for y in values} == {(1, shape[1])}


def _mostly_added(a, x, addends, values, others: np.ndarray, kept: list) -> list:
    """Return the sums where a is 1 in all lanes but a few: `others`."""
    count = len(addends)
    before = (
        kept[1] if kept and len(kept[0]) == count and all(map(operator.is_, kept[0], addends)) else np.array(addends)
    )
    out = x * np.concatenate(values)[:, None]
    columns = before.reshape(count, -1), out.reshape(count, -1)
    some = [value.take(others, axis=1) for value in columns] if others.size else None
    np.add(before, out, out=out)
    if some is not None:
        columns[1][:, others] = fma32(a.reshape(1, -1).take(others, axis=1), *some)
    sums = list(out)
    kept[:] = tuple(sums), out
    return sums


class TwoProducts:
    """Sums a * b + x * y of one a and one x."""

    __slots__ = ("a", "pair", "row", "shape", "strides", "x")

    def __init__(self, a, x):
        self.a, self.x = a, x
        self.shape = None

    def sum(self, b, y):
        """Return float32 of a * b + x * y: the second product is rounded, then their sum. It may be a strided view."""
        if self.shape is None and not self._begin(b, y):
            return fma32(self.a, b, self.x * y)
        room = b.base
        if not (
            b.shape == self.shape
            and y.shape == self.row
            and room is not None
            and room.dtype is _C8
            and room.shape == self.pair.shape
            and b.strides == self.strides
        ):
            room = self._room_of(b, y)
            if room is None:
                return fma32(self.a, b, self.x * y)
        room.real = y
        return np.multiply(self.pair, room).imag[0]

    def _begin(self, b, y) -> bool:
        """Put (a, x) together, if sums of such shapes are worth it."""
        shape = np.broadcast_shapes(self.a.shape, self.x.shape, b.shape, y.shape)
        if math.prod(shape) < WORTH_COMPLEX or not COMPLEX_PRODUCT_ROUNDS:
            return False
        self.pair = np.empty((1, *shape), C8)
        self.pair.real, self.pair.imag = self.a, self.x
        self.shape, self.strides, self.row = shape, self.pair.strides[1:], y.shape
        return True

    def _room_of(self, b, y) -> np.ndarray | None:
        """Return an array of complex numbers with b for imaginary parts, one axis more; None if b or y is larger."""
        if not (fits(b.shape, self.shape) and fits(y.shape, self.shape)):
            return None
        self.row = y.shape
        room = np.empty(self.pair.shape, C8)
        room.imag = b
        return room


def _complex_product_rounds() -> bool:
    """Whether the imaginary part of NumPy's complex product is a * b + x * y with x * y rounded, and a * b not."""
    rng = np.random.default_rng(0)
    a, b, x = (1 + rng.random((3, 37, 41))).astype(F4)
    y = -a * b / x  # leaves what rounding the products would lose
    pair, room = np.empty((2, 37, 41), C8)
    pair.real, pair.imag, room.real, room.imag = a, x, y, b
    return bool((np.multiply(pair, room).imag == fma32_wide(a.astype(F8), b.astype(F8), x * y)).all())


COMPLEX_PRODUCT_ROUNDS = COMPLEX_PRODUCT_FUSES and _complex_product_rounds()
