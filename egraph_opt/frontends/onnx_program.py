"""A plan of library calls as an ONNX model of its own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto, TensorProto, helper

from egraph_opt.errors import EgraphOptError
from egraph_opt.frontends.onnx_emit import KERNEL_DOMAIN, Emitter
from egraph_opt.frontends.onnx_standalone import IR_VERSION, OPSET
from egraph_opt.frontends.onnx_writer import emit_steps
from egraph_opt.ir.expr import Extents
from egraph_opt.ir.program import Plan

__all__ = ["OPSET", "written"]


def written(plan: Plan, outputs: Mapping[str, Extents], *, opset: int = OPSET) -> ModelProto:
    """A model with the plan's inputs and these outputs, all float32, under their own names.

    Raises EgraphOptError for a plan with kernels or without one of the outputs, NotExpressible where the opset lacks an
    operator.
    """
    inputs = [source for source in plan.inputs if source.name not in plan.constants]
    emitter = Emitter(opset, {*(source.name for source in inputs), *outputs})
    names = {source.name: source.name for source in inputs}
    for name, value in plan.constants.items():
        names[name] = emitter.constant(np.asarray(value, dtype=np.float32), name)
    missing = [output for output in outputs if output not in plan.outputs]
    if missing:
        raise EgraphOptError(f"the plan lacks the output {missing[0]!r}")
    emit_steps(emitter, plan, outputs, names)
    graph = helper.make_graph(
        emitter.nodes,
        "program",
        [helper.make_tensor_value_info(source.name, TensorProto.FLOAT, source.extents) for source in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, extents) for name, extents in outputs.items()],
        list(emitter.initializers.values()),
    )
    domains = {node.domain for node in emitter.nodes} - {""}
    assert KERNEL_DOMAIN not in domains
    versions = {"": opset} | {domain: emitter.imports.get(domain, 1) for domain in sorted(domains)}
    imports = [helper.make_opsetid(domain, version) for domain, version in versions.items()]
    return helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION)
