"""Terms of normalizations: what the frontends write for them, and what the rules that recognize them expect."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import prod

from egraph_opt.ir import expr as ex
from egraph_opt.ir import maps
from egraph_opt.ir.expr import Extents
from egraph_opt.ir.maps import IndexMap
from egraph_opt.ir.terms import Apply, Fill, Reduce, Tensor, View, add, mul


def moved_last(extents: Extents, axes: Sequence[int], *, keep: bool) -> IndexMap:
    """The view that a reduction of ``axes`` (sorted, not negative) reads: the axes that stay, with ``keep`` also those
    reduced with extent 1, then the reduced ones."""
    rank = len(extents)
    left = [1 if axis in axes else extents[axis] for axis in range(rank) if keep or axis not in axes]
    product = (*left, *(extents[axis] for axis in axes))
    indices, position = [], 0
    for axis in range(rank):
        if axis in axes:
            indices.append(ex.iterator(len(left) + list(axes).index(axis)))
            position += keep
        else:
            indices.append(ex.iterator(position))
            position += 1
    return maps.index_map(extents, product, indices)


def reduced(x: Tensor, operation: str, axes: Sequence[int], *, keep: bool = True) -> Tensor:
    """Reduction of some axes (sorted, not negative), which stay with extent 1 or go."""
    return Reduce(operation, View(x, moved_last(x.extents, axes, keep=keep)), len(axes)) if axes else x


def mean(x: Tensor, axes: Sequence[int], *, keep: bool = True) -> Tensor:
    """Mean over some axes (sorted, not negative)."""
    total = reduced(x, "sum", axes, keep=keep)
    count = prod(x.extents[axis] for axis in axes)
    return mul(total, Fill(Fraction(1, count), total.extents)) if axes else x


def spread(x: Tensor, extents: Extents) -> View:
    """Broadcasting to the extents, a view even where they are the same."""
    return View(x, maps.broadcast(x.extents, extents))


def deviation(square: Tensor, epsilon: float) -> Apply:
    """sqrt(square + epsilon)."""
    return Apply("sqrt", (add(square, Fill(Fraction(epsilon), square.extents)),))


def standardized(x: Tensor, axes: Sequence[int], epsilon: float) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon) over some axes (sorted, not negative), as exporters write it in pieces."""
    centered = Apply("sub", (x, spread(mean(x, axes), x.extents)))
    variance = mean(mul(centered, centered), axes)
    return Apply("div", (centered, spread(deviation(variance, epsilon), x.extents)))


def root_mean_square_scaled(x: Tensor, axes: Sequence[int], epsilon: float) -> Tensor:
    """x / sqrt(mean(x²) + epsilon) over some axes (sorted, not negative)."""
    return Apply("div", (x, spread(deviation(mean(mul(x, x), axes), epsilon), x.extents)))
