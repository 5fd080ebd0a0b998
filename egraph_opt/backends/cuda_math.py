"""Scalar functions as CUDA code: the functions of CUDA's own math library, without its fast approximations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt
from typing import Any

import numpy as np
from tvm import tirx

from egraph_opt.backends import tvm_math
from egraph_opt.backends.tvm_emit import Emitter, integer, number
from egraph_opt.errors import EgraphOptError
from egraph_opt.ir import scalar
from egraph_opt.ir.formulas import evaluated

Value = Any


def apply(emitter: Emitter, function: str, arguments: Sequence[Value]) -> Value:
    """The catalogue function ``function`` of scalars, which must be bound variables or constants.

    Raises EgraphOptError for a function without definition.
    """
    applied = scalar.lookup(function)
    name = applied.function.name
    if name in _FUNCTIONS:
        return _FUNCTIONS[name](emitter, *arguments, *applied.parameters)
    if name in _SHARED:
        return tvm_math.apply(emitter, function, arguments, 1)
    if applied.formula is None:
        raise EgraphOptError(f"no CUDA code for the scalar function {name!r}: it has no definition")

    def step(inner: str, *operands: Value) -> Value:
        return emitter.let(apply(emitter, inner, operands))

    return evaluated(applied.formula, step, arguments, lambda value: operand(float(value)))


def operand(value: float) -> Value:
    """A constant of the model. TVM takes x * 0 for 0 and x + 0 for x, so it must not see a zero."""
    if value == 0.0:
        bits = int(np.float32(value).view(np.int32))
        return tirx.call_pure_extern("float32", "__int_as_float", integer(bits))
    return number(value, 1)


def _call(name: str, *arguments: Value) -> Value:
    return tirx.call_pure_extern("float32", name, *arguments)


def _sigmoid(e: Emitter, x: Value) -> Value:
    return number(1.0, 1) / (number(1.0, 1) + _call("expf", -x))


def _softplus(e: Emitter, x: Value) -> Value:
    small = e.let(_call("log1pf", _call("expf", -_call("fabsf", x))))
    return tirx.Select(x < number(0.0, 1), small, x + small)


def _elu(e: Emitter, x: Value, alpha: float) -> Value:
    return tirx.Select(x < number(0.0, 1), operand(alpha) * _call("expm1f", x), x)


def _gelu(e: Emitter, x: Value) -> Value:
    erf = e.let(_call("erff", x * number(1.0 / sqrt(2.0), 1)))
    return number(0.5, 1) * x * (number(1.0, 1) + erf)


_FUNCTIONS: dict[str, Callable[..., Value]] = {
    "abs": lambda e, x: _call("fabsf", x),
    "sqrt": lambda e, x: _call("sqrtf", x),
    "exp": lambda e, x: _call("expf", x),
    "log": lambda e, x: _call("logf", x),
    "erf": lambda e, x: _call("erff", x),
    "tanh": lambda e, x: _call("tanhf", x),
    "pow": lambda e, x, y: _call("powf", x, y),
    "sigmoid": _sigmoid,
    "leaky_relu": lambda e, x, a: tirx.Select(x < number(0.0, 1), x * operand(a), x),
    "elu": _elu,
    "softplus": _softplus,
    "gelu": _gelu,
}
# Arithmetic and comparisons only, the same on every target.
_SHARED = frozenset(
    {
        *("add", "sub", "mul", "div", "neg", "reciprocal", "min", "max", "clip", "relu", "prelu", "masked"),
        *("hard_sigmoid", "hard_swish", "unless_nan"),
    }
)
