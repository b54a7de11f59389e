"""What the lanes of a batch can reach: load, store and atomics, with their bounds and alignment.

Contents: `Memory`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .address_space import (
    BANK_MIDDLE,
    BANK_SHIFT,
    LOCAL_SLOT,
    RANK_SHIFT,
    SHARED_SLOT,
    SLOT_MIDDLE,
    SLOT_SHIFT,
    WINDOW,
    Bank,
    Region,
    Site,
    triple,
)
from .atomics import apply_atomic, flushes
from .faults import EmulatorFault, plural
from .lanes import ALL, Lanes
from .located import Located, Scattered

_U4, _I8 = np.dtype(np.uint32), np.dtype(np.int64)
_WORTH_ROWS = 1024
NARROW = 64  # blocks side by side: more lie too far apart to be read thread by thread
# A type of as many bytes as a vector access has, to move them by.
_WHOLE = {2: np.dtype(np.uint16), 4: _U4, 8: np.dtype(np.uint64), 16: np.dtype(np.complex128)}
_UNSIGNED = {1: np.dtype(np.uint8), 2: np.dtype(np.uint16)}


class Memory:
    """What the lanes of one batch can reach."""

    def __init__(self, regions: dict[int, Region], coordinates, trace=None):
        self.regions = regions
        self.shared: dict[int, Bank] = {}
        self.local: dict[int, Bank] = {}
        self.coordinates = coordinates
        self.trace = trace
        self.clusters = None
        self.later: list[tuple] | None = None  # stores to global memory that wait for other batches (`batches`)

    # --- locating --------------------------------------------------------------------------------------------------

    def locate(self, address, low: int, space: str, lanes: Lanes, site: Site):
        """Look at an address register: which region, and how far its lanes reach; `low` is the least offset used."""
        if isinstance(address, np.ndarray):
            located = self._locate_quickly(address, low, space, lanes)
            if located is not None:
                return located
            least, most = int(address.min()), int(address.max())
        else:
            least = most = int(address)
        least, most = least + low, most + low
        if space == "shared" and most >> RANK_SHIFT:
            return self._elsewhere(address, low, lanes, site)
        if space in ("shared", "local"):
            slot, same = least >> BANK_SHIFT, most >> BANK_SHIFT == least >> BANK_SHIFT
            banks = self.shared if space == "shared" else self.local
            region = banks.get(slot)
        else:
            slot, same = least >> SLOT_SHIFT, most >> SLOT_SHIFT == least >> SLOT_SHIFT
            if space == "generic" and slot in (SHARED_SLOT, LOCAL_SLOT) and same:
                space = "shared" if slot == SHARED_SLOT else "local"
                window = WINDOW[space]
                inner = address - np.uint64(window)
                return self.locate(inner, low, space, lanes, site)
            region = self.regions.get(slot)
        if not same:
            return self._scattered(address, low, space, lanes, site)
        if region is None:
            self._nowhere(address, low, lanes, site)
        base = region.base
        if isinstance(address, np.ndarray):
            offset = address.view(np.int64) if address.dtype.itemsize == 8 else address.astype(np.int64)
            offset = offset - (base - low)
            bits = int(np.bitwise_or.reduce(offset, axis=None))
        else:
            bits = offset = least - base
        return Located(region, lanes, offset, least - base, most - base, self._bits(offset, bits, base))

    def _locate_quickly(self, address: np.ndarray, low: int, space: str, lanes: Lanes) -> Located | None:
        """Return where addresses lie that are all in the upper half of one slot, where its data is.

        One `or` of all offsets tells that, and how they are aligned; their least and greatest are left for later.
        """
        first = address.item(0) + low
        if space == "shared":
            region, reach = self.shared.get(first >> BANK_SHIFT), BANK_MIDDLE
        elif space == "local":
            region, reach = self.local.get(first >> BANK_SHIFT), BANK_MIDDLE
        else:
            region, reach = self.regions.get(first >> SLOT_SHIFT), SLOT_MIDDLE
        if region is None:
            return None
        base = region.base
        offset = address.view(_I8) if address.dtype.itemsize == 8 else address.astype(_I8)
        offset = offset - (base - low)
        bits = int(np.bitwise_or.reduce(offset, axis=None))
        if not 0 <= bits < reach - (base & (reach - 1)):
            return None
        return Located(region, lanes, offset, 0, bits, self._bits(offset, bits, base), exact=False)

    @staticmethod
    def _bits(offset, bits: int, base: int) -> int:
        """Return the alignment bits of all absolute addresses; `bits` are those of the offsets."""
        if not base & 15:
            return bits & 15
        absolute = offset + (base & 15)
        return (
            int(np.bitwise_or.reduce(absolute, axis=None)) & 15 if isinstance(absolute, np.ndarray) else absolute & 15
        )

    def _elsewhere(self, address, low: int, lanes: Lanes, site: Site) -> Scattered:
        """Look at addresses in the shared memory of other blocks of the cluster."""
        parts = self.clusters.parts(np.asarray(address), lanes, site)
        return Scattered(lanes, [(mask, self.locate(one, low, "shared", name, site)) for mask, one, name in parts])

    def _scattered(self, address, low: int, space: str, lanes: Lanes, site: Site) -> Scattered:
        full = lanes.expand(address)
        slots = (full + full.dtype.type(low % (1 << (8 * full.itemsize)))) >> full.dtype.type(
            BANK_SHIFT if space in ("shared", "local") else SLOT_SHIFT
        )
        positions = lanes.positions().reshape(lanes.shape)
        parts = []
        for slot in np.unique(slots):
            mask = slots == slot
            part = lanes.universe.flat(positions[mask])
            parts.append((mask, self.locate(full[mask], low, space, part, site)))
        return Scattered(lanes, parts)

    # --- faults ----------------------------------------------------------------------------------------------------

    def _culprits(self, bad: np.ndarray, lanes: Lanes):
        """How many lanes, and block, thread and place in `bad` of the first (lowest block, then thread)."""
        bad = lanes.expand(bad).reshape(-1)
        block = lanes.expand(lanes.block).reshape(-1)[bad]
        thread = lanes.expand(lanes.thread).reshape(-1)[bad]
        first = int(np.lexsort((thread, block))[0])
        return int(bad.sum()), int(block[first]), int(thread[first]), int(np.flatnonzero(bad)[first])

    def fault(self, kind: str, site: Site, bad, lanes: Lanes, tail) -> EmulatorFault:
        """Build the fault of the lanes in `bad`; `tail(place)` words the rest of the sentence for one lane."""
        count, block, thread, place = self._culprits(bad, lanes)
        block_index, thread_index = self.coordinates(block, thread)
        sentence = (
            f"{site}: {plural(count, 'thread')}, e.g. block {triple(block_index)} thread {triple(thread_index)}, "
            f"{tail(place)}"
        )
        return EmulatorFault(kind, sentence, line=site.line, block=block_index, threads=(thread_index,))

    def _nowhere(self, address, low: int, lanes: Lanes, site: Site) -> None:
        full = np.broadcast_to(np.asarray(address), lanes.shape).reshape(-1)

        def tail(place: int) -> str:
            value = int(full[place]) + low
            what = "a null pointer" if abs(value) < 1 << 20 else "an address in no array"
            return f"address {value:#x}: {what}"

        raise self.fault("out of bounds", site, np.ones(lanes.shape, bool), lanes, tail)

    def _read_only(self, at: Located, site: Site) -> EmulatorFault:
        every = np.ones(at.lanes.shape, bool)
        return self.fault("read only", site, every, at.lanes, lambda place: f"{at.region.name} is read-only memory")

    def check(self, at: Located, delta: int, width: int, site: Site) -> None:
        """Raise where an access leaves its region or is not aligned to its own width."""
        region = at.region
        if at.low + delta < 0 or at.high + delta + width > region.size:
            at.narrow()
        if at.low + delta < 0 or at.high + delta + width > region.size:
            offset = np.broadcast_to(np.asarray(at.offset + delta), at.lanes.shape)
            bad = (offset < 0) | (offset + width > region.size)
            flat = offset.reshape(-1)
            raise self.fault(
                "out of bounds",
                site,
                bad,
                at.lanes,
                lambda place: f"byte {int(flat[place])} of {region.size} in {region.name}",
            )
        if (at.address_bits | delta) & (width - 1):
            offset = np.broadcast_to(np.asarray(at.offset + delta), at.lanes.shape)
            if not (bad := (offset + region.base) % width != 0).any():
                return
            flat = offset.reshape(-1)
            raise self.fault(
                "misaligned",
                site,
                bad,
                at.lanes,
                lambda place: f"byte {int(flat[place])} in {region.name}: the address must be a multiple of {width}",
            )

    # --- load ------------------------------------------------------------------------------------------------------

    def load_one(self, at, delta: int, dtype: np.dtype, site: Site):
        """Load one element per lane."""
        if type(at) is Scattered:
            return self._load_scattered(at, delta, dtype, 1, site)[0]
        width, region = dtype.itemsize, at.region
        if at.low + delta < 0 or at.high + delta + width > region.size or (at.address_bits | delta) & (width - 1):
            self.check(at, delta, width, site)
        if self.trace is not None:
            self.trace.access(self, at, delta, site)
        if region.banked:
            if width == 4 and region.shared and type(at.offset) is int and at.lanes.is_full:
                return region.row((at.offset + delta) >> 2, dtype)
            return self._fetch(at, region.typed(dtype), delta) if width == 4 else self._load_bank(at, delta, dtype)
        data, left_out = region.typed(dtype)
        if at.spread and at.offset.size > _WORTH_ROWS and (found := self._walked(at, delta, dtype, 1)):
            return found[0]
        index = at.index(width.bit_length() - 1, left_out)
        skip = delta // width
        if isinstance(index, int):
            return data[index + skip]
        return data[skip:].take(index) if at.low >= 0 else data.take(index + skip)

    def load_rows(self, at, deltas: Sequence[int], dtype: np.dtype, sites: tuple[Site, ...]) -> list:
        """Load words of shared memory that should be the same for all threads of a block, one after the other.

        Those that lie side by side in this order have a range for `deltas`.
        """
        if type(at) is Located and self.trace is None and type(at.offset) is int and at.lanes.is_full:
            region, offset = at.region, at.offset
            in_order = type(deltas) is range
            inside = at.low >= 0 and at.high + (deltas[-1] if in_order else max(deltas)) + 4 <= region.size
            if inside and region.banked and region.shared and not at.address_bits & 3:
                if in_order:
                    first = (offset + deltas[0]) >> 2
                    return region.rows(range(first, first + len(deltas)), dtype)
                return region.rows([(offset + delta) >> 2 for delta in deltas], dtype)
        return [self.load_one(at, delta, dtype, site) for delta, site in zip(deltas, sites, strict=True)]

    def load(self, at, delta: int, dtype: np.dtype, count: int, site: Site) -> tuple:
        """Load `count` consecutive elements per lane; returns one value for each."""
        if isinstance(at, Scattered):
            return self._load_scattered(at, delta, dtype, count, site)
        width = dtype.itemsize
        self.check(at, delta, width * count, site)
        if self.trace is not None:
            self.trace.access(self, at, delta, site)
        if at.region.banked:
            return tuple(self._load_bank(at, delta + position * width, dtype) for position in range(count))
        data, left_out = at.region.typed(dtype)
        many = np.size(at.offset) > _WORTH_ROWS
        if at.spread and many and (found := self._walked(at, delta, dtype, count)):
            return found
        if count > 1 and not at.region.base % (width * count) and not left_out and many:
            # One row of `count` elements per lane, then the columns: fewer cache misses than `count` gathers.
            rows = data[: data.size // count * count].reshape(-1, count)
            place, skip = at.index((width * count).bit_length() - 1, 0), delta // (width * count)
            if at.low < 0:
                place, skip = place + skip, 0
            found = (rows[skip:] if skip else rows).take(place, axis=0)
            columns = np.ascontiguousarray(found.reshape(-1, count).T)
            return tuple(columns.reshape(count, *place.shape))
        index, skip = at.index(width.bit_length() - 1, left_out), delta // width
        if isinstance(index, int):
            return tuple(data[index + skip + position] for position in range(count))
        if at.low < 0:
            index, skip = index + skip, 0
        return tuple(data[skip + position :].take(index) for position in range(count))

    @staticmethod
    def _walked(at: Located, delta: int, dtype: np.dtype, count: int) -> tuple[np.ndarray, ...] | None:
        whole = _WHOLE.get(dtype.itemsize * count)
        return None if whole is None else at.walked(delta, whole, dtype, count)

    def _load_scattered(self, at: Scattered, delta: int, dtype: np.dtype, count: int, site: Site) -> tuple:
        out = tuple(np.empty(at.lanes.shape, dtype) for _ in range(count))
        for mask, part in at.parts:
            for whole, value in zip(out, self.load(part, delta, dtype, count, site), strict=True):
                whole[mask] = value
        return out

    def _load_bank(self, at: Located, delta: int, dtype: np.dtype):
        width = dtype.itemsize
        if width == 8:
            low, high = self._load_bank(at, delta, _U4), self._load_bank(at, delta + 4, _U4)
            return (low.astype(np.uint64) | (high.astype(np.uint64) << np.uint64(32))).view(dtype)
        if width < 4:
            word = self._fetch(at, at.region.typed(_U4), delta)
            place = (at.offset + delta) & 3
            shift = np.uint32(8 * place) if isinstance(place, int) else (place << 3).astype(np.uint32)
            return (word >> shift).astype(_UNSIGNED[width]).view(dtype)
        return self._fetch(at, at.region.typed(dtype), delta)

    @staticmethod
    def _fetch(at: Located, words: np.ndarray, delta: int):
        """Words at a byte offset, in the narrowest shape that holds them."""
        lanes, region = at.lanes, at.region
        if at.address_bits & 3 or delta & 3:
            index = (at.offset + delta) >> 2
            skip = 0
        else:
            index, skip = at.index(2, 0), delta >> 2
        shared = region.shared
        if isinstance(index, int):
            if shared:
                row = region.row(index + skip, words.dtype)
                if not isinstance(row, np.ndarray) or lanes.is_full:
                    return row
                return row[0].take(lanes.block) if lanes.index is not None else row[:, lanes.columns]
            row = words[index + skip]
            if lanes.index is not None:
                return row.take(lanes.index)
            universe = lanes.universe
            return lanes.gather(row.reshape(universe.threads, universe.blocks)).copy()
        if at.low < 0:
            index, skip = index + skip, 0
        if shared and lanes.index is None and index.shape[1] == 1:
            value = (words[skip:] if skip else words).take(index[:, 0], axis=0)
            return value if lanes.every_block else value[:, lanes.columns]
        flat = (index + skip) * region.owners + at.owner()
        return words.reshape(-1).take(flat)

    # --- store -----------------------------------------------------------------------------------------------------

    def store(self, at, delta: int, values: tuple, dtype: np.dtype, site: Site) -> None:
        """Store consecutive elements per lane. Of lanes that write one place, the last wins."""
        if isinstance(at, Scattered):
            for mask, part in at.parts:
                picked = tuple(at.lanes.expand(value)[mask] for value in values)
                self.store(part, delta, picked, dtype, site)
            return
        width = dtype.itemsize
        self.check(at, delta, width * len(values), site)
        if self.trace is not None:
            self.trace.access(self, at, delta, site, values)
        if at.region.banked:
            for position, value in enumerate(values):
                self._store_bank(at, delta + position * width, value, dtype)
            return
        data, left_out = at.region.typed(dtype)
        if not data.flags.writeable:
            raise self._read_only(at, site)
        if self.later is not None:
            self.later.append((at, delta, tuple(value.copy() for value in values), dtype, site))
            return
        wide, many = width * len(values), np.size(at.offset) > _WORTH_ROWS
        if many and at.offset.ndim == 2 and at.offset.shape[1] <= NARROW and (steps := at.steps(wide)) is not None:
            first = int(at.offset[0, 0]) + delta
            for place, value in zip(range(first, first + wide, width), values, strict=True):
                np.ndarray(at.offset.shape, dtype, at.region.data, place, steps)[...] = value
            return
        whole = _WHOLE.get(wide)
        if len(values) > 1 and whole and not at.region.base % wide and not left_out and many:
            # One element of `wide` bytes per lane: a quarter of the time of as many short rows.
            place, skip = at.index(wide.bit_length() - 1, 0), delta // wide
            place = place + skip if skip else place
            rows = np.empty((*place.shape, len(values)), dtype)
            for position, value in enumerate(values):
                rows[..., position] = _last_where_narrow(value, place)
            data[: data.size // len(values) * len(values)].view(whole)[place] = rows.view(whole)[..., 0]
            return
        index, skip = at.index(width.bit_length() - 1, left_out), delta // width
        if at.low < 0:
            index, skip = index + skip, 0
        for position, value in enumerate(values):
            if isinstance(index, int):
                data[index + skip + position] = value.reshape(-1)[-1] if isinstance(value, np.ndarray) else value
                continue
            data[skip + position :][index] = _last_where_narrow(value, index)

    @staticmethod
    def _store_bank(at: Located, delta: int, value, dtype: np.dtype) -> None:
        region, lanes, width = at.region, at.lanes, dtype.itemsize
        if width == 8:
            bits = np.asarray(value).view(np.uint64)
            low, high = bits.astype(np.uint32), (bits >> np.uint64(32)).astype(np.uint32)
            Memory._store_bank(at, delta, low if bits.ndim else low[()], _U4)
            Memory._store_bank(at, delta + 4, high if bits.ndim else high[()], _U4)
            return
        words = region.words
        shared = region.space == "shared"
        if width < 4:
            offset = at.offset + delta
            flat = ((offset >> 2) * region.owners + at.owner()) * (4 // width) + ((offset & 3) >> (width // 2))
            flat = np.broadcast_to(flat, np.broadcast_shapes(np.shape(flat), np.shape(value)))
            words.view(_UNSIGNED[width]).reshape(-1)[flat] = value.view(_UNSIGNED[width])
            return
        value = value.view(_U4)
        index = at.index(2, 0)
        skip = delta >> 2
        if lanes.index is None and shared:
            if isinstance(index, int):
                row = value[-1] if isinstance(value, np.ndarray) else value
                words[index + skip, lanes.columns] = row
                return
            if index.shape[1] == 1:
                rows = index[:, 0] + skip
                if lanes.every_block:
                    words[rows] = value
                elif isinstance(lanes.columns, slice):
                    words[rows, lanes.columns] = value
                else:
                    words[rows[:, None], lanes.columns[None, :]] = value
                return
        if isinstance(index, int) and not shared and lanes.index is None:
            universe = lanes.universe
            row = words[index + skip].reshape(universe.threads, universe.blocks)
            row[lanes._where(ALL, ALL)] = value
            return
        flat = (index + skip) * region.owners + at.owner()
        if isinstance(value, np.ndarray) and flat.size < value.size:
            value = _last_where_narrow(value, flat)
        words.reshape(-1)[flat] = value

    def store_now(self) -> None:
        """Do what has waited, in order."""
        waiting, self.later = self.later or (), None
        for store in waiting:
            self.store(*store)

    # --- atomics ---------------------------------------------------------------------------------------------------

    def atomic(self, at, delta: int, operation: str, operands: tuple, dtype: np.dtype, site: Site, old_needed: bool):
        """Apply a read-modify-write lane by lane; returns what each lane found, or None if nobody asks."""
        if isinstance(at, Scattered):
            out = np.empty(at.lanes.shape, dtype)
            for mask, part in at.parts:
                picked = tuple(at.lanes.expand(value)[mask] for value in operands)
                found = self.atomic(part, delta, operation, picked, dtype, site, True)
                out[mask] = found
            return out
        self._begin_atomic(at, delta, operands, site)
        return self._atomic(at, delta, operation, operands, dtype, old_needed)

    def atomic_vector(self, at, delta: int, operation: str, operands: tuple, dtype: np.dtype, site: Site) -> tuple:
        """Apply a read-modify-write to neighbouring elements, each by itself; returns what each lane found in each."""
        if isinstance(at, Scattered):
            out = tuple(np.empty(at.lanes.shape, dtype) for _ in operands)
            for mask, part in at.parts:
                picked = tuple(at.lanes.expand(value)[mask] for value in operands)
                found = self.atomic_vector(part, delta, operation, picked, dtype, site)
                for whole, value in zip(out, found, strict=True):
                    whole[mask] = value
            return out
        self._begin_atomic(at, delta, operands, site)
        places = range(delta, delta + site.width, dtype.itemsize)
        return tuple(
            self._atomic(at, place, operation, (value,), dtype, True)
            for place, value in zip(places, operands, strict=True)
        )

    def _begin_atomic(self, at: Located, delta: int, operands: tuple, site: Site) -> None:
        self.check(at, delta, site.width, site)
        if not at.region.banked and not at.region.data.flags.writeable:
            raise self._read_only(at, site)
        if self.trace is not None:
            self.trace.access(self, at, delta, site, operands)

    def _atomic(self, at: Located, delta: int, operation: str, operands: tuple, dtype: np.dtype, old_needed: bool):
        width, lanes, region = dtype.itemsize, at.lanes, at.region
        shape = lanes.shape
        values = tuple(lanes.expand(value).reshape(-1) for value in operands)
        if not region.banked:
            data, left_out = region.typed(dtype)
            index = at.index(width.bit_length() - 1, left_out) + delta // width
            index = np.broadcast_to(index, shape).reshape(-1)
            if operation == "add" and dtype == np.float32 and flushes(data[index], values[0]):
                operation = "add.ftz"
        else:
            offset = at.offset + delta
            flat = (offset >> 2) * region.owners + at.owner()
            if width == 8:
                return self._atomic_wide(
                    region, np.broadcast_to(flat, shape).reshape(-1), operation, values, dtype, shape
                )
            if width < 4:
                flat = flat * (4 // width) + ((offset & 3) >> (width // 2))
            data = region.words.reshape(-1).view(dtype)
            index = np.broadcast_to(flat, shape).reshape(-1)
        old = apply_atomic(data, index, operation, values, old_needed)
        return None if old is None else old.reshape(shape)

    @staticmethod
    def _atomic_wide(region: Bank, low_index: np.ndarray, operation: str, values: tuple, dtype, shape):
        """8-byte atomics on banked words: the two halves of the touched elements are joined and put back."""
        words = region.words.reshape(-1)
        places, index = np.unique(low_index, return_inverse=True)
        joined = words[places].astype(np.uint64) | (words[places + region.owners].astype(np.uint64) << np.uint64(32))
        old = apply_atomic(joined.view(dtype), index.reshape(-1), operation, values, True)
        words[places] = joined.astype(np.uint32)
        words[places + region.owners] = (joined >> np.uint64(32)).astype(np.uint32)
        return old.reshape(shape)


def _last_where_narrow(value, index: np.ndarray):
    """Keep the last lane's value along an axis on which the address does not vary."""
    if isinstance(value, np.ndarray) and value.ndim == 2 and index.ndim == 2:
        if index.shape[0] == 1 and value.shape[0] > 1:
            value = value[-1:]
        if index.shape[1] == 1 and value.shape[1] > 1:
            value = value[:, -1:]
    return value
