"""Addresses that are a start plus what differs between lanes, looked at once for all that differ alike.

Most arrays are walked like this: `x + blockIdx.x * n + i`, with i made of threadIdx. A loop's next turn, the next pass
and the next array only move the start. So what such a sum looks like from its least address on is remembered, by what
the summands look like, and each access adds the start, as one number: neither the sum nor an index is computed again.

Contents: `AddressSums`.
"""

from __future__ import annotations

import numpy as np

from .address_space import SLOT_SHIFT, Region, Site
from .lanes import Lanes
from .located import Located, spread_of, step_of
from .memory import NARROW, Memory

_MOST = 16  # patterns that are remembered, each as large as the lanes
_U8, _I8 = np.dtype(np.uint64), np.dtype(np.int64)


class AddressSums:
    """What one batch has found out about its sums."""

    def __init__(self, memory: Memory):
        self.memory = memory
        self._found: dict[tuple, _Pattern] = {}
        self._last: tuple[object, Lanes | None, _Pattern | None] = None, None, None

    def locate(self, a, b, again: bool, low: int, space: str, lanes: Lanes, site: Site) -> tuple[object, int]:
        """Look at the sum of two numbers of 64 bits, as `Memory.locate` does; returns what each access is to add, too.

        `again` is whether other sums have a summand of this one, `low` the least offset used. Whatever is not plain
        here (a fault, an odd array) is the affair of `Memory`.
        """
        trace = self.memory.trace
        if (trace is None or trace.detector is None) and not lanes.is_flat:
            found = self._pattern(a, b, again, lanes)
            if found is not None:
                pattern, first = found
                region = self.memory.regions.get((first + low) >> SLOT_SHIFT)
                if region is not None and not region.base & 15:
                    start, located = first + low + pattern.least - region.base, pattern.located(region, lanes)
                    if start + located.high >= region.size:
                        located.narrow()
                    if 0 <= start < region.size - located.high:
                        return located, start
        return self.memory.locate((a + b).view(_U8), low, space, lanes, site), 0

    def _pattern(self, a, b, again: bool, lanes: Lanes) -> tuple[_Pattern, int] | None:
        """Return how the lanes lie, and the first one's address; None where it may be another at each time."""
        if not isinstance(a, np.ndarray):
            a, b = b, a
        if not isinstance(a, np.ndarray):
            return None
        first = a.item(0) + b.item(0)
        if not isinstance(b, np.ndarray):  # one index of several arrays
            if not again:
                return None
            if self._last[0] is not a or self._last[1] is not lanes:
                self._last = None, None, None
                offset = a.view(_I8) - a.view(_I8)[0, 0]
                # Of many blocks side by side it would take longer to look than it saves.
                self._last = a, lanes, _Pattern(offset, spread_of(offset) if offset.shape[1] <= NARROW else None)
            return self._last[2], first
        if not (a.shape[0] == b.shape[1] == 1 or a.shape[1] == b.shape[0] == 1):
            return None
        a, b = (value.view(_I8) - value.view(_I8)[0, 0] for value in (a, b))
        key = (a.shape, a.tobytes(), b.tobytes(), lanes)
        found = self._found.get(key)
        if found is None:
            if len(self._found) >= _MOST:
                self._found.clear()
            threads, blocks = (a, b) if a.shape[1] == 1 else (b, a)
            steps = step_of(threads[:, 0]), step_of(blocks[0])
            found = self._found[key] = _Pattern(a + b, None if None in steps else steps)
        return found, first


class _Pattern:
    """Where lanes lie, seen from the least address."""

    def __init__(self, offset: np.ndarray, spread: tuple[int, int] | None):
        self.least, bits = 0, int(np.bitwise_or.reduce(offset, axis=None))
        if bits < 0:  # the first lane's is not the least
            self.least = int(offset.min())
            offset -= self.least
            bits = int(np.bitwise_or.reduce(offset, axis=None))
        self.offset, self.bits, self.spread = offset, bits, spread
        self.indices: dict = {}
        self._located: dict[int, Located] = {}

    def located(self, region: Region, lanes: Lanes) -> Located:
        """Return the same as an operand in a region."""
        found = self._located.get(region.base)
        if found is None:
            found = Located(region, lanes, self.offset, 0, self.bits, self.bits & 15, exact=False)
            found.indices, found.spread = self.indices, self.spread
            self._located[region.base] = found
        return found
