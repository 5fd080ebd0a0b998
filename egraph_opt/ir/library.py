"""Reference semantics of the library operators that plans may call, as ONNX defines them.

Written directly from the operator definitions, not from the terms the rules use, so that evaluating a matched call
and the term it replaces compares two independent statements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from egraph_opt.errors import EgraphOptError

if TYPE_CHECKING:
    from egraph_opt.ir.interpreter import Arithmetic

Array = np.ndarray[Any, Any]
Attributes = Mapping[str, str]

POINTWISE_ATTRIBUTE = "function"
EPILOGUE_ATTRIBUTE = "then"

# The axis of the result along which an operator takes a bias, and the operator that takes it.
BIASED: Mapping[str, tuple[int, str]] = {
    "Conv": (1, "Conv"),
    "ConvTranspose": (1, "ConvTranspose"),
    "MatMul": (1, "Gemm"),
}
# Unary functions that onnxruntime computes inside the operator before them.
FUSED: Mapping[str, tuple[str, ...]] = {
    "Conv": ("relu", "leaky_relu", "sigmoid", "tanh", "clip", "hard_sigmoid"),
}


def format_attributes(**attributes: object) -> str:
    """Canonical attribute text: ``key=value`` pairs sorted by key, joined by ``;``; sequences as comma lists."""

    def show(value: object) -> str:
        return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)

    return ";".join(f"{key}={show(value)}" for key, value in sorted(attributes.items()) if value is not None)


def parse_attributes(text: str) -> dict[str, str]:
    """Inverse of :func:`format_attributes`, values still as text."""
    return dict(pair.split("=", 1) for pair in text.split(";") if pair)


def integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


def evaluate(
    operator: str, attributes: Attributes, arguments: Sequence[Array], extents: tuple[int, ...], arithmetic: Arithmetic
) -> Array:
    """Value of a library call. Raises EgraphOptError for an operator without reference semantics."""
    result = _evaluate(operator, attributes, list(arguments), extents, arithmetic)
    for function in attributes.get(EPILOGUE_ATTRIBUTE, "").split("|"):
        if function:
            result = arithmetic.apply(function, result)
    return result


def _evaluate(
    operator: str, attributes: Attributes, arguments: list[Array], extents: tuple[int, ...], arithmetic: Arithmetic
) -> Array:
    if POINTWISE_ATTRIBUTE in attributes:
        rank = max(argument.ndim for argument in arguments)
        shape = np.broadcast_shapes(*(argument.shape for argument in arguments))
        full = [np.broadcast_to(a.reshape((1,) * (rank - a.ndim) + a.shape), shape) for a in arguments]
        return arithmetic.apply(attributes[POINTWISE_ATTRIBUTE], *full)
    match operator:
        case "MatMul":
            return arithmetic.reduce_product(arguments[0], arguments[1])
        case "Gemm":
            a, b = arguments[0], arguments[1]
            a = a.T if attributes.get("transA") == "1" else a
            b = b.T if attributes.get("transB") == "1" else b
            product = arithmetic.reduce_product(a, b)
            return (
                product
                if len(arguments) == 2
                else arithmetic.apply("add", product, np.broadcast_to(arguments[2], product.shape))
            )
        case "Conv" | "ConvTranspose":
            result = _convolution(
                operator == "ConvTranspose", attributes, arguments[0], arguments[1], extents, arithmetic
            )
            if len(arguments) > 2:
                bias = arguments[2].reshape((1, -1) + (1,) * (result.ndim - 2))
                result = arithmetic.apply("add", result, np.broadcast_to(bias, result.shape))
            return result
        case "Softmax":
            axis = int(attributes.get("axis", "-1"))
            moved = np.moveaxis(arguments[0], axis, -1)
            return np.moveaxis(arithmetic.softmax(moved, 1), -1, axis)
        case "Transpose":
            return np.transpose(arguments[0], integers(attributes["perm"]))
        case "Concat":
            return np.concatenate(arguments, axis=int(attributes["axis"]))
        case "ReduceSum" | "ReduceMax" | "ReduceMin":
            axes = integers(attributes["axes"])
            last = np.moveaxis(arguments[0], axes, range(arguments[0].ndim - len(axes), arguments[0].ndim))
            reduced = arithmetic.reduce(operator.removeprefix("Reduce").lower(), last, len(axes))
            return reduced.reshape(extents)
        case "MaxPool":
            return _max_pool(attributes, arguments[0], extents, arithmetic)
        case "AveragePool":
            return _average_pool(attributes, arguments[0], extents, arithmetic)
    raise EgraphOptError(f"no reference semantics for library operator {operator!r}")


def _window(attributes: Attributes, spatial: int) -> tuple[list[int], list[int], list[int]]:
    strides = list(integers(attributes.get("strides", ""))) or [1] * spatial
    dilations = list(integers(attributes.get("dilations", ""))) or [1] * spatial
    pads = list(integers(attributes.get("pads", ""))) or [0] * (2 * spatial)
    return strides, dilations, pads


def _convolution(
    transposed: bool, attributes: Attributes, x: Array, w: Array, extents: tuple[int, ...], arithmetic: Arithmetic
) -> Array:
    spatial = x.ndim - 2
    strides, dilations, pads = _window(attributes, spatial)
    groups = int(attributes.get("group", "1"))
    result = np.zeros(extents, dtype=x.dtype)
    channels = x.shape[1] // groups
    filters = w.shape[1] if transposed else w.shape[0] // groups
    for g in range(groups):
        xs = x[:, g * channels : (g + 1) * channels]
        for tap in np.ndindex(*w.shape[2:]):
            if transposed:
                kernel = w[(slice(g * channels, (g + 1) * channels), slice(None), *tap)].T
            else:
                kernel = w[(slice(g * filters, (g + 1) * filters), slice(None), *tap)]
            source: list[slice] = []
            target: list[slice] = []
            for axis, r in enumerate(tap):
                shift = dilations[axis] * r - pads[axis]
                small, large = (
                    (x.shape[2 + axis], extents[2 + axis]) if transposed else (extents[2 + axis], x.shape[2 + axis])
                )
                # small index i meets large index strides*i + shift
                first = max(0, -(shift // strides[axis]))
                last = min(small, (large - 1 - shift) // strides[axis] + 1)
                inner = slice(first, max(first, last))
                begin = strides[axis] * first + shift
                outer = slice(begin, begin + strides[axis] * max(0, last - first), strides[axis])
                source.append(inner if transposed else outer)
                target.append(outer if transposed else inner)
            part = xs[(slice(None), slice(None), *source)]
            if 0 in part.shape:
                continue
            moved = np.moveaxis(part, 1, -1)
            product = np.moveaxis(arithmetic.reduce_product(moved, kernel.T), -1, 1)
            where = (slice(None), slice(g * filters, (g + 1) * filters), *target)
            result[where] = arithmetic.apply("add", result[where], product)
    return result


def _windows(
    attributes: Attributes, x: Array, extents: tuple[int, ...], outside: float
) -> tuple[Array, list[tuple[slice, ...]]]:
    """The operand padded with ``outside``, and for each tap the slices of it that meet the result."""
    spatial = x.ndim - 2
    strides, dilations, pads = _window(attributes, spatial)
    ends = [pads[i + spatial] + strides[i] * extents[2 + i] + x.shape[2 + i] for i in range(spatial)]
    padded = np.pad(x, [(0, 0), (0, 0), *zip(pads[:spatial], ends, strict=True)], constant_values=outside)
    taps = [
        tuple(
            slice(dilations[i] * r, dilations[i] * r + strides[i] * extents[2 + i], strides[i])
            for i, r in enumerate(tap)
        )
        for tap in np.ndindex(*integers(attributes["kernel_shape"]))
    ]
    return padded, taps


def _max_pool(attributes: Attributes, x: Array, extents: tuple[int, ...], arithmetic: Arithmetic) -> Array:
    lowest = arithmetic.outside(float("-inf"))
    padded, taps = _windows(attributes, x, extents, lowest)
    result = np.full(extents, lowest, dtype=x.dtype)
    for tap in taps:
        result = np.maximum(result, padded[(slice(None), slice(None), *tap)])
    return result


def _average_pool(attributes: Attributes, x: Array, extents: tuple[int, ...], arithmetic: Arithmetic) -> Array:
    if attributes.get("count_include_pad", "0") != "1" and any(integers(attributes.get("pads", ""))):
        raise EgraphOptError("AveragePool without its padding has no reference semantics")
    padded, taps = _windows(attributes, x, extents, 0)
    total = np.zeros(extents, dtype=x.dtype)
    for tap in taps:
        total = arithmetic.apply("add", total, padded[(slice(None), slice(None), *tap)])
    return arithmetic.apply("mul", total, arithmetic.fill(Fraction(1, len(taps)), extents))
