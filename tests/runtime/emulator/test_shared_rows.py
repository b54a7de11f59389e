"""Words of shared memory that a whole block reads, loaded together: values, faults and metrics as one by one."""

import numpy as np
import pytest
from conftest import compile_ptx

from styleforge_lib.runtime.emulator import EmulatorFault, Program, Trace
from styleforge_lib.runtime.emulator import memory as emulator_memory
from styleforge_lib.runtime.emulator.translate import memory

KERNEL = """extern "C" __global__ void k(const float* x, float* y, int n, int start) {
  __shared__ float s[40]; int i = threadIdx.x, t = blockIdx.x * blockDim.x + i;
  if (i < 40) s[i] = x[blockIdx.x * 40 + i];
  __syncthreads();
  float sum = 0;
  ONLY for (int j = start; j < n; j++) {
    float a = s[j] * t + s[j + 1], b = s[j + 33] - a;
    BETWEEN
    float c = s[j + 2];
    float d = s[j + 1];
    sum += a * b + c * d; }
  y[t] = sum; }"""
BETWEEN = {"nothing": "", "a store": "s[j + 1] = 1 + blockIdx.x;", "an atomic": "atomicExch(&s[j + 2], sum * 0 + 3);",
           "a global store": "y[t] = a;"}  # fmt: skip
ONLY = {"all": "", "some": "if (i % 3)", "one": "if (i == 7)"}


def launch(ptx, n, start=0, trace=None, blocks=5, words=40):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((blocks, words)).astype(np.float32)
    x[:, ::3] = 2  # the same in all blocks
    y = np.zeros(blocks * 64, np.float32)
    Program(ptx, {"kernel.cu": KERNEL}).launch("k", (blocks,), (64,), (x, y, np.int32(n), np.int32(start)), trace=trace)
    return y


def one_by_one(monkeypatch):
    monkeypatch.setattr(memory, "_same_in_block", lambda *_: False)


@pytest.mark.parametrize("only", ONLY)
@pytest.mark.parametrize("between", BETWEEN)
def test_values_and_metrics(between, only, monkeypatch):
    ptx = compile_ptx(KERNEL.replace("BETWEEN", BETWEEN[between]).replace("ONLY", ONLY[only]))
    together, load = [], emulator_memory.Memory.load_rows
    monkeypatch.setattr(
        emulator_memory.Memory, "load_rows", lambda *parts: together.append(len(parts[2])) or load(*parts)
    )
    traces, found = [Trace(), Trace()], []
    found += [launch(ptx, 6), launch(ptx, 6, trace=traces[0])]
    assert max(together) >= 2
    one_by_one(monkeypatch)
    together.clear()
    found += [launch(ptx, 6), launch(ptx, 6, trace=traces[1])]
    assert not together
    assert all(np.array_equal(found[0], other) for other in found)
    assert traces[0].lines() == traces[1].lines()


@pytest.mark.parametrize(("n", "start"), [(9, 0), (39, 38), (40, 39), (1, -1), (60, 50)])
def test_the_first_word_out_of_bounds_is_the_fault(n, start, monkeypatch):
    ptx = compile_ptx(KERNEL.replace("BETWEEN", "").replace("ONLY", ""))
    said = []
    for _ in range(2):
        with pytest.raises(EmulatorFault) as caught:
            launch(ptx, n, start)
        said.append((str(caught.value), caught.value.line, caught.value.block, caught.value.threads))
        one_by_one(monkeypatch)
    assert said[0] == said[1]
