"""What goes wrong in a kernel, as exceptions that name the source line, the block and the thread.

Contents: `EmulatorFault` (the kernel did something that a GPU leaves undefined), `Race` (two threads, one word, no
barrier between them) and `unsupported` (the emulator refuses an instruction by name rather than guess).
"""

from __future__ import annotations

from dataclasses import dataclass, field

Index3 = tuple[int, int, int]


class EmulatorFault(RuntimeError):
    """A fault of the kernel: an access out of bounds, a divergent barrier, a deadlock ...

    Attributes:
        kind: "out of bounds", "misaligned", "unwritten read", "null pointer", "read only", "deadlock",
            "divergent barrier", "inactive lane", "race", "assertion", "trap"; of Hopper also "mbarrier", "tensor map",
            "bulk copy without its wait", "wgmma", "wgmma without its wait", "wgmma without its fence".
        line: source line of the instruction, 0 if the PTX carries no line information.
        other_line: line of the second instruction where two take part, else None.
        block: (x, y, z) of one block that shows the fault.
        threads: one (x, y, z) or more, of that block.
        sentence: the whole story in one line; it says `line N`.
    """

    def __init__(
        self,
        kind: str,
        sentence: str,
        *,
        line: int = 0,
        other_line: int | None = None,
        block: Index3 | None = None,
        threads: tuple[Index3, ...] = (),
    ):
        super().__init__(sentence)
        self.kind = kind
        self.sentence = sentence
        self.line = line
        self.other_line = other_line
        self.block = block
        self.threads = threads


@dataclass(frozen=True)
class Race:
    """Two accesses of one word by two threads with nothing that orders them."""

    kind: str
    """"read after write", "write after read", "write after write", "cp.async without its wait", "bulk copy without its
    wait" or "missing proxy fence"."""
    space: str
    """"shared" or "global"."""
    line: int
    other_line: int
    block: Index3
    threads: tuple[Index3, Index3]
    sentence: str = field(compare=False)


def unsupported(what: str, line: int, hint: str = "") -> NotImplementedError:
    """Return the refusal of an instruction: its opcode with every modifier, its source line, and what to use."""
    tail = f" {hint}" if hint else ""
    return NotImplementedError(f"the emulator does not know `{what}` (line {line}).{tail}")


def plural(count: int, noun: str) -> str:
    """Return "1 thread" or "25 threads"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
