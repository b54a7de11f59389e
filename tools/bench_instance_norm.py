"""Measure instance norm on this GPU: the library's kernel beside eager PyTorch, torch.compile and a copy of the tensor.

Contents
    SHAPES, KINDS       what is measured: five shapes, in two precisions and two layouts
    OPERATORS           the norm alone, and as a residual block ends
    candidates          the peers of one shape, with their errors against float64
    norms               the part `norms` of tools/bench.py: measure, append the rows to the records, print the ratios
    main                the command line

    python tools/bench.py --parts norms               # all of it, into records/measurements.csv
    python tools/bench_instance_norm.py               # the same, into records/local.csv
    python tools/bench_instance_norm.py --dry-run     # no GPU: every path once on tiny shapes in the emulator

Weight and bias are there, as in the TransformerNet. A copy moves x; a residual is half as much again. Cold: the L2
cache is flushed before each call. Graph: ten calls in a CUDA graph, back to back, which costs the host nothing and
finds what the caches still hold.
"""

import argparse
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator

import torch
from torch.nn import functional

from styleforge_lib.lab import records
from styleforge_lib.lab.bench import Candidate, bench, errors, quantiles
from styleforge_lib.lab.records import Measurement
from styleforge_lib.ops import instance_norm
from styleforge_lib.ops.instance_norm import EPS, FUSED
from styleforge_lib.runtime.kernel import DEVICE_VARIABLE

SHAPES = ((1, 32, 1024, 1024), (1, 64, 512, 512), (1, 128, 256, 256), (8, 128, 128, 128), (16, 64, 256, 256))
TINY = ((1, 8, 24, 24), (2, 8, 9, 7))
KINDS = [(dtype, layout) for dtype in (torch.float32, torch.float16) for layout in ("nchw", "nhwc")]
OPERATORS = {False: "instance_norm", True: "instance_norm + residual + relu"}
METHODS = ("cold", "graph")
COMPILED = {"compile": "default", "compile max-autotune": "max-autotune-no-cudagraphs"}
RATIOS = (("eager", "ours"), ("compile", "ours"), ("ours", "copy"))


def tensors(shape: tuple[int, ...], dtype: torch.dtype, layout: str, device: str) -> tuple[torch.Tensor, ...]:
    """Draw x, weight and bias."""
    torch.manual_seed(0)
    x = torch.randn(shape, device=device).to(dtype)
    if layout == "nhwc":
        x = x.to(memory_format=torch.channels_last)
    return x, *torch.randn(2, shape[1], device=device).to(dtype)


def candidates(
    shape: tuple[int, ...], dtype: torch.dtype, layout: str, device: str, modes: Iterable[str], adds: bool
) -> Iterator[Candidate]:
    """Yield the peers of one shape; `modes` are keys of COMPILED. adds: a residual, and a ReLU follows."""
    x, weight, bias = tensors(shape, dtype, layout, device)
    out, residual = torch.empty_like(x), torch.randn_like(x) if adds else None
    given = (x, weight, bias, EPS, adds, residual)
    expected = FUSED.reference(x.double(), weight.double(), bias.double(), residual, adds, EPS)
    kind = {"dtype": str(dtype).removeprefix("torch."), "layout": layout}
    cost = FUSED.cost(x, weight, bias, residual, adds, EPS)

    def eager(x, weight, bias, eps, relu, residual) -> torch.Tensor:
        out = functional.instance_norm(x, weight=weight, bias=bias, eps=eps)
        out = out if residual is None else out + residual
        return out.relu() if relu else out

    def candidate(version: str, function: Callable) -> Candidate:
        found = errors(function(*given), expected)
        return Candidate(
            version=version,
            run=lambda: function(*given),
            bytes=cost.bytes,
            flops=cost.flops,
            rel_error=found["rel_error"],
            **kind,
        )

    yield Candidate(version="copy", run=lambda: out.copy_(x), bytes=2 * x.nbytes, **kind)
    yield candidate("eager", eager)
    for mode in modes:
        torch._dynamo.reset()
        yield candidate(mode, torch.compile(eager, mode=COMPILED[mode], dynamic=False))
    yield candidate("ours", instance_norm)


def norms(
    run: str,
    *,
    operators: Iterable[str] = tuple(OPERATORS.values()),
    compiled: bool = True,
    autotuned: bool = False,
    dry: bool = False,
) -> list[Measurement]:
    """Measure every shape and kind, append the rows to the records as `run`, and print times and ratios.

    compiled, autotuned: with torch.compile, and with its mode max-autotune. dry: on tiny shapes in the emulator, where
    each candidate runs once and nothing is recorded.
    """
    modes = [mode for mode, wanted in zip(COMPILED, (compiled, compiled and autotuned), strict=True) if wanted]
    names = ("copy", "eager", *modes, "ours")
    device, shapes = ("cpu", TINY) if dry else ("cuda", SHAPES)
    rows: list[Measurement] = []
    for adds, operator in OPERATORS.items():
        if operator not in operators:
            continue
        print(f"{operator}\n{heading(names)}", flush=True)
        for shape, (dtype, layout) in itertools.product(shapes, KINDS):
            written = "x".join(map(str, shape))
            peers = ";".join(f"{name}/{str(dtype).removeprefix('torch.')}" for name in names)
            found: list[Measurement] = []
            for candidate in candidates(shape, dtype, layout, device, modes, adds):
                if dry:
                    found += [once(operator, candidate, written, method) for method in METHODS]
                else:
                    found += bench(operator, [candidate], shape=written, methods=METHODS, run=run, peers=peers)
            for method in METHODS:
                print(line([row for row in found if row.method == method]), flush=True)
            rows += found
            if not dry:
                torch.cuda.empty_cache()
    return rows


def once(operator: str, candidate: Candidate, shape: str, method: str) -> Measurement:
    """Return a row of one call by the clock on the wall, which says that it runs and nothing else."""
    start = time.perf_counter()
    candidate.run()
    median, low, high = quantiles([1e3 * (time.perf_counter() - start)])
    given = {key: value for key, value in vars(candidate).items() if key != "run"}
    return Measurement(
        operator=operator, shape=shape, method=method, median_ms=median, p20_ms=low, p80_ms=high, **given
    )


def heading(names: Iterable[str]) -> str:
    """Return the first line of the table."""
    columns = [*(f"{name.removeprefix('compile max-'):>12}" for name in names), "       error"]
    ratios = _ratios(lambda a, b: f"{a}/{b}")
    return f"{'shape':>17} {'dtype':8} {'':4} {'timed':5} " + "".join(columns) + "   " + ratios


def line(rows: list[Measurement]) -> str:
    """Return the line of one shape and kind, timed in one way."""
    times = {row.version: row.median_ms for row in rows}
    row = rows[-1]
    columns = [*(f"{time:12.4f}" for time in times.values()), f"{row.rel_error:12.1e}"]
    ratios = _ratios(lambda a, b: f"{times[a] / times[b]:.2f}" if a in times else "")
    return f"{row.shape:>17} {row.dtype:8} {row.layout} {row.method:5} " + "".join(columns) + "   " + ratios


def _ratios(word: Callable[[str, str], str]) -> str:
    return " ".join(f"{word(*pair):>12}" for pair in RATIOS)


def main() -> int:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes in the emulator; nothing is recorded")
    parser.add_argument("--operators", default=",".join(OPERATORS.values()), help="comma-separated")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    parser.add_argument("--max-autotune", action="store_true", help="torch.compile in that mode too, minutes more")
    arguments = parser.parse_args()
    if arguments.dry_run:
        os.environ[DEVICE_VARIABLE] = "emulator"
    elif not torch.cuda.is_available():
        print("this measures, so it needs an NVIDIA GPU; --dry-run goes through it without one", file=sys.stderr)
        return 2
    operators = arguments.operators.split(",")
    if unknown := set(operators) - set(OPERATORS.values()):
        parser.error(f"--operators: no {sorted(unknown)[0]!r}; there are {', '.join(OPERATORS.values())}")
    start = time.perf_counter()
    options = {"compiled": not arguments.no_compile, "autotuned": arguments.max_autotune, "dry": arguments.dry_run}
    options["operators"] = operators
    with torch.inference_mode():
        rows = norms(records.new_run(), **options)
    print(f"{len(rows)} rows in {time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
