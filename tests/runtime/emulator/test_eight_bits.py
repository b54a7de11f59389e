"""e4m3 and e5m2 against torch's own types: every code, every float16, and hostile float32."""

import numpy as np
import pytest
import torch
from conftest import compile_ptx
from emulator_reference import edge_values, run_instruction

from styleforge_lib.runtime.emulator import Program

FORMATS = {"e4m3x2": (torch.float8_e4m3fn, 448.0), "e5m2x2": (torch.float8_e5m2, 57344.0)}


def codes(values: np.ndarray, kind: str) -> np.ndarray:
    """Return the codes of float32 values as torch rounds them, saturated as PTX asks; every NaN is 0x7F."""
    dtype, largest = FORMATS[kind]
    clipped = torch.from_numpy(np.clip(values.astype(np.float32), -largest, largest))
    found = clipped.to(dtype).view(torch.uint8).numpy()
    return np.where(np.isnan(values), 0x7F, found).astype(np.uint16)


@pytest.mark.parametrize("kind", FORMATS)
def test_from_float32(kind):
    x = np.concatenate([edge_values("f32", np.random.default_rng(1)), np.linspace(-500, 500, 4001, dtype=np.float32)])
    x = np.concatenate(
        [x, np.linspace(-6e4, 6e4, 4001, dtype=np.float32), np.linspace(-0.02, 0.02, 4001, dtype=np.float32)]
    )
    y = np.random.default_rng(2).permutation(x)
    got = run_instruction(f"cvt.rn.satfinite.{kind}.f32 d, a, b;", [("f32", x), ("f32", y)], "b16")
    assert np.array_equal(got, codes(x, kind) << 8 | codes(y, kind))
    got = run_instruction(f"cvt.rn.satfinite.relu.{kind}.f32 d, a, b;", [("f32", x), ("f32", y)], "b16")
    x, y = (np.where(v > 0, v, np.where(np.isnan(v), v, 0)) for v in (x, y))
    assert np.array_equal(got, codes(x, kind) << 8 | codes(y, kind))


@pytest.mark.parametrize("kind", FORMATS)
def test_from_every_float16(kind):
    halves = np.arange(65536, dtype=np.uint16)
    pairs = halves.astype(np.uint32) | np.flip(halves).astype(np.uint32) << 16
    got = run_instruction(f"cvt.rn.satfinite.{kind}.f16x2 d, a;", [("b32", pairs)], "b16")
    wanted = codes(halves.view(np.float16), kind)
    assert np.array_equal(got, np.flip(wanted) << 8 | wanted)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_code_to_float16(kind):
    pairs = np.arange(65536, dtype=np.uint16)
    got = run_instruction(f"cvt.rn.f16x2.{kind} d, a;", [("b16", pairs)], "b32").view(np.uint16).reshape(-1, 2)
    wide = torch.arange(256, dtype=torch.uint8).view(FORMATS[kind][0]).to(torch.float16).numpy()
    wanted = np.where(np.isnan(wide), 0x7FFF, wide.view(np.uint16))
    assert np.array_equal(got[:, 0], wanted[pairs & 255])
    assert np.array_equal(got[:, 1], wanted[pairs >> 8])


@pytest.mark.parametrize("arch", ["compute_75", "compute_80", "compute_90", "compute_100"])
def test_as_the_header_writes_it(arch):
    """compute_75 and 80 round in integer arithmetic, later ones have the instructions: all give the same codes."""
    text = """#include <cuda_fp8.h>
      extern "C" __global__ void k(const float4* x, __nv_fp8x4_e4m3* q, __nv_fp8_e5m2* r, float4* y) {
        int i = threadIdx.x; q[i] = __nv_fp8x4_e4m3(x[i]); r[i] = __nv_fp8_e5m2(x[i].x); y[i] = float4(q[i]); }"""
    x = np.random.default_rng(3).standard_normal((64, 4)).astype(np.float32) * 100
    x[0], x[1] = (np.nan, np.inf, -np.inf, 1e9), (0.0, -0.0, 1e-9, 0.002)
    q, r, y = np.zeros((64, 4), np.uint8), np.zeros(64, np.uint8), np.zeros((64, 4), np.float32)
    Program(compile_ptx(text, arch)).launch("k", (1,), (64,), (x, q, r, y))
    assert np.array_equal(q & 0x7F, codes(x, "e4m3x2") & 0x7F)
    assert np.array_equal(r[1:], codes(x[:, 0], "e5m2x2")[1:])
    assert r[0] & 0x7F > 0x7C
    assert np.array_equal(y, torch.from_numpy(q).view(torch.float8_e4m3fn).float().numpy(), equal_nan=True)


@pytest.mark.parametrize(
    "instruction", ["cvt.rs.satfinite.e4m3x4.f32 d, {a, a, a, a}, b;", "cvt.rn.satfinite.e2m1x2.f32 d, a, a;"]
)
def test_refused_by_name(instruction):
    head = ".version 8.7\n.target sm_100a\n.address_size 64\n"
    text = f"{head}.visible .entry k()\n{{\n.reg .b32 a, b, d;\n{instruction}\nret;\n}}\n"
    with pytest.raises(NotImplementedError, match=instruction.split()[0].replace(".", r"\.")):
        Program(text).plan("k")
