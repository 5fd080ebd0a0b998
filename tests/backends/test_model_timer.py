"""Timing models in a worker process."""

import subprocess
import sys
from pathlib import Path

import pytest

from egraph_opt.backends import model_timer
from egraph_opt.backends.environment import available_memory
from egraph_opt.backends.model_timer import DevicesLost, TimedModel, time_each, time_models
from egraph_opt.backends.onnxruntime import make_session
from egraph_opt.errors import InputRejected, LimitReached


def test_models_are_timed_and_the_caller_keeps_its_own_pools(save_model) -> None:
    path = save_model()
    samples = time_models([TimedModel(path), TimedModel(path.read_bytes())], rounds=4, threads=1)
    assert [len(of_one) for of_one in samples] == [4, 4]
    assert all(0 < sample < 100 for of_one in samples for sample in of_one)
    make_session(path)


def test_errors_cross_the_process_border(save_model, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"garbage")
    with pytest.raises(InputRejected, match=r"^.*broken\.onnx does not load in onnxruntime: "):
        time_models([TimedModel(broken)])
    with pytest.raises(InputRejected, match="neither an input nor a symbolic dimension"):
        time_models([TimedModel(save_model())], shapes={"z": [1]})


def test_timeout(save_model) -> None:
    with pytest.raises(LimitReached, match="the time limit was reached"):
        time_models([TimedModel(save_model())], timeout=0.01)


def test_worker_that_dies(save_model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("egraph_opt.backends.model_timer.WORKER", "import os; os.abort()")
    with pytest.raises(InputRejected, match=r"model\.onnx died \(exit code -6\)"):
        time_models([TimedModel(save_model())])


def test_modules_in_the_current_folder_are_not_imported(
    save_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('imported a stranger')")
    monkeypatch.chdir(tmp_path)
    assert time_models([TimedModel(save_model())], rounds=1, threads=1)


def test_a_worker_that_never_gets_to_a_model_is_no_fault_of_models(save_model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_timer, "WORKER", "import os; os.abort()")
    with pytest.raises(DevicesLost, match=r"measuring does not work here: .*died \(exit code -6\)"):
        time_each([TimedModel(save_model())] * 3)
    monkeypatch.setattr(model_timer, "WORKER", "import time; time.sleep(60)")
    with pytest.raises(DevicesLost, match=r"was ended: no answer for 0\.3 s"):
        time_each([TimedModel(save_model())] * 3, stage_seconds=0.3)
    monkeypatch.setattr(model_timer, "available_memory", lambda: 1 << 20)
    with pytest.raises(DevicesLost, match="it took more than 1 MiB of memory"):
        time_each([TimedModel(save_model())])


def test_a_model_that_is_too_slow_is_named(save_model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_timer, "MODEL_STAGE_SECONDS", 0.0)
    with pytest.raises(InputRejected, match=r"timed .*model\.onnx was ended: no answer for 0 s"):
        time_models([TimedModel(save_model())], rounds=1000)


@pytest.mark.parametrize("threads", [None, 2])
def test_the_pool_has_the_threads_and_the_processors_of_a_session(threads: int | None) -> None:
    program = (
        "import os; from egraph_opt.backends import onnxruntime as o\n"
        f"own = o._pinning_by(lambda: o.make_session(o.EMPTY_MODEL, threads={threads}))\n"
        f"before = o._threads(); o.create_process_pool({threads})\n"
        "session = o.make_session(o.EMPTY_MODEL, process_pool=True)\n"
        "pool = [os.sched_getaffinity(thread) for thread in o._threads() - before]\n"
        "print(sorted(map(sorted, own.values()))); print(sorted(map(sorted, pool)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    own, pool = done.stdout.splitlines()
    assert own == pool


def test_memory_that_is_available() -> None:
    assert 1 << 20 < available_memory() < 1 << 50
