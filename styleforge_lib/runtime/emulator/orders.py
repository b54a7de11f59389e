"""Which threads go on where several could: a kernel must come to the same in any order.

What waits for what through mbarriers and named barriers is more than the race detector follows: for it a phase that
ends orders all threads of the block. A wait that is missing shows itself in another way: where the warpgroup that
should have waited runs before the others, results differ, or somebody waits for ever.

Contents
    ORDERS     name -> what chooses among the sets of lanes that could go on (see `schedule`)
"""

from __future__ import annotations

from collections.abc import Callable

from .lanes import Lanes
from .warpgroup_operands import WARPGROUP


def _ahead(prefer: Callable[..., int]) -> Callable[[dict[int, Lanes]], int]:
    """Return the order in which one warpgroup goes on as long as it can; prefer: which, of those that can."""

    def order(pending: dict[int, Lanes]) -> int:
        groups = {number: set((lanes.thread.reshape(-1) // WARPGROUP).tolist()) for number, lanes in pending.items()}
        lowest: dict[int, int] = {}  # of each warpgroup, the block to be run next: so its lanes meet again
        for number in sorted(pending):
            for group in groups[number]:
                lowest.setdefault(group, number)
        number = lowest[prefer(lowest)]
        return number if all(lowest[group] == number for group in groups[number]) else min(pending)

    return order


ORDERS: dict[str, Callable[[dict[int, Lanes]], int]] = {
    "together": min,  # the lowest numbered block: sets meet as early as they can
    "first warpgroup ahead": _ahead(min),
    "last warpgroup ahead": _ahead(max),
}
