"""The exercises: a starter fails its check, the solution passes it, and outside of the gap they are equal.

Two workers take two notebooks (tests/conftest.py).
"""

import sys
from pathlib import Path

import nbformat
import pytest
from solved import NOTEBOOKS, assert_solved, exercises, read, solve, split, tagged, verdicts

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "browser"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from execute_notebooks import execute
from finding import missing

SECONDS = 600  # for one cell
EACH = [pytest.param(path, id=path.stem) for path in NOTEBOOKS]
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
def test_solved_every_exercise_passes(path, tmp_path, monkeypatch, request):
    """Without a browser; where this run has one, tests/browser/test_notebooks.py does the same there."""
    there = f"browser/test_notebooks.py::test_solved_it_runs_to_its_end[{path.stem}]"
    if missing() is None and any(item.nodeid.endswith(there) for item in request.session.items):
        pytest.skip("this run has a browser, in which tests/browser/test_notebooks.py runs the solved notebook")
    monkeypatch.setenv("STYLEFORGE_RECORDS", str(tmp_path / "local.csv"))  # a run on a GPU measures, and appends
    target = tmp_path / path.name
    nbformat.write(solve(read(path)), target)
    assert_solved(path, execute(target, SECONDS))


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


def test_a_verdict_that_fails_or_is_missing_is_not_solved(tmp_path):
    made = notebook(("code", "exercise", STARTER), ANSWER)
    nbformat.write(made, tmp_path / "made.ipynb")
    for said in (["✓ yes"], ["✓ yes\n", "✗ no"], ["✗ no"], ["yes"], []):
        made.cells[0].outputs = [nbformat.v4.new_output("stream", text=text) for text in said]
        if said == ["✓ yes"]:
            assert_solved(tmp_path / "made.ipynb", made)
        else:
            with pytest.raises(AssertionError):
                assert_solved(tmp_path / "made.ipynb", made)


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
