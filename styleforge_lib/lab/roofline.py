"""`roofline(points)`: kernels under the two ceilings of a GPU, on logarithmic axes (Williams et al., 2009).

A kernel that does I operations for each byte it moves reaches at most min(peak, I * bandwidth): under the slope memory
is the limit, under the flat roof arithmetic. Sliders place a kernel that does not exist yet, and say how long it takes.

Contents
    roofline          the function that the notebooks call
    Point             one kernel under the roof
    RooflineWidget    the widget behind it: Python lays the drawing out, for the page and for the static picture alike
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import traitlets
from PIL import Image

from styleforge_lib.lab.machine import Machine
from styleforge_lib.lab.records import Measurement
from styleforge_lib.lab.widgets import LabWidget, asset, figure_picture, label_font

WIDTH, HEIGHT = 760, 470  # of the drawing, in CSS pixels
LEFT, RIGHT, TOP, BOTTOM = 94, 18, 14, 46  # margins of the axes
FONT = 12
COLOURS = ("#0072B2", "#B4540A", "#007A5A", "#A3417C", "#555555")  # dark members of Okabe and Ito's palette, on white
PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Point:
    """One kernel: `intensity` in FLOP a byte, `rate` in FLOP/s, and the precision whose ceiling holds for it."""

    label: str
    intensity: float
    rate: float
    dtype: str = "float32"

    @classmethod
    def of(cls, row: Measurement) -> Point:
        """Return the point of a measurement that knows its bytes and FLOPs."""
        if not row.flops or not row.bytes:
            raise ValueError(f"points: {row.operator} {row.version} has no FLOPs or no bytes in its record.")
        label = f"{row.operator.replace('_', ' ')}, {row.version}"
        return cls(label, row.flops / row.bytes, row.flops / row.median_ms * 1e3, row.dtype)


def roofline(points: Iterable[Point | Measurement] = (), gpu: Machine | None = None) -> RooflineWidget:
    """Draw kernels under a GPU's ceilings.

    points   `Point`s, or rows of the records with FLOPs and bytes
    gpu      the ceilings; default: this machine's GPU where it was measured, else the recorded one

    Raises `ValueError` for a point that is not positive and finite, or of a precision without a ceiling.
    """
    gpu = gpu or Machine.measured()
    points = [point if isinstance(point, Point) else Point.of(point) for point in points]
    if not gpu.flops_per_s:
        raise ValueError(f"gpu: {gpu.name} has no ceiling for arithmetic: give flops_per_s={{'float32': ...}}.")
    for point in points:
        if not (0 < point.intensity < math.inf and 0 < point.rate < math.inf):
            raise ValueError(f"points: {point.label}: intensity and rate must be positive and finite, got {point}.")
        if point.dtype not in gpu.flops_per_s:
            raise ValueError(
                f"points: {point.label} is {point.dtype}, and {gpu.name} has ceilings for {', '.join(gpu.flops_per_s)}."
            )
    return RooflineWidget(points, gpu)


def quantity(value: float, unit: str) -> str:
    """Return a value in three figures with its SI prefix: 4.24 TB/s."""
    factor, prefix = next(((f, p) for f, p in PREFIXES if value >= 0.9995 * f), (1.0, ""))
    value /= factor
    digits = max(0, 2 - math.floor(math.log10(max(value, 1e-9)) + 1e-3)) if value < 99.95 else 0
    return f"{value:.{digits}f} {prefix}{unit}"


class RooflineWidget(LabWidget):
    """The widget of `roofline`."""

    _esm = asset("widgets.js", "roofline.js")
    _css = asset("widgets.css", "roofline.css")

    drawing = traitlets.Dict().tag(sync=True)
    machine = traitlets.Dict().tag(sync=True)
    # The kernel that does not exist yet: work for each element, and how many elements.
    flops = traitlets.Float(8.0).tag(sync=True)
    bytes = traitlets.Float(8.0).tag(sync=True)
    millions = traitlets.Float(32.0).tag(sync=True)
    dtype = traitlets.Unicode().tag(sync=True)

    def __init__(self, points: list[Point], gpu: Machine):
        super().__init__(machine=asdict(gpu), drawing=layout(points, gpu), dtype=_lowest(gpu))

    def static_picture(self) -> Image.Image:
        """Return the drawing by matplotlib, without the hypothetical kernel."""
        import matplotlib as mpl
        from matplotlib.figure import Figure
        from matplotlib.patheffects import withStroke

        drawing = self.drawing
        with mpl.rc_context({"font.family": "DejaVu Sans", "font.size": FONT * 0.72}):
            figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), facecolor="white")
            axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(HEIGHT, 0))
            axes.axis("off")
            for tick in drawing["ticks"]:
                vertical = tick["axis"] == "x"
                ends = (
                    ([tick["at"]] * 2, [TOP, HEIGHT - BOTTOM])
                    if vertical
                    else ([LEFT, WIDTH - RIGHT], [tick["at"]] * 2)
                )
                axes.plot(*ends, color="#e3e6e8", linewidth=0.8)
                place = (tick["at"], HEIGHT - BOTTOM + 7) if vertical else (LEFT - 8, tick["at"])
                axes.text(*place, tick["text"], color="#555b60", ha="center" if vertical else "right",
                          va="top" if vertical else "center")  # fmt: skip
            axes.text(
                (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "FLOP per byte moved", ha="center", va="bottom", color="#222"
            )
            for line in drawing["lines"]:
                colour = "#333333" if line["colour"] < 0 else COLOURS[line["colour"]]
                axes.plot(line["x"], line["y"], color=colour, linewidth=1.8, solid_capstyle="round")
                axes.text(*line["text_at"], line["text"], color=colour, rotation=-line["angle"], va="bottom",
                          ha=line["anchor"], rotation_mode="anchor")  # fmt: skip
            for point in drawing["points"]:
                axes.plot(*point["at"], "o", color=COLOURS[point["colour"]], markersize=6, markeredgecolor="white")
                text = axes.text(*point["text_at"], point["label"], color="#222", va="center", ha=point["anchor"])
                text.set_path_effects([withStroke(linewidth=3, foreground="white")])
        return figure_picture(figure)

    def __repr__(self) -> str:
        return f"roofline({len(self.drawing['points'])} kernels, {self.machine['name']})"


def layout(points: list[Point], gpu: Machine) -> dict:
    """Lay the drawing out: lines, ticks, points and their labels, in pixels of WIDTH x HEIGHT.

    Labels stand beside their point where they cover neither a point nor another label.
    """
    ridges = {dtype: peak / gpu.bytes_per_s for dtype, peak in gpu.flops_per_s.items()}
    intensities = [p.intensity for p in points]
    low = min([0.1, *(x / 1.5 for x in intensities)])
    high = max([6 * max(ridges.values()), *(4 * x for x in intensities)])
    top = 2 * max([*gpu.flops_per_s.values(), *(p.rate for p in points)])
    bottom = min([low * gpu.bytes_per_s, *(p.rate / 2 for p in points)])
    x_of = _axis(low, high, LEFT, WIDTH - RIGHT)
    y_of = _axis(bottom, top, HEIGHT - BOTTOM, TOP)
    colours = {dtype: i % len(COLOURS) for i, dtype in enumerate(gpu.flops_per_s)}

    far = max(ridges.values())
    slope_x, slope_y = [x_of(low), x_of(far)], [y_of(low * gpu.bytes_per_s), y_of(far * gpu.bytes_per_s)]
    angle = math.degrees(math.atan2(slope_y[1] - slope_y[0], slope_x[1] - slope_x[0]))
    copy = quantity(gpu.bytes_per_s, "B/s")
    words_at = (slope_x[0] + 14, slope_y[0] + 14 * math.tan(math.radians(angle)) - 5)
    lines = [_line(slope_x, slope_y, f"memory: {copy}", words_at, angle, "left", -1)]
    for dtype, peak in gpu.flops_per_s.items():
        y = y_of(peak)
        text = f"{dtype}: {quantity(peak, 'FLOP/s')}"
        x = [x_of(ridges[dtype]), WIDTH - RIGHT]
        lines.append(_line(x, [y, y], text, (WIDTH - RIGHT - 4, y - 4), 0, "right", colours[dtype]))

    ticks = [{"axis": "x", "at": x_of(v), "text": f"{v:g}"} for v in _decades(low, high)]
    for rate in _decades(bottom, top):
        ticks.append(
            {"axis": "y", "at": y_of(rate), "text": quantity(rate, "FLOP/s").replace(".00", "").replace(".0", "")}
        )
    marks = [(x_of(p.intensity), y_of(p.rate)) for p in points]
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in marks]
    for line in lines[1:]:  # the words on the roofs
        (x, y), length = line["text_at"], label_font(FONT).getlength(line["text"])
        taken.append((x - length, y - FONT, x, y + 4))
    roofs = [(line["x"][0], line["y"][0] - 1, line["x"][1], line["y"][0] + 1) for line in lines[1:]]
    drawn = []
    for point, mark in zip(points, marks, strict=True):
        text_at, anchor = _free_place(point.label, mark, taken, roofs)
        roof = min(gpu.flops_per_s[point.dtype], point.intensity * gpu.bytes_per_s)
        limit = "memory" if point.intensity < ridges[point.dtype] else "arithmetic"
        share = 100 * point.rate / roof
        words = (
            f"{point.label}: {quantity(point.rate, 'FLOP/s')} at {point.intensity:.3g} FLOP/byte is {share:.3g} % "
            f"of the {quantity(roof, 'FLOP/s')} that {limit} allows in {point.dtype}"
        )
        drawn.append({"label": point.label, "at": mark, "text_at": text_at, "anchor": anchor,
                      "colour": colours[point.dtype], "words": words})  # fmt: skip
    return {
        "size": [WIDTH, HEIGHT],
        "margins": [LEFT, RIGHT, TOP, BOTTOM],
        "x": [low, high],
        "y": [bottom, top],
        "lines": lines,
        "ticks": ticks,
        "points": drawn,
        "colours": colours,
    }


def _lowest(gpu: Machine) -> str:
    return min(gpu.flops_per_s, key=gpu.flops_per_s.get)


def _axis(low: float, high: float, first: float, last: float):
    return lambda value: first + (last - first) * math.log(value / low) / math.log(high / low)


def _decades(low: float, high: float) -> list[float]:
    return [10.0**e for e in range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)]


def _line(x, y, text, text_at, angle, anchor, colour) -> dict:
    return {"x": x, "y": y, "text": text, "text_at": list(text_at), "angle": angle, "anchor": anchor, "colour": colour}


def _free_place(label: str, mark: tuple, taken: list, roofs: list) -> tuple[tuple[float, float], str]:
    """Choose where a label goes, and take the place: right or left, or a little up or down.

    Where nothing is free it covers something, but stays in the picture.
    """
    length = label_font(FONT).getlength(label)
    x, y = mark
    # First clear of the roofs too; a label that must cross one has a halo, and is better than one far from its point.
    for offsets, obstacles in (((0, -14, 14), taken + roofs), ((0, -14, 14, -28, 28), taken)):
        for dy in offsets:
            for anchor, left in (("left", x + 10), ("right", x - 10 - length)):
                box = (left, y + dy - 8, left + length, y + dy + 8)
                inside = box[0] >= LEFT and box[2] <= WIDTH - RIGHT and box[1] >= TOP and box[3] <= HEIGHT - BOTTOM
                if inside and not any(
                    box[0] < o[2] and o[0] < box[2] and box[1] < o[3] and o[1] < box[3] for o in obstacles
                ):
                    taken.append(box)
                    return (x + 10 if anchor == "left" else x - 10, y + dy), anchor
    return ((x + 10, y), "left") if x + 10 + length <= WIDTH - RIGHT else ((x - 10, y), "right")


def _overlap(a: tuple, b: tuple) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
