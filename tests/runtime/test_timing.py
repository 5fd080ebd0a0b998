"""The timers on a fake clock, so that their arithmetic is exact."""

import pytest

from egraph_opt.runtime.timing import Comparison, Spread, sample_turns, significant


def compared(a, b, **options) -> Comparison:
    return Comparison.of(*sample_turns((a, b), **options))


class FakeClock:
    """Time passes only where a program says so; the machine gets slower with time, as shared ones do."""

    def __init__(self, drift: float = 0.0) -> None:
        self.now = 0.0
        self.drift = drift
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def program(self, name: str, seconds: float):
        def run() -> None:
            self.calls.append(name)
            self.now += seconds * (1 + self.drift * self.now)

        return run


def test_ratio_and_latencies() -> None:
    clock = FakeClock()
    result = compared(clock.program("a", 0.004), clock.program("b", 0.002), rounds=5, clock=clock)
    assert result.a.median == pytest.approx(4.0)
    assert result.b.median == pytest.approx(2.0)
    assert result.ratio.median == pytest.approx(2.0)
    assert result.rounds == 5


def test_turns_alternate_and_last_long_enough() -> None:
    clock = FakeClock()
    compared(clock.program("a", 0.004), clock.program("b", 0.002), rounds=2, warm_seconds=0, clock=clock)
    text = "".join(clock.calls)
    # Warm-up twice each, then turns A B, B A of one untimed call and as many as fill 20 ms.
    assert text == "aabb" + "a" * 7 + "b" * 12 + "b" * 12 + "a" * 7


def test_whose_turn_it_is_is_told() -> None:
    clock = FakeClock()
    told: list[int] = []
    programs = [clock.program(name, 1.0) for name in "abc"]
    sample_turns(programs, rounds=3, warm_seconds=0, clock=clock, announce=told.append)
    assert told == [0, 1, 2, 0, 1, 2, 2, 1, 0, 0, 1, 2]


def test_slow_programs_run_once_a_turn() -> None:
    clock = FakeClock()
    compared(clock.program("a", 1.0), clock.program("b", 2.0), rounds=1, clock=clock)
    assert "".join(clock.calls) == "aabbab"


def test_enough_time_ends_early_but_not_before_three_rounds() -> None:
    clock = FakeClock()
    result = compared(clock.program("a", 1.0), clock.program("b", 1.0), enough_seconds=1, clock=clock)
    assert result.rounds == 3


def test_drift_cancels_in_the_ratio() -> None:
    clock = FakeClock(drift=0.5)
    result = compared(clock.program("a", 0.01), clock.program("b", 0.01), rounds=8, clock=clock)
    assert result.ratio.median == pytest.approx(1.0, abs=0.02)


def test_one_program_and_bad_rounds() -> None:
    clock = FakeClock()
    samples = sample_turns([clock.program("a", 0.003)], rounds=3, clock=clock)
    assert Spread.of(samples[0]) == Spread(*[pytest.approx(3.0)] * 3)
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        compared(int, int, rounds=0)


def test_real_clock() -> None:
    result = compared(lambda: sum(range(1000)), lambda: sum(range(10_000)), rounds=3, turn_seconds=0.005)
    assert 0.02 < result.ratio.median < 0.5


def test_spread() -> None:
    assert [Spread(1.0, 1.0, upper).unsteady for upper in (1.0, 1.2, 1.3)] == [False, False, True]
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.5, 2.5)
    assert Spread.of([4.0]) == Spread(4.0, 4.0, 4.0)
    assert str(Spread(4.766, 4.7, 4.9)) == "4.77 (4.70–4.90)"
    with pytest.raises(ValueError, match="at least one sample"):
        Spread.of([])


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (4.766, "4.77"), (0.01234, "0.0123"), (1234.5, "1234"), (12.34, "12.3"), (3e-9, "3.00e-09")],
)
def test_significant(value: float, text: str) -> None:
    assert significant(value) == text
