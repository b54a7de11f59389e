# ruff: noqa: E501 (tables and kernels keep one case to a line)
"""What the emulator is held against: exact arithmetic in Python integers and fractions, and one-instruction kernels."""

from fractions import Fraction

import numpy as np

from styleforge_lib.runtime.emulator import Program

DTYPES = {
    **{f"{p}{bits}": np.dtype(f"{kind}{bits // 8}") for p, kind in (("b", "u"), ("u", "u"), ("s", "i")) for bits in (8, 16, 32, 64)},
    "f16": np.dtype("f2"), "f32": np.dtype("f4"), "f64": np.dtype("f8"), "f16x2": np.dtype("u4"),
}  # fmt: skip
PRECISION = {"f16": (11, -14, 15), "bf16": (8, -126, 127), "f32": (24, -126, 127), "f64": (53, -1022, 1023)}
REGISTER = {1: ("b16", "rs"), 2: ("b16", "rs"), 4: ("b32", "r"), 8: ("b64", "rd")}


def round_fraction(value: Fraction, kind: str, mode: str = "rn") -> float:
    """Return an exact value in a float type, by integer arithmetic alone; zero gives +0."""
    digits, least, most = PRECISION[kind]
    if value == 0:
        return 0.0
    size = abs(value)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    if Fraction(2) ** exponent > size:
        exponent -= 1
    exponent = max(exponent, least)
    unit = Fraction(2) ** (exponent - digits + 1)
    whole, rest = divmod(size / unit, 1)
    whole = int(whole)
    toward_infinity = (mode == "rp" and value > 0) or (mode == "rm" and value < 0)
    if (mode == "rn" and (rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole & 1))) or (
        rest and toward_infinity
    ):
        whole += 1
    result = whole * unit
    largest = (2 - Fraction(2) ** (1 - digits)) * Fraction(2) ** most
    if result > largest:
        result = float("inf") if mode == "rn" or toward_infinity else float(largest)
    return float(result) * (1 if value > 0 else -1)


def run_instruction(instruction: str, inputs: list[tuple[str, np.ndarray]], output: str, extra_output: bool = False):
    """Run one instruction on arrays, one lane per element; returns its result (and its predicate as 0 or 1).

    The text names its operands d, a, b, c (registers as wide as their types), and p for a predicate result.
    """
    count = inputs[0][1].size
    lines, names = [], "abc"
    declarations = set()
    for position, (kind, _) in enumerate(inputs):
        width = DTYPES[kind].itemsize
        declarations.add(f".reg .{REGISTER[width][0]} {names[position]};")
        lines += [
            f"ld.param.u64 base, [arg{position}];",
            f"mad.wide.u32 address, tid, {width}, base;",
            f"ld.global.{'b' if kind[0] == 'f' else kind[0]}{8 * width} {names[position]}, [address];",
        ]
    width = DTYPES[output].itemsize
    number = len(inputs)
    lines += [instruction, f"ld.param.u64 base, [arg{number}];", f"mad.wide.u32 address, tid, {width}, base;",
              f"st.global.b{8 * width} [address], d;"]  # fmt: skip
    if extra_output:
        lines += ["selp.u32 tid2, 1, 0, p;", f"ld.param.u64 base, [arg{number + 1}];",
                  "mad.wide.u32 address, tid, 4, base;", "st.global.u32 [address], tid2;"]  # fmt: skip
    parameters = ", ".join(f".param .u64 arg{k}" for k in range(number + 1 + extra_output))
    text = (
        f".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry test({parameters})\n{{\n"
        f".reg .b64 base, address; .reg .b32 tid, tid2, block; .reg .pred p; {' '.join(sorted(declarations))}\n"
        f".reg .{REGISTER[width][0]} d;\n"
        "mov.u32 tid, %tid.x; mov.u32 block, %ctaid.x; mad.lo.u32 tid, block, 64, tid;\n"
        + "\n".join(lines)
        + "\nret;\n}\n"
    )
    padded = -(-count // 64) * 64
    arrays = []
    for kind, values in inputs:
        array = np.zeros(padded, DTYPES[kind])
        array[:count] = values
        arrays.append(array)
    result, predicate = np.zeros(padded, DTYPES[output]), np.zeros(padded, np.uint32)
    arrays += [result, *([predicate] if extra_output else [])]
    Program(text).launch("test", (padded // 64,), (64,), arrays)
    return (result[:count], predicate[:count]) if extra_output else result[:count]


def edge_values(kind: str, rng: np.random.Generator, count: int = 160) -> np.ndarray:
    """Hostile values of a type, then random bits."""
    dtype = DTYPES[kind]
    if kind[0] == "f" and kind != "f16x2":
        digits, least, _ = PRECISION[kind]
        special = [0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 2.5, -2.5, np.inf, -np.inf, np.nan, 2.0**least, -(2.0**least),
                   2.0 ** (least - digits + 1), 2.0 ** (least + 3), 1 + 2.0 ** (1 - digits), 3.0, 1 / 3, 255.5, 1e4]  # fmt: skip
        special += [np.finfo(dtype).max, -np.finfo(dtype).max]
        ordinary = rng.standard_normal(count // 2) * 2.0 ** rng.integers(-12, 12, count // 2)
        with np.errstate(all="ignore"):
            head = np.concatenate([np.array(special), ordinary]).astype(dtype)
        bits = rng.integers(0, 2**63, count, dtype=np.int64).astype(f"u{dtype.itemsize}").view(dtype)
        return np.concatenate([head, bits])
    info = np.iinfo(dtype)
    special = np.array(
        [0, 1, 2, 3, 5, 7, 31, 32, 33, 63, 64, 127, info.max, info.max - 1, info.min, info.min + 1], object
    )
    special = (
        np.array([int(v) & ((1 << info.bits) - 1) for v in special], np.uint64).astype(f"u{dtype.itemsize}").view(dtype)
    )
    bits = rng.integers(0, 2**63, count, dtype=np.int64).astype(f"u{dtype.itemsize}").view(dtype)
    small = rng.integers(0, 40, count // 2).astype(dtype)
    return np.concatenate([special, small, bits])


def same_bits(got: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where two float arrays are the same to the bit, any NaN equal to any other."""
    unsigned = f"u{got.dtype.itemsize}"
    return (got.view(unsigned) == wanted.view(unsigned)) | (np.isnan(got) & np.isnan(wanted))
