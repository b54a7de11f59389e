"""The detector is silent on sound kernels: all of cuda/, of the notebooks and of the probes, at small ragged sizes."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import compare_devices
from compare_devices import Buffers, plan_of, sources

from styleforge_lib.runtime import compile_cuda
from styleforge_lib.runtime.emulator import EmulatorFault, Trace

# What a lesson breaks on purpose, and what the detector must say of it at the sizes of its plan.
BROKEN: dict[str, set[str]] = {}
# What the detector cannot judge: threads that only an mbarrier orders.
UNJUDGED = ("mbarrier_phases", "bulk_pipeline")
SOURCES = sources()


@pytest.fixture(autouse=True)
def on_the_emulator(monkeypatch):
    monkeypatch.setenv("STYLEFORGE_DEVICE", "emulator")


def findings(kernel, source):
    """Return what the detector says of a kernel, as (kind, sentence), at the sizes and offsets of its plan."""
    found = []
    plan = plan_of(kernel, source)
    for n in plan.sizes:
        for offset in plan.offsets:
            trace = Trace()

            def launch(grid, block, args, *, shared_bytes, trace=trace):
                kernel.emulate(grid, block, args, shared_bytes=shared_bytes, trace=trace)

            try:
                Buffers(kernel, plan, n, offset).run(launch, "cpu")
            except EmulatorFault as fault:
                found.append((fault.kind, f"n={n}: {fault.sentence}"))
            found += [(one.kind, f"n={n}: {one.sentence}") for one in (*trace.races, *trace.faults)]
    return found


@pytest.mark.parametrize("place", sorted({source.place for source in SOURCES}))
def test_no_false_alarm(place):
    for source in (source for source in SOURCES if source.place == place):
        module = source.compile()
        for name in module.kernels:
            if name in UNJUDGED:
                continue
            said = findings(module.kernel(name), source)
            expected = BROKEN.get(name, set())
            unexpected = [sentence for kind, sentence in said if kind not in expected]
            assert not unexpected, f"{name}: {unexpected[0]} (if a lesson breaks it on purpose, name it in BROKEN)"
            assert expected <= {kind for kind, _ in said}, f"{name} is broken on purpose, and nothing was said"


def test_a_planted_race_is_no_false_alarm():
    """The same way of looking finds what is wrong."""
    text = """extern "C" __global__ void planted(const float* x, float* out, int n) {
    __shared__ float held[256];
    int i = blockIdx.x * 256 + threadIdx.x;
    held[threadIdx.x] = i < n ? x[i] : 0;
    if (i < n) out[i] = held[255 - threadIdx.x];
}"""
    source = compare_devices.Source("here", text)
    said = findings(compile_cuda(text).only, source)
    assert {kind for kind, _ in said} == {"read after write"}


def test_what_is_broken_on_purpose_exists():
    names = {name for source in SOURCES for name in source.compile().kernels}
    assert {*BROKEN, *UNJUDGED} <= names
