"""What all tests share."""

import os

import pytest

# Workers of pytest-xdist share the cores: if torch started a thread for each core in each of them, the threads would
# spin waiting for one another, and the tests would take four times as long. Set before torch is imported anywhere.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser):
    parser.addoption("--record-executed", metavar="PATH", help="write what tests/runtime/emulator executes there")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Let a worker take a whole module, so that its fixtures are made once, unless a test names a group of its own."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


@pytest.fixture
def launched(monkeypatch):
    """Collect the names of the kernels that are launched."""
    from styleforge_lib.runtime.kernel import Kernel  # imports torch, which is to find the variable above

    names, call = [], Kernel.__call__
    monkeypatch.setattr(
        Kernel, "__call__", lambda self, *args, **more: (names.append(self.name), call(self, *args, **more))
    )
    return names
