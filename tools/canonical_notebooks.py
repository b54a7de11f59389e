"""Bring the notebooks into their one canonical form, or with --check say which are not in it.

The form: the same kernel and metadata everywhere; execution counts from the top, no widget state, and no view of a
widget where a picture stands beside it (a reopened notebook then shows the picture); cell ids that stay; the Colab
badge and the set-up cell generated from pyproject.toml; at most 2 MB.
"""

import argparse
import sys
from pathlib import Path

import nbformat
from address import REPOSITORY, ROOT, colab_badge
from nbstripout import strip_output

NOTEBOOKS = ROOT / "notebooks"
LARGEST = 2_000_000  # bytes: GitHub shows larger notebooks badly or not at all
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
METADATA = {
    "accelerator": "GPU",
    "colab": {"gpuType": "T4", "provenance": []},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# A cell tagged "prose" only puts figures into a sentence: readers see the sentence, JupyterLab and Colab fold the code.
HIDDEN = {"cellView": "form", "jupyter": {"source_hidden": True}}
SETUP = f'''\
# Set up: finds StyleForge, or fetches it where it is missing (Colab). The same cell in every notebook.
import importlib.util
import subprocess
import sys
from pathlib import Path

if importlib.util.find_spec("styleforge_lib") is None:
    here = Path.cwd()
    home = next((p for p in (here, *here.parents) if (p / "styleforge_lib").is_dir()), here / "styleforge")
    if not home.is_dir():
        source = "{REPOSITORY}"
        subprocess.run(["git", "clone", "--depth", "1", source, str(home)], check=True)
    sys.path.insert(0, str(home))

%load_ext styleforge_lib'''


def canonical(path: Path) -> str:
    """Return the text that the notebook at ``path`` should have."""
    notebook = nbformat.read(path, as_version=4)
    strip_output(notebook, keep_output=True, keep_count=False, keep_id=True, extra_keys=["cell.metadata.execution"])
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    cells = notebook.cells
    if not cells or cells[0].cell_type != "markdown":
        raise SystemExit(f"{path}: the first cell must be the Markdown title")
    title = [line for line in cells[0].source.split("\n") if not line.startswith("[![Open in Colab]")]
    while len(title) > 1 and not title[1]:
        del title[1]
    cells[0].source = "\n".join([title[0], "", colab_badge(path.name), "", *title[1:]]).rstrip()
    setup = next((cell for cell in cells if cell.cell_type == "code"), None)
    if setup is None or "setup" not in setup.metadata.get("tags", []):
        raise SystemExit(f'{path}: the first code cell must be the set-up cell, tagged "setup"')
    setup.source = SETUP
    for number, cell in enumerate(cells):
        cell.setdefault("id", f"cell-{number:02}")
        tags = cell.metadata.get("tags", [])
        cell.metadata = nbformat.from_dict({**({"tags": tags} if tags else {}), **(HIDDEN if "prose" in tags else {})})
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _only_a_widget(output)]
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if WIDGET_VIEW in data and any(kind.startswith("image/") for kind in data):
                del data[WIDGET_VIEW]
            if output.output_type in ("display_data", "execute_result"):
                output["metadata"] = {}
    for count, cell in enumerate((cell for cell in cells if cell.cell_type == "code"), start=1):
        cell.execution_count = count if cell.outputs else None  # nbval refuses outputs of a cell that was never run
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count
    nbformat.validate(notebook)
    return nbformat.writes(notebook, indent=1) + "\n"


def _only_a_widget(output: nbformat.NotebookNode) -> bool:
    """Tell whether an output is a widget with no picture of itself: dead, it would be a line of its repr."""
    data = output.get("data", {})
    return WIDGET_VIEW in data and set(data) <= {WIDGET_VIEW, "text/plain"}


def main() -> int:
    """Rewrite or check."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail where something would change")
    parser.add_argument("notebooks", nargs="*", type=Path, default=sorted(NOTEBOOKS.glob("*.ipynb")))
    arguments = parser.parse_args()
    faults = 0
    for path in arguments.notebooks:
        before, after = path.read_text("utf-8"), canonical(path)
        if len(after.encode()) > LARGEST:
            print(f"{path.name}: {len(after.encode()) / 1e6:.1f} MB; keep pictures small, the limit is 2 MB")
            faults += 1
        if before != after and arguments.check:
            print(f"{path.name}: not in canonical form; run `make format`")
            faults += 1
        elif before != after:
            path.write_text(after, "utf-8")
            print(f"{path.name}: rewritten")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
