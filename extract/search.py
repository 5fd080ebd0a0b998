"""Choose, measure what was chosen, choose again: until the cheapest plan is all measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf

from egraph_opt.errors import EgraphOptError
from egraph_opt.extract.alternatives import Alternative, Problem
from egraph_opt.extract.choose import Choice, choose
from egraph_opt.extract.plans import build_plan
from egraph_opt.extract.profile import Profile
from egraph_opt.ir.program import Plan, Program, Step
from egraph_opt.ir.terms import Call, Compute, Reshape

# The search ends when nothing unmeasured can promise more than this share of the best measured plan.
GAP = 0.03
# onnxruntime keeps a blocked layout between neighbouring Convs, so a chain of them takes less time than the sum of its
# Convs measured alone. With this factor on every Conv there is a second plan that stays with chains of Convs.
CHAINED_CONV = 0.8
# What every step costs in a model beyond its time alone: InfoGAN at batch 1 takes 145 us as the sum of its steps and
# 188 us as a whole; charged with this, plans of fewer steps are chosen and it takes 150 us.
STEP_SECONDS = 2e-6

Measure = Callable[[Sequence[tuple[str, Step]]], None]


@dataclass
class Costs:
    """Seconds of an alternative: measured if it was, else its estimate; what failed or cannot be run costs infinity.

    With ``certain`` only what was measured counts. ``conv`` is the share of its cost that a Conv is charged. Every step
    is charged STEP_SECONDS on top.
    """

    profile: Profile
    possible: Callable[[Alternative], bool]
    certain: bool = False
    conv: float = 1.0

    def __call__(self, alternative: Alternative) -> float:
        step = alternative.step
        if isinstance(step, Reshape):
            return alternative.estimate
        if not self.possible(alternative):
            return inf
        found = self.profile.best(alternative.text)
        seconds = found.seconds if found is not None else inf if self.certain else alternative.estimate
        return STEP_SECONDS + (seconds * self.conv if isinstance(step, Call) and step.operator == "Conv" else seconds)


@dataclass(frozen=True)
class Outcome:
    """A chosen plan of one region and how sure it is: ``unmeasured`` steps of it were never measured."""

    plan: Plan
    choice: Choice
    unmeasured: int


@dataclass
class Search:
    """One region's problem and the plans found for it.

    ``outcome`` is the cheapest plan, ``chained`` the one that prefers chains of Convs where that is another one;
    ``failure`` says why there is none. Step names begin with ``prefix``.
    """

    problem: Problem
    program: Program
    prefix: str
    outcome: Outcome | None = field(default=None)
    chained: Outcome | None = field(default=None)
    failure: str = ""


def search(
    searches: Sequence[Search],
    profile: Profile,
    measure: Measure | None,
    *,
    possible: Callable[[Alternative], bool] = lambda _: True,
    rounds: int,
    deadline: float,
) -> None:
    """Fill in the outcomes of every search, or why it has none.

    ``measure`` times steps given as (signature, step) and puts them into the profile; without it the choice rests on
    what the profile holds and on estimates. When ``rounds`` are used up or ``deadline`` (monotonic seconds) has passed,
    the best plan of measured steps counts, or the best expected one where no plan is measured as a whole. ``possible``
    tells whether an alternative can be run at all.
    """
    for conv in (1.0, CHAINED_CONV):
        for _ in range(rounds if measure is not None else 0):
            wanted: dict[str, Step] = {}
            for item in searches:
                choice = choose(item.problem, Costs(profile, possible, conv=conv))
                known = choose(item.problem, Costs(profile, possible, certain=True, conv=conv))
                if choice is not None and (known is None or choice.cost < known.cost * (1 - GAP)):
                    wanted.update(_unmeasured(item.problem, choice, profile, possible))
            if not wanted or time.monotonic() > deadline or measure is None:
                break
            measure(sorted(wanted.items()))
    for item in searches:
        _conclude(item, profile, possible, certain=measure is not None)


def _conclude(item: Search, profile: Profile, possible: Callable[[Alternative], bool], *, certain: bool) -> None:
    item.outcome = item.chained = None
    item.failure = ""
    try:
        item.outcome = _outcome(item, Costs(profile, possible, certain), item.prefix, None)
        if item.outcome is None and certain:  # for want of time: the whole model will be timed all the same
            certain = False
            item.outcome = _outcome(item, Costs(profile, possible), item.prefix, None)
        if item.outcome is None:
            item.failure = "no plan of runnable steps was found"
        else:
            costs = Costs(profile, possible, certain, CHAINED_CONV)
            item.chained = _outcome(item, costs, f"{item.prefix}c", item.outcome.choice)
    except (EgraphOptError, MemoryError) as error:
        item.failure = str(error) or "out of memory"


def _outcome(item: Search, costs: Costs, prefix: str, other: Choice | None) -> Outcome | None:
    """The plan of the cheapest choice; None where there is none, and where it is the ``other`` choice."""
    choice = choose(item.problem, costs)
    if choice is None or (other is not None and [a for _, a in choice.steps] == [a for _, a in other.steps]):
        return None
    missing = sum(_needs_measuring(alternative, costs.profile) for _, alternative in choice.steps)
    return Outcome(build_plan(item.problem, choice, item.program, prefix=prefix), choice, missing)


def _unmeasured(
    problem: Problem, choice: Choice, profile: Profile, possible: Callable[[Alternative], bool]
) -> dict[str, Step]:
    """Steps of the optimum to measure, and beside each the next best way to fill the same buffer."""
    missing = {a.text: a for _, a in choice.steps if _needs_measuring(a, profile)}
    for owner, chosen in choice.steps:
        if chosen.text in missing:
            others = [a for a in problem.alternatives[owner] if a is not chosen and possible(a)]
            nearest = min(others, key=lambda a: (a.estimate, a.text), default=None)
            if nearest is not None and _needs_measuring(nearest, profile):
                missing[nearest.text] = nearest
    return {text: Step("y", a.step) for text, a in missing.items()}


def kernel_steps(choices: Sequence[Choice]) -> list[tuple[str, Step]]:
    """The kernel steps of some choices with their signatures, each once."""
    found = {a.text: Step("y", a.step) for c in choices for _, a in c.steps if isinstance(a.step, Compute)}
    return sorted(found.items())


def _needs_measuring(alternative: Alternative, profile: Profile) -> bool:
    return not isinstance(alternative.step, Reshape) and profile.best(alternative.text) is None
