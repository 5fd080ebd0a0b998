"""Files that are no models, and models whose parts do not belong together."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.hostile.build import (
    MODEL,
    Case,
    branches,
    build,
    case,
    content,
    field,
    good,
    graph,
    nested_bytes,
    node,
    normal,
    one,
    spoiled,
)


class Trap:
    """Creates a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("pwned",)


def place(kind: str) -> Any:
    """Something else than a file where the model should be."""

    def make(folder: Path) -> list[str] | None:
        path = folder / MODEL
        match kind:
            case "folder":
                path.mkdir()
            case "pipe":
                os.mkfifo(path)
            case "device":
                return ["/dev/zero", "-o", str(folder / "o.onnx")]
            case "loop":
                path.symlink_to(MODEL)
            case "long":
                return [str(folder / ("n" * 300 + ".onnx"))]
            case "longest":  # the name of the output would be too long
                path = folder / ("n" * 250 + ".onnx")
                path.write_bytes(good().SerializeToString())
                return [str(path)]
        return None

    return make


def reversed_nodes(model: onnx.ModelProto) -> None:
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def extended(**fields: list[Any]) -> Any:
    """Adds to repeated fields of the graph."""

    def change(model: onnx.ModelProto) -> None:
        for name, values in fields.items():
            getattr(model.graph, name).extend(values)

    return change


def imports(*versions: tuple[str, int]) -> Any:
    def change(model: onnx.ModelProto) -> None:
        del model.opset_import[:]
        model.opset_import.extend(onnx.OperatorSetIdProto(domain=domain, version=n) for domain, n in versions)

    return change


def assigned(path: str, value: Any) -> Any:
    """Sets one field; ``path`` has dots."""

    def change(model: onnx.ModelProto) -> None:
        *parents, last = path.split(".")
        at: Any = model
        for parent in parents:
            at = at[int(parent)] if parent.isdigit() else getattr(at, parent)
        setattr(at, last, value)

    return change


RELU = node("Relu", "x", "y")
WEIGHT = numpy_helper.from_array(normal(4, 3), "w")
CYCLE = [node("Add", "x b", "a"), node("Relu", "a", "b"), node("Neg", "b", "y")]
CAPTURED = [
    node("Relu", "y", "k"),
    branches(graph([node("Identity", "k", "z")], ["z"])),
]

FILES = (
    case("empty file", 3, "is empty", content(lambda: b"")),
    case("one zero byte", 3, "not an ONNX model", content(lambda: b"\0")),
    case("text", 3, "not an ONNX model", content(lambda: b"this is no protocol buffer" * 9)),
    case("random bytes", 3, "not an ONNX model", content(lambda: np.random.default_rng(0).bytes(4096))),
    case("half a model", 3, "not an ONNX model", content(lambda: good().SerializeToString()[:-60])),
    case("weights cut off", 3, "not an ONNX model", content(lambda: good(normal(4, 3)).SerializeToString()[:70])),
    case("picture", 3, "not an ONNX model", content(lambda: b"\x89PNG\r\n\x1a\n" + bytes(64))),
    case("pickle", 3, "not an ONNX model", content(lambda: pickle.dumps(Trap()))),
    case("text format", 3, "not an ONNX model", content(lambda: str(good()).encode())),
    case("graph alone", 3, "", content(lambda: good().graph.SerializeToString())),
    case("two models in one", 3, "defined", content(lambda: good().SerializeToString() * 2)),
    case("garbage behind the model", 3, "not an ONNX model", content(lambda: good().SerializeToString() + b"\xff" * 9)),
    case("length beyond all bounds", 3, "not an ONNX model", content(lambda: b"\x3a" + b"\xff" * 9 + b"\x01")),
    case("groups without end", 3, "not an ONNX model", content(lambda: b"\xa3\x06" * 100_000)),
    case("graphs 300 deep", 3, "not an ONNX model", content(lambda: nested_bytes(300))),
    case("graphs 20,000 deep", 3, "not an ONNX model", content(lambda: nested_bytes(20_000))),
    case(
        "100,000 unknown fields", 0, "written", content(lambda: good().SerializeToString() + field(999, b"a") * 100_000)
    ),
    case("types 300 deep", 3, "not an ONNX model", content(lambda: deep_type())),
    case(
        "name that is no text",
        3,
        "UTF-8",
        content(lambda: good().SerializeToString().replace(b"graph", b"gr\xff\xfeh")),
    ),
    case(
        "surrogates in a name",
        3,
        "UTF-8",
        content(lambda: good().SerializeToString().replace(b"graph", b"g\xed\xa0\x80h")),
    ),
    case("folder", 3, "is not a file", place("folder")),
    case("pipe", 3, "is not a file", place("pipe")),
    case("device", 3, "is not a file", place("device")),
    case("link to itself", 3, "does not exist", place("loop")),
    case("missing", 3, "does not exist", place("missing")),
    case("name too long for a file", 2, "name too long", place("long")),
    case("name too long for its output", 2, "name too long", place("longest")),
)


def deep_type() -> bytes:
    """An input that is a sequence of sequences of sequences …"""
    inner = field(1, b"\x08\x01")
    for _ in range(300):
        inner = field(4, field(1, inner))
    return b"\x08\x08" + field(7, field(11, field(1, b"x") + field(2, inner)))


GRAPHS = (
    case("nothing but a version", 3, "no graph", content(lambda: onnx.ModelProto(ir_version=8))),
    case("empty graph", 3, "no graph", spoiled(lambda model: model.graph.Clear())),
    case("no nodes", 0, "written", content(lambda: build([], {"x": [2]}, {"x": [2]}))),
    case("no outputs", 0, "written", spoiled(lambda model: model.graph.ClearField("output"))),
    case("nodes in reverse", 0, "written", spoiled(reversed_nodes)),
    case("cycle", 3, "cycle", spoiled(lambda model: None, CYCLE)),
    case("node that reads itself", 3, "cycle", spoiled(lambda model: None, [node("Add", "x y", "y")])),
    case("cycle through a subgraph", 3, "cycle", spoiled(lambda model: None, CAPTURED, {"c": np.array(True)})),
    case("undefined tensor", 3, "reads the tensor 'q'", spoiled(lambda m: m.graph.node[1].input.__setitem__(0, "q"))),
    case("undefined output", 3, "graph output 'q'", spoiled(assigned("graph.output.0.name", "q"))),
    case("output listed twice", (0, 3), "", spoiled(lambda m: m.graph.output.append(m.graph.output[0]))),
    case("output without name", 3, "", spoiled(assigned("graph.output.0.name", ""))),
    case("input without name", 3, "is empty", spoiled(assigned("graph.input.0.name", ""))),
    case("input listed twice", (0, 3), "", spoiled(lambda m: m.graph.input.append(m.graph.input[0]))),
    case("input without type", 3, "", spoiled(lambda m: m.graph.input[0].ClearField("type"))),
    case("input of an unknown type", 3, "", spoiled(assigned("graph.input.0.type.tensor_type.elem_type", 99))),
    case("input of no type", 3, "", spoiled(assigned("graph.input.0.type.tensor_type.elem_type", 0))),
    case("input that is a map", 3, "", spoiled(lambda m: setattr(m.graph.input[0].type.map_type, "key_type", 7))),
    case("initializer twice", (0, 3), "", spoiled(extended(initializer=[WEIGHT]))),
    case("initializer without name", 3, "is empty", spoiled(assigned("graph.initializer.0.name", ""))),
    case(
        "initializer that is computed",
        3,
        "defined twice",
        spoiled(lambda m: m.graph.node.append(node("Neg", "x", "w"))),
    ),
    case(
        "initializer that is an input too",
        0,
        "written",
        spoiled(extended(input=[helper.make_tensor_value_info("w", 1, [4, 3])])),
    ),
    case(
        "initializer unlike the input it is",
        3,
        "",
        spoiled(extended(input=[helper.make_tensor_value_info("w", 7, [9])])),
    ),
    case(
        "output that is an input",
        0,
        "written",
        spoiled(extended(output=[helper.make_tensor_value_info("x", 1, [2, 4])])),
    ),
    case(
        "output that is a weight",
        0,
        "written",
        spoiled(extended(output=[helper.make_tensor_value_info("w", 1, [4, 3])])),
    ),
    case("tensor defined twice", 3, "defined twice", spoiled(lambda model: None, [RELU, RELU])),
    case("result that is an input", 3, "defined twice", spoiled(lambda model: None, [node("Relu", "x", "x"), RELU])),
    case("node without operator", 3, "", spoiled(assigned("graph.node.1.op_type", ""))),
    case("node without results", 3, "", spoiled(lambda m: m.graph.node[0].ClearField("output"))),
    case("unknown operator", 3, "NoSuchOperator", one("NoSuchOperator")),
    case("unknown domain", 3, "no.such.domain", one("Relu", domain="no.such.domain")),
    case("too many arguments", 3, "Relu", one("Relu", "x x")),
    case("too few arguments", 3, "MatMul", one("MatMul")),
    case("empty argument", 3, "", one("MatMul", " x")),
    case("too many results", 3, "Relu", spoiled(lambda model: None, [node("Relu", "x", "y z")])),
    case("domain that is not imported", 3, "", spoiled(assigned("graph.node.1.domain", "com.microsoft"))),
    case("no opset", 3, "", spoiled(imports())),
    case("opset 0", 3, "", spoiled(imports(("", 0)))),
    case("negative opset", 3, "", spoiled(imports(("", -7)))),
    case("future opset", 3, "opset 9999 is newer", spoiled(imports(("", 9999)))),
    case("opset beyond all bounds", 3, "is newer", spoiled(imports(("", 2**62)))),
    case("two opsets", (0, 3), "", spoiled(imports(("", 13), ("", 17)))),
    case("both spellings of the domain", (0, 3), "", spoiled(imports(("", 17), ("ai.onnx", 17)))),
    case("version 0", (0, 3), "", spoiled(assigned("ir_version", 0))),
    case("negative version", (0, 3), "", spoiled(assigned("ir_version", -3))),
    case("future version", (0, 3), "", spoiled(assigned("ir_version", 99))),
    case("version beyond all bounds", 3, "", spoiled(assigned("ir_version", 2**62))),
    case("training information", 0, "written", spoiled(lambda m: m.training_info.add().algorithm.CopyFrom(m.graph))),
    case(
        "100,000 properties",
        0,
        "written",
        spoiled(lambda m: [m.metadata_props.add(key=f"k{i}", value="v") for i in range(100_000)]),
    ),
    case("property twice", (0, 3), "", spoiled(lambda m: [m.metadata_props.add(key="k", value=v) for v in "ab"])),
    case(
        "property in our name",
        0,
        "written",
        spoiled(lambda m: m.metadata_props.add(key="egraph_opt.explanation", value="{[\0")),
    ),
    case(
        "declared shape of another rank",
        (0, 3),
        "",
        spoiled(extended(value_info=[helper.make_tensor_value_info("p", 1, [7] * 9)])),
    ),
    case(
        "declared shape of another size",
        0,
        "written",
        spoiled(extended(value_info=[helper.make_tensor_value_info("p", 1, [7, 7])])),
    ),
    case(
        "declared type of another kind",
        (0, 3),
        "",
        spoiled(extended(value_info=[helper.make_tensor_value_info("p", 7, [2, 3])])),
    ),
    case(
        "declared shape of nothing",
        0,
        "written",
        spoiled(extended(value_info=[helper.make_tensor_value_info("ghost", 1, [2])])),
    ),
    case(
        "declared shape twice",
        (0, 3),
        "",
        spoiled(extended(value_info=[helper.make_tensor_value_info("p", 1, [2, n]) for n in (3, 4)])),
    ),
    case(
        "quantization of nothing",
        (0, 3),
        "",
        spoiled(lambda m: m.graph.quantization_annotation.add(tensor_name="ghost")),
    ),
    case(
        "subgraph that defines outer names",
        3,
        "",
        spoiled(
            lambda model: None, [RELU, branches(graph([node("Neg", "x", "x")], ["x"]), "z")], {"c": np.array(True)}
        ),
    ),
    case(
        "subgraph without output",
        3,
        "",
        spoiled(lambda model: None, [branches(graph([node("Neg", "x", "z")], []))], {"c": np.array(True)}),
    ),
    case(
        "subgraph of one branch",
        3,
        "else_branch",
        spoiled(
            lambda model: None,
            [helper.make_node("If", ["c"], ["y"], then_branch=graph([node("Neg", "x", "z")], ["z"]))],
            {"c": np.array(True)},
        ),
    ),
    case(
        "subgraph that is empty",
        3,
        "",
        spoiled(lambda model: None, [branches(onnx.GraphProto(name="g"))], {"c": np.array(True)}),
    ),
)

CASES: tuple[Case, ...] = FILES + GRAPHS
