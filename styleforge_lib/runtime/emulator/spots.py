"""Where lanes point, byte by byte: what barriers, copies and their faults need of an address.

Contents: `Spot` (lanes that point to one byte of one variable), `spots` (an address as such), `fault_of`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .address_space import Site, triple
from .faults import EmulatorFault, plural
from .lanes import Lanes
from .located import Scattered


@dataclass(slots=True)
class Spot:
    """Lanes that point to one byte of one variable: blocks (of the shared memory), threads, and places in the set.

    home: the threads' own blocks, which differ from the memory's where that is another's of the cluster.
    """

    region: object
    offset: int
    block: np.ndarray
    thread: np.ndarray
    place: np.ndarray
    lanes: Lanes
    home: np.ndarray

    def part(self, mask: np.ndarray) -> Spot:
        """Return some of the lanes."""
        lanes = self.lanes.universe.flat(self.lanes.positions()[mask])
        return Spot(
            self.region, self.offset, self.block[mask], self.thread[mask], self.place[mask], lanes, self.home[mask]
        )


def spots(where, lanes: Lanes) -> Iterator[Spot]:
    """Yield a located address byte by byte; places are positions in the flattened values of `lanes`."""
    parts = where.parts if isinstance(where, Scattered) else [(None, where)]
    for mask, at in parts:
        part = at.lanes
        place = np.arange(part.count) if mask is None else np.flatnonzero(np.broadcast_to(mask, lanes.shape))
        offset = np.broadcast_to(np.asarray(at.offset), part.shape).reshape(-1)
        block = part.expand(part.block).reshape(-1)
        thread, home = (lanes.expand(value).reshape(-1)[place] for value in (lanes.thread, lanes.block))
        if part.count and (offset == offset[0]).all():
            yield Spot(at.region, int(offset[0]), block, thread, place, part, home)
            continue
        for value in np.unique(offset).tolist():
            chosen = np.flatnonzero(offset == value)
            few = part.universe.flat(part.positions()[chosen])
            yield Spot(at.region, value, block[chosen], thread[chosen], place[chosen], few, home[chosen])


def fault_of(batch, kind: str, site: Site, spot: Spot, bad: np.ndarray, tail) -> EmulatorFault:
    """Build the fault of the lanes of a spot that are `bad`; `tail(place)` words the rest for one of them."""
    bad = np.broadcast_to(bad, spot.block.shape)
    chosen = np.flatnonzero(bad)
    first = int(chosen[np.lexsort((spot.thread[chosen], spot.home[chosen]))[0]])
    block = int(spot.home[first])
    block_index, thread = batch.coordinates(block, int(spot.thread[first]))
    sentence = (
        f"{site.name} at line {site.line}: {plural(chosen.size, 'thread')}, e.g. block {triple(block_index)} thread "
        f"{triple(thread)}: {tail(first)}"
    )
    return EmulatorFault(kind, sentence, line=site.line, block=block_index, threads=(thread,))
