"""Look at the accelerated network's kernels with Nsight Compute: every launch of its plan once, layer by layer.

Contents
    METRICS         what is asked of ncu, and what stands in the record
    launch_plan     the child's part: the plan, launched once unwatched and once watched
    by_layer        the launches of a table, each with its layer
    table           the record's rows, a line each
    main            the command line

    python tools/ncu_network.py                       # on a GPU with ncu: writes records/ncu_network.json
    python tools/ncu_network.py --size 512x512 --json out/ncu.json
    python tools/ncu_network.py --dry-run             # no GPU: every step, with figures that are made up

A kernel runs alone here, several times over, at the card's own clocks, and finds in the L2 cache what the one before
it left. Between the layers stand launches of `close_planes`, which make scale and shift of a layer's sums; they have
the name of that layer.
Exits with 1 where the launches are not those of the plan, with 2 without a GPU or without ncu.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from address import ROOT
from ncu import Launch, environment, find_ncu, known_metrics, launches, run, version

from styleforge_lib.acceleration import Plan, accelerate
from styleforge_lib.lab import records
from styleforge_lib.lab.peers import PHOTO, STYLE
from styleforge_lib.lab.photos import photo_tensor
from styleforge_lib.models.checkpoints import load_style
from styleforge_lib.runtime import gpu
from styleforge_lib.runtime.kernel import DEVICE_VARIABLE

RECORD = ROOT / "records" / "ncu_network.json"
SIZE, TINY = "1024x1024", "8x8"
CLOSING = "close_planes"
SECONDS = 150  # that ncu may take: the child compiles the kernels first, where no cache has them
OF_PEAK = "avg.pct_of_peak_sustained_elapsed"
# Column of the record -> ncu's counter, of several the first that the card has; in the units of ncu's "base".
METRICS: dict[str, tuple[str, ...]] = {
    "ns": ("gpu__time_duration.sum",),
    "cycles": ("sm__cycles_elapsed.max",),
    # Of the time, how long the tensor cores multiply; wgmma counts as a kind of its own, or with mma as "hmma".
    "tensor_percent": (
        f"sm__pipe_tensor_cycles_active.{OF_PEAK}",
        f"sm__pipe_tensor_op_gmma_cycles_active.{OF_PEAK}",
        f"sm__pipe_tensor_op_hmma_cycles_active.{OF_PEAK}",
        f"sm__inst_executed_pipe_tensor_op_gmma.{OF_PEAK}",
        f"sm__inst_executed_pipe_tensor.{OF_PEAK}",
    ),
    "wgmma_percent": (f"sm__inst_executed_pipe_tensor_op_gmma.{OF_PEAK}",),
    "mma_percent": (f"sm__inst_executed_pipe_tensor_op_hmma.{OF_PEAK}",),
    "fp64_percent": (f"sm__inst_executed_pipe_fp64.{OF_PEAK}",),
    "issue_percent": (f"sm__inst_issued.{OF_PEAK}", f"smsp__issue_active.{OF_PEAK}"),
    "warps_percent": ("sm__warps_active.avg.pct_of_peak_sustained_active",),
    "dram_read": ("dram__bytes_read.sum",),
    "dram_written": ("dram__bytes_write.sum",),
    "l2_bytes": ("lts__t_bytes.sum",),
    "l2_hit_percent": ("lts__t_sector_hit_rate.pct",),
    "instructions": ("smsp__inst_executed.sum",),
    "registers": ("launch__registers_per_thread",),
    "shared_bytes": ("launch__shared_mem_per_block",),
    "blocks": ("launch__grid_size",),
    "threads": ("launch__block_size",),
}


def wanted_metrics() -> list[str]:
    """Return the names of all counters that are asked for."""
    return list(dict.fromkeys(name for names in METRICS.values() for name in names))


def launch_plan(folder: Path, size: str) -> None:
    """Launch every layer of the float16 plan, with the profiler on at the second time; leave the layers' names."""
    device = "cuda" if gpu.available() and os.environ.get(DEVICE_VARIABLE) != "emulator" else "cpu"
    height, width = (int(n) for n in size.split("x"))
    with torch.inference_mode():
        fast = accelerate(load_style(STYLE, device))
        x = photo_tensor(PHOTO, height, width).to(device)
        plan = Plan(fast._prepared(x.shape, x.device, x.dtype, x.dtype), tuple(x.shape), x.device, x.dtype)
        plan.launch(x)
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.profiler.start()
            plan.launch(x)
            torch.cuda.synchronize()
            torch.cuda.profiler.stop()
    names = [[step.name, type(step.kernel).__name__, step.layer.statistics] for step in plan.steps]
    (folder / "steps.json").write_text(json.dumps(names))


def by_layer(found: Sequence[Launch], steps: Sequence[tuple[str, str, bool]]) -> list[dict]:
    """Return the record's rows: each launch with its layer. ValueError: they are not the launches of these steps."""
    kernels = [launch for launch in found if launch.kernel != CLOSING]
    if len(kernels) != len(steps) or found[:1] != kernels[:1]:
        seen = ", ".join(launch.kernel for launch in found) or "none"
        raise ValueError(f"the plan has {len(steps)} layers, and ncu saw {len(kernels)} of their launches: {seen}")
    rows, layer = [], ""
    names = iter(name for name, *_ in steps)
    for launch in found:
        layer = layer if launch.kernel == CLOSING else next(names)
        values = {column: _first(launch.values, counters) for column, counters in METRICS.items()}
        rows.append({"layer": layer, "kernel": launch.kernel, **values})
    return rows


def _first(values: Mapping[str, float], names: Iterable[str]) -> float | None:
    return next((values[name] for name in names if name in values), None)


def table(rows: Iterable[Mapping]) -> str:
    """Write the rows in columns: microseconds, per cent of the time, and megabytes."""
    columns = {
        "us": ("ns", 1e-3, 1),
        "tensor %": ("tensor_percent", 1, 0),
        "issue %": ("issue_percent", 1, 0),
        "fp64 %": ("fp64_percent", 1, 0),
        "DRAM read": ("dram_read", 1e-6, 1),
        "written": ("dram_written", 1e-6, 1),
        "L2 MB": ("l2_bytes", 1e-6, 1),
        "registers": ("registers", 1, 0),
        "shared KB": ("shared_bytes", 1e-3, 0),
    }
    lines = [f"{'layer':12} {'kernel':28}" + "".join(f"{head:>{len(head) + 2}}" for head in columns)]
    for row in rows:
        cells = [
            f"{'-' if row[key] is None else f'{row[key] * scale:.{digits}f}':>{len(head) + 2}}"
            for head, (key, scale, digits) in columns.items()
        ]
        lines.append(f"{row['layer']:12} {row['kernel']:28}{''.join(cells)}")
    return "\n".join(lines)


def made_up(steps: Iterable[tuple[str, str, bool]]) -> str:
    """Return a table such as ncu prints, of launches that nobody made: what a dry run reads."""
    names = wanted_metrics()
    head = ["ID", "Process ID", "Kernel Name", *names]
    kernels = [name for _, kernel, sums in steps for name in (f"{kernel}(const void *)", CLOSING)[: 1 + sums]]
    lines = [[number, 4711, kernel, *(f"{1000 + number:,}" for _ in names)] for number, kernel in enumerate(kernels)]
    text = [",".join(f'"{word}"' for word in line) for line in [head, ["", "", "", *["unit"] * len(names)], *lines]]
    return "\n".join(["==PROF== Connected to process 4711", *text])


def main(argv: list[str] | None = None) -> int:
    """Profile, print the table, write the record, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default=SIZE, help="of the picture, HEIGHTxWIDTH")
    parser.add_argument("--json", metavar="PATH", type=Path, default=RECORD, help="the record that is written")
    parser.add_argument("--keep", metavar="PATH", type=Path, help="keep ncu's CSV there")
    parser.add_argument("--ncu", metavar="PATH", help="the profiler (default: of the PATH)")
    parser.add_argument("--dry-run", action="store_true", help="without a GPU: the emulator, and figures made up")
    parser.add_argument("--launch", metavar="PATH", type=Path, help=argparse.SUPPRESS)  # the child
    options = parser.parse_args(argv)
    if options.launch:
        launch_plan(options.launch, options.size)
        return 0
    ncu = find_ncu(options.ncu)
    if not options.dry_run and not (gpu.available() and ncu):
        what = "ncu, Nsight Compute's command," if gpu.available() else "NVIDIA GPU"
        print(f"no {what} here: --dry-run goes through it without", file=sys.stderr)
        return 2
    size = TINY if options.dry_run else options.size
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        child = [sys.executable, str(Path(__file__).resolve()), "--launch", name, "--size", size]
        machine = records.machine()
        try:
            if options.dry_run:
                subprocess.run(child, check=True, env=environment(**{DEVICE_VARIABLE: "emulator"}))
                text = made_up(json.loads((folder / "steps.json").read_text()))
            else:
                machine["ncu"] = version(ncu)
                metrics = known_metrics(ncu, wanted_metrics())
                text = run(ncu, ("--profile-from-start", "off"), metrics, child, folder, seconds=SECONDS)
            if options.keep:
                options.keep.write_text(text, "utf-8")
            rows = by_layer(launches(text), json.loads((folder / "steps.json").read_text()))
        except (RuntimeError, ValueError, OSError, subprocess.SubprocessError) as error:
            print(f"not profiled: {error}", file=sys.stderr)
            return 1
    print(table(rows))
    print(f"{len(rows)} launches, {sum(row['ns'] or 0 for row in rows) / 1e6:.3f} ms one by one")
    if not options.dry_run:
        content = {"machine": machine, "run": records.new_run(), "shape": f"1x3x{size}", "rows": rows}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
