"""variance_slider(): the bits against exact arithmetic, and the words against what float32 makes of it."""

from fractions import Fraction

import numpy as np
import pytest

from styleforge_lib.lab.variance_slider import DEVIATIONS, KEPT, MEANS, SHOWN, subtract, variance_slider


def value(bits, top):
    return int(bits, 2) * Fraction(2) ** (top - SHOWN + 1)


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("deviation", DEVIATIONS)
def test_the_bits_are_the_numbers(mean, deviation):
    found = subtract(mean, deviation)
    assert found.squares[0] == "1"
    unit = Fraction(2) ** (found.top - SHOWN + 1)
    assert 0 <= Fraction(mean) ** 2 + Fraction(deviation) ** 2 - value(found.squares, found.top) < unit
    assert 0 <= Fraction(mean) ** 2 - value(found.square, found.top) < unit
    if found.variance.strip("0"):
        assert value(found.variance, found.top) == Fraction(deviation) ** 2


def test_a_plane_of_two_values_gives_what_the_words_say():
    plane = np.repeat(np.float32([3999.5, 4000.5]), 8)
    squares, mean = np.float32((plane.astype(float) ** 2).mean()), np.float32(plane.astype(float).mean())
    assert subtract(4000.0, 0.5).got == squares - mean * mean == 0
    assert subtract(4000.0, 0.5).words == (
        "Neighbouring float32 numbers are 1 apart at 16000000.25. The variance is 0.25: nothing of it is left."
    )
    assert subtract(1000.0, 0.5).words.endswith("The variance is 0.25: of its bits, 3 can be kept.")
    assert subtract(30000.0, 4.0).words.endswith("The variance is 16: nothing of it is left.")
    assert subtract(0.0, 2.0).words.endswith(f"of its bits, {KEPT} can be kept.")


def test_one_clear_error():
    with pytest.raises(ValueError, match=r"^mean: the slider has"):
        variance_slider(4001)
    with pytest.raises(ValueError, match=r"^deviation: the slider has"):
        variance_slider(4000, 0.3)


def test_a_static_picture_stands_beside_the_view():
    data, _ = variance_slider(0.0)._repr_mimebundle_()
    assert any(kind.startswith("image/") for kind in data)
    assert repr(variance_slider()) == "variance_slider(4000, 0.5)"
