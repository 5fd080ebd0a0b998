"""Models beyond what one protocol buffer can hold: weights in files of their own, in and out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import external_data_helper

from egraph_opt.backends.onnxruntime import make_session, run
from egraph_opt.cli import main
from egraph_opt.frontends import onnx_writer
from egraph_opt.frontends.onnx_reader import load
from tests.pipeline.support import answers, build, node, normal

FEEDS = {"x": normal(1, 40)}


def model() -> onnx.ModelProto:
    nodes = [node("MatMul", "x w", "p"), node("Relu", "p", "r"), node("MatMul", "r v", "q"), node("Add", "q b", "y")]
    weights = {"w": normal(40, 50) / 8, "v": normal(50, 40) / 8, "b": normal(40)}
    return build(nodes, {"x": [1, 40]}, {"y": [1, 40]}, weights)


def answer(path: Path) -> np.ndarray:
    library = path.with_name(path.name.removesuffix(".onnx") + ".kernels.so")
    session = make_session(path, kernel_library=library if library.exists() else None, threads=1, spin=False)
    return np.asarray(run(session, FEEDS)[0])


@pytest.mark.parametrize("kind", [[], ["--portable"]])
def test_weights_in_files_in_and_out(
    kind: list[str], tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    path, out = tmp_path / "in" / "m.onnx", tmp_path / "out" / "fast.onnx"
    out.parent.mkdir()
    onnx.save(model(), path, save_as_external_data=True, location="all.bin", size_threshold=100)
    monkeypatch.setattr(onnx_writer, "LARGEST_MODEL", 1000)
    assert main(["optimize", str(path), "-o", str(out), "-q", "--cost", "static", *kind]) == 0
    assert out.stat().st_size < 8000
    written = onnx.load(out, load_external_data=False)
    stored = [tensor for tensor in written.graph.initializer if external_data_helper.uses_external_data(tensor)]
    assert {entry.value for t in stored for entry in t.external_data if entry.key == "location"} == {
        path.name for path in out.parent.glob("fast.onnx.*.data")
    }
    assert all(int(e.value) % 4096 == 0 for t in stored for e in t.external_data if e.key == "offset")
    assert np.allclose(answer(out), answers(model(), FEEDS)[0], atol=1e-5)
    if not kind:
        return
    # It can be moved as a whole, and is accepted again.
    out.parent.rename(tmp_path / "moved")
    assert set(load(tmp_path / "moved" / "fast.onnx").constants) >= {"b"}
    assert main(["check", str(path), str(tmp_path / "moved" / "fast.onnx")]) == 0


def test_the_output_may_replace_the_input(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(model(), path, save_as_external_data=True, location="m.onnx.data", size_threshold=100)
    monkeypatch.setattr(onnx_writer, "LARGEST_MODEL", 1000)
    assert main(["optimize", str(path), "-o", str(path), "-q", "--cost", "static", "--portable"]) == 0
    assert np.allclose(answer(path), answers(model(), FEEDS)[0], atol=1e-5)
    # Its own data files are replaced, those of others stay.
    assert main(["optimize", str(path), "-o", str(path), "-q", "--cost", "static", "--portable"]) == 0
    assert (tmp_path / "m.onnx.data").exists()
    assert len(list(tmp_path.glob("m.onnx.*.data"))) == 1


def test_chunks_are_read_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_writer, "LARGEST_MODEL", 1000)
    original = model()
    before = original.SerializeToString()
    onnx_writer.serialized(original, "data")
    chunks = onnx_writer.weights(original)
    assert len(chunks) == 4
    assert b"".join(chunks) == b"".join(chunks[i] for i in range(4))
    assert chunks[1] == original.graph.initializer[0].raw_data
    assert original.SerializeToString() == before


LARGE = """
import os, sys, threading, time
from egraph_opt.cli import main
from egraph_opt.limits import held_by
peak = 0
def watch():
    global peak
    while True:
        peak = max(peak, held_by(os.getpid()))
        time.sleep(0.02)
threading.Thread(target=watch, daemon=True).start()
code = main(["optimize", *sys.argv[1:], "-q", "--cost", "static", "--portable", "--threads", "1"])
print(code, peak >> 20)
"""


@pytest.mark.skipif("RUN_LARGE" not in os.environ, reason="takes 10 GB of memory and of disk; set RUN_LARGE=1")
def test_a_weight_beyond_2_gib(tmp_path: Path) -> None:
    """A sparse file: all zeros, and yet larger than any protocol buffer."""
    side = 24_000
    path, out = tmp_path / "m.onnx", tmp_path / "o.onnx"
    small = build([node("MatMul", "x w", "p"), node("Relu", "p", "y")], {"x": [1, side]}, {"y": [1, side]})
    tensor = small.graph.initializer.add(name="w", data_type=1, dims=[side, side])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(4 * side * side)
    path.write_bytes(small.SerializeToString())
    done = subprocess.run([sys.executable, "-c", LARGE, str(path), "-o", str(out)], capture_output=True, text=True)
    code, megabytes = (int(word) for word in done.stdout.split())
    assert code == 0, done.stderr
    (stored,) = tmp_path.glob("o.onnx.*.data")
    assert stored.stat().st_size >= 4 * side * side
    assert megabytes <= 3 * 4 * side * side / 2**20 + 1024, megabytes
    print(f"{megabytes} MiB for {4 * side * side >> 20} MiB of weights")
