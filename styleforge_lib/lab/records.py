"""The record of every measurement: one CSV, one row a measurement, appended to and never rewritten.

Contents: the row (Measurement), where rows live (committed_path, local_path), reading (read, latest), writing (append).

``records/measurements.csv`` is committed and written by ``make bench``. What a learner measures on their own card goes
to ``records/local.csv`` beside it, which git ignores, and is read together with it.
"""

import csv
import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path

from styleforge_lib.paths import records_folder


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One measured operation. Times in milliseconds, ``bytes`` and ``flops`` of one call, empty where unknown.

    ``method`` says how it was timed: ``cold`` (L2 flushed before every call, events around it), ``warm`` (back to
    back), ``graph`` (replays of a CUDA graph of several calls, back to back), ``inside`` (a stage within the running
    network, by the profiler), ``host`` (what the call costs the CPU) or ``memory`` (``bytes`` is what the call takes at
    most besides weights and inputs; its times are those of the cold call).
    ``rel_error`` is ||out - ref|| / ||ref|| against float64, ``psnr_db`` the same as a picture (peak 255).
    ``run`` is common to what was measured together: only rows of one run are compared.
    """

    operator: str
    version: str
    shape: str
    dtype: str
    layout: str = "nchw"
    method: str = "cold"
    median_ms: float
    p20_ms: float
    p80_ms: float
    bytes: int | None = None
    flops: int | None = None
    rel_error: float | None = None
    psnr_db: float | None = None
    peers: str = ""
    run: str = ""
    gpu: str = ""
    driver: str = ""
    cuda: str = ""
    torch: str = ""
    cupy: str = ""
    python: str = ""

    @property
    def key(self) -> tuple[str, ...]:
        """What is the same when it is measured again."""
        return (self.operator, self.version, self.shape, self.dtype, self.layout, self.method)

    @property
    def tflops(self) -> float | None:
        """Return the rate in TFLOP/s."""
        return self.flops / self.median_ms / 1e9 if self.flops else None

    @property
    def gbytes(self) -> float | None:
        """Return the rate in GB/s, of the bytes that the operation must move at least."""
        return self.bytes / self.median_ms / 1e6 if self.bytes else None

    @property
    def where(self) -> str:
        """Return the GPU and the day, as a sentence about this row must name them."""
        return f"{self.gpu}, {self.run[:10]}"


_COLUMNS = tuple(field.name for field in fields(Measurement))
_TIMES = ("median_ms", "p20_ms", "p80_ms")
_NUMBERS: dict[str, Callable] = {
    **dict.fromkeys(_TIMES, float),
    "bytes": int,
    "flops": int,
    "rel_error": float,
    "psnr_db": float,
}


def committed_path() -> Path:
    """Return the CSV that the repository ships."""
    return records_folder() / "measurements.csv"


def local_path() -> Path:
    """Return the CSV that measurements are appended to: $STYLEFORGE_RECORDS, else the learner's own."""
    return Path(os.environ.get("STYLEFORGE_RECORDS") or records_folder() / "local.csv")


def read(*paths: Path) -> list[Measurement]:
    """Read rows from ``paths`` (default: the committed file, then the local one), oldest first."""
    rows: list[Measurement] = []
    for path in paths or dict.fromkeys((committed_path(), local_path())):
        if not path.exists():
            continue
        _check_header(path)
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows += [_parse(row, f"{path}:{reader.line_num}") for row in reader]
    return rows


def _check_header(path: Path) -> None:
    with path.open(newline="", encoding="utf-8") as file:
        if tuple(next(csv.reader(file), ())) != _COLUMNS:
            raise ValueError(f"{path}: its first line must be {','.join(_COLUMNS)}")


def _parse(row: dict[str, str], where: str) -> Measurement:
    values = list(row.values())
    try:
        if len(values) != len(_COLUMNS) or None in values:
            raise ValueError(f"it needs {len(_COLUMNS)} columns")
        return Measurement(**{name: _value(name, text) for name, text in row.items()})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: not a measurement ({error})") from None


def _value(name: str, text: str) -> object:
    if name not in _NUMBERS:
        return text
    if not text and name in _TIMES:
        raise ValueError(f"no {name}")
    return _NUMBERS[name](text) if text else None


def latest(rows: Iterable[Measurement] | None = None, **wanted: str) -> list[Measurement]:
    """Select rows by their columns, such as ``operator="transformer_net"``, and keep the newest of each key.

    A trailing ``*`` matches a prefix. All rows come from one GPU: this machine's where it has rows, else the GPU of the
    newest row. Returns them in the order in which they were measured.
    """
    if unknown := wanted.keys() - set(_COLUMNS):
        raise ValueError(f"a measurement has no column {sorted(unknown)[0]!r}; it has {', '.join(_COLUMNS)}")
    rows = [row for row in (read() if rows is None else rows) if _matches(row, wanted)]
    newest: dict[tuple, Measurement] = {}
    for row in sorted(_of_one_gpu(rows), key=lambda row: row.run):
        newest.pop(row.key, None)
        newest[row.key] = row
    return list(newest.values())


def fullest_run(rows: Iterable[Measurement]) -> list[Measurement]:
    """Keep the rows of one run on one GPU (chosen as by ``latest``): the run with most rows, of equals the newest."""
    runs: dict[str, list[Measurement]] = {}
    for row in _of_one_gpu(list(rows)):
        runs.setdefault(row.run, []).append(row)
    return max(runs.items(), key=lambda item: (len(item[1]), item[0]))[1] if runs else []


def _of_one_gpu(rows: list[Measurement]) -> list[Measurement]:
    if not rows:
        return []
    here = machine()["gpu"]
    gpu = here if any(row.gpu == here for row in rows) else max(rows, key=lambda row: row.run).gpu
    return [row for row in rows if row.gpu == gpu]


def _matches(row: Measurement, wanted: dict[str, str]) -> bool:
    for column, want in wanted.items():
        have = getattr(row, column)
        if not (have.startswith(want[:-1]) if want.endswith("*") else have == want):
            return False
    return True


def append(rows: Iterable[Measurement], path: Path | None = None) -> Path:
    """Append ``rows`` to ``path`` (default: ``local_path()``), with a header where the file is new."""
    path = path or local_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists() or path.stat().st_size == 0
    if not new:
        _check_header(path)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        for row in rows:
            writer.writerow({k: _text(v) for k, v in asdict(row).items()})
    return path


def _text(value: object) -> object:
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else value


def new_run() -> str:
    """Return the name of a run that starts now: its time in UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@cache
def machine() -> dict[str, str]:
    """Describe this machine in the columns of a row; ``gpu`` is empty without one."""
    import torch

    versions = {"python": platform.python_version(), "torch": torch.__version__.split("+")[0], "cuda": "", "cupy": ""}
    for package in ("cupy-cuda13x", "cupy-cuda12x"):
        try:
            versions["cupy"] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    gpu = driver = ""
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_name()
        driver = _driver_version()
        versions["cuda"] = torch.version.cuda or ""
    return {"gpu": gpu, "driver": driver, **versions}


def _driver_version() -> str:
    import subprocess

    said = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    )
    return said.stdout.split("\n")[0].strip()
