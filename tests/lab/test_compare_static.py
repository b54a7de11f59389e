"""compare(a, b) without a browser: what it takes, its figures, its static picture."""

import base64
import io
import math

import numpy as np
import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from styleforge_lib.lab.compare import compare, subtract
from styleforge_lib.lab.widgets import encode_picture

VIEW = "application/vnd.jupyter.widget-view+json"


@pytest.fixture
def noise():
    """Two photographs of nothing, 640 x 400: the hardest to encode."""
    a, b = np.random.default_rng(1).integers(0, 256, (2, 400, 640, 3), np.uint8)
    return a, b


def decode(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def test_every_kind_of_picture_is_the_same_picture(tmp_path, noise):
    pixels = noise[0][:40, :30]
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    chw = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    for other in (path, str(path), Image.fromarray(pixels), chw, chw[None].float(), pixels / 255.0):
        assert compare(pixels, other).figures["maximum"] == 0


@pytest.mark.parametrize(
    ("b", "said"),
    [
        (np.zeros((3, 5, 3), np.uint8), "4 x 3 and 5 x 3 pixels"),
        (np.zeros((3, 4, 7), np.uint8), r"^b: .*\(3, 4, 7\)"),
        (np.full((3, 4, 3), np.nan), "^b: .*nan"),
        ("/no/such/picture.png", "^b: .*picture.png"),
    ],
)
def test_one_clear_error(b, said):
    with pytest.raises(ValueError, match=said):
        compare(np.zeros((3, 4, 3), np.uint8), b)


def test_labels_are_two():
    a = np.zeros((3, 4, 3), np.uint8)
    for labels in ("ab", ("one",), ("a", "b", "c")):
        with pytest.raises(ValueError, match=r"^labels: two names"):
            compare(a, a, labels=labels)


def test_figures_are_the_exact_pixels(noise):
    """Also where the widget's own copies are JPEGs."""
    a, b = noise
    widget = compare(a, b)
    absolute = np.abs(a.astype(float) - b)
    assert widget.figures["mean"] == pytest.approx(absolute.mean(), rel=1e-12)
    assert widget.figures["maximum"] == absolute.max()
    assert widget.figures["psnr"] == pytest.approx(peak_signal_noise_ratio(a, b, data_range=255), rel=1e-12)
    widget.mode = "difference"
    assert np.array_equal(decode(widget.difference), absolute.astype(np.uint8))


def test_equal_pictures_have_no_psnr(noise):
    _, figures = subtract(Image.fromarray(noise[0]), Image.fromarray(noise[0]))
    assert figures == {"mean": 0.0, "maximum": 0, "psnr": None}


def test_the_difference_travels_when_it_is_looked_at(noise):
    widget = compare(*noise)
    assert widget.difference == b""
    widget.mode = "difference"
    assert widget.difference


def test_small_pictures_travel_exactly(noise):
    a, b = noise[0][:200, :300], noise[1][:200, :300]
    widget = compare(a, b)
    assert np.array_equal(decode(widget.a), a)
    assert np.array_equal(decode(widget.b), b)


def test_a_static_picture_stands_beside_the_view(noise):
    widget = compare(*noise, labels=("eager", "fused – ours"))
    data, _ = DisplayFormatter().format(widget)
    assert data[VIEW]["model_id"] == widget.model_id
    assert data["text/plain"] == "compare(eager | fused – ours, 640 x 400)"
    (mime,) = (m for m in data if m.startswith("image/"))
    assert len(data[mime]) <= 250_000
    sheet = decode(base64.b64decode(data[mime]))
    assert sheet.width <= 1000
    assert sheet.height <= 480


def test_the_static_picture_shows_a_left_and_b_right():
    red, blue = Image.new("RGB", (80, 60), (250, 0, 0)), Image.new("RGB", (80, 60), (0, 0, 250))
    sheet = compare(red, blue).static_picture()
    assert sheet.getpixel((5, sheet.height - 5)) == (250, 0, 0)
    assert sheet.getpixel((sheet.width - 5, sheet.height - 5)) == (0, 0, 250)
    assert sheet.width > 800, "small pictures are enlarged"


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (7, 5)])
def test_odd_shapes(size):
    picture = Image.new("RGB", size)
    assert min(compare(picture, picture).static_picture().size) >= 1


def test_encoding_is_exact_where_it_fits_and_small_where_not(noise):
    picture = Image.fromarray(noise[0])
    encoded, mime = encode_picture(picture, math.inf)
    assert mime == "image/png"
    assert np.array_equal(decode(encoded), noise[0])
    encoded, mime = encode_picture(picture, 300_000)
    assert mime == "image/jpeg"
    assert len(encoded) <= 300_000


def test_the_state_is_what_the_page_expects(noise):
    widget = compare(*noise)
    assert (widget.size, widget.labels, widget.mode, widget.wipe) == ([640, 400], ["before", "after"], "wipe", 50.0)
    with pytest.raises(Exception, match="mode"):
        widget.mode = "sideways"
