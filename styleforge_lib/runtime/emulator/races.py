"""Races and unwritten reads, found with shadow memory.

For every granule of shared memory the detector remembers who wrote it last and up to three readers (the first, another
thread of its warp, one of another warp), each with the barrier epoch of its block and the __syncwarp epoch of its warp.
Two accesses are ordered if they are one thread's, if a barrier of the block lies between them, or if both are in one
warp with a __syncwarp between them; two that are not, one of which writes, are a race. Atomics do not race with
atomics.

Of global memory it remembers the same of the arrays that the kernel writes. Two threads of different blocks are ordered
if the first one's block has published (a fence) since, and the second one's has looked (an atomic or a volatile load);
`shared_globals` keeps that. Writing the value that is there already harms nobody.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .address_space import Site, triple
from .alike import AlikeBlocks
from .faults import Race
from .located import Located
from .memory import Memory
from .shadows import EPOCH, NOBODY, SITE_MASK, WARP_EPOCH, WARP_MASK, Shadow, packed
from .shared_globals import Placement, Publications, is_strong, written_arrays

_VERBS = {
    "read after write": ("reads", "wrote"),
    "write after read": ("writes", "read"),
    "write after write": ("writes", "wrote"),
}


class _Writes(NamedTuple):
    """What lanes write: values, and where: words of a bank, or bytes of a global array."""

    value: np.ndarray
    place: np.ndarray


def _same_as_memory(at: Located, writes: _Writes) -> np.ndarray:
    """Whether the values are already there: writing what is there anyway harms nobody."""
    value, place = writes
    width = value.dtype.itemsize
    if at.region.banked:
        words = at.region.words.reshape(-1)
        known = width == 4 and words.size
        return words[np.minimum(place, words.size - 1)] == value if known else np.zeros(value.shape, bool)
    data, left_out = at.region.typed(np.dtype(f"u{width}"))
    return data[np.minimum((place - left_out) // width, data.size - 1)] == value


class RaceDetector:
    """The shadow memory of one launch; shared memory's is renewed with every batch."""

    def __init__(self, plan, launch, trace):
        self.plan, self.launch, self.trace = plan, launch, trace
        self.threads = launch.threads
        # The smallest access decides how finely a space is looked at.
        self.granules = {
            space: min([4, *(s.width for s in plan.code.sites if s.space in (space, "generic") and s.width)])
            for space in ("shared", "global")
        }
        self.strong = np.array([is_strong(site) for site in plan.code.sites] or [False])
        self.batch = None
        self.shared: dict[int, Shadow] = {}
        self.written: dict[int, np.ndarray] = {}
        self.alike: AlikeBlocks | None = None
        self.placement = Placement(launch.regions)
        watched = written_arrays(plan, launch) & self.placement.of.keys()
        self.watched = {self.placement.of[base][0] for base in watched}
        self.globals: dict[int, Shadow] = {}
        self.publications = Publications(launch.grid[0] * launch.grid[1] * launch.grid[2])
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
        self.alike = AlikeBlocks(self, self.granules["shared"])
        blocks = batch.universe.blocks
        self.epoch = np.zeros(blocks, np.int32)
        self.warp_epoch = np.zeros((-(-self.threads // 32), blocks), np.int32)

    def block_barrier(self, complete: np.ndarray | None) -> None:
        """Note that a barrier of whole blocks has opened."""
        if complete is None:
            self.epoch += 1
        else:
            self.epoch[complete] += 1
        self.batch.observations.barrier(complete)

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
        if space == "shared":
            self.batch.copies.check(at, delta, site)
            self.batch.observations.check(at, delta, site)
            if self.alike.passes(at, delta, site, values):
                return
        if space in ("shared", "local"):
            self._unwritten(memory, at, delta, site)
        if space not in ("shared", "global"):
            return
        thread = lanes.expand(lanes.thread).reshape(-1)
        block = lanes.expand(lanes.block).reshape(-1)
        offset = np.broadcast_to(np.asarray(at.offset + delta), lanes.shape).reshape(-1)
        granule = self.granules[space]
        if space == "shared":
            shadow, start = self._shared_shadow(at.region), 0
        else:
            self.publications.access(site, self.batch.block_numbers[block])
            shadow, start = self._global_shadow(at)
            if shadow is None:
                return
        for step in range(max(1, site.width // granule)):
            where = (offset + (start + step * granule)) // granule
            where = where * at.region.owners + block if space == "shared" else where
            value = self._value(values, step, granule, site, lanes)
            same = None
            if value is not None:
                width = site.width // len(values)
                same = _Writes(value, where if space == "shared" else offset + step * granule // width * width)
            self._judge(shadow, where, thread, block, space, at, site, offset, same)

    def fence(self, lanes) -> None:
        """Note a fence for the whole GPU."""
        self.publications.fence(self.batch.block_numbers[lanes.block.reshape(-1)])

    def _shared_shadow(self, region) -> Shadow:
        self.alike.give_up(region)
        shadow = self.shared.get(id(region))
        if shadow is None:
            size = -(-region.size // self.granules["shared"]) * region.owners
            shadow = self.shared[id(region)] = Shadow(size, "shared")
        return shadow

    def asynchronous(self, region, words: np.ndarray, thread, block, site: Site) -> None:
        """Judge what the asynchronous proxy does with words of shared memory on a thread's behalf.

        `observations` remembers it: here, words that are written are forgotten.
        """
        shadow, granule = self._shared_shadow(region), self.granules["shared"]
        at = Located(region, None, 0, 0, 0, 0)
        for part in range(0, 4, granule):
            offset = words * 4 + part
            where = offset // granule * region.owners + block
            self._judge(shadow, where, thread, block, "shared", at, site, offset, None, remembered=False)
            if site.verb != "load":
                for actor in (shadow.writer, *shadow.readers):
                    actor.next[where] = 0

    def written_words(self, region) -> np.ndarray:
        """Return which words of a shared or local variable have been written."""
        self.alike.give_up(region)
        found = self.written.get(id(region))
        if found is None:
            found = self.written[id(region)] = np.zeros(region.words.size, bool)
        return found

    def _global_shadow(self, at: Located) -> tuple[Shadow | None, int]:
        """Return the shadow of the piece of memory that an array lies in, and where in it the array begins."""
        number, start = self.placement.of[at.region.base]
        if number not in self.watched:
            return None, start
        shadow = self.globals.get(number)
        if shadow is None:
            size = self.placement.sizes[number] // self.granules["global"] + 1
            shadow = self.globals[number] = Shadow(size, "global")
        return shadow, start

    def arrived(self, at: Located, thread, block, site: Site) -> None:
        """Note that an asynchronous copy into shared memory has arrived for the threads that issued it."""
        if self.alike.arrived(at, site):
            return
        shadow, granule = self._shared_shadow(at.region), self.granules["shared"]
        offset = at.lanes.expand(at.offset).reshape(-1)
        record = packed(site.number, self.epoch[block], self.warp_epoch[thread >> 5, block])
        for step in range(site.width // granule):
            shadow.writer.put((offset + step * granule) // granule * at.region.owners + block, thread, record, None)

    @staticmethod
    def _value(values, step: int, granule: int, site: Site, lanes):
        """Return what each lane writes at a granule, to tell equal writes; None where it cannot be told cheaply."""
        if not values or site.verb != "store":
            return None
        width = site.width // len(values)
        value = lanes.expand(values[min(step * granule // width, len(values) - 1)]).reshape(-1)
        return np.ascontiguousarray(value).view(f"u{value.dtype.itemsize}")

    def _judge(
        self, shadow: Shadow, where, thread, block, space: str, at, site: Site, offset, value, remembered: bool = True
    ) -> None:
        writes, atomic, everywhere = site.verb != "load", site.verb == "atomic", space == "global"
        grid_block = self.batch.block_numbers[block] if everywhere else None
        number = grid_block * self.threads + thread if everywhere else thread
        epoch, warp_epoch = self.epoch[block], self.warp_epoch[thread >> 5, block]
        actors = [("write after write" if writes else "read after write", shadow.writer)]
        if writes:
            actors += [("write after read", reader) for reader in shadow.readers]
        if everywhere and atomic:
            del actors[1:]  # a loop around atomicCAS looks before it writes
        for kind, actor in actors:
            record = actor.record[where]
            if not everywhere and not (record >> EPOCH >= epoch).any():
                continue  # the usual case: a barrier lies between
            other = actor.thread(where)
            bad = (other != NOBODY) & (other != number)
            if not bad.any():
                continue
            other_block, other_thread = divmod(other, self.threads) if everywhere else (None, other)
            same_block = other_block == grid_block if everywhere else np.ones(bad.shape, bool)
            ordered = same_block & (record >> EPOCH < epoch)
            ordered |= (
                same_block & (other_thread >> 5 == thread >> 5) & ((record >> WARP_EPOCH) & WARP_MASK < warp_epoch)
            )
            if everywhere:
                strong, was_strong = self.strong[site.number], self.strong[record & SITE_MASK]
                published = self.publications.ordered(other_block, actor.fences[where], grid_block)
                ordered |= (strong & was_strong) | ~same_block & (strong | was_strong | published)
            bad &= ~ordered
            if kind != "write after read" and atomic:
                bad &= ~shadow.atomic[where]
            if kind == "write after write" and value is not None and bad.any():
                bad &= ~_same_as_memory(at, value)
            if bad.any():
                self._report(kind, space, at, site, actor, where, bad, thread, block, other_thread, offset, same_block)
        if not remembered:
            return
        record, fences = packed(site.number, epoch, warp_epoch), None
        if everywhere:
            fences = self.publications.fences[grid_block]
        if writes:
            if value is not None:
                self._colliding(where, value.value, space, at, site, thread, block, offset)
            shadow.writer.put(where, number, record, fences)
            shadow.atomic[where] = atomic
        else:
            together = self._together if everywhere else None
            shadow.remember_readers(where, number, epoch, record, fences, together)

    def _together(self, one: np.ndarray, two: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whether threads of the grid are of one block, and of one warp."""
        (block, thread), (other_block, other_thread) = divmod(one, self.threads), divmod(two, self.threads)
        return block == other_block, (block == other_block) & (thread >> 5 == other_thread >> 5)

    def _colliding(self, where, value, space: str, at, site: Site, thread, block, offset) -> None:
        """Lanes of one instruction that write different values to one place."""
        lane = np.arange(where.size)
        last = np.empty(int(where.max()) + 1, np.int64)  # costs only what is touched
        last[where] = lane
        if np.array_equal(last[where], lane):
            return  # each has a place of its own
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
        sites = actor.record[where] & SITE_MASK
        for other_site in np.unique(sites[bad]).tolist():
            chosen = np.flatnonzero(bad & (sites == other_site))
            first = int(chosen[np.lexsort((thread[chosen], block[chosen]))[0]])
            if same_block[first]:
                other_block = int(self.batch.block_numbers[block[first]])
            else:
                other_block = int(actor.thread(where[first])) // self.threads
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
        where = f"thread {triple(other_thread_index)}"
        if other_index != block_index:
            where = f"block {triple(other_index)} {where}"
        same_warp = other_index == block_index and thread >> 5 == other_thread >> 5
        advice = (
            "blocks run in any order: split the work into two launches, or publish with __threadfence() and an atomic"
            if other_index != block_index
            else "put __syncwarp() or __syncthreads() between them"
            if same_warp
            else "put __syncthreads() between them"
        )
        sentence = (
            f"{space} race ({kind}) on {at.region.name}: block {triple(block_index)} thread {triple(thread_index)} "
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
        written = self.written_words(region)
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
