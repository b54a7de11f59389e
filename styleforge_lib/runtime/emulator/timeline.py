"""The order of things in a block: which warp ran when, who waited at a barrier, which copies were on their way.

Contents: `TimelineTrace` (an `AddressTrace` that also keeps the order of events), `Timeline`, `WarpRow`, `Run`, `Wait`,
`Copies` (what it makes of them for one block).

Time here is counted in instructions. Every warp has a clock of its own, which goes one step forward for each PTX
instruction that the warp executes; both ways of a branch count, one after the other. A barrier that opens sets the
clocks of all warps that waited there to the latest of them: how far a clock jumps is how long that warp would have
waited if all ran side by side and every instruction took equally long. On a GPU they do not: a load takes hundreds of
cycles, and warps share what executes them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .addresses import AddressTrace
from .control_flow import BARRIERS, Block
from .lanes import Lanes
from .parse import Imm

KEPT_BYTES = 1 << 26  # of events; what comes later is not kept


@dataclass(frozen=True)
class Run:
    """A stretch of instructions that a warp executed with the same number of active lanes."""

    start: int
    end: int
    lanes: int


@dataclass(frozen=True)
class Wait:
    """A warp's wait at the barrier of a line; end is None where it never opened."""

    start: int
    end: int | None
    line: int


@dataclass(frozen=True)
class Copies:
    """Asynchronous copies of a warp, from the first one's issue to the wait that they arrive with (None: never)."""

    start: int
    end: int | None
    line: int


@dataclass
class WarpRow:
    """One warp of a block."""

    warp: int
    runs: list[Run] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)
    copies: list[Copies] = field(default_factory=list)


@dataclass(frozen=True)
class Timeline:
    """What the warps of one block did. barriers: (time, line) of those that opened. whole: whether all was kept."""

    rows: tuple[WarpRow, ...]
    barriers: tuple[tuple[int, int], ...]
    whole: bool

    @property
    def end(self) -> int:
        """When the last warp left."""
        return max((row.runs[-1].end for row in self.rows if row.runs), default=0)


@dataclass(frozen=True)
class _Event:
    """A basic block executed by some lanes, or (block None) a barrier that let some threads go.

    lanes: how many lanes of each (warp, block of the batch), None for all of them.
    """

    block: Block | None
    lanes: np.ndarray | None


class _Batch:
    """The events of one batch."""

    def __init__(self, batch):
        self.numbers = batch.block_numbers
        self.threads = batch.universe.threads
        self.plan = batch.plan
        self.events: list[_Event] = []
        self.whole = True


class TimelineTrace(AddressTrace):
    """An `AddressTrace` that also keeps the order of events."""

    def __init__(self, races: bool = True):
        super().__init__(races)
        self._batches: list[_Batch] = []
        self._events_of = None
        self._room = KEPT_BYTES

    def executed(self, batch, block: int, lanes: Lanes) -> None:
        """Count a basic block, and keep that it was executed."""
        super().executed(batch, block, lanes)
        self._keep(batch, batch.plan.graph.blocks[block], None if lanes.is_full else _lanes_of_warps(lanes))

    def block_barrier(self, batch, complete: np.ndarray | None, opened: np.ndarray | None) -> None:
        """Note a barrier that opened, and keep who waited there."""
        super().block_barrier(batch, complete, opened)
        lanes = None if opened is None else _lanes_of_warps(batch.universe.from_mask(opened))
        self._keep(batch, None, lanes)

    def _keep(self, batch, block: Block | None, lanes: np.ndarray | None) -> None:
        if batch is not self._events_of:
            self._events_of = batch
            self._batches.append(_Batch(batch))
        kept = self._batches[-1]
        if self._room <= 0:
            kept.whole = False
            return
        self._room -= 100 + (lanes.nbytes if lanes is not None else 0)
        kept.events.append(_Event(block, lanes))

    def timeline(self, block: int) -> Timeline:
        """Return what the warps of a block did, by its linear number in the grid. LookupError: it was not looked at."""
        for kept in self._batches:
            column = np.flatnonzero(kept.numbers == block)
            if column.size:
                return _Clocks(kept, int(column[0])).timeline()
        raise LookupError(f"block {block} was not looked at")


def _lanes_of_warps(lanes: Lanes) -> np.ndarray:
    """Return how many lanes of each (warp, block) are in a set, as bytes."""
    universe = lanes.universe
    warps = -(-universe.threads // 32)
    if lanes.index is None:
        rows = np.bincount(lanes.thread[:, 0] >> 5, minlength=warps).astype(np.uint8)
        columns = np.zeros(universe.blocks, np.uint8)
        columns[lanes.columns] = 1
        return rows[:, None] * columns
    place = (lanes.thread >> 5) * universe.blocks + lanes.block
    return np.bincount(place, minlength=warps * universe.blocks).astype(np.uint8).reshape(warps, universe.blocks)


class _Clocks:
    """Plays the events of one block of the grid, and notes what each warp's clock shows."""

    def __init__(self, kept: _Batch, column: int):
        self.kept, self.column = kept, column
        warps = -(-kept.threads // 32)
        self.rows = [WarpRow(warp) for warp in range(warps)]
        self.clocks = [0] * warps
        self.full = [min(32, kept.threads - 32 * warp) for warp in range(warps)]
        self.waiting: dict[int, tuple[int, int]] = {}  # warp -> since when, at which line
        self.pending: list[list[list]] = [[] for _ in range(warps)]  # [group, start, line] of copies on their way
        self.committed = [0] * warps
        self.barriers: list[tuple[int, int]] = []

    def timeline(self) -> Timeline:
        """Play all events."""
        for event in self.kept.events:
            counts = self.full if event.lanes is None else event.lanes[:, self.column].tolist()
            if event.block is None:
                self._open([warp for warp, count in enumerate(counts) if count])
                continue
            for warp, count in enumerate(counts):
                if count:
                    self._execute(warp, count, event.block)
        for warp, (since, line) in self.waiting.items():
            self.rows[warp].waits.append(Wait(since, None, line))
        for warp, copies in enumerate(self.pending):
            self.rows[warp].copies += [Copies(start, None, line) for _, start, line in copies]
        return Timeline(tuple(self.rows), tuple(self.barriers), self.kept.whole)

    def _line(self, item) -> int:
        return self.kept.plan.line_of(item.place)

    def _execute(self, warp: int, count: int, block: Block) -> None:
        start, row = self.clocks[warp], self.rows[warp]
        length = len(block.instructions) + (block.last is not None)
        for position, item in enumerate(block.instructions):
            if item.opcode == "cp" and "async" in item.modifiers and "bulk" not in item.modifiers:
                self._copy(warp, start + position, item)
        end = self.clocks[warp] = start + length
        last = row.runs[-1] if row.runs else None
        if last is not None and last.end == start and last.lanes == count:
            row.runs[-1] = Run(last.start, end, count)
        elif length:
            row.runs.append(Run(start, end, count))
        if block.last is not None and block.last.opcode in BARRIERS and "warp" not in block.last.modifiers:
            self.waiting.setdefault(warp, (end, self._line(block.last)))

    def _copy(self, warp: int, now: int, item) -> None:
        pending = self.pending[warp]
        if "commit_group" in item.modifiers:
            self.committed[warp] += 1
        elif "wait_all" in item.modifiers or "wait_group" in item.modifiers:
            newest = item.operands[0].value if item.operands and isinstance(item.operands[0], Imm) else 0
            self.committed[warp] += "wait_all" in item.modifiers
            arrived = [one for one in pending if one[0] < self.committed[warp] - newest]
            self.pending[warp] = [one for one in pending if one not in arrived]
            self.rows[warp].copies += [Copies(start, now, line) for _, start, line in arrived]
        elif not any(one[0] == self.committed[warp] for one in pending):
            pending.append([self.committed[warp], now, self._line(item)])

    def _open(self, warps: list[int]) -> None:
        if not warps:
            return
        now = max(self.clocks[warp] for warp in warps)
        for warp in warps:
            since, line = self.waiting.pop(warp, (self.clocks[warp], 0))
            if now > since:
                self.rows[warp].waits.append(Wait(since, now, line))
            self.clocks[warp] = now
        self.barriers.append((now, line))
