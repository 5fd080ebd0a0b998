"""Programs within limits on memory and on time, against all programs there are."""

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from math import inf, prod

import pytest

from egraph_opt.extract.choose import Choice, choose
from egraph_opt.extract.constrained import arranged, fitting, timely
from egraph_opt.extract.cost_models import Traffic
from egraph_opt.extract.costs import Costs
from egraph_opt.extract.priced_extraction import PricedAlternative
from egraph_opt.extract.problem import Alternative, Problem
from egraph_opt.extract.profile import Profile
from egraph_opt.extract.step_info import info_of
from egraph_opt.ir.terms import Call, Source
from tests.extract.and_or import drawn


def problem_of(seed: int, buffers: int = 7) -> Problem:
    """A drawn problem with buffers of drawn sizes."""
    draw = random.Random(seed)
    options, roots = drawn(seed, buffers)
    extents = {owner: (draw.choice([1, 4, 64, 256, 1024]), 16) for owner in options}
    alternatives = {
        owner: [
            Alternative(
                Call(f"Operator{way.text}", "", tuple(Source(f"#{n}", extents[n]) for n in needs), extents[owner]),
                needs,
                way.cost + 0.1,
            )
            for way in ways
            if (needs := tuple(n for n in way.needs if n in options)) is not None
        ]
        for owner, ways in options.items()
    }
    return Problem(alternatives, {f"y{root}": root for root in roots}, {}, {}, extents=extents)


def everything(problem: Problem) -> list[Choice]:
    """All choices, each of the steps it needs, in an order in which nothing is read before it is filled."""
    owners = sorted(problem.alternatives)
    found: dict[tuple[tuple[int, str], ...], Choice] = {}
    for ways in product(*(problem.alternatives[owner] for owner in owners)):
        chosen = dict(zip(owners, ways, strict=True))
        order: list[int] = []
        if all(_visit(root, chosen, order, ()) for root in problem.roots.values()):
            key = tuple(sorted((owner, chosen[owner].text) for owner in order))
            steps = tuple((owner, chosen[owner]) for owner in order)
            found[key] = Choice(steps, sum(a.estimate for _, a in steps))
    return list(found.values())


def _visit(owner: int, chosen: Mapping[int, Alternative], order: list[int], above: tuple[int, ...]) -> bool:
    if owner in above:
        return False
    if owner not in order:
        if not all(_visit(need, chosen, order, (*above, owner)) for need in chosen[owner].needs):
            return False
        order.append(owner)
    return True


def estimate(alternative: Alternative) -> float:
    return alternative.estimate


def test_less_memory_is_needed_than_by_the_cheapest_program() -> None:
    solved = optimal = fewer = 0
    for seed in range(60):
        problem = problem_of(seed)
        cheapest, found = choose(problem, estimate), fitting(problem, estimate, 0)
        assert (cheapest is None) == (found is None)
        if cheapest is None or found is None:
            continue
        peaks = [arranged(problem, choice).peak for choice in everything(problem)]
        plain = arranged(problem, cheapest).peak
        assert min(peaks) <= found.peak <= plain, seed
        solved += 1
        optimal += found.peak == min(peaks)
        fewer += found.peak < plain
    assert solved > 30
    assert fewer > 5
    assert optimal >= 0.85 * solved, (optimal, solved)


def test_the_cheapest_program_within_a_limit_is_close() -> None:
    ratios = []
    for seed in range(60):
        problem = problem_of(seed)
        choices = [(arranged(problem, choice).peak, choice.cost) for choice in everything(problem)]
        for limit in sorted({peak for peak, _ in choices})[:3]:
            best = min(cost for peak, cost in choices if peak <= limit)
            found = fitting(problem, estimate, limit)
            assert found is not None
            if found.peak <= limit:
                assert found.choice.cost >= best - 1e-9
                ratios.append(found.choice.cost / best)
            else:
                ratios.append(inf)
    assert sum(ratio < 1.05 for ratio in ratios) >= 0.75 * len(ratios), sorted(ratios)
    assert sum(ratio < inf for ratio in ratios) >= 0.85 * len(ratios)


def test_a_wide_enough_limit_changes_nothing() -> None:
    problem = problem_of(3)
    cheapest = choose(problem, estimate)
    assert cheapest is not None
    found = fitting(problem, estimate, 1 << 40)
    assert found is not None
    assert found.choice.cost == pytest.approx(cheapest.cost)
    sizes = sum(4 * prod(problem.extents[owner]) for owner, _ in cheapest.steps)
    assert found.peak <= sizes + 256 * len(cheapest.steps)


def test_what_is_not_chosen_by_its_time_takes_little_more_than_the_fastest() -> None:
    """Bytes count, and time is limited; against the best of all programs within the limit."""
    slow = kept = best_found = 0
    for seed in range(60):
        problem = priced_problem(seed)
        costs = Costs(Profile(None, "none"), lambda _: True, objective=Traffic())
        cheapest = choose(problem, costs)
        if cheapest is None:
            continue
        choices = [(_sum(choice, costs.seconds), _sum(choice, costs)) for choice in everything(problem)]
        fastest = min(seconds for seconds, _ in choices)
        found = timely(problem, costs, cheapest, 1.2)
        if _sum(cheapest, costs.seconds) <= 1.2 * fastest:
            assert found is cheapest
            continue
        slow += 1
        kept += _sum(found, costs.seconds) <= 1.2 * fastest * (1 + 1e-9)
        best = min(cost for seconds, cost in choices if seconds <= 1.2 * fastest)
        assert found.cost == pytest.approx(_sum(found, costs))
        best_found += found.cost <= best * (1 + 1e-9)
    assert slow > 10
    assert kept == slow
    assert best_found >= 0.6 * slow, (best_found, slow)


def _sum(choice: Choice, cost: Callable[[Alternative], float]) -> float:
    return sum(cost(alternative) for _, alternative in choice.steps)


def priced_problem(seed: int) -> Problem:
    """A drawn problem whose alternatives have drawn seconds, and bytes by which they are priced."""
    draw = random.Random(seed)
    problem = problem_of(seed, 6)
    for found in problem.alternatives.values():
        for number, alternative in enumerate(found):
            assert isinstance(alternative.step, Call)
            info = replace(info_of(alternative.step), elements_read=draw.choice([0, 10, 1000, 10_000]))
            seconds = draw.choice([1.0, 2.0, 4.0, 8.0])
            found[number] = PricedAlternative(alternative.step, alternative.needs, info.bytes, info, seconds)
    return problem
