"""Mixed-radix splits of a contraction's iterators and of the operand axes they walk; see
:mod:`egraph_opt.ir.contraction`.

A split is made on all axes that ask for it at once: forms in which one axis is treated in one way and the next in
another multiply with every axis, and none of the programs worth having needs them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import gcd, prod

from egraph_opt.ir import expr as ex
from egraph_opt.ir.contraction import GROWTH, Contraction, linear, once_split, reindex
from egraph_opt.ir.expr import Expr, Extents
from egraph_opt.ir.maps import IndexMap, index_map

# Splitting a window may add a tap for every so many at most.
WASTE = 4
# The most parts a window is split into: every number of parts is a form of its own for all later rules to work on.
MOST_PARTS = 3

Axis = tuple[int, int]


def _radix(c: Contraction, factors: Mapping[int, int]) -> tuple[list[Expr], Extents, list[Expr]]:
    """Split iterators ``v = factor*v1 + v2``, in place.

    Returns (replacements of the old iterators, new extents, the output view's indices).
    """
    replacements: list[Expr] = []
    extents: list[int] = []
    back: list[Expr] = []
    for i, extent in enumerate(c.extents):
        if i in factors:
            d = factors[i]
            replacements.append(ex.iterator(len(extents)) * d + ex.iterator(len(extents) + 1))
            extents += [-(-extent // d), d]
            if not c.is_reduced(i):
                back += [ex.floordiv(ex.iterator(i), d, c.extents), ex.modulo(ex.iterator(i), d, c.extents)]
        else:
            replacements.append(ex.iterator(len(extents)))
            extents.append(extent)
            if not c.is_reduced(i):
                back.append(ex.iterator(i))
    return replacements, tuple(extents), back


def _relaxed_guards(
    c: Contraction, factors: Mapping[int, int], replacements: Sequence[Expr], extents: Extents
) -> list[Expr]:
    """A reduced iterator whose extent its factor does not divide must read zero beyond that extent."""
    return [
        ex.floordiv(replacements[i], c.extents[i], extents) if c.extents[i] > 1 else replacements[i]
        for i, d in factors.items()
        if c.is_reduced(i) and c.extents[i] % d
    ]


AxisSplit = tuple[IndexMap, IndexMap, IndexMap, IndexMap, int, IndexMap]


@linear
def split_axes(c: Contraction) -> list[AxisSplit]:
    """Mixed-radix split of iterators together with the operand axes they walk (dilation and stride become phases).

    For an index ``sum(c_i * v_i) + c0`` and a factor d > 1 among its coefficients, the iterators whose coefficient d
    does not divide are split, and the axis becomes ``x'[y1, y2…] = x[d*y1 + sum(c_j*y2_j) + c0]``. d is a
    coefficient of an output iterator (a stride) on every axis, or of a reduced one (a dilation). Gives (view of the
    left operand, left', view of the right operand, right', count', view of the new result); an operand that is not
    split has an identity view.
    """
    choices: list[dict[Axis, int]] = [c.splittable] if c.splittable else [{}, {}]
    if not c.splittable:
        for side, operand in enumerate(c.operands):
            for axis, e in enumerate(operand.indices):
                # An index that takes no value twice is a reshape or a slice of its axis: nothing to separate.
                if not e.is_affine or c.is_injective(e):
                    continue
                for choice, reduced in zip(choices, (False, True), strict=True):
                    large = [
                        abs(k) for i, k in e.terms if isinstance(i, int) and c.is_reduced(i) == reduced and abs(k) > 1
                    ]
                    if large:
                        choice[side, axis] = min(large)
    found = []
    for choice in choices:
        option = _split_axes(c, choice)
        if option is not None and option not in found:
            found.append(option)
    return found


def _factors(c: Contraction, choice: dict[Axis, int]) -> dict[int, int]:
    """Factor of each iterator to split; axes whose factors contradict those of an earlier axis are dropped from
    ``choice``."""
    factors: dict[int, int] = {}
    for (side, axis), d in list(choice.items()):
        own = {v: d // gcd(d, k) for v, k in c.operands[side].indices[axis].terms if k % d and isinstance(v, int)}
        # An iterator that never reaches its factor is a digit already; splitting it again would only rename it.
        own = {v: factor for v, factor in own.items() if c.extents[v] > factor}
        if any(factors.get(v, factor) != factor for v, factor in own.items()):
            del choice[side, axis]
        else:
            factors |= own
    return factors


def _split_axes(c: Contraction, choice: dict[Axis, int]) -> AxisSplit | None:
    choice = dict(choice)
    factors = _factors(c, choice)
    replacements, new, back = _radix(c, factors)
    if not choice or prod(new) > GROWTH * c.points:
        return None
    guards = _relaxed_guards(c, factors, replacements, new)
    split_sides = {side for side, _ in choice}
    pairs: list[tuple[IndexMap, IndexMap]] = []
    for side, operand in enumerate(c.operands):
        source: list[int] = []
        inner: list[Expr] = []
        indices: list[Expr] = []
        for axis, (e, extent) in enumerate(zip(operand.indices, operand.source, strict=True)):
            walked = ex.substitute(e, replacements, new)
            d = choice.get((side, axis))
            if d is None:
                inner.append(ex.iterator(len(source)))
                source.append(extent)
                indices.append(walked)
                continue
            loose = [v for v, k in e.terms if k % d and isinstance(v, int)]
            digits = sorted(max(replacements[v].iterators) for v in loose)
            rest = Expr(0, tuple((a, k) for a, k in walked.terms if a in digits))
            whole = Expr(0, tuple((a, k // d) for a, k in walked.terms if a not in digits))
            low, high = ex.bounds(whole, new)
            # Positions beyond the source read zero, so only the part of the split axis that meets it is kept.
            rest_low, rest_high = ex.bounds(rest, new)
            low = max(low, -((rest_high + e.constant) // d))
            high = min(high, (extent - 1 - e.constant - rest_low) // d)
            if low > high:
                return None
            position = ex.iterator(len(source)) * d + (low * d + e.constant)
            for offset, a in enumerate(digits):
                position = position + ex.iterator(len(source) + 1 + offset) * rest.coefficient(a)
            inner.append(position)
            source += [high - low + 1, *(new[a] for a in digits)]
            indices += [whole + (-low), *(ex.iterator(a) for a in digits)]
        own = [ex.substitute(g, replacements, new) for g in operand.guards]
        if split_sides == {1 - side} or (side == 1 and len(split_sides) == 2):
            own += guards
        pairs.append((index_map(operand.source, source, inner), index_map(source, new, indices, own)))
    outputs = len(c.outputs) + sum(1 for i in factors if not c.is_reduced(i))
    result = index_map(new[:outputs], c.extents[: len(c.outputs)], back)
    return (*pairs[0], *pairs[1], len(new) - outputs, result)


IteratorSplit = tuple[IndexMap, IndexMap, int, IndexMap]


@linear
def split_quotients(c: Contraction) -> list[IteratorSplit]:
    """Mixed-radix split of iterators by the divisor of a quotient they occur in (strides of a transposed
    convolution, groups).

    Iterators alone in a quotient come first, then the reduced iterators in the others. Gives (left', right', count',
    view of the new result).
    """
    outputs, reduced = c.quotient_factors
    if outputs or reduced:
        return [_split_iterators(c, {**outputs, **reduced})]
    shared: dict[int, int] = {}
    for operand in c.operands:
        for e in operand.indices:
            for quotient, _ in e.quotients:
                for i in quotient.dividend.iterators:
                    if c.is_reduced(i) and quotient.divisor < c.extents[i]:
                        shared[i] = min(quotient.divisor, shared.get(i, quotient.divisor))
    return [_split_iterators(c, shared)] if shared else []


@linear
@once_split
def split_windows(c: Contraction) -> list[IteratorSplit]:
    """Split windows of R taps into p parts of ceil(R/p) taps each, where that adds little work.

    Gives (left', right', count', view of the new result).
    """
    found = []
    for parts in range(2, MOST_PARTS + 1):
        sizes = {r: -(-c.extents[r] // parts) for r in c.windows if _is_plain_window(c, r)}
        fitting = {
            r: size for r, size in sizes.items() if size >= parts and parts * size * WASTE <= (WASTE + 1) * c.extents[r]
        }
        if fitting:
            found.append(_split_iterators(c, fitting))
    return found


def _is_plain_window(c: Contraction, r: int) -> bool:
    """A tap that some output walks one by one over an axis of one operand, of which the other operand knows nothing.

    Strided and dilated windows become plain ones by splitting axes first.
    """
    for operand, other in (c.operands, c.operands[::-1]):
        walked = [e for e in operand.indices if r in e.iterators]
        if len(walked) != 1 or any(r in g.iterators for g in operand.guards):
            continue
        outputs = [i for i in walked[0].iterators if not c.is_reduced(i)]
        apart = all(not e.iterators & set(outputs) for e in (*other.indices, *other.guards))
        if outputs and apart and walked[0].is_affine and abs(walked[0].coefficient(r)) == 1:
            return all(abs(walked[0].coefficient(o)) == 1 for o in outputs)
    return False


def _split_iterators(c: Contraction, factors: Mapping[int, int]) -> IteratorSplit:
    replacements, new, back = _radix(c, factors)
    guards = _relaxed_guards(c, factors, replacements, new)
    outputs = len(c.outputs) + sum(1 for i in factors if not c.is_reduced(i))
    view = index_map(new[:outputs], c.extents[: len(c.outputs)], back)
    return (reindex(c.left, new, replacements), reindex(c.right, new, replacements, guards), len(new) - outputs, view)
