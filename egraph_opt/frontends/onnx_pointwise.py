"""Encodings of pointwise operators: functions of the scalar catalogue with broadcasting."""

from __future__ import annotations

from functools import reduce
from math import inf, isnan

import numpy as np

from egraph_opt.frontends.onnx_context import LARGEST_ARITY, NodeContext, OperatorEncoding, require
from egraph_opt.frontends.onnx_contractions import broadcast_to
from egraph_opt.frontends.onnx_windows import Encoded
from egraph_opt.ir import scalar
from egraph_opt.ir.terms import Apply, Tensor

# Attribute values that a node may leave out.
_DEFAULTS = {
    "LeakyRelu": (float(np.float32(0.01)),),
    "Elu": (1.0,),
    "HardSigmoid": (float(np.float32(0.2)), 0.5),
}
_SINCE = {"Erf": 9, "HardSwish": 14, "Gelu": 20}
# Encoded by functions of their own below.
_SPECIAL = frozenset(("Clip", "PRelu", "Gelu", "Min", "Max", "Sum"))


def _broadcast(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    try:
        extents = np.broadcast_shapes(*(tensor.extents for tensor in tensors))
    except ValueError:
        extents = ()
        require(False, "extents do not broadcast")
    return tuple(broadcast_to(tensor, tuple(extents)) for tensor in tensors)


def _of_catalogue(function: scalar.ScalarFunction) -> OperatorEncoding:
    def encode(node: NodeContext) -> Encoded:
        defaults = _DEFAULTS.get(function.onnx, ())
        parameters = [node.number(name, d) for name, d in zip(function.attributes, defaults, strict=True)]
        arguments = node.tensors()
        require(len(arguments) == function.arity, f"{len(arguments)} arguments")
        require(all(abs(p) < inf for p in parameters), "a parameter is not finite")
        return (Apply(scalar.name(function.name, *parameters), _broadcast(arguments)),)

    return OperatorEncoding(function.onnx, encode, _SINCE.get(function.onnx, 7))


def _variadic(op_type: str, function: str) -> OperatorEncoding:
    def encode(node: NodeContext) -> Encoded:
        arguments = node.tensors()
        require(1 <= len(arguments) <= LARGEST_ARITY, "too many arguments")
        return (reduce(lambda left, right: Apply(function, (left, right)), _broadcast(arguments)),)

    return OperatorEncoding(op_type, encode, 8)


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
    return (Apply("prelu", (x, broadcast_to(slope, x.extents))),)


def gelu(node: NodeContext) -> Encoded:
    require(node.text("approximate", "none") == "none", "the tanh approximation")
    return (Apply("gelu", (node.tensor(0),)),)


POINTWISE_OPERATORS: tuple[OperatorEncoding, ...] = (
    *(_of_catalogue(function) for function in scalar.CATALOGUE if function.onnx not in _SPECIAL),
    _variadic("Sum", "add"),
    _variadic("Min", "min"),
    _variadic("Max", "max"),
    OperatorEncoding("Clip", clip),
    OperatorEncoding("PRelu", prelu),
    OperatorEncoding("Gelu", gelu, 20),
)
