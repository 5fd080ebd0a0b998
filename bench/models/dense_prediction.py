"""Fully convolutional networks: GCN (global convolutional network) and CSRNet."""

import onnx

from bench.models.builder import LINEAR_GAIN, GraphBuilder
from bench.models.residual import BLOCK_GAIN, bottleneck, stem

# VGG-16 up to the tenth convolution; a zero is a 2x2 max pool.
_CSRNET_FRONT = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512)
_CSRNET_BACK = (512, 512, 512, 256, 128, 64)


def csrnet(batch: int, *, size: int = 224) -> onnx.ModelProto:
    """CSRNet: [batch, 3, size, size] to a density map [batch, 1, size / 8, size / 8]."""
    graph = GraphBuilder("csrnet")
    x = graph.input("input", (batch, 3, size, size))
    source = 3
    for target in _CSRNET_FRONT:
        if target == 0:
            x = graph.max_pool(x, 2, stride=2)
            continue
        x = graph.relu(graph.conv(x, (source, target), 3))
        source = target
    return graph.finish(_csrnet_back(graph, x), (batch, 1, size // 8, size // 8))


def csrnet_backend(batch: int, *, size: int = 14) -> onnx.ModelProto:
    """The dilated back end of CSRNet alone: [batch, 512, size, size] to [batch, 1, size, size]."""
    graph = GraphBuilder("csrnet_backend")
    x = graph.input("input", (batch, 512, size, size))
    return graph.finish(_csrnet_back(graph, x), (batch, 1, size, size))


def _csrnet_back(graph: GraphBuilder, x: str) -> str:
    source = 512
    for target in _CSRNET_BACK:
        x = graph.relu(graph.conv(x, (source, target), 3, dilation=2))
        source = target
    return graph.conv(x, (source, 1), 1, gain=LINEAR_GAIN)


def gcn(batch: int, *, size: int = 224, classes: int = 21) -> onnx.ModelProto:
    """GCN on a ResNet-50-like backbone: [batch, 3, size, size] to [batch, classes, size, size].

    Layers 3 and 4 of the backbone are large-kernel blocks; a head of 11x1 and 1x11 convolutions scores each of the
    four scales, and the scores are refined and upsampled from the smallest scale to the largest.
    """
    graph = GraphBuilder("gcn")
    x = stem(graph, graph.input("input", (batch, 3, size, size)))
    heads = []
    for layer, blocks in enumerate((3, 4, 6, 6)):
        source, target = (64 if layer == 0 else 128 << layer), 256 << layer
        for block in range(blocks):
            stride = 2 if block == 0 and layer > 0 else 1
            if layer < 2:
                x = bottleneck(graph, x, (source, target), width=target // 4, stride=stride)
            else:
                kernel, width = ((5, 85), (7, 128))[layer - 2]
                x = _large_kernel_bottleneck(graph, x, (source, target), kernel=kernel, width=width, stride=stride)
            source = target
        head = _large_kernel(graph, x, (target, classes), kernel=11, activation=False)
        heads.append(_boundary(graph, head, classes))

    scores = heads[3]
    for layer, head in ((2, heads[2]), (1, heads[1]), (0, heads[0])):
        scores = _upsample(graph, scores, (batch, classes, size >> layer + 2, size >> layer + 2))
        scores = _boundary(graph, graph.add(head, scores), classes)
    scores = _boundary(graph, scores, classes)
    scores = _boundary(graph, _upsample(graph, scores, (batch, classes, size, size)), classes)
    return graph.finish(graph.conv(scores, (classes, classes), 1, gain=LINEAR_GAIN), (batch, classes, size, size))


def _large_kernel(graph: GraphBuilder, x: str, channels: tuple[int, int], *, kernel: int, activation: bool) -> str:
    """(k x 1 then 1 x k) plus (1 x k then k x 1), with a ReLU after each convolution or without any."""
    branches = []
    for first, second in (((kernel, 1), (1, kernel)), ((1, kernel), (kernel, 1))):
        y = x
        for ends, shape in ((channels, first), ((channels[1], channels[1]), second)):
            y = graph.relu(graph.conv(y, ends, shape)) if activation else graph.conv(y, ends, shape, gain=0.8)
        branches.append(y)
    return graph.add(branches[0], branches[1])


def _large_kernel_bottleneck(
    graph: GraphBuilder, x: str, channels: tuple[int, int], *, kernel: int, width: int, stride: int
) -> str:
    """The large-kernel block and a 1x1 (with the stride), added to the input or its projection; no last ReLU."""
    y = _large_kernel(graph, x, (channels[0], width), kernel=kernel, activation=True)
    y = graph.conv(y, (width, channels[1]), 1, stride=stride, gain=BLOCK_GAIN)
    if channels[0] != channels[1] or stride != 1:
        x = graph.conv(x, channels, 1, stride=stride, gain=LINEAR_GAIN)
    return graph.add(y, x)


def _boundary(graph: GraphBuilder, x: str, channels: int) -> str:
    """Boundary refinement: x plus two 3x3 convolutions of x with a ReLU between them."""
    y = graph.relu(graph.conv(x, (channels, channels), 3))
    return graph.add(graph.conv(y, (channels, channels), 3, gain=BLOCK_GAIN), x)


def _upsample(graph: GraphBuilder, x: str, shape: tuple[int, int, int, int]) -> str:
    """Bilinear Resize to a shape, corners aligned."""
    return graph.node(
        "Resize",
        [x, "", "", graph.integers(*shape)],
        mode="linear",
        coordinate_transformation_mode="align_corners",
        cubic_coeff_a=-0.75,
        nearest_mode="floor",
    )
