"""An address register after its bounds and alignment have been looked at once.

Contents: `Located` (all lanes point into one region), `Scattered` (into several), `spread_of` and `step_of` (of numbers
that grow evenly).
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

    __slots__ = ("address_bits", "counts", "exact", "high", "indices", "lanes", "low", "offset", "region", "spread")

    def __init__(self, region, lanes: Lanes, offset, low: int, high: int, address_bits: int, exact: bool = True):
        self.region, self.lanes, self.offset = region, lanes, offset
        self.low, self.high, self.address_bits, self.exact = low, high, address_bits, exact
        self.indices: dict = {}
        self.counts: dict = {}  # what `metrics` found out about this pattern of addresses
        self.spread: tuple[int, int] | None = ()  # from thread to thread, from block to block; (): not looked at

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
        if self.spread == ():
            self.spread = spread_of(self.offset)
        if self.spread is None:
            return None
        (threads, blocks), (of_thread, of_block) = self.offset.shape, self.spread
        inner, outer, count = (of_thread, of_block, threads) if of_thread < of_block else (of_block, of_thread, blocks)
        return self.spread if (inner >= width or count == 1) and outer >= inner * (count - 1) + width else None

    def walked(self, delta: int, whole: np.dtype, dtype: np.dtype, count: int) -> tuple[np.ndarray, ...] | None:
        """Load `count` elements of each lane, a `whole` together, where offsets are known to grow evenly; else None.

        Threads that lie side by side are copied a block at a time, and only then brought into the order of values:
        blocks are often a power of two apart, and what a thread reads in all of them falls into one set of the cache.
        """
        steps = self.steps(whole.itemsize)
        if steps is None:
            return None
        threads, blocks = self.offset.shape
        memory = np.ndarray((threads, blocks), whole, self.region.data, int(self.offset[0, 0]) + delta, steps)
        if steps[0] < steps[1]:
            room = np.empty((blocks, threads + 1), whole)  # no power of two
            room[:, :threads] = memory.T
            strides = (room.strides[1], room.strides[0])
        else:
            room = np.ascontiguousarray(memory)
            strides = room.strides
        parts = np.ndarray((count, threads, blocks), dtype, room, 0, (dtype.itemsize, *strides))
        return tuple(np.ascontiguousarray(parts))

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


def spread_of(offset: np.ndarray) -> tuple[int, int] | None:
    """Return by how much offsets grow along both axes, where that is the same everywhere, and not negative."""
    steps = step_of(offset[:, 0]), step_of(offset[0])
    if None in steps:
        return None
    rows, columns = (step * np.arange(size) for step, size in zip(steps, offset.shape, strict=True))
    return steps if (offset == rows[:, None] + (columns + offset[0, 0])).all() else None


def step_of(line: np.ndarray) -> int | None:
    """Return by how much some numbers grow, if always by the same, and do not fall."""
    if line.size < 2:
        return 0
    steps = line[1:] - line[:-1]
    first = int(steps[0])
    return first if first >= 0 and (steps == first).all() else None
