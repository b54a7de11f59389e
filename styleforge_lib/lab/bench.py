"""Measure on a GPU, or replay the record of who did.

Contents: what is measured (Candidate), the clocks (time_cold, time_warm, time_graph), CUDA graphs (graphed), error
against float64 (errors), the bench (bench) and its answer (Table).

Peers are measured in one run, one after the other; every row says how it was timed. Without a GPU nothing is timed:
``bench`` returns the newest recorded rows and says whose they are.
"""

import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from styleforge_lib.lab import records
from styleforge_lib.lab.records import Measurement

QUANTILES = (0.5, 0.2, 0.8)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One version of an operator: ``run()`` does it once, on tensors that it holds.

    ``bytes`` and ``flops`` are the least that one call must move and compute; the errors come from ``errors``.
    """

    version: str
    run: Callable[[], object] = field(repr=False, default=lambda: None)
    dtype: str = "float32"
    layout: str = "nchw"
    bytes: int | None = None
    flops: int | None = None
    rel_error: float | None = None
    psnr_db: float | None = None


def time_cold(run: Callable[[], object]) -> tuple[float, ...]:
    """Return median, 20 % and 80 % quantile in ms, with the L2 flushed before each call (triton.testing.do_bench)."""
    from triton.testing import do_bench

    return tuple(do_bench(run, warmup=50, rep=200, quantiles=list(QUANTILES)))


def time_warm(run: Callable[[], object], *, batches: int = 20, batch_ms: float = 10.0) -> tuple[float, ...]:
    """Return the same quantiles, per call, over batches of calls back to back: what a program in a loop sees."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def batch(calls: int) -> float:
        start.record()
        for _ in range(calls):
            run()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / calls

    batch(3)
    calls = max(1, math.ceil(batch_ms / max(batch(5), 1e-3)))
    return quantiles([batch(calls) for _ in range(batches)])


def time_graph(run: Callable[[], object], *, calls: int = 10) -> tuple[float, ...]:
    """Return the same quantiles, per call, of ``calls`` calls in one CUDA graph, caches warm: no cost on the host."""

    def several() -> None:
        for _ in range(calls):
            run()

    replay = graphed(several)
    return tuple(time / calls for time in time_warm(replay, batches=10, batch_ms=5.0))


CLOCKS = {"cold": time_cold, "warm": time_warm, "graph": time_graph}


def quantiles(samples: Sequence[float]) -> tuple[float, ...]:
    """Return median, 20 % and 80 % quantile."""
    values = torch.tensor(samples, dtype=torch.float64)
    return tuple(torch.quantile(values, torch.tensor(QUANTILES, dtype=torch.float64)).tolist())


def _quantiled(clock: Callable[[Callable], Sequence[float]]) -> Callable[[Callable], tuple[float, ...]]:
    return lambda run: quantiles(clock(run))


def graphed(run: Callable[[], object]) -> Callable[[], object]:
    """Capture one call of ``run`` in a CUDA graph and return what replays it; ``run`` must not change shapes."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries choose algorithms and allocate outside of the capture
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()

    def replay() -> object:
        graph.replay()
        return result

    return replay


def errors(out: torch.Tensor, reference: torch.Tensor) -> dict[str, float]:
    """Return ``rel_error`` and ``psnr_db`` of ``out`` against a float64 ``reference``; NaN stays NaN."""
    if out.shape != reference.shape:
        raise ValueError(f"out: its shape is {tuple(out.shape)}, but the reference has {tuple(reference.shape)}")
    difference = out.double() - reference
    rms = difference.square().mean().sqrt().item()
    norm = reference.square().mean().sqrt().item()
    psnr = math.nan if math.isnan(rms) else 20 * (math.log10(255) - math.log10(rms)) if rms else math.inf
    return {"rel_error": rms / norm if norm else rms, "psnr_db": psnr}


def bench(
    operator: str,
    candidates: Sequence[Candidate],
    *,
    shape: str,
    methods: Sequence[str] = ("cold",),
    clocks: Mapping[str, Callable[[Callable], Sequence[float]]] | None = None,
    run: str | None = None,
    peers: str | None = None,
) -> "Table":
    """Time ``candidates`` on this GPU, append the rows to the records and return them; without a GPU, replay them.

    ``shape`` is written ``"1x3x1024x1024"``; ``methods`` are ``"cold"``, ``"warm"``, ``"graph"`` and the names of
    ``clocks``: a clock of one's own is called with ``run`` and returns samples in ms. ``run`` joins several calls into
    one run, whose ``peers`` the caller names then. A replay holds what the records have of these candidates and names
    what they lack.
    """
    if not torch.cuda.is_available():
        return replay(operator, candidates, shape=shape, methods=methods)
    run = run or records.new_run()
    clocks = {**CLOCKS, **{name: _quantiled(clock) for name, clock in (clocks or {}).items()}}
    if unknown := set(methods) - set(clocks):
        raise ValueError(f"methods: no clock {sorted(unknown)[0]!r}; there are {', '.join(clocks)}")
    peers = peers or ";".join(dict.fromkeys(f"{c.version}/{c.dtype}" for c in candidates))
    rows = []
    for method in methods:
        for candidate in candidates:
            median, low, high = clocks[method](candidate.run)
            given = {k: v for k, v in vars(candidate).items() if k != "run"}
            times = {"median_ms": median, "p20_ms": low, "p80_ms": high}
            row = Measurement(operator=operator, shape=shape, method=method, run=run, peers=peers, **given, **times)
            rows.append(replace(row, **records.machine()))
    records.append(rows)
    return Table(rows)


def replay(
    operator: str, candidates: Sequence[Candidate], *, shape: str, methods: Sequence[str] = ("cold",)
) -> "Table":
    """Return the recorded rows of ``candidates``, all of one run: the fullest there is, of equals the newest."""
    wanted = {(operator, c.version, shape, c.dtype, c.layout, method): c for method in methods for c in candidates}
    found = {row.key: row for row in records.fullest_run(row for row in records.read() if row.key in wanted)}
    missing = tuple(f"{c.version} {c.dtype} ({key[-1]})" for key, c in wanted.items() if key not in found)
    return Table([found[key] for key in wanted if key in found], replayed=True, missing=missing)


def recorded_table(operator: str, **wanted: str) -> "Table":
    """Return the newest recorded rows of ``operator``, selected by columns as in ``records.latest``."""
    rows = records.latest(operator=operator, **wanted)
    return Table(rows, replayed=True, missing=() if rows else (operator,))


@dataclass(frozen=True)
class Table:
    """Rows as a table: text in a terminal, HTML in a notebook. ``ratio_to`` names the version that counts as 1."""

    rows: list[Measurement]
    replayed: bool = False
    missing: tuple[str, ...] = ()
    ratio_to: str | None = None

    def __iter__(self) -> Iterable[Measurement]:
        return iter(self.rows)

    def __getitem__(self, version: str | tuple[str, str]) -> Measurement:
        """Return the first row of ``version``, or of ``(version, dtype)``."""
        for row in self.rows:
            if version in (row.version, (row.version, row.dtype)):
                return row
        raise KeyError(f"no version {version!r} here; there are {', '.join(row.version for row in self.rows)}")

    def against(self, version: str) -> "Table":
        """Return the same table with a column of ratios to ``version``."""
        self[version]
        return replace(self, ratio_to=version)

    @property
    def note(self) -> str:
        """Return the sentence that belongs under the table: where the figures come from."""
        if not self.rows:
            return f"No record of {', '.join(self.missing)}: run this on a machine with an NVIDIA GPU."
        where = "; ".join(dict.fromkeys(row.where for row in self.rows))
        method = {
            "cold": "L2 flushed before each call",
            "warm": "calls back to back",
            "graph": "replays of a CUDA graph back to back",
            "inside": "by the profiler",
            "host": "what the call costs the CPU",
            "memory": "with the memory that the call takes",
        }
        how = "; ".join(dict.fromkeys(method.get(row.method, row.method) for row in self.rows))
        note = f"Median of many calls, {how}. " + ("Replayed from the record of " if self.replayed else "Measured on ")
        note += where + "."
        return note + (f" No record of {', '.join(self.missing)}." if self.missing else "")

    def cells(self) -> list[list[str]]:
        """Return the table as text, the heading first; columns that would be empty are left out."""
        base = self[self.ratio_to].median_ms if self.ratio_to else None
        several = len({row.method for row in self.rows}) > 1
        columns: list[tuple[str, Callable[[Measurement], str]]] = [
            ("version", lambda r: r.version),
            ("precision", lambda r: r.dtype + (" channels_last" if r.layout == "nhwc" else "")),
            *([("timed", lambda r: r.method)] if several else []),
            ("ms", lambda r: f"{r.median_ms:.3g}"),
            ("20-80 %", lambda r: f"{r.p20_ms:.3g}-{r.p80_ms:.3g}"),
            ("GB/s", lambda r: f"{r.gbytes:.0f}" if r.gbytes else ""),
            ("TFLOP/s", lambda r: f"{r.tflops:.3g}" if r.tflops else ""),
            ("error", lambda r: "" if r.rel_error is None else f"{r.rel_error:.1e}"),
            ("PSNR dB", lambda r: "" if r.psnr_db is None else f"{r.psnr_db:.1f}"),
        ]
        if base:
            columns.append(("speed-up", lambda r: f"{base / r.median_ms:.2f}x"))
        table = [[name, *(cell(row) for row in self.rows)] for name, cell in columns]
        return [list(line) for line in zip(*(column for column in table if any(column[1:])), strict=True)]

    def __str__(self) -> str:
        if not self.rows:
            return self.note
        cells = self.cells()
        widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
        lines = ["  ".join(_pad(c, w, i > 1) for i, (c, w) in enumerate(zip(r, widths, strict=True))) for r in cells]
        return "\n".join([*lines, self.note])

    def _repr_pretty_(self, printer: object, cycle: bool) -> None:
        printer.text(str(self))

    def _repr_html_(self) -> str:
        if not self.rows:
            return f"<p>{html.escape(self.note)}</p>"
        head, *body = self.cells()
        align = ['style="text-align:left"' if i < 2 else 'style="text-align:right"' for i in range(len(head))]
        line = "".join(f"<th {a}>{html.escape(c)}</th>" for a, c in zip(align, head, strict=True))
        rows = "".join(
            "<tr>" + "".join(f"<td {a}>{html.escape(c)}</td>" for a, c in zip(align, cells, strict=True)) + "</tr>"
            for cells in body
        )
        table = f"<table><thead><tr>{line}</tr></thead><tbody>{rows}</tbody></table>"
        return f"{table}<p><small>{html.escape(self.note)}</small></p>"


def _pad(text: str, width: int, right: bool) -> str:
    return text.rjust(width) if right else text.ljust(width)
