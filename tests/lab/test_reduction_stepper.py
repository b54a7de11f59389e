"""reduction_stepper(): the rounds against sums, and against the warps that a launch would keep busy."""

import pytest

from styleforge_lib.lab.reduction_stepper import LANES, ORDERS, THREADS, reduction_stepper, rounds

VALUES = [(3 * i) % 11 for i in range(32)]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("count", [2, 8, 32])
def test_the_rounds_add_everything_up(order, count):
    played = rounds(order, VALUES[:count])
    assert len(played) == count.bit_length() - 1
    assert played[-1].values[0] == sum(VALUES[:count])
    for one in played:  # no thread of a round reads what another writes in it
        assert not {source for _, source in one.additions} & {to for to, _ in one.additions}


def test_halves_first_lets_warps_rest():
    busy = {order: [len(one.warps) for one in rounds(order, VALUES)] for order in ORDERS}
    assert busy == {"neighbours first": [4, 4, 4, 2, 1], "halves first": [2, 1, 1, 1, 1]}


def test_foreign_numbers_are_those_of_other_warps():
    first, second, *others = rounds("halves first", VALUES)
    assert first.foreign == list(range(16, 32))  # each thread has written its own
    assert second.foreign == list(range(8, 16))  # written by warp 1 in the first round, read by warp 0
    assert not any(one.foreign for one in others)
    assert [one.foreign for one in rounds("neighbours first", VALUES)] == [[], [], [], [8, 24], [16]]
    assert all(source // LANES != to // LANES for to, source in first.additions)


def test_words():
    played = rounds("neighbours first", VALUES)
    assert played[0].words == (
        "16 threads add the number 1 to the right; 4 of 4 warps are busy; no number comes from another warp."
    )
    assert played[-1].words == (
        "one thread adds the number 16 to the right; 1 of 4 warps is busy; one number comes from another warp."
    )


def test_a_static_picture_stands_beside_the_view():
    widget = reduction_stepper()
    data, _ = widget._repr_mimebundle_()
    assert any(kind.startswith("image/") for kind in data)
    assert len(widget.drawing["values"]) == THREADS
