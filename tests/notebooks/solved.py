"""A notebook's exercises, and the notebook as somebody leaves it who has solved them all.

An exercise is a code cell tagged "exercise", with at least one gap between a line ``# ▼ ...`` and a line ``# ▲`` (or
``// ▼`` in CUDA). It prints a verdict itself, or the cell after it does, tagged "verdict" (a cell of CUDA holds nothing
else). Its solution is the fenced block in the next Markdown cell tagged "solution": the whole cell, gap filled in.
"""

import copy
import re
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

_OPENS = re.compile(r"\s*(#|//) ▼ \S")
_CLOSES = re.compile(r"\s*(#|//) ▲\s*$")
_FENCED = re.compile(r"^```(\w+)\n(.*?)\n```$", re.M | re.S)


@dataclass(frozen=True)
class Exercise:
    """The cell's id and place, the starter that stands in it, the solution, and the place of the verdict."""

    id: str
    index: int
    verdict: int
    starter: str
    solution: str


def read(path: Path) -> NotebookNode:
    """Return the notebook at ``path``."""
    return nbformat.read(path, as_version=4)


def tagged(cell: NotebookNode, tag: str) -> bool:
    """Say whether a cell has a tag."""
    return tag in cell.metadata.get("tags", [])


def exercises(notebook: NotebookNode) -> list[Exercise]:
    """Return the exercises in order.

    Raises:
        ValueError: An exercise has no solution before the next exercise, or the solution not exactly one fenced block;
            or a solution belongs to no exercise.
    """
    found, waiting = [], None
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "code" and tagged(cell, "exercise"):
            if waiting:
                raise ValueError(f"exercise {waiting[1].id} has no solution before exercise {cell.id}")
            waiting = index, cell
        elif tagged(cell, "solution"):
            blocks = _FENCED.findall(cell.source)
            if not waiting or len(blocks) != 1 or cell.cell_type != "markdown":
                raise ValueError(f"solution {cell.id}: it needs an exercise above and one fenced block")
            ((_, solution),) = blocks
            place, exercise = waiting
            verdict = place + int(tagged(notebook.cells[place + 1], "verdict"))
            found.append(Exercise(exercise.id, place, verdict, exercise.source, solution))
            waiting = None
    if waiting:
        raise ValueError(f"exercise {waiting[1].id} has no solution")
    return found


def split(source: str) -> tuple[list[str], list[str]]:
    """Return the lines outside of the gaps, the markers among them, and the lines inside.

    Raises:
        ValueError: There is no gap, or a marker without its partner.
    """
    outside, inside, open_ = [], [], False
    for line in source.splitlines():
        if _OPENS.match(line) or _CLOSES.match(line):
            if bool(_OPENS.match(line)) == open_:
                raise ValueError(f"a gap opens with ▼ and what to write, and closes with ▲; this is astray: {line!r}")
            open_ = not open_
            outside.append(line)
        else:
            (inside if open_ else outside).append(line)
    if open_ or not any(map(_OPENS.match, outside)):
        raise ValueError("an exercise needs a gap between a line with ▼ and a line with ▲")
    return outside, inside


def solve(notebook: NotebookNode) -> NotebookNode:
    """Return a copy of the notebook with every solution in its exercise's cell, and without outputs."""
    notebook = copy.deepcopy(notebook)
    for exercise in exercises(notebook):
        notebook.cells[exercise.index].source = exercise.solution
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def verdicts(cell: NotebookNode) -> list[str]:
    """Return the lines that begin with ✓ or ✗ in what a cell printed."""
    printed = "".join(output.text for output in cell.outputs if output.output_type == "stream")
    return [line for line in printed.splitlines() if line.startswith(("✓", "✗"))]


def assert_solved(path: Path, ran: dict) -> None:
    """Assert that a solved notebook, as it was run, says of every exercise of the one at ``path`` that it is right."""
    cells = nbformat.from_dict(ran).cells
    for exercise in exercises(read(path)):
        said = verdicts(cells[exercise.verdict])
        assert said, exercise.id
        assert all(line.startswith("✓") for line in said), said
