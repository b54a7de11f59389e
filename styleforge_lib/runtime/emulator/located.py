"""An address register after its bounds and alignment have been looked at once.

Contents: `Located` (all lanes point into one region), `Scattered` (into several).
"""

from __future__ import annotations

import numpy as np

from .lanes import Lanes


class Located:
    """An address operand after its bounds and alignment have been looked at once.

    `offset` is in bytes from the region's start. Further constant offsets (`delta`, never negative) come with each
    access, so one look serves `[%rd4]`, `[%rd4+128]`, `[%rd4+256]` ... All lanes lie between `low` and `high`, which
    may be too wide until `narrow` has been called.
    """

    __slots__ = ("_steps", "address_bits", "counts", "exact", "high", "indices", "lanes", "low", "offset", "region")

    def __init__(self, region, lanes: Lanes, offset, low: int, high: int, address_bits: int, exact: bool = True):
        self.region, self.lanes, self.offset = region, lanes, offset
        self.low, self.high, self.address_bits, self.exact = low, high, address_bits, exact
        self.indices: dict = {}
        self.counts: dict = {}  # what `metrics` found out about this pattern of addresses
        self._steps: tuple[int, int] | None = ()  # not looked at

    def index(self, shift: int, left_out: int):
        """Return the element index for elements of `1 << shift` bytes."""
        key = (shift, left_out)
        found = self.indices.get(key)
        if found is None:
            offset = self.offset - left_out if left_out else self.offset
            found = self.indices[key] = offset >> shift
        return found

    def steps(self, width: int) -> tuple[int, int] | None:
        """Return by how much offsets grow from thread to thread and from block to block, if always by the same.

        None too if accesses of `width` bytes overlap.
        """
        if self._steps == ():
            self._steps = _equal_steps(self.offset)
        if self._steps is None:
            return None
        (threads, blocks), (of_thread, of_block) = self.offset.shape, self._steps
        inner, outer, count = (of_thread, of_block, threads) if of_thread < of_block else (of_block, of_thread, blocks)
        return self._steps if (inner >= width or count == 1) and outer >= inner * (count - 1) + width else None

    def narrow(self) -> None:
        """Make the bounds exact."""
        if not self.exact:
            self.low, self.high, self.exact = int(self.offset.min()), int(self.offset.max()), True

    def owner(self):
        """Which column of a bank each lane owns."""
        lanes = self.lanes
        if self.region.space == "shared":
            return lanes.block
        if lanes.index is not None:
            return lanes.index
        return lanes.thread * lanes.universe.blocks + lanes.block


class Scattered:
    """An address operand whose lanes point into several regions: one Located for each."""

    __slots__ = ("lanes", "parts")

    def __init__(self, lanes: Lanes, parts: list[tuple[np.ndarray, Located]]):
        self.lanes, self.parts = lanes, parts


def _equal_steps(offset: np.ndarray) -> tuple[int, int] | None:
    """Return by how much offsets grow along both axes, where that is the same everywhere, and not negative."""
    steps = tuple(int(line[1] - line[0]) if line.size > 1 else 0 for line in (offset[:, 0], offset[0]))
    rows, columns = (
        line[0] + step * np.arange(line.size) for line, step in zip((offset[:, 0], offset[0]), steps, strict=True)
    )
    if min(steps) < 0 or (offset[:, 0] != rows).any() or (offset[0] != columns).any():
        return None
    return steps if (offset == rows[:, None] + (columns - columns[0])).all() else None
