"""Small models of every kind that the fuzzer starts from."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.hostile.build import branches, functions, graph
from tests.pipeline.support import INT64, band_attention, build, chain_of_regions, drawn, node, normal

IMAGE = {"x": [1, 4, 6, 6]}


def convolutions() -> onnx.ModelProto:
    nodes = [
        node("Conv", "x v b", "c", pads=[1, 1, 1, 1]),
        node("BatchNormalization", "c b b b s", "n"),
        node("Clip", "n low high", "k"),
        node("ConvTranspose", "k v", "t", strides=[2, 2], pads=[1, 1, 1, 1]),
        node("MaxPool", "t", "m", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
        node("Add", "m x", "y", name="residual"),
    ]
    weights = {"v": normal(4, 4, 3, 3), "b": normal(4), "s": np.abs(normal(4)) + 1}
    return build(nodes, IMAGE, {"y": None}, weights | {"low": np.float32(0), "high": np.float32(6)})


def grouped() -> onnx.ModelProto:
    nodes = [
        node("Conv", "x v", "c", group=2, auto_pad="SAME_UPPER"),
        node("PRelu", "c s", "p"),
        node("AveragePool", "p", "a", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
        node("GlobalAveragePool", "a", "g"),
        node("Flatten", "g", "f"),
        node("Gemm", "f w b", "y", alpha=0.5, transB=1),
    ]
    weights = {"v": normal(4, 2, 3, 3), "s": normal(4, 1, 1), "w": normal(3, 4), "b": normal(3)}
    return build(nodes, IMAGE, {"y": [1, 3]}, weights)


def normalizations() -> onnx.ModelProto:
    nodes = [
        node("LayerNormalization", "x s b", "l", axis=-1),
        node("InstanceNormalization", "l c c", "i"),
        node("Softmax", "i", "p", axis=1),
        node("ReduceMean", "p axes", "m", keepdims=1),
        node("Div", "p m", "y"),
    ]
    weights = {"s": normal(6), "b": normal(6), "c": normal(4), "axes": np.array([1, 3])}
    return build(nodes, IMAGE, {"y": [1, 4, 6, 6]}, weights, opset=18)


def moves() -> onnx.ModelProto:
    nodes = [
        node("Transpose", "x", "a", perm=[0, 2, 3, 1]),
        node("Slice", "a from to axes steps", "b"),
        node("Pad", "b pads", "c", mode="reflect"),
        node("Split", "c halves", "d e", axis=3),
        node("Concat", "e d", "f", axis=2),
        node("Unsqueeze", "f zero", "g"),
        node("Squeeze", "g zero", "h"),
        node("Tile", "h repeats", "i"),
        node("Gather", "i index", "j", axis=1),
        node("Expand", "j shape", "k"),
        node("Relu", "k", "r"),
        node("Mul", "r k", "y"),
    ]
    weights = {
        "from": np.array([0, 5]), "to": np.array([6, -7]), "axes": np.array([1, 2]), "steps": np.array([2, -1]),
        "pads": np.array([0, 1, 1, 0, 0, 1, 1, 0]), "halves": np.array([2, 2]), "zero": np.array([0]),
        "repeats": np.array([1, 2, 1, 1]), "index": np.array([[0, -1]]), "shape": np.array([2, 1, 1, 1, 1, 1]),
    }  # fmt: skip
    return build(nodes, IMAGE, {"y": None}, weights)


def computed_shapes() -> onnx.ModelProto:
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s zero", "n", axis=0),
        node("Unsqueeze", "n axes", "u"),
        node("Concat", "u rest", "t", axis=0),
        node("Reshape", "x t", "r"),
        node("MatMul", "r w", "p"),
        node("Tanh", "p", "q"),
        node("ConstantOfShape", "s", "z"),
        node("Cast", "z", "f", to=TensorProto.FLOAT),
        node("Sub", "q q", "d"),
        node("Sum", "q d", "y"),
    ]
    weights = {"zero": np.array(0), "axes": np.array([0]), "rest": np.array([-1]), "w": normal(144, 5)}
    return build(nodes, IMAGE, {"y": None, "f": None}, weights)


def attention() -> onnx.ModelProto:
    nodes = [
        node("MatMul", "x q", "a"),
        node("MatMul", "x k", "b"),
        node("Transpose", "b", "t", perm=[0, 2, 1]),
        node("MatMul", "a t", "s"),
        node("Mul", "s scale", "h"),
        node("Where", "mask h low", "m"),
        node("Softmax", "m", "p"),
        node("Einsum", "p x", "e", equation="bij,bjk->bik"),
        node("Gelu", "e", "g"),
        node("Add", "g x", "y"),
    ]
    weights = {"q": normal(6, 3), "k": normal(6, 3), "scale": np.float32(0.5), "low": np.float32(-1e9)}
    elements = {"mask": TensorProto.BOOL}
    return build(nodes, {"x": [2, 4, 6], "mask": [4, 4]}, {"y": None}, weights, opset=20, elements=elements)


def pointwise() -> onnx.ModelProto:
    operators = [
        "Neg",
        "Abs",
        "Exp",
        "Log",
        "Sqrt",
        "Erf",
        "Sigmoid",
        "HardSwish",
        "LeakyRelu",
        "Softplus",
        "Reciprocal",
    ]
    nodes = [node(operator, f"t{i}", f"t{i + 1}") for i, operator in enumerate(operators)]
    nodes += [node("Pow", f"t{len(operators)} two", "u"), node("Min", "u t3 t5", "v"), node("Max", "v t1", "y")]
    return build(nodes, {"t0": [3, 1, 5]}, {"y": None, "t4": None}, {"two": np.float32(2)})


def control() -> onnx.ModelProto:
    nodes = [
        node("MatMul", "x w", "h"),
        node("Relu", "h", "r"),
        branches(graph([node("Add", "r x", "z"), node("Mul", "z x", "u")], ["u"]), "i"),
        node("Greater", "i x", "g"),
        node("Where", "g i r", "y"),
    ]
    return build(nodes, {"x": [3, 4]}, {"y": None}, {"w": normal(4, 4), "c": np.array(True)})


def repeated() -> onnx.ModelProto:
    inputs = [
        helper.make_tensor_value_info("i", INT64, []),
        helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        helper.make_tensor_value_info("v", TensorProto.FLOAT, [2, 4]),
    ]
    outputs = [helper.make_tensor_value_info("again", TensorProto.BOOL, []), inputs[2].__class__()]
    outputs[1].CopyFrom(inputs[2])
    outputs[1].name = "u"
    body = helper.make_graph([node("Identity", "go", "again"), node("MatMul", "v w", "u")], "body", inputs, outputs)
    nodes = [
        node("Relu", "x", "r"),
        helper.make_node("Loop", ["trips", "c", "r"], ["l"], body=body),
        node("Sigmoid", "l", "s"),
        node("Mul", "s l", "y"),
    ]
    weights = {"w": normal(4, 4) / 2, "trips": np.array(3), "c": np.array(True)}
    return build(nodes, {"x": [2, 4]}, {"y": None}, weights)


def types() -> onnx.ModelProto:
    nodes = [
        node("Cast", "x", "h", to=TensorProto.FLOAT16),
        node("Mul", "h h", "q"),
        node("Cast", "q", "f", to=TensorProto.FLOAT),
        node("Cast", "x", "i", to=TensorProto.INT32),
        node("Div", "i three", "d"),
        node("Cast", "d", "e", to=TensorProto.FLOAT),
        node("Add", "e f", "s"),
        node("ArgMax", "s", "a", axis=1),
        node("TopK", "s k", "v j", axis=1),
        node("Tanh", "v", "y"),
    ]
    weights = {"three": np.array(3, np.int32), "k": np.array([2])}
    return build(nodes, {"x": [3, 4]}, {"y": None, "a": None}, weights, elements={"a": INT64})


def quantized() -> onnx.ModelProto:
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        node("DequantizeLinear", "q s z", "d"),
        node("MatMul", "d w", "p"),
        node("Relu", "p", "y"),
    ]
    return build(nodes, {"x": [3, 4]}, {"y": None}, {"s": np.float32(0.1), "z": np.uint8(9), "w": normal(4, 4)})


def local() -> onnx.ModelProto:
    model = functions({"main": ["f", "f"], "f": ["Neg", "Neg"]})
    model.graph.node.extend([node("Exp", "y", "e"), node("Mul", "e y", "z")])
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    return model


def overridable() -> onnx.ModelProto:
    nodes = [node("MatMul", "x w", "p"), node("Relu", "p", "r"), node("Dropout", "r", "d"), node("Add", "d x", "y")]
    return build(nodes, {"x": ["n", 4], "w": [4, 4]}, {"y": ["n", 4]}, {"w": normal(4, 4)})


def old() -> onnx.ModelProto:
    nodes = [
        node("Conv", "x v", "c", pads=[1, 1, 1, 1]),
        node("Clip", "c", "k", min=-1.0, max=1.0),
        node("Slice", "k", "s", starts=[0], ends=[2], axes=[1]),
        node("Upsample", "s", "u", scales=[1.0, 1.0, 2.0, 2.0], mode="nearest"),
        node("Pad", "u", "p", pads=[0, 0, 1, 1, 0, 0, 1, 1]),
        node("Softmax", "p", "y", axis=1),
    ]
    inputs = IMAGE | {"v": [3, 4, 3, 3]}
    return build(nodes, inputs, {"y": None}, {"v": normal(3, 4, 3, 3)}, opset=7, ir_version=3)


def constants() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(normal(4, 4), "w")),
        helper.make_node("Constant", [], ["two"], value_float=2.0),
        helper.make_node("Constant", [], ["shape"], value_ints=[4, -1]),
        node("Mul", "w two", "v"),
        node("MatMul", "x v", "p"),
        node("Reshape", "p shape", "r"),
        node("Neg", "r", "y"),
    ]
    return build(nodes, {"x": [3, 4]}, {"y": None})


MAKERS: dict[str, Callable[[], onnx.ModelProto]] = {
    maker.__name__: maker
    for maker in (
        convolutions, grouped, normalizations, moves, computed_shapes, attention, pointwise, control, repeated, types,
        quantized, local, overridable, old, constants, band_attention,
    )
}  # fmt: skip
MAKERS |= {f"drawn {seed}": partial(drawn, seed) for seed in range(6)} | {"regions": partial(chain_of_regions, 2)}


@cache
def seeds() -> tuple[tuple[str, bytes], ...]:
    """Name and content of each."""
    return tuple((name, make().SerializeToString()) for name, make in MAKERS.items())
