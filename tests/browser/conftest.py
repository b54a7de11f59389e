"""A real browser for the widgets: the Chromium that is there, a bare page for their JavaScript, and JupyterLab.

Contents
    chromium      the browser (session): $STYLEFORGE_CHROMIUM, or what the PATH has; without one the tests are skipped
    page          a fresh page that fails its test on anything the console calls an error
    bare_page     shows one widget in a page of its own, in a second: for the behaviour of the JavaScript alone
    jupyterlab    a JupyterLab in a temporary directory (session)
    open_notebook opens a notebook of that directory and returns a `Notebook` to drive
"""

import base64
import functools
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from finding import find_chromium, missing

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CHROMIUM_FLAGS = (
    "--no-sandbox",  # containers
    "--disable-gpu",
    "--disable-dev-shm-usage",
    # No calls home from a test.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
# The one thing that a notebook takes from the network. The badge is served from here; all else is refused.
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
# What JupyterLab itself says on a healthy page, and why.
NOISE = {
    "Could not restore the debugger state: Canceled future": "its debugger asks a kernel that a test has just ended",
}
# A person's choices that the tests make too.
SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},  # no question
    "@jupyter-widgets/jupyterlab-manager/plugin": {"saveState": True},  # widgets live on in a reopened notebook
}
PANEL = "window.jupyterapp.shell.currentWidget"


@pytest.fixture(scope="session")
def chromium():
    if reason := missing():
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # launch() makes a fresh user-data directory and removes it.
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=list(CHROMIUM_FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def new_page(chromium):
    """Return a function that opens a page; whatever its console calls an error fails the test at its end."""
    contexts, errors = [], []

    def outside(route):
        if route.request.url == BADGE:
            image = "<svg xmlns='http://www.w3.org/2000/svg' width='117' height='20'/>"
            route.fulfill(body=image, content_type="image/svg+xml")
            return
        errors.append(f"a request to the network: {route.request.url}")
        route.abort()

    def new_page(**options):
        options = {"viewport": {"width": 1000, "height": 900}, **options}
        contexts.append(chromium.new_context(**options))
        contexts[-1].route(lambda url: urlsplit(url).hostname != "127.0.0.1", outside)
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: errors.append(f"uncaught: {error}"))
        page.on(
            "console", lambda message: message.type == "error" and errors.append(f"{message.text} {message.location}")
        )
        return page

    yield new_page
    for context in contexts:
        context.close()
    errors = [error for error in errors if not error.startswith(tuple(NOISE))]
    assert not errors, "the browser says: " + "\n".join(errors)


@pytest.fixture
def page(new_page):
    return new_page()


@pytest.fixture
def bare_page(new_page, tmp_path):
    """Return a function that shows a widget in a page of its own."""
    handler = functools.partial(_QuietHandler, directory=tmp_path)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def show(widget, **options):
        state = {name: widget.get_state(name)[name] for name in widget.keys if not name.startswith("_")}
        state.pop("layout", None)
        encode = lambda value: {"base64": base64.b64encode(value).decode()}  # noqa: E731
        (tmp_path / "state.json").write_text(json.dumps(state, default=encode))
        (tmp_path / "widget.js").write_text(str(widget._esm))
        (tmp_path / "widget.css").write_text(str(widget._css))
        shutil.copy(HERE / "bare_page.html", tmp_path / "index.html")
        page = new_page(**options)
        page.goto(f"http://127.0.0.1:{server.server_port}/index.html")
        page.wait_for_selector(".sf")
        return page

    yield show
    server.shutdown()
    server.server_close()


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="session")
def jupyterlab(tmp_path_factory):
    """Serve JupyterLab from a temporary directory; return that directory, the address and the token."""
    pytest.importorskip("jupyterlab", reason="no JupyterLab: pip install 'styleforge[lab]'")
    home = tmp_path_factory.mktemp("lab")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = "a-test-on-this-machine-only"
    log = (home / "server.log").open("wb")
    # Settings, workspaces and trust of the person who runs the tests stay out of it, and untouched.
    private = {name: str(home / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")}
    private |= {
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
    }
    private |= {"IPYTHONDIR": str(home / "ipython"), "PYTHONPATH": str(ROOT)}
    private |= {"STYLEFORGE_RECORDS": str(home / "local.csv")}  # a run on a GPU measures, and appends
    for plugin, values in SETTINGS.items():
        settings = home / "settings" / f"{plugin}.jupyterlab-settings"
        settings.parent.mkdir(parents=True)
        settings.write_text(json.dumps(values))
    work = home / "work"
    work.mkdir()
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser"),
            *("--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0"),
            *(f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={work}"),
        ],
        env={**os.environ, **private},
        cwd=work,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{address}/api?token={token}", timeout=2).close()
                break
            except OSError:
                said = (home / "server.log").read_text(errors="replace")[-3000:]
                assert server.poll() is None, f"JupyterLab ended:\n{said}"
                assert time.monotonic() < deadline, f"JupyterLab did not answer in 60 s:\n{said}"
                time.sleep(0.2)
        yield work, address, token
    finally:
        server.terminate()
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            server.kill()
        log.close()


@pytest.fixture
def open_notebook(jupyterlab, new_page):
    """Return a function that opens a notebook, given by its path, or by the sources of its code cells."""
    work, address, token = jupyterlab
    opened = []

    def open_notebook(notebook, *, name="notebook.ipynb", **options):
        if isinstance(notebook, Path):
            shutil.copy(notebook, work / notebook.name)
            name = notebook.name
        else:
            import nbformat

            cells = [nbformat.v4.new_code_cell(source) for source in notebook]
            kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}  # or the Lab asks for one
            nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), work / name)
        page = new_page(**options)
        page.goto(f"{address}/lab/tree/{name}?reset&token={token}")
        opened.append(Notebook(page))
        return opened[-1]

    yield open_notebook
    for notebook in opened:
        notebook.close()


class Notebook:
    """A notebook open in JupyterLab, driven through the page and asked through `window.jupyterapp`."""

    def __init__(self, page):
        self.page = page
        self._wait_for_kernel()

    def _wait_for_kernel(self) -> None:
        idle = "window.jupyterapp?.shell?.currentWidget?.context?.sessionContext?.session?.kernel?.status === 'idle'"
        self.page.wait_for_function(idle, timeout=60_000)

    def ask(self, function: str):
        """Evaluate a JavaScript function of the notebook's panel."""
        return self.page.evaluate(f"async () => await ({function})({PANEL})")

    def run_all(self, seconds: float) -> None:
        """Do what the menu's Run All Cells does, wait to the end, and fail on a cell that ends in an error."""
        self.page.evaluate("() => { window.ran = window.jupyterapp.commands.execute('notebook:run-all-cells') }")
        too_late = "new Promise((_, no) => setTimeout(no, 1000 * s, `not done in ${s} s`))"
        self.page.evaluate(f"s => Promise.race([window.ran, {too_late}])", seconds)
        self.page.wait_for_function(f"{PANEL}.context.sessionContext.session.kernel.status === 'idle'", timeout=10_000)
        errors = [
            output for cell in self.cells() for output in cell.get("outputs", []) if output["output_type"] == "error"
        ]
        assert not errors, "\n".join(f"{e['ename']}: {e['evalue']}" for e in errors)

    def cells(self) -> list[dict]:
        """Return the code cells as they would be saved."""
        notebook = self.ask("panel => panel.content.model.toJSON()")
        return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]

    def kernel(self, expression: str) -> str:
        """Evaluate an expression in the kernel and return its repr."""
        return self.ask(
            "async panel => { const reply = await panel.context.sessionContext.session.kernel.requestExecute("
            f"{{ code: '', user_expressions: {{ it: {json.dumps(expression)} }} }}).done;"
            " const it = reply.content.user_expressions.it; return it.data ? it.data['text/plain'] : it.evalue; }"
        )

    def drag_compare(self) -> int:
        """Drag the wipe of every `compare` that is seen, check that it followed, and return their number."""
        widgets = self.page.locator(".sf-compare")
        for i in range(widgets.count()):
            stage = widgets.nth(i).locator(".sf-stage")
            self.page.wait_for_function(
                "i => document.querySelectorAll('.sf-compare')[i].dataset.ready === 'true'", arg=i
            )
            stage.scroll_into_view_if_needed()
            box = stage.bounding_box()
            y = box["y"] + 0.2 * box["height"]
            self.page.mouse.move(box["x"] + 0.5 * box["width"], y)
            self.page.mouse.down()
            self.page.mouse.move(box["x"] + 0.4 * box["width"], y)
            self.page.mouse.move(box["x"] + 0.3 * box["width"], y)
            self.page.mouse.up()
            assert widgets.nth(i).get_by_role("slider", name="Wipe").get_attribute("aria-valuenow") == "30"
        return widgets.count()

    def shoot(self, name: str) -> None:
        """Scroll through the notebook and store a picture of each screenful, where $STYLEFORGE_SCREENSHOTS says."""
        folder = os.environ.get("STYLEFORGE_SCREENSHOTS")
        scroller = self.page.locator(".jp-NotebookPanel .jp-WindowedPanel-outer")
        position, number = 0, 0
        while True:
            at_end = scroller.evaluate(
                "(e, y) => { e.scrollTop = y; return e.scrollTop + e.clientHeight >= e.scrollHeight - 2 }", position
            )
            self.page.wait_for_timeout(150)
            if folder:
                Path(folder).mkdir(parents=True, exist_ok=True)
                self.page.screenshot(path=Path(folder) / f"{name}_{number:02}.png")
            if at_end:
                return
            position += 0.9 * scroller.evaluate("e => e.clientHeight")
            number += 1

    def save(self) -> None:
        """Save the notebook."""
        self.ask("panel => panel.context.save()")

    def close(self) -> None:
        """End the kernel, and close the notebook as it is."""
        self.ask("panel => panel.context.sessionContext.shutdown().then(() => panel.dispose())")

    def reopen(self, name: str) -> None:
        """Open a notebook of the directory, in the same page."""
        self.page.evaluate("path => { window.jupyterapp.commands.execute('docmanager:open', { path }) }", name)
        self._wait_for_kernel()
