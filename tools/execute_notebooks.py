"""Execute the notebooks and store their outputs (`make notebooks`).

What is stored is what readers on GitHub see, so it should come from a GPU: without one this stops, unless told not to.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import nbformat
import torch
from address import ROOT
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from tqdm import tqdm

NOTEBOOKS = ROOT / "notebooks"


def execute(path: Path, timeout: int) -> nbformat.NotebookNode:
    """Run every cell of ``path`` in a fresh kernel whose folder is ``notebooks/``; return it with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    folder = {"metadata": {"path": str(NOTEBOOKS)}}
    client = NotebookClient(notebook, timeout=timeout, kernel_name="python3", resources=folder, coalesce_streams=True)
    with tqdm(total=sum(cell.cell_type == "code" for cell in notebook.cells), desc=path.stem, unit="cell") as bar:
        client.on_cell_executed = lambda **_: bar.update()
        # nbclient's own stand-in for the Output widget sends messages while it waits for one, and then may miss the
        # answer until the timeout (nbclient issue 312). Without it, what a widget captures is the cell's output.
        client.comm_open_handlers["jupyter.widget"] = lambda _: None
        client.execute()
    return client.nb


def main() -> int:
    """Execute what was asked for; a notebook that fails is left as it was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, default=sorted(NOTEBOOKS.glob("*.ipynb")))
    parser.add_argument("--out", type=Path, help="write there instead of in place")
    parser.add_argument("--timeout", type=int, default=600, help="seconds that one cell may take")
    parser.add_argument("--without-gpu", action="store_true", help="store what the emulator and the records say")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() and not arguments.without_gpu:
        print("No GPU here: the stored outputs would be the emulator's. If that is what you want: --without-gpu")
        return 1
    if "STYLEFORGE_RECORDS" in os.environ:  # the kernels run in notebooks/, where a relative path would be another
        os.environ["STYLEFORGE_RECORDS"] = str(Path(os.environ["STYLEFORGE_RECORDS"]).resolve())
    os.environ["TQDM_DISABLE"] = "1"  # for the kernels: a progress bar would be stored as it was at its end
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for path in arguments.notebooks:
        began = time.perf_counter()
        try:
            notebook = execute(path, arguments.timeout)
        except CellExecutionError as error:
            print(f"{path.name}: {error}", file=sys.stderr)
            failed += 1
            continue
        target = (arguments.out or path.parent) / path.name
        nbformat.write(notebook, target)
        print(f"{path.name}: {time.perf_counter() - began:.0f} s -> {target}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
