"""Sequence models: a BERT layer and NasRNN (the Longformer layer has a file of its own)."""

import math

import numpy as np
import onnx

from bench.models.builder import RELU_GAIN, GraphBuilder

# The cell found by architecture search, gate by gate, then three levels of pairs: (combination, left, right).
_GATES = ("Relu", "Sigmoid", "Tanh", "Sigmoid", "Sigmoid", "Tanh", "Sigmoid", "Relu")
_PAIRS_OF_GATES = (("Add", 0, 3), ("Add", 1, 2), ("Mul", 4, 5), ("Mul", 6, 7))
_PAIRS_OF_PAIRS = (("Add", ("Sigmoid", 1), ("Tanh", 2)), ("Mul", ("Tanh", 0), ("Tanh", 3)))


def nasrnn(batch: int, *, steps: int = 5, hidden: int = 512) -> onnx.ModelProto:
    """NasRNN: inputs x0 … x4 and state, each [batch, hidden], to the last state.

    Every step multiplies its input and the state by eight weights each; the weights are those of all steps.
    """
    graph = GraphBuilder("nasrnn")
    inputs = [graph.input(f"x{step}", (batch, hidden)) for step in range(steps)]
    state = graph.input("state", (batch, hidden))
    weights = [
        tuple(graph.weight((hidden, hidden), fan_in=hidden, gain=1.0) for _ in ("input", "state")) for _ in _GATES
    ]
    for x in inputs:
        gates = []
        for activation, (of_input, of_state) in zip(_GATES, weights, strict=True):
            total = graph.add(graph.node("MatMul", [x, of_input]), graph.node("MatMul", [state, of_state]))
            gates.append(graph.node(activation, [total]))
        pairs = [graph.node(operator, [gates[left], gates[right]]) for operator, left, right in _PAIRS_OF_GATES]
        level = []
        for operator, (left_activation, left), (right_activation, right) in _PAIRS_OF_PAIRS:
            operands = [graph.node(left_activation, [pairs[left]]), graph.node(right_activation, [pairs[right]])]
            level.append(graph.node("Tanh", [graph.node(operator, operands)]))
        state = graph.node("Tanh", [graph.node("Mul", level)])
    return graph.finish(state, (batch, hidden))


def bert_layer(batch: int, *, positions: int = 128, hidden: int = 768, heads: int = 12) -> onnx.ModelProto:
    """An encoder layer of BERT-base: [batch, positions, hidden] to the same shape."""
    graph = GraphBuilder("bert_layer")
    head_size, wide = hidden // heads, 4 * hidden
    x = graph.input("input", (batch, positions, hidden))

    query, key, value = (
        graph.reshape(graph.linear(x, hidden, hidden), batch, positions, heads, head_size) for _ in range(3)
    )
    scores = graph.node("MatMul", [graph.transpose(query, 0, 2, 1, 3), graph.transpose(key, 0, 2, 3, 1)])
    scores = graph.node("Div", [scores, graph.scalar(math.sqrt(head_size))])
    weights = graph.node("Softmax", [scores], axis=-1)
    mixed = graph.node("MatMul", [weights, graph.transpose(value, 0, 2, 1, 3)])
    attention = graph.linear(graph.merge_heads(mixed, batch, positions, hidden), hidden, hidden)
    x = _layer_normalization(graph, graph.add(attention, x), hidden)

    inner = _gelu(graph, graph.linear(x, hidden, wide))
    outer = graph.linear(inner, wide, hidden, gain=RELU_GAIN)
    return graph.finish(_layer_normalization(graph, graph.add(outer, x), hidden), (batch, positions, hidden))


def _layer_normalization(graph: GraphBuilder, x: str, hidden: int) -> str:
    scale, bias = graph.vector(hidden, shift=1.0), graph.vector(hidden)
    return graph.node("LayerNormalization", [x, scale, bias], axis=-1, epsilon=float(np.float32(1e-12)))


def _gelu(graph: GraphBuilder, x: str) -> str:
    """x (1 + erf(x / sqrt 2)) / 2, in the five nodes that exporters write."""
    error = graph.node("Erf", [graph.node("Div", [x, graph.scalar(math.sqrt(2.0))])])
    return graph.node("Mul", [graph.node("Mul", [x, graph.add(error, graph.scalar(1.0))]), graph.scalar(0.5)])
