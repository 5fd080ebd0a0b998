"""A kernel that cannot be built is left out of the choice: it costs neither its region nor the run."""

from collections.abc import Callable

import pytest

from egraph_opt import measuring
from egraph_opt.backends import tvm_build
from egraph_opt.backends.tvm_emit import CodeTooLongError
from tests.pipeline.support import build, chain_of_regions, node, normal, static, wrong

REASON = "a generated kernel became too long"


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], bool], BaseException], list[str]]:
    """Makes compiling fail for the kernels whose number, in order of their first compilation, is told."""

    def refuse(when: Callable[[int], bool], error: BaseException) -> list[str]:
        asked: list[str] = []
        compile_object = tvm_build.compile_object

        def wrapper(kernel: tvm_build.AnyKernel, *arguments: object) -> bytes:
            if kernel.name not in asked:
                asked.append(kernel.name)
            if when(asked.index(kernel.name)):
                raise error
            return compile_object(kernel, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(tvm_build, "compile_object", wrapper)
        return asked

    return refuse


@pytest.mark.parametrize("error", [CodeTooLongError(REASON), RuntimeError(REASON), RecursionError(REASON)])
def test_another_plan_is_chosen_without_it(refused, error) -> None:
    asked = refused(lambda number: number == 0, error)
    model = chain_of_regions(2)
    result = static(model)
    assert result.report.changed
    assert not result.report.reverted
    assert asked[0] not in {n.op_type for n in result.model.graph.node}
    assert [note for note in result.report.notes if REASON in note and note.startswith("1 kernel")]
    assert not wrong(model, result, {"x": normal(3, 4)})


def test_without_any_kernel_standard_operators_remain(refused) -> None:
    refused(lambda number: True, CodeTooLongError(REASON))
    model = build(
        [node("MatMul", "x w", "p"), node("Add", "p b", "q"), node("Relu", "q", "r"), node("MatMul", "r w", "y")],
        {"x": [3, 4]},
        {"y": [3, 4]},
        {"w": normal(4, 4), "b": normal(4)},
    )
    result = static(model)
    assert result.report.changed
    assert not result.report.reverted
    assert result.library is None
    assert not result.report.kernels
    assert not wrong(model, result, {"x": normal(3, 4)})


def test_the_choice_is_repeated_a_bounded_number_of_times(refused, monkeypatch) -> None:
    monkeypatch.setattr(measuring, "BUILDING_ROUNDS", 1)
    asked = refused(lambda number: True, CodeTooLongError(REASON))
    result = static(chain_of_regions(1))
    assert len(asked) <= 2
    assert [entry.reason for entry in result.report.reverted] in ([], [REASON])


def test_the_same_model_twice_is_the_same(refused) -> None:
    model = chain_of_regions(2)
    models = []
    for _ in range(2):
        refused(lambda number: number == 0, CodeTooLongError(REASON))
        models.append(static(model).model.SerializeToString())
    assert models[0] == models[1]
