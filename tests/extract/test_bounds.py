"""Lower bounds of steps from what a machine was measured to do at its best."""

from math import inf

import pytest

from egraph_opt.extract import search as module
from egraph_opt.extract.bounds import Bounds, ceilings, probes
from egraph_opt.extract.problem import Alternative, signature
from egraph_opt.extract.profile import Measurement, Profile
from egraph_opt.extract.roofline import Device
from egraph_opt.extract.search import Search, search
from egraph_opt.ir.program import Program
from egraph_opt.ir.terms import Call, Compute, Read, Reshape, Source, add
from tests.extract.and_or import drawn
from tests.extract.test_search import Device as Machine

# A machine by its formula: flops, bytes a second in and outside of 1 MiB, seconds of a call and of a kernel.
FLOPS, NEAR, FAR, CALL, KERNEL = 1e12, 5e11, 1e11, 1e-6, 1e-7


def product(m: int, n: int, k: int) -> Call:
    return Call("MatMul", "", (Source("a", (m, k)), Source("b", (k, n))), (m, n))


def summed(*extents: int) -> Compute:
    return Compute(add(Read(Source("a", extents)), Read(Source("b", extents))))


def seconds(step: Call | Compute) -> float:
    """What the machine takes that the formula describes."""
    if isinstance(step, Compute):
        size = 12.0
        for extent in step.extents:
            size *= extent
        return KERNEL + size / (NEAR if size < 1 << 20 else FAR)
    (m, k), (_, n) = (argument.extents for argument in step.arguments)
    return CALL + 2 * m * n * k / FLOPS


def profile(without: str = "") -> Profile:
    found = Profile(None, "described")
    for text, step in probes():
        if text == without:
            continue
        assert isinstance(step.buffer, Call | Compute)
        taken = seconds(step.buffer) * 1e3
        found.add([Measurement(text, "library", (1.5 * taken, taken, 2 * taken))])
    return found


def best() -> Device:
    found = ceilings(profile())
    assert found is not None
    return found


def alternative(step: Call | Compute | Reshape, estimate: float = 1.0) -> Alternative:
    return Alternative(step, (), estimate)


@pytest.mark.parametrize(
    "step",
    [
        product(1, 1, 1),
        product(8, 300, 64),
        product(2000, 2000, 500),
        summed(1),
        summed(40, 50),
        summed(1 << 17),
        summed(1 << 24),
    ],
    ids=str,
)
def test_bounds_are_below_the_machine_and_near_it(step: Call | Compute) -> None:
    bound = Bounds(best())(alternative(step))
    assert bound < seconds(step)
    assert bound >= (seconds(step) - 2e-6) / 8  # starting it may take nothing


def test_there_are_none_without_all_probes() -> None:
    for text, _ in probes():
        assert ceilings(profile(without=text)) is None, text


def test_a_step_that_is_faster_lowers_all() -> None:
    bounds, fast, other, tiny = Bounds(best()), product(512, 512, 512), summed(1 << 20), summed(1 << 15)
    before = bounds(alternative(fast)), bounds(alternative(other))
    found = profile()
    text = signature(fast)
    bounds.heed([(text, fast)], found)  # nothing is known of it
    found.add([Measurement(text, "library", (before[0] * 1e3 / 2,))])
    found.add([Measurement(signature(tiny), "kernel", (1e-5,))])  # nothing, as far as a timer can tell
    bounds.heed([(signature(tiny), tiny), (text, fast), ("reshape", Reshape(Source("a", (4,)), (2, 2)))], found)
    assert bounds(alternative(fast)) == pytest.approx(before[0] / 2)
    assert bounds(alternative(other)) == pytest.approx(before[1] / 2)


def test_reshapes_cost_what_they_cost() -> None:
    assert Bounds(best())(alternative(Reshape(Source("a", (4,)), (2, 2)), 0.25)) == 0.25


def test_estimates_that_promise_too_little_do_not_end_a_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """By estimates alone the search ends at plans that are not the cheapest; lower bounds find these."""
    monkeypatch.setattr(module, "GAP", 0.0)
    monkeypatch.setattr(module, "SEARCH_GAP", 0.0)
    rounds, missed = 200, 0
    for seed in range(40):
        ends = []
        for prove in (False, True):
            machine = Machine(*drawn(seed, 9), seed)
            # Every other step takes a third of what was expected.
            for text in sorted(machine.truth)[::2]:
                machine.truth[text] /= 6
            item = Search(machine.problem, Program((), (), ()), "s")
            search(
                [item],
                machine.profile,
                machine.measure,
                bound=(lambda a, truth=machine.truth: 0.9 * truth[a.text]) if prove else None,
                rounds=rounds,
                prove=prove,
                deadline=inf,
            )
            outcome = item.outcome
            if outcome is None:
                assert machine.best() == inf
                break
            assert outcome.unmeasured == 0
            ends.append(outcome.choice.cost)
        if len(ends) == 2:
            assert ends[1] == pytest.approx(machine.best()), seed
            assert outcome is not None
            assert outcome.bound <= machine.best() * (1 + 1e-6), seed
            missed += ends[0] > ends[1] * (1 + 1e-6)
    assert missed > 3
