"""Valid models of every unusual kind come back right, whatever happens inside."""

from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from egraph_opt.backends import onnxruntime
from egraph_opt.errors import InputRejected, UsageError
from egraph_opt.exploration import free_prefix
from egraph_opt.pipeline import optimize
from tests.pipeline.support import FLOAT, INT64, answers, build, node, normal, signature, static, wrong


def dense(x: str, y: str, w: str) -> list[onnx.NodeProto]:
    """relu(x @ w) + x, worth a region."""
    return [node("MatMul", f"{x} {w}", f"{y}_p"), node("Relu", f"{y}_p", f"{y}_r"), node("Add", f"{y}_r {x}", y)]


def test_overridable_initializers_stay_overridable() -> None:
    model = build(dense("x", "y", "w"), {"x": [3, 4], "w": [4, 4]}, {"y": [3, 4]}, {"w": normal(4, 4)})
    result = static(model)
    assert result.report.changed
    assert signature(result.model) == signature(model)
    assert not wrong(model, result, {"x": normal(3, 4)})
    assert not wrong(model, result, {"x": normal(3, 4), "w": normal(4, 4, seed=5)})


def test_names_captured_by_subgraphs_are_uses() -> None:
    def branch(name: str) -> onnx.GraphProto:
        inner = helper.make_tensor_value_info(f"{name}_y", FLOAT, [3, 4])
        return helper.make_graph([node("Add", f"h {name}", f"{name}_y")], name, [], [inner])

    nodes = [*dense("x", "h", "w"), *dense("h", "one", "w"), node("Neg", "one", "two")]
    nodes.append(helper.make_node("If", ["c"], ["z"], then_branch=branch("one"), else_branch=branch("two")))
    inputs = {"x": [3, 4], "c": []}
    model = build(nodes, inputs, {"z": [3, 4]}, {"w": normal(4, 4)}, elements={"c": TensorProto.BOOL})
    result = static(model)
    assert result.report.changed
    assert not wrong(model, result, {"x": normal(3, 4), "c": np.array(True)})
    assert not wrong(model, result, {"x": normal(3, 4), "c": np.array(False)})


def test_opaque_nodes_between_regions_keep_their_bytes() -> None:
    opaque = node("Gelu", "a", "b", domain="com.microsoft")
    random = [node("RandomNormalLike", "b", f"n{i}") for i in range(2)]
    nodes = [*dense("x", "a", "w"), opaque, *random, node("Sub", "n0 n1", "d"), *dense("b", "y", "w")]
    model = build(nodes, {"x": [3, 4]}, {"y": [3, 4], "d": [3, 4]}, {"w": normal(4, 4)}, domains=["com.microsoft"])
    result = static(model)
    assert result.report.changed
    assert not result.report.reverted
    types = {value.name: value.type.tensor_type for value in result.model.graph.value_info}
    assert [d.dim_value for d in types["a"].shape.dim] == [3, 4]  # runtimes infer no shapes through kernels
    kept = [n.SerializeToString() for n in result.model.graph.node]
    assert all(n.SerializeToString() in kept for n in (opaque, *random))
    y, difference = onnxruntime.run(result.session(), {"x": normal(3, 4)})
    assert np.allclose(y, answers(model, {"x": normal(3, 4)})[0], atol=1e-4)
    assert np.any(difference != 0)


@pytest.mark.parametrize("shape", [[0, 4], [1, 4]])
def test_empty_tensors(shape: list[int]) -> None:
    model = build(dense("x", "y", "w"), {"x": shape}, {"y": shape}, {"w": normal(4, 4)})
    assert not wrong(model, static(model), {"x": normal(*shape)})


def test_nan_and_infinite_weights() -> None:
    weights = normal(4, 4)
    weights[1, 2], weights[3, 0] = np.nan, np.inf
    model = build(dense("x", "y", "w"), {"x": [3, 4]}, {"y": [3, 4]}, {"w": weights})
    assert not wrong(model, static(model), {"x": normal(3, 4)})


def test_outputs_that_are_inputs_constants_or_each_other() -> None:
    nodes = [*dense("x", "y", "w"), node("Identity", "y", "again"), node("Identity", "x", "z")]
    outputs = {"y": [3, 4], "again": [3, 4], "z": [3, 4], "w": [4, 4], "y_r": [3, 4], "x": [3, 4]}
    model = build(nodes, {"x": [3, 4]}, outputs, {"w": normal(4, 4)})
    result = static(model)
    assert result.report.changed
    assert signature(result.model) == signature(model)
    assert not wrong(model, result, {"x": normal(3, 4)})


def test_graphs_without_nodes() -> None:
    model = build([], {"x": [3, 4]}, {"x": [3, 4]})
    result = static(model)
    assert result.report.unchanged_because
    assert result.model == model


def test_unknown_dimensions_pass_through() -> None:
    model = build(dense("x", "y", "w"), {"x": ["batch", 4]}, {"y": ["batch", 4]}, {"w": normal(4, 4)})
    result = static(model)
    assert signature(result.model) == signature(model)
    assert not wrong(model, result, {"x": normal(5, 4)})


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 18, 21])
@pytest.mark.parametrize("portable", [False, True])
def test_operators_are_legal_at_the_opset_of_the_model(opset: int, portable: bool) -> None:
    nodes = [
        node("ConvTranspose", "x w", "a", strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Relu", "a", "b"),
        node("Conv", "b v", "c", dilations=[2, 2], pads=[2, 2, 2, 2]),
        node("MaxPool", "c", "d", kernel_shape=[2, 2], strides=[2, 2]),
        node("Softmax", "d", "y", axis=3),
    ]
    weights = {"w": normal(3, 4, 4, 4), "v": normal(4, 4, 3, 3)}
    inputs, outputs = {"x": [1, 3, 5, 5]}, {"y": [1, 4, 5, 5]}
    if opset < 9:  # every initializer is an input there
        inputs |= {name: list(value.shape) for name, value in weights.items()}
    model = build(nodes, inputs, outputs, weights, opset=opset, ir_version=3 if opset < 9 else 7)
    result = static(model, portable=portable)
    assert result.report.changed
    assert [entry.version for entry in result.model.opset_import if not entry.domain] == [opset]
    assert result.model.ir_version == model.ir_version
    assert not wrong(model, result, {"x": normal(1, 3, 5, 5)})
    if portable:
        assert result.library is None
        assert all(not entry.domain for entry in result.model.graph.node)
        onnx.checker.check_model(result.model, full_check=True)


NAMES = ["r0s0", "#1", "egraph_opt/0/r0s1", 'quo"te\\', "new\nline", "k_0", "Ünïcode", " ", "a" * 5000, "in0", "r0s0/0"]


@pytest.mark.parametrize("portable", [False, True])
def test_hostile_names(portable: bool) -> None:
    names = ["x", *NAMES, "y"]
    nodes = []
    for one, other in pairwise(names):
        p, r = f"r1s{len(nodes)}", f"r1s{len(nodes)}/y"
        nodes += [
            helper.make_node("MatMul", [one, "(w)"], [p]),
            helper.make_node("Relu", [p], [r]),
            helper.make_node("Add", [r, one], [other]),
        ]
        nodes[-1].name, nodes[-2].name = other, f"{other}'"
    outputs = {name: [3, 4] for name in (*NAMES[::3], "y")}
    model = build(nodes, {"x": [3, 4]}, outputs, {"(w)": normal(4, 4) / 4})
    result = static(model, portable=portable)
    assert result.report.changed
    assert not result.report.reverted
    assert not wrong(model, result, {"x": normal(3, 4)})


def test_prefixes_are_free() -> None:
    assert free_prefix(["relu", "x"]) == "r"
    assert free_prefix(["r0s0", "rr1", "rrx"]) == "rrr"


def test_integer_inputs_that_are_indices() -> None:
    nodes = [node("Gather", "table i", "x", axis=0), *dense("x", "y", "w")]
    weights = {"table": normal(1, 4), "w": normal(4, 4)}  # index 1 would be out of bounds
    model = build(nodes, {"i": [3]}, {"y": [3, 4]}, weights, elements={"i": INT64})
    result = static(model)
    assert result.report.changed
    assert result.report.accuracy is not None
    assert not wrong(model, result, {"i": np.zeros(3, np.int64)})


def test_models_that_run_on_no_input_we_know_come_back_unchanged() -> None:
    nodes = [*dense("x", "a", "w"), node("Gather", "a i", "b", axis=0), node("Reshape", "b s", "y", allowzero=1)]
    elements = {"i": INT64, "s": INT64}
    model = build(nodes, {"x": [3, 4], "i": [2], "s": [2]}, {"y": None}, {"w": normal(4, 4)}, elements=elements)
    result = static(model)
    assert "nothing could be verified" in result.report.unchanged_because
    assert result.model == model
    feeds = {"x": normal(3, 4), "i": np.array([2, 0]), "s": np.array([4, 2])}
    assert not wrong(model, result, feeds)


def test_sequences_as_inputs_come_back_unchanged() -> None:
    nodes = [*dense("x", "a", "w"), node("SequenceInsert", "q a", "s"), node("SequenceAt", "s zero", "y")]
    model = build(nodes, {"x": [3, 4]}, {"y": None}, {"w": normal(4, 4), "zero": np.array(0)})
    model.graph.input.append(helper.make_tensor_sequence_value_info("q", FLOAT, None))
    result = static(model)
    assert "no random values can be drawn" in result.report.unchanged_because
    assert result.model == model


def test_integer_outputs_and_several_types() -> None:
    nodes = [*dense("x", "a", "w"), node("ArgMax", "a", "y", axis=1), node("Cast", "a", "z", to=TensorProto.DOUBLE)]
    elements = {"y": INT64, "z": TensorProto.DOUBLE}
    model = build(nodes, {"x": [3, 4]}, {"y": [3, 1], "z": [3, 4]}, {"w": normal(4, 4)}, elements=elements)
    result = static(model)
    assert result.report.changed
    assert onnxruntime.run(result.session(), {"x": normal(3, 4)})[0].dtype == np.int64


def test_long_chains_end() -> None:
    operators = ["Tanh", "Neg", "Relu"]
    nodes = [node(operators[i % 3], f"t{i}", f"t{i + 1}") for i in range(1500)]
    model = build(nodes, {"t0": [2, 3]}, {"t1500": [2, 3]})
    result = static(model)
    assert not wrong(model, result, {"t0": normal(2, 3)})


def test_models_that_onnxruntime_does_not_load_are_rejected() -> None:
    model = build(
        [node("Nothing", "x", "y", domain="no.such.domain")], {"x": [2]}, {"y": [2]}, domains=["no.such.domain"]
    )
    with pytest.raises(InputRejected, match=r"^graph does not load in onnxruntime: ") as failure:
        static(model)
    assert "egraph-opt-" not in str(failure.value)  # the name of a temporary folder says nothing


@pytest.mark.parametrize("options", [{"cost": "guessed"}, {"target": "tpu"}, {"verify": -1}, {"threads": 0}])
def test_wrong_options(options: dict[str, object]) -> None:
    model = build([node("Relu", "x", "y")], {"x": [2]}, {"y": [2]})
    with pytest.raises(UsageError):
        optimize(model, **options)
