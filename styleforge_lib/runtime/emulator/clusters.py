"""Clusters: blocks that run together, wait for each other, and reach each other's shared memory.

A cluster's blocks lie side by side in a batch, in the order of their ranks. An address of shared memory names a block
of the cluster in its bits from 24 up, as rank + 1; with zeros there it is the block's own. An access of another block's
memory is made in the name of that block's thread of the same number, which is all that memory knows of.

Contents: `Clusters` (who is in which, addresses, barrier.cluster), `in_clusters` (the order of blocks in a launch).
Source: PTX ISA, "Cluster of Cooperative Thread Arrays", barrier.cluster, mapa.
"""

from __future__ import annotations

import numpy as np

from .address_space import RANK_SHIFT, WINDOW, Site, triple
from .control_flow import Block
from .lanes import Lanes

_INNER = (1 << RANK_SHIFT) - 1


def in_clusters(numbers: np.ndarray, grid: tuple[int, int, int], cluster: tuple[int, int, int]) -> np.ndarray:
    """Return the blocks of all clusters that some blocks belong to, cluster after cluster and by rank."""
    wide = tuple(size // part for size, part in zip(grid, cluster, strict=True))
    axes = (numbers % grid[0], numbers // grid[0] % grid[1], numbers // (grid[0] * grid[1]))
    x, y, z = (axis // part for axis, part in zip(axes, cluster, strict=True))
    found = np.unique((z * wide[1] + y) * wide[0] + x)[:, None]
    rank = np.arange(cluster[0] * cluster[1] * cluster[2])[None, :]
    corner = (found % wide[0] * cluster[0], found // wide[0] % wide[1] * cluster[1],
              found // (wide[0] * wide[1]) * cluster[2])  # fmt: skip
    inner = (rank % cluster[0], rank // cluster[0] % cluster[1], rank // (cluster[0] * cluster[1]))
    x, y, z = (low + step for low, step in zip(corner, inner, strict=True))
    return ((z * grid[1] + y) * grid[0] + x).reshape(-1)


class Clusters:
    """The clusters of one batch.

    Nobody waits here for ever: who has left is not waited for, and who waits elsewhere is reported there.
    """

    def __init__(self, batch):
        self.batch = batch
        self.dims = batch.launch.cluster
        self.size = self.dims[0] * self.dims[1] * self.dims[2]
        universe = batch.universe
        self.rank = np.arange(universe.blocks) % self.size
        self.arrivals = np.zeros((universe.threads, universe.blocks), np.int64)  # at barrier.cluster, by each thread
        self.waits = np.zeros_like(self.arrivals)
        self.waiting: list[tuple[np.ndarray, int]] = []  # mask of threads and blocks, and where they go on

    def special(self, base: str, axis: str):
        """Return a special register of clusters as a value of the universe; None if it is none."""
        launch, dims = self.batch.launch, self.dims
        rank = self.rank.reshape(1, -1)
        if axis:
            position = "xyz".index(axis)
            inner = (rank % dims[0], rank // dims[0] % dims[1], rank // (dims[0] * dims[1]))[position]
            numbers = self.batch.block_numbers.reshape(1, -1)
            grid = launch.grid
            block = (numbers % grid[0], numbers // grid[0] % grid[1], numbers // (grid[0] * grid[1]))[position]
            return {
                "cluster_ctaid": lambda: inner,
                "cluster_nctaid": lambda: np.uint32(dims[position]),
                "clusterid": lambda: block // dims[position],
                "nclusterid": lambda: np.uint32(grid[position] // dims[position]),
            }.get(base, lambda: None)()
        return {
            "cluster_ctarank": lambda: rank,
            "cluster_nctarank": lambda: np.uint32(self.size),
            "is_explicit_cluster": lambda: np.bool_(self.batch.plan.flat.cluster is not None),
        }.get(base, lambda: None)()

    # --- addresses -------------------------------------------------------------------------------------------------

    def map_address(self, address, rank, generic: bool, lanes: Lanes, site: Site):
        """mapa: an address of shared memory in the block of a rank."""
        rank = lanes.expand(rank).astype(np.int64)
        bad = (rank < 0) | (rank >= self.size)
        if bad.any():
            raise self.batch.memory.fault(
                "out of bounds", site, bad, lanes, lambda place: (
                    f"rank {int(rank.reshape(-1)[place])} in a cluster of {self.size}"
                ),
            )  # fmt: skip
        base = WINDOW["shared"] if generic else 0
        inner = (lanes.expand(address).astype(np.int64) - base) & _INNER
        return (base + (inner | (rank + 1) << RANK_SHIFT)).astype(np.uint64 if generic else np.uint32)

    def rank_of(self, address, generic: bool, lanes: Lanes):
        """getctarank: the rank of the block that an address of shared memory belongs to."""
        named = (lanes.expand(address).astype(np.int64) - (WINDOW["shared"] if generic else 0)) >> RANK_SHIFT
        own = lanes.expand(self.rank[lanes.block])
        return np.where(named > 0, named - 1, own).astype(np.uint32)

    def parts(self, address: np.ndarray, lanes: Lanes, site: Site):
        """Yield (mask, addresses within a block, lanes in whose name they are used) of addresses of a cluster."""
        full = lanes.expand(address).astype(np.int64)
        named = full >> RANK_SHIFT
        block = lanes.expand(lanes.block)
        target = np.where(named > 0, block - self.rank[block] + named - 1, block)
        bad = named > self.size
        if bad.any():
            raise self.batch.memory.fault(
                "out of bounds", site, bad, lanes, lambda _: "an address of shared memory in no block of its cluster"
            )
        gone = self.batch.warps.exited.all(axis=0)[target] & (target != block)
        if gone.any():
            raise self.batch.memory.fault(
                "out of bounds", site, gone, lanes, lambda place: self._left_story(int(target.reshape(-1)[place]))
            )
        thread = lanes.expand(lanes.thread)
        inner = full & _INNER
        for slot in np.unique(inner >> 20):
            mask = inner >> 20 == slot
            name = lanes.universe.flat((thread * lanes.universe.blocks + target)[mask])
            yield mask, inner[mask].astype(np.uint32), name

    def _left_story(self, block: int) -> str:
        index = triple(self.batch.coordinates(block, 0)[0])
        return (
            f"the shared memory of block {index}, whose threads have left the kernel: put a barrier of the cluster "
            "before the end"
        )

    def ranks(self, mask, lanes: Lanes):
        """Yield (rank, the lanes of the multicast that it goes to, their places, and these in that rank's name)."""
        mask = lanes.expand(mask).reshape(-1).astype(np.int64)
        block, thread = lanes.expand(lanes.block).reshape(-1), lanes.expand(lanes.thread).reshape(-1)
        for rank in range(self.size):
            places = np.flatnonzero(mask >> rank & 1)
            if places.size:
                target = block[places] - self.rank[block[places]] + rank
                yield places, lanes.universe.flat(thread[places] * lanes.universe.blocks + target)

    # --- barrier.cluster -------------------------------------------------------------------------------------------

    def arrive(self, lanes: Lanes) -> None:
        """barrier.cluster.arrive."""
        self.arrivals += lanes.mask()
        self._open()

    def reach(self, block: Block, lanes: Lanes) -> None:
        """barrier.cluster.wait, which ends a block."""
        site, mask = self.batch.plan.code.waits[block.index], lanes.mask()
        self.waits += mask
        bad = lanes.gather(mask & (self.waits > self.arrivals))
        if bad.any():
            raise self.batch.memory.fault(
                "divergent barrier", site, bad, lanes, lambda _: "barrier.cluster.arrive must come before the wait"
            )
        self.waiting.append((mask, block.targets[0]))
        self._open()

    def left(self) -> None:
        """Threads have left the kernel: nobody waits for them."""
        if self.waiting:
            self._open()

    def _complete(self) -> np.ndarray:
        """How many times each block's cluster has arrived completely."""
        alive = ~self.batch.warps.exited
        most = np.iinfo(np.int64).max
        least = np.where(alive, self.arrivals, most).min(axis=0).reshape(-1, self.size).min(axis=1)
        return np.repeat(least, self.size)

    def _open(self) -> None:
        if not self.waiting:
            return
        complete = self._complete()
        waiting, self.waiting = self.waiting, []
        for mask, target in waiting:
            ready = mask & (self.arrivals <= complete)
            if (rest := mask & ~ready).any():
                self.waiting.append((rest, target))
            if ready.any():
                self.batch.mbarriers.progress += 1
                if self.batch.trace is not None:
                    self.batch.trace.block_barrier(self.batch, ready.any(axis=0), ready)
                self.batch.go(target, self.batch.universe.from_mask(ready))
