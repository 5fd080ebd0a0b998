"""Comparison of outputs: sizes of errors, special values, kinds of values."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from egraph_opt.runtime.compare import Tolerance, compare_outputs, tolerance_of, worst

FLOATS = hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, min_side=0), elements=st.floats(width=32))


@given(FLOATS)
def test_equal_arrays_are_equal(array: np.ndarray) -> None:
    (error,) = compare_outputs([array], [array.copy()])
    assert error.within
    assert (error.max_absolute, error.max_relative) == (0.0, 0.0)


def test_error_sizes_are_relative_to_the_output() -> None:
    expected = np.array([[-4.0, 0.0, 1.0]], np.float32)
    actual = np.array([[-4.0, 1e-3, 1.0]], np.float32)
    (error,) = compare_outputs([expected], [actual], names=["y"])
    assert (error.name, error.dtype, error.shape, error.mismatch) == ("y", "float32", (1, 3), "")
    assert error.max_absolute == pytest.approx(1e-3)
    assert error.max_relative == pytest.approx(2.5e-4)
    assert not error.within
    assert compare_outputs([expected], [actual], tolerance=Tolerance(1e-3, 0.0))[0].within


@pytest.mark.parametrize(
    ("dtype", "error", "within"),
    [
        (np.float64, 1e-11, True),
        (np.float64, 1e-8, False),
        (np.float32, 5e-5, True),
        (np.float32, 5e-4, False),
        (np.float16, 5e-3, True),
        (np.float16, 5e-2, False),
    ],
)
def test_tolerance_by_type(dtype: type, error: float, within: bool) -> None:
    expected = np.array([1.0, -0.5], dtype)
    assert compare_outputs([expected], [(expected + dtype(error)).astype(dtype)])[0].within is within


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_special_values_must_stand_in_the_same_places(special: float) -> None:
    one = np.array([1.0, special, 2.0], np.float32)
    assert compare_outputs([one], [one.copy()])[0].within
    for other in (
        [special, 1.0, 2.0],
        [1.0, 3.0, 2.0],
        [1.0, -special, 2.0] if np.isinf(special) else [1.0, np.inf, 2],
    ):
        (error,) = compare_outputs([one], [np.array(other, np.float32)])
        assert not error.within
        assert "NaN or infinities" in error.mismatch
        assert error.max_absolute == np.inf


def test_zero_output_uses_the_absolute_tolerance() -> None:
    zeros = np.zeros(4, np.float32)
    assert compare_outputs([zeros], [zeros + np.float32(1e-7)])[0].within
    (error,) = compare_outputs([zeros], [zeros + np.float32(1e-3)])
    assert not error.within
    assert error.max_relative == np.inf


@pytest.mark.parametrize(
    ("expected", "actual", "reason"),
    [
        (np.zeros(3, np.float32), np.zeros(3, np.float64), "type float64 instead of float32"),
        (np.zeros((3, 1), np.float32), np.zeros((1, 3), np.float32), r"shape [1, 3] instead of [3, 1]"),
        (np.array(["a"], object), np.array(["b"], object), "different values"),
        ([np.zeros(2)], [np.zeros(2), np.zeros(2)], "a sequence of 2 instead of 1"),
        ({"a": 1.0}, {"b": 1.0}, "the maps have different keys"),
        (None, np.zeros(2), "a different kind of value"),
        ([np.zeros(2)], np.zeros(2), "a different kind of value"),
    ],
)
def test_mismatches_say_why(expected: object, actual: object, reason: str) -> None:
    (error,) = compare_outputs([expected], [actual])
    assert not error.within
    assert error.mismatch == reason


def test_integers_are_exact() -> None:
    big = np.array([2**62, 5])
    assert compare_outputs([big], [big.copy()])[0].within
    (error,) = compare_outputs([big], [big + 1])
    assert not error.within
    assert error.max_absolute == 1.0
    assert compare_outputs([np.array([True])], [np.array([False])])[0].max_absolute == 1.0
    assert tolerance_of(np.dtype(np.int32)) == Tolerance(0.0, 0.0)


def test_nested_values_and_none() -> None:
    value = [[np.ones(2, np.float32), {"k": np.ones(1, np.float32)}], None]
    errors = compare_outputs(value, value, names=["s", "n"])
    assert [error.name for error in errors] == ["s[0]", "s[1]['k']", "n"]
    assert all(error.within for error in errors)
    assert worst(errors) == (0.0, 0.0)
    assert worst([]) == (0.0, 0.0)


def test_counts_must_agree() -> None:
    with pytest.raises(ValueError, match="1 outputs expected, 0 given"):
        compare_outputs([np.ones(1)], [])


def test_complex_and_overflow() -> None:
    one = np.array([1 + 1j], np.complex64)
    assert compare_outputs([one], [one + np.complex64(1e-6j)])[0].within
    huge = np.array([1.5e308])
    (error,) = compare_outputs([huge], [-huge])
    assert error.max_absolute == np.inf
    assert not error.within
