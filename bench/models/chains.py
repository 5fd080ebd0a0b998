"""Chains of equal layers of any length: what the growth of the e-graph with the depth of a model is measured on."""

import math
from collections.abc import Callable, Mapping

import onnx

from bench.models.builder import GraphBuilder
from bench.models.residual import BLOCK_GAIN

Layer = Callable[[GraphBuilder, str], str]
_CHANNELS, _SIZE = 8, 14
_POSITIONS, _HIDDEN, _HEADS = 16, 32, 4


def _convolution(graph: GraphBuilder, x: str) -> str:
    """A 3x3 convolution and a ReLU."""
    return graph.relu(graph.conv(x, (_CHANNELS, _CHANNELS), 3))


def _residual(graph: GraphBuilder, x: str) -> str:
    """Two 3x3 convolutions beside a shortcut."""
    y = graph.conv(_convolution(graph, x), (_CHANNELS, _CHANNELS), 3, gain=BLOCK_GAIN)
    return graph.relu(graph.add(y, x))


def _attention(graph: GraphBuilder, x: str) -> str:
    """Multi-head attention beside a shortcut."""
    head = _HIDDEN // _HEADS
    query, key, value = (
        graph.reshape(graph.linear(x, _HIDDEN, _HIDDEN), 1, _POSITIONS, _HEADS, head) for _ in range(3)
    )
    scores = graph.node("MatMul", [graph.transpose(query, 0, 2, 1, 3), graph.transpose(key, 0, 2, 3, 1)])
    weights = graph.node("Softmax", [graph.node("Div", [scores, graph.scalar(math.sqrt(head))])], axis=-1)
    mixed = graph.node("MatMul", [weights, graph.transpose(value, 0, 2, 1, 3)])
    return graph.add(graph.linear(graph.merge_heads(mixed, 1, _POSITIONS, _HIDDEN), _HIDDEN, _HIDDEN), x)


def _siblings(graph: GraphBuilder, x: str) -> str:
    """Three products of one input, gated and added."""
    gate, one, other = (graph.linear(x, _HIDDEN, _HIDDEN, bias=False) for _ in range(3))
    return graph.add(graph.node("Mul", [graph.node("Sigmoid", [gate]), one]), other)


CHAINS: Mapping[str, tuple[Layer, tuple[int, ...]]] = {
    "conv": (_convolution, (1, _CHANNELS, _SIZE, _SIZE)),
    "residual": (_residual, (1, _CHANNELS, _SIZE, _SIZE)),
    "attention": (_attention, (1, _POSITIONS, _HIDDEN)),
    "siblings": (_siblings, (1, _POSITIONS, _HIDDEN)),
}


def chain(kind: str, layers: int) -> onnx.ModelProto:
    """So many layers of one kind of CHAINS, each with weights of its own."""
    layer, shape = CHAINS[kind]
    graph = GraphBuilder(f"{kind}-chain")
    x = graph.input("input", shape)
    for _ in range(layers):
        x = layer(graph, x)
    return graph.finish(x, shape)
