"""Models that choose their program by the shape of their inputs. Their programs differ, so tests see which one ran."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from egraph_opt.backends.onnxruntime import make_session
from egraph_opt.errors import UsageError
from egraph_opt.frontends import onnx_dispatch
from egraph_opt.frontends.onnx_dispatch import dispatch
from egraph_opt.frontends.onnx_symbols import bind, input_shapes, lengths_of, symbols
from tests.pipeline.support import build, node


def scaled(factor: float, *, opset: int = 17, ir_version: int = 8) -> onnx.ModelProto:
    """y = relu(x) * factor, x is [N, 3]."""
    nodes = [node("Relu", "x", "a"), node("Mul", "a w", "y")]
    weights = {"w": np.full((3,), factor, np.float32)}
    inputs: dict[str, Sequence[int | str]] = {"x": ["N", 3]}
    model = build(nodes, inputs, {"y": ["N", 3]}, weights, opset=opset, ir_version=ir_version)
    if ir_version < 4:
        model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [3]))
    return model


def run(model: onnx.ModelProto, feeds: Mapping[str, Any]) -> list[np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    return list(make_session(model.SerializeToString(), threads=1).run(None, dict(feeds)))


def factor(model: onnx.ModelProto, length: int) -> float:
    (found,) = run(model, {"x": np.ones((length, 3), np.float32)})
    assert found.shape == (length, 3)
    return float(found[0, 0])


@pytest.mark.parametrize(("opset", "ir_version"), [(7, 3), (9, 4), (13, 7), (18, 8), (21, 10)])
def test_every_length_runs_its_program(opset: int, ir_version: int) -> None:
    original, two, five = (scaled(f, opset=opset, ir_version=ir_version) for f in (1.0, 2.0, 5.0))
    model = dispatch(original, [({"N": 2}, two), ({"N": 5}, five)])
    assert [factor(model, n) for n in (1, 2, 3, 5, 6)] == [1.0, 2.0, 1.0, 5.0, 1.0]
    assert (model.ir_version, model.opset_import[0].version) == (ir_version, opset)
    for values in (model.graph.output, original.graph.output):
        assert [(v.name, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]) for v in values] == [
            ("y", ["N", 3])
        ]


def test_an_opset_without_comparisons_is_refused() -> None:
    with pytest.raises(UsageError, match="opset 6 has no operators to choose by shape; opset 7 has"):
        dispatch(scaled(1.0, opset=6), [({"N": 2}, scaled(2.0, opset=6))])


@pytest.mark.parametrize("ir_version", [3, 8])
def test_weights_of_large_models_are_shared(monkeypatch: pytest.MonkeyPatch, ir_version: int) -> None:
    monkeypatch.setattr(onnx_dispatch, "LARGEST_MODEL", 0)
    original, two, same = (scaled(f, ir_version=ir_version) for f in (1.0, 2.0, 1.0))
    model = dispatch(original, [({"N": 2}, two), ({"N": 5}, same)])
    assert [factor(model, n) for n in (1, 2, 5)] == [1.0, 2.0, 1.0]
    weights = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    assert sum(weight.dtype == np.float32 for weight in weights) == 2  # that of the original serves N=5, too


def test_a_dimension_with_two_lengths_runs_the_original() -> None:
    """Nothing checks that N is the same in both inputs; here one of them is spread over the other."""

    def product(operator: str) -> onnx.ModelProto:
        return build([node(operator, "a b", "y")], {"a": ["N", 3], "b": ["N", 3]}, {"y": ["M", 3]})

    model = dispatch(product("Add"), [({"N": 2}, product("Mul"))])
    three = np.full((2, 3), 3, np.float32)
    assert run(model, {"a": three, "b": three})[0].tolist() == (three * three).tolist()
    assert run(model, {"a": three, "b": three[:1]})[0].tolist() == (three + three).tolist()


def test_several_dimensions_must_all_fit() -> None:
    def model_of(operator: str) -> onnx.ModelProto:
        shape = ["N", 1, "L"]
        return build([node(operator, "x", "y")], {"x": shape, "z": ["L"]}, {"y": shape, "z": ["L"]})

    model = dispatch(model_of("Neg"), [({"N": 2, "L": 3}, model_of("Abs"))])
    for n, length, expected in ((2, 3, 1.0), (2, 4, -1.0), (1, 3, -1.0)):
        feeds = {"x": np.ones((n, 1, length), np.float32), "z": np.ones((length,), np.float32)}
        found, untouched = run(model, feeds)
        assert found.tolist() == np.full((n, 1, length), expected).tolist(), f"N={n}, L={length}"
        assert untouched.shape == (length,)


def test_defaults_of_inputs_stay_overridable_and_names_inside_subgraphs_follow() -> None:
    """w is an input with a default; the If inside captures y, an output of the model."""

    def model_of(operator: str) -> onnx.ModelProto:
        def branch(inner: str) -> onnx.GraphProto:
            info = [helper.make_tensor_value_info("z_inside", TensorProto.FLOAT, None)]
            return helper.make_graph([node(inner, "y", "z_inside")], "branch", [], info)

        nodes = [node(operator, "x w", "y"), helper.make_node("If", ["c"], ["z"])]
        for name, inner in (("then_branch", "Neg"), ("else_branch", "Abs")):
            nodes[1].attribute.append(helper.make_attribute(name, branch(inner)))
        inputs: dict[str, Sequence[int | str]] = {"x": ["N"], "w": [1], "c": []}
        weights = {"w": np.asarray([4], np.float32)}
        return build(nodes, inputs, {"y": ["N"], "z": ["N"]}, weights, elements={"c": TensorProto.BOOL})

    model = dispatch(model_of("Add"), [({"N": 2}, model_of("Mul"))])
    for n, w, expected in ((2, None, 12.0), (3, None, 7.0), (2, 5.0, 15.0), (1, 5.0, 8.0)):
        feeds: dict[str, Any] = {"x": np.full((n,), 3, np.float32), "c": np.asarray(True)}
        if w is not None:
            feeds["w"] = np.asarray([w], np.float32)
        y, z = run(model, feeds)
        assert (y.tolist(), z.tolist()) == ([expected] * n, [-expected] * n)


def test_symbols_are_named_by_where_they_stand() -> None:
    model = build([node("Add", "a b", "y")], {"a": ["N", 3], "b": ["N", "M"]}, {"y": ["N", 3]})
    model.graph.input[1].type.tensor_type.shape.dim[1].Clear()
    assert symbols(model) == {"N": (("a", 0), ("b", 0)), "b[1]": (("b", 1),)}
    assert lengths_of(model, "b", (4, 1)) == {"N": 4, "b[1]": 1}
    assert input_shapes(model, {"b[1]": 3}) == {"b": [1, 3]}
    bound = bind(model, {"N": 4, "b[1]": 3})
    shapes = [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*bound.graph.input, *bound.graph.output)]
    assert shapes == [[4, 3], [4, 3], [4, 3]]
    assert symbols(model), "the model itself stays as it is"
    with pytest.raises(UsageError, match=r"no symbolic dimension 'K'; they have N, b\[1\]"):
        bind(model, {"K": 1})
    with pytest.raises(UsageError, match=r"input 'a' has the shape \['N', 3\], not \[2, 4\]"):
        lengths_of(model, "a", (2, 4))
