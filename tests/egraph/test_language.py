"""Declaring rules: what is refused, and what the kinds of rules do once they are declared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pytest

from egraph_opt.egraph.engine import EGraph
from egraph_opt.egraph.language import (
    BufferVar,
    IntVar,
    MapVar,
    Member,
    Pattern,
    Rule,
    RuleGroup,
    TensorVar,
    TextVar,
    apply,
    approximate,
    becomes,
    constant,
    each,
    equal,
    fill,
    holds,
    jointly,
    rule_group,
    together,
)
from egraph_opt.egraph.snapshot import Snapshot
from egraph_opt.egraph.soundness import judge
from egraph_opt.errors import EgraphOptError
from egraph_opt.ir import maps
from egraph_opt.ir.expr import Extents
from egraph_opt.ir.maps import IndexMap
from egraph_opt.ir.program import Program
from egraph_opt.ir.terms import Apply, Read, Reduce, Source, Tensor, View, add, mul

x, y, z = TensorVar("x"), TensorVar("y"), TensorVar("z")
b = BufferVar("b")
m = MapVar("m")
f = TextVar("f")
k, n = IntVar("k"), IntVar("n")


def _halved(index: IndexMap) -> list[tuple[IndexMap, Extents]]:
    return [(index, index.result)]


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "unbound variable": (lambda: becomes("r", x.sum(k), y.sum(k)), "'y' is not bound by the left-hand side"),
    "unbound in a condition": (
        lambda: becomes("r", x.sum(k), x.sum(k), given=[holds(bool, n)]),
        "'n' is not bound by the left-hand side",
    ),
    "unbound constant": (lambda: becomes("r", x.sum(k), x.sum(k), given=[constant(y)]), "'y' is not bound"),
    "a buffer in place of a tensor": (lambda: becomes("r", b.sum(k), b.sum(k)), "sum takes a tensor, not 'b'"),
    "a map in place of a number": (lambda: becomes("r", x.sum(m), x), "sum takes a number of axes, not 'm'"),
    "a number in place of a map": (lambda: becomes("r", x.view(k), x), "annotate it MapVar"),
    "a field of the wrong kind": (
        lambda: becomes("r", x.view(m), x.view(each(_halved, m).text(0))),
        "name the field with .map(…)",
    ),
    "a tensor becomes a buffer": (lambda: becomes("r", x.view(m), x.compute()), "a Tensor becomes a Buffer"),
    "ranks that differ": (lambda: becomes("r", x.sum(k), x), "their ranks differ by -1*k"),
    "ranks that differ by a constant": (lambda: becomes("r", x.sum(2), x.sum(1)), "their ranks differ by -1"),
    "operands of different ranks": (lambda: becomes("r", x * x.sum(1), x * x), "the operands of mul can never"),
    "two functions": (
        lambda: becomes("r", x.view(m), x.view(each(_halved, m).map(0)).view(each(lambda a: [(a,)], m).map(0))),
        "uses 2 each() values",
    ),
    "a computed left-hand side": (lambda: becomes("r", x.view(each(_halved, m).map(0)), x), "can only be computed"),
    "a sum of numbers on the left": (lambda: becomes("r", x.sum(n + k), x.sum(k).sum(n)), "adds numbers"),
    "an equation that forgets": (lambda: equal("r", x * fill(0, ()), fill(0, ())), "use becomes()"),
    "an unknown exactness": (lambda: becomes("r", x, x, exactness="roughly"), "unknown exactness"),  # type: ignore[arg-type]
    "a bound that is none": (lambda: approximate(2.0), "between 0 and 1"),
    "three arguments": (lambda: becomes("r", apply(f, x, y, z), x), "one or two arguments"),
    "a plain function as a condition": (
        lambda: becomes("r", x.sum(k), x.sum(k), given=[bool]),  # type: ignore[list-item]
        "given has bool, which is no condition; write holds(bool, …)",
    ),
    "a condition without a list": (
        lambda: becomes("r", x.sum(k), x.sum(k), given=holds(bool, k)),  # type: ignore[arg-type]
        "given is a list of conditions",
    ),
    "a tensor passed to a function": (
        lambda: becomes("r", x.sum(k), x.sum(k), given=[holds(bool, x)]),
        "'x' is passed to a Python function, which cannot see tensors; pass x.extents",
    ),
    "a map that is constant": (
        lambda: becomes("r", x.view(m), x, given=[constant(m)]),
        "asks about a tensor or buffer",
    ),
    "a bare variable": (lambda: becomes("r", x, x.sum(0)), "which matches everything"),  # type: ignore[arg-type]
    "one pair": (lambda: jointly("r", (x.sum(k), x.sum(k))), "at least two pairs"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_rule_that_cannot_be_right_is_refused(name: str) -> None:
    declare, message = REFUSED[name]
    with pytest.raises(EgraphOptError) as refused:
        declare()
    assert message in str(refused.value)
    assert name == "a bound that is none" or "rule 'r'" in str(refused.value)


def test_a_sum_of_numbers_may_use_literals_and_conditions_may_make_ranks_agree() -> None:
    becomes("fewer", x.sum(n), x.sum(n + -1).sum(1))
    becomes("alike", x.sum(n) * x.sum(k), x.sum(n) * x.sum(n), given=[holds(int.__eq__, n, k)])


def test_groups_refuse_repeated_names_and_unknown_annotations() -> None:
    with pytest.raises(EgraphOptError, match="two rules are named 'same'"):

        @rule_group
        def twice(x: TensorVar, k: IntVar) -> Iterator[Rule]:
            yield becomes("same", x.sum(k), x.sum(k))
            yield becomes("same", x.sum(k), x.sum(k))

    with pytest.raises(EgraphOptError, match="parameter 'x' is annotated 'float'; choose one of TensorVar"):

        @rule_group
        def untyped(x: float) -> Iterator[Rule]:
            yield becomes("never", x, x)  # type: ignore[arg-type]

    first = RuleGroup("first", (becomes("same", x.sum(k), x.sum(k)),))
    second = RuleGroup("second", (becomes("same", x.sum(k), x.sum(k)),))
    with pytest.raises(EgraphOptError, match="'same' is in group 'first' already"):
        EGraph().add_rules([first, second])


def _program(sources: Sequence[Source], result: Tensor) -> Program:
    return Program(tuple(sources), (("y", result),), ("y",))


def _run(program: Program, *rules: Rule) -> tuple[dict[str, int], Snapshot]:
    egraph = EGraph()
    egraph.add_rules([RuleGroup("alone", rules)])
    egraph.add_program(program)
    matches = dict(egraph.run("alone").matches)
    snapshot = Snapshot(egraph)
    generator = np.random.default_rng(0)
    values = {source.name: generator.integers(1, 1000, source.extents) for source in program.inputs}
    assert not judge(snapshot, values).mismatches
    return matches, snapshot


A, B, W = Source("a", (2, 3)), Source("b", (2, 3)), Source("w", (2, 3), True)


def test_equal_is_used_both_ways() -> None:
    rules = equal("distributes", (x + y) * z, x * z + y * z, exactness="reassociates")
    assert [rule.name for rule in rules] == ["distributes", "distributes-back"]
    there = mul(add(Read(A), Read(B)), Read(W))
    back = add(mul(Read(A), Read(W)), mul(Read(B), Read(W)))
    assert _run(_program((A, B, W), there), *rules)[0]["distributes"] == 1
    assert _run(_program((A, B, W), back), *rules)[0]["distributes-back"] == 1


def test_jointly_needs_all_its_terms() -> None:
    rule = jointly("pair", (apply("exp", x), apply("exp", x)), (apply("relu", x), apply("relu", x)))
    both = add(Apply("exp", (Read(A),)), Apply("relu", (Read(A),)))
    other = add(Apply("exp", (Read(A),)), Apply("relu", (Read(B),)))
    assert _run(_program((A, B), both), rule)[0]["pair"] == 1
    assert _run(_program((A, B), other), rule)[0].get("pair", 0) == 0


def test_extents_and_constants_are_conditions() -> None:
    seen: list[Extents] = []

    def two_axes(extents: Extents) -> bool:
        seen.append(extents)
        return len(extents) == 2

    turned = maps.permute((2, 3), (1, 0))
    inner = Reduce("sum", mul(View(Read(A), turned), View(Read(W), turned)), 1)
    rule = becomes("commutes", x * y, y * x, given=[holds(two_axes, x.extents), constant(y)])
    matches, _ = _run(_program((A, W), inner), rule)
    assert matches["commutes"] == 1
    assert seen == [(3, 2)]
    other = Reduce("sum", mul(View(Read(A), turned), View(Read(B), turned)), 1)
    assert _run(_program((A, B), other), rule)[0].get("commutes", 0) == 0


def test_together_sees_all_members_that_share_an_operand() -> None:
    groups: list[list[Member]] = []

    def swapped(members: Sequence[Member]) -> list[Mapping[int, Pattern]]:
        groups.append(list(members))
        return [{i: member["y"] * member["x"] for i, member in enumerate(members)}]

    rule = together("all", x * y, sharing=x, combine=swapped)
    read = [Read(s) for s in (A, B, W)]
    total = add(add(mul(read[0], read[1]), mul(read[0], read[2])), mul(read[1], read[2]))
    matches, snapshot = _run(_program((A, B, W), total), rule)
    assert matches["all"] == 1
    assert [len(group) for group in groups] == [2]
    assert sum(d.rule == "all" for d in snapshot.derivations) == 2


def test_a_function_that_raises_names_its_rule() -> None:
    def broken(index: IndexMap) -> bool:
        raise KeyError("nothing")

    def answers_nonsense(members: Sequence[Member]) -> list[Mapping[int, Pattern]]:
        return [{7: members[0]["x"] * members[0]["y"]}]

    with pytest.raises(EgraphOptError, match="rule 'faulty': broken raised KeyError"):
        _run(
            _program((A,), View(Read(A), maps.identity((2, 3)))),
            becomes("faulty", x.view(m), x.view(m), given=[holds(broken, m)]),
        )
    with pytest.raises(EgraphOptError, match="rule 'nonsense': answers_nonsense raised ValueError: no member 7"):
        _run(
            _program((A, B, W), add(mul(Read(A), Read(B)), mul(Read(A), Read(W)))),
            together("nonsense", x * y, sharing=x, combine=answers_nonsense),
        )
