"""Make .venv and install StyleForge into it: what `make lab` and `make test` run first.

Contents: what the machine has (driver_cuda), what that asks for (plan), the doing (main).

Runs under the system's bare python3, so it uses the standard library alone. Three machines are told apart:

- an NVIDIA driver for CUDA 13: torch from PyPI (built for CUDA 13) and cupy-cuda13x;
- an NVIDIA driver for CUDA 12: torch built for CUDA 12.6, which runs under every 12.x driver, and cupy-cuda12x;
- no driver: a CPU build of torch (0.2 GB, against several GB), and CuPy with NVRTC, which compile without a GPU.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 14)
TORCH_INDEX = "https://download.pytorch.org/whl/"
# The CPU build that the tests are known to pass with; tried first wherever pip already looks (a mirror, a wheelhouse).
TORCH_CPU = "torch==2.13.0+cpu"
TORCH_ANY = "torch>=2.10"


def driver_cuda() -> tuple[int, int] | None:
    """Return the highest CUDA version that the NVIDIA driver runs, as (major, minor), or None without a driver."""
    if not shutil.which("nvidia-smi"):
        return None
    said = subprocess.run(["nvidia-smi"], capture_output=True, text=True, check=False).stdout
    return parse_nvidia_smi(said)


def parse_nvidia_smi(text: str) -> tuple[int, int] | None:
    """Find "CUDA Version: 13.0" in what nvidia-smi prints."""
    found = re.search(r"CUDA (?:UMD )?Version:\s*(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


def plan(cuda: tuple[int, int] | None, extras: list[str], platform: str = sys.platform) -> list[list[list[str]]]:
    """Return the pip installs, in order; each is a list of alternatives, of which the first that succeeds counts."""
    if platform == "darwin":  # neither CuPy nor NVRTC has wheels there
        return [[[TORCH_ANY]], [["-e", _project(extras)]]]
    if cuda and cuda[0] >= 13:
        return [[[TORCH_ANY]], [["-e", _project(["cuda13", *extras])]]]
    if cuda and cuda[0] == 12:
        return [[["--index-url", TORCH_INDEX + "cu126", TORCH_ANY]], [["-e", _project(["cuda12", *extras])]]]
    cpu = [[TORCH_CPU], ["--index-url", TORCH_INDEX + "cpu", TORCH_ANY], [TORCH_ANY]]
    return [cpu, [["-e", _project(["cuda13", *extras])]]]


def keep_widgets(environment: Path) -> None:
    """Let JupyterLab store a notebook's widgets with it, so that they live on when it is opened again."""
    settings = {"@jupyter-widgets/jupyterlab-manager:plugin": {"saveState": True}}
    folder = environment / "share" / "jupyter" / "lab" / "settings"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "overrides.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")


def _has_pip(python: Path) -> bool:
    """Say whether the environment is whole: without python3-venv, Debian leaves one that has a python but no pip."""
    return python.exists() and not subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode


def _project(extras: list[str]) -> str:
    return f"{ROOT}[{','.join(extras)}]"


def main() -> int:
    """Create the environment where it is missing, then install; pip's own messages show the progress."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    parser.add_argument("--extras", default="lab", help="comma-separated extras of pyproject.toml (default: lab)")
    arguments = parser.parse_args()

    if not OLDEST_PYTHON <= sys.version_info[:2] <= NEWEST_PYTHON:
        print(
            f"StyleForge needs Python 3.{OLDEST_PYTHON[1]} to 3.{NEWEST_PYTHON[1]}; this is {sys.version.split()[0]}. "
            "Name another one: make PYTHON=python3.12 ...",
            file=sys.stderr,
        )
        return 1
    python = arguments.venv / ("Scripts" if sysconfig.get_platform().startswith("win") else "bin") / "python"
    if not _has_pip(python):
        print(f"Creating {arguments.venv} ...", flush=True)
        try:
            venv.create(arguments.venv, with_pip=True)
        except subprocess.CalledProcessError:
            print("python3 cannot create environments here: install the package python3-venv first.", file=sys.stderr)
            return 1
    cuda = driver_cuda()
    found = f"CUDA {cuda[0]}.{cuda[1]}" if cuda else "none, so kernels run in the emulator"
    print(f"NVIDIA driver: {found}", flush=True)
    if cuda and cuda[0] < 12:
        print("That driver is older than CUDA 12: the GPU stays unused. Update the driver, then run this again.")
        cuda = None
    for alternatives in plan(cuda, arguments.extras.split(",")):
        for number, what in enumerate(alternatives):
            print("pip install " + " ".join(what), flush=True)
            # An alternative that may fail does so quietly; the last one's error is pip's own.
            quiet = subprocess.PIPE if number + 1 < len(alternatives) else None
            if subprocess.run([python, "-m", "pip", "install", *what], stderr=quiet, check=False).returncode == 0:
                break
        else:
            return 1
    keep_widgets(arguments.venv)
    return 0


if __name__ == "__main__":
    sys.exit(main())
