"""Every notebook in JupyterLab, as a learner runs it: Run All, to the end, with no error and a quiet console."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.browser

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
SECONDS = 420  # on two cores, with no GPU
WITH_COMPARE = {"00_paint_and_profile", "12_transformer_painter", "13_ship_it"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_to_its_end(path, open_notebook):
    notebook = open_notebook(path, viewport={"width": 1280, "height": 1000})
    page = notebook.page
    page.evaluate("window.jupyterapp.commands.execute('application:toggle-left-area')")
    notebook.run_all(SECONDS)
    cells = [cell for cell in notebook.cells() if "".join(cell["source"]).strip()]
    assert all(cell["execution_count"] for cell in cells), "a cell was not run"
    for cell in cells:
        if "draw_" in cell["source"] and "import" not in cell["source"]:
            kinds = [kind for output in cell["outputs"] for kind in output.get("data", ())]
            assert any(kind.startswith("image/") for kind in kinds), f"no picture came of:\n{cell['source']}"
    notebook.shoot(path.stem)
    dragged = notebook.drag_compare()
    assert dragged or path.stem not in WITH_COMPARE
