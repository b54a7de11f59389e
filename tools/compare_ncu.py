"""Compare the emulator's counts of memory traffic with those of Nsight Compute, for one pattern of addresses a kernel.

Contents
    METRICS         what is asked of ncu, and how its counters add up to what the emulator counts
    EXPLAINED       where the two are known to count differently, and why
    launch_all      the child's part: every probe of ncu_probes.cu, launched once
    profile         the child under ncu (tools/ncu.py) -> CSV
    read_csv        CSV -> {kernel: {metric: value}}
    emulate         the same launches in the emulator -> counts and results
    compare         both -> one Row for each kernel, space and verb
    main            the command line

    python tools/compare_ncu.py                       # on a GPU with ncu: writes records/compare_ncu.json
    python tools/compare_ncu.py --again               # no GPU: the emulator as it is now against the record's counts
    python tools/compare_ncu.py --dry-run             # no GPU: every step, with a CSV made of the emulator's own counts

Global memory: requests of warps and the 32-byte sectors that they touch. Shared memory: the passes over the banks,
which ncu calls wavefronts. Counts agree within TOLERANCE or the difference is in EXPLAINED; anything else fails. The
results of the kernels are compared too, bit for bit, where they were launched.
Exits with 1 where a count or a result differs or is missing, with 2 without a GPU or without ncu.

Source of the counters' names: Nsight Compute's Kernel Profiling Guide, "Metrics Decoder", and `ncu --query-metrics`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from address import ROOT
from ncu import environment, find_ncu, known_metrics, launches, run, version

from styleforge_lib.lab import records
from styleforge_lib.runtime import compile_cuda, gpu
from styleforge_lib.runtime.emulator import Requests, Trace

PROBES = ROOT / "tools" / "ncu_probes.cu"
RECORD = ROOT / "records" / "compare_ncu.json"
GRID, BLOCK, STRIDE = 8, 256, 32  # as ncu_probes.cu says
FLOATS = GRID * BLOCK * STRIDE + 32
ARCH = "sm_90a"  # of the emulator's code, where there is no card to say
TOLERANCE = 0.02

Access = tuple[str, str]  # space and verb, as in the emulator's LineMetrics.accesses


@dataclass(frozen=True)
class Counters:
    """Which of ncu's counters make up one access: the sum of each list, of the first list that the card has.

    requests: of warps; units: sectors or passes. A counter that is missing from a list that has others counts 0.
    """

    requests: tuple[tuple[str, ...], ...]
    units: tuple[tuple[str, ...], ...]

    def every(self) -> Iterable[str]:
        """Yield all names."""
        for lists in (self.requests, self.units):
            for names in lists:
                yield from names


def _global(*verbs: str) -> Counters:
    requests = tuple(f"l1tex__t_requests_pipe_lsu_mem_global_op_{verb}.sum" for verb in verbs)
    return Counters((requests,), (tuple(name.replace("requests", "sectors") for name in requests),))


# The counters of instructions ("sass") leave out what other units do to the banks, so they come first. ldsm is
# ldmatrix; ldgsts is cp.async, a load from global memory and a store to shared memory in one.
METRICS: dict[Access, Counters] = {
    ("global", "load"): _global("ld", "ldgsts"),
    ("global", "store"): _global("st"),
    ("global", "atomic"): _global("red", "atom"),
    ("shared", "load"): Counters(
        (("smsp__sass_inst_executed_op_shared_ld.sum", "smsp__sass_inst_executed_op_ldsm.sum"),),
        (
            (
                "smsp__sass_l1tex_data_pipe_lsu_wavefronts_mem_shared_op_ld.sum",
                "smsp__sass_l1tex_data_pipe_lsu_wavefronts_mem_shared_op_ldsm.sum",
            ),
            ("l1tex__data_pipe_lsu_wavefronts_mem_shared_op_ld.sum",),
        ),
    ),
    ("shared", "store"): Counters(
        (("smsp__sass_inst_executed_op_shared_st.sum", "smsp__sass_inst_executed_op_ldgsts.sum"),),
        (
            (
                "smsp__sass_l1tex_data_pipe_lsu_wavefronts_mem_shared_op_st.sum",
                "smsp__sass_l1tex_data_pipe_lsu_wavefronts_mem_shared_op_ldgsts.sum",
            ),
            ("l1tex__data_pipe_lsu_wavefronts_mem_shared_op_st.sum",),
        ),
    ),
}
# Kept in the record beside them, to explain a difference by.
ASIDE = (
    "l1tex__data_pipe_lsu_wavefronts_mem_shared.sum",
    "l1tex__data_pipe_lsu_wavefronts_mem_shared_op_ld.sum",
    "l1tex__data_pipe_lsu_wavefronts_mem_shared_op_st.sum",
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum",
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_ld.sum",
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_st.sum",
    "smsp__sass_l1tex_data_bank_conflicts_pipe_lsu_mem_shared_op_ldsm.sum",
    "smsp__sass_l1tex_data_bank_conflicts_pipe_lsu_mem_shared_op_ldgsts.sum",
    "smsp__sass_inst_executed_op_global_ld.sum",
    "smsp__inst_executed_op_shared_ld.sum",
    "smsp__inst_executed_op_shared_st.sum",
    "smsp__inst_executed_op_ldsm.sum",
    "smsp__inst_executed_op_ldgsts.sum",
    "smsp__inst_executed.sum",
    "sm__sass_l1tex_t_sectors_pipe_lsu_mem_global_op_ldgsts_cache_access.sum",
    "sm__sass_l1tex_t_sectors_pipe_lsu_mem_global_op_ldgsts_cache_bypass.sum",
    "l1tex__t_sectors_pipe_lsu_mem_global_op_ldgsts_cache_access.sum",
    "l1tex__t_sectors_pipe_lsu_mem_global_op_ldgsts_cache_bypass.sum",
)
# Kernel and access -> why the two counts differ.
EXPLAINED: dict[tuple[str, Access], str] = {
    ("atomics_colliding", ("global", "atomic")): (
        "four lanes meet at each address: the card counts the sector four times, the emulator once a request"
    ),
}


# ----------------------------------------------------------------------------------------------------------------------
# Launching, on whatever device there is


def arguments(device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x, small whole numbers of which no neighbours are alike, and out, which holds zeros."""
    x = (torch.arange(FLOATS) * 7 % 1021).float()
    return x.to(device), torch.zeros(FLOATS, device=device)


def launch_all(results: Path) -> None:
    """Launch every probe once on the device that `compile_cuda` chooses, and store what each left in `out`."""
    module, found = compile_cuda(PROBES), {}
    for name in module.kernels:
        x, out = arguments("cuda" if module.device == "gpu" else "cpu")
        module.kernel(name)(GRID, BLOCK, (x, out))
        found[name] = out.cpu().numpy()
    np.savez(results, **found)


@dataclass(frozen=True)
class Emulated:
    """What the emulator says of one probe: counts by space and verb, and the bits that it left."""

    counts: dict[Access, Requests]
    out: np.ndarray


def emulate(arch: str) -> dict[str, Emulated]:
    """Return every probe's counts and result, from the code of an architecture."""
    module, found = compile_cuda(PROBES, arch=arch), {}
    for name in module.kernels:
        (x, out), trace = arguments("cpu"), Trace(races=False)
        module.kernel(name).emulate(GRID, BLOCK, (x, out), trace=trace)
        counts: dict[Access, Requests] = {}
        for line in trace.lines().values():
            for access, requests in line.accesses.items():
                counts.setdefault(access, Requests()).add(requests)
        found[name] = Emulated(counts, out.numpy())
    return found


# ----------------------------------------------------------------------------------------------------------------------
# Nsight Compute


def wanted_metrics() -> list[str]:
    """Return the names of all counters that are asked for."""
    return list(dict.fromkeys([*(name for c in METRICS.values() for name in c.every()), *ASIDE]))


def profile(ncu: str, names: Iterable[str], folder: Path) -> str:
    """Launch the probes in a child under ncu and return its CSV; RuntimeError says what ncu said."""
    only = ("--kernel-name", f"regex:^({'|'.join(names)})$")
    return run(ncu, only, known_metrics(ncu, wanted_metrics()), _child(folder), folder)


def _child(folder: Path) -> list[str]:
    return [sys.executable, str(Path(__file__).resolve()), "--launch", str(folder / "results.npz")]


def read_csv(text: str) -> dict[str, dict[str, float]]:
    """Return {kernel: {metric: value}} of what `ncu --csv` prints, without metrics that were not asked for.

    ValueError: there is no table, or a kernel is in it twice.
    """
    found: dict[str, dict[str, float]] = {}
    wanted = set(wanted_metrics())
    for launch in launches(text):
        if launch.kernel in found:
            raise ValueError(f"kernel {launch.kernel} was launched twice in this table; each probe is launched once")
        found[launch.kernel] = {metric: value for metric, value in launch.values.items() if metric in wanted}
    return found


def own_csv(emulated: Mapping[str, Emulated]) -> str:
    """Return a CSV such as ncu prints, of the emulator's own counts: what a dry run reads.

    Where a difference is explained, it has twice as many sectors or passes.
    """
    header = ["ID", "Process ID", "Process Name", "Host Name", "Kernel Name", "Context", "Stream", "Block Size",
              "Grid Size", "Device", "CC", "Section Name", "Metric Name", "Metric Unit", "Metric Value"]  # fmt: skip
    lines = ["==PROF== Connected to process 4711", ",".join(f'"{word}"' for word in header)]
    for number, (name, probe) in enumerate(emulated.items()):
        for access, counters in METRICS.items():
            count = probe.counts.get(access, Requests())
            units = count.units * (2 if (name, access) in EXPLAINED else 1)
            for names, value in ((counters.requests[0], count.requests), (counters.units[0], units)):
                for position, metric in enumerate(names):
                    row = [number, 4711, "python3", "127.0.0.1", f"{name}(const float *, float *)", 1, 7,
                           f"({BLOCK}, 1, 1)", f"({GRID}, 1, 1)", 0, "9.0", "Command line profiler metrics",
                           metric, "sector", f"{0 if position else value:,}"]  # fmt: skip
                    lines.append(",".join(f'"{word}"' for word in row))
    return "\n".join(lines) + "\n"


# ----------------------------------------------------------------------------------------------------------------------
# Comparing


@dataclass(frozen=True)
class Row:
    """One kernel's requests of one space: the emulator's count and ncu's, and what to make of them.

    units: 32-byte sectors of global memory, or passes over the banks of shared memory. verdict: "agrees", "explained",
    "DIFFERENT", "MISSING".
    """

    kernel: str
    space: str
    verb: str
    requests: int
    requests_ncu: float | None
    units: int
    units_ncu: float | None
    verdict: str
    said: str = ""

    @property
    def passed(self) -> bool:
        """Whether the counts agree or the difference is explained."""
        return self.verdict in ("agrees", "explained")


def compare(emulated: Mapping[str, Emulated], counted: Mapping[str, Mapping[str, float]]) -> list[Row]:
    """Hold every count of the emulator, and every one that only ncu has, against the other's."""
    rows = []
    for kernel, probe in emulated.items():
        values = counted.get(kernel, {})
        for access, counters in METRICS.items():
            ours = probe.counts.get(access, Requests())
            theirs = [_first(values, lists) for lists in (counters.requests, counters.units)]
            if not ours.requests and not any(theirs):
                continue
            rows.append(_row(kernel, access, ours, *theirs))
    return rows


def _first(values: Mapping[str, float], lists: Iterable[tuple[str, ...]]) -> float | None:
    for names in lists:
        there = [values[name] for name in names if name in values]
        if there:
            return sum(there)
    return None


def _row(kernel: str, access: Access, ours: Requests, requests: float | None, units: float | None) -> Row:
    why = EXPLAINED.get((kernel, access), "")
    if units is None:
        verdict, why = "MISSING", "ncu has no value"
    elif _near(ours.units, units) and (requests is None or _near(ours.requests, requests)):
        verdict, why = ("DIFFERENT", f"they agree now: take out {why!r}") if why else ("agrees", "")
    else:
        verdict = "explained" if why else "DIFFERENT"
    return Row(kernel, *access, ours.requests, requests, ours.units, units, verdict, why)


def _near(ours: float, theirs: float) -> bool:
    return abs(ours - theirs) <= TOLERANCE * max(ours, theirs)


def different_results(emulated: Mapping[str, Emulated], results: Path) -> list[str]:
    """Return the kernels whose `out` has other bits on the two devices."""
    with np.load(results) as found:
        return [
            name
            for name, probe in emulated.items()
            if name not in found or not np.array_equal(probe.out.view(np.uint32), found[name].view(np.uint32))
        ]


def table(rows: Iterable[Row]) -> str:
    """Write the rows in columns, per request."""
    lines = [f"{'kernel':24} {'access':14} {'requests':>8} {'ncu':>6} {'per request':>11} {'ncu':>6}  verdict"]
    for row in rows:
        mine = f"{row.units / row.requests:.4g}" if row.requests else "-"
        asked = row.requests_ncu or row.requests
        their = f"{row.units_ncu / asked:.4g}" if row.units_ncu is not None and asked else "-"
        requests = "-" if row.requests_ncu is None else f"{row.requests_ncu:.0f}"
        lines.append(
            f"{row.kernel:24} {row.space + ' ' + row.verb:14} {row.requests:8} {requests:>6} {mine:>11} {their:>6}  "
            f"{row.verdict}{': ' + row.said if row.said else ''}"
        )
    return "\n".join(lines)


# ----------------------------------------------------------------------------------------------------------------------
# The command line


def measured(options: argparse.Namespace, emulated: Mapping[str, Emulated]) -> dict:
    """Return the record's measured part: the machine, ncu's counts, and the kernels with other results."""
    if options.again:
        record = json.loads(RECORD.read_text("utf-8"))
        return {key: record[key] for key in ("machine", "other_results", "ncu")}
    machine = records.machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.dry_run:
            subprocess.run(_child(folder), check=True, env=environment(STYLEFORGE_DEVICE="emulator"))
            text = own_csv(emulated)
        else:
            machine["ncu"] = version(find_ncu(options.ncu))
            text = profile(find_ncu(options.ncu), emulated, folder)
        differ = different_results(emulated, folder / "results.npz")
    if options.keep:
        options.keep.write_text(text, "utf-8")
    return {"machine": machine, "other_results": differ, "ncu": read_csv(text)}


def main(argv: list[str] | None = None) -> int:
    """Compare, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(description="Does the emulator count what Nsight Compute counts?")
    parser.add_argument("--json", metavar="PATH", type=Path, default=RECORD, help="the record that is written")
    parser.add_argument("--keep", metavar="PATH", type=Path, help="keep ncu's CSV there")
    parser.add_argument("--again", action="store_true", help="without a GPU: hold the emulator against the record")
    parser.add_argument("--ncu", metavar="PATH", help="the profiler (default: of the PATH)")
    parser.add_argument("--dry-run", action="store_true", help="without a GPU: the emulator on both sides; no record")
    parser.add_argument("--launch", metavar="PATH", type=Path, help=argparse.SUPPRESS)  # the child
    options = parser.parse_args(argv)
    if options.launch:
        launch_all(options.launch)
        return 0
    alone = options.again or options.dry_run
    if not alone and not (gpu.available() and find_ncu(options.ncu)):
        what = "ncu, Nsight Compute's command," if gpu.available() else "NVIDIA GPU"
        print(f"no {what} here: --again reads the record, --dry-run tries the emulator alone", file=sys.stderr)
        return 2
    emulated = emulate(ARCH if alone else gpu.card_arch())
    try:
        found = measured(options, emulated)
    except (RuntimeError, ValueError, subprocess.SubprocessError) as error:
        print(f"not compared: {error}", file=sys.stderr)
        return 1
    rows = compare(emulated, found["ncu"])
    print(table(rows))
    failed = [f"{row.kernel}, {row.space} {row.verb}" for row in rows if not row.passed]
    explained = sum(row.verdict == "explained" for row in rows)
    print(
        f"{len(emulated)} kernels, {len(rows)} counts: {len(rows) - explained - len(failed)} agree within "
        f"{TOLERANCE:.0%}, {explained} are explained, {len(failed)} are not"
    )
    if failed:
        print(f"failed: {'; '.join(failed)}")
    if found["other_results"]:
        print(f"other results than in the emulator: {', '.join(found['other_results'])}")
    if not options.dry_run:
        content = {**found, "tolerance": TOLERANCE, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    return 1 if failed or found["other_results"] or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
