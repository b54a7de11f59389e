"""The picture of one block in the order of its instructions: a row for each warp, its waits, its copies on their way.

Contents
    draw_timeline   the figure; `runtime.emulator.timeline` says what time is here
"""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from styleforge_lib.lab.figures import ACCENT, INK, KIND_COLOURS, MUTED, _drawing, axes
from styleforge_lib.runtime.emulator.timeline import Timeline, WarpRow

RUN, WAIT, COPY = KIND_COLOURS["conv"], KIND_COLOURS["norm"], KIND_COLOURS["pad"]
WIDTH, ROW, AROUND = 10.0, 0.3, 1.45  # inches: the figure, one warp, and what stands above and below
HALF, THIN = 0.34, 0.12  # half the height of a full warp's bar, and the height of a copy's, in rows
LABEL_GAP = 0.045  # of the axis: barriers nearer to the last label than this stay without one
NOTE = (
    "One step of the x-axis is one PTX instruction of the warp, in the emulator's order. It is not time: on a GPU a\n"
    "load takes hundreds of cycles and warps share the units. A wait lasts until the last warp of the block has come."
)


@_drawing
def draw_timeline(timeline: Timeline, kernel: str, block: tuple[int, int, int]) -> Figure:
    """Draw a block: bars where a warp executes, as high as lanes are active, and hatched where it waits."""
    rows = timeline.rows
    figure, panel = axes(size=(WIDTH, AROUND + ROW * len(rows)))
    stuck = any(wait.end is None for row in rows for wait in row.waits)
    last = max(timeline.end, 1) * (1.15 if stuck else 1.02)
    for row in rows:
        _draw_row(panel, row, last)
    _draw_barriers(panel, timeline, last, len(rows))
    panel.set_xlim(0, last)
    panel.set_ylim(len(rows) - 0.4, -0.6)
    every = 1 if len(rows) <= 16 else 4
    panel.set_yticks(range(0, len(rows), every), [f"warp {number}" for number in range(0, len(rows), every)])
    panel.tick_params(axis="y", length=0)
    panel.set_xlabel(NOTE, loc="left", color=MUTED, fontsize=8.5)
    where = "({},{},{})".format(*block)
    cut = "" if timeline.whole else "; only its beginning was kept"
    panel.set_title(f"{kernel}, block {where}: {_words(timeline)}{cut}", pad=20 if timeline.barriers else 6)
    figure.legend(handles=_legend(timeline), loc="outside lower right", ncols=4, fontsize=8.5)
    return figure


def _draw_row(panel: Axes, row: WarpRow, last: float) -> None:
    for run in row.runs:
        half = HALF * run.lanes / 32
        panel.add_patch(Rectangle((run.start, row.warp - half), run.end - run.start, 2 * half, facecolor=RUN, lw=0))
    for wait in row.waits:
        end, colour = (last, ACCENT) if wait.end is None else (wait.end, WAIT)
        panel.add_patch(
            Rectangle((wait.start, row.warp - HALF), end - wait.start, 2 * HALF, facecolor="none", edgecolor=colour,
                      hatch="////", lw=0.8)
        )  # fmt: skip
    for copies in row.copies:
        end, colour = (last, ACCENT) if copies.end is None else (copies.end, COPY)
        y = row.warp + HALF + THIN / 2
        panel.plot([copies.start, end], [y, y], color=colour, lw=2.2, solid_capstyle="butt")
        panel.plot([copies.start], [y], "|", color=colour, markersize=5)


def _draw_barriers(panel: Axes, timeline: Timeline, last: float, rows: int) -> None:
    labelled = -last
    for time, line in timeline.barriers:
        panel.plot([time, time], [-0.5, rows - 0.5], color=INK, lw=0.8, ls=(0, (3, 2)))
        if time - labelled >= LABEL_GAP * last:
            panel.annotate(f"line {line}", (time, -0.6), xytext=(0, 2), textcoords="offset points", ha="center",
                           va="bottom", fontsize=8, color=INK, annotation_clip=False)  # fmt: skip
            labelled = time


def _words(timeline: Timeline) -> str:
    """Say how much of the warps' time is waiting."""
    busy = sum(run.end - run.start for row in timeline.rows for run in row.runs)
    idle = sum(wait.end - wait.start for row in timeline.rows for wait in row.waits if wait.end is not None)
    stuck = sum(wait.end is None for row in timeline.rows for wait in row.waits)
    count = len(timeline.barriers)
    text = f"{count} barrier{'s' * (count != 1)}, {100 * idle / (busy + idle):.0f} % of the steps waiting"
    text = text if count else "no barrier opened" if stuck else "no barrier"
    return text + (f"; {stuck} warp{'s' * (stuck != 1)} wait for ever" if stuck else "")


def _legend(timeline: Timeline) -> list[Patch]:
    """Return what is in the picture."""
    waits = [wait for row in timeline.rows for wait in row.waits]
    copies = [copy for row in timeline.rows for copy in row.copies]
    found = [Patch(facecolor=RUN, label="executes; height: active lanes")]
    if any(wait.end is not None for wait in waits):
        found.append(Patch(facecolor="none", edgecolor=WAIT, hatch="////", label="waits at a barrier"))
    if any(wait.end is None for wait in waits):
        found.append(Patch(facecolor="none", edgecolor=ACCENT, hatch="////", label="waits for ever"))
    if any(copy.end is not None for copy in copies):
        found.append(Patch(facecolor=COPY, label="copies on their way"))
    if any(copy.end is None for copy in copies):
        found.append(Patch(facecolor=ACCENT, label="copies never waited for"))
    return found
