"""From a plan of abstract steps to one that runs: every kernel step in its fastest implementation."""

from __future__ import annotations

from dataclasses import dataclass, field

from egraph_opt.backends import tvm_build
from egraph_opt.extract.alternatives import signature
from egraph_opt.extract.own_kernels import has_code, has_kernel, kernel_of_call
from egraph_opt.extract.portable_plan import held_shapes, written_portably
from egraph_opt.extract.profile import KERNEL, Profile
from egraph_opt.extract.profiler import LIBRARY, PORTABLE, kernel_of
from egraph_opt.extract.tidy import tidied
from egraph_opt.ir.program import Plan, Step
from egraph_opt.ir.terms import Call, Compute


@dataclass
class Implementer:
    """Collects the kernels of several plans; ``names`` gives the custom operator of each kernel step.

    ``untried`` are the kernels of users that were never held against the meaning of their operator, with the call.
    """

    profile: Profile
    kernels_allowed: bool
    names: dict[str, str] = field(default_factory=dict)
    kernels: dict[str, tvm_build.AnyKernel] = field(default_factory=dict)
    untried: dict[str, Call] = field(default_factory=dict)

    def implement(self, plan: Plan) -> Plan:
        """The same plan with kernel steps named as kernels or replaced by standard operators, whichever was faster."""
        steps: list[Step] = []
        constants = dict(plan.constants)
        held = held_shapes(plan)
        for step in plan.steps:
            if isinstance(step.buffer, Call):
                self._call(step, step.buffer)
                steps.append(step)
                continue
            if not isinstance(step.buffer, Compute):
                steps.append(step)
                continue
            best = self.profile.verdict(signature(step.buffer))
            failed = best is None and self.profile.knows(signature(step.buffer), KERNEL)
            choice = PORTABLE if failed else best.implementation if best is not None else KERNEL
            if choice == PORTABLE or not self.kernels_allowed or not has_code(step.buffer):
                written, more = written_portably(step, step.buffer, held)
                steps += written
                constants |= more
            else:
                self._add(step, kernel_of(step, choice.removeprefix(KERNEL)))
                steps.append(step)
        return tidied(Plan(plan.inputs, tuple(steps), plan.outputs, constants))

    def _call(self, step: Step, call: Call) -> None:
        """A call keeps its operator, or is computed by the user's kernel for it."""
        if not has_kernel(call) or not self.kernels_allowed:
            return
        best = self.profile.best(signature(call))
        if best is not None and best.implementation == LIBRARY:
            return
        kernel = kernel_of_call(call)
        self._add(step, kernel)
        if best is None:
            self.untried[kernel.name] = call

    def _add(self, step: Step, kernel: tvm_build.AnyKernel) -> None:
        self.names[step.name] = kernel.name
        self.kernels[kernel.name] = kernel
