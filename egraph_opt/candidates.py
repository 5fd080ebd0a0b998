"""Models with plans in the place of regions: built, stored where a session can load them, and compared by content."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from egraph_opt.backends import tvm_build
from egraph_opt.backends.model_timer import TimedModel
from egraph_opt.backends.runtimes import DEFAULT, version
from egraph_opt.errors import EgraphOptError, one_line
from egraph_opt.extract.cost_models import name_of
from egraph_opt.extract.implement import Implementer
from egraph_opt.extract.own_kernels import refuse_wrong
from egraph_opt.extract.plans import step_names
from egraph_opt.extract.profiler import timing_opset
from egraph_opt.extract.roofline import STEP_SECONDS
from egraph_opt.frontends.onnx_costs import SECONDS, Work, work_of_plan, work_of_region
from egraph_opt.frontends.onnx_memory import peak_of
from egraph_opt.frontends.onnx_reader import rebuilt
from egraph_opt.frontends.onnx_storage import store as store
from egraph_opt.frontends.onnx_storage import stored
from egraph_opt.frontends.onnx_writer import rebuild
from egraph_opt.ir.program import Plan
from egraph_opt.ir.terms import Call, Compute
from egraph_opt.limits import OUT_OF_MEMORY as OUT_OF_MEMORY
from egraph_opt.limits import OUT_OF_TIME as OUT_OF_TIME
from egraph_opt.limits import Limits
from egraph_opt.runtime.report import Accuracy, Objective, RevertedRegion

if TYPE_CHECKING:
    import onnx

    from egraph_opt.extract.profile import Profile
    from egraph_opt.extract.search import Search
    from egraph_opt.extract.step_info import CostModel
    from egraph_opt.frontends.onnx_model import LoadedModel
    from egraph_opt.frontends.regions import Region
    from egraph_opt.verification import Judge

# Where nothing is measured a plan replaces nodes only if these should take so many times as long.
CHEAPER = 1.02


def digest(path: Path) -> str:
    """What identifies a stored model: a hash of all its files' content but the kernels', whose names are hashes."""
    total = hashlib.sha256()
    for name in (path, path.with_name(path.name + ".data")):
        if name.exists():
            with name.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


@dataclass(frozen=True)
class Candidate:
    """A rebuilt model stored with its kernel library, what it replaces, and once it is verified its ``accuracy``.

    ``peak`` are the bytes its intermediate buffers need at once, where that is known.
    """

    model: onnx.ModelProto
    stored: TimedModel
    plans: Mapping[int, Plan]
    kernels: tuple[str, ...]
    reverted: tuple[RevertedRegion, ...] = ()
    accuracy: Accuracy | None = None
    compiled: tuple[tvm_build.CompiledKernel, ...] = ()
    peak: int | None = None

    @cached_property
    def digest(self) -> str:
        """Equal for equal models in the same runtime."""
        assert isinstance(self.stored.model, Path)
        runtime = self.stored.runtime
        found = digest(self.stored.model)
        return found if runtime == DEFAULT else f"{found} in {runtime} {version(runtime)}"

    @property
    def library(self) -> bytes | None:
        """The kernel library, if there are kernels."""
        return self.stored.kernel_library.read_bytes() if self.stored.kernel_library is not None else None


@dataclass
class Builder:
    """Builds candidates in ``folder``; every kernel is compiled once. Without a ``compiler`` there are no kernels.

    ``objects`` are kernels by name that are compiled already. Nothing is built beyond ``limits``. ``objective`` is the
    cost model that decides, where it is not the latency, ``runtime`` what the models are for.
    """

    loaded: LoadedModel
    regions: Sequence[Region]
    profile: Profile
    compiler: Path | None
    folder: Path
    objects: dict[str, bytes] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    objective: CostModel | None = None
    runtime: str = DEFAULT
    built: int = 0
    _tried: set[str] = field(default_factory=set)

    def saves(self, search: Search, *, timed: bool) -> bool:
        """Whether it makes sense to put the plan that a search found in the place of its region's nodes.

        By estimates it must be cheaper by those that the nodes are held against, too; where whole models are compared
        (``timed``) it must not be the same nodes. So a model that was optimized before stays as it is.
        """
        if search.outcome is None:
            return False
        try:
            before, after = self._works(search)
        except Exception:
            return True  # building it will say what is wrong
        return not after.is_like(before) if timed else after.cost * CHEAPER < before.cost

    def objective_of(self, candidate: Candidate, searches: Mapping[int, Search]) -> Objective | None:
        """What the cost model that decides says of the nodes of all regions, and of what a candidate has instead."""
        if self.objective is None:
            return None
        before = after = 0.0
        for region in self.regions:
            if region.index in candidate.plans:
                nodes, plan = self._works(searches[region.index])
                before, after = before + nodes.cost, after + plan.cost
            else:
                nodes = work_of_region(self.loaded, region, self.objective)
                before, after = before + nodes.cost, after + nodes.cost
        unit = str(getattr(self.objective, "unit", ""))
        return Objective(name_of(self.objective), unit, before, after)

    def _works(self, search: Search) -> tuple[Work, Work]:
        """The nodes of a search's region, and what they are to be replaced by. Raises where that cannot be told."""
        if search.outcome is None:
            raise EgraphOptError("there is no plan")
        model = SECONDS if self.objective is None else self.objective
        region = next(region for region in self.regions if region.program is search.program)
        choice = search.outcome.choice
        names = step_names(search.problem, choice, search.prefix)
        charged = STEP_SECONDS if self.objective is None else 0.0
        costs = {
            names[owner]: charged + alternative.estimate
            for owner, alternative in choice.steps
            if isinstance(alternative.step, Compute) and owner in names
        }
        implementer = Implementer(self.profile, self.compiler is not None)
        implemented = implementer.implement(search.outcome.plan)
        kernels = {name: costs.get(name, 0.0) for name in implementer.names}
        after = work_of_plan(implemented, kernels, self.loaded, model)
        return work_of_region(self.loaded, region, model), after

    def build(self, plans: Mapping[int, Plan]) -> Candidate:
        """The model with these plans in the place of their regions.

        Raises EgraphOptError where one of them cannot be written.
        """
        self.limits.check()
        implementer = Implementer(self.profile, self.compiler is not None)
        implemented = {index: implementer.implement(plan) for index, plan in sorted(plans.items())}
        folder = self.folder / f"candidate{self.built}"
        self.built += 1
        model = stored(rebuild(self.loaded, self.regions, implemented, implementer.names), folder)
        path, library = folder / "model.onnx", None
        names = tuple(sorted(implementer.kernels))
        if names:
            for name in names:
                if name not in self.objects:
                    self.limits.check()
                    self.objects[name] = tvm_build.compile_object(implementer.kernels[name])
            library = tvm_build.build_library(
                [implementer.kernels[name] for name in names],
                folder / "model.kernels.so",
                compiler=str(self.compiler),
                objects=self.objects,
            )
            self._try(implementer.untried, library)
        compiled = tuple(tvm_build.CompiledKernel(implementer.kernels[name], self.objects[name]) for name in names)
        return Candidate(
            model,
            TimedModel(path, library, runtime=self.runtime),
            dict(plans),
            names,
            compiled=compiled,
            peak=peak_of(rebuilt(model, self.loaded)),
        )

    def _try(self, untried: Mapping[str, Call], library: Path) -> None:
        """Kernels of users run here for the first time: in a process of their own, each once."""
        for name, call in sorted(untried.items()):
            if name not in self._tried:
                refuse_wrong(call, library, timing_opset(self.loaded.opset))
                self._tried.add(name)


@dataclass
class Prover:
    """Builds and verifies candidates; where one fails, the regions at fault go back to their original nodes.

    After ``deadline`` (monotonic seconds) nothing new is tried.
    """

    builder: Builder
    judge: Judge
    regions: Sequence[Region]
    deadline: float = inf

    def prove(self, plans: Mapping[int, Plan]) -> tuple[Candidate | None, tuple[RevertedRegion, ...]]:
        """A candidate that computes as many of these regions by their plans as is right, and the reverted regions."""
        reverted: list[RevertedRegion] = []
        found = self._proven(dict(plans), reverted)
        return (None if found is None else replace(found, reverted=tuple(reverted))), tuple(reverted)

    def _proven(self, plans: dict[int, Plan], reverted: list[RevertedRegion]) -> Candidate | None:
        outcome = self._attempt(plans)
        if isinstance(outcome, Candidate):
            return outcome
        if len(plans) == 1 or time.monotonic() > self.deadline or outcome in (OUT_OF_TIME, OUT_OF_MEMORY):
            reverted += [self._reverted(index, outcome) for index in plans]
            return None
        order = sorted(plans)
        halves = [{i: plans[i] for i in part} for part in (order[: len(order) // 2], order[len(order) // 2 :])]
        found = [half for half in (self._proven(half, reverted) for half in halves) if half is not None]
        if len(found) < 2:
            return found[0] if found else None
        kept = {**found[0].plans, **found[1].plans}
        if len(kept) < len(plans):
            return self._proven(kept, reverted)
        reverted += [self._reverted(index, f"wrong only together with other regions: {outcome}") for index in halves[1]]
        return found[0]

    def _attempt(self, plans: Mapping[int, Plan]) -> Candidate | str:
        if time.monotonic() > self.deadline:
            return OUT_OF_TIME
        try:
            candidate = self.builder.build(plans)
            verdict = self.judge.verdict(candidate.stored, self.regions)
        except EgraphOptError as error:
            return str(error)
        except Exception as error:  # whatever goes wrong with a plan, the original nodes remain
            return f"internal error: {type(error).__name__}: {error}"
        return verdict if isinstance(verdict, str) else replace(candidate, accuracy=verdict)

    def _reverted(self, index: int, why: str) -> RevertedRegion:
        nodes = next(len(region.nodes) for region in self.regions if region.index == index)
        return RevertedRegion(str(index), one_line(why), nodes)
