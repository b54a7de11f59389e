"""The address space: allocations in slots of their own, and poison.

Every array, module variable and shared variable has a slot of the address space to itself and starts in its middle, so
an index that runs out of it, to either side, never lands in a neighbour: it is a fault that names the array. Shared
and local memory are banked: `words[w, owner]` holds word w of every block (or lane) side by side, which makes a load
at an address that depends on threadIdx alone a copy of rows.

Contents: addresses, `Site`, `Region` (global, constant and parameter memory), `Bank` (shared and local), `Snapshot`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_U4 = np.dtype(np.uint32)
_ROWS = 32  # words that a bank compares at once
SLOT_SHIFT = 40  # bits of an address inside a slot: no kernel's index overflows into the next
SLOT_MIDDLE = 1 << (SLOT_SHIFT - 1)
SHARED_SLOT, LOCAL_SLOT, PARAMETER_SLOT, WORKSPACE_SLOT, FUNCTION_SLOT, FIRST_FREE_SLOT = 1, 2, 3, 4, 5, 16
RANK_SHIFT = 24  # from where a shared address names a block of the cluster
BANK_SHIFT = 20  # the same inside the 32-bit shared and local windows
BANK_MIDDLE = 1 << (BANK_SHIFT - 1)
# What unwritten memory holds: a NaN as float16, bfloat16, float32 and float64, and a conspicuous integer.
POISON = 0x7FF77FF7


def slot_base(slot: int) -> int:
    """Return the 64-bit address of a slot's first byte of data."""
    return (slot << SLOT_SHIFT) | SLOT_MIDDLE


def bank_base(slot: int) -> int:
    """Return the address, within the shared or local window, of a variable's first byte."""
    return (slot << BANK_SHIFT) | BANK_MIDDLE


WINDOW = {"shared": slot_base(SHARED_SLOT), "local": slot_base(LOCAL_SLOT)}


@dataclass(slots=True)
class Site:
    """A memory instruction: what faults and metrics say about it."""

    number: int
    line: int
    name: str
    space: str
    verb: str
    width: int
    """Bytes per lane."""

    def __str__(self) -> str:
        noun = "byte" if self.width == 1 else "bytes"
        return f"{self.space} {self.verb} of {self.width} {noun} at line {self.line}"


class Region:
    """One allocation of global, constant or parameter memory: the caller's own bytes, not a copy."""

    banked = False

    def __init__(self, name: str, base: int, data: np.ndarray, space: str = "global"):
        self.name, self.base, self.size, self.data, self.space = name, base, data.size, data, space
        self._typed: dict = {}

    def typed(self, dtype: np.dtype) -> tuple[np.ndarray, int]:
        """Return the data as elements of a type, and how many bytes before the first aligned one were left out."""
        found = self._typed.get(dtype)
        if found is None:
            width = dtype.itemsize
            shift = -self.base % width
            count = max(0, self.size - shift) // width
            found = self._typed[dtype] = (self.data[shift : shift + count * width].view(dtype), shift)
        return found


class Snapshot:
    """The words of a bank at some time, (owners, words), of one owner if all are alike; and forms made of them."""

    __slots__ = ("_forms", "words")

    def __init__(self, words: np.ndarray):
        alike = words.shape[1] > 1 and (words[:, 0] == words[:, -1]).all() and (words == words[:, :1]).all()
        self.words = np.ascontiguousarray(words[:, :1].T if alike else words.T)
        self._forms: dict[str, np.ndarray] = {}

    def form(self, key: str, make) -> np.ndarray:
        """Return `make(words, key)`, made once."""
        found = self._forms.get(key)
        if found is None:
            found = self._forms[key] = make(self.words, key)
        return found


class Bank:
    """One shared or local variable: words by owners (blocks, or lanes)."""

    banked = True

    def __init__(self, name: str, space: str, base: int, size: int, owners: int):
        self.name, self.space, self.base, self.size, self.owners = name, space, base, size, owners
        self._words = np.full((-(-size // 4), owners), POISON, np.uint32)
        self.shared = space == "shared"
        self._typed = {_U4: self._words}
        self._rows: dict[tuple[int, int], list] = {}
        self._snapshot: Snapshot | None = None
        self._until_snapshot = self._words.shape[0]

    @property
    def words(self) -> np.ndarray:
        """The words, to be read or written: what `row` and `snapshot` remember of them is forgotten."""
        if self._rows:
            self._rows = {}
        self._snapshot, self._until_snapshot = None, self._words.shape[0]
        return self._words

    def snapshot(self, reads: int) -> Snapshot | None:
        """Return the words as they are, or None before as many have been read of them as there are since a write.

        That many reads pay for a copy of all; its forms (float16 as numbers) are then there for those that follow.
        """
        if self._snapshot is None:
            self._until_snapshot -= reads
            if self._until_snapshot < 0 and self._words.shape[0] % 4 == 0:
                self._snapshot = Snapshot(self._words)
        return self._snapshot

    def typed(self, dtype: np.dtype) -> np.ndarray:
        """Return the words as a 4-byte type, to be read."""
        found = self._typed.get(dtype)
        if found is None:
            found = self._typed[dtype] = self._words.view(dtype)
        return found

    def row(self, number: int, dtype: np.dtype):
        """Return one word of every owner, as a value (1, owners), or a scalar where all owners hold the same.

        Words that a whole block reads (weights, a mean) often come in numbers, and blocks often hold the same: so
        some neighbours are copied and compared at once, and kept until something is written.
        """
        return self._neighbours(number // _ROWS, dtype)[number % _ROWS]

    def rows(self, numbers: Sequence[int], dtype: np.dtype) -> list:
        """Return `row` of some words, sooner if they follow each other (a range)."""
        in_order = type(numbers) is range
        least, most = (numbers[0], numbers[-1]) if in_order else (min(numbers), max(numbers))
        first = least // _ROWS
        found = self._neighbours(first, dtype)
        for group in range(first + 1, most // _ROWS + 1):
            found = found + self._neighbours(group, dtype)
        first *= _ROWS
        return found[least - first : most + 1 - first] if in_order else [found[number - first] for number in numbers]

    def _neighbours(self, group: int, dtype: np.dtype) -> list:
        key = (group, dtype.num)
        found = self._rows.get(key)
        if found is None:
            rows = self.typed(dtype)[group * _ROWS : (group + 1) * _ROWS].copy()
            bits = rows.view(_U4)
            found = self._rows[key] = list(rows[:, None])
            if np.count_nonzero(bits[:, 0] == bits[:, -1]):
                for number in np.flatnonzero((bits == bits[:, :1]).all(axis=1)).tolist():
                    found[number] = rows[number, 0]
        return found


def triple(index: tuple[int, int, int]) -> str:
    """Write three numbers as messages do: (1,0,0)."""
    return "({},{},{})".format(*index)
