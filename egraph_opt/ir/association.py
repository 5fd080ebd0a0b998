"""Products of three operands summed in another order: (A B) C = A (B C), and one convolution after another as one.

The outer contraction ``sum(view(p, outer) * view(c, other), outer_count)`` reads the inner one,
``p = sum(view(a, left) * view(b, right), inner_count)``. Over the joint iterators – outputs, outer reduced, inner
reduced – the operands are three views, and any two of them can be multiplied first. Index sums ``r2 + r1`` of the
operand that is kept become one iterator, which is what folds two windows into one larger window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, prod

from egraph_opt.ir import expr as ex
from egraph_opt.ir import maps
from egraph_opt.ir.expr import Expr, Extents
from egraph_opt.ir.maps import IndexMap, index_map

# Maps of the kept operand, of the two that are multiplied first, of their product, and the reduced axes of the inner
# and of the outer sum.
Association = tuple[IndexMap, IndexMap, IndexMap, IndexMap, int, int]


def associated(
    left: IndexMap,
    right: IndexMap,
    inner_count: int,
    outer: IndexMap,
    other: IndexMap,
    outer_count: int,
    kept: int,
    inner_is_free: int,
) -> list[Association]:
    """The sum with operand ``kept`` (0: ``a``, 1: ``b``) taken last, where that needs fewer products.

    With ``inner_is_free`` the product of the other two depends on weights only and is computed ahead of time.
    """
    if left.fill or right.fill or outer.fill or other.fill:
        return []
    joint = _Joint.of(left, right, inner_count, outer, other, outer_count)
    first, second = joint.operands[kept], joint.operands[1 - kept]
    found = _regrouped(joint, first, second, joint.operands[2])
    if found is None:
        return []
    kept_map, second_map, other_map, product, inner, outer_ = found
    before = prod(left.result) + prod(outer.result)
    after = prod(kept_map.result) + (0 if inner_is_free else prod(second_map.result))
    return [(kept_map, second_map, other_map, product, inner, outer_)] if after < before else []


@dataclass(frozen=True)
class _Joint:
    """The three operands over the joint iterators: ``outputs`` come first, all others are reduced."""

    extents: Extents
    outputs: int
    operands: tuple[IndexMap, IndexMap, IndexMap]

    @staticmethod
    def of(
        left: IndexMap, right: IndexMap, inner_count: int, outer: IndexMap, other: IndexMap, outer_count: int
    ) -> _Joint:
        rank = len(outer.result)
        extents = (*outer.result, *left.result[len(left.result) - inner_count :])
        replacements = [*outer.indices, *(ex.iterator(rank + i) for i in range(inner_count))]
        # Where the outer contraction reads beyond the inner one's result, the product is zero.
        guards = [
            *outer.guards,
            *(
                maps.in_range(index, extent, extents)
                for index, extent in zip(outer.indices, outer.source, strict=True)
                if not _inside(index, extent, outer.result)
            ),
        ]
        operands = [
            index_map(
                operand.source,
                extents,
                [ex.substitute(e, replacements, extents) for e in operand.indices],
                [*(ex.substitute(g, replacements, extents) for g in operand.guards), *more],
            )
            for operand, more in ((left, guards), (right, ()))
        ]
        lifted = index_map(other.source, extents, other.indices, other.guards)
        return _Joint(extents, rank - outer_count, (operands[0], operands[1], lifted))

    def is_reduced(self, iterator: int) -> bool:
        return iterator >= self.outputs


def _inside(index: Expr, extent: int, extents: Extents) -> bool:
    low, high = ex.bounds(index, extents)
    return low >= 0 and high < extent


def _used(operand: IndexMap) -> set[int]:
    return {i for e in (*operand.indices, *operand.guards) for i in e.iterators}


def _regrouped(joint: _Joint, kept: IndexMap, second: IndexMap, third: IndexMap) -> Association | None:
    """``sum(kept * sum(second * third))`` over as few iterators as possible."""
    substituted = _one_iterator_a_sum(joint, kept)
    if substituted is None:
        return None
    extents, replacements, guards = substituted

    def reindexed(operand: IndexMap, more: Sequence[Expr] = ()) -> IndexMap:
        return index_map(
            operand.source,
            extents,
            [ex.substitute(e, replacements, extents) for e in operand.indices],
            [*(ex.substitute(g, replacements, extents) for g in operand.guards), *more],
        )

    kept, second, third = reindexed(kept), reindexed(second, guards), reindexed(third)
    rank = len(extents)
    used = _used(kept)
    last = [i for i in range(joint.outputs, rank) if i in used and extents[i] > 1]
    first = [i for i in range(joint.outputs, rank) if i not in used and extents[i] > 1]
    if not first:
        return None
    inside = _used(second) | _used(third)
    free = [i for i in (*range(joint.outputs), *last) if i in inside and extents[i] > 1]
    order = [*free, *first]
    table = {i: ex.iterator(position) for position, i in enumerate(order)}
    inner = tuple(extents[i] for i in order)
    outer_order = [*range(joint.outputs), *last]
    outer_table = {i: ex.iterator(position) for position, i in enumerate(outer_order)}
    outer = tuple(extents[i] for i in outer_order)
    product = index_map([extents[i] for i in free], outer, [outer_table[i] for i in free])
    return (
        _over(kept, outer_table, outer),
        _over(second, table, inner),
        _over(third, table, inner),
        product,
        len(first),
        len(last),
    )


def _over(operand: IndexMap, table: dict[int, Expr], extents: Extents) -> IndexMap:
    replacements = [table.get(i, Expr(0)) for i in range(len(operand.result))]
    return index_map(
        operand.source,
        extents,
        [ex.substitute(e, replacements, extents) for e in operand.indices],
        [ex.substitute(g, replacements, extents) for g in operand.guards],
    )


def _one_iterator_a_sum(joint: _Joint, kept: IndexMap) -> tuple[Extents, list[Expr], list[Expr]] | None:
    """New iterators under which every index of ``kept`` has at most one reduced iterator where that is possible.

    Gives the extents, the old iterators over the new ones, and the guards under which these exist. An index
    ``outputs + 2*r2 + r1`` becomes ``outputs + v``, and ``r1`` is ``v - 2*r2`` where that lies within its extent. None
    where an index mixes output and reduced iterators in one quotient.
    """
    extents = list(joint.extents)
    sums: dict[int, tuple[Expr, int, int]] = {}
    for position, e in enumerate(kept.indices):
        parts = [(atom, c) for atom, c in e.terms if isinstance(atom, int) and joint.is_reduced(atom)]
        mixed = [atom for atom, _ in e.terms if not isinstance(atom, int)]
        if any(len({joint.is_reduced(i) for i in atom.dividend.iterators}) > 1 for atom in mixed):
            return None
        elsewhere = {i for p, f in enumerate(kept.indices) if p != position for i in f.iterators}
        elsewhere |= {i for g in kept.guards for i in g.iterators}
        alone = [(i, c) for i, c in parts if i not in elsewhere]
        if len(parts) < 2 or not alone:
            continue
        eliminated, weight = min(alone, key=lambda term: (abs(term[1]), -term[0]))
        total = Expr(0, tuple(parts))
        step = gcd(*(c for _, c in parts))
        low, high = ex.bounds(total, joint.extents)
        sums[eliminated] = (total - ex.iterator(eliminated) * weight, weight, low)
        extents[eliminated] = (high - low) // step + 1
        if any(i in sums for i, _ in parts if i != eliminated):
            return None
    replacements = [ex.iterator(i) for i in range(len(extents))]
    guards = []
    new = tuple(extents)
    for i, (rest, weight, low) in sums.items():
        step = gcd(weight, *(c for _, c in rest.terms))
        value = ex.iterator(i) * step + low - rest
        if weight < 0:
            value = -value
        guards.append(ex.modulo(value, abs(weight), new))
        replacements[i] = ex.floordiv(value, abs(weight), new)
        guards.append(maps.in_range(replacements[i], joint.extents[i], new))
    return new, replacements, guards
