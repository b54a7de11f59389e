"""What a kernel uses of a multiprocessor, and how many of its blocks fit on one.

Contents
    LIMITS          what each architecture offers
    Resources       registers, shared and local memory of one kernel, from the log of ptxas
    Occupancy       how many blocks are resident, and what stops the next one
    parse_ptxas     the log -> Resources by kernel

The rules of allocation are those of NVIDIA's `cuda_occupancy.h` (it ships with the toolkit); the limits are the table
"Technical specifications per compute capability" of the CUDA programming guide. `tools/check_gpu.py` holds the result
against `cuOccupancyMaxActiveBlocksPerMultiprocessor` on a card.
"""

import math
import re
from dataclasses import dataclass, field

WARP = 32
MAX_THREADS_PER_BLOCK = 1024
REGISTERS_PER_MULTIPROCESSOR = 65536
REGISTERS_PER_PARTITION = REGISTERS_PER_MULTIPROCESSOR // 4  # a warp lives in one of four partitions
REGISTER_UNIT = 256  # registers are handed to a warp in units of this many
WARP_UNIT = 4  # the launch check counts warps in whole rounds over the partitions


@dataclass(frozen=True)
class Limits:
    """What one multiprocessor of an architecture offers, sizes in bytes; and a card of it, with its multiprocessors."""

    threads: int
    blocks: int
    shared: int
    reserved: int  # taken from every block by the driver
    shared_unit: int
    barriers: int
    card: str
    multiprocessors: int

    @property
    def shared_per_block(self) -> int:
        """The most that one block may ask for, static and dynamic together."""
        return self.shared - self.reserved


KIB = 1024
LIMITS = {  # threads, blocks, shared, reserved, shared_unit, barriers
    "sm_75": Limits(1024, 16, 64 * KIB, 0, 256, 32, card="T4", multiprocessors=40),
    "sm_80": Limits(2048, 32, 164 * KIB, KIB, 128, 64, card="A100", multiprocessors=108),
    "sm_86": Limits(1536, 16, 100 * KIB, KIB, 128, 16, card="A10", multiprocessors=72),
    "sm_89": Limits(1536, 24, 100 * KIB, KIB, 128, 24, card="L4", multiprocessors=58),
    "sm_90": Limits(2048, 32, 228 * KIB, KIB, 128, 64, card="H200", multiprocessors=132),
    "sm_100": Limits(2048, 32, 228 * KIB, KIB, 128, 64, card="B200", multiprocessors=148),
    "sm_120": Limits(1536, 24, 100 * KIB, KIB, 128, 24, card="RTX 5090", multiprocessors=170),
}


def limits(arch: str) -> Limits:
    """Return the limits of `arch` ("sm_90" or "sm_90a"); ValueError names the architectures that the table holds."""
    try:
        return LIMITS[arch.rstrip("af")]
    except KeyError:
        raise ValueError(f"arch={arch!r} is not in the table of limits: it holds {', '.join(LIMITS)}") from None


@dataclass(frozen=True)
class Occupancy:
    """How many blocks of a kernel are resident on one multiprocessor, and what stops the next one."""

    blocks: int
    warps: int
    max_warps: int
    limited_by: tuple[str, ...]

    @property
    def fraction(self) -> float:
        """Resident warps as a fraction of those that the multiprocessor can hold."""
        return self.warps / self.max_warps

    def __str__(self) -> str:
        if not self.blocks:
            return f"no block fits: too many {' and '.join(self.limited_by)}"
        blocks = "1 block" if self.blocks == 1 else f"{self.blocks} blocks"
        return (
            f"{blocks}, {self.warps} of {self.max_warps} warps ({self.fraction:.0%}), "
            f"limited by {' and '.join(self.limited_by)}"
        )


@dataclass(frozen=True)
class Resources:
    """What one kernel uses, as ptxas reports it for `arch`.

    registers: per thread. shared: static shared memory, bytes per block. local: stack frame, bytes per thread (arrays
    that are indexed at run time, and spills). spill_stores, spill_loads: bytes per thread that are moved because
    registers ran out. barriers: named barriers per block. max_threads: the promise of `__launch_bounds__`, else 1024.
    """

    arch: str
    registers: int
    shared: int = 0
    local: int = 0
    spill_stores: int = 0
    spill_loads: int = 0
    barriers: int = field(default=0, repr=False)
    max_threads: int = field(default=MAX_THREADS_PER_BLOCK, repr=False)

    def __str__(self) -> str:
        parts = [f"{self.registers} registers", f"{self.shared} B shared"]
        if self.spill_stores or self.spill_loads:
            parts.append(f"spills {self.spill_stores} B out, {self.spill_loads} B in")
        else:
            parts.append("no spills")
        if self.local:
            parts.append(f"{self.local} B local")
        return f"{', '.join(parts)} ({self.arch})"

    def occupancy(self, block: int | tuple[int, ...], shared_bytes: int = 0, arch: str | None = None) -> Occupancy:
        """Return how many blocks of `block` threads with `shared_bytes` of dynamic shared memory are resident at once.

        `arch` asks for another card; the registers stay those of the architecture that the kernel was compiled for.
        """
        threads = math.prod(block) if isinstance(block, tuple) else block
        if threads < 1 or shared_bytes < 0:
            raise ValueError(
                f"occupancy needs at least one thread and no negative shared memory, not {block=}, {shared_bytes=}"
            )
        card = limits(arch or self.arch)
        warps = math.ceil(threads / WARP)
        by_limit = {
            "threads": card.threads // WARP // warps if threads <= MAX_THREADS_PER_BLOCK else 0,
            "blocks": card.blocks,
            "registers": self._blocks_by_registers(warps),
            "shared memory": self._blocks_by_shared(shared_bytes, card),
        }
        if self.barriers:
            by_limit["barriers"] = card.barriers // self.barriers
        blocks = min(by_limit.values())
        limited_by = tuple(name for name, count in by_limit.items() if count == blocks)
        return Occupancy(blocks, blocks * warps, card.threads // WARP, limited_by)

    def _blocks_by_registers(self, warps: int) -> int:
        per_warp = _round_up(max(self.registers, 1) * WARP, REGISTER_UNIT)
        if per_warp * _round_up(warps, WARP_UNIT) > REGISTERS_PER_MULTIPROCESSOR:
            return 0
        return 4 * (REGISTERS_PER_PARTITION // per_warp) // warps

    def _blocks_by_shared(self, shared_bytes: int, card: Limits) -> int:
        asked = self.shared + shared_bytes
        if asked > card.shared_per_block:
            return 0
        used = _round_up(asked + card.reserved, card.shared_unit)
        return card.shared // used if used else card.blocks


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def parse_ptxas(log: str, arch: str, launch_bounds: dict[str, int]) -> dict[str, Resources]:
    """Read the log of `ptxas -v`: {entry: Resources}. `launch_bounds`: the threads that `.maxntid` allows an entry."""
    found: dict[str, dict[str, int]] = {}
    entry = properties = None
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '(\S+)'", line):
            entry = match[1]
            found[entry] = {}
        elif match := re.search(r"Function properties for (\S+)", line):
            properties = match[1]
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            if entry is not None and properties == entry:
                found[entry] |= dict(
                    zip(("local", "spill_stores", "spill_loads"), map(int, match.groups()), strict=True)
                )
        elif entry is not None and (match := re.search(r"Used (\d+) registers", line)):
            numbers = {"registers": int(match[1])}
            for name, pattern in (
                ("barriers", r"used (\d+) barriers"),
                ("shared", r"(\d+)(?:\+\d+)? bytes smem"),
                ("local", r"(\d+) bytes cumulative stack"),
            ):
                if match := re.search(pattern, line):
                    numbers[name] = int(match[1])
            found[entry] |= numbers
    return {
        name: Resources(arch, **numbers, max_threads=launch_bounds.get(name, MAX_THREADS_PER_BLOCK))
        for name, numbers in found.items()
        if "registers" in numbers
    }
