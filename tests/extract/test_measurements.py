"""How many measurements the search needs on models, with a synthetic device; and that it ends at a proven plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from math import inf

import pytest

from bench.models import get
from egraph_opt.egraph.saturate import Budget
from egraph_opt.extract.alternatives import Alternative, Extraction
from egraph_opt.extract.choose import choose_exactly
from egraph_opt.extract.costs import STEP_SECONDS
from egraph_opt.extract.profile import Measurement, Profile
from egraph_opt.extract.roofline import Device
from egraph_opt.extract.search import GAP, Search, search
from egraph_opt.frontends.onnx_reader import load
from egraph_opt.frontends.regions import partition
from egraph_opt.ir.program import Step
from egraph_opt.ir.terms import Reshape
from egraph_opt.ir.windows import windows
from egraph_opt.saturation import Saturator

# The share of the alternatives that may be measured.
SHARE = 0.2
# Of larger regions one part of so many definitions is taken, with less around it than usual: all of GCN's backbone
# takes half a minute, and 9.5 % of its alternatives are measured.
PART, REACH = 25, 3


def searches(name: str) -> list[Search]:
    found = []
    with Saturator() as saturator:
        for region in partition(load(get(name))).regions:
            if region.worthwhile:
                program = windows(region.program, PART, REACH)[0]
                snapshot = saturator.saturate(program, Budget()).snapshot
                problem = Extraction(snapshot, Device()).problem(program.outputs)
                found.append(Search(problem, program, f"r{region.index}s"))
    return found


def truth(alternative: Alternative) -> float:
    """Seconds on a device that keeps what the estimates promise, or takes up to three times as long."""
    if isinstance(alternative.step, Reshape):
        return alternative.estimate
    drawn = int.from_bytes(blake2b(alternative.text.encode(), digest_size=4).digest(), "big") / 2**32
    return STEP_SECONDS + alternative.estimate * (1 + 2 * drawn)


class Counter:
    """The synthetic device; every step is measured at most once."""

    def __init__(self, items: Sequence[Search]) -> None:
        offered = [a for item in items for found in item.problem.alternatives.values() for a in found]
        self.alternatives = len(offered)
        self.known: Mapping[str, Alternative] = {a.text: a for a in offered}
        self.profile = Profile(None, "synthetic")

    def measure(self, steps: Sequence[tuple[str, Step]]) -> None:
        assert not any(text in self.profile.measured for text, _ in steps)
        seconds = {text: truth(self.known[text]) - STEP_SECONDS for text, _ in steps}
        self.profile.add(Measurement(text, "library", (value * 1e3,)) for text, value in seconds.items())


@pytest.mark.parametrize("name", ["infogan-b1", "resnet18-b1", "gcn"])
def test_few_of_the_alternatives_are_measured(name: str) -> None:
    """Whether lower bounds are as high as what the device keeps, or half of that."""
    items = searches(name)
    for share in (1.0, 0.5):
        measured_few(items, lambda a, share=share: share * a.estimate)


def measured_few(items: Sequence[Search], bound: Callable[[Alternative], float]) -> None:
    device = Counter(items)
    search(items, device.profile, device.measure, bound=bound, rounds=40, deadline=inf)
    assert 0 < len(device.profile.measured) < SHARE * device.alternatives
    for item in items:
        outcome = item.outcome
        assert outcome is not None
        assert outcome.unmeasured == 0
        assert outcome.choice.cost == pytest.approx(sum(truth(a) for _, a in outcome.choice.steps))
        best = choose_exactly(item.problem, truth, gap=GAP, pivots=1_000)
        assert best is not None
        # All true costs known, the cheapest plan costs no less than was claimed without most of them.
        assert outcome.bound <= best.cost * (1 + 1e-6)
        # What the search ends at is worse than that by no more than what it says is left open.
        assert outcome.choice.cost * (1 - outcome.gap) <= best.cost * (1 + 1e-6)
