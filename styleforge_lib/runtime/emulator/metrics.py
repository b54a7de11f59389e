"""Counts per source line, as a profiler would give them, at the level of PTX.

`Trace` is handed to `Program.launch(trace=...)` and collects over launches. Per line: executed warp instructions,
active lanes, floating-point operations, 32-byte sectors per global request, passes ("ways") per shared-memory request,
bytes; with the ideal beside each. It also holds what `races` finds. PTX counts are not machine-code counts: ptxas
vectorises, predicates and spills.

Sources: CUDA C++ Best Practices Guide, "Coalesced Access to Global Memory" and "Shared Memory"; Nsight Compute's
definitions of sectors per request and bank conflicts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .address_space import Site
from .arithmetic import flops
from .faults import EmulatorFault, Race
from .lanes import Lanes
from .located import Located
from .memory import Memory
from .races import RaceDetector
from .warps import Warps

SECTOR_SHIFT = 5
BANK_BYTES = 128  # 32 banks of 4 bytes: what shared memory delivers in one pass


@dataclass
class Requests:
    """What the warps of one line asked of one space, in one direction."""

    requests: int = 0
    units: int = 0
    """32-byte sectors of global memory, or passes over shared memory's banks."""
    ideal: int = 0
    """The fewest units that as many lanes of this width need."""
    bytes: int = 0
    """Bytes that the lanes asked for."""

    def add(self, other: Requests) -> None:
        """Add another's counts to these."""
        self.requests += other.requests
        self.units += other.units
        self.ideal += other.ideal
        self.bytes += other.bytes


@dataclass
class LineMetrics:
    """What one source line did."""

    instructions: int = 0
    """Executed warp instructions."""
    lanes: int = 0
    """Active lanes, summed over those instructions; 32 each is the best."""
    branches: int = 0
    """Warps that came to a branch (or a predicate) on this line ..."""
    parted: int = 0
    """... and those of them whose lanes went both ways."""
    barriers: int = 0
    """Warps that came to a barrier of their block."""
    global_requests: int = 0
    sectors: int = 0
    ideal_sectors: int = 0
    shared_requests: int = 0
    ways: int = 0
    ideal_ways: int = 0
    bytes: dict[str, int] = field(default_factory=dict)
    """Bytes that the lanes asked for, by space."""
    flops: dict[str, int] = field(default_factory=dict)
    """Floating-point operations, by precision ("float32", "tf32" ...); `arithmetic` says what counts as one."""
    accesses: dict[tuple[str, str], Requests] = field(default_factory=dict)
    """The same requests apart, by space and verb: ("global", "load"), ("shared", "store"), ("global", "atomic") ..."""

    @property
    def active_lanes(self) -> float:
        """Active lanes per executed instruction, 0 to 32."""
        return self.lanes / self.instructions if self.instructions else 0.0

    @property
    def sectors_per_request(self) -> float:
        """32-byte sectors per global request."""
        return self.sectors / self.global_requests if self.global_requests else 0.0

    @property
    def ways_per_request(self) -> float:
        """Passes per shared-memory request; 1 is free of conflicts for accesses up to 4 bytes wide."""
        return self.ways / self.shared_requests if self.shared_requests else 0.0

    def ask(self, space: str, verb: str, requests: Requests) -> None:
        """Add requests to a space."""
        self.bytes[space] = self.bytes.get(space, 0) + requests.bytes
        self.accesses.setdefault((space, verb), Requests()).add(requests)
        if space == "global":
            self.global_requests += requests.requests
            self.sectors += requests.units
            self.ideal_sectors += requests.ideal
        elif space == "shared":
            self.shared_requests += requests.requests
            self.ways += requests.units
            self.ideal_ways += requests.ideal

    def add(self, other: LineMetrics) -> None:
        """Add another line's counts to these."""
        self.instructions += other.instructions
        self.lanes += other.lanes
        self.branches += other.branches
        self.parted += other.parted
        self.barriers += other.barriers
        for precision, count in other.flops.items():
            self.flops[precision] = self.flops.get(precision, 0) + count
        for (space, verb), requests in other.accesses.items():
            self.ask(space, verb, requests)


class Trace:
    """Collects metrics, races and unwritten reads of one or more launches.

    Args:
        races: also look for races and unwritten reads (slower).

    Attributes:
        races: what was found, one `Race` per kind and pair of lines.
        faults: unwritten reads, as `EmulatorFault` objects that were not raised, one per line.
    """

    def __init__(self, races: bool = True):
        self.races: list[Race] = []
        self.faults: list[EmulatorFault] = []
        self._detect = races
        self._plans: list = []
        self._blocks: dict[tuple[int, int], list[int]] = {}
        self._parted: dict[tuple[int, int], int] = {}
        self._sites: dict[tuple[int, int, str], Requests] = {}
        self._plan_number = 0
        self._touched: list[dict[tuple[int, str], np.ndarray]] = [{}]  # per launch: which sectors of which array
        self.detector: RaceDetector | None = None

    # --- called by the emulator ------------------------------------------------------------------------------------

    def begin(self, plan, launch) -> None:
        """Start a launch."""
        if plan not in self._plans:
            self._plans.append(plan)
        self._plan_number = self._plans.index(plan)
        self._touched.append({})
        self.detector = RaceDetector(plan, launch, self) if self._detect else None

    def executed(self, batch, block: int, lanes: Lanes) -> None:
        """Count a basic block executed by a set of lanes."""
        counts = self._blocks.setdefault((self._plan_number, block), [0, 0])
        counts[0] += _warp_count(lanes)
        counts[1] += lanes.count
        if self.detector is not None:
            self.detector.enter(batch)

    def parted(self, block: int, lanes: Lanes, taken: Lanes, passed: Lanes) -> None:
        """Count the warps of a set whose lanes go both ways at the branch that ends a block."""
        both = _warp_count(taken) + _warp_count(passed) - _warp_count(lanes)
        key = (self._plan_number, block)
        self._parted[key] = self._parted.get(key, 0) + both

    def access(self, memory: Memory, at: Located, delta: int, site: Site, values: tuple | None = None) -> None:
        """Count a memory instruction; `values` are what it writes."""
        space = at.region.space
        counts = self._sites.setdefault((self._plan_number, site.number, space), Requests())
        counts.bytes += at.lanes.count * site.width
        if space in ("global", "shared"):
            # A constant offset turns the banks and leaves conflicts as they are; sectors move with it modulo 32.
            key = (site.width, delta % (4 if space == "shared" else 1 << SECTOR_SHIFT))
            found = at.counts.get(key)
            if found is None:
                found = at.counts[key] = _requests(at, delta, site.width)
            counts.requests += found[0]
            counts.units += found[1]
            counts.ideal += found[2]
        if space == "global":
            self.reached(at.region, site.verb, at.offset + delta)
        if self.detector is not None:
            self.detector.access(memory, at, delta, site, values)

    def copied(self, site: Site, space: str, size: np.ndarray) -> None:
        """Count bulk copies: each is one request, of whole sectors or of whole rows of the banks."""
        counts = self._sites.setdefault((self._plan_number, site.number, space), Requests())
        unit = BANK_BYTES if space == "shared" else 1 << SECTOR_SHIFT
        units = int((-(-size // unit)).sum())
        counts.add(Requests(int(np.count_nonzero(size)), units, units, int(size.sum())))

    def reached(self, region, verb: str, offset) -> None:
        """Remember which sectors of a global array are read or written, at bytes from its start."""
        touched = self._touched[-1].get((region.base, verb))
        start = region.base % (1 << SECTOR_SHIFT)
        if touched is None:
            touched = np.zeros((start + region.size >> SECTOR_SHIFT) + 1, bool)
            self._touched[-1][region.base, verb] = touched
        touched[(offset + start) >> SECTOR_SHIFT] = True

    def block_barrier(self, batch, complete: np.ndarray | None, opened: np.ndarray | None) -> None:
        """Note a barrier that opened, in some blocks or (None) in all; opened: the threads that it let go, or None."""
        if self.detector is not None:
            self.detector.block_barrier(complete)

    def warp_barrier(self, batch, lanes: Lanes) -> None:
        """Note a __syncwarp that lanes passed."""
        if self.detector is not None:
            self.detector.warp_barrier(lanes)

    def fence(self, lanes: Lanes) -> None:
        """Note a __threadfence."""
        if self.detector is not None:
            self.detector.fence(lanes)

    # --- results ---------------------------------------------------------------------------------------------------

    @property
    def distinct_bytes(self) -> dict[str, int]:
        """Bytes of the different global sectors that a launch read and wrote, by verb, summed over launches.

        As much as DRAM must deliver and take at least, if every cache held what it was given. An atomic does both.
        """
        result = {"load": 0, "store": 0}
        for launch in self._touched:
            for verb, others in (("load", ("load", "atomic")), ("store", ("store", "atomic"))):
                for base in {base for base, of in launch if of in others}:
                    parts = [launch[base, of] for of in others if (base, of) in launch]
                    result[verb] += int(np.logical_or.reduce(parts).sum()) << SECTOR_SHIFT
        return result

    def lines(self) -> dict[int, LineMetrics]:
        """Metrics by source line (0: instructions without one)."""
        result: dict[int, LineMetrics] = {}
        for (plan_number, number), (warps, lanes) in self._blocks.items():
            plan = self._plans[plan_number]
            block = plan.graph.blocks[number]
            items = [*block.instructions, *([block.last] if block.last is not None else [])]
            for item in items:
                line = result.setdefault(plan.line_of(item.place), LineMetrics())
                line.instructions += warps
                line.lanes += lanes
                if (found := flops(item)) is not None:
                    line.flops[found[0]] = line.flops.get(found[0], 0) + round(found[1] * lanes)
            if block.kind == "barrier" and "warp" not in block.last.modifiers:
                result[plan.line_of(block.last.place)].barriers += warps
            if block.kind == "branch":
                line = result.setdefault(plan.line_of(block.last.place), LineMetrics())
                line.branches += warps
                line.parted += self._parted.get((plan_number, number), 0)
        for (plan_number, number, space), requests in self._sites.items():
            site = self._plans[plan_number].code.sites[number]
            result.setdefault(site.line, LineMetrics()).ask(space, site.verb, requests)
        return dict(sorted(result.items()))


def _requests(at: Located, delta: int, width: int) -> tuple[int, int, int]:
    """Return requests of an access, their sectors or ways, and the ideal of that."""
    form = Warps.form(at.lanes)
    wide = form.spread(np.asarray(at.region.base + at.offset + delta))
    function = _sectors if at.region.space == "global" else _ways
    copies = at.lanes.shape[1] if form.present is None and wide.shape[2] == 1 else 1
    return tuple(copies * number for number in function(wide, form.present, width))


def _warp_count(lanes: Lanes) -> int:
    """How many warps have at least one lane in the set; counted once."""
    if lanes.warp_count is None:
        if lanes.index is None:
            thread = lanes.thread[:, 0]
            lanes.warp_count = int(np.unique(thread >> 5).size) * lanes.block.size
        else:
            universe = lanes.universe
            warps = np.zeros((-(-universe.threads // 32), universe.blocks), bool)
            warps[lanes.thread >> 5, lanes.block] = True
            lanes.warp_count = int(np.count_nonzero(warps))
    return lanes.warp_count


def _distinct(units: np.ndarray, present: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Sorts along axis 1; returns the sorted units and where each is the first of its kind (absent lanes never are)."""
    if present is not None:
        units = np.where(present, units, -1)
    ordered = np.sort(np.ascontiguousarray(units.transpose(0, 2, 1)), axis=2).transpose(0, 2, 1)
    first = np.ones(ordered.shape, bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return ordered, first & (ordered >= 0)


def _sectors(address: np.ndarray, present: np.ndarray | None, width: int) -> tuple[int, int, int]:
    """Return requests, sectors, and the sectors that as many bytes need at least."""
    _, first = _distinct(address >> SECTOR_SHIFT, present)
    if present is None:
        requests = address.shape[0] * address.shape[2]
        return requests, int(first.sum()), requests * width
    active = present.sum(axis=1)
    ideal = -(-(active * width) // 32)
    return int((active > 0).sum()), int(first.sum()), int(ideal.sum())


def _ways(address: np.ndarray, present: np.ndarray | None, width: int) -> tuple[int, int, int]:
    """Return requests, passes, and passes without conflicts: 8-byte accesses go in 2 phases of lanes, 16-byte in 4."""
    unit = max(4, min(width, 16))
    phases = unit // 4
    warps, _, blocks = address.shape
    shape = (warps * phases, 32 // phases, blocks)
    units = (address // unit).reshape(shape)
    there = None if present is None else present.reshape(shape)
    ordered, first = _distinct(units, there)
    banks = BANK_BYTES // unit
    row = (np.arange(shape[0])[:, None, None] * blocks + np.arange(blocks)[None, None, :]) * banks
    hits = np.bincount((row + ordered % banks)[first], minlength=shape[0] * blocks * banks)
    ways = hits.reshape(-1, banks).max(axis=1)
    active = np.ones((warps, blocks), bool) if present is None else present.any(axis=1)
    return int(active.sum()), int(ways.sum()), int((ways > 0).sum())
