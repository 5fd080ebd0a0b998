"""Programs for a GPU that is somewhere else: what to measure there, and what to run there once it is measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from egraph_opt.errors import EgraphOptError, InputRejected, UsageError
from egraph_opt.gpu.files import LIBRARY, MODE, Bundle, Program, Sketch, Work
from egraph_opt.runtime.progress import Progress, ProgressCallback, silent

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from egraph_opt.backends.cuda_works import Works
    from egraph_opt.extract.profile import Profile
    from egraph_opt.extract.search import Search
    from egraph_opt.frontends.onnx_model import LoadedModel
    from egraph_opt.ir.expr import Extents
    from egraph_opt.ir.program import Plan, Step
    from egraph_opt.packs import Pack


def plan(
    model: str | Path | onnx.ModelProto,
    *,
    target: str = "cuda:sm_90",
    shapes: Mapping[str, int | Sequence[int]] | None = None,
    rules: str | Sequence[str | Pack] = "",
    fp: str = "default",
    progress: ProgressCallback | None = None,
) -> Bundle:
    """Everything to be measured on a GPU for a model: library calls, and kernels compiled for it. Needs no GPU.

    ``shapes`` gives symbolic dimensions a length, or inputs a shape.

    Raises InputRejected for a model with nodes that neither the algebra nor a library call computes, naming them;
    BackendMissing without nvcc.
    """
    return _Offline(target, dict(shapes or {}), rules, fp, progress or silent).plan(model)


def choose(
    model: str | Path | onnx.ModelProto,
    profile_db: Path | None = None,
    *,
    target: str = "cuda:sm_90",
    device: str = "",
    kernels: bool = True,
    shapes: Mapping[str, int | Sequence[int]] | None = None,
    rules: str | Sequence[str | Pack] = "",
    fp: str = "default",
    progress: ProgressCallback | None = None,
) -> Program:
    """The program that should be fastest on a measured GPU, ready to run there. Needs no GPU.

    Without a profile database it is chosen by the measurements that come with this package, or where these do not know
    the model's steps by static costs of a described GPU; ``Program.device`` says which. ``device`` picks one of several
    devices in the profile database by a part of its name. Without ``kernels`` there are library calls only.

    Raises UsageError where the database holds no device that fits, or several.
    """
    return _Offline(target, dict(shapes or {}), rules, fp, progress or silent).choose(
        model, profile_db, device, kernels
    )


@dataclass(frozen=True)
class _Explored:
    """A model in parts: ``searches`` by region, ``calls`` by the node outside the algebra, ``order`` of all of them.

    The order has the index of a region, or -1 - position for a node. ``inputs``, ``outputs`` and ``constants`` are
    those of the model.
    """

    name: str
    searches: Mapping[int, Search]
    calls: Mapping[int, Step]
    order: tuple[int, ...]
    inputs: Mapping[str, Extents]
    outputs: tuple[str, ...]
    constants: Mapping[str, np.ndarray]
    weights: frozenset[str]


@dataclass
class _Offline:
    target: str
    shapes: Mapping[str, int | Sequence[int]]
    rules: str | Sequence[str | Pack]
    fp: str
    progress: ProgressCallback

    @property
    def _architecture(self) -> str:
        from egraph_opt.extract.gpu_devices import architecture_of

        return architecture_of(self.target)

    @cached_property
    def _works(self) -> Works:
        from egraph_opt.backends.cuda_works import Works
        from egraph_opt.extract.gpu_devices import GPUS, TYPICAL

        return Works(self._architecture, GPUS[TYPICAL[self._architecture]])

    # ---- what to measure -------------------------------------------------------------------------------------------

    def plan(self, model: str | Path | onnx.ModelProto) -> Bundle:
        return self._bundle(self._explored(model))

    def _bundle(self, explored: _Explored) -> Bundle:
        from egraph_opt.backends.cuda_candidates import candidates
        from egraph_opt.backends.environment import package_versions
        from egraph_opt.extract.problem import Alternative
        from egraph_opt.extract.sketches import sketch_of

        parts: list[tuple[Sketch, ...]] = []
        for part in explored.order:
            if part < 0:
                step = explored.calls[-1 - part]
                self._works.of(Alternative(step.buffer, (), 0.0))
                parts.append((sketch_of([step], {step.name: step.name}),))
            else:
                parts.append(candidates(explored.searches[part], self._works, progress=self.progress))
        known = self._works.known
        wanted = [work for text in sorted(known) for work in known[text]]
        self.progress(Progress("compile", f"{sum(work.is_kernel for work in wanted)} kernels"))
        kept, made, dropped = self._works.compiled(wanted)
        return Bundle(
            Path(explored.name).name,
            self._architecture,
            tuple(kept),
            tuple(made),
            package_versions(),
            dropped | self._works.failed,
            explored.inputs,
            explored.outputs,
            tuple(parts),
            _read_constants(parts, explored),
        )

    # ---- what to run -----------------------------------------------------------------------------------------------

    def choose(
        self, model: str | Path | onnx.ModelProto, database: Path | None, device: str, with_kernels: bool
    ) -> Program:
        from egraph_opt.extract.profile import Profile

        if database is not None:
            profile = Profile(database, self._device(database, device), MODE)
            if profile.warning:
                raise InputRejected(profile.warning)
            return self._chosen(self._explored(model), profile, with_kernels)
        explored = self._explored(model)
        for found in self._shipped(device):
            try:
                return self._chosen(explored, found, with_kernels)
            except _NotMeasuredError:
                continue
        return self._chosen(explored, self._estimated(explored), with_kernels)

    def _device(self, profile_db: Path, wanted: str) -> str:
        """The only device of a database that is of this target and fits what is wanted."""
        from egraph_opt.extract.profile import devices

        known = devices(profile_db)
        fitting = [key for key in known if key.startswith(self._architecture) and wanted in key]
        if len(fitting) == 1:
            return fitting[0]
        listed = "; ".join(f"{key!r}" for key in (fitting or known)) or "none"
        problem = "several devices fit, choose one with --device" if fitting else "no device fits"
        raise UsageError(f"{problem} in {profile_db} for {self.target}; it has: {listed}")

    def _shipped(self, device: str) -> Iterator[Profile]:
        """The profiles of this architecture that come with the package."""
        from egraph_opt.extract.gpu_devices import shipped
        from egraph_opt.extract.profile import Profile, devices

        for path in shipped():
            for key in devices(path):
                if key.startswith(self._architecture) and device in key:
                    yield Profile(path, key, MODE)

    def _estimated(self, explored: _Explored) -> Profile:
        """Static costs of everything that would be measured."""
        from egraph_opt.extract.profile import Profile
        from egraph_opt.gpu import profiling
        from egraph_opt.gpu.devices import roofline_key

        profile = Profile(None, roofline_key(self._architecture), MODE)
        profiling.estimate(self._bundle(explored), profile)
        return profile

    def _chosen(self, explored: _Explored, profile: Profile, with_kernels: bool) -> Program:
        from egraph_opt.extract.sketches import sketch_of
        from egraph_opt.gpu.assembly import assembled, program

        if not with_kernels:
            profile = _without_kernels(profile)
        sketches, constants, ways, seconds = [], dict(explored.constants), dict[str, Work](), 0.0
        for part in explored.order:
            if part < 0:
                steps: Sequence[Step] = [explored.calls[-1 - part]]
                outputs: Mapping[str, str] = {steps[0].name: steps[0].name}
            else:
                plan, cost = self._cheapest(explored.searches[part], profile, with_kernels)
                steps, outputs = plan.steps, plan.outputs
                constants |= plan.constants
                seconds += cost
            for step in steps:
                work = self._way(step, profile)
                if work is not None:
                    ways[work.signature] = work
                    seconds += work.estimate if part < 0 else 0.0
            sketches.append(sketch_of(steps, outputs))
        compiled, made, _ = self._works.compiled([ways[text] for text in sorted(ways)])
        whole = assembled(sketches, {work.signature: work for work in compiled}, explored.inputs, explored.outputs)
        name = Path(explored.name).name
        return program(name, self._architecture, explored.inputs, whole, constants, made, profile, seconds)

    def _cheapest(self, search: Search, profile: Profile, with_kernels: bool) -> tuple[Plan, float]:
        """The cheapest plan of measured steps, and its seconds."""
        from egraph_opt.extract.choose import choose_exactly
        from egraph_opt.extract.costs import Costs
        from egraph_opt.extract.plans import build_plan
        from egraph_opt.extract.search import PIVOTS, SECONDS

        costs = Costs(profile, lambda _: True, certain=True)
        self.progress(Progress("choose", "the cheapest plan of measured steps"))
        choice = choose_exactly(search.problem, costs, pivots=PIVOTS, seconds=SECONDS)
        if choice is None:
            kind = "plan" if with_kernels else "plan of library calls alone"
            raise _NotMeasuredError(
                f"no {kind} of the model is measured as a whole; profile its bundle on the device first"
            )
        return build_plan(search.problem, choice, search.program, prefix=search.prefix), choice.cost

    def _way(self, step: Step, profile: Profile) -> Work | None:
        """The fastest way to do a step; None for a reshape."""
        from egraph_opt.extract.problem import Alternative, signature
        from egraph_opt.ir.terms import Reshape

        if isinstance(step.buffer, Reshape):
            return None
        text = signature(step.buffer)
        best = profile.verdict(text)
        if best is None or not best.samples:
            raise _NotMeasuredError(f"{text} is not measured; profile the model's bundle on the device first")
        for work in self._works.of(Alternative(step.buffer, (), best.seconds)):
            if work.implementation == best.implementation:
                return replace(work, estimate=best.seconds)
        raise _NotMeasuredError(
            f"{text} was measured as {best.implementation!r}, which this version does not make; profile a new bundle"
        )

    # ---- the model -------------------------------------------------------------------------------------------------

    def _explored(self, model: str | Path | onnx.ModelProto) -> _Explored:
        """A model in parts, every region saturated."""
        from egraph_opt.exploration import Explorer, free_prefix
        from egraph_opt.extract.gpu_devices import GPUS, TYPICAL
        from egraph_opt.frontends.regions import partition
        from egraph_opt.packs import select
        from egraph_opt.run import Run
        from egraph_opt.saturation import Saturator

        device = GPUS[TYPICAL[self._architecture]]
        self.progress(Progress("read"))
        loaded = self._loaded(model)
        name = str(model) if isinstance(model, str | Path) else loaded.graph.name or "the model"
        parts = partition(loaded)
        calls = {position: _called(position, why, loaded, name) for position, why in parts.opaque.items()}
        run = Run(progress=self.progress)
        with Saturator(select(self.rules, self.fp), progress=run.grown) as saturator:
            explorer = Explorer(parts.regions, saturator, free_prefix(loaded.names), run, device=device)
            explorer.explore()
        if run.reverted:
            first = run.reverted[0]
            raise EgraphOptError(f"part {first.region} of {name} could not be explored: {first.reason}")
        programs = {region.index: region.program for region in parts.regions}
        flows = {i: ([source.name for source in program.inputs], program.outputs) for i, program in programs.items()}
        flows |= {-1 - i: ([source.name for source in step.arguments], (step.name,)) for i, step in calls.items()}
        constants = {key: value for program in programs.values() for key, value in program.constants.items()}
        weights = frozenset(tensor.name for tensor in loaded.graph.initializer)
        inputs, outputs = _interface(loaded)
        constants |= {key: value for key, value in loaded.constants.items() if value.dtype == "float32"}
        return _Explored(name, explorer.searches, calls, _ordered(flows), inputs, outputs, constants, weights)

    def _loaded(self, model: str | Path | onnx.ModelProto) -> LoadedModel:
        from egraph_opt.frontends.onnx_reader import load
        from egraph_opt.frontends.onnx_symbols import bind
        from egraph_opt.specialization import resolve

        loaded = load(model)
        if not self.shapes:
            return loaded
        fixed, several = resolve(loaded.model, self.shapes)
        if several:
            raise UsageError("a GPU program has one length for each dimension; give one")
        return load(bind(loaded.model, fixed))


class _NotMeasuredError(InputRejected):
    """The profile lacks steps that every plan needs."""


def _called(position: int, why: str, loaded: LoadedModel, name: str) -> Step:
    """The library call for a node outside the algebra. Raises InputRejected where there is none."""
    from egraph_opt.frontends.library_nodes import library_step

    node = loaded.nodes[position]
    found = library_step(node, loaded)
    if isinstance(found, str):
        raise InputRejected(
            f"{name} cannot run on a GPU as a whole: node {node.name or position} ({node.op_type}) is outside the"
            f" algebra: {why}; and {found}"
        )
    return found


def _interface(loaded: LoadedModel) -> tuple[dict[str, Extents], tuple[str, ...]]:
    """Inputs and outputs of the model in its order."""
    from egraph_opt.frontends.onnx_model import overridable

    weights = {tensor.name for tensor in loaded.graph.initializer} - overridable(loaded.model)
    inputs = {v.name: loaded.type_of(v.name).shape or () for v in loaded.graph.input if v.name not in weights}
    return inputs, tuple(value.name for value in loaded.graph.output)


def _read_constants(parts: Sequence[Sequence[Sketch]], explored: _Explored) -> dict[str, np.ndarray]:
    """The constants that sketches read, but for the weights that lie in the model."""
    read = set(explored.outputs)
    for sketch in (sketch for part in parts for sketch in part):
        read |= {name for step in sketch.steps for name in step.arguments}
        read |= {name for folding in sketch.foldings for name in folding.arguments}
    wanted = sorted(read & explored.constants.keys() - explored.weights)
    return {name: explored.constants[name] for name in wanted}


def _without_kernels(profile: Profile) -> Profile:
    """What was measured of library calls."""
    from egraph_opt.extract.profile import Profile

    found = Profile(None, profile.device, profile.mode)
    for ways in profile.measured.values():
        found.add(way for name, way in ways.items() if name == LIBRARY)
    return found


def _ordered(flows: Mapping[int, tuple[Sequence[str], Sequence[str]]]) -> tuple[int, ...]:
    """Parts of a model, given by what they read and fill, each after those that fill what it reads."""
    filled_by = {name: part for part, (_, filled) in flows.items() for name in filled}
    found: dict[int, None] = {}

    def visit(part: int) -> None:
        if part not in found:
            for name in flows[part][0]:
                if name in filled_by:
                    visit(filled_by[name])
            found[part] = None

    for part in sorted(flows):
        visit(part)
    return tuple(found)
