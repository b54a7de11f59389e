"""The set-up cell where StyleForge is not installed, with the versions of IPython and ipywidgets that Colab carries.

The environment is a bare one that borrows torch, NumPy and the rest from this one through a .pth file. Python does not
follow the .pth files of a folder added in that way, so an editable installation of StyleForge is out of its sight.
"""

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from address import REPOSITORY, ROOT
from canonical_notebooks import SETUP

# What Colab has, and what those two need that newer ones do not.
COLAB = ["ipython==7.34.0", "ipywidgets==7.7.1", "ipython_genutils", "backcall", "pickleshare", "decorator"]
PARTS = ("styleforge_lib", "cuda", "records", "notebooks")

IMPORTS = "import styleforge_lib\nfrom styleforge_lib import lab\nprint(styleforge_lib.__file__)"
VERSIONS = "import IPython, ipywidgets\nprint(IPython.__version__, ipywidgets.__version__)"
MAGIC = "print('cuda' in get_ipython().magics_manager.magics['cell'])"
COMPARE = "lab.compare(lab.photo('chelsea'), lab.photo('chelsea').rotate(180), labels=('photo', 'turned'))"
STUDIO = "lab.studio()"
PICTURES = "lab.draw_pictures([[lab.photo('coffee')]], titles=['coffee'])"
FIGURE = "lab.draw_shares({'one': {'conv': 1.0}})"
KERNEL = """\
%%cuda twice
extern "C" __global__ void twice(float* x) { x[threadIdx.x] *= 2; }"""


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    """Make the environment; return its python. Without a package index the tests are skipped."""
    folder = tmp_path_factory.mktemp("colab") / "env"
    venv.create(folder, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), *COLAB]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
        pytest.skip(f"the set-up cell under Colab's versions: pip could not install them ({reason})")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (site / "nvidia").symlink_to(Path(sysconfig.get_path("purelib")) / "nvidia")  # NVRTC is looked for in site folders
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """Make a repository of the checkout as it is now; return the address to clone it from."""
    work = tmp_path_factory.mktemp("published")
    copy_checkout(work)
    git = ["git", "-C", str(work), "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--no-gpg-sign", "-m", "all"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    bare = work.parent / "published.git"
    subprocess.run(["git", "clone", "--quiet", "--bare", str(work), str(bare)], check=True, capture_output=True)
    return bare.as_uri()


def copy_checkout(target):
    for part in PARTS:
        shutil.copytree(ROOT / part, target / part, ignore=shutil.ignore_patterns("__pycache__", "local.csv"))


def run(python, folder, *sources):
    """Run cells in a kernel of ``python`` that starts in ``folder``; return their cells with outputs."""
    manager = AsyncKernelManager(kernel_spec_manager=KernelSpecManager())
    manager._kernel_spec = manager.kernel_spec_manager.kernel_spec_class(
        argv=[str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        display_name="Colab",
        language="python",
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, km=manager, timeout=120, resources=resources)
    client.comm_open_handlers["jupyter.widget"] = lambda _: None  # as tools/execute_notebooks.py does
    return client.execute().cells


def printed(cell):
    return "".join(output.text for output in cell.outputs if output.get("name") == "stdout").strip()


def shown(cell):
    return {kind for output in cell.outputs if "data" in output for kind in output.data}


def test_in_a_checkout_that_is_not_installed(colab, tmp_path):
    copy_checkout(tmp_path)
    cells = [SETUP, IMPORTS, VERSIONS, MAGIC, COMPARE, STUDIO, PICTURES, FIGURE, KERNEL]
    _, imports, versions, magic, compare, studio, pictures, figure, kernel = run(colab, tmp_path / "notebooks", *cells)
    assert printed(imports) == str(tmp_path / "styleforge_lib" / "__init__.py")
    assert printed(versions) == "7.34.0 7.7.1", "the environment is not Colab's"
    assert printed(magic) == "True"
    assert "image/jpeg" in shown(compare) or "image/png" in shown(compare)
    assert "application/vnd.jupyter.widget-view+json" in shown(compare)
    assert shown(studio)
    assert "image/jpeg" in shown(pictures)
    assert "image/png" in shown(figure)
    assert "registers" in printed(kernel)
    assert not (tmp_path / "notebooks" / "styleforge").exists(), "nothing is fetched where a checkout is there"


def test_in_an_empty_folder_it_is_fetched(colab, repository, tmp_path):
    assert SETUP.count(REPOSITORY) == 1
    fetching = SETUP.replace(REPOSITORY, repository)
    # Run again, as people do: the cell finds what it fetched.
    _, imports, _, compare = run(colab, tmp_path, fetching, IMPORTS, fetching, COMPARE)
    assert printed(imports) == str(tmp_path / "styleforge" / "styleforge_lib" / "__init__.py")
    assert shown(compare)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["styleforge"]
    # A new kernel in the same place, after Runtime > Restart: nothing to fetch from, and nothing fetched.
    _, again = run(colab, tmp_path, SETUP.replace(REPOSITORY, "file:///gone"), IMPORTS)
    assert printed(again) == printed(imports)


def test_where_it_cannot_be_fetched_the_cell_says_so(colab, tmp_path):
    with pytest.raises(Exception, match="CalledProcessError"):
        run(colab, tmp_path, SETUP.replace(REPOSITORY, (tmp_path / "nowhere").as_uri()))
    assert list(tmp_path.iterdir()) == []
