"""Races and unwritten reads, found with shadow memory.

For every granule of shared memory the detector remembers who wrote it last and up to three readers (the first, another
thread of its warp, one of another warp), each with the barrier epoch of its block and the __syncwarp epoch of its warp.
Two accesses are ordered if they are one thread's, if a barrier of the block lies between them, or if both are in one
warp with a __syncwarp between them; two that are not, one of which writes, are a race. Atomics do not race with
atomics.

Of global memory it remembers the last writer: two threads that write different values to one place, and reads of what
another thread of the same block has written, with no barrier between. Communication between blocks is not judged, nor
are their writes where the launch is cooperative: they can wait for each other.
"""

from __future__ import annotations

import numpy as np

from .faults import Race
from .memory import Located, Memory, Site, _triple

_NOBODY = -1
_WARP_EPOCH, _EPOCH = 20, 40  # where the epochs begin in a packed record; the site is below
_SITE_MASK, _WARP_MASK = (1 << 20) - 1, (1 << 20) - 1
_VERBS = {
    "read after write": ("reads", "wrote"),
    "write after read": ("writes", "read"),
    "write after write": ("writes", "wrote"),
}


class _Actor:
    """One remembered access per granule: the thread, and its site and epochs packed into one number."""

    __slots__ = ("record", "thread")

    def __init__(self, size: int):
        self.thread = np.full(size, _NOBODY, np.int64)
        self.record = np.zeros(size, np.int64)

    def put(self, where, thread, record) -> None:
        self.thread[where] = thread
        self.record[where] = record


def _packed(site: int, epoch: np.ndarray, warp_epoch: np.ndarray) -> np.ndarray:
    return (epoch.astype(np.int64) << _EPOCH) | (warp_epoch.astype(np.int64) << _WARP_EPOCH) | site


class _Shadow:
    """What is remembered of one variable."""

    def __init__(self, size: int, readers: bool):
        self.writer = _Actor(size)
        self.atomic = np.zeros(size, bool)
        self.readers = [_Actor(size) for _ in range(3)] if readers else []


class RaceDetector:
    """The shadow memory of one launch; shared memory's is renewed with every batch."""

    def __init__(self, plan, launch, trace):
        self.plan, self.launch, self.trace = plan, launch, trace
        self.threads = launch.threads
        widths = [s.width for s in plan.code.sites if s.space in ("shared", "generic") and s.width]
        self.granule = min([4, *widths])
        self.batch = None
        self.shared: dict[int, _Shadow] = {}
        self.written: dict[int, np.ndarray] = {}
        self.globals: dict[tuple[int, int], _Shadow] = {}
        self.epoch = np.zeros(0, np.int32)
        self.warp_epoch = np.zeros((0, 0), np.int32)
        self._seen: set[tuple] = set()

    # --- epochs ----------------------------------------------------------------------------------------------------

    def enter(self, batch) -> None:
        """Forget shared memory when a new batch begins."""
        if batch is self.batch:
            return
        self.batch = batch
        self.shared, self.written = {}, {}
        blocks = batch.universe.blocks
        self.epoch = np.zeros(blocks, np.int32)
        self.warp_epoch = np.zeros((-(-self.threads // 32), blocks), np.int32)

    def block_barrier(self, complete: np.ndarray | None) -> None:
        """Note that a barrier of whole blocks has opened."""
        if complete is None:
            self.epoch += 1
        else:
            self.epoch[complete] += 1

    def warp_barrier(self, lanes) -> None:
        """Return a __syncwarp has been passed."""
        thread, block = lanes.expand(lanes.thread).reshape(-1), lanes.expand(lanes.block).reshape(-1)
        mask = np.zeros(self.warp_epoch.shape, bool)
        mask[thread >> 5, block] = True
        self.warp_epoch += mask

    # --- accesses --------------------------------------------------------------------------------------------------

    def access(self, memory: Memory, at: Located, delta: int, site: Site, values: tuple | None) -> None:
        """Judge one memory instruction against what is remembered, then remember it."""
        space = at.region.space
        lanes = at.lanes
        if space in ("shared", "local"):
            self._unwritten(memory, at, delta, site)
        if space not in ("shared", "global"):
            return
        if space == "shared":
            self.batch.copies.check(at, delta, site)
        thread = lanes.expand(lanes.thread).reshape(-1)
        block = lanes.expand(lanes.block).reshape(-1)
        offset = np.broadcast_to(np.asarray(at.offset + delta), lanes.shape).reshape(-1)
        if space == "shared":
            shadow = self.shared.get(id(at.region))
            if shadow is None:
                size = -(-at.region.size // self.granule) * at.region.owners
                shadow = self.shared[id(at.region)] = _Shadow(size, True)
            granule = self.granule
        else:
            granule = min(site.width, 4)
            key = (at.region.base, granule)
            shadow = self.globals.get(key)
            if shadow is None:
                if site.verb == "load":
                    return
                shadow = self.globals[key] = _Shadow(-(-at.region.size // granule) + 1, False)
        for step in range(max(1, site.width // granule)):
            where = (offset + step * granule) // granule
            where = where * at.region.owners + block if space == "shared" else where
            value = self._value(values, step, granule, site, lanes)
            self._judge(shadow, where, thread, block, space, at, site, offset, value)

    def arrived(self, at: Located, thread, block, site: Site) -> None:
        """Note that an asynchronous copy into shared memory has arrived for the threads that issued it."""
        shadow, granule = self.shared[id(at.region)], self.granule
        offset = at.lanes.expand(at.offset).reshape(-1)
        record = _packed(site.number, self.epoch[block], self.warp_epoch[thread >> 5, block])
        for step in range(site.width // granule):
            shadow.writer.put((offset + step * granule) // granule * at.region.owners + block, thread, record)

    @staticmethod
    def _value(values, step: int, granule: int, site: Site, lanes):
        """Return what each lane writes at a granule, to tell equal writes; None where it cannot be told cheaply."""
        if not values or site.verb != "store":
            return None
        width = site.width // len(values)
        value = lanes.expand(values[min(step * granule // width, len(values) - 1)]).reshape(-1)
        return np.ascontiguousarray(value).view(f"u{value.dtype.itemsize}")

    def _judge(self, shadow: _Shadow, where, thread, block, space: str, at, site: Site, offset, value) -> None:
        writes, atomic = site.verb != "load", site.verb == "atomic"
        number = self.batch.block_numbers[block] * self.threads + thread if space == "global" else thread
        epoch, warp_epoch = self.epoch[block], self.warp_epoch[thread >> 5, block]
        actors = [("write after write" if writes else "read after write", shadow.writer)]
        if writes:
            actors += [("write after read", reader) for reader in shadow.readers]
        for kind, actor in actors:
            record = actor.record[where]
            if space == "shared" and not (record >> _EPOCH >= epoch).any():
                continue  # the usual case: a barrier lies between
            other = actor.thread[where]
            bad = (other != _NOBODY) & (other != number)
            if not bad.any():
                continue
            same_block = (
                np.ones(bad.shape, bool) if space == "shared" else other // self.threads == number // self.threads
            )
            other_thread = other if space == "shared" else other % self.threads
            ordered = same_block & (record >> _EPOCH < epoch)
            ordered |= (
                same_block & (other_thread >> 5 == thread >> 5) & ((record >> _WARP_EPOCH) & _WARP_MASK < warp_epoch)
            )
            bad &= ~ordered
            if space == "global" and (not writes or self.launch.cooperative):
                bad &= same_block  # between blocks a grid-wide barrier may lie
            if kind != "write after read" and atomic:
                bad &= ~shadow.atomic[where]
            if kind == "write after write" and value is not None and bad.any():
                bad &= ~self._same_as_memory(at, where, value)
            if bad.any():
                self._report(kind, space, at, site, actor, where, bad, thread, block, other_thread, offset, same_block)
        if writes:
            if value is not None:
                self._colliding(where, value, space, at, site, thread, block, offset)
            shadow.writer.put(where, number, _packed(site.number, epoch, warp_epoch))
            shadow.atomic[where] = atomic
        elif shadow.readers:
            self._remember_readers(shadow, where, thread, epoch, _packed(site.number, epoch, warp_epoch))

    @staticmethod
    def _same_as_memory(at: Located, where, value) -> np.ndarray:
        """Whether 4-byte values are already there: writing what is there anyway harms nobody."""
        if value.dtype.itemsize != 4:
            return np.zeros(value.shape, bool)
        if at.region.banked:
            words = at.region.words.reshape(-1)
            return words[np.minimum(where, words.size - 1)] == value if words.size else np.zeros(value.shape, bool)
        data, _ = at.region.typed(np.dtype(np.uint32))
        return data[np.minimum(where, data.size - 1)] == value

    @staticmethod
    def _remember_readers(shadow: _Shadow, where, thread, epoch, record) -> None:
        first, same_warp, other_warp = shadow.readers
        held = first.thread[where]
        free = (held == _NOBODY) | (held == thread) | (first.record[where] >> _EPOCH < epoch)
        if free.all():
            first.put(where, thread, record)
        else:
            first.put(where[free], thread[free], record[free])
        held = first.thread[where]
        rest = held != thread
        if not rest.any():
            return
        near = rest & (held >> 5 == thread >> 5)
        far = rest & ~near
        same_warp.put(where[near], thread[near], record[near])
        if far.any():
            other_warp.put(where[far], thread[far], record[far])

    def _colliding(self, where, value, space: str, at, site: Site, thread, block, offset) -> None:
        """Lanes of one instruction that write different values to one place."""
        order = np.argsort(where, kind="stable")
        same = (where[order][1:] == where[order][:-1]) & (value[order][1:] != value[order][:-1])
        if not same.any():
            return
        place = int(np.flatnonzero(same)[0])
        one, two = int(order[place]), int(order[place + 1])
        self._add("write after write", space, at, site.line, site.line, int(block[two]), int(thread[two]),
                  int(block[one]), int(thread[one]), int(offset[two]))  # fmt: skip

    # --- reports ---------------------------------------------------------------------------------------------------

    def _report(
        self, kind, space, at, site, actor, where, bad, thread, block, other_thread, offset, same_block
    ) -> None:
        sites = actor.record[where] & _SITE_MASK
        for other_site in np.unique(sites[bad]).tolist():
            chosen = np.flatnonzero(bad & (sites == other_site))
            first = int(chosen[np.lexsort((thread[chosen], block[chosen]))[0]])
            if same_block[first]:
                other_block = int(self.batch.block_numbers[block[first]])
            else:
                other_block = int(actor.thread[where[first]]) // self.threads
            self._add(kind, space, at, site.line, self.plan.code.sites[other_site].line, int(block[first]),
                      int(thread[first]), None, int(other_thread[first]), int(offset[first]), other_block)  # fmt: skip

    def _add(
        self, kind, space, at, line, other_line, block, thread, other_block, other_thread, offset, other_number=None
    ):
        if not self.first_time((kind, space, line, other_line)):
            return
        block_index, thread_index = self.batch.coordinates(block, thread)
        other_index, other_thread_index = self.batch.coordinates(
            other_block if other_block is not None else block, other_thread
        )
        if other_number is not None:
            from .schedule import _unravel

            other_index = _unravel(other_number, self.launch.grid)
        now, before = _VERBS[kind]
        where = f"thread {_triple(other_thread_index)}"
        if other_index != block_index:
            where = f"block {_triple(other_index)} {where}"
        same_warp = other_index == block_index and thread >> 5 == other_thread >> 5
        advice = (
            "blocks run in any order"
            if other_index != block_index
            else "put __syncwarp() or __syncthreads() between them"
            if same_warp
            else "put __syncthreads() between them"
        )
        sentence = (
            f"{space} race ({kind}) on {at.region.name}: block {_triple(block_index)} thread {_triple(thread_index)} "
            f"{now} byte {offset} at line {line}, which {where} {before} at line {other_line}; nothing orders the two: "
            f"{advice}"
        )
        self.trace.races.append(
            Race(kind, space, line, other_line, block_index, (thread_index, other_thread_index), sentence)
        )

    def first_time(self, key: tuple) -> bool:
        """Whether a finding is new; from now on it is not."""
        new = key not in self._seen
        self._seen.add(key)
        return new

    def _unwritten(self, memory: Memory, at: Located, delta: int, site: Site) -> None:
        """Mark what is written, and reports the first read of a line that meets what is not."""
        region, lanes = at.region, at.lanes
        written = self.written.get(id(region))
        if written is None:
            written = self.written[id(region)] = np.zeros(region.words.size, bool)
        offset = np.broadcast_to(np.asarray(at.offset + delta), lanes.shape)
        owner = np.broadcast_to(np.asarray(at.owner()), lanes.shape)
        bad = np.zeros(lanes.shape, bool)
        for step in range(max(1, -(-site.width // 4))):
            where = ((offset >> 2) + step) * region.owners + owner
            if site.verb in ("load", "atomic"):
                bad |= ~written[where]
            if site.verb != "load":
                written[where] = True
        key = ("unwritten", site.line)
        if site.verb == "store" or not bad.any() or key in self._seen:
            return
        self._seen.add(key)
        flat = offset.reshape(-1)
        self.trace.faults.append(
            memory.fault(
                "unwritten read",
                site,
                bad,
                lanes,
                lambda place: f"byte {int(flat[place])} of {region.size} in {region.name} has never been written",
            )
        )
