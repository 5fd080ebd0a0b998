"""A plan that is the model's own nodes costs what these cost."""

import pytest

from egraph_opt.frontends.onnx_costs import work_of_plan, work_of_region
from egraph_opt.frontends.onnx_reader import load
from egraph_opt.frontends.regions import partition
from egraph_opt.ir.library import format_attributes
from egraph_opt.ir.program import Plan, Step
from egraph_opt.ir.terms import Call, Source
from tests.pipeline.support import build, node, normal

X = Source("x", (1, 5, 7, 7))
WINDOW = {"strides": (2, 2), "pads": (1, 1, 1, 1)}
MOVED = (1, 7, 7, 5)
CASES = {
    "conv and relu": (
        [node("Conv", "x w", "a", **WINDOW), node("Relu", "a", "y")],
        {"w": normal(9, 5, 3, 3)},
        Call("Conv", format_attributes(then="relu", **WINDOW), (X, Source("w", (9, 5, 3, 3), True)), (1, 9, 4, 4)),
    ),
    "transpose": (
        [node("Transpose", "x", "a", perm=[0, 2, 3, 1]), node("Relu", "a", "b"), node("Neg", "b", "y")],
        {},
        Call("Transpose", format_attributes(perm=(0, 2, 3, 1), then="relu|neg"), (X,), MOVED),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_same_nodes_cost_the_same(name):
    nodes, weights, call = CASES[name]
    loaded = load(build(nodes, {"x": list(X.extents)}, {"y": None}, weights))
    (region,) = partition(loaded).regions
    plan = Plan((X,), (Step("y", call),), {"y": "y"}, weights)
    assert work_of_plan(plan, {}, loaded).is_like(work_of_region(loaded, region))


def test_a_kernel_costs_what_it_is_said_to():
    loaded = load(build([node("Relu", "x", "y")], {"x": [2]}, {"y": [2]}))
    plan = Plan((), (Step("y", Call("Neg", "function=neg", (X,), X.extents)),), {"y": "y"})
    assert work_of_plan(plan, {"y": 1.0}, loaded).cost == 1.0
