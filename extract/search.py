"""Choose, measure what was chosen, choose again: until the cheapest plan is all measured.

First choices found quickly are measured until they want nothing new, then the exactly cheapest ones, both by what steps
should take; then the cheapest ones by what they take at least: when such a one is all measured, no plan of the
alternatives is cheaper. Otherwise the gap says how much cheaper one may be.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf

from egraph_opt.errors import EgraphOptError, LimitReached
from egraph_opt.extract.alternatives import Alternative, Problem, signature
from egraph_opt.extract.choose import Choice, choose, choose_exactly
from egraph_opt.extract.constrained import fitting, timely
from egraph_opt.extract.costs import CHAINED_CONV, Costs, is_conv, needs_measuring
from egraph_opt.extract.plans import build_plan
from egraph_opt.extract.priced_extraction import cheapest
from egraph_opt.extract.profile import Profile
from egraph_opt.extract.step_info import CostModel
from egraph_opt.ir.program import Plan, Program, Step
from egraph_opt.ir.terms import Compute
from egraph_opt.limits import Check, unlimited

# The search ends when nothing unmeasured can promise more than this share of the best measured plan.
GAP = 0.03
# Pivots of an exact choice while searching and where nothing is measured, with the share of the cost it may miss, and
# of the last one among measured steps. They take seconds where nothing is proven before; the limit in seconds is for
# safety only, since what it cuts short depends on the machine.
SEARCH_PIVOTS, SEARCH_GAP = 1_000, 0.01
PIVOTS, SECONDS = 4_000, 60.0
# Of more searches than these each gets fewer pivots, so that all together take no longer.
ENOUGH = 4
# Rounds of exact choices by estimates; and by lower bounds, where no proof is asked for.
EXACT_ROUNDS, PROVING_ROUNDS = 2, 1
Measure = Callable[[Sequence[tuple[str, Step]]], None]


@dataclass(frozen=True)
class Outcome:
    """A chosen plan of one region and how sure it is: ``unmeasured`` steps of it were never measured.

    No plan of the region's alternatives costs less than ``bound`` seconds, as far as they are measured and the
    estimates of the others are right; 0 where no bound was looked for.
    """

    plan: Plan
    choice: Choice
    unmeasured: int
    bound: float = 0.0

    @property
    def gap(self) -> float:
        """How much cheaper the cheapest plan may be, as a share of this one's cost; 0 when this is the cheapest."""
        return max(0.0, 1 - self.bound / self.choice.cost) if self.choice.cost > 0 else 0.0


@dataclass
class Search:
    """One region's problem and the plans found for it.

    ``outcome`` is the cheapest plan, ``chained`` the one that prefers chains of Convs where that is another one;
    ``failure`` says why there is none. Step names begin with ``prefix``. ``beside`` are the bytes that buffers of other
    parts of the model hold meanwhile.
    """

    problem: Problem
    program: Program
    prefix: str
    beside: int = 0
    outcome: Outcome | None = field(default=None)
    chained: Outcome | None = field(default=None)
    failure: str = ""


def search(
    searches: Sequence[Search],
    profile: Profile,
    measure: Measure | None,
    *,
    possible: Callable[[Alternative], bool] = lambda _: True,
    bound: Callable[[Alternative], float] | None = None,
    objective: CostModel | None = None,
    peak: int | None = None,
    slowest: float = inf,
    rounds: int,
    prove: bool = False,
    deadline: float,
    final: bool = True,
    check: Check = unlimited,
) -> None:
    """Fill in the outcomes of every search, or why it has none.

    ``measure`` times steps given as (signature, step) and puts them into the profile; without it the choice rests on
    what the profile holds and on estimates. ``possible`` tells whether an alternative can be run at all, ``bound`` how
    many seconds one that was not measured takes at least (its estimate where there is none), ``objective`` what a step
    costs where that is not its time.

    First choices are made by what steps should take, then by what they take at least: a little, or to the end in order
    to ``prove`` that nothing is cheaper. When ``rounds`` of choosing are used up or ``deadline`` (monotonic seconds)
    has passed, the best plan of measured steps counts, or the best expected one where no plan is measured as a whole.
    With ``peak``, the plans need at most so many bytes for intermediate buffers at once, or as few as was found. What
    is not chosen by its time takes at most ``slowest`` times that of the fastest, unless a limit wants more. Outcomes
    that are not ``final`` are chosen with less effort; many searches share what one may take. ``check`` is called again
    and again and may raise LimitReached: searches that are not done by then fail.
    """
    as_kernels = objective is not None or peak is not None
    costs = Costs(profile, possible, bound, objective=objective, as_kernels=as_kernels)
    with suppress(LimitReached):
        if measure is not None:
            repeated = _Rounds(searches, costs, measure, rounds, deadline, check)
            # A run that finds everything known is no reason to look further than the one before it.
            new = repeated.settle()
            if bound is not None and objective is None:
                repeated.prove(rounds if prove else PROVING_ROUNDS if new else 0)
            if peak is not None:
                _measure_small(searches, replace(costs, bound=None), measure, peak, rounds, deadline, check)
    pivots = (PIVOTS if final and measure is not None else SEARCH_PIVOTS) * ENOUGH // max(len(searches), ENOUGH)
    for item in searches:
        _conclude(
            item,
            costs,
            measured=measure is not None,
            peak=peak,
            slowest=slowest,
            pivots=pivots,
            deadline=deadline,
            check=check,
        )


@dataclass(frozen=True)
class _Rounds:
    """Choosing programs and measuring what they consist of, again and again."""

    searches: Sequence[Search]
    costs: Costs
    measure: Measure
    rounds: int
    deadline: float
    check: Check

    def settle(self) -> bool:
        """Until choices by what steps should take want nothing new. Whether anything was measured."""
        expected = replace(self.costs, bound=None)
        found = self._repeat(expected, self.rounds)
        found |= self._repeat(expected, min(self.rounds, EXACT_ROUNDS), exactly=True)
        if self.costs.objective is None:
            found |= self._repeat(replace(expected, conv=CHAINED_CONV), self.rounds)
        return found

    def prove(self, rounds: int) -> None:
        """Until choices by what steps take at least want nothing new."""
        for _ in range(rounds):
            if not self._repeat(self.costs, 1, exactly=True):
                break
            # What is known now may make other choices the best by what they should take.
            self.settle()

    def _repeat(self, costs: Costs, rounds: int, *, exactly: bool = False) -> bool:
        found = False
        for _ in range(rounds):
            wanted: dict[str, Step] = {}
            for item in self.searches:
                wanted |= _wanted(item.problem, costs, exactly=exactly, deadline=self.deadline, check=self.check)
            if not wanted or time.monotonic() > self.deadline:
                break
            self.measure(sorted(wanted.items()))
            found = True
        return found


def _measure_small(
    searches: Sequence[Search],
    costs: Costs,
    measure: Measure,
    peak: int,
    rounds: int,
    deadline: float,
    check: Check,
) -> None:
    """Measure the steps of the cheapest plans that need little memory."""
    for _ in range(rounds):
        wanted: dict[str, Step] = {}
        for item in searches:
            found = fitting(item.problem, costs, max(peak - item.beside, 0), check=check)
            wanted |= {} if found is None else _unmeasured(item.problem, found.choice, costs)
        if not wanted or time.monotonic() > deadline:
            break
        measure(sorted(wanted.items()))


def _wanted(problem: Problem, costs: Costs, *, exactly: bool, deadline: float, check: Check) -> dict[str, Step]:
    """What to measure: the steps of the cheapest plan, if it promises more than the best plan of measured steps."""
    known = choose(problem, replace(costs, certain=True), check=check)
    if exactly:
        starts = [known] if known is not None else []
        choice = choose_exactly(
            problem,
            costs,
            starts=starts,
            gap=SEARCH_GAP,
            pivots=SEARCH_PIVOTS,
            seconds=_seconds(deadline),
            check=check,
        )
    else:
        choice = choose(problem, costs, check=check)
    if choice is None or (known is not None and choice.cost >= known.cost * (1 - GAP)):
        return {}
    return _unmeasured(problem, choice, costs)


def _conclude(
    item: Search,
    costs: Costs,
    *,
    measured: bool,
    peak: int | None,
    slowest: float,
    pivots: int,
    deadline: float,
    check: Check,
) -> None:
    profile = costs.profile
    exact = partial(choose_exactly, item.problem, pivots=pivots, seconds=_seconds(deadline), check=check)
    # What is not measured counts by what it should take, not by what it takes at least, where it may be chosen.
    expected = replace(costs, bound=None)
    decisive = replace(costs, certain=True) if measured else expected
    item.outcome = item.chained = None
    item.failure = ""
    try:
        chosen = exact(decisive)
        if chosen is None and measured:  # for want of time, too: the whole model will be timed all the same
            decisive, chosen = expected, exact(expected)
        if chosen is None:
            item.failure = "no plan of runnable steps was found"
            return
        bound = chosen.bound
        if measured:
            promised = exact(costs, starts=[chosen])
            bound = promised.bound if promised is not None else 0.0
            if promised is not None and not _missing(promised, profile):
                chosen = min(chosen, promised, key=lambda choice: choice.cost)
        if costs.objective is not None:
            faster = cheapest(item.problem, decisive)
            chosen = faster if faster is not None and faster.cost <= chosen.cost * (1 + 1e-12) else chosen
            chosen = timely(item.problem, decisive, chosen, slowest, check=check)
        if peak is not None:
            most, left = inf if peak else slowest, max(peak - item.beside, 0)
            fitted = fitting(item.problem, decisive, left, most=most, check=check)
            chosen = fitted.choice if fitted is not None else chosen
        item.outcome = _outcome(item, chosen, profile, item.prefix, bound)
        if costs.objective is not None or peak is not None:
            return
        # Which of two plans is faster as a whole only measuring them tells.
        if measured and any(is_conv(a) for found in item.problem.alternatives.values() for a in found):
            chained = exact(replace(decisive, conv=CHAINED_CONV), starts=[chosen])
            if chained is not None and [a for _, a in chained.steps] != [a for _, a in chosen.steps]:
                item.chained = _outcome(item, chained, profile, f"{item.prefix}c", 0.0)
    except (EgraphOptError, MemoryError) as error:
        item.failure = str(error) or "out of memory"


def _seconds(deadline: float) -> float:
    """What an exact choice may take: a share of the time that is left, since there are a few of them."""
    return min(SECONDS, max(0.2, (deadline - time.monotonic()) / 4))


def _outcome(item: Search, choice: Choice, profile: Profile, prefix: str, bound: float) -> Outcome:
    plan = build_plan(item.problem, choice, item.program, prefix=prefix)
    return Outcome(plan, choice, _missing(choice, profile), min(bound, choice.cost))


def _missing(choice: Choice, profile: Profile) -> int:
    return sum(needs_measuring(alternative, profile) for _, alternative in choice.steps)


def _unmeasured(problem: Problem, choice: Choice, costs: Costs) -> dict[str, Step]:
    """Steps of the optimum to measure, and beside each the next best way to fill the same buffer."""
    missing = {a.text: a for _, a in choice.steps if needs_measuring(a, costs.profile)}
    for owner, chosen in choice.steps:
        if chosen.text in missing:
            others = [a for a in problem.alternatives[owner] if a is not chosen and costs.possible(a)]
            nearest = min(others, key=lambda a: (a.estimate, a.text), default=None)
            if nearest is not None and needs_measuring(nearest, costs.profile):
                missing[nearest.text] = nearest
    return {text: Step("y", a.step) for text, a in missing.items()}


def kernel_steps(choices: Sequence[Choice]) -> list[tuple[str, Step]]:
    """The kernel steps of some choices with their signatures, each once."""
    found = {a.text: Step("y", a.step) for c in choices for _, a in c.steps if isinstance(a.step, Compute)}
    return sorted(found.items())


def planned_kernels(searches: Sequence[Search]) -> list[tuple[str, Step]]:
    """The kernel steps of all plans that were found, with their signatures."""
    plans = [outcome.plan for item in searches for outcome in (item.outcome, item.chained) if outcome is not None]
    return [(signature(s.buffer), s) for plan in plans for s in plan.steps if isinstance(s.buffer, Compute)]
