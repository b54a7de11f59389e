"""Nsight Compute's `ncu` from Python: find it, run a child under it, and read the table that it prints.

Contents
    find_ncu, version   the profiler
    known_metrics       those of some counters that this card has
    environment         of a child that finds the library where this process found it
    run                 a child under ncu -> its CSV
    launches            CSV -> a Launch for each kernel that was profiled, in their order
"""

import csv
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from address import ROOT

SECONDS = 80  # that ncu may take


def find_ncu(given: str | None) -> str | None:
    """Return the profiler's path: the one that is given, of the PATH, or of the folder where CUDA installs it."""
    folders = sorted(Path("/opt/nvidia/nsight-compute").glob("*/ncu")) + sorted(
        Path("/usr/local").glob("cuda*/bin/ncu")
    )
    return shutil.which(given or "ncu") or (None if given or not folders else str(folders[-1]))


def version(ncu: str) -> str:
    """Return the profiler's version."""
    said = subprocess.run([ncu, "--version"], capture_output=True, text=True, check=False, timeout=SECONDS).stdout
    return found[0] if (found := re.findall(r"\d+\.\d+[\d.]*", said)) else ""


def known_metrics(ncu: str, wanted: Sequence[str]) -> list[str]:
    """Return those of the counters that this card has; where ncu does not tell, all of them."""
    said = subprocess.run([ncu, "--query-metrics"], capture_output=True, text=True, check=False, timeout=SECONDS).stdout
    there = set(re.findall(r"^\s*(\w+__\w+)", said, re.M))
    # What a launch was made of is no counter of the card, and not in the list.
    return [
        name for name in wanted if name.partition(".")[0] in there or (there and name.startswith("launch__"))
    ] or list(wanted)


def environment(**more: str) -> dict[str, str]:
    """Return the child's environment, in which it finds the library where this process found it."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **more}


def run(
    ncu: str,
    options: Iterable[str],
    metrics: Iterable[str],
    child: Sequence[str],
    folder: Path,
    *,
    seconds: float = SECONDS,
) -> str:
    """Run a child under ncu, at the card's own clocks, and return its CSV; RuntimeError says what ncu said."""
    log = folder / "ncu.csv"
    command = [
        *(ncu, "--csv", "--page", "raw", "--print-units", "base", "--target-processes", "all"),
        *("--clock-control", "none", "--cache-control", "none", "--replay-mode", "kernel"),
        *(*options, "--metrics", ",".join(metrics), "--log-file", str(log), *child),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds, env=environment())
    text = log.read_text("utf-8", errors="replace") if log.is_file() else ""
    if done.returncode:
        remarks = [
            line for line in (done.stdout + done.stderr + text).splitlines() if "ERROR" in line or "Error" in line
        ]
        raise RuntimeError(f"ncu ended with {done.returncode}: {' '.join(remarks) or (done.stderr or text)[-2000:]}")
    return text


@dataclass
class Launch:
    """One kernel that was profiled: its name without parameters, and the counters that are numbers."""

    number: str
    kernel: str
    values: dict[str, float] = field(default_factory=dict)


def launches(text: str) -> list[Launch]:
    """Return the launches of what `ncu --csv` prints, with a row for each metric or for each kernel.

    Remarks before the table are passed over. Values may have thousands separators; one that is no number (n/a) is left
    out. ValueError: there is no table.
    """
    lines = text.splitlines()
    start = next((number for number, line in enumerate(lines) if '"Kernel Name"' in line and '"ID"' in line), None)
    if start is None:
        raise ValueError(f"no table of ncu in these {len(lines)} lines; they end with: {' '.join(lines[-3:])!r}")
    found: dict[str, Launch] = {}
    for row in csv.DictReader(line for line in lines[start:] if line.startswith('"')):
        if not row["ID"]:
            continue  # the row of units
        name = row["Kernel Name"].partition("(")[0].split()[-1]
        launch = found.setdefault(row["ID"], Launch(row["ID"], name))
        pairs = [(row["Metric Name"], row["Metric Value"])] if "Metric Name" in row else row.items()
        for metric, value in pairs:
            number = _number(value)
            if number is not None:
                launch.values[metric] = number
    return list(found.values())


def _number(text: str | None) -> float | None:
    try:
        return float((text or "").replace(",", "").replace("\N{NARROW NO-BREAK SPACE}", "").strip())
    except ValueError:
        return None
