"""The project as a package: its dependencies, its wheel, and the plan by which `make lab` installs it."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import install

ROOT = install.ROOT
PYPROJECT = (ROOT / "pyproject.toml").read_text("utf-8")
ENVIRONMENT = (ROOT / "environment.yml").read_text("utf-8")
PROJECT = tomllib.loads(PYPROJECT)["project"]

# conda-forge's names where they differ from PyPI's. One package of PyPI may be several there.
CONDA_NAMES = {
    "torch": {"pytorch"},
    "matplotlib": {"matplotlib-base"},  # without Qt
    "playwright": {"playwright-python"},
    "cupy-cuda13x": {"cupy"},  # cuda-version chooses the build
    "cuda-toolkit": {"cuda-version", "cuda-nvrtc", "cuda-cudart-dev", "cuda-crt", "cuda-nvdisasm"},
}
UNVERSIONED = {"cuda-nvrtc", "cuda-cudart-dev", "cuda-crt", "cuda-nvdisasm"}  # cuda-version holds them together
ONLY_CONDA = {"python", "pip"}


# ---- dependencies --------------------------------------------------------------------------------------------------


def requirements():
    """Return what pyproject.toml asks for, CUDA 12 apart: that is the other choice of cuda-version."""
    extras = PROJECT["optional-dependencies"]
    texts = PROJECT["dependencies"] + [text for name, of in extras.items() if name != "cuda12" for text in of]
    return {requirement.name: requirement for requirement in map(Requirement, texts)}


def conda_packages():
    """Return name -> version range of environment.yml; ``13.*`` there is ``==13.*`` here."""
    entries = re.findall(r"^  - ([^:\n]+)$", ENVIRONMENT.partition("dependencies:")[2], re.M)
    named = [entry.partition(" ") for entry in entries]
    return {name: SpecifierSet(f"=={text}" if text[:1].isdigit() else text) for name, _, text in named}


def test_conda_has_the_same_packages():
    asked = {name for pypi in requirements() for name in CONDA_NAMES.get(pypi, {pypi})}
    assert set(conda_packages()) - ONLY_CONDA == asked


def test_conda_has_the_same_ranges():
    conda = conda_packages()
    for pypi, requirement in requirements().items():
        for name in CONDA_NAMES.get(pypi, {pypi}) - UNVERSIONED:
            assert conda[name] == requirement.specifier, name
    assert conda["python"] == SpecifierSet(PROJECT["requires-python"])


def test_conda_installs_the_checkout_without_touching_its_packages():
    assert ENVIRONMENT.endswith("\n  - pip:\n      - --no-deps -e .\n")


def test_both_cuda_extras_are_alike():
    """The two choices differ in the major version, and in the package that holds CUDA's headers (crt/)."""
    extras = PROJECT["optional-dependencies"]
    cupy, toolkit = map(Requirement, extras["cuda12"])
    cupy13, toolkit13 = map(Requirement, extras["cuda13"])
    assert cupy.specifier == cupy13.specifier
    assert (str(toolkit.specifier), str(toolkit13.specifier)) == ("==12.*", "==13.*")
    assert toolkit.extras == {"nvrtc", "cudart", "nvcc"}
    assert toolkit13.extras == {"nvrtc", "cudart", "crt", "nvdisasm"}


def test_every_dependency_has_a_reason():
    begins, ends = PYPROJECT.index("\ndependencies = ["), PYPROJECT.index("\n[project.urls]")
    package = r'"([a-zA-Z][\w.-]*)(?:\[[\w,]+\])?[<>=!~]'
    lines = [line for line in PYPROJECT[begins:ends].splitlines() if re.search(package, line)]
    named = {name for line in lines for name in re.findall(package, line)}
    assert named == set(requirements()) | {"cupy-cuda12x"}, "this test has missed a line"
    assert [line for line in lines if not re.search(r"# .*\w", line)] == []


# ---- the wheel -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel from a copy of the checkout in which a learner has measured."""
    copy, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, copy)
    for name in ("styleforge_lib", "cuda", "records", "notebooks"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "records" / "local.csv").write_text("a learner's own\n")
    (copy / "cuda" / "common").mkdir(exist_ok=True)
    (copy / "cuda" / "common" / "of_this_test.cuh").write_text("// a header\n")
    build = "from hatchling.build import build_wheel; import sys; print(build_wheel(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", build, out], cwd=copy, capture_output=True, text=True, check=True)
    with zipfile.ZipFile(out / done.stdout.split()[-1]) as archive:
        yield archive


def test_the_wheel_holds_what_runs(wheel):
    names = set(wheel.namelist())
    assert "styleforge_lib/cuda/common/of_this_test.cuh" in names
    kernels = {f"styleforge_lib/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "cuda").rglob("*.cu*")}
    sources = [path for end in ("py", "js", "css") for path in (ROOT / "styleforge_lib").rglob(f"*.{end}")]
    assert kernels | {path.relative_to(ROOT).as_posix() for path in sources} <= names
    styles = {path.name for path in (ROOT / "styleforge_lib" / "styles").glob("*.safetensors")}
    assert len(styles) >= 4
    assert {f"styleforge_lib/styles/{name}" for name in styles} <= names
    records = wheel.read("styleforge_lib/records/measurements.csv")
    assert records == (ROOT / "records" / "measurements.csv").read_bytes()


def test_the_wheel_holds_nothing_else(wheel):
    """No notebooks, no tests, and above all no measurements that a learner made."""
    outside = [
        name for name in wheel.namelist() if not re.match(r"styleforge_lib/|styleforge-[\d.]+\.dist-info/", name)
    ]
    assert outside == []
    assert [name for name in wheel.namelist() if "/records/" in name] == ["styleforge_lib/records/measurements.csv"]


def test_an_installed_wheel_finds_its_data(wheel, tmp_path):
    """The package runs from where the wheel was unpacked, and not from the checkout."""
    wheel.extractall(tmp_path)
    ask = (
        "import styleforge_lib; from styleforge_lib.lab import records; from styleforge_lib import list_styles; "
        "from styleforge_lib.paths import data_folder; "
        "print(styleforge_lib.__file__); print(records.committed_path()); print(data_folder('cuda')); "
        "print(len(records.read(records.committed_path())), *list_styles())"
    )
    done = subprocess.run([sys.executable, "-c", ask], cwd=tmp_path, capture_output=True, text=True, check=True)
    *paths, told = done.stdout.splitlines()
    assert [Path(path).is_relative_to(tmp_path) for path in paths] == [True] * 3
    rows, *styles = told.split()
    assert int(rows) > 100
    assert "starry_night" in styles


# ---- tools/install.py ----------------------------------------------------------------------------------------------

OLD_FORMAT = """\
+---------------------------------------------------------------------------------------+
| NVIDIA-SMI 535.161.08             Driver Version: 535.161.08   CUDA Version: 12.2     |
|-----------------------------------------+----------------------+----------------------+
| GPU  Name                 Persistence-M | Bus-Id        Disp.A | Volatile Uncorr. ECC |
|   0  Tesla T4                       Off | 00000000:00:04.0 Off |                    0 |
"""
NEW_FORMAT = """\
Wed Sep 30 21:53:38 2026
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI 610.57.04              KMD Version: 610.57.04     CUDA UMD Version: 13.3     |
+-----------------------------------------+------------------------+----------------------+
"""
OLDEST_FORMAT = "| NVIDIA-SMI 384.130                Driver Version: 384.130                   |"
BROKEN = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
UNREADABLE = "| NVIDIA-SMI 470.57.02    Driver Version: N/A    CUDA Version: N/A  |"


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (OLD_FORMAT, (12, 2)),
        (NEW_FORMAT, (13, 3)),
        (OLDEST_FORMAT, None),
        (BROKEN, None),
        (UNREADABLE, None),
        ("", None),
    ],
    ids=["535", "610", "384", "broken", "unreadable", "silent"],
)
def test_what_nvidia_smi_says(text, version):
    assert install.parse_nvidia_smi(text) == version


def extras_of(step):
    """Return the extras with which a step installs the checkout."""
    ((flag, project),) = step
    assert flag == "-e"
    return re.fullmatch(re.escape(str(ROOT)) + r"\[(.*)\]", project)[1].split(",")


@pytest.mark.parametrize("cuda", [None, (11, 8)], ids=["no driver", "too old a driver"])
def test_without_a_driver_that_serves_torch_is_a_cpu_build(cuda):
    torch, project = install.plan(cuda, ["lab"], platform="linux")
    assert torch[0] == ["torch==2.13.0+cpu"]
    assert torch[1] == ["--index-url", "https://download.pytorch.org/whl/cpu", "torch>=2.10"]
    assert torch[-1] == ["torch>=2.10"], "where neither is to be had, any torch serves"
    assert extras_of(project) == ["cuda13", "lab"]


@pytest.mark.parametrize("cuda", [(13, 0), (13, 3), (14, 0)])
def test_a_driver_for_cuda_13_takes_pypi(cuda):
    torch, project = install.plan(cuda, ["lab", "test"], platform="linux")
    assert torch == [["torch>=2.10"]]
    assert extras_of(project) == ["cuda13", "lab", "test"]


@pytest.mark.parametrize("cuda", [(12, 0), (12, 8)])
def test_a_driver_for_cuda_12_takes_the_build_that_runs_under_all_of_them(cuda):
    torch, project = install.plan(cuda, ["lab"], platform="linux")
    assert torch == [["--index-url", "https://download.pytorch.org/whl/cu126", "torch>=2.10"]]
    assert extras_of(project) == ["cuda12", "lab"]


def test_macos_has_no_cuda_packages():
    torch, project = install.plan(None, ["lab"], platform="darwin")
    assert torch == [["torch>=2.10"]]
    assert extras_of(project) == ["lab"]


def test_versions_are_those_of_pyproject():
    torch = requirements()["torch"].specifier
    assert Requirement(install.TORCH_ANY).specifier == torch
    (tested,) = Requirement(install.TORCH_CPU).specifier
    assert torch.contains(tested.version)
    allowed = SpecifierSet(PROJECT["requires-python"])
    (_, oldest), (_, newest) = install.OLDEST_PYTHON, install.NEWEST_PYTHON
    assert [n for n in range(30) if allowed.contains(f"3.{n}")] == list(range(oldest, newest + 1))


@pytest.fixture
def pip_calls(monkeypatch, tmp_path):
    """Run install.main() with everything stood in for that touches the machine; return what it would have run."""
    calls = []

    def run(command, **_):
        calls.append([str(word) for word in command])
        return subprocess.CompletedProcess(command, 0, stdout="", stderr="")

    monkeypatch.setattr(install.subprocess, "run", run)
    monkeypatch.setattr(install.venv, "create", lambda *_, **__: None)
    monkeypatch.setattr(install, "driver_cuda", lambda: None)
    monkeypatch.setattr(sys, "argv", ["install.py", "--venv", str(tmp_path / "env"), "--extras", "lab,test"])
    return calls


@pytest.mark.parametrize("version", [(3, 10, 12), (3, 15, 0), (2, 7, 18)])
def test_another_python_is_refused_in_a_line(version, pip_calls, monkeypatch, capsys):
    monkeypatch.setattr(sys, "version_info", version)
    monkeypatch.setattr(sys, "version", ".".join(map(str, version)) + " (main, Jan 1 2026) [GCC]")
    assert install.main() == 1
    said = capsys.readouterr().err
    assert said.startswith("StyleForge needs Python 3.11 to 3.14; this is " + ".".join(map(str, version)))
    assert "make PYTHON=" in said
    assert pip_calls == []


def test_an_old_driver_is_named_and_not_used(pip_calls, monkeypatch, capsys):
    monkeypatch.setattr(install, "driver_cuda", lambda: (11, 4))
    assert install.main() == 0
    assert "older than CUDA 12: the GPU stays unused" in capsys.readouterr().out
    assert pip_calls[0][3:] == ["install", "torch==2.13.0+cpu"]
    assert pip_calls[1][-1].endswith("[cuda13,lab,test]")


def test_the_next_alternative_is_tried_and_the_last_failure_counts(pip_calls, monkeypatch):
    recording = install.subprocess.run
    for failing, code, tried in (("+cpu", 0, 3), ("torch", 1, 3)):
        pip_calls.clear()

        def run(command, failing=failing, **options):
            done = recording(command, **options)
            done.returncode = int(failing in str(command[-1]))
            return done

        monkeypatch.setattr(install.subprocess, "run", run)
        assert install.main() == code
        assert len([call for call in pip_calls if "install" in call]) == tried


def test_an_environment_without_pip_is_made_whole(pip_calls, monkeypatch, tmp_path):
    """On a Debian without python3-venv the first try leaves a python alone; the second must not fall over it."""
    python = tmp_path / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    made = []
    monkeypatch.setattr(install.venv, "create", lambda where, **options: made.append((where, options)))
    recording = install.subprocess.run
    lacking = lambda c, **o: subprocess.CompletedProcess(c, 1) if c[-1] == "--version" else recording(c, **o)  # noqa: E731
    monkeypatch.setattr(install.subprocess, "run", lacking)
    assert install.main() == 0
    assert made == [(tmp_path / "env", {"with_pip": True})]


def test_without_venv_the_missing_package_is_named(pip_calls, monkeypatch, capsys):
    def create(*_, **__):
        raise subprocess.CalledProcessError(1, "ensurepip")

    monkeypatch.setattr(install.venv, "create", create)
    assert install.main() == 1
    assert "install the package python3-venv" in capsys.readouterr().err
    assert pip_calls == []
