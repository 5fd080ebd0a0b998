"""Scalar functions as vector code: polynomials instead of calls into libm, NaN kept; added functions by definition.

Every function takes an :class:`Emitter` (values used twice must be bound), its arguments and the number of lanes. The
polynomials are the classic single-precision ones (Cephes expf and logf; rational minimax tanh and erf); errors against
float64 are below 1e-6 relative and checked by the tests over the whole float range.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt
from typing import Any

from tvm import tirx

from egraph_opt.backends.tvm_emit import Emitter, number, operand, splat, vector_type
from egraph_opt.errors import EgraphOptError
from egraph_opt.ir import scalar
from egraph_opt.ir.formulas import evaluated

Value = Any


def apply(emitter: Emitter, function: str, arguments: Sequence[Value], lanes: int) -> Value:
    """The catalogue function ``function`` of vectors; arguments must be bound variables or constants."""
    applied = scalar.lookup(function)
    name = applied.function.name
    if name in _FUNCTIONS:
        return _FUNCTIONS[name](emitter, lanes, *arguments, *applied.parameters)
    if applied.formula is None:
        raise EgraphOptError(f"no kernel code for the scalar function {name!r}: it has no definition")

    def step(inner: str, *operands: Value) -> Value:
        return emitter.let(apply(emitter, inner, operands, lanes))

    return evaluated(applied.formula, step, arguments, lambda value: number(float(value), lanes))


def can_apply(function: str) -> bool:
    """Whether there is kernel code for a scalar function."""
    applied = scalar.lookup(function)
    if applied.function.name in _FUNCTIONS:
        return True
    return applied.formula is not None and all(can_apply(step.function) for step in applied.formula.steps)


def combine(operation: str) -> Callable[[Value, Value, int], Value]:
    """The two-argument form of a reduction."""
    return {"sum": lambda a, b, lanes: a + b, "max": _maximum, "min": _minimum, "pool": _larger}[operation]


def _larger(a: Value, b: Value, lanes: int) -> Value:
    """The larger one, the first where the second is none: comparisons with NaN are false."""
    return tirx.Select(b > a, b, a)


def _maximum(a: Value, b: Value, lanes: int) -> Value:
    # NaN is what does not equal itself; TVM's != is the ordered one, false for NaN.
    return tirx.Select(tirx.EQ(a, a), tirx.Select(a > b, a, b), a)


def _minimum(a: Value, b: Value, lanes: int) -> Value:
    return tirx.Select(tirx.EQ(a, a), tirx.Select(a < b, a, b), a)


def _clip(x: Value, low: Value, high: Value) -> Value:
    """NaN stays NaN: comparisons with it are false. ``x`` must be bound."""
    return tirx.Select(x < low, low, tirx.Select(x > high, high, x))


def _polynomial(x: Value, coefficients: Sequence[float], lanes: int) -> Value:
    """Horner's rule, highest power first."""
    total = number(coefficients[0], lanes)
    for coefficient in coefficients[1:]:
        total = total * x + number(coefficient, lanes)
    return total


def _bits(value: Value, lanes: int) -> Value:
    return tirx.reinterpret(vector_type(lanes, "int32"), value)


def _float(bits: Value, lanes: int) -> Value:
    return tirx.reinterpret(vector_type(lanes), bits)


def _int(value: int, lanes: int) -> Value:
    return splat(tirx.const(value, "int32"), lanes)


def _intrinsic(name: str, lanes: int, x: Value) -> Value:
    return tirx.call_llvm_pure_intrin(vector_type(lanes), name, x)


def _exp(e: Emitter, lanes: int, x: Value) -> Value:
    x = e.let(_clip(x, number(-104.5, lanes), number(89.5, lanes)))
    # Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits: no conversion that NaN could upset.
    magic = 12582912.0
    shifted = e.let(x * number(1.44269504088896341, lanes) + number(magic, lanes))
    n = e.let(shifted - number(magic, lanes))
    r = e.let((x - n * number(0.693359375, lanes)) - n * number(-2.12194440e-4, lanes))
    p = _polynomial(
        r, (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1), lanes
    )
    p = e.let(p * (r * r) + r + number(1.0, lanes))
    # 2^n in two factors, so that overflow gives infinity and underflow subnormal numbers.
    whole = e.let(_bits(shifted, lanes) - _int(0x4B400000, lanes))
    half = e.let(tirx.shift_right(whole, _int(1, lanes)))
    first = _float(tirx.shift_left(half + _int(127, lanes), _int(23, lanes)), lanes)
    second = _float(tirx.shift_left((whole - half) + _int(127, lanes), _int(23, lanes)), lanes)
    return p * first * second


def _log(e: Emitter, lanes: int, x: Value) -> Value:
    tiny = x < number(1.17549435e-38, lanes)
    y = e.let(tirx.Select(tiny, x * number(8388608.0, lanes), x))
    shift = tirx.Select(tiny, number(-149.0 + 126.0, lanes), number(0.0, lanes))
    bits = e.let(_bits(y, lanes))
    # Mantissa in [sqrt(1/2), sqrt(2)).
    offset = e.let(bits - _int(0x3F3504F3, lanes))
    exponent = e.let(tirx.shift_right(offset, _int(23, lanes)))
    mantissa = _float(bits - tirx.shift_left(exponent, _int(23, lanes)), lanes)
    n = e.let(exponent.astype(vector_type(lanes)) + shift)
    m = e.let(mantissa - number(1.0, lanes))
    z = e.let(m * m)
    p = _polynomial(
        m,
        (
            7.0376836292e-2,
            -1.1514610310e-1,
            1.1676998740e-1,
            -1.2420140846e-1,
            1.4249322787e-1,
            -1.6668057665e-1,
            2.0000714765e-1,
            -2.4999993993e-1,
            3.3333331174e-1,
        ),
        lanes,
    )
    p = p * m * z + n * number(-2.12194440e-4, lanes) - z * number(0.5, lanes)
    value = e.let(m + p + n * number(0.693359375, lanes))
    infinite = tirx.Select(x > number(3.4028235e38, lanes), x, value)
    zero = tirx.Select(tirx.EQ(x, number(0.0, lanes)), number(float("-inf"), lanes), infinite)
    valid = tirx.Select(x < number(0.0, lanes), number(float("nan"), lanes), zero)
    return tirx.Select(tirx.EQ(x, x), valid, x)


def _tanh(e: Emitter, lanes: int, x: Value) -> Value:
    x = e.let(_clip(x, number(-9.0, lanes), number(9.0, lanes)))
    z = e.let(x * x)
    p = _polynomial(
        z,
        (
            -2.76076847742355e-16,
            2.00018790482477e-13,
            -8.60467152213735e-11,
            5.12229709037114e-08,
            1.48572235717979e-05,
            6.37261928875436e-04,
            4.89352455891786e-03,
        ),
        lanes,
    )
    q = _polynomial(z, (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03), lanes)
    return x * p / q


def _erf(e: Emitter, lanes: int, x: Value) -> Value:
    x = e.let(_clip(x, number(-4.0, lanes), number(4.0, lanes)))
    z = e.let(x * x)
    p = _polynomial(
        z,
        (
            -2.72614225801306e-10,
            2.77068142495902e-08,
            -2.10102402082508e-06,
            -5.69250639462346e-05,
            -7.34990630326855e-04,
            -2.95459980854025e-03,
            -1.60960333262415e-02,
        ),
        lanes,
    )
    q = _polynomial(
        z,
        (
            -1.45660718464996e-05,
            -2.13374055278905e-04,
            -1.68282697438203e-03,
            -7.37332916720468e-03,
            -1.42647390514189e-02,
        ),
        lanes,
    )
    return x * p / q


def _sigmoid(e: Emitter, lanes: int, x: Value) -> Value:
    return number(1.0, lanes) / (number(1.0, lanes) + _exp(e, lanes, e.let(-x)))


def _softplus(e: Emitter, lanes: int, x: Value) -> Value:
    y = e.let(_exp(e, lanes, e.let(-_intrinsic("llvm.fabs", lanes, x))))
    u = e.let(number(1.0, lanes) + y)
    # log(1 + y) = log(u) * y / (u - 1): the rounding error of u cancels.
    small = tirx.Select(tirx.EQ(u, number(1.0, lanes)), y, e.let(_log(e, lanes, u)) * y / (u - number(1.0, lanes)))
    return _maximum(x, number(0.0, lanes), lanes) + small


def _elu(e: Emitter, lanes: int, x: Value, alpha: float) -> Value:
    below = e.let(_exp(e, lanes, e.let(tirx.Select(x > number(0.0, lanes), number(0.0, lanes), x))))
    return tirx.Select(x < number(0.0, lanes), operand(alpha, lanes) * (below - number(1.0, lanes)), x)


def _gelu(e: Emitter, lanes: int, x: Value) -> Value:
    erf = _erf(e, lanes, e.let(x * number(1.0 / sqrt(2.0), lanes)))
    return number(0.5, lanes) * x * (number(1.0, lanes) + erf)


def _pow(e: Emitter, lanes: int, x: Value, y: Value) -> Value:
    # libm lane by lane: exp(y*log(x)) would lose digits, and the sign rules are many.
    def lane(value: Value, i: int) -> Value:
        return value if lanes == 1 else tirx.Shuffle([value], [i])

    parts = [e.let(tirx.call_pure_extern("float32", "powf", lane(x, i), lane(y, i))) for i in range(lanes)]
    return parts[0] if lanes == 1 else tirx.Shuffle(parts, list(range(lanes)))


def _hard(e: Emitter, lanes: int, x: Value, a: float, b: float) -> Value:
    line = e.let(x * number(a, lanes) + number(b, lanes))
    return _clip(line, number(0.0, lanes), number(1.0, lanes))


_FUNCTIONS: dict[str, Callable[..., Value]] = {
    "add": lambda e, lanes, x, y: x + y,
    "mul": lambda e, lanes, x, y: x * y,
    "sub": lambda e, lanes, x, y: x - y,
    "div": lambda e, lanes, x, y: x / y,
    "min": lambda e, lanes, x, y: _minimum(x, y, lanes),
    "max": lambda e, lanes, x, y: _maximum(x, y, lanes),
    "pow": _pow,
    "prelu": lambda e, lanes, x, slope: tirx.Select(x < number(0.0, lanes), x * slope, x),
    "masked": lambda e, lanes, x, keep: tirx.Select(tirx.EQ(keep, number(0.0, lanes)), number(-0.0, lanes), x),
    "unless_nan": lambda e, lanes, x, value: tirx.Select(tirx.EQ(x, x), x, number(value, lanes)),
    "neg": lambda e, lanes, x: -x,
    "abs": lambda e, lanes, x: _intrinsic("llvm.fabs", lanes, x),
    "sqrt": lambda e, lanes, x: _intrinsic("llvm.sqrt", lanes, x),
    "reciprocal": lambda e, lanes, x: number(1.0, lanes) / x,
    "exp": _exp,
    "log": _log,
    "erf": _erf,
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "relu": lambda e, lanes, x: tirx.Select(x < number(0.0, lanes), number(0.0, lanes), x),
    "leaky_relu": lambda e, lanes, x, a: tirx.Select(x < number(0.0, lanes), x * operand(a, lanes), x),
    "elu": _elu,
    "clip": lambda e, lanes, x, low, high: _clip(x, number(low, lanes), number(high, lanes)),
    "hard_sigmoid": _hard,
    "hard_swish": lambda e, lanes, x: x * _hard(e, lanes, x, 1.0 / 6.0, 0.5),
    "softplus": _softplus,
    "gelu": _gelu,
}
