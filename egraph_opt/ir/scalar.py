"""The catalogue of scalar functions that pointwise terms apply.

A function is named by text, with parameters after a colon (``leaky_relu:0.01``, ``clip:0.0,6.0``): that text is its
identity inside the e-graph. ``mul`` and ``add`` are functions like the others here; the e-graph gives them constructors
of their own because rules take them apart. Users add functions with :func:`egraph_opt.ir.extensions.register`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np

from egraph_opt.errors import EgraphOptError
from egraph_opt.ir.formulas import Formula, evaluated, trace

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ScalarFunction:
    """One scalar function: ``numpy(*arguments, *parameters)`` gives its meaning on float arrays.

    ``keeps_zero``: f(0, ..., 0) = 0 for every parameter value. ``cost`` is in multiples of one float addition when
    vectorized with the polynomial forms the kernels use. ``onnx`` names the operator with the same meaning in
    ``domain``, which has it ``since`` that version, with the attribute names of its parameters in order and, where a
    node may leave them out, their ``defaults``.

    A function that users add has a ``definition`` or an ``onnx`` operator, or both. ``definition(f, *arguments,
    *parameters)`` composes functions of the catalogue: ``lambda f, x: f("mul", x, f("sigmoid", x))``; arguments of
    ``f`` are also numbers, in :class:`fractions.Fraction` where they must be exact. From it come the meaning where
    ``numpy`` is None, the code in kernels, the form in standard operators, and the cost where that is None. A function
    without a definition is not computed in kernels.

    ``exact`` says whether rules about it can be judged in exact modular arithmetic; None: where that follows from its
    definition.
    """

    name: str
    arity: int
    numpy: Callable[..., Array] | None = None
    keeps_zero: bool = False
    cost: float | None = None
    onnx: str = ""
    attributes: tuple[str, ...] = ()
    definition: Callable[..., Any] | None = None
    domain: str = ""
    since: int = 7
    defaults: tuple[float, ...] = ()
    exact: bool | None = None


_erf = np.vectorize(math.erf, otypes=[np.float64])


def _sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-x)))


def _gelu(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + _erf(x / math.sqrt(2))))


def _elu(x: Array, a: float) -> Array:
    return np.where(x < 0, a * (np.exp(np.minimum(x, 0)) - 1), x)


# Attributes are float32.
_SLOPE, _HARD_SLOPE = float(np.float32(0.01)), float(np.float32(0.2))

CATALOGUE: tuple[ScalarFunction, ...] = (
    ScalarFunction("add", 2, lambda x, y: x + y, True, 1, "Add"),
    ScalarFunction("mul", 2, lambda x, y: x * y, True, 1, "Mul"),
    ScalarFunction("sub", 2, lambda x, y: x - y, True, 1, "Sub"),
    ScalarFunction("div", 2, lambda x, y: x / y, False, 4, "Div"),
    ScalarFunction("min", 2, np.minimum, True, 1, "Min"),
    ScalarFunction("max", 2, np.maximum, True, 1, "Max"),
    ScalarFunction("pow", 2, lambda x, y: np.power(x, y), False, 20, "Pow"),
    ScalarFunction("prelu", 2, lambda x, slope: np.where(x < 0, x * slope, x), True, 2, "PRelu"),
    # What remains of x where the second argument is not zero; elsewhere the neutral element of IEEE addition.
    ScalarFunction("masked", 2, lambda x, keep: np.where(keep != 0, x, x.dtype.type(-0.0)), True, 1, "Where", since=9),
    # x, and the parameter in place of NaN.
    ScalarFunction(
        "unless_nan", 1, lambda x, value: np.where(np.isnan(x), x.dtype.type(value), x), True, 1, "IsNaN", since=9
    ),
    ScalarFunction("neg", 1, lambda x: -x, True, 1, "Neg"),
    ScalarFunction("abs", 1, np.abs, True, 1, "Abs"),
    ScalarFunction("sqrt", 1, np.sqrt, True, 6, "Sqrt"),
    ScalarFunction("reciprocal", 1, lambda x: 1 / x, False, 4, "Reciprocal"),
    ScalarFunction("exp", 1, np.exp, False, 8, "Exp"),
    ScalarFunction("log", 1, np.log, False, 8, "Log"),
    ScalarFunction("erf", 1, lambda x: _erf(x).astype(x.dtype), True, 10, "Erf", since=9),
    ScalarFunction("tanh", 1, np.tanh, True, 10, "Tanh"),
    ScalarFunction("sigmoid", 1, _sigmoid, False, 10, "Sigmoid"),
    ScalarFunction("relu", 1, lambda x: np.where(x < 0, np.zeros_like(x), x), True, 1, "Relu"),
    ScalarFunction(
        "leaky_relu", 1, lambda x, a: np.where(x < 0, a * x, x), True, 2, "LeakyRelu", ("alpha",), defaults=(_SLOPE,)
    ),
    ScalarFunction("elu", 1, _elu, True, 10, "Elu", ("alpha",), defaults=(1.0,)),
    ScalarFunction("clip", 1, lambda x, low, high: np.clip(x, low, high), False, 2, "Clip"),
    ScalarFunction(
        "hard_sigmoid",
        1,
        lambda x, a, b: np.clip(a * x + b, 0, 1),
        False,
        3,
        "HardSigmoid",
        ("alpha", "beta"),
        defaults=(_HARD_SLOPE, 0.5),
    ),
    ScalarFunction("hard_swish", 1, lambda x: x * np.clip(x / 6 + 0.5, 0, 1), True, 4, "HardSwish", since=14),
    ScalarFunction("softplus", 1, lambda x: np.logaddexp(x, 0), False, 16, "Softplus"),
    ScalarFunction("gelu", 1, lambda x: _gelu(x).astype(x.dtype), True, 14, "Gelu", since=20),
)

# What users added; only ir.extensions changes it, and clears the cache of lookup() when it does.
ADDED: dict[str, ScalarFunction] = {}

_BUILT_IN = {function.name: function for function in CATALOGUE}


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

    @cached_property
    def formula(self) -> Formula | None:
        """The definition in steps; None for a function that has none."""
        function = self.function
        if function.definition is None:
            return None
        return trace(function.name, function.definition, function.arity, self.parameters, _arity)

    @cached_property
    def cost(self) -> float:
        """Multiples of one float addition."""
        if self.function.cost is not None or self.formula is None:
            return float(self.function.cost or 0)
        return sum(lookup(step.function).cost for step in self.formula.steps)

    @cached_property
    def exact(self) -> bool:
        """Whether modular arithmetic can judge rules about it.

        Built-in functions are arbitrary functions there, others are what their definition says.
        """
        if self.function.exact is not None:
            return self.function.exact
        if self.function.name in _BUILT_IN:
            return True
        return self.formula is not None and (not self.keeps_zero or self.formula.keeps_zero(_keeps_zero))

    def __call__(self, *arguments: Array) -> Array:
        if self.function.numpy is not None:
            return self.function.numpy(*arguments, *self.parameters)
        if self.formula is None:
            raise EgraphOptError(f"the scalar function {self.function.name!r} has no meaning")
        return np.asarray(evaluated(self.formula, lambda f, *values: lookup(f)(*values), arguments, float))


def name(function: str, *parameters: float) -> str:
    """The text that identifies a function with these parameters."""
    return function + (":" + ",".join(repr(float(p)) for p in parameters) if parameters else "")


@cache
def lookup(text: str) -> Applied:
    """The function a text names; raises EgraphOptError for one that is not in the catalogue."""
    base, _, parameters = text.partition(":")
    function = _BUILT_IN.get(base) or ADDED.get(base)
    if function is None:
        raise EgraphOptError(f"unknown scalar function {text!r}; known: {', '.join(sorted((*_BUILT_IN, *ADDED)))}")
    return Applied(function, tuple(float(p) for p in parameters.split(",")) if parameters else ())


def is_built_in(text: str) -> bool:
    """Whether a text names a function of the catalogue itself."""
    return text.partition(":")[0] in _BUILT_IN


def _arity(text: str) -> int:
    return lookup(text).function.arity


def _keeps_zero(text: str) -> bool:
    return lookup(text).keeps_zero
