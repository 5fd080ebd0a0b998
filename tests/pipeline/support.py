"""Small models and how their optimized versions are held against them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from egraph_opt.backends.onnxruntime import make_session
from egraph_opt.backends.onnxruntime import run as run_session
from egraph_opt.pipeline import optimize
from egraph_opt.result import Result
from egraph_opt.runtime.compare import compare_outputs

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
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


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Standard normal float32 values."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def static(model: onnx.ModelProto | Path, **options: Any) -> Result:
    """Optimize without measuring: the candidate itself comes back, faster or not."""
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
