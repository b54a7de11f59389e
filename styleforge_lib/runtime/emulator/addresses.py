"""Which addresses the lanes of a warp touched: what is drawn into sectors and banks.

Contents: `AddressTrace` (a `Trace` that also keeps addresses) and `Visit` (one warp at one memory instruction).

Kept are the first few times that a warp comes by an instruction, not every turn of a loop: a picture shows one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .address_space import Site
from .lanes import Lanes
from .located import Located
from .memory import Memory
from .metrics import Trace

KEPT_VISITS = 4
SECTOR_BYTES = 32


@dataclass(frozen=True)
class Visit:
    """One warp's request: 32 lanes at one memory instruction.

    offsets: per lane the byte in `array` where its access starts, -1 for a lane that takes no part. start: where the
    array itself begins, in bytes past a multiple of 32. number: 0 when the warp came by for the first time.
    """

    line: int
    space: str
    verb: str
    width: int
    array: str
    offsets: tuple[int, ...]
    start: int
    number: int


@dataclass(frozen=True)
class _Kept:
    """What one set of lanes did at one instruction, of one batch."""

    blocks: np.ndarray
    lanes: Lanes
    site: Site
    region: object
    offset: np.ndarray | int


class AddressTrace(Trace):
    """A `Trace` that also keeps the addresses of global and shared accesses."""

    def __init__(self, races: bool = True):
        super().__init__(races)
        self._batch = None
        self._seen: dict[int, np.ndarray] = {}  # site -> how often each (warp, block) of the batch has come by
        self._kept: list[_Kept] = []

    def executed(self, batch, block: int, lanes: Lanes) -> None:
        """Count a basic block, and begin anew with a new batch."""
        super().executed(batch, block, lanes)
        if batch is not self._batch:
            self._batch, self._seen = batch, {}

    def access(self, memory: Memory, at: Located, delta: int, site: Site, values: tuple | None = None) -> None:
        """Count a memory instruction, and keep its addresses while they are new."""
        super().access(memory, at, delta, site, values)
        if at.region.space not in ("global", "shared"):
            return
        universe = at.lanes.universe
        seen = self._seen.get(site.number)
        if seen is None:
            seen = self._seen[site.number] = np.zeros((-(-universe.threads // 32), universe.blocks), np.int64)
        if seen.min() >= KEPT_VISITS:
            return
        present = np.zeros(seen.shape, bool)
        present[at.lanes.thread >> 5, at.lanes.block] = True
        if seen[present].min() < KEPT_VISITS:
            self._kept.append(_Kept(self._batch.block_numbers, at.lanes, site, at.region, at.offset + delta))
        seen += present

    def visits(self, line: int) -> list[tuple[int, int]]:
        """Return the (block, warp) pairs that came by a memory instruction of a line, by number; block is linear."""
        found: set[tuple[int, int]] = set()
        for kept in self._kept:
            if kept.site.line == line:
                warps = kept.lanes.expand(kept.lanes.thread >> 5).reshape(-1)
                blocks = kept.blocks[kept.lanes.expand(kept.lanes.block).reshape(-1)]
                found.update(zip(blocks.tolist(), warps.tolist(), strict=True))
        return sorted(found)

    def lines_with_addresses(self) -> list[int]:
        """Return the lines that have a global or shared access."""
        return sorted({kept.site.line for kept in self._kept})

    def warp(self, line: int, block: int, warp: int) -> list[Visit]:
        """Return what a warp asked for at a line, in the order of its instructions and then of time."""
        found: list[Visit] = []
        numbers: dict[int, int] = {}
        for kept in sorted((kept for kept in self._kept if kept.site.line == line), key=lambda kept: kept.site.number):
            lanes = kept.lanes
            thread = lanes.expand(lanes.thread).reshape(-1)
            mine = (kept.blocks[lanes.expand(lanes.block).reshape(-1)] == block) & (thread >> 5 == warp)
            if not mine.any():
                continue
            number = numbers[kept.site.number] = numbers.get(kept.site.number, -1) + 1
            offsets = np.full(32, -1, np.int64)
            offsets[thread[mine] & 31] = lanes.expand(kept.offset).reshape(-1)[mine]
            site, region = kept.site, kept.region
            found.append(
                Visit(line, region.space, site.verb, site.width, region.name, tuple(offsets.tolist()),
                      region.base % SECTOR_BYTES, number)
            )  # fmt: skip
        return found
