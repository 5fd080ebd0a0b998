"""A tensor at some index points is what it is there as a whole."""

from math import prod

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from egraph_opt.ir import points
from egraph_opt.ir.interpreter import FloatArithmetic, ModularArithmetic, evaluate
from egraph_opt.ir.terms import Apply, Call, Compute, Read, Reduce, Softmax, Source, leaves
from tests.backends.bodies import CASES, bodies, read, view


def drawn(term, arithmetic):
    draw = np.random.default_rng(3)
    if isinstance(arithmetic, ModularArithmetic):
        return {s.name: draw.integers(0, arithmetic.prime, s.extents) for s in sources(term)}
    return {s.name: draw.standard_normal(s.extents) for s in sources(term)}


def sources(term):
    for buffer in leaves(term):
        if isinstance(buffer, Compute):
            yield from sources(buffer.tensor)
        else:
            yield from buffer.arguments if isinstance(buffer, Call) else [buffer]


def check(term, arithmetic, budget=1 << 16):
    values = drawn(term, arithmetic)
    some = points.sample(term, budget)
    assert len(np.unique(some, axis=1).T) == some.shape[1]
    whole = evaluate(term, values, arithmetic)
    found = points.at(term, some, values, arithmetic)
    np.testing.assert_allclose(found, whole[tuple(some)], rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(whole.reshape(-1)[points.positions(some, term.extents)], whole[tuple(some)])


@pytest.mark.parametrize("name", sorted(CASES))
def test_bodies_of_many_kinds(name):
    check(CASES[name], FloatArithmetic())


@settings(derandomize=True, max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(bodies())
def test_drawn_bodies(term):
    check(term, ModularArithmetic())
    check(term, FloatArithmetic())


@pytest.mark.parametrize("operation", ["sum", "max", "min", "pool"])
def test_reductions_in_pieces(operation, monkeypatch):
    monkeypatch.setattr(points, "_CHUNK", 7)
    check(Reduce(operation, Apply("exp", (read("x", 3, 5, 11),)), 2), FloatArithmetic())
    check(Softmax(read("x", 6, 11), 1), FloatArithmetic())


def test_buffers_that_are_computed_are_read():
    x = Source("x", (4, 6))
    product = Call("MatMul", "", (x, Source("w", (6, 3))), (4, 3))
    check(Apply("add", (Read(product), Read(Compute(Apply("relu", (Read(Source("b", (4, 3))),)))))), FloatArithmetic())


def test_the_sample_holds_all_corners_and_the_end():
    some = points.sample(read("x", 30, 1, 40, 50), 1 << 20)
    found = {tuple(point) for point in some.T}
    assert {(a, 0, b, c) for a in (0, 29) for b in (0, 39) for c in (0, 49)} <= found
    assert 128 < len(found) <= points.MOST_POINTS
    everything = Reduce("sum", view(read("x", 1 << 22), (9, 9, 1 << 22), [points.ex.iterator(2)]), 1)
    few = points.sample(everything, 1000)
    assert few.shape == (2, points.FEWEST_POINTS)
    assert {(0, 0), (8, 8)} <= {tuple(point) for point in few.T}
    assert points.sample(read("x", 3, 0), 1000).shape == (2, 0)
    assert points.sample(read("x"), 1000).shape == (0, 1)
    one, other = (points.sample(read("x", 99, 99), 1000, seed) for seed in (1, 2))
    assert not np.array_equal(one, other)


def test_work_is_bounded_by_what_there_is():
    norm = CASES["layer-norm"]
    assert points.work(norm, 1 << 40) == points.work(norm, prod(norm.extents))
    row = Reduce("sum", read("x", 8, 100), 1)
    assert points.work(row, 3) == 300
    assert points.work(row, 10**9) == 800
