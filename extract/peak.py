"""Programs whose intermediate buffers need little memory at once.

The peak is no sum over steps, so it is brought down by prices: the buffers that are alive at the worst moment of the
cheapest program become dearer, and the next cheapest program is looked for, until it fits (a subgradient method on the
Lagrangian of the memory limit: Held, Wolfe and Crowder, "Validation of subgradient optimization", 1974). Nothing is
proven about what is found.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import numpy as np

from egraph_opt.extract.choose import Choice, Cost, choose
from egraph_opt.extract.problem import Alternative, Problem
from egraph_opt.extract.roofline import FLOAT_BYTES
from egraph_opt.ir.memory import Fill, lifetimes, live_bytes, ordered, plan_buffers
from egraph_opt.ir.terms import Reshape
from egraph_opt.limits import Check, unlimited

# Programs looked at, and fewer for problems of more alternatives than these.
ROUNDS, ALTERNATIVES = 32, 20_000
FEWEST_ROUNDS = 6


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


def fitting(problem: Problem, cost: Cost, limit: int, *, check: Check = unlimited) -> Fitted | None:
    """The cheapest choice found that needs at most ``limit`` bytes at once, or else the one that needs least.

    None where some output cannot be computed. ``check`` is called again and again and may raise to end it.
    """
    owners = {id(a): owner for owner, found in problem.alternatives.items() for a in found}
    sizes = {owner: FLOAT_BYTES * prod(problem.extents[owner]) for owner in problem.alternatives}
    price = dict.fromkeys(sizes, 0.0)

    def priced(alternative: Alternative) -> float:
        if isinstance(alternative.step, Reshape):
            return cost(alternative)
        owner = owners[id(alternative)]
        return cost(alternative) + price[owner] * sizes[owner]

    best: Fitted | None = None
    rounds = max(FEWEST_ROUNDS, min(ROUNDS, ROUNDS * ALTERNATIVES // max(len(owners), 1)))
    unit = 0.0
    for _ in range(rounds):
        found = choose(problem, priced, check=check)
        if found is None:
            return best
        fitted = arranged(problem, replace(found, cost=sum(cost(a) for _, a in found.steps)))
        if best is None or fitted.peak < best.peak:
            best = fitted
        if fitted.peak <= limit:
            return fitted
        unit = unit or max(found.cost, 1e-12) / max(sum(sizes[owner] for owner, _ in found.steps), 1) / len(sizes)
        for owner in _alive_at_peak(problem, fitted.choice):
            price[owner] = max(unit, 2 * price[owner])
    return best


def _alive_at_peak(problem: Problem, choice: Choice) -> list[int]:
    """The buffers that are alive when most memory is."""
    fills = fills_of(problem, choice)
    found = lifetimes(fills, {str(owner) for owner in problem.roots.values()})
    worst = int(np.argmax(live_bytes(found, len(fills))))
    return [int(item.buffer) for item in found if item.first <= worst <= item.last]
