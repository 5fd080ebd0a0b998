"""Measures the steps of a bundle on a device: every kernel is held against float64 before it is timed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from math import prod

import numpy as np

from egraph_opt.errors import EgraphOptError, one_line
from egraph_opt.extract.profile import Measurement, Profile
from egraph_opt.gpu.device import Device
from egraph_opt.gpu.files import Bundle, Work
from egraph_opt.ir import plain
from egraph_opt.ir.interpreter import evaluate
from egraph_opt.runtime.progress import Progress, ProgressCallback, silent

# Rounds of samples, runs in a row of one captured graph of one step, and the seconds after which a sample is enough.
ROUNDS, REPEATS, SAMPLE_SECONDS = 7, 20, 0.02
# How far a kernel may be from float64, as a share of the largest magnitude, by the root of the terms it sums.
TOLERANCE = 2e-6
# Kernels are held against float64 while what is to be computed for it is at most this many elements.
CHECKED_ELEMENTS = 1 << 27


def measure(
    bundle: Bundle, device: Device, profile: Profile, *, seed: int = 0, progress: ProgressCallback = silent
) -> list[str]:
    """Fill the profile with what the bundle's steps take; returns what went wrong, one line for each failure.

    Steps that are in the profile already are left out. A step that fails is recorded with its reason.
    """
    device.load(bundle.modules)
    todo = [work for work in bundle.works if not profile.knows(work.signature, work.implementation)]
    failures: list[str] = []
    for number, work in enumerate(todo):
        progress(Progress("profile", work.signature, number, len(todo)))
        measurement = _measured(work, device, seed)
        if measurement.error:
            failures.append(f"{work.signature} ({work.implementation}): {measurement.error}")
        profile.add([measurement])
    progress(Progress("profile", "", len(todo), len(todo)))
    return failures


def estimate(bundle: Bundle, profile: Profile) -> None:
    """Fill the profile with the static costs of the bundle's steps, in the place of measurements."""
    profile.add(
        Measurement(work.signature, work.implementation, (work.estimate * 1e3,))
        for work in bundle.works
        if work.estimate > 0
    )


def _measured(work: Work, device: Device, seed: int) -> Measurement:
    try:
        generator = np.random.default_rng(seed)
        inputs = [generator.standard_normal(extents, dtype=np.float32) for extents in work.arguments]
        arrays = [device.upload(value) for value in inputs]
        if work.is_kernel:
            problem = _problem(work, inputs, device.download(device.work(work, arrays)))
            if problem:
                return Measurement(work.signature, work.implementation, (), problem)

        def run() -> None:
            device.work(work, arrays)

        return Measurement(work.signature, work.implementation, tuple(_samples(run, device)))
    except (EgraphOptError, MemoryError, RuntimeError) as error:
        return Measurement(work.signature, work.implementation, (), one_line(str(error)) or type(error).__name__)


def _problem(work: Work, inputs: Sequence[np.ndarray], found: np.ndarray) -> str:
    """In words how a kernel's result differs from what its body means; empty where it does not."""
    body = plain.from_json(work.body)
    if prod(work.result) > CHECKED_ELEMENTS:
        return f"its {prod(work.result)} elements are too many to be checked"
    with np.errstate(all="ignore"):
        exact = evaluate(body, {f"in{i}": value.astype(np.float64) for i, value in enumerate(inputs)})
    scale = float(np.abs(exact[np.isfinite(exact)]).max(initial=0.0))
    summed = max(1.0, sum(value.size for value in inputs) / max(1, found.size))
    same = np.isclose(found, exact, rtol=0.0, atol=TOLERANCE * max(scale, 1e-30) * summed**0.5, equal_nan=True)
    if same.all():
        return ""
    at = tuple(int(i) for i in np.argwhere(~same)[0])
    return f"wrong at {list(at)}: {found[at]} instead of {exact[at]}"


def _samples(run: Callable[[], None], device: Device) -> Iterator[float]:
    """Milliseconds of one step."""
    replay = device.captured(run)
    once = statistics.median(device.seconds(replay, 1) for _ in range(3))
    repeats = max(1, min(REPEATS, int(SAMPLE_SECONDS / max(once, 1e-9))))
    for _ in range(ROUNDS if once < 1.0 else 1):
        yield device.seconds(replay, repeats) * 1e3
