"""What is said of two measurements reads well whatever they are."""

import pytest

from styleforge_lib import lab
from styleforge_lib.lab.records import Measurement


def row(median, spread=0.005):
    low, high = median * (1 - spread), median * (1 + spread)
    return Measurement(operator="o", version="v", shape="1", dtype="float32", median_ms=median, p20_ms=low, p80_ms=high)


@pytest.mark.parametrize(
    ("ms", "than", "said"),
    [
        (0.1, 0.1, "the same within the spread"),
        (0.09999, 0.1, "the same within the spread"),
        (0.1009, 0.1, "the same within the spread"),
        (0.102, 0.1, "2 % more"),
        (0.098, 0.1, "2 % less"),
        (0.052, 0.1, "48 % less"),
        (0.05, 0.1, "2.0 times faster"),
        (0.0001, 0.1, "1000.0 times faster"),
        (0.19, 0.1, "90 % more"),
        (0.2, 0.1, "2.0 times as much"),
        (25.4, 0.1, "254.0 times as much"),
    ],
)
def test_compared(ms, than, said):
    assert lab.compared(row(ms), row(than)) == said


def test_a_difference_beyond_the_spread_is_never_nothing():
    assert lab.compared(row(0.1003, 0), row(0.1, 0)) == "less than 1 % more"
    assert lab.compared(row(0.0997, 0), row(0.1, 0)) == "less than 1 % less"


def test_say_puts_values_in():
    assert lab.say("It takes {a:.2f} ms,", "{b}.", a=1.234, b="9 % less").data == "It takes 1.23 ms, 9 % less."
