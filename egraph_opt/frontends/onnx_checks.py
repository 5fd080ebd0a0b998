"""Checks that come before onnx's own: what would crash it or hang it, and names, with messages that say more."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from math import prod

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from egraph_opt.errors import InputRejected, one_line
from egraph_opt.frontends.onnx_model import standard, subgraphs

# Nodes of a model after its local functions are put in the place of their calls: inference and onnxruntime do that, and
# forty functions that call each other twice are more than any machine can hold.
LARGEST_EXPANSION = 100_000
# How deep functions may call each other; onnx's checker has the same limit.
DEEPEST_CALL = 100

# Terms with at most one ellipsis each: from most other equations onnx's shape inference never returns.
_TERM = rb"[A-Za-z ]*(\.\.\.[A-Za-z ]*)?"
_EQUATION = re.compile(_TERM + rb"(," + _TERM + rb")*(->" + _TERM + rb")?")


def check_structure(model: ModelProto) -> None:
    """Raises InputRejected for what no reader survives: texts that are no text, bad initializers, endless calls."""
    _check_text("the model", [model.producer_name, model.producer_version, model.domain, model.doc_string])
    _check_text("an opset import", [entry.domain for entry in model.opset_import])
    for function in model.functions:
        _check_text("a function", [function.name, function.domain, *function.input, *function.output])
        _check_nodes(function.node)
    _check_graph(model.graph)
    _check_expansion(model)


def check_names(model: ModelProto) -> None:
    """Raises InputRejected for names that are undefined or not unique."""
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


def _check_expansion(model: ModelProto) -> None:
    """Local functions must not call themselves, nor blow the model up."""
    bodies = {(standard(f.domain), f.name, f.overload): f.node for f in model.functions}
    sizes: dict[tuple[str, str, str], int] = {}
    calling: list[tuple[str, str, str]] = []

    def size_of(nodes: Iterable[NodeProto]) -> int:
        total = 0
        for node in nodes:
            total += size_of_call((standard(node.domain), node.op_type, node.overload))
            total += sum(size_of(inner.node) for inner in subgraphs(node))
        return total

    def size_of_call(name: tuple[str, str, str]) -> int:
        if name not in bodies:
            return 1
        if name in sizes:
            return sizes[name]
        if name in calling or len(calling) > DEEPEST_CALL:
            how = "calls itself" if name in calling else f"is called more than {DEEPEST_CALL} levels deep"
            raise InputRejected(f"the local function {name[1]!r} {how}")
        calling.append(name)
        sizes[name] = size_of(bodies[name])
        calling.pop()
        return sizes[name]

    if bodies and size_of(model.graph.node) > LARGEST_EXPANSION:
        raise InputRejected(f"its local functions make more than {LARGEST_EXPANSION} nodes of the model")


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
                raise InputRejected(f"the name of one {kind}{where} is empty")
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
    for value in graph.output:  # one may be listed twice
        if value.name not in scope:
            raise InputRejected(f"nothing defines the graph output {value.name!r}{where}")


def _counted(names: list[str]) -> Iterator[tuple[str, int]]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return iter(counts.items())


def label(node: NodeProto) -> str:
    """A node as messages name it."""
    return one_line(f"{node.op_type} node {node.name!r}" if node.name else f"{node.op_type} node")[:120]
