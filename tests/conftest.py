"""What all tests share: how they are dealt out to the workers of pytest-xdist, and who was launched."""

import os
import signal

import pytest

# Workers of pytest-xdist share the cores: if torch started a thread for each core in each of them, the threads would
# spin waiting for one another, and the tests would take four times as long. Set before torch is imported anywhere.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A worker takes a whole module, so that its fixtures are made once and no two workers compile the same kernel at the
# same time. It takes these folders as a whole, which share a JupyterLab, and of these modules each parameter by itself.
TOGETHER = ("tests/browser/",)
APART = ("tests/notebooks/test_exercises.py",)
# What takes longest starts first, or one worker is left with it at the end while the others have nothing to do.
LONGEST_FIRST = (
    "tests/browser/",
    "tests/ops/test_instance_norm.py",
    "tests/ops/test_convolution.py",
    "tests/runtime/test_false_alarms.py",
    "tests/tools/test_compare_devices.py",
    "tests/notebooks/",
    "tests/ops/",
    "tests/tools/",
    "tests/runtime/emulator/test_cooperative_groups.py",
)


def share_of(nodeid: str) -> str:
    """Return the name of what one worker takes as a whole, of which a test is part."""
    if folder := next(filter(nodeid.startswith, TOGETHER), None):
        return folder
    module, _, test = nodeid.partition("::")
    _, bracket, parameter = test.partition("[")
    return f"{module}[{parameter}" if bracket and module in APART else module


def turn_of(nodeid: str) -> int:
    """Return when a test's turn comes: its place in LONGEST_FIRST."""
    return next((k for k, start in enumerate(LONGEST_FIRST) if nodeid.startswith(start)), len(LONGEST_FIRST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Deal out by `share_of`: xdist's own groups do nothing since pytest 9.2, which drops the names that they write."""
    from xdist.scheduler import LoadScopeScheduling

    class BySharesInOrder(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return share_of(nodeid)

    config.option.loadscopereorder = False
    return BySharesInOrder(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Put the longest first, where there are workers."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: turn_of(item.nodeid))


def pytest_addoption(parser):
    parser.addoption("--record-executed", metavar="PATH", help="write what tests/runtime/emulator executes there")


@pytest.fixture
def launched(monkeypatch):
    """Collect the names of the kernels that are launched."""
    from styleforge_lib.runtime.kernel import Kernel  # imports torch, which is to find the variable above

    names, call = [], Kernel.__call__
    monkeypatch.setattr(
        Kernel, "__call__", lambda self, *args, **more: (names.append(self.name), call(self, *args, **more))
    )
    return names


@pytest.fixture
def interruptible():
    """Let SIGINT raise KeyboardInterrupt, also where whoever started the tests ignores it, as background jobs do."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
