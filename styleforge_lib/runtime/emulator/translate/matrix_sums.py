"""Sums of products that share their factors, as products of matrices: the same bits, where a probe says so.

A convolution whose threads make some outputs of one pixel each adds v0 * w00 + v1 * w01 + ... to one sum, v0 * w10 + v1
* w11 + ... to the next: the factors v are the thread's own, the weights w the same in a whole block. With the addends
for further factors that is one matrix product for as many blocks as have the same weights:

    (sums, lanes) = (1 and weights) (addends and factors, lanes)

and a matrix product of float32 may well be what the threads do: products fused into one running sum, in order, starting
with 0 + 1 * addend. But that is the affair of the library under NumPy, whose loops differ with the processor and the
matrices' sizes: some add in another order, and the last bits differ. So no size of matrices is used before `_agrees`
has compared every element of such products with `fma32`, and for the sizes that do not agree fewer sums are taken at
once, or none. The library chooses its loops by size, never by the numbers. Products large enough for it to share among
threads are cut, as it cuts them where it likes.

What the probe cannot promise is left to `RunningSum`: results that are not finite (a zero weight of another sum's
addend would spread an infinity), addends of -0 (0 + 1 * -0 is +0), and results of zero where a product may have been
too small for a float32 (the library adds what it has found to 0, which makes +0 of -0).

Blocks that share their weights lie side by side; where they are many, each row of their lanes is a matrix product where
it lies. Few of them are brought together first, which pays for a loop's own factors that come again at each turn: then
the matrix is kept.

Contents: `SharedSums` and `shared_sums` (which instructions of a block are such sums), `varying_registers` (which
factors are no weights), `sums_together` (the sums), and the probe.
"""

from __future__ import annotations

import functools
import math
import operator
from typing import NamedTuple

import numpy as np

from ..control_flow import Block, read, written
from ..parse import Instruction, Reg
from .emitter import helper
from .multiply_add import RunningSum, fma32

_F4, _U4, _I4 = np.dtype(np.float32), np.dtype(np.uint32), np.dtype(np.int32)
_WORTH_LANES = 2048  # fewer gain nothing
_WORTH_ONE = 8  # products of a sum that shares its factors with no other
_LEAST_COLUMNS = 16  # of a matrix
_LEAST_UNIT = 16  # blocks side by side that share their weights, for factors that are laid out anew each time
_MANY = 8  # sums that pay for laying out their factors, however few blocks share weights
_ONE_THREAD = 1 << 17  # multiplications of a matrix product that the library does not share among threads
_ROWS = (8, 4, 3, 2)  # of a matrix product: one is a vector, and other loops
_WIDE = 64  # lanes side by side that are worth a matrix product of their own
_LANES_AT_ONCE = 32768
_PITCH = 16  # elements
_OF_COMPLEX = 4  # elements that are as long as a complex number
_ONE = np.uint32(1)
# Twice the bits of 2^-50, less one: products of larger numbers are whole multiples of the least float32.
_SMALL = np.uint32((127 - 50 << 24) - 1)
_NEGATIVE_ZERO = -(2**31)
# Where values come from that each thread has for itself.
_OF_A_LANE = frozenset(("atom", "shfl", "match", "elect", "ldmatrix", "mma", "wmma", "wgmma"))
_LANE_REGISTERS = ("%tid", "%laneid", "%lanemask", "%warpid", "%clock", "%globaltimer")


# --- in a block's instructions ----------------------------------------------------------------------------------------


class SharedSums:
    """Some sums of a block that share their factors, while the block is being translated."""

    def __init__(self, common: int, chains: list[list[Instruction]]):
        self.common = common  # which operand all sums share
        self.row_of = {id(item): row for row, chain in enumerate(chains) for item in chain}
        self.left = len(self.row_of)
        self.addends: list[str | None] = [None] * len(chains)
        self.targets: list[Reg | None] = [None] * len(chains)
        self.factors: list[str] = []
        self.weights: list[list[str]] = [[] for _ in chains]

    def add(self, e, item: Instruction, a: str, b: str, c: str) -> None:
        """Take a product; the last one emits the sums."""
        row = self.row_of[id(item)]
        weights = self.weights[row]
        factor, weight = (a, b) if self.common == 1 else (b, a)
        if not weights:
            self.addends[row] = c
        if len(weights) == len(self.factors):
            self.factors.append(factor)
        weights.append(weight)
        self.targets[row] = item.operands[0]
        self.left -= 1
        if not self.left:
            rows = ", ".join(f"({', '.join(row)},)" for row in self.weights)
            before = set(e.inputs.values()) >= set(self.factors)  # the next turn of a loop may bring them again
            kept = f"m.kept.setdefault({(e.block.index, e.count)}, [])" if before else None
            values = (f"({', '.join(names)},)" for names in (self.addends, self.factors, [rows]))
            found = e.new(f"sums_together({', '.join(values)}, {kept})")
            for number, target in enumerate(self.targets):
                e.set_expression(target, f"{found}[{number}]", "f32")


def from_the_first_weight(
    block: Block, chains: dict[int, tuple[int, int]], varying: frozenset[str]
) -> dict[int, tuple[int, int]]:
    """Return the chains, each cut in two where its first product is of factors that both differ between threads.

    An online softmax's sums begin so, with what they were and its scale; the products behind may be a matrix's.
    """
    cut = dict(chains)
    for chain in _as_lists(block, chains):
        first, rest = chain[0], chain[1:]
        if len(rest) >= _WORTH_ONE and all(getattr(factor, "name", "") in varying for factor in first.operands[1:3]):
            del cut[id(first)]
            cut.update({id(item): (place, len(rest)) for place, item in enumerate(rest)})
    return cut


def shared_sums(block: Block, chains: dict[int, tuple[int, int]], varying: frozenset[str]) -> dict[int, SharedSums]:
    """Return the sums of a block that share their factors: {id of an instruction: the sums it belongs to}.

    `chains` are those of `multiply_add.chains`, `varying` the registers that may differ between a block's threads:
    weights are others.
    """
    found: dict[int, SharedSums] = {}
    made = _makers(block)
    for common in (1, 2):
        alike: dict[tuple, list[list[Instruction]]] = {}
        for chain in _as_lists(block, chains):
            factors = [item.operands[common] for item in chain]
            weights = [item.operands[3 - common] for item in chain]
            if (
                id(chain[0]) not in found
                and all(isinstance(factor, Reg) for factor in factors)
                and not any(isinstance(weight, Reg) and weight.name in varying for weight in weights)
            ):
                key = tuple(
                    (factor.name, made[id(item), factor.name]) for factor, item in zip(factors, chain, strict=True)
                )
                alike.setdefault(key, []).append(chain)
        for group in alike.values():
            group = undisturbed(block, group)
            if len(group) > 1 or (group and len(group[0]) >= _WORTH_ONE):
                sums = SharedSums(common, group)
                found.update(dict.fromkeys(sums.row_of, sums))
    return found


def varying_registers(body: list) -> frozenset[str]:
    """Return the registers of a kernel that may differ between the threads of a block, if only by where a loop ends.

    Too many do no harm: their sums are then added one by one.
    """
    varying: set[str] = set()
    flows = []
    for item in body:
        if isinstance(item, Instruction):
            sources, targets = set(read(item)), tuple(written(item))
            own = item.opcode in _OF_A_LANE or (item.opcode == "ld" and "local" in item.modifiers)
            if own or any(name.startswith(_LANE_REGISTERS) for name in sources):
                varying.update(targets)
            else:
                flows.append((sources, targets))
    before = -1
    while len(varying) > before:
        before = len(varying)
        for sources, targets in flows:
            if not varying.isdisjoint(sources):
                varying.update(targets)
    return frozenset(varying)


def _as_lists(block: Block, chains: dict[int, tuple[int, int]]) -> list[list[Instruction]]:
    """Return each chain's instructions: they follow each other by the register that they add to."""
    going: dict[str, list[Instruction]] = {}
    lists = []
    for item in block.instructions:
        place, count = chains.get(id(item), (0, 1))
        if count < 2:
            continue
        chain = going.pop(item.operands[3].name) if place else []
        chain.append(item)
        if place == count - 1:
            lists.append(chain)
        else:
            going[item.operands[0].name] = chain
    return lists


def _makers(block: Block) -> dict[tuple[int, str], int]:
    """Return which instruction made a register that an instruction reads: -1 for one before the block."""
    latest: dict[str, int] = {}
    makers = {}
    for number, item in enumerate(block.instructions):
        makers.update({(id(item), name): latest.get(name, -1) for name in read(item)})
        latest.update(dict.fromkeys(written(item), number))
    return makers


def undisturbed(block: Block, group: list[list[Instruction]]) -> list[list[Instruction]]:
    """Return the sums that may wait for the last one: nothing reads or overwrites them before."""
    place_of = {id(item): number for number, item in enumerate(block.instructions)}
    end = max(place_of[id(chain[-1])] for chain in group)
    return [
        chain
        for chain in group
        if not any(
            chain[-1].operands[0].name in (*read(item), *written(item))
            for item in block.instructions[place_of[id(chain[-1])] + 1 : end + 1]
        )
    ]


# --- when the block runs ----------------------------------------------------------------------------------------------


@helper
def sums_together(addends, factors, weights, kept):
    """Return addends[i] + factors[0] * weights[i][0] + factors[1] * weights[i][1] + ..., added as `fma32` adds.

    `kept` is a list of the caller's that remembers matrices of factors that come again, or None.
    """
    found = _by_matrices(addends, factors, weights, kept)
    if found is not None:
        return found
    sums = [RunningSum(addend, len(factors)) for addend in addends]
    for number, factor in enumerate(factors[:-1]):
        for one, row in zip(sums, weights, strict=True):
            one.plus(factor, row[number])
    return [one.total(factors[-1], row[-1]) for one, row in zip(sums, weights, strict=True)]


def _by_matrices(addends, factors, weights, kept):
    """Return the sums, or None where matrix products do not bring them, or not with certainty."""
    shape = _shape((*addends, *factors))
    if shape is None or math.prod(shape) < _WORTH_LANES:
        return None
    table = _table(weights, shape)
    if table is None:
        return None
    unit = _unit(table, shape[1], kept[0][0] if kept else 1)
    if unit < _LEAST_UNIT and kept is None and len(addends) < _MANY:
        return None
    sizes = _sizes(len(addends), len(factors), *shape, unit)
    if sizes is None:
        return None
    out = np.empty((len(addends), *shape), _F4)
    sound, zeros = _multiply(addends, factors, table, unit, sizes, kept, out)
    if not sound or (zeros and not _zeros_are_right(addends, factors, table, kept)):
        return None
    return list(out)


def _zeros_are_right(addends, factors, table: np.ndarray, kept: list | None) -> bool:
    """Whether a sum of zero has the sign that it should have: see above."""
    if any(value.view(_I4).min() == _NEGATIVE_ZERO for value in addends):
        return False
    return not (_has_small(table) or _have_small(factors, kept))


def _shape(values) -> tuple[int, int] | None:
    """Return the shape of what is made of some values; None unless it has two axes. NumPy takes longer to tell."""
    tall = wide = 0
    for shape in {value.shape for value in values}:
        if len(shape) == 2:
            tall, wide = max(tall, shape[0]), max(wide, shape[1])
        elif shape:
            return None
    return (tall, wide) if tall else None


def _table(weights, shape: tuple[int, int]) -> np.ndarray | None:
    """Return weights as (sums, products, blocks), (sums, products, 1) if they are constants; None if threads differ."""
    flat = [weight for row in weights for weight in row]
    row, shapes = (1, shape[1]), {weight.shape for weight in flat}
    if shapes == {()}:
        return np.array(flat, _F4).reshape(len(weights), -1, 1)
    if not shapes <= {(), (1, 1), row}:
        return None
    if len(shapes) > 1:
        flat = [np.full(row, weight, _F4) if weight.shape != row else weight for weight in flat]
    return np.concatenate(flat).reshape(len(weights), -1, flat[0].shape[1])


def _unit(table: np.ndarray, columns: int, before: int) -> int:
    """Return into how many blocks at a time the lanes can be cut, so that those of each piece share their weights.

    What it was before is likely to do again.
    """
    bits = table.view(_U4).reshape(-1, table.shape[2])
    if bits.shape[1] > 1 and np.count_nonzero(bits[:, 0] != bits[:, 1]):
        return 1
    divides = 1 < before < bits.shape[1] and not bits.shape[1] % before
    if divides and not np.count_nonzero(bits[:, ::before].repeat(before, axis=1) != bits):
        return before
    changes = np.flatnonzero((bits[:, 1:] != bits[:, :-1]).any(axis=0)) + 1
    return math.gcd(columns, *changes.tolist())


class _Sizes(NamedTuple):
    """How the lanes are laid out for matrix products.

    rows: of a product (one is a vector, and other loops). sums: how many of them are sums. height: rows of lanes at a
    time. gathered: whether the lanes that share their weights are brought together, or lie side by side as they are.
    """

    rows: int
    sums: int
    height: int
    gathered: bool


@functools.lru_cache(maxsize=1024)
def _sizes(sums: int, depth: int, tall: int, columns: int, unit: int) -> _Sizes | None:
    """Return sizes of matrix products that give the right bits; None if there are none."""
    gathered = unit < _WIDE
    for rows in _ROWS:
        taken = min(rows, sums)
        if rows > max(sums, 2):
            continue
        most = max(1, _LANES_AT_ONCE // columns)
        if gathered:
            most = min(most, _ONE_THREAD // (rows * (taken + depth) * unit))
        height = tall if most >= tall else 1 << max(0, most.bit_length() - 1)
        width = height * unit if gathered else unit
        if width >= _LEAST_COLUMNS and _agrees(rows, taken, depth, width):
            return _Sizes(rows, taken, height, gathered)
    return None


def _multiply(addends, factors, table, unit: int, sizes: _Sizes, kept, out: np.ndarray) -> tuple[bool, bool]:
    """Put the sums into `out`, (sums, rows of lanes, columns): so many lanes at a time that they stay in the cache.

    Returns whether all sums are finite, and whether one is zero.
    """
    pieces, height, zeros = out.shape[2] // unit, sizes.height, False
    firsts = [min(first, len(out) - sizes.sums) for first in range(0, len(out), sizes.sums)]  # some are made twice
    matrices = [_matrix(table[first : first + sizes.sums], pieces, unit, sizes) for first in firsts]
    rooms = _kept(kept, (unit, sizes), factors) if kept is not None else []
    for number, top in enumerate(range(0, out.shape[1], height)):
        top = min(top, out.shape[1] - height)
        if kept is None and number:  # one room serves all
            rooms.append(rooms[0])
        if kept is None or number == len(rooms):
            if number == len(rooms):
                rooms.append(_room(sizes.sums + len(factors), height, pieces, unit, sizes.gathered))
            for place, factor in enumerate(factors, start=sizes.sums):
                np.copyto(rooms[number][0][place], _in_pieces(factor, top, height, unit))
        slots, operands = rooms[number]
        for first, matrix in zip(firsts, matrices, strict=True):
            for place in range(sizes.sums):
                np.copyto(slots[place], _in_pieces(addends[first + place], top, height, unit))
            target = out[first : first + sizes.sums, top : top + height]
            _put(matrix, operands, sizes, target.reshape(sizes.sums, height, pieces, unit))
            for row in target:
                flat = row.reshape(-1)
                if not np.isfinite(np.dot(flat, flat)):
                    return False, zeros
                zeros = zeros or not flat.view(_U4).min()
    return True, zeros


def _put(matrix: np.ndarray, operands: np.ndarray, sizes: _Sizes, target: np.ndarray) -> None:
    """Put a matrix product into its sums' lanes, (sums, rows of lanes, pieces, unit)."""
    if not sizes.gathered and sizes.rows == sizes.sums:
        np.matmul(matrix, operands, out=target.transpose(1, 2, 0, 3))
        return
    found = np.matmul(matrix, operands)
    if sizes.gathered:
        pieces, height, unit = target.shape[2], target.shape[1], target.shape[3]
        found = found[:, : sizes.sums].reshape(pieces, -1, height, unit)
        if unit == _OF_COMPLEX:  # moved as one
            found, target = found.view(np.complex128), target.view(np.complex128)
        target[...] = found.transpose(1, 2, 0, 3)
    else:
        target[...] = found[:, :, : sizes.sums].transpose(2, 0, 1, 3)


def _kept(kept: list, key: tuple, factors: tuple) -> list:
    """Return the rooms of a call, third in `kept`: those of an earlier call, where it had the same factors."""
    if not (kept and kept[0] == key and all(map(operator.is_, kept[1], factors))):
        kept[:] = [key, factors, [], None]
    return kept[2]


def _room(rows: int, height: int, pieces: int, unit: int, gathered: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return room for operands, twice: (rows, height, pieces, unit) to be filled, and as the matrices that it holds.

    The rows of a matrix are so far apart that they do not fall on the same places of the cache.
    """
    if gathered:
        matrices = np.empty((pieces, rows, height * unit + _PITCH), _F4)[:, :, : height * unit]
        return matrices.reshape(pieces, rows, height, unit).transpose(1, 2, 0, 3), matrices
    slots = np.empty((rows, height * pieces * unit + _PITCH), _F4)[:, :-_PITCH].reshape(rows, height, pieces, unit)
    return slots, slots.transpose(1, 2, 0, 3)


def _in_pieces(value, top: int, height: int, unit: int):
    """Return some rows of a value's lanes, (height, pieces, unit), or what broadcasts to that."""
    if not isinstance(value, np.ndarray):
        return value
    if value.shape[0] > 1:
        value = value[top : top + height]
    return value[:, :, None] if value.shape[1] == 1 else value.reshape(len(value), -1, unit)


def _matrix(table: np.ndarray, pieces: int, unit: int, sizes: _Sizes) -> np.ndarray:
    """Return the matrices of ones and weights by which each piece is multiplied; rows that are no sum are zero."""
    matrix = np.zeros((pieces, sizes.rows, sizes.sums + table.shape[1]), _F4)
    matrix.reshape(pieces, -1)[:, : sizes.sums * matrix.shape[2] : matrix.shape[2] + 1] = 1
    matrix[:, : sizes.sums, sizes.sums :] = table[:, :, ::unit].transpose(2, 0, 1)
    return matrix


def _have_small(factors, kept: list | None) -> bool:
    """Whether a factor is not zero, but so small that a product with it may be too small for a float32."""
    if kept is None:
        return any(_has_small(value) for value in factors)
    if kept[3] is None:
        kept[3] = any(_has_small(value) for value in factors)
    return kept[3]


def _has_small(value) -> bool:
    size = value.view(_U4) << _ONE  # without the sign; one less is a large number for zero alone
    return np.count_nonzero(size - _ONE < _SMALL) > 0


# --- the probe --------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1024)
def _agrees(rows: int, sums: int, depth: int, columns: int) -> bool:
    """Whether matrix products of these sizes give the bits that `fma32` gives, in every element of three of them."""
    if rows * (sums + depth) * columns > _ONE_THREAD:
        return False
    rng = np.random.default_rng(0)
    _, operands = _room(sums + depth, 1, 3, columns, True)
    operands[...] = rng.standard_normal(operands.shape)
    operands[1] *= np.exp2(rng.integers(-40, 40, operands[1].shape)).astype(_F4)
    operands[2] *= np.exp2(rng.integers(-80, -60, operands[2].shape)).astype(_F4)  # products may be subnormal
    table = rng.standard_normal((sums, depth, 3)).astype(_F4)
    table[-1] *= _F4.type(2.0**-70)
    found = np.matmul(_matrix(table, 3, 1, _Sizes(rows, sums, 1, True)), operands)
    for piece in range(3):
        for row in range(sums):
            total = operands[piece, row : row + 1]
            for number in range(depth):
                total = fma32(table[row : row + 1, number, piece, None], operands[piece, sums + number, None], total)
            if (found[piece, row] != total).any():
                return False
    return True
