"""An ONNX model piece by piece: read, saturate within budgets, look at the statistics, extract, write, compare."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import egraph_opt
from egraph_opt import EGraph


def upscaler() -> onnx.ModelProto:
    """ConvTranspose, Relu and Conv with drawn weights."""
    draw = np.random.default_rng(0)
    shapes = {"w": (16, 8, 4, 4), "v": (3, 8, 3, 3)}
    weights = [numpy_helper.from_array(draw.standard_normal(s, dtype=np.float32) / 8, n) for n, s in shapes.items()]
    nodes = [
        helper.make_node("ConvTranspose", ["x", "w"], ["up"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["up"], ["act"]),
        helper.make_node("Conv", ["act", "v"], ["y"], pads=[1, 1, 1, 1]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 16, 16])
    graph = helper.make_graph(nodes, "upscaler", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def agree(one: onnx.ModelProto, other: onnx.ModelProto) -> bool:
    """Whether both compute the same in onnxruntime."""
    return egraph_opt.check(one.SerializeToString(), other.SerializeToString()).equal


def main() -> None:
    original = upscaler()
    model = EGraph.of_model(original)
    assert len(model) == 1
    assert not model.outside  # no node is outside the algebra

    (saturation,) = model.saturate(enodes=20_000, seconds=20)
    print(saturation)  # e-nodes of every round, matches and e-nodes of every rule
    assert saturation.stop == "saturated"
    (egraph,) = model
    assert {"ConvTranspose", "MatMul"} <= set(egraph.members("up").operators)
    assert not egraph.judge().mismatches

    program = model.extract()  # by static cost, in standard operators
    print(program)
    assert agree(original, program.to_onnx())

    # A run that hits a budget still extracts.
    hasty = EGraph.of_model(original)
    (saturation,) = hasty.saturate(enodes=300)
    print("stopped by the limit of", saturation.stop)
    assert saturation.stop == "e-nodes"
    assert agree(original, hasty.extract().to_onnx())


if __name__ == "__main__":
    main()
