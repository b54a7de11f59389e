"""Fused multiply-add of float32, one or a sum of many.

NumPy's complex product is the one operation of it that uses the processor's fused multiply-add, and with a = (a, -1)
and b = (b, c) its real part is a * b + c, rounded once: half the time of the following, which stands in where a probe
at import finds no such instruction, and for few lanes. The product of two float32 is exact in float64, so
`float32(float64(a) * b + c)` rounds twice only in the sum. Twice rounded goes wrong only where the float64 sum sits
exactly between two float32 numbers; such lanes are found by their bits and repaired with the sum's error term (Knuth's
TwoSum), rounding to odd (Boldo and Melquiond 2008).

Where all threads share a factor, some sums of products are a matrix product, which the library under NumPy may or may
not add in this order: see `matrix_sums`.

Contents: `Underflow`, `fma32`, `RunningSum` (a sum of products whose intermediate values nobody else reads),
`chains` (which instructions of a block are one), and the float64 way with its repairs.
"""

from __future__ import annotations

import threading

import numpy as np

from ..control_flow import Block, read, written
from ..lanes import picked
from ..parse import Instruction, Reg
from .emitter import helper

F4, F8, C8 = np.float32, np.float64, np.complex64
_C8 = np.dtype(C8)
_MIDPOINT = np.int32(-(2**31))
_THREE = np.int32(3)
WORTH_COMPLEX = 256  # elements; fewer are faster in float64, and a loop over one element need not be fused
_LOOP = 8192  # elements of one inner loop of NumPy: its own buffers are as long
_MOST_PAIRS = 32


class _Underflow(threading.local):
    """Whether the thread's last conversion to float32 gave an inexact subnormal; NumPy calls `note` (`batches`)."""

    seen = False

    def note(self, _kind: str, _flag: int) -> None:
        """NumPy's error callback."""
        self.seen = True


Underflow = _Underflow()


# --- the complex product ----------------------------------------------------------------------------------------------


class _Scratch(threading.local):
    """What a thread keeps from one product to the next.

    Values are never changed in place, so an array that comes again (a pixel times eight weights) need not be copied.
    """

    def __init__(self):
        self.room = np.empty(0, C8)  # (factor, addend)
        self.in_room = None
        self.pairs: dict[tuple, list] = {}  # shape and sign -> (factor, sign), its factors, the array they come from


_scratch = _Scratch()


def forget_operands() -> None:
    """Let go of the operands that are remembered."""
    _scratch.__init__()


def _pair(a: np.ndarray, sign: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return (a, sign) as complex numbers, of a shape that `a` broadcasts into."""
    pairs = _scratch.pairs
    found = pairs.get((shape, sign))
    if found is None:
        if len(pairs) >= _MOST_PAIRS:
            pairs.clear()
        pair = np.empty(shape, C8)
        pair.imag = sign
        found = pairs[shape, sign] = [pair, pair.real, None]
    if found[2] is not a:
        found[1][...] = found[2] = a
    return found[0]


def _multiply(a, sign: int, room: np.ndarray, out: np.ndarray) -> None:
    """Put (a, sign) times `room` into `out`, both contiguous.

    The result is in their real parts if the sign is -1, else in their imaginary ones.
    """
    if not isinstance(a, np.ndarray):
        np.multiply(complex(a, sign), room, out)
        return
    shape, whole = a.shape, room.shape
    if len(shape) == 2 and shape[0] == 1 and shape[1] < _LOOP <= room.size // 4 and out.shape == whole:
        tall = _LOOP // shape[1]
        while whole[0] % tall:
            tall -= 1
        shape = (tall, shape[1])
        whole = (whole[0] // tall, *shape)
        room, out = room.reshape(whole), out.reshape(whole)
    np.multiply(_pair(a, sign, shape), room, out)


def _room(shape: tuple[int, ...], imaginary: bool) -> np.ndarray:
    """Return an array for a result; that one lies in its imaginary part is told by an axis more of what it is made of.

    The other part is anybody's: the next product that takes the result puts its other operand there.
    """
    return np.empty((1, *shape), C8)[0] if imaginary else np.empty(shape, C8)


def _room_of(value) -> tuple[np.ndarray | None, int]:
    """Return the complex array that a result is one part of, and which: 0 real, 1 imaginary; None if it is none."""
    room = value.base
    if room is None or room.dtype is not _C8:
        return None, 0
    side = room.ndim - value.ndim
    if side:
        room = room[0]
    whole = room.shape == value.shape and room.strides == value.strides  # else a part of the result
    return (room, side) if whole else (None, 0)


def fits(shape: tuple[int, ...], into: tuple[int, ...]) -> bool:
    """Whether a shape broadcasts into another."""
    return shape == into or not shape or all(have in (1, want) for have, want in zip(shape, into, strict=True))


# --- one, and a sum of many -------------------------------------------------------------------------------------------


@helper
def fma32(a, b, c):
    """float32 of a * b + c, rounded once. The result may be a strided view.

    It is one half of a complex array whose other half nobody reads. The next fused multiply-add that takes the result
    puts its second operand there, which is all the copying that a sum of products needs: from (c, b) the product with
    (a, 1) has a * b + c for its imaginary part, from (b, c) that with (a, -1) for its real part.
    """
    if a.size > b.size:
        a, b = b, a
    if (b.size if b.size > c.size else c.size) < WORTH_COMPLEX or not COMPLEX_PRODUCT_FUSES:
        return fma32_wide(a.astype(F8), b.astype(F8), c)
    for held, other, sign in ((c, b, 1), (b, c, -1)):
        room, side = _room_of(held)
        if room is None or not fits(other.shape, held.shape):
            continue
        if side:
            room.real, sign = other, -sign
        else:
            room.imag = other
        return _product(a, sign, room)
    scratch, room = _scratch, _scratch.room
    shape = b.shape if b.shape == c.shape else np.broadcast_shapes(b.shape, c.shape)
    if scratch.in_room is not b or room.shape != shape:
        if room.shape != shape:
            room = scratch.room = np.empty(shape, C8)
        room.real = scratch.in_room = b
    room.imag = c
    return _product(a, -1, room)


def _product(a, sign: int, room: np.ndarray) -> np.ndarray:
    """Return the real (sign -1) or imaginary part of (a, sign) times a complex array."""
    out = _room(room.shape if fits(a.shape, room.shape) else np.broadcast_shapes(a.shape, room.shape), sign > 0)
    _multiply(a, sign, room, out)
    return out.imag if sign > 0 else out.real


class RunningSum:
    """c + a0 * b0 + a1 * b1 + ..., each product added as `fma32` adds it, in one room of its own.

    Nobody reads the sums in between, so that each takes the place of the one before.
    """

    __slots__ = ("halves", "left", "room", "side", "value")

    def __init__(self, c, count: int):
        self.value, self.left = c, count
        self.room = None

    def plus(self, a, b) -> RunningSum:
        """Add a product."""
        self.left -= 1
        if a.size > b.size:
            a, b = b, a
        room = self.room
        if room is None or not (fits(b.shape, room.shape) and fits(a.shape, room.shape)):
            self._begin(a, b, self.value if room is None else self.halves[self.side])
            return self
        side = self.side
        np.copyto(self.halves[1 - side], b)
        _multiply(a, -1 if side else 1, room, room)
        self.side = 1 - side
        return self

    def total(self, a, b):
        """Add the last product; returns the sum, as `fma32` does."""
        self.plus(a, b)
        return self.value if self.room is None else self.halves[self.side]

    def _begin(self, a, b, value) -> None:
        """Add to a value that may not be changed."""
        self.room = None
        if max(b.size, value.size) < WORTH_COMPLEX or not COMPLEX_PRODUCT_FUSES:
            self.value = fma32(a, b, value)
            return
        shape = np.broadcast_shapes(a.shape, b.shape, value.shape)
        old, side = _room_of(value)
        if old is not None and shape == old.shape:
            other = 1 - side
            if side:
                old.real = b
            else:
                old.imag = b
        else:
            old, other = None, self.left & 1
            side = 1 - other
        # Each product changes sides; the last result's says what the room is to be.
        self.room = _room(shape, bool((other + self.left) & 1))
        self.halves = (self.room.real, self.room.imag)
        if old is None:
            np.copyto(self.halves[side], value)
            np.copyto(self.halves[other], b)
        _multiply(a, -1 if side else 1, self.room if old is None else old, self.room)
        self.side, self.value = other, None


helper(RunningSum)


def chains(block: Block, live_after: set[str]) -> dict[int, tuple[int, int]]:
    """Find sums of products: {id of an fma.rn.f32: (its place in the sum, how many products the sum has)}.

    An instruction goes on where one before it left off if nothing but its addend reads what that one made.
    `live_after` are the registers that are read behind the block's instructions.
    """
    items = block.instructions
    made: dict[str, int] = {}
    readers: list[list[int]] = [[] for _ in items]
    for number, item in enumerate(items):
        for name in read(item):
            if name in made:
                readers[made[name]].append(number)
        made.update(dict.fromkeys(written(item), number))
    lasting = {made[name] for name in live_after if name in made}
    following = {
        number: others[0]
        for number, others in enumerate(readers)
        if len(others) == 1 and number not in lasting and sums_products(items[number])
        and _adds_to(items[others[0]], items[number].operands[0].name)
    }  # fmt: skip
    found: dict[int, tuple[int, int]] = {}
    for number in following.keys() - set(following.values()):
        chain = [number]
        while chain[-1] in following:
            chain.append(following[chain[-1]])
        found.update({id(items[one]): (place, len(chain)) for place, one in enumerate(chain)})
    return found


def sums_products(item: Instruction) -> bool:
    """Whether an instruction is a plain multiply-add of float32."""
    return item.opcode == "fma" and item.modifiers == ("rn", "f32") and isinstance(item.operands[0], Reg)


def _adds_to(item: Instruction, name: str) -> bool:
    """Whether an instruction adds a product to a register, which is not in the product too."""
    if not sums_products(item):
        return False
    in_a, in_b, is_c = (getattr(operand, "name", "") == name for operand in item.operands[1:])
    return is_c and not in_a and not in_b


def _complex_product_fuses() -> bool:
    """Whether both parts of NumPy's complex64 product, as `fma32` uses them, are a * b + c, rounded once.

    They are wherever NumPy's vector loops have the processor's own fused multiply-add (x86-64 with FMA3, ARM64). The
    question is put to every form that such a loop has: contiguous, in place, one operand constant along it, and odd
    lengths.
    """
    rng = np.random.default_rng(0)
    whole, row, column = (1 + rng.random(shape).astype(F4) for shape in ((37, 41), (1, 41), (37, 1)))
    for a, b in ((whole, whole[::-1]), (row, whole), (column, whole), (row, column), (F4(1.1), whole)):
        exact = a.astype(F8) * b
        c = -exact.astype(F4)  # leaves what rounding the product would lose
        for parts, sign in (((b, c), -1), ((c, b), 1)):
            room = np.empty(c.shape, C8)
            room.real, room.imag = parts
            if (_product(a, sign, room) != exact + c).any():
                return False
            _multiply(a, sign, room, room)
            if ((room.imag if sign > 0 else room.real) != exact + c).any():
                return False
    return True


COMPLEX_PRODUCT_FUSES = _complex_product_fuses()


# --- by way of float64 ------------------------------------------------------------------------------------------------


def fma32_wide(a, b, c):
    """float32 of a * b + c from float64 a and b: the sum's second rounding is repaired where it could tell."""
    total = a * b + c.astype(F8)
    Underflow.seen = False
    if not isinstance(total, np.ndarray):
        result = F4(total)
        if (int(total.view(np.uint64)) & 0x1FFFFFFF) != 0x10000000 and not Underflow.seen:
            return result
        return repaired(np.array([a * b]), np.array([c]), np.array([total]), "rn")[0]
    result = total.astype(F4)
    if (total.view(np.int32) << _THREE).min() == _MIDPOINT or Underflow.seen:
        _repair(a, b, c, total, result)
    return result


def _repair(a, b, c, total, result) -> None:
    """Redoes the lanes whose float64 sum lies between two float32 numbers, or is subnormal there."""
    doubtful = (total.view(np.uint64) & np.uint64(0x1FFFFFFF)) == np.uint64(0x10000000)
    if Underflow.seen:
        doubtful |= (np.abs(total) < 2.0**-125) & (total != 0)
    where = np.nonzero(doubtful)
    if where[0].size:
        a, b, c, sums = (picked(value, where) for value in (a, b, c, total))
        result[where] = repaired(a * b, c.astype(F8), sums, "rn")


def two_sum_error(a, b, total):
    """Return A + b - total, exactly (Knuth)."""
    from_b = total - a
    return (a - (total - from_b)) + (b - from_b)


def repaired(a, b, total, mode: str):
    """float32 of a + b under a rounding mode, where total is their float64 sum."""
    error = two_sum_error(a, b, total)
    error = np.where(np.isfinite(total), error, 0.0)
    if mode == "rn":
        return to_odd(total, error).astype(F4)
    return directed(total.astype(F4), total, error, mode)


def to_odd(total, error):
    """Where the sum was inexact, the neighbour with an odd last bit: rounding that again cannot go wrong."""
    even = (total.view(np.int64) & 1) == 0
    neighbour = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    return np.where((error != 0) & even, neighbour, total)


def directed(nearest, total, error, mode: str):
    """Return the float32 on the wanted side of total + error, given the nearest one."""
    wide = nearest.astype(F8)
    above = (wide > total) | ((wide == total) & (error < 0))
    below = (wide < total) | ((wide == total) & (error > 0))
    down, up = np.array(-np.inf, nearest.dtype), np.array(np.inf, nearest.dtype)
    lower = np.where(above, np.nextafter(nearest, down), nearest)
    upper = np.where(below, np.nextafter(nearest, up), nearest)
    if mode == "rm":
        result = lower
    elif mode == "rp":
        result = upper
    else:
        result = np.where(np.signbit(nearest), upper, lower)
    # An infinity that came from rounding, not from the operands, steps back above; a true one stays.
    return np.where(np.isfinite(total), result, nearest)
