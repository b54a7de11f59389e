"""The picture of one warp at one line: its 32 lanes, and the sectors or banks that they touch.

Contents
    draw_warp       the figure, one panel for each array that the line reads or writes
    sector_count    how many 32-byte sectors a request touches, and the fewest
    bank_passes     which lanes each pass over the 32 banks serves

Source of both rules: CUDA C++ Best Practices Guide, "Coalesced Access to Global Memory" and "Shared Memory".
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from styleforge_lib.lab.figures import ACCENT, INK, KIND_COLOURS, MUTED, _drawing, axes
from styleforge_lib.runtime.emulator.addresses import SECTOR_BYTES, Visit

LANES = BANKS = 32
WORD = 4  # bytes of a bank
BLUE, UNUSED, EDGE = KIND_COLOURS["conv"], "#E6E8EA", "#A9AFB5"
WIDTH = 10.0  # inches
ROW, LOW_ROW = 0.23, 0.17  # inches, of one pass over the banks; low where there are many
MANY_ROWS = 16
MOST_PANELS = 4
MOST_LABELS = 8  # sectors whose address is written beneath
GAP = 0.35  # between sectors that do not lie side by side, in lanes' widths


@_drawing
def draw_warp(visits: Sequence[Visit], text: str, block: tuple[int, int, int], warp: int) -> Figure:
    """Draw what a warp touched at a line: the first visit of each array, direction and pattern of lanes.

    Later turns of a loop are named by their number ("time 2"). At most MOST_PANELS are drawn.
    """
    panels: dict[tuple, Visit] = {}
    for visit in visits:
        panels.setdefault((visit.space, visit.verb, visit.array, visit.width, _pattern(visit)), visit)
    panels = dict(list(panels.items())[:MOST_PANELS])
    passes = {key: bank_passes(visit) for key, visit in panels.items() if visit.space == "shared"}
    heights = [0.95 + _row(passes[key]) * len(passes[key]) if key in passes else 2.3 for key in panels]
    figure, drawn = axes(len(panels), 1, size=(WIDTH, 0.45 + sum(heights)), squeeze=False, height_ratios=heights)
    for (key, visit), panel in zip(panels.items(), drawn[:, 0], strict=True):
        panel.set_xlim(-2.6, LANES + 0.3)
        panel.axis("off")
        if key in passes:
            _draw_banks(panel, visit, passes[key])
        else:
            _draw_sectors(panel, visit)
    where = "({},{},{})".format(*block)
    shown = text if len(text) <= 90 else text[:89] + "…"
    figure.suptitle(f"line {visits[0].line}:  {shown}\nblock {where}, warp {warp}", x=0.01, ha="left", fontsize=9,
                    family="DejaVu Sans Mono", color=INK)  # fmt: skip
    return figure


def sector_count(visit: Visit) -> tuple[int, int]:
    """Return how many sectors the request touches, and the fewest that hold as many bytes."""
    active = [offset for offset in visit.offsets if offset >= 0]
    return len({(visit.start + offset) // SECTOR_BYTES for offset in active}), -(
        -len(active) * visit.width // SECTOR_BYTES
    )


def bank_passes(visit: Visit) -> list[dict[int, list[int]]]:
    """Return, for each pass over shared memory, {unit of memory: lanes that it serves}.

    A unit is as wide as the access, 4 bytes at least: one bank, or 2 or 4 neighbouring ones. Accesses of 8 bytes go by
    half warps and those of 16 by quarters; within one of them a pass serves one unit of each bank, to as many lanes as
    want it.
    """
    unit = max(WORD, min(visit.width, 4 * WORD))
    phases = unit // WORD
    lanes_each, banks = LANES // phases, BANKS // phases
    passes: list[dict[int, list[int]]] = []
    for phase in range(phases):
        wanted: dict[int, list[int]] = {}
        for lane in range(phase * lanes_each, (phase + 1) * lanes_each):
            if visit.offsets[lane] >= 0:
                wanted.setdefault(visit.offsets[lane] // unit, []).append(lane)
        by_bank: dict[int, list[int]] = {}
        for address in wanted:
            by_bank.setdefault(address % banks, []).append(address)
        for number in range(max(map(len, by_bank.values()), default=0)):
            passes.append({units[number]: wanted[units[number]] for units in by_bank.values() if number < len(units)})
    return passes


def _pattern(visit: Visit) -> tuple:
    """Return the offsets as they lie to each other: an unrolled loop repeats them at other places."""
    first = min(offset for offset in visit.offsets if offset >= 0)
    return tuple(offset - first if offset >= 0 else None for offset in visit.offsets)


def _row(passes: Sequence) -> float:
    return ROW if len(passes) <= MANY_ROWS else LOW_ROW


def _verb(visit: Visit) -> str:
    joint = {"load": "from", "store": "to"}.get(visit.verb, "on")
    time = f", time {visit.number + 1}" if visit.number else ""
    return f"{visit.space} {visit.verb} {joint} {visit.array}, {visit.width} byte{'s' * (visit.width > 1)} a lane{time}"


# --- sectors of global memory ---------------------------------------------------------------------------------------


def _draw_sectors(panel: Axes, visit: Visit) -> None:
    count, ideal = sector_count(visit)
    touched = sorted({(visit.start + offset) // SECTOR_BYTES for offset in visit.offsets if offset >= 0})
    gaps = sum(GAP for one, two in pairwise(touched) if two - one > 1)
    width = min(8.0, (LANES - gaps) / count)
    left: dict[int, float] = {}
    x = (LANES - width * count - gaps) / 2
    for before, sector in zip([None, *touched], touched, strict=False):
        x += GAP if before is not None and sector - before > 1 else 0
        left[sector] = x
        x += width
    panel.set_ylim(-0.75, 3.3)
    for sector in touched:
        panel.add_patch(Rectangle((left[sector], 0), width, 0.7, facecolor=UNUSED, edgecolor="none"))
    used: set[int] = set()
    for lane, offset in enumerate(visit.offsets):
        colour = _lane_colour(lane)
        active = offset >= 0
        panel.add_patch(Rectangle((lane + 0.06, 2.35), 0.88, 0.62, facecolor=colour if active else "none",
                                  edgecolor=colour if active else EDGE, lw=0.8))  # fmt: skip
        panel.text(lane + 0.5, 2.65, lane, ha="center", va="center", fontsize=8, color="white" if active else MUTED)
        if not active:
            continue
        address = visit.start + offset
        sector, inside = divmod(address, SECTOR_BYTES)
        start, length = left[sector] + inside / SECTOR_BYTES * width, visit.width / SECTOR_BYTES * width
        if address not in used:  # lanes that read one address: the first one's colour
            edge = {"edgecolor": "white", "lw": 0.5} if length > 0.5 else {"edgecolor": "none"}
            panel.add_patch(Rectangle((start, 0), length, 0.7, facecolor=colour, **edge))
            used.add(address)
        panel.plot([lane + 0.5, start + length / 2], [2.32, 0.73], color=colour, lw=0.9, alpha=0.8)
    for sector in touched:
        for word in range(1, SECTOR_BYTES // WORD if width > 3 else 0):
            panel.plot([left[sector] + word * width / 8] * 2, [0, 0.7], color="white", lw=0.5)
        panel.add_patch(Rectangle((left[sector], 0), width, 0.7, facecolor="none", edgecolor=INK, lw=0.9))
    _label_sectors(panel, visit, touched, left, width)
    panel.text(-0.25, 2.65, "lane", ha="right", va="center", fontsize=9, color=INK)
    panel.text(-0.25, 0.35, "sector", ha="right", va="center", fontsize=9, color=INK)
    share = 100 * len(used) * visit.width / (SECTOR_BYTES * count)
    fewest = "the fewest possible" if count <= ideal else f"{ideal} would hold it"
    noun = "sector" if count == 1 else "sectors"
    panel.set_title(f"{_verb(visit)}: {count} {noun} of 32 bytes, {fewest}; {share:.0f} % of them used")


def _label_sectors(panel: Axes, visit: Visit, touched: list[int], left: dict[int, float], width: float) -> None:
    """Write each sector's first byte within the array, of as many as there is room for."""
    every = -(-len(touched) // MOST_LABELS)
    for position, sector in enumerate(touched):
        if position % every == 0:
            byte = sector * SECTOR_BYTES - visit.start
            panel.plot([left[sector] + 0.02] * 2, [-0.12, 0], color=INK, lw=0.9)
            panel.text(left[sector], -0.18, f"byte {byte}" if not position else byte, ha="left", va="top", fontsize=8,
                       color=MUTED)  # fmt: skip


def _lane_colour(lane: int) -> tuple:
    """One of 32 colours from dark blue to green, told apart by their lightness; white figures stay legible on all."""
    return mpl.colormaps["viridis"](0.05 + 0.55 * lane / (LANES - 1))


# --- banks of shared memory -----------------------------------------------------------------------------------------


def _draw_banks(panel: Axes, visit: Visit, passes: list[dict[int, list[int]]]) -> None:
    unit = max(WORD, min(visit.width, 4 * WORD))
    wide = unit // WORD
    rows = len(passes)
    inch = 1 / _row(passes)  # in rows
    small = 7.5 if rows <= MANY_ROWS else 6.5
    panel.set_ylim(rows + 0.3 * inch, -0.23 * inch)
    for bank in range(BANKS):
        panel.text(bank + 0.5, -0.1, bank, ha="center", va="bottom", fontsize=7.5, color=MUTED)
    panel.text(-0.25, -0.1, "bank", ha="right", va="bottom", fontsize=9, color=INK)
    phase_before, number = None, 0
    for row, served in enumerate(passes):
        phase = min(lanes[0] for lanes in served.values()) * wide // LANES
        number = number + 1 if phase == phase_before else 1
        phase_before = phase
        panel.text(-0.25, row + 0.5, f"pass {row + 1}", ha="right", va="center", fontsize=small, color=INK)
        panel.add_patch(Rectangle((0, row + 0.08), BANKS, 0.84, facecolor=UNUSED, edgecolor="none"))
        for address, lanes in served.items():
            bank = address * wide % BANKS
            panel.add_patch(Rectangle((bank + 0.04, row + 0.08), wide - 0.08, 0.84, edgecolor="white", lw=0.6,
                                      facecolor=BLUE if number == 1 else ACCENT))  # fmt: skip
            panel.text(bank + wide / 2, row + 0.5, _lanes(lanes, wide), ha="center", va="center", fontsize=small,
                       color="white")  # fmt: skip
    ideal = len({min(lanes[0] for lanes in served.values()) * wide // LANES for served in passes})
    noun = "pass" if rows == 1 else "passes"
    verdict = "free of conflicts" if rows == ideal else f"{ideal} would do"
    panel.set_title(f"{_verb(visit)}: {rows} {noun} over the 32 banks, {verdict}")
    note = "In the cells: the lanes that are served" + ("." if rows == ideal else "; orange ones wait for their bank.")
    panel.text(0, rows + 0.06 * inch, note, ha="left", va="top", fontsize=8, color=MUTED)


def _lanes(lanes: list[int], wide: int) -> str:
    """Name lanes in the room of a cell: 7, 0–31, or how many there are."""
    if len(lanes) == 1:
        return str(lanes[0])
    if lanes == list(range(lanes[0], lanes[-1] + 1)):
        return f"{lanes[0]}–{lanes[-1]}"
    return ",".join(map(str, lanes)) if len(lanes) <= 2 * wide else f"{len(lanes)}×"
