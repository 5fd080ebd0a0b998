"""Plans of standard operators only: every kernel step written with library calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from egraph_opt.errors import EgraphOptError
from egraph_opt.extract.alternatives import signature
from egraph_opt.frontends.onnx_emit import supports
from egraph_opt.frontends.portable import express
from egraph_opt.ir.expr import Extents
from egraph_opt.ir.program import Plan, Step, kernel_signature, rename
from egraph_opt.ir.terms import Call, Compute, Reshape, Source


@dataclass
class Expressible:
    """How steps are written with standard operators of an opset."""

    opset: int
    _known: dict[str, tuple[Call | Reshape, ...] | None] = field(default_factory=dict)

    def __call__(self, step: Call | Compute | Reshape) -> tuple[Call | Reshape, ...] | None:
        """The library calls and reshapes that a step is written as; None where it cannot be."""
        key = signature(step)
        if key not in self._known:
            self._known[key] = self._found(step)
        return self._known[key]

    def _found(self, step: Call | Compute | Reshape) -> tuple[Call | Reshape, ...] | None:
        steps: list[Call | Compute | Reshape] = [step]
        if isinstance(step, Compute):
            written = express("y", kernel_signature(step.tensor)[0])
            steps = [s.buffer for s in written.steps] if written is not None else steps
        found = tuple(s for s in steps if not isinstance(s, Compute))
        writable = len(found) == len(steps) and all(self._writable(s) for s in found if isinstance(s, Call))
        return found if writable else None

    def _writable(self, call: Call) -> bool:
        try:
            return supports(call, self.opset)
        except EgraphOptError:  # an operator of which onnxruntime knows nothing
            return False


def held_shapes(plan: Plan) -> dict[str, Extents]:
    """The shapes under which the buffers of a plan lie in memory, by name."""
    held = {source.name: source.extents for source in plan.inputs}
    held |= {name: value.shape for name, value in plan.constants.items()}
    return held | {step.name: step.extents for step in plan.steps}


def portable_plan(plan: Plan) -> Plan:
    """The same plan without kernels. Raises EgraphOptError where a kernel has no form in standard operators."""
    steps: list[Step] = []
    constants = dict(plan.constants)
    held = held_shapes(plan)
    for step in plan.steps:
        if isinstance(step.buffer, Compute):
            written, more = written_portably(step, step.buffer, held)
            steps += written
            constants |= more
        else:
            steps.append(step)
    return Plan(plan.inputs, tuple(steps), plan.outputs, constants)


def written_portably(
    step: Step, buffer: Compute, held: Mapping[str, Extents]
) -> tuple[list[Step], Mapping[str, np.ndarray]]:
    """A kernel step as standard operators: its steps and constants.

    A kernel sees memory only; standard operators need every argument under the extents the body reads it with."""
    views = {a.name: f"{step.name}/{a.name}" for a in step.arguments if a.extents != held[a.name]}
    steps = [
        Step(views[a.name], Reshape(Source(a.name, held[a.name]), a.extents)) for a in step.arguments if a.name in views
    ]
    flat = f"{step.name}/flat" if step.shape is not None else step.name
    written = express(flat, rename(buffer.tensor, views))
    if written is None:
        raise EgraphOptError(f"step {step.name} cannot be written with standard operators")
    steps += written.steps
    if step.shape is not None:
        steps.append(Step(step.name, Reshape(Source(flat, step.buffer.extents), step.shape)))
    return steps, written.constants
