"""Several jobs: the same e-graphs, rules and notes as with one, and an end at every limit."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import pytest

from bench.models.chains import chain
from egraph_opt import saturation
from egraph_opt.egraph.saturate import Budget
from egraph_opt.errors import LimitReached
from egraph_opt.frontends.onnx_reader import load
from egraph_opt.frontends.regions import partition
from egraph_opt.ir.program import Program
from egraph_opt.limits import OUT_OF_MEMORY, OUT_OF_TIME, Limits
from egraph_opt.packs import select
from egraph_opt.saturation import Saturator
from egraph_opt.saturation_worker import Saturated
from tests.pipeline.foreign import write
from tests.pipeline.test_foreign_rules import small_program

Content = tuple[object, ...]


def content(found: Saturated) -> Content:
    """Everything about an e-graph but the seconds it took."""
    snapshot, done = found.snapshot, found.saturation
    rounds = [(r.phase, r.before, r.enodes, dict(r.matches)) for r in done.rounds]
    return list(snapshot.classes.items()), snapshot.names, snapshot.derivations, rounds, done.matches, done.stop


def all_of(saturator: Saturator, programs: list[Program]) -> list[Content]:
    saturator.begin([(program, Budget()) for program in programs])
    return [content(saturator.saturate(program, Budget())) for program in programs]


def layers(kind: str, count: int) -> Program:
    return max((r.program for r in partition(load(chain(kind, count))).regions), key=lambda p: len(p.definitions))


@pytest.fixture
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saturation, "LARGE", 1)


@pytest.mark.usefixtures("small_is_large")
def test_programs_side_by_side() -> None:
    programs = [small_program(n) for n in (1, 3, 2, 4)]
    with Saturator(jobs=3) as several:
        there = all_of(several, programs)
        several.begin([(program, Budget()) for program in programs])
        while not all(several.ready(program) for program in programs):
            time.sleep(0.01)
        # What is done counts although the time is over.
        late = [content(several.saturate(program, Budget(), time.monotonic() - 1)) for program in programs]
        assert late == there
    assert there == all_of(Saturator(), programs)


def test_windows_side_by_side() -> None:
    program = layers("siblings", 30)
    with Saturator(jobs=2) as two, Saturator() as one:
        assert len(two._prepared(program, two.selection, Budget(), time.monotonic() + 60).parts) == 2
        assert all_of(two, [program]) == all_of(one, [program])


@pytest.mark.usefixtures("small_is_large")
def test_packs_are_dropped_as_with_one_job(tmp_path: Path) -> None:
    """What later programs were begun with is forgotten when a pack is dropped."""
    spec = ",".join(f"+{write(tmp_path, kind)}" for kind in ("raises", "honest", "exits"))
    programs = [small_program(n) for n in (1, 2, 3, 4)]
    found = []
    for jobs in (1, 3):
        with Saturator(select(spec), jobs=jobs) as saturator:
            found.append((all_of(saturator, programs), saturator.notes))
        assert [pack.name for pack in saturator.selection.packs] == ["honest"]
    assert found[0] == found[1]


@pytest.mark.usefixtures("small_is_large")
def test_an_interrupt_ends_all_workers() -> None:
    """Closing does not wait for what was begun; no worker is left."""
    programs = [layers("siblings", 30), layers("attention", 20)]
    started = time.monotonic()
    with suppress(KeyboardInterrupt), Saturator(jobs=2) as saturator:
        saturator.begin([(program, Budget()) for program in programs])
        while not saturator._workers._busy:
            time.sleep(0.01)
        workers = list(saturator._workers._busy)
        raise KeyboardInterrupt
    assert time.monotonic() - started < 60
    assert not any(worker.alive for worker in workers)
    with pytest.raises(LimitReached, match="ended"):
        saturator.saturate(programs[0], Budget())


@pytest.mark.parametrize("jobs", [1, 2])
def test_all_workers_end_at_the_limits_of_the_run(jobs: int) -> None:
    program = layers("siblings", 30)
    for whole, reason in ((Limits(memory=1), OUT_OF_MEMORY), (Limits(time.monotonic() + 0.3), OUT_OF_TIME)):
        with Saturator(whole=whole, jobs=jobs) as saturator, pytest.raises(LimitReached, match=reason):
            saturator.saturate(program, Budget())


@pytest.mark.usefixtures("small_is_large")
def test_nothing_is_begun_after_the_deadline() -> None:
    programs = [small_program(n) for n in (1, 2)]
    with Saturator(jobs=2) as saturator:
        saturator.begin([(program, Budget()) for program in programs], time.monotonic() - 1)
        with pytest.raises(LimitReached, match=OUT_OF_TIME):
            saturator.saturate(programs[0], Budget())


def test_little_memory_means_few_workers() -> None:
    assert Saturator(jobs=8, whole=Limits(memory=1))._concurrent == 1
    assert Saturator(jobs=8, whole=Limits(memory=1 << 60))._concurrent == 8


def test_large_models_find_their_workers_started_and_closing_ends_them() -> None:
    with Saturator(jobs=2) as saturator:
        saturator.start(saturation.LARGE - 1)
        assert not saturator._workers._idle
        for _ in range(2):  # those that are there are enough
            saturator.start(saturation.LARGE)
            workers = list(saturator._workers._idle)
            assert len(workers) == 2
            assert all(worker.alive for worker in workers)
        taken = saturator._workers.take()
        saturator.start(saturation.LARGE)
        assert {taken, *saturator._workers._idle} == set(workers)
    assert not any(worker.alive for worker in workers)


def test_foreign_rules_find_one_worker_started() -> None:
    with Saturator(isolated=True, jobs=2) as saturator:
        saturator.start(1)
        assert len(saturator._workers._idle) == 1
