"""Products of warpgroups, computed: exact in float64, those that follow each other as one along all their K.

Contents: `Product` (one wgmma.mma_async of some warpgroups), `add` (some of them to their accumulator).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .address_space import BANK_SHIFT, Site
from .warpgroup_operands import ROWS, Accumulator, Shape, numbers, word_indices

_PAIRS_AT_ONCE = 32  # warpgroups whose products are made together: their operands stay in the cache


@dataclass(slots=True)
class Product:
    """One wgmma.mma_async of some warpgroups."""

    accumulator: Accumulator
    shape: Shape
    pairs: np.ndarray
    a: np.ndarray
    """Descriptors, (pairs,); or, of A in registers, words (pairs, 64, depth in words)."""
    b: np.ndarray
    adds: np.ndarray
    group: np.ndarray
    site: Site
    number: int

    def part(self, mask: np.ndarray) -> Product:
        """Return the product of some of its warpgroups."""
        return Product(
            self.accumulator, self.shape, self.pairs[mask], self.a[mask], self.b[mask], self.adds[mask],
            self.group[mask], self.site, self.number,
        )  # fmt: skip

    def extends(self, other: Product) -> bool:
        """Whether this product can be added to the same numbers at once with another."""
        return (
            self.accumulator is other.accumulator
            and self.shape == other.shape
            and self.a.ndim == other.a.ndim
            and bool(self.adds.all())
            and np.array_equal(self.pairs, other.pairs)
        )


def add(run: list[Product], memory, blocks: int) -> None:
    """Add products that follow each other to one accumulator, as one product along all their K.

    blocks: how many there are in the batch, whose shared memory is side by side.
    """
    first = run[0]
    shape, accumulator = first.shape, first.accumulator
    width = 4 if shape.kind == "tf32" else 2
    depth = shape.depth * width
    in_registers = first.a.ndim > 1
    key = np.stack([*([] if in_registers else [p.a for p in run]), *[p.b for p in run]])
    kinds, which = np.unique(key, axis=1, return_inverse=True)
    which = which.reshape(-1)
    tiles: dict[tuple, np.ndarray] = {}
    for number in range(kinds.shape[1]):
        descriptors = tuple(int(value) for value in kinds[:, number])
        a, b = ((), descriptors) if in_registers else (descriptors[: len(run)], descriptors[len(run) :])
        chosen = np.flatnonzero(which == number)
        for start in range(0, chosen.size, _PAIRS_AT_ONCE):
            some = chosen[start : start + _PAIRS_AT_ONCE]
            pairs = first.pairs[some]
            owners = pairs % blocks
            if in_registers:
                words = np.concatenate([product.a[some] for product in run], axis=2)
                left = numbers(words, shape.kind)
            else:
                left = _tile(memory, tiles, a, owners, ROWS, depth, shape.transposed_a, shape.kind, first.site)
            right = _tile(memory, tiles, b, owners, shape.columns, depth, shape.transposed_b, shape.kind, first.site)
            total = np.matmul(left, right.swapaxes(-1, -2))
            if len(total) < some.size:
                total = np.repeat(total, some.size, axis=0)
            if shape.negated:
                np.subtract(0, total, out=total)  # and not -total: a sum of nothing is +0, as on the card
            adds = first.adds[some]
            if adds.all():
                total += accumulator.data[pairs]
            elif adds.any():
                total[adds] += accumulator.data[pairs[adds]]
            accumulator.data[pairs] = total


def _tile(memory, tiles, descriptors, owners, rows: int, depth: int, transposed: bool, kind: str, site: Site):
    """Return an operand as (owners, or 1 if it is the same in all, rows, K) in float64."""
    key = (descriptors, rows, transposed, owners.tobytes())
    found = tiles.get(key)
    if found is None:
        address = word_indices(descriptors, rows, depth, transposed)
        region = memory.shared[int(address[0]) >> BANK_SHIFT]
        words = region.words[((address - region.base) >> 2)[:, None], owners[None, :]]
        words = np.ascontiguousarray(words.T)
        if (words == words[:1]).all():
            words = words[:1]  # weights, which all blocks share
        width = 4 if kind == "tf32" else 2
        shape = (-1, rows) if transposed else (rows, -1)
        found = numbers(words, kind).reshape(len(words), *shape)
        if transposed:
            found = found.swapaxes(-1, -2)
        tiles[key] = found
        assert found.shape[-1] == depth // width * len(descriptors)
    return found
