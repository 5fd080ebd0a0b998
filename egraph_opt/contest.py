"""The contest between the original and what was found: right candidates are timed against it, and the fastest wins."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from egraph_opt.backends.environment import memory_suffices
from egraph_opt.backends.model_timer import TimedModel, time_models
from egraph_opt.candidates import Candidate, Prover, digest
from egraph_opt.errors import InputRejected, LimitReached
from egraph_opt.frontends.onnx_storage import stored_bytes
from egraph_opt.run import BUILDING_SHARE, Run
from egraph_opt.runtime.progress import Progress
from egraph_opt.runtime.report import Latency
from egraph_opt.runtime.timing import Comparison

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


@dataclass
class Contest:
    """Candidates that ``prover`` builds against the model file ``original``."""

    run: Run
    prover: Prover
    original: Path

    def select(self, searches: Mapping[int, Search]) -> tuple[Candidate | None, Latency | None]:
        """The fastest right candidate that beats the original, with its latency.

        Where nothing is measured it is the one that should be fastest, and has no latency.
        """
        prover, measured = self.prover, self.run.options.measured
        for region in prover.regions:
            if region.index in searches and searches[region.index].failure:
                self.run.revert(region, searches[region.index].failure)
        best = {
            index: item.outcome.plan
            for index, item in searches.items()
            if item.outcome is not None and prover.builder.saves(item, measured)
        }
        chained = best | {index: item.chained.plan for index, item in searches.items() if item.chained is not None}
        proposals = [best]
        if measured and chained != best and stored_bytes(self.original) <= WEIGHTS_OF_SEVERAL_CANDIDATES:
            proposals.append(chained)
        right = self._proven(proposals)
        if right and not measured:
            return self._chosen(right[0], None)
        timed = self._timed(right)
        if len(best) > 1 and not any(is_faster(found) for _, found in timed):
            alone = self._proven([{index: best[index]} for index in sorted(best)[:REGIONS_TRIED_ALONE]])
            trials = self._timed(alone)
            faster = [candidate.plans for candidate, found in trials if is_faster(found)]
            timed += trials
            if len(faster) > 1:
                together = {index: plan for plans in faster for index, plan in plans.items()}
                timed += self._timed(self._proven([together]))
        if not timed:
            return None, None
        chosen, found = max(timed, key=lambda item: item[1].ratio.median)
        if not is_faster(found):
            self.run.notes.append(
                f"the best candidate reached {found.ratio.median:.2f}x (lower quartile {found.ratio.lower:.2f}x)"
            )
            return None, None
        return self._chosen(chosen, Latency.of(found))

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
                    samples = time_models(
                        [TimedModel(self.original), *(candidate.stored for candidate in batch)],
                        rounds=TIMING_ROUNDS,
                        seed=self.run.options.seed,
                        fill=self.prover.judge.fill,
                        threads=self.run.options.threads,
                        enough_seconds=min(TIMING_SECONDS, left / 2),
                        limits=self.run.limits(),
                    )
            except (InputRejected, LimitReached) as error:
                if len(batch) > 1:  # one of them is to blame
                    batches += [[candidate] for candidate in batch]
                else:
                    self.run.notes.append(f"a candidate was dropped: {error}")
                continue
            for candidate, found in zip(batch, samples[1:], strict=True):
                profile.add_comparison(name, candidate.digest, (samples[0], found))
        known = [(candidate, profile.comparison(name, candidate.digest)) for candidate in candidates]
        return [(candidate, Comparison.of(*found)) for candidate, found in known if found is not None]
