"""Which library operators compute a contraction: matching by iterator groups, never by axis position.

An iterator of a contraction is batch (both operands and the result), row (left and result), column (right and result),
reduced, or one of a window pair: an output iterator and a reduced one in one index expression. A group may hold any
number of iterators. Every match is a :class:`Match`: how the operands are laid out, which call is made, and how the
result is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from egraph_opt.ir import expr as ex
from egraph_opt.ir.contraction import Contraction, is_dominated, linear, once_split
from egraph_opt.ir.expr import Expr, Extents
from egraph_opt.ir.maps import IndexMap, index_map


@dataclass(frozen=True)
class Match:
    """``view(read(reshape(operator(reshape(compute(view(x, left)), left_shape), …), shape)), view)``.

    ``swapped``: the operator's first argument comes from the contraction's right operand.
    """

    operator: str
    attributes: str
    left: IndexMap
    left_shape: Extents
    right: IndexMap
    right_shape: Extents
    result: Extents
    shape: Extents
    view: IndexMap
    swapped: bool = False


@dataclass(frozen=True)
class Groups:
    """Iterators of a contraction by the operands and the result they occur in; extents of 1 are left out."""

    batch: tuple[int, ...]
    row: tuple[int, ...]
    column: tuple[int, ...]
    reduced: tuple[int, ...]


def used(operand: IndexMap) -> set[int]:
    """The iterators that an operand depends on."""
    return {i for e in (*operand.indices, *operand.guards) for i in e.iterators}


def groups(c: Contraction) -> Groups:
    """The iterators of a contraction by group."""
    left, right = used(c.left), used(c.right)
    outputs = [i for i in c.outputs if c.extents[i] > 1]
    return Groups(
        tuple(i for i in outputs if i in left and i in right),
        tuple(i for i in outputs if i in left and i not in right),
        tuple(i for i in outputs if i in right and i not in left),
        tuple(i for i in c.reduced if c.extents[i] > 1),
    )


def layout_of(operand: IndexMap, c: Contraction, order: Sequence[int]) -> IndexMap:
    """The operand as a dense array with one axis per iterator of ``order`` (all it depends on)."""
    table = {i: ex.iterator(position) for position, i in enumerate(order)}
    replacements = [table.get(i, Expr(0)) for i in range(c.rank)]
    result = tuple(c.extents[i] for i in order)
    return index_map(
        operand.source,
        result,
        [ex.substitute(e, replacements, result) for e in operand.indices],
        [ex.substitute(g, replacements, result) for g in operand.guards],
        operand.fill,
    )


def result_view(c: Contraction, order: Sequence[int]) -> IndexMap:
    """Read a result with one axis per iterator of ``order`` at the contraction's own output iterators."""
    return index_map([c.extents[i] for i in order], c.extents[: len(c.outputs)], [ex.iterator(i) for i in order])


def size(c: Contraction, iterators: Sequence[int]) -> int:
    """Number of values that some iterators take together."""
    return prod(c.extents[i] for i in iterators)


def in_source_order(operand: IndexMap, iterators: Sequence[int]) -> tuple[int, ...]:
    """Iterators by the first source axis they walk, so that a layout that is already right is recognized."""

    def position(i: int) -> tuple[int, int, int]:
        for axis, e in enumerate(operand.indices):
            if i in e.iterators:
                return (axis, -abs(e.coefficient(i)), i)
        return (len(operand.indices), 0, i)

    return tuple(sorted(iterators, key=position))


@linear
@once_split
def matrix_products(c: Contraction) -> list[Match]:
    """MatMul with any groups; both operand orders, and leading columns as broadcast batch where the layout suggests
    it."""
    g = groups(c)
    if not g.reduced or is_dominated(c):
        return []
    found: list[Match] = []
    for swapped in (False, True):
        first, second = (c.right, c.left) if swapped else (c.left, c.right)
        rows, columns = (g.column, g.row) if swapped else (g.row, g.column)
        rows, columns = in_source_order(first, rows), in_source_order(second, columns)
        reduced = in_source_order(second, g.reduced)
        found.append(_matrix_product(c, first, second, g.batch, (), rows, columns, reduced, swapped))
        # Columns that the second operand stores before the reduced axes make a batch the first operand is broadcast
        # over.
        order = in_source_order(second, (*columns, *reduced))
        lead = order[: next((n for n, i in enumerate(order) if i in reduced), 0)]
        if lead and len(lead) < len(columns) and not g.batch:
            rest = tuple(i for i in columns if i not in lead)
            found.append(_matrix_product(c, first, second, (), lead, rows, rest, reduced, swapped))
    return list(dict.fromkeys(found))


def _matrix_product(
    c: Contraction,
    first: IndexMap,
    second: IndexMap,
    batch: Sequence[int],
    broadcast: Sequence[int],
    rows: Sequence[int],
    columns: Sequence[int],
    reduced: Sequence[int],
    swapped: bool,
) -> Match:
    lead = (size(c, batch),) if batch else ()
    extra = (size(c, broadcast),) if broadcast else ()
    m, n, k = size(c, rows), size(c, columns), size(c, reduced)
    order = (*batch, *broadcast, *rows, *columns)
    return Match(
        "MatMul",
        "",
        layout_of(first, c, (*batch, *rows, *reduced)),
        (*lead, m, k),
        layout_of(second, c, (*batch, *broadcast, *reduced, *columns)),
        (*lead, *extra, k, n),
        (*lead, *extra, m, n),
        tuple(c.extents[i] for i in order),
        result_view(c, order),
        swapped,
    )
