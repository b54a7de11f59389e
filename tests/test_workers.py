"""How the tests are dealt out to the workers of pytest-xdist."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("shared_conftest", HERE / "conftest.py")
shared = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shared)

PRINTS = "import os\ndef test_%d(): open('took', 'a').write(f\"{__name__} {os.environ['PYTEST_XDIST_WORKER']}\\n\")\n"


def test_shares():
    assert shared.share_of("tests/ops/test_relu.py::test_a[x-y]") == "tests/ops/test_relu.py"
    assert shared.share_of("tests/browser/test_a.py::test_b") == shared.share_of("tests/browser/test_c.py::test_d[e]")
    one, other = (f"tests/notebooks/test_exercises.py::test_{k}[{k}]" for k in "ab")
    assert shared.share_of(one) != shared.share_of(other)
    assert shared.share_of(one) == shared.share_of(one.replace("test_a", "test_other"))


def test_what_is_named_exists():
    for name in (*shared.TOGETHER, *shared.APART, *shared.LONGEST_FIRST):
        assert (HERE.parent / name).exists(), name
        assert name.endswith("/") == (HERE.parent / name).is_dir(), name
    turns = [shared.turn_of(name) for name in shared.LONGEST_FIRST]
    assert turns == sorted(set(turns)), "a name stands behind a folder that holds it"


def test_each_module_has_one_worker_and_the_longest_comes_first(tmp_path):
    """Really: xdist's own groups stopped working with a release of pytest, and nothing said so."""
    pytest.importorskip("xdist")
    shutil.copy(HERE / "conftest.py", tmp_path)
    modules = ["tests/test_a.py", "tests/test_b.py", "tests/test_c.py", shared.LONGEST_FIRST[1]]
    for module in modules:
        (tmp_path / module).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / module).write_text("".join(PRINTS % k for k in range(6)))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "."]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    took = [line.split() for line in (tmp_path / "took").read_text().splitlines()]
    assert len(took) == 24
    assert len({tuple(line) for line in took}) == 4, "a module went to two workers"
    assert len({worker for _, worker in took}) == 2
    first = {worker: module.rpartition(".")[2] for module, worker in reversed(took)}
    assert Path(modules[-1]).stem in first.values(), "what takes longest was not where a worker began"
