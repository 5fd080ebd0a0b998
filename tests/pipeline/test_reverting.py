"""A region that fails anywhere goes back to its original nodes; the others stay optimized, and the report says why."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from egraph_opt import candidates, saturation
from egraph_opt.backends import tvm_build
from egraph_opt.backends.session_process import SessionProcess
from egraph_opt.errors import EgraphOptError, InputRejected
from egraph_opt.extract import alternatives, search
from egraph_opt.extract.implement import Implementer
from egraph_opt.frontends.onnx_emit import NotExpressible
from egraph_opt.ir.program import Plan
from tests.pipeline.support import build, chain_of_regions, node, normal, static, wrong

FEEDS = {"x": normal(3, 4)}


def of_region(number: int) -> Callable[..., bool]:
    """Tells whether any argument is a program, problem or plan that computes the region's output."""

    def found(*arguments: Any) -> bool:
        for argument in arguments:
            for field in ("outputs", "roots"):
                if f"s{number}" in (getattr(argument, field, None) or ()):
                    return True
            if isinstance(argument, tuple) and f"s{number}" in argument:
                return True
        return False

    return found


def failing(function: Callable[..., Any], when: Callable[..., bool], error: BaseException) -> Callable[..., Any]:
    def wrapper(*arguments: Any, **options: Any) -> Any:
        if when(*arguments):
            raise error
        return function(*arguments, **options)

    return wrapper


class Panic(BaseException):
    """What a Rust panic looks like in Python."""


@pytest.mark.parametrize(
    ("owner", "name", "error", "reason"),
    [
        (saturation.Saturator, "saturate", EgraphOptError("no room"), "no room"),
        (saturation.Saturator, "saturate", Panic("rust"), "internal error: Panic: rust"),
        (saturation.Saturator, "saturate", RecursionError(), "its terms are nested too deeply"),
        (alternatives.Extraction, "problem", KeyError("k"), "internal error: KeyError: 'k'"),
        (search, "build_plan", EgraphOptError("weights too large"), "weights too large"),
        (Implementer, "implement", NotExpressible("not at opset 7"), "not at opset 7"),
        (Implementer, "implement", IndexError("5"), "internal error: IndexError: 5"),
    ],
)
def test_failures_of_one_region(monkeypatch, owner: Any, name: str, error: BaseException, reason: str) -> None:
    model = chain_of_regions(3)
    monkeypatch.setattr(owner, name, failing(getattr(owner, name), of_region(1), error))
    result = static(model)
    assert result.report.changed
    assert [(entry.region, entry.reason, entry.nodes) for entry in result.report.reverted] == [("1", reason, 3)]
    assert [n.op_type for n in result.model.graph.node].count("MatMul") >= 1
    assert "w1" in {tensor.name for tensor in result.model.graph.initializer}
    assert not wrong(model, result, FEEDS)


def test_interruption_is_no_failure(monkeypatch) -> None:
    monkeypatch.setattr(
        saturation.Saturator, "saturate", failing(saturation.Saturator.saturate, of_region(1), KeyboardInterrupt())
    )
    with pytest.raises(KeyboardInterrupt):
        static(chain_of_regions(2))


def spoiled(numbers: set[int], amount: float = 0.5) -> Callable[[Implementer, Plan], Plan]:
    """An Implementer.implement whose plans for some regions compute something else."""
    implement = Implementer.implement

    def wrapper(self: Implementer, plan: Plan) -> Plan:
        found = implement(self, plan)
        if any(of_region(number)(plan) for number in numbers):
            name, value = next((n, v) for n, v in found.constants.items() if v.size > 1)
            found = replace(found, constants={**found.constants, name: np.asarray(value + amount, np.float32)})
        return found

    return wrapper


@pytest.mark.parametrize("guilty", [{0}, {4}, {1, 2}, {0, 1, 2, 3, 4}])
def test_wrong_answers_are_traced_to_their_regions(monkeypatch, guilty: set[int]) -> None:
    model = chain_of_regions(5)
    monkeypatch.setattr(Implementer, "implement", spoiled(guilty))
    result = static(model)
    assert {int(entry.region) for entry in result.report.reverted} == guilty
    assert all("differs by" in entry.reason for entry in result.report.reverted)
    assert result.report.changed == (len(guilty) < 5)
    assert not wrong(model, result, FEEDS)


def test_regions_that_are_wrong_only_together(monkeypatch) -> None:
    attempt = candidates.Prover._attempt
    monkeypatch.setattr(
        candidates.Prover, "_attempt", lambda self, plans: "wrong" if {0, 3} <= set(plans) else attempt(self, plans)
    )
    model = chain_of_regions(4)
    result = static(model)
    assert result.report.changed
    reasons = {entry.region: entry.reason for entry in result.report.reverted}
    assert reasons == dict.fromkeys("23", "wrong only together with other regions: wrong")
    assert not wrong(model, result, FEEDS)


def test_a_library_that_cannot_be_built_reverts(monkeypatch) -> None:
    def build_library(*arguments: Any, **options: Any) -> None:
        raise EgraphOptError("gcc could not link")

    monkeypatch.setattr(tvm_build, "build_library", build_library)
    result = static(chain_of_regions(2))
    assert result.report.unchanged_because == "nothing faster was found"
    assert {entry.reason for entry in result.report.reverted} == {"gcc could not link"}
    assert result.library is None


def test_large_errors_against_float64_are_not_accepted(monkeypatch) -> None:
    model = build(
        [node("MatMul", "x w", "p"), node("Relu", "p", "y")], {"x": [3, 8]}, {"y": [3, 4]}, {"w": normal(8, 4)}
    )
    exact = static(model)
    assert exact.report.changed
    accuracy = exact.report.accuracy
    assert accuracy is not None
    assert accuracy.original_float64 is not None
    assert accuracy.optimized_float64 is not None
    assert accuracy.optimized_float64 <= max(10 * accuracy.original_float64, 2e-6)

    implement = Implementer.implement

    def imprecise(self: Implementer, plan: Plan) -> Plan:
        found = implement(self, plan)
        values = {n: np.asarray(v * np.float32(1 + 5e-5), np.float32) for n, v in found.constants.items()}
        return replace(found, constants=values)

    monkeypatch.setattr(Implementer, "implement", imprecise)  # within the tolerance of the comparison
    result = static(model)
    assert not result.report.changed
    assert "times the original's" in result.report.reverted[0].reason


def test_random_outputs_are_not_compared_by_value() -> None:
    nodes = [
        node("MatMul", "x w", "p"),
        node("Relu", "p", "a"),
        node("RandomNormalLike", "a", "n"),
        node("Add", "a n", "y"),
    ]
    model = build(nodes, {"x": [3, 4]}, {"a": [3, 4], "y": [3, 4]}, {"w": normal(4, 4)})
    result = static(model)
    assert result.report.changed
    assert not result.report.reverted


def test_nothing_is_compared_when_so_asked(monkeypatch) -> None:
    def never(*arguments: Any, **options: Any) -> None:
        raise InputRejected("must not be called")

    model = chain_of_regions(2)
    with monkeypatch.context() as patch:
        patch.setattr(SessionProcess, "run", never)
        result = static(model, verify=0)
    assert result.report.changed
    assert result.report.accuracy is None
    assert "nothing was verified, as asked" in result.report.notes
    assert not wrong(model, result, FEEDS)


def test_several_inputs_are_compared() -> None:
    accuracy = static(chain_of_regions(2), verify=3, seed=4).report.accuracy
    assert accuracy is not None
    assert (accuracy.inputs, accuracy.seed) == (3, 4)
