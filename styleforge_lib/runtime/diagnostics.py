"""What the compiler says, led back to the lines of the text that was given to it.

Contents
    Diagnostic          one message: file, line, column, text
    CompileError        the exception that `compile_cuda` raises, which shows each message beside its lines
    read_diagnostics    the log -> its messages
"""

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Diagnostic:
    """One message of the compiler: where (line and column counted from 1, 0 if unknown), how grave, and what."""

    file: str
    line: int
    column: int
    level: str
    message: str


class CompileError(Exception):
    """CUDA text that does not compile.

    log: all that the compiler said. diagnostics: its messages, each with its line of the text that was given.
    """

    def __init__(self, log: str, *, text: str, name: str, arch: str, ptx: str = ""):
        self.log, self.text, self.name, self.arch = log, text, name, arch
        self.diagnostics = read_diagnostics(log, name, ptx)
        super().__init__(self._report())

    @property
    def errors(self) -> list[Diagnostic]:
        """The messages that stopped the compilation, in their order."""
        return [diagnostic for diagnostic in self.diagnostics if diagnostic.level == "error"]

    def _report(self) -> str:
        if not self.errors:
            return f"{self.name} does not compile for {self.arch}:\n{self.log}"
        count = "1 error" if len(self.errors) == 1 else f"{len(self.errors)} errors"
        shown = [self._show(error) for error in self.errors]
        return "\n\n".join([f"{Path(self.name).name} does not compile for {self.arch}: {count}", *shown])

    def _show(self, error: Diagnostic) -> str:
        if not error.line:
            return error.message
        if error.file == self.name:
            where, source = f"line {error.line}", self.text
        else:
            where, source = f"{error.file}, line {error.line}", ""
            with contextlib.suppress(OSError):
                source = Path(error.file).read_text("utf-8", "replace")
        lines = source.splitlines()
        shown = [f"{where}: {error.message}"]
        for number in range(max(error.line - 2, 1), min(error.line + 1, len(lines)) + 1):
            shown.append(f"{'>' if number == error.line else ' '}{number:4} | {lines[number - 1]}")
            if number == error.line and error.column:
                shown.append(f"      | {' ' * (error.column - 1)}^")
        return "\n".join(shown)


def read_diagnostics(log: str, name: str, ptx: str = "") -> list[Diagnostic]:
    """Read the messages of NVRTC ('file(line): error: text', source line, caret) and of ptxas (lines of the PTX)."""
    found: list[Diagnostic] = []
    lines = log.splitlines()
    message = re.compile(r"(.+?)\((\d+)\): (?:catastrophic |fatal )?(error|warning)(?: #?[\w-]+)?: (.*)")
    for index, line in enumerate(lines):
        if match := message.match(line):
            texts, column = [match[4]], 0
            for number in range(index + 1, len(lines) - 1):
                if caret := re.fullmatch(r"( *)\^\s*", lines[number + 1]):
                    column = len(caret[1]) - 1  # the log sets the source line in by two
                    break
                if not lines[number].strip() or message.match(lines[number]):
                    break
                texts.append(lines[number].strip())
            found.append(Diagnostic(match[1], int(match[2]), column, match[3], " ".join(texts)))
        elif match := re.match(r"\s*ptxas\b.*?(?:ptx input, line (\d+); *)?(?:error|fatal)\s*: (.*)", line):
            number = _source_line(ptx, int(match[1])) if match[1] else 0
            found.append(Diagnostic(name, number, 0, "error", f"ptxas: {match[2]}"))
    closing = [item for item in found if "aborted due to errors" in item.message]
    return [item for item in found if item not in closing] or found


def _source_line(ptx: str, line: int) -> int:
    """Return the line of the source from which line `line` of `ptx` was made, 0 if it does not say."""
    locations = re.findall(r"^\s*\.loc\s+1\s+(\d+)", "\n".join(ptx.splitlines()[:line]), re.MULTILINE)
    return int(locations[-1]) if locations else 0
