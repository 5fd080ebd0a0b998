"""The whole story: model -> regions -> e-graphs -> plans -> a checked, timed, faster model. Read this first."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from egraph_opt.errors import BackendMissing, EgraphOptError, InputRejected, UsageError, VerificationFailed
from egraph_opt.runtime.compare import compare_outputs, worst
from egraph_opt.runtime.progress import Progress, ProgressCallback, silent
from egraph_opt.runtime.report import (
    Accuracy,
    Candidates,
    Latency,
    Report,
    RevertedRegion,
    Saturation,
    SaturationRound,
)

if TYPE_CHECKING:
    import onnx

    from egraph_opt.frontends.onnx_model import LoadedModel
    from egraph_opt.frontends.regions import Region

# Rounds of choosing and measuring, and the default seconds they may take together.
MEASURING_ROUNDS, MEASURING_SECONDS = 40, 150.0
# A model is only replaced by one whose median speed-up is at least this.
WORTHWHILE = 1.02
# The float64 reference is computed when the model needs at most this many multiply-adds.
REFERENCE_WORK = 2e9


@dataclass
class Result:
    """An optimized model: ``model`` (an onnx.ModelProto), its kernel library if kernels were generated, and the report."""

    model: onnx.ModelProto
    report: Report
    library: bytes | None = None
    threads: int | None = None
    _folder: tempfile.TemporaryDirectory[str] | None = field(default=None, repr=False)

    def session(self) -> Any:
        """A ready onnxruntime session with the kernel library registered."""
        from egraph_opt.backends.onnxruntime import make_session

        folder = Path(self._place())
        path = folder / "model.onnx"
        if not path.exists():
            self.save(path)
        library = folder / "model.kernels.so"
        return make_session(path, kernel_library=library if self.library else None, threads=self.threads)

    def save(self, path: str | Path) -> tuple[Path, ...]:
        """Write the model and, beside it, ``<stem>.kernels.so``; existing files are replaced atomically."""
        from egraph_opt.frontends.onnx_writer import serialized
        from egraph_opt.runtime.artifacts import Publication, library_path
        from egraph_opt.runtime.cache import remember_library

        output = Path(path)
        data_file = output.name + ".data"
        content, chunks = serialized(_copy(self.model), data_file)
        written = [output]
        with Publication() as publication:
            if self.library is not None:
                publication.stage(library_path(output)).write_bytes(self.library)
                written.append(library_path(output))
            else:
                publication.remove(library_path(output))
            if chunks:
                with publication.stage(output.with_name(data_file)).open("wb") as file:
                    file.writelines(chunks)
                written.append(output.with_name(data_file))
            publication.stage(output).write_bytes(content)
        if self.library is not None:
            remember_library(library_path(output))
        return tuple(written)

    def _place(self) -> str:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="egraph-opt-")
        return self._folder.name


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    duplicate = type(model)()
    duplicate.CopyFrom(model)
    return duplicate


def optimize(
    model: str | Path | onnx.ModelProto,
    *,
    target: str = "cpu",
    portable: bool = False,
    verify: int = 1,
    time_limit: float | None = None,
    seed: int = 0,
    threads: int | None = None,
    cost: str = "measured",
    profile_db: str | Path | None = None,
    progress: ProgressCallback | None = None,
) -> Result:
    """A faster model with the same inputs, outputs and answers; the original itself where nothing faster is found.

    ``verify`` random inputs are compared on all outputs. ``time_limit`` bounds the search in seconds. ``cost`` is
    "measured" (library calls and kernels are timed on this machine) or "static". Raises InputRejected for a model that
    cannot be read or run, UsageError for a wrong option.
    """
    if target != "cpu":
        raise UsageError(f"unknown target {target!r}; known: cpu")
    if cost not in ("measured", "static"):
        raise UsageError(f"unknown cost model {cost!r}; choose measured or static")
    run = _Run(portable, verify, time_limit, seed, threads, cost, progress or silent)
    return run.optimize(model, Path(profile_db) if profile_db is not None else None)


@dataclass
class _Run:
    portable: bool
    verify: int
    time_limit: float | None
    seed: int
    threads: int | None
    cost: str
    progress: ProgressCallback
    seconds: dict[str, float] = field(default_factory=dict)
    saturations: list[Saturation] = field(default_factory=list)
    reverted: list[RevertedRegion] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    candidates: Candidates = Candidates()
    started: float = field(default_factory=time.monotonic)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        begun = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - begun

    @property
    def deadline(self) -> float:
        return self.started + self.time_limit if self.time_limit is not None else float("inf")

    def optimize(self, model: str | Path | onnx.ModelProto, profile_db: Path | None) -> Result:
        from egraph_opt.backends.environment import package_versions
        from egraph_opt.frontends.onnx_reader import load
        from egraph_opt.frontends.regions import partition

        with self.phase("read"):
            self.progress(Progress("read"))
            loaded = load(model)
            original = _serialized(loaded.model)
            judge = _Judge(original, self.verify, self.seed, self.threads)
            regions = [region for region in partition(loaded).regions if region.worthwhile]
        name = str(model) if isinstance(model, str | Path) else loaded.model.graph.name or "model"
        report = Report(
            model=Path(name).name,
            portable=self.portable,
            operators_before=dict(Counter(node.op_type for node in loaded.nodes)),
            versions=package_versions(),
        )
        built = self._search(loaded, regions, profile_db)
        best: _Built | None = None
        latency: Latency | None = None
        if built:
            best, latency = self._select(loaded, regions, built, judge, original)
        if best is None:
            why = "no rewriting was found" if not built else "nothing faster was found"
            if not regions:
                why = "no part of the model is inside the algebra"
            return Result(_copy(loaded.model), self._finish(report, None, latency, judge, why), None, self.threads)
        final = self._finish(report, best, latency, judge, "")
        return Result(best.model, final, best.library, self.threads)

    def _search(self, loaded: LoadedModel, regions: Sequence[Region], profile_db: Path | None) -> list[_Built]:
        """Saturate every region, choose plans by measured cost, and build the model of the chosen plans."""
        from egraph_opt.backends.environment import device_key
        from egraph_opt.egraph.saturate import Budget, saturated
        from egraph_opt.egraph.snapshot import Snapshot
        from egraph_opt.extract.alternatives import Extraction
        from egraph_opt.extract.profile import Profile
        from egraph_opt.extract.profiler import Profiler, expressible
        from egraph_opt.extract.roofline import Device
        from egraph_opt.extract.search import Search, search
        from egraph_opt.ir.program import Step
        from egraph_opt.rules.schedule import PHASES, SIMPLIFICATION
        from egraph_opt.runtime.cache import default_cache_folder

        searches: dict[int, Search] = {}
        for number, region in enumerate(regions):
            try:
                with self.phase("saturate"):
                    self.progress(Progress("saturate", f"region {region.index}", number, len(regions)))
                    egraph, done = saturated(
                        region.program,
                        PHASES,
                        SIMPLIFICATION,
                        budget=Budget(seconds=min(60.0, max(1.0, self.deadline - time.monotonic()))),
                        progress=lambda r: self.progress(Progress("saturate", f"{r.phase}: {r.enodes} e-nodes")),
                    )
                    snapshot = Snapshot(egraph)
                rounds = tuple(SaturationRound(r.enodes, 0, r.seconds) for r in done.rounds)
                self.saturations.append(Saturation(str(region.index), rounds, done.stop, dict(done.matches)))
                with self.phase("extract"):
                    problem = Extraction(snapshot, Device()).problem(region.program.outputs)
                    searches[region.index] = Search(problem, region.program, f"r{region.index}s")
            except EgraphOptError as error:
                self._revert(region, str(error))
        kernels = not self.portable and self._compiler()
        path = profile_db if profile_db is not None else default_cache_folder() / "profile.sqlite"
        profile = Profile(path if self.cost == "measured" else None, device_key(self.threads), "native" if kernels else "portable")
        known = set(profile.measured)
        profiler = Profiler(profile, kernels, self.threads, max(loaded.opset, 13))

        def measure(steps: Sequence[tuple[str, Step]]) -> None:
            profiler.measure(
                steps, lambda done, total: self.progress(Progress("profile", "steps of the best plan", done, total))
            )

        with self.phase("profile"):
            search(
                list(searches.values()),
                profile,
                measure if self.cost == "measured" else None,
                possible=lambda alternative: kernels or expressible(alternative.step),
                rounds=MEASURING_ROUNDS,
                deadline=min(self.deadline, time.monotonic() + MEASURING_SECONDS),
            )
        if profile.warning:
            self.notes.append(profile.warning)
        measured = [m for key, found in profile.measured.items() if key not in known for m in found.values()]
        total = sum(len(found) for s in searches.values() for found in s.problem.alternatives.values())
        failed = sum(1 for m in measured if not m.samples)
        self.candidates = Candidates(total, len(measured), len(known), failed)
        plans = {index: item.outcome.plan for index, item in searches.items() if item.outcome is not None}
        with self.phase("build"):
            self.progress(Progress("build"))
            built = _Builder(loaded, regions, profile, kernels).build(plans)
        return [built] if built is not None else []

    def _compiler(self) -> bool:
        from egraph_opt.backends.environment import find_compiler

        if find_compiler() is not None:
            return True
        self.notes.append("no C compiler was found: the output uses standard operators only")
        return False

    def _revert(self, region: Region, why: str) -> None:
        self.reverted.append(RevertedRegion(str(region.index), why, len(region.nodes)))

    def _select(
        self, loaded: LoadedModel, regions: Sequence[Region], built: Sequence[_Built], judge: _Judge, original: bytes
    ) -> tuple[_Built | None, Latency | None]:
        """Verify the candidates, time them and the original interleaved, and keep the fastest that is right."""
        from egraph_opt.backends.model_timer import TimedModel, time_models
        from egraph_opt.runtime.timing import Comparison

        right: list[_Built] = []
        with self.phase("verify"):
            for candidate in built:
                self.progress(Progress("verify", "against the original", len(right), len(built)))
                problem = judge.problem(candidate)
                if problem:
                    self.notes.append(f"a candidate was dropped: {problem}")
                else:
                    right.append(candidate)
        if not right:
            return None, None
        if self.cost == "static":
            return right[0], None
        with self.phase("time"), tempfile.TemporaryDirectory(prefix="egraph-opt-") as folder:
            self.progress(Progress("time", "original and optimized, interleaved"))
            models = [TimedModel(original), *(c.timed(Path(folder), i) for i, c in enumerate(right))]
            samples = time_models(models, rounds=11, seed=self.seed, threads=self.threads, enough_seconds=30.0)
        comparisons = [Comparison.of(samples[0], other) for other in samples[1:]]
        fastest = max(range(len(right)), key=lambda i: comparisons[i].ratio.median)
        chosen = comparisons[fastest]
        latency = Latency(chosen.a, chosen.b, chosen.ratio, chosen.rounds)
        if chosen.ratio.median < WORTHWHILE:
            self.notes.append(f"the best candidate reached {chosen.ratio.median:.2f}x")
            return None, None
        return right[fastest], latency

    def _finish(
        self, report: Report, best: _Built | None, latency: Latency | None, judge: _Judge, why: str
    ) -> Report:
        after = dict(Counter(node.op_type if not node.domain.startswith("egraph_opt") else "kernel" for node in best.model.graph.node)) if best else dict(report.operators_before)
        generated = after.pop("kernel", 0)
        return replace(
            report,
            operators_after=after,
            generated_kernels=generated,
            kernels=tuple(sorted({kernel.name for kernel in best.kernels})) if best else (),
            latency=latency,
            accuracy=judge.accuracy if best else None,
            seconds=dict(self.seconds),
            saturation=tuple(self.saturations),
            candidates=self.candidates,
            unchanged_because=why,
            reverted=tuple(self.reverted),
            notes=tuple(self.notes),
        )


def _serialized(model: onnx.ModelProto) -> bytes:
    return bytes(model.SerializeToString())


@dataclass
class _Built:
    """A rebuilt model with its kernels, linked into one library."""

    model: onnx.ModelProto
    content: bytes
    kernels: list[Any]
    library: bytes | None

    def timed(self, folder: Path, number: int) -> Any:
        from egraph_opt.backends.model_timer import TimedModel

        path = None
        if self.library is not None:
            path = folder / f"{number}.so"
            path.write_bytes(self.library)
        return TimedModel(self.content, path)


@dataclass
class _Builder:
    """Turns chosen plans into a model: every Compute step in its fastest implementation."""

    loaded: LoadedModel
    regions: Sequence[Region]
    profile: Any
    kernels_allowed: bool

    def build(self, plans: Mapping[int, Any]) -> _Built | None:
        from egraph_opt.backends import tvm_build
        from egraph_opt.frontends.onnx_writer import rebuild

        if not plans:
            return None
        names: dict[str, str] = {}
        kernels: dict[str, Any] = {}
        implemented = {index: self._implement(plan, names, kernels) for index, plan in plans.items()}
        model = rebuild(self.loaded, self.regions, implemented, names)
        library = None
        if kernels:
            with tempfile.TemporaryDirectory(prefix="egraph-opt-") as folder:
                found = [kernels[name] for name in sorted(kernels)]
                library = tvm_build.build_library(found, Path(folder) / "kernels.so").read_bytes()
        return _Built(model, _serialized(model), list(kernels.values()), library)

    def _implement(self, plan: Any, names: dict[str, str], kernels: dict[str, Any]) -> Any:
        from egraph_opt.extract.alternatives import signature
        from egraph_opt.extract.profiler import KERNEL, PORTABLE, kernel_of
        from egraph_opt.frontends.portable import express
        from egraph_opt.ir.program import Plan, Step, rename
        from egraph_opt.ir.terms import Compute, Reshape, Source

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
            choice = best.implementation if best is not None else (KERNEL if self.kernels_allowed else PORTABLE)
            if choice.startswith(KERNEL.strip()):
                kernel = kernel_of(step, choice.removeprefix(KERNEL))
                names[step.name] = kernel.name
                kernels[kernel.name] = kernel
                steps.append(step)
                continue
            # A kernel sees memory only; standard operators need every argument under the extents the body reads it with.
            views = {a.name: f"{step.name}/{a.name}" for a in step.arguments if a.extents != held[a.name]}
            for a in step.arguments:
                if a.name in views:
                    steps.append(Step(views[a.name], Reshape(Source(a.name, held[a.name]), a.extents)))
            flat = f"{step.name}/flat" if step.shape is not None else step.name
            written = express(flat, rename(step.buffer.tensor, views))
            if written is None:
                raise EgraphOptError(f"step {step.name} has no implementation")
            steps += written.steps
            constants.update(written.constants)
            if step.shape is not None:
                steps.append(Step(step.name, Reshape(Source(flat, step.buffer.extents), step.shape)))
        return Plan(plan.inputs, tuple(steps), plan.outputs, constants)


@dataclass
class _Judge:
    """The original's answers on random inputs, to compare candidates with."""

    original: bytes
    runs: int
    seed: int
    threads: int | None
    accuracy: Accuracy | None = None
    _expected: list[tuple[dict[str, np.ndarray], list[Any]]] = field(default_factory=list)
    _names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        from egraph_opt.backends.onnxruntime import input_specs, make_session, output_specs, random_inputs, run

        session = make_session(self.original, threads=self.threads, spin=False)
        self._names = [spec.name for spec in output_specs(session)]
        for number in range(max(self.runs, 1)):
            inputs = random_inputs(input_specs(session), seed=self.seed + number)
            self._expected.append((inputs, run(session, inputs)))

    def problem(self, candidate: _Built) -> str:
        """Why a candidate is wrong, or an empty text."""
        from egraph_opt.backends.onnxruntime import make_session, run

        with tempfile.TemporaryDirectory(prefix="egraph-opt-") as folder:
            timed = candidate.timed(Path(folder), 0)
            try:
                session = make_session(
                    candidate.content, kernel_library=timed.kernel_library, threads=self.threads, spin=False
                )
                worst_absolute = worst_relative = 0.0
                for inputs, expected in self._expected[: self.runs]:
                    errors = compare_outputs(expected, run(session, inputs), names=self._names)
                    for error in errors:
                        if not error.within:
                            return f"output {error.name} differs by {error.max_relative:.1e} of its range {error.mismatch}"
                    absolute, relative = worst(errors)
                    worst_absolute, worst_relative = max(worst_absolute, absolute), max(worst_relative, relative)
            except (InputRejected, VerificationFailed, BackendMissing) as failure:
                return str(failure)
        self.accuracy = Accuracy(worst_absolute, worst_relative, inputs=self.runs, seed=self.seed)
        return ""
