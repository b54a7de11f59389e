"""Which kernels leave it to the compiler whether a product is rounded before it is added."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from fusible import fusible

from styleforge_lib.runtime.compiler import compile_to_ptx


def left_open(body, head="", kernel="float* x"):
    text = f'{head}\nextern "C" __global__ void k({kernel}) {{ {body} }}\nextern "C" __global__ void other() {{}}'
    return fusible(compile_to_ptx(text, arch="compute_80"))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("x[3] = x[0] / x[1] - x[2] * x[2];", id="a product is subtracted"),
        pytest.param("x[3] = x[0] * x[1] - x[2];", id="something is subtracted from a product"),
        pytest.param("float p = x[0] * x[1]; x[2] = p; x[3] = x[4] - p;", id="a product that is kept, too"),
        pytest.param(
            "float p = x[0] * x[1]; for (int i = 0; i < 5; i++) p += __shfl_xor_sync(~0u, p, 1); x[2] = p;",
            id="of another block of code",
        ),
        pytest.param("double p = x[0]; x[3] = x[1] / 3 - p * p;", id="float64"),
        pytest.param(
            """asm("{.reg .f32 p; mul.f32 p, %1, %1; neg.f32 p, p; add.ftz.f32 %0, p, %1;}"
                   : "=f"(x[0]) : "f"(x[1]));""",
            id="negated, in assembly",
        ),
    ],
)
def test_what_is_left_open_is_found(body):
    found = left_open(body)
    assert list(found) == ["k"]
    assert found["k"][0].startswith("mul.f")


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("x[3] = x[0] * x[1] + x[2];", id="fused by NVRTC"),
        pytest.param("x[3] = fmaf(-x[2], x[2], x[0] / x[1]);", id="fused in the text"),
        pytest.param("x[3] = x[0] - __fmul_rn(x[1], x[2]);", id="rounded in the text"),
        pytest.param("x[3] = __fsub_rn(x[0], x[1] * x[2]);", id="the sum is rounded by itself"),
        pytest.param("x[3] = x[0] * x[1]; x[4] = x[2] - x[5];", id="a product and another sum"),
        pytest.param("int* i = (int*)x; i[3] = i[0] - i[1] * i[2];", id="integers"),
        pytest.param("atomicAdd(x, x[1] * x[2]);", id="added by the memory"),
    ],
)
def test_what_is_decided_is_not(body):
    assert left_open(body) == {}


def test_a_function_counts_for_the_kernels_that_call_it():
    head = "__device__ __noinline__ float f(float a, float b) { return a / 3 - b * b; }"
    assert list(left_open("x[3] = f(x[0], x[1]);", head)) == ["k"]
