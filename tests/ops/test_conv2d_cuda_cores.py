"""The convolutions in exact float32 on CUDA cores: every kind of layer, hostile sizes, against float64.

The layers are narrower than the network's: the emulator's time goes with the products of one thread. The network's own
are launched in tests/test_acceleration.py.
"""

from dataclasses import replace

import pytest
import torch
from test_convolution import DEVICE, LAYERS, on_the_kernels_device, operator_of  # noqa: F401 - a fixture

from styleforge_lib.lab import check
from styleforge_lib.ops.conv2d_cuda_cores import CudaCoreConvolution, shared_bytes, tiling_of
from styleforge_lib.ops.convolution import KERNELS, architecture, kernel_for, prepare
from styleforge_lib.ops.layer import Layer
from styleforge_lib.runtime.resources import LIMITS, limits

NETWORK = ("conv1", "conv2", "conv3", "first of a block", "second of a block", "deconv1", "deconv2", "deconv3")
RAGGED = (1, 17, 33)  # several tiles
NARROW = {
    name: replace(layer, numbers="float32")
    for name, layer in {
        "a half": replace(LAYERS["conv2"], c_in=8, c_out=16),
        "first of a block": replace(LAYERS["first of a block"], c_in=32, c_out=64),
        "second of a block": replace(LAYERS["second of a block"], c_in=4, c_out=128),
        "upsampling": replace(LAYERS["deconv1"], c_in=16, c_out=32),
        "5x5, bias, ReLU": replace(LAYERS["5x5, bias, ReLU"], c_in=12),
        "stride 3": replace(LAYERS["stride 3"], c_in=4),
        "1x1": LAYERS["1x1"],
        "1x1, stride 2": Layer(c_in=4, c_out=8, kernel=1, stride=2),
        "written as well": replace(LAYERS["written as well"], c_in=20, c_out=24),
        "conv1": LAYERS["conv1"],
        "conv1 of uint8, 3x3, ReLU": LAYERS["conv1 of uint8, 3x3, ReLU"],
        "deconv3": replace(LAYERS["deconv3"], c_in=8),
        "deconv3 to float16, 3x3": replace(LAYERS["deconv3 to float16, 3x3"], c_in=4),
    }.items()
}


@pytest.mark.parametrize("name", NARROW)
def test_a_ragged_picture(name):
    operator = operator_of(NARROW[name], [RAGGED])
    assert check(operator, operator.launch, dtype=torch.float32, seed=0)


@pytest.mark.parametrize("name", ["a half", "written as well", "5x5, bias, ReLU", "upsampling"])
def test_the_smallest_pictures(name):
    """Every pixel is of the border. Norms of so few pixels say more of the data than of the kernel: without them."""
    layer = replace(NARROW[name], statistics=False)
    least = layer.kernel // 2 + 1 if not layer.upsample else 1
    operator = operator_of(layer, [(16, least, 2 * least)])
    assert check(operator, operator.launch, dtype=torch.float32, seed=0)


@pytest.mark.skipif(DEVICE == "cuda", reason="the emulator runs the code of any architecture, a card its own")
def test_turing():
    """Without cp.async, and with less shared memory."""
    operator = operator_of(NARROW["a half"], [RAGGED], "sm_75")
    assert check(operator, operator.launch, dtype=torch.float32, seed=0)


def test_every_layer_of_the_network_is_computed_on_every_card():
    for name in NETWORK:
        for arch in LIMITS:
            assert kernel_for(replace(LAYERS[name], numbers="float32"), arch) is CudaCoreConvolution
        assert kernel_for(replace(LAYERS[name], numbers="tf32"), "sm_75") is CudaCoreConvolution
        tf32 = replace(LAYERS[name], numbers="tf32")
        assert [kernel for kernel in KERNELS if kernel.takes(tf32, "sm_80")] == [kernel_for(tf32, "sm_80")]


@pytest.mark.parametrize(
    "layer",
    [
        Layer(c_in=6, c_out=16),
        Layer(c_in=16, c_out=20),
        Layer(c_in=16, c_out=16, kernel=2),
        Layer(c_in=16, c_out=520, statistics=True),
        Layer(c_in=4, c_out=8, picture_in=torch.uint8),
        Layer(c_in=16, c_out=16, stride=2, materialise=True),
        Layer(c_in=16, c_out=3, stride=2, picture_out=torch.uint8),
        Layer(c_in=16, c_out=16, kernel=101),
    ],
    ids=str,
)
def test_a_layer_that_it_does_not_take_is_refused(layer):
    with pytest.raises(ValueError, match="no kernel takes this layer on sm_80"):
        kernel_for(replace(layer, numbers="float32"), "sm_80")


@pytest.mark.parametrize("name", NETWORK)
def test_nothing_is_spilled_and_two_blocks_share_a_multiprocessor(name):
    layer = replace(LAYERS[name], numbers="float32")
    weight = torch.zeros(layer.c_out, layer.c_in, layer.kernel, layer.kernel, device=DEVICE)
    bias = torch.zeros(layer.c_out, device=DEVICE) if layer.bias else None
    arch = architecture(weight.device)
    tiling = tiling_of(layer, arch)
    resources = prepare(layer, weight, bias).kernel.resources
    assert (resources.spill_stores, resources.spill_loads) == (0, 0)
    if limits(arch).shared > 100 * 1024:
        assert resources.occupancy(tiling.threads, shared_bytes(layer, tiling)).blocks >= 2
