"""What an x-ray finds at a line, each in one sentence that says where, what and why.

Contents
    Finding     one race, fault or piece of advice
    of_race     a race of the emulator, with what it leads to
    of_fault    a fault of the emulator, with what usually mends it
    advice      lines that are right but ask for more than they need: uncoalesced, bank conflict, divergence
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from styleforge_lib.runtime.emulator import EmulatorFault, LineMetrics, Race, Requests

# From here on a line is worth a word: one sector too many in four, one request of four with a conflict, a third of the
# warps. Below it are the borders of every image and the last warp of every array.
WORTH_A_WORD = 1.25
PARTED_SHARE = 1 / 3

_OF_RACES = {
    "read after write": "The reader may come first, and then finds what was there before.",
    "write after read": "The writer may come first, and then spoils what the other still needs.",
    "write after write": "Which of the two values stays is left to chance.",
    "cp.async without its wait": "Until its thread has waited, the place holds what was there before.",
}
_OF_FAULTS = {
    "null pointer": "The argument for this pointer was None.",
    "misaligned": "A float4 starts at every fourth float only: index it as float4*, or take one float at a time.",
    "unwritten read": "Such memory holds whatever was there before: write each element that is read, borders included.",
    "divergent barrier": "Take the barrier out of the if, and turn an early return into a condition around the work.",
    "deadlock": "Every thread that a barrier counts must come to it, and to the same one.",
    "inactive lane": "Let every lane of the mask take part, or name only those lanes that do.",
    "read only": "Declare the pointer const, or pass an array that may be written.",
}
_OUTSIDE = {
    "global": "Is there a guard, such as if (i < n), for the threads beyond the last element?",
    "shared": "The index is larger than the array was declared: look at its largest value.",
    "local": "The index is larger than the array was declared: look at its largest value.",
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or could be better, at a line.

    kind: of a race "read after write", "write after read", "write after write" or "cp.async without its wait"; of a
    fault "out of bounds", "misaligned", "unwritten read", "null pointer", "divergent barrier", "deadlock", "inactive
    lane", "assertion", "trap" ...; of advice "uncoalesced", "bank conflict" or "divergence". other_line: the second
    line that takes part, or None. block, threads: (x, y, z) of one example; None and () where it is no single one.
    sentence: says `line N`.
    """

    kind: str
    line: int
    other_line: int | None
    block: tuple[int, int, int] | None
    threads: tuple[tuple[int, int, int], ...]
    sentence: str


def of_race(race: Race) -> Finding:
    """Return a race with what it leads to."""
    return Finding(
        race.kind, race.line, race.other_line, race.block, race.threads, _two(race.sentence, _OF_RACES.get(race.kind))
    )


def of_fault(fault: EmulatorFault) -> Finding:
    """Return a fault with what usually mends it."""
    kind = "null pointer" if "null pointer" in fault.sentence else fault.kind
    lesson = _OF_FAULTS.get(kind)
    if kind == "out of bounds":
        lesson = _OUTSIDE.get(fault.sentence.partition(" ")[0])
    return Finding(kind, fault.line, fault.other_line, fault.block, tuple(fault.threads), _two(fault.sentence, lesson))


def advice(lines: Mapping[int, LineMetrics]) -> list[Finding]:
    """Return what could be better, line by line."""
    found: list[Finding] = []
    for line, metrics in lines.items():
        for (space, verb), asked in metrics.accesses.items():
            if not asked.requests or asked.units < WORTH_A_WORD * asked.ideal:
                continue
            if space == "global":
                found.append(_note("uncoalesced", line, _uncoalesced(line, verb, asked)))
            elif space == "shared":
                found.append(_note("bank conflict", line, _conflict(line, verb, asked)))
        if metrics.parted >= PARTED_SHARE * metrics.branches and metrics.parted:
            found.append(_note("divergence", line, _divergence(line, metrics)))
    return found


def _uncoalesced(line: int, verb: str, asked: Requests) -> str:
    per, ideal = asked.units / asked.requests, asked.ideal / asked.requests
    used = min(100, 100 * asked.bytes / (32 * asked.units))
    return (
        f"line {line}: a global {verb} touches {figure(per)} sectors of 32 bytes where {figure(ideal)} would hold it: "
        f"{used:.0f} % of what it moves is used. Let neighbouring lanes take neighbouring addresses, and a warp start "
        "at a multiple of 32 bytes."
    )


def _conflict(line: int, verb: str, asked: Requests) -> str:
    per, ideal = asked.units / asked.requests, asked.ideal / asked.requests
    return (
        f"line {line}: a shared {verb} goes {figure(per)} ways, one after the other, where {figure(ideal)} would do: "
        "its lanes want different words of one bank. Let them fall into 32 different banks, for example by padding "
        "each row of the array by one element."
    )


def _divergence(line: int, metrics: LineMetrics) -> str:
    return (
        f"line {line}: {metrics.parted:,} of {metrics.branches:,} warps part here: their lanes go two ways, one after "
        "the other, and those of the other way wait. Let whole warps take the same way, for example by a condition on "
        "threadIdx.x / 32."
    )


def figure(value: float) -> str:
    """Return a figure in at most three digits, whole where it is whole."""
    return f"{value:.0f}" if value >= 100 or abs(value - round(value)) < 0.005 else f"{value:.3g}"


def _note(kind: str, line: int, sentence: str) -> Finding:
    return Finding(kind, line, None, None, (), sentence)


def _two(sentence: str, lesson: str | None) -> str:
    return f"{sentence.rstrip('.')}. {lesson}" if lesson else sentence
