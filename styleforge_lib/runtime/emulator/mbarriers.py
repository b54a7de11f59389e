"""mbarrier: barriers in shared memory that count arrivals and bytes, phase after phase.

A phase is complete when as many arrivals have come as the barrier was initialised with, and as many bytes as were
expected. A thread that waits for a phase is parked until it is complete, whether it spins around `try_wait` or
`test_wait`: both may take as long as they like. When nobody can run, first the bulk copies that somebody waits for
arrive; then every wait gives up once, as it may on a GPU; and where that brings nothing, it is a deadlock, and
what is missing is said: arrivals or bytes.

The state is kept beside shared memory, one array over the blocks of the batch for each barrier. The 64-bit state that
`arrive` returns holds the phase and the arrivals that were pending.

Contents: `MBarriers`. One barrier, and who waits at it, are in `mbarrier_waits`.
Source: PTX ISA, "Parallel Synchronization and Communication Instructions: mbarrier".
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .address_space import Site
from .control_flow import Block
from .faults import EmulatorFault, plural
from .lanes import Lanes
from .located import Scattered
from .mbarrier_waits import MBarrier, Waiting, deadlock
from .parse import Imm
from .spots import Spot, fault_of, spots

COUNT_LIMIT = (1 << 20) - 1  # of arrivals, and of bytes in flight
_COUNT_BITS = 20
BYTES = 8


class MBarriers:
    """The mbarriers of one batch, and who waits at them."""

    def __init__(self, batch):
        self.batch = batch
        self.waiting: list[Waiting] = []
        self.progress = 0  # grows with whatever a waiting thread may be waiting for
        self._gave_up_at = -1
        self._behind: list[tuple[MBarrier, int, Spot, Site]] = []  # arrivals that wait for the copies of cp.async
        self._gave_up: dict[int, np.ndarray] = {}  # by place in the code, since the last progress
        self._known: dict[tuple[int, int], MBarrier] = {}
        self.all: list[MBarrier] = []

    # --- what translated code calls --------------------------------------------------------------------------------

    def initialise(self, address, count, lanes: Lanes, site: Site) -> None:
        """mbarrier.init."""
        count = lanes.expand(count).reshape(-1).astype(np.int64)
        for spot in self._spots(address, lanes, site):
            counts = count[spot.place]
            if (counts < 1).any() or (counts > COUNT_LIMIT).any():
                raise self.fault(site, spot, (counts < 1) | (counts > COUNT_LIMIT), lambda i, c=counts: (
                    f"the count is {int(c[i])}; it must be 1 to {COUNT_LIMIT}"
                ))  # fmt: skip
            barrier = self._at(spot)
            known = barrier.count[spot.block] > 0
            if known.any():
                raise self.fault(site, spot, known, lambda _, b=barrier: (
                    f"{b} was initialised at line {b.line} already: mbarrier.inval must come between"
                ))  # fmt: skip
            barrier.count[spot.block] = barrier.pending[spot.block] = counts
            barrier.expected[spot.block] = barrier.phase[spot.block] = 0
            barrier.line = site.line
            spot.region.words[spot.offset // 4 : spot.offset // 4 + 2, spot.block] = 0

    def invalidate(self, address, lanes: Lanes, site: Site) -> None:
        """mbarrier.inval."""
        for spot, barrier in self._valid(address, lanes, site):
            barrier.count[spot.block] = 0

    def arrive(self, address, count, expected, drops: bool, lanes: Lanes, site: Site):
        """Arrive `count` times, after announcing bytes (None: none); returns each lane's state before."""
        count = lanes.expand(count).reshape(-1).astype(np.int64)
        announced = None if expected is None else lanes.expand(expected).reshape(-1).astype(np.int64)
        state = np.zeros(lanes.count, np.uint64)
        for spot, barrier in self._valid(address, lanes, site):
            here = count[spot.place]
            if (here < 1).any() or (here > COUNT_LIMIT).any():
                raise self.fault(site, spot, (here < 1) | (here > COUNT_LIMIT), lambda i, c=here: (
                    f"it arrives {int(c[i])} times; that must be 1 to {COUNT_LIMIT}"
                ))  # fmt: skip
            if announced is not None:
                self._expect(barrier, spot, announced[spot.place], site)
            self.batch.observations.arrive(barrier, spot)
            state[spot.place] = self._arrive(barrier, spot, here, drops, site)
        return state.reshape(lanes.shape)

    def expect(self, address, size, lanes: Lanes, site: Site, sign: int = 1) -> None:
        """mbarrier.expect_tx; with sign -1, mbarrier.complete_tx."""
        size = sign * lanes.expand(size).reshape(-1).astype(np.int64)
        for spot, barrier in self._valid(address, lanes, site):
            self._expect(barrier, spot, size[spot.place], site)
            self._complete(barrier, np.unique(spot.block))

    def arrive_behind_copies(self, address, counted: bool, lanes: Lanes, site: Site) -> None:
        """cp.async.mbarrier.arrive: arrive when the thread's cp.async so far have; counted: as one of those expected.

        Otherwise the arrival is one more than was expected.
        """
        for spot, barrier in self._valid(address, lanes, site):
            if not counted:
                np.add.at(barrier.pending, spot.block, 1)
            number = self.batch.copies.issued
            self._behind.append((barrier, number, spot, site))

    def _bring(self, barrier: MBarrier, blocks: np.ndarray) -> None:
        """Let arrive what a barrier counts, in some blocks."""
        self.batch.bulk.deliver(barrier, blocks)
        behind, self._behind = self._behind, []
        for one, number, spot, site in behind:
            now = np.isin(spot.block, blocks) & (one is barrier)
            if not now.all():
                self._behind.append((one, number, spot.part(~now), site))
            if now.any():
                some = spot.part(now)
                self.batch.copies.arrive_until(number, some.lanes.mask())
                self.batch.observations.arrive(barrier, some)
                self._arrive(barrier, some, np.ones(some.block.size, np.int64), False, site)

    @staticmethod
    def pending_count(state):
        """mbarrier.pending_count: the arrivals that were missing before the one that gave this state."""
        return (state & np.uint64(COUNT_LIMIT)).astype(np.uint32)

    # --- counting --------------------------------------------------------------------------------------------------

    def _expect(self, barrier: MBarrier, spot: Spot, size: np.ndarray, site: Site) -> None:
        np.add.at(barrier.expected, spot.block, size)
        self.progress += 1
        over = np.abs(barrier.expected[spot.block]) > COUNT_LIMIT
        if over.any():
            raise self.fault(site, spot, over, lambda _: (
                f"more than {COUNT_LIMIT} bytes are on their way to {barrier}: its counter overflows"
            ))  # fmt: skip

    def _arrive(self, barrier: MBarrier, spot: Spot, count: np.ndarray, drops: bool, site: Site) -> np.ndarray:
        """Count arrivals, lane after lane where a phase may end among them; returns the states before."""
        self.progress += 1
        blocks = self.batch.universe.blocks
        total = np.bincount(spot.block, count, blocks).astype(np.int64)
        state = np.zeros(count.size, np.int64)
        order = np.argsort(spot.block, kind="stable")
        whole = barrier.pending >= total
        if whole.all():
            before = np.zeros(count.size, np.int64)  # arrivals of this set in the same block that come earlier
            sums = np.cumsum(count[order]) - count[order]
            starts = np.searchsorted(spot.block[order], spot.block[order], "left")
            before[order] = sums - sums[starts]
            state = barrier.phase[spot.block] << _COUNT_BITS | (barrier.pending[spot.block] - before)
            barrier.pending -= total
            if drops:
                barrier.count -= total
            self._complete(barrier, np.flatnonzero(total))
            return state.astype(np.uint64)
        for lane in order.tolist():
            block, times = int(spot.block[lane]), int(count[lane])
            if times > barrier.pending[block]:
                few = np.arange(count.size) == lane
                raise self.fault(site, spot, few, lambda _, b=block: (
                    f"{barrier} (phase {barrier.phase[b]}) waits for {plural(int(barrier.pending[b]), 'arrival')} of "
                    f"{int(barrier.count[b])} and {int(barrier.expected[b])} bytes: one arrival too many"
                ))  # fmt: skip
            state[lane] = barrier.phase[block] << _COUNT_BITS | barrier.pending[block]
            barrier.pending[block] -= times
            if drops:
                barrier.count[block] -= times
            self._complete(barrier, np.array([block]))
        return state.astype(np.uint64)

    def landed(self, barrier: MBarrier, blocks: np.ndarray, size: int) -> None:
        """Count bytes that an asynchronous copy has brought."""
        self.progress += 1
        np.subtract.at(barrier.expected, blocks, size)
        self._complete(barrier, np.unique(blocks))

    def _complete(self, barrier: MBarrier, blocks: np.ndarray) -> None:
        """End the phase where nothing is missing any more, and let go who waits for that."""
        ready = blocks[(barrier.pending[blocks] == 0) & (barrier.expected[blocks] == 0) & (barrier.count[blocks] > 0)]
        if not ready.size:
            return
        barrier.phase[ready] += 1
        barrier.pending[ready] = barrier.count[ready]
        self.batch.observations.completed(barrier, ready)
        self._wake(barrier)

    # --- waiting ---------------------------------------------------------------------------------------------------

    def reach(self, block: Block, lanes: Lanes) -> None:
        """Park the lanes whose phase is not complete at the try_wait or test_wait that ends a block."""
        instruction, target = block.last, block.targets[0]
        register, address, wanted = instruction.operands[:3]
        site = self.batch.plan.code.waits[block.index]
        whole = "parity" not in instruction.modifiers
        wanted = self.batch.operand(wanted, lanes)
        wanted = lanes.expand(wanted).reshape(-1).astype(np.int64)
        wanted = wanted >> _COUNT_BITS if whole else wanted & 1
        spot_address = (self.batch.operand(address.base, lanes), address.offset, _space(instruction.modifiers))
        positions = lanes.positions()
        found = []
        for spot, barrier in self._valid(spot_address, lanes, site):
            found.append(
                Waiting(barrier, positions[spot.place], spot.block, spot.thread, wanted[spot.place], whole, target,
                         register.name if register is not None else None, site)
            )  # fmt: skip
            late = ~found[-1].done()
            if late.any():
                self._bring(barrier, np.unique(spot.block[late]))
        if all(one.done().all() for one in found):
            for one in found:
                self.batch.observations.passed(one.barrier, one.thread, one.block)
            self.batch.resolve(register, True, lanes)
            self.batch.go(target, lanes)
            return
        self.waiting += found
        for one in found:
            self._wake(one.barrier)

    def _wake(self, barrier: MBarrier) -> None:
        still = []
        for one in self.waiting:
            done = one.done() if one.barrier is barrier else np.zeros(1, bool)
            if done.any():
                self._release(one.part(done), True)
            if not done.any():
                still.append(one)
            elif not done.all():
                still.append(one.part(~done))
        self.waiting = still

    def _release(self, some: Waiting, complete: bool) -> None:
        mask = np.zeros(self.batch.universe.size, bool)
        mask[some.position] = True
        lanes = self.batch.universe.from_mask(mask.reshape(self.batch.universe.threads, self.batch.universe.blocks))
        if complete:
            self.batch.observations.passed(some.barrier, some.thread, some.block)
        if some.register is not None:
            self.batch.resolve_name(some.register, complete, lanes)
        self.batch.go(some.target, lanes)

    def idle(self) -> bool:
        """Nobody can run: bring what is on its way, else let every wait give up once; False if that is no help."""
        before = self.progress
        for one in list(self.waiting):
            self._bring(one.barrier, np.unique(one.block))
        if self.progress > before:
            return True
        if self._gave_up_at != self.progress:
            self._gave_up_at, self._gave_up = self.progress, {}
        waiting, self.waiting = self.waiting, []
        helped = False
        for one in waiting:
            known = self._gave_up.setdefault(one.site.number, np.zeros(self.batch.universe.size, bool))
            new = ~known[one.position]
            known[one.position] = True
            if not new.all():
                self.waiting.append(one.part(~new))
            if new.any():
                self._release(one.part(new), False)
                helped = True
        return helped

    def stuck(self) -> None:
        """Raise the deadlock of those that wait."""
        raise deadlock(self.batch, self.waiting)

    # --- finding them ----------------------------------------------------------------------------------------------

    def _spots(self, address, lanes: Lanes, site: Site) -> Iterator[Spot]:
        memory = self.batch.memory
        value, offset, space = address
        where = memory.locate(value, offset, space, lanes, site)
        for _, part in where.parts if isinstance(where, Scattered) else [(None, where)]:
            if part.region.space != "shared":
                raise memory.fault(
                    "out of bounds", site, np.ones(part.lanes.shape, bool), part.lanes,
                    lambda _, r=part.region: f"an mbarrier lies in shared memory, and this address is in {r.name}",
                )  # fmt: skip
            memory.check(part, 0, BYTES, site)
            if memory.trace is not None:
                memory.trace.access(memory, part, 0, site)
        yield from spots(where, lanes)

    def spots(self, address, lanes: Lanes, site: Site) -> Iterator[tuple[Spot, MBarrier]]:
        """Yield the barriers that lanes name for an asynchronous copy, which is no access of theirs."""
        value, offset, space = address
        for spot in spots(self.batch.memory.locate(value, offset, space, lanes, site), lanes):
            yield spot, self.checked(spot, site)

    def at(self, region, offset: int) -> MBarrier:
        """Return the barrier of a place, made when it is first met."""
        key = (id(region), offset)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = MBarrier(len(self._known), region, offset, self.batch.universe.blocks)
            self.all.append(found)
        return found

    def _at(self, spot: Spot) -> MBarrier:
        return self.at(spot.region, spot.offset)

    def _valid(self, address, lanes: Lanes, site: Site) -> Iterator[tuple[Spot, MBarrier]]:
        for spot in self._spots(address, lanes, site):
            yield spot, self.checked(spot, site)

    def checked(self, spot: Spot, site: Site) -> MBarrier:
        """Return the barrier of a spot; raises where it has never been initialised."""
        barrier = self._at(spot)
        unknown = barrier.count[spot.block] == 0
        if unknown.any():
            raise self.fault(site, spot, unknown, lambda _: (
                f"{barrier} has not been initialised, or was invalidated: mbarrier.init, a fence, and a barrier of the "
                "block must come first"
            ))  # fmt: skip
        return barrier

    def fault(self, site: Site, spot: Spot, bad: np.ndarray, tail) -> EmulatorFault:
        """Build the fault of some lanes of a spot."""
        return fault_of(self.batch, "mbarrier", site, spot, bad, tail)


def _space(modifiers: tuple[str, ...]) -> str:
    return "shared" if any(word.startswith("shared") for word in modifiers) else "generic"


def operand_value(operand, register):
    """Return an operand at the end of a block: a literal, or what `register(name)` gives."""
    return np.uint64(operand.value & (1 << 64) - 1) if isinstance(operand, Imm) else register(operand.name)
