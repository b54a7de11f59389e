"""`compare(a, b)`: two pictures of one size under one lens.

A wipe by mouse, finger or arrow keys; both side by side; their difference, amplified, with its figures; zoom and pan in
step. Where the widget is dead, both pictures stand side by side.

Contents
    compare            the function that the notebooks call
    CompareWidget      the widget behind it
    subtract           |a - b| of two pictures, and its figures
    as_picture         what may be given for a picture -> an RGB picture
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import traitlets
from PIL import Image, ImageDraw, ImageOps

from styleforge_lib.lab.widgets import LabWidget, asset, encode_picture, label_font

# The widget's copy of a picture travels through the notebook's connection. A megabyte holds 700 x 700 pixels of a
# photograph exactly; what is larger goes as a JPEG of high quality. The difference comes from the exact pixels always.
PICTURE_BUDGET = 1_000_000
STATIC_HEIGHT, STATIC_WIDTH, GAP = 480, 1000, 4  # pixels of the static picture: at most, and between the two
MODES = ("wipe", "side", "difference")


def compare(a, b, *, labels: tuple[str, str] = ("before", "after")) -> CompareWidget:
    """Show two pictures of one size: wipe between them, look at their difference, zoom into both.

    a, b     PIL images, paths, NumPy arrays (H, W), (H, W, 3) or torch tensors (3, H, W), (1, 3, H, W); values 0..255
    labels   what to call them

    Raises `ValueError` if the sizes differ or an argument is no picture.
    """
    if isinstance(labels, str) or len(labels) != 2:
        raise ValueError(f"labels: two names are needed, one for each picture; got {labels!r}.")
    picture_a, picture_b = as_picture(a, "a"), as_picture(b, "b")
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


def as_picture(value, name: str = "value") -> Image.Image:
    """Return an RGB picture from what `compare` takes; `name` is the argument that an error speaks of.

    Alpha is laid on white; EXIF rotation is applied; floats are rounded and clipped to 0..255.
    """
    if isinstance(value, str | Path):
        try:
            value = Image.open(value)
        except OSError as error:
            raise ValueError(f"{name}: {value} cannot be read as a picture ({error}).") from error
    if isinstance(value, Image.Image):
        upright = ImageOps.exif_transpose(value)
        if upright.has_transparency_data:
            layer = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        return upright.convert("RGB")
    if hasattr(value, "detach"):  # a torch tensor, wherever it is and whatever it remembers
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).numpy()
        if value.ndim == 4 and len(value) == 1:
            value = value[0]
        if value.ndim == 3:
            value = value.transpose(1, 2, 0)
    return Image.fromarray(_bytes(np.asarray(value), name)).convert("RGB")


def _bytes(array: np.ndarray, name: str) -> np.ndarray:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if (
        array.size == 0
        or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3))
        or array.dtype.kind not in "uif"
    ):
        raise ValueError(
            f"{name} is no picture: {array.dtype} of shape {array.shape}. Give a PIL image, a path, an array "
            "(H, W, 3) or (H, W), or a tensor (3, H, W) or (1, 3, H, W)."
        )
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise ValueError(f"{name} contains NaN or infinity in {int((~np.isfinite(array)).sum())} places.")
        if 0 < array.max() <= 1:
            raise ValueError(f"{name} has no value above 1: pictures are 0..255 here. Multiply by 255 first.")
    return np.clip(np.rint(array), 0, 255).astype(np.uint8)


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
