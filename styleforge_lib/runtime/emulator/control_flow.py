"""Basic blocks, liveness, and the order in which diverged threads meet again.

Contents: `Block`, `Graph`, `build_graph`. A block ends where control may part (branch, switch, exit) or where threads
wait for each other (barriers). An instruction under a guard becomes a small block of its own behind a branch, so that
the rest of the emulator never sees a guard.

The blocks are numbered so that every loop is contiguous and comes before what follows it (a weak topological order,
Bourdoncle 1993). Running the lowest numbered block that has threads waiting, and merging the threads that arrive at
one block, then reconverges where a compiler would put the reconvergence point.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from .inline import Flat
from .parse import Instruction, Label, Mem, Not, Pair, Reg, TensorMem, Vec

BARRIERS = ("bar", "barrier")
# Instructions, besides barriers, at which threads may stand: opcode and a modifier.
WAITS = (
    ("mbarrier", "try_wait"),
    ("mbarrier", "test_wait"),
    ("wgmma", "fence"),
    ("wgmma", "wait_group"),
    ("barrier", "cluster"),
)
CARRY = "%carry"
# Instructions whose first operand is not written.
WITHOUT_RESULT = frozenset(
    [
        "st",
        "red",
        "bar",
        "barrier",
        "bra",
        "brx",
        "ret",
        "exit",
        "trap",
        "membar",
        "fence",
        "prefetch",
        "prefetchu",
        "nanosleep",
        "brkpt",
        "discard",
        "applypriority",
        "griddepcontrol",
        "pmevent",
        "setmaxnreg",
    ]
)


@dataclass(slots=True)
class Block:
    """A straight run of instructions and how it ends.

    `kind` is "jump", "branch" (to `targets[0]` where `register` is true, else `targets[1]`), "switch" (to
    `targets[register]`), "exit", "barrier" or "wait" (`last` is the barrier, or what `WAITS` names; afterwards
    `targets[0]`).
    """

    index: int
    instructions: list[Instruction] = field(default_factory=list)
    kind: str = "exit"
    targets: tuple[int, ...] = ()
    register: str | None = None
    negated: bool = False
    last: Instruction | None = None
    live_in: int = 0
    live_out: int = 0
    reads: int = 0
    writes: int = 0


@dataclass(slots=True)
class Graph:
    """The blocks in reconvergence order, and the registers, whose bit in a liveness mask is their position here."""

    blocks: list[Block]
    registers: list[str]
    bit: dict[str, int]

    def names(self, mask: int) -> list[str]:
        """Return the registers of a liveness mask."""
        octets = np.frombuffer(mask.to_bytes(len(self.registers) // 8 + 1, "little"), np.uint8)
        return [self.registers[bit] for bit in np.flatnonzero(np.unpackbits(octets, bitorder="little"))]


def written(instruction: Instruction) -> Iterator[str]:
    """Yield the registers that an instruction writes."""
    if instruction.opcode in WITHOUT_RESULT and not _is_reduction_barrier(instruction):
        return
    if instruction.operands:
        yield from _names(instruction.operands[0], address=False)
    if "cc" in instruction.modifiers:
        yield CARRY


def read(instruction: Instruction) -> Iterator[str]:
    """Yield the registers that an instruction reads, a barrier's and a branch's operands included."""
    first = 0 if instruction.opcode in WITHOUT_RESULT and not _is_reduction_barrier(instruction) else 1
    for operand in instruction.operands[first:]:
        yield from _names(operand)
    if first and instruction.operands and isinstance(instruction.operands[0], (Mem, TensorMem)):
        yield from _names(instruction.operands[0])
    if first and instruction.opcode == "wgmma" and instruction.operands:
        yield from _names(instruction.operands[0])  # the accumulator is added to
    if instruction.guard is not None:
        yield instruction.guard.name
    if instruction.opcode in ("addc", "subc", "madc"):
        yield CARRY


def _is_reduction_barrier(instruction: Instruction) -> bool:
    return instruction.opcode in BARRIERS and "red" in instruction.modifiers


def is_wait(instruction: Instruction) -> bool:
    """Whether threads may stand at an instruction that is not a barrier of the block."""
    words = instruction.modifiers
    return any(instruction.opcode == opcode and word in words for opcode, word in WAITS) and "arrive" not in words


def _names(operand, address: bool = True) -> Iterator[str]:
    if isinstance(operand, Reg):
        yield operand.name
    elif isinstance(operand, Vec):
        for item in operand.items:
            yield from _names(item)
    elif isinstance(operand, Pair):
        for item in operand:
            yield from _names(item)
    elif isinstance(operand, Not):
        yield operand.reg.name
    elif isinstance(operand, (Mem, TensorMem)) and address:
        yield from _names(operand.base)
        for item in getattr(operand, "coordinates", ()):
            yield from _names(item)


def build_graph(flat: Flat) -> Graph:
    """Cuts a kernel into blocks, orders them, and finds what is live where."""
    blocks = _order(_merge_chains(_cut(flat)))
    names = sorted({name for block in blocks for item in _all_items(block) for name in (*read(item), *written(item))})
    graph = Graph(blocks, names, {name: position for position, name in enumerate(names)})
    _liveness(graph)
    return graph


def _all_items(block: Block) -> Iterator[Instruction]:
    yield from block.instructions
    if block.last is not None:
        yield block.last


def _cut(flat: Flat) -> list[Block]:
    """Blocks in source order; targets are indices into the list."""
    blocks = [Block(0)]
    labels: dict[str, int] = {}
    pending: list[tuple[Block, tuple[str | int, ...]]] = []

    def fresh() -> Block:
        blocks.append(Block(len(blocks)))
        return blocks[-1]

    current: Block | None = blocks[0]
    for item in flat.body:
        if isinstance(item, Label):
            if current is None:
                current = fresh()
            elif current.instructions or current.index == 0 or any(i == current.index for i in labels.values()):
                following = fresh()
                current.kind = "jump"
                pending.append((current, (following.index,)))
                current = following
            labels[item.name] = current.index
            continue
        if current is None:
            continue  # unreachable: behind a jump, with no label
        if item.guard is not None and item.opcode not in ("bra",):
            inner, after_name = fresh(), len(blocks)
            _branch(current, item)
            after = fresh()
            pending.append((current, (inner.index, after.index)))
            current = _place(inner, replace(item, guard=None), flat, pending, fresh)
            if current is not None:
                current.kind = "jump"
                pending.append((current, (after_name,)))
            current = after
            continue
        current = _place(current, item, flat, pending, fresh)
    if current is not None:
        current.kind = "exit"
    for block, targets in pending:
        block.targets = tuple(labels[target] if isinstance(target, str) else target for target in targets)
    return blocks


def _branch(block: Block, item: Instruction) -> None:
    block.kind, block.register, block.negated, block.last = "branch", item.guard.name, item.guard_negated, None
    block.last = Instruction("bra", (), (), item.guard, item.guard_negated, item.place)


def _place(current: Block, item: Instruction, flat: Flat, pending, fresh) -> Block | None:
    """Put an instruction without a guard (or a branch with one) at the end of a block; returns where to go on."""
    if item.opcode == "bra":
        target = item.operands[0].name
        current.last = item
        if item.guard is None:
            current.kind = "jump"
            pending.append((current, (target,)))
            return None
        following = fresh()
        current.kind, current.register, current.negated = "branch", item.guard.name, item.guard_negated
        pending.append((current, (target, following.index)))
        return following
    if item.opcode == "brx":
        current.kind, current.register, current.last = "switch", item.operands[0].name, item
        pending.append((current, flat.branch_targets[item.operands[1].name]))
        return None
    if item.opcode in ("ret", "exit"):
        current.kind, current.last = "exit", item
        return None
    waits = is_wait(item)
    if waits or (item.opcode in BARRIERS and "arrive" not in item.modifiers):
        current.kind, current.last = "wait" if waits else "barrier", item
        following = fresh()
        pending.append((current, (following.index,)))
        return following
    current.instructions.append(item)
    return current


def _merge_chains(blocks: list[Block]) -> list[Block]:
    """Join a block with its only successor where that has no other predecessor, and drops what cannot be reached."""
    reachable, stack = {0}, [0]
    while stack:
        for target in blocks[stack.pop()].targets:
            if target not in reachable:
                reachable.add(target)
                stack.append(target)
    predecessors: dict[int, int] = dict.fromkeys(reachable, 0)
    predecessors[0] = 1
    for index in reachable:
        for target in blocks[index].targets:
            predecessors[target] += 1
    gone: set[int] = set()
    for index in sorted(reachable):
        block = blocks[index]
        if index in gone:
            continue
        while block.kind == "jump" and block.targets[0] != index and predecessors[block.targets[0]] == 1:
            following = blocks[block.targets[0]]
            gone.add(following.index)
            if block.last is not None:
                block.instructions.append(block.last)
            block.instructions += following.instructions
            block.kind, block.targets, block.register = following.kind, following.targets, following.register
            block.negated, block.last = following.negated, following.last
    return [blocks[index] for index in sorted(reachable - gone)]


def _order(blocks: list[Block]) -> list[Block]:
    by_index = {block.index: block for block in blocks}
    order = _weak_topological([b.index for b in blocks], {b.index: b.targets for b in blocks}, blocks[0].index)
    position = {index: place for place, index in enumerate(order)}
    ordered = [by_index[index] for index in order]
    for block in ordered:
        block.index = position[block.index]
        block.targets = tuple(position[target] for target in block.targets)
    return ordered


def _weak_topological(nodes: list[int], successors: dict[int, tuple[int, ...]], entry: int) -> list[int]:
    inside = set(nodes)
    order: list[int] = []
    for component in reversed(_components(nodes, successors, inside, entry)):
        if len(component) == 1:
            order.append(component[0])
            continue
        members = set(component)
        entered = {t for n in nodes if n not in members for t in successors[n] if t in members}
        head = entry if entry in members else min(entered or members)
        rest = sorted(members - {head})
        order.append(head)
        first = min((t for t in successors[head] if t in members and t != head), default=rest[0])
        order += _weak_topological(rest, successors, first)
    return order


def _components(nodes, successors, inside: set[int], entry: int) -> list[list[int]]:
    """Strongly connected components, successors first (Tarjan, without recursion)."""
    number: dict[int, int] = {}
    low: dict[int, int] = {}
    on_stack: set[int] = set()
    stack: list[int] = []
    found: list[list[int]] = []
    # Tarjan emits successors first; visiting later roots and later targets first keeps source order where it is free.
    for root in [entry, *(n for n in nodes if n != entry)]:
        if root in number:
            continue
        work = [(root, iter(sorted(successors[root], reverse=True)))]
        number[root] = low[root] = len(number)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, targets = work[-1]
            for target in targets:
                if target not in inside:
                    continue
                if target not in number:
                    number[target] = low[target] = len(number)
                    stack.append(target)
                    on_stack.add(target)
                    work.append((target, iter(sorted(successors[target], reverse=True))))
                    break
                if target in on_stack:
                    low[node] = min(low[node], number[target])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == number[node]:
                    component = []
                    while True:
                        member = stack.pop()
                        on_stack.discard(member)
                        component.append(member)
                        if member == node:
                            break
                    found.append(component)
    return found


def _liveness(graph: Graph) -> None:
    for block in graph.blocks:
        reads = writes = 0
        for item in _all_items(block):
            for name in read(item):
                if not writes >> graph.bit[name] & 1:
                    reads |= 1 << graph.bit[name]
            # A barrier's result is written when the barrier opens, after the block; liveness may ignore the order.
            for name in written(item):
                writes |= 1 << graph.bit[name]
        block.reads, block.writes = reads, writes
    changed = True
    while changed:
        changed = False
        for block in reversed(graph.blocks):
            out = 0
            for target in block.targets:
                out |= graph.blocks[target].live_in
            live = block.reads | (out & ~block.writes)
            if out != block.live_out or live != block.live_in:
                block.live_out, block.live_in = out, live
                changed = True
