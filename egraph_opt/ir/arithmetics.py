"""Further arithmetics of the interpreter, in which identities of division, exponentials and order hold exactly.

An array of two numbers per element is a complex one: real and imaginary part are moved, padded and reshaped together,
and zero is (0, 0).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np

from egraph_opt.ir import scalar
from egraph_opt.ir.formulas import evaluated

Array = np.ndarray[Any, Any]


def _pair(first: Array, second: Array) -> Array:
    first, second = np.broadcast_arrays(first, second)
    joined = np.empty(first.shape, dtype=np.complex128)
    joined.real, joined.imag = first, second
    return joined


def _last(values: Array, count: int) -> tuple[int, ...]:
    return tuple(range(values.ndim - count, values.ndim))


def _in_turn(function: Callable[[Array, Array], Array], values: Array, count: int) -> Array:
    """The last ``count`` axes reduced one element after another, in row-major order."""
    outer = values.shape[: values.ndim - count]
    flat = values.reshape((*outer, math.prod(values.shape[values.ndim - count :])))
    total = flat[..., 0] if flat.shape[-1] else np.zeros(outer, dtype=values.dtype)
    for position in range(1, flat.shape[-1]):
        total = function(total, flat[..., position])
    return np.asarray(total)


# What two elements become in a reduction that has another name.
_COMBINED = {"sum": "add", "pool": "max"}


@dataclass(frozen=True)
class TwoFieldArithmetic:
    """Values modulo a prime p, exponents modulo a prime q that divides p - 1 (Mirage, OSDI'25, probabilistic
    verification).

    An element is a value and an exponent. ``exp`` takes the exponent x to the value g**x, g being of order q, so
    exp(a + b) = exp(a) * exp(b) holds exactly; ``log`` takes it back. Squares are what is positive: ``sqrt`` and
    ``abs`` give the root that is a square itself. A part that has no meaning (a quotient by zero, the exponent of an
    exponential) is NaN, which says nothing. Other functions are opaque: fixed pseudo-random polynomials of both parts.
    """

    prime: int = 1048343
    order: int = 524171
    generator: int = 4
    contracts = False

    def fill(self, value: Fraction, extents: tuple[int, ...]) -> Array:
        return np.full(extents, self._number(value), dtype=np.complex128)

    def _number(self, value: Fraction) -> complex:
        def residue(modulus: int) -> float:
            return float(value.numerator * pow(value.denominator, -1, modulus) % modulus)

        return complex(residue(self.prime), residue(self.order))

    def apply(self, function: str, *arguments: Array) -> Array:
        with np.errstate(all="ignore"):
            return self._apply(function, *np.broadcast_arrays(*arguments))

    def _apply(self, function: str, *arguments: Array) -> Array:
        base = function.partition(":")[0]
        x = arguments[0]
        nothing = np.full(x.shape, np.nan)
        match base:
            case "add" | "sub" | "mul" | "neg":
                operation: Any = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "neg": np.negative}[base]
                value = operation(*(a.real for a in arguments)) % self.prime
                return _pair(value, operation(*(a.imag for a in arguments)) % self.order)
            case "max":
                return np.maximum(x, arguments[1])
            case "min":
                return np.minimum(x, arguments[1])
            case "div":
                return self._apply("mul", x, self._apply("reciprocal", arguments[1]))
            case "reciprocal":
                return _pair(
                    _power(x.real, self.prime - 2, self.prime, zero=np.nan),
                    _power(x.imag, self.order - 2, self.order, zero=np.nan),
                )
            case "exp":
                return _pair(self._raised(x.imag), nothing)
            case "log":
                return _pair(nothing, self._logarithm(x.real))
            case "sqrt":
                return _pair(self._root(x.real), nothing)
            case "abs":
                return _pair(_absolute(x.real, self.prime), _absolute(x.imag, self.order))
            case "pow":
                exponent = np.nan_to_num(arguments[1].imag)
                found = self._raised(self._logarithm(x.real) * exponent % self.order)
                return _pair(np.where(np.isnan(arguments[1].imag), np.nan, found), nothing)
            case "sigmoid":
                return self._apply("reciprocal", self._apply("add", self._one(x), self._exp_of(x, -1)))
            case "tanh":
                squared = self._exp_of(x, 2)
                one = self._one(x)
                return self._apply("div", self._apply("sub", squared, one), self._apply("add", squared, one))
            case "softplus":
                return self._apply("log", self._apply("add", self._one(x), self._exp_of(x, 1)))
        applied = scalar.lookup(function)
        if applied.formula is not None:
            return np.asarray(evaluated(applied.formula, self.apply, arguments, lambda v: self.fill(v, ())))
        seed = zlib.crc32(function.encode())
        return _pair(
            _mixed([a.real for a in arguments], seed, self.prime, applied.keeps_zero),
            _mixed([a.imag for a in arguments], seed, self.order, applied.keeps_zero),
        )

    def _one(self, like: Array) -> Array:
        return _pair(np.ones(like.shape), np.full(like.shape, np.nan))

    def _exp_of(self, x: Array, factor: int) -> Array:
        return _pair(self._raised(x.imag * factor % self.order), np.full(x.shape, np.nan))

    def _raised(self, exponent: Array) -> Array:
        powers, _ = _tables(self.prime, self.order, self.generator)
        return _looked_up(powers, exponent)

    def _logarithm(self, value: Array) -> Array:
        return _looked_up(_tables(self.prime, self.order, self.generator)[1], value)

    def _root(self, value: Array) -> Array:
        half = self._logarithm(value) * ((self.order + 1) // 2) % self.order
        return np.where(value == 0, 0.0, self._raised(half))

    def reduce(self, operation: str, values: Array, count: int) -> Array:
        if operation != "sum":
            return _in_turn(np.minimum if operation == "min" else np.maximum, values, count)
        axes = _last(values, count)
        with np.errstate(all="ignore"):
            return _pair(values.real.sum(axis=axes) % self.prime, values.imag.sum(axis=axes) % self.order)

    def softmax(self, values: Array, count: int) -> Array:
        weights = self.apply("exp", values)
        total = self.reduce("sum", weights, count)
        return self.apply("div", weights, total.reshape(total.shape + (1,) * count))

    def reduce_product(self, left: Array, right: Array) -> Array:
        with np.errstate(all="ignore"):
            return _pair(left.real @ right.real % self.prime, left.imag @ right.imag % self.order)

    def outside(self, fill: float) -> Any:
        return complex(fill, fill) if math.isinf(fill) else self._number(Fraction(fill))

    def normal(self, values: Array) -> Array:
        if np.iscomplexobj(values):
            return values
        return _pair(np.asarray(values % self.prime, dtype=float), np.asarray(values % self.order, dtype=float))

    def agrees(self, one: Array, other: Array) -> bool:
        """Equal wherever both say something, and somewhere they do."""
        said = False
        for a, b in ((one.real, other.real), (one.imag, other.imag)):
            both = ~(np.isnan(a) | np.isnan(b))
            said = said or bool(both.any())
            if not np.array_equal(a[both], b[both]):
                return False
        return said or not one.size


def _looked_up(table: Array, position: Array) -> Array:
    valid = np.isfinite(position)
    return np.where(valid, table[np.where(valid, position, 0).astype(np.int64)], np.nan)


def _power(base: Array, exponent: int, modulus: int, zero: float) -> Array:
    valid = np.isfinite(base) & (base != 0)
    square = np.where(valid, base, 1).astype(np.int64)
    result = np.ones_like(square)
    while exponent:
        if exponent & 1:
            result = result * square % modulus
        square = square * square % modulus
        exponent >>= 1
    return np.where(valid, result.astype(float), np.where(base == 0, zero, np.nan))


def _absolute(value: Array, modulus: int) -> Array:
    # Of x and -x one is a square, because -1 is none modulo a prime that is 3 modulo 4.
    return _power(value * value % modulus, (modulus + 1) // 4, modulus, zero=0.0)


def _mixed(arguments: list[Array], seed: int, modulus: int, keeps_zero: bool) -> Array:
    mixed = np.zeros(arguments[0].shape)
    for position, argument in enumerate(arguments):
        mixed = (mixed * 48271 + argument * (seed % 7919 + position + 2)) % modulus
    start = 0 if keeps_zero else seed % modulus
    return np.asarray((start + mixed * mixed % modulus * mixed + mixed * (seed % 104729 + 1)) % modulus)


@cache
def _tables(prime: int, order: int, generator: int) -> tuple[Array, Array]:
    """Powers of the generator, and their logarithms (NaN for what is no power)."""
    powers = np.ones(1, dtype=np.int64)
    step = generator
    while powers.size < order:
        powers = np.concatenate([powers, powers * step % prime])
        step = step * step % prime
    powers = powers[:order]
    logarithms = np.full(prime, np.nan)
    logarithms[powers] = np.arange(order)
    return powers.astype(float), logarithms


@dataclass(frozen=True)
class RationalArithmetic:
    """Exact fractions: order, division and piecewise linear functions are what they are, other functions are opaque.

    Arrays of objects; NaN says nothing (a quotient by zero).
    """

    contracts = False

    def fill(self, value: Fraction, extents: tuple[int, ...]) -> Array:
        return np.full(extents, Fraction(value), dtype=object)

    def apply(self, function: str, *arguments: Array) -> Array:
        applied = scalar.lookup(function)
        if applied.formula is not None and applied.function.name not in _RATIONAL:
            return np.asarray(evaluated(applied.formula, self.apply, arguments, lambda v: self.fill(v, ())), object)
        parameters = [Fraction(p) for p in applied.parameters]
        known = _RATIONAL.get(applied.function.name)

        def one(*values: Any) -> Any:
            if any(v != v for v in values):
                return math.nan
            if known is None:
                return _opaque(function, values, applied.keeps_zero)
            try:
                return known(*values, *parameters)
            except (ZeroDivisionError, OverflowError, ValueError):
                return math.nan

        return np.asarray(np.frompyfunc(one, len(arguments), 1)(*arguments), dtype=object)

    def reduce(self, operation: str, values: Array, count: int) -> Array:
        return _in_turn(lambda a, b: self.apply(_COMBINED.get(operation, operation), a, b), values, count)

    def softmax(self, values: Array, count: int) -> Array:
        weights = self.apply("exp", values)
        total = self.reduce("sum", weights, count)
        return self.apply("div", weights, total.reshape(total.shape + (1,) * count))

    def reduce_product(self, left: Array, right: Array) -> Array:
        return np.asarray(left @ right, dtype=object)

    def outside(self, fill: float) -> Any:
        return fill if math.isinf(fill) else Fraction(fill)

    def normal(self, values: Array) -> Array:
        if values.dtype == object:
            return values
        return np.asarray(np.frompyfunc(lambda v: Fraction(float(v)), 1, 1)(values), dtype=object).reshape(values.shape)

    def agrees(self, one: Array, other: Array) -> bool:
        """Equal wherever both say something, and somewhere they do."""
        pairs = [(a, b) for a, b in zip(one.ravel(), other.ravel(), strict=True) if a == a and b == b]
        return all(a == b for a, b in pairs) and (bool(pairs) or not one.size)


def _clip(x: Any, low: Any, high: Any) -> Any:
    return min(max(x, low), high)


def _power_of(x: Any, y: Any) -> Any:
    if y != int(y) or abs(y) > 16:
        return _opaque("pow", (x, y), False)
    return x ** int(y)


_RATIONAL: dict[str, Callable[..., Any]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "neg": lambda x: -x,
    "reciprocal": lambda x: 1 / x,
    "abs": abs,
    "min": min,
    "max": max,
    "pow": _power_of,
    "relu": lambda x: max(x, Fraction(0)),
    "prelu": lambda x, slope: x * slope if x < 0 else x,
    "leaky_relu": lambda x, a: x * a if x < 0 else x,
    "clip": _clip,
    "hard_sigmoid": lambda x, a, b: _clip(a * x + b, Fraction(0), Fraction(1)),
    "hard_swish": lambda x: x * _clip(x / 6 + Fraction(1, 2), Fraction(0), Fraction(1)),
}


@cache
def _opaque(function: str, values: tuple[Any, ...], keeps_zero: bool) -> Fraction:
    if keeps_zero and not any(values):
        return Fraction(0)
    return Fraction(zlib.crc32(f"{function} {' '.join(map(str, values))}".encode()) % 1_000_003 + 1, 1009)


@dataclass(frozen=True)
class SequentialArithmetic:
    """IEEE arithmetic in which a sum adds one element after another in row-major order: the order that rules promise
    bits for.

    Of two zeros ``max`` gives the positive and ``min`` the negative one, so a maximum does not depend on its order.
    """

    dtype: Any = np.float64
    contracts = False

    def fill(self, value: Fraction, extents: tuple[int, ...]) -> Array:
        return np.full(extents, float(value), dtype=self.dtype)

    def apply(self, function: str, *arguments: Array) -> Array:
        with np.errstate(all="ignore"):
            result = np.asarray(scalar.lookup(function)(*arguments), dtype=self.dtype)
            if function in ("max", "min"):
                zeros = (arguments[0] == 0) & (arguments[1] == 0)
                sign = 1 if function == "max" else -1
                result = np.where(zeros, sign * (sign * arguments[0] + sign * arguments[1]), result)
            return result

    def reduce(self, operation: str, values: Array, count: int) -> Array:
        return _in_turn(lambda a, b: self.apply(_COMBINED.get(operation, operation), a, b), values, count)

    def softmax(self, values: Array, count: int) -> Array:
        with np.errstate(all="ignore"):
            highest = self.reduce("max", values, count)
            raised = np.exp(values - highest.reshape(highest.shape + (1,) * count))
            total = self.reduce("sum", raised, count)
            return np.asarray(raised / total.reshape(total.shape + (1,) * count))

    def reduce_product(self, left: Array, right: Array) -> Array:
        with np.errstate(all="ignore"):
            return self.reduce("sum", left[..., :, None, :] * np.swapaxes(right, -1, -2)[..., None, :, :], 1)

    def outside(self, fill: float) -> float:
        return fill

    def normal(self, values: Array) -> Array:
        return np.asarray(values, dtype=self.dtype)

    def agrees(self, one: Array, other: Array) -> bool:
        """The same bits, every NaN being one."""
        same = (one == other) & (np.signbit(one) == np.signbit(other)) | (np.isnan(one) & np.isnan(other))
        return bool(same.all())


# Steps by which the sensitivity of a function is measured, and rounding errors that are forgiven, of the magnitude.
_STEP = 1e-6
ROUNDING = 1e-10


@dataclass(frozen=True)
class MagnitudeArithmetic:
    """float64 together with the magnitude that rounding errors of an element are relative to.

    A sum that cancels keeps the magnitude of its terms; a function multiplies it by its slope.
    """

    contracts = False

    def fill(self, value: Fraction, extents: tuple[int, ...]) -> Array:
        return self.normal(np.full(extents, float(value)))

    def apply(self, function: str, *arguments: Array) -> Array:
        applied = scalar.lookup(function)
        with np.errstate(all="ignore"):
            values = [a.real for a in arguments]
            result = np.asarray(applied(*values), dtype=float)
            magnitude = abs(result)
            if function in ("add", "sub"):
                magnitude = arguments[0].imag + arguments[1].imag
            elif function == "mul":
                magnitude = arguments[0].imag * arguments[1].imag
            else:
                for position, argument in enumerate(arguments):
                    moved = [values[:], values[:]]
                    for sign, changed in zip((1, -1), moved, strict=True):
                        changed[position] = changed[position] + sign * _STEP * argument.imag
                    slope = abs(np.asarray(applied(*moved[0])) - np.asarray(applied(*moved[1]))) / _STEP
                    magnitude = magnitude + np.nan_to_num(slope, posinf=0.0)
            return _pair(result, np.maximum(magnitude, abs(result)))

    def reduce(self, operation: str, values: Array, count: int) -> Array:
        axes = _last(values, count)
        if operation == "sum":
            with np.errstate(all="ignore"):
                return _pair(values.real.sum(axis=axes), values.imag.sum(axis=axes))
        extreme = values.real.min(axis=axes) if operation == "min" else values.real.max(axis=axes)
        # What is outside is infinite and has no rounding error.
        finite = np.where(np.isfinite(values.imag), values.imag, 0.0)
        return _pair(extreme, finite.max(axis=axes))

    def softmax(self, values: Array, count: int) -> Array:
        axes = _last(values, count)
        with np.errstate(all="ignore"):
            raised = np.exp(values.real - values.real.max(axis=axes, keepdims=True))
            result = raised / raised.sum(axis=axes, keepdims=True)
            return _pair(result, result * (1 + 2 * values.imag.max(axis=axes, keepdims=True)))

    def reduce_product(self, left: Array, right: Array) -> Array:
        with np.errstate(all="ignore"):
            return _pair(left.real @ right.real, left.imag @ right.imag)

    def outside(self, fill: float) -> Any:
        return complex(fill, abs(fill))

    def normal(self, values: Array) -> Array:
        return values if np.iscomplexobj(values) else _pair(np.asarray(values, float), abs(np.asarray(values, float)))

    def agrees(self, one: Array, other: Array) -> bool:
        """Finite values agree within rounding; others are not compared."""
        a, b = one.real, other.real
        finite = np.isfinite(a) & np.isfinite(b)
        with np.errstate(all="ignore"):
            allowed = ROUNDING * np.maximum(one.imag, other.imag)
            return bool((abs(a - b) <= allowed)[finite].all())
