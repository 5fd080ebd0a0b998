"""Measuring by executors: any of them will do, one measurement at a time; what cannot be right is refused."""

from __future__ import annotations

import io
import json
import multiprocessing
import threading
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from egraph_opt.backends import model_timer, runner
from egraph_opt.backends.environment import find_compiler
from egraph_opt.backends.machine_lock import measuring_alone
from egraph_opt.backends.model_timer import DevicesLost
from egraph_opt.backends.runner import ExecutorRunner, LocalRunner, Machine, measure
from egraph_opt.errors import InputRejected, LimitReached
from egraph_opt.extract.alternatives import signature
from egraph_opt.extract.profile import KERNEL, Profile, devices
from egraph_opt.extract.profiler import Profiler
from egraph_opt.frontends.onnx_standalone import standalone
from egraph_opt.ir.program import Step
from egraph_opt.ir.terms import Apply, Call, Compute, Read, Source
from egraph_opt.limits import Limits
from egraph_opt.pipeline import optimize

X, W = Source("x", (4, 8)), Source("w", (8, 3), constant=True)
PRODUCT = Call("MatMul", "", (X, W), (4, 3))
IMPOSSIBLE = Call("MatMul", "", (X, X), (4, 3))


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "RETRY_SECONDS", 0.0)


def timed(call: Call = PRODUCT) -> model_timer.TimedModel:
    return model_timer.TimedModel(standalone([Step("y", call)]))


ANSWER = {**asdict(Machine.here(1)), "timed": [[[0.5, 0.25], ""]]}


def changed(**entries: Any) -> bytes:
    return json.dumps({**ANSWER, **entries}).encode()


RIGHT = changed()


class Scripted(Executor):
    """Runs nothing, and gives the next of some answers."""

    def __init__(self, *answers: bytes | Exception) -> None:
        self.answers = list(answers)
        self.asked = 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        assert fn is measure
        self.asked += 1
        future: Future[Any] = Future()
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
        return future


def each(executor: Executor) -> list[Any]:
    return ExecutorRunner(executor).time_each([timed()], threads=1, limits=Limits())


def test_threads_and_spawned_processes_measure_as_this_process_does(tmp_path: Path) -> None:
    relu = Compute(Apply("relu", (Read(X),)))
    spawn = multiprocessing.get_context("spawn")
    with ThreadPoolExecutor(2) as threads, ProcessPoolExecutor(2, mp_context=spawn) as processes:
        for executor in (threads, processes):
            by = ExecutorRunner(executor)
            assert by.machine(1) == LocalRunner().machine(1) == Machine.here(1)
            profile = Profile(None, by.machine(1).device)
            steps = [(signature(b), Step("y", b)) for b in (PRODUCT, relu, IMPOSSIBLE)]
            Profiler(profile, find_compiler(), 1, 17, runner=by).measure(steps, lambda done, total: None)
            found = [profile.best(signature(b)) for b in (PRODUCT, relu, IMPOSSIBLE)]
            assert [m is not None and bool(m.samples) for m in found] == [True, True, False]
            if find_compiler() is not None:
                assert profile.measured[profile._key(signature(relu))][KERNEL].samples


def test_whole_models_with_their_weights_beside_them(save_model: Any, tmp_path: Path) -> None:
    import numpy as np
    import onnx
    from onnx import external_data_helper, numpy_helper

    model = onnx.load(save_model())
    model.graph.initializer.append(numpy_helper.from_array(np.ones(4000, np.float32), "unused"))
    external_data_helper.convert_model_to_external_data(model, location="other.onnx.data", size_threshold=100)
    path = tmp_path / "other.onnx"
    onnx.save(model, path)
    options: dict[str, Any] = {"rounds": 3, "seed": 0, "fill": (None, None), "threads": 1, "enough_seconds": 9.0}
    with ThreadPoolExecutor(1) as threads:
        by = ExecutorRunner(threads)
        models = [model_timer.TimedModel(path), model_timer.TimedModel(save_model())]
        samples = by.time_models(models, limits=Limits(), **options)
        assert [len(of_one) for of_one in samples] == [3, 3]
        broken = tmp_path / "broken.onnx"
        broken.write_bytes(b"garbage")
        with pytest.raises(InputRejected, match="does not load in onnxruntime"):
            by.time_models([model_timer.TimedModel(broken)], limits=Limits(), **options)
        with pytest.raises(LimitReached, match="time limit"):
            by.time_models(models, limits=Limits(time.monotonic() - 1), **options)


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"not json",
        b"[]",
        b'{"device": 1}',
        b" " * (runner.LARGEST_ANSWER + 1),
        changed(timed=[[[float("inf")], ""]]),
        changed(timed=[[[float("nan")], ""]]),
        changed(timed=[[[-1.0], ""]]),
        changed(timed=[[[0.0], ""]]),
        changed(timed=[[[True], ""]]),
        changed(timed=[[["1"], ""]]),
        changed(timed=[[[1e300], ""]]),
        changed(timed=[[[], ""]]),
        changed(timed=[[[1.0], "and failed"]]),
        changed(timed=[[[1.0], ""]] * 2),
        changed(timed=[]),
        changed(timed={"0": 1}),
        changed(timed=None),
        changed(device="another"),
        changed(target="another"),
        changed(runtimes=[1]),
        OSError("the way is broken"),
    ],
)
def test_wrong_answers_are_refused_and_the_work_is_done_again(wrong: Any) -> None:
    executor = Scripted(RIGHT, wrong, RIGHT)
    by = ExecutorRunner(executor)
    by.machine(1)
    (found,) = by.time_each([timed()], threads=1, limits=Limits())
    assert found == ([0.5, 0.25], "")
    assert executor.asked == 3


def test_what_fails_again_and_again_is_given_up() -> None:
    executor = Scripted(*[b"nonsense"] * runner.TRIES)
    with pytest.raises(DevicesLost, match="measuring failed 3 times: JSONDecodeError"):
        each(executor)
    assert executor.asked == runner.TRIES
    ended = ThreadPoolExecutor(1)
    ended.shutdown()
    with pytest.raises(DevicesLost, match="takes no more work: cannot schedule new futures after shutdown"):
        each(ended)


def test_lost_devices_leave_what_was_measured_and_blame_no_candidate() -> None:
    executor = Scripted(RIGHT, *[OSError("gone")] * runner.TRIES)
    profile = Profile(None, "device")
    profiler = Profiler(profile, None, 1, 17, runner=ExecutorRunner(executor))
    steps = [(signature(PRODUCT), Step("y", PRODUCT)), (signature(IMPOSSIBLE), Step("y", IMPOSSIBLE))]
    profiler.measure(steps[:1], lambda done, total: None)
    profiler.measure(steps[1:], lambda done, total: None)
    assert list(profile.measured) == [signature(PRODUCT)]
    assert profiler.lost == "measuring failed 3 times: OSError: gone"


def test_a_limit_ends_the_waiting() -> None:
    class Never(Executor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            return Future()

    by = ExecutorRunner(Never())
    found = by.time_each([timed()] * 9, threads=1, limits=Limits(time.monotonic() + 0.2))
    assert found == [([], "the time limit was reached")] * 9


def test_one_measurement_at_a_time(tmp_path: Path) -> None:
    busy, most = 0, 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal busy, most
        with measuring_alone(Limits(), tmp_path):
            with lock:
                busy += 1
                most = max(most, busy)
            time.sleep(0.02)
            with lock:
                busy -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    with measuring_alone(Limits(), tmp_path), pytest.raises(LimitReached), measuring_alone(Limits(0.0), tmp_path):
        pass
    for thread in threads:
        thread.join()
    assert most == 1
    nowhere = tmp_path / "file"
    nowhere.write_text("")
    with measuring_alone(Limits(), nowhere), measuring_alone(Limits(), nowhere):  # without a folder there is no lock
        pass


def test_optimizing_with_an_executor(save_model: Any, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as threads:
        result = optimize(save_model(), executor=threads, threads=1, profile_db=tmp_path / "p")
        assert result.report.candidates.measured > 0
        by_executor = (tmp_path / "p").stat().st_size
        again = optimize(save_model(), executor=threads, threads=1, profile_db=tmp_path / "p")
    assert by_executor > 0
    assert again.report.candidates.measured == 0  # the key is that of the same machine without an executor
    assert optimize(save_model(), threads=1, profile_db=tmp_path / "p").report.candidates.measured == 0


def test_an_executor_is_asked_for_nothing_where_nothing_is_timed(save_model: Any) -> None:
    class Untouched(ThreadPoolExecutor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            raise AssertionError("something is asked for")

    with Untouched(1) as executor:
        report = optimize(save_model(), executor=executor, cost="static", threads=1).report
    assert report.latency is None
    assert not report.reverted


def test_devices_that_are_lost_before_the_contest_leave_the_model_as_it_is(save_model: Any, tmp_path: Path) -> None:
    class Losing(ThreadPoolExecutor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            with zipfile.ZipFile(io.BytesIO(args[0])) as archive:
                kind = json.loads(archive.read("request.json"))["kind"]
            return super().submit(fn, b"" if kind == "together" else args[0])

    with Losing(1) as executor:
        report = optimize(save_model(), executor=executor, threads=1, profile_db=tmp_path / "p").report
    assert not report.changed
    note = "the latencies could not be measured: measuring failed 3 times: BadZipFile: File is not a zip file"
    assert note in report.notes


def elsewhere(request: bytes) -> bytes:
    """What a machine with another processor would answer."""
    answer = json.loads(measure(request))
    return json.dumps({**answer, "device": "another", "target": "another processor"}).encode()


def test_for_another_processor_there_are_standard_operators_only(save_model: Any, tmp_path: Path) -> None:
    class Elsewhere(ThreadPoolExecutor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            return super().submit(elsewhere, *args)

    with Elsewhere(1) as executor:
        report = optimize(save_model(), executor=executor, threads=1, profile_db=tmp_path / "p").report
    if find_compiler() is not None:
        note = "kernels for another processor, where steps are timed, cannot be verified here: standard operators only"
        assert note in report.notes
    assert report.generated_kernels == 0
    assert report.candidates.measured > 0
    assert devices(tmp_path / "p") == ["another"]
