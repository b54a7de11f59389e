"""Sums of products that share their factors, as products of matrices: the same bits, where a probe says so.

A convolution whose threads make some outputs of one pixel each adds v0 * w00 + v1 * w01 + ... to one sum, v0 * w10 + v1
* w11 + ... to the next: the factors v are the thread's own, the weights w the same in a whole block. With the addends
for further factors that is one matrix product:

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

Contents: `SharedSums` and `shared_sums` (which instructions of a block are such sums), `sums_together` (the sums).
"""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np

from ..control_flow import Block, read, written
from ..parse import Instruction, Reg
from .emitter import helper
from .multiply_add import RunningSum, fma32

_F4, _U4, _I4 = np.dtype(np.float32), np.dtype(np.uint32), np.dtype(np.int32)
_WORTH_LANES = 2048  # fewer gain nothing
_LEAST_COLUMNS = 16  # lanes side by side that share their weights
_ONE_THREAD = 1 << 17  # multiplications of a matrix product that the library does not share among threads
_AT_ONCE = (8, 4, 3, 2)  # sums; a matrix of one row is a vector, and other loops
_WIDE = 128  # lanes side by side that are enough
_LANES_AT_ONCE = 16384
_PITCH = 16  # elements between rows, that they do not fall on the same places of the cache
_MOST_AT_ONCE = _AT_ONCE[0]
_SMALL = np.float32(2.0**-50)  # products of larger numbers are whole multiples of the least float32
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
        self.length = len(chains[0])
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
            found = e.new(f"sums_together(({', '.join(self.addends)},), ({', '.join(self.factors)},), ({rows},))")
            for number, target in enumerate(self.targets):
                e.set_expression(target, f"{found}[{number}]", "f32")


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
            group = _undisturbed(block, group)
            if len(group) > 1:
                sums = SharedSums(common, group)
                found.update(dict.fromkeys(sums.row_of, sums))
    return found


def varying_registers(body: list) -> frozenset[str]:
    """Return the registers of a kernel that may differ between the threads of a block, if only by where a loop ends.

    Too many do no harm: their sums are then added one by one.
    """
    items = [item for item in body if isinstance(item, Instruction)]
    varying: set[str] = set()
    while True:
        before = len(varying)
        for item in items:
            names = list(read(item))
            if (
                item.opcode in _OF_A_LANE
                or (item.opcode == "ld" and "local" in item.modifiers)
                or any(name in varying or name.startswith(_LANE_REGISTERS) for name in names)
            ):
                varying.update(written(item))
        if len(varying) == before:
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


def _undisturbed(block: Block, group: list[list[Instruction]]) -> list[list[Instruction]]:
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
def sums_together(addends, factors, weights):
    """Return addends[i] + factors[0] * weights[i][0] + factors[1] * weights[i][1] + ..., added as `fma32` adds."""
    found = _by_matrices(addends, factors, weights)
    if found is not None:
        return found
    sums = [RunningSum(addend, len(factors)) for addend in addends]
    for number, factor in enumerate(factors[:-1]):
        for one, row in zip(sums, weights, strict=True):
            one.plus(factor, row[number])
    return [one.total(factors[-1], row[-1]) for one, row in zip(sums, weights, strict=True)]


def _by_matrices(addends, factors, weights):
    """Return the sums, or None where matrix products do not bring them, or not with certainty."""
    shape = np.broadcast_shapes(*(np.shape(value) for value in (*factors, *addends)))
    lanes = math.prod(shape)
    if lanes < _WORTH_LANES:
        return None
    table = _table(weights, shape)
    if table is None:
        return None
    depth, columns = len(factors), shape[-1]
    edges = _edges(table)
    tall = lanes // columns
    if len(edges) == 2:
        edges[1] = columns
        if columns < _WIDE:  # all lanes share their weights: then they may be one row
            tall, edges[1] = 1, lanes
    spans = [span for start, stop in itertools.pairwise(edges) for span in _spans(start, stop, depth)]
    at_once = min(_sums_at_once(len(addends), depth, stop - start) for start, stop in spans)
    if not at_once:
        return None
    out = np.empty((len(addends), tall, lanes // tall), _F4)
    rows = [[_rows(value, shape, tall) for value in values] for values in (addends, factors)]
    sound, zeros = _multiply(*rows, _matrices(table, spans, at_once), at_once, out)
    if not sound or (zeros and any(_has_small(value) for value in (*factors, table))):
        return None
    return list(out.reshape(-1, *shape))


def _table(weights, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return weights as (sums, products, blocks), (sums, products, 1) if they are constants; None if threads differ."""
    flat = [weight for row in weights for weight in row]
    if not any(isinstance(weight, np.ndarray) for weight in flat):
        return np.array(flat, _F4).reshape(len(weights), -1, 1)
    if len(shape) != 2 or any(np.shape(weight) not in ((), (1, 1), (1, shape[1])) for weight in flat):
        return None
    row = (1, shape[1])
    found = [weight if np.shape(weight) == row else np.full(row, weight, _F4) for weight in flat]
    return np.concatenate(found).reshape(len(weights), -1, shape[1])


def _rows(value, shape: tuple[int, ...], tall: int) -> np.ndarray:
    """Return a value of each lane, in as many rows."""
    return (value if np.shape(value) == shape else np.broadcast_to(value, shape)).reshape(tall, -1)


def _matrices(table: np.ndarray, spans: list[tuple[int, int]], at_once: int) -> list[tuple[int, list]]:
    """Return (number of the first sum, [(columns, matrix)]) for each few sums; some may be made twice."""
    found = []
    for first in range(0, len(table), at_once):
        first = min(first, len(table) - at_once)
        matrices = []
        for start, stop in spans:
            matrix = np.eye(at_once, at_once + table.shape[1], dtype=_F4)
            matrix[:, at_once:] = table[first : first + at_once, :, start if table.shape[2] > start else 0]
            matrices.append((slice(start, stop), matrix))
        found.append((first, matrices))
    return found


def _multiply(addends, factors, matrices, at_once: int, out: np.ndarray) -> tuple[bool, bool]:
    """Put the sums into `out`, (sums, rows, columns); so many lanes at a time that they stay in the cache.

    Returns whether all is finite and no addend -0, and whether a sum is zero.
    """
    _, tall, wide = out.shape
    height = max(1, _LANES_AT_ONCE // wide)
    room = np.empty((at_once + len(factors), height * wide + _PITCH), _F4)[:, : height * wide]
    room = room.reshape(-1, height, wide)
    zeros = False
    for top in range(0, tall, height):
        part = slice(top, top + height)
        operands = room[:, : min(height, tall - top)]
        for place, factor in enumerate(factors, start=at_once):
            np.copyto(operands[place], factor[part])
        for first, spans in matrices:
            for place in range(at_once):
                np.copyto(operands[place], addends[first + place][part])
            if operands[:at_once].view(_I4).min() == _NEGATIVE_ZERO:
                return False, zeros
            results = out[first : first + at_once, part]
            for columns, matrix in spans:
                np.matmul(
                    matrix, operands[:, :, columns].transpose(1, 0, 2), out=results[:, :, columns].transpose(1, 0, 2)
                )
            for sums in results:
                sums = sums.reshape(-1)
                if not np.isfinite(np.dot(sums, sums)):
                    return False, zeros
                zeros = zeros or not sums.view(_U4).min()
    return True, zeros


def _edges(table: np.ndarray) -> list[int]:
    """Return where blocks with weights of their own begin, and the end."""
    bits = table.view(_U4)
    changes = (bits[:, :, 1:] != bits[:, :, :-1]).any(axis=(0, 1))
    return [0, *(np.flatnonzero(changes) + 1).tolist(), table.shape[2]]


def _spans(start: int, stop: int, depth: int) -> list[tuple[int, int]]:
    """Cut columns into pieces of one size, of which there are few; the last one may overlap the one before."""
    size = min(stop - start, _ONE_THREAD // (_MOST_AT_ONCE * (_MOST_AT_ONCE + depth)))
    size = 1 << (size.bit_length() - 1)
    return [(min(first, stop - size), min(first, stop - size) + size) for first in range(start, stop, size)]


def _has_small(value) -> bool:
    size = np.abs(value)
    return bool(((size < _SMALL) & (size != 0)).any())


# --- the probe --------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1024)
def _sums_at_once(sums: int, depth: int, columns: int) -> int:
    """Return how many sums a matrix product may have, at most; 0: none will do."""
    if columns < _LEAST_COLUMNS:
        return 0
    return next((count for count in _AT_ONCE if count <= sums and _agrees(count, depth, columns)), 0)


def _agrees(sums: int, depth: int, columns: int) -> bool:
    """Whether matrix products of these sizes give the bits that `fma32` gives, in every element of three of them."""
    if sums * (sums + depth) * columns > _ONE_THREAD:
        return False
    rng = np.random.default_rng(0)
    operands = rng.standard_normal((sums + depth, 3, columns)).astype(_F4)
    operands[:, 1] *= np.exp2(rng.integers(-40, 40, (sums + depth, columns))).astype(_F4)
    operands[:, 2] *= np.exp2(rng.integers(-80, -60, (sums + depth, columns))).astype(_F4)  # products may be subnormal
    matrix = np.eye(sums, sums + depth, dtype=_F4)
    matrix[:, sums:] = rng.standard_normal((sums, depth))
    matrix[1, sums:] *= _F4.type(2.0**-70)
    found = np.empty((sums, 3, columns), _F4)
    np.matmul(matrix, operands.transpose(1, 0, 2), out=found.transpose(1, 0, 2))
    for row in range(sums):
        total = operands[row]
        for number in range(sums, sums + depth):
            total = fma32(matrix[row : row + 1, number : number + 1], operands[number], total)
        if (found[row] != total).any():
            return False
    return True
