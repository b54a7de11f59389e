"""What 32 threads do together: shuffle, vote, match, reduce.

Values are brought into the form (warps, 32, blocks), padded where a block is not a multiple of 32 or where only some
lanes take part, worked on along the middle axis, and brought back. A set that holds whole warps needs no copy.
"""

from __future__ import annotations

import functools

import numpy as np

from .address_space import POISON, Site, triple
from .lanes import Lanes
from .memory import Memory

_LANE = np.arange(32).reshape(1, 32, 1)
_FULL = 0xFFFFFFFF


class WarpForm:
    """How the lanes of a set lie in warps; `present` is None where every warp is whole."""

    def __init__(self, lanes: Lanes):
        self.lanes = lanes
        threads = lanes.universe.threads
        rows = lanes.rows
        if lanes.index is None and isinstance(rows, slice):
            start, stop, _ = rows.indices(threads)
            self.whole = start % 32 == 0 and stop % 32 == 0
            self.first_warp = start // 32
        else:
            self.whole, self.first_warp = False, 0
        self.present = None
        self._patterns: dict[tuple, np.ndarray] = {}
        if not self.whole:
            self.warps = -(-threads // 32)
            self.shape = (self.warps, 32, lanes.universe.blocks)
            self.thread, self.block = lanes.expand(lanes.thread), lanes.expand(lanes.block)
            self.place = self.thread * lanes.universe.blocks + self.block
            self.present = np.zeros(self.shape, bool)
            self.present.reshape(-1)[self.place] = True

    def spread(self, value) -> np.ndarray:
        """Return a value as (warps, 32, blocks); absent lanes hold poison."""
        if self.whole:
            rows = self.lanes.shape[0]
            value = np.asarray(value)
            if value.ndim == 2 and value.shape[0] == rows:
                return value.reshape(-1, 32, value.shape[1])
            width = value.shape[1] if value.ndim == 2 else 1
            return np.broadcast_to(value, (rows, width)).reshape(-1, 32, width)
        value = np.asarray(value)
        wide = np.full(self.shape, 0, value.dtype)
        if value.dtype.itemsize == 4:
            wide.view(np.uint32)[...] = POISON
        wide.reshape(-1)[self.place] = value
        return wide

    def collect(self, value: np.ndarray):
        """Return the lanes' part of a (warps, 32, blocks) value (axes may be 1)."""
        if self.whole:
            rows = self.lanes.shape[0]
            if value.size != rows * value.shape[2]:
                value = np.broadcast_to(value, (rows // 32, 32, value.shape[2]))
            return value.reshape(rows, -1)
        return np.broadcast_to(value, self.shape).reshape(-1).take(self.place)

    def pattern(self, key: tuple, value: np.ndarray):
        """`collect` of a pattern of 32 lanes that its key determines."""
        found = self._patterns.get(key)
        if found is None:
            found = self._patterns[key] = self.collect(value)
        return found


def _source(mode: str, amount, control):
    """From which lane each lane reads, and whether that is inside its segment (PTX ISA, shfl.sync)."""
    segment, limit = (control >> 8) & 31, control & 31
    highest = (_LANE & segment) | (limit & ~segment & 31)
    if mode == "up":
        source = _LANE - amount
        inside = source >= highest
    else:
        if mode == "down":
            source = _LANE + amount
        elif mode == "bfly":
            source = _LANE ^ amount
        else:
            source = (_LANE & segment) | (amount & ~segment & 31)
        inside = source <= highest
    return np.where(inside, source, _LANE), inside


_shuffle_source = functools.lru_cache(maxsize=256)(_source)


class Warps:
    """The warp-wide instructions of one batch."""

    def __init__(self, memory: Memory, threads: int, blocks: int):
        self.memory = memory
        self.threads, self.blocks = threads, blocks
        self.exited = np.zeros((threads, blocks), bool)

    @staticmethod
    def form(lanes: Lanes) -> WarpForm:
        """Return the warp form of a set, made once."""
        if lanes.warp_form is None:
            lanes.warp_form = WarpForm(lanes)
        return lanes.warp_form

    def _alive(self) -> np.ndarray:
        warps = -(-self.threads // 32)
        alive = np.zeros((warps * 32, self.blocks), bool)
        alive[: self.threads] = ~self.exited
        return alive.reshape(warps, 32, self.blocks)

    def _members(self, form: WarpForm, mask, lanes: Lanes, site: Site) -> np.ndarray | None:
        """Check the member masks and return them; None means whole warps with a full mask.

        Their shape is (warps, 1, blocks), or (warps, 32, blocks) where groups of one warp have masks of their own.
        """
        if form.present is None and not isinstance(mask, np.ndarray) and int(mask) == _FULL:
            return None
        wide = form.spread(np.asarray(mask).astype(np.int64))
        own = (wide >> _LANE) & 1
        present = form.present if form.present is not None else np.ones(own.shape, bool)
        if (present & (own == 0)).any():
            bad = form.collect(present & (own == 0))
            raise self.memory.fault(
                "inactive lane", site, bad, lanes, lambda place: "a thread executes it that its own mask does not name"
            )
        masks = np.where(present, wide, 0)
        if form.present is not None:
            named = np.bitwise_or.reduce(masks, axis=1, keepdims=True)
            missing = ((named >> _LANE) & 1).astype(bool) & self._alive() & ~present
            if missing.any():
                self._missing_member(form, missing, present, lanes, site)
        shared = masks.max(axis=1, keepdims=True)
        return shared if ((masks == shared) | ~present).all() else masks

    def _missing_member(self, form: WarpForm, missing, present, lanes: Lanes, site: Site) -> None:
        warp, lane, block = (int(axis[0]) for axis in np.nonzero(missing))
        caller = int(np.flatnonzero(present[warp, :, block])[0])
        block_index, absent = self.memory.coordinates(block, warp * 32 + lane)
        _, thread = self.memory.coordinates(block, warp * 32 + caller)
        from .faults import EmulatorFault

        raise EmulatorFault(
            "inactive lane",
            f"{site.name} at line {site.line}: block {triple(block_index)} thread {triple(thread)} waits for thread "
            f"{triple(absent)}, which its mask names and which is elsewhere: all threads in the mask must take part",
            line=site.line,
            block=block_index,
            threads=(thread, absent),
        )

    def shuffle(self, mode: str, value, lane, clamp, mask, lanes: Lanes, site: Site):
        """shfl.sync: each lane's value from another lane of its warp, and whether that lane was in range."""
        form = self.form(lanes)
        named = self._members(form, mask, lanes, site)
        steady = not isinstance(lane, np.ndarray) and not isinstance(clamp, np.ndarray)
        if steady:
            key = (mode, int(lane) & 31, int(clamp))
            source, inside = _shuffle_source(*key)
        else:
            source, inside = _source(mode, form.spread(lane).astype(np.int64) & 31, form.spread(clamp).astype(np.int64))
        in_range = form.pattern(key, inside) if steady else form.collect(inside)
        if form.present is None and not isinstance(value, np.ndarray):
            return value, in_range
        wide = form.spread(value)
        picked = source[0, :, 0] if steady else None
        moved = wide.take(picked, axis=1) if steady else np.take_along_axis(*_same_width(wide, source), axis=1)
        if form.present is not None:
            self._stale(form, source, steady, named, lanes, site)
        return form.collect(moved), in_range

    def _stale(self, form: WarpForm, source, steady: bool, named, lanes: Lanes, site: Site) -> None:
        """Refuses a read from a lane that the mask promises and that does not exist or has left."""
        present = form.present
        if steady:
            there = present.take(source[0, :, 0], axis=1)
        else:
            there = np.take_along_axis(*_same_width(present, source), axis=1)
        promised = ((named >> source) & 1).astype(bool)
        bad = present & ~there & promised
        if bad.any():
            where = np.broadcast_to(source, bad.shape)
            collected = form.collect(where).reshape(-1)
            raise self.memory.fault(
                "inactive lane",
                site,
                form.collect(bad),
                lanes,
                lambda place: (
                    f"reads lane {int(collected[place])} of its warp, which has exited or does not exist: its value is "
                    "undefined"
                ),
            )

    def _ballot(self, form: WarpForm, predicate) -> np.ndarray:
        """Bits of the lanes that are present and hold the predicate: (warps, 1, blocks) of int64."""
        wide = form.spread(predicate)
        if form.present is not None:
            wide = wide & form.present
        return (wide.astype(np.int64) << _LANE).sum(axis=1, keepdims=True)

    def vote(self, mode: str, predicate, mask, lanes: Lanes, site: Site):
        """vote.sync: all, any, uni (all the same) or the ballot."""
        form = self.form(lanes)
        named = self._members(form, mask, lanes, site)
        own = named if named is not None else np.int64(_FULL)
        if named is None and not isinstance(predicate, np.ndarray):
            if mode == "ballot":
                return np.uint32(_FULL if predicate else 0)
            return np.bool_(predicate or mode == "uni")
        true = self._ballot(form, predicate) & own
        if mode == "ballot":
            return form.collect(true.astype(np.uint32))
        if mode == "any":
            return form.collect(true != 0)
        false = self._ballot(form, ~np.asarray(predicate)) & own
        return form.collect(false == 0 if mode == "all" else (false == 0) | (true == 0))

    def active_mask(self, lanes: Lanes):
        """Return the lanes of each warp that execute this together."""
        form = self.form(lanes)
        if form.present is None:
            return np.uint32(_FULL)
        return form.collect(self._ballot(form, np.True_).astype(np.uint32))

    def elect(self, mask, lanes: Lanes, site: Site):
        """Return the lowest lane of the mask, and whether one is it."""
        form = self.form(lanes)
        named = self._members(form, mask, lanes, site)
        members = np.asarray(named if named is not None else np.full((1, 1, 1), _FULL, np.int64))
        leader = np.bitwise_count((members & -members) - 1).astype(np.int64)
        return form.collect(leader.astype(np.uint32)), form.collect(leader == _LANE)

    def match(self, mode: str, value, mask, lanes: Lanes, site: Site):
        """match.sync: the lanes with the same value (any), or the mask if all have it (all)."""
        form = self.form(lanes)
        named = self._members(form, mask, lanes, site)
        wide = form.spread(value)
        present = form.present if form.present is not None else np.ones((1, 32, 1), bool)
        members = np.asarray(named if named is not None else np.int64(_FULL))
        same = np.zeros(np.broadcast_shapes(wide.shape, present.shape), np.int64)
        for lane in range(32):
            equal = (wide == wide[:, lane : lane + 1]) & present[:, lane : lane + 1]
            same |= equal.astype(np.int64) << lane
        same &= members
        if mode == "any":
            return form.collect(same.astype(np.uint32)), None
        present_bits = (np.broadcast_to(present, same.shape).astype(np.int64) << _LANE).sum(axis=1, keepdims=True)
        agreed = same == (members & present_bits)
        return form.collect(np.where(agreed, same, 0).astype(np.uint32)), form.collect(agreed)

    def reduce(self, operation: str, value, mask, lanes: Lanes, site: Site):
        """redux.sync: sum, extreme or bitwise combination over the mask."""
        form = self.form(lanes)
        named = self._members(form, mask, lanes, site)
        dtype = np.asarray(value).dtype
        limits = np.iinfo(dtype)
        function, identity = {
            "add": (np.add, 0),
            "or": (np.bitwise_or, 0),
            "xor": (np.bitwise_xor, 0),
            "and": (np.bitwise_and, limits.max if dtype.kind == "u" else -1),
            "min": (np.minimum, limits.max),
            "max": (np.maximum, limits.min),
        }[operation]
        wide = form.spread(value)
        if named is None:
            return form.collect(function.reduce(wide, axis=1, keepdims=True, dtype=dtype))
        present = form.present if form.present is not None else np.True_

        def over(mask) -> np.ndarray:
            counted = ((mask >> _LANE) & 1).astype(bool) & present
            return function.reduce(np.where(counted, wide, dtype.type(identity)), axis=1, keepdims=True, dtype=dtype)

        if named.shape[1] == 1:
            return form.collect(over(named))
        result = np.zeros(named.shape, dtype)
        for mask in np.unique(named).tolist():
            result = np.where(named == mask, over(np.int64(mask)), result)
        return form.collect(result)


def _same_width(wide: np.ndarray, source: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Broadcasts two warp forms against each other for take_along_axis."""
    shape = np.broadcast_shapes(wide.shape, source.shape)
    return np.broadcast_to(wide, shape), np.broadcast_to(source, shape)
