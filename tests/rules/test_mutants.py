"""The judge catches broken rules: each mutant breaks one rule in one way, and a program shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from egraph_opt.egraph import primitives
from egraph_opt.egraph.engine import EGraph
from egraph_opt.egraph.language import Each, Field, Node, Pattern, Rule, RuleGroup
from egraph_opt.egraph.saturate import Budget, saturate
from egraph_opt.egraph.snapshot import Snapshot
from egraph_opt.egraph.soundness import judge
from egraph_opt.errors import EgraphOptError
from egraph_opt.ir import definitions, maps, radix
from egraph_opt.ir import expr as ex
from egraph_opt.ir.library import format_attributes, parse_attributes
from egraph_opt.ir.maps import IndexMap
from egraph_opt.ir.program import Program
from egraph_opt.ir.terms import Apply, Call, Compute, Read, Reduce, Reshape, Softmax, Source, Tensor, View, add
from egraph_opt.rules.schedule import GROUPS, PHASES, SIMPLIFICATION, Phase
from tests.rules import operators

Records = Sequence[tuple[Any, ...]]
Function = Callable[..., Records]
Change = Callable[[Function], Function]


def _each(pattern: Pattern, old: Each, new: Each) -> Pattern:
    match pattern:
        case Node(sort, constructor, arguments):
            return Node(sort, constructor, tuple(_each(a, old, new) for a in arguments))
        case Field():
            return replace(pattern, call=new if pattern.call == old else pattern.call)
    return pattern


def with_function(change: Change) -> Callable[[Rule], Rule]:
    """The rule with the function of its right-hand side changed."""

    def mutate(rule: Rule) -> Rule:
        old = rule.calls[-1]
        new = replace(old, function=change(old.function))
        right = _each(rule.right, old, new)
        assert isinstance(right, Node)
        return replace(rule, right=right)

    return mutate


def each_record(change: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> Change:
    return lambda function: lambda *arguments: [change(tuple(record)) for record in function(*arguments)]


def set_attribute(name: str, change: Callable[[list[int]], list[int]]) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    def apply(record: tuple[Any, ...]) -> tuple[Any, ...]:
        attributes = parse_attributes(record[1])
        attributes[name] = ",".join(map(str, change([int(n) for n in attributes[name].split(",")])))
        return (record[0], format_attributes(**attributes), *record[2:])

    return apply


def unguarded(index: IndexMap) -> IndexMap:
    return maps.index_map(index.source, index.result, index.indices, (), index.fill)


def unconditional(rule: Rule) -> Rule:
    return replace(rule, given=())


def _composed_without_range(outer: IndexMap, inner: IndexMap) -> list[tuple[IndexMap]]:
    result = outer.result
    indices = [ex.substitute(e, outer.indices, result) for e in inner.indices]
    return [(maps.index_map(inner.source, result, indices, (*outer.guards,), inner.fill),)]


def _fused_always(operator: str, attributes: str, view: IndexMap, function: str) -> list[tuple[str]]:
    parsed = parse_attributes(attributes)
    return [] if "then" in parsed else [(format_attributes(**parsed, then=function),)]


def _same_size(index: IndexMap) -> list[tuple[tuple[int, ...]]]:
    return [(index.result,)] if index.is_bijective else []


X = Source("x", (1, 2, 6, 6))
A, B = Source("a", (3, 2)), Source("b", (2, 3))


def conv(kernel: int = 3, *, stride: int = 1, dilation: int = 1, pads: int = 1, groups: int = 1) -> Program:
    w = Source("w", (2, 2 // groups, kernel, kernel), True)
    pad = (pads, 0, 0, pads)
    term = definitions.convolution(
        Read(X), Read(w), strides=(stride, stride), dilations=(dilation, dilation), pads=pad, groups=groups
    )
    return operators.program((X, w), term)


def conv_transpose() -> Program:
    x, w = Source("x", (1, 2, 3, 3)), Source("w", (2, 2, 4, 4), True)
    term = definitions.transposed_convolution(
        Read(x), Read(w), strides=(2, 2), dilations=(1, 1), pads=(1, 1, 1, 1), output_padding=(0, 0)
    )
    return operators.program((x, w), term)


def called(function: str) -> Program:
    """A function of a convolution's result with a border of zeros."""
    x, w = Source("x", (1, 2, 4)), Source("w", (2, 2, 1), True)
    attributes = format_attributes(dilations=[1], group=1, pads=[0, 0], strides=[1])
    result = Reshape(Call("Conv", attributes, (x, w), (1, 2, 4)), (2, 4))
    bordered = maps.index_map((2, 4), (2, 6), [ex.iterator(0), ex.iterator(1) - 1])
    return operators.program((x, w), Apply(function, (View(Read(result), bordered),)))


def shared_slice() -> Program:
    """Two different tensors of which one slice is the same."""
    x = Source("x", (4,))
    front = maps.index_map((4,), (2,), [ex.iterator(0)])
    cropped = View(View(Read(x), front), maps.index_map((2,), (4,), [ex.iterator(0)]))
    return operators.program((x,), add(View(Read(x), front), View(cropped, front)))


def oversized_kernel(outputs: int) -> Program:
    """Windows of five taps under a kernel that has more."""
    x, k = Source("x", (outputs + 4,)), Source("k", (2, 9))
    extents = (2, outputs, 5)
    i, r = ex.iterator(1), ex.iterator(2)
    left = View(Read(x), maps.index_map(x.extents, extents, [i + r]))
    right = View(Read(k), maps.index_map(k.extents, extents, [ex.iterator(0), r]))
    return operators.program((x, k), Reduce("sum", Apply("mul", (left, right)), 1))


def square(term: Callable[[Tensor], Tensor]) -> Program:
    x = Source("x", (3, 3))
    return operators.program((x,), term(Read(x)))


def swap(x: Tensor) -> View:
    return View(x, maps.permute(x.extents, (1, 0)))


def cropped(x: Tensor) -> View:
    """Moved by one and back: the last column is lost."""
    there = View(x, maps.index_map((3, 3), (3, 3), [ex.iterator(0), ex.iterator(1) - 1]))
    return View(there, maps.index_map((3, 3), (3, 3), [ex.iterator(0), ex.iterator(1) + 1]))


@dataclass(frozen=True)
class Mutant:
    """A broken rule and a program that shows it."""

    rule: str
    mutate: Callable[[Rule], Rule]
    program: Program


MUTANTS = {
    "wrong pad": Mutant(
        "conv", with_function(each_record(set_attribute("pads", lambda p: [p[-1], *p[1:-1], p[0]]))), conv()
    ),
    "wrong stride": Mutant(
        "conv", with_function(each_record(set_attribute("strides", lambda s: [1] * len(s)))), conv(stride=2)
    ),
    "wrong dilation": Mutant(
        "conv", with_function(each_record(set_attribute("dilations", lambda d: [1] * len(d)))), conv(2, dilation=2)
    ),
    "group ignored": Mutant("conv", with_function(each_record(set_attribute("group", lambda _: [1]))), conv(groups=2)),
    "missing guard of a substitution": Mutant(
        "variable-substitution",
        with_function(each_record(lambda r: (r[0], r[1], unguarded(r[2])))),
        conv_transpose(),
    ),
    "missing guard of a split": Mutant(
        "quotient-splits", with_function(each_record(lambda r: (unguarded(r[0]), *r[1:]))), conv_transpose()
    ),
    "missing guard of a shear": Mutant(
        "window-shears", with_function(each_record(lambda r: (unguarded(r[0]), unguarded(r[1])))), oversized_kernel(5)
    ),
    "missing range of a composition": Mutant(
        "view-of-view", with_function(lambda _: _composed_without_range), square(cropped)
    ),
    "missing condition is_identity": Mutant("identity-view", unconditional, square(swap)),
    "missing condition is_bijective of cancelling": Mutant("bijection-cancels", unconditional, shared_slice()),
    "missing condition is_bijective of leaving": Mutant(
        "view-leaves-function",
        unconditional,
        square(
            lambda x: Apply("sigmoid", (View(x, maps.index_map((3, 3), (4, 3), [ex.iterator(0), ex.iterator(1)])),))
        ),
    ),
    "missing condition keeps_zero or total": Mutant(
        "fused-activation", with_function(lambda _: _fused_always), called("sigmoid")
    ),
    "missing condition keeps_last": Mutant("view-leaves-softmax", unconditional, square(lambda x: Softmax(swap(x), 1))),
    "permutation taken for a reshape": Mutant(
        "view-is-reshape", with_function(lambda _: _same_size), square(lambda x: Read(Compute(swap(x))))
    ),
    "dropped permutation of a matmul": Mutant(
        "matmul-swapped",
        with_function(
            each_record(lambda r: (*r[:8], maps.identity(r[8].result) if r[8].source == r[8].result else r[8]))
        ),
        operators.program((A, B), definitions.matrix_product(Read(A), Read(B))),
    ),
    "wrong perm of a transpose": Mutant(
        "transpose",
        with_function(each_record(lambda r: (format_attributes(perm=(0, 1)), r[1]))),
        square(lambda x: Read(Compute(swap(x)))),
    ),
    "wrong reduced count": Mutant(
        "sum-merges",
        lambda rule: replace(rule, right=rule.left.arguments[0].arguments[0].sum(rule.left.arguments[1])),  # type: ignore[attr-defined]
        operators.program((Source("x", (2, 3, 2)),), Reduce("sum", Reduce("sum", Read(Source("x", (2, 3, 2))), 1), 1)),
    ),
}


def _groups(mutant: Mutant | None) -> Iterator[RuleGroup]:
    for group in GROUPS:
        if mutant is None:
            yield group
        else:
            yield replace(group, rules=tuple(mutant.mutate(r) if r.name == mutant.rule else r for r in group.rules))


def _unsound(program: Program, mutant: Mutant | None) -> bool:
    egraph = EGraph()
    egraph.add_program(program)
    try:
        groups = {group.name: group for group in _groups(mutant)}
        saturate(
            egraph,
            [Phase(groups[phase.group.name], phase.rounds) for phase in PHASES],
            groups[SIMPLIFICATION.name],
            budget=Budget(enodes=5_000, seconds=10),
        )
        return bool(judge(Snapshot(egraph), operators.values(program)).mismatches)
    except (EgraphOptError, ValueError, IndexError):
        # A rule that is refused, or extents that no longer fit, are caught too.
        return True


@pytest.mark.parametrize("name", MUTANTS)
def test_the_judge_catches_a_broken_rule(name: str) -> None:
    mutant = MUTANTS[name]
    assert any(rule.name == mutant.rule for group in GROUPS for rule in group.rules)
    assert not _unsound(mutant.program, None)
    assert _unsound(mutant.program, mutant)


def test_the_judge_catches_a_missing_relaxation_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window whose parts do not divide it must read zero beyond its taps."""
    program = oversized_kernel(8)
    assert not _unsound(program, None)
    monkeypatch.setattr(radix, "_relaxed_guards", lambda *_: [])
    primitives._call.cache_clear()
    try:
        assert _unsound(program, None)
    finally:
        primitives._call.cache_clear()
