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
            for place in spot.place.tolist():
                data[place] = spot.region.data[spot.offset : spot.offset + int(size[place])]
        barriers = self.barriers_of(barrier, lanes, write)
        for spot in self._spots(target, size, lanes, write):
            for number, place in enumerate(spot.place.tolist()):
                words = np.arange(spot.offset // 4, (spot.offset + int(size[place])) // 4)
                self._begin(barriers[place], spot, number, words, data[place], write)
        self._issue_noted()

    def barriers_of(self, address, lanes: Lanes, site: Site) -> list[tuple[MBarrier, int]]:
        """Return the mbarrier of each lane and the block that it lies in."""
        found: list = [None] * lanes.count
        for spot, barrier in self.batch.mbarriers.spots(address, lanes, site):
            for place, block in zip(spot.place.tolist(), spot.block.tolist(), strict=True):
                found[place] = (barrier, block)
        return found

    def _begin(self, barrier, spot: Spot, number: int, words: np.ndarray, data: np.ndarray, site: Site) -> None:
        """Send one lane's bytes on their way; copies of other blocks that are alike go together."""
        block = int(spot.block[number])
        spot.region.words[words, block] = POISON
        row = np.ascontiguousarray(data).view(np.uint32)
        last = self.loads[-1] if self.loads else None
        alike = (
            last is not None
            and last.number == self.count
            and last.region is spot.region
            and last.barrier is barrier[0]
            and last.words.size == words.size
            and (not words.size or (last.words[0] == words[0] and last.words[-1] == words[-1]))
        )
        if not alike:
            last = Load(barrier[0], np.zeros(0, np.int64), spot.region, words, np.zeros(0, np.int64), [], data.size,
                        self.count)  # fmt: skip
            self.loads.append(last)
        last.block = np.append(last.block, block)
        last.barrier_block = np.append(last.barrier_block, barrier[1])
        last.data.append(row)
        self.batch.observations.issued(last, block, int(spot.thread[number]), site)

    def _issue_noted(self) -> None:
        for load in self.loads:
            if load.number == self.count and isinstance(load.data, list):
                load.data = np.stack(load.data) if load.data else np.zeros((0, 0), np.uint32)
        self.count += 1

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
