"""Small files that want to become large, or to take for ever."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.hostile.build import (
    FLOAT,
    INT64,
    Case,
    Maker,
    build,
    case,
    chain,
    constants,
    content,
    functions,
    nested,
    node,
    normal,
    one,
)


def doubling(operator: str, count: int = 60) -> Maker:
    nodes = [
        node(operator, f"t{i} t{i}", f"t{i + 1}", **({"axis": 0} if operator == "Concat" else {})) for i in range(count)
    ]
    return constants(nodes, f"t{count}", {"t0": np.array([1])})


def huge_range(limit: float, step: float) -> Maker:
    weights = {"a": np.array(0), "b": np.array(int(limit)), "c": np.array(int(step))}
    return constants([node("Range", "a b c", "t")], "t", weights)


def loop(trips: int, body: list[onnx.NodeProto], nodes: list[onnx.NodeProto]) -> Maker:
    """y = x after a loop, beside something that is worth optimizing."""
    inner = helper.make_graph(
        [node("Identity", "go", "again"), *body],
        "body",
        [
            helper.make_tensor_value_info("i", INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", FLOAT, None),
        ],
        [helper.make_tensor_value_info("again", TensorProto.BOOL, []), helper.make_tensor_value_info("u", FLOAT, None)],
    )
    looped = helper.make_node("Loop", ["trips", "c", "x"], ["y"], body=inner)
    weights = {"trips": np.array(trips), "c": np.array(True), "w": normal(4, 4)}
    return content(
        lambda: build([looped, *nodes], {"x": [2, 4]}, {"y": None} | ({"z": None} if nodes else {}), weights)
    )


DENSE = [node("MatMul", "x w", "p"), node("Relu", "p", "z")]
STEP = [node("Neg", "v", "u")]
SIZES = (
    case("concatenation that doubles", (0, 3), "", doubling("Concat")),
    case("sum that doubles", 0, "written", doubling("Add")),
    case("range beyond all bounds", (0, 3), "", huge_range(2**62, 1)),
    case("range of gigabytes", (0, 3), "", huge_range(2**31, 1)),
    case("range without step", (0, 3), "", huge_range(5, 0)),
    case(
        "constant of terabytes",
        (0, 3),
        "",
        constants(
            [node("ConstantOfShape", "s", "t", value=numpy_helper.from_array(np.array([1])))],
            "t",
            {"s": np.array([2**40])},
        ),
    ),
    case(
        "constant of negative shape",
        (0, 3),
        "",
        constants([node("ConstantOfShape", "s", "t")], "t", {"s": np.array([-1])}),
    ),
    case(
        "constant tiled",
        (0, 3),
        "",
        constants([node("Tile", "a s", "t")], "t", {"a": np.array([1]), "s": np.array([2**40])}),
    ),
    case(
        "constant expanded",
        (0, 3),
        "",
        constants([node("Expand", "a s", "t")], "t", {"a": np.array([1]), "s": np.array([2**40])}),
    ),
    case(
        "constant padded",
        (0, 3),
        "",
        constants([node("Pad", "a s", "t")], "t", {"a": np.array([1]), "s": np.array([2**40, 0])}),
    ),
    case(
        "one-hot of terabytes",
        (0, 3),
        "",
        constants(
            [node("OneHot", "a s v", "t")], "t", {"a": np.array([1]), "s": np.array(2**40), "v": np.array([0, 1])}
        ),
    ),
    case(
        "identity of terabytes",
        (0, 3),
        "",
        constants(
            [node("ConstantOfShape", "s", "e"), node("EyeLike", "e", "t", dtype=7)],
            "t",
            {"s": np.array([2**20, 2**20])},
        ),
    ),
    case(
        "resized constant",
        (0, 3),
        "",
        constants(
            [node("Resize", "a  s", "f"), node("Cast", "f", "t", to=7)],
            "t",
            {"a": np.ones(1, np.float32), "s": np.array([1e12], np.float32)},
        ),
    ),
    case(
        "power of a power",
        0,
        "written",
        constants([node("Pow", "a a", "b"), node("Pow", "b b", "t")], "t", {"a": np.array([99])}),
    ),
    case(
        "division by 0", (0, 3), "", constants([node("Div", "a b", "t")], "t", {"a": np.array([1]), "b": np.array([0])})
    ),
    case(
        "division of the lowest number",
        (0, 3),
        "",
        constants([node("Div", "a b", "t")], "t", {"a": np.array([-(2**63)]), "b": np.array([-1])}),
    ),
    case(
        "division that crashes onnxruntime",
        3,
        "onnxruntime crashes",
        content(
            lambda: build(
                [node("Div", "a b", "t"), *DENSE],
                {"x": [2, 4]},
                {"t": None, "z": None},
                {"a": np.array([-(2**63)]), "b": np.array([-1]), "w": normal(4, 4)},
                elements={"t": INT64},
            )
        ),
        alone=True,
    ),
    case(
        "remainder by 0",
        (0, 3),
        "",
        constants([node("Mod", "a b", "t")], "t", {"a": np.array([1]), "b": np.array([0])}),
    ),
    case(
        "shift beyond the width",
        (0, 3),
        "",
        constants(
            [node("BitShift", "a b", "u", direction="LEFT"), node("Cast", "u", "t", to=7)],
            "t",
            {"a": np.array([1], np.uint64), "b": np.array([200], np.uint64)},
        ),
    ),
    case(
        "10,000 constants computed",
        0,
        "written",
        constants([node("Add", f"t{i} t{i}", f"t{i + 1}") for i in range(10_000)], "t10000", {"t0": np.array([1])}),
        limit=True,
    ),
    case("long loop", (0, 3), "", loop(10_000_000, STEP, [])),
    case("loop without end", (0, 3), "", loop(2**62, STEP, [])),
    case("long loop beside a region", (0, 3, 5), "", loop(2**62, STEP, DENSE), limit=True),
    case("loop that doubles", (0, 3, 5), "", loop(60, [node("Concat", "v v", "u", axis=0)], DENSE), limit=True),
    case("chain of 20,000 nodes", 0, "written", content(lambda: chain(20_000)), limit=True),
    case("2,000 additions of a sum to itself", 0, "written", content(lambda: doubled(2000)), limit=True),
    case("5,000 results", 0, "written", content(lambda: wide(5_000)), limit=True),
    case("sum of 20,000", (0, 3), "", one("Sum", " ".join(["x"] * 20_000))),
    case("concatenation of 20,000", (0, 3), "", one("Concat", " ".join(["x"] * 20_000), axis=0)),
    case("subgraphs 10 deep", 0, "written", content(lambda: nested(10))),
    case("function that calls itself", 3, "", content(lambda: functions({"main": ["main"]}))),
    case("functions that call each other", 3, "", content(lambda: functions({"main": ["other"], "other": ["main"]}))),
    case("function that is missing", 3, "", content(lambda: functions({"main": ["nobody"]}))),
    case("function twice", 3, "", content(lambda: twice())),
    case(
        "functions that double 40 times",
        3,
        "",
        content(
            lambda: functions({"main": ["f0"] * 2} | {f"f{i}": [f"f{i + 1}"] * 2 for i in range(40)} | {"f40": ["Neg"]})
        ),
    ),
    case(
        "functions 5,000 deep",
        3,
        "",
        content(
            lambda: functions({"main": ["f0"]} | {f"f{i}": [f"f{i + 1}"] for i in range(5000)} | {"f5000": ["Neg"]})
        ),
    ),
)


def doubled(count: int) -> onnx.ModelProto:
    nodes = [node("Add", f"t{i} t{i}", f"t{i + 1}") for i in range(count)]
    return build(nodes, {"t0": [2, 3]}, {f"t{count}": [2, 3]})


def wide(count: int) -> onnx.ModelProto:
    nodes = [node("Relu", "x", f"y{i}") for i in range(count)]
    return build(nodes, {"x": [2, 3]}, {f"y{i}": [2, 3] for i in range(count)})


def twice() -> onnx.ModelProto:
    model = functions({"main": ["Neg"]})
    model.functions.append(model.functions[0])
    return model


CASES: tuple[Case, ...] = SIZES
