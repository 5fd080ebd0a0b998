"""Encodings of normalizations: statistics over some axes, then a scale and a shift."""

from __future__ import annotations

from fractions import Fraction
from math import isfinite, prod

import numpy as np

from egraph_opt.frontends.onnx_context import NodeContext, OperatorEncoding, normal_axis, require
from egraph_opt.frontends.onnx_windows import Encoded
from egraph_opt.ir import expr as ex
from egraph_opt.ir import maps
from egraph_opt.ir import normalization as norm
from egraph_opt.ir.terms import Apply, Fill, Reduce, Tensor, View, add, mul


def _epsilon(node: NodeContext) -> float:
    epsilon = node.number("epsilon", 1e-5)
    require(isfinite(epsilon), "epsilon is not finite")
    return epsilon


def _fitted(tensor: Tensor, x: Tensor) -> Tensor:
    """A parameter at the extents of ``x``, into which it broadcasts."""
    lead = len(x.extents) - len(tensor.extents)
    fits = lead >= 0 and all(n in (1, x.extents[lead + axis]) for axis, n in enumerate(tensor.extents))
    require(fits, f"cannot broadcast {tensor.extents} to {x.extents}")
    return norm.spread(tensor, x.extents)


def _per_channel(node: NodeContext, position: int, x: Tensor, channels: int) -> Tensor:
    """A vector over the channels, axis 1 of ``x``, each of its entries for as many of them as come out even."""
    vector = node.tensor(position)
    require(vector.extents == (channels,) and x.extents[1] % channels == 0, "another number of channels")
    channel = ex.floordiv(ex.iterator(1), x.extents[1] // channels, x.extents)
    return View(vector, maps.index_map(vector.extents, x.extents, [channel]))


def _trailing(node: NodeContext, x: Tensor) -> tuple[int, ...]:
    rank = len(x.extents)
    require(rank >= 1, "a scalar")
    require(node.integer("stash_type", 1) == 1, "statistics of another type than float")
    return tuple(range(normal_axis(node.integer("axis", -1), rank), rank))


def layer_normalization(node: NodeContext) -> Encoded:
    x, epsilon = node.tensor(0), _epsilon(node)
    axes = _trailing(node, x)
    result: Tensor = mul(norm.standardized(x, axes, epsilon), _fitted(node.tensor(1), x))
    if node.has(2):
        result = add(result, _fitted(node.tensor(2), x))
    mean = norm.mean(x, axes)
    centered = Apply("sub", (x, norm.spread(mean, x.extents)))
    inverse = Apply("reciprocal", (norm.deviation(norm.mean(mul(centered, centered), axes), epsilon),))
    return (result, mean, inverse)[: len(node.node.output)]


def rms_normalization(node: NodeContext) -> Encoded:
    x, epsilon = node.tensor(0), _epsilon(node)
    scaled = norm.root_mean_square_scaled(x, _trailing(node, x), epsilon)
    return (mul(scaled, _fitted(node.tensor(1), x)),)


def instance_normalization(node: NodeContext) -> Encoded:
    x = node.tensor(0)
    require(len(x.extents) >= 3, "no spatial axes")
    plain = norm.standardized(x, tuple(range(2, len(x.extents))), _epsilon(node))
    channels = x.extents[1]
    return (add(mul(plain, _per_channel(node, 1, x, channels)), _per_channel(node, 2, x, channels)),)


def group_normalization(node: NodeContext) -> Encoded:
    x, groups = node.tensor(0), node.integer("num_groups", 0)
    require(len(x.extents) >= 2, "no channel axis")
    require(node.opset < 21 or node.integer("stash_type", 1) == 1, "statistics of another type than float")
    batch, channels = x.extents[:2]
    require(groups >= 1 and channels % groups == 0, "the groups do not divide the channels")
    apart = (batch, groups, prod(x.extents[1:]) // groups)
    plain = norm.standardized(View(x, maps.reshape(x.extents, apart)), (2,), _epsilon(node))
    whole = View(plain, maps.reshape(apart, x.extents))
    entries = groups if node.opset < 21 else channels
    return (add(mul(whole, _per_channel(node, 1, x, entries)), _per_channel(node, 2, x, entries)),)


def batch_normalization(node: NodeContext) -> Encoded:
    node.only_output()
    node.ignore("momentum")
    x, epsilon = node.tensor(0), _epsilon(node)
    require(len(x.extents) >= 2, "no channel axis")
    if node.opset < 7:
        require(node.integer("is_test", 0) != 0, "training")
    require(node.integer("training_mode", 0) == 0, "training")
    everywhere = node.opset < 9 and node.integer("spatial", 1) == 0  # one parameter for each place
    shape = x.extents[1:] if everywhere else x.extents[1:2]
    require(all(node.input_type(i).shape == shape for i in range(1, 5)), "odd parameters")
    places = [ex.iterator(1 + i) for i in range(len(shape))]

    def placed(parameter: Tensor) -> View:
        return View(parameter, maps.index_map(shape, x.extents, places))

    known = [node.known(i) for i in range(1, 5)]
    arrays = [value.astype(np.float64) for value in known if value is not None]
    if len(arrays) == 4:
        gamma, beta, mean, variance = arrays
        with np.errstate(all="ignore"):
            scale = gamma / np.sqrt(variance + epsilon)
            numbers = np.stack([scale, beta - mean * scale]).astype(np.float32)
        require(np.isfinite(numbers).all(), "the scale is not finite")
        scaled = mul(x, placed(node.fresh_constant(numbers[0], "scale")))
        return (add(scaled, placed(node.fresh_constant(numbers[1], "shift"))),)
    factor, shift, center, spread = (node.tensor(i) for i in range(1, 5))
    gain = Apply("div", (factor, norm.deviation(spread, epsilon)))
    return (add(mul(Apply("sub", (x, placed(center))), placed(gain)), placed(shift)),)


def local_response_normalization(node: NodeContext) -> Encoded:
    x, size = node.tensor(0), node.integer("size", 0)
    alpha, beta, bias = node.number("alpha", 1e-4), node.number("beta", 0.75), node.number("bias", 1.0)
    require(len(x.extents) >= 2 and size >= 1, "no channel axis, or no size")
    require(isfinite(alpha) and isfinite(beta) and isfinite(bias), "a parameter is not finite")
    rank = len(x.extents)
    window = (*x.extents, size)
    places = [ex.iterator(axis) for axis in range(rank)]
    places[1] = ex.iterator(1) + ex.iterator(rank) - (size - 1) // 2
    total = Reduce("sum", View(mul(x, x), maps.index_map(x.extents, window, places)), 1)
    scaled = mul(total, Fill(Fraction(alpha) / size, x.extents))
    base = add(scaled, Fill(Fraction(bias), x.extents))
    return (Apply("div", (x, Apply("pow", (base, Fill(Fraction(beta), x.extents))))),)


NORMALIZATION_OPERATORS: tuple[OperatorEncoding, ...] = (
    OperatorEncoding("BatchNormalization", batch_normalization, outside="training"),
    OperatorEncoding("LayerNormalization", layer_normalization, 17, outside="stash_type other than float"),
    OperatorEncoding("RMSNormalization", rms_normalization, 23, outside="stash_type other than float"),
    OperatorEncoding("InstanceNormalization", instance_normalization),
    OperatorEncoding("GroupNormalization", group_normalization, 18, outside="stash_type other than float"),
    OperatorEncoding("LRN", local_response_normalization),
)
