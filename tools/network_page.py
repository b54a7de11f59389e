"""What the pages show of the accelerated network: its times beside its peers', how it got fast, and its kernels.

Contents: its rows in the record; README.md's blocks; docs/tuning.md's blocks. `page_blocks.py` says what a block is.

While there is no row of `python tools/bench.py --parts accelerated` at a size, and no record of
`tools/ncu_network.py`, the blocks say so.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import cache

import page_blocks
from address import ROOT
from page_blocks import GPU, PICTURES, SHAPE, block, machine_of, measured, peers, png, precision, table, three_digits

from styleforge_lib.lab import records
from styleforge_lib.lab.figures import draw_versions
from styleforge_lib.lab.profile import OPERATOR
from styleforge_lib.lab.records import Measurement
from styleforge_lib.models.stages import Stage, stages
from styleforge_lib.models.transformer_net import TransformerNet

Rows = Mapping[tuple[str, str], dict[str, Measurement]]  # (version, dtype) -> method -> row

OURS = "accelerate"
# Shape, our precision, and the peers it is held against: the fastest of them counts.
AUTOTUNED = (("compile max-autotune", "float16"),)
EVERY = tuple((version, "float16") for version in ("eager + benchmark", "eager + graph", "compile", AUTOTUNED[0][0]))
HELD_AGAINST = (
    ("1x3x256x256", "float16", (("eager + graph", "tf32"),)),
    ("1x3x512x512", "float16", AUTOTUNED),
    (SHAPE, "float16", AUTOTUNED),
    ("1x3x1080x1920", "float16", AUTOTUNED),
    ("8x3x512x512", "float16", EVERY),
    (SHAPE, "tf32", (("compile", "tf32"),)),
)
REPEATED = re.compile(r"res[345]\.conv\d|res2\.conv2")  # as res2.conv1 and res1.conv2
BY_COMMIT = ROOT / "records" / "check_convolutions_by_commit.txt"  # a line "commit HASH", then what it printed
NCU = ROOT / "records" / "ncu_network.json"
PSNR = ROOT / "records" / "psnr.json"
MEASURE = "`python tools/bench.py --parts accelerated`"


# ---- the record ----


def beside(shape: str) -> Rows:
    """Return ours and the peers of one run at a shape, the fullest run with ours in it; empty where there is none."""
    rows = [
        row
        for row in page_blocks.committed()
        if row.operator == OPERATOR and row.shape == shape and row.method != "inside"
    ]
    runs = {row.run for row in rows if (row.version, row.dtype, row.method) == (OURS, "float16", "cold")}
    found: dict[tuple[str, str], dict[str, Measurement]] = {}
    for row in records.fullest_run(row for row in rows if row.run in runs):
        method = "again" if row.method in ("graph", "warm") else row.method
        found.setdefault((row.version, row.dtype), {})[method] = row
    return found


def rival(rows: Rows, names: Iterable[tuple[str, str]]) -> tuple[str, str] | None:
    """Return the fastest of the named peers that are there, or None."""
    there = [name for name in names if "cold" in rows.get(name, {})]
    return min(there, key=lambda name: rows[name]["cold"].median_ms, default=None)


def peak_mib(row: Measurement) -> str:
    """Return what a call takes at most, in MiB, of the row that was measured beside this one."""
    for kept in page_blocks.committed():
        same = (kept.run, kept.shape, kept.version, kept.dtype) == (row.run, row.shape, row.version, row.dtype)
        if kept.operator == f"{OPERATOR}_memory" and same:
            return f"{kept.bytes / 2**20:.0f}"
    return "–"


def size_of(shape: str) -> str:
    """Return "1024×1024", or "8 × 512×512" of a batch."""
    images, _, height, width = shape.split("x")
    return f"{height}×{width}" if images == "1" else f"{images} × {height}×{width}"


# ---- README.md ----


@block
def peers_note() -> str:
    """Say whose bars the figure shows."""
    if not beside(SHAPE):
        return "All bars are PyTorch's; no kernel of this repository is among them yet."
    return "The orange bars are `accelerate`'s: kernels of this repository. All others are PyTorch's, of the same run."


@block
def accelerate_words() -> str:
    """Say how fast the accelerated network is, or that it is not measured."""
    rows = beside(SHAPE)
    other = rival(rows, [*AUTOTUNED, *EVERY])
    if other is None:
        return "Its times will stand beside PyTorch's above once they are in the records."
    mine, theirs = rows[OURS, "float16"]["cold"], rows[other]["cold"]
    return (
        f"On an {mine.gpu} it paints {size_of(SHAPE)} pixels in {three_digits(mine.median_ms)} ms; `{other[0]}` in "
        f"{precision(theirs)} took {three_digits(theirs.median_ms)} ms in the same run. "
        "[All sizes](#what-there-is-to-beat), and [how it got there](docs/tuning.md)."
    )


@block
def accelerate_table() -> str:
    """Hold ours against a named peer at each size: both times, their ratios, error and memory."""
    lines, shown = [], []
    for shape, dtype, names in HELD_AGAINST:
        rows = beside(shape)
        mine, other = rows.get((OURS, dtype), {}), rival(rows, names)
        if not mine or other is None:
            continue
        theirs = rows[other]
        shown += [mine["cold"], theirs["cold"]]
        cells = [size_of(shape), dtype, *(_ms(mine, method) for method in ("cold", "again"))]
        cells += [f"{other[0]}, {precision(theirs['cold'])}", *(_ms(theirs, method) for method in ("cold", "again"))]
        cells += [f"**{_ratio(theirs, mine, method)}**" for method in ("cold", "again")]
        cells += [f"{mine['cold'].psnr_db:.0f}, {theirs['cold'].psnr_db:.0f}"]
        eager = rows.get(("eager + benchmark", dtype), theirs)["cold"]
        lines.append([*cells, f"{peak_mib(mine['cold'])}, {peak_mib(eager)}"])
    if not lines:
        return f"`accelerate` is not measured beside them yet: {MEASURE} on a GPU appends its rows."
    head = ["picture", "ours", "cold", "again", "against", "cold", "again", "× cold", "× again", "dB", "peak MiB"]
    return (
        f"{table(head, lines, 'llrrlrrrrrr')}\n\n"
        "Milliseconds. Cold: one call, the L2 cache flushed before it. Again: calls back to back, in a CUDA graph. ×: "
        "how many times faster ours is, in the same run. dB: PSNR against float64, ours and theirs. Peak: what a call "
        "takes besides weights and picture, ours (with what its plan keeps) and eager PyTorch's. Measured on "
        f"{machine_of(shown)}, by {MEASURE}."
    )


def _ms(rows: Mapping[str, Measurement], method: str) -> str:
    return three_digits(rows[method].median_ms) if method in rows else "–"


def _ratio(theirs: Mapping[str, Measurement], mine: Mapping[str, Measurement], method: str) -> str:
    if not (method in theirs and method in mine):
        return "–"
    return f"{theirs[method].median_ms / mine[method].median_ms:.2f}"


def bars() -> list[Measurement]:
    """Return the rows of the figure: ours beside the peers of its run, or all peers where ours is not measured."""
    rows = beside(SHAPE)
    return [kept["cold"] for (version, _), kept in rows.items() if "cold" in kept and version != f"{OURS} uint8"] or [
        *peers(SHAPE).values()
    ]


def _peers_figure() -> tuple[object, Callable[[], bytes]]:
    rows = bars()
    ours = any(row.version == OURS for row in rows)
    best = OURS if ours else min(rows, key=lambda row: row.median_ms).version
    title = f"TransformerNet at {size_of(SHAPE)}, {rows[0].where}"
    return [asdict(row) for row in rows], lambda: png(draw_versions(rows, title=title, highlight=best))


PICTURES["docs/peers.png"] = _peers_figure


# ---- docs/tuning.md ----


@cache
def _stages() -> tuple[Stage, ...]:
    return tuple(stages(TransformerNet(), (1, 3, 1024, 1024)))


def _ceilings() -> tuple[float, float]:
    """Return FLOPs and bytes a millisecond: of a large float16 matrix product, and of a large copy."""
    product = measured("ceiling", version="matmul", dtype="float16")[-1]
    copy = measured("ceiling", version="copy")[-1]
    return product.flops / product.median_ms, copy.bytes / copy.median_ms


@block
def tuning_room() -> str:
    """Say what the two large decisions, fusing and folding, could bring before anything was written."""
    flops, rate = _ceilings()
    eager, convolutions = _stages(), [stage for stage in _stages() if stage.kind == "conv"]

    def inner(stage: Stage) -> int:
        """Elements of the stage's convolution alone, its input unpadded and not doubled."""
        n, c, h, w = stage.out_shape
        scale = 2 if stage.layer in ("deconv1", "deconv2") else 1
        stride = 2 if stage.layer in ("conv2", "conv3") else 1
        return n * (c * h * w + stage.in_shape[1] * (h * stride // scale) * (w * stride // scale))

    def folded(stage: Stage) -> int:
        return stage.flops * 4 // 9 if stage.layer in ("deconv1", "deconv2") else stage.flops

    ways = {
        "stage by stage, as PyTorch does": (sum(s.flops for s in eager), sum(s.elements for s in eager)),
        "one kernel a convolution: reflection, norm, ReLU and doubling while it loads, statistics while it writes": (
            sum(s.flops for s in convolutions),
            sum(inner(s) for s in convolutions),
        ),
        "doubling and 3x3 folded into four 2x2": (
            sum(folded(s) for s in convolutions),
            sum(inner(s) for s in convolutions),
        ),
    }
    lines = [
        [way, f"{work / 1e9:.0f}", three_digits(work / flops), f"{2 * count / 1e6:.0f}", three_digits(2 * count / rate)]
        for way, (work, count) in ways.items()
    ]
    head = ["the network at 1024×1024 in float16", "GFLOP", "at least ms", "MB", "at least ms"]
    return (
        f"{table(head, lines, 'lrrrr')}\n\nComputed from the layers' shapes, with halves, and every tensor read and "
        "written once. The times are at the speed of one large matrix product, and of one large copy, on an "
        f"{GPU} (the ceilings in the record)."
    )


@block
def tuning_layers() -> str:
    """Hold the network's kernels, alone, against what the arithmetic and the bytes allow."""
    flops, rate = _ceilings()
    rows = [
        row
        for row in page_blocks.committed()
        if row.operator.startswith(f"{OPERATOR}.") and row.version.startswith(OURS)
    ]
    newest = max((row.run for row in rows), default="")
    times: dict[str, dict[str, Measurement]] = {}
    for row in rows:
        if row.run == newest and row.shape == SHAPE and not REPEATED.search(row.operator):
            times.setdefault(row.operator, {})[row.method] = row
    if not times:
        return f"No layer is on record yet: {MEASURE} on a GPU appends a row for each."
    lines = []
    for operator, found in times.items():
        row = found.get("graph") or found["cold"]
        layer, kernel = operator.removeprefix(f"{OPERATOR}."), row.version.removeprefix(f"{OURS} ")
        work = row.flops * (4 / 9 if layer in ("deconv1", "deconv2") else 1)
        floors = work / flops, row.bytes / rate
        cells = [layer, f"`{kernel}`", *(three_digits(1e3 * ms) for ms in floors), three_digits(1e3 * row.median_ms)]
        lines.append([*cells, f"{100 * max(floors) / row.median_ms:.0f} %"])
    return (
        f"{table(['layer', 'kernel', 'arithmetic', 'bytes', 'measured', 'reached'], lines, 'llrrrr')}\n\n"
        "Microseconds, each layer alone in a CUDA graph with the launch that closes its planes; floors as above. "
        "Layers like another are left out. "
        f"Measured on {machine_of(row for found in times.values() for row in found.values())}."
    )


def _of_record(name: str) -> tuple[str, str]:
    """Return the head of a text in records/, in one line, and the rest."""
    head, _, rest = (ROOT / "records" / name).read_text("utf-8").partition("\n\n")
    return " ".join(head.split()), rest


@block
def tuning_mma() -> str:
    """Compare mma.sync and wgmma layer by layer, from the record of check_convolutions."""
    head, rest = _of_record("check_convolutions.txt")
    found: dict[str, dict[str, str]] = {}
    for layer, kernel, warm in re.findall(
        r"^(\S+(?: uint8)?) +(\w+) +[\d.]+ +\S+ right +[\d.]+ +([\d.]+) +\d+$", rest, re.M
    ):
        kind = "wgmma" if kernel.startswith(("Hopper", "Persistent")) else "mma.sync"
        best = found.setdefault(layer, {}).get(kind)
        if best is None or float(warm) < float(best):
            found[layer][kind] = warm
    lines = [[layer, kinds["mma.sync"], kinds["wgmma"]] for layer, kinds in found.items() if len(kinds) == 2]
    return f"{table(['layer', 'mma.sync', 'wgmma'], lines, 'lrr')}\n\nMicroseconds in a CUDA graph. {_quoted(head)}"


def _quoted(head: str) -> str:
    return "From " + re.sub(r"^What (python )?(tools/\S+.*?) printed on", r"what `\2` printed on", head)


@block
def tuning_commits() -> str:
    """Show the residual convolution after each commit that was to make it faster."""
    if not BY_COMMIT.exists():
        return f"Not yet measured commit by commit ({BY_COMMIT.name} would hold it)."
    head, rest = _of_record(BY_COMMIT.name)
    times: dict[str, dict[str, str]] = {}
    commit = ""
    for line in rest.splitlines():
        if found := re.search(r"\bcommit ([0-9a-f]{7,})\b", line):
            commit = found[1]
        elif found := re.match(r"(res\S+) +Hopper +[\d.]+ +\S+ right +[\d.]+ +([\d.]+)", line):
            at = times.setdefault(commit, {})
            at[found[1]] = min(at.get(found[1], found[2]), found[2], key=float)
    layers = list(dict.fromkeys(layer for at in times.values() for layer in at))
    lines = [[f"`{commit}`", *(at.get(layer, "–") for layer in layers)] for commit, at in times.items()]
    return (
        f"{table(['after', *layers], lines, 'l' + 'r' * len(layers))}\n\nMicroseconds in a CUDA graph. {_quoted(head)}"
    )


@block
def tuning_overlap() -> str:
    """Show the network with launches that overlap, and without."""
    head, rest = _of_record("bench_overlap.txt")
    lines = []
    for shape, text in re.findall(r"^(\dx3x\d+x\d+), the same bits:\n((?:  .+\n?)+)", rest, re.M):
        times = dict(re.findall(r"^  (\w+) +cold .*graph ([\d.]+) ms", text, re.M))
        lines.append([size_of(shape), *(times[way] for way in ("off", "on", "late"))])
    return (
        f"{table(['picture', 'off', 'early', 'late'], lines, 'lrrr')}\n\nMilliseconds in a CUDA graph. {_quoted(head)}"
    )


@block
def tuning_blocks() -> str:
    """Show residual blocks as launches of convolutions and as one launch."""
    head, rest = _of_record("tune_residual_blocks.txt")
    lines = []
    for count, shape, figures in re.findall(r"^(\d) x (\dx\d+x\d+) float16 +same +(.+)$", rest, re.M):
        times = dict(re.findall(r"(\w+) [\d.]+ ([\d.]+)", figures))
        images, height, width = shape.split("x")
        picture = size_of(f"{images}x128x{height}x{width}")
        lines.append(
            [count, picture, times["layers"], times.get("added", "–"), times["blocks"], times.get("stage", "–")]
        )
    head_row = ["blocks", "pixels", "two launches a block", "and a sum", "one launch a block", "one for all"]
    return f"{table(head_row, lines, 'rlrrrr')}\n\nMicroseconds in a CUDA graph. {_quoted(head)}"


@block
def tuning_psnr() -> str:
    """Show how close every style paints to float64 on every photo, beside PyTorch's own float16."""
    record = json.loads(PSNR.read_text("utf-8"))
    rows = {(row["style"], row["photo"]): row for row in record["rows"] if row["dtype"] == "float16"}
    styles, photos = ([*dict.fromkeys(key[k] for key in rows)] for k in (0, 1))
    lines = []
    for style in styles:
        found = [rows[style, photo] for photo in photos]
        lines.append([style, *(f"{row['psnr_db']:.1f}, {row['pytorch_float16_db']:.1f}" for row in found)])
    head = ["style", *(f"{photo} {rows[styles[0], photo]['size'].replace('x', '×')}" for photo in photos)]
    machine = record["machine"]
    every = all(row["same_bits"] for row in rows.values())
    return (
        f"{table(head, lines, 'l' + 'r' * len(photos))}\n\nPSNR in dB against float64: ours, PyTorch's own float16 "
        f"channels_last. {'Three runs gave the same bits everywhere. ' if every else ''}Measured on {machine['gpu']}, "
        f"driver {machine['driver']}, PyTorch {machine['torch']}, CUDA {machine['cuda']}, by `python tools/psnr.py` "
        "with two checkpoints that are not shipped."
    )


@block
def tuning_ncu() -> str:
    """Show what Nsight Compute says of each kernel of the network."""
    if not NCU.exists():
        return (
            "Nsight Compute has not looked at the final kernels yet: `python tools/ncu_network.py` writes the record."
        )
    record, lines = json.loads(NCU.read_text("utf-8")), []
    for row in record["rows"]:
        if REPEATED.search(row["layer"]) or (row["kernel"] == "close_planes" and row["layer"] != "conv1"):
            continue
        figures = [
            _figure(row["ns"], 1e-3, 1),
            *(_figure(row[key], 1, 0) for key in ("tensor_percent", "issue_percent")),
            *(_figure(row[key], 1e-6, 1) for key in ("dram_read", "dram_written", "l2_bytes")),
            _figure(row["registers"], 1, 0),
            _figure(row["shared_bytes"], 1e-3, 0),
        ]
        lines.append([row["layer"], f"`{row['kernel']}`", *figures])
    head = ["layer", "kernel", "µs", "tensor %", "issue %", "DRAM in", "out", "L2", "registers", "shared"]
    machine = record["machine"]
    return (
        f"{table(head, lines, 'llrrrrrrrr')}\n\nTensor, issue: share of the time in which tensor cores multiply, and "
        "of the turns in which schedulers have an instruction to issue. DRAM and L2 in MB, shared memory of a block in "
        f"KB. Layers like another are left out. Nsight Compute {machine.get('ncu', '')} on {machine['gpu']}, "
        f"{record['run'][:10]}, float16 at {size_of(record['shape'])}: [the whole record](../records/{NCU.name})."
    )


def _figure(value: float | None, scale: float, digits: int) -> str:
    return "–" if value is None else f"{value * scale:.{digits}f}"
