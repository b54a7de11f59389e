"""Which instructions each test really executes, and which words the translator's rules ask for.

`records/emulator_coverage.json`, which `tools/coverage_table.py` writes, names for each instruction one test that
executes it. While the tests run, `Executed` watches the emulator: a test that no longer executes what it is named for
fails. With `--record-executed PATH` it writes the record's content instead.
"""

import json
from pathlib import Path

from styleforge_lib.runtime.emulator.schedule import Batch
from styleforge_lib.runtime.emulator.translate.emitter import Modifiers

ROOT = Path(__file__).resolve().parents[3]
RECORD = ROOT / "records" / "emulator_coverage.json"


class Executed:
    """Watches the emulator. steps: what has been executed since `begin`. asked: {opcode: words that its rule knows}."""

    def __init__(self):
        self.steps: dict[int, object] = {}
        self.asked: dict[str, set[str]] = {}
        self.witnesses: dict[str, str] = {}
        self.others: dict[str, int] = {}
        self._watch()

    def _watch(self) -> None:
        step, flag, one_of, kind = Batch._step, Modifiers.flag, Modifiers.one_of, Modifiers.type

        def watched_step(batch, one, lanes):
            self.steps[id(one)] = one
            step(batch, one, lanes)

        def asking(function):
            def watched(modifiers, *names, **options):
                self.asked.setdefault(modifiers.instruction.opcode, set()).update(names)
                return function(modifiers, *names, **options)

            return watched

        Batch._step = watched_step
        Modifiers.flag, Modifiers.one_of, Modifiers.type = asking(flag), asking(one_of), asking(kind)

    def begin(self) -> None:
        """Forget what has been executed."""
        self.steps.clear()

    def names(self) -> set[str]:
        """Return the instructions that have been executed, with their modifiers."""
        blocks = [step.block for step in self.steps.values()]
        return {item.name for block in blocks for item in (*block.instructions, block.last) if item is not None}

    def witness(self, test: str) -> None:
        """Note a test for each instruction of which it is the most particular: it executes the fewest others."""
        names = self.names()
        for name in names:
            if len(names) < self.others.get(name, len(names) + 1):
                self.witnesses[name], self.others[name] = test, len(names)

    def write(self, path: Path) -> None:
        """Write the record's content."""
        asked = {opcode: sorted(words) for opcode, words in sorted(self.asked.items())}
        content = {"witnesses": dict(sorted(self.witnesses.items())), "asked": asked}
        path.write_text(json.dumps(content, indent=0) + "\n", "utf-8")


def named_for() -> dict[str, set[str]]:
    """Return {test: the instructions that the record names it for}."""
    tests: dict[str, set[str]] = {}
    if RECORD.exists():
        for name, test in json.loads(RECORD.read_text("utf-8"))["witnesses"].items():
            tests.setdefault(test, set()).add(name)
    return tests
