# ruff: noqa: E501 (tables and kernels keep one case to a line)
"""Every float instruction against exact fractions, to the last bit, on zeros, subnormals, infinities and NaN."""

from fractions import Fraction
from math import isqrt

import numpy as np
import pytest
from emulator_reference import DTYPES, edge_values, round_fraction, run_instruction, same_bits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from styleforge_lib.runtime.emulator.translate import multiply_add, special

MODES = ("rn", "rz", "rm", "rp")
OPERATIONS = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}


def exact(operation, *values):
    a, b = (Fraction(float(v)) for v in values[:2])
    if operation == "fma":
        return a * b + Fraction(float(values[2]))
    return {"add": a + b, "sub": a - b, "mul": a * b, "div": a / b if b else None}[operation]


def expected(operation, kind, mode, columns):
    """Each lane from exact fractions; NaN, infinities and the sign of zero from IEEE rules."""
    dtype = DTYPES[kind]
    out = np.empty(columns[0].size, dtype)
    for lane, values in enumerate(zip(*columns, strict=True)):
        wide = [np.float64(v) for v in values]
        with np.errstate(all="ignore"):
            plain = wide[0] * wide[1] + wide[2] if operation == "fma" else OPERATIONS[operation](*wide)
        if not all(np.isfinite(v) for v in values) or (operation == "div" and values[1] == 0):
            out[lane] = plain
            continue
        value = exact(operation, *values)
        if value == 0:
            signs = {"mul": [np.signbit(values[0]) ^ np.signbit(values[1])], "div": [np.signbit(values[0]) ^ np.signbit(values[1])],
                     "add": [np.signbit(values[0]), np.signbit(values[1])], "sub": [np.signbit(values[0]), not np.signbit(values[1])],
                     "fma": [np.signbit(values[0]) ^ np.signbit(values[1]), np.signbit(values[-1])]}[operation]  # fmt: skip
            negative = all(signs) or (mode == "rm" and any(signs))
            out[lane] = -0.0 if negative else 0.0
            continue
        rounded = round_fraction(value, kind, mode)
        out[lane] = rounded if rounded else (-0.0 if value < 0 else 0.0)
    return out


def operands(kind, count, seed=0):
    rng = np.random.default_rng(seed)
    columns = [edge_values(kind, np.random.default_rng(seed + k)) for k in range(count)]
    return [columns[0], *(rng.permutation(column) for column in columns[1:])]


def compare(name, got, wanted, columns):
    wrong = np.flatnonzero(~same_bits(got, wanted))
    assert not wrong.size, (name, wrong.size, [c[wrong[0]] for c in columns], got[wrong[0]], wanted[wrong[0]])


@pytest.mark.parametrize("kind", ["f32", "f64"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("operation", ["add", "sub", "mul", "div", "fma"])
def test_arithmetic_is_exactly_rounded(operation, mode, kind):
    columns = operands(kind, 3 if operation == "fma" else 2)
    text = f"{operation}.{mode}.{kind} d, a, b{', c' if operation == 'fma' else ''};"
    got = run_instruction(text, [(kind, column) for column in columns], kind)
    compare(text, got, expected(operation, kind, mode, columns), columns)


@pytest.mark.parametrize("operation", ["add", "sub", "mul", "fma"])
def test_half_arithmetic(operation):
    columns = operands("f16", 3 if operation == "fma" else 2)
    text = f"{operation}{'.rn' if operation == 'fma' else ''}.f16 d, a, b{', c' if operation == 'fma' else ''};"
    got = run_instruction(text, [("f16", column) for column in columns], "f16")
    compare(text, got, expected(operation, "f16", "rn", columns), columns)


@pytest.mark.parametrize("operation", ["add", "sub", "mul", "fma", "min", "max"])
def test_half_pairs_do_both_halves(operation):
    count = 3 if operation == "fma" else 2
    columns = operands("f16", 2 * count)
    size = columns[0].size
    pairs = [np.stack(columns[2 * k : 2 * k + 2], axis=1).copy().view(np.uint32).reshape(-1) for k in range(count)]
    letters = ", ".join("abc"[:count])
    rounding = ".rn" if operation == "fma" else ""
    got = run_instruction(f"{operation}{rounding}.f16x2 d, {letters};", [("f16x2", p) for p in pairs], "f16x2")
    for half in (0, 1):
        sources = [("f16", columns[2 * k + half]) for k in range(count)]
        single = run_instruction(f"{operation}{rounding}.f16 d, {letters};", sources, "f16")
        compare(operation, got.view(np.float16).reshape(size, 2)[:, half].copy(), single, columns)


@pytest.fixture(params=["complex product", "float64"])
def way(request, monkeypatch):
    """Both ways to a fused multiply-add: what NumPy does in one operation, and what stands in for it elsewhere."""
    if request.param == "float64":
        monkeypatch.setattr(multiply_add, "COMPLEX_PRODUCT_FUSES", False)
    elif not multiply_add.COMPLEX_PRODUCT_FUSES:
        pytest.skip("NumPy's complex product rounds twice on this processor")
    else:
        monkeypatch.setattr(multiply_add, "WORTH_COMPLEX", 2)
    return request.param


def near_ties(rng, count):
    """Return a, b, c with a * b + c within a hair of the midpoint of two float32: where rounding twice goes wrong."""
    c = (rng.integers(2**23, 2**24, count) * 2.0 ** rng.integers(-10, 10, count)).astype(np.float32)
    half_unit = np.spacing(c).astype(np.float64) / 2
    tiny = half_unit * 2.0 ** -rng.integers(20, 45, count) * rng.choice([-1, 0, 1], count)
    a = np.float32(2.0) ** rng.integers(-3, 3, count).astype(np.float32)
    b = ((half_unit + tiny) / a).astype(np.float32)
    return a * rng.choice([1, -1], count).astype(np.float32), b, c


def test_fused_multiply_add_on_near_ties(way):
    a, b, c = near_ties(np.random.default_rng(5), 1500)
    small = np.random.default_rng(6).integers(-(2**12), 2**12, (3, 500)).astype(np.float32) + np.float32(0.5)
    columns = [np.concatenate(pair) for pair in zip((a, b, c), small, strict=True)]
    got = run_instruction("fma.rn.f32 d, a, b, c;", [("f32", column) for column in columns], "f32")
    compare("fma", got, expected("fma", "f32", "rn", columns), columns)


@pytest.mark.parametrize("shapes", [((48, 9), (1, 9), (48, 9)), ((48, 1), (1, 9), (48, 9)), ((48, 1), (1, 9), ()),
                                    ((48, 9), (), (1, 9)), ((), (), (48, 9)), ((48, 9), (48, 1), (48, 1))])  # fmt: skip
def test_fused_multiply_add_of_values_of_any_shape(shapes, way):
    rng = np.random.default_rng(8)
    a, b, c = (np.asarray(rng.standard_normal(shape), np.float32)[()] for shape in shapes)
    c = c - np.float32(1)
    whole = np.broadcast_shapes(*shapes)
    columns = [np.broadcast_to(value, whole).reshape(-1) for value in (a, b, c)]
    for x, y in ((a, b), (b, a)):
        got = np.broadcast_to(multiply_add.fma32(x, y, c), whole).reshape(-1)
        compare("fma", got.copy(), expected("fma", "f32", "rn", columns), columns)


def random_value(rng, shape):
    return np.asarray(rng.standard_normal(shape), np.float32)[()]


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("first", [(), (48, 1), (48, 9), "sum"])
@pytest.mark.parametrize("factors", [[((48, 9), (1, 9))], [((48, 9), ())], [((1, 9), (48, 1))],
                                     [((48, 9), (48, 9))], [((48, 1), (48, 1)), ((1, 9), (48, 9)), ((), (48, 9))],
                                     [((), ()), ((1, 9), (1, 9)), ((48, 1), (1, 9))]])  # fmt: skip
def test_a_running_sum_is_one_multiply_add_after_the_other(factors, first, count, way, monkeypatch):
    """Of factors and addends of any shape; an addend that is itself such a sum stays as it was."""
    monkeypatch.setattr(multiply_add, "_LOOP", 18)  # so that rows are repeated
    rng = np.random.default_rng(9)
    start = random_value(rng, (48, 9) if first == "sum" else first)
    if first == "sum":
        start = multiply_add.fma32(random_value(rng, (1, 9)), random_value(rng, (48, 9)), start)
    before = start.copy()
    terms = [tuple(random_value(rng, shape) for shape in factors[k % len(factors)]) for k in range(count)]
    total, wanted = multiply_add.RunningSum(start, count), before
    for a, b in terms[:-1]:
        total = total.plus(a, b)
    total = total.total(*terms[-1])
    for a, b in terms:
        columns = [np.broadcast_to(v, np.broadcast_shapes(a.shape, b.shape, wanted.shape)) for v in (a, b, wanted)]
        flat = [np.ascontiguousarray(column).reshape(-1) for column in columns]
        wanted = np.asarray(expected("fma", "f32", "rn", flat), np.float32).reshape(columns[0].shape)
    assert np.array_equal(np.broadcast_to(total, wanted.shape), wanted)
    assert np.array_equal(start, before)
    again = multiply_add.fma32(terms[0][0], terms[0][1], total)  # the result's room serves the next product
    assert np.array_equal(again, multiply_add.fma32(terms[0][0], terms[0][1], total.copy()))


def test_fused_multiply_add_that_rounds_twice_wrongly_without_care(way):
    """1 + 2^-24 (1 + 2^-29): float64 rounds the sum to a tie, which then goes to even; the truth is above the tie."""
    a, b, c = np.float32(1 + 2**-12), np.float32(2**-24 * (1 - 2**-12 + 2**-23)), np.float32(1)
    wanted = round_fraction(Fraction(float(a)) * Fraction(float(b)) + 1, "f32")
    got = run_instruction("fma.rn.f32 d, a, b, c;", [("f32", np.full(40, v)) for v in (a, b, c)], "f32")
    assert (got == np.float32(wanted)).all()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(*[st.integers(0, 2**32 - 1)] * 3), min_size=1, max_size=40))
def test_fused_multiply_add_of_any_bits(way, rows):
    columns = [np.array(column, np.uint32).view(np.float32) for column in zip(*rows, strict=True)]
    got = run_instruction("fma.rn.f32 d, a, b, c;", [("f32", column) for column in columns], "f32")
    compare("fma", got, expected("fma", "f32", "rn", columns), columns)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(-(2**24), 2**24), st.integers(-(2**24), 2**24), st.integers(0, 2**24), st.integers(-160, -100)),
                min_size=1, max_size=40))  # fmt: skip
def test_fused_multiply_add_with_subnormal_results(way, rows):
    """Results below 2^-126 have fewer digits, and their ties sit elsewhere."""
    columns = [np.array([float(r[0]) * 2.0 ** (r[3] // 2) for r in rows], np.float32),
               np.array([float(r[1]) * 2.0 ** (r[3] // 2 - 20) for r in rows], np.float32),
               np.array([float(r[2]) * 2.0**-149 for r in rows], np.float32)]  # fmt: skip
    got = run_instruction("fma.rn.f32 d, a, b, c;", [("f32", column) for column in columns], "f32")
    compare("fma", got, expected("fma", "f32", "rn", columns), columns)


@pytest.mark.parametrize("kind", ["f32", "f64"])
@pytest.mark.parametrize("mode", MODES)
def test_square_root(kind, mode):
    (column,) = operands(kind, 1)
    column = np.where(np.random.default_rng(0).random(column.size) < 0.7, np.abs(column), column)
    got = run_instruction(f"sqrt.{mode}.{kind} d, a;", [(kind, column)], kind)
    wanted = np.empty_like(column)
    for lane, value in enumerate(column):
        if not np.isfinite(value) or value <= 0:
            with np.errstate(invalid="ignore"):
                wanted[lane] = np.sqrt(value)
            continue
        # the root to 200 bits, with a sticky bit
        square = Fraction(float(value)) * (1 << 1400)
        root = isqrt(square.numerator // square.denominator)
        sticky = Fraction(0) if Fraction(root) ** 2 == square else Fraction(1, 2)
        wanted[lane] = round_fraction((root + sticky) / (1 << 700), kind, mode)
    compare("sqrt", got, wanted, [column])


@pytest.mark.parametrize("kind", ["f32", "f64"])
@pytest.mark.parametrize("mode", MODES)
def test_reciprocal(kind, mode):
    (column,) = operands(kind, 1)
    got = run_instruction(f"rcp.{mode}.{kind} d, a;", [(kind, column)], kind)
    compare("rcp", got, expected("div", kind, mode, [np.ones_like(column), column]), [column])


EXTREMES = [(name, kind) for name in ("min", "max") for kind in ("f16", "f32", "f64")]
EXTREMES += [(name, kind) for name in ("min.NaN", "max.NaN") for kind in ("f16", "f32")]


@pytest.mark.parametrize(("name", "kind"), EXTREMES)
def test_extremes_of_zeros_and_nan(name, kind):
    columns = operands(kind, 2)
    columns = [
        np.concatenate([c, np.array(z, DTYPES[kind])])
        for c, z in zip(columns, ([0, -0.0, 0, -0.0], [-0.0, 0, 0, -0.0]), strict=True)
    ]

    def key(value):
        return (float(value), not np.signbit(value))

    wanted = []
    for a, b in zip(*columns, strict=True):
        if np.isnan(a) or np.isnan(b):
            wanted.append(np.nan if "NaN" in name or (np.isnan(a) and np.isnan(b)) else (b if np.isnan(a) else a))
        else:
            wanted.append((min if "min" in name else max)(a, b, key=key))
    got = run_instruction(f"{name}.{kind} d, a, b;", [(kind, c) for c in columns], kind)
    compare(name, got, np.array(wanted, DTYPES[kind]), columns)


def test_relu_keeps_no_negative_zero():
    (column,) = operands("f32", 1)
    got = run_instruction("max.f32 d, a, 0f00000000;", [("f32", column)], "f32")
    wanted = np.where(np.isnan(column) | (column <= 0), np.float32(0), column)
    compare("max", got, wanted, [column])


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_signs(kind):
    a, b = operands(kind, 2)
    compare("neg", run_instruction(f"neg.{kind} d, a;", [(kind, a)], kind), -a, [a])
    compare("abs", run_instruction(f"abs.{kind} d, a;", [(kind, a)], kind), np.abs(a), [a])
    got = run_instruction(f"copysign.{kind} d, a, b;", [(kind, a), (kind, b)], kind)
    compare("copysign", got, np.copysign(b, a), [a, b])


def test_flush_to_zero_and_saturation():
    tiny = np.float32(2.0**-130)
    a = np.array([tiny, -tiny, 2.0**-100, 1.5, np.nan, -3, 0.25], np.float32)
    b = np.array([1, 1, 2.0**-40, 1, 1, 1, 1], np.float32)
    got = run_instruction("mul.ftz.f32 d, a, b;", [("f32", a), ("f32", b)], "f32")
    compare("ftz", got, np.array([0, -0.0, 0, 1.5, np.nan, -3, 0.25], np.float32), [a, b])
    got = run_instruction("mul.sat.f32 d, a, b;", [("f32", a), ("f32", b)], "f32")
    compare("sat", got, np.array([tiny, 0, a[2] * b[2], 1, 0, 0, 0.25], np.float32), [a, b])
    got = run_instruction("fma.rn.ftz.sat.f32 d, a, b, b;", [("f32", a), ("f32", b)], "f32")
    compare("fma", got, np.array([1, 1, 2.0**-40, 1, 0, 0, 1], np.float32), [a, b])


COMPARISONS = {
    "eq": lambda a, b: a == b, "ne": lambda a, b: a != b and a == a and b == b, "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b, "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b,
    "equ": lambda a, b: a == b or a != a or b != b, "neu": lambda a, b: a != b, "ltu": lambda a, b: not a >= b,
    "leu": lambda a, b: not a > b, "gtu": lambda a, b: not a <= b, "geu": lambda a, b: not a < b,
    "num": lambda a, b: a == a and b == b, "nan": lambda a, b: a != a or b != b,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["f16", "f32", "f64"])
@pytest.mark.parametrize("name", COMPARISONS)
def test_comparisons_with_nan(name, kind):
    a, b = operands(kind, 2)
    b[::3] = a[::3]
    text = f"setp.{name}.{kind} p, a, b; selp.u32 d, 1, 0, p;"
    got = run_instruction(text, [(kind, a), (kind, b)], "u32")
    wanted = [int(bool(COMPARISONS[name](x, y))) for x, y in zip(a, b, strict=True)]
    assert got.tolist() == wanted


SPECIAL = {
    "ex2.approx.f32": (np.exp2, 2**-21), "ex2.approx.ftz.f32": (np.exp2, 2**-21), "lg2.approx.f32": (np.log2, 2**-21),
    "sin.approx.f32": (np.sin, 2**-20), "cos.approx.f32": (np.cos, 2**-20), "tanh.approx.f32": (np.tanh, 2**-10),
    "rsqrt.approx.f32": (lambda a: 1 / np.sqrt(a), 2**-21), "rcp.approx.ftz.f32": (lambda a: 1 / a, 2**-22),
    "sqrt.approx.f32": (np.sqrt, 2**-22),
}  # fmt: skip


@pytest.mark.parametrize("name", SPECIAL)
def test_special_functions_keep_the_manuals_bound(name):
    function, bound = SPECIAL[name]
    rng = np.random.default_rng(0)
    values = rng.uniform(-3, 3, 500).astype(np.float32)
    values = np.abs(values) + np.float32(0.01) if name[:2] in ("lg", "rs", "sq") else values
    got = run_instruction(f"{name} d, a;", [("f32", values)], "f32").astype(np.float64)
    wanted = function(values.astype(np.float64))
    assert (np.abs(got - wanted) <= bound * np.maximum(1, np.abs(wanted))).all()
    edges = np.array([0, np.inf, np.nan], np.float32)
    got = run_instruction(f"{name} d, a;", [("f32", edges)], "f32")
    with np.errstate(all="ignore"):
        assert np.array_equal(np.isfinite(got), np.isfinite(function(edges.astype(np.float64))))


@pytest.mark.parametrize("others", [0, 3, 4000])
def test_powers_of_mostly_zeros(others):
    """Most are 1 and are not computed."""
    rng = np.random.default_rng(1)
    values = np.zeros((64, 96), np.float32)
    values[::3] = -0.0
    places = rng.choice(values.size, others, replace=False)
    values.reshape(-1)[places] = rng.choice([np.nan, np.inf, -np.inf, 127.9, -149.0, 1e-30, 3.7], others)
    with np.errstate(all="ignore"):
        wanted = np.exp2(values.astype(np.float64)).astype(np.float32)
        assert np.array_equal(special.exp2_32(values), wanted, equal_nan=True)
        assert np.array_equal(special.exp2_32(values.T), wanted.T, equal_nan=True)


FLOAT_TO_INTEGER = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


@pytest.mark.parametrize("source", ["f16", "f32", "f64"])
@pytest.mark.parametrize("target", ["s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64"])
@pytest.mark.parametrize("mode", FLOAT_TO_INTEGER)
def test_float_to_integer(source, target, mode):
    (column,) = operands(source, 1)
    info = np.iinfo(DTYPES[target])
    extra = np.array([float(info.max), float(info.min), float(info.max) + 1, 0.5, 1.5, -0.5, -1.5, 2.5], np.float64)
    with np.errstate(over="ignore"):
        column = np.concatenate([column, extra.astype(DTYPES[source])])
    got = run_instruction(f"cvt.{mode}.{target}.{source} d, a;", [(source, column)], target)
    wanted = []
    for value in column:
        if np.isnan(value):  # the highest bit alone where 64 bits are involved, measured on an H200
            highest = int(info.min) if info.min < 0 else int(info.max) // 2 + 1
            wanted.append(highest if source == "f64" or info.bits == 64 else 0)
        elif np.isinf(value):
            wanted.append(int(info.max if value > 0 else info.min))
        else:
            wanted.append(min(max(int(FLOAT_TO_INTEGER[mode](np.float64(value))), int(info.min)), int(info.max)))
    assert got.astype(object).tolist() == wanted


@pytest.mark.parametrize("target", ["f16", "f32", "f64"])
@pytest.mark.parametrize("source", ["s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64"])
@pytest.mark.parametrize("mode", MODES)
def test_integer_to_float(source, target, mode):
    column = edge_values(source, np.random.default_rng(0))
    if target == "f16" and mode != "rn":
        column = column[np.abs(column.astype(np.float64)) < 60000]
    got = run_instruction(f"cvt.{mode}.{target}.{source} d, a;", [(source, column)], target)
    wanted = np.array([round_fraction(Fraction(int(v)), target, mode) for v in column], DTYPES[target])
    compare("cvt", got, wanted, [column])


NARROWING = [(*pair, mode) for pair in (("f32", "f16"), ("f64", "f32"), ("f64", "f16")) for mode in MODES]
WIDENING = [("f16", "f32", "rn"), ("f32", "f64", "rn"), ("f16", "f64", "rn")]


@pytest.mark.parametrize(("source", "target", "mode"), NARROWING + WIDENING)
def test_float_to_float(source, target, mode):
    (column,) = operands(source, 1)
    narrowing = DTYPES[target].itemsize < DTYPES[source].itemsize
    text = f"cvt.{mode + '.' if narrowing else ''}{target}.{source} d, a;"
    got = run_instruction(text, [(source, column)], target)
    wanted = np.empty(column.size, DTYPES[target])
    for lane, value in enumerate(column):
        if np.isfinite(value) and value != 0:
            rounded = round_fraction(Fraction(float(value)), target, mode)
            wanted[lane] = rounded if rounded else np.copysign(0.0, float(value))
        else:
            wanted[lane] = float(value)
    compare(text, got, wanted, [column])


@pytest.mark.parametrize("mode", FLOAT_TO_INTEGER)
@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_rounding_to_a_whole_float(kind, mode):
    (column,) = operands(kind, 1)
    got = run_instruction(f"cvt.{mode}.{kind}.{kind} d, a;", [(kind, column)], kind)
    with np.errstate(invalid="ignore"):
        wanted = FLOAT_TO_INTEGER[mode](column)
    compare(mode, got, wanted, [column])


def test_bfloat16_and_packed_halves():
    a = np.array([1.0, 1 + 2.0**-8, 1 + 3 * 2.0**-8, 3.3e38, np.nan, -0.0, 1e-40], np.float32)
    got = run_instruction("cvt.rn.bf16.f32 d, a;", [("f32", a)], "u16")
    assert got.tolist() == [0x3F80, 0x3F80, 0x3F82, 0x7F78, 0x7FFF, 0x8000, 0x0001]
    b = a[::-1].copy()
    got = (
        run_instruction("cvt.rn.f16x2.f32 d, a, b;", [("f32", a), ("f32", b)], "f16x2").view(np.float16).reshape(-1, 2)
    )
    with np.errstate(over="ignore"):
        assert same_bits(got[:, 1].copy(), a.astype(np.float16)).all()
        assert same_bits(got[:, 0].copy(), b.astype(np.float16)).all()


def test_a_pair_with_relu_keeps_nan():
    """PTX ISA: .relu clamps what is negative to 0, and a NaN becomes the canonical one."""
    a, b = np.array([np.nan, -1.0, 2.0], np.float32), np.array([3.0, np.nan, -0.0], np.float32)
    got = run_instruction("cvt.rn.relu.f16x2.f32 d, a, b;", [("f32", a), ("f32", b)], "f16x2")
    wanted = np.stack([b, np.where(a < 0, np.float32(0), a)], -1).astype(np.float16)
    np.testing.assert_array_equal(got.view(np.float16).reshape(-1, 2), wanted)


@pytest.mark.parametrize("name", ["ex2.approx.f16", "ex2.approx.ftz.f16", "tanh.approx.f16"])
def test_half_functions_of_every_number(name):
    """All 65536 inputs, alone and in pairs, against float64 and the manual's bound."""
    bits = np.arange(65536, dtype=np.uint16)
    got = run_instruction(f"{name} d, a;", [("f16", bits.view(np.float16))], "f16")
    pairs = run_instruction(f"{name}x2 d, a;", [("b32", bits.astype(np.uint32) << 16 | 0x3C00)], "b32")
    assert same_bits((pairs >> 16).astype(np.uint16).view(np.float16), got).all()
    with np.errstate(all="ignore"):
        x, got = bits.view(np.float16).astype(np.float64), got.astype(np.float64)
        x = np.where(np.abs(x) < 2.0**-14, 0, x) if "ftz" in name else x
        wanted = np.tanh(x) if "tanh" in name else np.exp2(x)
        rounded = wanted.astype(np.float16).astype(np.float64)
    wanted = np.where((np.abs(rounded) < 2.0**-14) & ("ftz" in name), 0, wanted)
    finite = np.isfinite(rounded)
    assert np.array_equal(got[~finite], rounded[~finite], equal_nan=True)
    bound = 2.0**-10.987 if "tanh" in name else np.maximum(2.0**-9.9 * wanted[finite], 2.0**-25)
    assert (np.abs(got[finite] - wanted[finite]) <= bound).all()


@pytest.mark.parametrize("name", ["div.approx.f32", "div.approx.ftz.f32", "div.full.f32"])
def test_approximate_division(name):
    """Two ulp; .approx by a divisor beyond 2^126 gives zero, and NaN of an infinity (PTX ISA, div)."""
    a = np.array([1, -1, np.inf, 0, np.nan, 3e38, 1, 7, -5, 1], np.float32)
    b = np.array([1e38, 2e38, 1e38, 2e38, 1e38, 1e38, np.inf, 3, 1e-3, 0], np.float32)
    got = run_instruction(f"{name} d, a, b;", [("f32", a), ("f32", b)], "f32")
    with np.errstate(all="ignore"):
        wanted = a / b
        wanted = (
            np.where(np.abs(b) > 2.0**126, a * np.copysign(np.float32(0), b), wanted) if "full" not in name else wanted
        )
    assert same_bits(got, wanted.astype(np.float32)).all()


@pytest.mark.parametrize("name", ["rcp.approx.ftz.f64", "rsqrt.approx.ftz.f64"])
def test_gross_approximations_of_float64(name):
    """Only the upper 32 bits of operand and result count; subnormal numbers are zero."""
    a = edge_values("f64", np.random.default_rng(4))
    got = run_instruction(f"{name} d, a;", [("f64", a)], "f64")
    with np.errstate(all="ignore"):
        upper = (a.view(np.uint64) >> 32 << 32).view(np.float64)
        upper = np.where(np.abs(upper) < 2.0**-1022, np.copysign(0, upper), upper)
        wanted = 1 / (np.sqrt(upper) if name[1] == "s" else upper)
        wanted = np.where(np.abs(wanted) < 2.0**-1022, np.copysign(0, wanted), wanted)
    assert not (got[~np.isnan(got)].view(np.uint64) & np.uint64(0xFFFFFFFF)).any()
    with np.errstate(all="ignore"):
        near = np.abs(got - wanted) <= 2.0**-20 * np.abs(wanted)
    assert (near | (got == wanted) | (np.isnan(got) & np.isnan(wanted))).all()


@pytest.mark.parametrize("mode", [*MODES, "rn.ftz"])
@pytest.mark.parametrize("operation", ["add", "sub", "mul", "fma"])
def test_pairs_of_float32(operation, mode):
    """Each half of .f32x2 (sm_100) is the .f32 instruction."""
    rng = np.random.default_rng(5)
    columns = [rng.permutation(edge_values("f32", rng))[:240] for _ in range(3 if operation == "fma" else 2)]
    names = ", ".join("abc"[: len(columns)])
    singles = run_instruction(f"{operation}.{mode}.f32 d, {names};", [("f32", column) for column in columns], "f32")
    pairs = [("b64", column.view(np.uint64)) for column in columns]
    got = run_instruction(f"{operation}.{mode}.f32x2 d, {names};", pairs, "b64").view(np.float32)
    assert same_bits(got, singles).all()
