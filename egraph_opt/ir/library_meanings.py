"""What the built-in library operators compute, as ONNX defines them: result extents and values.

Written directly from the operator definitions, not from the terms the rules use, so that evaluating a matched call
and the term it replaces compares two independent statements. Every meaning takes arrays in the order of the operator's
inputs, its attributes by name and the ``arithmetic`` to compute in; every shape takes extents instead of arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from egraph_opt.errors import EgraphOptError
from egraph_opt.ir.expr import Extents

if TYPE_CHECKING:
    from egraph_opt.ir.interpreter import Arithmetic

Array = np.ndarray[Any, Any]
Integers = Sequence[int]


def matmul_shape(a: Extents, b: Extents) -> Extents:
    return _product_shape("MatMul", a, b)


def matmul(a: Array, b: Array, *, arithmetic: Arithmetic) -> Array:
    return arithmetic.reduce_product(a, b)


def gemm_shape(a: Extents, b: Extents, c: Extents | None = None, *, transA: int = 0, transB: int = 0) -> Extents:  # noqa: N803
    if len(a) != 2 or len(b) != 2:
        raise EgraphOptError(f"Gemm takes matrices, not {list(a)} and {list(b)}")
    return _product_shape("Gemm", a[::-1] if transA else a, b[::-1] if transB else b)


def gemm(
    a: Array,
    b: Array,
    c: Array | None = None,
    *,
    arithmetic: Arithmetic,
    transA: int = 0,  # noqa: N803 - as ONNX calls them
    transB: int = 0,  # noqa: N803
) -> Array:
    product = arithmetic.reduce_product(a.T if transA else a, b.T if transB else b)
    return product if c is None else arithmetic.apply("add", product, np.broadcast_to(c, product.shape))


def _product_shape(operator: str, a: Extents, b: Extents) -> Extents:
    if not a or not b or a[-1] != b[max(len(b) - 2, 0)]:
        raise EgraphOptError(f"{operator} of extents {list(a)} and {list(b)}")
    try:
        batch = np.broadcast_shapes(a[:-2], b[:-2])
    except ValueError:
        raise EgraphOptError(f"{operator} of extents {list(a)} and {list(b)}") from None
    return (*batch, *a[-2:-1], *(b[-1:] if len(b) > 1 else ()))


def softmax_shape(x: Extents, *, axis: int = -1) -> Extents:
    return x


def softmax(x: Array, *, arithmetic: Arithmetic, axis: int = -1) -> Array:
    moved = np.moveaxis(x, axis, -1)
    return np.moveaxis(arithmetic.softmax(moved, 1), -1, axis)


def transpose_shape(x: Extents, *, perm: Integers) -> Extents:
    return tuple(x[axis] for axis in perm)


def transpose(x: Array, *, arithmetic: Arithmetic, perm: Integers) -> Array:
    return np.transpose(x, perm)


def concat_shape(*parts: Extents, axis: int) -> Extents:
    first = list(parts[0])
    first[axis] = sum(part[axis] for part in parts)
    return tuple(first)


def concat(*parts: Array, arithmetic: Arithmetic, axis: int) -> Array:
    return np.concatenate(parts, axis=axis)


def reduction_shape(x: Extents, *, axes: Integers, keepdims: int = 1) -> Extents:
    reduced = {axis % len(x) for axis in axes}
    return tuple(1 if axis in reduced else n for axis, n in enumerate(x) if keepdims or axis not in reduced)


def reduce_sum(x: Array, *, arithmetic: Arithmetic, axes: Integers, keepdims: int = 1) -> Array:
    return _reduced("sum", x, axes, keepdims, arithmetic)


def reduce_max(x: Array, *, arithmetic: Arithmetic, axes: Integers, keepdims: int = 1) -> Array:
    return _reduced("max", x, axes, keepdims, arithmetic)


def reduce_min(x: Array, *, arithmetic: Arithmetic, axes: Integers, keepdims: int = 1) -> Array:
    return _reduced("min", x, axes, keepdims, arithmetic)


def _reduced(operation: str, x: Array, axes: Integers, keepdims: int, arithmetic: Arithmetic) -> Array:
    last = np.moveaxis(x, axes, range(x.ndim - len(axes), x.ndim))
    extents = reduction_shape(x.shape, axes=axes, keepdims=keepdims)
    return arithmetic.reduce(operation, last, len(axes)).reshape(extents)


# ---- windows --------------------------------------------------------------------------------------------------------


def conv_shape(
    x: Extents,
    w: Extents,
    b: Extents | None = None,
    *,
    strides: Integers = (),
    dilations: Integers = (),
    pads: Integers = (),
    group: int = 1,
) -> Extents:
    if len(x) != len(w) or len(x) < 3 or x[1] != w[1] * group or w[0] % group:
        raise EgraphOptError(f"Conv of extents {list(x)} and {list(w)} in {group} groups")
    return (x[0], w[0], *_window_extents(x[2:], w[2:], strides, dilations, pads))


def conv_transpose_shape(
    x: Extents,
    w: Extents,
    b: Extents | None = None,
    *,
    strides: Integers = (),
    dilations: Integers = (),
    pads: Integers = (),
    output_padding: Integers = (),
    group: int = 1,
) -> Extents:
    if len(x) != len(w) or len(x) < 3 or x[1] != w[0]:
        raise EgraphOptError(f"ConvTranspose of extents {list(x)} and {list(w)} in {group} groups")
    spatial = len(x) - 2
    step, dilation, pad = _window(spatial, strides, dilations, pads)
    extra = list(output_padding) or [0] * spatial
    lengths = (
        step[i] * (x[2 + i] - 1) + extra[i] + dilation[i] * (w[2 + i] - 1) + 1 - pad[i] - pad[i + spatial]
        for i in range(spatial)
    )
    return (x[0], w[1] * group, *lengths)


def pool_shape(
    x: Extents,
    *,
    kernel_shape: Integers,
    strides: Integers = (),
    dilations: Integers = (),
    pads: Integers = (),
    count_include_pad: int = 0,
    ceil_mode: int = 0,
) -> Extents:
    return (*x[:2], *_window_extents(x[2:], tuple(kernel_shape), strides, dilations, pads, ceil_mode))


def _window(
    spatial: int, strides: Integers, dilations: Integers, pads: Integers
) -> tuple[list[int], list[int], list[int]]:
    return (
        list(strides) or [1] * spatial,
        list(dilations) or [1] * spatial,
        list(pads) or [0] * (2 * spatial),
    )


def _window_extents(
    x: Extents, taps: Extents, strides: Integers, dilations: Integers, pads: Integers, ceil_mode: int = 0
) -> Extents:
    step, dilation, pad = _window(len(x), strides, dilations, pads)
    lengths = []
    for i, n in enumerate(x):
        room = n + pad[i] + pad[i + len(x)] - dilation[i] * (taps[i] - 1) - 1
        count = room // step[i] + 1
        # A window more where some are left over, unless it would begin in the padding behind.
        more = bool(ceil_mode) and room % step[i] > 0 and count * step[i] < n + pad[i]
        lengths.append(count + more)
    return tuple(lengths)


def conv(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    arithmetic: Arithmetic,
    strides: Integers = (),
    dilations: Integers = (),
    pads: Integers = (),
    group: int = 1,
) -> Array:
    window = _window(x.ndim - 2, strides, dilations, pads)
    extents = conv_shape(x.shape, w.shape, strides=strides, dilations=dilations, pads=pads, group=group)
    return _biased(_convolution(False, window, group, x, w, extents, arithmetic), b, arithmetic)


def conv_transpose(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    arithmetic: Arithmetic,
    strides: Integers = (),
    dilations: Integers = (),
    pads: Integers = (),
    output_padding: Integers = (),
    group: int = 1,
) -> Array:
    window = _window(x.ndim - 2, strides, dilations, pads)
    extents = conv_transpose_shape(
        x.shape,
        w.shape,
        strides=strides,
        dilations=dilations,
        pads=pads,
        output_padding=output_padding,
        group=group,
    )
    return _biased(_convolution(True, window, group, x, w, extents, arithmetic), b, arithmetic)


def _biased(result: Array, bias: Array | None, arithmetic: Arithmetic) -> Array:
    if bias is None:
        return result
    shaped = bias.reshape((1, -1) + (1,) * (result.ndim - 2))
    return arithmetic.apply("add", result, np.broadcast_to(shaped, result.shape))


def _convolution(
    transposed: bool,
    window: tuple[list[int], list[int], list[int]],
    groups: int,
    x: Array,
    w: Array,
    extents: Extents,
    arithmetic: Arithmetic,
) -> Array:
    strides, dilations, pads = window
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
    window: tuple[list[int], list[int], list[int]], taps: Integers, x: Array, extents: Extents, outside: float
) -> tuple[Array, list[tuple[slice, ...]]]:
    """The operand padded with ``outside``, and for each tap the slices of it that meet the result."""
    spatial = x.ndim - 2
    strides, dilations, pads = window
    ends = [pads[i + spatial] + strides[i] * extents[2 + i] + x.shape[2 + i] for i in range(spatial)]
    padded = np.pad(x, [(0, 0), (0, 0), *zip(pads[:spatial], ends, strict=True)], constant_values=outside)
    slices = [
        tuple(
            slice(dilations[i] * r, dilations[i] * r + strides[i] * extents[2 + i], strides[i])
            for i, r in enumerate(tap)
        )
        for tap in np.ndindex(*taps)
    ]
    return padded, slices


def max_pool(
    x: Array,
    *,
    arithmetic: Arithmetic,
    kernel_shape: Integers,
    strides: Integers = (),
    dilations: Integers = (),
    pads: Integers = (),
    ceil_mode: int = 0,
) -> Array:
    window = _window(x.ndim - 2, strides, dilations, pads)
    extents = pool_shape(
        x.shape, kernel_shape=kernel_shape, strides=strides, dilations=dilations, pads=pads, ceil_mode=ceil_mode
    )
    lowest = arithmetic.outside(float("-inf"))
    padded, taps = _windows(window, kernel_shape, x, extents, lowest)
    result = np.full(extents, lowest, dtype=x.dtype)
    for tap in taps:
        result = np.maximum(result, padded[(slice(None), slice(None), *tap)])
    return result


def global_pool_shape(x: Extents) -> Extents:
    return (*x[:2], *(1 for _ in x[2:]))


def global_max_pool(x: Array, *, arithmetic: Arithmetic) -> Array:
    return arithmetic.reduce("pool", x, x.ndim - 2).reshape(global_pool_shape(x.shape))


def average_pool(
    x: Array,
    *,
    arithmetic: Arithmetic,
    kernel_shape: Integers,
    strides: Integers = (),
    dilations: Integers = (),
    pads: Integers = (),
    count_include_pad: int = 0,
) -> Array:
    if count_include_pad != 1 and any(pads):
        raise EgraphOptError("AveragePool without its padding has no reference semantics")
    window = _window(x.ndim - 2, strides, dilations, pads)
    extents = pool_shape(x.shape, kernel_shape=kernel_shape, strides=strides, dilations=dilations, pads=pads)
    padded, taps = _windows(window, kernel_shape, x, extents, 0)
    total = np.zeros(extents, dtype=x.dtype)
    for tap in taps:
        total = arithmetic.apply("add", total, padded[(slice(None), slice(None), *tap)])
    return arithmetic.apply("mul", total, arithmetic.fill(Fraction(1, len(taps)), extents))
