"""Choosing, measuring and choosing again on a synthetic device, against trying every plan by its true cost."""

import random
from collections.abc import Sequence
from math import inf

import pytest

from egraph_opt.extract import search as module
from egraph_opt.extract.alternatives import Alternative, Problem
from egraph_opt.extract.costs import Costs
from egraph_opt.extract.graph import Option, graph_of
from egraph_opt.extract.profile import Measurement, Profile
from egraph_opt.extract.roofline import STEP_SECONDS
from egraph_opt.extract.search import Search, search
from egraph_opt.ir.program import Program, Step
from egraph_opt.ir.terms import Call, Source
from tests.extract.and_or import cheapest, drawn, siblings

SECONDS = 1e-5
ROUNDS = 200


class Device:
    """Takes for every step its estimate, at least, and up to three times that."""

    def __init__(self, options: dict[int, list[Option]], roots: list[int], seed: int) -> None:
        draw = random.Random(seed)
        self.truth: dict[str, float] = {}
        alternatives: dict[int, list[Alternative]] = {}
        for owner, ways in options.items():
            alternatives[owner] = []
            for way in ways:
                needs = tuple(n for n in way.needs if n in options)
                call = Call(f"Operator{way.text}", "", tuple(Source(f"#{n}", (1,)) for n in needs), (1,))
                alternative = Alternative(call, needs, (way.cost + 0.1) * SECONDS)
                self.truth[alternative.text] = alternative.estimate * draw.uniform(1, 3)
                alternatives[owner].append(alternative)
        self.problem = Problem(alternatives, {f"y{root}": root for root in roots}, {}, {})
        self.profile = Profile(None, "synthetic")

    def measure(self, steps: Sequence[tuple[str, Step]]) -> None:
        self.profile.add(Measurement(text, "library", (self.truth[text] * 1e3,)) for text, _ in steps)

    def best(self) -> float:
        """Seconds of the cheapest plan by true costs."""
        options = {
            owner: [Option(self.truth[a.text] + STEP_SECONDS, a.needs, a.text) for a in found]
            for owner, found in self.problem.alternatives.items()
        }
        graph = graph_of(options, sorted(self.problem.roots.values()))
        return inf if graph is None else cheapest(graph) * graph.unit

    def run(self, rounds: int = ROUNDS) -> Search:
        item = Search(self.problem, Program((), (), ()), "s")
        search([item], self.profile, self.measure, rounds=rounds, deadline=inf)
        return item


def test_the_plan_is_the_cheapest_when_all_of_the_optimum_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Estimates are lower bounds here, so an optimum that is all measured is the optimum of everything."""
    monkeypatch.setattr(module, "GAP", 0.0)
    monkeypatch.setattr(module, "SEARCH_GAP", 0.0)
    monkeypatch.setattr(module, "EXACT_ROUNDS", ROUNDS)
    measured = total = solved = 0
    for seed in range(60):
        device = Device(*drawn(seed, 9), seed)
        best, outcome = device.best(), device.run().outcome
        assert (outcome is None) == (best == inf), seed
        if outcome is None:
            continue
        assert outcome.unmeasured == 0
        assert outcome.choice.cost == pytest.approx(best), seed
        assert outcome.gap == pytest.approx(0, abs=1e-6), seed
        solved += 1
        measured += len(device.profile.measured)
        total += len(device.truth)
    assert solved > 30
    assert measured < 0.8 * total


def test_siblings_are_joined_when_that_is_measured_to_be_faster() -> None:
    device = Device(*siblings(8), 0)
    device.truth = {a.text: a.estimate for found in device.problem.alternatives.values() for a in found}
    outcome = device.run().outcome
    assert outcome is not None
    assert "Operatorjoint[]()->1" in {a.text for _, a in outcome.choice.steps}
    assert outcome.gap == 0


def test_bounds_hold_when_not_all_could_be_measured() -> None:
    """With few rounds the plan is of measured steps, and what is unmeasured may still be better: the gap says so."""
    open_gaps = 0
    for seed in range(40):
        device = Device(*drawn(seed, 9), seed)
        best, outcome = device.best(), device.run(rounds=1).outcome
        if outcome is None:
            continue
        assert outcome.bound <= best * (1 + 1e-6), seed
        known = Costs(device.profile, lambda _: True, certain=True)
        if outcome.unmeasured == 0:
            assert outcome.choice.cost == pytest.approx(sum(known(a) for _, a in outcome.choice.steps))
            assert outcome.choice.cost >= best * (1 - 1e-6), seed
        open_gaps += outcome.gap > 1e-6
    assert open_gaps > 0


def test_without_measurements_the_estimates_decide() -> None:
    device = Device(*siblings(8), 0)
    item = Search(device.problem, Program((), (), ()), "s")
    search([item], device.profile, None, rounds=5, deadline=inf)
    assert item.outcome is not None
    assert item.outcome.unmeasured == len(item.outcome.choice.steps)
    assert item.outcome.gap == 0
    assert item.chained is None
