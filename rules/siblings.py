"""Contractions that share an operand become one (TASO, SOSP'19, section 2; here for any groups, strides and pads)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from operator import add

from egraph_opt.egraph.language import (
    BufferVar,
    IntVar,
    MapVar,
    Member,
    Pattern,
    Rule,
    TensorVar,
    becomes,
    each,
    rule_group,
    together,
)
from egraph_opt.ir import siblings as by


def _one(shared: str, own: str, swapped: bool) -> Callable[[Sequence[Member]], list[Mapping[int, Pattern]]]:
    """All contractions that can be one, for members with their shared and their own operand under these names."""

    def joined(members: Sequence[Member]) -> list[Mapping[int, Pattern]]:
        order = ("n", "m") if swapped else ("m", "n")
        maps = [(m[order[0]], m[order[1]], m["k"], m.term, m[own]) for m in members]
        found: list[Mapping[int, Pattern]] = []
        for one in by.joined(maps):
            parts = [members[i][own].read().view(laid) for i, laid in zip(one.positions, one.own, strict=True)]
            operand = reduce(add, parts).view(one.result)
            operands = (members[0][shared].view(one.shared), operand)
            product = operands[1] * operands[0] if swapped else operands[0] * operands[1]
            whole = product.sum(one.count)
            found.append({i: whole.view(own_part) for i, own_part in zip(one.positions, one.views, strict=True)})
        return found

    return joined


def _with_biases(name: str, one: Pattern, other: Pattern, both: Pattern, y: Pattern, z: Pattern) -> Iterator[Rule]:
    for suffix, left, right in (
        ("", one + other, both),
        ("-bias-first", (one + y) + other, both + y),
        ("-bias-last", one + (other + y), both + y),
        ("-biases", (one + y) + (other + z), both + (y + z)),
    ):
        yield becomes(f"sum-of-{name}{suffix}", left, right, exactness="reassociates")


@rule_group
def siblings(x: TensorVar, b: BufferVar, m: MapVar, n: MapVar, k: IntVar) -> Iterator[Rule]:
    """All contractions of one tensor with weights, or other arrays, as one: their columns side by side."""
    left = (x.view(m) * b.read().view(n)).sum(k)
    right = (b.read().view(m) * x.view(n)).sum(k)
    yield together("siblings", left, sharing=x, combine=_one("x", "b", False), exactness="reassociates")
    yield together("siblings-right", right, sharing=x, combine=_one("x", "b", True), exactness="reassociates")


@rule_group
def sums(
    x: TensorVar,
    w: TensorVar,
    v: TensorVar,
    y: TensorVar,
    z: TensorVar,
    m: MapVar,
    n: MapVar,
    p: MapVar,
    q: MapVar,
    j: IntVar,
    k: IntVar,
) -> Iterator[Rule]:
    """Sums of contractions of one tensor, or with one weight, as one contraction; biases are added apart."""
    one, other = (x.view(m) * w.view(n)).sum(j), (x.view(p) * v.view(q)).sum(k)
    a = each(by.summed, m, n, j, p, q, k)
    weights = (w.view(a.map(1)) + v.view(a.map(2))).view(a.map(3))
    both = (x.view(a.map(0)) * weights).sum(a.integer(4)).view(a.map(5))
    yield from _with_biases("one-input", one, other, both, y, z)
    alike = (x.view(m) * w.view(n)).sum(k), (v.view(m) * w.view(n)).sum(k)
    yield from _with_biases("one-weight", *alike, ((x + v).view(m) * w.view(n)).sum(k), y, z)
