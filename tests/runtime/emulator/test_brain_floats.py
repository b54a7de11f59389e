# ruff: noqa: E501 (tables and kernels keep one case to a line)
"""bfloat16 arithmetic against exact fractions, to the last bit, and as NVRTC writes it for two architectures."""

from fractions import Fraction

import numpy as np
import pytest
from conftest import compile_ptx
from emulator_reference import edge_values, round_fraction, run_instruction

from styleforge_lib.runtime.emulator import Program

NAN = 0x7FFF


def wide(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(value):
    """Return the bfloat16 bits of a float64 that a bfloat16 can hold."""
    with np.errstate(invalid="ignore"):
        bits = np.asarray(value, np.float64).astype(np.float32).view(np.uint32)
    return np.where(np.isnan(value), NAN, bits >> 16).astype(np.uint16)


def doubles(values):
    """Return floats as float64; signalling NaN are NaN."""
    with np.errstate(invalid="ignore"):
        return np.asarray(values).astype(np.float64)


def operands(count, seed=0):
    """Columns of hostile bit patterns, paired at random; subnormals and numbers near overflow among them."""
    rng = np.random.default_rng(seed)
    special = (edge_values("f32", rng).view(np.uint32) >> 16).astype(np.uint16)
    special = np.concatenate(
        [
            special,
            [0x0001, 0x007F, 0x0080, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80, 0x7FC0, 0x8001, 0x3F80],
            0x2000 + rng.integers(-99, 99, 60),
        ]
    )
    return [rng.permutation(special).astype(np.uint16) for _ in range(count)]


OPERATIONS = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "fma": lambda a, b, c: a * b + c,
}  # fmt: skip


def rounded(operation, columns):
    out = []
    for bits in zip(*columns, strict=True):
        values = [np.float64(wide(np.array([v], np.uint16))[0]) for v in bits]
        with np.errstate(all="ignore"):
            plain = OPERATIONS[operation](*values)
        if not all(np.isfinite(values)):
            out.append(plain)
            continue
        value = OPERATIONS[operation](*(Fraction(float(v)) for v in values))
        result = round_fraction(value, "bf16")
        # IEEE's sign of an exact zero is that of the float64 operation
        out.append(plain if value == 0 else result if result else (-0.0 if value < 0 else 0.0))
    return narrow(np.array(out))


def same(got, wanted):
    return (got == wanted) | (np.isnan(wide(got)) & np.isnan(wide(wanted)))


@pytest.mark.parametrize("operation", ["add", "sub", "mul", "fma"])
@pytest.mark.parametrize("pairs", [False, True])
def test_rounded_once(operation, pairs):
    columns = operands(3 if operation == "fma" else 2)
    if pairs and columns[0].size % 2:
        columns = [column[:-1] for column in columns]
    wanted = rounded(operation, columns)
    kind = "bf16x2" if pairs else "bf16"
    name = f"fma.rn.{kind} d, a, b, c;" if operation == "fma" else f"{operation}.rn.{kind} d, a, b;"
    inputs = [("b32", column.view(np.uint32)) if pairs else ("b16", column) for column in columns]
    got = run_instruction(name, inputs, "b32" if pairs else "b16").view(np.uint16)
    wrong = np.flatnonzero(~same(got, wanted))
    assert not wrong.size, (operation, [hex(c[wrong[0]]) for c in columns], hex(got[wrong[0]]), hex(wanted[wrong[0]]))


def test_rounding_twice_would_be_wrong_here():
    """A product next to a tie with a tiny addend: float32 alone loses the addend, and then rounds to even."""
    a, b, c = (np.array([v], np.uint16) for v in (0x3F81, 0x3FC0, 0x0080))  # 129/128 * 1.5 = 1.51171875, a tie
    for addend, wanted in ((c, 0x3FC2), (c | np.uint16(0x8000), 0x3FC1)):
        assert run_instruction("fma.rn.bf16 d, a, b, c;", [("b16", a), ("b16", b), ("b16", addend)], "b16")[0] == wanted


def test_relu():
    columns = operands(3, seed=1)
    plain = rounded("fma", columns)
    got = run_instruction("fma.rn.relu.bf16 d, a, b, c;", [("b16", column) for column in columns], "b16")
    assert same(got, np.where(wide(plain) > 0, plain, np.where(np.isnan(wide(plain)), NAN, 0)).astype(np.uint16)).all()


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("propagate", [False, True])
def test_extremes(largest, propagate):
    a, b = operands(2, seed=2)
    a[:4], b[:4] = [0, 0x8000, 0x7FC0, 0x7FC0], [0x8000, 0, 0x3F80, 0xFFC0]
    got = run_instruction(
        f"{'max' if largest else 'min'}{'.NaN' if propagate else ''}.bf16 d, a, b;", [("b16", a), ("b16", b)], "b16"
    )
    for x, y, result in zip(a.tolist(), b.tolist(), got.tolist(), strict=True):
        first, second = (float(wide(np.array([v], np.uint16))[0]) for v in (x, y))
        if np.isnan(first) or np.isnan(second):
            wanted = NAN if propagate or (np.isnan(first) and np.isnan(second)) else y if np.isnan(first) else x
        else:  # the sign bit tells two zeros apart
            order = sorted(((first, -(x >> 15), x), (second, -(y >> 15), y)))
            wanted = order[largest][2]
        assert result == wanted, (hex(x), hex(y), hex(result))


def test_signs():
    (a,) = operands(1, seed=3)
    assert np.array_equal(run_instruction("neg.bf16 d, a;", [("b16", a)], "b16"), a ^ 0x8000)
    assert np.array_equal(run_instruction("abs.bf16 d, a;", [("b16", a)], "b16"), a & 0x7FFF)
    pairs = a[: a.size // 2 * 2].view(np.uint32)
    assert np.array_equal(run_instruction("neg.bf16x2 d, a;", [("b32", pairs)], "b32"), pairs ^ np.uint32(0x80008000))
    assert np.array_equal(run_instruction("abs.bf16x2 d, a;", [("b32", pairs)], "b32"), pairs & np.uint32(0x7FFF7FFF))


COMPARISONS = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


@pytest.mark.parametrize("comparison", [*COMPARISONS, *(name + "u" for name in COMPARISONS), "num", "nan"])
def test_comparisons(comparison):
    a, b = operands(2, seed=4)
    a, b = (column[: column.size // 2 * 2] for column in (a, b))
    b[::7] = a[::7]
    x, y = wide(a), wide(b)
    nan = np.isnan(x) | np.isnan(y)
    if comparison in ("num", "nan"):
        holds = nan == (comparison == "nan")
    elif comparison.endswith("u"):
        holds = COMPARISONS[comparison[:-1]](x, y) | nan
    else:
        holds = COMPARISONS[comparison](x, y) & ~nan
    singles, pairs = [("b16", a), ("b16", b)], [("b32", a.view(np.uint32)), ("b32", b.view(np.uint32))]
    _, predicate = run_instruction(f"setp.{comparison}.bf16 p, a, b; mov.b16 d, 0;", singles, "b16", extra_output=True)
    assert np.array_equal(predicate, holds)
    assert np.array_equal(
        run_instruction(f"set.{comparison}.bf16.bf16 d, a, b;", singles, "b16"), np.where(holds, 0x3F80, 0)
    )
    assert np.array_equal(
        run_instruction(f"set.{comparison}.u32.bf16 d, a, b;", singles, "b32"), np.where(holds, 0xFFFFFFFF, 0)
    )
    got = run_instruction(f"set.{comparison}.bf16x2.bf16x2 d, a, b;", pairs, "b32").view(np.uint16)
    assert np.array_equal(got, np.where(holds, 0x3F80, 0))
    got = run_instruction(f"set.{comparison}.u32.bf16x2 d, a, b;", pairs, "b32").view(np.uint16)
    assert np.array_equal(got, np.where(holds, 0xFFFF, 0))
    _, predicate = run_instruction(
        f"{{.reg .pred q; setp.{comparison}.bf16x2 q|p, a, b;}} mov.b32 d, 0;", pairs, "b32", extra_output=True
    )
    assert np.array_equal(predicate, holds[1::2])


def test_conversions():
    (a,) = operands(1, seed=5)
    assert np.array_equal(run_instruction("cvt.f32.bf16 d, a;", [("b16", a)], "b32"), a.astype(np.uint32) << 16)
    values = edge_values("f32", np.random.default_rng(6))
    wanted = []
    for value in values:
        finite = np.isfinite(value) and value != 0
        result = round_fraction(Fraction(float(value)), "bf16") if finite else float(value)
        wanted.append(np.copysign(result, value))
    wanted = narrow(np.array(wanted))
    assert same(run_instruction("cvt.rn.bf16.f32 d, a;", [("f32", values)], "b16"), wanted).all()
    other = values[::-1].copy()
    pairs = (
        run_instruction("cvt.rn.bf16x2.f32 d, a, b;", [("f32", values), ("f32", other)], "b32")
        .view(np.uint16)
        .reshape(-1, 2)
    )
    assert same(pairs[:, 1], wanted).all()
    assert same(pairs[:, 0], wanted[::-1]).all()
    whole = np.random.default_rng(7).integers(-(2**31), 2**31, 300).astype(np.int32)
    wanted = narrow(np.array([round_fraction(Fraction(int(v)), "bf16") for v in whole]))
    assert np.array_equal(run_instruction("cvt.rn.bf16.s32 d, a;", [("s32", whole)], "b16"), wanted)
    with np.errstate(invalid="ignore"):
        wanted = np.clip(np.nan_to_num(np.trunc(wide(a).astype(np.float64)), nan=0), -(2**31), 2**31 - 1).astype(
            np.int32
        )
    assert np.array_equal(run_instruction("cvt.rzi.s32.bf16 d, a;", [("b16", a)], "s32"), wanted)
    assert same(
        run_instruction("cvt.rmi.bf16.bf16 d, a;", [("b16", a)], "b16"), narrow(np.floor(wide(a)).astype(np.float64))
    ).all()


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("source", ["f16", "f32", "f64", "s8", "u16", "s32", "u32", "s64", "u64"])
def test_every_source_and_rounding(source, mode):
    values = edge_values(source, np.random.default_rng(12))
    if source in ("s64", "u64"):  # ties and near ties in the middle of a long number
        ties = [1 << 40 | 1 << 32, 1 << 40 | 3 << 32, 1 << 40 | 1 << 32 | 1, (1 << 40 | 1 << 32) - 1, 1 << 62 | 1 << 54]
        values = np.concatenate(
            [values, np.array(ties, values.dtype), np.array([1 << 53, (1 << 53) + 1], values.dtype)]
        )
    got = run_instruction(f"cvt.{mode}.bf16.{source} d, a;", [(source, values)], "b16")
    wanted = (
        [round_fraction(Fraction(v.item()), "bf16", mode) if np.isfinite(v) else v for v in doubles(values)]
        if source[0] == "f"
        else [round_fraction(Fraction(int(v)), "bf16", mode) for v in values]
    )
    wanted = np.array([-0.0 if w == 0 and np.signbit(v) else w for v, w in zip(values, wanted, strict=True)])
    assert same(got, narrow(wanted)).all()


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
def test_to_other_floats(mode):
    bits = np.arange(65536, dtype=np.uint16)
    exact = doubles(wide(bits))
    assert np.array_equal(run_instruction("cvt.f64.bf16 d, a;", [("b16", bits)], "f64"), exact, equal_nan=True)
    got = run_instruction(f"cvt.{mode}.f16.bf16 d, a;", [("b16", bits[::7])], "f16")
    got = doubles(got)
    wanted = np.array([round_fraction(Fraction(v), "f16", mode) if np.isfinite(v) else v for v in exact[::7]])
    assert np.array_equal(got, wanted, equal_nan=True)


@pytest.mark.parametrize("name", ["tanh.approx.bf16", "ex2.approx.ftz.bf16"])
def test_functions_of_every_number(name):
    """All 65536 inputs against float64, within the manual's error; in pairs the same."""
    bits = np.arange(65536, dtype=np.uint16)
    got = run_instruction(f"{name} d, a;", [("b16", bits)], "b16")
    pairs = run_instruction(f"{name}x2 d, a;", [("b32", bits.astype(np.uint32) | np.uint32(0x3F800000))], "b32")
    assert np.array_equal(pairs.astype(np.uint16), got)
    value, exact = doubles(wide(got)), doubles(wide(bits))
    with np.errstate(over="ignore"):
        exact = np.tanh(exact) if "tanh" in name else np.exp2(np.where(np.abs(exact) < 2.0**-126, 0, exact))
    assert np.array_equal(np.isnan(value), np.isnan(exact))
    shown = np.isfinite(exact) & (np.abs(exact) >= 2.0**-126) & np.isfinite(value)
    error = np.abs(value[shown] - exact[shown])
    assert (error <= (2.0**-8 if "tanh" in name else 2.0**-7 * exact[shown])).all()
    if "ex2" in name:
        assert (value[exact < 2.0**-127] == 0).all()
        assert np.isinf(value[exact >= 2.0**128]).all()


@pytest.mark.parametrize("arch", ["compute_80", "compute_90"])
def test_as_nvrtc_writes_it(arch):
    """compute_80 has fused multiply-adds alone and compares in float32; compute_90 has an instruction for each."""
    text = """#include <cuda_bf16.h>
      extern "C" __global__ void k(const __nv_bfloat16* x, const __nv_bfloat162* z, __nv_bfloat16* y, __nv_bfloat162* w, int* q) { int i = threadIdx.x;
      __nv_bfloat16 a = x[i], b = x[32 + i], c = x[64 + i]; y[i] = a + b; y[32 + i] = a - b; y[64 + i] = a * b; y[96 + i] = __hfma(a, b, c);
      y[128 + i] = __hmin(a, b); y[160 + i] = __hmax_nan(a, b); y[192 + i] = -a; y[224 + i] = __habs(a); y[256 + i] = __hfma_sat(a, b, c);
      q[i] = a < b; q[32 + i] = __hequ(a, b); q[64 + i] = __hisnan(a);
      __nv_bfloat162 d = z[i], e = z[32 + i], g = z[64 + i]; w[i] = d + e; w[32 + i] = d - e; w[64 + i] = d * e; w[96 + i] = __hfma2(d, e, g);
      w[128 + i] = __hmin2(d, e); w[160 + i] = __hmax2(d, e); w[192 + i] = __heq2(d, e); w[224 + i] = __hgeu2(d, e); q[96 + i] = __hlt2_mask(d, e); q[128 + i] = __hbeq2(d, e); }"""
    rng = np.random.default_rng(8)
    x = (rng.standard_normal(96).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    z = (rng.standard_normal(192).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    x[3], z[5] = NAN, NAN
    x[32 + 7], z[64:74] = x[7], z[:10]
    y, w, q = np.zeros((9, 32), np.uint16), np.zeros((8, 64), np.uint16), np.zeros((5, 32), np.int32)
    Program(compile_ptx(text, arch)).launch("k", (1,), (32,), (x, z, y, w, q))
    for rows, (a, b, c) in ((y, x.reshape(3, 32)), (w, z.reshape(3, 64))):
        for row, operation in enumerate(("add", "sub", "mul", "fma")):
            assert same(rows[row], rounded(operation, (a, b, c) if operation == "fma" else (a, b))).all()
        assert same(rows[4], narrow(np.fmin(wide(a), wide(b)).astype(np.float64))).all()
    (a, b, c), (d, e, _) = x.reshape(3, 32), z.reshape(3, 64)
    assert same(y[5], narrow(np.maximum(wide(a), wide(b)).astype(np.float64))).all()
    assert np.array_equal(y[6], a ^ 0x8000)
    assert np.array_equal(y[7], a & 0x7FFF)
    assert same(
        y[8], narrow(np.nan_to_num(np.clip(wide(rounded("fma", (a, b, c))), 0, 1).astype(np.float64), nan=0))
    ).all()
    assert np.array_equal(
        q[:3], [wide(a) < wide(b), (wide(a) == wide(b)) | np.isnan(wide(a) + wide(b)), np.isnan(wide(a))]
    )
    assert same(w[5], narrow(np.fmax(wide(d), wide(e)).astype(np.float64))).all()
    assert np.array_equal(w[6], np.where(wide(d) == wide(e), 0x3F80, 0))
    assert np.array_equal(w[7], np.where(~(wide(d) < wide(e)), 0x3F80, 0))
    assert np.array_equal(q[3].view(np.uint16), np.where(wide(d) < wide(e), 0xFFFF, 0))
    assert np.array_equal(q[4], (wide(d) == wide(e)).reshape(32, 2).all(1))


@pytest.mark.parametrize(
    "instruction",
    [
        "fma.rn.sat.bf16 d, a, a, a;",
        "add.ftz.bf16 d, a, a;",
        "ex2.approx.bf16 d, a;",
        "cvt.rn.sat.bf16.f64 d, fd;",
        "min.xorsign.abs.bf16 d, a, a;",
    ],
)
def test_refused_by_name(instruction):
    text = f".version 8.6\n.target sm_90\n.address_size 64\n.visible .entry k()\n{{\n.reg .b16 a, d; .reg .f64 fd;\n{instruction}\nret;\n}}\n"
    with pytest.raises(NotImplementedError, match=instruction.split()[0].replace(".", r"\.")):
        Program(text).plan("k")
