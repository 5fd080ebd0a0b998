"""The coverage of current architectures: the command, its table, and every architecture optimized and verified."""

import json
import math
from functools import partial

import onnx
import pytest

from bench import coverage
from bench.coverage import Coverage, Outcome, Row, covered, format_row, main, with_logits
from bench.models.architectures import ARCHITECTURES, FULL
from bench.models.architectures_vision import SOME_EFFICIENT_BLOCKS, SOME_MOBILE_BLOCKS
from bench.models.light import light
from egraph_opt.backends.environment import working_compiler

INSIDE = Coverage("m", 0, 99, 1, {"And": 1})
# Each in one of the two modes, Swin in both: the command tries all.
NATIVE = ("mobilenetv3", "vit", "swin", "t5_encoder", "unet")
PORTABLE = ("resnet50", "efficientnet_b0", "convnext", "bert", "gpt2", "swin")
# Without the explanation, which has tests of its own, all of them take half a minute.
SHALLOW = {
    "mobilenetv3": {"blocks": SOME_MOBILE_BLOCKS[:3]},
    "efficientnet_b0": {"blocks": SOME_EFFICIENT_BLOCKS[:3]},
    "swin": {"depths": (2,), "heads": (2,)},
    "bert": {"depth": 2},
    "gpt2": {"depth": 2},
    "t5_encoder": {"depth": 2},
}


@pytest.fixture
def unexplained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("egraph_opt.pipeline._Optimization._explain", lambda *_: None)
    small = {name: partial(build, **SHALLOW.get(name, {})) for name, build in ARCHITECTURES.items()}
    monkeypatch.setattr(coverage, "ARCHITECTURES", small)
    # Fewer layers have relatively more around them.
    monkeypatch.setattr(coverage, "LEAST_SHARE", 0.9)


@pytest.mark.usefixtures("unexplained")
@pytest.mark.parametrize(("name", "portable"), [*((n, False) for n in NATIVE), *((n, True) for n in PORTABLE)])
def test_an_architecture_is_optimized_and_verified(name, portable):
    if not portable and working_compiler()[0] is None:
        pytest.skip("no C compiler")
    row = covered(name, portable)
    assert not row.problem, row
    assert row.outcome is not None
    assert row.outcome.error is not None
    assert row.outcome.error < 1e-4
    assert (row.outcome.kernels > 0) != portable


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (Row("m", INSIDE, Outcome(False, error=1e-7)), ""),
        (Row("m", failure="boom"), "boom"),
        (Row("m", INSIDE, Outcome(False)), "not verified"),
        (
            Row("m", INSIDE, Outcome(False, "nothing faster", ("region 0: no",))),
            "unchanged: nothing faster; region 0: no",
        ),
        (Row("m", INSIDE, Outcome(False, "", ("region 0: no",), 0.0)), "1 reverted: region 0: no"),
        (Row("m", Coverage("m", 0, 9, 1, {"And": 1}), Outcome(False, error=0.0)), "too many nodes are outside"),
    ],
)
def test_what_is_a_problem(row, problem):
    assert row.problem == problem
    assert row.problem in format_row(row, False)


def test_shares():
    assert INSIDE.share == 0.99
    assert Coverage("m", 3, 0, 0, {}).share == 1.0
    assert "| 99.0 % |" in coverage.table([INSIDE])


def test_the_command(tmp_path, capsys):
    output = tmp_path / "rows.jsonl"
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("NonZero", ["x"], ["y"])],
            "g",
            [onnx.helper.make_tensor_value_info("x", 1, [2])],
            [onnx.helper.make_tensor_value_info("y", 7, None)],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=8,
    )
    path = tmp_path / "outside.onnx"
    onnx.save(model, path)
    assert main([str(path), "--only", "portable", "--output", str(output)]) == 1
    (row,) = [json.loads(line) for line in output.read_text().splitlines()]
    assert row["name"] == "outside"
    assert row["coverage"]["outside"] == {"NonZero": 1}
    assert row["problem"].startswith("unchanged")
    assert "1 models, 1 problems" in capsys.readouterr().out


def test_full_sizes_are_those_of_the_originals():
    assert set(FULL) == set(ARCHITECTURES)
    weights = {
        name: sum(
            math.prod(tensor.dims)
            for tensor in FULL[name](1).graph.initializer
            if tensor.data_type == onnx.TensorProto.FLOAT and "mask" not in tensor.name
        )
        for name in ("mobilenetv3", "efficientnet_b0", "swin")
    }
    # Millions of parameters of the originals: 5.5, 5.3, 28.3; normalizations are folded.
    assert {name: round(count / 1e6, 1) for name, count in weights.items()} == {
        "mobilenetv3": 5.5,
        "efficientnet_b0": 5.3,
        "swin": 28.3,
    }


def test_the_logits_of_real_graphs_are_compared():
    model = light("squeezenet")
    before = len(model.graph.output)
    assert len(with_logits(model).graph.output) == before + 1
    onnx.checker.check_model(model)
