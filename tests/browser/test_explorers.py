"""The roofline, the thread map, the reduction stepper and the variance slider: bare pages, then two in JupyterLab."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from styleforge_lib.lab.machine import Machine
from styleforge_lib.lab.reduction_stepper import reduction_stepper
from styleforge_lib.lab.roofline import Point, roofline
from styleforge_lib.lab.thread_map import cells, covering, thread_map
from styleforge_lib.lab.variance_slider import variance_slider

pytestmark = pytest.mark.browser

# The ridge of float32 lies at 10 FLOP/byte, that of float16 at 100.
MACHINE = Machine("Paper GPU", 1e12, {"float32": 1e13, "float16": 1e14}, "nowhere, 2026-01-01")


def data(page) -> dict:
    return page.locator(".sf-threads").evaluate("e => ({ ...e.dataset })")


def shot(page, name: str) -> None:
    """Store a picture in light and dark, where $STYLEFORGE_SCREENSHOTS says."""
    if folder := os.environ.get("STYLEFORGE_SCREENSHOTS"):
        for theme in ("light", "dark"):
            page.evaluate(f"document.documentElement.dataset.sfTheme = '{theme}'")
            page.wait_for_timeout(100)
            page.screenshot(path=Path(folder) / f"{name}_{theme}.png")


def over(page, canvas: int, column: float, row: float) -> None:
    """Move the mouse over a cell of one of the two panes."""
    node = page.locator(".sf-threads canvas").nth(canvas)
    cell = node.evaluate("c => c.cell * c.getBoundingClientRect().width / c.width")
    box = node.bounding_box()
    page.mouse.move(box["x"] + 1 + (column + 0.5) * cell, box["y"] + 1 + (row + 0.5) * cell)


@pytest.mark.parametrize(
    ("grid", "block", "shape"),
    [(None, (16, 8), (30, 52)), ((2, 1), (8, 8), (17, 9)), ((2,), (128,), (20, 33)), (None, (7,), (3, 90))],
)
def test_the_page_reckons_as_python_does(bare_page, grid, block, shape):
    page = bare_page(thread_map(grid, block, shape))
    table = page.evaluate(
        """async ([grid, block, shape]) => {
          const { geometry } = await import("./widget.js");
          const map = geometry(grid, block, shape);
          const wrong = [];
          const rows = Array.from({ length: map.rows }, (_, r) => Array.from({ length: map.columns }, (_, c) => {
            const { owner, thread, inside } = map.at(r, c);
            const back = owner >= 0 && map.of(owner, thread);
            if (back && (back.row !== r || back.column !== c)) wrong.push([r, c]);
            return [owner, thread, inside];
          }));
          if (wrong.length) throw new Error(`of(at(cell)) is another cell: ${wrong}`);
          return rows;
        }""",
        [grid, block, shape],
    )
    assert np.array_equal(np.array(table), cells(grid or covering(block, shape), block, shape))


def test_hover_and_keys(bare_page):
    page = bare_page(thread_map(None, (16, 8), (30, 52)))
    over(page, 0, 44, 19)
    assert data(page).items() >= {"owner": "10", "thread": "60", "row": "19", "column": "44", "inside": "1"}.items()
    said = page.locator(".sf-says").inner_text()
    assert "block (2, 2), thread (12, 3), number 60 in its block: warp 1, lane 28" in said
    assert "x = 2 * 16 + 12 = 44" in said
    assert "is true" in said
    over(page, 0, 60, 5)
    assert data(page)["inside"] == "0"
    assert "x < 52 && y < 30 is false" in page.locator(".sf-says").inner_text()
    over(page, 1, 3, 2)  # a thread of the block that was chosen: block (3, 0)
    assert data(page).items() >= {"owner": "3", "thread": "35", "row": "2", "column": "51"}.items()
    page.get_by_role("img", name="Picture").press("ArrowDown")
    assert data(page)["row"] == "3"
    page.get_by_role("img", name="Block").press("ArrowLeft")
    assert data(page).items() >= {"row": "3", "column": "50", "thread": "50"}.items()


def test_sliders_move_the_launch(bare_page):
    page = bare_page(thread_map(None, (16, 16), (40, 40)))
    x, y = (page.get_by_role("slider", name=f"blockDim.{axis}") for axis in "xy")
    x.press("ArrowRight")
    assert page.evaluate("model.get('block')") == [17, 16]
    assert "grid (3, 3), block (17, 16)" in page.locator("figcaption").first.inner_text()
    x.press("End")
    y.press("End")
    assert page.evaluate("model.get('block')") == [16, 64], "1024 threads at most: the other side gives way"
    page.get_by_role("slider", name="width").press("Home")
    assert page.evaluate("model.get('shape')") == [40, 1]


def test_colours_follow_the_theme(bare_page):
    page = bare_page(thread_map(None, (8, 8), (20, 20)))
    pixels = []
    for theme in ("light", "dark"):
        page.evaluate(f"document.documentElement.dataset.sfTheme = '{theme}'")
        page.wait_for_timeout(100)
        shot = page.locator(".sf-threads canvas").first.screenshot()
        pixels.append(np.asarray(Image.open(io.BytesIO(shot)).convert("L"))[5:50, 5:50].mean())
    assert pixels[0] > pixels[1] + 40


def test_roofline(bare_page):
    page = bare_page(roofline([Point("ours", 2.0, 1e12), Point("theirs", 50.0, 9e12, "float16")], MACHINE))
    says = page.locator(".sf-says")
    assert says.inner_text().startswith("Your kernel: 1 FLOP/byte, limited by memory: at most 1.00 TFLOP/s")
    page.get_by_role("img", name="ours").locator(".dot").hover()
    assert says.inner_text() == (
        "ours: 1.00 TFLOP/s at 2 FLOP/byte is 50 % of the 2.00 TFLOP/s that memory allows in float32."
    )
    page.mouse.move(5, 5)
    flops = page.get_by_role("slider", name="FLOP an element")
    for _ in range(4):
        flops.press("ArrowRight")  # 8 -> 128 FLOP on 8 bytes: right of the ridge at 10
    assert says.inner_text() == (
        "Your kernel: 16 FLOP/byte, limited by arithmetic: at most 10.0 TFLOP/s of 10.0 TFLOP/s, "
        "so at least 410 µs for 32 million elements."
    )
    page.get_by_label("Precision").select_option("float16")
    assert "limited by memory: at most 16.0 TFLOP/s of 100 TFLOP/s, so at least 256 µs" in says.inner_text()
    page.get_by_role("img", name="theirs").focus()
    assert says.inner_text().startswith("theirs: 9.00 TFLOP/s at 50 FLOP/byte is 18 %")
    page.evaluate("cleanup()")
    assert page.evaluate("Object.values(listeners).flat().length") == 0


def test_reduction_stepper(bare_page):
    page = bare_page(reduction_stepper())
    says, cells_of = page.locator(".sf-says"), lambda kind: page.locator(f".sf-reduction .cell.{kind}").count()
    assert says.inner_text().startswith("Round 1: 16 threads add the number 1 to the right; 4 of 4 warps are busy")
    assert cells_of("adds") == 16
    page.get_by_role("button", name="halves first").click()
    assert says.inner_text().startswith("Round 1: 16 threads add the number 16 to the right; 2 of 4 warps are busy")
    assert page.locator(".sf-reduction line.foreign").count() == 16
    for _ in range(4):
        page.get_by_role("slider", name="round").press("ArrowRight")
    assert page.evaluate("[model.get('order'), model.get('step')]") == ["halves first", 5]
    total = sum(page.evaluate("model.get('drawing').values"))
    assert says.inner_text().endswith(f"The sum is {total}.")
    assert cells_of("adds") == 16 + 8 + 4 + 2 + 1
    shot(page, "reduction_stepper")
    for _ in range(5):
        page.get_by_role("slider", name="round").press("ArrowLeft")
    assert says.inner_text() == "Each thread has laid its own number into shared memory."
    page.evaluate("cleanup()")
    assert page.evaluate("Object.values(listeners).flat().length") == 0


def test_variance_slider(bare_page):
    page = bare_page(variance_slider())
    says = page.locator(".sf-says")
    assert says.inner_text().endswith("The variance is 0.25: nothing of it is left.")
    assert page.locator(".sf-variance .bit.lost").count() == 1
    shot(page, "variance_slider")
    page.get_by_role("slider", name="mean").press("ArrowLeft")
    assert says.inner_text().endswith("The variance is 0.25: of its bits, 3 can be kept.")
    assert page.locator(".sf-variance .bit.found").count() == 1
    assert page.get_by_role("slider", name="mean").get_attribute("aria-valuetext") == "1000"
    page.evaluate("cleanup()")
    assert page.evaluate("Object.values(listeners).flat().length") == 0


def test_in_jupyterlab(open_notebook):
    notebook = open_notebook(
        [
            "from styleforge_lib.lab.thread_map import thread_map\n"
            "launch = thread_map(None, (16, 8), (30, 52))\nlaunch",
            "from styleforge_lib.lab.machine import Machine\nfrom styleforge_lib.lab.roofline import Point, roofline\n"
            "gpu = Machine('Paper GPU', 1e12, {'float32': 1e13}, 'nowhere')\nroofline([Point('ours', 2.0, 1e12)], gpu)",
        ],
        name="explorers.ipynb",
    )
    page = notebook.page
    notebook.run_all(60)
    page.wait_for_selector(".sf-roofline svg")
    slider = page.get_by_role("slider", name="blockDim.x")
    slider.press("ArrowRight")
    slider.press("ArrowDown")
    slider.press("ArrowRight")
    page.wait_for_timeout(300)
    assert notebook.kernel("launch.block") == "[17, 8]"
    page.evaluate("window.jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Dark' })")
    page.wait_for_selector("body[data-jp-theme-light=false]", state="attached")
    notebook.shoot("explorers")
