"""Programs chosen by other things than time, and within a limit on memory."""

from pathlib import Path
from typing import Any

import pytest
from onnx import numpy_helper

from egraph_opt import measuring
from egraph_opt.cli import main
from egraph_opt.costs import Latency, StepInfo, blended
from egraph_opt.errors import UsageError
from egraph_opt.extract.search import GAP
from egraph_opt.frontends.onnx_memory import peak_of
from egraph_opt.frontends.onnx_reader import load
from egraph_opt.pipeline import optimize
from tests.pipeline.support import INT64, build, node, normal, upscaler, wrong

ROWS, COLUMNS = 96, 64


def outer() -> Any:
    """An outer sum, larger than all else by far, of which only the sum of every row is wanted."""
    nodes = [
        node("Add", "x c", "outer"),
        node("Tanh", "outer", "bent"),
        node("ReduceSum", "bent axes", "y", keepdims=0),
    ]
    weights = {"c": normal(1, COLUMNS), "axes": [1]}
    return build(nodes, {"x": [ROWS, 1]}, {"y": [ROWS]}, weights)


LARGE, SMALL = 4 * ROWS * COLUMNS, 4 * ROWS
FEEDS = {"x": normal(ROWS, 1, seed=1)}


@pytest.mark.parametrize(
    ("cost", "before", "after"),
    [
        ("launches", 3, 1),
        ("traffic", 4 * LARGE + 4 * COLUMNS + 2 * SMALL, 4 * COLUMNS + 2 * SMALL),
    ],
)
def test_the_objective_decides_and_is_reported(cost: str, before: float, after: float) -> None:
    result = optimize(outer(), cost=cost, threads=1)
    report = result.report
    assert not wrong(outer(), result, FEEDS)
    assert report.objective is not None
    assert (report.objective.name, report.objective.before, report.objective.after) == (cost, before, after)
    assert f"{cost} (estimated)" in report.table()
    assert report.latency is not None  # for information
    assert report.peak_memory.original == 2 * LARGE
    assert report.peak_memory.optimized is not None
    assert report.peak_memory.optimized < LARGE


def test_the_peak_of_memory_decides() -> None:
    report = optimize(outer(), cost="memory", threads=1).report
    assert report.objective is None
    assert report.peak_memory.original == 2 * LARGE
    assert report.peak_memory.optimized is not None
    assert report.peak_memory.optimized < LARGE


def test_standard_operators_are_chosen_by_an_objective_too() -> None:
    nodes = [node("Transpose", name, after, perm=[1, 0]) for name, after in ("xa", "ab")] + [node("MatMul", "b w", "y")]
    model = build(nodes, {"x": [8, 8]}, {"y": [8, 8]}, {"w": normal(8, 8)})
    result = optimize(model, cost="launches", portable=True, threads=1)
    assert result.report.objective is not None
    assert (result.report.objective.before, result.report.objective.after) == (3, 1)


def test_a_function_of_ones_own_decides() -> None:
    model = build(
        [node("MatMul", "x w", "a"), node("MatMul", "a v", "y")],
        {"x": [4, 32]},
        {"y": [4, 32]},
        {"w": normal(32, 32), "v": normal(32, 32)},
    )

    def products(step: StepInfo) -> float:
        return 1.0 if step.operator in ("MatMul", "Gemm") else 100.0 * step.operations

    result = optimize(model, cost=products, threads=1)
    assert result.report.objective is not None
    assert (result.report.objective.name, result.report.objective.before, result.report.objective.after) == (
        "products",
        2.0,
        1.0,
    )
    assert result.report.candidates.measured == 0
    with pytest.raises(UsageError, match="the cost model gave nan"):
        optimize(model, cost=lambda step: float("nan"))
    with pytest.raises(UsageError, match="unknown cost model 'speed'; choose measured, static, traffic"):
        optimize(model, cost="speed")


def test_a_proof_is_measured_to_its_end_and_once(tmp_path: Path) -> None:
    """Nothing is left to measure by another run, and no probe again."""
    runs = [
        optimize(upscaler(), prove=True, threads=1, profile_db=tmp_path / "profile.sqlite").report for _ in range(2)
    ]
    assert [run.candidates.measured > 0 for run in runs] == [True, False]
    assert runs[0].expectation is not None
    assert runs[0].expectation == runs[1].expectation
    assert runs[0].expectation.excess is not None
    assert runs[0].expectation.excess <= 2 * GAP
    with pytest.raises(UsageError, match="only what is measured can be proven"):
        optimize(upscaler(), prove=True, cost="static")


def test_where_the_machine_was_not_probed_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(measuring, "PROBING_SECONDS", 1e9)
    found = optimize(upscaler(), threads=1, profile_db=tmp_path / "profile.sqlite").report.expectation
    assert found is not None
    assert found.excess is None
    assert "chosen from" in str(found)


def test_a_blend_with_latency_measures_steps(tmp_path: Path) -> None:
    result = optimize(outer(), cost=blended({Latency(): 1.0}), threads=1, profile_db=tmp_path / "profile.sqlite")
    assert result.report.candidates.measured > 0


def test_the_fastest_program_within_a_limit_on_memory() -> None:
    limit = LARGE - 1
    result = optimize(outer(), peak_memory=limit, threads=1)
    assert result.report.changed
    assert result.report.peak_memory.optimized is not None
    assert result.report.peak_memory.optimized <= limit
    assert peak_of(load(result.model)) == result.report.peak_memory.optimized
    assert not wrong(outer(), result, FEEDS)


def test_a_limit_on_memory_counts_what_other_parts_hold() -> None:
    """A tensor of integers lies beside the part inside the algebra while that runs."""
    base = outer()
    nodes = [node("Cast", "x", "whole", to=INT64), node("Tile", "whole times", "tiled"), *base.graph.node]
    nodes.append(node("ReduceMax", "tiled", "z", keepdims=0))
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in base.graph.initializer}
    model = build(nodes, {"x": [ROWS, 1]}, {"y": [ROWS], "z": []}, weights | {"times": [1, 100]}, elements={"z": INT64})
    held = 8 * ROWS * 100
    found = {}
    for limit in (held + 2 * LARGE + 4096, held + LARGE - 1):
        result = optimize(model, peak_memory=limit, threads=1)
        assert result.report.peak_memory.original is not None
        found[limit] = result.report.peak_memory.optimized or result.report.peak_memory.original
        assert found[limit] <= limit, (limit, result.report.table())


def test_a_program_of_no_cost_is_found_within_a_limit() -> None:
    report = optimize(outer(), cost=lambda step: 0.0, peak_memory=LARGE - 1, threads=1).report
    assert report.peak_memory.optimized is not None
    assert report.peak_memory.optimized < LARGE


def test_a_limit_that_nothing_keeps_is_said() -> None:
    result = optimize(outer(), peak_memory=10, threads=1)
    assert any("no program was found that needs at most 10 B" in note for note in result.report.notes)


def test_cost_models_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import onnx

    model, mine = tmp_path / "model.onnx", tmp_path / "mine.py"
    onnx.save(outer(), model)
    mine.write_text("def steps(step):\n    return 0 if step.is_reshape else 1\n")
    assert main(["optimize", str(model), "--cost", f"{mine}:steps", "--threads", "1"]) == 0
    assert "steps (estimated)" in capsys.readouterr().out
    assert main(["explain", str(tmp_path / "model.opt.onnx")]) == 0
    explained = capsys.readouterr().out
    assert "expected to cost 1.00\n" in explained
    assert " us" not in explained
    for cost, problem in (
        ("speed", "unknown cost model 'speed'"),
        (f"{mine}:step", "has no cost model 'step' (did you mean steps?)"),
        (f"{tmp_path}/other.py:f", "No such file"),
    ):
        assert main(["optimize", str(model), "--cost", cost]) == 2
        assert problem in capsys.readouterr().err
