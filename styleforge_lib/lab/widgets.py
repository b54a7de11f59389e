"""What every widget of the course shares: a static picture beside the live view, one theme, one set of helpers.

A widget is alive while its kernel is. On GitHub, in a notebook reopened tomorrow, or in a PDF, only what stands in the
file can be shown: so each widget also draws itself as a picture, which travels in the same output.

Contents
    LabWidget        base class: subclasses give `_esm`, `_css` and `static_picture()`
    asset            joins a widget's JavaScript or CSS with the shared part
    encode_picture   PNG, or JPEG where that is smaller, within a budget
    figure_picture   a matplotlib figure as a picture
    label_font       the font for words in static pictures
"""

from __future__ import annotations

import base64
import functools
import io
from pathlib import Path

import anywidget
from PIL import Image, ImageFont

HERE = Path(__file__).parent
STATIC_BUDGET = 185_000  # bytes: 250 kB as base64 in a stored notebook, about what a dense matplotlib figure takes


class LabWidget(anywidget.AnyWidget):
    """A widget that shows a static picture where it is dead.

    Subclasses set `_esm` and `_css` with `asset`, and implement `static_picture`.
    """

    # ipywidgets 7 (Colab) displays by this method and would leave the picture out; without it IPython takes the bundle.
    _ipython_display_ = None

    def static_picture(self) -> Image.Image:
        """Return the picture (RGB) that stands for the widget where it cannot live, about 1000 pixels wide."""
        raise NotImplementedError

    def _repr_mimebundle_(self, **kwargs: object) -> tuple[dict, dict] | None:
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is None:
            return None
        data, metadata = bundle
        encoded, mime = self._static_bytes()
        return {**data, mime: base64.b64encode(encoded).decode("ascii")}, metadata

    def _static_bytes(self) -> tuple[bytes, str]:
        return encode_picture(self.static_picture(), STATIC_BUDGET)


def asset(*names: str) -> str:
    """Return the text of the named files of this folder, one after the other (there is no bundler)."""
    return "\n".join((HERE / name).read_text(encoding="utf-8") for name in names)


def encode_picture(picture: Image.Image, budget: int) -> tuple[bytes, str]:
    """Encode a picture and return its bytes and MIME type.

    PNG, which is exact, if it fits in `budget` bytes; otherwise JPEG without chroma subsampling, at quality 92, lowered
    until it fits (not below 40, where the blocks would show more than the picture).
    """
    # A large photograph's PNG would take seconds to make, and be over any budget.
    if picture.width * picture.height <= max(1_200_000, budget):
        png = _encoded(picture, "PNG")
        if len(png) <= budget:
            return png, "image/png"
    rgb = picture.convert("RGB")
    for quality in (92, 86, 78, 68, 56, 40):
        # Without optimize=True: Pillow reserves a byte a pixel for it, which a noisy picture outgrows.
        jpeg = _encoded(rgb, "JPEG", quality=quality, subsampling=0)
        if len(jpeg) <= budget:
            break
    return jpeg, "image/jpeg"


def figure_picture(figure) -> Image.Image:
    """Return a matplotlib figure as an RGB picture at 144 dots per inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, facecolor="white", bbox_inches="tight", pad_inches=0.08)
    return Image.open(buffer).convert("RGB")


@functools.lru_cache
def label_font(size: int) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which matplotlib carries on every machine, at `size` pixels."""
    from matplotlib import font_manager

    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)


def _encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()
