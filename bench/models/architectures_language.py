"""Language models as exporters write them: token numbers in, masks and position biases as they come, few layers."""

import math
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from bench.models.architectures_vision import gelu, layer_normalization
from bench.models.builder import GraphBuilder


class TokenGraph(GraphBuilder):
    """A graph whose inputs are numbers of tokens and the like."""

    def tokens(self, name: str, shape: Sequence[int]) -> str:
        """Declare an int64 input of the graph."""
        self._inputs.append(helper.make_tensor_value_info(name, TensorProto.INT64, list(shape)))
        return name

    def embedding(self, ids: str, count: int, width: int) -> str:
        """Rows of a table by number."""
        return self.node("Gather", [self.weight((count, width), fan_in=1, gain=1.0), ids], axis=0)


def _heads(graph: GraphBuilder, x: str, batch: int, positions: int, width: int, heads: int) -> str:
    return graph.split_heads(x, batch, positions, heads, width // heads)


def bert(
    batch: int, *, positions: int = 16, width: int = 32, heads: int = 2, depth: int = 12, vocabulary: int = 100
) -> onnx.ModelProto:
    """BERT: tokens and a mask to [batch, positions, width]; the mask is computed from the input."""
    graph = TokenGraph("bert")
    ids, mask = graph.tokens("input_ids", (batch, positions)), graph.tokens("attention_mask", (batch, positions))
    places = graph.constant(np.arange(positions, dtype=np.int64)[None, :], "position_ids")
    x = graph.add(graph.embedding(ids, vocabulary, width), graph.embedding(places, 512, width))
    x = layer_normalization(graph, x, width, 1e-12)
    wide = graph.node("Cast", [graph.node("Unsqueeze", [mask, graph.integers(1, 2)])], to=TensorProto.FLOAT)
    missing = graph.node("Sub", [graph.scalar(1.0), wide])
    added = graph.node("Mul", [missing, graph.scalar(float(np.finfo(np.float32).min))])
    for _ in range(depth):
        query, key, value = (
            _heads(graph, graph.linear(x, width, width), batch, positions, width, heads) for _ in range(3)
        )
        scores = graph.node("MatMul", [query, graph.transpose(key, 0, 1, 3, 2)])
        scores = graph.add(graph.node("Div", [scores, graph.scalar(math.sqrt(width // heads))]), added)
        mixed = graph.node("MatMul", [graph.node("Softmax", [scores], axis=-1), value])
        joined = graph.linear(graph.merge_heads(mixed, batch, positions, width), width, width)
        x = layer_normalization(graph, graph.add(joined, x), width, 1e-12)
        inner = graph.linear(gelu(graph, graph.linear(x, width, 4 * width)), 4 * width, width)
        x = layer_normalization(graph, graph.add(inner, x), width, 1e-12)
    return graph.finish(x, (batch, positions, width))


def gpt2(
    batch: int, *, positions: int = 16, width: int = 32, heads: int = 2, depth: int = 6, vocabulary: int = 100
) -> onnx.ModelProto:
    """GPT-2: tokens to [batch, positions, width]; the causal mask is a constant that Where applies."""
    graph = TokenGraph("gpt2")
    ids = graph.tokens("input_ids", (batch, positions))
    places = graph.constant(np.arange(positions, dtype=np.int64)[None, :], "position_ids")
    x = graph.add(graph.embedding(ids, vocabulary, width), graph.embedding(places, 4 * positions, width))
    causal = graph.constant(np.tril(np.ones((1, 1, positions, positions), dtype=bool)), "causal")
    for _ in range(depth):
        joint = _convolved(graph, layer_normalization(graph, x, width, 1e-5), (batch, positions, width), 3 * width)
        query, key, value = (
            _heads(graph, part, batch, positions, width, heads) for part in _split(graph, joint, [width] * 3)
        )
        scores = graph.node("MatMul", [query, graph.transpose(key, 0, 1, 3, 2)])
        scores = graph.node("Div", [scores, graph.scalar(math.sqrt(width // heads))])
        scores = graph.node("Where", [causal, scores, graph.scalar(float(np.finfo(np.float32).min))])
        mixed = graph.node("MatMul", [graph.node("Softmax", [scores], axis=-1), value])
        merged = graph.merge_heads(mixed, batch, positions, width)
        x = graph.add(_convolved(graph, merged, (batch, positions, width), width), x)
        inner = _convolved(graph, layer_normalization(graph, x, width, 1e-5), (batch, positions, width), 4 * width)
        x = graph.add(x, _convolved(graph, _tanh_gelu(graph, inner), (batch, positions, 4 * width), width))
    return graph.finish(layer_normalization(graph, x, width, 1e-5), (batch, positions, width))


def _convolved(graph: GraphBuilder, x: str, shape: tuple[int, int, int], target: int) -> str:
    """A linear layer on two axes, as the original writes it."""
    batch, positions, width = shape
    weight = graph.weight((width, target), fan_in=width, gain=1.0)
    flat = graph.node("Gemm", [graph.reshape(x, -1, width), weight, graph.vector(target)], alpha=1.0, beta=1.0)
    return graph.reshape(flat, batch, positions, target)


def _split(graph: GraphBuilder, x: str, sizes: Sequence[int]) -> list[str]:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [
        graph.node("Slice", [x, *(graph.integers(value) for value in (start, start + size, 2))])
        for start, size in zip(starts, sizes, strict=True)
    ]


def _tanh_gelu(graph: GraphBuilder, x: str) -> str:
    cubed = graph.node("Mul", [graph.node("Pow", [x, graph.scalar(3.0)]), graph.scalar(0.044715)])
    inner = graph.node("Mul", [graph.add(x, cubed), graph.scalar(math.sqrt(2 / math.pi))])
    bracket = graph.add(graph.node("Tanh", [inner]), graph.scalar(1.0))
    return graph.node("Mul", [graph.node("Mul", [x, graph.scalar(0.5)]), bracket])


def t5_encoder(
    batch: int, *, positions: int = 16, width: int = 32, heads: int = 2, depth: int = 6, vocabulary: int = 100
) -> onnx.ModelProto:
    """T5 encoder: tokens to [batch, positions, width]; a learned bias for every distance, no biases elsewhere."""
    graph = TokenGraph("t5_encoder")
    x = graph.embedding(graph.tokens("input_ids", (batch, positions)), vocabulary, width)
    bias = _relative_bias(graph, positions, heads)
    for _ in range(depth):
        normal = _root_mean_square(graph, x, width)
        query, key, value = (
            _heads(graph, graph.linear(normal, width, width, bias=False), batch, positions, width, heads)
            for _ in range(3)
        )
        scores = graph.add(graph.node("MatMul", [query, graph.transpose(key, 0, 1, 3, 2)]), bias)
        mixed = graph.node("MatMul", [graph.node("Softmax", [scores], axis=-1), value])
        merged = graph.merge_heads(mixed, batch, positions, width)
        x = graph.add(x, graph.linear(merged, width, width, bias=False))
        inner = graph.linear(_root_mean_square(graph, x, width), width, 4 * width, bias=False)
        x = graph.add(x, graph.linear(graph.relu(inner), 4 * width, width, bias=False))
    return graph.finish(_root_mean_square(graph, x, width), (batch, positions, width))


def _root_mean_square(graph: GraphBuilder, x: str, width: int) -> str:
    mean = graph.node("ReduceMean", [graph.node("Pow", [x, graph.scalar(2.0)])], axes=[-1], keepdims=1)
    root = graph.node("Sqrt", [graph.add(mean, graph.scalar(1e-6))])
    normal = graph.node("Mul", [x, graph.node("Div", [graph.scalar(1.0), root])])
    return graph.node("Mul", [graph.vector(width, shift=1.0), normal])


def _relative_bias(graph: GraphBuilder, positions: int, heads: int) -> str:
    distance = np.arange(positions)[None, :] - np.arange(positions)[:, None]
    near = np.minimum(np.abs(distance), 7) + np.where(distance > 0, 8, 0)
    table = graph.weight((16, heads), fan_in=1, gain=1.0)
    found = graph.node("Gather", [table, graph.constant(near.astype(np.int64), "buckets")], axis=0)
    return graph.node("Unsqueeze", [graph.transpose(found, 2, 0, 1), graph.integers(0)])
