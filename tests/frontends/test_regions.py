"""Regions are convex, complete and found deterministically; replacing them never makes a cycle."""

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from egraph_opt.frontends.onnx_reader import load
from egraph_opt.frontends.onnx_writer import rebuild
from egraph_opt.frontends.regions import partition
from tests.frontends.support import check_kernels, draw_inputs, kernel_plans, model_of, run, value


@st.composite
def graphs(draw) -> onnx.ModelProto:
    """Binary operators on [2, 3]; cosine and mean-variance normalization are outside the algebra."""
    names = ["x", "z", "w"]
    nodes, used = [], set()
    for i in range(draw(st.integers(1, 14))):
        op_type = draw(st.sampled_from(("Add", "Mul", "Max", "Relu", "Cos", "LpNormalization")))
        count = 1 if op_type in ("Relu", "Cos", "LpNormalization") else 2
        inputs = [draw(st.sampled_from(names)) for _ in range(count)]
        used |= set(inputs)
        nodes.append(helper.make_node(op_type, inputs, [f"t{i}"]))
        names.append(f"t{i}")
    outputs = [name for name in names[3:] if name not in used or draw(st.booleans())]
    constants = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
    return model_of(nodes, {"x": (2, 3), "z": (2, 3)}, outputs, constants)


@given(graphs())
@settings(max_examples=150, deadline=None)
def test_partition_and_replacement_of_random_graphs(model):
    loaded = load(model)
    parts = partition(loaded)
    assert [region.index for region in parts.regions] == list(range(len(parts.regions)))
    covered = sorted([i for region in parts.regions for i in region.nodes] + list(parts.opaque) + list(loaded.folded))
    assert covered == list(range(len(loaded.nodes)))
    for region in parts.regions:
        assert _is_convex(loaded, set(region.nodes))
    feeds = draw_inputs(model)
    check_kernels(model, feeds)
    # Any subset of the regions may be replaced.
    plans, kernels, _ = kernel_plans(parts)
    for index in plans:
        load(rebuild(loaded, parts.regions, {index: plans[index]}, kernels))
    unchanged = rebuild(loaded, parts.regions, {})
    for name, array in run(model, feeds).items():
        np.testing.assert_array_equal(run(unchanged, feeds)[name], array)


def _is_convex(loaded, inside: set[int]) -> bool:
    """No path leaves the set and comes back."""
    left: set[int] = set()
    for i in range(len(loaded.nodes)):
        producers = {loaded.producer[name] for name in loaded.uses(i) if name in loaded.producer}
        if i in inside:
            if producers & left:
                return False
        elif producers & (inside | left):
            left.add(i)
    return True


def relu(x: str, y: str) -> onnx.NodeProto:
    return helper.make_node("Relu", [x], [y])


def test_opaque_nodes_bound_regions():
    nodes = [relu("x", "a"), helper.make_node("Cos", ["a"], ["b"]), helper.make_node("Add", ["a", "b"], ["y"])]
    parts = partition(load(model_of(nodes, {"x": (2,)}, ["y"])))
    assert [region.nodes for region in parts.regions] == [(0,), (2,)]
    assert parts.regions[0].program.outputs == ("a",)
    assert [source.name for source in parts.regions[1].program.inputs] == ["b", "a"] or [
        source.name for source in parts.regions[1].program.inputs
    ] == ["a", "b"]


def test_shared_inputs_and_constants_do_not_connect():
    nodes = [helper.make_node("Mul", ["x", "w"], ["a"]), helper.make_node("Mul", ["x", "w"], ["b"])]
    parts = partition(load(model_of(nodes, {"x": (2,)}, ["a", "b"], {"w": np.ones(2, np.float32)})))
    assert [region.nodes for region in parts.regions] == [(0,), (1,)]
    assert all(set(region.program.constants) == {"w"} for region in parts.regions)


def test_captured_names_count_as_uses():
    """``a`` is used only inside a subgraph, which must not lose it."""
    branch = helper.make_graph([helper.make_node("Cos", ["a"], ["r"])], "branch", [], [value("r", [2])])
    nodes = [
        relu("x", "a0"),
        relu("a0", "a"),
        helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch),
    ]
    model = model_of(nodes, {"x": (2,)}, ["y"])
    model.graph.input.append(value("c", [], TensorProto.BOOL))
    parts = partition(load(model))
    assert parts.regions[0].program.outputs == ("a",)
    feeds = {"x": np.float32([1, -2]), "c": np.asarray(True)}
    check_kernels(model, feeds)


def test_random_nodes_are_never_merged():
    noise = [helper.make_node("RandomNormalLike", ["x"], [name]) for name in ("n1", "n2")]
    model = model_of([*noise, helper.make_node("Sub", ["n1", "n2"], ["y"])], {"x": (50,)}, ["y"])
    loaded = load(model)
    parts = partition(loaded)
    assert [source.name for source in parts.regions[0].program.inputs] == ["n1", "n2"]
    rebuilt = rebuild(loaded, parts.regions, {})
    assert np.abs(run(rebuilt, {"x": np.zeros(50, np.float32)})["y"]).max() > 0


def test_worthwhile():
    views = [helper.make_node("Transpose", ["x"], ["a"]), helper.make_node("Unsqueeze", ["a", "axes"], ["y"])]
    constants = {"axes": np.asarray([0])}
    assert not partition(load(model_of(views, {"x": (2, 3)}, ["y"], constants))).regions[0].worthwhile
    assert not partition(load(model_of([relu("x", "y")], {"x": (2,)}, ["y"]))).regions[0].worthwhile
    two = [relu("x", "a"), helper.make_node("Exp", ["a"], ["y"])]
    assert partition(load(model_of(two, {"x": (2,)}, ["y"]))).regions[0].worthwhile
    product = [helper.make_node("MatMul", ["x", "x"], ["y"])]
    assert partition(load(model_of(product, {"x": (3, 3)}, ["y"]))).regions[0].worthwhile
    concat = [helper.make_node("Concat", ["x"] * 4, ["y"], axis=0)]
    assert not partition(load(model_of(concat, {"x": (3, 3)}, ["y"]))).regions[0].worthwhile
