"""thread_map(grid, block, shape): the map against a launch played out thread by thread."""

import itertools

import numpy as np
import pytest

from styleforge_lib.lab.thread_map import cells, covering, thread_map

LAUNCHES = [
    ((4, 4), (16, 8), (30, 52)),
    ((1, 1), (1, 1), (1, 1)),
    ((2, 1), (8, 8), (17, 9)),  # too small: pixels without a thread
    ((3, 5), (7, 3), (2, 100)),
    ((2,), (128,), (20, 33)),
    ((9,), (32,), (3, 90)),
    ((40,), (7,), (1, 13)),
]


def launched(grid, block, shape):
    """Yield (row, column, linear block, linear thread) as the kernel of the lesson reckons."""
    width = shape[1]
    if len(block) == 1:
        for b, t in itertools.product(range(grid[0]), range(block[0])):
            i = b * block[0] + t
            yield i // width, i % width, b, t
        return
    for by, bx, ty, tx in itertools.product(range(grid[1]), range(grid[0]), range(block[1]), range(block[0])):
        yield by * block[1] + ty, bx * block[0] + tx, by * grid[0] + bx, ty * block[0] + tx


@pytest.mark.parametrize(("grid", "block", "shape"), LAUNCHES)
def test_every_thread_is_where_its_indices_say(grid, block, shape):
    table = cells(grid, block, shape)
    expected = np.full(table.shape, -1)
    expected[: shape[0], : shape[1], 2] = 1
    for row, column, owner, thread in launched(grid, block, shape):
        inside = row < shape[0] and column < shape[1]
        expected[row, column] = owner, thread, inside
    assert np.array_equal(table, expected)


@pytest.mark.parametrize(
    ("block", "shape"), [((16, 8), (30, 52)), ((1, 1024), (5, 7)), ((33,), (10, 10)), ((5,), (1, 5))]
)
def test_the_covering_grid_is_the_smallest(block, shape):
    grid = covering(block, shape)
    assert (cells(grid, block, shape)[: shape[0], : shape[1], 0] >= 0).all()
    for axis, blocks in enumerate(grid):
        fewer = list(grid)
        fewer[axis] -= 1
        if blocks > 1:
            assert (cells(tuple(fewer), block, shape)[: shape[0], : shape[1], 0] < 0).any()


def test_summary_counts():
    assert thread_map(None, (16, 8), (30, 52)).summary() == (
        "grid (4, 4), block (16, 8): 2048 threads, 1560 with a pixel (76 %)"
    )
    assert thread_map(2, 128, (20, 33)).summary().endswith("256 with a pixel (100 %); 404 pixels without a thread")


@pytest.mark.parametrize(
    ("launch", "said"),
    [
        (((1, 1), (32, 33), (8, 8)), "^block: 1056 threads"),
        (((1,), (8, 8), (8, 8)), "^grid and block"),
        ((None, (8, 8, 1), (8, 8)), "^block: one or two"),
        ((None, (8, 0), (8, 8)), "^block: one or two"),
        ((None, (8, 8), (8, 129)), "^shape: at most 128"),
        (((129,), (8,), (8, 8)), "^grid: at most 128"),
    ],
)
def test_one_clear_error(launch, said):
    with pytest.raises(ValueError, match=said):
        thread_map(*launch)


def test_a_static_picture_stands_beside_the_view():
    data, _ = thread_map(None, (16, 16), (100, 120))._repr_mimebundle_()
    assert len(data["image/png"]) < 100_000
