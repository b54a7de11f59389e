"""The exercises: a starter fails its check, the solution passes it, and outside of the gap they are equal.

Each notebook is a group of its own, so that two workers take two notebooks.
"""

import sys
from pathlib import Path

import nbformat
import pytest
from solved import NOTEBOOKS, exercises, read, solve, split, tagged, verdicts

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from execute_notebooks import execute

SECONDS = 600  # for one cell
EACH = [pytest.param(path, id=path.stem, marks=pytest.mark.xdist_group(path.stem)) for path in NOTEBOOKS]
each_notebook = pytest.mark.parametrize("path", EACH)


@each_notebook
def test_the_solution_equals_the_starter_outside_of_the_gap(path):
    found = exercises(read(path))
    assert found
    for exercise in found:
        starter, gap = split(exercise.starter)
        solution, filled = split(exercise.solution)
        assert solution == starter, exercise.id
        assert filled, exercise.id
        assert filled != gap, exercise.id


@each_notebook
def test_the_verdicts_are_compared_by_nbval(path):
    """Every exercise prints a verdict, and asks nbval to compare it with the stored one."""
    notebook = read(path)
    judging = {exercise.verdict for exercise in exercises(notebook)}
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            assert ("verdict(" in cell.source) == (index in judging), cell.id
            assert index not in judging or "# NBVAL_CHECK_OUTPUT" in cell.source, cell.id
            assert index in judging or not tagged(cell, "verdict"), cell.id


@each_notebook
def test_as_given_every_exercise_is_unsolved(path):
    """The stored outputs, which nbval compares with those of a fresh run."""
    notebook = read(path)
    for exercise in exercises(notebook):
        said = verdicts(notebook.cells[exercise.verdict])
        assert said, f"{exercise.id}: no verdict is stored; run make notebooks"
        assert said[-1].startswith("✗"), exercise.id


@each_notebook
def test_solved_every_exercise_passes(path, tmp_path, monkeypatch):
    monkeypatch.setenv("STYLEFORGE_RECORDS", str(tmp_path / "local.csv"))  # a run on a GPU measures, and appends
    target = tmp_path / path.name
    nbformat.write(solve(read(path)), target)
    ran = execute(target, SECONDS)
    for exercise in exercises(read(path)):
        said = verdicts(ran.cells[exercise.verdict])
        assert said, exercise.id
        assert all(line.startswith("✓") for line in said), said


# ---- the helper itself ---------------------------------------------------------------------------------------------


def notebook(*cells):
    made = nbformat.v4.new_notebook()
    for kind, tag, source in cells:
        new = nbformat.v4.new_code_cell if kind == "code" else nbformat.v4.new_markdown_cell
        made.cells.append(new(source, metadata={"tags": [tag] if tag else []}))
    return made


STARTER = "a = 1\n# ▼ your sum\nb = 0\n# ▲\ncheck(b)"
SOLUTION = STARTER.replace("b = 0", "b = a + 1")
ANSWER = ("markdown", "solution", f"<details>\n\n```python\n{SOLUTION}\n```\n\n</details>")


def test_the_solution_is_put_in():
    made = notebook(("code", "exercise", STARTER), ("markdown", "hint", "Add."), ANSWER, ("code", "", "print(b)"))
    made.cells[0].outputs = [nbformat.v4.new_output("stream", text="✗ no")]
    done = solve(made)
    assert [cell.source for cell in done.cells if cell.cell_type == "code"] == [SOLUTION, "print(b)"]
    assert done.cells[0].outputs == []
    assert [exercise.verdict for exercise in exercises(made)] == [0]
    made.cells.insert(1, nbformat.v4.new_code_cell("", metadata={"tags": ["verdict"]}))
    assert [exercise.verdict for exercise in exercises(made)] == [1]
    assert made.cells[0].source == STARTER


@pytest.mark.parametrize(
    "cells",
    [
        [("code", "exercise", STARTER)],
        [ANSWER],
        [("code", "exercise", STARTER), ("code", "exercise", STARTER), ANSWER],
        [("code", "exercise", STARTER), ("markdown", "solution", "Add one.")],
        [("code", "exercise", STARTER), ("markdown", "solution", ANSWER[2] * 2)],
    ],
    ids=["no solution", "no exercise", "two exercises", "no block", "two blocks"],
)
def test_what_does_not_belong_together_is_a_fault(cells):
    with pytest.raises(ValueError, match="solution"):
        exercises(notebook(*cells))


def test_gaps():
    assert split(STARTER) == (["a = 1", "# ▼ your sum", "# ▲", "check(b)"], ["b = 0"])
    cuda = "x;\n  // ▼ one\n  // ▲\ny;\n  // ▼ two\n  z;\n  // ▲"
    assert split(cuda)[1] == ["  z;"]
    for astray in ("a = 1", "# ▼ a\n", "# ▲\n# ▼ a", "# ▼ a\n# ▼ b\n# ▲", "# ▼\n# ▲"):
        with pytest.raises(ValueError, match="▼"):
            split(astray)
