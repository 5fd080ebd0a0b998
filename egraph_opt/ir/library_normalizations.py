"""What the library's normalizations compute, as ONNX defines them; see :mod:`egraph_opt.ir.library_meanings`."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from egraph_opt.errors import EgraphOptError
from egraph_opt.ir.expr import Extents

if TYPE_CHECKING:
    from egraph_opt.ir.interpreter import Arithmetic

Array = np.ndarray[Any, Any]


def layer_shape(
    x: Extents, scale: Extents, bias: Extents | None = None, *, axis: int = -1, epsilon: float = 1e-5
) -> Extents:
    last = x[axis:]
    if not -len(x) <= axis < len(x) or scale != last or (bias is not None and bias != last):
        raise EgraphOptError(f"normalization of extents {list(x)} from axis {axis} on with a scale of {list(scale)}")
    return x


def layer_normalization(
    x: Array,
    scale: Array,
    bias: Array | None = None,
    *,
    arithmetic: Arithmetic,
    axis: int = -1,
    epsilon: float = 1e-5,
) -> Array:
    rows = x.reshape(*x.shape[: x.ndim + axis if axis < 0 else axis], -1)
    plain = _standardized(rows, epsilon, arithmetic).reshape(x.shape)
    result = arithmetic.apply("mul", plain, np.broadcast_to(scale, x.shape))
    return result if bias is None else arithmetic.apply("add", result, np.broadcast_to(bias, x.shape))


def rms_normalization(
    x: Array, scale: Array, *, arithmetic: Arithmetic, axis: int = -1, epsilon: float = 1e-5
) -> Array:
    rows = x.reshape(*x.shape[: x.ndim + axis if axis < 0 else axis], -1)
    square = _mean(arithmetic.apply("mul", rows, rows), arithmetic)
    plain = arithmetic.apply("div", rows, _deviation(square, epsilon, rows.shape, arithmetic)).reshape(x.shape)
    return arithmetic.apply("mul", plain, np.broadcast_to(scale, x.shape))


def instance_shape(x: Extents, scale: Extents, bias: Extents, *, epsilon: float = 1e-5) -> Extents:
    if len(x) < 3 or scale != x[1:2] or bias != x[1:2]:
        raise EgraphOptError(f"InstanceNormalization of extents {list(x)} with a scale of {list(scale)}")
    return x


def instance_normalization(
    x: Array, scale: Array, bias: Array, *, arithmetic: Arithmetic, epsilon: float = 1e-5
) -> Array:
    plain = _standardized(x.reshape(*x.shape[:2], -1), epsilon, arithmetic).reshape(x.shape)
    wide = (1, -1, *(1,) * (x.ndim - 2))
    result = arithmetic.apply("mul", plain, np.broadcast_to(scale.reshape(wide), x.shape))
    return arithmetic.apply("add", result, np.broadcast_to(bias.reshape(wide), x.shape))


def lrn_shape(x: Extents, *, size: int, alpha: float, beta: float, bias: float) -> Extents:
    if len(x) < 3:
        raise EgraphOptError(f"LRN of extents {list(x)}")
    return x


def lrn(x: Array, *, arithmetic: Arithmetic, size: int, alpha: float, beta: float, bias: float) -> Array:
    before = (size - 1) // 2
    squares = arithmetic.apply("mul", x, x)
    pads = [(0, 0), (before, size - 1 - before), *((0, 0) for _ in x.shape[2:])]
    padded = np.pad(squares, pads)
    window = np.stack([padded[:, tap : tap + x.shape[1]] for tap in range(size)], axis=-1)
    total = arithmetic.reduce("sum", window, 1)
    scaled = arithmetic.apply("mul", total, arithmetic.fill(Fraction(alpha) / size, x.shape))
    base = arithmetic.apply("add", scaled, arithmetic.fill(Fraction(bias), x.shape))
    power = arithmetic.apply("pow", base, arithmetic.fill(Fraction(beta), x.shape))
    return arithmetic.apply("div", x, power)


def _mean(rows: Array, arithmetic: Arithmetic) -> Array:
    """Mean over the last axis."""
    total = arithmetic.reduce("sum", rows, 1)
    return arithmetic.apply("mul", total, arithmetic.fill(Fraction(1, rows.shape[-1]), total.shape))


def _deviation(square: Array, epsilon: float, extents: Extents, arithmetic: Arithmetic) -> Array:
    """sqrt(square + epsilon), repeated along a new last axis."""
    shifted = arithmetic.apply("add", square, arithmetic.fill(Fraction(epsilon), square.shape))
    return np.broadcast_to(arithmetic.apply("sqrt", shifted)[..., None], extents)


def _standardized(rows: Array, epsilon: float, arithmetic: Arithmetic) -> Array:
    """(x - mean) / sqrt(variance + epsilon) over the last axis."""
    mean = np.broadcast_to(_mean(rows, arithmetic)[..., None], rows.shape)
    centered = arithmetic.apply("sub", rows, mean)
    variance = _mean(arithmetic.apply("mul", centered, centered), arithmetic)
    return arithmetic.apply("div", centered, _deviation(variance, epsilon, rows.shape, arithmetic))
