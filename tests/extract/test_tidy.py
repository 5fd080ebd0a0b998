"""Moves between steps cancel, merge and vanish, and what is left does the same."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from egraph_opt.extract.tidy import move, tidied
from egraph_opt.frontends.portable import express
from egraph_opt.ir.interpreter import FloatArithmetic, Interpreter
from egraph_opt.ir.library import format_attributes
from egraph_opt.ir.maps import gathered
from egraph_opt.ir.program import Plan, Step
from egraph_opt.ir.terms import Call, Read, Reshape, Source, View
from egraph_opt.testing.strategies import index_maps

X = Source("x", (2, 3, 4))


def call(operator, source, extents, **attributes):
    return Call(operator, format_attributes(**attributes), (source,), extents)


def steps_of(*buffers):
    return tuple(Step(f"s{i}", buffer) for i, buffer in enumerate(buffers))


def operators(plan):
    return [step.buffer.operator if isinstance(step.buffer, Call) else "Reshape" for step in plan.steps]


def test_moves_that_cancel_vanish():
    turned, flat = Source("s0", (4, 3, 2)), Source("s1", (12, 2))
    steps = steps_of(
        call("Transpose", X, (4, 3, 2), perm=(2, 1, 0)),
        Reshape(turned, (12, 2)),
        Reshape(flat, (4, 3, 2)),
        call("Transpose", Source("s2", (4, 3, 2)), (2, 3, 4), perm=(2, 1, 0)),
        call("Relu", Source("s3", (2, 3, 4)), (2, 3, 4), function="relu"),
    )
    plan = tidied(Plan((X,), steps, {"y": "s4"}))
    assert operators(plan) == ["Relu"]
    assert plan.steps[0].arguments[0].name == "x"


def test_what_others_read_stays():
    steps = steps_of(
        call("Transpose", X, (4, 3, 2), perm=(2, 1, 0)),
        call("Transpose", Source("s0", (4, 3, 2)), (2, 3, 4), perm=(2, 1, 0)),
    )
    plan = tidied(Plan((X,), steps, {"y": "s0", "z": "s1"}))
    assert operators(plan) == ["Transpose"]
    assert plan.outputs == {"y": "s0", "z": "x"}


def test_a_slice_of_a_pad_is_one_move_or_none():
    padded = call("Pad", X, (2, 3, 6), pads=(0, 0, 1, 0, 0, 1))
    cut = call("Slice", Source("s0", (2, 3, 6)), (2, 3, 4), starts=(1,), ends=(5,), axes=(2,))
    assert tidied(Plan((X,), steps_of(padded, cut), {"y": "s1"})).outputs == {"y": "x"}


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_drawn_views_keep_their_meaning(data):
    """Views in a row, each written by itself."""
    maps, source, steps, constants = [], Source("x", (2, 3, 4)), [], {}
    for number in range(data.draw(st.integers(1, 3))):
        index = data.draw(index_maps(source.extents))
        written = express(f"v{number}", View(Read(source), index))
        if written is None or any(map(_big, written.steps)):
            break
        maps.append(index)
        steps += written.steps
        constants |= written.constants
        source = Source(f"v{number}", index.result)
    if not maps:
        return
    plan = Plan((X,), tuple(steps), {"y": source.name}, constants)
    found = tidied(plan)
    values = np.arange(1.0, 25.0).reshape(2, 3, 4)
    expected = values
    for index in maps:
        expected = gathered(expected, index)
    np.testing.assert_array_equal(_value(found, values).reshape(expected.shape), expected)
    assert len(found.steps) <= len(plan.steps)


def _big(step):
    return np.prod(step.extents) > 20_000


def _value(plan, values):
    known = {"x": values, **plan.constants}
    for step in plan.steps:
        interpreter = Interpreter({s.name: np.asarray(known[s.name], float) for s in step.arguments}, FloatArithmetic())
        index = move(step)
        if index is not None:
            known[step.name] = gathered(np.asarray(known[step.arguments[0].name], float), index)
        else:
            known[step.name] = interpreter.buffer(step.buffer)
    return np.asarray(known[plan.outputs["y"]])
