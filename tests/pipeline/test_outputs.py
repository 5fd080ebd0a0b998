"""What is written: files that load in a process of their own, the same bytes for the same question, exit codes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from egraph_opt.backends import environment
from egraph_opt.cli import main
from egraph_opt.pipeline import optimize
from tests.pipeline.support import answers, build, chain_of_regions, node, normal, static, upscaler, wrong

FEEDS = {"x": normal(1, 4, 6, 6)}
RELOAD = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
if len(sys.argv) > 3:
    options.register_custom_ops_library(sys.argv[3])
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
numpy.save(sys.argv[2] + ".out.npy", session.run(None, {"x": numpy.load(sys.argv[2])})[0])
"""


def reload(model: Path, folder: Path, library: Path | None = None) -> np.ndarray:
    """Run a model file in a new process with nothing but onnxruntime."""
    feed = folder / "x.npy"
    np.save(feed, FEEDS["x"])
    words = [sys.executable, "-c", RELOAD, str(model), str(feed), *([str(library)] if library is not None else [])]
    subprocess.run(words, check=True, cwd=folder)
    return np.load(f"{feed}.out.npy")


def test_native_output_reloads_in_a_new_process(tmp_path: Path, home: Path) -> None:
    model = upscaler()
    result = static(model)
    assert result.report.kernels
    written = result.save(tmp_path / "fast.onnx")
    assert written == (tmp_path / "fast.onnx", tmp_path / "fast.kernels.so")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fast.kernels.so", "fast.onnx", "home"]
    found = reload(written[0], tmp_path, written[1])
    assert np.allclose(found, answers(model, FEEDS)[0], atol=1e-4)
    assert main(["check", str(tmp_path / "fast.onnx"), str(tmp_path / "fast.onnx")]) == 0  # our own library is trusted


def test_portable_output_needs_nothing(tmp_path: Path, home: Path) -> None:
    model = upscaler()
    result = static(model, portable=True)
    assert result.report.changed
    assert result.library is None
    assert {n.domain for n in result.model.graph.node} == {""}
    assert {entry.domain for entry in result.model.opset_import} == {""}
    (tmp_path / "fast.kernels.so").write_bytes(b"of an older run")
    assert result.save(tmp_path / "fast.onnx") == (tmp_path / "fast.onnx",)
    assert not (tmp_path / "fast.kernels.so").exists()
    assert np.allclose(reload(tmp_path / "fast.onnx", tmp_path), answers(model, FEEDS)[0], atol=1e-4)


def test_sessions_are_ready_and_save_nothing_elsewhere(home: Path) -> None:
    model = upscaler()
    result = static(model)
    assert not wrong(model, result, FEEDS)
    assert result.session() is not result.session()
    assert not list(home.rglob("*.so"))


def test_an_unwritable_cache_does_not_stop_saving(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    written = static(upscaler()).save(tmp_path / "fast.onnx")
    assert all(path.is_file() for path in written)


def test_without_a_compiler_the_output_is_portable(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    model = upscaler()
    result = static(model)
    assert result.library is None
    assert not result.report.kernels
    assert "no C compiler was found; the output uses standard operators only" in result.report.notes
    assert result.report.changed
    assert not wrong(model, result, FEEDS)


def test_a_compiler_without_headers_counts_as_none(monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "cc").write_text("#!/bin/sh\necho 'stdio.h: fatal error: No such file' >&2\nexit 1\n")
    (tmp_path / "cc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    compiler, problem = environment.working_compiler()
    assert compiler is None
    assert problem.endswith("cannot make a library: stdio.h: fatal error: No such file")
    assert static(upscaler()).library is None


HASHES = """
import hashlib, sys
from egraph_opt import candidates
from egraph_opt.pipeline import optimize
candidates.CHEAPER = 0.0
result = optimize(sys.argv[1], cost=sys.argv[2], threads=1, profile_db=sys.argv[3], portable=sys.argv[4] == "portable")
parts = [result.model.SerializeToString(deterministic=True), result.library or b""]
print(*(hashlib.sha256(part).hexdigest() for part in parts), result.report.candidates.measured, result.report.changed)
"""


def hashes(model: Path, cost: str, database: Path, kind: str, seed: int) -> list[str]:
    """Content of the outputs of a process of its own, measurements it made, whether the model changed."""
    environment = os.environ | {"PYTHONHASHSEED": str(seed), "RAYON_NUM_THREADS": str(seed % 3 + 1)}
    words = [sys.executable, "-c", HASHES, str(model), cost, str(database), kind]
    done = subprocess.run(words, env=environment, check=True, capture_output=True, text=True)
    return done.stdout.split()


@pytest.mark.parametrize("kind", ["native", "portable"])
def test_the_same_question_gets_the_same_bytes(tmp_path: Path, kind: str) -> None:
    path, database = tmp_path / "m.onnx", tmp_path / "p.sqlite"
    onnx.save(upscaler(), path)
    first, second = (hashes(path, "static", database, kind, seed) for seed in (1, 2))
    assert first == second
    assert first[3] == "True"
    assert not database.exists()
    before = hashes(path, "measured", database, kind, 3)
    assert int(before[2]) > 0
    one, other = (hashes(path, "measured", database, kind, seed) for seed in (4, 5))
    assert one == other
    assert one[2] == "0"  # everything, the models as a whole too, comes from the database


def test_the_command(tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, report = tmp_path / "m.onnx", tmp_path / "r.json"
    onnx.save(upscaler(), path)
    words = ["optimize", str(path), "--cost", "static", "--threads", "1", "--report", str(report)]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0] == "m.onnx  (cpu, native)"
    assert "saturate 0/1: region 0" in captured.err
    found = json.loads(report.read_text())
    assert found["kernels"]
    assert "us expected, the cheapest of " in captured.out
    expected = found["expectation"]
    assert expected["bound"] == pytest.approx(expected["seconds"])
    assert expected["unmeasured"] > 0
    assert expected["measurements"] == 0
    assert main(["check", str(path), str(tmp_path / "m.opt.onnx")]) == 0


def test_nothing_faster_is_an_unchanged_copy(tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(build([node("Relu", "x", "y")], {"x": [3]}, {"y": [3]}), path)
    assert main(["optimize", str(path), "-q", "-o", str(tmp_path / "o.onnx")]) == 0
    assert onnx.load(tmp_path / "o.onnx") == onnx.load(path)
    assert main(["optimize", str(path)]) == 0
    assert "kept unchanged: no part of the model is inside the algebra" in capsys.readouterr().out


def test_rejected_models_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(build([node("No", "x", "y", domain="no")], {"x": [3]}, {"y": [3]}, domains=["no"]), path)
    assert main(["optimize", str(path), "-q"]) == 3
    captured = capsys.readouterr()
    assert captured.err.startswith(f"egraph-opt: error: {path} does not load in onnxruntime")
    assert captured.err.count("\n") == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.onnx"]


def test_time_limits(tmp_path: Path) -> None:
    model = chain_of_regions(3)
    late = optimize(model, time_limit=1e-6, threads=1, profile_db=tmp_path / "p.sqlite")
    assert late.report.unchanged_because.startswith("the time limit was reached")
    assert late.model == model
    in_time = static(model, time_limit=100.0)
    assert in_time.report.changed


def test_large_models_take_a_data_file(tmp_path: Path, home: Path, monkeypatch) -> None:
    from egraph_opt.frontends import onnx_writer

    monkeypatch.setattr(onnx_writer, "LARGEST_MODEL", 1000)
    model = build(
        [node("MatMul", "x w", "p"), node("Relu", "p", "r"), node("Add", "r x", "y")],
        {"x": [1, 32]},
        {"y": [1, 32]},
        {"w": normal(32, 32) / 8},
    )
    result = static(model)
    assert result.report.changed
    assert result.model.graph.initializer[0].raw_data
    assert not wrong(model, result, {"x": normal(1, 32)})
    assert re.fullmatch(r"fast\.onnx\.[0-9a-f]{16}\.data", result.save(tmp_path / "fast.onnx")[-1].name)
    assert result.model.graph.initializer[0].raw_data


@pytest.mark.parametrize("shape", [[], ["--shape", "N=1,2"]])
def test_a_profile_database_that_is_not_used_is_told_even_when_quiet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shape: list[str]
) -> None:
    database = tmp_path / "profile.sqlite"
    database.write_text("this is no database")
    nodes = [node("MatMul", "x w", "a"), node("MatMul", "a w", "y")]
    batch = "N" if shape else 4
    model = build(nodes, {"x": [batch, 8]}, {"y": [batch, 8]}, {"w": normal(8, 8)})
    onnx.save(model, tmp_path / "model.onnx")
    words = ["optimize", str(tmp_path / "model.onnx"), "--portable", "--profile-db", str(database), *shape]
    assert main([*words, "--threads", "1", "-q", "--report", str(tmp_path / "report.json")]) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert line.startswith(f"egraph-opt: warning: profile database {database} is not used: ")
    (warning,) = json.loads((tmp_path / "report.json").read_text())["warnings"]
    assert line.endswith(warning)
