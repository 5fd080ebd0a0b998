"""Identities that hold in an arithmetic, and equations that do not."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from egraph_opt.ir.arithmetics import (
    MagnitudeArithmetic,
    RationalArithmetic,
    SequentialArithmetic,
    TwoFieldArithmetic,
)

Apply = Callable[..., Any]
GENERATOR = np.random.default_rng(3)
LARGE = [GENERATOR.integers(1, 1 << 20, 64) for _ in range(2)]
SMALL = [GENERATOR.integers(-3, 4, 64) for _ in range(2)]

IN_TWO_FIELDS: dict[str, Callable[[Apply, Any, Any], tuple[Any, Any]]] = {
    "exp of a sum": lambda f, a, b: (f("exp", f("add", a, b)), f("mul", f("exp", a), f("exp", b))),
    "log of an exp": lambda f, a, b: (f("log", f("exp", a)), a),
    "log of a product": lambda f, a, b: (f("log", f("mul", a, b)), f("add", f("log", a), f("log", b))),
    "quotient": lambda f, a, b: (f("mul", f("div", a, b), b), a),
    "reciprocal": lambda f, a, b: (f("div", a, b), f("mul", a, f("reciprocal", b))),
    "root": lambda f, a, b: (f("sqrt", f("mul", a, a)), f("abs", a)),
    "power": lambda f, a, b: (f("exp", a), f("pow", f("exp", f("div", a, a)), a)),
    "sigmoid": lambda f, a, b: (
        f("sigmoid", a),
        f("div", f("exp", a), f("add", f("exp", a), f("exp", f("sub", b, b)))),
    ),
}


@pytest.mark.parametrize("name", IN_TWO_FIELDS)
def test_identities_of_two_fields(name: str) -> None:
    arithmetic = TwoFieldArithmetic()
    a, b = map(arithmetic.normal, LARGE)
    one, other = IN_TWO_FIELDS[name](arithmetic.apply, a, b)
    assert arithmetic.agrees(one, other)


def test_two_fields_tell_functions_apart() -> None:
    arithmetic = TwoFieldArithmetic()
    a, b = map(arithmetic.normal, LARGE)
    f = arithmetic.apply
    for one, other in ((f("exp", a), f("exp", b)), (f("relu", a), a), (f("exp", a), f("tanh", a)), (f("neg", a), a)):
        assert not arithmetic.agrees(one, other)


def test_softmax_in_two_fields_does_not_feel_a_shift() -> None:
    arithmetic = TwoFieldArithmetic()
    a = arithmetic.normal(LARGE[0].reshape(8, 8))
    shifted = arithmetic.apply("add", a, arithmetic.fill(Fraction(5), (8, 8)))
    assert arithmetic.agrees(arithmetic.softmax(a, 1), arithmetic.softmax(shifted, 1))
    assert not arithmetic.agrees(arithmetic.softmax(a, 1), arithmetic.softmax(a, 2))


def test_fractions_know_order_and_division() -> None:
    arithmetic = RationalArithmetic()
    a, b = map(arithmetic.normal, SMALL)
    f = arithmetic.apply
    assert arithmetic.agrees(f("relu", f("relu", a)), f("relu", a))
    assert arithmetic.agrees(f("max", a, b), f("add", b, f("relu", f("sub", a, b))))
    assert arithmetic.agrees(f("mul", f("div", a, b), b), a)
    assert not arithmetic.agrees(f("relu", f("add", a, b)), f("add", f("relu", a), f("relu", b)))
    assert not arithmetic.agrees(f("exp", a), f("tanh", a))


def test_bits_tell_zeros_apart_and_not_nans() -> None:
    arithmetic = SequentialArithmetic()
    assert arithmetic.agrees(np.array([np.nan, 1.0]), np.array([-np.nan, 1.0]))
    assert not arithmetic.agrees(np.array([0.0]), np.array([-0.0]))
    for function, wanted in (("max", 0.0), ("min", -0.0)):
        for pair in ([0.0, -0.0], [-0.0, 0.0]):
            assert arithmetic.agrees(arithmetic.reduce(function, np.array(pair), 1), np.array(wanted))


def test_a_sum_that_cancels_keeps_the_magnitude_of_its_terms() -> None:
    arithmetic = MagnitudeArithmetic()
    large, small = (arithmetic.normal(np.array([v])) for v in (1e8, 1.0))
    f = arithmetic.apply
    cancelled = f("sub", f("add", large, small), large)
    assert arithmetic.agrees(cancelled, f("add", small, arithmetic.normal(np.array([1e-9]))))
    assert not arithmetic.agrees(small, f("add", small, arithmetic.normal(np.array([1e-9]))))
