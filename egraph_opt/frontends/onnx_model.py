"""A loaded model: the proto, what is known about its tensors, and which tensor names its nodes really use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

Array = np.ndarray[Any, Any]

FLOAT = int(TensorProto.FLOAT)

# Tensors beyond this many elements stay outside the algebra: their index arithmetic could overflow int64 somewhere.
LARGEST_TENSOR = 1 << 40


@dataclass(frozen=True)
class TensorType:
    """Element type (``onnx.TensorProto.DataType``, 0 if unknown) and static shape (None if any part is unknown)."""

    element: int
    shape: tuple[int, ...] | None

    @property
    def is_algebraic(self) -> bool:
        """True for a float32 tensor of static, non-empty, sane shape: what the algebra can talk about."""
        return (
            self.element == FLOAT
            and self.shape is not None
            and all(n > 0 for n in self.shape)
            and prod(self.shape) <= LARGEST_TENSOR
        )


UNKNOWN = TensorType(0, None)


@dataclass(frozen=True)
class LoadedModel:
    """A valid model with its nodes in a valid order.

    ``types`` has an entry for every tensor of the main graph that is known in part. ``constants`` holds every tensor of
    the main graph with one fixed value: initializers that are not graph inputs, Constant nodes, and results folded from
    them; ``folded`` are the positions of the nodes all of whose results are such constants. ``path`` is the file the
    model came from, if any.
    """

    model: ModelProto
    types: Mapping[str, TensorType]
    constants: Mapping[str, Array]
    folded: frozenset[int]
    path: Path | None = None
    _uses: dict[int, tuple[str, ...]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def graph(self) -> GraphProto:
        return self.model.graph

    @cached_property
    def opset(self) -> int:
        """Version of the standard operator set; 0 if the model does not import it."""
        return opset_of(self.model)

    @cached_property
    def nodes(self) -> tuple[NodeProto, ...]:
        return tuple(self.model.graph.node)

    @cached_property
    def local_functions(self) -> frozenset[tuple[str, str]]:
        """Domain and name of the functions the model defines itself; they hide standard operators of that name."""
        return frozenset((standard(function.domain), function.name) for function in self.model.functions)

    @cached_property
    def producer(self) -> dict[str, int]:
        """Position of the node that defines each tensor of the main graph."""
        return {name: i for i, node in enumerate(self.nodes) for name in node.output if name}

    def uses(self, position: int) -> tuple[str, ...]:
        """Names node ``position`` reads: its inputs and what its subgraphs capture from outside, without repeats."""
        if position not in self._uses:
            self._uses[position] = used_names(self.nodes[position])
        return self._uses[position]

    @cached_property
    def used(self) -> frozenset[str]:
        """Names that some node of the main graph reads, or that are its outputs."""
        read = {name for position in range(len(self.nodes)) for name in self.uses(position)}
        return frozenset(read | {value.name for value in self.graph.output})

    @cached_property
    def names(self) -> frozenset[str]:
        """Every tensor and node name of the model, subgraphs included: a fresh name must not be one of these."""
        return frozenset(all_names(self.graph))

    def type_of(self, name: str) -> TensorType:
        return self.types.get(name, UNKNOWN)


def standard(domain: str) -> str:
    """The domain with both spellings of the standard one made equal."""
    return "" if domain == "ai.onnx" else domain


def overridable(model: ModelProto) -> frozenset[str]:
    """Names whose initializer is only a default because they are graph inputs; before IR version 4 there are none.

    Older models list every weight among the inputs, and onnxruntime takes no other values for them.
    """
    return frozenset(value.name for value in model.graph.input) if model.ir_version >= 4 else frozenset()


def opset_of(model: ModelProto, domain: str = "") -> int:
    return max((entry.version for entry in model.opset_import if standard(entry.domain) == domain), default=0)


def other_imports(model: ModelProto) -> dict[str, int]:
    """Versions of the domains that a model imports beside the standard one."""
    return {entry.domain: entry.version for entry in model.opset_import if standard(entry.domain) != ""}


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs in the attributes of a node."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def used_names(node: NodeProto) -> tuple[str, ...]:
    """Inputs of a node and the outer names its subgraphs capture, in order, without repeats and empty names."""
    found = dict.fromkeys(name for name in node.input if name)
    for graph in subgraphs(node):
        found.update(dict.fromkeys(_captured(graph)))
    return tuple(found)


def _captured(graph: GraphProto) -> list[str]:
    own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    own |= {tensor.values.name for tensor in graph.sparse_initializer}
    own |= {name for node in graph.node for name in node.output}
    outer = [name for node in graph.node for name in used_names(node) if name not in own]
    return outer + [value.name for value in graph.output if value.name not in own]


def all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """The nodes of a graph and of the graphs inside them."""
    for node in graph.node:
        yield node
        for inner in subgraphs(node):
            yield from all_nodes(inner)


def all_names(graph: GraphProto) -> Iterator[str]:
    yield from (value.name for value in (*graph.input, *graph.output, *graph.value_info))
    yield from (tensor.name for tensor in graph.initializer)
    yield from (tensor.values.name for tensor in graph.sparse_initializer)
    for node in graph.node:
        yield node.name
        yield from node.input
        yield from node.output
        for inner in subgraphs(node):
            yield from all_names(inner)
