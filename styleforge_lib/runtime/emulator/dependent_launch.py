"""What a kernel does before `griddepcontrol.wait`, read from its text: for launches that overlap the kernel before.

The emulator runs kernels one after the other, so the wait itself does nothing here, and nothing that comes too early
shows in the results. What can be said for certain is said from the control flow: which ways a thread can take from its
start without coming by a wait.

Contents
    end_without_wait    where a thread turns to its end that has not waited
    before_the_wait     the instructions on such ways that touch global memory

Source: PTX ISA, "griddepcontrol".
"""

from __future__ import annotations

from collections.abc import Iterator

from .control_flow import Block, Graph
from .parse import Instruction

_ACCESSES = ("ld", "ldu", "st", "atom", "red", "cp")


def end_without_wait(graph: Graph) -> Instruction | None:
    """Return where a thread turns to its end without having waited: a branch, or the end. None: every thread waits."""
    for block, came_from, instructions, waits in _ways(graph):
        if block.kind == "exit" and not waits and not any(item.opcode == "trap" for item in instructions):
            return (came_from or block).last or next(reversed(instructions), Instruction("exit", (), ()))
    return None


def before_the_wait(graph: Graph) -> list[Instruction]:
    """Return what may touch global memory before the thread has waited; an address with no space named is none."""
    return [
        item
        for _, _, instructions, _ in _ways(graph)
        for item in instructions
        if item.opcode in _ACCESSES and "global" in item.modifiers and "prefetch" not in item.modifiers
    ]


def _ways(graph: Graph) -> Iterator[tuple[Block, Block | None, list[Instruction], bool]]:
    """Yield each block in which a thread can be that has not waited.

    With it: the block that the thread comes from, the instructions up to the wait, and whether there is one.
    """
    seen, stack = {0}, [(0, None)]
    while stack:
        number, came_from = stack.pop()
        block = graph.blocks[number]
        waits = [n for n, item in enumerate(block.instructions) if _is_wait(item)]
        yield block, came_from, block.instructions[: waits[0]] if waits else block.instructions, bool(waits)
        fresh = [] if waits else [target for target in block.targets if target not in seen]
        seen.update(fresh)
        stack += [(target, block) for target in fresh]


def _is_wait(item: Instruction) -> bool:
    return item.opcode == "griddepcontrol" and "wait" in item.modifiers
