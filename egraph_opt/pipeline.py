"""The whole story: model -> regions -> e-graphs -> plans -> a checked, timed, faster model. Read this first."""

from __future__ import annotations

import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from egraph_opt.errors import InputRejected, LimitReached, UsageError, one_line
from egraph_opt.result import Result as Result
from egraph_opt.runtime.progress import Progress, ProgressCallback, silent
from egraph_opt.runtime.report import Candidates, Latency, Report, RevertedRegion
from egraph_opt.runtime.timing import Comparison

if TYPE_CHECKING:
    import onnx

    from egraph_opt.candidates import Candidate, Prover
    from egraph_opt.egraph.saturate import Round
    from egraph_opt.explanation import Origins
    from egraph_opt.extract.profile import Profile
    from egraph_opt.extract.search import Costs, Search
    from egraph_opt.frontends.regions import Region
    from egraph_opt.ir.program import Plan, Step
    from egraph_opt.packs import Pack
    from egraph_opt.saturation import Saturator

# Seconds that measuring may take.
MEASURING_SECONDS = 150.0
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
    rules: str | Sequence[str | Pack] = "",
    fp: str = "default",
    progress: ProgressCallback | None = None,
) -> Result:
    """A faster model with the same inputs, outputs and answers; the original itself where nothing faster is found.

    ``verify`` random inputs are compared on all outputs. ``time_limit`` bounds the search in seconds; what was found
    by then counts. ``cost`` is "measured" (library calls and kernels are timed on this machine) or "static" (the plan
    that should be fastest, untimed). ``rules`` adds rule packs and switches rules off ("+mine.py,-epilogue"), ``fp``
    says what rules may do to floating-point numbers ("strict", "default" or "real"): see ``egraph_opt.packs.select``.

    Raises InputRejected for a model that cannot be read or that onnxruntime does not load, UsageError for a wrong
    option.
    """
    if target != "cpu":
        raise UsageError(f"unknown target {target!r}; known: cpu")
    if cost not in ("measured", "static"):
        raise UsageError(f"unknown cost model {cost!r}; choose measured or static")
    if verify < 0 or (time_limit is not None and time_limit <= 0) or (threads is not None and threads < 1):
        raise UsageError("verify is at least 0, time_limit above 0 and threads at least 1")
    from egraph_opt.packs import select
    from egraph_opt.saturation import Saturator

    selection = select(rules, fp)
    run = _Run(portable, verify, time_limit, seed, threads, cost, progress or silent)
    saturator = Saturator(selection, progress=run.grown)
    with tempfile.TemporaryDirectory(prefix="egraph-opt-") as folder, saturator:
        return run.optimize(model, Path(profile_db) if profile_db is not None else None, Path(folder), saturator)


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

    def grown(self, done: Round) -> None:
        """Tell of a round of a saturation."""
        self.progress(Progress("saturate", f"{done.phase}: {done.enodes} e-nodes"))

    def optimize(
        self, model: str | Path | onnx.ModelProto, profile_db: Path | None, folder: Path, saturator: Saturator
    ) -> Result:
        """The run itself; ``folder`` is for files that are not needed afterwards."""
        from egraph_opt.backends.environment import package_versions
        from egraph_opt.candidates import OUT_OF_TIME, Builder, Prover, store
        from egraph_opt.explanation import Origins
        from egraph_opt.exploration import Explorer
        from egraph_opt.frontends.onnx_emit import unavailable
        from egraph_opt.frontends.onnx_reader import Objection, load
        from egraph_opt.frontends.regions import Partition, partition
        from egraph_opt.verification import Judge

        with self.phase("read"):
            self.progress(Progress("read"))
            objection = None
            try:
                loaded = load(model)
            except Objection as error:
                objection, loaded = error, error.loaded
            original = store(loaded.model, folder / "original")
            parts = partition(loaded) if objection is None else Partition((), {})
            regions, outside = [region for region in parts.regions if region.worthwhile], parts.opaque
            name = str(model) if isinstance(model, str | Path) else loaded.model.graph.name or "the model"
            try:
                judge = Judge(original, self.verify if regions else 0, self.seed, self.threads, name, self.deadline())
            except InputRejected:
                if objection is not None:
                    raise objection from None
                raise
        report = Report(
            model=Path(name).name,
            portable=self.portable,
            operators_before=dict(Counter(node.op_type for node in loaded.nodes)),
            versions=package_versions(),
            rules=saturator.selection.text,
        )
        if objection is not None:
            return Result(loaded.model, self._finish(report, None, str(objection)), None, self.threads)
        if not regions:
            why = f"no part of the model is inside the algebra{_commonest(outside)}"
            return Result(loaded.model, self._finish(report, None, why), None, self.threads)
        if judge.problem:
            why = f"no inputs were found that it runs on, so nothing could be verified: {judge.problem}"
            return Result(loaded.model, self._finish(report, None, why), None, self.threads)
        if not self.verify:
            self.notes.append("nothing was verified, as asked")
        explorer = Explorer(
            regions,
            saturator,
            free_prefix(loaded.names),
            self.phase,
            self.progress,
            self.reverted,
            self.deadline(SATURATION_SHARE),
            unavailable(loaded.opset),
        )
        explorer.explore()
        searches = explorer.searches
        compiler = None if self.portable else self._compiler()
        profile, costs, measure = self._measure(searches, compiler, loaded.opset, profile_db)
        prover = Prover(Builder(loaded, regions, profile, compiler, folder), judge, regions, self.deadline())
        explorer.vet(prover, measure)
        self.notes += saturator.notes
        report = replace(report, saturation=explorer.saturations, packs=explorer.uses)
        chosen, latency = self._select(searches, prover, original)
        if chosen is None:
            late = time.monotonic() > self.deadline() or any(entry.reason == OUT_OF_TIME for entry in self.reverted)
            why = "the time limit was reached before a faster one was found" if late else "nothing faster was found"
            return Result(loaded.model, self._finish(report, None, why), None, self.threads)
        rules = [rule for group in saturator.selection.groups for rule in group.rules]
        self._explain(chosen, Origins(loaded, regions, searches, explorer.snapshots, rules, costs), report.model)
        report = self._finish(replace(report, latency=latency), chosen, "")
        return Result(chosen.model, report, chosen.library, self.threads)

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
    ) -> tuple[Profile, Costs, Callable[[Sequence[Search]], None]]:
        """Fill in the plans of all searches: choose by measured cost, measure what was chosen, choose again.

        The last of the answer does the same for further searches.
        """
        from egraph_opt.backends.environment import device_key
        from egraph_opt.backends.tvm_build import CODE_VERSION
        from egraph_opt.extract.profile import MODELS, Profile
        from egraph_opt.extract.profiler import LOWEST_OPSET, Profiler
        from egraph_opt.extract.search import Costs, kernel_steps, search
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

        def look(wanted: Sequence[Search]) -> None:
            timer = measure if self.cost == "measured" else None
            with self.phase("profile"):
                again = partial(search, wanted, profile, timer, possible=profiler.runnable, deadline=deadline)
                thorough = self.cost == "measured" and compiler is not None
                again(rounds=MEASURING_ROUNDS, final=not thorough)
                if thorough:
                    profiler.thorough = True
                    found = [outcome for s in wanted for outcome in (s.outcome, s.chained) if outcome is not None]
                    measure(kernel_steps([outcome.choice for outcome in found]))
                    again(rounds=0)
                    profiler.thorough = False

        look(list(searches.values()))
        if time.monotonic() > deadline:
            self.notes.append("the search ended at its time limit: steps that were not measured are not used")
        self.notes += profiler.complaints()
        if profile.warning:
            self.notes.append(profile.warning)
        measured = [m for key, found in profile.measured.items() if key not in known for m in found.values()]
        total = sum(len(found) for s in searches.values() for found in s.problem.alternatives.values())
        failed = sum(1 for m in measured if not m.samples)
        known = {key for key in known if not key.startswith(MODELS)}
        self.candidates = Candidates(total, len(measured), len(known), failed)
        return profile, Costs(profile, profiler.runnable), look

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

    def _explain(self, chosen: Candidate, origins: Origins, model: str) -> None:
        """Put into the model how it came about, as far as the time limit allows; without it the model is as good."""
        from egraph_opt import __version__
        from egraph_opt.explanation import attach, explain

        self.progress(Progress("explain"))
        with self.phase("explain"):
            try:
                explanation, notes = explain(chosen, origins, model=model, version=__version__, until=self.deadline())
                attach(chosen.model, explanation)
                self.notes += notes
            except Exception as error:
                self.notes.append(f"the model carries no explanation: {type(error).__name__}: {one_line(str(error))}")

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
            candidates=self.candidates,
            unchanged_because=why,
            reverted=tuple(self.reverted),
            notes=tuple(dict.fromkeys(self.notes)),
        )
