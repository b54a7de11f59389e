"""Sets of lanes: what batches of one size know in common."""

import numpy as np

from styleforge_lib.runtime.emulator import lanes
from styleforge_lib.runtime.emulator.lanes import Universe, merge, universe_of

THREADS, BLOCKS = 64, 4


def test_a_split_is_made_once():
    full = Universe(THREADS, BLOCKS).full
    first = np.arange(THREADS).reshape(-1, 1) == 0
    taken, passed = full.split(first)
    again = full.split(first.copy())
    assert again[0] is taken
    assert again[1] is passed
    assert merge(taken, passed) is full
    other = full.split(np.arange(THREADS).reshape(-1, 1) == 1)
    assert other[0].thread.tolist() == [[1]]
    assert taken.thread.tolist() == [[0]]
    # Of another set: the same predicate means other lanes.
    later = np.arange(2).reshape(-1, 1) == 0
    low, _ = full.split(np.arange(THREADS).reshape(-1, 1) < 2)
    high, _ = full.split(np.arange(THREADS).reshape(-1, 1) >= THREADS - 2)
    assert low.split(later)[0].thread.tolist() == [[0]]
    assert high.split(later)[0].thread.tolist() == [[THREADS - 2]]


def test_threads_and_blocks_with_the_same_bits_are_split_apart():
    full = Universe(BLOCKS, BLOCKS).full
    bits = np.array([True, False, False, True])
    by_thread, by_block = full.split(bits.reshape(-1, 1))[0], full.split(bits.reshape(1, -1))[0]
    assert by_thread.shape == (2, BLOCKS)
    assert by_block.shape == (BLOCKS, 2)


def test_few_splits_are_remembered_and_none_of_lanes_that_are_no_grid():
    universe = Universe(THREADS, BLOCKS)
    most = 0
    for number in range(3 * lanes._MOST_SPLITS):
        bits = np.array([number >> bit & 1 for bit in range(7)] + [1] * 56 + [0], bool).reshape(-1, 1)
        assert universe.full.split(bits)[0].count == BLOCKS * bits.sum()
        most = max(most, len(universe.splits))
    assert most == lanes._MOST_SPLITS
    before = len(universe.splits)
    universe.full.split(np.eye(THREADS, BLOCKS, dtype=bool))
    assert len(universe.splits) == before


def test_a_union_of_parts_of_different_splits_is_made_once():
    full = Universe(THREADS, BLOCKS).full
    low, high = full.split(np.arange(THREADS).reshape(-1, 1) < 32)
    one, others = low.split(np.arange(32).reshape(-1, 1) == 0)
    union = merge(high, others)
    assert union.thread[:, 0].tolist() == list(range(1, THREADS))
    assert merge(high, others) is union
    assert merge(union, one) is full


def test_few_unions_are_remembered_and_none_of_lanes_that_are_no_grid():
    universe = Universe(THREADS, BLOCKS)
    rows = [universe.full.split(np.arange(THREADS).reshape(-1, 1) == number)[0] for number in range(12)]
    for first in rows:
        for second in rows:
            if first is not second:
                assert merge(first, second).count == 2 * BLOCKS
    assert 0 < len(universe.unions) <= lanes._MOST_SPLITS
    before = dict(universe.unions)
    diagonal = universe.full.split(np.eye(THREADS, BLOCKS, -32, dtype=bool))[0]
    assert merge(rows[0], diagonal).count == 2 * BLOCKS
    assert universe.unions == before


def test_batches_of_one_size_share_their_universe():
    assert universe_of(THREADS, BLOCKS) is universe_of(THREADS, BLOCKS)
    assert universe_of(THREADS, BLOCKS).size == universe_of(BLOCKS, THREADS).size
    assert universe_of(BLOCKS, THREADS).threads == BLOCKS
