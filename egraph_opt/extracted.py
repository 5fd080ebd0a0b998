"""What :meth:`egraph_opt.EGraph.extract` returns: the cheapest program under a cost model, to read, run and write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np

from egraph_opt.egraph.snapshot import Snapshot
from egraph_opt.errors import UsageError
from egraph_opt.extract.alternatives import Alternative, Extraction, Problem
from egraph_opt.extract.choose import Choice
from egraph_opt.extract.cost_models import NAMED, Latency
from egraph_opt.extract.plans import build_plan, step_names
from egraph_opt.extract.portable_plan import Expressible, portable_plan
from egraph_opt.extract.priced_extraction import PricedExtraction, cheapest
from egraph_opt.extract.roofline import STEP_SECONDS, Device
from egraph_opt.extract.step_info import CostModel, info_of, priced
from egraph_opt.frontends import onnx_program
from egraph_opt.ir import interpreter, printing
from egraph_opt.ir.expression import checked_inputs, sources
from egraph_opt.ir.interpreter import Arithmetic, FloatArithmetic
from egraph_opt.ir.program import Plan, Program
from egraph_opt.ir.terms import Compute, Reshape

if TYPE_CHECKING:
    import onnx

    from egraph_opt.frontends.onnx_model import LoadedModel
    from egraph_opt.frontends.regions import Region

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Home:
    """The model that a program is a region of."""

    loaded: LoadedModel
    regions: Sequence[Region]
    region: Region
    prefix: str


@dataclass(frozen=True)
class Extracted:
    """The cheapest program found, as a list of steps that prints as a let-list.

    ``cost`` is the sum of the ``costs`` of the steps by name, in the cost model's own unit; seconds for "static".
    """

    program: Program
    costs: Mapping[str, float]
    problem: Problem = field(repr=False)
    choice: Choice = field(repr=False)
    prefix: str = field(repr=False)
    static: bool = field(repr=False)
    portable: bool = field(repr=False)
    home: Home | None = field(default=None, repr=False)

    @property
    def cost(self) -> float:
        """Sum of the costs of all steps."""
        return sum(self.costs.values())

    @cached_property
    def plan(self) -> Plan:
        """The steps in execution order with all weights they use. Raises UsageError for a weight without values."""
        if self._missing:
            name = self._missing[0]
            raise UsageError(f"weight {name!r} has no values: give them with weight({name!r}, shape, values)")
        return self._plan(self.program)

    def text(self) -> str:
        """The steps as a let-list, each with its cost."""
        costs = {name: self._shown(cost) for name, cost in self.costs.items()}
        return f"{printing.plan_text(self._shapes, costs)}\ncost {self._shown(self.cost)}"

    def __str__(self) -> str:
        return self.text()

    @property
    def kernels(self) -> int:
        """Number of steps that need a generated kernel; none in a portable program."""
        return sum(isinstance(step.buffer, Compute) for step in self._shapes.steps)

    def evaluate(self, inputs: Mapping[str, Any], *, arithmetic: Arithmetic | None = None) -> dict[str, Array]:
        """All outputs by name, step by step with numpy, in float64 unless another arithmetic is given.

        What was a kernel before it was written with standard operators is evaluated by its definition.
        ``inputs`` holds an array for every input, and for every weight that has no values.
        """
        arrays = checked_inputs(self.program, inputs)
        constants = {**self.program.constants, **{name: arrays[name] for name in self._missing if name in arrays}}
        plan = self._abstract(replace(self.program, constants=constants))
        return interpreter.run_plan(plan, arrays, arithmetic or FloatArithmetic())

    def to_onnx(self) -> onnx.ModelProto:
        """A model of standard ONNX operators; where this is a region of a model, that model with the region replaced.

        Raises UsageError for a weight without values, and EgraphOptError where this was extracted with
        ``portable=False`` and a kernel has no form in standard operators.
        """
        plan = portable_plan(self.plan)
        if self.home is None:
            extents = {name: term.extents for name, term in self.program.definitions}
            extents |= {source.name: source.extents for source in self.program.inputs if source.name not in extents}
            return onnx_program.written(plan, {name: extents[name] for name in self.program.outputs})
        from egraph_opt.frontends.onnx_writer import rebuild

        return rebuild(self.home.loaded, self.home.regions, {self.home.region.index: plan})

    @cached_property
    def _missing(self) -> tuple[str, ...]:
        known = self.program.constants
        return tuple(s.name for s in sources(self.program) if s.constant and s.name not in known)

    @cached_property
    def _shapes(self) -> Plan:
        """The plan as far as its text goes: weights without values are taken for zeros."""
        shapes = {source.name: source.extents for source in sources(self.program)}
        zeros = {name: np.broadcast_to(np.float32(0), shapes[name]) for name in self._missing}
        return self._plan(replace(self.program, constants={**zeros, **self.program.constants}))

    def _plan(self, program: Program) -> Plan:
        plan = self._abstract(program)
        return portable_plan(plan) if self.portable else plan

    def _abstract(self, program: Program) -> Plan:
        """The plan before kernels are written with standard operators."""
        return build_plan(self.problem, self.choice, program, prefix=self.prefix)

    def _shown(self, cost: float) -> str:
        if self.static:
            return f"{cost * 1e6:.3g} us"
        return f"{int(cost):,}" if cost == int(cost) else f"{cost:.4g}"


@dataclass(frozen=True)
class ExtractedModel:
    """The cheapest programs of all regions of a model; ``cost`` is their sum."""

    regions: tuple[Extracted, ...]
    loaded: LoadedModel = field(repr=False)

    @property
    def cost(self) -> float:
        """Sum of the costs of the regions."""
        return sum(region.cost for region in self.regions)

    def text(self) -> str:
        """The let-lists of all regions."""
        return "\n\n".join(f"region {i}\n{region.text()}" for i, region in enumerate(self.regions))

    def __str__(self) -> str:
        return self.text()

    def to_onnx(self) -> onnx.ModelProto:
        """The model with all its regions replaced; see :meth:`Extracted.to_onnx`."""
        from egraph_opt.frontends.onnx_writer import rebuild

        homes = [(found, found.home) for found in self.regions if found.home is not None]
        plans = {home.region.index: portable_plan(found.plan) for found, home in homes}
        return rebuild(self.loaded, homes[0][1].regions if homes else [], plans)


def extract(
    snapshot: Snapshot,
    program: Program,
    cost: CostModel | str,
    *,
    portable: bool,
    prefix: str,
    home: Home | None = None,
) -> Extracted:
    """The cheapest program for all outputs; see :meth:`egraph_opt.EGraph.extract`."""
    if not callable(cost) and cost != "static" and cost not in NAMED:
        raise UsageError(
            f"unknown cost model {cost!r}; choose static, {', '.join(NAMED)} or give a function of one step"
        )
    model = cost if callable(cost) else NAMED.get(cost, Latency())
    written = Expressible(home.loaded.opset if home is not None else onnx_program.OPSET) if portable else None
    native = cost == "static" and not portable
    extraction = Extraction(snapshot, Device()) if native else PricedExtraction(snapshot, model, written)

    def price(alternative: Alternative) -> float:
        if written is not None and written(alternative.step) is None:
            return inf
        extra = STEP_SECONDS if native and not isinstance(alternative.step, Reshape) else 0.0
        return alternative.estimate + extra

    problem = extraction.problem(program.outputs)
    choice = cheapest(problem, price)
    if choice is None:
        allowed = "of standard operators and finite cost; portable=False also allows kernels" if portable else ""
        raise UsageError(f"no program {allowed or 'of finite cost'} was found")
    found = Extracted(program, {}, problem, choice, prefix, cost == "static", portable, home)
    if not portable:
        names = step_names(problem, choice, prefix)
        return replace(found, costs={names[o]: price(alternative) for o, alternative in choice.steps if o in names})
    plan = found._shapes
    steps = [(step.name, step.buffer) for step in plan.steps]
    costs = {n: priced(model, info_of(s, plan.constants)) for n, s in steps if not isinstance(s, Compute)}
    return replace(found, costs=costs)
