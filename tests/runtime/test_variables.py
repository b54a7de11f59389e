"""Variables of a module from the host: on the emulator, and through a driver that only writes down what it is given."""

import types

import numpy as np
import pytest
import torch

from styleforge_lib.runtime import compile_cuda, gpu

TEXT = """
__constant__ float weights[4];
__device__ int counter = 5;
extern "C" __global__ void weigh(float* x) {
  x[threadIdx.x] *= weights[threadIdx.x];
  atomicAdd(&counter, 1);
}
"""


@pytest.fixture
def module(monkeypatch):
    monkeypatch.setenv("STYLEFORGE_DEVICE", "emulator")
    return compile_cuda(TEXT, name="variables.cu")


def test_what_is_written_is_what_kernels_read(module):
    weights, counter, x = module.variable("weights"), module.variable("counter"), torch.ones(4)
    assert (weights.size, counter.size) == (16, 4)
    assert counter.read(np.zeros(1, np.int32)) == 5
    for values in (np.array([1, 2, 3, 4], np.float32), torch.tensor([[4.0, 3], [2, 1]]), torch.full((4,), 0.5)):
        weights.write(values)
        module(1, 4, (x,))
    assert x.tolist() == [2, 3, 3, 2]
    assert counter.read(torch.zeros((), dtype=torch.int32)) == 17
    into = torch.empty(8, dtype=torch.bfloat16)  # bytes are copied as they are
    assert module.variable("weights").read(into) is into
    assert into.view(torch.float32).tolist() == [0.5] * 4
    counter.write(np.array([7], np.int32))
    assert module.variable("counter").read(np.zeros(1, np.int32)) == 7
    assert compile_cuda(TEXT).variable("counter").read(np.zeros(1, np.int32)) == 5


def test_refusals(module):
    weights = module.variable("weights")
    with pytest.raises(KeyError, match=r"no variable 'bias' in variables\.cu: there is weights, counter"):
        module.variable("bias")
    with pytest.raises(KeyError, match="none at all"):
        compile_cuda('extern "C" __global__ void f(int* x) { *x = 1; }').variable("bias")
    with pytest.raises(ValueError, match=r"'weights' has 16 bytes, and the array 12: float32, shape \(3,\)"):
        weights.write(np.zeros(3, np.float32))
    with pytest.raises(ValueError, match=r"and the array 32: torch\.float64"):
        weights.read(torch.zeros(4, dtype=torch.float64))
    with pytest.raises(ValueError, match="not contiguous"):
        weights.write(torch.zeros(8)[::2])
    with pytest.raises(ValueError, match="read-only"):
        weights.read(np.broadcast_to(np.float32(1), (4,)))
    with pytest.raises(ValueError, match="on the CPU, where the emulator runs"):
        weights.write(torch.zeros(4, device="meta"))
    with pytest.raises(TypeError, match="not list"):
        weights.write([1.0, 2, 3, 4])


def test_on_a_card(module, monkeypatch):
    """The copies go to the variable's address, on torch's current stream; those of the host are waited for."""
    from cupy.cuda import driver, runtime

    copies, waited = [], []
    stream = types.SimpleNamespace(cuda_stream=77, synchronize=lambda: waited.append(1))
    monkeypatch.setattr(gpu, "_ensure_context", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(driver, "moduleLoadData", lambda code: 40)
    monkeypatch.setattr(driver, "moduleGetGlobal", lambda handle, name: {(40, "weights"): 0x7000}[handle, name])
    monkeypatch.setattr(runtime, "memcpyAsync", lambda *args: copies.append(args))
    monkeypatch.setattr(module, "device", "gpu")
    weights, x = module.variable("weights"), np.zeros(4, np.float32)
    weights.write(x)
    weights.read(x)
    assert copies == [
        (0x7000, x.ctypes.data, 16, runtime.memcpyHostToDevice, 77),
        (x.ctypes.data, 0x7000, 16, runtime.memcpyDeviceToHost, 77),
    ]
    assert len(waited) == 2
