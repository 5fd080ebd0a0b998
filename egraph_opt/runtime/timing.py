"""Interleaved latency measurements.

Two programs are timed in turns (A B, B A, A B, …) because a shared or throttled machine drifts by more than what we
want to see; the speed-up is the median of the ratios of neighbouring turns. The callables must not own two spinning
thread pools, or each one is charged for the other one's spinning; `backends.model_timer` sees to that for models.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Clock = Callable[[], float]
MAXIMUM_CALLS_PER_TURN = 100_000
FEWEST_ROUNDS = 3
# Quartiles that lie further apart than this factor say little.
UNSTEADY = 1.25
# What to do about it.
IDLE = "measure again while the machine is idle, with another --profile-db"


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles of samples; latencies are in milliseconds, ratios are plain numbers."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Spread":
        """The spread of at least one sample."""
        if not samples:
            raise ValueError("a spread needs at least one sample")
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0])
        lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median, lower, upper)

    @property
    def unsteady(self) -> bool:
        """Whether the quartiles lie too far apart for the median to be trusted."""
        return self.upper > UNSTEADY * self.lower

    def __str__(self) -> str:
        return f"{significant(self.median)} ({significant(self.lower)}–{significant(self.upper)})"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Latencies of two programs in milliseconds, and the ratio a / b per round (above 1: b is faster)."""

    a: Spread
    b: Spread
    ratio: Spread
    rounds: int

    @classmethod
    def of(cls, a: Sequence[float], b: Sequence[float]) -> "Comparison":
        """From the milliseconds of each round."""
        ratios = [first / second for first, second in zip(a, b, strict=True)]
        return cls(Spread.of(a), Spread.of(b), Spread.of(ratios), len(ratios))


def sample_turns(
    programs: Sequence[Callable[[], object]],
    *,
    rounds: int = 9,
    turn_seconds: float = 0.02,
    warm_seconds: float = 0.1,
    enough_seconds: float = math.inf,
    clock: Clock = time.perf_counter,
    announce: Callable[[int], None] = lambda index: None,
) -> list[list[float]]:
    """For each program its milliseconds in every round; the order of turns is reversed from round to round.

    ``announce`` is told whose turn, or warm-up, begins.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, not {rounds}")
    begin = clock()
    calls = []
    for index, program in enumerate(programs):
        announce(index)
        calls.append(_warm_up(program, turn_seconds, warm_seconds, clock))
    samples: list[list[float]] = [[] for _ in programs]
    for round_number in range(rounds):
        if round_number >= FEWEST_ROUNDS and clock() - begin >= enough_seconds:
            break
        order = range(len(programs))
        for index in order if round_number % 2 == 0 else reversed(order):
            announce(index)
            samples[index].append(_turn(programs[index], calls[index], clock))
    return samples


def _warm_up(program: Callable[[], object], turn_seconds: float, warm_seconds: float, clock: Clock) -> int:
    """Run until `warm_seconds` have passed (at least twice) and return the calls that fill one turn."""
    fastest = float("inf")
    begin = clock()
    for call in range(MAXIMUM_CALLS_PER_TURN):
        start = clock()
        program()
        end = clock()
        fastest = min(fastest, end - start)
        if call >= 1 and end - begin >= warm_seconds:
            break
    return max(1, min(MAXIMUM_CALLS_PER_TURN, int(turn_seconds / max(fastest, 1e-9)) + 1))


def _turn(program: Callable[[], object], calls: int, clock: Clock) -> float:
    """Median milliseconds of `calls` runs. The other program's turn left cold caches and sleeping threads behind, so
    one untimed call comes first, except for slow programs, where it would cost as much as it saves."""
    if calls > 1:
        program()
    samples = []
    for _ in range(calls):
        start = clock()
        program()
        samples.append(clock() - start)
    return max(statistics.median(samples), 1e-9) * 1e3


def significant(value: float, digits: int = 3) -> str:
    """`value` with `digits` significant digits and no exponent for ordinary sizes: 0.0123, 4.77, 1230."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    exponent = math.floor(math.log10(abs(value)))
    if not -5 <= exponent < 7:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(0, digits - 1 - exponent)}f}"
