"""Models whose weights lie in files are the same models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from egraph_opt.frontends import onnx_inference, onnx_storage, onnx_weights, onnx_writer
from egraph_opt.frontends.onnx_reader import load
from egraph_opt.frontends.onnx_storage import store, stored, stored_bytes
from egraph_opt.frontends.onnx_weights import array_of, bring_in
from egraph_opt.frontends.onnx_writer import rebuild, serialized
from tests.pipeline.support import answers, build, node, normal

FEEDS = {"x": normal(1, 40)}


def model() -> onnx.ModelProto:
    nodes = [node("MatMul", "x w", "p"), node("Relu", "p", "r"), node("MatMul", "r v", "q"), node("Add", "q b", "y")]
    weights = {"w": normal(40, 50) / 8, "v": normal(50, 40) / 8, "b": normal(40), "none": np.zeros((0, 3), np.float32)}
    made = build(nodes, {"x": [1, 40]}, {"y": [1, 40]}, weights)
    made.graph.initializer.add(name="empty", data_type=1, dims=[0])
    made.graph.initializer[0].doc_string = "a weight"
    made.metadata_props.add(key="a", value="b")
    return made


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_storage, "APART", 1000)
    monkeypatch.setattr(onnx_weights, "SMALLEST", 1000)
    monkeypatch.setattr(onnx_inference, "SMALL_ELEMENTS", 100)


def test_pieces_are_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = model().SerializeToString(deterministic=True)
    assert serialized(model(), "") == whole
    for least in (1, 100, 5000):  # lengths of one, two and three bytes
        monkeypatch.setattr(onnx_writer, "LARGEST_PIECE", least)
        written = serialized(model(), "")
        assert onnx.ModelProto.FromString(written) == model()
        assert len(written) == len(whole)


def test_a_stored_model_refers_to_its_weights(tmp_path: Path) -> None:
    found = stored(model(), tmp_path / "a")
    large = {tensor.name for tensor in found.graph.initializer if not tensor.raw_data and tensor.external_data}
    assert large == {"w", "v"}
    assert found.ByteSize() < 2000
    assert stored_bytes(tmp_path / "a" / "model.onnx") > 4 * (40 * 50 + 50 * 40)
    for tensor in found.graph.initializer:
        expected = next(entry for entry in model().graph.initializer if entry.name == tensor.name)
        assert np.array_equal(array_of(tensor), onnx.numpy_helper.to_array(expected))
    assert bring_in(found) == model()


def test_arrays_are_views_of_the_file(tmp_path: Path) -> None:
    loaded = load(model(), parsed=lambda read: stored(read, tmp_path / "a"))
    assert isinstance(loaded.constants["w"].base, np.memmap)
    assert not loaded.constants["w"].flags.writeable
    assert not isinstance(loaded.constants["b"].base, np.memmap)


def test_what_is_built_from_a_stored_model(tmp_path: Path) -> None:
    loaded = load(model(), parsed=lambda read: stored(read, tmp_path / "a"))
    built = rebuild(loaded, (), {})
    again = stored(built, tmp_path / "b")
    path = store(built, tmp_path / "c")
    assert (tmp_path / "b" / "model.onnx").read_bytes() == path.read_bytes()
    expected = answers(model(), FEEDS)[0]
    assert np.allclose(answers(bring_in(again), FEEDS)[0], expected)
    assert np.allclose(answers(onnx.load(path), FEEDS)[0], expected)
    # Whole again in one file: it refers to nothing.
    assert np.allclose(answers(onnx.ModelProto.FromString(serialized(built, "")), FEEDS)[0], expected)


def test_odd_types_stay_in_memory(tmp_path: Path) -> None:
    odd = model()
    odd.graph.initializer.add(name="i4", data_type=onnx.TensorProto.INT4, dims=[4000], raw_data=bytes(2000))
    odd.graph.initializer.add(name="short", data_type=onnx.TensorProto.FLOAT, dims=[4000], raw_data=bytes(2000))
    found = stored(odd, tmp_path / "a")
    assert {t.name for t in found.graph.initializer if t.external_data} == {"w", "v"}
    assert bring_in(found) == odd
