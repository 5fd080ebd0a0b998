"""The table of onnx's backend test-suite: every kind of failure lands in its class, and costs one case only."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bench.backend_suite import __main__ as command
from bench.backend_suite.cases import KINDS, Case, collect, with_weights
from bench.backend_suite.judge import CLASSES, Outcome, Reference, answer, interface_change
from bench.backend_suite.optimizers import Optimizer, ours
from bench.backend_suite.table import Row, complaints, sample, table
from bench.backend_suite.workers import answers, outcomes
from tests.bench import fake_optimizers as fake

EXPECTED = {
    fake.keep: "unchanged",
    fake.rename_nodes: "unchanged",
    fake.add_identity: "right",
    fake.reject: "rejected",
    fake.fail: "error",
    fake.write_nothing: "error",
    fake.write_garbage: "invalid",
    fake.use_unknown_operator: "invalid",
    fake.undefine_input: "invalid",
    fake.age: "invalid",
    fake.use_kernel_nobody_has: "invalid",
    fake.name_the_dimension: "interface changed",
    fake.fix_the_dimension: "interface changed",
    fake.add_input: "interface changed",
    fake.swap_outputs: "interface changed",
    fake.change_weight: "mismatch",
    fake.crash: "crash",
    fake.leave: "crash",
    fake.hang: "hang",
}
# Long enough for a busy machine to start and import what is needed, short enough to wait for.
PATIENCE = 25.0


def product(weight: float = 2.0) -> Case:
    """y = x * w with a symbolic dimension."""
    shape = ["n", 3]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.full(3, weight, np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Case(f"product by {weight}", "node", model.SerializeToString(), {"x": np.ones((2, 3), np.float32)})


def nothing(count: int, case: str, found: object) -> None:
    pass


@pytest.mark.parametrize("function", EXPECTED, ids=lambda function: function.__name__)
def test_each_failure_lands_in_its_class_and_the_next_case_runs(function, tmp_path: Path) -> None:
    cases = [product(), product(3.0)]
    references = [answer(case) for case in cases]
    seconds = PATIENCE if function is not fake.hang else 1.0
    found = outcomes(
        Optimizer("fake", function, "onnx"),
        list(zip(cases, references, strict=True)),
        processes=1,
        seconds=seconds,
        done=nothing,
        scratch=tmp_path,
    )
    assert [outcome.kind for outcome in found] == [EXPECTED[function]] * 2, found
    assert {outcome.kind for outcome in found} <= set(CLASSES)
    assert all(outcome.reason or outcome.right for outcome in found)


def test_a_crash_does_not_touch_the_cases_after_it(tmp_path: Path) -> None:
    case = product()
    reference = answer(case)
    names = []
    for function in (fake.crash, fake.add_identity):
        found = outcomes(
            Optimizer("fake", function, "onnx"),
            [(case, reference)],
            processes=1,
            seconds=PATIENCE,
            done=nothing,
            scratch=tmp_path,
        )
        names += [(outcome.kind, outcome.reason) for outcome in found]
    assert names == [("crash", "the process died of SIGSEGV"), ("right", "")]


def test_what_onnxruntime_does_not_run_is_told_apart(tmp_path: Path) -> None:
    model = product().model()
    model.graph.node[0].op_type = "NoSuchOperator"
    bad = Case("bad", "node", model.SerializeToString(), {})
    good, other = answers([product(), bad], processes=1, seconds=PATIENCE, done=nothing, scratch=tmp_path)
    assert not good.problem
    assert np.array_equal(good.outputs[0], np.full((2, 3), 2.0, np.float32))
    assert "NoSuchOperator" in other.problem


def test_random_outputs_are_compared_by_their_shapes() -> None:
    model = product().model()
    model.graph.node[0].CopyFrom(helper.make_node("RandomNormalLike", ["x"], ["y"]))
    del model.graph.initializer[:]
    found = answer(Case("random", "node", model.SerializeToString(), product().feeds))
    assert found.random == {0}
    assert answer(product()).random == frozenset()


def test_weights_that_may_be_overridden_belong_to_the_interface() -> None:
    model = product().model()
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [3]))
    fixed = product().model()
    assert interface_change(model, fixed) == "overridable weights w became none"
    assert interface_change(fixed, model) == ""
    model.ir_version = 3
    assert interface_change(model, fixed) == ""


def test_an_output_may_say_more_than_before_but_not_less() -> None:
    known, unknown = product().model(), product().model()
    unknown.graph.output[0].type.tensor_type.ClearField("shape")
    assert interface_change(unknown, known) == ""
    assert "any shape" in interface_change(known, unknown)


def test_all_cases_of_the_suite_are_collected() -> None:
    found = collect()
    assert {case.kind for case in found} == set(KINDS)
    if onnx.__version__.startswith("1.23."):
        assert len(found) == 2033
    assert len({case.name for case in found}) == len(found)
    assert all(case.model().ir_version <= 13 for case in found)
    one = next(case for case in found if case.name == "test_conv_with_strides_padding")
    assert [entry.name for entry in one.model().graph.input] == ["x", "W"]
    twin = with_weights(one)
    assert [entry.name for entry in twin.model().graph.input] == ["x"]
    assert list(twin.feeds) == ["x"]
    assert np.array_equal(numpy_helper.to_array(twin.model().graph.initializer[0]), one.feeds["W"])


@pytest.mark.parametrize("name", ["FLOAT_to_BFLOAT16", "BFLOAT16_to_FLOAT", "INT4_to_FLOAT", "FLOAT8E5M2_to_FLOAT"])
def test_types_unknown_to_numpy_run(monkeypatch, name: str) -> None:
    monkeypatch.setenv("ALLOW_RELEASED_ONNX_OPSET_ONLY", "0")
    (case,) = [case for case in collect(("node",)) if case.name == f"test_castlike_{name}_expanded"]
    found = answer(case)
    assert not found.problem
    assert found.random == frozenset()
    if name.endswith("to_FLOAT"):
        # These types are exact in float32, so numpy's own conversion is the answer.
        assert np.array_equal(found.outputs[0], case.feeds["input"].astype(np.float32), equal_nan=True)


def test_rotations_go_through_all_entries() -> None:
    entries = list(range(103))
    stride = -(-len(entries) // 10)
    samples = [sample(entries, 10, rotation) for rotation in range(stride)]
    assert all(len(one) <= 10 for one in samples)
    assert sorted(entry for one in samples for entry in one) == entries
    assert sample(entries, 10, stride + 3) == samples[3]
    assert sample(entries, 1000, 5) == entries
    assert sample([], 10, 5) == []


def test_the_table_counts_unchanged_ones_as_right() -> None:
    outcomes = {"a": Outcome("right"), "b": Outcome("unchanged"), "c": Outcome("mismatch", "too far")}
    rows = [Row("one", "1.0", "as it is", outcomes, 12.4, 20.0), Row("two", "not installed", "")]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table(rows).splitlines()]
    assert lines[0] == ["", "one 1.0", "two not installed"]
    assert ["right", "2", "–"] in lines
    assert ["of these unchanged", "1", "–"] in lines
    assert ["mismatch", "1", "–"] in lines
    assert ["seconds", "12", "–"] in lines
    assert ["processor seconds", "20", "–"] in lines
    assert "one: as it is" in table(rows)
    assert complaints(rows).splitlines() == ["one: 1 of 3 not right", "  c: mismatch: too far"]


def test_the_command_writes_the_table_and_its_file(tmp_path: Path, monkeypatch, capsys) -> None:
    missing = Optimizer("missing", fake.keep, "no-such-package")
    monkeypatch.setattr(command, "PEERS", [Optimizer("wrong", fake.crash, "onnx"), missing])
    monkeypatch.setattr(command, "ours", lambda **options: Optimizer("egraph-opt", fake.keep, "onnx"))
    path = tmp_path / "results.json"
    assert command.main(["--only", "^test_(relu|abs)$", "--json", str(path), "--timeout", str(PATIENCE)]) == 0
    found = json.loads(path.read_text(encoding="utf-8"))
    assert [entry["name"] for entry in found["optimizers"]] == ["egraph-opt", "wrong", "missing"]
    assert found["optimizers"][0]["counts"]["unchanged"] == 2
    assert set(found["optimizers"][1]["not_right"]) == {"test_relu", "test_abs"}
    assert found["optimizers"][2]["cases"] == 0
    shown = capsys.readouterr().out
    assert "2 cases, 2 run" in shown
    assert "not installed" in shown
    monkeypatch.setattr(command, "ours", lambda **options: Optimizer("egraph-opt", fake.fail, "onnx"))
    assert command.main(["--only", "^test_relu$", "--no-peers", "--timeout", str(PATIENCE)]) == 1


def test_this_optimizer_is_right_on_a_case(tmp_path: Path) -> None:
    case = product()
    (found,) = outcomes(
        ours(force=True),
        [(case, Reference(answer(case).outputs))],
        processes=1,
        seconds=60,
        done=nothing,
        scratch=tmp_path,
    )
    assert found.right, found
