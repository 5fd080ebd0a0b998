"""The Longformer attention layer: dilated band attention, written with Gather as exporters do, or dense with a mask.

Position p attends to the positions p + dilation (j - window), 0 <= j <= 2 window. As in the published benchmark the
scale 1 / sqrt(head size) comes after the softmax.
"""

import itertools
import math

import numpy as np
import onnx

from bench.models.builder import RELU_GAIN, GraphBuilder


def longformer(
    batch: int,
    *,
    positions: int = 10000,
    window: int = 1000,
    dilation: int = 4,
    heads: int = 8,
    head_size: int = 64,
    slices: int = 5,
) -> onnx.ModelProto:
    """The layer in gather form: [batch, positions, heads * head_size] to the same shape.

    Keys and values are padded with zeros at both ends, and the softmax counts the padding. Each slice of the sequence
    gathers its keys and values to [batch, heads, slice, 2 window + 1, head_size].
    """
    graph = GraphBuilder("longformer")
    hidden = heads * head_size
    x = graph.input("input", (batch, positions, hidden))
    query, key, value = _project(graph, x, batch, positions, heads, head_size)
    margin = dilation * window
    pads = graph.integers(0, 0, margin, 0, 0, 0, margin, 0)
    key, value = (graph.node("Pad", [tensor, pads, graph.scalar(0.0)], mode="constant") for tensor in (key, value))

    bounds = [positions * number // slices for number in range(slices + 1)]
    offsets = dilation * np.arange(2 * window + 1, dtype=np.int64)
    mixed = []
    for start, stop in itertools.pairwise(bounds):
        # Counted in the padded sequence, where position p stands at p + margin.
        index = graph.constant(np.arange(start, stop, dtype=np.int64)[:, None] + offsets, "index")
        limits = [graph.integers(number) for number in (start, stop, 2, 1)]
        slice_of_query = graph.node("Slice", [query, *limits])
        column = graph.node("Unsqueeze", [slice_of_query, graph.integers(4)])
        scores = graph.node("MatMul", [graph.node("Gather", [key, index], axis=2), column])
        weights = _weights(graph, graph.node("Squeeze", [scores, graph.integers(4)]), head_size)
        row = graph.node("Unsqueeze", [weights, graph.integers(3)])
        product = graph.node("MatMul", [row, graph.node("Gather", [value, index], axis=2)])
        mixed.append(graph.node("Squeeze", [product, graph.integers(3)]))
    result = _feed_forward(graph, graph.concat(mixed, axis=2), x, batch, positions, hidden)
    return graph.finish(result, (batch, positions, hidden))


def longformer_masked(
    batch: int,
    *,
    positions: int = 2500,
    window: int = 250,
    dilation: int = 4,
    heads: int = 8,
    head_size: int = 64,
) -> onnx.ModelProto:
    """The layer with dense scores and an additive mask: [batch, positions, heads * head_size] to the same shape.

    There is no padding here, so near the two ends, where the band leaves the sequence, the softmax has fewer terms
    than in the gather form and the results differ.
    """
    graph = GraphBuilder("longformer_masked")
    hidden = heads * head_size
    x = graph.input("input", (batch, positions, hidden))
    query, key, value = _project(graph, x, batch, positions, heads, head_size)
    distance = np.arange(positions)[None, :] - np.arange(positions)[:, None]
    in_band = (distance % dilation == 0) & (abs(distance) <= dilation * window)
    mask = np.where(in_band, np.float32(0.0), np.finfo(np.float32).min)[None, None]

    scores = graph.node("MatMul", [query, graph.transpose(key, 0, 1, 3, 2)])
    weights = _weights(graph, graph.add(scores, graph.constant(mask, "mask")), head_size)
    result = _feed_forward(graph, graph.node("MatMul", [weights, value]), x, batch, positions, hidden)
    return graph.finish(result, (batch, positions, hidden))


def _project(
    graph: GraphBuilder, x: str, batch: int, positions: int, heads: int, head_size: int
) -> tuple[str, str, str]:
    """Query, key and value, each [batch, heads, positions, head_size]; no biases."""
    hidden = heads * head_size
    # Queries and keys are drawn small: the softmax sees the scores unscaled, and must not pick a single position.
    query, key, value = (
        graph.split_heads(graph.linear(x, hidden, hidden, bias=False, gain=gain), batch, positions, heads, head_size)
        for gain in (0.5, 0.5, 1.0)
    )
    return query, key, value


def _weights(graph: GraphBuilder, scores: str, head_size: int) -> str:
    return graph.node("Div", [graph.node("Softmax", [scores], axis=-1), graph.scalar(math.sqrt(head_size))])


def _feed_forward(graph: GraphBuilder, mixed: str, x: str, batch: int, positions: int, hidden: int) -> str:
    """Output projection, two linear layers with a ReLU each, residual; `mixed` is [batch, heads, positions, size]."""
    # The gain undoes the averaging over the band and the scale, so that the layers below see values of order one.
    y = graph.linear(graph.merge_heads(mixed, batch, positions, hidden), hidden, hidden, bias=False, gain=16.0)
    for _ in range(2):
        y = graph.relu(graph.linear(y, hidden, hidden, gain=RELU_GAIN))
    return graph.add(x, y)
