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

from .lanes import Lanes
from .mbarriers import MBarrier, Spot, fault_of, spots
from .memory import POISON, Scattered, Site

ALIGNMENT = 16
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

    def load(self, target, source, size, barrier, lanes: Lanes, read: Site, write: Site) -> None:
        """cp.async.bulk.shared.global; target, source and barrier are (address, offset, space)."""
        size = lanes.expand(size).reshape(-1).astype(np.int64)
        data: list = [None] * lanes.count
        for spot in self._spots(source, size, lanes, read):
            for length in np.unique(size[spot.place]).tolist():
                row = self._source(spot, length)
                for place in spot.place[size[spot.place] == length].tolist():
                    data[place] = row if row.ndim == 1 else row[:, spot.block[spot.place == place][0]]
        self.send(target, size, data, barrier, lanes, write)

    @staticmethod
    def _source(spot: Spot, length: int) -> np.ndarray:
        """Return the words of a range, as they are now; of shared memory (words, blocks)."""
        if spot.region.banked:
            return spot.region.words[spot.offset // 4 : (spot.offset + length) // 4].copy()
        return spot.region.data[spot.offset : spot.offset + length].view(np.uint32).copy()

    def send(self, target, size: np.ndarray, data: list, barrier, lanes: Lanes, site: Site) -> None:
        """Send each lane's words on their way into shared memory, and to the mbarrier that counts them."""
        barriers = list(self.batch.mbarriers.spots(barrier, lanes, site))
        owner = np.zeros(lanes.count, np.int64)  # which barrier, and in which block it lies
        home = np.zeros(lanes.count, np.int64)
        for number, (spot, _) in enumerate(barriers):
            owner[spot.place], home[spot.place] = number, spot.block
        for spot in self._spots(target, size, lanes, site):
            key = size[spot.place] * len(barriers) + owner[spot.place]
            for one in np.unique(key).tolist():
                length, number = divmod(one, len(barriers))
                chosen = np.flatnonzero(key == one)
                places = spot.place[chosen]
                rows = [data[place] for place in places.tolist()]
                alike = all(row is rows[0] for row in rows)
                load = Load(
                    barriers[number][1], home[places], spot.region,
                    np.arange(spot.offset // 4, (spot.offset + length) // 4), spot.block[chosen],
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
        positions = lanes.positions()
        for spot in self._spots(source, size, lanes, read):
            for length in np.unique(size[spot.place]).tolist():
                chosen = np.flatnonzero(size[spot.place] == length)
                words = np.arange(spot.offset // 4, (spot.offset + length) // 4)
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
                spot = Spot(store.region, 0, block, thread, thread, self.batch.universe.flat(store.position))
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

    def _spots(self, address, size: np.ndarray, lanes: Lanes, site: Site):
        """Yield where lanes point, after a look at alignment and at the ends of the array."""
        value, offset, space = address
        where = self.batch.memory.locate(value, offset, space, lanes, site)
        parts = where.parts if isinstance(where, Scattered) else [(None, where)]
        kinds = {part.region.space for _, part in parts}
        for spot in spots(where, lanes):
            here = size[spot.place]
            start = spot.offset + spot.region.base
            bad = (here | start) % ALIGNMENT != 0
            if bad.any():
                raise fault_of(self.batch, "misaligned", site, spot, bad, lambda i, s=spot, n=here: (
                    f"{int(n[i])} bytes at byte {s.offset} of {s.region.name}: the address and the size must be "
                    f"multiples of {ALIGNMENT}"
                ))  # fmt: skip
            outside = (spot.offset < 0) | (spot.offset + here > spot.region.size)
            if outside.any():
                raise fault_of(self.batch, "out of bounds", site, spot, outside, lambda i, s=spot, n=here: (
                    f"bytes {s.offset} to {s.offset + int(n[i]) - 1} of {s.region.size} in {s.region.name}"
                ))  # fmt: skip
            yield spot
        if self.batch.trace is not None:
            (kind,) = kinds if len(kinds) == 1 else ("global",)
            self.batch.trace.copied(site, kind, size)


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
