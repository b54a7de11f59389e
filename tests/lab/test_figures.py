"""The figures that can go wrong without looking wrong to a program: labels upon each other, values left out."""

import itertools

from matplotlib.text import Text

from styleforge_lib.lab.figures import draw_curves, draw_error_and_time, draw_idle
from styleforge_lib.lab.records import Measurement


def row(version, ms, error):
    return Measurement(operator="o", version=version, shape="1", dtype="float32", median_ms=ms, p20_ms=ms, p80_ms=ms,
                       rel_error=error)  # fmt: skip


def test_labels_of_neighbouring_points_do_not_overlap():
    rows = [row(f"version number {i}", 0.1 + 0.004 * i, 1e-7) for i in range(5)] + [row("far away", 2.0, 100.0)]
    figure = draw_error_and_time([*rows, row("knows no error", 1.0, None)], title="t")
    figure.draw_without_rendering()
    (panel,) = figure.axes
    boxes = {text.get_text(): Text.get_window_extent(text).padded(-1) for text in panel.texts}
    assert set(boxes) == {one.version for one in rows}
    assert not [pair for pair in itertools.combinations(boxes, 2) if boxes[pair[0]].overlaps(boxes[pair[1]])]


def test_curves_leave_out_what_a_logarithm_has_no_place_for():
    curves = {"a": [1.0, 0.0, float("nan"), 4.0], "line": [2.0]}
    (panel,) = draw_curves([1, 2, 3, 4], curves, title="t", across="x", up="y").axes
    drawn, line = panel.lines
    assert drawn.get_xydata().tolist() == [[1, 1], [4, 4]]
    assert list(line.get_ydata()) == [2, 2]


def test_blocks_are_dealt_out_to_multiprocessors():
    figure = draw_idle({"few": 3, "many": 9}, multiprocessors=4)
    few, many = ([text.get_text() for text in panel.texts] for panel in figure.axes)
    assert few == ["1", "1", "1"]
    assert many == ["3", "2", "2", "2"]
    assert [panel.get_title() for panel in figure.axes] == ["", ""]  # they stand on the left
    assert figure.axes[0].get_title(loc="left") == "few: 3 of 4 multiprocessors"
