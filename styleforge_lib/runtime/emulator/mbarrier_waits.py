"""One mbarrier, who waits at it, and the deadlock in which that may end.

Contents: `MBarrier` (the counts of one), `Waiting` (lanes parked at it), `deadlock` (what is missing, in words).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .address_space import Site, triple
from .faults import EmulatorFault, plural


class MBarrier:
    """One barrier, in every block of the batch. `count` is 0 where it is not initialised."""

    def __init__(self, number: int, region, offset: int, blocks: int):
        self.number, self.region, self.offset = number, region, offset
        self.count = np.zeros(blocks, np.int64)
        self.pending = np.zeros(blocks, np.int64)
        self.expected = np.zeros(blocks, np.int64)  # bytes; negative while more have come than were announced
        self.phase = np.zeros(blocks, np.int64)
        self.line = 0  # where it was initialised

    def __str__(self) -> str:
        return f"the mbarrier at byte {self.offset} of {self.region.name}"


@dataclass(slots=True)
class Waiting:
    """Lanes parked at one barrier, by block of threads; `wanted` is a parity, or (`whole`) the number of a phase."""

    barrier: MBarrier
    position: np.ndarray
    block: np.ndarray
    thread: np.ndarray
    wanted: np.ndarray
    whole: bool
    target: int
    register: str | None
    site: Site

    def done(self) -> np.ndarray:
        """Which lanes' phase is complete."""
        phase = self.barrier.phase[self.block]
        return phase > self.wanted if self.whole else (phase & 1) != self.wanted

    def part(self, mask: np.ndarray) -> Waiting:
        """Return some of the lanes."""
        return Waiting(
            self.barrier, self.position[mask], self.block[mask], self.thread[mask], self.wanted[mask], self.whole,
            self.target, self.register, self.site,
        )  # fmt: skip


def deadlock(batch, waiting: list[Waiting]) -> EmulatorFault:
    """Return the deadlock, of the barrier that is nearest to its phase's end: the others wait for that one."""
    one, *rest = sorted(waiting, key=_blame)
    other = next((two for two in rest if two.barrier is not one.barrier and one.block[0] in two.block), None)
    block, thread, story = _story(batch, one, None)
    tail = f"; and {_story(batch, other, int(one.block[0]))[2]}" if other is not None else ""
    return EmulatorFault(
        "deadlock",
        f"deadlock: in block {triple(block)}, {story}{tail}. Nothing is on its way, and nobody else can run",
        line=one.site.line,
        other_line=one.barrier.line,
        block=block,
        threads=(thread,),
    )


def _story(batch, one: Waiting, inside: int | None):
    """Return block and thread of one that waits (in a certain block), and what it waits for."""
    barrier = one.barrier
    order = np.lexsort((one.thread, one.block))
    first = int(next(lane for lane in order if inside is None or one.block[lane] == inside))
    block = int(one.block[first])
    thread, owner = divmod(int(one.position[first]), batch.universe.blocks)
    block_index, thread_index = batch.coordinates(owner, thread)
    phase = int(barrier.phase[block])
    if one.whole or phase & 1 == one.wanted[first]:
        missing = []
        if arrivals := int(barrier.pending[block]):
            missing.append(f"{arrivals} of {plural(int(barrier.count[block]), 'arrival')}")
        if size := int(barrier.expected[block]):
            missing.append(f"{size} announced bytes" if size > 0 else f"the announcement of {-size} bytes")
        what = f"phase {phase} never completes: {' and '.join(missing)} missing"
    else:
        what = "the phase it waits for never comes"
    parity = "" if one.whole else f" with parity {int(one.wanted[first])}"
    return block_index, thread_index, (
        f"thread {triple(thread_index)} waits at line {one.site.line}{parity} for {barrier}, initialised at line "
        f"{barrier.line}: {what}"
    )  # fmt: skip


def _blame(one: Waiting) -> tuple:
    barrier, block = one.barrier, int(one.block.min())
    halfway = 0 < barrier.pending[block] < barrier.count[block] or barrier.expected[block] != 0
    return (not halfway, block, one.site.line)
