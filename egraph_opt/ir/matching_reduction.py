"""Matching reductions of views with pooling and reduction operators; see :mod:`egraph_opt.ir.matching`."""

from __future__ import annotations

from fractions import Fraction

from egraph_opt.ir import expr as ex
from egraph_opt.ir.contraction import Contraction
from egraph_opt.ir.expr import Extents
from egraph_opt.ir.library import format_attributes
from egraph_opt.ir.maps import IndexMap, index_map
from egraph_opt.ir.matching import in_source_order, layout_of, result_view, size, used
from egraph_opt.ir.matching_convolution import Axis, Split, forward_axis, image_layout, windows_of

ReductionFields = tuple[str, str, IndexMap, Extents, Extents, Extents, IndexMap]
_REDUCTION_OPERATORS = {"sum": "ReduceSum", "max": "ReduceMax", "min": "ReduceMin", "pool": "GlobalMaxPool"}


def reductions(operation: str, index: IndexMap, count: int) -> list[ReductionFields]:
    """Reduction of a view as a pooling or reduction operator.

    Gives (operator, attributes, layout of the operand, operand shape, result extents, their split, view of the result).
    """
    c = Contraction(index, index_map((), index.result, []), count)
    if any(extent == 0 for extent in index.result):
        return []
    windows = windows_of(c, index, c.right, False)
    if operation == "pool" and windows and (index.fill == float("-inf") or index.is_total):
        split = Split(c, index, c.right, windows)
        if len(windows) <= 3 and not split.channels:
            return _pooling(split, "MaxPool")
    # A sum over shifted reads would first have to copy every shift.
    walked = any(len({c.is_reduced(i) for i in e.iterators}) == 2 for e in (*index.indices, *index.guards))
    if windows or walked or (index.fill and not index.is_total):
        return []
    outputs = [i for i in c.outputs if c.extents[i] > 1 and i in used(index)]
    reduced = [i for i in c.reduced if c.extents[i] > 1]
    if operation == "sum" and any(i not in used(index) for i in reduced):
        return []
    # What onnxruntime's ReduceMax makes of NaN depends on its place, so its elements keep their order.
    inner = in_source_order(index, reduced) if operation == "sum" else tuple(reduced)
    order = (*in_source_order(index, outputs), *inner)
    layout = layout_of(index, c, order)
    result = tuple(c.extents[i] for i in order[: len(outputs)])
    axes = tuple(range(len(outputs), len(order)))
    if not axes:
        return []
    if operation == "pool":
        taps = size(c, reduced)
        shape = (1, size(c, outputs), taps)
        view = result_view(c, order[: len(outputs)])
        return [("GlobalMaxPool", "", layout, shape, (*shape[:2], 1), result, view)]
    attributes = format_attributes(axes=axes, keepdims=0 if result else 1)
    return [
        (
            _REDUCTION_OPERATORS[operation],
            attributes,
            layout,
            layout.result,
            result or (1,) * len(axes),
            result,
            result_view(c, order[: len(outputs)]),
        )
    ]


def sums(index: IndexMap, count: int) -> list[ReductionFields]:
    """Sum of a view as ReduceSum."""
    return [] if index.fill else reductions("sum", index, count)


def averages(index: IndexMap, count: int, factor: str) -> list[ReductionFields]:
    """Sum of windows times one over their taps as AveragePool; positions outside count as zeros."""
    c = Contraction(index, index_map((), index.result, []), count)
    windows = windows_of(c, index, c.right, False)
    taps = size(c, c.reduced)
    if not windows or len(windows) > 3 or index.fill or Fraction(factor) * taps != 1:
        return []
    split = Split(c, index, c.right, windows)
    if split.channels or any(abs(w.dilation) != 1 for w in windows):
        return []
    return _pooling(split, "AveragePool")


def _pooling(split: Split, operator: str) -> list[ReductionFields]:
    c, image = split.c, split.image
    axes: list[Axis] = []
    for w in split.windows:
        axis = forward_axis(w, c, image.source[w.axis])
        if axis is None:
            return []
        axes.append(axis)
    lead = (*split.batch, *split.group)
    heights = tuple(axis.height for axis in axes)
    attributes = format_attributes(
        kernel_shape=[c.extents[w.tap] if w.tap is not None else 1 for w in split.windows],
        strides=[w.stride for w in split.windows],
        dilations=[abs(w.dilation) for w in split.windows] if operator == "MaxPool" else None,
        count_include_pad=1 if operator == "AveragePool" else None,
        pads=[*(axis.begin for axis in axes), *(axis.end for axis in axes)],
    )
    channels = size(c, lead)
    shape = (*(c.extents[i] for i in lead), *heights)
    places = [ex.iterator(i) for i in (*lead, *(w.output for w in split.windows if w.output is not None))]
    return [
        (
            operator,
            attributes,
            image_layout(split, axes),
            (1, channels, *(axis.length for axis in axes)),
            (1, channels, *heights),
            shape,
            index_map(shape, c.extents[: len(c.outputs)], places),
        )
    ]
