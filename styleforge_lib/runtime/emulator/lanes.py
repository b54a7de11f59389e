"""Sets of lanes, and values of as many lanes as they need.

A batch executes some blocks of the grid at once: its universe is T threads by B blocks, the block innermost, so that
what all blocks do at one thread lies side by side in memory. A value is one of

    a NumPy scalar      the same in every lane
    shape (1, B)        the same in all threads of a block
    shape (T, 1)        the same in all blocks (whatever is made of threadIdx alone)
    shape (T, B)        one per lane

and NumPy's broadcasting keeps it as small as the kernel allows. A `Lanes` is the universe or a part of it: "grid" (some
threads of some blocks; values have shapes (t, b) and their narrower forms) or "flat" (any lanes; values have
shape (n,)). Code is the same for all of them: gather what a block reads, run it, scatter what it writes.
"""

from __future__ import annotations

import functools

import numpy as np

ALL = slice(None)
_MOST_SPLITS = 32  # that a universe remembers, and as many unions


def is_scalar(value) -> bool:
    """Whether a value is the same in every lane."""
    return not isinstance(value, np.ndarray)


def picked(value, where: tuple[np.ndarray, ...]):
    """Return the elements at some places; an axis of length 1 stands for all."""
    if not isinstance(value, np.ndarray):
        return value
    return value[tuple(index if length > 1 else 0 for index, length in zip(where, value.shape, strict=True))]


class Universe:
    """T threads by B blocks, with the sets made of them."""

    def __init__(self, threads: int, blocks: int):
        self.threads, self.blocks = threads, blocks
        self.size = threads * blocks
        self.full = Lanes(self, ALL, ALL, None, self.size)
        self.splits: dict[tuple, tuple[Lanes, Lanes]] = {}  # (set, shape and bits of a predicate) -> its parts
        self.unions: dict[tuple[Lanes, Lanes], Lanes] = {}

    def grid(self, rows, columns, count: int) -> Lanes:
        """Return the lanes of some threads in some blocks."""
        if count == self.size:
            return self.full
        return Lanes(self, rows, columns, None, count)

    def flat(self, index: np.ndarray) -> Lanes:
        """Any lanes, by ascending position t * B + b."""
        return Lanes(self, None, None, index, index.size)

    def from_mask(self, mask: np.ndarray) -> Lanes | None:
        """Return the set of a (T, B) mask in its simplest form; None if it is empty."""
        count = int(np.count_nonzero(mask))
        if count == self.size:
            return self.full
        if not count:
            return None
        rows, columns = mask.any(axis=1), mask.any(axis=0)
        row_count, column_count = int(np.count_nonzero(rows)), int(np.count_nonzero(columns))
        if row_count * column_count == count:
            return self.grid(
                _selector(np.flatnonzero(rows), self.threads), _selector(np.flatnonzero(columns), self.blocks), count
            )
        return self.flat(np.flatnonzero(mask))


def _selector(index: np.ndarray, length: int):
    """Return a slice where an ascending index is contiguous (NumPy then needs no copy), else the index."""
    if index.size == length:
        return ALL
    if index[-1] - index[0] + 1 == index.size:
        return slice(int(index[0]), int(index[-1]) + 1)
    return index


@functools.lru_cache(maxsize=8)
def universe_of(threads: int, blocks: int) -> Universe:
    """Return a universe: batches of one size share it, and what has been found out about its sets of lanes."""
    return Universe(threads, blocks)


class Lanes:
    """A set of lanes of a universe."""

    __slots__ = (
        "_block",
        "_thread",
        "columns",
        "count",
        "groups",
        "half_of",
        "index",
        "is_full",
        "rows",
        "universe",
        "warp_count",
        "warp_form",
    )

    def __init__(self, universe: Universe, rows, columns, index: np.ndarray | None, count: int):
        self.universe, self.rows, self.columns, self.index, self.count = universe, rows, columns, index, count
        self.is_full = count == universe.size and index is None
        self._thread = self._block = None
        self.half_of: tuple[Lanes] | None = None  # the set that was split in two; one tuple for both halves
        self.warp_form = None  # how the lanes lie in warps, once `warps` has looked
        self.groups = None  # and in warpgroups, once `warpgroups` has
        self.warp_count: int | None = None  # once `metrics` has counted

    @property
    def is_flat(self) -> bool:
        """Whether values of this set have shape (n,)."""
        return self.index is not None

    @property
    def thread(self) -> np.ndarray:
        """The thread's number in its block: shape (t, 1), or (n,) of a flat set."""
        if self._thread is None:
            universe = self.universe
            if self.index is None:
                self._thread = np.arange(universe.threads)[self.rows].reshape(-1, 1)
            else:
                self._thread = self.index // universe.blocks
        return self._thread

    @property
    def block(self) -> np.ndarray:
        """The block's number in the batch: shape (1, b), or (n,) of a flat set."""
        if self._block is None:
            universe = self.universe
            if self.index is None:
                self._block = np.arange(universe.blocks)[self.columns].reshape(1, -1)
            else:
                self._block = self.index % universe.blocks
        return self._block

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a value with one element per lane."""
        if self.index is not None:
            return (self.index.size,)
        return (self.thread.size, self.block.size)

    @property
    def every_block(self) -> bool:
        """Whether the set holds the same threads of every block."""
        return self.index is None and isinstance(self.columns, slice) and self.columns == ALL

    def expand(self, value) -> np.ndarray:
        """Return a value with one element per lane, read-only."""
        return np.broadcast_to(value, self.shape)

    def mask(self) -> np.ndarray:
        """Return the set as a fresh (T, B) array of bool."""
        universe = self.universe
        mask = np.zeros((universe.threads, universe.blocks), bool)
        if self.index is not None:
            mask.reshape(-1)[self.index] = True
        else:
            mask[self._where(ALL, ALL)] = True
        return mask

    def positions(self) -> np.ndarray:
        """Ascending positions t * B + b of all lanes, in a value's own order."""
        if self.index is not None:
            return self.index
        return (self.thread * self.universe.blocks + self.block).reshape(-1)

    def _where(self, rows_if, columns_if):
        """Index of this grid set; an axis whose value does not vary is taken whole."""
        rows = self.rows if rows_if is ALL else ALL
        columns = self.columns if columns_if is ALL else ALL
        if isinstance(rows, np.ndarray) and isinstance(columns, np.ndarray):
            return np.ix_(rows, columns)
        return rows, columns

    def gather(self, value):
        """Return what this set sees of a value of the universe."""
        if self.is_full or not isinstance(value, np.ndarray):
            return value
        t, b = value.shape
        universe = self.universe
        if self.index is None:
            rows = ALL if t != universe.threads or t == 1 else self.rows
            columns = ALL if b != universe.blocks or b == 1 else self.columns
            if isinstance(rows, np.ndarray):
                value, rows = value.take(rows, axis=0), ALL
            if isinstance(columns, np.ndarray):
                value, columns = value.take(columns, axis=1), ALL
            return value[rows, columns]
        if t == 1 and universe.threads > 1:
            return value[0].take(self.block)
        if b == 1 and universe.blocks > 1:
            return value[:, 0].take(self.thread)
        return value.reshape(-1).take(self.index)

    def scatter(self, old, value, reuse: bool):
        """Return the universe's value after this set has written `value`; writes into `old` if `reuse` allows."""
        universe = self.universe
        if self.index is not None:
            shape = (universe.threads, universe.blocks)
        else:
            tall, wide = np.shape(value) or (1, 1)
            old_tall, old_wide = np.shape(old) or (1, 1)
            rows_whole = isinstance(self.rows, slice) and self.rows == ALL
            columns_whole = self.every_block
            shape = (
                1 if rows_whole and tall == 1 and old_tall == 1 else universe.threads,
                1 if columns_whole and wide == 1 and old_wide == 1 else universe.blocks,
            )
        if reuse and old.shape == shape and old.dtype == value.dtype:
            new = old
        else:
            new = np.empty(shape, value.dtype)
            if old is not None:
                new[...] = old if old.dtype == value.dtype else old.view(value.dtype)
        if self.index is not None:
            new.reshape(-1)[self.index] = value
        else:
            where = self._where(ALL if shape[0] > 1 else None, ALL if shape[1] > 1 else None)
            new[where] = value
        return new

    def split(self, predicate) -> tuple[Lanes | None, Lanes | None]:
        """Return the lanes where a predicate of this set is true, and the others."""
        if not isinstance(predicate, np.ndarray):
            return (self, None) if predicate else (None, self)
        hits = int(np.count_nonzero(predicate))
        if hits == predicate.size:
            return self, None
        if not hits:
            return None, self
        if self.index is not None:
            universe = self.universe
            return universe.flat(self.index[predicate]), universe.flat(self.index[~predicate])
        predicate = self._narrowed(predicate)
        if 1 not in predicate.shape:
            return self._parts(predicate)
        splits, key = self.universe.splits, (self, predicate.shape, predicate.tobytes())
        found = splits.get(key)
        if found is None:
            found = self._parts(predicate)
            if len(splits) >= _MOST_SPLITS:
                splits.clear()
            splits[key] = found
        return found

    def _parts(self, predicate: np.ndarray) -> tuple[Lanes, Lanes]:
        taken, passed = self._part(predicate), self._part(~predicate)
        # A flat set is not remembered: a loop that lanes leave one by one would keep them all.
        taken.half_of = passed.half_of = (self,)
        return taken, passed

    @staticmethod
    def _narrowed(predicate: np.ndarray) -> np.ndarray:
        """Drop an axis along which the predicate does not vary."""
        if predicate.shape[1] > 1 and (predicate == predicate[:, :1]).all():
            return predicate[:, :1]
        if predicate.shape[0] > 1 and (predicate == predicate[:1]).all():
            return predicate[:1]
        return predicate

    def _part(self, predicate: np.ndarray) -> Lanes:
        universe = self.universe
        t, b = self.shape
        if predicate.shape[1] == 1:
            index = self.thread[:, 0][predicate[:, 0]]
            return universe.grid(_selector(index, universe.threads), self.columns, index.size * b)
        if predicate.shape[0] == 1:
            index = self.block[0][predicate[0]]
            return universe.grid(self.rows, _selector(index, universe.blocks), t * index.size)
        positions = self.thread * universe.blocks + self.block
        return universe.flat(positions[predicate])


def merge(first: Lanes, second: Lanes) -> Lanes:
    """Return the union of two disjoint sets."""
    if first.half_of is not None and first.half_of is second.half_of:
        return first.half_of[0]
    unions = first.universe.unions
    found = unions.get((first, second))
    if found is None:
        mask = first.mask()
        mask |= second.mask()
        found = first.universe.from_mask(mask)
        if not (first.is_flat or second.is_flat):
            if len(unions) >= _MOST_SPLITS:
                unions.clear()
            unions[first, second] = found
    return found
