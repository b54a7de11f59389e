"""Tensor maps: what cp.async.bulk.tensor knows of an array in global memory.

On a GPU a map is 128 opaque bytes that the driver makes. The emulator has 128 bytes of its own, which only it can read:
address, element, sizes, strides, box, swizzle and fill. Axis 0 is the innermost, as in the instruction's coordinates.

Contents: `TensorMap` (what is asked for, and its bytes once the array has an address), `decode`.
Source: CUDA driver API, `cuTensorMapEncodeTiled`; PTX ISA, "Tensor copies".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

BYTES = 128
AXES = 5
_MAGIC = b"SFTM"
_FORMAT = struct.Struct("<4sBBBBQ5Q5Q5H")
SWIZZLE_UNITS = {0: 1, 32: 2, 64: 4, 128: 8}


@dataclass(frozen=True)
class TensorMap:
    """A tensor map of the tiled mode.

    array: the memory, as bytes (None in a map that has been decoded). address: of the first element; in `encode` it is
    counted from the array's start. element: bytes of one. sizes, strides (in bytes), box: for each axis, the innermost
    first. swizzle: 0, 32, 64 or 128. nan: whether what lies outside is NaN instead of 0.
    """

    array: np.ndarray | None
    address: int
    element: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: int = 0
    nan: bool = False

    def encode(self, base: int) -> bytes:
        """Return the map's bytes, of an array that begins at an address."""
        pad = (0,) * (AXES - len(self.sizes))
        kept = _FORMAT.pack(
            _MAGIC, len(self.sizes), self.element, self.swizzle, self.nan, base + self.address,
            *self.sizes, *pad, *self.strides, *pad, *self.box, *pad,
        )  # fmt: skip
        return kept + bytes(BYTES - len(kept))

    @property
    def bytes(self) -> int:
        """How many bytes a box has."""
        return self.element * int(np.prod(self.box))

    def offsets(self, corner: tuple[int, ...]) -> np.ndarray:
        """Return where the elements of a box lie, in bytes from the first of the array; -1 for those outside."""
        total, inside = np.zeros((1,) * len(self.box), np.int64), np.ones((1,) * len(self.box), bool)
        for axis, (start, count, size, stride) in enumerate(
            zip(corner, self.box, self.sizes, self.strides, strict=True)
        ):
            shape = [1] * len(self.box)
            shape[-1 - axis] = count
            place = (start + np.arange(count)).reshape(shape)
            total, inside = total + place * stride, inside & (place >= 0) & (place < size)
        return np.where(inside, total, -1).reshape(-1)


def decode(content: bytes) -> TensorMap | None:
    """Return the map that bytes hold, with its address; None if they were not made here."""
    if len(content) != BYTES or content[:4] != _MAGIC:
        return None
    _, axes, element, swizzle, nan, address, *numbers = _FORMAT.unpack_from(content)
    sizes, strides, box = (tuple(numbers[start : start + axes]) for start in (0, AXES, 2 * AXES))
    return TensorMap(None, address, element, sizes, strides, box, swizzle, bool(nan))


__all__ = ["AXES", "BYTES", "SWIZZLE_UNITS", "TensorMap", "decode"]
