"""ONNX models as plain data, for runtimes that know nothing of protocol buffers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from egraph_opt.errors import InputRejected
from egraph_opt.frontends.onnx_model import Array, opset_of, overridable, standard
from egraph_opt.frontends.onnx_reader import parse
from egraph_opt.frontends.onnx_weights import array_of

# The type texts of onnxruntime that are not called like numpy's types.
_TYPE_TEXTS = {"float32": "float", "float64": "double"}


@dataclass(frozen=True)
class Value:
    """An input or output: its name, its type as onnxruntime writes it, and its dimensions.

    A dimension is a number, the name of a symbol, or None where nothing is known.
    """

    name: str
    type: str
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True)
class PlainNode:
    """A node of the standard operator set; attributes are numbers, strings, lists of them, or arrays."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class PlainModel:
    """A model without control flow: its nodes in a valid order and its weights by name."""

    opset: int
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    nodes: tuple[PlainNode, ...]
    weights: Mapping[str, Array]


def signature(source: str | os.PathLike[str] | bytes) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
    """The inputs and outputs of a model. Raises InputRejected for a model that cannot be read."""
    model, _ = parse(source)
    return _inputs(model), tuple(map(_value, model.graph.output))


def plain(source: str | os.PathLike[str] | bytes) -> PlainModel:
    """A model as plain data.

    Raises InputRejected for a model that cannot be read, and for one with operators of other domains, functions of its
    own, control flow or sparse weights.
    """
    model, _ = parse(source)
    if model.functions or model.graph.sparse_initializer:
        raise InputRejected("it has functions or sparse weights of its own")
    return PlainModel(
        opset_of(model),
        _inputs(model),
        tuple(map(_value, model.graph.output)),
        tuple(_nodes(model.graph)),
        {tensor.name: array_of(tensor) for tensor in model.graph.initializer},
    )


def _inputs(model: ModelProto) -> tuple[Value, ...]:
    """The inputs that have to be fed: not those whose value an initializer gives."""
    given = {tensor.name for tensor in model.graph.initializer}
    if given & overridable(model):
        raise InputRejected("it has inputs with default values")
    return tuple(_value(value) for value in model.graph.input if value.name not in given)


def _value(value: ValueInfoProto) -> Value:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or tensor.elem_type in (TensorProto.UNDEFINED, TensorProto.BFLOAT16):
        raise InputRejected(f"{value.name} is no tensor of a type that numpy has")
    name = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
    text = "string" if tensor.elem_type == TensorProto.STRING else _TYPE_TEXTS.get(name, name)
    dimensions = tuple(
        d.dim_value if d.HasField("dim_value") else d.dim_param if d.dim_param else None for d in tensor.shape.dim
    )
    return Value(value.name, f"tensor({text})", dimensions)


def _nodes(graph: GraphProto) -> Iterator[PlainNode]:
    for node in graph.node:
        if standard(node.domain):
            raise InputRejected(f"it has the operator {node.op_type} of {node.domain}")
        yield PlainNode(node.op_type, tuple(node.input), tuple(node.output), dict(_attributes(node)))


def _attributes(node: NodeProto) -> Iterator[tuple[str, Any]]:
    for attribute in node.attribute:
        if attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
            raise InputRejected(f"it has control flow ({node.op_type})")
        if attribute.type == AttributeProto.TENSOR:
            yield attribute.name, numpy_helper.to_array(attribute.t)
            continue
        value = helper.get_attribute_value(attribute)
        yield attribute.name, value.decode(errors="replace") if isinstance(value, bytes) else value
