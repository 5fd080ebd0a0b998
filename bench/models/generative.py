"""Image generators and super-resolution: InfoGAN, DCGAN, FSRCNN, SRCNN."""

import onnx

from bench.models.builder import LINEAR_GAIN, GraphBuilder


def infogan(batch: int) -> onnx.ModelProto:
    """InfoGAN generator: [batch, 228, 1, 1] to [batch, 3, 32, 32]; no bias and no normalization."""
    graph = GraphBuilder("infogan")
    x = graph.input("input", (batch, 228, 1, 1))
    x = graph.relu(graph.conv_transpose(x, (228, 448), 2, bias=False))
    for channels in ((448, 256), (256, 128), (128, 64)):
        x = graph.relu(graph.conv_transpose(x, channels, 4, stride=2, padding=1, bias=False))
    x = graph.conv_transpose(x, (64, 3), 4, stride=2, padding=1, bias=False, gain=LINEAR_GAIN)
    return graph.finish(graph.node("Tanh", [x]), (batch, 3, 32, 32))


def dcgan(batch: int) -> onnx.ModelProto:
    """DCGAN generator: [batch, 100, 1, 1] to [batch, 3, 64, 64]; biases where normalizations were folded."""
    graph = GraphBuilder("dcgan")
    x = graph.input("input", (batch, 100, 1, 1))
    x = graph.relu(graph.conv_transpose(x, (100, 512), 4))
    for channels in ((512, 256), (256, 128), (128, 64)):
        x = graph.relu(graph.conv_transpose(x, channels, 4, stride=2, padding=1))
    x = graph.conv_transpose(x, (64, 3), 4, stride=2, padding=1, bias=False, gain=LINEAR_GAIN)
    return graph.finish(graph.node("Tanh", [x]), (batch, 3, 64, 64))


def fsrcnn(batch: int, *, size: int = 32) -> onnx.ModelProto:
    """FSRCNN, four times larger (d=56, s=12, m=4): [batch, 1, size, size] to [batch, 1, 4 size, 4 size]."""
    graph = GraphBuilder("fsrcnn")
    x = graph.input("input", (batch, 1, size, size))
    x = graph.prelu(graph.conv(x, (1, 56), 5), 56)
    x = graph.prelu(graph.conv(x, (56, 12), 1), 12)
    for _ in range(4):  # the activation comes only after the last of the mapping layers
        x = graph.conv(x, (12, 12), 3, gain=LINEAR_GAIN)
    x = graph.prelu(x, 12)
    x = graph.prelu(graph.conv(x, (12, 56), 1), 56)
    x = graph.conv_transpose(x, (56, 1), 9, stride=4, padding=3, output_padding=1)
    return graph.finish(x, (batch, 1, 4 * size, 4 * size))


def srcnn(batch: int, *, size: int = 224) -> onnx.ModelProto:
    """SRCNN: [batch, 1, size, size] to the same shape."""
    graph = GraphBuilder("srcnn")
    x = graph.input("input", (batch, 1, size, size))
    x = graph.relu(graph.conv(x, (1, 64), 9))
    x = graph.relu(graph.conv(x, (64, 32), 5))
    return graph.finish(graph.conv(x, (32, 1), 5), (batch, 1, size, size))
