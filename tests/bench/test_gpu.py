"""The GPU benchmark with the processor in the GPU's place: what it plans, measures, checks, shows and ships."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from bench import gpu, gpu_worker
from bench.gpu_worker import Task, Worker
from bench.models import catalogue
from bench.models.builder import GraphBuilder
from egraph_opt.backends.cuda_build import find_nvcc
from egraph_opt.extract.profile import devices

TASKS = ("profile", "ours", "library", "eager", "graph")


def small(batch: int) -> onnx.ModelProto:
    graph = GraphBuilder("small")
    x = graph.input("input", (batch, 3, 8, 8))
    x = graph.max_pool(graph.relu(graph.conv(x, (3, 8), 3)), 2, stride=2)
    x = graph.node("Tanh", [graph.conv_transpose(x, (8, 2), 4, stride=2, padding=1)])
    return graph.finish(x, (batch, 2, 8, 8))


@pytest.fixture(scope="module", autouse=True)
def one_model() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalogue, "CATALOGUE", (catalogue.BenchmarkModel("small", small, (1,), "a small model"),))
        yield
    gpu_worker.original.cache_clear()
    gpu_worker.exact.cache_clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a model."""
    if find_nvcc() is None:
        pytest.skip("no nvcc: the CUDA toolkit is not installed")
    found = tmp_path_factory.mktemp("gpu")
    (row,) = gpu.plan(found, ["small"])
    assert row["calls"] > 0
    assert row["kernels"] > 0
    assert row["cubin_bytes"] > 0
    assert 0 < row["registers"] <= 255
    return found


def test_what_is_planned_is_not_planned_again(folder: Path) -> None:
    before = (folder / "small.bundle").stat().st_mtime_ns
    (row,) = gpu.plan(folder, ["small"])
    assert row == json.loads((folder / "plans.json").read_text())[0]
    assert (folder / "small.bundle").stat().st_mtime_ns == before


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ stands in for a GPU")
def test_every_way_is_measured_checked_and_shipped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    monkeypatch.setattr(Worker, "ask", lambda self, task, seconds: gpu_worker.perform(task))
    tasks = [(Task("small", way, "float32", "host", folder), 60.0) for way in TASKS]
    rows = gpu.measure(tasks, folder, 600.0)
    assert [row["way"] for row in rows] == list(TASKS)
    assert all("problem" not in row and not row.get("failures") for row in rows)
    for row in rows[1:]:
        assert row["error"] < 1e-5
        assert row["milliseconds"][1] > 0
    table = gpu.shown(rows)
    assert table.splitlines()[1].split()[:2] == ["small", "float32"]
    assert "!" not in table
    shipped = gpu.ship(folder, rows)
    assert shipped is not None
    assert devices(shipped) == [rows[1]["key"]]
    # What was measured is kept; without time nothing is measured.
    assert gpu.measure([(Task("small", "eager", "TF32", "host", folder), 60.0), *tasks], folder, 0.0) == rows


def test_answers_far_from_what_is_right_are_marked() -> None:
    row = {"model": "small", "precision": "float32", "milliseconds": [1.0, 1.0, 1.0]}
    rows = [
        {**row, "way": "ours", "error": 1e-6},
        {**row, "way": "eager", "error": 0.5},
        {**row, "way": "xla", "error": 1.0},
        {"model": "small", "precision": "float32", "way": "compile", "problem": "it failed"},
    ]
    *_, line = gpu.shown(rows).splitlines()
    assert "1.0000 !" in line
    assert "failed" in line
    assert line.split()[-2] == "-"  # no peer is right


def test_a_reference_that_is_wrong_is_not_used(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    np.savez(tmp_path / "small.npz", output=np.zeros(128, np.float32))
    with pytest.raises(RuntimeError, match="torch in float64 and onnxruntime differ"):
        gpu_worker.exact("small", "host", tmp_path)


def test_a_measurement_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    worker = Worker()
    assert "longer than" in worker.ask(Task("small", "eager", "float32", "host", tmp_path), 0.0)["problem"]
    worker.close()
