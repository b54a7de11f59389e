"""Who may see what the asynchronous proxy does, and when: findings for a `Trace`.

Bulk copies and wgmma read and write shared memory on their own. What orders them is kept here, word by word:

    bulk copy without its wait   a thread touches bytes on their way, or such whose mbarrier's phase it has not waited
                                 for, neither itself nor through a barrier or another mbarrier
    write after read             a word is overwritten while a product or a copy out of shared memory may still read it,
                                 or by another warpgroup than the one that has waited for it, with no barrier between
    read after write             a product or a copy reads what another thread wrote, with no barrier between
    missing proxy fence          it reads what a thread stored, and no fence.proxy.async came after the store

Without a trace nothing is kept: `Unobserved` takes every call and does nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .address_space import Site, triple
from .faults import EmulatorFault, Race

WAIT_KIND = "bulk copy without its wait"
FENCE_KIND = "missing proxy fence"
_NOBODY = -1
_WARPGROUP_SHIFT = 7


class Unobserved:
    """Takes what `Observations` takes, and forgets it."""

    def _nothing(self, *_) -> None:
        pass

    arrive = completed = passed = issued = landed = copied_out = read_out = multiplied = multiplied_now = _nothing
    fenced = barrier = check = _nothing


@dataclass(slots=True)
class _Copy:
    """A bulk copy into shared memory: who issued it, and the phase that says that it has arrived (None: not yet)."""

    site: Site
    thread: int
    barrier: object
    phase: int | None


@dataclass(slots=True)
class _Reader:
    """A product or a copy that reads shared memory on its own."""

    site: Site
    thread: int


class _Words:
    """What is remembered of each word of one shared variable, in every block."""

    def __init__(self, region):
        shape = region.words.size
        self.copy = np.full(shape, _NOBODY, np.int32)  # the bulk copy that brings or brought it
        self.reader = np.full(shape, _NOBODY, np.int32)  # who reads it on its own
        self.done_groups = np.zeros(shape, np.uint8)  # warpgroups that have read it, in ...
        self.done_reader = np.full(shape, _NOBODY, np.int32)
        self.done_epoch = np.full(shape, _NOBODY, np.int32)  # ... this epoch of the block's barriers
        self.writer = np.full(shape, _NOBODY, np.int32)  # thread of the last ordinary store
        self.writer_site = np.zeros(shape, np.int32)
        self.writer_fence = np.zeros(shape, np.int32)  # how many fences that thread had passed
        self.writer_epoch = np.zeros(shape, np.int32)


class Observations:
    """What the threads of one batch have seen."""

    def __init__(self, batch):
        self.batch = batch
        self.detector = batch.trace.detector
        shape = (batch.universe.threads, batch.universe.blocks)
        self.seen = np.zeros((0, *shape), np.int64)  # phases of each mbarrier that a thread knows to be over
        self.carried: list[np.ndarray] = []  # for each mbarrier, what those who arrived there had seen
        self.fences = np.zeros(shape, np.int32)
        self.clean_epoch = np.full(shape[1], _NOBODY, np.int32)
        self.copies: list[_Copy] = []
        self.readers: list[_Reader] = []
        self.regions: dict[int, _Words] = {}
        self._of_load: dict[tuple[int, int, int, int], int] = {}
        self._of_product: dict[int, int] = {}

    def _words(self, region) -> _Words:
        found = self.regions.get(id(region))
        if found is None:
            found = self.regions[id(region)] = _Words(region)
        return found

    # --- barriers --------------------------------------------------------------------------------------------------

    def _grow(self) -> None:
        more = len(self.batch.mbarriers.all) - self.seen.shape[0]
        if more > 0:
            self.seen = np.concatenate([self.seen, np.zeros((more, *self.seen.shape[1:]), np.int64)])
            blocks = self.seen.shape[2]
            self.carried += [np.zeros((0, blocks), np.int64) for _ in range(more)]
            self.carried = [
                np.concatenate([one, np.zeros((self.seen.shape[0] - one.shape[0], blocks), np.int64)])
                for one in self.carried
            ]

    def arrive(self, barrier, spot) -> None:
        """Note that threads arrive at an mbarrier: who waits there will know what they know."""
        self._grow()
        np.maximum.at(self.carried[barrier.number].T, spot.block, self.seen[:, spot.thread, spot.home].T)

    def completed(self, barrier, blocks: np.ndarray) -> None:
        """Order what came before a phase's end and what comes after it, as a barrier of the block does."""
        mask = np.zeros(self.batch.universe.blocks, bool)
        mask[blocks] = True
        size = self.batch.clusters.size
        if size > 1:
            mask = np.repeat(mask.reshape(-1, size).any(axis=1), size)
        self.detector.epoch[mask] += 1

    def passed(self, barrier, thread: np.ndarray, block: np.ndarray) -> None:
        """Note that threads have waited for an mbarrier."""
        self._grow()
        known = np.maximum(self.seen[:, thread, block], self.carried[barrier.number][:, block])
        known[barrier.number] = np.maximum(known[barrier.number], barrier.phase[block])
        self.seen[:, thread, block] = known

    def barrier(self, complete: np.ndarray | None) -> None:
        """Note that a barrier of whole blocks has opened: everybody knows what one knows."""
        where = slice(None) if complete is None else complete
        if self.seen.shape[0]:
            self.seen[:, :, where] = self.seen[:, :, where].max(axis=1, keepdims=True)

    def fenced(self, lanes) -> None:
        """fence.proxy.async."""
        mask = lanes.mask()
        self.fences += mask
        here = mask.any(axis=0)
        self.clean_epoch[here] = np.maximum(self.clean_epoch[here], self.detector.epoch[here])

    # --- bulk copies into shared memory ----------------------------------------------------------------------------

    def issued(self, load, block: int, thread: int, site: Site) -> None:
        """Note that a thread has issued a copy."""
        number = len(self.copies)
        self.copies.append(_Copy(site, thread, load.barrier, None))
        where = load.words * load.region.owners + block
        threads, blocks = np.full(where.size, thread), np.full(where.size, block)
        self._overwritten(load.region, where, threads, blocks, site)
        self.detector.asynchronous(load.region, load.words, threads, blocks, site)
        words = self._words(load.region)
        words.copy[where] = number
        words.writer[where] = _NOBODY
        words.done_groups[where] = 0
        self._of_load[load.number, id(load.region), int(load.words[0]) if load.words.size else 0, block] = number

    def landed(self, load) -> None:
        """Note that the bytes of a copy are there; who waits for the phase may use them."""
        for block, owner in zip(load.block.tolist(), load.barrier_block.tolist(), strict=True):
            first = int(load.words[0]) if load.words.size else 0
            number = self._of_load.pop((load.number, id(load.region), first, block))
            self.copies[number].phase = int(load.barrier.phase[owner]) + 1
            self.detector.written_words(load.region)[load.words * load.region.owners + block] = True

    # --- what ordinary instructions touch --------------------------------------------------------------------------

    def check(self, at, delta: int, site: Site) -> None:
        """Judge an access of shared memory, and remember a store."""
        words = self._words(at.region)
        lanes = at.lanes
        thread, block = lanes.expand(lanes.thread).reshape(-1), lanes.expand(lanes.block).reshape(-1)
        offset = np.broadcast_to(np.asarray(at.offset + delta), lanes.shape).reshape(-1)
        for step in range(-(-max(site.width, 1) // 4)):
            where = ((offset >> 2) + step) * at.region.owners + block
            self._arrived(at.region, words, where, thread, block, site)
            if site.verb == "load":
                continue
            self._overwritten(at.region, where, thread, block, site)
            words.copy[where] = _NOBODY
            if site.verb == "store":
                words.writer[where], words.writer_site[where] = thread, site.number
                words.writer_fence[where] = self.fences[thread, block]
                words.writer_epoch[where] = self.detector.epoch[block]

    def _arrived(self, region, words: _Words, where, thread, block, site: Site) -> None:
        """Report who touches what a bulk copy brings, and does not know that it is there."""
        number = words.copy[where]
        if (number == _NOBODY).all():
            return
        for one in np.unique(number[number != _NOBODY]).tolist():
            copy, mine = self.copies[one], number == one
            bad = mine
            if copy.phase is not None:
                bad = mine & (self.seen[copy.barrier.number, thread, block] < copy.phase)
            if bad.any():
                verb = "reads" if site.verb == "load" else "writes"
                self._report(
                    WAIT_KIND, region, where, bad, thread, block, site, copy.site, copy.thread,
                    f"{verb} {{place}} at line {site.line}, where the copy that thread {{other}} issued at line "
                    f"{copy.site.line} may not have arrived: wait for its mbarrier first, or have a barrier of the "
                    "block behind another thread's wait",
                )  # fmt: skip

    def _overwritten(self, region, where, thread, block, site: Site) -> None:
        """Report who writes what is still being read."""
        words = self._words(region)
        number = words.reader[where]
        for one in np.unique(number[number != _NOBODY]).tolist():
            reader = self.readers[one]
            self._report(
                "write after read", region, where, number == one, thread, block, site, reader.site, reader.thread,
                f"writes {{place}} at line {site.line}, which {reader.site.name} at line {reader.site.line} may still "
                "be reading: wait for it first",
            )  # fmt: skip
        own = (1 << (thread >> _WARPGROUP_SHIFT)).astype(np.uint8)
        late = (words.done_groups[where] & ~own != 0) & (words.done_epoch[where] == self.detector.epoch[block])
        if late.any():
            other = self.readers[int(words.done_reader[where[np.flatnonzero(late)[0]]])]
            self._report(
                "write after read", region, where, late, thread, block, site, other.site, None,
                f"writes {{place}} at line {site.line}, which another warpgroup read with {other.site.name} at line "
                f"{other.site.line}; nothing orders the two: put a barrier between its wait and this",
            )  # fmt: skip

    # --- what is read asynchronously -------------------------------------------------------------------------------

    def copied_out(self, region, words: np.ndarray, block: np.ndarray, thread: np.ndarray, site: Site) -> int:
        """Note that some threads have issued a copy out of shared memory; returns its number."""
        number = len(self.readers)
        self.readers.append(_Reader(site, int(thread[0]) if thread.size else 0))
        where = (words[:, None] * region.owners + block[None, :]).reshape(-1)
        self._read(region, where, np.tile(thread, words.size), np.tile(block, words.size), site, number)
        return number

    def read_out(self, region, words: np.ndarray, block: np.ndarray) -> None:
        """Note that its source has been read."""
        self._words(region).reader[(words[:, None] * region.owners + block[None, :]).reshape(-1)] = _NOBODY

    def multiplied(self, product, warpgroups) -> None:
        """Note that a product has been issued."""
        number = len(self.readers)
        self._of_product[product.number] = number
        self.readers.append(_Reader(product.site, 0))
        for region, where, pair in self._operands(product, warpgroups):
            thread = pair // self.batch.universe.blocks << _WARPGROUP_SHIFT
            self._read(region, where, thread, pair % self.batch.universe.blocks, product.site, number)

    def multiplied_now(self, product, warpgroups) -> None:
        """Note that a product is complete for those who have waited."""
        for region, where, pair in self._operands(product, warpgroups):
            words, block = self._words(region), pair % self.batch.universe.blocks
            words.reader[where] = _NOBODY
            epoch = self.detector.epoch[block]
            bit = (1 << pair // self.batch.universe.blocks).astype(np.uint8)
            words.done_groups[where] = np.where(words.done_epoch[where] == epoch, words.done_groups[where], 0) | bit
            words.done_epoch[where] = epoch
            words.done_reader[where] = self._of_product[product.number]

    def _operands(self, product, warpgroups):
        """Yield the words of each operand in shared memory, with the pair of (warpgroup, block) that reads each."""
        shape = product.shape
        sides = [(product.b, shape.columns, shape.transposed_b)]
        if product.a.ndim == 1:
            sides.append((product.a, 64, shape.transposed_a))
        for descriptors, rows, transposed in sides:
            for one in np.unique(descriptors).tolist():
                pairs = product.pairs[descriptors == one]
                region, words = warpgroups.examine(one, rows, shape, transposed, pairs, product.site)
                block = pairs % self.batch.universe.blocks
                yield region, (words[:, None] * region.owners + block[None, :]).reshape(-1), np.tile(pairs, words.size)

    def _read(self, region, where, thread, block, site: Site, number: int) -> None:
        words = self._words(region)
        self._arrived(region, words, where, thread, block, site)
        self.detector.asynchronous(region, where // region.owners, thread, block, site)
        writer = words.writer[where]
        stored = np.flatnonzero(writer != _NOBODY)
        if stored.size:
            place, owner = where[stored], block[stored]
            bad = np.zeros(where.size, bool)
            bad[stored] = (self.fences[writer[stored], owner] <= words.writer_fence[place]) & (
                words.writer_epoch[place] >= self.clean_epoch[owner]
            )
            if bad.any():
                first = int(np.flatnonzero(bad)[0])
                other = self.batch.plan.code.sites[int(words.writer_site[where[first]])]
                self._report(
                    FENCE_KIND, region, where, bad, thread, block, site, other, int(writer[first]),
                    f"lets {site.name} read {{place}} at line {site.line}, which thread {{other}} stored at line "
                    f"{other.line}: the asynchronous proxy may see what was there before. Put fence.proxy.async behind "
                    "the store, in the thread that stores, and then the barrier",
                )  # fmt: skip
        unwritten = ~self.detector.written_words(region)[where]
        if unwritten.any() and self.detector.first_time(("unwritten", site.line)):
            self._report_unwritten(region, where, int(np.flatnonzero(unwritten)[0]), thread, block, site)
        words.reader[where] = number

    def _report_unwritten(self, region, where, first: int, thread, block, site: Site) -> None:
        block_index, index = self.batch.coordinates(int(block[first]), int(thread[first]))
        sentence = (
            f"{site.name} at line {site.line}: block {triple(block_index)} thread {triple(index)}: byte "
            f"{int(where[first]) // region.owners * 4} of {region.size} in {region.name} has never been written"
        )
        self.batch.trace.faults.append(
            EmulatorFault("unwritten read", sentence, line=site.line, block=block_index, threads=(index,))
        )

    # --- reports ---------------------------------------------------------------------------------------------------

    def _report(self, kind, region, where, bad, thread, block, site: Site, other: Site, other_thread, story) -> None:
        if not self.detector.first_time((kind, "shared", site.line, other.line)):
            return
        chosen = np.flatnonzero(bad)
        first = int(chosen[np.lexsort((thread[chosen], block[chosen]))[0]])
        owner = int(block[first])
        block_index, index = self.batch.coordinates(owner, int(thread[first]))
        second = self.batch.coordinates(owner, int(thread[first]) if other_thread is None else other_thread)[1]
        place = f"byte {int(where[first]) // region.owners * 4} of {region.name}"
        sentence = f"{kind}: block {triple(block_index)} thread {triple(index)} " + story.format(
            place=place, other=triple(second)
        )
        self.batch.trace.races.append(
            Race(kind, "shared", site.line, other.line, block_index, (index, second), sentence)
        )


def observations_of(batch):
    """Return what keeps the observations of a batch: nothing unless races are looked for."""
    traced = batch.trace is not None and batch.trace.detector is not None and batch.plan.asynchronous
    return Observations(batch) if traced else Unobserved()


__all__ = ["FENCE_KIND", "WAIT_KIND", "Observations", "Unobserved", "observations_of"]
