"""Building small models, running them, and the plans that compute a region as the program says."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from egraph_opt.frontends.onnx_emit import supports
from egraph_opt.frontends.onnx_model import LoadedModel
from egraph_opt.frontends.onnx_reader import load
from egraph_opt.frontends.onnx_writer import rebuild
from egraph_opt.frontends.portable import express
from egraph_opt.frontends.regions import Partition, Region, partition
from egraph_opt.ir import interpreter
from egraph_opt.ir.program import Plan, Step, rename
from egraph_opt.ir.terms import Call, Compute, Tensor

Arrays = dict[str, np.ndarray]


def value(name: str, shape: Sequence[int | str | None] | None, element: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element, shape)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str | None]],
    outputs: Sequence[str],
    constants: Mapping[str, np.ndarray] | None = None,
    *,
    opset: int = 17,
    ir_version: int = 8,
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    """A model with float32 inputs; outputs are declared without shapes."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [value(name, shape) for name, shape in inputs.items()],
        [value(name, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version)


def draw_inputs(model: onnx.ModelProto, seed: int = 0) -> Arrays:
    generator = np.random.default_rng(seed)
    weights = {tensor.name for tensor in model.graph.initializer}
    return {
        entry.name: generator.normal(size=[dim.dim_value for dim in entry.type.tensor_type.shape.dim]).astype(
            np.float32
        )
        for entry in model.graph.input
        if entry.name not in weights
    }


def run(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> Arrays:
    """All outputs in onnxruntime, nothing optimized."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def kernel_plans(parts: Partition) -> tuple[dict[int, Plan], dict[str, str], list[type[OpRun]]]:
    """Every definition as a generated kernel, and the kernels as operators for onnx's reference evaluator."""
    plans, kernels, operators = dict[int, Plan](), dict[str, str](), list[type[OpRun]]()
    for region in parts.regions:
        names = {name: f"k{region.index}_{i}" for i, (name, _) in enumerate(region.program.definitions)}
        steps = []
        for name, term in region.program.definitions:
            step = Step(names[name], Compute(rename(term, names)))
            steps.append(step)
            kernels[step.name] = f"Kernel{len(operators)}"
            operators.append(_operator(kernels[step.name], step))
        outputs = {name: names[name] for name in region.program.outputs}
        plans[region.index] = Plan(region.program.inputs, tuple(steps), outputs, region.program.constants)
    return plans, kernels, operators


def _operator(operator: str, step: Step) -> type[OpRun]:
    assert isinstance(step.buffer, Compute)
    term: Tensor = step.buffer.tensor
    names = [source.name for source in step.arguments]

    def compute(self: Any, *values: np.ndarray) -> tuple[np.ndarray]:
        arrays = {name: np.asarray(array, dtype=np.float64) for name, array in zip(names, values, strict=True)}
        return (interpreter.evaluate(term, arrays).astype(np.float32),)

    return type(operator, (OpRun,), {"op_domain": "egraph_opt.kernels", "_run": compute})


def portable_plan(region: Region, opset: int) -> Plan | None:
    """Every definition with standard operators, if all of them can be written so."""
    steps, constants = list[Step](), dict(region.program.constants)
    for name, term in region.program.definitions:
        written = express(name, term)
        calls = [step.buffer for step in written.steps if isinstance(step.buffer, Call)] if written else []
        if written is None or not all(supports(call, opset) for call in calls):
            return None
        steps += written.steps
        constants |= written.constants
    outputs = {name: name for name in region.program.outputs}
    return Plan(region.program.inputs, tuple(steps), outputs, constants)


def check_encoding(model: onnx.ModelProto, *, portable: bool = True, tolerance: float = 1e-4) -> LoadedModel:
    """The model is one region; its program, and its plan of standard operators, compute what onnxruntime does."""
    loaded = load(model)
    parts = partition(loaded)
    assert not parts.opaque, parts.opaque
    assert len(parts.regions) == 1
    (region,) = parts.regions
    feeds = draw_inputs(model)
    wanted = run(model, feeds)
    found = interpreter.run_program(region.program, {s.name: feeds[s.name] for s in region.program.inputs})
    _compare(wanted, found, tolerance)
    plan = portable_plan(region, loaded.opset)
    assert plan is not None or not portable, "no form with standard operators"
    if plan is not None:
        rebuilt = rebuild(loaded, parts.regions, {0: plan})
        load(rebuilt)  # checks it
        _compare(wanted, run(rebuilt, feeds), tolerance)
    return loaded


def check_kernels(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> None:
    """Replacing every region by kernels changes no output, as onnx's reference evaluator sees it."""
    loaded = load(model)
    parts = partition(loaded)
    plans, kernels, operators = kernel_plans(parts)
    rebuilt = rebuild(loaded, parts.regions, plans, kernels)
    load(rebuilt)  # checks it
    names = [output.name for output in model.graph.output]
    wanted = ReferenceEvaluator(model).run(None, dict(feeds))
    found = ReferenceEvaluator(rebuilt, new_ops=operators).run(None, dict(feeds))
    _compare(dict(zip(names, wanted, strict=True)), dict(zip(names, found, strict=True)), 1e-3)


def _compare(wanted: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], tolerance: float) -> None:
    for name, array in found.items():
        assert array.shape == wanted[name].shape, name
        np.testing.assert_allclose(array, wanted[name], rtol=tolerance, atol=tolerance, err_msg=name)
