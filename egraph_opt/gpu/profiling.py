"""Measures the steps of a bundle on a device: kernels are held against float64 before they are timed."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from math import prod

import numpy as np

from egraph_opt.errors import EgraphOptError, one_line
from egraph_opt.extract.profile import Measurement, Profile
from egraph_opt.gpu.device import Device
from egraph_opt.gpu.files import Bundle, Work
from egraph_opt.ir import plain
from egraph_opt.ir.interpreter import evaluate
from egraph_opt.ir.terms import Reduce, Tensor, children
from egraph_opt.runtime.progress import Progress, ProgressCallback, silent

# Rounds of samples, runs in a row of one captured graph of one step, and the seconds after which a sample is enough.
ROUNDS, REPEATS, SAMPLE_SECONDS = 7, 20, 0.02
# A step shorter than this stands so many times in its graph: launching a graph takes a few microseconds itself.
SHORT_SECONDS, INSIDE = 2e-4, 10
# How far a result may be from float64, as a share of the largest magnitude, by the root of the terms it sums.
TOLERANCE = 2e-6
# Kernels are held against float64 while what is to be computed for it is at most this many elements.
CHECKED_ELEMENTS = 1 << 27
# Steps whose results are computed in float64 ahead of the one that is measured, each in a thread of its own.
AHEAD = 8


def measure(
    bundle: Bundle, device: Device, profile: Profile, *, seed: int = 0, progress: ProgressCallback = silent
) -> list[str]:
    """Fill the profile with what the bundle's steps take; returns what went wrong, one line for each failure.

    Steps that are in the profile already are left out. A step that fails is recorded with its reason.
    """
    device.load(bundle.modules)
    todo = [work for work in bundle.works if not profile.knows(work.signature, work.implementation)]
    failures: list[str] = []
    number = 0
    for same, trial in _ahead([list(same) for _, same in groupby(todo, lambda work: work.signature)], seed):
        for work in same:
            progress(Progress("profile", work.signature, number, len(todo)))
            measurement = _measured(work, trial, device)
            if measurement.error:
                failures.append(f"{work.signature} ({work.implementation}): {measurement.error}")
            profile.add([measurement])
            number += 1
    progress(Progress("profile", "", len(todo), len(todo)))
    return failures


@dataclass(frozen=True)
class _Trial:
    """Inputs of a step, and what it makes of them in float64, or in words why that is not known."""

    inputs: list[np.ndarray]
    exact: np.ndarray | None
    problem: str = ""


def _ahead(groups: Sequence[list[Work]], seed: int) -> Iterator[tuple[list[Work], _Trial]]:
    """The ways of every step with a trial; the next trials are computed while the device is busy."""
    waiting: deque[tuple[list[Work], Future[_Trial]]] = deque()
    with ThreadPoolExecutor(AHEAD) as pool:
        for same in groups:
            waiting.append((same, pool.submit(_trial, same[0], seed)))
            if len(waiting) > AHEAD:
                found, trial = waiting.popleft()
                yield found, trial.result()
        while waiting:
            found, trial = waiting.popleft()
            yield found, trial.result()


def _trial(work: Work, seed: int) -> _Trial:
    generator = np.random.default_rng(seed)
    inputs = [generator.standard_normal(extents, dtype=np.float32) for extents in work.arguments]
    if not work.body:
        return _Trial(inputs, None)
    if prod(work.result) > CHECKED_ELEMENTS:
        return _Trial(inputs, None, f"its {prod(work.result)} elements are too many to be checked")
    try:
        with np.errstate(all="ignore"):
            body = plain.from_json(work.body)
            exact = evaluate(body, {f"in{i}": value.astype(np.float64) for i, value in enumerate(inputs)})
        return _Trial(inputs, exact)
    except (EgraphOptError, MemoryError) as error:
        return _Trial(inputs, None, one_line(f"it cannot be checked: {error}"))


def estimate(bundle: Bundle, profile: Profile) -> None:
    """Fill the profile with the static costs of the bundle's steps, in the place of measurements."""
    profile.add(
        Measurement(work.signature, work.implementation, (work.estimate * 1e3,))
        for work in bundle.works
        if work.estimate > 0
    )


def _measured(work: Work, trial: _Trial, device: Device) -> Measurement:
    try:
        arrays = [device.upload(value) for value in trial.inputs]
        problem = trial.problem or _problem(work, trial.exact, device.download(device.work(work, arrays)))
        if problem:
            return Measurement(work.signature, work.implementation, (), problem)

        def run() -> None:
            device.work(work, arrays)

        return Measurement(work.signature, work.implementation, tuple(_samples(run, device)))
    except (EgraphOptError, MemoryError, RuntimeError) as error:
        return Measurement(work.signature, work.implementation, (), one_line(str(error)) or type(error).__name__)


def _problem(work: Work, exact: np.ndarray | None, found: np.ndarray) -> str:
    """In words how a result differs from what the step's body means; empty where it does not, or where it has none."""
    if exact is None:
        return ""
    scale = float(np.abs(exact[np.isfinite(exact)]).max(initial=0.0))
    allowed = TOLERANCE * max(scale, 1e-30) * _summed(plain.from_json(work.body)) ** 0.5
    same = np.isclose(found, exact, rtol=0.0, atol=allowed, equal_nan=True)
    if same.all():
        return ""
    at = tuple(int(i) for i in np.argwhere(~same)[0])
    return f"wrong at {list(at)}: {found[at]} instead of {exact[at]}"


def _summed(term: Tensor) -> float:
    """The most products that one element is a sum of."""
    inside = max((_summed(child) for child in children(term) if isinstance(child, Tensor)), default=1.0)
    return inside * prod(term.tensor.extents) / prod(term.extents) if isinstance(term, Reduce) else inside


def _samples(run: Callable[[], None], device: Device) -> Iterator[float]:
    """Milliseconds of one step."""

    def several() -> None:
        for _ in range(INSIDE):
            run()

    replay, inside = device.captured(run), 1
    once = statistics.median(device.seconds(replay, 1) for _ in range(3))
    if once < SHORT_SECONDS:
        replay, inside = device.captured(several), INSIDE
        once = statistics.median(device.seconds(replay, 1) for _ in range(3))
    repeats = max(1, min(REPEATS, int(SAMPLE_SECONDS / max(once, 1e-9))))
    for _ in range(ROUNDS if once < 1.0 else 1):
        yield device.seconds(replay, repeats) * 1e3 / inside
