"""Checks that come before onnx's own: what would crash it or hang it, and names, with messages that say more."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from math import prod

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from egraph_opt.errors import InputRejected, one_line
from egraph_opt.frontends.onnx_model import subgraphs

# Terms with at most one ellipsis each: from most other equations onnx's shape inference never returns.
_TERM = rb"[A-Za-z ]*(\.\.\.[A-Za-z ]*)?"
_EQUATION = re.compile(_TERM + rb"(," + _TERM + rb")*(->" + _TERM + rb")?")


def check_structure(model: ModelProto) -> None:
    """Raises InputRejected for texts that are no text, bad initializers, and names that are undefined or not unique."""
    _check_text("the model", [model.producer_name, model.producer_version, model.domain, model.doc_string])
    _check_text("an opset import", [entry.domain for entry in model.opset_import])
    for function in model.functions:
        _check_text("a function", [function.name, function.domain, *function.input, *function.output])
        _check_nodes(function.node)
    _check_graph(model.graph)
    _check_names(model.graph, frozenset(), "")


def _check_graph(graph: GraphProto) -> None:
    _check_text("the graph", [graph.name, graph.doc_string])
    _check_text("a tensor", [value.name for value in (*graph.input, *graph.output, *graph.value_info)])
    _check_text("an initializer", [tensor.name for tensor in graph.initializer])
    for tensor in graph.initializer:
        _check_initializer(tensor)
    _check_nodes(graph.node)


def _check_nodes(nodes: Iterable[NodeProto]) -> None:
    for node in nodes:
        _check_text("a node", [node.name, node.op_type, node.domain, *node.input, *node.output])
        _check_text(label(node), [attribute.name for attribute in node.attribute])
        if node.op_type == "Einsum" and not all(
            _EQUATION.fullmatch(attribute.s) for attribute in node.attribute if attribute.name == "equation"
        ):
            raise InputRejected(f"{label(node)} has a bad equation")
        for inner in subgraphs(node):
            _check_graph(inner)


def _check_text(what: str, texts: Iterable[object]) -> None:
    # protobuf gives bytes where a string is not UTF-8.
    bad = next((text for text in texts if not isinstance(text, str)), None)
    if bad is not None:
        raise InputRejected(f"a text of {what} is not UTF-8: {bad!r}")


def _check_initializer(tensor: TensorProto) -> None:
    if any(n < 0 for n in tensor.dims):
        raise InputRejected(f"initializer {tensor.name!r} has a negative dimension: {list(tensor.dims)}")
    if prod(tensor.dims) >= 1 << 48:
        raise InputRejected(f"initializer {tensor.name!r} has too many elements: {list(tensor.dims)}")
    if tensor.data_type not in TensorProto.DataType.values() or tensor.data_type == TensorProto.UNDEFINED:
        raise InputRejected(f"initializer {tensor.name!r} has the unknown data type {tensor.data_type}")


def _check_names(graph: GraphProto, outer: frozenset[str], where: str) -> None:
    """Every used name must be defined once in its scope."""
    defined: set[str] = set()
    for kind, names in (
        ("graph input", [value.name for value in graph.input]),
        (
            "initializer",
            [tensor.name for tensor in graph.initializer] + [t.values.name for t in graph.sparse_initializer],
        ),
    ):
        for name, count in _counted(names):
            if not name:
                raise InputRejected(f"a {kind}{where} has no name")
            if count > 1:
                raise InputRejected(f"the {kind} {name!r}{where} is defined {count} times")
        defined |= set(names)
    for node in graph.node:
        for name in node.output:
            if name and name in defined:
                raise InputRejected(f"the tensor {name!r}{where} is defined twice, the second time by {label(node)}")
            defined.add(name)
    scope = outer | defined
    for node in graph.node:
        for name in node.input:
            if name and name not in scope:
                raise InputRejected(f"{label(node)}{where} reads the tensor {name!r}, which nothing defines")
        for inner in subgraphs(node):
            _check_names(inner, scope, f" in a subgraph of {label(node)}")
    for name, count in _counted([value.name for value in graph.output]):
        if name not in scope:
            raise InputRejected(f"nothing defines the graph output {name!r}{where}")
        if count > 1:
            raise InputRejected(f"the graph output {name!r}{where} is listed {count} times")


def _counted(names: list[str]) -> Iterator[tuple[str, int]]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return iter(counts.items())


def label(node: NodeProto) -> str:
    """A node as messages name it."""
    return one_line(f"{node.op_type} node {node.name!r}" if node.name else f"{node.op_type} node")[:120]
