"""The persistent Hopper convolutions on the emulator: several tiles and images a block, against float64."""

from dataclasses import replace

import pytest
import test_convolution
import torch

from styleforge_lib.lab import check
from styleforge_lib.ops import conv2d_hopper_persistent, convolution
from styleforge_lib.ops.conv2d_hopper_persistent import PersistentConvolution
from styleforge_lib.ops.convolution import kernel_for
from styleforge_lib.ops.elementwise import compiled
from styleforge_lib.runtime.kernel import chosen_device

NAMES = ("conv2", "deconv2")
LAYERS = {name: test_convolution.LAYERS[name] for name in NAMES}

pytestmark = pytest.mark.skipif(chosen_device() == "gpu", reason="tools/check_convolutions.py is for cards")


@pytest.fixture(autouse=True)
def few_blocks(monkeypatch):
    """Two blocks, so that each has several tiles, and tiles of several images."""
    monkeypatch.setenv("STYLEFORGE_DEVICE", "emulator")
    monkeypatch.setattr(conv2d_hopper_persistent, "multiprocessors", lambda device: 2)


@pytest.mark.parametrize("numbers", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_against_float64(name, numbers):
    layer = replace(LAYERS[name], numbers=numbers)
    assert kernel_for(layer, "sm_90a") is PersistentConvolution
    sizes = ((3, 19, 20), (1, 2, 3)) if layer.upsample else ((3, 37, 35), (1, 3, 5))
    operator = test_convolution.operator_of(layer, sizes, "sm_90a")
    assert check(operator, operator.launch, dtype=layer.dtype)


@pytest.mark.parametrize("name", NAMES)
def test_more_passes_than_are_summed_in_float32(name, monkeypatch):
    monkeypatch.setattr(conv2d_hopper_persistent, "multiprocessors", lambda device: 1)
    layer = LAYERS[name]
    sizes = ((1, 70, 31),) if layer.upsample else ((1, 159, 63),)  # 20 tiles for two warpgroups
    operator = test_convolution.operator_of(layer, sizes, "sm_90a")
    assert check(operator, operator.launch, dtype=layer.dtype)


@pytest.mark.parametrize("name", NAMES)
def test_before_the_wait_an_overlapping_launch_fetches_weights_alone(name):
    macros = convolution.prepare(LAYERS[name], torch.zeros(*_weight_shape(name)), arch="sm_90a").macros
    kernel = compiled("conv2d_hopper_persistent", torch.device("cpu"), "sm_90a", **macros, OVERLAP=1).only
    program = kernel.module.program
    assert {name for _, name in program.before_the_wait(kernel.entry)} <= {
        "cp.async.bulk.shared_cluster.global.mbarrier_complete_tx_bytes"
    }
    assert program.end_without_wait(kernel.entry) is None
    assert "ld.global.nc" not in kernel.module.ptx, "others write its inputs while it runs"


def _weight_shape(name):
    layer = LAYERS[name]
    return layer.c_out, layer.c_in, 3, 3
