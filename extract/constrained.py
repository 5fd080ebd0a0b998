"""Choosing within limits: on the memory that buffers need at once, and on time where something else counts.

Both are kept by prices (Lagrange multipliers). Time is a sum over steps, so one price is looked for, by doubling and
halving. The peak of memory is none: the buffers that are alive at the worst moment of the cheapest program become
dearer, and the next cheapest program is looked for, until it fits (a subgradient method: Held, Wolfe and Crowder,
"Validation of subgradient optimization", Mathematical Programming 6, 1974). Nothing is proven about what is found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import inf, prod, sqrt

import numpy as np

from egraph_opt.extract.choose import Choice, Cost, choose
from egraph_opt.extract.costs import Costs
from egraph_opt.extract.priced_extraction import PricedAlternative
from egraph_opt.extract.problem import Alternative, Problem
from egraph_opt.extract.roofline import FLOAT_BYTES
from egraph_opt.ir.memory import Fill, lifetimes, live_bytes, ordered, plan_buffers
from egraph_opt.ir.terms import Reshape
from egraph_opt.limits import Check, unlimited

# Programs looked at in each of two ways, and fewer for problems of more alternatives than these.
ROUNDS, ALTERNATIVES = 32, 20_000
FEWEST_ROUNDS = 6
# Prices rise by a factor of two a round, and by less where that was too fast, but by no less than this.
LEAST_GROWTH = 1.05
# Prices of a second that are tried, and the least of them as a share of what all costs.
PRICES, LEAST_PRICE = 16, 1e-3


@dataclass(frozen=True)
class Fitted:
    """A choice, its steps in the order that needs least memory of those tried, and the bytes of its arena."""

    choice: Choice
    peak: int


def fills_of(problem: Problem, choice: Choice) -> list[Fill]:
    """The steps of a choice as far as memory goes; buffers are named by their class."""
    found = []
    for owner, alternative in choice.steps:
        reads = tuple(str(need) for need in alternative.needs)
        alias = reads[0] if isinstance(alternative.step, Reshape) else ""
        found.append(Fill(str(owner), FLOAT_BYTES * prod(problem.extents[owner]), reads, alias))
    return found


def arranged(problem: Problem, choice: Choice) -> Fitted:
    """The choice with its steps in an order that needs less memory, where one is found."""
    fills = fills_of(problem, choice)
    kept = {str(owner) for owner in problem.roots.values()}
    order = ordered(fills, kept)
    plan = plan_buffers(lifetimes([fills[i] for i in order], kept))
    return Fitted(replace(choice, steps=tuple(choice.steps[i] for i in order)), plan.peak)


def with_others(problem: Problem, other: Problem, estimate: Callable[[PricedAlternative], float]) -> Problem:
    """A problem with the alternatives of another one of the same e-graph as well, which was extracted for other ends;
    ``estimate`` says what they cost here."""
    alternatives = {owner: list(found) for owner, found in problem.alternatives.items()}
    for owner, found in other.alternatives.items():
        known = {a.text for a in alternatives.setdefault(owner, [])}
        alternatives[owner] += [
            replace(a, estimate=estimate(a)) for a in found if isinstance(a, PricedAlternative) and a.text not in known
        ]
    given, folded = problem.given | other.given, other.folded | problem.folded
    return replace(problem, alternatives=alternatives, given=given, folded=folded)


def timely(problem: Problem, costs: Costs, choice: Choice, slowest: float, *, check: Check = unlimited) -> Choice:
    """The choice if it takes at most ``slowest`` times as long as the fastest one, or else a cheap one that does."""
    fastest = choose(problem, costs.seconds, check=check)
    if fastest is None or _seconds(choice, costs) <= slowest * fastest.cost:
        return choice
    best = replace(fastest, cost=sum(costs(a) for _, a in fastest.steps))
    least = LEAST_PRICE * (choice.cost or best.cost or 1.0) / (fastest.cost or 1.0)
    too_little, price, enough = 0.0, least, inf
    for _ in range(PRICES):
        found = choose(problem, partial(_dearer, costs, price), check=check)
        if found is not None and _seconds(found, costs) <= slowest * fastest.cost:
            enough = price
            cost = sum(costs(a) for _, a in found.steps)
            best = replace(found, cost=cost) if cost < best.cost else best
        else:
            too_little = price
        price = 4 * too_little if enough == inf else (too_little + enough) / 2
    return best


def _dearer(costs: Costs, price: float, alternative: Alternative) -> float:
    """The cost of an alternative, and that of its time at a price."""
    return costs(alternative) + price * costs.seconds(alternative)


def _seconds(choice: Choice, costs: Costs) -> float:
    return sum(costs.seconds(alternative) for _, alternative in choice.steps)


def fitting(problem: Problem, cost: Cost, limit: int, *, most: float = inf, check: Check = unlimited) -> Fitted | None:
    """The cheapest choice found that needs at most ``limit`` bytes at once, or else the one that needs least.

    That one costs at most ``most`` times what the cheapest of all costs. None where some output cannot be computed.
    ``check`` is called again and again and may raise to end it.
    """
    owners = {id(a): owner for owner, found in problem.alternatives.items() for a in found}
    sizes = {owner: FLOAT_BYTES * prod(problem.extents[owner]) for owner in problem.alternatives}
    price: dict[int, float] = {}

    def priced(alternative: Alternative) -> float:
        if isinstance(alternative.step, Reshape):
            return cost(alternative)
        owner = owners[id(alternative)]
        return cost(alternative) + price[owner] * sizes[owner]

    best: Fitted | None = None
    cheapest = inf
    rounds = max(FEWEST_ROUNDS, min(ROUNDS, ROUNDS * ALTERNATIVES // max(len(owners), 1)))
    # Where there are many layouts of one tensor, each would have to become dear in turn: then all large buffers do.
    for together in (False, True):
        price = dict.fromkeys(sizes, 0.0)
        last: tuple[dict[int, float], list[int]] | None = None
        growth = 2.0
        for _ in range(rounds):
            found = choose(problem, priced, check=check)
            if found is None:
                return best
            fitted = arranged(problem, replace(found, cost=sum(cost(a) for _, a in found.steps)))
            cheapest = min(cheapest, fitted.choice.cost)
            within, affordable = fitted.peak <= limit, most == inf or fitted.choice.cost <= most * cheapest
            if affordable and (best is None or _key(fitted, limit) < _key(best, limit)):
                best = fitted
            if within or not affordable:  # prices rose too fast: again from the last ones, in smaller steps
                growth = sqrt(growth)
            else:
                alive = _alive_at_peak(problem, fitted.choice)
                if together:
                    largest = max(sizes[owner] for owner in alive)
                    alive = [owner for owner in sizes if sizes[owner] >= largest]
                last = price, alive
            if last is None or growth < LEAST_GROWTH:
                break
            least = max(found.cost, 1e-12) / max(sum(sizes[owner] for owner, _ in found.steps), 1) / len(sizes)
            base, dearer = last
            price = base | {owner: max(least, growth * base[owner]) for owner in dearer}
        if best is not None and best.peak <= limit:
            return best
    return best


def _key(fitted: Fitted, limit: int) -> tuple[bool, float, float]:
    """What makes one program better than another: it is within the limit, then cheaper; else smaller."""
    within = fitted.peak <= limit
    return (not within, fitted.choice.cost if within else fitted.peak, fitted.choice.cost)


def _alive_at_peak(problem: Problem, choice: Choice) -> list[int]:
    """The buffers that are alive when most memory is."""
    fills = fills_of(problem, choice)
    found = lifetimes(fills, {str(owner) for owner in problem.roots.values()})
    worst = int(np.argmax(live_bytes(found, len(fills))))
    return [int(item.buffer) for item in found if item.first <= worst <= item.last]
