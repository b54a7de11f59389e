"""roofline(points): the arithmetic of the model, the layout, the static picture."""

import math

import pytest

from styleforge_lib.lab.machine import Machine
from styleforge_lib.lab.records import Measurement
from styleforge_lib.lab.roofline import HEIGHT, LEFT, RIGHT, WIDTH, Point, layout, quantity, roofline

# A machine that can be reckoned with by heart: the ridge lies at 10 FLOP/byte for float32, at 100 for float16.
MACHINE = Machine("Paper GPU", 1e12, {"float32": 1e13, "float16": 1e14}, "nowhere, 2026-01-01")


@pytest.mark.parametrize(
    ("value", "text"),
    [(4.24e12, "4.24 TB/s"), (662e12, "662 TB/s"), (51e12, "51.0 TB/s"), (999.9e9, "1.00 TB/s"), (1.5, "1.50 B/s")],
)
def test_quantity(value, text):
    assert quantity(value, "B/s") == text


@pytest.mark.parametrize(
    ("point", "said"),
    [
        (Point("a", 2.0, 1e12), "50 % of the 2.00 TFLOP/s that memory allows in float32"),
        (Point("b", 50, 5e12), "50 % of the 10.0 TFLOP/s that arithmetic allows in float32"),
        (Point("c", 50, 5e12, "float16"), "10 % of the 50.0 TFLOP/s that memory allows in float16"),
    ],
)
def test_share_of_the_roof(point, said):
    rate = quantity(point.rate, "FLOP/s")
    words = layout([point], MACHINE)["points"][0]["words"]
    assert words == f"{point.label}: {rate} at {point.intensity:.3g} FLOP/byte is {said}"


def test_the_slope_meets_each_roof_at_its_ridge():
    memory, *roofs = layout([], MACHINE)["lines"]
    (x0, x1), (y0, y1) = memory["x"], memory["y"]
    for roof in roofs:
        along = (roof["x"][0] - x0) / (x1 - x0)
        assert y0 + along * (y1 - y0) == pytest.approx(roof["y"][0], abs=1e-6)


def test_a_point_on_the_roof_lies_on_the_line():
    drawing = layout([Point("p", 1.0, 1e12)], MACHINE)
    (x0, x1), (y0, y1) = drawing["lines"][0]["x"], drawing["lines"][0]["y"]
    x, y = drawing["points"][0]["at"]
    assert y0 + (x - x0) / (x1 - x0) * (y1 - y0) == pytest.approx(y, abs=1e-6)


def test_everything_is_inside_and_labels_do_not_overlap():
    points = [Point(f"kernel {i}", 10 ** (i % 4 - 1.5), 10 ** (10 + i / 3)) for i in range(9)]
    drawing = layout(points, MACHINE)
    from styleforge_lib.lab.roofline import FONT, label_font

    boxes = []
    for point in drawing["points"]:
        x, y = point["text_at"]
        length = label_font(FONT).getlength(point["label"])
        left = x if point["anchor"] == "left" else x - length
        assert left >= LEFT
        assert left + length <= WIDTH - RIGHT
        assert 0 < y < HEIGHT
        assert not any(left < b[1] and b[0] < left + length and abs(y - b[2]) < 12 for b in boxes)
        boxes.append((left, left + length, y))


def test_rows_of_the_records_are_points():
    row = Measurement(operator="instance_norm", version="eager", shape="1x32x64x64", dtype="float32", median_ms=2.0,
                      p20_ms=2.0, p80_ms=2.0, bytes=1000, flops=5000)  # fmt: skip
    assert Point.of(row) == Point("instance norm, eager", 5.0, 2.5e6, "float32")


@pytest.mark.parametrize(
    "point",
    [Point("p", 0, 1), Point("p", 1, -1), Point("p", math.nan, 1), Point("p", 1, math.inf), Point("p", 1, 1, "int8")],
)
def test_one_clear_error(point):
    with pytest.raises(ValueError, match=r"^points: p"):
        roofline([point], MACHINE)


def test_a_static_picture_stands_beside_the_view():
    widget = roofline([Point("a kernel", 2.0, 1e12)], MACHINE)
    data, _ = widget._repr_mimebundle_()
    assert len(data["image/png"]) < 250_000
    assert repr(widget) == "roofline(1 kernels, Paper GPU)"
