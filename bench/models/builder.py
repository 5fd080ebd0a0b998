"""A small writer of ONNX graphs: float32, opset 17, seeded weights, nodes as exporters write them."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 9

Attribute = int | float | str | Sequence[int] | Sequence[float]
Size = int | tuple[int, int]

# A ReLU halves the second moment of what passes through it; a weight drawn with this gain makes up for it (He).
RELU_GAIN = math.sqrt(2.0)
LINEAR_GAIN = 1.0


def pair(size: Size) -> tuple[int, int]:
    """(height, width) of a size given as one number or as two."""
    return (size, size) if isinstance(size, int) else size


class GraphBuilder:
    """Collects inputs, weights and nodes; `finish` returns the model.

    Values are named by strings. Weights are drawn in the order of the calls from one generator, so the same calls
    with the same seed give the same model. BatchNormalization is always folded: a layer has a weight and a bias.
    """

    def __init__(self, name: str, *, seed: int = 0) -> None:
        self._name = name
        self._random = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._counts: dict[str, int] = {}

    # -- the graph ---------------------------------------------------------------------------------------------------

    def input(self, name: str, shape: Sequence[int]) -> str:
        """Declare a float32 input of the graph."""
        self._inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))
        return name

    def node(self, operator: str, inputs: Sequence[str], **attributes: Attribute) -> str:
        """Append a node with one output; an empty input name is an optional input left out."""
        name = self._fresh(operator)
        output = f"{name}_output"
        node = helper.make_node(operator, list(inputs), [output], name=name)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in sorted(attributes.items()))
        self._nodes.append(node)
        return output

    def constant(self, array: npt.NDArray[np.generic], hint: str = "constant") -> str:
        """Append an initializer."""
        name = self._fresh(hint)
        self._initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def integers(self, *values: int) -> str:
        """An int64 vector (axes, pads, shapes and the like)."""
        return self.constant(np.array(values, dtype=np.int64), "integers")

    def scalar(self, value: float) -> str:
        """A float32 scalar."""
        return self.constant(np.array(value, dtype=np.float32), "scalar")

    def finish(self, result: str, shape: Sequence[int], *, name: str = "output") -> onnx.ModelProto:
        """The model that returns `result`, which has the given shape, under the given name."""
        for node in self._nodes:
            for values in (node.input, node.output):
                for position, value in enumerate(values):
                    if value == result:
                        values[position] = name
        output = helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))
        graph = helper.make_graph(self._nodes, self._name, self._inputs, [output], self._initializers)
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="egraph-opt-bench",
        )

    def _fresh(self, hint: str) -> str:
        count = self._counts.get(hint, 0)
        self._counts[hint] = count + 1
        return f"{hint}_{count}"

    # -- weights -----------------------------------------------------------------------------------------------------

    def weight(self, shape: Sequence[int], *, fan_in: float, gain: float) -> str:
        """Normal weights of standard deviation gain / sqrt(fan_in): unit variance in gives about gain² out."""
        values = self._random.standard_normal(tuple(shape), dtype=np.float32)
        return self.constant(values * np.float32(gain / math.sqrt(fan_in)), "weight")

    def vector(self, size: int, *, scale: float = 0.1, shift: float = 0.0, shape: Sequence[int] = (-1,)) -> str:
        """Normal values of the given scale around the shift: biases, slopes, the scales of normalizations."""
        values = self._random.standard_normal(size, dtype=np.float32) * np.float32(scale) + np.float32(shift)
        return self.constant(values.reshape(tuple(shape)), "vector")

    # -- layers ------------------------------------------------------------------------------------------------------

    def conv(
        self,
        x: str,
        channels: tuple[int, int],
        kernel: Size,
        *,
        stride: int = 1,
        padding: Size | None = None,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        gain: float = RELU_GAIN,
    ) -> str:
        """Conv from channels[0] to channels[1]; without a padding, half the dilated kernel (the size is kept)."""
        (source, target), (height, width) = channels, pair(kernel)
        if padding is None:
            padding = (dilation * (height - 1) // 2, dilation * (width - 1) // 2)
        above, left = pair(padding)
        fan_in = source // groups * height * width
        inputs = [x, self.weight((target, source // groups, height, width), fan_in=fan_in, gain=gain)]
        if bias:
            inputs.append(self.vector(target))
        return self.node(
            "Conv",
            inputs,
            dilations=[dilation, dilation],
            group=groups,
            kernel_shape=[height, width],
            pads=[above, left, above, left],
            strides=[stride, stride],
        )

    def conv_transpose(
        self,
        x: str,
        channels: tuple[int, int],
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        output_padding: int = 0,
        bias: bool = True,
        gain: float = RELU_GAIN,
    ) -> str:
        """ConvTranspose from channels[0] to channels[1]."""
        source, target = channels
        # Every output element receives (kernel / stride)² products for each channel, less at the border.
        fan_in = source * max(1.0, (kernel / stride) ** 2)
        inputs = [x, self.weight((source, target, kernel, kernel), fan_in=fan_in, gain=gain)]
        if bias:
            inputs.append(self.vector(target))
        attributes: dict[str, Attribute] = {"output_padding": [output_padding] * 2} if output_padding else {}
        return self.node(
            "ConvTranspose",
            inputs,
            dilations=[1, 1],
            group=1,
            kernel_shape=[kernel, kernel],
            pads=[padding] * 4,
            strides=[stride, stride],
            **attributes,
        )

    def linear(self, x: str, source: int, target: int, *, bias: bool = True, gain: float = LINEAR_GAIN) -> str:
        """MatMul with a weight on the last axis, then Add: how exporters write a linear layer on rank 3."""
        product = self.node("MatMul", [x, self.weight((source, target), fan_in=source, gain=gain)])
        return self.node("Add", [product, self.vector(target)]) if bias else product

    def gemm(self, x: str, source: int, target: int) -> str:
        """Gemm with a transposed weight: how exporters write a linear layer on rank 2."""
        weight = self.weight((target, source), fan_in=source, gain=LINEAR_GAIN)
        return self.node("Gemm", [x, weight, self.vector(target)], alpha=1.0, beta=1.0, transB=1)

    def relu(self, x: str) -> str:
        return self.node("Relu", [x])

    def prelu(self, x: str, channels: int) -> str:
        """PRelu with one slope, around 1/4, for each channel: shape [channels, 1, 1]."""
        return self.node("PRelu", [x, self.vector(channels, shift=0.25, shape=(channels, 1, 1))])

    def add(self, left: str, right: str) -> str:
        return self.node("Add", [left, right])

    def concat(self, values: Sequence[str], *, axis: int) -> str:
        return self.node("Concat", values, axis=axis)

    def max_pool(self, x: str, kernel: int, *, stride: int, padding: int = 0) -> str:
        return self.node(
            "MaxPool", [x], kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[padding] * 4, ceil_mode=0
        )

    def reshape(self, x: str, *shape: int) -> str:
        return self.node("Reshape", [x, self.integers(*shape)])

    def transpose(self, x: str, *permutation: int) -> str:
        return self.node("Transpose", [x], perm=list(permutation))

    def split_heads(self, x: str, batch: int, positions: int, heads: int, head_size: int) -> str:
        """[batch, positions, heads * head_size] to [batch, heads, positions, head_size]."""
        return self.transpose(self.reshape(x, batch, positions, heads, head_size), 0, 2, 1, 3)

    def merge_heads(self, x: str, batch: int, positions: int, hidden: int) -> str:
        """[batch, heads, positions, head_size] to [batch, positions, hidden]."""
        return self.reshape(self.transpose(x, 0, 2, 1, 3), batch, positions, hidden)
