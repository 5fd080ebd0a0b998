"""What rebuilding keeps, drops and adds."""

import itertools
from fractions import Fraction

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from egraph_opt.errors import EgraphOptError
from egraph_opt.frontends import onnx_writer
from egraph_opt.frontends.onnx_emit import KERNEL_DOMAIN, NotExpressible, supports
from egraph_opt.frontends.onnx_reader import load
from egraph_opt.frontends.onnx_writer import rebuild, serialized
from egraph_opt.frontends.regions import partition
from egraph_opt.ir import interpreter, scalar
from egraph_opt.ir.program import Plan, Step
from egraph_opt.ir.terms import Call, Compute, Fill, Read, Reshape, Source
from tests.frontends.support import draw_inputs, model_of, run, value


def replaced(
    model: onnx.ModelProto, steps: list[Step], constants=None, kernels=None, **outputs: str
) -> onnx.ModelProto:
    """The model with its one region computed by ``steps``; the last one gives ``y`` unless said otherwise."""
    loaded = load(model)
    parts = partition(loaded)
    (region,) = parts.regions
    results = outputs or {region.program.outputs[0]: steps[-1].name}
    plan = Plan(region.program.inputs, tuple(steps), results, constants or {})
    return rebuild(loaded, parts.regions, {0: plan}, kernels)


def chain(opset: int = 17, shape=(2, 3), **options) -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Relu", ["p"], ["y"])]
    weights = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    return model_of(nodes, {"x": shape}, ["y"], {"w": weights}, opset=opset, **options)


X, W = Source("x", (2, 3)), Source("w", (3, 4), constant=True)


def test_a_plan_takes_the_place_of_its_region():
    model = chain()
    model.graph.value_info.append(value("p", [2, 4]))
    model.metadata_props.add(key="author", value="someone")
    model.graph.doc_string = "what it is"
    weights = load(model).constants["w"]
    step = Step("s0", Call("MatMul", "then=relu", (X, W), (2, 4)))
    rebuilt = replaced(model, [step], {"w": weights})
    assert [node.op_type for node in rebuilt.graph.node] == ["MatMul", "Relu"]
    assert [tensor.name for tensor in rebuilt.graph.initializer] == ["w"]
    assert not rebuilt.graph.value_info
    assert rebuilt.metadata_props[0].value == "someone"
    assert rebuilt.graph.doc_string == "what it is"
    assert rebuilt.ir_version == model.ir_version
    assert list(rebuilt.opset_import) == list(model.opset_import)
    feeds = draw_inputs(model)
    np.testing.assert_allclose(run(rebuilt, feeds)["y"], run(model, feeds)["y"], rtol=1e-5)


def test_changed_constants_get_names_of_their_own():
    model = chain()
    step = Step("w", Call("MatMul", "", (X, Source("c", (3, 4), True)), (2, 4)))
    rebuilt = replaced(model, [step], {"c": np.ones((3, 4), np.float32)})
    assert [tensor.name for tensor in rebuilt.graph.initializer] == ["c/constant"]
    same_name = Step("s", Call("MatMul", "", (X, W), (2, 4)))
    rebuilt = replaced(model, [same_name], {"w": np.ones((3, 4), np.float32)})
    assert [tensor.name for tensor in rebuilt.graph.initializer] == ["w/constant"]
    np.testing.assert_allclose(run(rebuilt, {"x": np.ones((2, 3), np.float32)})["y"], 3)


def test_names_never_clash():
    """Names that the writer would choose exist already, one of them inside a subgraph only."""
    branch = helper.make_graph(
        [helper.make_node("Relu", ["w/constant"], ["egraph_opt/0/s0"])], "branch", [], [value("egraph_opt/0/s0", None)]
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch),
    ]
    constants = {"w": np.ones((3, 4), np.float32), "w/constant": np.ones(2, np.float32), "c": np.asarray(True)}
    model = model_of(nodes, {"x": (2, 3)}, ["y", "z"], constants)
    steps = [
        Step("s0", Call("MatMul", "", (X, W), (2, 4))),
        Step("s1", Call("Relu", "function=relu", (Source("s0", (2, 4)),), (2, 4))),
    ]
    rebuilt = replaced(model, steps, {"w": np.full((3, 4), 2, np.float32)})
    feeds = {"x": np.ones((2, 3), np.float32)}
    np.testing.assert_allclose(run(rebuilt, feeds)["y"], 6)
    np.testing.assert_allclose(run(rebuilt, feeds)["z"], 1)
    load(rebuilt)


def test_opaque_nodes_keep_their_bytes():
    branch = helper.make_graph([helper.make_node("Cos", ["y"], ["r"])], "branch", [], [value("r", None)])
    opaque = [
        helper.make_node("Resize", ["y4", "", "scales"], ["u"], name="up", mode="linear", doc_string="kept"),
        helper.make_node("If", ["c"], ["v"], then_branch=branch, else_branch=branch),
        helper.make_node("Strange", ["y", "", "u"], ["q", "", "r2"], domain="some.where", weird=[1.5], text="é"),
    ]
    nodes = [*chain().graph.node, helper.make_node("Unsqueeze", ["y", "axes"], ["y4"]), *opaque]
    constants = {
        "w": np.ones((3, 4), np.float32),
        "axes": np.asarray([0, 1]),
        "scales": np.float32([1, 1, 2, 2]),
        "c": np.asarray(True),
    }
    model = model_of(nodes, {"x": (2, 3)}, ["u", "v", "q"], constants, domains=["some.where"])
    loaded = load(model)
    parts = partition(loaded)
    (region,) = parts.regions
    plan = Plan(
        region.program.inputs, (Step("k", Compute(Read(X))), Step("l", Compute(Read(X)))), {"y": "k", "y4": "l"}
    )
    rebuilt = rebuild(loaded, parts.regions, {0: plan}, {"k": "K1", "l": "K2"})
    wanted = [node.SerializeToString() for node in opaque]
    assert [node.SerializeToString() for node in rebuilt.graph.node if node.domain != KERNEL_DOMAIN] == wanted
    assert [output.SerializeToString() for output in rebuilt.graph.output] == [
        output.SerializeToString() for output in model.graph.output
    ]
    assert {entry.domain: entry.version for entry in rebuilt.opset_import}[KERNEL_DOMAIN] == 1
    assert {tensor.name for tensor in rebuilt.graph.initializer} == {"scales", "c"}


def test_outputs_that_are_inputs_constants_or_shared():
    nodes = [helper.make_node("Relu", ["x"], [name]) for name in ("a",)]
    nodes += [helper.make_node("Exp", ["a"], [name]) for name in ("b", "c", "d")]
    model = model_of(nodes, {"x": (2, 3)}, ["b", "c", "d"])
    steps = [Step("s", Call("Exp", "function=exp", (X,), (2, 3)))]
    constants = {"k": np.ones((2, 3), np.float32)}
    rebuilt = replaced(model, steps, constants, b="s", c="x", d="k")
    feeds = draw_inputs(model)
    results = run(rebuilt, feeds)
    np.testing.assert_allclose(results["b"], np.exp(feeds["x"]), rtol=1e-5)
    np.testing.assert_array_equal(results["c"], feeds["x"])
    np.testing.assert_array_equal(results["d"], 1)
    twice = run(replaced(model, steps, b="s", c="s", d="s"), feeds)
    np.testing.assert_array_equal(twice["b"], twice["d"])


def test_folded_values_whose_origin_vanished_become_constants():
    """The Shape of ``p`` is needed by an opaque node, but ``p`` is gone when the region is replaced."""
    nodes = [
        *chain().graph.node,
        helper.make_node("Shape", ["p"], ["s"]),
        helper.make_node("Foreign", ["s"], ["z"], domain="some.where"),
    ]
    weights = np.ones((3, 4), np.float32)
    model = model_of(nodes, {"x": (2, 3)}, ["y", "z"], {"w": weights}, domains=["some.where"])
    rebuilt = replaced(model, [Step("s0", Call("MatMul", "then=relu", (X, W), (2, 4)))], {"w": weights})
    constant = next(node for node in rebuilt.graph.node if node.op_type == "Constant")
    assert numpy_helper.to_array(constant.attribute[0].t).tolist() == [2, 4]
    assert list(constant.output) == ["s"]
    untouched = rebuild(load(model), partition(load(model)).regions, {})
    assert [node.op_type for node in untouched.graph.node] == ["MatMul", "Relu", "Shape", "Foreign"]


def test_version_3_models_list_new_weights_among_the_inputs():
    model = chain(ir_version=3, opset=8)
    model.graph.input.append(value("w", [3, 4]))
    step = Step("s", Call("MatMul", "", (X, Source("c", (3, 4), True)), (2, 4)))
    rebuilt = replaced(model, [step], {"c": np.ones((3, 4), np.float32)})
    assert [entry.name for entry in rebuilt.graph.input] == ["x", "c/constant"]
    np.testing.assert_allclose(run(rebuilt, {"x": np.ones((2, 3), np.float32)})["y"], 3)


def test_overridable_initializers_stay():
    model = chain()
    model.graph.input.append(value("unused", [2]))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "unused"))
    step = Step("s", Call("MatMul", "", (X, W), (2, 4)))
    rebuilt = replaced(model, [step], {"w": load(model).constants["w"]})
    assert {tensor.name for tensor in rebuilt.graph.initializer} == {"w", "unused"}


def test_plans_that_do_not_fit_are_refused():
    step = Step("s", Call("MatMul", "", (X, Source("nowhere", (3, 4))), (2, 4)))
    with pytest.raises(EgraphOptError, match="nowhere"):
        replaced(chain(), [step])
    with pytest.raises(EgraphOptError, match="lacks the output 'y'"):
        replaced(chain(), [step], other="s")
    with pytest.raises(EgraphOptError, match="no kernel"):
        replaced(chain(), [Step("s", Compute(Fill(Fraction(1), (2, 4))))])
    with pytest.raises(EgraphOptError, match="Frobnicate"):
        replaced(chain(), [Step("s", Call("Frobnicate", "", (X,), (2, 4)))])
    with pytest.raises(NotExpressible, match="opset 10"):
        replaced(chain(opset=9), [Step("s", Call("Slice", "starts=0;ends=3;axes=1;steps=2", (X,), (2, 2)))])


OPSETS = (8, 9, 10, 11, 12, 13, 14, 17, 18, 20, 22)
FUNCTIONS = [
    *(
        "relu",
        "tanh",
        "sigmoid",
        "neg",
        "abs",
        "exp",
        "erf",
        "softplus",
        "gelu",
        "hard_swish",
        "leaky_relu:0.1",
        "elu:0.5",
        "unless_nan:0.5",
    ),
    *("clip:0.0,0.5", "clip:0.0,inf", "clip:-0.5,inf", "clip:-inf,0.5", "hard_sigmoid:0.2,0.5"),
    *("add", "sub", "mul", "div", "min", "max", "prelu"),
]


@pytest.mark.parametrize(("function", "opset"), list(itertools.product(FUNCTIONS, OPSETS)))
def test_functions_at_every_opset(function: str, opset: int):
    model = chain(opset, shape=(2, 3))
    applied = scalar.lookup(function)
    arguments = (X, Source("c", (1, 3), True))[: applied.function.arity]
    call = Call(applied.function.onnx, f"function={function}", arguments, (2, 3))
    if not supports(call, opset):
        assert (function, opset) in (("erf", 8), ("gelu", 8), ("unless_nan:0.5", 8))
        return
    constants = {"c": np.float32([[0.5, 2, -1]])}
    rebuilt = replaced(model, [Step("s", call)], constants)
    feeds = draw_inputs(model)
    wanted = applied(*np.broadcast_arrays(*(feeds["x"].astype(np.float64), constants["c"])[: applied.function.arity]))
    np.testing.assert_allclose(run(rebuilt, feeds)["y"], wanted, rtol=1e-5, atol=1e-6)


S = Source
CALLS = {
    "Gemm": Call("Gemm", "transA=1;transB=1", (S("x", (4, 3)), S("c", (5, 4))), (3, 5)),
    "Gemm with bias": Call(
        "Gemm", "transB=1;then=relu|leaky_relu:0.1", (S("x", (3, 4)), S("c", (5, 4)), S("d", (5,))), (3, 5)
    ),
    "Conv": Call(
        "Conv",
        "dilations=1,2;group=2;pads=1,0,0,2;strides=2,1",
        (S("x", (1, 4, 6, 7)), S("c", (6, 2, 3, 2))),
        (1, 6, 3, 7),
    ),
    "Conv with bias": Call("Conv", "", (S("x", (1, 2, 5)), S("c", (3, 2, 3)), S("d", (3,))), (1, 3, 3)),
    "ConvTranspose": Call(
        "ConvTranspose", "output_padding=1;pads=1,0;strides=2", (S("x", (1, 2, 5)), S("c", (2, 3, 3))), (1, 3, 11)
    ),
    "MaxPool": Call("MaxPool", "kernel_shape=3;pads=1,1;strides=2;dilations=1", (S("x", (1, 2, 7)),), (1, 2, 4)),
    "ReduceSum": Call("ReduceSum", "axes=1,2;keepdims=0", (S("x", (2, 3, 4)),), (2,)),
    "ReduceMax": Call("ReduceMax", "axes=1;keepdims=1", (S("x", (2, 3, 4)),), (2, 1, 4)),
    "Softmax": Call("Softmax", "axis=-1", (S("x", (2, 3, 4)),), (2, 3, 4)),
    "Softmax of a middle axis": Call("Softmax", "axis=1", (S("x", (2, 3, 4)),), (2, 3, 4)),
    "Transpose": Call("Transpose", "perm=2,0,1", (S("x", (2, 3, 4)),), (4, 2, 3)),
    "Concat": Call("Concat", "axis=1", (S("x", (2, 3)), S("c", (2, 1))), (2, 4)),
}


@pytest.mark.parametrize(("case", "opset"), list(itertools.product(CALLS, (8, 10, 11, 13, 18, 22))))
def test_calls_mean_what_the_library_says(case: str, opset: int):
    call = CALLS[case]
    x, *others = call.arguments
    assert isinstance(x, Source)
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": x.extents}, ["y"], opset=opset)
    generator = np.random.default_rng(1)
    constants = {s.name: generator.normal(size=s.extents).astype(np.float32) for s in others if isinstance(s, Source)}
    rebuilt = replaced(model, [Step("s", call)], constants)
    feeds = draw_inputs(model)
    wanted = interpreter.Interpreter({**feeds, **constants}).buffer(call)
    np.testing.assert_allclose(run(rebuilt, feeds)["y"], wanted, rtol=1e-4, atol=1e-5)


MOVES = {
    "Slice": (Call("Slice", "axes=1;ends=4;starts=1", (S("x", (2, 5)),), (2, 3)), lambda x: x[:, 1:4]),
    "Slice back": (Call("Slice", "axes=1;ends=-6;starts=4;steps=-2", (S("x", (2, 5)),), (2, 3)), lambda x: x[:, ::-2]),
    "Pad": (Call("Pad", "pads=0,1,0,-2", (S("x", (2, 5)),), (2, 4)), lambda x: np.pad(x, ((0, 0), (1, 0)))[:, :4]),
    "Pad with": (
        Call("Pad", "pads=1,0,0,0;value=-1.5", (S("x", (2, 5)),), (3, 5)),
        lambda x: np.pad(x, ((1, 0), (0, 0)), constant_values=-1.5),
    ),
    "Expand": (Call("Expand", "", (S("x", (1, 5)),), (3, 5)), lambda x: np.broadcast_to(x, (3, 5))),
    "GlobalAveragePool": (
        Call("GlobalAveragePool", "", (S("x", (1, 2, 5)),), (1, 2, 1)),
        lambda x: x.mean(2, keepdims=True),
    ),
    "GlobalMaxPool": (Call("GlobalMaxPool", "", (S("x", (1, 2, 5)),), (1, 2, 1)), lambda x: x.max(2, keepdims=True)),
    "ReduceMean": (Call("ReduceMean", "axes=0;keepdims=0", (S("x", (2, 5)),), (5,)), lambda x: x.mean(0)),
    "AveragePool": (
        Call("AveragePool", "count_include_pad=1;kernel_shape=2;pads=1,0;strides=1", (S("x", (1, 1, 3)),), (1, 1, 3)),
        lambda x: (x + np.pad(x, ((0, 0), (0, 0), (1, 0)))[..., :3]) / 2,
    ),
    "Reshape": (Reshape(S("x", (2, 6)), (3, 4)), lambda x: x.reshape(3, 4)),
}


@pytest.mark.parametrize(("case", "opset"), list(itertools.product(MOVES, (8, 10, 11, 13, 18, 22))))
def test_calls_that_move_elements(case: str, opset: int):
    buffer, meaning = MOVES[case]
    if isinstance(buffer, Call) and not supports(buffer, opset):
        assert (case, opset) == ("Slice back", 8)
        return
    step = Step("s", buffer)
    (x,) = step.arguments
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": x.extents}, ["y"], opset=opset)
    feeds = draw_inputs(model)
    np.testing.assert_allclose(run(replaced(model, [step]), feeds)["y"], meaning(feeds["x"]), rtol=1e-5)


def test_large_models_keep_their_weights_in_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_writer, "LARGEST_MODEL", 1000)
    weights = {f"w{i}": np.random.default_rng(i).normal(size=(20, 20)).astype(np.float32) for i in range(3)}
    names = ["x", "a", "b", "y"]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(3)]
    model = model_of(nodes, {"x": (2, 20)}, ["y"], weights)
    copy = rebuild(load(model), (), {})
    data, chunks = serialized(copy, "model.onnx.data"), onnx_writer.weights(copy)
    assert len(data) < 1500
    (tmp_path / "model.onnx").write_bytes(data)
    (tmp_path / "model.onnx.data").write_bytes(b"".join(chunks))
    loaded = load(tmp_path / "model.onnx")
    assert all(np.array_equal(loaded.constants[name], array) for name, array in weights.items())
    assert TensorProto.EXTERNAL not in [tensor.data_location for tensor in model.graph.initializer]


def test_small_models_are_one_file_and_deterministic():
    one, two = (serialized(rebuild(load(chain()), (), {}), "d") for _ in range(2))
    assert one == two
    assert not onnx_writer.weights(rebuild(load(chain()), (), {}))
