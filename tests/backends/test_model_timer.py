"""Timing models in a worker process."""

from pathlib import Path

import pytest

from egraph_opt.backends.model_timer import TimedModel, time_models
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
