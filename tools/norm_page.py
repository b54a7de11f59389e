"""What docs/instance_norm.md shows: the norm's times beside its peers', as tools/bench_instance_norm.py measured them.

Contents: norm_alone, norm_added (blocks): one table of the norm, one with a residual and a ReLU.
"""

import itertools
from collections.abc import Callable

from bench_instance_norm import KINDS, METHODS, OPERATORS, SHAPES
from page_blocks import block, machine_of, measured, table, three_digits

from styleforge_lib.lab.records import Measurement

HEAD = ("shape", "numbers", "µs", "times a copy", "faster than eager", "than compile")
CELLS: tuple[Callable[[dict[str, float]], str], ...] = (
    lambda ms: three_digits(1e3 * ms["ours"]),
    lambda ms: f"{ms['ours'] / ms['copy']:.2f}",
    lambda ms: f"{ms['eager'] / ms['ours']:.2f}x",
    lambda ms: f"{ms['compile'] / ms['ours']:.2f}x",
)


def beside_peers(operator: str) -> str:
    """Return a table of all shapes and kinds: our time, and how it stands to each peer's, cold and in a graph."""
    lines: list[list[str]] = []
    used: list[Measurement] = []
    for sides, (kind, layout) in itertools.product(SHAPES, KINDS):
        dtype = str(kind).removeprefix("torch.")
        among = [(version, dtype) for version in ("copy", "eager", "compile", "ours")]
        wanted = {"shape": "x".join(map(str, sides)), "dtype": dtype, "layout": layout}
        rows = {method: measured(operator, among=among, method=method, **wanted) for method in METHODS}
        times = [{row.version: row.median_ms for row in rows[method]} for method in METHODS]
        lines.append(
            [
                "×".join(map(str, sides)),
                dtype + (" channels_last" if layout == "nhwc" else ""),
                *(" / ".join(map(cell, times)) for cell in CELLS),
            ]
        )
        used += itertools.chain(*rows.values())
    return table(HEAD, lines, "llrrrr") + (
        "\n\nBefore the stroke cold, the L2 cache flushed before each call; behind it ten calls back to back in a CUDA "
        f"graph. {machine_of(used)}."
    )


@block
def norm_alone() -> str:
    """Show the norm with weight and bias."""
    return beside_peers(OPERATORS[False])


@block
def norm_added() -> str:
    """Show the same with a residual and a ReLU, as a residual block ends."""
    return beside_peers(OPERATORS[True])
