"""Whenever a run is ended, there is the old output or the new one, whole, and nothing else."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.hostile.build import good
from tests.pipeline.support import build, node, normal

WORDS = [
    sys.executable,
    "-m",
    "egraph_opt",
    "optimize",
    "m.onnx",
    "-o",
    "o.onnx",
    "-q",
    "--cost",
    "static",
    "--threads",
    "1",
]

DELAYS = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.5)


def started(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "HOME": str(folder),
        "TMPDIR": str(folder / "tmp"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    (folder / "tmp").mkdir(exist_ok=True)
    return subprocess.Popen([*WORDS, *words], cwd=folder, env=environment, start_new_session=True)


def outputs(folder: Path) -> dict[str, bytes]:
    """What a user sees beside the model; temporary files have hidden names."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name[0] not in ".m"}


def test_killing_leaves_the_old_files_or_the_new_ones(tmp_path: Path) -> None:
    onnx.save(good(), tmp_path / "m.onnx")
    begun = time.monotonic()
    assert started(tmp_path).wait() == 0
    duration = time.monotonic() - begun
    new = outputs(tmp_path)
    assert set(new) == {"o.onnx", "o.kernels.so"}
    onnx.load_from_string(new["o.onnx"])
    old = {"o.onnx": b"an old model", "o.kernels.so": b"an old library"}
    states = []
    # Three times while it computes, then at moments after it has begun to write.
    for wait, written in [*((share * duration, False) for share in (0.2, 0.5, 0.7)), *((d, True) for d in DELAYS)]:
        for name, content in old.items():
            (tmp_path / name).write_bytes(content)
        for path in (*tmp_path.glob(".*.onnx"), *tmp_path.glob(".*.so")):
            path.unlink()
        run = started(tmp_path)
        if written:
            before = signature(tmp_path)
            while signature(tmp_path) == before and run.poll() is None:
                time.sleep(0.0005)
        time.sleep(wait)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        time.sleep(0.1)  # the worker dies with its parent, not before
        found = outputs(tmp_path)
        assert found.keys() == old.keys()
        for name, content in found.items():
            assert content in (old[name], new[name]), f"{name} is neither the old nor the new one after {wait}"
        # The model is renamed last: a new model never stands beside an old library.
        assert not (found["o.onnx"] == new["o.onnx"] and found["o.kernels.so"] == old["o.kernels.so"])
        states.append(found["o.onnx"] == new["o.onnx"])
    assert not states[0]
    assert states[-1]


def signature(folder: Path) -> list[tuple[str, int, int]]:
    """Changes as soon as anything is written."""
    found = []
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith((".onnx", ".so")):
                status = entry.stat()
                found.append((entry.name, status.st_size, status.st_mtime_ns))
    return sorted(found)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_run_at_once_and_leave_nothing(number: signal.Signals, code: int, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    nodes = [node("MatMul", f"t{i} w{i % 7}", f"t{i + 1}") for i in range(60)]
    weights = {f"w{i}": draw.standard_normal((64, 64), dtype=np.float32) for i in range(7)}
    onnx.save(build(nodes, {"t0": [64, 64]}, {"t60": [64, 64]}, weights), tmp_path / "m.onnx")
    run = started(tmp_path)
    time.sleep(4)
    assert run.poll() is None, "it was too quick to be interrupted"
    os.kill(run.pid, number)
    assert run.wait(timeout=10) == code
    assert outputs(tmp_path) == {}
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_full_disk_leaves_the_old_files(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk."""
    weights = normal(256, 256)
    nodes = [node("MatMul", "x w", "p"), node("Relu", "p", "y")]
    onnx.save(build(nodes, {"x": [2, 256]}, {"y": [2, 256]}, {"w": weights}), tmp_path / "m.onnx")
    (tmp_path / "o.onnx").write_bytes(b"an old model")
    program = (
        "import resource, signal, sys; from egraph_opt.cli import main\n"
        "from egraph_opt.result import Result; save = Result.save\n"
        "def full(self, path):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000))\n"
        "    return save(self, path)\n"
        "Result.save = full\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    environment = os.environ | {"HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-c", program, *WORDS[3:], "--portable"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 5, done.stderr
    assert "File too large" in done.stderr
    assert outputs(tmp_path) == {"o.onnx": b"an old model"}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".") and path.is_file()]
