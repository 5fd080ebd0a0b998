"""Linear and cubic resampling of one axis, as ONNX defines Resize."""

from __future__ import annotations

from math import floor

import numpy as np

from egraph_opt.errors import EgraphOptError

MODES = ("linear", "cubic")
TRANSFORMS = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")


def weights(
    count: int,
    length: int,
    scale: float,
    *,
    mode: str = "linear",
    transform: str = "half_pixel",
    cubic: float = -0.75,
    exclude_outside: bool = False,
) -> np.ndarray:
    """The [length, count] matrix that takes ``count`` elements of an axis to ``length`` resampled ones, in float64.

    Elements beyond an end are the last ones, or are left out of the average with ``exclude_outside``.
    """
    if mode not in MODES or transform not in TRANSFORMS:
        raise EgraphOptError(f"no resampling is called {mode}, {transform}")
    found = np.zeros((length, count))
    for position in range(length):
        at = _origin(position, count, length, scale, transform)
        low = floor(at)
        taps = _linear(at - low) if mode == "linear" else _cubic(at - low, cubic)
        first = low - len(taps) // 2 + 1
        if exclude_outside:
            taps = [tap if 0 <= first + i < count else 0.0 for i, tap in enumerate(taps)]
            taps = [tap / sum(taps) for tap in taps]
        for i, tap in enumerate(taps):
            found[position, min(max(first + i, 0), count - 1)] += tap
    return found


def _origin(position: int, count: int, length: int, scale: float, transform: str) -> float:
    """Where a resampled element lies among the given ones."""
    match transform:
        case "asymmetric":
            return position / scale
        case "align_corners":
            return position * (count - 1) / (length - 1) if length > 1 else 0.0
        case "pytorch_half_pixel" if length == 1:
            return 0.0
        case "half_pixel_symmetric":
            return count / 2 * (1 - length / (scale * count)) + (position + 0.5) / scale - 0.5
    return (position + 0.5) / scale - 0.5


def _linear(share: float) -> list[float]:
    return [1 - share, share]


def _cubic(share: float, a: float) -> list[float]:
    """Keys, Cubic convolution interpolation for digital image processing, 1981, equation (15) with a free ``a``."""

    def near(x: float) -> float:
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x: float) -> float:
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    return [far(share + 1), near(share), near(1 - share), far(2 - share)]
