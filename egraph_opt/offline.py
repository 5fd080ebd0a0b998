"""Programs for a GPU that is somewhere else: what to measure there, and what to run there once it is measured."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from egraph_opt.errors import EgraphOptError, InputRejected, UsageError, one_line
from egraph_opt.gpu.files import KERNEL, LIBRARY, MODE, Bundle, Module, Program, ProgramStep, Work
from egraph_opt.runtime.progress import Progress, ProgressCallback, silent

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from egraph_opt.backends.cuda_build import CudaKernel, CudaSource
    from egraph_opt.extract.alternatives import Alternative
    from egraph_opt.extract.profile import Profile
    from egraph_opt.extract.search import Search
    from egraph_opt.frontends.onnx_model import LoadedModel
    from egraph_opt.ir.program import Plan, Step
    from egraph_opt.packs import Pack

# Rounds of choosing what to measure; in each, what was chosen before counts this many times its static cost.
ROUNDS, PENALTY = 12, 2.0
# How often the steps to measure are looked for again because a kernel of theirs has no CUDA form.
TRIES = 40


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

    Raises InputRejected for a model with nodes outside the algebra, naming them; BackendMissing without nvcc.
    """
    return _Offline(target, dict(shapes or {}), rules, fp, progress or silent).plan(model)


def choose(
    model: str | Path | onnx.ModelProto,
    profile_db: Path,
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

    ``device`` picks one of several devices in the profile database by a part of its name. Without ``kernels`` there are
    library calls only. Raises UsageError where the database holds no device that fits, or several.
    """
    return _Offline(target, dict(shapes or {}), rules, fp, progress or silent).choose(
        model, profile_db, device, kernels
    )


@dataclass
class _Kernels:
    """CUDA kernels by name, and why the others have none."""

    architecture: str
    sources: dict[str, CudaSource] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def works(self, alternative: Alternative) -> list[Work]:
        """All ways to do a kernel step; none where it has no CUDA form."""
        from egraph_opt.backends.cuda_build import CudaKernel
        from egraph_opt.backends.cuda_lower import schedules
        from egraph_opt.ir import plain
        from egraph_opt.ir.program import kernel_signature
        from egraph_opt.ir.terms import Compute, Source

        assert isinstance(alternative.step, Compute)
        body, sources = kernel_signature(alternative.step.tensor)
        inputs = tuple(Source(f"in{i}", source.extents) for i, source in enumerate(sources))
        found = []
        for schedule in schedules(body):
            kernel = CudaKernel(body, inputs, schedule)
            source = self._source(kernel)
            if source is not None:
                launch = source.launch
                found.append(
                    Work(
                        alternative.text,
                        f"{KERNEL}{schedule}",
                        kernel.arguments,
                        body.extents,
                        kernel=kernel.name,
                        blocks=launch.blocks,
                        threads=launch.threads,
                        body=plain.to_json(body),
                        estimate=alternative.estimate,
                    )
                )
        return found

    def _source(self, kernel: CudaKernel) -> CudaSource | None:
        from egraph_opt.backends.cuda_build import cuda_source

        if kernel.name not in self.sources and kernel.name not in self.failed:
            try:
                self.sources[kernel.name] = cuda_source(kernel, self.architecture)
            except Exception as error:  # a code generator may raise anything; this is one candidate of many
                self.failed[kernel.name] = one_line(f"{type(error).__name__}: {error}")
        return self.sources.get(kernel.name)

    def compiled(self, works: Sequence[Work]) -> tuple[list[Work], list[Module], dict[str, str]]:
        """The works with their machine code, without those that no GPU runs well, and why those were dropped."""
        from egraph_opt.backends.cuda_build import modules

        names = sorted({work.kernel for work in works if work.is_kernel})
        made = modules([self.sources[name] for name in names], self.architecture) if names else []
        place = {name: i for i, module in enumerate(made) for name in module.resources}
        kept: list[Work] = []
        dropped: dict[str, str] = {}
        for work in works:
            if not work.is_kernel:
                kept.append(work)
                continue
            resources = made[place[work.kernel]].resources[work.kernel]
            if resources.spilled:
                dropped[f"{work.signature} ({work.implementation})"] = f"it spills {resources.spilled} bytes a thread"
            else:
                kept.append(replace(work, module=place[work.kernel]))
        return kept, made, dropped


@dataclass
class _Offline:
    target: str
    shapes: Mapping[str, int | Sequence[int]]
    rules: str | Sequence[str | Pack]
    fp: str
    progress: ProgressCallback

    def plan(self, model: str | Path | onnx.ModelProto) -> Bundle:
        from egraph_opt.backends.environment import package_versions

        name, _, searches = self._explored(model)
        kernels = _Kernels(self._architecture)
        works = self._wanted(list(searches.values()), kernels)
        self.progress(Progress("compile", f"{sum(work.is_kernel for work in works)} kernels"))
        kept, made, dropped = kernels.compiled(works)
        dropped |= kernels.failed
        return Bundle(Path(name).name, self._architecture, tuple(kept), tuple(made), package_versions(), dropped)

    def choose(self, model: str | Path | onnx.ModelProto, profile_db: Path, device: str, with_kernels: bool) -> Program:
        from egraph_opt.extract.profile import Profile

        profile = Profile(profile_db, self._device(profile_db, device), MODE)
        if profile.warning:
            raise InputRejected(profile.warning)
        name, loaded, searches = self._explored(model)
        kernels = _Kernels(self._architecture)
        steps: list[ProgramStep] = []
        constants: dict[str, np.ndarray] = {}
        outputs: dict[str, str] = {}
        seconds = 0.0
        for search in searches.values():
            found, cost = self._cheapest(search, profile, with_kernels)
            steps += self._program_steps(found, profile, kernels)
            constants |= found.constants
            outputs |= found.outputs
            seconds += cost
        works, made, _ = kernels.compiled([step.work for step in steps if step.work is not None])
        place = {work.kernel: work.module for work in works}
        steps = [
            replace(step, work=replace(step.work, module=place[step.work.kernel]))
            if step.work is not None and step.work.is_kernel
            else step
            for step in steps
        ]
        return _finished(
            loaded, Path(name).name, self._architecture, steps, outputs, constants, made, profile.device, seconds
        )

    @property
    def _architecture(self) -> str:
        from egraph_opt.extract.gpu_devices import architecture_of

        return architecture_of(self.target)

    def _explored(self, model: str | Path | onnx.ModelProto) -> tuple[str, LoadedModel, dict[int, Search]]:
        """Every region of a model, saturated. Raises InputRejected where it is not all of it in regions."""
        from egraph_opt.exploration import Explorer, free_prefix
        from egraph_opt.extract.gpu_devices import GPUS, TYPICAL
        from egraph_opt.frontends.onnx_reader import load
        from egraph_opt.frontends.onnx_symbols import bind
        from egraph_opt.frontends.regions import partition
        from egraph_opt.packs import select
        from egraph_opt.run import Run
        from egraph_opt.saturation import Saturator
        from egraph_opt.specialization import resolve

        device = GPUS[TYPICAL[self._architecture]]
        self.progress(Progress("read"))
        loaded = load(model)
        if self.shapes:
            fixed, several = resolve(loaded.model, self.shapes)
            if several:
                raise UsageError("a GPU program has one length for each dimension; give one")
            loaded = load(bind(loaded.model, fixed))
        name = str(model) if isinstance(model, str | Path) else loaded.graph.name or "the model"
        parts = partition(loaded)
        for position, why in parts.opaque.items():
            node = loaded.nodes[position]
            raise InputRejected(
                f"{name} cannot run on a GPU as a whole: node {node.name or position} ({node.op_type}) is outside the"
                f" algebra: {why}"
            )

        run = Run(progress=self.progress)
        with Saturator(select(self.rules, self.fp), progress=run.grown) as saturator:
            explorer = Explorer(parts.regions, saturator, free_prefix(loaded.names), run, device=device)
            explorer.explore()
        if run.reverted:
            first = run.reverted[0]
            raise EgraphOptError(f"part {first.region} of {name} could not be explored: {first.reason}")
        return name, loaded, explorer.searches

    def _wanted(self, searches: Sequence[Search], kernels: _Kernels) -> list[Work]:
        """The ways to do the steps of many cheap plans: the cheapest, then the cheapest while its steps count more."""
        from egraph_opt.extract.choose import choose as choose_plan
        from egraph_opt.extract.roofline import STEP_SECONDS
        from egraph_opt.ir.terms import Call, Compute, Reshape

        found: dict[str, list[Work]] = {}

        def ways(alternative: Alternative) -> list[Work]:
            if alternative.text not in found:
                if isinstance(alternative.step, Compute):
                    found[alternative.text] = kernels.works(alternative)
                elif isinstance(alternative.step, Call):
                    found[alternative.text] = _library_work(alternative.text, alternative.step, alternative.estimate)
            return found[alternative.text]

        for search in searches:
            counted: set[str] = set()

            def cost(alternative: Alternative, counted: Collection[str] = counted) -> float:
                if isinstance(alternative.step, Reshape):
                    return alternative.estimate
                if alternative.text in found and not found[alternative.text]:
                    return inf
                penalty = PENALTY if alternative.text in counted else 1.0
                return STEP_SECONDS + penalty * alternative.estimate

            rounds = 0
            for number in range(TRIES):
                self.progress(Progress("choose", f"{len(found)} steps to measure", number, TRIES))
                choice = choose_plan(search.problem, cost)
                if choice is None or rounds >= ROUNDS:
                    break
                chosen = [a for _, a in choice.steps if not isinstance(a.step, Reshape)]
                without = [a for a in chosen if not ways(a)]
                if without:
                    continue  # now that it is known that these have no CUDA form
                for owner, _ in choice.steps:
                    for alternative in search.problem.alternatives[owner]:
                        if isinstance(alternative.step, Call):
                            ways(alternative)
                before = len(counted)
                counted |= {a.text for a in chosen}
                rounds += 1
                if len(counted) == before:
                    break
        return [work for text in sorted(found) for work in found[text]]

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

    def _cheapest(self, search: Search, profile: Profile, kernels: bool) -> tuple[Plan, float]:
        """The cheapest plan of measured steps, and its seconds."""
        from egraph_opt.extract.choose import choose_exactly
        from egraph_opt.extract.costs import Costs
        from egraph_opt.extract.plans import build_plan
        from egraph_opt.extract.search import PIVOTS, SECONDS
        from egraph_opt.ir.terms import Compute

        costs = Costs(profile, lambda found: kernels or not isinstance(found.step, Compute), certain=True)
        self.progress(Progress("choose", "the cheapest plan of measured steps"))
        choice = choose_exactly(search.problem, costs, pivots=PIVOTS, seconds=SECONDS)
        if choice is None:
            raise EgraphOptError("no plan of the model is measured as a whole; profile its bundle on the device first")
        return build_plan(search.problem, choice, search.program, prefix=search.prefix), choice.cost

    def _program_steps(self, plan: Plan, profile: Profile, kernels: _Kernels) -> Iterator[ProgramStep]:
        for step in plan.steps:
            arguments = tuple(source.name for source in step.arguments)
            yield ProgramStep(step.name, arguments, step.extents, self._work(step, profile, kernels))

    def _work(self, step: Step, profile: Profile, kernels: _Kernels) -> Work | None:
        from egraph_opt.extract.alternatives import Alternative, signature
        from egraph_opt.ir.terms import Call, Reshape

        if isinstance(step.buffer, Reshape):
            return None
        text = signature(step.buffer)
        best = profile.verdict(text)
        assert best is not None  # only what was measured is chosen
        if isinstance(step.buffer, Call):
            (work,) = _library_work(text, step.buffer, best.seconds)
            return work
        for work in kernels.works(Alternative(step.buffer, (), best.seconds)):
            if work.implementation == best.implementation:
                return work
        raise EgraphOptError(f"the kernel {best.implementation!r} of {text} cannot be built again")


def _library_work(text: str, call: object, estimate: float) -> list[Work]:
    """The library call, if the GPU's library has it."""
    from egraph_opt.gpu.torch_library import supports
    from egraph_opt.ir.terms import Call

    assert isinstance(call, Call)
    if not supports(call.operator, call.attributes):
        return []
    arguments = tuple(argument.extents for argument in call.arguments)
    return [
        Work(
            text,
            LIBRARY,
            arguments,
            call.extents,
            operator=call.operator,
            attributes=call.attributes,
            estimate=estimate,
        )
    ]


def _finished(
    loaded: LoadedModel,
    name: str,
    architecture: str,
    steps: Sequence[ProgramStep],
    outputs: Mapping[str, str],
    constants: Mapping[str, np.ndarray],
    made: Sequence[Module],
    device: str,
    seconds: float,
) -> Program:
    """The program with the inputs and outputs of the model in its order."""
    from egraph_opt.frontends.onnx_model import overridable

    weights = {tensor.name for tensor in loaded.graph.initializer} - overridable(loaded.model)
    inputs = {v.name: loaded.type_of(v.name).shape or () for v in loaded.graph.input if v.name not in weights}
    wanted = {}
    extra = dict(constants)
    for value in loaded.graph.output:
        buffer = outputs.get(value.name, value.name)
        if buffer == value.name and value.name in loaded.constants:
            extra[value.name] = loaded.constants[value.name]
        wanted[value.name] = buffer
    return Program(name, architecture, inputs, tuple(steps), wanted, extra, tuple(made), device, seconds)
