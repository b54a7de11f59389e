"""Global memory for the race detector: arrays that overlap, arrays that are written, what blocks tell each other.

Contents
    Placement       where the arrays of a launch lie: arrays that overlap are one piece of memory
    written_arrays  the arrays that a kernel may write, from the code that makes its addresses (`origins_of`,
                    `arrays_of`)
    Publications    which blocks have published (a fence) and which have looked (an atomic, a volatile load)

Between blocks only one order exists: the writer's block writes, executes a fence (__threadfence), and raises a flag;
the reader's block looks at the flag by an atomic or a volatile load. Fences and looks are kept per block, not per
thread or flag, so that an order is believed rather than doubted. Two accesses that are both made for that (atomic,
volatile, relaxed ...) are no race, and between blocks one is enough.
"""

from __future__ import annotations

import numpy as np

from .address_space import SLOT_SHIFT, Region, Site
from .control_flow import read, written
from .parse import Instruction, Mem, Reg, Sym

_STRONG = frozenset(("volatile", "relaxed", "acquire", "release", "acq_rel", "mmio"))
_RELEASES = frozenset(("release", "acq_rel"))
_ELSEWHERE = frozenset(("shared", "shared_cta", "shared_cluster", "local", "param"))
_UNKNOWN = ""
NO_ARRAY = -1


class Placement:
    """Where the global arrays of a launch lie: `of[base]` is the number of the piece of memory, and the first byte."""

    def __init__(self, regions: dict[int, Region]):
        spans = sorted(
            (region.data.__array_interface__["data"][0], region.size, region.base)
            for region in regions.values()
            if region.space == "global" and region.size
        )
        self.of: dict[int, tuple[int, int]] = {}
        self.sizes: list[int] = []
        start = end = -1
        for address, size, base in spans:
            if address >= end:
                start = end = address
                self.sizes.append(0)
            end = max(end, address + size)
            self.sizes[-1] = end - start
            self.of[base] = len(self.sizes) - 1, address - start


def written_arrays(plan, launch) -> set[int]:
    """Return the bases of the arrays that a kernel may store to; where an address has an unknown origin, all of them.

    An address comes from whatever its register was computed from, in any order of instructions.
    """
    if plan.stored_to is None:
        plan.stored_to = origins_of(plan.flat.body, ("st", "atom", "red"))
    return arrays_of(plan.stored_to, plan, launch)


def origins_of(body: list, opcodes: tuple[str, ...]) -> set[str]:
    """Return the parameters and variables that the addresses of some instructions, by how they begin, may come from."""
    origins = _origins(body)
    names: set[str] = set()
    for item in body:
        if not isinstance(item, Instruction) or _ELSEWHERE & set(item.modifiers):
            continue
        if item.opcode in opcodes or ".".join((item.opcode, *item.modifiers[:1])) in opcodes:
            for operand in item.operands:
                if isinstance(operand, Mem):
                    names |= _of_base(operand.base, origins)
    return names


def arrays_of(names: set[str], plan, launch) -> set[int]:
    """Return the bases of the arrays that parameters and variables point to; of all if one is not known."""
    bases = {region.base for region in launch.regions.values() if region.space == "global"}
    found: set[int] = set()
    for name in names:
        base = _pointed_at(name, plan, launch)
        if base is None:
            return bases
        found.add(base)
    return found


def _origins(body: list) -> dict[str, set[str]]:
    """Return, for each register, the parameters and variables that it may be computed from."""
    origins: dict[str, set[str]] = {}
    items = [item for item in body if isinstance(item, Instruction)]
    changed = True
    while changed:
        changed = False
        for item in items:
            found = _sources(item, origins)
            for name in written(item):
                known = origins.setdefault(name, set())
                if not found <= known:
                    known |= found
                    changed = True
    return origins


def _sources(item: Instruction, origins: dict[str, set[str]]) -> set[str]:
    if item.opcode in ("ld", "ldu", "atom"):
        address = next(operand for operand in item.operands if isinstance(operand, Mem))
        if "param" in item.modifiers and isinstance(address.base, Sym):
            return {address.base.name}
        wide = {"b64", "u64", "s64", "b128"} & set(item.modifiers)
        return {_UNKNOWN} if wide else set()
    found = {operand.name for operand in item.operands if isinstance(operand, Sym)}
    for name in read(item):
        found |= origins.get(name, set())
    return found


def _of_base(base, origins: dict[str, set[str]]) -> set[str]:
    if isinstance(base, Sym):
        return {base.name}
    return origins.get(base.name, set()) if isinstance(base, Reg) else {_UNKNOWN}


def _pointed_at(name: str, plan, launch) -> int | None:
    """Return the base of the array that a parameter or variable stands for, or NO_ARRAY; None if it is not known."""
    sizes = {parameter.name: parameter.size for parameter in plan.flat.parameters}
    if name in sizes:
        if sizes[name] > 8:
            return None  # a struct, which may hold pointers
        offset = plan.code.parameter_offsets[name]
        address = int.from_bytes(launch.parameters[offset : offset + sizes[name]], "little")
    else:
        space, address = plan.code.symbols.get(name, (None, 0))
        if space is None:
            return None
    region = launch.regions.get(address >> SLOT_SHIFT)
    # Else a number that the address was computed with, or memory of another space.
    return region.base if region is not None and region.space == "global" else NO_ARRAY


class Publications:
    """Per block of the grid: how many fences it has executed, and whether it has looked at what others published."""

    def __init__(self, blocks: int):
        self.fences = np.zeros(blocks, np.int32)
        self.looked = np.zeros(blocks, bool)

    def fence(self, blocks: np.ndarray) -> None:
        """Note that threads of these blocks executed a fence for the whole GPU."""
        self.fences[np.unique(blocks)] += 1

    def access(self, site: Site, blocks: np.ndarray) -> None:
        """Note an access that orders others, if this is one."""
        if is_strong(site):
            if _RELEASES & set(site.name.split(".")):
                self.fence(blocks)
            self.looked[blocks] = site.verb != "store" or self.looked[blocks]

    def ordered(self, before: np.ndarray, fences: np.ndarray, now: np.ndarray) -> np.ndarray:
        """Whether blocks `before` published after their access (made after so many fences), and blocks `now` looked."""
        return (self.fences[before] > fences) & self.looked[now]


def is_strong(site: Site) -> bool:
    """Whether an access is made to be shared with other threads at the same time: atomic, volatile, relaxed ..."""
    return site.verb == "atomic" or bool(_STRONG & set(site.name.split(".")))
