"""Moving elements with standard operators: views as slices, pads, transposes and reshapes; joining parts."""

from __future__ import annotations

from math import prod

import numpy as np

from egraph_opt.frontends.portable_steps import Inexpressible, StepWriter, Value
from egraph_opt.frontends.portable_views import Box, box, restricted, strided, widened
from egraph_opt.ir import expr as ex
from egraph_opt.ir import maps
from egraph_opt.ir.expr import Expr, Extents
from egraph_opt.ir.maps import IndexMap
from egraph_opt.ir.terms import Source


def joined(writer: StepWriter, values: list[Value], axis: int, *, woven: bool) -> Value:
    """Parts one after the other along an axis, or in turns (then they are equally long)."""
    first = values[0].extents
    length = sum(value.extents[axis] for value in values)
    sources = [writer.materialized(value, range(axis, axis + 1)) for value in values]
    held = tuple(np.broadcast_shapes(*((*s.extents[:axis], 1, *s.extents[axis + 1 :]) for s in sources)))
    full = []
    for source in sources:
        wanted = (*held[:axis], source.extents[axis], *held[axis + 1 :])
        full.append(source if source.extents == wanted else writer.call("Expand", (source,), wanted))
    extents = (*first[:axis], length, *first[axis + 1 :])
    whole = (*held[:axis], length, *held[axis + 1 :])
    if not woven:
        return Value(writer.call("Concat", tuple(full), whole, axis=axis), extents)
    count = first[axis]
    apart = [writer.reshape(source, (*held[:axis], count, 1, *held[axis + 1 :])) for source in full]
    stacked = (*held[:axis], count, len(full), *held[axis + 1 :])
    together = writer.call("Concat", tuple(apart), stacked, axis=axis + 1)
    return Value(writer.reshape(together, whole), extents)


def view(writer: StepWriter, value: Value, index: IndexMap) -> Value:
    """A view of a value. Raises Inexpressible."""
    where = box(index)
    if where is None:
        raise Inexpressible
    everything = all(part.is_all(n) for part, n in zip(where, index.result, strict=True))
    found = _inside(writer, value, index if everything else restricted(index, where))
    if everything:
        return found
    return _outside(writer, found, where, index.result, index.fill)


def _outside(writer: StepWriter, value: Value, where: Box, extents: Extents, fill: float) -> Value:
    """The fill around, and between where a progression has a step, the elements of a box."""
    for axis, (part, extent) in enumerate(zip(where, extents, strict=True)):
        if part.is_all(extent):
            continue
        source = writer.materialized(value, range(axis, axis + 1))
        held, count = source.extents, part.count
        if part.step > 1:
            apart = writer.reshape(source, (*held[: axis + 1], 1, *held[axis + 1 :]))
            spread = (*held[: axis + 1], part.step, *held[axis + 1 :])
            spread_pads = [0] * (2 * len(spread))
            spread_pads[len(spread) + axis + 1] = part.step - 1
            padded = writer.pad(apart, spread, spread_pads, fill)
            source = writer.reshape(padded, (*held[:axis], count * part.step, *held[axis + 1 :]))
        wanted = (*held[:axis], extent, *held[axis + 1 :])
        pads = [0] * (2 * len(held))
        pads[axis], pads[len(held) + axis] = part.offset, extent - part.offset - source.extents[axis]
        if any(pads):
            source = writer.pad(source, wanted, pads, fill)
        value = Value(source, (*value.extents[:axis], extent, *value.extents[axis + 1 :]))
    return value


def _inside(writer: StepWriter, value: Value, index: IndexMap) -> Value:
    """A view all of whose conditions on single iterators hold everywhere."""
    if index.guards:
        raise Inexpressible
    try:
        return _exactly(writer, value, index)
    except Inexpressible:
        wider = widened(index)
        if wider is None:
            raise
    # The steps of the attempt are left out at the end: nothing reads them.
    larger, starts = wider
    whole = _exactly(writer, value, larger).source
    begins = [0 if held == 1 else start for held, start in zip(whole.extents, starts, strict=True)]
    ends = [start + min(held, n) for held, start, n in zip(whole.extents, begins, index.result, strict=True)]
    return Value(_sliced(writer, whole, begins, ends, [1] * len(ends)), index.result)


def _exactly(writer: StepWriter, value: Value, index: IndexMap) -> Value:
    """Such a view whose digits are whole."""
    source, indices = _cut(writer, value, index)
    total = maps.index_map(source.extents, index.result, indices)
    if not total.is_total:
        raise Inexpressible
    if total.is_identity:
        return Value(source, index.result)
    if total.is_reshape:
        return Value(writer.reshape(source, index.result), index.result)
    order = total.permutation
    if order is not None:
        return Value(writer.call("Transpose", (source,), index.result, perm=order), index.result)
    return _strided(writer, source, total)


def _cut(writer: StepWriter, value: Value, index: IndexMap) -> tuple[Source, list[Expr]]:
    """The source cut or padded along each axis to what the view reads, and the indices into that."""
    source, indices = value.source, list(index.indices)
    rank = len(indices)
    starts, ends, steps, pads = [0] * rank, list(source.extents), [1] * rank, [0] * (2 * rank)
    for axis, expression in enumerate(indices):
        low, high = ex.bounds(expression, index.result)
        if source.extents[axis] == 1 and low >= 0 and high < index.source[axis]:
            indices[axis] = Expr(0)
            continue
        if low < 0 or high >= index.source[axis]:
            source = writer.materialized(Value(source, index.source), range(axis, axis + 1))
            pads[axis], pads[rank + axis] = max(0, -low), max(0, high + 1 - index.source[axis])
        low, high = low + pads[axis], high + pads[axis]
        starts[axis], ends[axis] = low, high + 1
        step = expression.terms[0][1] if len(expression.terms) == 1 and expression.is_affine else 1
        steps[axis] = step
        if step > 0:
            indices[axis] = expression + (pads[axis] - low)
        else:
            starts[axis], ends[axis] = high, low - 1
            indices[axis] = expression + (pads[axis] - high)
        if abs(step) > 1 or step < 0:
            (atom, _), *_ = expression.terms
            indices[axis] = Expr(0, ((atom, 1),))
    if any(pads):
        wanted = tuple(n + pads[axis] + pads[rank + axis] for axis, n in enumerate(source.extents))
        source = writer.pad(source, wanted, pads, index.fill)
    return _sliced(writer, source, starts, ends, steps), indices


def _sliced(writer: StepWriter, source: Source, starts: list[int], ends: list[int], steps: list[int]) -> Source:
    axes = [
        axis
        for axis, n in enumerate(source.extents)
        if (starts[axis], steps[axis]) != (0, 1) or (ends[axis] != n and n != 1)
    ]
    if not axes:
        return source
    extents = list(source.extents)
    for axis in axes:
        extents[axis] = len(range(starts[axis], ends[axis], steps[axis]))
    given = {
        "starts": [starts[axis] for axis in axes],
        # An end before the first element cannot be written as -1, which means the last one.
        "ends": [ends[axis] if ends[axis] >= 0 else -source.extents[axis] - 1 for axis in axes],
        "steps": [steps[axis] for axis in axes],
    }
    return writer.call("Slice", (source,), tuple(extents), axes=axes, **given)


def _strided(writer: StepWriter, source: Source, index: IndexMap) -> Value:
    found = strided(index)
    if found is None:
        raise Inexpressible
    shaped = writer.reshape(source, found.shape)
    small = _sliced(writer, shaped, list(found.starts), list(found.ends), [1] * len(found.shape))
    if found.order != tuple(range(len(found.order))):
        moved = tuple(small.extents[axis] for axis in found.order)
        small = writer.call("Transpose", (small,), moved, perm=found.order)
    # An axis is held as 1 when none of its digits matters; a mixed one is expanded.
    wanted, held, position = list[int](), list[int](), 0
    for count in found.per_axis:
        digits, full = found.digits[position : position + count], found.full[position : position + count]
        mixed = prod(digits) > 1 and digits != full
        wanted += full if mixed else digits
        held.append(prod(full if mixed else digits))
        position += count
    small = writer.reshape(small, found.digits)
    if tuple(wanted) != found.digits:
        small = writer.call("Expand", (small,), tuple(wanted))
    return Value(writer.reshape(small, tuple(held)), index.result)
