"""The catalogue of scalar functions that pointwise terms apply.

A function is named by text, with parameters after a colon (``leaky_relu:0.01``, ``clip:0.0,6.0``): that text is its
identity inside the e-graph. ``mul`` and ``add`` are functions like the others here; the e-graph gives them constructors
of their own because rules take them apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from egraph_opt.errors import EgraphOptError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ScalarFunction:
    """One scalar function: ``numpy(*arguments, *parameters)`` gives its meaning on float arrays.

    ``keeps_zero``: f(0, ..., 0) = 0 for every parameter value. ``cost`` is in multiples of one float addition when
    vectorized with the polynomial forms the kernels use. ``onnx`` names the operator with the same meaning, with the
    attribute names of its parameters in order.
    """

    name: str
    arity: int
    numpy: Callable[..., Array]
    keeps_zero: bool
    cost: float
    onnx: str
    attributes: tuple[str, ...] = ()


_erf = np.vectorize(math.erf, otypes=[np.float64])


def _sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-x)))


def _gelu(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + _erf(x / math.sqrt(2))))


CATALOGUE: tuple[ScalarFunction, ...] = (
    ScalarFunction("add", 2, lambda x, y: x + y, True, 1, "Add"),
    ScalarFunction("mul", 2, lambda x, y: x * y, True, 1, "Mul"),
    ScalarFunction("sub", 2, lambda x, y: x - y, True, 1, "Sub"),
    ScalarFunction("div", 2, lambda x, y: x / y, False, 4, "Div"),
    ScalarFunction("min", 2, np.minimum, True, 1, "Min"),
    ScalarFunction("max", 2, np.maximum, True, 1, "Max"),
    ScalarFunction("pow", 2, lambda x, y: np.power(x, y), False, 20, "Pow"),
    ScalarFunction("prelu", 2, lambda x, slope: np.where(x < 0, x * slope, x), True, 2, "PRelu"),
    ScalarFunction("neg", 1, lambda x: -x, True, 1, "Neg"),
    ScalarFunction("abs", 1, np.abs, True, 1, "Abs"),
    ScalarFunction("sqrt", 1, np.sqrt, True, 6, "Sqrt"),
    ScalarFunction("reciprocal", 1, lambda x: 1 / x, False, 4, "Reciprocal"),
    ScalarFunction("exp", 1, np.exp, False, 8, "Exp"),
    ScalarFunction("log", 1, np.log, False, 8, "Log"),
    ScalarFunction("erf", 1, lambda x: _erf(x).astype(x.dtype), True, 10, "Erf"),
    ScalarFunction("tanh", 1, np.tanh, True, 10, "Tanh"),
    ScalarFunction("sigmoid", 1, _sigmoid, False, 10, "Sigmoid"),
    ScalarFunction("relu", 1, lambda x: np.where(x < 0, np.zeros_like(x), x), True, 1, "Relu"),
    ScalarFunction("leaky_relu", 1, lambda x, a: np.where(x < 0, a * x, x), True, 2, "LeakyRelu", ("alpha",)),
    ScalarFunction(
        "elu", 1, lambda x, a: np.where(x < 0, a * (np.exp(np.minimum(x, 0)) - 1), x), True, 10, "Elu", ("alpha",)
    ),
    ScalarFunction("clip", 1, lambda x, low, high: np.clip(x, low, high), False, 2, "Clip"),
    ScalarFunction(
        "hard_sigmoid", 1, lambda x, a, b: np.clip(a * x + b, 0, 1), False, 3, "HardSigmoid", ("alpha", "beta")
    ),
    ScalarFunction("hard_swish", 1, lambda x: x * np.clip(x / 6 + 0.5, 0, 1), True, 4, "HardSwish"),
    ScalarFunction("softplus", 1, lambda x: np.logaddexp(x, 0), False, 16, "Softplus"),
    ScalarFunction("gelu", 1, lambda x: _gelu(x).astype(x.dtype), True, 14, "Gelu"),
)

_BY_NAME = {function.name: function for function in CATALOGUE}


@dataclass(frozen=True)
class Applied:
    """A catalogue function with its parameters bound."""

    function: ScalarFunction
    parameters: tuple[float, ...]

    @property
    def keeps_zero(self) -> bool:
        if self.function.name == "clip":
            return self.parameters[0] <= 0 <= self.parameters[1]
        return self.function.keeps_zero

    def __call__(self, *arguments: Array) -> Array:
        return self.function.numpy(*arguments, *self.parameters)


def name(function: str, *parameters: float) -> str:
    """The text that identifies a function with these parameters."""
    return function + (":" + ",".join(repr(float(p)) for p in parameters) if parameters else "")


@cache
def lookup(text: str) -> Applied:
    """The function a text names; raises EgraphOptError for one that is not in the catalogue."""
    base, _, parameters = text.partition(":")
    if base not in _BY_NAME:
        raise EgraphOptError(f"unknown scalar function {text!r}; known: {', '.join(sorted(_BY_NAME))}")
    return Applied(_BY_NAME[base], tuple(float(p) for p in parameters.split(",")) if parameters else ())
