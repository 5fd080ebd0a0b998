"""Classifiers with residual blocks: ResNet-18, ResNeXt-50; and the stem and bottleneck that GCN shares with them."""

import onnx

from bench.models.builder import LINEAR_GAIN, GraphBuilder

# The last layer of a block is drawn smaller, else every block would double the variance of the sum.
BLOCK_GAIN = 0.3


def stem(graph: GraphBuilder, x: str) -> str:
    """7x7 convolution of stride 2 to 64 channels, ReLU, 3x3 max pool of stride 2: a quarter of the size."""
    return graph.max_pool(graph.relu(graph.conv(x, (3, 64), 7, stride=2)), 3, stride=2, padding=1)


def bottleneck(
    graph: GraphBuilder, x: str, channels: tuple[int, int], *, width: int, stride: int = 1, groups: int = 1
) -> str:
    """1x1, 3x3 (with the stride and the groups), 1x1, added to the input or to its projection, ReLU."""
    source, target = channels
    y = graph.relu(graph.conv(x, (source, width), 1))
    y = graph.relu(graph.conv(y, (width, width), 3, stride=stride, groups=groups))
    y = graph.conv(y, (width, target), 1, gain=BLOCK_GAIN)
    if source != target or stride != 1:
        x = graph.conv(x, channels, 1, stride=stride, padding=0, gain=LINEAR_GAIN)
    return graph.relu(graph.add(y, x))


def classifier(graph: GraphBuilder, x: str, channels: int, classes: int) -> str:
    """Global average pool, Flatten, Gemm."""
    pooled = graph.node("GlobalAveragePool", [x])
    return graph.gemm(graph.node("Flatten", [pooled], axis=1), channels, classes)


def resnet18(batch: int, *, size: int = 224, classes: int = 1000) -> onnx.ModelProto:
    """ResNet-18 in torchvision's layout: [batch, 3, size, size] to [batch, classes]."""
    graph = GraphBuilder("resnet18")
    x = stem(graph, graph.input("input", (batch, 3, size, size)))
    source = 64
    for target in (64, 128, 256, 512):
        for block in range(2):
            stride = 2 if block == 0 and target != 64 else 1
            y = graph.relu(graph.conv(x, (source, target), 3, stride=stride))
            y = graph.conv(y, (target, target), 3, gain=BLOCK_GAIN)
            if stride != 1:
                x = graph.conv(x, (source, target), 1, stride=stride, gain=LINEAR_GAIN)
            x = graph.relu(graph.add(y, x))
            source = target
    return graph.finish(classifier(graph, x, 512, classes), (batch, classes))


def resnext50(batch: int, *, size: int = 224, classes: int = 1000) -> onnx.ModelProto:
    """ResNeXt-50 32x4d in torchvision's layout: [batch, 3, size, size] to [batch, classes]."""
    graph = GraphBuilder("resnext50")
    x = stem(graph, graph.input("input", (batch, 3, size, size)))
    source = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width, target = 128 << stage, 256 << stage
        for block in range(blocks):
            stride = 2 if block == 0 and stage > 0 else 1
            x = bottleneck(graph, x, (source, target), width=width, stride=stride, groups=32)
            source = target
    return graph.finish(classifier(graph, x, source, classes), (batch, classes))
