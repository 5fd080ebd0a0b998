"""From a plan of abstract steps to one that runs: every kernel step in its fastest implementation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from egraph_opt.backends import tvm_build
from egraph_opt.errors import EgraphOptError
from egraph_opt.extract.alternatives import signature
from egraph_opt.extract.profile import Profile
from egraph_opt.extract.profiler import KERNEL, PORTABLE, kernel_of
from egraph_opt.frontends.portable import express
from egraph_opt.ir.expr import Extents
from egraph_opt.ir.program import Plan, Step, rename
from egraph_opt.ir.terms import Compute, Reshape, Source


@dataclass
class Implementer:
    """Collects the kernels of several plans; ``names`` gives the custom operator of each kernel step."""

    profile: Profile
    kernels_allowed: bool
    names: dict[str, str] = field(default_factory=dict)
    kernels: dict[str, tvm_build.Kernel] = field(default_factory=dict)

    def implement(self, plan: Plan) -> Plan:
        """The same plan with kernel steps named as kernels or replaced by standard operators, whichever was faster."""
        steps: list[Step] = []
        constants = dict(plan.constants)
        held = {source.name: source.extents for source in plan.inputs}
        held |= {name: value.shape for name, value in constants.items()}
        held |= {step.name: step.extents for step in plan.steps}
        for step in plan.steps:
            if not isinstance(step.buffer, Compute):
                steps.append(step)
                continue
            best = self.profile.best(signature(step.buffer))
            choice = best.implementation if best is not None else KERNEL
            if choice == PORTABLE or not self.kernels_allowed:
                written, more = _portable(step, step.buffer, held)
                steps += written
                constants |= more
            else:
                kernel = kernel_of(step, choice.removeprefix(KERNEL))
                self.names[step.name] = kernel.name
                self.kernels[kernel.name] = kernel
                steps.append(step)
        return Plan(plan.inputs, tuple(steps), plan.outputs, constants)


def _portable(step: Step, buffer: Compute, held: Mapping[str, Extents]) -> tuple[list[Step], Mapping[str, np.ndarray]]:
    """A kernel sees memory only; standard operators need every argument under the extents the body reads it with."""
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
