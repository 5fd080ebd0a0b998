"""Choosing one alternative per needed buffer so that the whole costs least, shared buffers paid once.

The exact optimum of such a DAG choice is NP-hard; this starts from the best tree choice and improves it by exchanging
one alternative at a time until no exchange helps. Ties go by the text of the step, so results do not depend on luck.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from egraph_opt.extract.alternatives import Alternative, Problem

Cost = Callable[[Alternative], float]
# Exchanges tried per buffer in one pass, and passes.
EXCHANGES, PASSES = 12, 6


@dataclass(frozen=True)
class Choice:
    """The chosen alternative of every needed buffer in execution order, and the sum of their costs in seconds."""

    steps: tuple[tuple[int, Alternative], ...]
    cost: float


def choose(problem: Problem, cost: Cost) -> Choice | None:
    """The cheapest choice found, or None when some output cannot be computed."""
    values = {
        owner: [(cost(alternative), alternative) for alternative in found]
        for owner, found in problem.alternatives.items()
    }
    best = _trees(problem, values)
    roots = sorted(problem.roots.values())
    if any(root not in best and root in problem.alternatives for root in roots):
        return None
    picked = {owner: values[owner][index] for owner, (_, index) in best.items()}
    order = _order(problem, roots, picked)
    assert order is not None  # tree costs are positive, so the best trees have no cycle
    total = sum(picked[owner][0] for owner in order)
    for _ in range(PASSES):
        improved = False
        for owner in reversed(order):
            ranked = sorted(
                values[owner],
                key=lambda item: (item[0] + sum(best[n][0] for n in item[1].needs if n in best), item[1].text),
            )
            for option in ranked[:EXCHANGES]:
                if option is picked[owner] or any(n in problem.alternatives and n not in best for n in option[1].needs):
                    continue
                trial = {**picked, owner: option}
                trial_order = _order(problem, roots, trial)
                if trial_order is None:
                    continue
                trial_total = sum(trial[o][0] for o in trial_order)
                if trial_total < total * (1 - 1e-9):
                    picked, order, total, improved = trial, trial_order, trial_total, True
                    break
            if improved:
                break
        if not improved:
            break
    return Choice(tuple((owner, picked[owner][1]) for owner in order), total) if total < inf else None


def _trees(problem: Problem, values: Mapping[int, Sequence[tuple[float, Alternative]]]) -> dict[int, tuple[float, int]]:
    """Cheapest tree cost of every buffer and the alternative that gives it."""
    best: dict[int, tuple[float, int]] = {}
    users: dict[int, set[int]] = {}
    for owner, found in values.items():
        for _, alternative in found:
            for need in alternative.needs:
                users.setdefault(need, set()).add(owner)
    pending = dict.fromkeys(sorted(values))
    while pending:
        owner = next(iter(pending))
        del pending[owner]
        for index, (own, alternative) in enumerate(values[owner]):
            total = own + sum(
                (best[need][0] if need in best else inf) for need in alternative.needs if need in problem.alternatives
            )
            if total < best.get(owner, (inf, 0))[0] * (1 - 1e-9):
                best[owner] = (total, index)
                pending.update(dict.fromkeys(sorted(users.get(owner, ()))))
    return best


def _order(problem: Problem, roots: Sequence[int], picked: Mapping[int, tuple[float, Alternative]]) -> list[int] | None:
    """Needed buffers in execution order; None when the choice is cyclic or incomplete."""
    order: list[int] = []
    state: dict[int, int] = {}
    stack = [(root, False) for root in reversed(roots)]
    while stack:
        owner, done = stack.pop()
        if owner not in problem.alternatives:
            continue
        if done:
            state[owner] = 2
            order.append(owner)
            continue
        if state.get(owner) == 2:
            continue
        if state.get(owner) == 1:
            return None
        if owner not in picked:
            return None
        state[owner] = 1
        stack.append((owner, True))
        for need in reversed(picked[owner][1].needs):
            if state.get(need) == 1:
                return None
            if state.get(need) != 2:
                stack.append((need, False))
    return order
