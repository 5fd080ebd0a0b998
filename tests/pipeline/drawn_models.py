"""Models drawn by hypothesis: any operators of the algebra on small tensors, some others between, one or more outputs.

Every drawn model is valid, its shapes are static, and onnxruntime runs it. Values stay of moderate size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import onnx
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from onnx import helper

from egraph_opt.testing.strategies import factorings
from tests.pipeline.support import build

Shape = list[int]
# ``pytest --hypothesis-profile=more`` draws many models, and others each time.
MORE = "more"
settings.register_profile(MORE)
# No tensor has more elements.
MOST_ELEMENTS = 600
UNARY = ("Relu", "Tanh", "Sigmoid", "Neg", "Abs", "LeakyRelu", "Identity", "HardSigmoid")
BINARY = ("Add", "Sub", "Mul", "Max", "Min", "Add", "Mul")
REDUCTIONS = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin")


def drawing(examples: int) -> settings:
    """Settings for drawn models; with the hypothesis profile MORE there are many, and others each time."""
    more = settings.get_current_profile_name() == MORE
    return settings(
        derandomize=not more,
        deadline=None,
        max_examples=50 * examples if more else examples,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
        phases=[Phase.explicit, Phase.generate],  # making a failure smaller takes many runs
    )


@dataclass
class Drawing:
    """A model under construction: ``shapes`` of all tensors by name; the last nodes read ``fresh`` tensors first."""

    draw: st.DrawFn
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    def pick(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def whole(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def weight(self, *shape: int) -> str:
        """A weight of small numbers."""
        name = f"w{len(self.weights)}"
        values = np.random.default_rng(len(self.weights)).standard_normal(shape, dtype=np.float32)
        self.weights[name] = values / np.float32(np.sqrt(max(1, prod(shape[1:]))))
        return name

    def constant(self, values: Any) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = np.asarray(values)
        return name

    def add(self, operator: str, inputs: list[str], shape: Shape, **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        self.used |= set(inputs)
        self.shapes[name] = shape
        return name

    def tensor(self, rank: int | None = None) -> str | None:
        """One of the tensors there are, with this rank if one is given; the latest ones are simplest."""
        names = [name for name in reversed(self.shapes) if rank is None or len(self.shapes[name]) == rank]
        return self.draw(st.sampled_from(names)) if names else None


def _unary(d: Drawing, x: str, shape: Shape) -> None:
    d.add(d.pick(*UNARY), [x], shape)


def _binary(d: Drawing, x: str, shape: Shape) -> None:
    alike = [name for name in d.shapes if d.shapes[name] == shape]
    kind = d.pick("tensor", "tensor", "row", "scalar", "whole")
    if kind == "tensor":
        other = d.pick(*reversed(alike))
    elif kind == "scalar":
        other = d.constant(np.float32(d.pick(0.5, 2.0, 1.0, -1.0, 0.0)))
    else:
        other = d.weight(*(shape[-1:] if kind == "row" else shape))
    d.add(d.pick(*BINARY), [x, other] if d.pick(True, True, False) else [other, x], shape)


def _matmul(d: Drawing, x: str, shape: Shape) -> None:
    if len(shape) >= 2:
        columns = d.whole(1, 5)
        product = d.add("MatMul", [x, d.weight(shape[-1], columns)], [*shape[:-1], columns])
        if d.pick(True, False):
            d.add("Add", [product, d.weight(columns)], [*shape[:-1], columns])


def _self_product(d: Drawing, x: str, shape: Shape) -> None:
    if len(shape) >= 2:
        order = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
        turned = d.add("Transpose", [x], [shape[i] for i in order], perm=order)
        d.add("MatMul", [x, turned], [*shape[:-1], shape[-2]])


def _conv(d: Drawing, x: str, shape: Shape) -> None:
    if len(shape) == 4 and min(shape[2:]) >= 2:
        n, c, h, w = shape
        size, stride, dilation = d.pick(1, 3, 2), d.pick(1, 1, 2), d.pick(1, 1, 2)
        pad, group = d.whole(0, 2), d.pick(1, 1, c)
        reach = dilation * (size - 1) + 1
        if min(h, w) + 2 * pad < reach:
            return
        filters = c if group == c else d.whole(1, 4)
        after = [(side + 2 * pad - reach) // stride + 1 for side in (h, w)]
        given: dict[str, Any] = {"strides": [stride] * 2, "dilations": [dilation] * 2, "pads": [pad] * 4}
        bias = [d.weight(filters)] if d.pick(True, False) else []
        d.add("Conv", [x, d.weight(filters, c // group, size, size), *bias], [n, filters, *after], group=group, **given)


def _upsample(d: Drawing, x: str, shape: Shape) -> None:
    if len(shape) == 4:
        n, c, h, w = shape
        size, stride = d.pick(2, 3, 4), d.pick(1, 2)
        pad, filters = d.whole(0, (size - 1) // 2), d.whole(1, 3)
        after = [stride * (side - 1) + size - 2 * pad for side in (h, w)]
        if min(after) >= 1:
            weight = d.weight(c, filters, size, size)
            d.add("ConvTranspose", [x, weight], [n, filters, *after], strides=[stride] * 2, pads=[pad] * 4)


def _pool(d: Drawing, x: str, shape: Shape) -> None:
    if len(shape) == 4 and min(shape[2:]) >= 2:
        size, stride = d.pick(2, 3), d.pick(1, 2)
        pad = d.whole(0, size // 2)
        after = [(side + 2 * pad - size) // stride + 1 for side in shape[2:]]
        if min(after) >= 1:
            given = {"kernel_shape": [size] * 2, "strides": [stride] * 2, "pads": [pad] * 4}
            d.add(d.pick("MaxPool", "AveragePool"), [x], [*shape[:2], *after], **given)


def _transpose(d: Drawing, x: str, shape: Shape) -> None:
    order = d.draw(st.permutations(range(len(shape))))
    d.add("Transpose", [x], [shape[i] for i in order], perm=list(order))


def _reshape(d: Drawing, x: str, shape: Shape) -> None:
    wanted = d.pick(*factorings(prod(shape)), (*shape[:1], -1) if len(shape) > 1 else (-1,))
    known = [prod(shape) // -prod(wanted) if n == -1 else n for n in wanted]
    d.add("Reshape", [x, d.constant(np.array(wanted, np.int64))], known)


def _slice(d: Drawing, x: str, shape: Shape) -> None:
    axis = d.whole(0, len(shape) - 1) if shape else -1
    if axis >= 0 and shape[axis] > 1:
        begin, step = d.whole(0, shape[axis] - 2), d.pick(1, 1, 2)
        end = d.whole(begin + 1, shape[axis])
        lists = [d.constant(np.array([n])) for n in (begin, end, axis, step)]
        d.add("Slice", [x, *lists], [*shape[:axis], len(range(begin, end, step)), *shape[axis + 1 :]])


def _split(d: Drawing, x: str, shape: Shape) -> None:
    axes = [axis for axis, n in enumerate(shape) if n % 2 == 0]
    if axes:
        axis = d.pick(*axes)
        half = [*shape[:axis], shape[axis] // 2, *shape[axis + 1 :]]
        names = [f"t{len(d.nodes)}", f"t{len(d.nodes)}b"]
        sizes = d.constant(np.array([shape[axis] // 2] * 2))
        d.nodes.append(helper.make_node("Split", [x, sizes], names, axis=axis))
        d.used.add(x)
        d.shapes |= dict.fromkeys(names, half)


def _concat(d: Drawing, x: str, shape: Shape) -> None:
    if shape:
        axis = d.whole(0, len(shape) - 1)
        rest = (*shape[:axis], *shape[axis + 1 :])
        fitting = [name for name, s in d.shapes.items() if len(s) == len(shape) and (*s[:axis], *s[axis + 1 :]) == rest]
        other = d.pick(*reversed(fitting))
        d.add("Concat", [x, other], [*shape[:axis], shape[axis] + d.shapes[other][axis], *shape[axis + 1 :]], axis=axis)


def _pad(d: Drawing, x: str, shape: Shape) -> None:
    pads = [d.pick(0, 0, 1, 2) for _ in range(2 * len(shape))]
    after = [n + pads[i] + pads[len(shape) + i] for i, n in enumerate(shape)]
    d.add("Pad", [x, d.constant(np.array(pads, np.int64))], after)


def _reduce(d: Drawing, x: str, shape: Shape) -> None:
    if shape:
        axis, keep = d.whole(0, len(shape) - 1), d.pick(1, 0)
        after = [*shape[:axis], *([1] if keep else []), *shape[axis + 1 :]]
        operator = d.pick(*REDUCTIONS)
        if operator == "ReduceSum":
            d.add(operator, [x, d.constant(np.array([axis]))], after, keepdims=keep)
        else:
            d.add(operator, [x], after, axes=[axis], keepdims=keep)


def _softmax(d: Drawing, x: str, shape: Shape) -> None:
    if shape:
        d.add("Softmax", [x], shape, axis=d.whole(0, len(shape) - 1))


def _normalize(d: Drawing, x: str, shape: Shape) -> None:
    if len(shape) >= 2 and d.pick(True, False):
        d.add("LayerNormalization", [x, d.weight(shape[-1]), d.weight(shape[-1])], shape, axis=-1)
    elif len(shape) >= 2:
        variance = d.constant(np.linspace(0.5, 2, shape[1], dtype=np.float32))
        d.add("BatchNormalization", [x, *(d.weight(shape[1]) for _ in range(3)), variance], shape)


def _gather(d: Drawing, x: str, shape: Shape) -> None:
    if shape:
        axis = d.whole(0, len(shape) - 1)
        index = d.constant(np.array([d.whole(0, shape[axis] - 1) for _ in range(d.whole(1, 3))]))
        d.add("Gather", [x, index], [*shape[:axis], len(d.weights[index]), *shape[axis + 1 :]], axis=axis)


def _expand(d: Drawing, x: str, shape: Shape) -> None:
    wanted = [d.whole(1, 3), *(n if n > 1 else d.whole(1, 3) for n in shape)]
    d.add("Expand", [x, d.constant(np.array(wanted, np.int64))], wanted)


def _opaque(d: Drawing, x: str, shape: Shape) -> None:
    d.add("Round", [x], shape)


STEPS: tuple[Callable[[Drawing, str, Shape], None], ...] = (
    _unary,
    _binary,
    _matmul,
    _conv,
    _unary,
    _binary,
    _transpose,
    _reshape,
    _matmul,
    _conv,
    _upsample,
    _pool,
    _self_product,
    _slice,
    _split,
    _concat,
    _pad,
    _reduce,
    _softmax,
    _normalize,
    _gather,
    _expand,
    _opaque,
)


@st.composite
def models(draw: st.DrawFn, most_nodes: int = 8) -> onnx.ModelProto:
    """A model with inputs x (of four axes) and z (of two), its tensors t0, t1 …, and all unread ones as outputs."""
    d = Drawing(draw)
    inputs = {"z": [d.whole(1, 4), d.whole(2, 5)], "x": [d.whole(1, 2), d.whole(1, 4), d.whole(3, 6), d.whole(3, 6)]}
    d.shapes |= inputs
    wanted = draw(st.integers(2, most_nodes))
    for _ in range(4 * wanted):
        if len(d.nodes) >= wanted:
            break
        x = d.tensor()
        assert x is not None
        before = len(d.nodes), dict(d.shapes), dict(d.weights), set(d.used)
        draw(st.sampled_from(STEPS))(d, x, d.shapes[x])
        if any(prod(shape) > MOST_ELEMENTS for shape in d.shapes.values()):
            del d.nodes[before[0] :]
            d.shapes, d.weights, d.used = before[1:]
    if not d.nodes:
        d.add("Relu", ["x"], inputs["x"])
    read = {name: shape for name, shape in inputs.items() if name in d.used}
    outputs = {
        name: shape
        for name, shape in d.shapes.items()
        if name not in inputs and (name not in d.used or draw(st.integers(0, 9)) == 9)
    }
    return build(d.nodes, read, outputs, d.weights)
