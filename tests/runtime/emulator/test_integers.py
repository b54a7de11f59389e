# ruff: noqa: E501 (tables and kernels keep one case to a line)
"""Every integer instruction against Python integers."""

import numpy as np
import pytest
from emulator_reference import DTYPES, edge_values, run_instruction
from hypothesis import given, settings
from hypothesis import strategies as st

BITS = {kind: 8 * dtype.itemsize for kind, dtype in DTYPES.items()}


def wrap(value: int, kind: str) -> int:
    bits = BITS[kind]
    value &= (1 << bits) - 1
    return value - (1 << bits) if kind[0] == "s" and value >> (bits - 1) else value


def divide(a: int, b: int) -> int:
    q = abs(a) // abs(b)
    return q if (a < 0) == (b < 0) else -q


def unsigned(value: int, kind: str) -> int:
    return value & ((1 << BITS[kind]) - 1)


def clamp(value: int, kind: str) -> int:
    info = np.iinfo(DTYPES[kind])
    return min(max(value, int(info.min)), int(info.max))


def find_bit(a: int, kind: str) -> int:
    if kind[0] == "s" and a < 0:
        a = ~a
    return a.bit_length() - 1 if a else 0xFFFFFFFF


def extract(a: int, start: int, length: int, kind: str) -> int:
    start, length, bits = start & 255, length & 255, BITS[kind]
    msb = bits - 1
    sign = 0 if kind[0] == "u" or length == 0 else (unsigned(a, kind) >> min(start + length - 1, msb)) & 1
    result = 0
    for i in range(msb + 1):
        bit = (unsigned(a, kind) >> (i + start)) & 1 if i < length and i + start <= msb else sign
        result |= bit << i
    return wrap(result, kind)


def insert(a: int, b: int, start: int, length: int, kind: str) -> int:
    start, length, msb, result = start & 255, length & 255, BITS[kind] - 1, b
    for i in range(length):
        if start + i <= msb:
            result = (result & ~(1 << (start + i))) | (((a >> i) & 1) << (start + i))
    return result


def permute(a: int, b: int, selector: int) -> int:
    source, result = (b << 32) | a, 0
    for place in range(4):
        nibble = selector >> (4 * place) & 15
        byte = source >> (8 * (nibble & 7)) & 255
        if nibble & 8:
            byte = 255 if byte & 128 else 0
        result |= byte << (8 * place)
    return result


def pairwise(function, signed):
    """Lift a function of integers to the two 16-bit halves of a word."""
    kind = "s16" if signed else "u16"

    def both(a, b):
        halves = [function(wrap(a >> s, kind), wrap(b >> s, kind)) for s in (0, 16)]
        return (halves[0] & 0xFFFF) | (halves[1] & 0xFFFF) << 16

    return both


def byte_differences(a, b, bits, a_kind, b_kind):
    return [abs(wrap(a >> s, a_kind) - wrap(b >> s, b_kind)) for s in range(0, 32, bits)]


# Bytes that each mode of prmt picks, the highest first, for each value of the selector's two low bits (PTX ISA, prmt).
PRMT_MODES = {
    "f4e": ("3210", "4321", "5432", "6543"), "b4e": ("5670", "6701", "7012", "0123"),
    "rc8": ("0000", "1111", "2222", "3333"), "ecl": ("3210", "3211", "3222", "3333"),
    "ecr": ("0000", "1110", "2210", "3210"), "rc16": ("1010", "3232", "1010", "3232"),
}  # fmt: skip
ALL = ("u16", "s16", "u32", "s32", "u64", "s64")
WIDE = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}
BINARY = [
    *((f"add.{k}", k, k, k, lambda a, b: a + b) for k in ALL),
    *((f"sub.{k}", k, k, k, lambda a, b: a - b) for k in ALL),
    *((f"mul.lo.{k}", k, k, k, lambda a, b: a * b) for k in ALL),
    *((f"mul.hi.{k}", k, k, k, lambda a, b, k=k: (a * b) >> BITS[k]) for k in ALL),
    *((f"mul.wide.{k}", k, k, w, lambda a, b: a * b) for k, w in WIDE.items()),
    *((f"min.{k}", k, k, k, min) for k in ALL),
    *((f"max.{k}", k, k, k, max) for k in ALL),
    *((f"div.{k}", k, k, k, lambda a, b: divide(a, b) if b else -1) for k in ALL),
    *((f"rem.{k}", k, k, k, lambda a, b: a - divide(a, b) * b if b else a) for k in ALL),
    *((f"{op}.{k}", k, k, k, f) for k in ("b16", "b32", "b64") for op, f in (
        ("and", lambda a, b: a & b), ("or", lambda a, b: a | b), ("xor", lambda a, b: a ^ b))),
    *((f"shl.{k}", k, "u32", k, lambda a, b, k=k: a << b if b < BITS[k] else 0) for k in ("b16", "b32", "b64")),
    *((f"shr.{k}", k, "u32", k, lambda a, b: a >> min(b, 64)) for k in (*ALL, "b16", "b32", "b64")),
    ("add.sat.s32", "s32", "s32", "s32", lambda a, b: clamp(a + b, "s32")),
    ("sub.sat.s32", "s32", "s32", "s32", lambda a, b: clamp(a - b, "s32")),
    *((f"add.{k}", "b32", "b32", "b32", pairwise(lambda a, b: a + b, k[0] == "s")) for k in ("u16x2", "s16x2")),
    *((f"{op}.{k}", "b32", "b32", "b32", pairwise(f, k[0] == "s")) for k in ("u16x2", "s16x2") for op, f in (("min", min), ("max", max))),
    *((f"{op}.relu.s16x2", "b32", "b32", "b32", pairwise(lambda a, b, f=f: max(f(a, b), 0), True)) for op, f in (("min", min), ("max", max))),
    *((f"{op}.relu.s32", "s32", "s32", "s32", lambda a, b, f=f: max(f(a, b), 0)) for op, f in (("min", min), ("max", max))),
    ("mul24.lo.s32", "s32", "s32", "s32", lambda a, b: (wrap(a << 8, "s32") >> 8) * (wrap(b << 8, "s32") >> 8)),
    ("mul24.lo.u32", "u32", "u32", "u32", lambda a, b: (a & 0xFFFFFF) * (b & 0xFFFFFF)),
    ("bmsk.clamp.b32", "b32", "b32", "b32", lambda a, b: ((1 << min(b, 32)) - 1) << min(a, 32)),
    ("bmsk.wrap.b32", "b32", "b32", "b32", lambda a, b: ((1 << (b & 31)) - 1) << (a & 31)),
]  # fmt: skip
UNARY = [
    *((f"neg.{k}", k, k, lambda a: -a) for k in ("s16", "s32", "s64")),
    *((f"abs.{k}", k, k, abs) for k in ("s16", "s32", "s64")),
    *((f"not.{k}", k, k, lambda a: ~a) for k in ("b16", "b32", "b64")),
    *((f"cnot.{k}", k, k, lambda a: int(a == 0)) for k in ("b16", "b32", "b64")),
    *((f"popc.{k}", k, "u32", lambda a: bin(a).count("1")) for k in ("b32", "b64")),
    *((f"clz.{k}", k, "u32", lambda a, k=k: BITS[k] - a.bit_length()) for k in ("b32", "b64")),
    *((f"brev.{k}", k, k, lambda a, k=k: int(f"{a:0{BITS[k]}b}"[::-1], 2)) for k in ("b32", "b64")),
    *((f"bfind.{k}", k, "u32", lambda a, k=k: find_bit(a, k)) for k in ("u32", "s32", "u64", "s64")),
    ("bfind.shiftamt.u32", "u32", "u32", lambda a: 31 - find_bit(a, "u32") if a else 0xFFFFFFFF),
]
TERNARY = [
    *((f"mad.lo.{k}", k, k, k, k, lambda a, b, c: a * b + c) for k in ALL),
    *((f"mad.hi.{k}", k, k, k, k, lambda a, b, c, k=k: ((a * b) >> BITS[k]) + c) for k in ("u32", "s32", "u64", "s64")),
    *((f"mad.wide.{k}", k, k, w, w, lambda a, b, c: a * b + c) for k, w in WIDE.items()),
    *((f"sad.{k}", k, k, k, k, lambda a, b, c: c + abs(a - b)) for k in ("u32", "s32", "u16", "s16")),
    *((f"bfe.{k}", k, "u32", "u32", k, lambda a, b, c, k=k: extract(a, b, c, k)) for k in ("u32", "s32", "u64", "s64")),
    ("shf.l.wrap.b32", "u32", "u32", "u32", "u32", lambda a, b, c: (((b << 32) | a) << (c & 31)) >> 32),
    ("shf.r.wrap.b32", "u32", "u32", "u32", "u32", lambda a, b, c: ((b << 32) | a) >> (c & 31)),
    ("shf.l.clamp.b32", "u32", "u32", "u32", "u32", lambda a, b, c: (((b << 32) | a) << min(c, 32)) >> 32),
    ("shf.r.clamp.b32", "u32", "u32", "u32", "u32", lambda a, b, c: ((b << 32) | a) >> min(c, 32)),
    ("prmt.b32", "b32", "b32", "b32", "b32", permute),
    *((f"prmt.b32.{mode}", "b32", "b32", "b32", "b32", lambda a, b, c, rows=rows: permute(a, b, int(rows[c & 3], 16)))
      for mode, rows in PRMT_MODES.items()),
    *((f"vabsdiff4.u32.{x}.{y}{add}", "b32", "b32", "b32", "b32", lambda a, b, c, x=x, y=y, add=add:
       c + sum(byte_differences(a, b, 8, x[0] + "8", y[0] + "8")) if add else sum((v & 255) << 8 * k for k, v in enumerate(byte_differences(a, b, 8, x[0] + "8", y[0] + "8"))))
      for x, y in (("u32", "u32"), ("s32", "s32"), ("s32", "u32")) for add in ("", ".add")),
    ("vabsdiff2.s32.s32.s32.add", "b32", "b32", "b32", "b32", lambda a, b, c: c + sum(byte_differences(a, b, 16, "s16", "s16"))),
    ("vabsdiff2.u32.u32.u32", "b32", "b32", "b32", "b32", lambda a, b, c: sum((v & 0xFFFF) << 16 * k for k, v in enumerate(byte_differences(a, b, 16, "u16", "u16")))),
    ("mad.hi.sat.s32", "s32", "s32", "s32", "s32", lambda a, b, c: clamp(((a * b) >> 32) + c, "s32")),
    ("mad24.lo.s32", "s32", "s32", "s32", "s32", lambda a, b, c: (wrap(a << 8, "s32") >> 8) * (wrap(b << 8, "s32") >> 8) + c),
    ("dp2a.lo.u32.u32", "b32", "b32", "u32", "u32", lambda a, b, c: c + sum(((a >> 16 * k) & 0xFFFF) * ((b >> 8 * k) & 255) for k in range(2))),
    ("dp2a.lo.s32.s32", "b32", "b32", "s32", "s32", lambda a, b, c: c + sum(wrap(a >> 16 * k, "s16") * wrap(b >> 8 * k, "s8") for k in range(2))),
    ("mad24.lo.u32", "u32", "u32", "u32", "u32", lambda a, b, c: (a & 0xFFFFFF) * (b & 0xFFFFFF) + c),
    ("dp4a.u32.u32", "u32", "u32", "u32", "u32", lambda a, b, c: c + sum(((a >> 8 * k) & 255) * ((b >> 8 * k) & 255) for k in range(4))),
    ("dp4a.s32.s32", "b32", "b32", "s32", "s32", lambda a, b, c: c + sum(wrap(a >> 8 * k, "s8") * wrap(b >> 8 * k, "s8") for k in range(4))),
    ("dp4a.s32.u32", "b32", "b32", "s32", "s32", lambda a, b, c: c + sum(wrap(a >> 8 * k, "s8") * ((b >> 8 * k) & 255) for k in range(4))),
    ("dp2a.hi.s32.u32", "b32", "b32", "s32", "s32", lambda a, b, c: c + sum(wrap(a >> 16 * k, "s16") * ((b >> (16 + 8 * k)) & 255) for k in range(2))),
]  # fmt: skip


def check(name, kinds, output, function, text, seed=0):
    rng = np.random.default_rng(seed)
    columns = [edge_values(kind, rng) for kind in kinds]
    size = min(column.size for column in columns)
    columns = [rng.permutation(column)[:size] if k else column[:size] for k, column in enumerate(columns)]
    got = run_instruction(text, list(zip(kinds, columns, strict=True)), output)
    wanted = np.array([wrap(function(*(int(v) for v in row)), output) for row in zip(*columns, strict=True)], object)
    wrong = np.flatnonzero(got.astype(object) != wanted)
    assert not wrong.size, (name, [c[wrong[0]] for c in columns], got[wrong[0]], wanted[wrong[0]])


@pytest.mark.parametrize("case", BINARY, ids=lambda case: case[0])
def test_binary(case):
    name, first, second, output, function = case
    check(name, [first, second], output, function, f"{name} d, a, b;")


@pytest.mark.parametrize("case", UNARY, ids=lambda case: case[0])
def test_unary(case):
    name, kind, output, function = case
    check(name, [kind], output, function, f"{name} d, a;")


@pytest.mark.parametrize("case", TERNARY, ids=lambda case: case[0])
def test_ternary(case):
    name, first, second, third, output, function = case
    check(name, [first, second, third], output, function, f"{name} d, a, b, c;")


@pytest.mark.parametrize("kind", ["b32", "b64"])
@pytest.mark.parametrize(("start", "length"), [(0, 8), (4, 5), (24, 16), (31, 1), (0, 32), (63, 9), (40, 0)])
def test_bit_field_insert(kind, start, length):
    check(
        "bfi",
        [kind, kind],
        kind,
        lambda a, b: insert(a, b, start, length, kind),
        f"bfi.{kind} d, a, b, {start}, {length};",
    )


@pytest.mark.parametrize("table", [0x00, 0x80, 0x96, 0xE8, 0xCA, 0xFF, 0x1B])
def test_lop3(table):
    def expected(a, b, c):
        return sum(((table >> ((a >> k & 1) * 4 + (b >> k & 1) * 2 + (c >> k & 1))) & 1) << k for k in range(32))

    check("lop3", ["b32", "b32", "b32"], "b32", expected, f"lop3.b32 d, a, b, c, {table};")


@pytest.mark.parametrize("selector", [0x3210, 0x7654, 0x5410, 0x7632, 0x0123, 0x4440, 0xBA98, 0x1054])
def test_prmt_with_a_constant_selector(selector):
    check("prmt", ["b32", "b32"], "b32", lambda a, b: permute(a, b, selector), f"prmt.b32 d, a, b, {selector};")


@pytest.mark.parametrize("amount", [0, 1, 31, 32, 40])
@pytest.mark.parametrize("name", ["shl.b32", "shr.u32", "shr.s32"])
def test_shift_by_a_constant(name, amount):
    def expected(a):
        return (a << amount if amount < 32 else 0) if name == "shl.b32" else a >> amount

    kind = name.split(".")[1]
    check(name, [kind], kind, expected, f"{name} d, a, {amount};")


def test_carry_chain():
    """128-bit sum from 64-bit halves: the low half's carry reaches the high half."""
    a, b = np.array([2**64 - 1, 5, 2**63], np.uint64), np.array([1, 7, 2**63], np.uint64)
    got = run_instruction("add.cc.u64 d, a, b; addc.u64 d, a, b;", [("u64", a), ("u64", b)], "u64")
    assert got.tolist() == [(int(x) + int(y) + ((int(x) + int(y)) >> 64)) % 2**64 for x, y in zip(a, b, strict=True)]


COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("comparison", COMPARE)
def test_setp(kind, comparison):
    def expected(a, b):
        return eval(f"a {COMPARE[comparison]} b")

    check(
        "setp",
        [kind, kind],
        "u32",
        lambda a, b: int(expected(a, b)),
        f"setp.{comparison}.{kind} p, a, b; selp.u32 d, 1, 0, p;",
    )


def test_setp_with_two_results_and_a_predicate():
    text = (
        "{ .reg .pred q, r, s; setp.gt.s32 s, c, 0; setp.lt.or.s32 q|r, a, b, s;"
        " selp.s32 d, 1, 0, q; selp.s32 tid2, 2, 0, r; or.b32 d, d, tid2; }"
    )
    check("setp", ["s32"] * 3, "s32", lambda a, b, c: int(a < b or c > 0) + 2 * int((not a < b) or c > 0), text)


def test_set_gives_all_ones_or_one():
    check("set", ["s32", "s32"], "u32", lambda a, b: 0xFFFFFFFF if a < b else 0, "set.lt.u32.s32 d, a, b;")


@pytest.mark.parametrize("source", ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("target", ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("saturate", ["", ".sat"])
def test_conversion_between_integers(source, target, saturate):
    function = (lambda a: clamp(a, target)) if saturate else (lambda a: a)
    check("cvt", [source], target, function, f"cvt{saturate}.{target}.{source} d, a;")


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(BINARY), st.lists(st.tuples(*[st.integers(0, 2**64 - 1)] * 2), min_size=1, max_size=30))
def test_any_bits(case, rows):
    name, first, second, output, function = case
    columns = [
        np.array([value & ((1 << BITS[kind]) - 1) for value in column], np.uint64)
        .astype(f"u{BITS[kind] // 8}")
        .view(DTYPES[kind])
        for kind, column in zip((first, second), zip(*rows, strict=True), strict=True)
    ]
    got = run_instruction(f"{name} d, a, b;", list(zip((first, second), columns, strict=True)), output)
    wanted = [wrap(function(int(a), int(b)), output) for a, b in zip(*columns, strict=True)]
    assert got.astype(object).tolist() == wanted


def test_uniform_operands_stay_right():
    """The same instructions on constants: values that every lane shares are NumPy scalars, another code path."""
    for name, first, second, output, function in BINARY:
        for a, b in ((7, 3), (1, 0), (250, 31)):
            text = f"mov.b{BITS[first]} a, {a}; mov.b{BITS[second]} b, {b}; {name} d, a, b;"
            got = run_instruction(
                text, [(first, np.zeros(3, DTYPES[first])), (second, np.zeros(3, DTYPES[second]))], output
            )
            assert (got.astype(object) == wrap(function(a, b), output)).all(), (name, a, b, got)
