"""The style picker: uploads as ipywidgets 7 (Colab) and 8 hand them over, and what happens when something is chosen."""

import io
from datetime import UTC, datetime

import ipywidgets
import numpy as np
import pytest
from PIL import Image

from styleforge_lib.lab import studio as show_studio
from styleforge_lib.lab.studio import _uploaded
from styleforge_lib.models.checkpoints import list_styles
from styleforge_lib.pictures import PictureError

GLOBALS = show_studio.__globals__


def png(picture):
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def as_7(name, content):
    return {name: {"metadata": {"name": name, "type": "image/png", "size": len(content)}, "content": content}}


def as_8(name, content):
    described = {"name": name, "type": "image/png", "size": len(content), "last_modified": datetime.now(UTC)}
    return ({**described, "content": memoryview(content)},)


HERE = as_8 if ipywidgets.__version__ >= "8" else as_7
BOTH = pytest.mark.parametrize("upload", [as_7, as_8], ids=["ipywidgets 7", "ipywidgets 8"])
RAMP = Image.fromarray(np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3))


# ---- uploads -------------------------------------------------------------------------------------------------------


@BOTH
def test_an_upload_is_the_picture(upload):
    found = _uploaded(upload("my cat.png", png(RAMP)))
    assert found["name"] == "my cat.png"
    assert (found["picture"].mode, found["picture"].tobytes()) == ("RGB", RAMP.tobytes())


@BOTH
def test_transparent_pixels_lie_on_white(upload):
    clear = Image.new("RGBA", (3, 2), (10, 20, 30, 0))
    picture = _uploaded(upload("clear.png", png(clear)))["picture"]
    assert (picture.mode, picture.getcolors()) == ("RGB", [(6, (255, 255, 255))])


FAULTY = {
    "no picture": (b"Dear diary", "is no picture"),
    "empty": (b"", "is no picture"),
    "truncated": (png(Image.effect_noise((64, 64), 50))[:-200], "truncated"),
    # Pillow would hand it to Ghostscript, which runs what it says.
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n", "is no picture"),
}


@BOTH
@pytest.mark.parametrize(("content", "why"), FAULTY.values(), ids=FAULTY)
def test_what_cannot_be_painted_is_said_in_one_line(upload, content, why):
    with pytest.raises(PictureError, match=why) as refused:
        _uploaded(upload("holiday\n.png", content))
    assert len(str(refused.value).splitlines()) == 1
    assert "holiday" in str(refused.value)


def test_a_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(PictureError, match="more than 0 million pixels: make it smaller"):
        _uploaded(as_8("bomb.png", png(RAMP)))


# ---- the studio ----------------------------------------------------------------------------------------------------


@pytest.fixture
def studio(monkeypatch):
    """Show the studio with the display and the network stood in; return its choosers and what it painted."""
    shown, painted = [], []

    def stylize(picture, style):
        painted.append((picture.copy(), style))
        return picture

    monkeypatch.setitem(GLOBALS, "display", shown.append)
    monkeypatch.setitem(GLOBALS, "stylize", stylize)
    monkeypatch.setitem(GLOBALS, "compare", lambda a, b, labels: labels)
    show_studio()
    box = next(widget for widget in shown if isinstance(widget, ipywidgets.VBox))
    photo, style, own = box.children[0].children
    return photo, style, own, shown, painted


def test_it_paints_at_once_and_at_each_choice(studio):
    photo, style, _, shown, painted = studio
    assert style.options == tuple(list_styles())
    assert shown[-1] == ("chelsea", list_styles()[0])
    photo.value = "rocket"
    style.value = list_styles()[-1]
    assert shown[-2:] == [("rocket", list_styles()[0]), ("rocket", list_styles()[-1])]
    assert len(painted) == 3
    assert all(max(picture.size) <= 512 for picture, _ in painted)


def test_ones_own_photo_is_painted_and_keeps_its_style(studio):
    _, style, own, shown, painted = studio
    style.value = list_styles()[1]
    own.value = HERE("mine.png", png(RAMP))
    assert shown[-1] == ("mine.png", list_styles()[1])
    assert painted[-1][0].tobytes() == RAMP.tobytes()


def test_after_a_faulty_upload_the_picture_stays(studio, capsys):
    _, style, own, shown, _ = studio
    before = len(shown)
    own.value = HERE("diary.png", b"Dear diary")
    assert len(shown) == before
    assert "'diary.png' is no picture" in capsys.readouterr().out
    style.value = list_styles()[1]
    assert shown[-1] == ("chelsea", list_styles()[1])
