"""Where wgmma finds its operands: warpgroups among lanes, descriptors of shared memory, accumulators in registers.

An operand in shared memory is described by a 64-bit descriptor: bits 0-13 the start, 16-29 the leading byte offset
(LBO), 32-45 the stride byte offset (SBO), all in units of 16 bytes, and 62-63 the swizzle. In units of 16 bytes u and
with W = 1, 2, 4, 8 of them in a row of no, 32-, 64- and 128-byte swizzle, an operand with K along its rows has

    row r, u of K        W * 16 * (r % 8) + SBO * (r // 8) + 16 * u        (without swizzle: LBO * u for the last)

and a transposed one, with M or N along its rows,

    row k, u of M or N   W * 16 * (k % 8) + SBO * (k // 8) + 16 * (u % W) + LBO * (u // W)
                         (without swizzle: 16 * (k % 8) + LBO * (k // 8) + SBO * u)

The swizzle exchanges bits of the final address, wherever the operand starts: bits 4-6 ^= bits 7-9 for 128 bytes, 4-5 ^=
7-8 for 64, 4 ^= 7 for 32.

Contents: `Shape` (what an instruction multiplies), `Groups` (lanes as warpgroups), `chunks`, `swizzled`, `word_indices`
and `numbers` (an operand in memory), `Accumulator`.
Sources: PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions"; CUTLASS, `mma_sm90_desc.hpp` for the layouts.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from .lanes import Lanes
from .tokens import TOKENS

WARPGROUP = 128
ROWS = 64
_SWIZZLE_UNITS = (1, 8, 4, 2)  # by the descriptor's two bits


@dataclass(frozen=True)
class Shape:
    """What one instruction multiplies: 64 by `columns`, `depth` deep, of elements of `kind`, to float32 or float16."""

    columns: int
    depth: int
    kind: str
    result: str
    transposed_a: bool
    transposed_b: bool
    negated: bool
    """Whether one of the two scales is -1."""


class Groups:
    """The warpgroups of a set of lanes: pairs (warpgroup, block), and registers as arrays over them."""

    def __init__(self, lanes: Lanes):
        universe = lanes.universe
        self.lanes, self.flat = lanes, lanes.index is not None
        count = universe.threads // WARPGROUP
        rows = None if self.flat else lanes.thread[:, 0]
        if not self.flat and rows.size % WARPGROUP == 0 and self._whole(rows):
            self.complete = True
            groups = rows[::WARPGROUP] // WARPGROUP
            blocks = lanes.block[0]
            self.pairs = (groups[:, None] * universe.blocks + blocks[None, :]).reshape(-1)
        else:
            mask = lanes.mask()
            inside = mask[: count * WARPGROUP].reshape(count, WARPGROUP, universe.blocks)
            whole = inside.all(axis=1)
            self.complete = int(whole.sum()) * WARPGROUP == lanes.count
            self.flat = True
            self.pairs = np.flatnonzero(whole)
        self.blocks = self.pairs % universe.blocks
        self.warpgroups = self.pairs // universe.blocks

    @staticmethod
    def _whole(rows: np.ndarray) -> bool:
        wide = rows.reshape(-1, WARPGROUP)
        return bool((wide[:, 0] % WARPGROUP == 0).all() and (wide[:, -1] - wide[:, 0] == WARPGROUP - 1).all())

    def spread(self, value) -> np.ndarray:
        """Return a value as (pairs, 128)."""
        lanes = self.lanes
        value = lanes.expand(value)
        if self.flat:
            universe = lanes.universe
            wide = np.zeros(universe.size, value.dtype)
            wide[lanes.positions()] = value.reshape(-1)
            count = universe.threads // WARPGROUP
            wide = wide[: count * WARPGROUP * universe.blocks].reshape(count, WARPGROUP, universe.blocks)
            return wide.transpose(0, 2, 1).reshape(-1, WARPGROUP)[self.pairs]
        wide = value.reshape(-1, WARPGROUP, value.shape[1])
        return wide.transpose(0, 2, 1).reshape(-1, WARPGROUP)

    def collect(self, value: np.ndarray) -> np.ndarray:
        """Return (..., pairs, 128) as values of the lanes."""
        lanes = self.lanes
        universe = lanes.universe
        head = value.shape[:-2]
        if self.flat:
            wide = np.zeros((*head, universe.threads, universe.blocks), value.dtype)
            thread = (self.warpgroups[:, None] * WARPGROUP + np.arange(WARPGROUP)).reshape(-1)
            wide[..., thread, np.repeat(self.blocks, WARPGROUP)] = value.reshape(*head, -1)
            return wide.reshape(*head, -1)[..., lanes.positions()].reshape(*head, *lanes.shape)
        blocks = lanes.shape[1]
        wide = value.reshape(*head, -1, blocks, WARPGROUP).swapaxes(-1, -2)
        return np.ascontiguousarray(wide).reshape(*head, *lanes.shape)

    def one_each(self, value) -> np.ndarray | None:
        """Return a value that is the same in all threads of a warpgroup as (pairs,); None where it is not."""
        if not isinstance(value, np.ndarray):
            return np.full(self.pairs.size, value)
        if not self.flat and value.shape[0] == 1:
            return np.broadcast_to(value, (self.pairs.size // self.lanes.shape[1], self.lanes.shape[1])).reshape(-1)
        wide = self.spread(value)
        return wide[:, 0] if (wide == wide[:, :1]).all() else None


def groups_of(lanes: Lanes) -> Groups:
    """Return the warpgroups of a set, made once."""
    if lanes.groups is None:
        lanes.groups = Groups(lanes)
    return lanes.groups


# --- where an operand lies --------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def chunks(descriptor: int, rows: int, depth_bytes: int, transposed: bool) -> np.ndarray:
    """Return the shared addresses of an operand's 16-byte pieces: (rows, depth_bytes / 16); transposed, (K, rows / 8).

    rows is M or N; a transposed operand has elements of 2 bytes.
    """
    start, leading, stride = ((descriptor >> place & 0x3FFF) << 4 for place in (0, 16, 32))
    mode = descriptor >> 62 & 3
    units = _SWIZZLE_UNITS[mode]
    if transposed:
        k, u = np.indices((depth_bytes // 2, rows // 8))
        if mode:
            offset = units * 16 * (k % 8) + stride * (k // 8) + 16 * (u % units) + leading * (u // units)
        else:
            offset = 16 * (k % 8) + leading * (k // 8) + stride * u
    else:
        r, u = np.indices((rows, depth_bytes // 16))
        offset = units * 16 * (r % 8) + stride * (r // 8) + (16 * u if mode else leading * u)
    return swizzled(start + offset, units)


def swizzled(address: np.ndarray, units: int) -> np.ndarray:
    """Exchange 16-byte pieces within rows of `units` of them."""
    return address ^ ((address >> 7 & units - 1) << 4)


@functools.lru_cache(maxsize=256)
def word_indices(descriptors: tuple[int, ...], rows: int, depth_bytes: int, transposed: bool) -> np.ndarray:
    """Return shared addresses of all 4-byte words of some operands that follow each other along K, flattened."""
    found = [chunks(descriptor, rows, depth_bytes, transposed) for descriptor in descriptors]
    whole = np.concatenate(found, axis=0 if transposed else 1)
    return (whole[..., None] + 4 * np.arange(4)).reshape(-1)


def numbers(words: np.ndarray, kind: str) -> np.ndarray:
    """32-bit words as the numbers in them, in float64."""
    if kind == "f16":
        return words.view(np.float16).astype(np.float64)
    if kind == "bf16":
        return (words.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    return (words & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)


class Accumulator:
    """64 by N numbers for each warpgroup of the batch, and what has not been added to them yet."""

    def __init__(self, number: int, pairs: int, shape: Shape, line: int):
        self.number, self.line = number, line
        self.columns, self.result = shape.columns, shape.result
        self.data = np.zeros((pairs, ROWS, shape.columns), np.float32 if shape.result == "f32" else np.float16)
        self.unfinished = np.zeros(pairs, np.int64)
        self.held = np.zeros(pairs, bool)  # whether registers hold tokens of it
        count = shape.columns // (2 if shape.result == "f32" else 4)
        self.tokens = TOKENS.of(number, count, shape.result)

    def take(self, groups: Groups, values: tuple, chosen: np.ndarray) -> None:
        """Set the numbers of some warpgroups from their registers."""
        wide = np.stack([groups.spread(value).view(np.uint32)[chosen] for value in values])  # (registers, pairs, 128)
        count, pairs = wide.shape[0], wide.shape[1]
        if self.result == "f32":
            # register: 4 j + 2 h + e; thread: 32 w + 4 g + t; row 16 w + 8 h + g, column 8 j + 2 t + e
            parts = wide.view(np.float32).reshape(count // 4, 2, 2, pairs, 4, 8, 4)
            self.data[groups.pairs[chosen]] = parts.transpose(3, 4, 1, 5, 0, 6, 2).reshape(pairs, ROWS, -1)
        else:
            parts = wide.view(np.float16).reshape(count // 2, 2, pairs, 4, 8, 4, 2)
            self.data[groups.pairs[chosen]] = parts.transpose(2, 3, 1, 4, 0, 5, 6).reshape(pairs, ROWS, -1)

    def registers(self, pairs: np.ndarray) -> np.ndarray:
        """Return the numbers of some warpgroups as (registers, pairs, 128)."""
        data = self.data[pairs]
        if self.result == "f32":
            parts = data.reshape(pairs.size, 4, 2, 8, self.columns // 8, 4, 2)
            return np.ascontiguousarray(parts.transpose(4, 2, 6, 0, 1, 3, 5)).reshape(-1, pairs.size, WARPGROUP)
        parts = data.reshape(pairs.size, 4, 2, 8, self.columns // 8, 4, 2)
        parts = np.ascontiguousarray(parts.transpose(4, 2, 0, 1, 3, 5, 6))
        return parts.view(np.uint32).reshape(-1, pairs.size, WARPGROUP)
