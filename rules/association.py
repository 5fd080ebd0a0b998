"""Products of three in another order where that needs fewer operations, such as two convolutions in a row as one."""

from __future__ import annotations

from collections.abc import Iterator

from egraph_opt.egraph.language import IntVar, MapVar, Rule, TensorVar, becomes, constant, each, rule_group
from egraph_opt.ir import association as by


@rule_group
def association(
    a: TensorVar,
    b: TensorVar,
    c: TensorVar,
    m: MapVar,
    n: MapVar,
    o: MapVar,
    p: MapVar,
    j: IntVar,
    k: IntVar,
) -> Iterator[Rule]:
    """One operand of the inner contraction is kept for last; what is computed ahead of time counts for nothing."""
    inner = (a.view(m) * b.view(n)).sum(j).view(o)
    for side, outer in (("left", (inner * c.view(p)).sum(k)), ("right", (c.view(p) * inner).sum(k))):
        for kept, (last, first) in enumerate(((a, b), (b, a))):
            for ahead, given in ((0, []), (1, [constant(first), constant(c)])):
                f = each(by.associated, m, n, j, o, p, k, kept, ahead)
                product = (first.view(f.map(1)) * c.view(f.map(2))).sum(f.integer(4)).view(f.map(3))
                regrouped = (last.view(f.map(0)) * product).sum(f.integer(5))
                name = f"associates-{side}-{'second' if kept else 'first'}{'-ahead' if ahead else ''}"
                yield becomes(name, outer, regrouped, exactness="reassociates", given=given)
