"""Shared memory of blocks that all do the same: one block's shadow stands for them all.

In most kernels an address in shared memory depends on threadIdx alone, and every block passes the same barriers. What
the race detector would remember is then the same for each block of a batch, and is kept and judged once here. That
goes on as long as it proves an access harmless. Where it does not (a race perhaps, an unwritten word perhaps, an
address of a block's own, blocks at different barriers) the variable is given up: the shadow is spread over the blocks,
and `races` judges that access and all further ones block by block.
"""

from __future__ import annotations

import numpy as np

from .address_space import Site
from .lanes import Lanes
from .located import Located
from .shadows import EPOCH, NOBODY, WARP_EPOCH, WARP_MASK, Shadow, packed


class AlikeBlocks:
    """The shadows of one batch's shared variables, of those that all blocks have used alike so far."""

    def __init__(self, detector, granule: int):
        self.detector, self.granule = detector, granule
        self.shadows: dict[int, Shadow] = {}
        self.written: dict[int, np.ndarray] = {}
        self.given_up: set[int] = set()
        self._company: dict[tuple[Lanes, int], tuple[int, int]] = {}

    def give_up(self, region) -> None:
        """Spread what is remembered of a variable over the blocks, for `races` to go on with."""
        number = id(region)
        if number in self.given_up:
            return
        self.given_up.add(number)
        if number in self.shadows:
            self.detector.shared[number] = self.shadows.pop(number).spread(region.owners)
            self.detector.written[number] = np.repeat(self.written.pop(number), region.owners)

    def _alike(self, at: Located) -> bool:
        """Whether an access is the same in all blocks, and their history too."""
        if id(at.region) in self.given_up or not at.lanes.every_block:
            return False
        if isinstance(at.offset, np.ndarray) and at.offset.shape[1] > 1:
            return False
        epoch, warp_epoch = self.detector.epoch, self.detector.warp_epoch
        return bool((epoch == epoch[0]).all() and (warp_epoch == warp_epoch[:, :1]).all())

    def _shadow(self, region) -> Shadow:
        shadow = self.shadows.get(id(region))
        if shadow is None:
            shadow = self.shadows[id(region)] = Shadow(-(-region.size // self.granule), "shared")
            self.written[id(region)] = np.zeros(region.words.shape[0], bool)
        return shadow

    def _threads(self, at: Located, delta: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the threads of one block, their offsets, and the records of their accesses but for the site."""
        thread = at.lanes.thread[:, 0]
        offset = np.broadcast_to(np.asarray(at.offset + delta), (thread.size, 1))[:, 0]
        epochs = packed(0, self.detector.epoch[:1], self.detector.warp_epoch[thread >> 5, 0])
        return thread, offset, epochs

    def passes(self, at: Located, delta: int, site: Site, values: tuple | None) -> bool:
        """Whether an access is certainly harmless; it is remembered then. If not, the variable is given up."""
        if self._alike(at):
            shadow = self._shadow(at.region)
            if not isinstance(at.offset, np.ndarray) and site.verb == "load" and site.width <= self.granule:
                if self._one_word_passes(shadow, at, delta, site):
                    return True
            elif self._each_passes(shadow, at, delta, site, values):
                return True
        self.give_up(at.region)
        return False

    def arrived(self, at: Located, site: Site) -> bool:
        """Note that an asynchronous copy has arrived; False if that is to be noted block by block."""
        if not self._alike(at):
            self.give_up(at.region)
            return False
        shadow = self._shadow(at.region)
        thread, offset, epochs = self._threads(at, 0)
        for step in range(site.width // self.granule):
            shadow.writer.put((offset + step * self.granule) // self.granule, thread, epochs | site.number, None)
        return True

    # --- judging ---------------------------------------------------------------------------------------------------

    def _each_passes(self, shadow: Shadow, at: Located, delta: int, site: Site, values: tuple | None) -> bool:
        """Judge an access thread by thread, as `races` does it lane by lane."""
        thread, offset, epochs = self._threads(at, delta)
        written, reads, writes = self.written[id(at.region)], site.verb != "store", site.verb != "load"
        words = [(offset >> 2) + step for step in range(max(1, -(-site.width // 4)))]
        if reads and not all(written[where].all() for where in words):
            return False
        epoch, record = int(self.detector.epoch[0]), epochs | site.number
        places = [(offset + step * self.granule) // self.granule for step in range(max(1, site.width // self.granule))]
        for where in places:
            if values and site.verb == "store" and not self._distinct(at, delta, where):
                return False  # equal values are no race, but they differ from block to block
            actors = (shadow.writer, *shadow.readers) if writes else (shadow.writer,)
            if any(self._meets(shadow, actor, where, thread, epochs, epoch, site) for actor in actors):
                return False
        for where in words if writes else ():
            written[where] = True
        for where in places:
            if writes:
                shadow.writer.put(where, thread, record, None)
                shadow.atomic[where] = site.verb == "atomic"
            else:
                shadow.remember_readers(where, thread, epoch, record)
        return True

    @staticmethod
    def _meets(shadow: Shadow, actor, where, thread, epochs, epoch: int, site: Site) -> bool:
        """Whether an access may race with what an actor did."""
        record = actor.record[where]
        if not (record >> EPOCH >= epoch).any():
            return False
        other = actor.thread(where)
        bad = (other != NOBODY) & (other != thread) & (record >> EPOCH >= epoch)
        warp_epoch = (epochs >> WARP_EPOCH) & WARP_MASK
        bad &= ~((other >> 5 == thread >> 5) & ((record >> WARP_EPOCH) & WARP_MASK < warp_epoch))
        if site.verb == "atomic" and actor is shadow.writer:
            bad &= ~shadow.atomic[where]
        return bool(bad.any())

    def _distinct(self, at: Located, delta: int, where: np.ndarray) -> bool:
        """Whether no two threads meet at one place; a constant offset of whole granules changes nothing in that."""
        key = ("distinct", self.granule, delta % self.granule)
        found = at.counts.get(key)
        if found is None:
            found = at.counts[key] = np.unique(where).size == where.size
        return found

    def _one_word_passes(self, shadow: Shadow, at: Located, delta: int, site: Site) -> bool:
        """Judge a read of one word by all threads of a set: the same as `_each_passes`, without arrays."""
        place, epoch = (at.offset + delta) // self.granule, int(self.detector.epoch[0])
        if not self.written[id(at.region)][(at.offset + delta) >> 2]:
            return False
        thread = at.lanes.thread
        if shadow.writer.next[place] and int(shadow.writer.record[place]) >> EPOCH >= epoch:
            return (
                thread.size == 1
                and shadow.writer.next[place] == thread[0, 0] + 1
                and self._each_passes(shadow, at, delta, site, None)
            )
        first, same_warp, other_warp = shadow.readers
        held = int(first.next[place]) - 1
        if held == NOBODY or int(first.record[place]) >> EPOCH < epoch:
            held = int(thread[-1, 0])
            first.next[place] = held + 1
            first.record[place] = self._record(held, epoch, site)
        elif (thread == held).any():
            first.record[place] = self._record(held, epoch, site)
        for reader, one in zip((same_warp, other_warp), self._others(at.lanes, held), strict=True):
            if one != NOBODY:
                reader.next[place] = one + 1
                reader.record[place] = self._record(one, epoch, site)
        return True

    def _record(self, thread: int, epoch: int, site: Site) -> int:
        return epoch << EPOCH | int(self.detector.warp_epoch[thread >> 5, 0]) << WARP_EPOCH | site.number

    def _others(self, lanes: Lanes, held: int) -> tuple[int, int]:
        """Return the last thread of a set that shares a thread's warp, and the last that does not."""
        found = self._company.get((lanes, held))
        if found is None:
            thread = lanes.thread[:, 0]
            near = thread[(thread != held) & (thread >> 5 == held >> 5)]
            far = thread[thread >> 5 != held >> 5]
            found = tuple(int(some[-1]) if some.size else NOBODY for some in (near, far))
            self._company[lanes, held] = found
        return found
