"""The whole story: model -> regions -> e-graphs -> plans -> a checked, timed, faster model. Read this first."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from egraph_opt.errors import EgraphOptError, UsageError
from egraph_opt.result import Result
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

    from egraph_opt.backends.model_timer import TimedModel
    from egraph_opt.extract.profile import Profile
    from egraph_opt.frontends.onnx_model import LoadedModel
    from egraph_opt.frontends.regions import Region
    from egraph_opt.ir.program import Plan
    from egraph_opt.verification import Judge

# Rounds of choosing and measuring, and the default seconds they may take together.
MEASURING_ROUNDS, MEASURING_SECONDS = 40, 150.0
# A model is only replaced by one whose median speed-up is at least this.
WORTHWHILE = 1.02
# Rounds in which the original and the candidates are timed against each other.
TIMING_ROUNDS = 11


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
        from egraph_opt.verification import Judge

        with self.phase("read"):
            self.progress(Progress("read"))
            loaded = load(model)
            original = _serialized(loaded.model)
            judge = Judge(original, self.verify, self.seed, self.threads)
            regions = [region for region in partition(loaded).regions if region.worthwhile]
        name = str(model) if isinstance(model, str | Path) else loaded.model.graph.name or "model"
        report = Report(
            model=Path(name).name,
            portable=self.portable,
            operators_before=dict(Counter(node.op_type for node in loaded.nodes)),
            versions=package_versions(),
        )
        built = self._candidates(loaded, regions, profile_db)
        chosen = self._select(built, regions, judge, original) if built else None
        if chosen is None:
            why = "nothing faster was found" if regions else "no part of the model is inside the algebra"
            return Result(loaded.model, self._finish(report, None, why), None, self.threads)
        return Result(chosen.built.model, self._finish(report, chosen, ""), chosen.built.library, self.threads)

    def _candidates(self, loaded: LoadedModel, regions: Sequence[Region], profile_db: Path | None) -> list[_Built]:
        """Saturate every region, choose plans by measured cost, and build the model of the chosen plans."""
        from egraph_opt.backends.environment import device_key
        from egraph_opt.egraph.saturate import Budget, saturated
        from egraph_opt.egraph.snapshot import Snapshot
        from egraph_opt.extract.alternatives import Extraction
        from egraph_opt.extract.profile import Profile
        from egraph_opt.extract.profiler import Profiler
        from egraph_opt.extract.roofline import Device
        from egraph_opt.extract.search import Search, kernel_steps, search
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
        from egraph_opt.backends.environment import find_compiler
        kernels = not self.portable and self._compiler()
        path = profile_db if profile_db is not None else default_cache_folder() / "profile.sqlite"
        profile = Profile(
            path if self.cost == "measured" else None, device_key(self.threads), "native" if kernels else "portable"
        )
        known = set(profile.measured)
        profiler = Profiler(profile, find_compiler() if kernels else None, self.threads, loaded.opset)

        def measure(steps: Sequence[tuple[str, Step]]) -> None:
            profiler.measure(
                steps, lambda done, total: self.progress(Progress("profile", "steps of the best plan", done, total))
            )

        with self.phase("profile"):
            look = partial(
                search,
                list(searches.values()),
                profile,
                measure if self.cost == "measured" else None,
                possible=profiler.runnable,
                deadline=min(self.deadline, time.monotonic() + MEASURING_SECONDS),
            )
            look(rounds=MEASURING_ROUNDS)
            if self.cost == "measured" and kernels:
                profiler.thorough = True
                measure(kernel_steps([item.outcome.choice for item in searches.values() if item.outcome is not None]))
                look(rounds=0)
        if profile.warning:
            self.notes.append(profile.warning)
        measured = [m for key, found in profile.measured.items() if key not in known for m in found.values()]
        total = sum(len(found) for s in searches.values() for found in s.problem.alternatives.values())
        failed = sum(1 for m in measured if not m.samples)
        self.candidates = Candidates(total, len(measured), len(known), failed)
        plans = {index: item.outcome.plan for index, item in searches.items() if item.outcome is not None}
        with self.phase("build"):
            self.progress(Progress("build"))
            return [_build(loaded, regions, plans, profile, kernels)] if plans else []

    def _compiler(self) -> bool:
        from egraph_opt.backends.environment import find_compiler

        if find_compiler() is not None:
            return True
        self.notes.append("no C compiler was found: the output uses standard operators only")
        return False

    def _revert(self, region: Region, why: str) -> None:
        self.reverted.append(RevertedRegion(str(region.index), why, len(region.nodes)))

    def _select(
        self, built: Sequence[_Built], regions: Sequence[Region], judge: Judge, original: bytes
    ) -> _Chosen | None:
        """Verify the candidates, time them and the original interleaved, and keep the fastest that is right."""
        from egraph_opt.backends.model_timer import TimedModel, time_models
        from egraph_opt.runtime.timing import Comparison

        right: list[tuple[_Built, Accuracy]] = []
        with self.phase("verify"):
            for candidate in built:
                self.progress(Progress("verify", "against the original", len(right), len(built)))
                verdict = judge.verdict(candidate.content, candidate.library, regions)
                if isinstance(verdict, str):
                    self.notes.append(f"a candidate was dropped: {verdict}")
                else:
                    right.append((candidate, verdict))
        if not right:
            return None
        if self.cost == "static":
            return _Chosen(*right[0], None)
        with self.phase("time"), tempfile.TemporaryDirectory(prefix="egraph-opt-") as folder:
            self.progress(Progress("time", "original and optimized, interleaved"))
            models = [TimedModel(original), *(c.timed(Path(folder), i) for i, (c, _) in enumerate(right))]
            samples = time_models(
                models, rounds=TIMING_ROUNDS, seed=self.seed, threads=self.threads, enough_seconds=30.0
            )
        comparisons = [Comparison.of(samples[0], other) for other in samples[1:]]
        fastest = max(range(len(right)), key=lambda i: comparisons[i].ratio.median)
        found = comparisons[fastest]
        if found.ratio.median < WORTHWHILE:
            self.notes.append(f"the best candidate reached {found.ratio.median:.2f}x")
            return None
        return _Chosen(*right[fastest], Latency(found.a, found.b, found.ratio, found.rounds))

    def _finish(self, report: Report, chosen: _Chosen | None, why: str) -> Report:
        after = dict(report.operators_before)
        kernels: tuple[str, ...] = ()
        generated = 0
        if chosen is not None:
            nodes = chosen.built.model.graph.node
            kernels = tuple(sorted(chosen.built.kernels))
            after = dict(Counter(node.op_type for node in nodes if node.op_type not in kernels))
            generated = sum(node.op_type in kernels for node in nodes)
        return replace(
            report,
            operators_after=after,
            generated_kernels=generated,
            kernels=kernels,
            latency=chosen.latency if chosen else None,
            accuracy=chosen.accuracy if chosen else None,
            seconds=dict(self.seconds),
            saturation=tuple(self.saturations),
            candidates=self.candidates,
            unchanged_because=why,
            reverted=tuple(self.reverted),
            notes=tuple(self.notes),
        )


def _serialized(model: onnx.ModelProto) -> bytes:
    return bytes(model.SerializeToString())


@dataclass(frozen=True)
class _Built:
    """A rebuilt model, serialized too, and its kernels linked into one library."""

    model: onnx.ModelProto
    content: bytes
    kernels: tuple[str, ...]
    library: bytes | None

    def timed(self, folder: Path, number: int) -> TimedModel:
        from egraph_opt.backends.model_timer import TimedModel

        path = None
        if self.library is not None:
            path = folder / f"{number}.so"
            path.write_bytes(self.library)
        return TimedModel(self.content, path)


@dataclass(frozen=True)
class _Chosen:
    built: _Built
    accuracy: Accuracy
    latency: Latency | None


def _build(
    loaded: LoadedModel, regions: Sequence[Region], plans: Mapping[int, Plan], profile: Profile, kernels: bool
) -> _Built:
    """The model with these plans in the place of their regions."""
    from egraph_opt.backends import tvm_build
    from egraph_opt.extract.implement import Implementer
    from egraph_opt.frontends.onnx_writer import rebuild

    implementer = Implementer(profile, kernels)
    implemented = {index: implementer.implement(plan) for index, plan in plans.items()}
    model = rebuild(loaded, regions, implemented, implementer.names)
    library = None
    if implementer.kernels:
        with tempfile.TemporaryDirectory(prefix="egraph-opt-") as folder:
            found = [implementer.kernels[name] for name in sorted(implementer.kernels)]
            library = tvm_build.build_library(found, Path(folder) / "kernels.so").read_bytes()
    return _Built(model, _serialized(model), tuple(sorted(implementer.kernels)), library)
