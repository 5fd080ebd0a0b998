"""Numeric comparison of the outputs of two programs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """An error is accepted up to `absolute + relative * (largest finite magnitude of the expected output)`.

    The magnitude of the whole output is the scale because re-associated sums cancel: an element near zero keeps the
    rounding error of its large summands. `absolute` covers outputs that are zero everywhere.
    """

    relative: float
    absolute: float


EXACT = Tolerance(0.0, 0.0)
TOLERANCES = {
    "float64": Tolerance(1e-10, 1e-13),
    "float32": Tolerance(1e-4, 1e-6),
    "float16": Tolerance(1e-2, 1e-3),
    "bfloat16": Tolerance(4e-2, 1e-2),
}


@dataclass(frozen=True, slots=True)
class OutputError:
    """How far one output is from what was expected.

    `max_relative` is relative to the largest finite magnitude of the expected output. `mismatch` says why the two
    cannot be compared by size (shape, type, different places of NaN or infinities), and is empty otherwise.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    max_absolute: float
    max_relative: float
    within: bool
    mismatch: str = ""


def tolerance_of(dtype: np.dtype[Any]) -> Tolerance:
    """The default tolerance of a type; integers, booleans and strings must be equal."""
    return TOLERANCES.get(_component(dtype).name, EXACT)


def compare_outputs(
    expected: Sequence[Any],
    actual: Sequence[Any],
    *,
    names: Sequence[str] | None = None,
    tolerance: Tolerance | None = None,
) -> tuple[OutputError, ...]:
    """Compare two lists of outputs one by one; sequences and maps are compared element by element.

    `tolerance` replaces the tolerance by type for floating-point outputs. Raises ValueError where the counts differ.
    """
    if len(expected) != len(actual):
        raise ValueError(f"{len(expected)} outputs expected, {len(actual)} given")
    labels = list(names) if names is not None else [f"output {index}" for index in range(len(expected))]
    errors: list[OutputError] = []
    for name, one, other in zip(labels, expected, actual, strict=True):
        errors.extend(_compare_value(name, one, other, tolerance))
    return tuple(errors)


def worst(errors: Sequence[OutputError]) -> tuple[float, float]:
    """The largest absolute and the largest relative error; (0, 0) for no outputs."""
    return (
        max((error.max_absolute for error in errors), default=0.0),
        max((error.max_relative for error in errors), default=0.0),
    )


def _compare_value(name: str, expected: Any, actual: Any, tolerance: Tolerance | None) -> Iterator[OutputError]:
    if isinstance(expected, dict) and isinstance(actual, dict):
        if set(expected) != set(actual):
            yield _mismatch(name, expected, "the maps have different keys")
            return
        for key in expected:
            yield from _compare_value(f"{name}[{key!r}]", expected[key], actual[key], tolerance)
    elif isinstance(expected, list) and isinstance(actual, list):
        if len(expected) != len(actual):
            yield _mismatch(name, expected, f"a sequence of {len(actual)} instead of {len(expected)}")
            return
        for index, (one, other) in enumerate(zip(expected, actual, strict=True)):
            yield from _compare_value(f"{name}[{index}]", one, other, tolerance)
    elif expected is None or actual is None or isinstance(expected, dict | list) or isinstance(actual, dict | list):
        same = expected is None and actual is None
        yield (
            OutputError(name, "none", (), 0.0, 0.0, True)
            if same
            else _mismatch(name, expected, "a different kind of value")
        )
    else:
        yield _compare_arrays(name, np.asarray(expected), np.asarray(actual), tolerance)


def _compare_arrays(name: str, expected: Array, actual: Array, tolerance: Tolerance | None) -> OutputError:
    if expected.dtype != actual.dtype:
        return _mismatch(name, expected, f"type {actual.dtype} instead of {expected.dtype}")
    if expected.shape != actual.shape:
        return _mismatch(name, expected, f"shape {list(actual.shape)} instead of {list(expected.shape)}")
    kind = _component(expected.dtype)
    if kind.name not in TOLERANCES:
        return _compare_exactly(name, expected, actual)
    allowed = tolerance if tolerance is not None else TOLERANCES[kind.name]
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    one, other = expected.astype(wide), actual.astype(wide)
    finite = np.isfinite(one)
    if not (
        np.array_equal(finite, np.isfinite(other)) and np.array_equal(one[~finite], other[~finite], equal_nan=True)
    ):
        return _mismatch(name, expected, "NaN or infinities in different places")
    # A difference of two finite numbers may overflow: that is an infinite error, not a warning.
    with np.errstate(over="ignore"):
        error = float(np.max(np.abs(one[finite] - other[finite]), initial=0.0))
    scale = float(np.max(np.abs(one[finite]), initial=0.0))
    return OutputError(
        name,
        expected.dtype.name,
        expected.shape,
        error,
        _relative(error, scale),
        error <= allowed.absolute + allowed.relative * scale,
    )


def _compare_exactly(name: str, expected: Array, actual: Array) -> OutputError:
    equal = bool(np.array_equal(expected, actual))
    if equal:
        return OutputError(name, expected.dtype.name, expected.shape, 0.0, 0.0, True)
    if expected.dtype.kind not in "iub":
        return _mismatch(name, expected, "different values")
    # float64, because the difference of two integers can leave their type.
    one, other = expected.astype(np.float64), actual.astype(np.float64)
    # Huge integers can round to the same float64 although they differ: then the error is at least 1.
    error = max(float(np.max(np.abs(one - other))), 1.0)
    scale = float(np.max(np.abs(one)))
    return OutputError(name, expected.dtype.name, expected.shape, error, _relative(error, scale), False)


def _relative(error: float, scale: float) -> float:
    if error == 0:
        return 0.0
    return error / scale if scale > 0 else float("inf")


def _mismatch(name: str, expected: Any, reason: str) -> OutputError:
    array = expected if isinstance(expected, np.ndarray) else None
    dtype = array.dtype.name if array is not None else type(expected).__name__
    return OutputError(name, dtype, array.shape if array is not None else (), float("inf"), float("inf"), False, reason)


def _component(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The real type of a complex type, every other type itself."""
    return np.empty(0, dtype).real.dtype if dtype.kind == "c" else dtype
