"""Compiles CUDA text to PTX for the emulator's tests, and watches what they execute."""

from pathlib import Path

import pytest
from executed import Executed, named_for


def compile_ptx(text: str, arch: str = "compute_80", options: tuple[str, ...] = ()) -> str:
    pytest.importorskip("cupy")
    from styleforge_lib.runtime.compiler import compile_to_ptx

    return compile_to_ptx(text, arch=arch, name="kernel.cu", options=options)


def pytest_configure(config):
    config.executed, config.named_for = Executed(), named_for()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Hold a test to what the record names it for; while recording, let it witness what it executes."""
    executed, recording = item.config.executed, item.config.getoption("--record-executed")
    executed.begin()
    result = yield
    if not recording:
        missing = item.config.named_for.get(item.nodeid, set()) - executed.names()
        assert not missing, f"the test no longer executes {sorted(missing)}: run tools/coverage_table.py"
    elif not getattr(item.obj, "is_hypothesis_test", False):  # what those execute is drawn anew each time
        executed.witness(item.nodeid)
    return result


def pytest_sessionfinish(session):
    if path := session.config.getoption("--record-executed"):
        session.config.executed.write(Path(path))
