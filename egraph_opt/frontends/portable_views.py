"""Analysis of index maps for writing views with standard operators: boxes of the result, and strided decompositions."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import prod

import numpy as np

from egraph_opt.ir import expr as ex
from egraph_opt.ir import maps
from egraph_opt.ir.expr import Expr, Extents
from egraph_opt.ir.maps import IndexMap


@dataclass(frozen=True)
class Progression:
    """The positions ``offset + step * j``, ``0 <= j < count``, of one axis."""

    offset: int
    step: int
    count: int

    def is_all(self, extent: int) -> bool:
        return (self.offset, self.step, self.count) == (0, 1, extent)


Box = tuple[Progression, ...]


def box(index: IndexMap) -> Box | None:
    """Where the view does not read its fill, as far as conditions on single iterators say; None if it is no box."""
    masks = [np.ones(extent, dtype=bool) for extent in index.result]
    for guard in index.guards:
        if len(guard.iterators) != 1:
            return None
        (axis,) = guard.iterators
        masks[axis] &= _values(guard, axis, index.result) == 0
    for expression, extent in zip(index.indices, index.source, strict=True):
        if len(expression.iterators) == 1:
            (axis,) = expression.iterators
            values = _values(expression, axis, index.result)
            masks[axis] &= (values >= 0) & (values < extent)
    found = [_progression(mask) for mask in masks]
    return None if any(p is None for p in found) else tuple(p for p in found if p is not None)


def _values(expression: Expr, axis: int, extents: Extents) -> np.ndarray:
    points = np.arange(extents[axis], dtype=np.int64)
    return np.broadcast_to(ex.evaluate(expression, {axis: points}.__getitem__), points.shape)


def _progression(mask: np.ndarray) -> Progression | None:
    positions = mask.nonzero()[0]
    if not len(positions):
        return None
    step = int(positions[1] - positions[0]) if len(positions) > 1 else 1
    found = Progression(int(positions[0]), step, len(positions))
    return found if (np.diff(positions) == step).all() else None


def restricted(index: IndexMap, where: Box) -> IndexMap:
    """The map on the positions of a box only."""
    small = tuple(part.count for part in where)
    inner = [ex.iterator(axis) * part.step + part.offset for axis, part in enumerate(where)]
    found = maps.compose(maps.index_map(index.result, small, inner), index)
    assert found is not None  # the outer map is total
    return found


def fixed(extents: Extents, point: tuple[int, ...]) -> IndexMap:
    """The map that keeps the leading axes and takes one position on each of the last ``len(point)`` axes."""
    kept = extents[: len(extents) - len(point)]
    indices = [*(ex.iterator(axis) for axis in range(len(kept))), *(Expr(position) for position in point)]
    return maps.index_map(extents, kept, indices)


@dataclass(frozen=True)
class Strided:
    """A total view: reshape to ``shape``, slice ``starts`` to ``ends``, transpose by ``order``, reshape to ``digits``.

    ``digits`` has one extent per digit of the result's iterators, 1 for those the source does not depend on;
    ``full`` are their true extents; ``per_axis`` tells how many digits each result axis has.
    """

    shape: Extents
    starts: Extents
    ends: Extents
    order: tuple[int, ...]
    digits: Extents
    full: Extents
    per_axis: tuple[int, ...]


def strided(index: IndexMap) -> Strided | None:
    """The decomposition of a total map whose row-major offset is affine in digits of the result's iterators."""
    cuts: list[set[int]] = [set() for _ in index.result]
    for expression in (index.offset, *index.indices):
        _collect_cuts(expression, index.result, cuts)
    full, per_axis, split = list[int](), list[int](), list[Expr]()
    for extent, found in zip(index.result, cuts, strict=True):
        radices = _radices(extent, found)
        if radices is None:
            return None
        position = Expr(0)
        for radix in radices:
            position = position * radix + ex.iterator(len(full))
            full.append(radix)
        per_axis.append(len(radices))
        split.append(position)
    digits = maps.compose(maps.index_map(index.result, full, split), index)
    if digits is None or digits.guards or not digits.offset.is_affine:
        return None
    offset = digits.offset
    strides = {axis: offset.coefficient(axis) for axis in range(len(full)) if offset.coefficient(axis)}
    if any(stride < 0 for stride in strides.values()):
        return None
    axes = sorted(strides, key=lambda axis: -strides[axis])
    shape, starts, ends = list[int](), list[int](), list[int]()
    left, rest = prod(index.source), offset.constant
    for axis in axes:
        stride = strides[axis]
        if left % stride:
            return None
        start, rest = divmod(rest, stride)
        shape.append(left // stride)
        starts.append(start)
        ends.append(start + full[axis])
        left = stride
        if ends[-1] > shape[-1]:
            return None
    if left > 1:
        shape, starts, ends = [*shape, left], [*starts, rest], [*ends, rest + 1]
    order = [axes.index(axis) for axis in sorted(axes)] + ([len(axes)] if left > 1 else [])
    kept = tuple(extent if axis in strides else 1 for axis, extent in enumerate(full))
    return Strided(tuple(shape), tuple(starts), tuple(ends), tuple(order), kept, tuple(full), tuple(per_axis))


def widened(index: IndexMap) -> tuple[IndexMap, Extents] | None:
    """The map with result axes made longer at both ends, so that their digits are whole, and where it was before.

    None where no axis breaks off within a digit. What is added may read past the source.
    """
    cuts: list[set[int]] = [set() for _ in index.result]
    for expression in (index.offset, *index.indices):
        _collect_cuts(expression, index.result, cuts)
    starts, longer = list[int](), list[int]()
    for axis, (extent, found) in enumerate(zip(index.result, cuts, strict=True)):
        largest = max((cut for cut in found if cut < extent), default=1)
        starts.append(_phase(index, axis, largest) if largest > 1 else 0)
        longer.append(-(-(extent + starts[-1]) // largest) * largest)
    if tuple(longer) == index.result:
        return None
    moved = [ex.iterator(axis) - start for axis, start in enumerate(starts)]
    indices = [ex.substitute(expression, moved, tuple(longer)) for expression in index.indices]
    return maps.index_map(index.source, longer, indices, fill=index.fill), tuple(starts)


def _phase(index: IndexMap, axis: int, place: int) -> int:
    """How far into a digit of this place value an axis begins."""
    for expression in index.indices:
        for quotient, _ in expression.quotients:
            coefficient = quotient.dividend.coefficient(axis)
            if coefficient > 0 and quotient.divisor == place * coefficient:
                return quotient.dividend.constant // coefficient % place
    return 0


def _collect_cuts(expression: Expr, extents: Extents, cuts: list[set[int]]) -> None:
    for quotient, _ in expression.quotients:
        for axis in quotient.dividend.iterators:
            coefficient = abs(quotient.dividend.coefficient(axis))
            if coefficient and quotient.divisor % coefficient == 0:
                cuts[axis].add(quotient.divisor // coefficient)
        _collect_cuts(quotient.dividend, extents, cuts)


def _radices(extent: int, cuts: set[int]) -> list[int] | None:
    """Digit sizes, most significant first, of a numeral system with the given place values."""
    places = [1, *sorted(cut for cut in cuts if 1 < cut < extent), extent]
    if any(large % small for small, large in pairwise(places)):
        return None
    return [large // small for small, large in pairwise(places)][::-1]
