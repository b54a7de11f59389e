"""Shadow memory: who accessed a granule of memory last, with the epochs of that moment packed into one number."""

from __future__ import annotations

import numpy as np

NOBODY = -1
WARP_EPOCH, EPOCH = 20, 40  # where the epochs begin in a packed record; the site is below
SITE_MASK, WARP_MASK = (1 << 20) - 1, (1 << 20) - 1


class Actor:
    """One remembered access per granule: the thread, and its site and epochs packed into one number.

    In global memory also how many fences the thread's block had executed. Zeros mean nobody, because memory of zeros
    costs nothing until it is touched, and an array may be large where few blocks are looked at.
    """

    __slots__ = ("fences", "next", "record")

    def __init__(self, size: int, space: str):
        self.next = np.zeros(size, np.int64)  # the thread's number plus one
        self.record = np.zeros(size, np.int64)
        self.fences = np.zeros(size, np.int32) if space == "global" else None

    def thread(self, where) -> np.ndarray:
        """Return who accessed some granules."""
        return self.next[where] - 1

    def put(self, where, thread, record, fences) -> None:
        """Remember who accesses some granules."""
        self.next[where] = thread + 1
        self.record[where] = record
        if fences is not None:
            self.fences[where] = fences

    def put_some(self, chosen, where, thread, record, fences) -> None:
        """Remember the chosen ones."""
        if chosen.all():
            self.put(where, thread, record, fences)
        elif chosen.any():
            self.put(where[chosen], thread[chosen], record[chosen], None if fences is None else fences[chosen])


def packed(site: int, epoch: np.ndarray, warp_epoch: np.ndarray) -> np.ndarray:
    """Return the record of accesses."""
    return (epoch.astype(np.int64) << EPOCH) | (warp_epoch.astype(np.int64) << WARP_EPOCH) | site


class Shadow:
    """What is remembered of one variable: the last writer, and the first reader, one of its warp, one of another."""

    def __init__(self, size: int, space: str):
        self.writer = Actor(size, space)
        self.atomic = np.zeros(size, bool)
        self.readers = [Actor(size, space) for _ in range(3)]

    def spread(self, owners: int) -> Shadow:
        """Return this with each granule as many times as there are blocks."""
        wide = Shadow(0, "shared")
        wide.atomic = np.repeat(self.atomic, owners)
        for actor, own in zip((wide.writer, *wide.readers), (self.writer, *self.readers), strict=True):
            actor.next, actor.record = np.repeat(own.next, owners), np.repeat(own.record, owners)
        return wide

    def remember_readers(self, where, thread, epoch, record, fences=None, together=None) -> None:
        """Remember who reads; `together` tells of two arrays of threads whether they share a block, and a warp."""
        together = together or _of_one_block
        first, same_warp, other_warp = self.readers
        held = first.thread(where)
        free = (held == NOBODY) | (held == thread)
        if not free.all():
            free |= (first.record[where] >> EPOCH < epoch) & together(held, thread)[0]
        first.put_some(free, where, thread, record, fences)
        held = first.thread(where)
        rest = held != thread
        if not rest.any():
            return
        near = together(held, thread)[1]
        same_warp.put_some(rest & near, where, thread, record, fences)
        other_warp.put_some(rest & ~near, where, thread, record, fences)


def _of_one_block(one: np.ndarray, two: np.ndarray) -> tuple:
    return True, one >> 5 == two >> 5
