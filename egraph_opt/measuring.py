"""Choosing plans by what their steps are measured to cost: choose, measure what was chosen, choose again."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from egraph_opt.backends.runtimes import DEFAULT
from egraph_opt.backends.tvm_build import CODE_VERSION
from egraph_opt.extract.bounds import Bounds, ceilings, probes
from egraph_opt.extract.costs import Costs, needs_measuring
from egraph_opt.extract.profile import MODELS, Measurement, Profile
from egraph_opt.extract.profiler import LOWEST_OPSET, Profiler
from egraph_opt.extract.search import GAP, Search, kernel_steps, planned_kernels, search
from egraph_opt.ir.program import Plan, Step
from egraph_opt.ir.terms import Reshape
from egraph_opt.run import BUILDING_SHARE, MEASURING_SHARE, Run
from egraph_opt.runtime.cache import default_cache_folder
from egraph_opt.runtime.progress import Progress
from egraph_opt.runtime.report import Candidates, Expectation
from egraph_opt.runtime.timing import IDLE, UNSTEADY, Spread, significant
from egraph_opt.tuning import Tuning

# Seconds that measuring may take, and where a proof is asked for.
MEASURING_SECONDS, PROVING_SECONDS = 150.0, 1200.0
# Where fewer are left the machine is not probed, and nothing is said of programs that were not measured.
PROBING_SECONDS = 15.0
# Letters of a step's name in a note.
LONGEST_NAME = 100
# Rounds of choosing and measuring.
MEASURING_ROUNDS = 40
# How often plans are chosen again because a kernel of theirs cannot be built.
BUILDING_ROUNDS = 12
# How often kernels are tuned because plans were chosen again.
TUNING_ROUNDS = 4


@dataclass
class Measurer:
    """Fills in the plans of searches. Without a ``compiler`` there are no kernels. Steps are timed in ``runtime``."""

    run: Run
    compiler: Path | None
    opset: int
    runtime: str = DEFAULT
    profile: Profile = field(init=False)
    deadline: float = field(init=False)
    _bounds: Bounds | None = None
    _profiler: Profiler = field(init=False)
    _known: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        run, options = self.run, self.run.options
        path = (options.profile_db or default_cache_folder() / "profile.sqlite") if options.measured else None
        portable = "portable" if self.opset >= LOWEST_OPSET else f"portable at {self.opset}"
        mode = portable if self.compiler is None else f"native {CODE_VERSION}"
        machine = run.runner.machine(options.threads, run.limits(BUILDING_SHARE))
        self.profile = Profile(path, machine.key(self.runtime), mode)
        self._known = frozenset(self.profile.measured)
        most = PROVING_SECONDS if options.prove else MEASURING_SECONDS
        self.deadline = min(run.deadline(MEASURING_SHARE), time.monotonic() + most)
        self._profiler = Profiler(
            self.profile,
            self.compiler,
            options.threads,
            self.opset,
            deadline=self.deadline,
            objects=run.objects,
            limits=run.limits(MEASURING_SHARE),
            runtime=self.runtime,
            runner=run.runner,
            compilers=run.compilers,
        )

    @property
    def costs(self) -> Costs:
        """What steps cost, as far as it is known by now."""
        return Costs(self.profile, self._profiler.runnable, objective=self.run.options.summed)

    def look(self, wanted: Sequence[Search]) -> None:
        """Choose the plans of some searches, and measure until the cheapest ones are all measured."""
        measured = self.run.options.measured
        timer = self._measure if measured else None
        with self.run.phase("profile"):
            if measured and self.run.options.summed is None:
                self._find_bounds(wanted)
            again = partial(
                search,
                wanted,
                self.profile,
                timer,
                possible=self._profiler.runnable,
                bound=self._bounds,
                objective=self.run.options.summed,
                peak=self.run.options.peak_limit,
                slowest=self.run.options.slowest,
                prove=self.run.options.prove,
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
        if thorough and (self.run.options.trials or self.run.options.schedules):
            self._tune(wanted, again)
        with self.run.phase("profile"):
            for _ in range(BUILDING_ROUNDS):
                if self._profiler.build(planned_kernels(wanted)) or time.monotonic() > self.deadline:
                    break
                again(rounds=0, deadline=self.deadline)
        gaps = [item.outcome.gap for item in wanted if item.outcome is not None]
        free = self.run.options.peak_limit is None  # a program that fits may cost more than is possible elsewhere
        if self.run.options.prove and free and (self._bounds is None or max(gaps, default=0.0) > 2 * GAP):
            self.run.notes.append("the proof is not complete: it would take more time")
        if measured and self._bounds is None and self.run.options.summed is None:
            for item in wanted:
                item.outcome = None if item.outcome is None else replace(item.outcome, bound=0.0)

    def _tune(self, wanted: Sequence[Search], again: Callable[..., None]) -> None:
        """Tune the kernels of the plans and choose again: faster kernels may make other plans the best."""
        run, options = self.run, self.run.options
        tuning = Tuning(self._profiler, options.trials, options.tuning_seconds, run.progress, options.schedules)
        with run.phase("tune"):
            for _ in range(TUNING_ROUNDS):
                found = [outcome for s in wanted for outcome in (s.outcome, s.chained) if outcome is not None]
                if not tuning.run([outcome.choice for outcome in found]):
                    break
                self.deadline = self._profiler.deadline
                again(rounds=0, deadline=self.deadline)
        run.notes += tuning.complaints

    def conclude(self, searches: Mapping[int, Search]) -> None:
        """Say what was measured, and what went wrong."""
        run, unbuilt = self.run, self._profiler.unbuilt
        if time.monotonic() > self.deadline:
            run.notes.append("the search ended at its time limit: steps that were not measured are not used")
        run.notes += self._profiler.complaints()
        if unbuilt:
            reason, _ = Counter(unbuilt.values()).most_common(1)[0]
            run.notes.append(f"{len(unbuilt)} kernels could not be built and are not used: {reason}")
        if self._profiler.lost:
            run.notes.append(f"not all could be measured: {self._profiler.lost}")
        if self.profile.warning:
            run.warnings.append(self.profile.warning)
        new = [m for key, found in self.profile.measured.items() if key not in self._known for m in found.values()]
        run.notes += unsteady(new)
        total = sum(len(found) for s in searches.values() for found in s.problem.alternatives.values())
        failed = sum(1 for m in new if not m.samples)
        from_database = sum(not key.startswith(MODELS) for key in self._known)
        before = run.candidates
        run.candidates = Candidates(
            before.total + total,
            before.measured + len(new),
            before.from_database + from_database,
            before.failed + failed,
        )

    def _find_bounds(self, wanted: Sequence[Search]) -> None:
        """Learn what the machine can do at its best, also from what is known of the steps of some searches."""
        if self._bounds is None:
            best = ceilings(self.profile)
            if best is None and self.deadline - time.monotonic() > PROBING_SECONDS:
                self._measure(probes(), "what this machine can do")
                best = ceilings(self.profile)
            self._bounds = None if best is None else Bounds(best)
        if self._bounds is not None:
            offered = (a for s in wanted for found in s.problem.alternatives.values() for a in found)
            self._bounds.heed(((a.text, a.step) for a in offered), self.profile)

    def _measure(self, steps: Sequence[tuple[str, Step]], what: str = "steps of the best plan") -> None:
        def tell(done: int, total: int) -> None:
            self.run.progress(Progress("profile", what, done, total))

        self._profiler.measure(steps, tell)
        if self._bounds is not None:
            self._bounds.heed(((text, step.buffer) for text, step in steps), self.profile)


def expectation(
    plans: Mapping[int, Plan], searches: Mapping[int, Search], costs: Costs, *, bounded: bool
) -> Expectation:
    """What some plans that were found should take, as far as that is known by now, and how good a choice they are.

    They are not ``bounded`` by the cheapest ones where they had to be others for want of memory.
    """
    seconds = bound = 0.0
    unmeasured = 0
    for index, plan in plans.items():
        search = searches[index]
        found = next(o for o in (search.outcome, search.chained) if o is not None and o.plan is plan)
        seconds += sum(costs(alternative) for _, alternative in found.choice.steps)
        bound += search.outcome.bound if search.outcome is not None else 0.0
        unmeasured += sum(needs_measuring(alternative, costs.profile) for _, alternative in found.choice.steps)
    offered = [a for search in searches.values() for found in search.problem.alternatives.values() for a in found]
    measured = {a.text for a in offered if not isinstance(a.step, Reshape) and not needs_measuring(a, costs.profile)}
    return Expectation(seconds, min(bound, seconds) if bounded else 0.0, len(offered), len(measured), unmeasured)


def unsteady(measured: Sequence[Measurement]) -> list[str]:
    """A note where the samples of what was measured vary too much to be trusted on the whole; none otherwise."""
    spreads = [(Spread.of(m.samples), m) for m in measured if m.samples and not m.signature.startswith(MODELS)]
    if not sum(s.upper - s.lower for s, _ in spreads) > (UNSTEADY - 1) * sum(s.median for s, _ in spreads):
        return []
    count = sum(spread.unsteady for spread, _ in spreads)
    worst, step = max(spreads, key=lambda item: item[0].upper - item[0].lower)
    name = f"{step.signature} ({step.implementation.strip()})"
    name = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
    return [
        f"{count} of {len(spreads)} measurements are unsteady, most of all {name}:"
        f" its quartiles are {significant(worst.lower)} and {significant(worst.upper)} ms; {IDLE}"
    ]
