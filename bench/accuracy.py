"""Errors of the benchmark models against float64, original and optimized: `python -m bench.accuracy [MODEL …]`.

The reference is onnx's own evaluator on the model in double precision, with convolutions and pooling taken from
`egraph_opt.ir.library`, which states them independently of the rules.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from math import ceil, floor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from bench.models import find, get, names
from egraph_opt import optimize
from egraph_opt.ir import library
from egraph_opt.ir.interpreter import FloatArithmetic

Array = np.ndarray[Any, Any]


def _evaluated(operator: str, arrays: Sequence[Array], extents: Sequence[int], **attributes: object) -> Array:
    text = library.format_attributes(**attributes)
    return library.evaluate(operator, library.parse_attributes(text), list(arrays), tuple(extents), FloatArithmetic())


def _spatial(size: int, kernel: int, stride: int, dilation: int, pads: int, up: bool = False) -> int:
    return (ceil if up else floor)((size + pads - dilation * (kernel - 1) - 1) / stride) + 1


class Conv(OpRun):
    """Convolution by one matrix product per tap."""

    op_domain = ""

    def _run(self, x: Array, w: Array, bias: Any = None, **given: Any) -> tuple[Array]:
        rank = x.ndim - 2
        strides, dilations = given.get("strides") or [1] * rank, given.get("dilations") or [1] * rank
        pads = given.get("pads") or [0] * (2 * rank)
        out = [
            _spatial(x.shape[2 + a], w.shape[2 + a], strides[a], dilations[a], pads[a] + pads[a + rank])
            for a in range(rank)
        ]
        arrays = [x, w] if bias is None else [x, w, bias]
        group = given.get("group") or 1
        extents = (x.shape[0], w.shape[0], *out)
        return (_evaluated("Conv", arrays, extents, strides=strides, dilations=dilations, pads=pads, group=group),)


class ConvTranspose(OpRun):
    """Transposed convolution by one matrix product per tap."""

    op_domain = ""

    def _run(self, x: Array, w: Array, bias: Any = None, **given: Any) -> tuple[Array]:
        rank = x.ndim - 2
        strides, dilations = given.get("strides") or [1] * rank, given.get("dilations") or [1] * rank
        pads, extra = given.get("pads") or [0] * (2 * rank), given.get("output_padding") or [0] * rank
        out = [
            strides[a] * (x.shape[2 + a] - 1)
            + extra[a]
            + dilations[a] * (w.shape[2 + a] - 1)
            + 1
            - pads[a]
            - pads[a + rank]
            for a in range(rank)
        ]
        arrays = [x, w] if bias is None else [x, w, bias]
        group = given.get("group") or 1
        extents = (x.shape[0], w.shape[1] * group, *out)
        attributes = {"strides": strides, "dilations": dilations, "pads": pads, "group": group}
        return (_evaluated("ConvTranspose", arrays, extents, **attributes),)


class MaxPool(OpRun):
    """Largest value of every window."""

    op_domain = ""

    def _run(self, x: Array, **given: Any) -> tuple[Array]:
        rank = x.ndim - 2
        kernel, strides = given["kernel_shape"], given.get("strides") or [1] * rank
        pads, up = given.get("pads") or [0] * (2 * rank), bool(given.get("ceil_mode"))
        out = [_spatial(x.shape[2 + a], kernel[a], strides[a], 1, pads[a] + pads[a + rank], up) for a in range(rank)]
        attributes = {"kernel_shape": kernel, "strides": strides, "pads": pads, "ceil_mode": int(up)}
        return (_evaluated("MaxPool", [x], (*x.shape[:2], *out), **attributes),)


def doubled(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every float32 weight, constant, input and output in float64."""
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    tensors = list(twin.graph.initializer)
    tensors += [a.t for node in twin.graph.node for a in node.attribute if a.HasField("t")]
    for tensor in tensors:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for value in (*twin.graph.input, *twin.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    del twin.graph.value_info[:]
    return twin


def errors(name: str) -> tuple[float, float]:
    """Largest error of the original and of the optimized model in onnxruntime, relative to each output's magnitude."""
    from egraph_opt.backends.onnxruntime import input_specs, make_session, random_inputs, run

    model = get(name)
    with tempfile.TemporaryDirectory(prefix="egraph-opt-accuracy-") as folder:
        path = Path(folder) / "original.onnx"
        onnx.save(model, path)
        session = make_session(path, spin=False)
        inputs = random_inputs(input_specs(session), seed=1)
        answers = [run(session, inputs), run(optimize(path).session(), inputs)]
    evaluator = ReferenceEvaluator(doubled(model), new_ops=[Conv, ConvTranspose, MaxPool])
    exact = evaluator.run(None, {key: np.asarray(value, np.float64) for key, value in inputs.items()})
    found = []
    for answer in answers:
        pairs = zip(exact, answer, strict=True)
        found.append(max(float(np.max(np.abs(value - e)) / np.max(np.abs(e))) for e, value in pairs))
    return found[0], found[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 1 when an optimized model is more than four times less accurate than its original."""
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy", description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="models (default: all that need no extra memory)")
    selected = parser.parse_args(arguments).models or [name for name in names() if not find(name)[0].memory]
    worse = 0
    for name in selected:
        begun = time.perf_counter()
        original, optimized = errors(name)
        worse += optimized > 4 * original
        print(f"{name:26} {original:9.1e} {optimized:9.1e}  {time.perf_counter() - begun:6.1f} s", flush=True)
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
