"""Find the browser that the tests drive, or what is missing."""

import importlib.util
import os
import shutil

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium() -> str | None:
    """Return the browser's path, or None."""
    if named := os.environ.get("STYLEFORGE_CHROMIUM"):
        return named
    return next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)


def missing() -> str | None:
    """Return what is missing to drive JupyterLab in a browser, or None."""
    for module, extra in (("playwright", "browser"), ("jupyterlab", "lab")):
        if importlib.util.find_spec(module) is None:
            return f"no {module}: pip install 'styleforge[{extra}]'"
    if find_chromium() is None:
        return f"no Chromium: none of {', '.join(CHROMIUM_NAMES)} on the PATH, and STYLEFORGE_CHROMIUM is not set"
    return None
