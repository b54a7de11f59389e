"""Numbers against declared types, for any number: it arrives unchanged, or it is refused."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from styleforge_lib.runtime.arguments import scalar
from styleforge_lib.runtime.signature import Parameter

INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]


def parameter(dtype: str) -> Parameter:
    return Parameter(0, "value", dtype, "scalar", dtype, True, 1, np.dtype(dtype).itemsize)


@given(
    st.sampled_from(INTEGERS),
    st.integers(-(2**66), 2**66) | st.sampled_from([2**k + d for k in range(66) for d in (-1, 0)]),
)
def test_an_integer_fits_or_is_refused(dtype, value):
    limits = np.iinfo(dtype)
    for signed in (value, -value):
        if limits.min <= signed <= limits.max:
            assert scalar("k", parameter(dtype), signed) == signed
        else:
            with pytest.raises(ValueError, match=f"does not fit into {dtype}"):
                scalar("k", parameter(dtype), signed)


@given(st.sampled_from(["float16", "float32", "float64"]), st.floats(width=64))
def test_a_float_is_rounded_or_refused(dtype, value):
    with np.errstate(over="ignore"):
        rounded = np.array(value).astype(dtype)
    if math.isfinite(value) and not np.isfinite(rounded):
        with pytest.raises(ValueError, match=f"does not fit into {dtype}"):
            scalar("k", parameter(dtype), value)
    else:
        np.testing.assert_array_equal(np.array(scalar("k", parameter(dtype), value)).astype(dtype), rounded)


@given(st.sampled_from(INTEGERS), st.floats())
def test_no_float_becomes_an_integer(dtype, value):
    with pytest.raises(TypeError, match="needs an integer"):
        scalar("k", parameter(dtype), value)
