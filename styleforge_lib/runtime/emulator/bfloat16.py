"""bfloat16 as bits: the high half of a float32."""

from __future__ import annotations

import numpy as np


def from_brain(bits):
    """Return the float32 of bfloat16 bits."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bfloat(value, truncate):
    """float32 to bfloat16 bits, to nearest even or to zero; NaN stays one."""
    bits = value.view(np.uint32)
    if not truncate:
        even = (bits >> np.uint32(16)) & np.uint32(1)
        bits = bits + np.uint32(0x7FFF) + even
    high = (bits >> np.uint32(16)).astype(np.uint16)
    return np.where(value == value, high, np.uint16(0x7FFF))[()]
