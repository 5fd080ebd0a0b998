"""The whole story: model -> regions -> e-graphs -> plans -> a checked, timed, faster model. Read this first."""

from __future__ import annotations

import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from egraph_opt.errors import EgraphOptError, InputRejected, LimitReached, UsageError, one_line
from egraph_opt.result import Result as Result
from egraph_opt.runtime.progress import Progress, ProgressCallback, silent
from egraph_opt.runtime.report import Candidates, Latency, Report, RevertedRegion, Saturation, SaturationRound
from egraph_opt.runtime.timing import Comparison

if TYPE_CHECKING:
    import onnx

    from egraph_opt.candidates import Candidate, Prover
    from egraph_opt.extract.profile import Profile
    from egraph_opt.extract.search import Search
    from egraph_opt.frontends.regions import Region
    from egraph_opt.ir.program import Plan, Step

# Seconds that saturating all regions and measuring may take, and that a single region may.
SATURATION_SECONDS, REGION_SECONDS, MEASURING_SECONDS = 120.0, 60.0, 150.0
# Shares of a time limit after which nothing more is saturated, and nothing more is measured.
SATURATION_SHARE, MEASURING_SHARE = 0.3, 0.6
# Rounds of choosing and measuring.
MEASURING_ROUNDS = 40
# A model is only replaced by one whose median speed-up is at least this.
WORTHWHILE = 1.02
# Rounds in which the original and the candidates are timed against each other, and seconds after which it is enough.
TIMING_ROUNDS, TIMING_SECONDS = 11, 30.0
# When the whole is not faster, up to this many regions are tried alone.
REGIONS_TRIED_ALONE = 8
# Beyond this many bytes of weights only one candidate is built: each of them holds a copy.
WEIGHTS_OF_SEVERAL_CANDIDATES = 1 << 29


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

    ``verify`` random inputs are compared on all outputs. ``time_limit`` bounds the search in seconds; what was found
    by then counts. ``cost`` is "measured" (library calls and kernels are timed on this machine) or "static" (the plan
    that should be fastest, untimed). Raises InputRejected for a model that cannot be read or that onnxruntime does not
    load, UsageError for a wrong option.
    """
    if target != "cpu":
        raise UsageError(f"unknown target {target!r}; known: cpu")
    if cost not in ("measured", "static"):
        raise UsageError(f"unknown cost model {cost!r}; choose measured or static")
    if verify < 0 or (time_limit is not None and time_limit <= 0) or (threads is not None and threads < 1):
        raise UsageError("verify is at least 0, time_limit above 0 and threads at least 1")
    run = _Run(portable, verify, time_limit, seed, threads, cost, progress or silent)
    with tempfile.TemporaryDirectory(prefix="egraph-opt-") as folder:
        return run.optimize(model, Path(profile_db) if profile_db is not None else None, Path(folder))


def free_prefix(names: Iterable[str]) -> str:
    """A short text such that none of the names begins with it and a digit."""
    taken = set(names)
    prefix = "r"
    while any(re.match(rf"{prefix}\d", name) for name in taken):
        prefix += "r"
    return prefix


def _commonest(reasons: Mapping[int, str]) -> str:
    """Why most nodes are outside the algebra, for a message."""
    return f"; most often because {Counter(reasons.values()).most_common(1)[0][0]}" if reasons else ""


def _is_faster(found: Comparison) -> bool:
    """Whether a candidate wins by more than the noise: in the median, and in three quarters of the rounds."""
    return found.ratio.median >= WORTHWHILE and found.ratio.lower >= 1.0


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
    candidates: Candidates = field(default_factory=Candidates)
    started: float = field(default_factory=time.monotonic)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the seconds of what happens inside to the report."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - begun

    def deadline(self, share: float = 1.0) -> float:
        """When this share of the time limit is used up."""
        return self.started + share * self.time_limit if self.time_limit is not None else inf

    def optimize(self, model: str | Path | onnx.ModelProto, profile_db: Path | None, folder: Path) -> Result:
        """The run itself; ``folder`` is for files that are not needed afterwards."""
        from egraph_opt.backends.environment import package_versions
        from egraph_opt.candidates import OUT_OF_TIME, Builder, Prover, store
        from egraph_opt.frontends.onnx_reader import load
        from egraph_opt.frontends.regions import partition
        from egraph_opt.verification import Judge

        with self.phase("read"):
            self.progress(Progress("read"))
            loaded = load(model)
            original = store(loaded.model, folder / "original")
            parts = partition(loaded)
            regions, outside = [region for region in parts.regions if region.worthwhile], parts.opaque
            name = str(model) if isinstance(model, str | Path) else loaded.model.graph.name or "the model"
            judge = Judge(original, self.verify if regions else 0, self.seed, self.threads, name)
        report = Report(
            model=Path(name).name,
            portable=self.portable,
            operators_before=dict(Counter(node.op_type for node in loaded.nodes)),
            versions=package_versions(),
        )
        if not regions:
            why = f"no part of the model is inside the algebra{_commonest(outside)}"
            return Result(loaded.model, self._finish(report, None, why), None, self.threads)
        if judge.problem:
            why = f"no inputs were found that it runs on, so nothing could be verified: {judge.problem}"
            return Result(loaded.model, self._finish(report, None, why), None, self.threads)
        if not self.verify:
            self.notes.append("nothing was verified, as asked")
        searches = self._saturate(regions, free_prefix(loaded.names))
        compiler = None if self.portable else self._compiler()
        profile = self._measure(searches, compiler, loaded.opset, profile_db)
        builder = Builder(loaded, regions, profile, compiler, folder)
        chosen, latency = self._select(searches, Prover(builder, judge, regions, self.deadline()), original)
        if chosen is None:
            late = time.monotonic() > self.deadline() or any(entry.reason == OUT_OF_TIME for entry in self.reverted)
            why = "the time limit was reached before a faster one was found" if late else "nothing faster was found"
            return Result(loaded.model, self._finish(report, None, why), None, self.threads)
        report = self._finish(replace(report, latency=latency), chosen, "")
        return Result(chosen.model, report, chosen.library, self.threads)

    def _saturate(self, regions: Sequence[Region], prefix: str) -> dict[int, Search]:
        """What every region could be computed by, as far as the rules find out within the budget.

        The names of all steps will begin with ``prefix`` and a number.
        """
        from egraph_opt.candidates import OUT_OF_TIME
        from egraph_opt.egraph.saturate import Budget, saturated
        from egraph_opt.egraph.snapshot import Snapshot
        from egraph_opt.extract.alternatives import Extraction
        from egraph_opt.extract.roofline import Device
        from egraph_opt.extract.search import Search
        from egraph_opt.rules.schedule import PHASES, SIMPLIFICATION

        searches: dict[int, Search] = {}
        until = min(time.monotonic() + SATURATION_SECONDS, self.deadline(SATURATION_SHARE))
        for number, region in enumerate(regions):
            left = until - time.monotonic()
            if left <= 0:
                self._revert(region, OUT_OF_TIME)
                continue
            self.progress(Progress("saturate", f"region {region.index}", number, len(regions)))
            with self._or_revert(region):
                with self.phase("saturate"):
                    egraph, done = saturated(
                        region.program,
                        PHASES,
                        SIMPLIFICATION,
                        # No region takes the time of all that follow.
                        budget=Budget(seconds=min(REGION_SECONDS, left, 4 * left / (len(regions) - number))),
                        progress=lambda r: self.progress(Progress("saturate", f"{r.phase}: {r.enodes} e-nodes")),
                    )
                    snapshot = Snapshot(egraph)
                rounds = tuple(SaturationRound(r.phase, r.enodes, r.seconds) for r in done.rounds)
                self.saturations.append(Saturation(str(region.index), rounds, done.stop, dict(done.matches)))
                with self.phase("extract"):
                    problem = Extraction(snapshot, Device()).problem(region.program.outputs)
                    searches[region.index] = Search(problem, region.program, f"{prefix}{region.index}s")
        return searches

    @contextmanager
    def _or_revert(self, region: Region) -> Iterator[None]:
        """Whatever fails inside, the region's original nodes remain."""
        try:
            yield
        except EgraphOptError as error:
            self._revert(region, str(error))
        except RecursionError:
            self._revert(region, "its terms are nested too deeply")
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # egglog's panics are not Exceptions
            self._revert(region, f"internal error: {type(error).__name__}: {error}")

    def _revert(self, region: Region, why: str) -> None:
        self.reverted.append(RevertedRegion(str(region.index), one_line(why), len(region.nodes)))

    def _compiler(self) -> Path | None:
        from egraph_opt.backends.environment import working_compiler

        compiler, problem = working_compiler()
        if compiler is None:
            self.notes.append(f"{problem}; the output uses standard operators only")
        return compiler

    def _measure(
        self, searches: Mapping[int, Search], compiler: Path | None, opset: int, profile_db: Path | None
    ) -> Profile:
        """Fill in the plans of all searches: choose by measured cost, measure what was chosen, choose again."""
        from egraph_opt.backends.environment import device_key
        from egraph_opt.backends.tvm_build import CODE_VERSION
        from egraph_opt.extract.profile import MODELS, Profile
        from egraph_opt.extract.profiler import LOWEST_OPSET, Profiler
        from egraph_opt.extract.search import kernel_steps, search
        from egraph_opt.runtime.cache import default_cache_folder

        path = None
        if self.cost == "measured":
            path = profile_db if profile_db is not None else default_cache_folder() / "profile.sqlite"
        mode = (
            f"native {CODE_VERSION}"
            if compiler is not None
            else "portable"
            if opset >= LOWEST_OPSET
            else f"portable at {opset}"
        )
        profile = Profile(path, device_key(self.threads), mode)
        known = set(profile.measured)
        deadline = min(self.deadline(MEASURING_SHARE), time.monotonic() + MEASURING_SECONDS)
        profiler = Profiler(profile, compiler, self.threads, opset, deadline=deadline)

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
                deadline=deadline,
            )
            look(rounds=MEASURING_ROUNDS)
            if self.cost == "measured" and compiler is not None:
                profiler.thorough = True
                found = [
                    outcome for s in searches.values() for outcome in (s.outcome, s.chained) if outcome is not None
                ]
                measure(kernel_steps([outcome.choice for outcome in found]))
                look(rounds=0)
        if time.monotonic() > deadline:
            self.notes.append("the search ended at its time limit: steps that were not measured are not used")
        if profile.warning:
            self.notes.append(profile.warning)
        measured = [m for key, found in profile.measured.items() if key not in known for m in found.values()]
        total = sum(len(found) for s in searches.values() for found in s.problem.alternatives.values())
        failed = sum(1 for m in measured if not m.samples)
        known = {key for key in known if not key.startswith(MODELS)}
        self.candidates = Candidates(total, len(measured), len(known), failed)
        return profile

    def _select(
        self, searches: Mapping[int, Search], prover: Prover, original: Path
    ) -> tuple[Candidate | None, Latency | None]:
        """Verify the candidates, time them and the original in turns, and keep the fastest."""
        for region in prover.regions:
            if region.index in searches and searches[region.index].failure:
                self._revert(region, searches[region.index].failure)
        best = {index: item.outcome.plan for index, item in searches.items() if item.outcome is not None}
        chained = best | {index: item.chained.plan for index, item in searches.items() if item.chained is not None}
        proposals = [best]
        if chained != best and original.stat().st_size <= WEIGHTS_OF_SEVERAL_CANDIDATES and self.cost == "measured":
            proposals.append(chained)
        right = self._proven(prover, proposals)
        if right and self.cost == "static":
            return self._chosen(right[0], None)
        timed = self._timed(right, original, prover)
        if len(best) > 1 and not any(_is_faster(found) for _, found in timed):
            alone = self._proven(prover, [{index: best[index]} for index in sorted(best)[:REGIONS_TRIED_ALONE]])
            trials = self._timed(alone, original, prover)
            faster = [candidate.plans for candidate, found in trials if _is_faster(found)]
            timed += trials
            if len(faster) > 1:
                together = {index: plan for plans in faster for index, plan in plans.items()}
                timed += self._timed(self._proven(prover, [together]), original, prover)
        if not timed:
            return None, None
        chosen, found = max(timed, key=lambda item: item[1].ratio.median)
        if not _is_faster(found):
            self.notes.append(
                f"the best candidate reached {found.ratio.median:.2f}x (lower quartile {found.ratio.lower:.2f}x)"
            )
            return None, None
        return self._chosen(chosen, Latency(found.a, found.b, found.ratio, found.rounds))

    def _chosen(self, candidate: Candidate, latency: Latency | None) -> tuple[Candidate, Latency | None]:
        self.reverted += [entry for entry in candidate.reverted if entry not in self.reverted]
        if candidate.accuracy is not None and candidate.accuracy.optimized_float64 is None:
            self.notes.append(
                "no float64 reference: the model is too large for one, or not all of it is inside the algebra"
            )
        return candidate, latency

    def _proven(self, prover: Prover, proposals: Sequence[Mapping[int, Plan]]) -> list[Candidate]:
        """A right candidate of every proposal that has one; equal ones once."""
        right: dict[str, Candidate] = {}
        for number, plans in enumerate(proposals):
            if plans:
                self.progress(Progress("verify", "against the original", number, len(proposals)))
                with self.phase("build and verify"):
                    found, reverted = prover.prove(plans)
                if found is None:
                    self.reverted += [entry for entry in reverted if entry not in self.reverted]
                else:
                    right.setdefault(found.digest, found)
        return list(right.values())

    def _timed(
        self, candidates: Sequence[Candidate], original: Path, prover: Prover
    ) -> list[tuple[Candidate, Comparison]]:
        """The candidates that could be timed, each with its comparison to the original."""
        from egraph_opt.backends.environment import memory_suffices
        from egraph_opt.backends.model_timer import TimedModel, time_models
        from egraph_opt.candidates import digest

        if not candidates:
            return []
        if not memory_suffices():
            self.notes.append("too little memory is free to time the candidates beside the original")
            return []
        profile, name = prover.builder.profile, digest(original)
        new = [candidate for candidate in candidates if profile.comparison(name, candidate.digest) is None]
        if len(new) < len(candidates):
            self.notes.append("the latencies are in the profile database since an earlier run")
        batches = [new] if new else []
        while batches and time.monotonic() < self.deadline():
            batch = batches.pop()
            left = self.deadline() - time.monotonic()
            try:
                with self.phase("time"):
                    self.progress(Progress("time", "original and optimized, in turns"))
                    samples = time_models(
                        [TimedModel(original), *(candidate.stored for candidate in batch)],
                        rounds=TIMING_ROUNDS,
                        seed=self.seed,
                        fill=prover.judge.fill,
                        threads=self.threads,
                        enough_seconds=min(TIMING_SECONDS, left / 2),
                        timeout=None if left == inf else left + 1,
                    )
            except (InputRejected, LimitReached) as error:
                if len(batch) > 1:  # one of them is to blame
                    batches += [[candidate] for candidate in batch]
                else:
                    self.notes.append(f"a candidate was dropped: {error}")
                continue
            for candidate, found in zip(batch, samples[1:], strict=True):
                profile.add_comparison(name, candidate.digest, (samples[0], found))
        known = [(candidate, profile.comparison(name, candidate.digest)) for candidate in candidates]
        return [(candidate, Comparison.of(*found)) for candidate, found in known if found is not None]

    def _finish(self, report: Report, chosen: Candidate | None, why: str) -> Report:
        after = dict(report.operators_before)
        kernels: tuple[str, ...] = ()
        generated = 0
        if chosen is not None:
            nodes = chosen.model.graph.node
            kernels = chosen.kernels
            after = dict(Counter(node.op_type for node in nodes if node.op_type not in kernels))
            generated = sum(node.op_type in kernels for node in nodes)
        return replace(
            report,
            operators_after=after,
            generated_kernels=generated,
            kernels=kernels,
            accuracy=chosen.accuracy if chosen else None,
            seconds=dict(self.seconds),
            saturation=tuple(self.saturations),
            candidates=self.candidates,
            unchanged_because=why,
            reverted=tuple(self.reverted),
            notes=tuple(dict.fromkeys(self.notes)),
        )
