"""cp.async: copies from global to shared memory that arrive when the thread that issued them has waited.

The bytes are read at once and kept; `wait` writes those groups of the thread that it waits for. Until then shared
memory holds what it held before (or poison), as it may on a GPU, so that a forgotten wait gives a wrong result. Groups
are counted per thread, as on the GPU: a copy belongs to the group that its thread commits next.

For a `Trace`, a copy writes twice: when it is issued, from which moment it may overwrite what others still read, and
when it has arrived, from which moment a barrier hands it to other threads. An access in between is reported as
"cp.async without its wait", with both lines.

Source: PTX ISA, "Data Movement and Conversion Instructions: cp.async".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .address_space import Site, triple
from .faults import Race
from .lanes import Lanes
from .located import Located, Scattered
from .races import RaceDetector

_U1, _U4 = np.dtype(np.uint8), np.dtype(np.uint32)
_NOBODY = -1
KIND = "cp.async without its wait"


@dataclass(slots=True)
class _Copy:
    """One cp.async of a set of lanes, on its way; `group` is one number, or one per lane."""

    lanes: Lanes
    address: object
    offset: int
    space: str
    values: tuple
    group: object
    site: Site
    number: int


class AsyncCopies:
    """The copies on their way of one batch."""

    def __init__(self, batch):
        self.batch = batch
        self.committed: int | np.ndarray = 0  # groups that each thread has committed; one number while all agree
        self.waiting: list[_Copy] = []
        self.issued = 0
        self._in_flight: dict[int, np.ndarray] = {}  # bank -> per word: thread and site of a copy on its way

    # --- what translated code calls --------------------------------------------------------------------------------

    def issue(self, target, source, size, width: int, lanes: Lanes, load: Site, store: Site) -> None:
        """Read the source now; target and source are (address, offset, space), size the bytes that are not zeros."""
        address, offset, space = target
        memory = self.batch.memory
        values = self._read(source, size, width, lanes, load)
        where = memory.locate(address, offset, space, lanes, store)
        for _, part in _parts(where):
            memory.check(part, 0, width, store)
            if memory.trace is not None:
                memory.trace.access(memory, part, 0, store)
                self._note(part, store, True)
        group = self.committed
        if isinstance(group, np.ndarray):
            group = lanes.expand(lanes.gather(group)).copy()
        # Translated code may count its address on in place: the copy keeps where it was to go.
        address = address.copy() if isinstance(address, np.ndarray) else address
        self.issued += 1
        self.waiting.append(_Copy(lanes, address, offset, space, values, group, store, self.issued))

    def commit(self, lanes: Lanes) -> None:
        """Close the group of each lane."""
        if lanes.is_full:
            self.committed = self.committed + 1
            return
        if not isinstance(self.committed, np.ndarray):
            self.committed = np.full((lanes.universe.threads, lanes.universe.blocks), self.committed, np.int64)
        self.committed = self.committed + lanes.mask()

    def wait(self, newest: int, lanes: Lanes) -> None:
        """Let every group of these lanes arrive but the `newest` ones."""
        still = []
        for copy in self.waiting:
            if lanes.is_full and not isinstance(self.committed, np.ndarray) and not isinstance(copy.group, np.ndarray):
                if copy.group < self.committed - newest:
                    self._arrive(copy)
                else:
                    still.append(copy)
                continue
            rest = self._arrive_for(copy, newest, lanes)
            if rest is not None:
                still.append(rest)
        self.waiting = still

    def arrive_until(self, number: int, mask: np.ndarray) -> None:
        """Let every copy arrive that some threads, a (T, B) mask, had issued when `number` copies were."""
        still = []
        for copy in self.waiting:
            rest: _Copy | None = copy
            if copy.number <= number:
                rest = self._arrive_where(copy, mask.reshape(-1)[copy.lanes.positions()])
            if rest is not None:
                still.append(rest)
        self.waiting = still

    # --- issuing and arriving --------------------------------------------------------------------------------------

    def _read(self, source, size, width: int, lanes: Lanes, site: Site) -> tuple:
        memory = self.batch.memory
        address, offset, space = source
        if size is None:
            return memory.load(memory.locate(address, offset, space, lanes, site), 0, _U4, width // 4, site)
        size = lanes.expand(size).reshape(-1)
        address = lanes.expand(address).reshape(-1)
        found = np.zeros((size.size, width), np.uint8)
        positions = lanes.positions()
        for count in np.unique(size).tolist():
            if count > width:
                raise memory.fault(
                    "out of bounds",
                    site,
                    (size == count).reshape(lanes.shape),
                    lanes,
                    lambda _, count=count: f"asks for {count} bytes of a copy of {width}",
                )
            chosen = np.flatnonzero(size == count)
            # A copy of no bytes is not an access: its address may point anywhere.
            if not count:
                continue
            part = lanes.universe.flat(positions[chosen])
            where = memory.locate(address[chosen], offset, space, part, site)
            found[chosen, :count] = self._read_some(where, count, width, site)
        words = found.view(np.uint32)
        return tuple(words[:, number].reshape(lanes.shape) for number in range(width // 4))

    def _read_some(self, where, count: int, width: int, site: Site) -> np.ndarray:
        """Return (lanes, count) bytes; the source must be aligned to the whole width."""
        memory = self.batch.memory
        if count == width:
            values = memory.load(where, 0, _U4, width // 4, site)
            return np.stack([where.lanes.expand(value) for value in values], axis=1).view(np.uint8)
        for _, part in _parts(where):
            misplaced = (part.lanes.expand(part.offset) + part.region.base) % width != 0
            if misplaced.any():
                raise memory.fault(
                    "misaligned", site, misplaced, part.lanes, lambda _: f"the address must be a multiple of {width}"
                )
        values = [memory.load_one(where, number, _U1, _byte_of(site)) for number in range(count)]
        return np.stack([where.lanes.expand(value) for value in values], axis=1)

    def _arrive(self, copy: _Copy) -> None:
        memory = self.batch.memory
        where = memory.locate(copy.address, copy.offset, copy.space, copy.lanes, copy.site)
        trace, memory.trace = memory.trace, None  # it was counted when it was issued
        try:
            memory.store(where, 0, copy.values, _U4, copy.site)
        finally:
            memory.trace = trace
        if trace is not None:
            for _, part in _parts(where):
                self._note(part, copy.site, False)

    def _arrive_for(self, copy: _Copy, newest: int, lanes: Lanes) -> _Copy | None:
        """Let a copy arrive for some of its lanes; returns what is left of it."""
        group = copy.lanes.expand(copy.group).reshape(-1)
        committed = self.committed
        if isinstance(committed, np.ndarray):
            committed = committed.reshape(-1)[copy.lanes.positions()]
        done = lanes.mask().reshape(-1)[copy.lanes.positions()] & (group < committed - newest)
        return self._arrive_where(copy, done)

    def _arrive_where(self, copy: _Copy, done: np.ndarray) -> _Copy | None:
        """Let a copy arrive where a mask of its lanes says so; returns what is left of it."""
        if done.all():
            self._arrive(copy)
            return None
        if not done.any():
            return copy
        group = copy.lanes.expand(copy.group).reshape(-1)
        self._arrive(_part_of(copy, done, group))
        return _part_of(copy, ~done, group)

    # --- for a trace -----------------------------------------------------------------------------------------------

    def _detector(self) -> RaceDetector | None:
        return self.batch.trace.detector if self.batch.trace is not None else None

    def _note(self, at: Located, site: Site, departs: bool) -> None:
        """Mark words as on their way, or as written by the thread now."""
        detector = self._detector()
        if detector is None or not at.region.shared:
            return
        found = self._in_flight.get(id(at.region))
        if found is None:
            found = self._in_flight[id(at.region)] = np.full((2, at.region.words.size), _NOBODY, np.int32)
        thread, block, words = _words(at, 0, site.width)
        for where in words:
            found[0, where] = thread if departs else _NOBODY
            found[1, where] = site.number
        if not departs:
            detector.arrived(at, thread, block, site)

    def check(self, at: Located, delta: int, site: Site) -> None:
        """Report an access of words whose copy is on its way."""
        found = self._in_flight.get(id(at.region))
        if found is None:
            return
        thread, block, words = _words(at, delta, site.width)
        for where in words:
            owner = found[0, where]
            early = np.flatnonzero(owner != _NOBODY)
            if early.size:
                first = early[np.lexsort((thread[early], block[early]))[0]]
                other = self.batch.plan.code.sites[int(found[1, where[first]])]
                offset = int(at.lanes.expand(at.offset).reshape(-1)[first]) + delta
                self._report(at, site, other, int(block[first]), int(thread[first]), int(owner[first]), offset)
                return

    def _report(self, at: Located, site: Site, other: Site, block: int, thread: int, owner: int, offset: int) -> None:
        detector = self._detector()
        if not detector.first_time((KIND, "shared", site.line, other.line)):
            return
        block_index, index = self.batch.coordinates(block, thread)
        owner_index = self.batch.coordinates(block, owner)[1]
        verb = "reads" if site.verb == "load" else "writes"
        sentence = (
            f"{KIND}: block {triple(block_index)} thread {triple(index)} {verb} byte {offset} of {at.region.name} at "
            f"line {site.line}, where the copy that thread {triple(owner_index)} issued at line {other.line} may not "
            "have arrived: put cp.async.wait_group (or __pipeline_wait_prior) between them, and __syncthreads() behind "
            "it for the other threads"
        )
        self.batch.trace.races.append(
            Race(KIND, "shared", site.line, other.line, block_index, (index, owner_index), sentence)
        )


def _parts(where) -> list:
    return where.parts if isinstance(where, Scattered) else [(None, where)]


def _byte_of(site: Site) -> Site:
    return Site(site.number, site.line, site.name, site.space, site.verb, 1)


def _words(at: Located, delta: int, width: int):
    """Return thread and block of each lane, and for every word of its access, where that lies in the bank."""
    lanes = at.lanes
    thread, block = lanes.expand(lanes.thread).reshape(-1), lanes.expand(lanes.block).reshape(-1)
    offset = lanes.expand(at.offset).reshape(-1) + delta
    count = -(-width // 4)
    return thread, block, [((offset >> 2) + word) * at.region.owners + block for word in range(count)]


def _part_of(copy: _Copy, mask: np.ndarray, group: np.ndarray) -> _Copy:
    lanes = copy.lanes.universe.flat(copy.lanes.positions()[mask])
    address, *values = (copy.lanes.expand(value).reshape(-1)[mask] for value in (copy.address, *copy.values))
    return _Copy(lanes, address, copy.offset, copy.space, tuple(values), group[mask], copy.site, copy.number)
