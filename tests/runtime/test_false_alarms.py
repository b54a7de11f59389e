"""The detector is silent on sound kernels: all of cuda/, of the notebooks and of the probes, at small ragged sizes."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "ops"))

import test_conv2d_cuda_cores
import test_conv2d_hopper
import test_convolution
import test_residual_blocks_hopper
from compare_devices import Buffers
from kernel_plans import plan_of
from kernel_sources import Source, sources

from styleforge_lib.lab.xray import copied_arguments
from styleforge_lib.ops import conv2d_hopper_persistent, conv2d_hopper_pictures
from styleforge_lib.runtime import compile_cuda
from styleforge_lib.runtime.emulator import ORDERS, EmulatorFault, Trace
from styleforge_lib.runtime.kernel import watching

# What a lesson breaks on purpose, and what the detector must say of it at the sizes of its plan.
BROKEN = {  # place: the races that a lesson has planted there
    "notebooks/03_instance_norm_reductions.ipynb#exercise-1": {"read after write"},
    "notebooks/03_instance_norm_reductions.ipynb#clinic": {"write after read"},
}
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

            def launch(grid, block, args, *, trace=trace, **options):
                kernel.emulate(grid, block, args, trace=trace, **options)

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
            said = findings(module.kernel(name), source)
            expected = BROKEN.get(place, set())
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
    source = Source("here", text)
    said = findings(compile_cuda(text).only, source)
    assert {kind for kind, _ in said} == {"read after write"}


def test_what_is_broken_on_purpose_exists():
    assert BROKEN.keys() <= {source.place for source in SOURCES}


# ----------------------------------------------------------------------------------------------------------------------
# The convolutions, whose launches are made by ops/


def findings_of(call):
    """Return what the detector says of the launches of a call, and their number.

    What waits at mbarriers has to write the same bits whichever warpgroup is ahead: the detector cannot follow it all.
    """
    found = []

    def look(kernel, grid, block, args, **options):
        def emulate(**more):
            copied = copied_arguments(kernel, args)
            kernel.emulate(grid, block, copied, **options, **more)
            return [value.tobytes() for value in copied if isinstance(value, np.ndarray)]

        trace = Trace()
        made = emulate(trace=trace)
        found.append([f"{kernel.name}: {one.sentence}" for one in (*trace.races, *trace.faults)])
        if "mbarrier" in kernel.module.ptx:
            found[-1] += [f"{kernel.name} differs: {order}" for order in ORDERS if emulate(order=order) != made]

    with watching(look):
        call()
    return [sentence for sentences in found for sentence in sentences], len(found)


CONVOLUTIONS = test_convolution.LAYERS | {
    f"{name}, exact": test_conv2d_cuda_cores.NARROW[name]
    for name in ("a half", "first of a block", "upsampling", "conv1 of uint8, 3x3, ReLU", "deconv3 to float16, 3x3")
}


def assert_quiet(layer, size, arch=None):
    """Launch a layer on images of a size, and see that nothing is said."""
    operator = test_convolution.operator_of(layer, [size], arch)
    values = operator.cases[0].make(torch.Generator().manual_seed(1), layer.dtype)
    outputs = [torch.full(out.shape, torch.nan, dtype=out.dtype) for out in operator.pytorch(*values)]
    said, launches = findings_of(lambda: operator.launch(*values, *outputs))
    assert (said, launches > 0) == ([], True)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_no_false_alarm_of_a_convolution(name):
    assert_quiet(CONVOLUTIONS[name], (1, 6, 7))


@pytest.mark.parametrize("name", ["conv1", "deconv3"])
def test_no_false_alarm_of_pictures_on_hopper(name, monkeypatch):
    """Two warpgroups, one of which goes from one strip to the next."""
    monkeypatch.setattr(conv2d_hopper_pictures, "multiprocessors", lambda device: 1)
    assert_quiet(test_convolution.LAYERS[name], (1, 5, 70), "sm_90a")


@pytest.mark.parametrize("name", ["conv2", "deconv2"])
def test_no_false_alarm_of_a_persistent_convolution(name, monkeypatch):
    """Three tiles of one block: both warpgroups write, and one of them twice."""
    monkeypatch.setattr(conv2d_hopper_persistent, "multiprocessors", lambda device: 1)
    layer = test_convolution.LAYERS[name]
    assert_quiet(layer, (1, 40, 5) if layer.stride == 1 else (1, 70, 9), "sm_90a")


@pytest.mark.parametrize("layer", test_conv2d_hopper.LAYERS, ids=str)
def test_no_false_alarm_of_a_convolution_on_hopper(layer):
    said, launches = findings_of(lambda: test_conv2d_hopper.run(layer, test_conv2d_hopper.NORM, 1, 5, 6))
    assert (said, launches > 0) == ([], True)


def test_no_false_alarm_of_a_residual_block_in_one_launch():
    blocks, x, _ = test_residual_blocks_hopper.drawn(1, (1, 3, 10))
    said, launches = findings_of(lambda: test_residual_blocks_hopper.in_one_launch(blocks, x))
    assert (said, launches) == ([], 1)
