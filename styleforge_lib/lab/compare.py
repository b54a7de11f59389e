"""`compare(a, b)`: two pictures of one size under one lens.

A wipe by mouse, finger or arrow keys; both side by side; their difference, amplified, with its figures; zoom and pan in
step. Where the widget is dead, both pictures stand side by side.

Contents
    compare            the function that the notebooks call
    CompareWidget      the widget behind it
    subtract           |a - b| of two pictures, and its figures
"""

from __future__ import annotations

import math

import numpy as np
import traitlets
from PIL import Image, ImageDraw

from styleforge_lib.lab.widgets import LabWidget, asset, encode_picture, label_font
from styleforge_lib.painter import picture_of
from styleforge_lib.pictures import PictureError, on_white

# The widget's copy of a picture travels through the notebook's connection. A megabyte holds 700 x 700 pixels of a
# photograph exactly; what is larger goes as a JPEG of high quality. The difference comes from the exact pixels always.
PICTURE_BUDGET = 1_000_000
STATIC_HEIGHT, STATIC_WIDTH, GAP = 480, 1000, 4  # pixels of the static picture: at most, and between the two
MODES = ("wipe", "side", "difference")


def compare(a, b, *, labels: tuple[str, str] = ("before", "after")) -> CompareWidget:
    """Show two pictures of one size: wipe between them, look at their difference, zoom into both.

    a, b     what `stylize` takes for a picture: paths, PIL images, arrays (H, W, 3) of uint8 or of floats in 0..1, or
             tensors (3, H, W) or (1, 3, H, W) of 0..255. Transparent parts are laid on white.
    labels   what to call them

    Raises `ValueError` (`PictureError`) if the sizes differ or an argument is no picture.
    """
    if isinstance(labels, str) or len(labels) != 2:
        raise ValueError(f"labels: two names are needed, one for each picture; got {labels!r}.")
    picture_a, picture_b = _read(a, "a"), _read(b, "b")
    if picture_a.size != picture_b.size:
        sizes = " and ".join(f"{p.width} x {p.height}" for p in (picture_a, picture_b))
        raise ValueError(
            f"a and b must have the same size to be compared; they are {sizes} pixels. Resize one of them."
        )
    return CompareWidget(picture_a, picture_b, tuple(str(label) for label in labels))


def subtract(a: Image.Image, b: Image.Image) -> tuple[Image.Image, dict]:
    """Return |a - b| of two RGB pictures as a picture, and its figures over all pixels and channels.

    The figures: `mean` and `maximum` in steps of 0..255, and `psnr` in dB against a peak of 255 (None if a equals b).
    """
    absolute = np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).astype(np.uint8)
    squared = float(np.mean(np.square(absolute, dtype=np.float64)))
    figures = {
        "mean": float(absolute.mean(dtype=np.float64)),
        "maximum": int(absolute.max()),
        "psnr": 10 * math.log10(255**2 / squared) if squared else None,
    }
    return Image.fromarray(absolute), figures


def _read(value, name: str) -> Image.Image:
    """Return an RGB picture, transparent parts on white; `name` is the argument that an error speaks of."""
    try:
        return on_white(picture_of(value))
    except (PictureError, TypeError) as error:
        raise type(error)(f"{name}: {error}") from error


class CompareWidget(LabWidget):
    """The widget of `compare`. `mode`, `wipe` and `gain` may be set from Python too."""

    _esm = asset("widgets.js", "compare.js")
    _css = asset("widgets.css", "compare.css")

    a = traitlets.Bytes().tag(sync=True)
    b = traitlets.Bytes().tag(sync=True)
    difference = traitlets.Bytes().tag(sync=True)  # a PNG, filled when somebody first looks at it: it may be large
    size = traitlets.List(traitlets.Int()).tag(sync=True)
    labels = traitlets.List(traitlets.Unicode()).tag(sync=True)
    figures = traitlets.Dict().tag(sync=True)
    mode = traitlets.Enum(MODES, "wipe").tag(sync=True)
    wipe = traitlets.Float(50.0, min=0, max=100).tag(sync=True)  # percent of the width that shows `a`
    gain = traitlets.Float(8.0, min=1, max=64).tag(sync=True)  # factor of the difference view

    def __init__(self, a: Image.Image, b: Image.Image, labels: tuple[str, str]):
        self._pictures = a, b
        self._difference, figures = subtract(a, b)
        super().__init__(
            a=encode_picture(a, PICTURE_BUDGET)[0],
            b=encode_picture(b, PICTURE_BUDGET)[0],
            size=list(a.size),
            labels=list(labels),
            figures=figures,
        )

    @traitlets.observe("mode")
    def _send_difference(self, change: dict) -> None:
        if change["new"] == "difference" and not self.difference:
            # PNG whatever its size: a JPEG's artefacts, amplified, would look like a difference.
            self.difference = encode_picture(self._difference, math.inf)[0]

    def static_picture(self) -> Image.Image:
        """Return both pictures side by side, with their labels."""
        width, height = self._pictures[0].size
        scale = min((STATIC_WIDTH - GAP) / 2 / width, STATIC_HEIGHT / height)
        # Small pictures keep their pixels: enlarged by whole factors, without smoothing.
        scale = max(1, math.floor(scale)) if scale >= 1 else scale
        shown = max(1, round(width * scale)), max(1, round(height * scale))
        method = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
        sheet = Image.new("RGB", (2 * shown[0] + GAP, shown[1]), (128, 128, 128))
        for i, (picture, label) in enumerate(zip(self._pictures, self.labels, strict=True)):
            left = i * (shown[0] + GAP)
            sheet.paste(picture.resize(shown, method), (left, 0))
            _write_label(sheet, label, left, shown[0])
        return sheet

    def __repr__(self) -> str:
        return f"compare({' | '.join(self.labels)}, {' x '.join(map(str, self.size))})"


def _write_label(sheet: Image.Image, label: str, left: int, width: int) -> None:
    """Write a label on a dark plate in the upper left corner of a picture, if there is room for it."""
    font = label_font(15)
    draw = ImageDraw.Draw(sheet, "RGBA")
    length = draw.textlength(label, font)
    if length + 26 > width or sheet.height < 60:
        return
    draw.rounded_rectangle((left + 8, 8, left + 24 + length, 34), radius=4, fill=(0, 0, 0, 170))
    draw.text((left + 16, 21), label, font=font, fill="white", anchor="lm")
