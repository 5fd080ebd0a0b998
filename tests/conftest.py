"""Small models every test may use."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

SaveModel = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def own_lock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests that measure wait for nobody: neither for tests in other processes nor for the user's own measurements."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.getbasetemp()
        patch.setattr("egraph_opt.backends.machine_lock.default_cache_folder", lambda: folder)
        yield


@pytest.fixture
def save_model(tmp_path: Path) -> SaveModel:
    """Write a model ``y = operator(x @ w * scale)`` with x: [batch, 4] and return its path."""

    def save(
        name: str = "model.onnx", *, operator: str = "Relu", scale: float = 1.0, batch: int | str = 2, output: str = "y"
    ) -> Path:
        weights = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32) * np.float32(scale)
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node(operator, ["p"], [output])],
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, [batch, 3])],
            [numpy_helper.from_array(weights, "w")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        path = tmp_path / name
        onnx.save(model, path)
        return path

    return save


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of the test's own, so that no test touches the user's cache."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder
