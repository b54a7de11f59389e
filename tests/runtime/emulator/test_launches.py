"""A launch reports how far it is, and can be interrupted."""

import signal
import threading
import time

import numpy as np
import pytest
from conftest import compile_ptx

from styleforge_lib.runtime.emulator import Program, schedule

TEXT = r"""
extern "C" __global__ void k(float* y, int turns) {
  __shared__ float s[64]; int i = threadIdx.x; float v = i;
  for (int j = 0; j < turns; j++) { s[i] = v; __syncthreads(); v = v * 0.5f + s[63 - i]; __syncthreads(); }
  y[blockIdx.x * 64 + i] = v;
}"""


@pytest.fixture(scope="module")
def emulated():
    return Program(compile_ptx(TEXT))


def launch(emulated, blocks, turns, **options):
    y = np.full(64 * blocks, -1, np.float32)
    emulated.launch("k", (blocks,), (64,), (y, np.int32(turns)), **options)
    return y


def test_reports(emulated, monkeypatch):
    monkeypatch.setattr(schedule, "_BETWEEN_REPORTS", 0)
    reports = []
    launch(emulated, 1500, 3, progress=lambda *report: reports.append(report))
    done = [one for one, _ in reports]
    assert {total for _, total in reports} == {1500}
    assert done == sorted(done)
    assert {0, 1024, 1500} <= set(done)  # at the start, after the first batch, at the end


def test_reports_are_rare(emulated):
    reports = []
    start = time.monotonic()
    launch(emulated, 4, 300, progress=lambda *report: reports.append(report))
    assert len(reports) <= (time.monotonic() - start) / schedule._BETWEEN_REPORTS + 1


def test_interrupted(emulated, interruptible):
    wanted = launch(emulated, 4, 10)
    timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    before = np.geterr()
    timer.start()
    with pytest.raises(KeyboardInterrupt, match=r"kernel 'k' was interrupted .* at least 0 of 4 blocks done"):
        launch(emulated, 4, 10_000_000)
    timer.join()
    assert np.geterr() == before
    assert np.array_equal(launch(emulated, 4, 10), wanted)


def test_interrupted_in_a_later_batch(emulated):
    def stop(done, total):
        if done > 1024:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, "_BETWEEN_REPORTS", 0)
        with pytest.raises(KeyboardInterrupt, match="at least 1024 of 1500 blocks done: what it writes is incomplete"):
            launch(emulated, 1500, 3, progress=stop)
    assert (launch(emulated, 3, 3) >= 0).all()


def test_a_small_launch_is_quick(emulated):
    """One block: well under five milliseconds once it has been translated."""
    launch(emulated, 1, 1)
    times = []
    for _ in range(5):
        start = time.process_time()
        launch(emulated, 1, 1)
        times.append(time.process_time() - start)
    assert min(times) < 0.005
