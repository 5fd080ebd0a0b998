"""Derivation rules: the same numbers by another iteration space (EINNET, OSDI'23, section 4).

The groups are phases: each runs to its own fixpoint, or a given number of rounds, before the next begins (see
schedule.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from egraph_opt.egraph.language import (
    Each,
    IntVar,
    MapVar,
    Node,
    Pattern,
    Rule,
    TensorVar,
    becomes,
    each,
    fill,
    rule_group,
)
from egraph_opt.ir import contraction as by
from egraph_opt.ir import radix
from egraph_opt.ir.view_algebra import one_operand_sum


@rule_group("contraction_forms")
def contraction_forms(x: TensorVar, m: MapVar, j: IntVar, k: IntVar) -> Iterator[Rule]:
    """Sums as contractions, and nested sums as one."""
    yield becomes("sum-merges", x.sum(j).sum(k), x.sum(j + k), exactness="reassociates")
    ones = each(one_operand_sum, m, k)
    yield becomes("sum-is-contraction", x.view(m).sum(k), (x.view(m) * fill(1, ()).view(ones.map(0))).sum(k))


def _reindexed(x: Pattern, w: Pattern, i: Each) -> Node:
    """The contraction of both operands over new iterators: maps 0 and 1, count 2, view of the result 3."""
    return (x.view(i.map(0)) * w.view(i.map(1))).sum(i.integer(2)).view(i.map(3))


@rule_group("phases")
def phases(x: TensorVar, w: TensorVar, m: MapVar, n: MapVar, k: IntVar) -> Iterator[Rule]:
    """Strides, dilations and groups become iterators of their own: mixed-radix splits of iterators and of the axis
    they walk."""
    product = (x.view(m) * w.view(n)).sum(k)
    a = each(radix.split_axes, m, n, k)
    split = (x.view(a.map(0)).view(a.map(1)) * w.view(a.map(2)).view(a.map(3))).sum(a.integer(4))
    yield becomes("axis-splits", product, split.view(a.map(5)), exactness="reassociates")
    i = each(radix.split_quotients, m, n, k)
    yield becomes("quotient-splits", product, _reindexed(x, w, i), exactness="reassociates")


@rule_group("windows")
def windows(x: TensorVar, w: TensorVar, m: MapVar, n: MapVar, k: IntVar) -> Iterator[Rule]:
    """A large window is a window of smaller ones."""
    product = (x.view(m) * w.view(n)).sum(k)
    i = each(radix.split_windows, m, n, k)
    yield becomes("window-splits", product, _reindexed(x, w, i), exactness="reassociates")


@rule_group("splitting")
def splitting(x: TensorVar, w: TensorVar, m: MapVar, n: MapVar, k: IntVar) -> Iterator[Rule]:
    """Summation splitting: channels first, window taps last."""
    product = (x.view(m) * w.view(n)).sum(k)
    s = each(by.split_sums, m, n, k)
    split = (x.view(s.map(0)) * w.view(s.map(1))).sum(s.integer(2)).sum(s.integer(3))
    yield becomes("sum-splits", product, split, exactness="reassociates")


@rule_group("substitution")
def substitution(x: TensorVar, w: TensorVar, m: MapVar, n: MapVar, k: IntVar) -> Iterator[Rule]:
    """Variable substitution: what the operands are indexed by becomes the iterators."""
    product = (x.view(m) * w.view(n)).sum(k)
    v = each(by.substitute_outputs, m, n, k)
    substituted = (x.view(v.map(0)) * w.view(v.map(1))).sum(k).view(v.map(2))
    # Where an operand is read outside, a zero is read instead of computed: 0 * NaN becomes 0.
    yield becomes("variable-substitution", product, substituted, exactness="reassociates")
    j = each(by.shears, m, n, k)
    yield becomes("window-shears", product, (x.view(j.map(0)) * w.view(j.map(1))).sum(k), exactness="reassociates")
