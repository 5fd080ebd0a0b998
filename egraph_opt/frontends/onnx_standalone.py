"""Small ONNX models that run a few steps alone, for measuring them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import TensorProto, helper

from egraph_opt.frontends.onnx_emit import KERNEL_DOMAIN, Emitter
from egraph_opt.frontends.onnx_writer import emit_step
from egraph_opt.ir.program import Step
from egraph_opt.ir.terms import Source

OPSET, IR_VERSION = 17, 9


def standalone(
    steps: Sequence[Step], kernels: Mapping[str, str] | None = None, *, seed: int = 0, opset: int = OPSET
) -> bytes:
    """A serialized model of ``steps`` whose last buffer is the output.

    Sources no step fills become inputs, or random initializers when they are marked constant. ``kernels`` names the
    custom operator of each Compute step, and of each call that a kernel computes.
    """
    generator = np.random.default_rng(seed)
    filled = {step.name for step in steps}
    sources: dict[str, Source] = {}
    for step in steps:
        for source in step.arguments:
            if source.name not in filled:
                sources.setdefault(source.name, source)
    last = steps[-1]
    names = {name: f"x{i}" for i, name in enumerate((*sources, *(step.name for step in steps)))}
    emitter = Emitter(opset, set(names.values()))
    inputs = []
    for name, source in sources.items():
        if source.constant:
            value = generator.standard_normal(source.extents, dtype=np.float32)
            names[name] = emitter.constant(value, names[name])
        else:
            inputs.append(helper.make_tensor_value_info(names[name], TensorProto.FLOAT, source.extents))
    for step in steps:
        emit_step(emitter, step, names, kernels or {})
    output = helper.make_tensor_value_info(names[last.name], TensorProto.FLOAT, last.extents)
    graph = helper.make_graph(emitter.nodes, "steps", inputs, [output], list(emitter.initializers.values()))
    others = {KERNEL_DOMAIN: 1, **emitter.imports}
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(name, others[name]) for name in sorted(others))]
    return bytes(helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION).SerializeToString())
