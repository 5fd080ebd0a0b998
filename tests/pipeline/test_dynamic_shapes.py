"""Symbolic dimensions: kept where nothing is said, bound to a length, or given programs for several lengths."""

from typing import Any

import numpy as np
import onnx
import pytest

from egraph_opt import specialization
from egraph_opt.backends.environment import find_compiler
from egraph_opt.cli.arguments import choice_of_lengths
from egraph_opt.errors import UsageError
from egraph_opt.frontends import onnx_dispatch
from egraph_opt.pipeline import optimize
from egraph_opt.runtime.explanation import KEY, unpacked
from egraph_opt.runtime.report import Report
from egraph_opt.verification import Judge
from tests.pipeline.support import answers, build, node, normal, static, upscaler

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="kernels need a C compiler")


def products() -> onnx.ModelProto:
    """x [N, 64] times two matrices, which are cheaper multiplied with each other first; to y [N, 8]."""
    nodes = [node("MatMul", "x v", "a"), node("MatMul", "a w", "b"), node("Tanh", "b", "y")]
    weights = {"v": normal(64, 256) / 16, "w": normal(256, 8) / 16}
    return build(nodes, {"x": ["N", 64]}, {"y": ["N", 8]}, weights)


def shapes(model: onnx.ModelProto) -> list[list[int | str]]:
    values = (*model.graph.input, *model.graph.output)
    return [[d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] for value in values]


def check(model: onnx.ModelProto, result: Any, *lengths: int) -> None:
    inner = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    for n in lengths:
        feeds = {"x": normal(n, *inner, seed=n)}
        expected, found = answers(model, feeds), result.session().run(None, feeds)
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-5, err_msg=f"N={n}")


def test_symbols_survive_where_nothing_is_said() -> None:
    result = static(upscaler("N"))
    assert not result.report.changed
    assert shapes(result.model) == [["N", 4, 6, 6], ["N", 3, 12, 12]]
    assert any("--shape N=8" in note for note in result.report.notes)


@pytest.mark.parametrize("given", [{"N": 2}, {"x": (2, 4, 6, 6)}])
def test_one_length_is_bound(given: dict[str, Any]) -> None:
    model = upscaler("N")
    result = static(model, shapes=given)
    assert result.report.changed
    assert shapes(result.model) == [[2, 4, 6, 6], [2, 3, 12, 12]]
    check(model, result, 2)


@needs_compiler
def test_several_lengths_share_one_model_and_one_kernel_library() -> None:
    model = upscaler("N")
    result = static(model, shapes={"N": [1, 3]})
    assert result.report.changed
    assert result.report.generated_kernels >= 2
    assert shapes(result.model) == [["N", 4, 6, 6], ["N", 3, 12, 12]]
    check(model, result, 1, 2, 3, 4)
    entries = result.report.specializations
    assert [(entry.lengths, entry.other) for entry in entries] == [
        ({"N": 1}, False),
        ({"N": 3}, False),
        ({"N": 4}, True),
    ]
    assert all(entry.accuracy is not None for entry in entries)
    assert Report.from_dict(result.report.to_dict()) == result.report
    assert "any other, as N=4: largest error" in result.report.table()
    (text,) = [entry.value for entry in result.model.metadata_props if entry.key == KEY]
    assert [part.name for part in unpacked(text).parts] == ["N=1: 0", "N=3: 0"]


def test_with_standard_operators_and_twice_the_same() -> None:
    model = products()
    one, two = (static(model, shapes={"N": (2,)}, portable=True) for _ in range(2))
    assert one.library is None
    assert one.report.changed
    assert one.model.SerializeToString(deterministic=True) == two.model.SerializeToString(deterministic=True)
    check(model, one, 2, 5)


def test_a_wrong_program_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = Judge.verdict

    def strict(self: Judge, candidate: Any, regions: Any) -> Any:
        return "made wrong" if self.shapes == {"x": [2, 64]} else verdict(self, candidate, regions)

    monkeypatch.setattr(Judge, "verdict", strict)
    model = products()
    result = static(model, shapes={"N": [2, 3]}, portable=True)
    assert [entry.dropped for entry in result.report.specializations] == ["made wrong", "", ""]
    assert sum(n.op_type == "If" for n in result.model.graph.node) == 1
    check(model, result, 2, 3)


@needs_compiler
def test_wrong_answers_for_other_lengths_give_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that took the program of N=2 for every length."""
    equal = onnx_dispatch._equal

    def always(emitter: Any, key: str, values: Any) -> str:
        found = equal(emitter, key, values)
        return str(emitter.node("Or", [found, emitter.node("Not", [found], emitter.fresh("n"))], emitter.fresh("o")))

    monkeypatch.setattr(onnx_dispatch, "_equal", always)
    model = upscaler("N")
    result = static(model, shapes={"N": [2]})
    assert not result.report.changed
    assert "at N=3, where the original should run" in result.report.unchanged_because
    assert result.model.SerializeToString() == model.SerializeToString()


@needs_compiler
def test_what_is_not_faster_inside_the_whole_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(specialization, "is_faster", lambda _: False)
    result = optimize(products(), shapes={"N": [512]}, threads=1)
    assert not result.report.changed
    (entry,) = result.report.specializations
    assert "not worthwhile" in entry.dropped or "nothing faster" in entry.dropped


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"K": 2}, "no symbolic dimension 'K'; they have N"),
        ({"N": 0}, "lengths of 'N' are whole numbers from 1 on, not 0"),
        ({"N": []}, "lengths of 'N' are whole numbers from 1 on"),
        ({"x": (2, 3)}, "input 'x' has the shape"),
        ({"N": 3, "x": (2, 4, 6, 6)}, "dimension 'N' cannot be both 3 and 2"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        static(upscaler("N"), shapes=given)


def test_the_option() -> None:
    assert choice_of_lengths("N=8") == ("N", 8)
    assert choice_of_lengths("N=8,*") == ("N", (8,))
    assert choice_of_lengths("N=1,4,16") == ("N", (1, 4, 16))
    assert choice_of_lengths("data[0]=4,*") == ("data[0]", (4,))
