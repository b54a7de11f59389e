"""Every notebook in JupyterLab, as a learner leaves it: all exercises solved, Run All, no error, a quiet console.

As given, nbval runs them. Where there is no browser, tests/notebooks/test_exercises.py runs the solved ones without.
"""

import sys
from pathlib import Path

import nbformat
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "notebooks"))

from solved import NOTEBOOKS, assert_solved, read, solve

pytestmark = pytest.mark.browser

SECONDS = 420  # on two cores, with no GPU
WITH_COMPARE = {"00_paint_and_profile", "12_transformer_painter", "13_ship_it"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_solved_it_runs_to_its_end(path, open_notebook, tmp_path):
    nbformat.write(solve(read(path)), tmp_path / path.name)
    notebook = open_notebook(tmp_path / path.name, viewport={"width": 1280, "height": 1000})
    page = notebook.page
    page.evaluate("window.jupyterapp.commands.execute('application:toggle-left-area')")
    notebook.run_all(SECONDS)
    cells = [cell for cell in notebook.cells() if "".join(cell["source"]).strip()]
    assert all(cell["execution_count"] for cell in cells), "a cell was not run"
    assert_solved(path, notebook.ask("panel => panel.content.model.toJSON()"))
    for cell in cells:
        if "draw_" in cell["source"] and "import" not in cell["source"]:
            kinds = [kind for output in cell["outputs"] for kind in output.get("data", ())]
            assert any(kind.startswith("image/") for kind in kinds), f"no picture came of:\n{cell['source']}"
    notebook.shoot(path.stem)
    dragged = notebook.drag_compare()
    assert dragged or path.stem not in WITH_COMPARE
