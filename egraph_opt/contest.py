"""The contest between the original and what was found: right candidates are timed against it, and the fastest wins."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from egraph_opt.backends.environment import memory_suffices
from egraph_opt.backends.model_timer import DevicesLost, TimedModel
from egraph_opt.backends.runtimes import DEFAULT
from egraph_opt.candidates import CHEAPER, Candidate, Prover, digest
from egraph_opt.errors import InputRejected, LimitReached
from egraph_opt.frontends.onnx_storage import stored_bytes
from egraph_opt.run import BUILDING_SHARE, Run
from egraph_opt.runtime.progress import Progress
from egraph_opt.runtime.quantities import byte_text
from egraph_opt.runtime.report import Latency
from egraph_opt.runtime.timing import IDLE, Comparison

if TYPE_CHECKING:
    from egraph_opt.extract.search import Search
    from egraph_opt.ir.program import Plan

# A model is only replaced by one whose median speed-up is at least this.
WORTHWHILE = 1.02
# Rounds in which the original and the candidates are timed against each other, and seconds after which it is enough.
TIMING_ROUNDS, TIMING_SECONDS = 11, 30.0
# When the whole is not faster, up to this many regions are tried alone.
REGIONS_TRIED_ALONE = 8
# Beyond this many bytes of weights only one candidate is built: each of them holds a copy.
WEIGHTS_OF_SEVERAL_CANDIDATES = 1 << 29


def is_faster(found: Comparison) -> bool:
    """Whether a candidate wins by more than the noise: in the median, and in three quarters of the rounds."""
    return found.ratio.median >= WORTHWHILE and found.ratio.lower >= 1.0


def fastest(timed: Sequence[tuple[Candidate, Comparison]]) -> tuple[Candidate, Comparison]:
    """The fastest candidate; one for another runtime has to be worth it against the fastest one in onnxruntime."""

    def ratio(item: tuple[Candidate, Comparison]) -> float:
        candidate, found = item
        return found.ratio.median / (1.0 if candidate.stored.runtime == DEFAULT else WORTHWHILE)

    return max(timed, key=ratio)


@dataclass
class Contest:
    """Candidates that ``prover`` builds against the model file ``original`` in onnxruntime.

    ``peak`` are the bytes that the original's intermediate buffers need at once, where that is known. ``rivals`` are
    verified models for other runtimes. ``latencies`` are, in the end, those of everything that was timed.
    """

    run: Run
    prover: Prover
    original: Path
    peak: int | None = None
    rivals: Sequence[Candidate] = ()
    latencies: list[tuple[Candidate, Comparison]] = field(default_factory=list)

    def select(self, searches: Mapping[int, Search]) -> tuple[Candidate | None, Latency | None]:
        """The fastest right candidate that beats the original, with its latency.

        Where the cost model decides, it is the one it prefers; without measurements it has no latency. With a limit on
        memory that the original goes beyond, it is the fastest candidate within.
        """
        prover, options = self.prover, self.run.options
        for region in prover.regions:
            if region.index in searches and searches[region.index].failure:
                self.run.revert(region, searches[region.index].failure)
        # A plan need only differ where whole models are compared.
        differs = options.timed or options.for_memory or self._too_large
        best = {
            index: item.outcome.plan
            for index, item in searches.items()
            if item.outcome is not None and prover.builder.saves(item, timed=differs)
        }
        chained = best | {index: item.chained.plan for index, item in searches.items() if item.chained is not None}
        proposals = [best]
        if options.timed and chained != best and stored_bytes(self.original) <= WEIGHTS_OF_SEVERAL_CANDIDATES:
            proposals.append(chained)
        right = self._within_memory(self._proven(proposals))
        if right and not options.timed:
            timed = self._timed(right[:1]) if options.objective is not None else []
            return self._chosen(right[0], Latency.of(timed[0][1]) if timed else None)
        timed = self._timed([*right, *self.rivals])
        fast = any(is_faster(found) for candidate, found in timed if any(candidate is own for own in right))
        if len(best) > 1 and not self._too_large and not fast:
            each = [{index: best[index]} for index in sorted(best)[:REGIONS_TRIED_ALONE]]
            alone = self._within_memory(self._proven(each))
            trials = self._timed(alone)
            faster = [candidate.plans for candidate, found in trials if is_faster(found)]
            timed += trials
            if len(faster) > 1:
                together = {index: plan for plans in faster for index, plan in plans.items()}
                timed += self._timed(self._within_memory(self._proven([together])))
        self.latencies = timed
        if not timed:
            return None, None
        chosen, found = fastest(timed)
        if not is_faster(found) and not self._too_large:
            self.run.notes.append(
                f"the best candidate reached {found.ratio.median:.2f}x (lower quartile {found.ratio.lower:.2f}x)"
            )
            return None, None
        return self._chosen(chosen, Latency.of(found))

    @property
    def _too_large(self) -> bool:
        """Whether the original goes beyond the limit on memory, as far as that is known."""
        limit = self.run.options.peak_memory
        return limit is not None and (self.peak is None or self.peak > limit)

    def _within_memory(self, right: list[Candidate]) -> list[Candidate]:
        """The candidates that need as little memory as asked for; where even the original needs more, the smallest."""
        options, known = self.run.options, [candidate for candidate in right if candidate.peak is not None]
        limit = options.peak_memory
        if options.for_memory:
            least = self.peak if self.peak is not None else 0
            return [candidate for candidate in known if (candidate.peak or 0) * CHEAPER < least]
        if limit is None:
            return right
        within = [candidate for candidate in known if (candidate.peak or 0) <= limit]
        if within or not self._too_large:
            return within
        self.run.notes.append(f"no program was found that needs at most {byte_text(limit)} for intermediate buffers")
        smallest = min(known, key=lambda candidate: candidate.peak or 0, default=None)
        smaller = smallest is not None and self.peak is not None and (smallest.peak or 0) < self.peak
        return [smallest] if smallest is not None and smaller else []

    def _chosen(self, candidate: Candidate, latency: Latency | None) -> tuple[Candidate, Latency | None]:
        self.run.keep(candidate.reverted)
        if candidate.accuracy is not None and candidate.accuracy.optimized_float64 is None:
            self.run.notes.append(
                "no float64 reference: the model is too large for one, or not all of it is inside the algebra"
            )
        return candidate, latency

    def _proven(self, proposals: Sequence[Mapping[int, Plan]]) -> list[Candidate]:
        """A right candidate of every proposal that has one; equal ones once."""
        right: dict[str, Candidate] = {}
        for number, plans in enumerate(proposals):
            if plans:
                self.run.progress(Progress("verify", "against the original", number, len(proposals)))
                with self.run.phase("build and verify"):
                    found, reverted = self.prover.prove(plans)
                if found is None:
                    self.run.keep(reverted)
                else:
                    right.setdefault(found.digest, found)
        return list(right.values())

    def _timed(self, candidates: Sequence[Candidate]) -> list[tuple[Candidate, Comparison]]:
        """The candidates that could be timed, each with its comparison to the original."""
        if not candidates:
            return []
        if not memory_suffices():
            self.run.notes.append("too little memory is free to time the candidates beside the original")
            return []
        profile, name = self.prover.builder.profile, digest(self.original)
        new = [candidate for candidate in candidates if profile.comparison(name, candidate.digest) is None]
        if len(new) < len(candidates):
            self.run.notes.append("the latencies are in the profile database since an earlier run")
        batches = [new] if new else []
        while batches and not self.run.limits(BUILDING_SHARE).reached():
            batch = batches.pop()
            left = self.run.deadline(BUILDING_SHARE) - time.monotonic()
            try:
                with self.run.phase("time"):
                    self.run.progress(Progress("time", "original and optimized, in turns"))
                    samples = self.run.runner.time_models(
                        [TimedModel(self.original), *(candidate.stored for candidate in batch)],
                        rounds=TIMING_ROUNDS,
                        seed=self.run.options.seed,
                        fill=self.prover.judge.fill,
                        threads=self.run.options.threads,
                        enough_seconds=min(TIMING_SECONDS, left / 2),
                        limits=self.run.limits(),
                    )
            except DevicesLost as error:
                self.run.notes.append(f"the latencies could not be measured: {error}")
                break
            except (InputRejected, LimitReached) as error:
                if len(batch) > 1:  # one of them is to blame
                    batches += [[candidate] for candidate in batch]
                else:
                    self.run.notes.append(f"a candidate was dropped: {error}")
                continue
            for candidate, found in zip(batch, samples[1:], strict=True):
                profile.add_comparison(name, candidate.digest, (samples[0], found))
        known = [(candidate, profile.comparison(name, candidate.digest)) for candidate in candidates]
        compared = [(candidate, Comparison.of(*found)) for candidate, found in known if found is not None]
        worst = max((found.ratio for _, found in compared), key=lambda ratio: ratio.upper / ratio.lower, default=None)
        if worst is not None and worst.unsteady:
            self.run.notes.append(
                f"the latencies are unsteady: a speed-up has quartiles of {worst.lower:.2f}x and {worst.upper:.2f}x;"
                f" {IDLE}"
            )
        return compared
