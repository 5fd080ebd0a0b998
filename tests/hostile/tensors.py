"""Shapes and tensors that are wrong."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.hostile.build import (
    FLOAT,
    Case,
    Maker,
    build,
    case,
    content,
    good,
    images,
    node,
    one,
    spoiled,
    tensor,
    weighted,
)


def dims(*shape: int) -> onnx.ModelProto:
    """relu(x) @ x for an x of this declared shape."""
    return build([node("Relu", "x", "r"), node("Mul", "r x", "y")], {"x": shape}, {"y": None})


def pooled(length: int, operator: str = "MaxPool") -> onnx.ModelProto:
    """Windows over one very long axis, whose number nobody may write down one by one."""
    nodes = [node(operator, "x", "a", kernel_shape=[2]), node("Neg", "a", "y")]
    return build(nodes, {"x": [1, 1, length]}, {"y": None})


def mirrored() -> onnx.ModelProto:
    nodes = [node("Pad", "x p", "a", mode="reflect"), node("Neg", "a", "y")]
    return build(nodes, {"x": [2**32]}, {"y": None}, {"p": np.array([1, 1])})


def shape(operator: str, values: list[int], **attributes: int) -> Maker:
    return one(operator, "x s", weights={"s": np.array(values, np.int64)}, **attributes)


FLOATS = np.arange(6, dtype=np.float32)
SHAPES = (
    case("dimension of 0", 0, "written", content(lambda: dims(0, 4))),
    case("negative dimension", (0, 3), "", content(lambda: dims(-1, 4))),
    case("dimensions of terabytes", (0, 3), "", content(lambda: dims(2**20, 2**20))),
    case("dimensions that overflow", (0, 3), "", content(lambda: dims(2**40, 2**40))),
    case("dimension beyond all bounds", (0, 3), "", content(lambda: dims(2**63 - 1))),
    case("pooling of gigabytes", (0, 3), "", content(lambda: pooled(2**31 - 1))),
    case("averages of gigabytes", (0, 3), "", content(lambda: pooled(2**33, "AveragePool"))),
    case("mirrored gigabytes", (0, 3), "", content(mirrored)),
    case("rank 500", (0, 3), "", content(lambda: dims(*[1] * 500))),
    case("reshape that overflows", 3, "", shape("Reshape", [2**40, 2**40])),
    case("reshape to two unknowns", 3, "", shape("Reshape", [-1, -1])),
    case("reshape below unknown", 3, "", shape("Reshape", [-7, 8])),
    case("reshape to another size", (0, 3), "", shape("Reshape", [3, 3])),
    case("tile of terabytes", (0, 3), "", shape("Tile", [2**40, 2**20])),
    case("negative tile", (0, 3), "", shape("Tile", [-1, 1])),
    case("expand to terabytes", (0, 3), "", shape("Expand", [2**20, 2**20, 2, 4])),
    case("expand that overflows", (0, 3), "", shape("Expand", [2**40, 2**40, 2, 4])),
    case("padding of a tensor beyond all bounds", (0, 3), "", shape("Pad", [0, 2**62, 0, 2**62])),
    case("padding that leaves less than nothing", (0, 3), "", shape("Pad", [0, -9, 0, -9])),
    case("split into other sizes", 3, "", shape("Split", [1, 7], axis=1)),
    case("squeeze of what is not 1", 3, "", shape("Squeeze", [1])),
    case("gather out of range", (0, 3), "", shape("Gather", [99, -99])),
    case("slice without step", 3, "", one("Slice", "x a b z c", weights={"a": [0], "b": [1], "z": [1], "c": [0]})),
    case(
        "slice from the lowest number",
        (0, 3),
        "",
        one("Slice", "x a b z c", weights={"a": [2**63 - 1], "b": [-(2**63)], "z": [1], "c": [-(2**63)]}),
    ),
    case(
        "negative count of largest", 3, "", spoiled(lambda m: None, [node("TopK", "x s", "v y")], {"s": np.array([-3])})
    ),
    case("resize beyond all bounds", (0, 3), "", images("Resize", {"s": np.full(4, 1e30, np.float32)}, "x  s")),
    case("resize to terabytes", (0, 3), "", images("Resize", {"s": np.array([1, 2, 2**20, 2**20])}, "x   s")),
    case("resize by no number", (0, 3), "", images("Resize", {"s": np.full(4, np.nan, np.float32)}, "x  s")),
)

TENSORS = (
    case("weights that are no numbers", 0, "written", content(lambda: good(np.full((4, 3), np.nan, np.float32)))),
    case("weights that are infinite", 0, "written", content(lambda: good(np.full((4, 3), -np.inf, np.float32)))),
    case("weights that are denormal", 0, "written", content(lambda: good(np.full((4, 3), 1e-45, np.float32)))),
    case("weights of size 0", (0, 3), "", content(lambda: good(np.zeros((4, 0), np.float32)))),
    case("tensor of negative size", 3, "negative dimension", weighted(tensor("w", FLOAT, [-2, 3]))),
    case("tensor that overflows", 3, "too many elements", weighted(tensor("w", FLOAT, [2**40, 2**40]))),
    case("tensor that overflows to 0", 3, "", weighted(tensor("w", FLOAT, [2**32, 2**32]))),
    case("tensor without content", 3, "", weighted(tensor("w", FLOAT, [2, 3]))),
    case("tensor of too few bytes", 3, "", weighted(tensor("w", FLOAT, [2, 3], raw_data=bytes(20)))),
    case("tensor of too many bytes", 3, "", weighted(tensor("w", FLOAT, [2, 3], raw_data=bytes(28)))),
    case("tensor of too few floats", 3, "", weighted(tensor("w", FLOAT, [2, 3], float_data=[1.0, 2.0]))),
    case("tensor in the field of another type", 3, "", weighted(tensor("w", FLOAT, [2, 3], int32_data=[1] * 6))),
    case(
        "tensor twice in one",
        (0, 3),
        "",
        weighted(tensor("w", FLOAT, [2, 3], raw_data=bytes(24), float_data=[1.0] * 6)),
    ),
    case("tensor of no type", 3, "data type 0", weighted(tensor("w", 0, [2, 3], raw_data=bytes(24)))),
    case("tensor of an unknown type", 3, "data type 99", weighted(tensor("w", 99, [2, 3], raw_data=bytes(24)))),
    case("tensor of texts", 3, "", weighted(tensor("w", TensorProto.STRING, [6], string_data=[b"a"] * 6))),
    case("texts in raw bytes", 3, "", weighted(tensor("w", TensorProto.STRING, [6], raw_data=b"aaaaaa"), 8)),
    case(
        "texts that are none",
        (0, 3),
        "",
        weighted(tensor("w", TensorProto.STRING, [3], string_data=[b"\xff\xfe"] * 3), 8),
    ),
    case("complex numbers", 3, "", weighted(tensor("w", TensorProto.COMPLEX64, [1], raw_data=bytes(8)), 14)),
    case("half of a 4-bit tensor", 3, "", weighted(tensor("w", TensorProto.INT4, [2, 3], raw_data=bytes(1)), 22)),
    case("tensor in segments", 3, "", content(lambda: segmented())),
    case(
        "constant of too few bytes",
        3,
        "",
        spoiled(
            lambda m: None, [helper.make_node("Constant", [], ["y"], value=tensor("c", FLOAT, [9], raw_data=b"1"))]
        ),
    ),
    case(
        "constant of negative size",
        3,
        "",
        spoiled(
            lambda m: None, [helper.make_node("Constant", [], ["y"], value=tensor("c", FLOAT, [-9], raw_data=b""))]
        ),
    ),
    case(
        "constant that overflows",
        3,
        "",
        spoiled(lambda m: None, [helper.make_node("Constant", [], ["y"], value=tensor("c", FLOAT, [2**40, 2**40]))]),
    ),
    case("sparse tensor out of range", (0, 3), "", content(lambda: sparse([1, 99], [3]))),
    case("sparse tensor out of order", (0, 3), "", content(lambda: sparse([2, 0], [3]))),
    case("sparse tensor with a negative index", (0, 3), "", content(lambda: sparse([-1, 0], [3]))),
    case("sparse tensor of terabytes", (0, 3), "", content(lambda: sparse([0, 1], [2**40]))),
    case("sparse tensor that overflows", (0, 3), "", content(lambda: sparse([0, 1], [2**40, 2**40]))),
    case("sparse tensor without name", 3, "is empty", content(lambda: sparse([0, 1], [3], name=""))),
    case("sparse tensor of two sizes", (0, 3), "", content(lambda: sparse([0, 1, 2, 2], [3]))),
)


def segmented() -> onnx.ModelProto:
    model = good()
    model.graph.initializer[0].segment.begin, model.graph.initializer[0].segment.end = -5, 2**62
    return model


def sparse(indices: list[int], shape: list[int], name: str = "w") -> onnx.ModelProto:
    """x + w for a sparse w of two values."""
    model = build([node("Add", "x w", "y")], {"x": [3]}, {"y": None})
    values = numpy_helper.from_array(np.ones(2, np.float32), name)
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, numpy_helper.from_array(np.array(indices, np.int64), "i"), shape)
    )
    return model


CASES: tuple[Case, ...] = SHAPES + TENSORS
