"""The README's Python examples run as they are printed, in order, in one folder with a small model."""

import re
from pathlib import Path
from types import CodeType

import onnx
import pytest
from onnx import TensorProto, helper

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


def block(text: str) -> CodeType:
    """The only example that has this text."""
    (found,) = (block for block in BLOCKS if text in block)
    return compile(found, "README.md", "exec")


def small_model() -> onnx.ModelProto:
    """A transposed convolution with ReLU, whose optimized form is known to differ from it."""
    weight = helper.make_tensor(
        "w", TensorProto.FLOAT, [64, 48, 4, 4], [0.01 * (i % 7 - 3) for i in range(64 * 48 * 16)]
    )
    nodes = [
        helper.make_node("ConvTranspose", ["x", "w"], ["t"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["t"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [8, 64, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [8, 48, 16, 16])
    graph = helper.make_graph(nodes, "small", [x], [y], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_python_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    onnx.save(small_model(), "model.onnx")
    names: dict[str, object] = {}
    exec(block("result.save("), names)  # the example itself asserts that the answers are equal
    printed = capsys.readouterr().out
    assert "operators" in printed
    assert Path("model.opt.onnx").is_file()
    if Path("model.opt.kernels.so").is_file():
        exec(block("register_custom_ops_library"), names)


def test_the_cost_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(small_model(), "model.onnx")
    names: dict[str, object] = {}
    exec(block("egraph_opt.costs"), names)
    assert "intermediate buffers, peak" in names["cheap"].report.table()  # type: ignore[attr-defined]


def test_no_example_is_left_out() -> None:
    assert len(BLOCKS) == 4


def test_the_rule_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(block("check_rule"), {"__name__": "readme"})
    assert "6,400" in capsys.readouterr().out
