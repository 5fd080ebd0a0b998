"""Conditions and index arithmetic of the rules about views, buffers and epilogues. Each returns the tuples a rule
fires with."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from egraph_opt.ir import expr as ex
from egraph_opt.ir import library, maps, scalar
from egraph_opt.ir.expr import Expr, Extents
from egraph_opt.ir.maps import IndexMap, index_map


def composed(outer: IndexMap, inner: IndexMap) -> list[tuple[IndexMap]]:
    """``view(view(t, inner), outer)`` as one view."""
    found = maps.compose(outer, inner)
    return [] if found is None else [(found,)]


def is_identity(index: IndexMap) -> list[tuple[()]]:
    return [()] if index.is_identity else []


def is_bijective(index: IndexMap) -> list[tuple[()]]:
    return [()] if index.is_bijective and not index.is_identity else []


def inverted(index: IndexMap) -> list[tuple[IndexMap]]:
    """The inverse of a bijective map that is not the identity."""
    if index.is_identity:
        return []
    found = maps.inverse(index)
    return [] if found is None else [(found,)]


def keeps_last(index: IndexMap, count: int) -> list[tuple[()]]:
    """A bijection that leaves the last ``count`` axes as they are, so a softmax over them commutes with it."""
    rank, source = len(index.result), len(index.source)
    if index.is_identity or not index.is_bijective or min(rank, source) < count:
        return []
    kept = all(
        index.source[source - count + i] == index.result[rank - count + i]
        and index.indices[source - count + i]
        == (Expr(0) if index.result[rank - count + i] == 1 else ex.iterator(rank - count + i))
        for i in range(count)
    )
    last = set(range(rank - count, rank))
    clean = all(not (e.iterators & last) for e in index.indices[: source - count])
    return [()] if kept and clean else []


def same_memory(index: IndexMap) -> list[tuple[Extents]]:
    """A view that keeps the row-major order is a reshape of the buffer."""
    return [(index.result,)] if index.is_reshape else []


def transposition(index: IndexMap) -> list[tuple[str, Extents]]:
    """A view that only permutes axes is the library operator Transpose."""
    order = index.permutation
    if order is None or index.is_reshape:
        return []
    return [(library.format_attributes(perm=order), index.result)]


def one_operand_sum(index: IndexMap, count: int) -> list[tuple[IndexMap]]:
    """A sum of a view is a contraction with ones, when each reduced iterator walks one axis only (reductions,
    pooling)."""
    rank = len(index.result)
    if index.fill or not count:
        return []
    for r in range(rank - count, rank):
        if sum(r in e.iterators for e in (*index.indices, *index.guards)) > 1:
            return []
    return [(index_map((), index.result, []),)]


def constant_view(index: IndexMap) -> list[tuple[Extents]]:
    """A view of one constant that is never outside is that constant at other extents."""
    return [(index.result,)] if index.is_total else []


def epilogue(operator: str, attributes: str, view: IndexMap, function: str) -> list[tuple[str]]:
    """Attributes of a convolution with a unary function fused behind it."""
    if function.partition(":")[0] not in library.FUSED.get(operator, ()):
        return []
    parsed = library.parse_attributes(attributes)
    kept_outside = view.is_total or (view.fill == 0 and scalar.lookup(function).keeps_zero)
    if library.EPILOGUE_ATTRIBUTE in parsed or not kept_outside:
        return []
    return [(library.format_attributes(**{**parsed, library.EPILOGUE_ATTRIBUTE: function}),)]


def bias(
    operator: str, attributes: str, result: Extents, shape: Extents, view: IndexMap, added: IndexMap
) -> list[tuple[str, str, IndexMap]]:
    """A call with a bias argument: (operator', attributes', the bias as a vector over the call's channels)."""
    parsed = library.parse_attributes(attributes)
    if (
        operator not in library.BIASED
        or not view.is_total
        or not added.is_total
        or library.EPILOGUE_ATTRIBUTE in parsed
    ):
        return []
    if operator == "MatMul" and len(result) != 2:
        return []
    axis, biased = library.BIASED[operator]
    members = _axes_of(shape, result, axis)
    if members is None:
        return []
    # The view must pick each of the call's axes by one iterator, so a channel's iterators are known.
    position: dict[int, int] = {}
    for source_axis, e in enumerate(view.indices):
        i = e.as_iterator()
        if i is not None:
            position[i] = source_axis
        elif view.source[source_axis] != 1:
            return []
    used = {i for e in added.indices for i in e.iterators}
    if any(position.get(i) not in members for i in used):
        return []
    extents = tuple(shape[a] for a in members)
    replacements = {i: ex.iterator(members.index(position[i])) for i in used}
    layout = index_map(added.source, extents, [ex.substitute(e, replacements, extents) for e in added.indices])
    flat = maps.compose(maps.reshape(extents, (prod(extents),)), layout)
    if flat is None:
        return []
    return [(biased, attributes, flat)]


def _axes_of(shape: Sequence[int], result: Sequence[int], axis: int) -> list[int] | None:
    """The axes of ``shape`` that make up ``axis`` of ``result``, of which ``shape`` is a finer split."""
    position = 0
    for target in range(len(result)):
        members, product = [], 1
        while position < len(shape) and (product < result[target] or shape[position] == 1):
            product *= shape[position]
            members.append(position)
            position += 1
        if product != result[target]:
            return None
        if target == axis:
            return members
    return None
