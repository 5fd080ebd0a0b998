"""Attributes of the wrong type, missing, or with values that no operator has."""

from __future__ import annotations

import numpy as np
from onnx import AttributeProto, helper

from tests.hostile.build import (
    Case,
    attribute,
    build,
    case,
    content,
    images,
    node,
    normal,
    one,
    spoiled,
    with_attributes,
)

ATTRIBUTES = (
    case("attribute of another type", 3, "axis", one("Softmax", axis="last")),
    case("attribute whose content is elsewhere", 3, "", with_attributes("Softmax", attribute("axis", 2, s=b"1"))),
    case("attribute of two contents", 3, "", with_attributes("Softmax", attribute("axis", 2, i=1, f=2.0, s=b"x"))),
    case("attribute without type", 3, "", with_attributes("Softmax", attribute("axis", 0, i=1))),
    case("attribute of an unknown type", 3, "", content(lambda: unknown_attribute_type())),
    case("attribute twice", 3, "", with_attributes("Softmax", attribute("axis", 2, i=0), attribute("axis", 2, i=1))),
    case("unknown attribute", 3, "colour", one("Relu", colour=3)),
    case("attribute without name", 3, "", with_attributes("Softmax", attribute("", 2, i=1))),
    case(
        "attribute that refers to a function's",
        (0, 3),
        "",
        with_attributes("Softmax", attribute("axis", 2, ref_attr_name="outer")),
    ),
    case("missing attribute", 3, "to", one("Cast")),
    case("missing axis", 3, "axis", one("Concat", "x x")),
    case("constant without value", 3, "", spoiled(lambda model: None, [helper.make_node("Constant", [], ["y"])])),
    case(
        "constant of two values",
        (0, 3),
        "",
        spoiled(lambda model: None, [helper.make_node("Constant", [], ["y"], value_int=1, value_float=2.0)]),
    ),
    case("constant of another type", (0, 3), "", with_attributes("Constant", attribute("value", 2, i=1), inputs="x")),
    case("axis out of range", 3, "", one("Softmax", axis=7)),
    case("axis beyond all bounds", (0, 3), "", one("Softmax", axis=-(2**63))),
    case("axes twice", (0, 3), "", one("ReduceSum", "x a", weights={"a": np.array([1, 1])})),
    case("axes out of range", 3, "", one("ReduceSum", "x a", weights={"a": np.array([2**62, -9])})),
    case("permutation of other axes", 3, "", one("Transpose", perm=[0, 7])),
    case("permutation with a repeat", 3, "", one("Transpose", perm=[0, 0])),
    case("permutation of one axis", (0, 3), "", one("Transpose", perm=[0])),
    case("equation that hangs inference", 3, "bad equation", one("Einsum", equation="i......->i")),
    case("equation of another rank", 3, "", one("Einsum", equation="ijk->k")),
    case("equation of a megabyte", 3, "", one("Einsum", equation="i" * 1_000_000 + "->i")),
    case("groups of 0", (0, 3), "", images("Conv", group=0)),
    case("groups beyond all bounds", (0, 3), "", images("Conv", group=2**62)),
    case("negative groups", (0, 3), "", images("Conv", group=-1)),
    case("strides of 0", 3, "", images("Conv", strides=[0, 0])),
    case("strides beyond all bounds", (0, 3), "", images("Conv", strides=[2**62, 2**62])),
    case("negative strides", 3, "", images("Conv", strides=[-1, -1])),
    case("strides of another rank", 3, "", images("Conv", strides=[1, 1, 1, 1, 1])),
    case("dilations of 0", 3, "", images("Conv", dilations=[0, 0])),
    case("dilations beyond all bounds", (0, 3), "", images("Conv", dilations=[2**62, 1])),
    case("padding beyond all bounds", (0, 3), "", images("Conv", pads=[2**62, 2**62, 2**62, 2**62])),
    case("padding of terabytes", (0, 3), "", images("Conv", pads=[2**21, 2**21, 2**21, 2**21])),
    case("negative padding", (0, 3), "", images("Conv", pads=[-1, -1, -1, -1])),
    case("kernel unlike its weights", (0, 3), "", images("Conv", kernel_shape=[5, 5])),
    case("unknown automatic padding", 3, "", images("Conv", auto_pad="SOMEHOW")),
    case("weights of another rank", 3, "", images("Conv", {"w": normal(2, 2)})),
    case("weights of other channels", (0, 3), "", images("Conv", {"w": normal(2, 7, 3, 3)})),
    case("weights without channels", (0, 3), "", images("Conv", {"w": normal(0, 2, 3, 3)})),
    case("weights that are a scalar", 3, "", images("Conv", {"w": np.float32(1)})),
    case("output padding beyond all bounds", (0, 3), "", images("ConvTranspose", output_padding=[2**62, 2**62])),
    case("output shape of terabytes", (0, 3), "", images("ConvTranspose", output_shape=[2**40, 2**40])),
    case("negative output shape", (0, 3), "", images("ConvTranspose", output_shape=[-5, -5])),
    case("windows of nothing", 3, "", images("MaxPool", {}, "x", kernel_shape=[0, 0])),
    case("windows without shape", 3, "", images("MaxPool", {}, "x")),
    case("windows beyond the image", (0, 3), "", images("AveragePool", {}, "x", kernel_shape=[99, 99])),
    case("windows in the padding", (0, 3), "", images("AveragePool", {}, "x", kernel_shape=[2, 2], pads=[2, 2, 2, 2])),
    case(
        "epsilon that is no number",
        0,
        "written",
        images("InstanceNormalization", {"s": normal(2), "b": normal(2)}, "x s b", epsilon=float("nan")),
    ),
    case("statistics of other channels", 3, "", images("BatchNormalization", {"w": normal(7)}, "x w w w w")),
    case("slope that is no number", 0, "written", one("LeakyRelu", alpha=float("nan"))),
    case("limits that cross", 0, "written", one("Clip", "x a b", weights={"a": np.float32(2), "b": np.float32(-2)})),
    case("normalization over nothing", 3, "", images("LRN", {}, "x", size=0)),
    case("normalization over a negative window", (0, 3), "", images("LRN", {}, "x", size=-3)),
    case("product that does not fit", 3, "", one("MatMul", "x w", weights={"w": normal(7, 3)})),
    case("sum that does not broadcast", 3, "", one("Add", "x w", weights={"w": normal(7, 3)})),
    case("sum of two types", 3, "", one("Add", "x w", weights={"w": np.arange(4)})),
)


def unknown_attribute_type() -> bytes:
    made = node("Softmax", "x", "y")
    made.attribute.append(AttributeProto(name="axis", i=1, type=AttributeProto.INT))
    data = build([made], {"x": [2, 4]}, {"y": None}).SerializeToString()
    return data.replace(b"\xa0\x01\x02", b"\xa0\x01\x37")


CASES: tuple[Case, ...] = ATTRIBUTES
