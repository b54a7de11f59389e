"""`reduction_stepper()`: the sum of a block, round by round, in two orders of adding.

A slider steps through the rounds. Each shows which threads add, which warps they keep busy, and which numbers they take
from another warp, so that a barrier must stand before the round. Warps are drawn with 8 lanes, to have four of them.

Contents
    reduction_stepper         the function that the notebooks call
    Round, rounds             a reduction as a table: who adds what to what, and what is then in shared memory
    ReductionStepperWidget    the widget behind it: Python plays the rounds, for the page and the static picture
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import traitlets
from PIL import Image

from styleforge_lib.lab.widgets import LabWidget, asset, figure_picture

THREADS, LANES = 32, 8  # of the block that is drawn, and of its warps
ORDERS = ("neighbours first", "halves first")
ADDS, BUSY, RESTS, FOREIGN = "#5B9FCB", "#DCE9F2", "#F3F4F5", "#B4540A"


@dataclass(frozen=True)
class Round:
    """One round: (to, from) of each addition, thread `to` making it; what is in shared memory afterwards; the words."""

    additions: list[tuple[int, int]]
    foreign: list[int]  # places that are read by a warp which did not write them last
    warps: list[int]  # those with a thread that adds
    values: list[int]
    words: str


def reduction_stepper() -> ReductionStepperWidget:
    """Show how the 32 threads of a block add 32 numbers in shared memory, neighbours first or halves first."""
    return ReductionStepperWidget()


def rounds(order: str, values: list[int], lanes: int = LANES) -> list[Round]:
    """Return the rounds in which as many threads as values (a power of two) add them, each into its own place.

    A number is foreign where the warp that reads it has not written it: at first each thread has written its own.
    """
    count, found = len(values), []
    values, writer = list(values), list(range(count))
    steps = [1 << k for k in range(count.bit_length() - 1)]
    for step in steps if order == "neighbours first" else reversed(steps):
        to = range(0, count, 2 * step) if order == "neighbours first" else range(step)
        additions = [(t, t + step) for t in to]
        foreign = [source for t, source in additions if writer[source] // lanes != t // lanes]
        warps = sorted({t // lanes for t, _ in additions})
        for t, source in additions:
            values[t] += values[source]
            writer[t] = t
        adds = f"{len(additions)} threads add" if len(additions) > 1 else "one thread adds"
        busy = f"{len(warps)} of {count // lanes} warps" + (" is" if len(warps) == 1 else " are") + " busy"
        taken = ("no number comes", "one number comes")[len(foreign)] if len(foreign) < 2 else f"{len(foreign)} come"
        words = f"{adds} the number {step} to the right; {busy}; {taken} from another warp."
        found.append(Round(additions, foreign, warps, list(values), words))
    return found


class ReductionStepperWidget(LabWidget):
    """The widget of `reduction_stepper`."""

    _esm = asset("widgets.js", "reduction_stepper.js")
    _css = asset("widgets.css", "reduction_stepper.css")

    drawing = traitlets.Dict().tag(sync=True)
    order = traitlets.Unicode(ORDERS[0]).tag(sync=True)
    step = traitlets.Int(1).tag(sync=True)  # how many rounds are done

    def __init__(self):
        values = [(7 * i + 3) % 10 for i in range(THREADS)]  # digits without a pattern that the eye would follow
        played = {order: [asdict(one) for one in rounds(order, values)] for order in ORDERS}
        super().__init__(drawing={"values": values, "lanes": LANES, "orders": played})

    def static_picture(self) -> Image.Image:
        """Return both orders with all their rounds, by matplotlib."""
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle

        figure = Figure(figsize=(10, 6.4), facecolor="white")
        for number, (order, played) in enumerate(self.drawing["orders"].items()):
            axes = figure.add_axes((0.01, 0.52 - 0.5 * number, 0.98, 0.46))
            axes.set(xlim=(-0.3, THREADS + 6.2), ylim=(8.1, -1.3))
            axes.axis("off")
            axes.text(0, -0.75, order.capitalize(), fontsize=11, fontweight="bold", va="center")
            values = [self.drawing["values"], *(one["values"] for one in played)]
            for row, (shown, one, following) in enumerate(zip(values, [None, *played], [*played, None], strict=True)):
                _draw_row(axes, 1.35 * row, shown, one, following)
        for x, colour, edge, words in (
            (9, ADDS, "none", "its thread adds"),
            (15, BUSY, "none", "its warp is busy, the thread is not"),
            (25.3, "white", FOREIGN, "read by another warp"),
        ):
            figure.axes[0].add_patch(Rectangle((x, -1.1), 0.8, 0.6, facecolor=colour, edgecolor=edge, linewidth=1.8))
            figure.axes[0].text(x + 1.1, -0.8, words, fontsize=8.5, va="center", color="#444444")
        return figure_picture(figure)

    def __repr__(self) -> str:
        return f"reduction_stepper({THREADS} threads, {', '.join(ORDERS)})"


def _draw_row(axes, y: float, values: list[int], one: dict | None, following: dict | None) -> None:
    """Draw shared memory after round `one` (None: before the first), with the lines that led there."""
    from matplotlib.patches import Rectangle

    adds = {to for to, _ in one["additions"]} if one else set()
    warps = one["warps"] if one else []
    foreign = following["foreign"] if following else []
    for place, value in enumerate(values):
        mine = place in adds
        face = ADDS if mine else BUSY if place // LANES in warps else RESTS
        edge = FOREIGN if place in foreign else "none"
        axes.add_patch(Rectangle((_x(place) + 0.05, y), 0.9, 0.72, facecolor=face, edgecolor=edge, linewidth=1.8))
        ink = "#111111" if mine or one is None else "#8A8F94"
        axes.text(_x(place) + 0.5, y + 0.38, str(value), fontsize=7, ha="center", va="center", color=ink)
    for to, source in one["additions"] if one else []:
        colour, width = (FOREIGN, 0.9) if source in one["foreign"] else ("#555555", 0.6)
        ends = [_x(source) + 0.5, _x(to) + 0.5]
        axes.plot(ends, [y - 0.6, y - 0.02], color=colour, linewidth=width, zorder=0)
    words = f"{len(warps)} warp{'s' * (len(warps) > 1)} busy" if one else "shared memory"
    axes.text(THREADS + 1.3, y + 0.36, words, fontsize=8.5, va="center")


def _x(place: int) -> float:
    return place + 0.25 * (place // LANES)
