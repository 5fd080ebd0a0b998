"""What nodes should cost, by the same measure for a region as it is and for a plan as it would be written.

Only nodes are compared with nodes: a step of a plan may be several of them, and a node several steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isclose, prod

import numpy as np
from onnx import NodeProto, helper

from egraph_opt.errors import EgraphOptError
from egraph_opt.extract.cost_models import Latency
from egraph_opt.extract.roofline import STEP_SECONDS, Device, call_seconds
from egraph_opt.extract.step_info import MOVES, RESHAPE, CostModel, StepInfo, info_of, priced
from egraph_opt.frontends.onnx_emit import Emitter
from egraph_opt.frontends.onnx_model import Array, LoadedModel, other_imports, standard
from egraph_opt.frontends.onnx_writer import emit_step
from egraph_opt.frontends.regions import Region
from egraph_opt.ir import library
from egraph_opt.ir.expr import Extents
from egraph_opt.ir.program import Plan, Step
from egraph_opt.ir.terms import Call, Source

_DEVICE = Device()
SECONDS = Latency()
# Another shape for the same memory.
_SAME_MEMORY = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
# Nodes that onnxruntime takes out.
_NOTHING = frozenset({"Constant", "Dropout", "Identity"})
_KNOWN = frozenset(operator.name for operator in library.OPERATORS) - {"Transpose", "Concat"}
# Operators whose later inputs say how, not what.
_DATA = {"Gather": 1, "Slice": 1, "Pad": 1, "Expand": 1, "Tile": 1, "Split": 1, "Resize": 1, "Upsample": 1}


@dataclass
class Work:
    """What some nodes should cost, and how many there are of each operator; kernels count by what they are."""

    cost: float = 0.0
    operators: Counter[str] = field(default_factory=Counter)

    def add(self, operator: str, cost: float) -> None:
        self.cost += cost
        self.operators[operator] += 1

    def is_like(self, other: Work) -> bool:
        """Whether both are the same nodes, as far as can be told without looking at names."""
        return self.operators == other.operators and isclose(self.cost, other.cost, rel_tol=1e-9)


def work_of_region(loaded: LoadedModel, region: Region, model: CostModel = SECONDS) -> Work:
    """The nodes of a region as they are, under a cost model."""
    extents = {name: term.extents for name, term in region.program.definitions}

    def shape(name: str) -> Extents | None:
        return extents[name] if name in extents else loaded.type_of(name).shape

    work = Work()
    for position in region.nodes:
        node = loaded.nodes[position]
        arguments = [shape(name) for name in node.input if name]
        results = [shape(name) for name in node.output if name]
        if node.op_type not in _NOTHING:
            info = _info(node, [s for s in arguments if s is not None], [s for s in results if s is not None])
            work.add(node.op_type, priced(model, info))
    return work


def work_of_plan(plan: Plan, kernels: Mapping[str, float], loaded: LoadedModel, model: CostModel = SECONDS) -> Work:
    """The nodes that a plan is written as, under a cost model; ``kernels`` has the cost of each kernel by step name.

    Raises EgraphOptError where it cannot be written.
    """
    extents = {source.name: source.extents for source in plan.inputs}
    extents |= {name: value.shape for name, value in plan.constants.items()}
    extents |= {step.name: step.extents for step in plan.steps}
    sketch = _Sketch(loaded.opset, set(extents), other_imports(loaded.model))
    work = Work()
    for step in plan.steps:
        if step.name in kernels:
            work.add("kernel", kernels[step.name])
        elif isinstance(step.buffer, Call) and step.buffer.operator in library.ADDED:
            work.add(step.buffer.operator, priced(model, info_of(step.buffer, plan.constants)))
        else:
            _add_step(work, step, extents, sketch, model)
    return work


@dataclass
class _Sketch(Emitter):
    """Writes nodes that nobody keeps; of constants it only knows the ``shapes``."""

    shapes: dict[str, Extents] = field(default_factory=dict)

    def constant(self, value: Array, hint: str) -> str:
        name = self.fresh(hint)
        self.shapes[name] = tuple(np.shape(value))
        return name


def _add_step(work: Work, step: Step, extents: Mapping[str, Extents], sketch: _Sketch, model: CostModel) -> None:
    sketch.nodes = []
    emit_step(sketch, step, {name: name for name in (*(a.name for a in step.arguments), step.name)}, {})
    between: dict[str, Extents] = {}

    def shape(name: str) -> Extents:
        return extents.get(name) or sketch.shapes.get(name) or between.get(name, ())

    for node in sketch.nodes:
        arguments = [shape(name) for name in node.input if name]
        for name in node.output:
            if name not in extents:
                between[name] = _after(node, arguments, step.extents)
        if node.op_type not in _NOTHING:
            work.add(node.op_type, priced(model, _info(node, arguments, [shape(name) for name in node.output])))


def _after(node: NodeProto, arguments: Sequence[Extents], last: Extents) -> Extents:
    """The shape of a tensor between the nodes of a step whose result has the extents ``last``."""
    if node.op_type == "Transpose":
        order = next((tuple(a.ints) for a in node.attribute if a.name == "perm"), ())
        return tuple(arguments[0][axis] for axis in order)
    if node.op_type == "Softmax":
        return arguments[0]
    if node.op_type in _KNOWN:  # what is applied to its result comes after it
        return last
    try:
        return tuple(int(n) for n in np.broadcast_shapes(*arguments))
    except ValueError:
        return last


def _info(node: NodeProto, arguments: Sequence[Extents], results: Sequence[Extents]) -> StepInfo:
    """What a cost model is told of a node."""
    operator = node.op_type
    data = 1 if operator.startswith("Reduce") else _DATA.get(operator, len(arguments))
    shapes = tuple(arguments[:data])
    moved = sum(map(prod, shapes))
    # Of several results the elements count.
    result = results[0] if len(results) == 1 else (sum(map(prod, results)),)
    if operator in _SAME_MEMORY:
        return StepInfo(RESHAPE, {}, shapes, (), result, 0, 0, _no_step, lambda: _DEVICE.reshape_seconds)
    own = next((o for o in library.ADDED.values() if _is_of(node, o)), None)
    name = own.name if own is not None else operator
    if name in _KNOWN or own is not None:
        known = library.lookup(name).attributes
        # What refers to an attribute of a function has no value here.
        own_values = [a for a in node.attribute if a.name in known and not a.ref_attr_name]
        given = {a.name: helper.get_attribute_value(a) for a in own_values}
        text = library.format_attributes(**{key: tuple(v) if isinstance(v, list) else v for key, v in given.items()})
        try:
            seconds = STEP_SECONDS + call_seconds(_DEVICE, name, text, shapes, results[0])
            call = Call(name, text, tuple(Source("", extents) for extents in shapes), results[0])
            return replace(info_of(call), expected=lambda: seconds)
        except (EgraphOptError, LookupError, ValueError):
            pass  # a form that the algebra does not write: told by the memory it moves, like any other
    seconds = STEP_SECONDS + _DEVICE.call_seconds + _DEVICE.memory_seconds(moved + prod(result))
    operations = 0 if operator in MOVES else prod(result)
    return StepInfo(operator, {}, shapes, (), result, operations, moved, _no_step, lambda: seconds)


def _no_step() -> Call:
    raise EgraphOptError("a node outside the algebra is no step of a plan")


def _is_of(node: NodeProto, operator: library.LibraryOperator) -> bool:
    form = operator.onnx
    return form is not None and (form.op_type, form.domain) == (node.op_type, standard(node.domain))
