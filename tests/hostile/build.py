"""The parts that hostile files are built from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from tests.pipeline.support import FLOAT, INT64, build, node, normal

Proto = TypeVar("Proto", AttributeProto, TensorProto)
MODEL = "model.onnx"
SECRET = b"this must never be read"

# Writes files into an empty folder; the folder beside it, "outside", holds a secret. Returns further arguments of
# `egraph-opt optimize`, the model file first.
Maker = Callable[[Path], Sequence[str] | None]


@dataclass(frozen=True)
class Case:
    """``fragment`` must occur in what is printed on stderr, or for exit code 0 on stdout."""

    name: str
    make: Maker
    codes: tuple[int, ...]
    fragment: str = ""
    limit: bool = False
    alone: bool = False


def case(
    name: str, codes: int | tuple[int, ...], fragment: str, make: Maker, *, limit: bool = False, alone: bool = False
) -> Case:
    """``limit`` asks for a time limit of a few seconds, for valid models that are too large to be saturated; ``alone``
    for the whole command, because onnxruntime crashes on the model."""
    return Case(name, make, (codes,) if isinstance(codes, int) else codes, fragment, limit, alone)


def content(make: Callable[[], bytes | onnx.ModelProto]) -> Maker:
    """A case that is one file."""

    def write(folder: Path) -> None:
        made = make()
        (folder / MODEL).write_bytes(made if isinstance(made, bytes) else made.SerializeToString())

    return write


def good(weights: np.ndarray | None = None, **options: Any) -> onnx.ModelProto:
    """y = relu(x @ w), a model in which nothing is wrong."""
    nodes = [node("MatMul", "x w", "p"), node("Relu", "p", "y")]
    return build(nodes, {"x": [2, 4]}, {"y": [2, 3]}, {"w": normal(4, 3) if weights is None else weights}, **options)


def one(operator: str, inputs: str = "x", *, weights: Mapping[str, Any] | None = None, **attributes: Any) -> Maker:
    """A model of one node that reads x: [2, 4] and constants, and writes y."""
    return spoiled(lambda model: None, [node(operator, inputs, "y", **attributes)], weights)


def images(operator: str, weights: Mapping[str, Any] | None = None, inputs: str = "x w", **attributes: Any) -> Maker:
    """A model of one node that reads x: [1, 2, 5, 5] and w: [2, 2, 3, 3], and writes y."""
    given = {"w": normal(2, 2, 3, 3)} if weights is None else weights
    nodes = [node(operator, inputs, "y", **attributes)]
    return content(lambda: build(nodes, {"x": [1, 2, 5, 5]}, {"y": None}, given))


def spoiled(
    change: Callable[[onnx.ModelProto], object],
    nodes: Sequence[onnx.NodeProto] | None = None,
    weights: Mapping[str, Any] | None = None,
    **options: Any,
) -> Maker:
    """A good model with something changed."""

    def make() -> onnx.ModelProto:
        model = good(**options) if nodes is None else build(nodes, {"x": [2, 4]}, {"y": None}, weights, **options)
        change(model)
        return model

    return content(make)


def external(
    entries: Mapping[str, str], prepare: Callable[[Path], object] | None = None, dims: Sequence[int] = (4, 3)
) -> Maker:
    """A good model whose weights lie where ``entries`` say, by default in weights.bin."""

    def write(folder: Path) -> None:
        model = good()
        tensor = model.graph.initializer[0]
        (folder / "weights.bin").write_bytes(bytes(16) + tensor.raw_data)
        _move(tensor, {"location": "weights.bin", "offset": "16", "length": "48"} | dict(entries))
        tensor.dims[:] = dims
        if prepare is not None:
            prepare(folder)
        (folder / MODEL).write_bytes(model.SerializeToString())

    return write


def _move(tensor: TensorProto, entries: Mapping[str, str]) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in entries.items():
        if text != "absent":
            tensor.external_data.add(key=key, value=text)


def stolen(name: str = "t", location: str = "../outside/secret.bin") -> TensorProto:
    """A tensor whose content is the secret outside the model's folder."""
    tensor = numpy_helper.from_array(np.zeros(5, np.float32), name)
    _move(tensor, {"location": location, "length": "20"})
    return tensor


def constants(nodes: Sequence[onnx.NodeProto], result: str, weights: Mapping[str, Any]) -> Maker:
    """A model that reshapes x by something that is computed from constants."""
    everything = [*nodes, node("Mul", f"x {result}", "y")]
    return content(lambda: build(everything, {"x": [1]}, {"y": None}, weights, elements={"x": INT64, "y": INT64}))


def branches(inner: onnx.GraphProto, output: str = "y") -> onnx.NodeProto:
    """A node that runs the same graph whatever its condition is."""
    return helper.make_node("If", ["c"], [output], then_branch=inner, else_branch=inner)


def graph(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str], inputs: Sequence[str] = ()) -> onnx.GraphProto:
    """A subgraph; nothing is known about its tensors."""
    return helper.make_graph(nodes, "inner", [empty(name) for name in inputs], [empty(name) for name in outputs])


def empty(name: str) -> onnx.ValueInfoProto:
    return helper.make_empty_tensor_value_info(name)


def nested(depth: int) -> onnx.ModelProto:
    """An If in an If in an If …"""
    inner = graph([node("Identity", "x", "z")], ["z"])
    for level in range(depth):
        inner = graph([branches(inner, f"z{level}")], [f"z{level}"])
    return build([branches(inner)], {"x": [2]}, {"y": [2]}, {"c": np.array(True)})


def functions(bodies: Mapping[str, Sequence[str]], opset: int = 17) -> onnx.ModelProto:
    """y = main(x), where each local function calls others one after the other."""
    model = build([node("main", "x", "y", domain="local")], {"x": [2]}, {"y": None}, domains=["local"], opset=opset)
    for name, called in bodies.items():
        names = ["a", *(f"t{i}" for i in range(len(called) - 1)), "b"]
        inside = [
            node(other, f"{names[i]}", names[i + 1], domain="" if other == "Neg" else "local")
            for i, other in enumerate(called)
        ]
        imports = [helper.make_opsetid("", opset), helper.make_opsetid("local", 1)]
        model.functions.append(helper.make_function("local", name, ["a"], ["b"], inside, imports))
    return model


def renamed(name: str) -> onnx.ModelProto:
    """A model whose tensors, nodes and graph carry a name and nothing but it."""
    x, w, p, r, y = (f"{name}{tail}" for tail in ("x", "w", "", "r", "y"))
    nodes = [
        helper.make_node("MatMul", [x, w], [p], name=name),
        helper.make_node("Relu", [p], [r], name=f"{name}2"),
        helper.make_node("Add", [r, x], [y], name=f"{name}3"),
    ]
    model = build(nodes, {x: [3, 4]}, {y: [3, 4]}, {w: normal(4, 4)})
    model.graph.name = model.producer_name = model.graph.doc_string = name
    return model


def varint(number: int) -> bytes:
    """A number as protocol buffers write it."""
    found = b""
    while number >= 128:
        found += bytes([number % 128 | 128])
        number //= 128
    return found + bytes([number])


def field(number: int, data: bytes) -> bytes:
    """A field of bytes as protocol buffers write it."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def nested_bytes(depth: int) -> bytes:
    """Graphs in graphs, deeper than any library writes them."""
    inner = b""
    for _ in range(depth):  # graph { node { attribute { g { … } type: GRAPH } } }
        inner = field(1, field(5, field(6, inner) + b"\xa0\x01\x05"))
    return b"\x08\x08" + field(7, inner)


def filled(message: Proto, fields: Mapping[str, Any]) -> Proto:
    """A message, given these fields."""
    for key, value in fields.items():
        if isinstance(value, list):
            getattr(message, key).extend(value)
        else:
            setattr(message, key, value)
    return message


def attribute(name: str, kind: int, **fields: Any) -> AttributeProto:
    """An attribute whose type and content need not agree."""
    return filled(AttributeProto(name=name, type=kind), fields)  # type: ignore[arg-type]


def with_attributes(operator: str, *attributes: AttributeProto, inputs: str = "x") -> Maker:
    """A model of one node with these attributes."""
    made = node(operator, inputs, "y")
    made.attribute.extend(attributes)
    return spoiled(lambda model: None, [made])


def chain(count: int, operator: str = "Relu") -> onnx.ModelProto:
    """As many nodes one after the other."""
    nodes = [node(operator, f"t{i}", f"t{i + 1}") for i in range(count)]
    return build(nodes, {"t0": [2, 3]}, {f"t{count}": [2, 3]})


def tensor(name: str, kind: int, dims: Sequence[int], **fields: Any) -> TensorProto:
    """A tensor whose fields need not agree."""
    return filled(TensorProto(name=name, data_type=kind, dims=dims), fields)


def weighted(made: TensorProto, data_type: int = FLOAT) -> Maker:
    """y = x + w for a tensor w."""

    def make() -> onnx.ModelProto:
        model = build([node("Add", "x w", "y")], {"x": [2, 3]}, {"y": None}, elements={"x": data_type, "y": data_type})
        made.name = "w"
        model.graph.initializer.append(made)
        return model

    return content(make)
