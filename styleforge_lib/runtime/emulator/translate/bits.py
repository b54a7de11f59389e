"""Logic, shifts and bit fields."""

from __future__ import annotations

import numpy as np

from .emitter import DTYPES, dtype_name, helper, rule
from .integers import INTEGERS

# --- logic and shifts -------------------------------------------------------------------------------------------------


@rule("and", "or", "xor")
def _logic(e, ins, m):
    kind = m.type("pred", "b16", "b32", "b64")
    m.finish()
    sign = {"and": "&", "or": "|", "xor": "^"}[ins.opcode]
    e.set_expression(ins.operands[0], f"{e.use(ins.operands[1], kind)} {sign} {e.use(ins.operands[2], kind)}", kind)


@rule("not")
def _not(e, ins, m):
    kind = m.type("pred", "b16", "b32", "b64")
    m.finish()
    e.set_expression(ins.operands[0], f"~{e.use(ins.operands[1], kind)}", kind)


@rule("cnot")
def _cnot(e, ins, m):
    kind = m.type("b16", "b32", "b64")
    m.finish()
    a = e.use(ins.operands[1], kind)
    e.set_expression(ins.operands[0], f"({a} == {e.constant(0, kind)}).astype({dtype_name(DTYPES[kind])})", kind)


@rule("lop3")
def _lop3(e, ins, m):
    m.type("b32")
    m.finish()
    a, b, c = (e.use(value, "b32") for value in ins.operands[1:4])
    table = ins.operands[4].value
    terms = []
    for row in range(8):
        if table >> row & 1:
            picks = (a if row & 4 else f"~{a}", b if row & 2 else f"~{b}", c if row & 1 else f"~{c}")
            terms.append("(" + " & ".join(picks) + ")")
    e.set_expression(ins.operands[0], " | ".join(terms) or f"{a} & {e.constant(0, 'b32')}", "b32")


@rule("shl", "shr")
def _shift(e, ins, m):
    kind = m.type("b16", "b32", "b64", *(INTEGERS if ins.opcode == "shr" else ()))
    m.finish()
    value, amount = e.use(ins.operands[1], kind), ins.operands[2]
    name = dtype_name(DTYPES[kind])
    if hasattr(amount, "value"):
        bits = e.constant(min(amount.value & 0xFFFFFFFF, 127), kind)
    else:
        amount = e.use(amount, "u32")
        bits = e.form(amount, "shift" + name, f"np.minimum({amount}, {e.constant(127, 'u32')}).astype({name})")
    e.set_expression(ins.operands[0], f"{value} {'<<' if ins.opcode == 'shl' else '>>'} {bits}", kind)


@rule("shf")
def _funnel(e, ins, m):
    left = m.one_of("l", "r") or m.refuse()
    mode = m.one_of("wrap", "clamp") or m.refuse()
    m.type("b32")
    m.finish()
    low, high, amount = (e.use(value, "u32") for value in ins.operands[1:4])
    e.set_expression(ins.operands[0], f"funnel({low}, {high}, {amount}, {left == 'l'}, {mode == 'wrap'})", "u32")


@helper
def funnel(low, high, amount, left, wrap):
    """32 bits of the 64-bit value high:low, shifted."""
    amount = (amount & np.uint32(31) if wrap else np.minimum(amount, np.uint32(32))).astype(np.uint64)
    whole = (high.astype(np.uint64) << np.uint64(32)) | low.astype(np.uint64)
    whole = (whole << amount) >> np.uint64(32) if left else whole >> amount
    return whole.astype(np.uint32)


# --- bit fields -------------------------------------------------------------------------------------------------------


@rule("popc", "clz", "brev")
def _count(e, ins, m):
    kind = m.type("b32", "b64")
    m.finish()
    a = e.use(ins.operands[1], kind)
    if ins.opcode == "brev":
        e.set_expression(ins.operands[0], f"reversed_bits({a})", kind)
    else:
        e.set_expression(ins.operands[0], f"{ {'popc': 'ones', 'clz': 'leading_zeros'}[ins.opcode] }({a})", "u32")


@helper
def ones(value):
    """Return population count as u32."""
    return np.bitwise_count(value).astype(np.uint32)


@helper
def leading_zeros(value):
    """Leading zero bits as u32: fill every bit below the highest one, and count."""
    bits = 8 * value.dtype.itemsize
    shift = 1
    while shift < bits:
        value = value | (value >> value.dtype.type(shift))
        shift *= 2
    return np.uint32(bits) - ones(value)


@helper
def reversed_bits(value):
    """Bits in reverse order."""
    kind = value.dtype.type
    bits = 8 * value.dtype.itemsize
    shift, mask = bits // 2, (1 << bits) - 1
    while shift:
        mask ^= (mask << shift) & ((1 << bits) - 1)
        value = ((value >> kind(shift)) & kind(mask)) | ((value << kind(shift)) & kind(~mask & ((1 << bits) - 1)))
        shift //= 2
    return value


@rule("bfind")
def _bfind(e, ins, m):
    amount = m.flag("shiftamt")
    kind = m.type("u32", "s32", "u64", "s64")
    m.finish()
    e.set_expression(ins.operands[0], f"highest_bit({e.use(ins.operands[1], kind)}, {amount})", "u32")


@helper
def highest_bit(value, shift_amount):
    """Position of the highest bit that differs from the sign; all ones if there is none."""
    bits = 8 * value.dtype.itemsize
    unsigned = value.view(f"u{value.dtype.itemsize}")
    if value.dtype.kind == "i":
        unsigned = unsigned ^ (value >> value.dtype.type(bits - 1)).view(unsigned.dtype)
    zeros = leading_zeros(unsigned)
    found = zeros if shift_amount else np.uint32(bits - 1) - zeros
    result = np.where(unsigned == 0, np.uint32(0xFFFFFFFF), found)
    return result[()] if result.ndim == 0 else result


@rule("bfe")
def _bfe(e, ins, m):
    kind = m.type("u32", "s32", "u64", "s64")
    m.finish()
    a = e.use(ins.operands[1], kind)
    start, length = (e.use(value, "u32") for value in ins.operands[2:4])
    e.set_expression(ins.operands[0], f"extracted({a}, {start}, {length})", kind)


@helper
def extracted(value, start, length):
    """Return the bit field, sign-extended if the dtype is signed (past the top, the sign bit repeats)."""
    bits, kind = 8 * value.dtype.itemsize, value.dtype.type
    start = (start & np.uint32(255)).astype(np.int64)
    length = (length & np.uint32(255)).astype(np.int64)
    unsigned = np.dtype(f"u{value.dtype.itemsize}").type
    shifted = (value >> np.minimum(start, 127).astype(value.dtype)).view(unsigned)
    keep = np.minimum(length, bits)
    mask = np.where(
        keep >= bits, ~unsigned(0), (unsigned(1) << np.minimum(keep, bits - 1).astype(unsigned)) - unsigned(1)
    )
    field = shifted & mask
    if value.dtype.kind == "i":
        top = np.minimum(start + length - 1, bits - 1).astype(unsigned)
        sign = (value.view(unsigned) >> top) & unsigned(1)
        field = np.where((sign != 0) & (length > 0), field | ~mask, field)
    result = np.asarray(field).astype(unsigned).view(kind)
    return result[()] if result.ndim == 0 else result


@rule("bfi")
def _bfi(e, ins, m):
    kind = m.type("b32", "b64")
    m.finish()
    a, b = (e.use(value, kind) for value in ins.operands[1:3])
    start, length = (e.use(value, "u32") for value in ins.operands[3:5])
    e.set_expression(ins.operands[0], f"inserted({a}, {b}, {start}, {length})", kind)


@helper
def inserted(field, value, start, length):
    """`value` with a bit field replaced."""
    bits, kind = 8 * value.dtype.itemsize, value.dtype.type
    start = (start & np.uint32(255)).astype(np.int64)
    length = np.minimum((length & np.uint32(255)).astype(np.int64), bits)
    low = np.where(length >= bits, ~kind(0), (kind(1) << np.minimum(length, bits - 1).astype(kind)) - kind(1))
    low = np.asarray(low).astype(kind)
    shift = np.minimum(start, 127).astype(kind)
    mask = low << shift
    result = np.asarray((value & ~mask) | ((field << shift) & mask))
    return result[()] if result.ndim == 0 else result


@rule("bmsk")
def _bmsk(e, ins, m):
    mode = m.one_of("clamp", "wrap") or m.refuse()
    m.type("b32")
    m.finish()
    a, b = (e.use(value, "u32") for value in ins.operands[1:3])
    e.set_expression(ins.operands[0], f"bit_mask({a}, {b}, {mode == 'wrap'})", "u32")


@helper
def bit_mask(start, length, wrap):
    """`length` ones from bit `start`."""
    if wrap:
        start, length = start & np.uint32(31), length & np.uint32(31)
    start, length = (
        np.minimum(start, np.uint32(32)).astype(np.uint64),
        np.minimum(length, np.uint32(32)).astype(np.uint64),
    )
    return ((((np.uint64(1) << length) - np.uint64(1)) << start) & np.uint64(0xFFFFFFFF)).astype(np.uint32)


@rule("prmt")
def _prmt(e, ins, m):
    mode = m.one_of(*_PERMUTATIONS, default="")
    m.type("b32")
    m.finish()
    a, b = (e.use(value, "u32") for value in ins.operands[1:3])
    selector = ins.operands[3]
    if mode:
        e.set_expression(ins.operands[0], f"permuted_by_mode({a}, {b}, {e.use(selector, 'u32')}, {mode!r})", "u32")
    elif hasattr(selector, "value"):
        e.set_expression(ins.operands[0], _fixed_permutation(e, a, b, selector.value), "u32")
    else:
        e.set_expression(ins.operands[0], f"permuted({a}, {b}, {e.use(selector, 'u32')})", "u32")


# The modes of prmt: the selector of the plain form for each value of the mode's own two bits.
_PERMUTATIONS = {
    "f4e": np.array([0x3210, 0x4321, 0x5432, 0x6543], np.uint32),
    "b4e": np.array([0x5670, 0x6701, 0x7012, 0x0123], np.uint32),
    "rc8": np.array([0x0000, 0x1111, 0x2222, 0x3333], np.uint32),
    "ecl": np.array([0x3210, 0x3211, 0x3222, 0x3333], np.uint32),
    "ecr": np.array([0x0000, 0x1110, 0x2210, 0x3210], np.uint32),
    "rc16": np.array([0x1010, 0x3232, 0x1010, 0x3232], np.uint32),
}


@helper
def permuted_by_mode(a, b, selector, mode):
    """Four bytes picked as a mode of prmt says, by the selector's two low bits."""
    return permuted(a, b, _PERMUTATIONS[mode][selector & np.uint32(3)])


def _fixed_permutation(e, a: str, b: str, selector: int) -> str:
    """Shifts and masks for a constant selector; runs of neighbouring bytes move together."""
    if any(selector >> (4 * place) & 8 for place in range(4)):
        return f"permuted({a}, {b}, {e.constant(selector & 0xFFFF, 'u32')})"
    moves: dict[tuple[str, int], int] = {}
    for place in range(4):
        byte = selector >> (4 * place) & 7
        source, shift = (a, b)[byte >> 2], 8 * (place - (byte & 3))
        moves[source, shift] = moves.get((source, shift), 0) | 0xFF << (8 * place)
    terms = []
    for (source, shift), mask in moves.items():
        if shift:
            source = f"({source} {'<<' if shift > 0 else '>>'} {e.constant(abs(shift), 'u32')})"
        exact = mask == ((0xFFFFFFFF << shift) & 0xFFFFFFFF if shift > 0 else 0xFFFFFFFF >> -shift)
        terms.append(source if exact else f"({source} & {e.constant(mask, 'u32')})")
    return " | ".join(terms)


@helper
def permuted(a, b, selector):
    """Four bytes picked from the eight of b:a; selector bit 3 of a nibble repeats the byte's sign."""
    whole = (b.astype(np.uint64) << np.uint64(32)) | a.astype(np.uint64)
    selector = selector.astype(np.uint64)
    result = np.uint64(0)
    for place in range(4):
        nibble = selector >> np.uint64(4 * place)
        byte = (whole >> ((nibble & np.uint64(7)) << np.uint64(3))) & np.uint64(255)
        sign = (byte >> np.uint64(7)) * np.uint64(255)
        replicate = (nibble >> np.uint64(3)) & np.uint64(1)
        byte = byte * (np.uint64(1) - replicate) + sign * replicate
        result = result | (byte << np.uint64(8 * place))
    return result.astype(np.uint32)
