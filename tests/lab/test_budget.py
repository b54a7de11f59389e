"""Budgets: what kernels spend is counted on the emulator, and a kernel that spends more is told at which line."""

from dataclasses import replace

import pytest
import torch

from styleforge_lib.lab import Budget, check
from styleforge_lib.lab.budget import spending
from styleforge_lib.ops import find_operator
from styleforge_lib.runtime import compile_cuda

RELU = replace(find_operator("relu"), cases=find_operator("relu").cases[:12])
HEAD = """extern "C" __global__ void {name}(const float* x, float* out, int n) {{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
{body}
}}"""
ONCE = "    float v = i < n ? x[i] : 0.0f;\n    if (i < n) out[i] = v < 0.0f ? 0.0f : v;"
TWICE = "    if (i < n) out[i] = x[n - 1 - i] == 1e30f ? 1e30f : x[i] < 0.0f ? 0.0f : x[i];"


@pytest.fixture(autouse=True)
def on_the_emulator(monkeypatch):
    monkeypatch.setenv("STYLEFORGE_DEVICE", "emulator")


def launcher_of(body, name="relu", threads=256):
    module = compile_cuda(HEAD.format(name=name, body=body))

    def launcher(x, out):
        module(-(-x.numel() // threads), threads, (x, out, x.numel()))

    return launcher


def over(body, capsys, **limits):
    result = check(RELU, launcher_of(body), seed=1, budget=Budget(**limits))
    assert not result
    assert result.words in capsys.readouterr().out
    return result.words


def test_a_kernel_within_its_budget_passes(capsys):
    limits = Budget(loads_per_thread=1, barriers=0, bytes_read_per_output=4, local_memory=False)
    assert check(RELU, launcher_of(ONCE), budget=limits)
    assert capsys.readouterr().out.endswith("right, to the last bit, within budget\n")
    assert check(RELU, launcher_of(TWICE)), "without a budget anything may be spent"


def test_a_second_load(capsys):
    words = over(TWICE, capsys, loads_per_thread=1)
    assert words == ("over budget in case 'even 1x4x16x16': 2 global loads a thread, 1 allowed; most at line 3 of relu")
    words = over(TWICE, capsys, bytes_read_per_output=4)
    assert "8 bytes read for each output, 4 allowed; most at line 3" in words
    assert check(RELU, launcher_of(TWICE), budget=Budget(loads_per_thread=2, bytes_read_per_output=8))


def test_barriers(capsys):
    body = ONCE + "\n    __syncthreads();\n    __syncwarp();\n    for (int k = 0; k < 2; k++)\n        __syncthreads();"
    assert "3 barriers a thread, 2 allowed; most at line 8" in over(body, capsys, barriers=2)
    assert check(RELU, launcher_of(body), budget=Budget(barriers=3)), "a __syncwarp is none"


def test_local_memory(capsys):
    body = "    float a[16];\n    for (int k = 0; k < 16; k++) a[k] = k;\n" + ONCE.replace(
        "float v = i < n", "float v = a[n & 15] > 99 ? 1.0f : i < n"
    )
    assert "bytes of local memory used, none allowed; most at line" in over(body, capsys, local_memory=False)
    assert check(RELU, launcher_of(body), budget=Budget(loads_per_thread=1))


def test_a_wrong_kernel_is_wrong_first(capsys):
    words = over(TWICE.replace(": x[i];", ": 1.0f;"), capsys, loads_per_thread=0)
    assert "wrong in case" in words


def test_a_launcher_that_launches_nothing(capsys):
    result = check(RELU, lambda x, out: out.copy_(torch.relu(x)), budget=Budget(loads_per_thread=1))
    assert not result
    assert "no kernel was launched" in result.words


def test_all_launches_of_a_call_are_counted():
    first, second = launcher_of(ONCE), launcher_of(ONCE, name="again")
    x, out = torch.randn(1000), torch.zeros(1000)

    def both():
        first(x, out)
        second(x, out)

    spent = spending(both, [out])
    assert (spent.launches, spent.warps) == (2, 64)
    assert spent.bytes_read_per_output == 8
    assert {kernel for kernel, _ in spent.lines} == {"relu", "again"}
    assert torch.equal(out, x.relu())


def test_counting_changes_nothing():
    """The launch that is counted works on copies, the other one on the caller's arrays, once."""
    module = compile_cuda('extern "C" __global__ void up(float* x) { x[threadIdx.x] += 1; }')
    x = torch.zeros(32)
    spending(lambda: module(1, 32, (x,)), [x])
    assert x.eq(1).all()
    module(1, 32, (x,))
    assert x.eq(2).all()


@pytest.mark.parametrize("limit", [-1, float("nan")])
def test_limits_are_not_negative(limit):
    with pytest.raises(ValueError, match="budget: barriers must be a number that is not negative"):
        Budget(barriers=limit)
