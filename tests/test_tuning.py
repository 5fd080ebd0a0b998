"""Tuning: what is shared out, what is asked again, what users give, with times that are computed from the trace."""

import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from types import SimpleNamespace

import pytest

from egraph_opt import Pack, optimize
from egraph_opt.backends.environment import working_compiler
from egraph_opt.errors import EgraphOptError, UsageError
from egraph_opt.extract.alternatives import Alternative
from egraph_opt.extract.profile import KERNEL, Measurement, Profile
from egraph_opt.ir.schedules import KernelSchedule, TuningModel
from egraph_opt.ir.terms import Compute
from egraph_opt.limits import Limits
from egraph_opt.tuning import Tuning
from tests.backends.bodies import CASES
from tests.pipeline.support import build, node, normal, wrong

STEPS = [Alternative(Compute(CASES[name]), (), 1.0) for name in ("gelu", "residual", "rgb")]
GELU, RESIDUAL, RGB = (step.text for step in STEPS)
needs_compiler = pytest.mark.skipif(working_compiler()[0] is None, reason="kernels need a C compiler")


@dataclass
class FakeProfiler:
    """Takes as long as the trace is long; ``slow`` seconds for each look."""

    profile: Profile
    slow: float = 0.0
    threads: int = 2
    deadline: float = inf
    limits: Limits = field(default_factory=Limits)
    schedules: dict = field(default_factory=dict)
    asked: list = field(default_factory=list)
    again: list = field(default_factory=list)

    def measure(self, steps, progress):
        for signature, _ in steps:
            for trace in self.schedules.get(signature, ()):
                if time.monotonic() > self.deadline or self.profile.knows(signature, KERNEL + trace):
                    continue
                time.sleep(self.slow)
                self.asked.append((signature, trace))
                failed = '"Unroll"' in trace
                self.profile.add(
                    [Measurement(signature, KERNEL + trace, () if failed else (1e-5 * len(trace),), "no" * failed)]
                )

    def in_turns(self, signature, step, schedules):
        self.again.append((signature, list(schedules)))
        return [Measurement(signature, KERNEL + schedule, (12.0 if schedule == "" else 1.0,)) for schedule in schedules]


def profile(path=None):
    found = Profile(path, "device")
    times = ((GELU, 6.0), (RESIDUAL, 3.0), (RGB, 0.01))
    found.add([Measurement(signature, KERNEL, (took,)) for signature, took in times])
    return found


def choices(*steps):
    return [SimpleNamespace(steps=[(i, step) for i, step in enumerate(steps)])]


def tuned(found, steps=STEPS, trials=12, seconds=100.0, schedules=(), slow=0.0):
    profiler, events = FakeProfiler(found, slow), []
    tuning = Tuning(profiler, trials, seconds, events.append, schedules)
    return tuning.run(choices(*steps)), profiler, tuning, [str(event) for event in events]


def test_what_costs_most_gets_most_trials():
    new, profiler, _, events = tuned(profile())
    assert new
    counts = {key: sum(signature == key for signature, _ in profiler.asked) for key in (GELU, RESIDUAL, RGB)}
    assert counts == {GELU: 8, RESIDUAL: 4, RGB: 0}
    assert events[-1].startswith("tune 4/4: kernel 2 of 2, best ")
    assert events[-1].endswith("us (was 3000 us)")


def test_a_kernel_that_is_used_twice_counts_twice():
    _, profiler, _, _ = tuned(profile(), [STEPS[0], STEPS[1], STEPS[1], STEPS[1]])
    counts = [sum(signature == key for signature, _ in profiler.asked) for key in (GELU, RESIDUAL)]
    assert counts == [5, 7]


def test_the_same_database_needs_no_tuning_again(tmp_path):
    path = tmp_path / "p.sqlite"
    _, first, _, _ = tuned(profile(path))
    again = Profile(path, "device")
    new, second, _, _ = tuned(again)
    assert (new, second.asked) == (False, [])
    assert again.best(GELU).implementation.startswith(f"{KERNEL}[")
    assert not second.again
    assert all(schedules[0] == "" for _, schedules in first.again)
    best = first.profile.best(GELU)
    assert best.samples == (0.5,)  # a twelfth of the other one, as timed in turns, of which 6 ms are known
    assert first.profile.measured_as(GELU, KERNEL).samples == (6.0,)
    _, more, _, _ = tuned(Profile(path, "device"), trials=24)
    assert more.asked
    assert not set(more.asked) & set(first.asked)
    _, other, _, _ = tuned(profile())
    assert other.asked == first.asked


def test_times_that_are_corrected_change_no_proposals(tmp_path):
    path = tmp_path / "p.sqlite"
    _, first, _, _ = tuned(profile(path), STEPS[1:2], trials=40)
    assert len(first.asked) == 40
    assert first.again
    new, second, _, _ = tuned(Profile(path, "device"), STEPS[1:2], trials=40)
    assert (new, second.asked) == (False, [])


def test_time_is_limited_and_the_next_run_goes_on(tmp_path):
    path = tmp_path / "p.sqlite"
    found = profile(path)
    _, profiler, tuning, _ = tuned(found, seconds=0.1, slow=0.06)
    assert len(profiler.asked) < 8
    assert profiler.deadline == inf
    assert tuning.seconds < 0.1
    _, rest, _, _ = tuned(Profile(path, "device"))
    assert {*profiler.asked, *rest.asked} == {*tuned(profile())[1].asked}


def test_few_trials_and_none():
    assert [len(tuned(profile(), trials=trials)[1].asked) for trials in (0, 1, 3)] == [0, 1, 3]


def test_users_schedules_are_tried_without_trials_and_complaints_name_them():
    def vectors(arrangement):
        *_, last = arrangement.get_loops(arrangement.get_sblock("out"))
        arrangement.vectorize(arrangement.split(last, [None, 8])[1])

    def fails(arrangement):
        arrangement.unroll(arrangement.get_loops(arrangement.get_sblock("out"))[-1])

    schedules = [
        KernelSchedule("vectors", vectors, lambda body: body == STEPS[1].step.tensor or len(body.extents) == 4),
        KernelSchedule("raises", lambda arrangement: 1 / 0),
        KernelSchedule("fails", fails),
        KernelSchedule("odd", vectors, lambda body: 1 / 0),
    ]
    new, profiler, tuning, _ = tuned(profile(), trials=0, schedules=schedules)
    assert new
    assert {signature for signature, trace in profiler.asked if "Vectorize" in trace} == {RESIDUAL, RGB}
    assert [complaint.partition(" is not")[0] for complaint in sorted(tuning.complaints)] == [
        "the schedule fails",
        "the schedule odd",
        "the schedule raises",
    ]


def test_users_spaces_and_models():
    def tiles(arrangement):
        loop = arrangement.get_loops(arrangement.get_sblock("out"))[-1]
        arrangement.split(loop, arrangement.sample_perfect_tile(loop, n=2, max_innermost_factor=64))

    space = KernelSchedule("tiles", tiles, space=True)
    _, profiler, tuning, _ = tuned(profile(), trials=8, schedules=[space])
    assert profiler.asked
    assert not any("Parallel" in trace for _, trace in profiler.asked)
    _, profiler, tuning, _ = tuned(profile(), trials=8, schedules=[TuningModel("odd", lambda: 7)])
    assert not profiler.asked
    assert tuning.complaints == ["the cost model odd is a int, not a MetaSchedule CostModel"]


def pointwise():
    """Three nodes that are one kernel."""
    nodes = [node("Transpose", "x", "t", perm=[1, 0]), node("Add", "t b", "s"), node("Tanh", "s", "y")]
    return build(nodes, {"x": (64, 48)}, {"y": (48, 64)}, {"b": normal(64)})


def check_answers(model, result):
    assert not wrong(model, result, {"x": normal(64, 48)})


# ---- whole runs ------------------------------------------------------------------------------------------------------


def rows(path):
    with closing(sqlite3.connect(path)) as database:
        query = (
            "select signature, implementation, samples, error from measurements where implementation like 'kernel [%'"
        )
        return database.execute(query).fetchall()


@needs_compiler
def test_a_model_is_tuned_once_and_a_bad_trace_fails_alone(tmp_path: Path):
    path, model = tmp_path / "p.sqlite", pointwise()
    first = optimize(model, trials=6, profile_db=path, threads=1)
    check_answers(model, first)
    known = rows(path)
    assert known
    assert "tune" in first.report.seconds
    second = optimize(model, trials=6, profile_db=path, threads=1)
    assert rows(path) == known
    assert second.report.kernels == first.report.kernels
    assert second.model.SerializeToString() == first.model.SerializeToString()
    # One of a stranger's, said to be the fastest, that fits no kernel here.
    trace = '[[["GetSBlock",[],["stage9","main"],["b0"]]],[]]'
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(
            "insert into measurements select distinct device, signature, ?, '[1e-9]', '', day from measurements"
            " where implementation like 'kernel [%'",
            (KERNEL + trace,),
        )
    third = optimize(model, profile_db=path, threads=1)
    check_answers(model, third)
    assert third.report.kernels
    assert any("could not be built" in note for note in third.report.notes)
    assert all("does not fit" in error for _, name, _, error in rows(path) if name == KERNEL + trace)


@needs_compiler
def test_schedules_of_a_pack_are_used_and_wrong_ones_named(tmp_path: Path):
    def two_rows(arrangement):
        first, *_ = arrangement.get_loops(arrangement.get_sblock("out"))
        arrangement.split(first, [None, 2])

    pack = Pack("own", schedules=(KernelSchedule("rows", two_rows), KernelSchedule("bad", lambda s: s.nothing())))
    result = optimize(pointwise(), rules=(pack,), profile_db=tmp_path / "p.sqlite", threads=1)
    check_answers(pointwise(), result)
    found = rows(tmp_path / "p.sqlite")
    assert found
    assert [(error, name) for _, name, _, error in found if error or "Split" not in name] == []
    assert any(note.startswith("the schedule bad is not used: it raised") for note in result.report.notes)


@pytest.mark.parametrize("options", [{"trials": -1}, {"tuning_seconds": 0}, {"trials": 1, "portable": True}])
def test_wrong_options(options):
    with pytest.raises(UsageError):
        optimize(pointwise(), **options)


def test_trials_need_measurements():
    with pytest.raises(EgraphOptError, match="tuning needs"):
        optimize(pointwise(), trials=1, cost="static")
