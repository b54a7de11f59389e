"""compare(a, b) in a real browser: the JavaScript in a bare page, then the whole of it in JupyterLab."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from styleforge_lib.lab.compare import compare

pytestmark = pytest.mark.browser

RED, BLUE = (200, 30, 30), (30, 60, 200)


@pytest.fixture
def red_and_blue():
    return Image.new("RGB", (300, 200), RED), Image.new("RGB", (300, 200), BLUE)


@pytest.fixture
def checks():
    """Two checkerboards of single pixels that differ by 4 in one quadrant."""
    a = np.kron(np.indices((20, 30)).sum(0) % 2, np.ones((10, 10)))[..., None] * [200, 180, 90] + 20
    b = a.copy()
    b[:100, :150] += 4
    return a.astype(np.uint8), b.astype(np.uint8)


def stage_pixels(page) -> np.ndarray:
    """Return the stage as it is on the screen."""
    return np.asarray(Image.open(io.BytesIO(page.locator(".sf-stage").screenshot())).convert("RGB"))


def value(page) -> int:
    return int(page.get_by_role("slider", name="Wipe").get_attribute("aria-valuenow"))


def lens(page) -> dict:
    return page.locator(".sf-compare").evaluate(
        "e => Object.fromEntries([...e.querySelectorAll('.sf-pane img')].map("
        "i => [i.alt, [i.style.width, i.style.left, i.style.top].join(' ')]))"
    )


def zoom(page) -> float:
    return float(page.locator(".sf-compare").get_attribute("data-zoom"))


def at(page, x: float, y: float = 0.25) -> tuple[float, float]:
    """Return the page's coordinates of a point of the stage, 0..1."""
    box = page.locator(".sf-stage").bounding_box()
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def test_wipe_by_mouse(bare_page, red_and_blue):
    page = bare_page(compare(*red_and_blue))
    page.mouse.move(*at(page, 0.5))
    page.mouse.down()
    page.mouse.move(*at(page, 0.6))
    page.mouse.move(*at(page, 0.8))
    assert value(page) == 80
    assert page.evaluate("model.saved") == 0, "the kernel hears of a drag once, at its end"
    page.mouse.move(*at(page, 1.7))  # the pointer is captured: out of the stage is its edge
    assert value(page) == 100
    page.mouse.move(*at(page, 0.25))
    page.mouse.up()
    assert page.evaluate("model.saved") == 1
    page.mouse.move(*at(page, 0.9))
    assert value(page) == 25, "the button is up"
    pixels = stage_pixels(page)
    height, width, _ = pixels.shape
    assert np.abs(pixels[height // 4, int(0.20 * width)] - np.array(RED)).max() <= 2
    assert np.abs(pixels[height // 4, int(0.30 * width)] - np.array(BLUE)).max() <= 2


def test_wipe_by_touch(bare_page, red_and_blue):
    page = bare_page(compare(*red_and_blue), has_touch=True)
    page.touchscreen.tap(*at(page, 0.3))
    assert value(page) == 30


def test_wipe_by_keys(bare_page, red_and_blue):
    page = bare_page(compare(*red_and_blue))
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    handle = page.get_by_role("slider", name="Wipe")
    assert handle.evaluate("e => e === document.activeElement")
    ring = page.locator(".sf-knob").evaluate("e => getComputedStyle(e).outlineStyle + getComputedStyle(e).outlineWidth")
    assert ring == "solid3px", "the focus is seen"
    seen = []
    for key in (
        "ArrowRight",
        "ArrowLeft",
        "ArrowLeft",
        "Shift+ArrowRight",
        "PageUp",
        "End",
        "ArrowUp",
        "Home",
        "PageDown",
    ):
        handle.press(key)
        seen.append(value(page))
    assert seen == [51, 50, 49, 59, 69, 100, 100, 0, 0]
    assert handle.get_attribute("aria-valuetext") == "0 % before, 100 % after"


def test_zoom_keeps_both_in_step(bare_page, checks):
    page = bare_page(compare(*checks))
    anchor = at(page, 0.25, 0.75)
    page.mouse.move(*anchor)
    page.mouse.wheel(0, -200)
    assert zoom(page) == 1, "the bare wheel belongs to the page"
    page.keyboard.down("Control")
    page.mouse.wheel(0, -60)
    page.keyboard.up("Control")
    page.wait_for_function("document.querySelector('.sf-compare').dataset.zoom > 1")
    placed = lens(page)
    assert placed["before"] == placed["after"]
    picture = page.get_by_alt_text("before", exact=True)
    box = picture.bounding_box()
    # The point under the pointer stays there.
    assert (anchor[0] - box["x"]) / box["width"] == pytest.approx(0.25, abs=0.005)
    assert (anchor[1] - box["y"]) / box["height"] == pytest.approx(0.75, abs=0.005)
    page.mouse.down()  # zoomed in, a drag moves the pictures and leaves the wipe
    page.mouse.move(anchor[0] + 40, anchor[1] - 30)
    page.mouse.up()
    moved = picture.bounding_box()
    assert moved["x"] - box["x"] == pytest.approx(40, abs=1)
    assert moved["y"] - box["y"] == pytest.approx(-30, abs=1)
    assert value(page) == 50
    placed = lens(page)
    assert placed["before"] == placed["after"]
    page.mouse.move(*at(page, 0.5, 0.5))  # ... and the handle still wipes
    page.mouse.down()
    page.mouse.move(*at(page, 0.7, 0.5))
    page.mouse.up()
    assert value(page) == 70


def test_zoom_by_buttons_and_keys(bare_page, checks):
    page = bare_page(compare(*checks))
    page.get_by_role("button", name="Zoom in").click()
    assert zoom(page) == 1.5
    stage = page.get_by_role("group", name="before and after")
    stage.press("+")
    assert zoom(page) == 2.25
    before = lens(page)["after"]
    stage.press("ArrowRight")
    assert lens(page)["after"] != before
    for _ in range(99):
        stage.press("ArrowRight")
    box, frame = page.get_by_alt_text("after", exact=True).bounding_box(), stage.bounding_box()
    assert box["x"] + box["width"] == pytest.approx(frame["x"] + frame["width"], abs=1), "the lens stays on the picture"
    stage.press("-")
    stage.press("0")
    assert zoom(page) == 1
    for _ in range(40):
        stage.press("+")
    assert 8 <= zoom(page) < 64
    assert page.locator(".sf-compare").get_attribute("data-pixels") == "true"
    page.get_by_role("button", name="Fit the picture").click()
    assert zoom(page) == 1


def test_side_by_side(bare_page, red_and_blue):
    page = bare_page(compare(*red_and_blue))
    page.get_by_role("button", name="Side by side").click()
    pixels = stage_pixels(page)
    height, width, _ = pixels.shape
    assert width / height == pytest.approx(3, abs=0.05)
    assert np.abs(pixels[height // 2, int(0.1 * width)] - np.array(RED)).max() <= 2
    assert np.abs(pixels[height // 2, int(0.9 * width)] - np.array(BLUE)).max() <= 2
    assert page.get_by_role("slider", name="Wipe").count() == 0


def test_difference(bare_page, checks):
    widget = compare(*checks, labels=("fp32", "fp16"))
    widget.mode = "difference"
    page = bare_page(widget)
    page.wait_for_selector(".sf-note", state="hidden")
    page.get_by_alt_text("difference of").evaluate("i => i.decode()")
    quiet = stage_pixels(page)
    height, width, _ = quiet.shape
    assert np.abs(quiet[height // 4, width // 4].astype(int) - 8 * 4).max() <= 1
    assert quiet[3 * height // 4, 3 * width // 4].max() == 0
    gain = page.get_by_role("slider", name="Amplify")
    gain.press("End")
    assert page.evaluate("model.get('gain')") == 64
    loud = stage_pixels(page)
    assert loud[height // 4, width // 4].min() == 255
    assert loud[3 * height // 4, 3 * width // 4].max() == 0
    text = page.locator(".sf-figures").inner_text()
    assert text == "mean difference 1.0, largest 4 of 255, PSNR 42.1 dB"


def test_model_drives_every_view_and_cleanup_lets_go(bare_page, red_and_blue):
    page = bare_page(compare(*red_and_blue))
    page.evaluate("model.set('wipe', 12)")
    assert value(page) == 12
    page.evaluate("cleanup()")
    assert page.evaluate("Object.values(listeners).flat().length") == 0


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_contrast_of_the_controls(bare_page, red_and_blue, theme):
    """Text against its background: at least 4.5 to 1 (WCAG AA)."""
    page = bare_page(compare(*red_and_blue), reduced_motion="reduce")  # colours do not fade from one to the other
    page.evaluate(f"document.documentElement.dataset.sfTheme = '{theme}'")
    ratio = page.evaluate(
        """() => {
          const light = (c) => {
            // Painting the colour on a canvas resolves every notation, over the page's own background.
            const canvas = new OffscreenCanvas(1, 1).getContext('2d');
            for (const fill of [getComputedStyle(document.body).backgroundColor, c]) {
              canvas.fillStyle = fill;
              canvas.fillRect(0, 0, 1, 1);
            }
            const linear = (v) => v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4;
            const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map(linear);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const against = (e, back) => {
            const [x, y] = [light(getComputedStyle(e).color), light(getComputedStyle(back).backgroundColor)];
            return (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05);
          };
          const find = (s) => document.querySelector(s);
          return [against(find('.sf-figures'), document.body), against(find('.sf-figures b'), document.body),
                  against(find('button[aria-pressed=true]'), find('button[aria-pressed=true]')),
                  against(find('button[aria-pressed=false]'), find('.sf-group'))];
        }"""
    )
    assert min(ratio) >= 4.5, ratio


CELLS = [
    """
from PIL import Image, ImageOps
from skimage import data
from styleforge_lib.lab.compare import compare
photo = Image.fromarray(data.astronaut())
""",
    """
widget = compare(photo, ImageOps.posterize(photo, 3), labels=("photo", "posterised"))
widget
""",
]


def test_in_jupyterlab(open_notebook):
    notebook = open_notebook(CELLS, name="compare.ipynb", device_scale_factor=2)
    page = notebook.page
    notebook.run_all(60)
    page.wait_for_selector(".sf-compare[data-ready=true]")
    shots = Path(os.environ["STYLEFORGE_SCREENSHOTS"]) if os.environ.get("STYLEFORGE_SCREENSHOTS") else None

    def shoot(name):
        if shots:
            shots.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=shots / f"compare_{name}.png")

    page.locator(".sf-compare").scroll_into_view_if_needed()
    shoot("wipe")
    page.mouse.move(*at(page, 0.5))
    page.mouse.down()
    page.mouse.move(*at(page, 0.4))
    page.mouse.move(*at(page, 0.3))
    page.mouse.up()
    assert value(page) == 30
    handle = page.get_by_role("slider", name="Wipe")
    cells = len(notebook.cells())
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "b", "d", "d"):
        handle.press(key)
    assert value(page) == 31
    assert len(notebook.cells()) == cells, "a key pressed in the widget is no shortcut of JupyterLab's"
    assert notebook.kernel("widget.wipe") == "31.0", "the kernel knows"

    page.get_by_role("button", name="Difference").click()
    page.wait_for_selector(".sf-note", state="hidden")  # the kernel has sent it
    page.get_by_alt_text("difference of").evaluate("i => i.decode()")
    assert stage_pixels(page).std() > 5
    shoot("difference")
    page.get_by_role("button", name="Side by side").click()
    shoot("side")
    page.get_by_role("button", name="Wipe").click()
    for _ in range(4):
        page.get_by_role("button", name="Zoom in").click()
    assert zoom(page) == pytest.approx(1.5**4, abs=0.001)
    placed = lens(page)
    assert placed["photo"] == placed["posterised"]
    handle.focus()
    shoot("zoom")
    page.evaluate("window.jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Dark' })")
    page.wait_for_selector("body[data-jp-theme-light=false]", state="attached")
    page.wait_for_timeout(300)
    shoot("dark")
    (output,) = notebook.cells()[1]["outputs"]
    assert {"image/jpeg", "application/vnd.jupyter.widget-view+json", "text/plain"} <= output["data"].keys()


def test_a_reopened_notebook(open_notebook, jupyterlab):
    """With no kernel that knows the widget: a static picture in a foreign notebook, a living widget in one's own."""
    notebook = open_notebook(CELLS, name="mine.ipynb")
    page = notebook.page
    notebook.run_all(60)
    page.wait_for_selector(".sf-compare[data-ready=true]")
    notebook.save()
    notebook.close()
    page.wait_for_selector(".sf-compare", state="detached")

    notebook.reopen("mine.ipynb")
    page.wait_for_selector(".sf-compare[data-ready=true]")
    assert notebook.drag_compare() == 1
    page.get_by_role("button", name="Difference").click()
    page.get_by_text("The difference needs the kernel: run the cell again.").wait_for()
    notebook.close()

    # What somebody else ran is not trusted, until it is run here.
    folder = jupyterlab[0]
    text = (folder / "mine.ipynb").read_text()
    (folder / "foreign.ipynb").write_text(text.replace("compare(photo |", "compare(their photo |"))
    notebook.reopen("foreign.ipynb")
    picture = page.locator(".jp-OutputArea img")
    picture.wait_for()
    assert picture.get_attribute("src").startswith("data:image/jpeg;base64,")
    assert picture.evaluate("i => i.naturalWidth") > 900
