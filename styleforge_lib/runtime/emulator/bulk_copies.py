"""cp.async.bulk and cp.reduce.async.bulk: copies of whole ranges by the asynchronous proxy.

A copy into shared memory reads its source when it is issued. From then on its target holds poison, as its contents are
undefined on a GPU: who reads too early, or still needs what was there, computes with NaN. The bytes arrive as late as
possible: when a thread waits for the mbarrier that counts them.

A copy from shared memory reads its source, and changes its target, as late as possible as well: when its thread waits
for its group. A thread that leaves the kernel before is at fault, since its shared memory ends with it.

Source: PTX ISA, "Data Movement and Conversion Instructions: cp.async.bulk".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .address_space import POISON, SLOT_SHIFT, Site
from .lanes import Lanes
from .located import Scattered
from .mbarriers import MBarrier, Spot, fault_of, spots
from .tensor_maps import BYTES as MAP_BYTES
from .tensor_maps import SWIZZLE_UNITS, TensorMap, decode
from .warpgroup_operands import swizzled

ALIGNMENT = 16
BOX_ALIGNMENT = 128  # of a box in shared memory
BOX_START = 16  # bytes: where a box may begin along the innermost axis (as an H200 does; the PTX ISA does not say it)
NAN_FILL = (1 << 64) - 1  # a NaN in every floating type
KIND = "bulk copy"
_REDUCTIONS = {
    "add": np.add, "min": np.minimum, "max": np.maximum,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
}  # fmt: skip


@dataclass(slots=True)
class Load:
    """One copy into shared memory, of several blocks: one row of data for each."""

    barrier: MBarrier
    barrier_block: np.ndarray
    region: object
    words: np.ndarray
    """Which words of the variable are written, in the order of the data."""
    block: np.ndarray
    data: np.ndarray
    size: int
    """Bytes that the mbarrier counts."""
    number: int


@dataclass(slots=True)
class Store:
    """One copy from shared memory, of several threads."""

    region: object
    words: np.ndarray
    block: np.ndarray
    position: np.ndarray
    group: np.ndarray
    targets: list[tuple[object, object]]
    """For each thread the array, and which of its bytes: a slice, or an index in which -1 leaves a byte out."""
    operation: object
    dtype: np.dtype
    site: Site
    data: np.ndarray | None = None


class BulkCopies:
    """The bulk copies of one batch that are on their way."""

    def __init__(self, batch):
        self.batch = batch
        self.loads: list[Load] = []
        self.stores: list[Store] = []
        self.committed = np.zeros((batch.universe.threads, batch.universe.blocks), np.int64)
        self.count = 0

    # --- into shared memory ----------------------------------------------------------------------------------------

    def load(self, target, source, size, barrier, ranks, lanes: Lanes, read: Site, write: Site) -> None:
        """cp.async.bulk.shared.global; target, source and barrier are (address, offset, space).

        ranks: the blocks of the cluster that it goes to, as bits; None for one.
        """
        size = lanes.expand(size).reshape(-1).astype(np.int64)
        data: list = [None] * lanes.count
        for spot in self._spots(source, size, lanes, read):
            for length in np.unique(size[spot.place]).tolist():
                row = self._source(spot, length)
                for place in spot.place[size[spot.place] == length].tolist():
                    data[place] = row if row.ndim == 1 else row[:, spot.block[spot.place == place][0]]
        self.cast(target, size, data, barrier, ranks, lanes, write)

    @staticmethod
    def _source(spot: Spot, length: int) -> np.ndarray:
        """Return the words of a range, as they are now; of shared memory (words, blocks)."""
        if spot.region.banked:
            return spot.region.words[spot.offset // 4 : (spot.offset + length) // 4].copy()
        return spot.region.data[spot.offset : spot.offset + length].view(np.uint32).copy()

    def cast(self, target, size, data: list, barrier, ranks, lanes: Lanes, site: Site, units: int = 0) -> None:
        """Send data to the lanes' own block, or to several of the cluster: there to the same places."""
        if ranks is None:
            self.send(target, size, data, barrier, lanes, site, units)
            return
        for places, name in self.batch.clusters.ranks(ranks, lanes):
            to, bars = (
                tuple(lanes.expand(v).reshape(-1)[places] if isinstance(v, np.ndarray) else v for v in one)
                for one in (target, barrier)
            )
            self.send(to, size[places], [data[place] for place in places.tolist()], bars, name, site, units)

    def send(self, target, size: np.ndarray, data: list, barrier, lanes: Lanes, site: Site, units: int = 0) -> None:
        """Send each lane's words on their way into shared memory, and to the mbarrier that counts them.

        units: 0 for a range; for a box, the 16-byte pieces of a row that its swizzle exchanges.
        """
        barriers = list(self.batch.mbarriers.spots(barrier, lanes, site))
        owner = np.zeros(lanes.count, np.int64)  # which barrier, and in which block it lies
        home = np.zeros(lanes.count, np.int64)
        for number, (spot, _) in enumerate(barriers):
            owner[spot.place], home[spot.place] = number, spot.block
        for spot in self._spots(target, size, lanes, site, BOX_ALIGNMENT if units else ALIGNMENT):
            key = size[spot.place] * len(barriers) + owner[spot.place]
            for one in np.unique(key).tolist():
                length, number = divmod(one, len(barriers))
                chosen = np.flatnonzero(key == one)
                places = spot.place[chosen]
                rows = [data[place] for place in places.tolist()]
                alike = all(row is rows[0] for row in rows)
                load = Load(
                    barriers[number][1], home[places], spot.region,
                    _words(spot, length, units), spot.block[chosen],
                    np.broadcast_to(rows[0], (len(rows), length // 4)) if alike else np.stack(rows), length, self.count,
                )  # fmt: skip
                self.begin(load, spot.thread[chosen], site)

    def begin(self, load: Load, thread: np.ndarray, site: Site) -> None:
        """Send one set of copies on its way: from now on their targets hold poison."""
        load.number = self.count
        self.count += 1
        load.region.words[load.words[:, None], load.block[None, :]] = POISON
        self.loads.append(load)
        for block, one in zip(load.block.tolist(), thread.tolist(), strict=True):
            self.batch.observations.issued(load, block, one, site)

    def deliver(self, barrier: MBarrier, blocks: np.ndarray) -> None:
        """Let the bytes arrive that a barrier counts, in some blocks."""
        still, arrived = [], []
        for load in self.loads:
            if load.barrier is not barrier:
                still.append(load)
                continue
            now = np.isin(load.barrier_block, blocks)
            if now.any():
                arrived.append(_part(load, now))
            if not now.all():
                still.append(_part(load, ~now))
        self.loads = still
        for load in arrived:
            load.region.words[load.words[:, None], load.block[None, :]] = load.data.T
            self.batch.observations.landed(load)
            self.batch.mbarriers.landed(barrier, load.barrier_block, load.size)

    # --- from shared memory ----------------------------------------------------------------------------------------

    # --- boxes of a tensor -----------------------------------------------------------------------------------------

    def load_box(self, target, tensor, corner: tuple, barrier, ranks, lanes: Lanes, read: Site, write: Site) -> None:
        """cp.async.bulk.tensor.shared.global: a box at some coordinates; what lies outside is filled."""
        for content, part in self._maps(tensor, lanes, read):
            data = []
            for where, region in self._boxes(content, corner, part, lanes, read):
                row = np.full(where.size, NAN_FILL if content.nan else 0, np.uint64).astype(f"u{content.element}")
                inside = where >= 0
                row[inside] = _elements(region, content.element)[where[inside] // content.element]
                data.append(row.view(np.uint32))
                if self.batch.trace is not None:
                    self.batch.trace.reached(region, "load", where[inside])
            if self.batch.trace is not None:
                self.batch.trace.copied(read, "global", np.full(part.count, content.bytes))
            size = np.full(part.count, content.bytes)
            to, bars = (tuple(self._seen_by(part, lanes, value) for value in one) for one in (target, barrier))
            named = self._seen_by(part, lanes, ranks)
            self.cast(to, size, data, bars, named, part, write, SWIZZLE_UNITS[content.swizzle])

    def store_box(self, tensor, corner: tuple, source, lanes: Lanes, read: Site, write: Site) -> None:
        """cp.async.bulk.tensor.global.shared: what lies outside is left out."""
        for content, part in self._maps(tensor, lanes, write):
            targets = []
            for where, region in self._boxes(content, corner, part, lanes, write, stored=True):
                bytes_ = where[:, None] + np.arange(content.element)
                targets.append((region, np.where(where[:, None] < 0, -1, bytes_).reshape(-1)))
                if self.batch.trace is not None:
                    self.batch.trace.reached(region, "store", where[where >= 0])
            if self.batch.trace is not None:
                self.batch.trace.copied(write, "global", np.full(part.count, content.bytes))
            size = np.full(part.count, content.bytes)
            at = tuple(self._seen_by(part, lanes, value) for value in source)
            self._take(at, size, targets, None, None, part, read, SWIZZLE_UNITS[content.swizzle])

    @staticmethod
    def _seen_by(part: Lanes, lanes: Lanes, value):
        """Return what some lanes of a set see of one of its values."""
        if part is lanes or not isinstance(value, np.ndarray):
            return value
        return lanes.expand(value).reshape(-1)[np.searchsorted(lanes.positions(), part.positions())]

    def _maps(self, tensor, lanes: Lanes, site: Site):
        """Yield the tensor maps that lanes point to, with the lanes."""
        value, offset, space = tensor
        located = list(spots(self.batch.memory.locate(value, offset, space, lanes, site), lanes))
        for spot in located:
            content = decode(spot.region.data[spot.offset : spot.offset + MAP_BYTES].tobytes())
            if content is None:
                raise fault_of(self.batch, "tensor map", site, spot, np.True_, lambda _, s=spot: (
                    f"{s.region.name} has no tensor map at byte {s.offset}: pass one that tensor_map() made, as a "
                    "parameter by value"
                ))  # fmt: skip
            yield content, lanes if len(located) == 1 else spot.lanes

    def _boxes(self, content: TensorMap, corner: tuple, part: Lanes, lanes: Lanes, site: Site, stored: bool = False):
        """Yield, for each lane, where the elements of its box lie in an array (-1: outside), and the array.

        stored: boxes are written, which may hang over the end of the tensor, but not begin before it.
        """
        region = self.batch.memory.regions[content.address >> SLOT_SHIFT]
        if len(corner) != len(content.box):
            block, thread = _who(part)
            spot = Spot(region, 0, block, thread, np.arange(part.count), part, block)
            raise fault_of(
                self.batch, "tensor map", site, spot, np.True_,
                lambda _: f"the map has {len(content.box)} axes, and the instruction {len(corner)}",
            )  # fmt: skip
        corners = [part.expand(self._seen_by(part, lanes, value)).reshape(-1).astype(np.int64) for value in corner]
        askew = corners[0] * content.element % BOX_START != 0
        if askew.any():
            block, thread = _who(part)
            spot = Spot(region, 0, block, thread, np.arange(part.count), part, block)
            raise fault_of(self.batch, "misaligned", site, spot, askew, lambda bad: (
                f"the box begins {corners[0][bad]} elements of {content.element} bytes into the innermost axis: it may "
                f"begin at multiples of {BOX_START} bytes only, and a GPU stops with an illegal instruction"
            ))  # fmt: skip
        before = np.any([values < 0 for values in corners], axis=0)
        if stored and before.any():
            block, thread = _who(part)
            spot = Spot(region, 0, block, thread, np.arange(part.count), part, block)
            raise fault_of(self.batch, "out of bounds", site, spot, before, lambda bad: (
                f"the box begins at {{{', '.join(str(values[bad]) for values in corners)}}}: one that is stored may "
                "hang over the end of its tensor, but not begin before it, and a GPU stops with an illegal instruction"
            ))  # fmt: skip
        start = content.address - region.base
        for lane in range(part.count):
            where = content.offsets(tuple(int(values[lane]) for values in corners))
            yield np.where(where < 0, -1, where + start), region

    def store(self, target, source, size, operation, dtype, lanes: Lanes, read: Site, write: Site) -> None:
        """cp.async.bulk.global.shared, or with an operation cp.reduce.async.bulk."""
        size = lanes.expand(size).reshape(-1).astype(np.int64)
        targets: list = [None] * lanes.count
        for spot in self._spots(target, size, lanes, write):
            if not spot.region.data.flags.writeable:
                raise fault_of(self.batch, "read only", write, spot, np.True_, lambda _, r=spot.region: (
                    f"{r.name} is read-only memory"
                ))  # fmt: skip
            for place in spot.place.tolist():
                start = spot.offset
                targets[place] = (spot.region, slice(start, start + int(size[place])))
        self._take(source, size, targets, operation, dtype, lanes, read)

    def _take(self, source, size, targets: list, operation, dtype, lanes: Lanes, read: Site, units: int = 0) -> None:
        """Note what is to be copied out of shared memory."""
        positions = lanes.positions()
        for spot in self._spots(source, size, lanes, read, BOX_ALIGNMENT if units else ALIGNMENT):
            for length in np.unique(size[spot.place]).tolist():
                chosen = np.flatnonzero(size[spot.place] == length)
                words = _words(spot, length, units)
                position = positions[spot.place[chosen]]
                store = Store(
                    spot.region, words, spot.block[chosen], position, self.committed.reshape(-1)[position],
                    [targets[place] for place in spot.place[chosen].tolist()], operation, dtype, read,
                )  # fmt: skip
                self.batch.observations.copied_out(spot.region, words, store.block, spot.thread[chosen], read)
                self.stores.append(store)

    def commit(self, lanes: Lanes) -> None:
        """cp.async.bulk.commit_group."""
        self.committed += lanes.mask()

    def wait(self, newest: int, only_read: bool, lanes: Lanes) -> None:
        """cp.async.bulk.wait_group: finish the groups of these threads but the newest; with .read, read the source."""
        if not self.stores:
            return
        mask, committed = lanes.mask().reshape(-1), self.committed.reshape(-1)
        still = []
        for store in self.stores:
            done = mask[store.position] & (store.group < committed[store.position] - newest)
            for part, ready in ((_split(store, done), True), (_split(store, ~done), False)):
                if part is None:
                    continue
                if ready and part.data is None:
                    part.data = _read(part)
                    self.batch.observations.read_out(part.region, part.words, part.block)
                if ready and not only_read:
                    _write(part)
                else:
                    still.append(part)
        self.stores = still

    def left(self, lanes: Lanes) -> None:
        """Threads leave the kernel: what they copied out of shared memory must have been read."""
        if not self.stores:
            return
        mask = lanes.mask().reshape(-1)
        for store in self.stores:
            gone = mask[store.position] & (store.data is None)
            if gone.any():
                thread, block = (store.position // self.batch.universe.blocks), store.block
                spot = Spot(store.region, 0, block, thread, thread, self.batch.universe.flat(store.position), block)
                raise fault_of(self.batch, "bulk copy without its wait", store.site, spot, gone, lambda _, s=store: (
                    f"it leaves the kernel while its copy out of {s.region.name} is on its way: "
                    "cp.async.bulk.commit_group and cp.async.bulk.wait_group.read 0 must come first"
                ))  # fmt: skip

    def finish(self) -> None:
        """Complete at the end of the batch the copies whose source has been read."""
        for store in self.stores:
            if store.data is not None:
                _write(store)
        self.stores = []

    # --- what both need --------------------------------------------------------------------------------------------

    def _spots(self, address, size: np.ndarray, lanes: Lanes, site: Site, alignment: int = ALIGNMENT):
        """Yield where lanes point, after a look at alignment and at the ends of the array."""
        value, offset, space = address
        where = self.batch.memory.locate(value, offset, space, lanes, site)
        parts = where.parts if isinstance(where, Scattered) else [(None, where)]
        kinds = {part.region.space for _, part in parts}
        for spot in spots(where, lanes):
            here = size[spot.place]
            start = spot.offset + spot.region.base
            bad = (here % ALIGNMENT != 0) | (start % alignment != 0)
            if bad.any():
                raise fault_of(self.batch, "misaligned", site, spot, bad, lambda i, s=spot, n=here: (
                    f"{int(n[i])} bytes at byte {s.offset} of {s.region.name}: the address must be a multiple of "
                    f"{alignment}, and the size of {ALIGNMENT}"
                ))  # fmt: skip
            outside = (spot.offset < 0) | (spot.offset + here > spot.region.size)
            if outside.any():
                raise fault_of(self.batch, "out of bounds", site, spot, outside, lambda i, s=spot, n=here: (
                    f"bytes {s.offset} to {s.offset + int(n[i]) - 1} of {s.region.size} in {s.region.name}"
                ))  # fmt: skip
            if self.batch.trace is not None and spot.region.space == "global":
                for length in np.unique(here).tolist():
                    every = np.arange(spot.offset, spot.offset + length, ALIGNMENT)
                    self.batch.trace.reached(spot.region, site.verb, every)
            yield spot
        if self.batch.trace is not None:
            (kind,) = kinds if len(kinds) == 1 else ("global",)
            self.batch.trace.copied(site, kind, size)


def _words(spot: Spot, length: int, units: int) -> np.ndarray:
    """Return the words of a range of shared memory, in the order of the data that a swizzle of a box lays there."""
    if units <= 1:
        return np.arange(spot.offset // 4, (spot.offset + length) // 4)
    pieces = swizzled(spot.region.base + spot.offset + np.arange(0, length, ALIGNMENT), units) - spot.region.base
    return (pieces[:, None] // 4 + np.arange(4)).reshape(-1)


def _elements(region, width: int) -> np.ndarray:
    """Return a region as elements of some bytes."""
    return region.data[: region.data.size // width * width].view(f"u{width}")


def _who(lanes: Lanes) -> tuple[np.ndarray, np.ndarray]:
    """Return block and thread of each lane."""
    return lanes.expand(lanes.block).reshape(-1), lanes.expand(lanes.thread).reshape(-1)


def _part(load: Load, mask: np.ndarray) -> Load:
    return Load(load.barrier, load.barrier_block[mask], load.region, load.words, load.block[mask], load.data[mask],
                load.size, load.number)  # fmt: skip


def _split(store: Store, mask: np.ndarray) -> Store | None:
    if not mask.any():
        return None
    targets = [target for target, chosen in zip(store.targets, mask.tolist(), strict=True) if chosen]
    data = store.data[mask] if store.data is not None else None
    return Store(store.region, store.words, store.block[mask], store.position[mask], store.group[mask], targets,
                 store.operation, store.dtype, store.site, data)  # fmt: skip


def _read(store: Store) -> np.ndarray:
    """Return the rows of a copy's source."""
    return np.ascontiguousarray(store.region.words[store.words[:, None], store.block[None, :]].T)


def _write(store: Store) -> None:
    for row, (region, where) in zip(store.data, store.targets, strict=True):
        new = row.view(np.uint8)
        if not isinstance(where, slice):
            new, where = new[where >= 0], where[where >= 0]
        if store.operation is not None:
            old = np.ascontiguousarray(region.data[where])
            new = _REDUCTIONS[store.operation](old.view(store.dtype), np.ascontiguousarray(new).view(store.dtype))
            new = new.astype(store.dtype).view(np.uint8)
        region.data[where] = new
