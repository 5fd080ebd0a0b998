"""The benchmark command: what it measures, what it writes, and how it goes on after a failure."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from bench import run
from bench.ceilings import Ceilings
from bench.models.builder import GraphBuilder
from bench.timing import Comparison, Worker, WorkerError, compare, kernel_library, largest_error
from egraph_opt.backends import runtimes


def save_linear(path: Path, *, gain: float = 1.0) -> Path:
    graph = GraphBuilder("linear")
    onnx.save(graph.finish(graph.linear(graph.input("input", (2, 8)), 8, 4, gain=gain), (2, 4)), path)
    return path


def optimizer_that_returns_the_model(model: Path, runtime: str) -> SimpleNamespace:
    return SimpleNamespace(save=lambda path: path.write_bytes(model.read_bytes()), runtime=runtime)


def test_comparison_takes_ratios_round_by_round() -> None:
    comparison = Comparison(original=(2.0, 6.0, 4.0), candidate=(1.0, 2.0, 4.0), largest_error=0.0)
    assert comparison.speed_up() == (1.5, 2.0, 2.5)
    assert comparison.milliseconds() == (4000.0, 2000.0)


@pytest.mark.parametrize(
    ("expected", "actual", "error"),
    [
        ([1.0, -4.0], [1.0, -4.0], 0.0),
        ([1.0, -4.0], [1.5, -4.0], 0.125),
        ([np.nan, np.inf], [np.nan, np.inf], 0.0),
        ([1.0, 2.0], [np.nan, 2.0], np.inf),
        ([np.inf, 2.0], [-np.inf, 2.0], np.inf),
        ([0.0, 0.0], [0.0, 1.0], np.inf),
        ([], [], 0.0),
    ],
)
def test_largest_error(expected: list[float], actual: list[float], error: float) -> None:
    assert largest_error({"y": np.array(expected)}, {"y": np.array(actual)}) == error


def test_largest_error_wants_the_same_outputs() -> None:
    with pytest.raises(WorkerError, match=r"the outputs are \['z'\], not \['y'\]"):
        largest_error({"y": np.ones(2)}, {"z": np.ones(2)})
    with pytest.raises(WorkerError, match=r"output 'y' has shape \[3\], not \[2\]"):
        largest_error({"y": np.ones(2)}, {"y": np.ones(3)})


@pytest.mark.parametrize("lean", [False, True])
def test_compare_times_both_and_sees_a_difference(tmp_path: Path, lean: bool) -> None:
    same, other = save_linear(tmp_path / "a.onnx"), save_linear(tmp_path / "b.onnx", gain=2.0)
    comparison = compare(same, other, rounds=1, threads=1, lean=lean)
    assert len(comparison.original) == len(comparison.candidate) == 1
    assert min(*comparison.original, *comparison.candidate) > 0
    assert comparison.largest_error > 0.1


def test_worker_reports_what_onnxruntime_says(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    with Worker(tmp_path / "broken.onnx", threads=1) as worker, pytest.raises(WorkerError, match="InvalidProtobuf"):
        worker.measure(1)


@pytest.mark.skipif(bool(runtimes.problem("openvino")), reason="openvino is not installed")
def test_worker_runs_a_model_in_the_runtime_it_is_for(tmp_path: Path) -> None:
    original, candidate = save_linear(tmp_path / "original.onnx"), tmp_path / "candidate.onnx"
    model = onnx.load(original)
    model.metadata_props.add(key=runtimes.KEY, value="openvino")
    onnx.save(model, candidate)
    comparison = compare(original, candidate, rounds=1, threads=1)
    assert comparison.largest_error < 1e-5
    model.metadata_props[0].value = "abacus"
    onnx.save(model, candidate)
    with Worker(candidate, threads=1) as worker, pytest.raises(WorkerError, match="unknown runtime 'abacus'"):
        worker.outputs()


def test_worker_registers_the_kernel_library_beside_the_model(tmp_path: Path) -> None:
    model = save_linear(tmp_path / "model.opt.onnx")
    assert kernel_library(model) == tmp_path / "model.opt.kernels.so"
    kernel_library(model).write_bytes(b"not a library")
    with Worker(model, threads=1) as worker, pytest.raises(WorkerError, match=r"model\.opt\.kernels\.so"):
        worker.measure(1)


def test_prepare_saves_both_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "egraph_opt", SimpleNamespace(optimize=optimizer_that_returns_the_model))
    original, optimized = tmp_path / "original.onnx", tmp_path / "optimized.onnx"
    prepared = run.prepare("fsrcnn-b1", original, optimized, "egraph-opt")
    assert isinstance(prepared, run.Prepared)
    assert prepared.kernels == 0
    assert prepared.multiply_adds > 0
    assert original.read_bytes() == optimized.read_bytes()


def test_prepare_returns_a_failure_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(model: Path, runtime: str) -> None:
        raise ValueError("no such rule\nand more")

    monkeypatch.setitem(sys.modules, "egraph_opt", SimpleNamespace(optimize=fail))
    assert (
        run.prepare("fsrcnn-b1", tmp_path / "a.onnx", tmp_path / "b.onnx", "egraph-opt") == "ValueError: no such rule"
    )


def test_the_command_goes_on_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "measure_ceilings", lambda threads: Ceilings(500.0, 40.0))
    monkeypatch.setattr(run, "prepare", _prepare_only_fsrcnn)
    output = tmp_path / "new" / "results.jsonl"
    options = ["--rounds", "1", "--threads", "1", "--optimizer", "none", "--output", str(output)]
    assert run.main(["--models", "nasrnn,fsrcnn-b1", *options]) == 1

    failed, timed = (json.loads(line) for line in output.read_text().splitlines())
    assert failed["model"] == "nasrnn"
    assert failed["failure"] == "ValueError: not this one"
    assert timed["failure"] is None
    assert timed["ratio_q1"] <= timed["ratio_median"] <= timed["ratio_q3"]
    assert timed["largest_error"] == 0.0
    assert timed["ceilings"] == {"gemm_gflops": 500.0, "copy_gib": 40.0}
    assert timed["machine"]["versions"]["onnxruntime"]
    table = capsys.readouterr().out
    assert "failed: ValueError: not this one" in table
    assert "2 models, 1 failed" in table


def test_the_command_refuses_unknown_models(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run.main(["--models", "fsrcnn-b1,nothing"])
    assert "no benchmark model is called 'nothing'" in capsys.readouterr().err


_REAL_PREPARE = run.prepare


def _prepare_only_fsrcnn(
    name: str, original: Path, optimized: Path, optimizer: str, runtime: str
) -> run.Prepared | str:
    if name != "fsrcnn-b1":
        return "ValueError: not this one"
    return _REAL_PREPARE(name, original, optimized, optimizer, runtime)
