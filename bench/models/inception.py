"""Blocks of Inception-v3 in torchvision's layout, at the size where the network has them."""

import onnx

from bench.models.builder import GraphBuilder, Size


def inception_a(batch: int, *, size: int = 35, channels: int = 288) -> onnx.ModelProto:
    """Block A (the third of the network): [batch, 288, 35, 35] to [batch, 288, 35, 35]."""
    graph = GraphBuilder("inception_a")
    x = graph.input("input", (batch, channels, size, size))
    branches = [
        _layer(graph, x, (channels, 64), 1),
        _layer(graph, _layer(graph, x, (channels, 48), 1), (48, 64), 5),
        _layers(graph, x, channels, ((64, 1), (96, 3), (96, 3))),
        _layer(graph, _average(graph, x), (channels, 64), 1),
    ]
    return graph.finish(graph.concat(branches, axis=1), (batch, 288, size, size))


def inception_c(batch: int, *, size: int = 17, width: int = 192) -> onnx.ModelProto:
    """Block C (the last of the network): [batch, 768, 17, 17] to [batch, 768, 17, 17]."""
    graph = GraphBuilder("inception_c")
    x = graph.input("input", (batch, 768, size, size))
    row, column = (1, 7), (7, 1)
    branches = [
        _layer(graph, x, (768, 192), 1),
        _layers(graph, x, 768, ((width, 1), (width, row), (192, column))),
        _layers(graph, x, 768, ((width, 1), (width, column), (width, row), (width, column), (192, row))),
        _layer(graph, _average(graph, x), (768, 192), 1),
    ]
    return graph.finish(graph.concat(branches, axis=1), (batch, 768, size, size))


def inception_e(batch: int, *, size: int = 8, channels: int = 2048) -> onnx.ModelProto:
    """Block E (the last of the network): [batch, 2048, 8, 8] to [batch, 2048, 8, 8]."""
    graph = GraphBuilder("inception_e")
    x = graph.input("input", (batch, channels, size, size))
    branches = [
        _layer(graph, x, (channels, 320), 1),
        _fork(graph, _layer(graph, x, (channels, 384), 1)),
        _fork(graph, _layers(graph, x, channels, ((448, 1), (384, 3)))),
        _layer(graph, _average(graph, x), (channels, 192), 1),
    ]
    return graph.finish(graph.concat(branches, axis=1), (batch, 2048, size, size))


def _layer(graph: GraphBuilder, x: str, channels: tuple[int, int], kernel: Size) -> str:
    return graph.relu(graph.conv(x, channels, kernel))


def _layers(graph: GraphBuilder, x: str, source: int, layers: tuple[tuple[int, Size], ...]) -> str:
    for target, kernel in layers:
        x = _layer(graph, x, (source, target), kernel)
        source = target
    return x


def _fork(graph: GraphBuilder, x: str) -> str:
    """1x3 and 3x1 side by side, 384 channels each."""
    return graph.concat([_layer(graph, x, (384, 384), (1, 3)), _layer(graph, x, (384, 384), (3, 1))], axis=1)


def _average(graph: GraphBuilder, x: str) -> str:
    return graph.node("AveragePool", [x], kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1], count_include_pad=1)
