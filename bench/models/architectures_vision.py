"""Image networks as exporters write them: every kind of block in its place, fewer and narrower than in the original.

The sizes of the originals can be asked for: ``architectures.FULL``.
"""

import math
from collections.abc import Sequence

import numpy as np
import onnx

from bench.models.builder import LINEAR_GAIN, RELU_GAIN, GraphBuilder
from bench.models.residual import bottleneck, classifier, stem


def _float32(value: float) -> float:
    return float(np.float32(value))


def gelu(graph: GraphBuilder, x: str) -> str:
    """The five nodes that exporters write up to opset 19."""
    error = graph.node("Erf", [graph.node("Div", [x, graph.scalar(math.sqrt(2.0))])])
    return graph.node("Mul", [graph.node("Mul", [x, graph.add(error, graph.scalar(1.0))]), graph.scalar(0.5)])


def layer_normalization(graph: GraphBuilder, x: str, size: int, epsilon: float = 1e-6) -> str:
    """LayerNormalization of the last axis."""
    parameters = [graph.vector(size, shift=1.0), graph.vector(size)]
    return graph.node("LayerNormalization", [x, *parameters], axis=-1, epsilon=_float32(epsilon))


def _head(graph: GraphBuilder, x: str, features: int, classes: int) -> str:
    return graph.gemm(graph.node("Flatten", [graph.node("GlobalAveragePool", [x])], axis=1), features, classes)


def _squeeze_and_excite(graph: GraphBuilder, x: str, channels: int, inner: int, gate: str) -> str:
    pooled = graph.node("ReduceMean", [x], axes=[2, 3], keepdims=1)
    if gate == "HardSigmoid":
        hidden = graph.relu(graph.conv(pooled, (channels, inner), 1))
        weights = graph.node("HardSigmoid", [graph.conv(hidden, (inner, channels), 1)], alpha=_float32(1 / 6), beta=0.5)
    else:
        hidden = silu(graph, graph.conv(pooled, (channels, inner), 1))
        weights = graph.node("Sigmoid", [graph.conv(hidden, (inner, channels), 1)])
    return graph.node("Mul", [x, weights])


def silu(graph: GraphBuilder, x: str) -> str:
    """x sigmoid(x)."""
    return graph.node("Mul", [x, graph.node("Sigmoid", [x])])


def resnet50(
    batch: int, *, size: int = 64, width: int = 16, blocks: Sequence[int] = (1, 2, 2, 1), classes: int = 10
) -> onnx.ModelProto:
    """ResNet: [batch, 3, size, size] to [batch, classes]."""
    graph = GraphBuilder("resnet50")
    x = stem(graph, graph.input("input", (batch, 3, size, size)))
    source = 64
    for stage, count in enumerate(blocks):
        target = 4 * width << stage
        for block in range(count):
            stride = 2 if block == 0 and stage > 0 else 1
            x = bottleneck(graph, x, (source, target), width=width << stage, stride=stride, groups=1)
            source = target
    return graph.finish(classifier(graph, x, source, classes), (batch, classes))


# Blocks of MobileNetV3: kernel, expanded and resulting channels, squeeze, hard swish, stride.
MobileBlock = tuple[int, int, int, bool, bool, int]
SOME_MOBILE_BLOCKS: tuple[MobileBlock, ...] = (
    (3, 16, 16, True, False, 1),
    (3, 64, 24, False, False, 2),
    (5, 72, 24, True, False, 1),
    (3, 72, 40, False, True, 2),
    (5, 120, 40, True, True, 1),
)
MOBILE_BLOCKS: tuple[MobileBlock, ...] = (
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1),
    (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    (5, 960, 160, True, True, 1),
    (5, 960, 160, True, True, 1),
)


def mobilenetv3(
    batch: int,
    *,
    size: int = 64,
    blocks: Sequence[MobileBlock] = SOME_MOBILE_BLOCKS,
    last: int = 96,
    hidden: int = 128,
    classes: int = 10,
) -> onnx.ModelProto:
    """MobileNetV3: inverted residuals with hard swish and squeeze-and-excitation."""
    graph = GraphBuilder("mobilenetv3")
    x = graph.conv(graph.input("input", (batch, 3, size, size)), (3, 16), 3, stride=2)
    x, channels = _hard_swish(graph, x), 16
    for kernel, wide, target, squeeze, swish, stride in blocks:
        y = x
        if wide != channels:
            y = graph.conv(y, (channels, wide), 1)
            y = _hard_swish(graph, y) if swish else graph.relu(y)
        y = graph.conv(y, (wide, wide), kernel, stride=stride, groups=wide)
        y = _hard_swish(graph, y) if swish else graph.relu(y)
        if squeeze:
            y = _squeeze_and_excite(graph, y, wide, wide // 4, "HardSigmoid")
        y = graph.conv(y, (wide, target), 1, gain=LINEAR_GAIN)
        x, channels = (graph.add(y, x) if stride == 1 and channels == target else y), target
    x = _hard_swish(graph, graph.conv(x, (channels, last), 1))
    pooled = graph.node("Flatten", [graph.node("GlobalAveragePool", [x])], axis=1)
    x = _hard_swish(graph, graph.gemm(pooled, last, hidden))
    return graph.finish(graph.gemm(x, hidden, classes), (batch, classes))


def _hard_swish(graph: GraphBuilder, x: str) -> str:
    """As exporters write it before opset 14, and after it where they are careful: x clip(x + 3, 0, 6) / 6."""
    shifted = graph.add(x, graph.scalar(3.0))
    clipped = graph.node("Clip", [shifted, graph.scalar(0.0), graph.scalar(6.0)])
    return graph.node("Div", [graph.node("Mul", [x, clipped]), graph.scalar(6.0)])


# Blocks of EfficientNet: expansion, resulting channels, kernel, stride.
EfficientBlock = tuple[int, int, int, int]
SOME_EFFICIENT_BLOCKS: tuple[EfficientBlock, ...] = (
    (1, 16, 3, 1),
    (6, 24, 3, 2),
    (6, 24, 3, 1),
    (6, 40, 5, 2),
    (6, 40, 5, 1),
)
EFFICIENT_BLOCKS: tuple[EfficientBlock, ...] = (
    (1, 16, 3, 1),
    *((6, 24, 3, stride) for stride in (2, 1)),
    *((6, 40, 5, stride) for stride in (2, 1)),
    *((6, 80, 3, stride) for stride in (2, 1, 1)),
    *((6, 112, 5, 1) for _ in range(3)),
    *((6, 192, 5, stride) for stride in (2, 1, 1, 1)),
    (6, 320, 3, 1),
)


def efficientnet_b0(
    batch: int,
    *,
    size: int = 64,
    blocks: Sequence[EfficientBlock] = SOME_EFFICIENT_BLOCKS,
    last: int = 160,
    classes: int = 10,
) -> onnx.ModelProto:
    """EfficientNet: inverted residuals with SiLU and squeeze-and-excitation."""
    graph = GraphBuilder("efficientnet_b0")
    x = silu(graph, graph.conv(graph.input("input", (batch, 3, size, size)), (3, 32), 3, stride=2))
    channels = 32
    for expand, target, kernel, stride in blocks:
        y, wide = x, channels * expand
        if expand > 1:
            y = silu(graph, graph.conv(y, (channels, wide), 1))
        y = silu(graph, graph.conv(y, (wide, wide), kernel, stride=stride, groups=wide))
        y = _squeeze_and_excite(graph, y, wide, max(1, channels // 4), "Sigmoid")
        y = graph.conv(y, (wide, target), 1, gain=LINEAR_GAIN)
        x, channels = (graph.add(y, x) if stride == 1 and channels == target else y), target
    x = silu(graph, graph.conv(x, (channels, last), 1))
    return graph.finish(_head(graph, x, last, classes), (batch, classes))


def convnext(
    batch: int,
    *,
    size: int = 64,
    widths: Sequence[int] = (24, 48),
    depths: Sequence[int] = (2, 2),
    classes: int = 10,
) -> onnx.ModelProto:
    """ConvNeXt: wide depthwise convolutions, normalization and perceptron with the channels last."""
    graph = GraphBuilder("convnext")
    x = graph.conv(graph.input("input", (batch, 3, size, size)), (3, widths[0]), 4, stride=4, padding=0)
    x = _normalized_channels(graph, x, widths[0])
    before = widths[0]
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        if stage:
            x = graph.conv(_normalized_channels(graph, x, before), (before, width), 2, stride=2, padding=0)
        before = width
        for _ in range(depth):
            y = graph.transpose(graph.conv(x, (width, width), 7, groups=width, gain=LINEAR_GAIN), 0, 2, 3, 1)
            y = layer_normalization(graph, y, width)
            y = graph.linear(gelu(graph, graph.linear(y, width, 4 * width)), 4 * width, width)
            y = graph.node("Mul", [y, graph.vector(width)])
            x = graph.add(x, graph.transpose(y, 0, 3, 1, 2))
    pooled = graph.node("GlobalAveragePool", [x])
    flat = graph.node("Flatten", [_normalized_channels(graph, pooled, widths[-1])], axis=1)
    return graph.finish(graph.gemm(flat, widths[-1], classes), (batch, classes))


def _normalized_channels(graph: GraphBuilder, x: str, channels: int) -> str:
    last = graph.transpose(x, 0, 2, 3, 1)
    return graph.transpose(layer_normalization(graph, last, channels), 0, 3, 1, 2)


def _chosen(graph: GraphBuilder, x: str, position: int, axis: int) -> str:
    """One entry of an axis, which goes."""
    return graph.node("Squeeze", [graph.node("Gather", [x, graph.integers(position)], axis=axis), graph.integers(axis)])


def _attention(graph: GraphBuilder, x: str, shape: tuple[int, int, int], heads: int, bias: Sequence[str] = ()) -> str:
    """Self-attention with one matrix for query, key and value: [batch, positions, width] to the same.

    ``bias`` are added to the scores one after the other.
    """
    batch, positions, width = shape
    size = width // heads
    joint = graph.reshape(graph.linear(x, width, 3 * width), batch, positions, 3, heads, size)
    joint = graph.transpose(joint, 2, 0, 3, 1, 4)
    query, key, value = (_chosen(graph, joint, which, 0) for which in range(3))
    query = graph.node("Mul", [query, graph.scalar(size**-0.5)])
    scores = graph.node("MatMul", [query, graph.transpose(key, 0, 1, 3, 2)])
    for name in bias:
        scores = graph.add(scores, name)
    mixed = graph.node("MatMul", [graph.node("Softmax", [scores], axis=-1), value])
    return graph.linear(graph.merge_heads(mixed, batch, positions, width), width, width)


def _perceptron(graph: GraphBuilder, x: str, width: int) -> str:
    return graph.linear(gelu(graph, graph.linear(x, width, 4 * width)), 4 * width, width, gain=RELU_GAIN)


def vit(
    batch: int,
    *,
    size: int = 32,
    patch: int = 8,
    width: int = 48,
    depth: int = 2,
    heads: int = 3,
    classes: int = 10,
) -> onnx.ModelProto:
    """Vision transformer: patches, a class token, encoder layers with the normalization first."""
    graph = GraphBuilder("vit")
    x = graph.conv(graph.input("input", (batch, 3, size, size)), (3, width), patch, stride=patch, padding=0)
    x = graph.transpose(graph.reshape(x, batch, width, -1), 0, 2, 1)
    token = graph.node("Expand", [graph.vector(width, shape=(1, 1, width)), graph.integers(batch, 1, width)])
    positions = (size // patch) ** 2 + 1
    x = graph.add(graph.concat([token, x], axis=1), graph.vector(positions * width, shape=(1, positions, width)))
    for _ in range(depth):
        x = graph.add(x, _attention(graph, layer_normalization(graph, x, width), (batch, positions, width), heads))
        x = graph.add(x, _perceptron(graph, layer_normalization(graph, x, width), width))
    x = layer_normalization(graph, x, width)
    first = _chosen(graph, x, 0, 1)
    return graph.finish(graph.gemm(first, width, classes), (batch, classes))


def swin(
    batch: int,
    *,
    size: int = 32,
    patch: int = 2,
    width: int = 24,
    window: int = 4,
    depths: Sequence[int] = (2, 2),
    heads: Sequence[int] = (2, 2),
    classes: int = 10,
) -> onnx.ModelProto:
    """Swin transformer: attention in windows, every second time shifted ones; patches merge between the stages."""
    graph = GraphBuilder("swin")
    x = graph.conv(graph.input("input", (batch, 3, size, size)), (3, width), patch, stride=patch, padding=0)
    side = size // patch
    x = layer_normalization(graph, graph.transpose(x, 0, 2, 3, 1), width)
    for stage, (depth, count) in enumerate(zip(depths, heads, strict=True)):
        for block in range(depth):
            # A single window is not shifted.
            shift = window // 2 if block % 2 and side > window else 0
            y = _window_attention(
                graph, layer_normalization(graph, x, width), (batch, side, width), window, shift, count
            )
            x = graph.add(x, y)
            x = graph.add(x, _perceptron(graph, layer_normalization(graph, x, width), width))
        if stage < len(depths) - 1:
            corners = [_every_second(graph, x, row, column) for column in (0, 1) for row in (0, 1)]
            x = layer_normalization(graph, graph.concat(corners, axis=-1), 4 * width)
            x, width, side = graph.linear(x, 4 * width, 2 * width, bias=False), 2 * width, side // 2
    x = layer_normalization(graph, x, width)
    pooled = graph.node("ReduceMean", [x], axes=[1, 2], keepdims=0)
    return graph.finish(graph.gemm(pooled, width, classes), (batch, classes))


def _every_second(graph: GraphBuilder, x: str, row: int, column: int) -> str:
    end = np.iinfo(np.int64).max
    rows = [graph.integers(value) for value in (row, end, 1, 2)]
    columns = [graph.integers(value) for value in (column, end, 2, 2)]
    return graph.node("Slice", [graph.node("Slice", [x, *rows]), *columns])


def _rolled(graph: GraphBuilder, x: str, shift: int) -> str:
    """Both spatial axes begin ``shift`` later, as exporters write a roll."""
    end = np.iinfo(np.int64).max
    for axis in (1, 2):
        tail = graph.node("Slice", [x, *(graph.integers(value) for value in (shift, end, axis))])
        front = graph.node("Slice", [x, *(graph.integers(value) for value in (0, shift, axis))])
        x = graph.concat([tail, front], axis=axis)
    return x


def _window_attention(
    graph: GraphBuilder, x: str, shape: tuple[int, int, int], window: int, shift: int, heads: int
) -> str:
    batch, side, width = shape
    count, area = side // window, window * window
    if shift:
        x = _rolled(graph, x, shift)
    x = graph.reshape(x, batch, count, window, count, window, width)
    x = graph.reshape(graph.transpose(x, 0, 1, 3, 2, 4, 5), -1, area, width)
    # Learned for every distance between two positions of a window; the index is constant.
    table = graph.vector((2 * window - 1) ** 2 * heads, shape=((2 * window - 1) ** 2, heads))
    place = np.stack(np.meshgrid(np.arange(window), np.arange(window), indexing="ij")).reshape(2, -1)
    distance = place[:, :, None] - place[:, None, :] + window - 1
    index = graph.constant(distance[0] * (2 * window - 1) + distance[1], "relative_position")
    learned = graph.transpose(graph.node("Gather", [table, index], axis=0), 2, 0, 1)
    bias = [graph.node("Unsqueeze", [learned, graph.integers(0)])]
    if shift:
        bias.append(graph.constant(_shift_mask(side, window, shift, batch), "attention_mask"))
    y = _attention(graph, x, (batch * count * count, area, width), heads, bias)
    y = graph.transpose(graph.reshape(y, batch, count, count, window, window, width), 0, 1, 3, 2, 4, 5)
    y = graph.reshape(y, batch, side, side, width)
    return _rolled(graph, y, side - shift) if shift else y


def _shift_mask(side: int, window: int, shift: int, batch: int) -> np.ndarray:
    """-100 between positions that the roll brought together: [windows, 1, area, area]."""
    part = np.zeros((side, side), dtype=np.int64)
    bounds = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for number, (rows, columns) in enumerate((r, c) for r in bounds for c in bounds):
        part[rows, columns] = number
    count = side // window
    parts = part.reshape(count, window, count, window).transpose(0, 2, 1, 3).reshape(-1, window * window)
    mask = np.where(parts[:, None, :] != parts[:, :, None], np.float32(-100), np.float32(0))
    return np.tile(mask[:, None], (batch, 1, 1, 1))


def unet(batch: int, *, size: int = 32, widths: Sequence[int] = (8, 16, 32, 64), classes: int = 2) -> onnx.ModelProto:
    """U-Net: down by pooling, up by ConvTranspose and by Resize, with what was there before beside it."""
    graph = GraphBuilder("unet")
    x, kept, channels = graph.input("input", (batch, 3, size, size)), list[str](), 3
    for width in widths[:-1]:
        x = _two_convolutions(graph, x, channels, width)
        kept.append(x)
        x, channels = graph.max_pool(x, 2, stride=2), width
    x, channels = _two_convolutions(graph, x, channels, widths[-1]), widths[-1]
    for level, width in enumerate(reversed(widths[:-1])):
        if level % 2:
            scales = graph.constant(np.array([1, 1, 2, 2], dtype=np.float32), "scales")
            x = graph.node("Resize", [x, "", scales], mode="nearest", nearest_mode="floor",
                           coordinate_transformation_mode="asymmetric")  # fmt: skip
            x = graph.conv(x, (channels, width), 1)
        else:
            x = graph.conv_transpose(x, (channels, width), 2, stride=2)
        x = _two_convolutions(graph, graph.concat([kept.pop(), x], axis=1), 2 * width, width)
        channels = width
    return graph.finish(graph.conv(x, (channels, classes), 1), (batch, classes, size, size))


def _two_convolutions(graph: GraphBuilder, x: str, source: int, target: int) -> str:
    return graph.relu(graph.conv(graph.relu(graph.conv(x, (source, target), 3)), (target, target), 3))
