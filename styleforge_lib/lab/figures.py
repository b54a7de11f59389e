"""The figures of the lessons, drawn by Matplotlib in one style.

Contents: the style (KIND_COLOURS, axes), the network as a drawing (draw_network), where the time goes (draw_profile),
shares (draw_shares), versions against each other (draw_versions), pictures (draw_pictures), time against size
(draw_sweep), any curves (draw_curves), error against time (draw_error_and_time), and idle multiprocessors (draw_idle).
"""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps

import matplotlib.pyplot as plt
from IPython import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

from styleforge_lib.lab.profile import KINDS, StageTime, merge_residual
from styleforge_lib.lab.records import Measurement
from styleforge_lib.models.stages import Stage

# Okabe and Ito's palette: told apart by colour-blind readers, and in grey by their lightness.
KIND_COLOURS = {
    "conv": "#0072B2",
    "norm": "#E69F00",
    "pad": "#009E73",
    "upsample": "#CC79A7",
    "relu": "#56B4E9",
    "add": "#999999",
}
KIND_NAMES = {
    "conv": "convolution",
    "norm": "instance norm",
    "pad": "reflection padding",
    "upsample": "upsampling",
    "relu": "ReLU",
    "add": "residual addition",
}
INK, MUTED, ACCENT = "#222222", "#767676", "#D55E00"
STYLE = {
    "figure.facecolor": "white",
    "figure.dpi": 110,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}


def _drawing(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in the lessons' style, and return the figure closed: a notebook shows what a cell returns, once."""

    @wraps(draw)
    def drawn(*arguments: object, **options: object) -> Figure:
        with plt.rc_context(STYLE):
            figure = draw(*arguments, **options)
        plt.close(figure)
        return figure

    return drawn


def axes(rows: int = 1, columns: int = 1, *, size: tuple[float, float], **options: object) -> tuple[Figure, Axes]:
    """Return a figure of ``size`` inches and its axes, constrained; Matplotlib's subplots takes the rest."""
    return plt.subplots(rows, columns, figsize=size, layout="constrained", **options)


@_drawing
def draw_network(plan: Sequence[Stage]) -> Figure:
    """Draw the layers as blocks (height: the picture's height; shade: channels) above the GFLOP that each one takes."""
    layers: dict[str, list[Stage]] = {}
    for stage in plan:
        layers.setdefault(stage.layer, []).append(stage)
    figure, (top, bottom) = axes(2, 1, size=(10, 4.6), sharex=True, height_ratios=(1.5, 1))
    full = plan[0].in_shape[2]
    for x, of_layer in enumerate(layers.values()):
        conv = next(stage for stage in of_layer if stage.kind == "conv")
        _, channels, height, _ = conv.out_shape
        tall = height / full
        shade = 0.25 + 0.75 * min(channels, 128) / 128
        colour = KIND_COLOURS["conv"]
        top.add_patch(Rectangle((x - 0.38, 0.5 - tall / 2), 0.76, tall, facecolor=colour, alpha=shade, lw=0))
        top.text(x, 0.5, channels, ha="center", va="center", color="white" if shade > 0.5 else INK, fontsize=9)
        top.text(x, 0.5 + tall / 2 + 0.02, f"{height}", ha="center", va="bottom", color=MUTED, fontsize=8)
        gflop = sum(stage.flops for stage in of_layer) / 1e9
        bottom.bar(x, gflop, 0.76, color=colour)
        bottom.text(x, gflop, f"{gflop:.0f}", ha="center", va="bottom", fontsize=8, color=INK)
    top.set_ylim(-0.05, 1.15)
    top.axis("off")
    top.set_title(f"One block a convolution, on a picture {full} pixels high: channels inside, rows above")
    bottom.set_title("GFLOP")
    bottom.set_xticks(range(len(layers)), list(layers), rotation=45, ha="right")
    bottom.set_yticks([])
    bottom.spines["left"].set_visible(False)
    return figure


@_drawing
def draw_profile(profiles: Mapping[str, Iterable[StageTime]]) -> Figure:
    """Stack the milliseconds of each layer's stages; one panel a profile, the ten residual layers as one."""
    merged = {title: merge_residual(times) for title, times in profiles.items()}
    layers = list(dict.fromkeys(t.layer for times in merged.values() for t in times))
    figure, panels = axes(1, len(merged), size=(10, 3.6), sharex=True, sharey=True, squeeze=False)
    for panel, (title, times) in zip(panels[0], merged.items(), strict=True):
        left = dict.fromkeys(layers, 0.0)
        for kind in KINDS:
            of_kind = {t.layer: t.ms for t in times if t.kind == kind}
            if not of_kind:
                continue
            at = [layers.index(layer) for layer in of_kind]
            start = [left[layer] for layer in of_kind]
            panel.barh(at, of_kind.values(), left=start, color=KIND_COLOURS[kind], label=KIND_NAMES[kind], height=0.75)
            for layer, ms in of_kind.items():
                left[layer] += ms
        for y, layer in enumerate(layers):
            panel.text(left[layer], y, f" {left[layer]:.2f}", va="center", fontsize=9, color=INK)
        panel.set_title(f"{title}: {sum(left.values()):.3g} ms")
        panel.set_yticks(range(len(layers)), layers)
        panel.set_xlabel("ms")
        panel.margins(x=0.12)
    panels[0][0].invert_yaxis()
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


@_drawing
def draw_shares(shares: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw one full-width bar for each entry: what share of a whole each kind takes, in percent."""
    figure, panel = axes(size=(10, 0.75 + 0.55 * len(shares)))
    for y, sums in enumerate(shares.values()):
        whole, left = sum(sums.values()), 0.0
        for kind in KINDS:
            share = 100 * sums.get(kind, 0.0) / whole
            panel.barh(y, share, left=left, color=KIND_COLOURS[kind], height=0.7, label=None if y else KIND_NAMES[kind])
            if share >= 4:
                dark = kind in ("conv", "pad")
                panel.text(
                    left + share / 2, y, f"{share:.0f}", ha="center", va="center", color="white" if dark else INK
                )
            left += share
    panel.set_yticks(range(len(shares)), list(shares))
    panel.invert_yaxis()
    panel.set_xlim(0, 100)
    panel.set_xticks([])
    panel.set_title("Share in percent")
    for spine in panel.spines.values():
        spine.set_visible(False)
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


@_drawing
def draw_versions(rows: Sequence[Measurement], *, title: str, highlight: str = "") -> Figure:
    """Draw one bar for each row, the slowest on top; ``highlight`` is the version to beat."""
    rows = sorted(rows, key=lambda row: -row.median_ms)
    figure, panel = axes(size=(10, 0.9 + 0.34 * len(rows)))
    for y, row in enumerate(rows):
        chosen = row.version == highlight
        panel.barh(y, row.median_ms, color=ACCENT if chosen else KIND_COLOURS["conv"], height=0.7)
        spread = [[row.median_ms - row.p20_ms], [row.p80_ms - row.median_ms]]
        panel.errorbar(row.median_ms, y, xerr=spread, color=INK, lw=1, capsize=2)
        label = f"  {row.median_ms:.3g} ms" + (f", {row.psnr_db:.0f} dB" if row.psnr_db is not None else "")
        panel.text(row.p80_ms, y, label, va="center", fontsize=9, color=INK)
    precision = [row.dtype + (" channels_last" if row.layout == "nhwc" else "") for row in rows]
    several = len(set(precision)) > 1
    names = [f"{row.version}, {p}" if several else row.version for row, p in zip(rows, precision, strict=True)]
    panel.set_yticks(range(len(rows)), names)
    panel.invert_yaxis()
    panel.margins(x=0.16)
    panel.set_xlabel("ms, less is better")
    panel.set_title(title)
    return figure


def draw_pictures(rows: Sequence[Sequence[Image.Image]], *, titles: Sequence[str]) -> display.Image:
    """Draw pictures in rows under their ``titles``; a JPEG, since a stored notebook should stay small."""
    buffer = io.BytesIO()
    _draw_pictures(rows, titles).savefig(buffer, format="jpeg", pil_kwargs={"quality": 88})
    return display.Image(buffer.getvalue(), format="jpeg")


@_drawing
def _draw_pictures(rows: Sequence[Sequence[Image.Image]], titles: Sequence[str]) -> Figure:
    heights = [row[0].height / row[0].width for row in rows]
    size = (10, 10 / len(titles) * sum(heights) + 0.3)
    figure, panels = axes(len(rows), len(titles), size=size, squeeze=False, height_ratios=heights)
    for row, line in zip(rows, panels, strict=True):
        for picture, panel in zip(row, line, strict=True):
            panel.imshow(picture, interpolation="lanczos")
            panel.axis("off")
    for title, panel in zip(titles, panels[0], strict=True):
        panel.set_title(title)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    return figure


@_drawing
def draw_sweep(rows: Sequence[Measurement], *, title: str, bytes_per_s: float) -> Figure:
    """Draw time against bytes on logarithmic axes, a line for each version, beside what a copy of them would take."""
    figure, panel = axes(size=(10, 4))
    versions: dict[str, list[Measurement]] = {}
    for row in rows:
        versions.setdefault(row.version, []).append(row)
    sizes = sorted({row.bytes for row in rows})
    panel.plot(
        sizes, [1e6 * size / bytes_per_s for size in sizes], color=MUTED, ls="--", label="bytes / copy bandwidth"
    )
    for (name, of_version), colour in zip(versions.items(), KIND_COLOURS.values(), strict=False):
        of_version.sort(key=lambda row: row.bytes)
        x, y = [row.bytes for row in of_version], [1e3 * row.median_ms for row in of_version]
        panel.fill_between(
            x, [1e3 * r.p20_ms for r in of_version], [1e3 * r.p80_ms for r in of_version], color=colour, alpha=0.2
        )
        panel.plot(x, y, "o-", color=colour, label=name)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel("bytes moved")
    panel.set_ylabel("microseconds")
    panel.grid(alpha=0.25)
    panel.legend()
    panel.set_title(title)
    return figure


@_drawing
def draw_curves(
    x: Sequence[float], curves: Mapping[str, Sequence[float]], *, title: str, across: str, up: str, base: int = 10
) -> Figure:
    """Draw curves over one axis, both logarithmic (the lower one to ``base``); ``across`` and ``up`` are their labels.

    A curve of one value is a line across. What is zero or not finite is left out.
    """
    figure, panel = axes(size=(10, 4))
    for (name, y), colour in zip(curves.items(), KIND_COLOURS.values(), strict=False):
        if len(y) == 1:
            panel.axhline(y[0], color=colour, ls="--", label=name)
        else:
            seen = [(a, b) for a, b in zip(x, y, strict=True) if 0 < b < float("inf")]
            panel.plot(*zip(*seen, strict=True), "o-", color=colour, label=name, markersize=4)
    panel.set_xscale("log", base=base)
    panel.set_yscale("log")
    panel.xaxis.set_major_formatter("{x:g}")
    low, high = panel.get_ylim()
    if high < 100 * low:  # few powers of ten: numbers that can be read
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter("{x:g}")
    panel.set_xlabel(across)
    panel.set_ylabel(up)
    panel.grid(alpha=0.25)
    panel.set_title(title)
    figure.legend(loc="outside lower center", ncols=len(curves))
    return figure


@_drawing
def draw_error_and_time(rows: Sequence[Measurement], *, title: str) -> Figure:
    """Draw one point for each row that knows its error: to the left is faster, further down is more exact."""
    rows = sorted((row for row in rows if row.rel_error), key=lambda row: row.rel_error)
    figure, panel = axes(size=(10, 4))
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_formatter("{x:g}")
    panel.margins(x=0.12, y=0.2)
    panel.plot([row.median_ms for row in rows], [row.rel_error for row in rows], "o", color=KIND_COLOURS["conv"])
    panel.set_xlabel("ms")
    panel.set_ylabel("relative error against float64")
    panel.grid(alpha=0.25)
    panel.set_title(title)
    figure.draw_without_rendering()  # the layout: from here on a point has a place
    points = [panel.transData.transform((row.median_ms, row.rel_error)) for row in rows]
    taken = [Bbox.from_extents(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    for row in rows:
        _label(panel, row.version, (row.median_ms, row.rel_error), taken)
    return figure


def _label(panel: Axes, words: str, at: tuple[float, float], taken: list[Bbox]) -> None:
    """Write words beside a point, or further up or down with a line to it: where nothing is written yet."""
    for lift in (0, 16, -16, 32, -32, 48, -48):
        for side in (1, -1):
            text = panel.annotate(
                words, at, xytext=(9 * side, lift), textcoords="offset points", va="center", fontsize=9, color=INK,
                ha="left" if side > 0 else "right",
                arrowprops={"arrowstyle": "-", "color": MUTED, "lw": 0.6, "shrinkB": 3} if lift else None,
            )  # fmt: skip
            text.get_window_extent()  # puts it in its place
            box = Text.get_window_extent(text).padded(1)  # of the words alone, without the line
            inside = panel.bbox.x0 < box.x0 and box.x1 < panel.bbox.x1 and panel.bbox.y0 < box.y0 < panel.bbox.y1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                return
            text.remove()
    panel.annotate(words, at, xytext=(9, 0), textcoords="offset points", va="center", fontsize=9, color=INK)


@_drawing
def draw_idle(blocks: Mapping[str, int], *, multiprocessors: int) -> Figure:
    """Draw a GPU's multiprocessors as squares, and in each how many of the blocks it gets: dealt out like cards."""
    figure, panels = axes(1, len(blocks), size=(10, 2.9), squeeze=False)
    columns = 22
    for panel, (title, count) in zip(panels[0], blocks.items(), strict=True):
        for number in range(multiprocessors):
            mine = count // multiprocessors + (number < count % multiprocessors)
            x, y = number % columns, number // columns
            face = KIND_COLOURS["conv"] if mine else "#ECEEF0"
            panel.add_patch(Rectangle((x, y), 0.86, 0.86, facecolor=face, alpha=0.55 if mine == 1 else 1, lw=0))
            if mine:
                panel.text(x + 0.43, y + 0.45, mine, ha="center", va="center", fontsize=7, color="white")
        panel.set_xlim(-0.2, columns)
        panel.set_ylim(-(-multiprocessors // columns), -0.2)
        panel.set_aspect("equal")
        panel.axis("off")
        busy = min(count, multiprocessors)
        panel.set_title(f"{title}: {busy} of {multiprocessors} multiprocessors")
    return figure
