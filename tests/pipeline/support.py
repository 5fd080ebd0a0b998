"""Small models and how their optimized versions are held against them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from egraph_opt import candidates
from egraph_opt.backends.onnxruntime import make_session
from egraph_opt.backends.onnxruntime import run as run_session
from egraph_opt.ir.scalar import ScalarFunction
from egraph_opt.pipeline import optimize
from egraph_opt.result import Result
from egraph_opt.runtime.compare import compare_outputs

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
MICROSOFT = "com.microsoft"
# A function as a user adds it, with an operator of onnxruntime.
QUICK_GELU = ScalarFunction(
    "quick_gelu",
    1,
    keeps_zero=True,
    cost=9,
    onnx="QuickGelu",
    domain=MICROSOFT,
    since=1,
    attributes=("alpha",),
    defaults=(1.702,),
    definition=lambda f, x, alpha: f("mul", x, f("sigmoid", f("mul", x, alpha))),
)
Shape = Sequence[int | str] | None


def build(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Shape],
    outputs: Mapping[str, Shape],
    weights: Mapping[str, Any] | None = None,
    *,
    opset: int = 17,
    ir_version: int = 8,
    elements: Mapping[str, int] | None = None,
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    """A model; values are float32 where ``elements`` does not say otherwise."""

    def info(name: str, shape: Shape) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, (elements or {}).get(name, FLOAT), shape)

    graph = helper.make_graph(
        nodes,
        "graph",
        [info(name, shape) for name, shape in inputs.items()],
        [info(name, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version)


def node(operator: str, inputs: str, outputs: str, domain: str = "", **attributes: Any) -> onnx.NodeProto:
    """A node; names are separated by spaces."""
    return helper.make_node(operator, inputs.split(" "), outputs.split(" "), domain=domain, **attributes)


def upscaler(batch: int | str = 1, outputs: Sequence[str] = ("y",)) -> onnx.ModelProto:
    """A ConvTranspose between pointwise operators, x [batch, 4, 6, 6] to y [batch, 3, 12, 12].

    Its plan has a MatMul and a kernel; b [batch, 5, 6, 6] lies in the middle.
    """
    nodes = [
        node("Conv", "x v", "a", pads=[1, 1, 1, 1]),
        node("PRelu", "a s", "b"),
        node("ConvTranspose", "b w", "c", strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Tanh", "c", "y"),
    ]
    weights = {"v": normal(5, 4, 3, 3), "s": np.full((5, 1, 1), 0.25, np.float32), "w": normal(5, 3, 4, 4)}
    shapes = {"y": [batch, 3, 12, 12], "b": [batch, 5, 6, 6]}
    return build(nodes, {"x": [batch, 4, 6, 6]}, {name: shapes[name] for name in outputs}, weights)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Standard normal float32 values."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@contextmanager
def anyway() -> Iterator[None]:
    """Inside, plans that are not measured replace nodes, whether cheaper or not: there is more to be wrong."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "CHEAPER", 0.0)
        yield


def static(model: onnx.ModelProto | Path, **options: Any) -> Result:
    """Optimize without measuring: the candidate itself comes back, faster or not."""
    with anyway():
        return optimize(model, cost="static", threads=1, **options)


def answers(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], library: Path | None = None) -> list[Any]:
    """What onnxruntime computes."""
    session = make_session(model.SerializeToString(), kernel_library=library, threads=1, spin=False)
    return run_session(session, feeds)


def wrong(model: onnx.ModelProto, result: Result, feeds: Mapping[str, np.ndarray]) -> list[Any]:
    """Outputs in which the optimized model differs from the original."""
    expected = answers(model, feeds)
    found = run_session(result.session(), feeds)
    return [error for error in compare_outputs(expected, found) if not error.within]


def signature(model: onnx.ModelProto) -> tuple[list[bytes], list[bytes]]:
    """Inputs and outputs with types and symbolic dimensions."""
    return (
        [value.SerializeToString() for value in model.graph.input],
        [value.SerializeToString() for value in model.graph.output],
    )


def chain_of_regions(count: int) -> onnx.ModelProto:
    """x -> relu(x @ w0) + x -> opaque -> relu(. @ w1) + . -> opaque …: as many regions as ``count``."""
    nodes, weights, x = [], {}, "x"
    for i in range(count):
        weights[f"w{i}"] = normal(4, 4, seed=i) / 2
        nodes += [
            node("MatMul", f"{x} w{i}", f"p{i}"),
            node("Relu", f"p{i}", f"r{i}"),
            node("Add", f"r{i} {x}", f"s{i}"),
        ]
        x = f"x{i}" if i < count - 1 else "y"
        nodes.append(node("Round", f"s{i}", x))
    outputs: dict[str, Shape] = {f"s{i}": [3, 4] for i in range(count)}
    return build(nodes, {"x": [3, 4]}, outputs | {"y": [3, 4]}, weights)


def drawn(seed: int) -> onnx.ModelProto:
    """A small random model: convolutions, residuals, pooling, moves, then matrix products and softmax."""
    draw = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, np.ndarray] = {}

    def weight(*shape: int) -> str:
        name = f"w{len(weights)}"
        weights[name] = draw.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(np.prod(shape[1:]) or 1))
        return name

    def add(operator: str, inputs: str, **attributes: Any) -> str:
        nodes.append(node(operator, inputs, f"t{len(nodes)}", **attributes))
        return f"t{len(nodes) - 1}"

    batch, channels, height, width = (int(n) for n in draw.integers((1, 2, 4, 4), (3, 5, 8, 8)))
    shape, x = [batch, channels, height, width], "x"
    for _ in range(draw.integers(2, 5)):
        before, kind = x, draw.choice(["conv", "depthwise", "transposed", "pool", "move", "norm"])
        n, c, h, w = shape
        if kind == "conv":
            kernel, dilation = int(draw.choice([1, 3])), int(draw.choice([1, 2]))
            pad, filters = dilation * (kernel // 2), int(draw.choice([c, c + 1]))
            inputs = f"{x} {weight(filters, c, kernel, kernel)} {weight(filters)}"
            x = add("Conv", inputs, pads=[pad] * 4, dilations=[dilation] * 2)
            shape = [n, filters, h, w]
        elif kind == "depthwise":
            x = add("Conv", f"{x} {weight(c, 1, 3, 3)}", pads=[1, 0, 1, 2], group=c)
        elif kind == "transposed":
            x = add("ConvTranspose", f"{x} {weight(c, 2, 4, 4)}", strides=[2, 2], pads=[1] * 4)
            shape = [n, 2, 2 * h, 2 * w]
        elif kind == "pool":
            operator = str(draw.choice(["MaxPool", "AveragePool"]))
            x = add(operator, x, kernel_shape=[2, 2], strides=[2, 2])
            shape = [n, c, h // 2, w // 2]
        elif kind == "move":
            x = add("Transpose", x, perm=[0, 1, 3, 2])
            shape = [n, c, w, h]
        else:
            x = add("BatchNormalization", " ".join([x, *(weight(c) for _ in range(3)), weight(c)]))
            weights[f"w{len(weights) - 1}"] = np.abs(weights[f"w{len(weights) - 1}"]) + np.float32(0.5)
        x = add(str(draw.choice(["LeakyRelu", "Tanh", "Sigmoid"])), x)
        if shape == [n, c, h, w] and draw.integers(2):
            x = add("Add", f"{x} {before}")
        if min(shape[2:]) < 4:
            break
    n, c, h, w = shape
    weights["flat"] = np.array([n, c, h * w])
    x = add("Reshape", f"{x} flat")
    features = int(draw.integers(2, 6))
    query, key = (add("MatMul", f"{x} {weight(h * w, features)}") for _ in range(2))
    scores = add("Softmax", add("MatMul", f"{query} {add('Transpose', key, perm=[0, 2, 1])}"), axis=2)
    x = add("Concat", f"{add('MatMul', f'{scores} {x}')} {x}", axis=1)
    y = add("ReduceMean", x, axes=[1], keepdims=0)
    return build(nodes, {"x": [batch, channels, height, width]}, {y: [n, h * w], scores: [n, c, c]}, weights)


def band_attention(length: int = 24, width: int = 4, heads: int = 2, size: int = 3) -> onnx.ModelProto:
    """Sliding-window attention as exporters write it: padded, gathered by a constant index, multiplied."""
    window = 2 * width + 1
    index = np.arange(length)[:, None] + np.arange(window)[None, :]
    weights = {
        "index": index,
        "pads": np.array([0, width, 0, 0, width, 0]),
        "column": np.array([heads, length, size, 1]),
    }
    weights["row"] = np.array([heads, length, 1, window])
    nodes = [
        node("Pad", "k pads", "kp"),
        node("Gather", "kp index", "kg", axis=1),
        node("Reshape", "q column", "qc"),
        node("MatMul", "kg qc", "scores"),
        node("Softmax", "scores", "p", axis=2),
        node("Reshape", "p row", "pr"),
        node("Pad", "v pads", "vp"),
        node("Gather", "vp index", "vg", axis=1),
        node("MatMul", "pr vg", "y"),
    ]
    shape = [heads, length, size]
    return build(nodes, {"q": shape, "k": shape, "v": shape}, {"y": [heads, length, 1, size]}, weights)
