"""Encodings of pointwise operators: functions of the scalar catalogue, and compositions of them, with broadcasting."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import reduce
from math import copysign, inf, isfinite, isnan, pi, prod, sqrt

import numpy as np

from egraph_opt.frontends.onnx_context import LARGEST_ARITY, NodeContext, OperatorEncoding, require
from egraph_opt.frontends.onnx_contractions import broadcast_to
from egraph_opt.frontends.onnx_model import standard
from egraph_opt.frontends.onnx_windows import Encoded
from egraph_opt.ir import expr as ex
from egraph_opt.ir import maps, scalar
from egraph_opt.ir.expr import Extents
from egraph_opt.ir.terms import Apply, Fill, Tensor, View, add, mul

# Encoded by functions of their own below.
_SPECIAL = frozenset(("Clip", "PRelu", "Gelu", "Min", "Max", "Sum", "Pow", "Where", "IsNaN"))
# Before opset 7 these broadcast by attributes.
_ATTRIBUTES_BROADCAST = frozenset(("add", "sub", "mul", "div", "pow"))
# Constants that are merged with a constant condition may have this many elements.
_LARGEST_CHOICE = 1 << 24


def fill_like(value: float, tensor: Tensor) -> Fill:
    """One finite value everywhere."""
    return Fill(Fraction(value), tensor.extents)


def _common(tensors: tuple[Tensor, ...]) -> Extents:
    try:
        return tuple(np.broadcast_shapes(*(tensor.extents for tensor in tensors)))
    except ValueError:
        require(False, "extents do not broadcast")
        return ()


def _single(node: NodeContext, position: int) -> float | None:
    """The one value of a constant input that terms can say exactly, else None."""
    value = node.known(position)
    if value is None or value.size != 1:
        return None
    number = float(value.reshape(()))
    # There is no fraction for the negative zero, and adding it is not adding zero.
    return number if isfinite(number) and (number or copysign(1.0, number) > 0) else None


def _spread(node: NodeContext, tensors: tuple[Tensor, ...], extents: Extents) -> tuple[Tensor, ...]:
    """All inputs at the same extents; constants of one element are fills, so that rules see their value."""
    found = list[Tensor]()
    for position, tensor in enumerate(tensors):
        value = _single(node, position)
        found.append(broadcast_to(tensor, extents) if value is None else Fill(Fraction(value), extents))
    return tuple(found)


def _broadcast(node: NodeContext, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return _spread(node, tensors, _common(tensors))


def _broadcast_by_attributes(node: NodeContext, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """As before opset 7: the second input stands at ``axis`` of the first, at its end unless given."""
    first, second = tensors
    axis, wanted = node.integer("axis", -1), first.extents
    if node.integer("broadcast", 0) == 0:
        require(second.extents == wanted, "other extents without broadcast")
    elif prod(second.extents) == 1:
        second = View(second, maps.index_map(second.extents, wanted, [ex.Expr(0)] * len(second.extents)))
    else:
        rank = len(second.extents)
        start = len(wanted) - rank if axis == -1 else axis
        require(start >= 0 and wanted[start : start + rank] == second.extents, "the second input does not fit")
        places = [ex.iterator(start + i) for i in range(rank)]
        second = View(second, maps.index_map(second.extents, wanted, places))
    return first, second


def of_function(function: scalar.ScalarFunction) -> OperatorEncoding:
    """The operator that a scalar function stands for."""
    built_in = function in scalar.CATALOGUE
    by_attributes = built_in and function.name in _ATTRIBUTES_BROADCAST
    # Standard operators of the first versions differ in attributes only, which are read here.
    since = 1 if built_in and function.since == 7 else function.since

    def encode(node: NodeContext) -> Encoded:
        if not function.defaults:
            missing = sorted(set(function.attributes) - {attribute.name for attribute in node.node.attribute})
            require(not missing, f"attribute {', '.join(missing)} is missing")
        defaults = list(function.defaults or (0.0,) * len(function.attributes))
        parameters = [node.number(name, d) for name, d in zip(function.attributes, defaults, strict=True)]
        arguments = node.tensors()
        require(len(arguments) == function.arity, f"{len(arguments)} arguments")
        require(all(abs(p) < inf for p in parameters), "a parameter is not finite")
        old = by_attributes and node.opset < 7
        spread = _broadcast_by_attributes(node, arguments) if old else _broadcast(node, arguments)
        return (Apply(scalar.name(function.name, *parameters), spread),)

    return OperatorEncoding(function.onnx, encode, since)


def _variadic(op_type: str, function: str, *, mean: bool = False) -> OperatorEncoding:
    def encode(node: NodeContext) -> Encoded:
        arguments = node.tensors()
        require(1 <= len(arguments) <= LARGEST_ARITY, "too many arguments")
        require(node.opset >= 8 or len({a.extents for a in arguments}) == 1, "other extents before opset 8")
        total = reduce(lambda left, right: Apply(function, (left, right)), _broadcast(node, arguments))
        return (Apply("div", (total, fill_like(len(arguments), total))) if mean else total,)

    return OperatorEncoding(op_type, encode, outside=f"more than {LARGEST_ARITY} inputs")


def power(node: NodeContext) -> Encoded:
    tensors = node.tensors()
    require(len(tensors) == 2, f"{len(tensors)} arguments")
    if node.opset < 7:
        return (Apply("pow", _broadcast_by_attributes(node, tensors)),)
    x, exponent = _broadcast(node, tensors)
    # What onnxruntime computes for these two; a general power would round otherwise.
    match _single(node, 1):
        case 2.0:
            return (mul(x, x),)
        case 3.0:
            return (mul(mul(x, x), x),)
    return (Apply("pow", (x, exponent)),)


def clip(node: NodeContext) -> Encoded:
    x = node.tensor(0)
    if node.opset >= 11:
        values = [node.constant(i) for i in (1, 2)]
        require(all(v is None or v.size == 1 for v in values), "a limit is not a scalar")
        low, high = (d if v is None else float(v.reshape(())) for v, d in zip(values, (-inf, inf), strict=True))
    else:
        largest = float(np.finfo(np.float32).max)
        low, high = node.number("min", -largest), node.number("max", largest)
        low, high = (-inf if low == -largest else low), (inf if high == largest else high)
    require(not isnan(low) and not isnan(high) and low <= high, "the limits cross")
    return (x if (low, high) == (-inf, inf) else Apply(scalar.name("clip", low, high), (x,)),)


def prelu(node: NodeContext) -> Encoded:
    x, slope = node.tensor(0), node.tensor(1)
    channels = slope.extents
    if node.opset < 7 and prod(channels) > 1:  # one for each channel, later versions broadcast
        require(len(x.extents) > 1 and channels == x.extents[1:2], "not one slope for each channel")
        return (Apply("prelu", (x, View(slope, maps.index_map(channels, x.extents, [ex.iterator(1)])))),)
    if prod(channels) == 1:
        zeros = [ex.Expr(0)] * len(channels)
        return (Apply("prelu", (x, View(slope, maps.index_map(channels, x.extents, zeros)))),)
    return (Apply("prelu", (x, broadcast_to(slope, x.extents))),)


def _replaced_nan(node: NodeContext) -> Tensor | None:
    """Where(IsNaN(x), a number, x), as exporters write a softmax whose rows may be all masked; None for other choices.

    The IsNaN node is not read by the term: see ``regions.ABSORBED``.
    """
    producer = node.loaded.producer.get(node.node.input[0])
    value = node.known(1)
    if producer is None or value is None or value.size != 1 or not isfinite(float(value.reshape(()))):
        return None
    test = node.loaded.nodes[producer]
    if test.op_type != "IsNaN" or standard(test.domain) != "" or list(test.input) != [node.node.input[2]]:
        return None
    x = node.tensor(2)
    if len(value.shape) > len(x.extents):
        return None
    return Apply(scalar.name("unless_nan", float(value.reshape(()))), (x,))


def where(node: NodeContext) -> Encoded:
    """A choice by a constant condition, as the sum of what remains of both sides.

    What a side does not give is the negative zero, the neutral element of IEEE addition: NaN, infinities and the signs
    of zeros stay as they are.
    """
    replaced = _replaced_nan(node)
    if replaced is not None:
        return (replaced,)
    condition = node.constant(0)
    if condition is None or condition.dtype != np.bool_:
        require(False, "no condition")
        return ()
    x, y = node.tensor(1), node.tensor(2)
    try:
        extents = tuple(np.broadcast_shapes(condition.shape, x.extents, y.extents))
    except ValueError:
        extents = ()
        require(False, "extents do not broadcast")
    if condition.all() or not condition.any():
        return (broadcast_to(x if condition.all() else y, extents),)
    first, second = node.known(1), node.known(2)
    if first is not None and second is not None and prod(extents) <= _LARGEST_CHOICE:
        return (broadcast_to(node.fresh_constant(np.where(condition, first, second), "chosen"), extents),)
    parts = list[Tensor]()
    for tensor, value, mask in ((x, first, condition), (y, second, ~condition)):
        shape = () if value is None else np.broadcast_shapes(mask.shape, value.shape)
        if value is not None and prod(shape) <= _LARGEST_CHOICE:
            kept = node.fresh_constant(np.where(mask, value, np.float32(-0.0)), "chosen")
            parts.append(broadcast_to(kept, extents))
        else:
            keep = broadcast_to(node.fresh_constant(mask.astype(np.float32), "condition"), extents)
            parts.append(Apply("masked", (broadcast_to(tensor, extents), keep)))
    return (add(*parts),)


def gelu(node: NodeContext) -> Encoded:
    x, kind = node.tensor(0), node.text("approximate", "none")
    require(kind in ("none", "tanh"), f"approximate {kind}")
    if kind == "none":
        return (Apply("gelu", (x,)),)
    cubed = mul(mul(mul(x, x), x), fill_like(0.044715, x))
    inner = mul(add(x, cubed), fill_like(sqrt(2 / pi), x))
    bracket = add(Apply("tanh", (inner,)), fill_like(1, x))
    return (mul(mul(x, fill_like(0.5, x)), bracket),)


def _selu(node: NodeContext) -> Encoded:
    x, old = node.tensor(0), node.opset < 6
    alpha = node.number("alpha", 1.6732 if old else 1.67326319217681884765625)
    gamma = node.number("gamma", 1.0507 if old else 1.05070102214813232421875)
    require(isfinite(alpha) and isfinite(gamma), "a parameter is not finite")
    return (mul(Apply(scalar.name("elu", alpha), (x,)), fill_like(gamma, x)),)


def _celu(node: NodeContext) -> Encoded:
    x, alpha = node.tensor(0), node.number("alpha", 1.0)
    require(isfinite(alpha) and alpha > 0, "alpha is not positive")
    if alpha == 1:
        return (Apply("elu:1.0", (x,)),)
    scaled = Apply("elu:1.0", (Apply("div", (x, fill_like(alpha, x))),))
    below = Apply("min", (mul(scaled, fill_like(alpha, x)), fill_like(0, x)))
    return (add(Apply("relu", (x,)), below),)


def _softsign(node: NodeContext) -> Encoded:
    x = node.tensor(0)
    return (Apply("div", (x, add(Apply("abs", (x,)), fill_like(1, x)))),)


def _mish(node: NodeContext) -> Encoded:
    x = node.tensor(0)
    return (mul(x, Apply("tanh", (Apply("softplus", (x,)),))),)


def _swish(node: NodeContext) -> Encoded:
    x, alpha = node.tensor(0), node.number("alpha", 1.0)
    require(isfinite(alpha), "alpha is not finite")
    gate = x if alpha == 1 else mul(x, fill_like(alpha, x))
    return (mul(x, Apply("sigmoid", (gate,))),)


def _same_type(wanted: Callable[[NodeContext], bool]) -> Callable[[NodeContext], Encoded]:
    def encode(node: NodeContext) -> Encoded:
        node.ignore("saturate", "round_mode")
        require(wanted(node), "to another type")
        return (node.tensor(0),)

    return encode


def _casts_to_float(node: NodeContext) -> bool:
    return node.text("to", "") == "FLOAT" if node.opset < 6 else node.integer("to", 0) == 1


POINTWISE_OPERATORS: tuple[OperatorEncoding, ...] = (
    *(of_function(function) for function in scalar.CATALOGUE if function.onnx not in _SPECIAL),
    _variadic("Sum", "add"),
    _variadic("Mean", "add", mean=True),
    _variadic("Min", "min"),
    _variadic("Max", "max"),
    OperatorEncoding("Pow", power, outside="an exponent of another type than float"),
    OperatorEncoding("Clip", clip, outside="computed limits; a lower limit above the upper"),
    OperatorEncoding("PRelu", prelu),
    OperatorEncoding("Where", where, 9, outside="a computed condition, but for IsNaN of what is chosen otherwise"),
    OperatorEncoding("Gelu", gelu, 20),
    OperatorEncoding("Selu", _selu),
    OperatorEncoding("Celu", _celu, 12, outside="alpha <= 0"),
    OperatorEncoding("Softsign", _softsign),
    OperatorEncoding("Mish", _mish, 18),
    OperatorEncoding("Swish", _swish, 24),
    OperatorEncoding("Cast", _same_type(_casts_to_float), outside="casts that change the type"),
    OperatorEncoding(
        "CastLike",
        _same_type(lambda node: node.input_type(1).element == 1),
        15,
        outside="casts that change the type",
    ),
)
