"""The e-graph for scripts: choosing rules and budgets, asking classes, extracting under any cost, and going back."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from typing import Any

import numpy as np
import pytest

import egraph_opt
from egraph_opt import EGraph, Pack, Rule, TensorVar, algebra, becomes, equal, rule_group
from egraph_opt.algebra import apply, convolution, evaluate, matmul, tensor, weight
from egraph_opt.backends.onnxruntime import make_session
from egraph_opt.egraph.saturate import Round
from egraph_opt.errors import EgraphOptError, UsageError
from egraph_opt.ir.interpreter import FloatArithmetic
from egraph_opt.ir.terms import Call, Compute, Reshape
from egraph_opt.packs import select
from egraph_opt.rules.schedule import Phase
from egraph_opt.scripting import StepInfo
from tests.pipeline.support import answers, build, chain_of_regions, drawn, node, normal

DRAW = np.random.default_rng(0)
WEIGHTS = {"w": DRAW.standard_normal((8, 16)), "v": DRAW.standard_normal((16, 4))}
x, w, v = tensor("x", (6, 8)), weight("w", (8, 16), WEIGHTS["w"]), weight("v", (16, 4), WEIGHTS["v"])
VALUES = {"x": DRAW.standard_normal((6, 8))}
network = apply("tanh", matmul(apply("relu", matmul(x, w)), v)) + 1


@rule_group
def distribution(x: TensorVar, y: TensorVar, z: TensorVar) -> Iterator[Rule | tuple[Rule, ...]]:
    yield equal("distributes", (x + y) * z, x * z + y * z, exactness="reassociates")


@rule_group
def commutes(x: TensorVar, y: TensorVar) -> Iterator[Rule]:
    yield becomes("product-commutes", x * y, y * x)


@rule_group
def wrong(x: TensorVar, y: TensorVar) -> Iterator[Rule]:
    yield becomes("forgets", x + y, x + x)


def operations(step: StepInfo) -> float:
    return step.operations


def steps(step: StepInfo) -> float:
    return 0 if step.is_reshape else 1


@pytest.fixture(scope="module")
def saturated() -> EGraph:
    egraph = EGraph.of(network)
    egraph.saturate()
    return egraph


def test_all_rules_are_used_by_default(saturated: EGraph) -> None:
    (done,) = saturated.saturations
    assert done.stop == "saturated"
    assert done.enodes == len(saturated)
    assert done.matches["matmul"] >= 2
    assert done.made["matmul"] >= 2
    lines = str(done).splitlines()
    assert any(line.startswith("matmul ") for line in lines)
    assert "every phase ran to its end" in str(done)


def test_only_the_rules_that_are_named_run() -> None:
    a, b, c = (tensor(name, (4,)) for name in "abc")
    egraph = EGraph.of((a + b) * c)
    done = egraph.saturate([distribution])
    assert {"matmul", "sum-splits"}.isdisjoint(done.matches)
    assert egraph.equal("y", a * c + b * c)
    assert not egraph.equal("y", c * (a + b))
    egraph.saturate([commutes])
    assert egraph.equal("y", c * (a + b))


@pytest.mark.parametrize(
    "chosen",
    [
        ["instantiation"],
        [Phase(next(p.group for p in select("").phases if p.group.name == "instantiation"), 1)],
        "-epilogue,-layout",
        select("-epilogue,-layout"),
    ],
)
def test_ways_to_name_rules(chosen: Any) -> None:
    egraph = EGraph.of(network)
    done = egraph.saturate(chosen)
    assert done.matches["matmul"] > 0
    assert {"fused-activation", "transpose"}.isdisjoint(done.matches)
    assert "MatMul" in egraph.members("t0").operators


def test_rules_of_ones_own_join_the_built_in_ones() -> None:
    a, b, c = tensor("a", (4, 4)), tensor("b", (4, 4)), tensor("c", (4, 4))
    egraph = EGraph.of((a @ b) * c)
    done = egraph.saturate(plus=[commutes])
    assert done.matches["product-commutes"] > 0
    assert done.matches["matmul"] > 0
    by_pack = EGraph.of((a @ b) * c).saturate([Pack("mine", (commutes,))])
    assert by_pack.matches["product-commutes"] > 0
    assert "matmul" not in by_pack.matches
    one = EGraph.of((a @ b) * c).saturate([commutes.rules[0], *distribution.rules])
    assert one.matches["product-commutes"] > 0


def test_refused_choices() -> None:
    egraph = EGraph.of(network)
    with pytest.raises(UsageError, match=r"unknown rule pack 'instantation' \(did you mean instantiation"):
        egraph.saturate(["instantation"])
    with pytest.raises(UsageError, match="42 is no rule group"):
        egraph.saturate([42])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="rounds is at least 1"):
        egraph.saturate(rounds=0)
    with pytest.raises(UsageError, match="plus adds to the built-in groups"):
        egraph.saturate(["layout"], plus=[commutes])


def test_budgets_stop_and_still_extract() -> None:
    image = tensor("i", (1, 3, 9, 9))
    y = convolution(image, weight("f", (4, 3, 5, 5), DRAW.standard_normal((4, 3, 5, 5))), pads=2, strides=2)
    whole = EGraph.of(y).saturate()
    small = EGraph.of(y)
    done = small.saturate(enodes=whole.enodes // 2)
    assert done.stop == "e-nodes"
    assert done.enodes < whole.enodes
    late = EGraph.of(y)
    assert late.saturate(seconds=0).stop == "time"
    once = EGraph.of(y).saturate(rounds=1)
    assert max(sum(r.phase == name for r in once.rounds) for name in ("phases", "windows")) == 1
    values = {"i": DRAW.standard_normal((1, 3, 9, 9))}
    for egraph in (small, late):
        found = egraph.extract(portable=False).evaluate(values)["y"]
        np.testing.assert_allclose(found, evaluate(y, values), atol=1e-4)


def test_progress_sees_every_round() -> None:
    seen: list[Round] = []
    done = EGraph.of(network).saturate(progress=seen.append)
    assert seen == done.rounds


def test_equal_adds_what_is_not_there() -> None:
    a, b, c = tensor("a", (4, 6)), tensor("b", (6, 4)), tensor("c", (4, 6))
    egraph = EGraph.of({"left": (a @ b) @ c, "right": a @ (b @ c)})
    assert not egraph.equal("left", "right")
    egraph.saturate()
    assert egraph.equal("left", "right")
    assert egraph.equal((a @ b) @ c, "right")
    assert not egraph.equal("left", a)
    assert not egraph.equal("left", a + c)
    assert egraph.equal(a.transpose().transpose(), a)  # simplified as soon as it is added
    assert egraph.equal("a", a)


def test_what_is_added_takes_part() -> None:
    a, b = tensor("a", (4,)), tensor("b", (4,))
    egraph = EGraph.of(a * b)
    egraph.add({"other": b * a})
    assert not egraph.equal("y", "other")
    egraph.saturate([commutes])
    assert egraph.equal("y", "other")
    program = egraph.extract()
    assert list(program.evaluate({"a": np.ones(4), "b": np.ones(4)})) == ["y"]
    with pytest.raises(UsageError, match="the name 'other' is taken"):
        egraph.add({"other": a + b})
    with pytest.raises(UsageError, match="'a' is known with another shape"):
        egraph.equal("y", tensor("a", (1,)) + b)
    with pytest.raises(UsageError, match="no tensor is named 'z'"):
        egraph.members("z")


def test_members_of_a_class(saturated: EGraph) -> None:
    members = saturated.members("t0")
    assert members.shape == (6, 16)
    assert "sum[i2<8](x[i0, i2] * w[i2, i1])" in members
    assert {"MatMul", "Gemm"} & set(members.operators)
    assert any(p.rules == ("matmul",) and algebra.text(p.term) == "MatMul(x, w)" for p in members.programs)
    assert members.enodes == tuple(sorted(members, key=lambda text: (len(text), text)))
    assert len(saturated.members(matmul(x, w))) == len(members)
    assert "MatMul(x, w)" in saturated.text("t0")
    assert saturated.text().splitlines()[0] == "let x: 6×8"


COSTS: dict[str, Any] = {
    "static": "static",
    "operations": operations,
    "bytes": lambda step: step.bytes,
    "steps": steps,
    "no kernels": lambda step: inf if step.is_kernel else steps(step),
    "largest shapes are best": lambda step: 1 / (1 + step.operations + step.bytes),
    "nothing costs anything": lambda step: 0,
}


@pytest.mark.parametrize("portable", [True, False])
@pytest.mark.parametrize("name", COSTS)
def test_extract_under_any_cost(saturated: EGraph, name: str, portable: bool) -> None:
    if name == "no kernels" and not portable:
        with pytest.raises(UsageError, match="no program of finite cost was found"):
            saturated.extract(cost=COSTS[name], portable=False)
        return
    program = saturated.extract(cost=COSTS[name], portable=portable)
    expected = evaluate(network, VALUES)
    np.testing.assert_allclose(program.evaluate(VALUES)["y"], expected, atol=1e-5)
    assert program.cost == pytest.approx(sum(program.costs.values()))
    assert set(program.costs) <= {step.name for step in program.plan.steps}
    assert f"return y = {program.plan.outputs['y']}" in str(program)
    if portable:
        assert program.kernels == 0
        model = program.to_onnx()
        (found,) = make_session(model.SerializeToString()).run(None, {"x": VALUES["x"].astype(np.float32)})
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert [value.name for value in model.graph.input] == ["x"]
        assert [value.name for value in model.graph.output] == ["y"]


def test_the_cost_decides(saturated: EGraph) -> None:
    fewest = saturated.extract(cost=steps, portable=False)
    assert fewest.cost == 1
    assert fewest.kernels == 1
    least = saturated.extract(cost=operations)
    # Two products, an activation each, and the addition.
    assert least.cost == 2 * 6 * 8 * 16 + 6 * 16 + 2 * 6 * 16 * 4 + 2 * 6 * 4
    assert saturated.extract(cost=operations, portable=False).cost <= least.cost


def test_what_a_cost_model_is_told(saturated: EGraph) -> None:
    seen: list[StepInfo] = []

    def watching(step: StepInfo) -> float:
        seen.append(step)
        return 1

    saturated.extract(cost=watching, portable=False)
    product = next(s for s in seen if s.operator == "MatMul" and s.arguments == ((6, 8), (8, 16)))
    assert (product.operations, product.result, product.constant) == (2 * 6 * 8 * 16, (6, 16), (False, True))
    assert product.bytes == 4 * (6 * 8 + 8 * 16 + 6 * 16)
    assert product.body is None
    assert str(product) == "MatMul(6×8, 8×16) -> 6×16"
    whole = next(s for s in seen if s.is_kernel and s.result == (6, 16) and set(s.arguments) == {(6, 8), (8, 16)})
    assert whole.operations in (2 * 6 * 8 * 16, 2 * 6 * 8 * 16 + 6 * 16)  # with or without the activation
    kernel = next(s for s in seen if s.is_kernel and s.arguments == ((6, 4),) and s.operations == 2 * 6 * 4)
    assert algebra.text(kernel.body).startswith("tanh(#")  # type: ignore[arg-type]
    assert kernel.bytes == 2 * 4 * 6 * 4
    assert all(s.bytes == s.operations == 0 for s in seen if s.is_reshape)


def test_wrong_cost_models(saturated: EGraph) -> None:
    with pytest.raises(UsageError, match="the cost model gave nan for"):
        saturated.extract(cost=lambda step: float("nan"))
    with pytest.raises(UsageError, match=r"the cost model gave -1\.0 for"):
        saturated.extract(cost=lambda step: -1)
    with pytest.raises(UsageError, match=r"no program .* was found"):
        saturated.extract(cost=lambda step: inf)
    with pytest.raises(UsageError, match="unknown cost model 'fast'"):
        saturated.extract(cost="fast")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="the cost model raised ZeroDivisionError for"):
        saturated.extract(cost=lambda step: 1 / 0)


def test_siblings_are_extracted_together() -> None:
    values = {f"w{i}": DRAW.standard_normal((8, 4)) for i in range(3)}
    heads = {f"h{i}": x @ weight(f"w{i}", (8, 4), values[f"w{i}"]) for i in range(3)}
    egraph = EGraph.of(heads)
    egraph.saturate()
    one = egraph.extract(cost=lambda step: 1 if step.operations else 0)
    assert one.cost == 1
    for name, expression in heads.items():
        np.testing.assert_allclose(one.evaluate(VALUES)[name], evaluate(expression, VALUES), atol=1e-5)


@pytest.mark.parametrize(("sizes", "best"), [((50, 3, 50, 3), 3 * 50 * 3 + 50 * 3 * 3), ((3, 50, 3, 50), 900)])
def test_products_are_associated_by_their_operations(sizes: tuple[int, int, int, int], best: int) -> None:
    m, k, n, p = sizes
    product = (tensor("a", (m, k)) @ tensor("b", (k, n))) @ tensor("c", (n, p))
    egraph = EGraph.of(product)
    egraph.saturate()
    assert egraph.extract(cost=operations).cost == 2 * best


def test_shared_work_is_computed_once() -> None:
    hidden = apply("exp", x)
    egraph = EGraph.of({"a": hidden.sum(1), "b": hidden.max(1)})
    egraph.saturate()
    assert egraph.extract(cost=lambda step: 10 * step.operations + (not step.is_reshape)).cost < 10 * (4 * 48)


def test_weights_without_values() -> None:
    egraph = EGraph.of(x @ weight("u", (8, 16)))
    egraph.saturate()
    program = egraph.extract(cost=operations)
    assert program.cost == 2 * 6 * 8 * 16
    assert "MatMul" in str(program)
    for use in (lambda: program.plan, program.to_onnx):
        with pytest.raises(UsageError, match="weight 'u' has no values"):
            use()
    with pytest.raises(UsageError, match="weight 'u' of shape"):
        program.evaluate(VALUES)
    found = program.evaluate({**VALUES, "u": WEIGHTS["w"]})["y"]
    np.testing.assert_allclose(found, VALUES["x"] @ WEIGHTS["w"])


def test_outputs_that_are_inputs_constants_or_equal() -> None:
    a = tensor("a", (2, 3))
    egraph = EGraph.of(
        {"same": a.transpose().transpose(), "one": a + 1, "again": 1 + a, "fixed": weight("f", (2,), [1, 2]) * 2}
    )
    egraph.saturate(["layout"])
    given = {"a": DRAW.standard_normal((2, 3))}
    program = egraph.extract()
    found = program.evaluate(given)
    session = make_session(program.to_onnx().SerializeToString())
    ran = dict(zip(found, session.run(list(found), {"a": given["a"].astype(np.float32)}), strict=True))
    expected = {"same": given["a"], "one": given["a"] + 1, "again": given["a"] + 1, "fixed": np.array([2.0, 4.0])}
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value)
        np.testing.assert_allclose(ran[name], value, atol=1e-6)


def test_results_do_not_depend_on_the_run(saturated: EGraph) -> None:
    again = EGraph.of(network)
    again.saturate()
    assert str(again.extract(cost=operations)) == str(saturated.extract(cost=operations))
    assert str(again.members("y")) == str(saturated.members("y"))


def test_raw_egglog() -> None:
    a, b = tensor("a", (4,)), tensor("b", (4,))
    egraph = EGraph.of(a * b)
    text = """(ruleset mine) (rule ((= e (Mul p q))) ((union e (Mul q p))
              (derived "turned" (NMul p q) (NMul q p))) :ruleset mine :name "turned")"""
    assert egraph.run_egglog(text) == []
    assert egraph.run_egglog("(run mine 2)") == ["changed; matches: turned 2"]
    assert egraph.run_egglog('(print-size Mul) (check (= (Named "y") (Mul p q)))') == ["2"]
    assert egraph.equal("y", b * a)
    assert egraph.saturate([]).made == {"turned": 2}
    for broken in ('(check (= (Named "y") (Add p q)))', "(no", "(sort Tensor)"):
        with pytest.raises(UsageError, match="egglog: "):
            egraph.run_egglog(broken)
    assert egraph.equal("y", b * a)


def test_judge_blames_the_wrong_rule() -> None:
    a, b = tensor("a", (4,)), tensor("b", (4,))
    egraph = EGraph.of((a + b) * 2)
    egraph.saturate([commutes])
    verdict = egraph.judge()
    assert verdict.checked > 3
    assert not verdict.mismatches
    assert not egraph.judge(arithmetic=FloatArithmetic()).mismatches
    egraph.saturate([wrong])
    assert {name for mismatch in egraph.judge().mismatches for name in mismatch.rules} >= {"forgets"}


def test_a_raising_rule_is_named() -> None:
    from egraph_opt import IntVar, holds

    def broken(k: int) -> bool:
        raise KeyError(k)

    @rule_group
    def faulty(x: TensorVar, k: IntVar) -> Iterator[Rule]:
        yield becomes("faulty", x.sum(k), x.sum(k), given=[holds(broken, k)])

    with pytest.raises(EgraphOptError, match="rule 'faulty': broken raised KeyError"):
        EGraph.of(x.sum(1)).saturate([faulty])


@pytest.mark.parametrize("seed", [0, 3, 5])
def test_models_come_back_with_the_same_answers(seed: int) -> None:
    original = drawn(seed)
    model = EGraph.of_model(original)
    assert not model.outside
    model.saturate(enodes=20_000)
    feeds = {
        value.name: normal(*(d.dim_value for d in value.type.tensor_type.shape.dim)) for value in original.graph.input
    }
    expected = answers(original, feeds)
    for cost in ("static", operations):
        extracted = model.extract(cost=cost)  # type: ignore[arg-type]
        written = extracted.to_onnx()
        assert {n.domain for n in written.graph.node} == {""}
        for one, other in zip(expected, answers(written, feeds), strict=True):
            np.testing.assert_allclose(other, one, atol=1e-4 * np.abs(one).max())
        assert extracted.cost == pytest.approx(sum(region.cost for region in extracted.regions))


def test_one_region_or_all_of_them() -> None:
    original = chain_of_regions(3)
    model = EGraph.of_model(original)
    assert len(model) == 3
    assert len(model.outside) == 3
    assert len(model.saturate()) == 3
    feeds = {"x": normal(3, 4)}
    expected = answers(original, feeds)
    first = model.regions[0].extract().to_onnx()
    for written in (first, model.extract().to_onnx()):
        for one, other in zip(expected, answers(written, feeds), strict=True):
            np.testing.assert_allclose(other, one, atol=1e-5)
    assert model.extract().text().startswith("region 0\n")
    (egraph, *_) = model
    assert egraph.equal("p0", tensor("x", (3, 4)) @ weight("w0", (4, 4)))
    assert egraph.equal("s0", tensor("r0", (3, 4)) + tensor("x", (3, 4)))


def test_a_model_without_regions() -> None:
    original = build([node("Round", "x", "y")], {"x": [3]}, {"y": [3]})
    model = EGraph.of_model(original)
    assert len(model) == 0
    assert model.outside
    assert model.extract().cost == 0
    feeds = {"x": normal(3)}
    np.testing.assert_array_equal(answers(model.extract().to_onnx(), feeds)[0], answers(original, feeds)[0])


def test_plans_hold_the_kinds_of_steps_they_should(saturated: EGraph) -> None:
    portable = saturated.extract(cost=operations).plan
    assert all(isinstance(step.buffer, Call | Reshape) for step in portable.steps)
    native = saturated.extract(portable=False).plan
    assert any(isinstance(step.buffer, Compute) for step in native.steps)


def test_public_names() -> None:
    assert egraph_opt.EGraph is EGraph
    assert egraph_opt.algebra is algebra
    assert egraph_opt.rule_group is rule_group
    missing = [name for name in egraph_opt.__all__ if not hasattr(egraph_opt, name)]
    assert not missing
