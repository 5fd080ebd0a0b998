"""Which normalization of the library a term of :mod:`egraph_opt.ir.normalization` is.

The axes over which statistics are taken come from the view that the mean reads; they are moved to the end, where the
library wants them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import prod

from egraph_opt.ir import expr as ex
from egraph_opt.ir.expr import Expr, Extents
from egraph_opt.ir.library import format_attributes
from egraph_opt.ir.maps import IndexMap, index_map, permute


@dataclass(frozen=True)
class _Statistics:
    """A reduction by ``reduced`` axes of a tensor; the ``rest`` of them are the rows. Ascending."""

    extents: Extents
    rest: tuple[int, ...]
    reduced: tuple[int, ...]

    @property
    def order(self) -> tuple[int, ...]:
        return (*self.rest, *self.reduced)

    def sizes(self, axes: Sequence[int]) -> Extents:
        return tuple(self.extents[axis] for axis in axes)

    def back(self) -> IndexMap:
        """The view of a result in :attr:`order` as the tensor had it."""
        return permute(self.sizes(self.order), [self.order.index(axis) for axis in range(len(self.extents))])


def _statistics(m: IndexMap, k: int, factor: str, spread: IndexMap) -> _Statistics | None:
    """What ``sum(view(x, m), k) * factor`` spread over ``x`` again takes the mean of; None for anything else."""
    outer = len(m.result) - k
    if m.guards or k < 1 or not m.is_total or spread.result != m.source or spread.source != m.result[:outer]:
        return None
    walked: dict[int, int] = {}
    reduced = []
    for axis, index in enumerate(m.indices):
        i = index.as_iterator()
        if i is None:
            if m.source[axis] != 1:
                return None
            continue
        if i in walked or m.result[i] != m.source[axis]:
            return None
        walked[i] = axis
        if i >= outer:
            reduced.append(axis)
    if any(m.result[i] > 1 and i not in walked for i in range(len(m.result))):
        return None
    wanted = [ex.iterator(walked[i]) if i in walked else Expr(0) for i in range(outer)]
    if spread != index_map(m.result[:outer], m.source, wanted):
        return None
    if not reduced or Fraction(factor) * prod(m.source[axis] for axis in reduced) != 1:
        return None
    rest = tuple(axis for axis in range(len(m.source)) if axis not in reduced)
    return _Statistics(m.source, rest, tuple(sorted(reduced)))


def _over(axes: Sequence[int], parameter: IndexMap) -> IndexMap | None:
    """A parameter, spread over the tensor by the map ``parameter``, over some axes only; None if it knows others."""
    if parameter.guards or not parameter.is_total:
        return None
    if any(not e.iterators <= set(axes) for e in parameter.indices):
        return None
    extents = tuple(parameter.result[axis] for axis in axes)
    places = {axis: ex.iterator(position) for position, axis in enumerate(axes)}
    replacements = [places.get(axis, Expr(0)) for axis in range(len(parameter.result))]
    return index_map(parameter.source, extents, [ex.substitute(e, replacements, extents) for e in parameter.indices])


def _epsilon(text: str) -> float | None:
    """The number as an attribute, if it is one exactly."""
    value = float(Fraction(text))
    return value if Fraction(value) == Fraction(text) else None


def layer(
    m: IndexMap, k: int, factor: str, spread: IndexMap, epsilon: str
) -> list[tuple[str, IndexMap, Extents, Extents, IndexMap]]:
    """Standardization over the last axes: attributes, layout, its extents, those of the scale, view of the result."""
    found, number = _statistics(m, k, factor, spread), _epsilon(epsilon)
    if found is None or number is None:
        return []
    attributes = format_attributes(axis=-len(found.reduced), epsilon=number)
    layout = permute(found.extents, found.order)
    return [(attributes, layout, layout.result, found.sizes(found.reduced), found.back())]


def layer_scaled(
    m: IndexMap, k: int, factor: str, spread: IndexMap, epsilon: str, scale: IndexMap
) -> list[tuple[str, IndexMap, Extents, IndexMap, IndexMap]]:
    """LayerNormalization: attributes, layout, its extents, layout of the scale, view of the result."""
    found = _statistics(m, k, factor, spread)
    over = _over(found.reduced, scale) if found is not None else None
    return [
        (attributes, layout, extents, over, back)
        for attributes, layout, extents, _, back in layer(m, k, factor, spread, epsilon)
        if over is not None
    ]


def layer_shifted(
    m: IndexMap, k: int, factor: str, spread: IndexMap, epsilon: str, scale: IndexMap, bias: IndexMap
) -> list[tuple[str, IndexMap, Extents, IndexMap, IndexMap, IndexMap]]:
    """LayerNormalization with a bias, whose layout comes after that of the scale."""
    found = _statistics(m, k, factor, spread)
    shift = _over(found.reduced, bias) if found is not None else None
    return [
        (attributes, layout, extents, over, shift, back)
        for attributes, layout, extents, over, back in layer_scaled(m, k, factor, spread, epsilon, scale)
        if shift is not None
    ]


def rows(
    m: IndexMap, k: int, factor: str, spread: IndexMap, epsilon: str
) -> list[tuple[str, IndexMap, Extents, Extents, Extents, IndexMap]]:
    """Standardization as InstanceNormalization of one image whose channels are the rows.

    Attributes, layout, extents of the call, those of its parameters, extents of the layout, view of the result.
    """
    found, number = _statistics(m, k, factor, spread), _epsilon(epsilon)
    if found is None or number is None:
        return []
    layout = permute(found.extents, found.order)
    count = prod(found.sizes(found.rest))
    flat = (1, count, prod(found.sizes(found.reduced)))
    return [(format_attributes(epsilon=number), layout, flat, (count,), layout.result, found.back())]


def instance(
    m: IndexMap, k: int, factor: str, spread: IndexMap, epsilon: str, scale: IndexMap, bias: IndexMap
) -> list[tuple[str, IndexMap, Extents, IndexMap, IndexMap, Extents, Extents, IndexMap]]:
    """InstanceNormalization: the rows whose scale and shift differ are the channels.

    Attributes, layout, extents of the call, layouts of scale and bias, extents of both, extents of the layout, view of
    the result.
    """
    found, number = _statistics(m, k, factor, spread), _epsilon(epsilon)
    if found is None or number is None:
        return []
    told = {i for parameter in (scale, bias) for e in parameter.indices for i in e.iterators}
    channels = tuple(axis for axis in found.rest if axis in told)
    batch = tuple(axis for axis in found.rest if axis not in told)
    gain, shift = _over(channels, scale), _over(channels, bias)
    if gain is None or shift is None or not channels:
        return []
    order = (*batch, *channels, *found.reduced)
    layout = permute(found.extents, order)
    count = prod(found.sizes(channels))
    flat = (prod(found.sizes(batch)), count, prod(found.sizes(found.reduced)))
    back = permute(layout.result, [order.index(axis) for axis in range(len(order))])
    return [(format_attributes(epsilon=number), layout, flat, gain, shift, (count,), layout.result, back)]


def local_response(m: IndexMap, factor: str, bias: str, beta: str) -> list[tuple[str]]:
    """LRN of ``view(x * x, m)`` summed over its last axis: the attributes."""
    rank = len(m.source)
    if rank < 3 or len(m.result) != rank + 1 or m.result[:rank] != m.source or m.guards or m.fill:
        return []
    size = m.result[-1]
    walk = [Expr(0) if n == 1 else ex.iterator(axis) for axis, n in enumerate(m.source)]
    walk[1] = ex.iterator(1) + ex.iterator(rank) - (size - 1) // 2
    if m != index_map(m.source, m.result, walk):
        return []
    alpha, numbers = Fraction(factor) * size, [_epsilon(text) for text in (bias, beta)]
    if Fraction(float(alpha)) != alpha or None in numbers:
        return []
    return [(format_attributes(size=size, alpha=float(alpha), bias=numbers[0], beta=numbers[1]),)]
