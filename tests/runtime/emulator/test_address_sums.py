"""Addresses that are a start plus what differs between lanes: values and faults as where each is looked at alone."""

import numpy as np
import pytest
from conftest import compile_ptx

from styleforge_lib.runtime.emulator import EmulatorFault, Program, Trace
from styleforge_lib.runtime.emulator.address_sums import AddressSums
from styleforge_lib.runtime.emulator.located import Located

# Each number of y is written by several lanes where rows or threads overlap: the last of them wins.
KERNEL = """extern "C" __global__ void k(const T* x, const T* z, T* y, int row, int step, int turns) {
  if (ONLY) return;
  for (int j = 0; j < turns; j++) {
    FORM
  }
}"""
FORMS = {
    "a row of the block's": """int i = (int)threadIdx.x * step + (j ^ 1) * 8;
        const T *xs = x + (long long)blockIdx.x * row, *zs = z + (long long)blockIdx.x * row;
        T *ys = y + (long long)blockIdx.x * row, a = xs[i], b = zs[i + 1];
        ys[i] = MADE;""",
    "one index of three arrays": """int i = (int)blockIdx.x * row + (int)threadIdx.x * step + (j ^ 1) * 8;
        T a = x[i], b = z[i + 1];
        y[i] = MADE;""",
    "an index and a look-up": """int i = (int)threadIdx.x * step + (int)blockIdx.x * row + (turns - 2) * 8;
        int k = (i * 7 + j) % 500;
        T a = x[i], b = z[k];
        y[k] = MADE;""",
}
TYPES = {
    "float": (1, "a * 2 + b + j"),
    "float2": (2, "make_float2(a.x + b.y, a.y - b.x)"),
    "float4": (4, "make_float4(a.x + b.y, a.y - b.x, j, a.w * b.z)"),
}
EVERY = {"all": "false", "some": "threadIdx.x % 3 == blockIdx.x % 2", "a few threads": "threadIdx.x > 40"}
BLOCKS, THREADS = 24, 96  # each half of the blocks is more than `memory._WORTH_ROWS` lanes


def compiled(kind, form, only="all"):
    width, made = TYPES[kind]
    body = KERNEL.replace("FORM", FORMS[form]).replace("MADE", made).replace("ONLY", EVERY[only])
    return compile_ptx(f"typedef {kind} T;\n{body}"), width


def launch(ptx, width, row, step, turns=2, skipped=0, count=18000, trace=None):
    rng = np.random.default_rng(1)
    x, z = (rng.standard_normal(count * width + skipped).astype(np.float32)[skipped:] for _ in range(2))
    y = np.zeros(count * width + skipped, np.float32)[skipped:]
    numbers = (np.int32(row), np.int32(step), np.int32(turns))
    Program(ptx, {}).launch("k", (BLOCKS,), (THREADS,), (x, z, y, *numbers), trace=trace)
    return y


@pytest.fixture
def told(monkeypatch):
    """Return a list that says of each address whether it was told by its sum."""
    found, pattern = [], AddressSums._pattern

    def watched(self, *summands):
        found.append(pattern(self, *summands))
        return found[-1]

    monkeypatch.setattr(AddressSums, "_pattern", watched)
    return found


def by_itself(monkeypatch):
    monkeypatch.setattr(AddressSums, "_pattern", lambda *_: None)


@pytest.mark.parametrize("only", EVERY)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", TYPES)
def test_values(kind, form, only, told, monkeypatch):
    ptx, width = compiled(kind, form, only)
    shapes = [(96, 1), (512, 3), (0, 1), (16, 1), (700, 0), (1, 12), (3, 0), (97, 2)]
    found = [launch(ptx, width, *shape) for shape in shapes]
    assert only == "some" or any(told)
    by_itself(monkeypatch)
    assert all(np.array_equal(one, launch(ptx, width, *shape)) for one, shape in zip(found, shapes, strict=True))
    assert all(one.any() for one in found)


@pytest.mark.parametrize("shape", [(96, 1), (512, 3), (0, 1), (1, 12), (1, 30), (700, 0), (2048, 1)])
@pytest.mark.parametrize("kind", TYPES)
def test_numbers_that_lie_in_equal_steps_are_walked(kind, shape, monkeypatch):
    walks, walked = [], Located.walked

    def watched(self, *asked):
        walks.append(walked(self, *asked) is not None)
        return walked(self, *asked)

    monkeypatch.setattr(Located, "walked", watched)
    ptx, width = compiled(kind, "a row of the block's")
    found = launch(ptx, width, *shape, count=60_000)
    assert any(walks) == (shape not in ((0, 1), (1, 12), (700, 0)))  # there some lanes read the same numbers
    by_itself(monkeypatch)
    assert np.array_equal(found, launch(ptx, width, *shape, count=60_000))
    assert np.isfinite(found).all()
    assert found.any()


@pytest.mark.parametrize("only", EVERY)
@pytest.mark.parametrize("form", FORMS)
def test_metrics(form, only, told, monkeypatch):
    """Sectors depend on where an array begins, and the pattern is remembered without."""
    ptx, width = compiled("float2", form, only)
    shapes = [(96, 1, 3, 0), (512, 3, 2, 1), (0, 1, 2, 3), (97, 2, 2, 8), (96, 1, 3, 5)]

    def counted():
        traces = [Trace(races=False) for _ in shapes]
        for trace, (row, step, turns, skipped) in zip(traces, shapes, strict=True):
            launch(ptx, width, row, step, turns, 2 * skipped, trace=trace)
        return [(trace.lines(), trace.distinct_bytes) for trace in traces]

    found = counted()
    assert only == "some" or any(told)
    by_itself(monkeypatch)
    assert found == counted()
    assert all(any(line.sectors for line in lines.values()) for lines, _ in found)


@pytest.mark.parametrize("form", FORMS)
def test_arrays_that_begin_between_aligned_addresses(form, told, monkeypatch):
    ptx, width = compiled("float", form)
    skips = (1, 4, 8)
    found = [launch(ptx, width, 96, 1, skipped=skipped) for skipped in skips]
    assert any(told)
    by_itself(monkeypatch)
    for one, skipped in zip(found, skips, strict=True):
        assert np.array_equal(one, launch(ptx, width, 96, 1, skipped=skipped))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "shape",
    [
        (96, 1, 2000), (96, -1, 2), (-96, 1, 2), (1000, 1, 2), (100_000_000, 1, 1), (96, 90, 20), (512, 3, 500),
    ],
)  # fmt: skip
def test_a_fault_is_the_same(shape, form, kind, monkeypatch):
    ptx, width = compiled(kind, form)
    said = []
    for _ in range(2):
        with pytest.raises(EmulatorFault) as caught:
            launch(ptx, width, *shape, count=9000)
        said.append((str(caught.value), caught.value.line, caught.value.block, caught.value.threads))
        by_itself(monkeypatch)
    assert said[0] == said[1]


@pytest.mark.parametrize("form", FORMS)
def test_misaligned(form, monkeypatch):
    ptx, width = compiled("float4", form)
    said = []
    for _ in range(2):
        with pytest.raises(EmulatorFault, match="multiple of 16") as caught:
            launch(ptx, width, 96, 1, skipped=1)
        said.append(str(caught.value))
        by_itself(monkeypatch)
    assert said[0] == said[1]
