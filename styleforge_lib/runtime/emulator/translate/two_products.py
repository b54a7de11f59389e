"""Float32 sums of two products, a * b + x * y with x * y rounded first, where many of a block share a and x.

An online softmax is full of them: each of its sums is scaled by one number, and a value times another is added.
NumPy's complex product (see `multiply_add`) takes both products at once: (a, x) times (y, b) has a * b + x * y for its
imaginary part, the first product not rounded. (a, x) is put together once for all sums, and what comes out is laid out
as what the next turn of the loop needs: it writes y over the real part.

Contents: `factors_shared` (which instructions of a block are such sums), `TwoProducts` (the sums).
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from ..control_flow import Block, read, written
from ..parse import Instruction, Reg
from .emitter import helper
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


def factors_shared(block: Block, live_after: set[str], others: set[int]) -> dict[int, tuple[int, int]]:
    """Find sums of two products that share a factor of each with others.

    Returns {id of an fma.rn.f32: (which factor of its own, and of the multiplication that makes its addend)}, where
    nothing else reads what that multiplication made. `live_after` are the registers that are read behind the block's
    instructions, `others` the ids of instructions that are something else.
    """
    made: dict[str, int] = {}
    makers: dict[int, dict[str, int]] = {}
    readers: Counter[int] = Counter()
    for number, item in enumerate(block.instructions):
        makers[number] = {name: made.get(name, -1) for name in read(item)}
        readers.update(makers[number].values())
        made.update(dict.fromkeys(written(item), number))
    lasting = {made[name] for name in live_after if name in made}
    shared: dict[tuple, list[tuple[int, tuple[int, int]]]] = {}
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
                    shared.setdefault(key, []).append((id(item), (own, other)))
    found: dict[int, tuple[int, int]] = {}
    for sums in sorted(shared.values(), key=len, reverse=True):
        if len(sums) >= _WORTH_SHARING:
            for one, places in sums:
                found.setdefault(one, places)
    return found


def _is_product(item: Instruction) -> bool:
    return item.opcode == "mul" and item.modifiers in (("f32",), ("rn", "f32"))


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


helper(TwoProducts)


def _complex_product_rounds() -> bool:
    """Whether the imaginary part of NumPy's complex product is a * b + x * y with x * y rounded, and a * b not."""
    rng = np.random.default_rng(0)
    a, b, x = (1 + rng.random((3, 37, 41))).astype(F4)
    y = -a * b / x  # leaves what rounding the products would lose
    pair, room = np.empty((2, 37, 41), C8)
    pair.real, pair.imag, room.real, room.imag = a, x, y, b
    return bool((np.multiply(pair, room).imag == fma32_wide(a.astype(F8), b.astype(F8), x * y)).all())


COMPLEX_PRODUCT_ROUNDS = COMPLEX_PRODUCT_FUSES and _complex_product_rounds()
