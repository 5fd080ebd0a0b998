"""Choosing plans by what their steps are measured to cost: choose, measure what was chosen, choose again."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from egraph_opt.backends.environment import device_key
from egraph_opt.backends.tvm_build import CODE_VERSION
from egraph_opt.extract.costs import Costs
from egraph_opt.extract.profile import MODELS, Profile
from egraph_opt.extract.profiler import LOWEST_OPSET, Profiler
from egraph_opt.extract.search import Search, kernel_steps, planned_kernels, search
from egraph_opt.ir.program import Step
from egraph_opt.run import BUILDING_SHARE, MEASURING_SHARE, Run
from egraph_opt.runtime.cache import default_cache_folder
from egraph_opt.runtime.progress import Progress
from egraph_opt.runtime.report import Candidates

# Seconds that measuring may take.
MEASURING_SECONDS = 150.0
# Rounds of choosing and measuring.
MEASURING_ROUNDS = 40
# How often plans are chosen again because a kernel of theirs cannot be built.
BUILDING_ROUNDS = 12


@dataclass
class Measurer:
    """Fills in the plans of searches. Without a ``compiler`` there are no kernels."""

    run: Run
    compiler: Path | None
    opset: int
    profile: Profile = field(init=False)
    deadline: float = field(init=False)
    _profiler: Profiler = field(init=False)
    _known: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        run, options = self.run, self.run.options
        path = (options.profile_db or default_cache_folder() / "profile.sqlite") if options.measured else None
        portable = "portable" if self.opset >= LOWEST_OPSET else f"portable at {self.opset}"
        mode = portable if self.compiler is None else f"native {CODE_VERSION}"
        self.profile = Profile(path, device_key(options.threads), mode)
        self._known = frozenset(self.profile.measured)
        self.deadline = min(run.deadline(MEASURING_SHARE), time.monotonic() + MEASURING_SECONDS)
        self._profiler = Profiler(
            self.profile,
            self.compiler,
            options.threads,
            self.opset,
            deadline=self.deadline,
            objects=run.objects,
            limits=run.limits(MEASURING_SHARE),
        )

    @property
    def costs(self) -> Costs:
        """What steps cost, as far as it is known by now."""
        return Costs(self.profile, self._profiler.runnable, objective=self.run.options.objective)

    def look(self, wanted: Sequence[Search]) -> None:
        """Choose the plans of some searches, and measure until the cheapest ones are all measured."""
        measured = self.run.options.measured
        timer = self._measure if measured else None
        with self.run.phase("profile"):
            again = partial(
                search,
                wanted,
                self.profile,
                timer,
                possible=self._profiler.runnable,
                objective=self.run.options.objective,
                peak=self.run.options.peak_limit,
                deadline=self.deadline,
                check=self.run.limits(BUILDING_SHARE).check,
            )
            thorough = measured and self.compiler is not None
            again(rounds=MEASURING_ROUNDS, final=not thorough)
            if thorough:
                self._profiler.thorough = True
                found = [outcome for s in wanted for outcome in (s.outcome, s.chained) if outcome is not None]
                self._measure(kernel_steps([outcome.choice for outcome in found]))
                again(rounds=0)
                self._profiler.thorough = False
            for _ in range(BUILDING_ROUNDS):
                if self._profiler.build(planned_kernels(wanted)) or time.monotonic() > self.deadline:
                    break
                again(rounds=0)

    def conclude(self, searches: Mapping[int, Search]) -> None:
        """Say what was measured, and what went wrong."""
        run, unbuilt = self.run, self._profiler.unbuilt
        if time.monotonic() > self.deadline:
            run.notes.append("the search ended at its time limit: steps that were not measured are not used")
        run.notes += self._profiler.complaints()
        if unbuilt:
            reason, _ = Counter(unbuilt.values()).most_common(1)[0]
            run.notes.append(f"{len(unbuilt)} kernels could not be built and are not used: {reason}")
        if self.profile.warning:
            run.notes.append(self.profile.warning)
        new = [m for key, found in self.profile.measured.items() if key not in self._known for m in found.values()]
        total = sum(len(found) for s in searches.values() for found in s.problem.alternatives.values())
        failed = sum(1 for m in new if not m.samples)
        from_database = sum(not key.startswith(MODELS) for key in self._known)
        run.candidates = Candidates(total, len(new), from_database, failed)

    def _measure(self, steps: Sequence[tuple[str, Step]]) -> None:
        def tell(done: int, total: int) -> None:
            self.run.progress(Progress("profile", "steps of the best plan", done, total))

        self._profiler.measure(steps, tell)
