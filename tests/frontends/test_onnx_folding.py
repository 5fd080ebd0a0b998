"""Computed shapes, axes and indices become constants; what grows, or differs between runtimes, does not."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from egraph_opt.frontends.onnx_reader import load
from egraph_opt.frontends.regions import partition
from tests.frontends.support import check_kernels, draw_inputs, model_of, run, value

INDEX = {"zero": np.asarray(0), "axis": np.asarray([0]), "four": np.asarray([4])}


def node(op_type: str, inputs: list[str], output: str, **attributes: object):
    return helper.make_node(op_type, inputs, [output], **attributes)


def shape_chain(first: int | str):
    """Reshape(x, [shape(x)[0], 4, -1]) as exporters write it, and a Relu."""
    nodes = [
        node("Shape", ["x"], "shape"),
        node("Gather", ["shape", "zero"], "n"),
        node("Unsqueeze", ["n", "axis"], "n1"),
        node("Concat", ["n1", "four", "rest"], "target", axis=0),
        node("Reshape", ["x", "target"], "r"),
        node("Relu", ["r"], "y"),
    ]
    return model_of(nodes, {"x": (first, 3, 8)}, ["y"], {**INDEX, "rest": np.asarray([-1])})


def test_a_shape_chain_is_folded():
    loaded = load(shape_chain(2))
    assert loaded.folded == {0, 1, 2, 3}
    assert loaded.constants["target"].tolist() == [2, 4, -1]
    assert loaded.type_of("y").shape == (2, 4, 6)
    (region,) = partition(loaded).regions
    assert region.nodes == (4, 5)


def test_a_dynamic_shape_chain_stays():
    loaded = load(shape_chain("n"))
    assert not loaded.folded
    assert partition(loaded).regions == ()


def test_folding_and_inference_feed_each_other():
    """The second Shape is known only once the first Reshape's target is."""
    nodes = [
        node("Shape", ["x"], "s1"),
        node("Mul", ["s1", "twice"], "t1"),
        node("Reshape", ["x", "t1"], "r1"),
        node("Shape", ["r1"], "s2"),
        node("Slice", ["s2", "axis", "one"], "head"),
        node("Concat", ["head", "rest"], "t2", axis=0),
        node("Reshape", ["r1", "t2"], "y"),
    ]
    constants = {"twice": np.asarray([2, 0]), "axis": np.asarray([0]), "one": np.asarray([1]), "rest": np.asarray([-1])}
    constants["twice"] = np.asarray([2, 1])
    model = model_of(nodes, {"x": (3, 4)}, ["y"], constants | {"half": np.asarray([1])})
    model.graph.node[1].CopyFrom(node("ScatterElements", ["s1", "axis", "six"], "t1"))
    model.graph.node.insert(2, node("ScatterElements", ["t1", "one", "two"], "t1b"))
    model.graph.node[3].CopyFrom(node("Reshape", ["x", "t1b"], "r1"))
    for name, number in (("six", 6), ("two", 2)):
        model.graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [1], [number]))
    loaded = load(model)
    assert loaded.constants["t2"].tolist() == [6, -1]
    check_kernels(model, draw_inputs(model))


def test_folded_values_are_kept_for_those_who_need_them():
    model = shape_chain(2)
    model.graph.node.append(node("Shape", ["r"], "late"))
    model.graph.node.append(node("NonZero", ["late"], "nonzero"))
    model.graph.node.append(node("Foreign", ["late", "y"], "z", domain="some.where"))
    model.opset_import.append(helper.make_opsetid("some.where", 1))
    model.graph.output.append(helper.make_empty_tensor_value_info("z"))
    loaded = load(model)
    assert loaded.constants["late"].tolist() == [2, 4, 6]
    (region,) = partition(loaded).regions
    assert region.program.outputs == ("y",)  # the Shape of r is no reason to keep r


def doubling(count: int):
    nodes = [node("Concat", [f"d{i}", f"d{i}"], f"d{i + 1}", axis=0) for i in range(count)]
    nodes.append(node("ConstantOfShape", [f"d{count}"], "y"))
    return model_of(nodes, {"x": (1,)}, ["y"], {"d0": np.asarray([1])})


def test_doubling_concatenations_stop_at_the_budget():
    loaded = load(doubling(60))
    assert sum(array.nbytes for array in loaded.constants.values()) < 100 << 20


@pytest.mark.parametrize(
    "bomb",
    [
        (node("Range", ["zero", "huge", "one"], "y"), {"huge": np.asarray(2**40), "one": np.asarray(1)}),
        (node("ConstantOfShape", ["huge"], "y"), {"huge": np.asarray([2**20, 2**20])}),
        (node("Expand", ["zero", "huge"], "y"), {"huge": np.asarray([2**40])}),
        (node("Tile", ["axis", "huge"], "y"), {"huge": np.asarray([2**40])}),
        (node("OneHot", ["axis", "huge", "pair"], "y"), {"huge": np.asarray(2**40), "pair": np.asarray([0, 1])}),
        (node("EyeLike", ["axis"], "y"), {}),
    ],
)
def test_small_files_with_large_results(bomb):
    made, constants = bomb
    loaded = load(model_of([made], {"x": (1,)}, ["y"], {**INDEX, **constants}))
    assert "y" not in loaded.constants


def test_endless_loops_are_not_run():
    integer, boolean = TensorProto.INT64, TensorProto.BOOL
    body = helper.make_graph(
        [node("Identity", ["c"], "c2"), node("Identity", ["a"], "a2")],
        "body",
        [value(name, [], element) for name, element in (("i", integer), ("c", boolean), ("a", integer))],
        [value(name, [], element) for name, element in (("c2", boolean), ("a2", integer))],
    )
    loop = helper.make_node("Loop", ["huge", "", "zero"], ["y"], body=body)
    loaded = load(model_of([loop], {"x": (1,)}, ["y"], {**INDEX, "huge": np.asarray(2**62)}))
    assert not loaded.folded


@pytest.mark.parametrize(
    ("made", "constants"),
    [
        (node("Div", ["a", "b"], "y"), {"a": np.asarray([-7]), "b": np.asarray([2])}),
        (node("Div", ["a", "b"], "y"), {"a": np.asarray([7]), "b": np.asarray([0])}),
        (node("Cast", ["a"], "y", to=TensorProto.INT64), {"a": np.float32([np.nan])}),
        (node("Cast", ["a"], "y", to=TensorProto.INT32), {"a": np.asarray([2**40])}),
        (node("Cast", ["a"], "y", to=TensorProto.STRING), {"a": np.asarray([2])}),
        (node("RandomNormalLike", ["a"], "y"), {"a": np.float32([1])}),
    ],
)
def test_results_that_differ_between_runtimes_are_not_folded(made, constants):
    assert not load(model_of([made], {"x": (1,)}, ["y"], constants)).folded


def test_scalars_keep_their_shape():
    nodes = [
        helper.make_node("Constant", [], ["c"], value_float=2.5),
        node("Mul", ["x", "c"], "p"),
        node("Relu", ["p"], "y"),
    ]
    model = model_of(nodes, {"x": (2, 3)}, ["y"])
    assert load(model).constants["c"].shape == ()
    check_kernels(model, draw_inputs(model))


def test_constants_of_every_attribute():
    nodes = [
        helper.make_node("Constant", [], ["i"], value_int=3),
        helper.make_node("Constant", [], ["is"], value_ints=[1, 2]),
        helper.make_node("Constant", [], ["fs"], value_floats=[1.0, 2.0]),
        helper.make_node("Constant", [], ["s"], value_string="text"),
    ]
    loaded = load(model_of(nodes, {"x": (1,)}, ["i"]))
    assert set(loaded.constants) == {"i", "is", "fs"}


@pytest.mark.parametrize(("axis", "extents"), [(0, (3, 2)), (1, (2, 70)), (-2, (5, 4))])
def test_gathered_elements_beyond_what_the_reference_can_do(axis, extents):
    generator = np.random.default_rng(3)
    data = generator.normal(size=(100, 70)).astype(np.float32)
    indices = generator.integers(-70, 70, size=extents)
    node = helper.make_node("GatherElements", ["data", "indices"], ["g"], axis=axis)
    model = model_of([node, helper.make_node("Add", ["x", "g"], ["y"])], {"x": extents}, ["y"],
                     {"data": data, "indices": indices})  # fmt: skip
    loaded = load(model)
    zeros = {"x": np.zeros(extents, dtype=np.float32)}
    np.testing.assert_array_equal(loaded.constants["g"], run(model, zeros)["y"])
