"""Measuring steps: what is tried, what a failure leaves behind, and when it stops."""

import time
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any

import pytest

from egraph_opt.backends.environment import find_compiler
from egraph_opt.backends.runner import LocalRunner
from egraph_opt.extract import profiler
from egraph_opt.extract.alternatives import Alternative, signature
from egraph_opt.extract.profile import Profile
from egraph_opt.extract.profiler import KERNEL, LIBRARY, PORTABLE, Profiler, Runnable
from egraph_opt.ir.program import Step
from egraph_opt.ir.terms import Apply, Call, Compute, Read, Source

X, W = Source("x", (4, 8)), Source("w", (8, 3), constant=True)
PRODUCT = Call("MatMul", "", (X, W), (4, 3))
RELU = Compute(Apply("relu", (Read(X),)))
IMPOSSIBLE = Call("MatMul", "", (X, X), (4, 3))


def steps(*buffers: Any) -> list[tuple[str, Step]]:
    return [(signature(buffer), Step("y", buffer)) for buffer in buffers]


def quiet(done: int, total: int) -> None:
    pass


def test_calls_and_kernels_are_really_timed() -> None:
    profile = Profile(None, "device")
    measuring = Profiler(profile, find_compiler(), 1, 17)
    measuring.measure(steps(PRODUCT, RELU, IMPOSSIBLE), quiet)
    product, relu, failed = (profile.measured[profile._key(signature(b))] for b in (PRODUCT, RELU, IMPOSSIBLE))
    assert set(product) == {LIBRARY}
    assert {KERNEL, PORTABLE} <= set(relu)
    assert all(0 < m.seconds < 0.01 for m in (*product.values(), *relu.values()))
    assert failed[LIBRARY].seconds == inf
    assert failed[LIBRARY].error
    measuring.thorough = True
    measuring.measure(steps(RELU), quiet)
    assert len(profile.measured[profile._key(signature(RELU))]) > len(relu) - 1


def test_without_a_compiler_only_standard_operators_are_timed() -> None:
    profile = Profile(None, "device", "portable")
    Profiler(profile, None, 1, 17).measure(steps(RELU), quiet)
    assert set(profile.measured[f"portable {signature(RELU)}"]) == {PORTABLE}


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A timer for which everything fails; returns the sizes of the batches it saw."""
    asked: list[int] = []

    def time_each(self: LocalRunner, models: Sequence[Any], **options: Any) -> list[tuple[list[float], str]]:
        asked.append(len(models))
        return [([], "too slow")] * len(models)

    monkeypatch.setattr(LocalRunner, "time_each", time_each)
    return asked


def test_failures_are_remembered(failing: list[int], tmp_path: Path) -> None:
    profile = Profile(tmp_path / "p", "device")
    for _ in range(2):
        Profiler(profile, None, 1, 17).measure(steps(PRODUCT), quiet)
    best = Profile(tmp_path / "p", "device").best(signature(PRODUCT))
    assert best is not None
    assert (best.seconds, best.error) == (inf, "too slow")
    assert failing == [1]


def test_want_of_time_is_no_failure(monkeypatch: pytest.MonkeyPatch, failing: list[int]) -> None:
    profile = Profile(None, "device")
    Profiler(profile, None, 1, 17, deadline=time.monotonic() - 1).measure(steps(PRODUCT), quiet)
    assert failing == []
    clock = iter([0.0])  # in time at first, too late when the batch is done
    monkeypatch.setattr(profiler.time, "monotonic", lambda: next(clock, 99.0))
    Profiler(profile, None, 1, 17, deadline=50.0).measure(steps(PRODUCT), quiet)
    assert profile.measured == {}


def test_what_can_be_written_depends_on_the_opset() -> None:
    dilated = Call("AveragePool", "dilations=2,2;kernel_shape=2,2", (Source("x", (1, 1, 8, 8)),), (1, 1, 6, 6))
    erf = Alternative(Compute(Apply("erf", (Read(X),))), (), 1.0)
    pool = Alternative(dilated, (), 1.0)
    assert not Runnable(17, kernels=True)(pool)
    assert Runnable(19, kernels=True)(pool)
    assert Runnable(8, kernels=True)(erf)
    assert not Runnable(8, kernels=False)(erf)
    assert Runnable(9, kernels=False)(erf)
