"""Views written for libraries that know strides: what reads memory in even steps, overlapping or not, moves nothing."""

from __future__ import annotations

from egraph_opt.frontends.portable_moves import view
from egraph_opt.frontends.portable_steps import Inexpressible, StepWriter, Value
from egraph_opt.ir import expr as ex
from egraph_opt.ir import moves
from egraph_opt.ir.maps import IndexMap, linear


def strided_view(writer: StepWriter, value: Value, index: IndexMap) -> Value:
    """A view of a value by standard operators, else by strides. Raises Inexpressible."""
    try:
        return view(writer, value, index)
    except Inexpressible:
        if index.guards:
            raise
    # The steps of the attempt are left out at the end: nothing reads them.
    source = writer.materialized(value)
    limits = [ex.bounds(index_of_axis, index.result) for index_of_axis in index.indices]
    before = [max(0, -low) for low, _ in limits]
    after = [max(0, high + 1 - extent) for (_, high), extent in zip(limits, index.source, strict=True)]
    if any((*before, *after)):
        wider = tuple(b + n + a for b, n, a in zip(before, source.extents, after, strict=True))
        source = writer.pad(source, wider, [*before, *after], index.fill)
    moved = tuple(part + shift for part, shift in zip(index.indices, before, strict=True))
    offset = linear(moved, source.extents)
    if not offset.is_affine or any(step < 0 for _, step in offset.terms):
        raise Inexpressible
    strides = [offset.coefficient(axis) for axis in range(len(index.result))]
    found = writer.call(moves.STRIDED, (source,), index.result, strides=strides, offset=offset.constant)
    return Value(found, index.result)
