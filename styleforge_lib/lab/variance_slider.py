"""`variance_slider()`: what is left of a variance that is computed as E[x^2] - E[x]^2 in float32, bit by bit.

Sliders choose mean and deviation of a plane of which one half is mean - deviation, the other mean + deviation, so that
E[x^2] = mean^2 + deviation^2 exactly. A float32 has 24 bits: what the variance has below them is lost, even if both
sums are exact and only their results are rounded.

Contents
    variance_slider        the function that the notebooks call
    Difference, subtract   one choice as a table: the bits of both terms and of their difference
    VarianceSliderWidget   the widget behind it: Python lays the bits out, for the page and the static picture alike
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from fractions import Fraction

import numpy as np
import traitlets
from PIL import Image

from styleforge_lib.lab.widgets import LabWidget, asset, figure_picture

MEANS = (0.0, 1.0, 4.0, 16.0, 60.0, 250.0, 1000.0, 4000.0, 16000.0, 30000.0)
DEVIATIONS = tuple(2.0**k for k in range(-6, 8))  # powers of two: the variance is one bit, which the eye can follow
KEPT, SHOWN = 24, 34  # bits of a float32; columns that are drawn


@dataclass(frozen=True)
class Difference:
    """E[x^2] - E[x]^2 for one mean and deviation.

    top: the power of two of the first column. squares, square: the bits of the two terms, variance: of their exact
    difference, one character a column. got: what float32 makes of it. words: the same as a sentence.
    """

    top: int
    squares: str
    square: str
    variance: str
    got: float
    words: str


def variance_slider(mean: float = 4000.0, deviation: float = 0.5) -> VarianceSliderWidget:
    """Show the bits of both terms of the one-pass variance, beginning with this mean and deviation.

    Raises `ValueError` for a mean or deviation that the sliders do not have (MEANS, DEVIATIONS).
    """
    for name, value, values in (("mean", mean, MEANS), ("deviation", deviation, DEVIATIONS)):
        if value not in values:
            raise ValueError(f"{name}: the slider has {', '.join(f'{v:g}' for v in values)}, got {value!r}.")
    return VarianceSliderWidget(MEANS.index(mean), DEVIATIONS.index(deviation))


def subtract(mean: float, deviation: float) -> Difference:
    """Subtract the square of the mean from the mean of the squares, exactly and in float32."""
    square = Fraction(mean) ** 2
    squares = square + Fraction(deviation) ** 2
    top = math.floor(math.log2(squares))
    got = float(np.float32(float(squares)) - np.float32(float(square)))
    exact = deviation**2
    bits = KEPT - top + math.floor(math.log2(exact))  # of a variance of this size that lie within the 24
    if got == exact:
        verdict = f"of its bits, {bits} can be kept"
    elif got == 0:
        verdict = "nothing of it is left"
    else:
        verdict = f"float32 makes {got:g} of it"
    words = (
        f"Neighbouring float32 numbers are {2.0 ** (top - KEPT + 1):g} apart at {float(squares):.14g}. "
        f"The variance is {exact:g}: {verdict}."
    )
    return Difference(top, *(_bits(value, top) for value in (squares, square, squares - square)), got, words)


def _bits(value: Fraction, top: int) -> str:
    """Write a number in binary, from 2^top on, cut after SHOWN columns."""
    return f"{math.floor(value * Fraction(2) ** (SHOWN - 1 - top)):0{SHOWN}b}"


class VarianceSliderWidget(LabWidget):
    """The widget of `variance_slider`."""

    _esm = asset("widgets.js", "variance_slider.js")
    _css = asset("widgets.css", "variance_slider.css")

    drawing = traitlets.Dict().tag(sync=True)
    mean = traitlets.Int().tag(sync=True)  # which of MEANS
    deviation = traitlets.Int().tag(sync=True)  # which of DEVIATIONS

    def __init__(self, mean: int, deviation: int):
        table = [[asdict(subtract(m, s)) for s in DEVIATIONS] for m in MEANS]
        drawing = {"means": list(MEANS), "deviations": list(DEVIATIONS), "kept": KEPT, "table": table}
        super().__init__(mean=mean, deviation=deviation, drawing=drawing)

    def static_picture(self) -> Image.Image:
        """Return the bits of the chosen mean, and of a quarter of it, by matplotlib."""
        from matplotlib.figure import Figure

        pairs = [(self.mean, self.deviation), (max(self.mean - 1, 0), self.deviation)]
        figure = Figure(figsize=(10, 4.4), facecolor="white")
        for number, (m, s) in enumerate(reversed(pairs)):
            axes = figure.add_axes((0.01, 0.5 - 0.5 * number, 0.98, 0.48), xlim=(-6.2, SHOWN + 0.4), ylim=(5.1, -1.7))
            axes.axis("off")
            self._draw(axes, m, s)
        return figure_picture(figure)

    def _draw(self, axes, m: int, s: int) -> None:
        from matplotlib.patches import Rectangle

        found = self.drawing["table"][m][s]
        axes.text(-6.2, -1.15, f"mean {MEANS[m]:g}, deviation {DEVIATIONS[s]:g}", fontsize=10.5, fontweight="bold")
        axes.text(SHOWN, -1.15, found["words"], fontsize=8.5, ha="right", color="#444444")
        for row, (name, key) in enumerate((("E[x²]", "squares"), ("E[x]²", "square"), ("variance", "variance"))):
            y = 1.25 * row + 0.25 * (row == 2)
            axes.text(-0.5, y + 0.5, name, fontsize=10, ha="right", va="center")
            for column, bit in enumerate(found[key]):
                kept, one = column < KEPT, bit == "1"
                mine = row == 2 and one
                axes.add_patch(
                    Rectangle((column + 0.06, y), 0.88, 0.95,
                              facecolor=("#B4540A" if mine and not kept else "#5B9FCB" if mine else
                                         "#DCE9F2" if kept else "#F6F6F6"),
                              hatch=None if kept else "////", edgecolor="#C9CDD1" if not kept else "none", linewidth=0)
                )  # fmt: skip
                axes.text(column + 0.5, y + 0.5, bit, fontsize=8, ha="center", va="center",
                          color="#111111" if one else "#8A8F94")  # fmt: skip
        axes.plot([KEPT, KEPT], [-0.35, 4.2], color="#B4540A", linewidth=1.5)
        axes.text(KEPT - 0.25, -0.1, "24 bits are kept", fontsize=8.5, ha="right", va="bottom", color="#B4540A")
        axes.text(KEPT + 0.25, -0.1, "rounded away", fontsize=8.5, ha="left", va="bottom", color="#B4540A")

    def __repr__(self) -> str:
        return f"variance_slider({MEANS[self.mean]:g}, {DEVIATIONS[self.deviation]:g})"
