"""The memory of intermediate buffers, by what a loaded model knows of its tensors."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from egraph_opt.frontends import onnx_reader
from egraph_opt.frontends.onnx_memory import beside, peak_of
from tests.pipeline.support import build, node

LARGE = 4 * 512


def computed() -> onnx.ModelProto:
    """The shape of z is computed from that of x; a wrong one is written in the model."""
    nodes = [node("Shape", "x", "extents"), node("Expand", "one extents", "z"), node("Relu", "z", "y")]
    model = build(nodes, {"x": [512]}, {"y": [512]}, {"one": np.float32(1)})
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [7]))
    return model


def test_sizes_are_those_that_were_found_when_the_model_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = onnx_reader.load(computed())

    def again(*_: object, **__: object) -> None:
        raise AssertionError("shapes are inferred again")

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", again)
    assert peak_of(loaded) == 2 * LARGE
    assert [beside(loaded, {position}) for position in range(3)] == [0, 8, LARGE]


def test_a_model_made_of_another_one_knows_its_sizes() -> None:
    made = build(
        [node("Expand", "one extents", "z"), node("Exp", "z", "y")], {"x": [512]}, {"y": [512]}, {"one": np.float32(1)}
    )
    assert peak_of(onnx_reader.rebuilt(made, onnx_reader.load(computed()))) == 2 * LARGE


def test_one_unknown_size_makes_the_whole_unknown() -> None:
    loaded = onnx_reader.load(build([node("Relu", "x", "y")], {"x": ["N", 4]}, {"y": ["N", 4]}))
    assert peak_of(loaded) is None
    assert beside(loaded, {0}) == 0
