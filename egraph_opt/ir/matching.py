"""Which library operators compute a contraction: matching by iterator groups, never by axis position.

An iterator of a contraction is batch (both operands and the result), row (left and result), column (right and result),
reduced, or one of a window pair: an output iterator and a reduced one in one index expression. A group may hold any number
of iterators. Every match is a :class:`Match`: how the operands are laid out, which call is made, and how the result is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

from egraph_opt.ir import expr as ex
from egraph_opt.ir import maps
from egraph_opt.ir.contraction import Contraction, is_dominated, linear, once_split
from egraph_opt.ir.expr import Expr, Extents
from egraph_opt.ir.library import format_attributes
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


def _used(operand: IndexMap) -> set[int]:
    return {i for e in (*operand.indices, *operand.guards) for i in e.iterators}


def groups(c: Contraction) -> Groups:
    left, right = _used(c.left), _used(c.right)
    outputs = [i for i in c.outputs if c.extents[i] > 1]
    return Groups(
        tuple(i for i in outputs if i in left and i in right),
        tuple(i for i in outputs if i in left and i not in right),
        tuple(i for i in outputs if i in right and i not in left),
        tuple(i for i in c.reduced if c.extents[i] > 1),
    )


def _layout(operand: IndexMap, c: Contraction, order: Sequence[int]) -> IndexMap:
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


def _result_view(c: Contraction, order: Sequence[int]) -> IndexMap:
    """Read a result with one axis per iterator of ``order`` at the contraction's own output iterators."""
    return index_map([c.extents[i] for i in order], c.extents[: len(c.outputs)], [ex.iterator(i) for i in order])


def _size(c: Contraction, iterators: Sequence[int]) -> int:
    return prod(c.extents[i] for i in iterators)


def _in_source_order(operand: IndexMap, iterators: Sequence[int]) -> tuple[int, ...]:
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
    """MatMul with any groups; both operand orders, and leading columns as broadcast batch where the layout suggests it."""
    g = groups(c)
    if not g.reduced or is_dominated(c):
        return []
    found: list[Match] = []
    for swapped in (False, True):
        first, second = (c.right, c.left) if swapped else (c.left, c.right)
        rows, columns = (g.column, g.row) if swapped else (g.row, g.column)
        rows, columns = _in_source_order(first, rows), _in_source_order(second, columns)
        reduced = _in_source_order(second, g.reduced)
        found.append(_matrix_product(c, first, second, g.batch, (), rows, columns, reduced, swapped))
        # Columns that the second operand stores before the reduced axes make a batch the first operand is broadcast over.
        order = _in_source_order(second, (*columns, *reduced))
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
    lead = (_size(c, batch),) if batch else ()
    extra = (_size(c, broadcast),) if broadcast else ()
    m, n, k = _size(c, rows), _size(c, columns), _size(c, reduced)
    order = (*batch, *broadcast, *rows, *columns)
    return Match(
        "MatMul",
        "",
        _layout(first, c, (*batch, *rows, *reduced)),
        (*lead, m, k),
        _layout(second, c, (*batch, *broadcast, *reduced, *columns)),
        (*lead, *extra, k, n),
        (*lead, *extra, m, n),
        tuple(c.extents[i] for i in order),
        _result_view(c, order),
        swapped,
    )


@dataclass(frozen=True)
class Window:
    """One spatial axis of a convolution: index ``stride*output + dilation*tap + offset`` of a source axis of the image.

    ``tap`` or ``output`` is None for an axis walked by one iterator only (kernel extent 1). For a transposed convolution
    the index is ``(output + offset - dilation*tap) / stride``.
    """

    axis: int
    output: int | None
    tap: int | None
    stride: int
    dilation: int
    offset: int


@dataclass(frozen=True)
class _Split:
    """The groups of a convolution: image channels and filters, plus the windows."""

    c: Contraction
    image: IndexMap
    kernel: IndexMap
    windows: tuple[Window, ...]

    @cached_property
    def spatial(self) -> set[int]:
        return {i for w in self.windows for i in (w.output, w.tap) if i is not None}

    @cached_property
    def batch(self) -> tuple[int, ...]:
        used, other = _used(self.image), _used(self.kernel)
        return _in_source_order(self.image, [i for i in self._outputs if i in used and i not in other])

    @cached_property
    def group(self) -> tuple[int, ...]:
        used, other = _used(self.image), _used(self.kernel)
        return _in_source_order(self.image, [i for i in self._outputs if i in used and i in other])

    @cached_property
    def filters(self) -> tuple[int, ...]:
        used = _used(self.image)
        return _in_source_order(self.kernel, [i for i in self._outputs if i not in used and i in _used(self.kernel)])

    @cached_property
    def channels(self) -> tuple[int, ...]:
        c = self.c
        return _in_source_order(self.image, [i for i in c.reduced if i not in self.spatial and c.extents[i] > 1])

    @cached_property
    def _outputs(self) -> list[int]:
        return [i for i in self.c.outputs if i not in self.spatial and self.c.extents[i] > 1]


@linear
@once_split
def convolutions(c: Contraction) -> list[Match]:
    """Conv, 1 to 3 spatial axes, any strides, dilations, groups and pads; both operands may be the image."""
    return _convolutions(c, transposed=False)


@linear
@once_split
def transposed_convolutions(c: Contraction) -> list[Match]:
    """ConvTranspose, 1 to 3 spatial axes."""
    return _convolutions(c, transposed=True)


def _convolutions(c: Contraction, *, transposed: bool) -> list[Match]:
    found: list[Match] = []
    if is_dominated(c):
        return found
    for swapped in (False, True):
        image, kernel = (c.right, c.left) if swapped else (c.left, c.right)
        windows = _windows(c, image, kernel, transposed)
        if not windows:
            continue
        options = [windows]
        plain = _plain_axes(c, image, kernel, windows)
        if plain and len(plain) + len(windows) <= 3:
            options.append(tuple(sorted((*windows, *plain), key=lambda w: w.axis)))
        for option in options:
            if len(option) <= 3:
                match = _convolution(_Split(c, image, kernel, option), transposed, swapped)
                if match is not None:
                    found.append(match)
    return found


def _windows(c: Contraction, image: IndexMap, kernel: IndexMap, transposed: bool) -> tuple[Window, ...]:
    found: list[Window] = []
    taken_guards: set[Expr] = set()
    for axis, e in enumerate(image.indices):
        outputs = [i for i in e.iterators if not c.is_reduced(i)]
        taps = [i for i in e.iterators if c.is_reduced(i)]
        if len(outputs) != 1 or len(taps) != 1:
            continue
        if transposed:
            window = _transposed_window(c, image, axis, e, outputs[0], taps[0], taken_guards)
        else:
            stride, dilation = e.coefficient(outputs[0]), e.coefficient(taps[0])
            proper = e.is_affine and stride > 0 and dilation != 0
            window = Window(axis, outputs[0], taps[0], stride, dilation, e.constant) if proper else None
        if window is None:
            continue
        found.append(window)
    for w in found:
        own = {w.output, w.tap}
        elsewhere = [e for a, e in enumerate(image.indices) if a != w.axis]
        elsewhere += [g for g in image.guards if g not in taken_guards]
        kernel_uses = [e for e in (*kernel.indices, *kernel.guards) if w.output in e.iterators]
        if any(own & e.iterators for e in elsewhere) or kernel_uses:
            return ()
    return tuple(found)


def _transposed_window(
    c: Contraction, image: IndexMap, axis: int, e: Expr, output: int, tap: int, taken: set[Expr]
) -> Window | None:
    for quotient, _ in e.quotients:
        s = quotient.divisor
        for guard in image.guards:
            reach = e * s + guard
            low, high = ex.bounds(guard, c.extents)
            if not reach.is_affine or reach.iterators != {output, tap} or low < 0 or high >= s:
                continue
            if reach.coefficient(output) == 1 and reach.coefficient(tap) < 0:
                taken.add(guard)
                return Window(axis, output, tap, s, -reach.coefficient(tap), reach.constant)
    return None


def _plain_axes(c: Contraction, image: IndexMap, kernel: IndexMap, windows: Sequence[Window]) -> tuple[Window, ...]:
    """Row axes that the image stores after a channel: as spatial axes of kernel extent 1 the layout can stay."""
    taken = {i for w in windows for i in (w.output, w.tap)}
    other = _used(kernel)
    channel_axes = [
        a for a, e in enumerate(image.indices) if any(c.is_reduced(i) and i not in taken for i in e.iterators)
    ]
    found = []
    for axis, e in enumerate(image.indices):
        i = e.as_iterator()
        alone = i is not None and sum(i in f.iterators for f in (*image.indices, *image.guards)) == 1
        if i is None or not alone or i in taken or i in other or c.is_reduced(i) or c.extents[i] == 1:
            continue
        if channel_axes and axis > channel_axes[0]:
            found.append(Window(axis, i, None, 1, 1, 0))
    return tuple(found)


def _convolution(split: _Split, transposed: bool, swapped: bool) -> Match | None:
    c, image, kernel = split.c, split.image, split.kernel
    groups_, channels, filters = split.group, split.channels, split.filters
    lead = (*split.batch, *groups_, *channels)
    spatial_extents: list[int] = []
    strides, dilations, begins, ends, padding, flips, crops = [], [], [], [], [], [], []
    result_spatial: list[int] = []
    source_position: dict[int, Expr] = {}
    for position, w in enumerate(split.windows):
        size = image.source[w.axis]
        h = c.extents[w.output] if w.output is not None else 1
        r = c.extents[w.tap] if w.tap is not None else 1
        y = ex.iterator(len(lead) + position)
        if transposed:
            reach = w.stride * (size - 1) + w.dilation * (r - 1) + 1
            begin = max(w.offset, 0)
            end = reach - begin - h
            extra = 0
            limit = max(w.stride, w.dilation)
            if end < 0:
                extra, end = min(-end, limit - 1), 0
            shift = min(w.offset, 0)
            height = reach + extra - begin - end
            if height < 1:
                return None
            spatial_extents.append(size)
            source_position[w.axis] = y
            begins.append(begin)
            ends.append(end)
            padding.append(extra)
            flips.append(False)
            result_spatial.append(height)
            crops.append(shift)
        else:
            offset = w.offset if w.dilation > 0 else w.offset + w.dilation * (r - 1)
            dilation = abs(w.dilation)
            span = w.stride * (h - 1) + dilation * (r - 1) + 1
            skip = max(offset, 0)
            length = min(size - skip, span + min(offset, 0))
            if length < 1:
                return None
            begin = max(-offset, 0)
            spatial_extents.append(length)
            source_position[w.axis] = y + skip
            begins.append(begin)
            ends.append(max(0, span - begin - length))
            padding.append(0)
            flips.append(w.dilation < 0)
            result_spatial.append(h)
            crops.append(0)
        strides.append(w.stride)
        dilations.append(abs(w.dilation))
    # image layout: [batch…, group…, channel…, spatial…]
    layout = (*(c.extents[i] for i in lead), *spatial_extents)
    table = {i: ex.iterator(position) for position, i in enumerate(lead)}
    replacements = [table.get(i, Expr(0)) for i in range(c.rank)]
    indices = [
        source_position[axis] if axis in source_position else ex.substitute(e, replacements, layout)
        for axis, e in enumerate(image.indices)
    ]
    taken = [g for g in image.guards if split.spatial & g.iterators]
    guards = [ex.substitute(g, replacements, layout) for g in image.guards if g not in taken]
    first = index_map(image.source, layout, indices, guards)
    # kernel layout: Conv [group…, filter…, channel…, tap…], ConvTranspose [group…, channel…, filter…, tap…]
    taps = [w.tap for w in split.windows]
    order = (*groups_, *channels, *filters) if transposed else (*groups_, *filters, *channels)
    kernel_extents = (*(c.extents[i] for i in order), *(c.extents[t] if t is not None else 1 for t in taps))
    table = {i: ex.iterator(position) for position, i in enumerate(order)}
    for position, (t, flip) in enumerate(zip(taps, flips, strict=True)):
        if t is not None:
            i = ex.iterator(len(order) + position)
            table[t] = (-i) + (c.extents[t] - 1) if flip else i
    replacements = [table.get(i, Expr(0)) for i in range(c.rank)]
    second = index_map(
        kernel.source,
        kernel_extents,
        [ex.substitute(e, replacements, kernel_extents) for e in kernel.indices],
        [ex.substitute(g, replacements, kernel_extents) for g in kernel.guards],
    )
    size = {
        name: _size(c, members)
        for name, members in (("n", split.batch), ("g", groups_), ("c", channels), ("f", filters))
    }
    tap_extents = kernel_extents[len(order) :]
    attributes = format_attributes(
        strides=strides,
        dilations=dilations,
        pads=[*begins, *ends],
        group=size["g"],
        output_padding=padding if transposed else None,
    )
    kernel_lead = (size["g"] * size["c"], size["f"]) if transposed else (size["g"] * size["f"], size["c"])
    shape = (*(c.extents[i] for i in (*split.batch, *groups_, *filters)), *result_spatial)
    result_order = [*split.batch, *groups_, *filters]
    view_indices = [ex.iterator(i) for i in result_order]
    for w, crop in zip(split.windows, crops, strict=True):
        view_indices.append((ex.iterator(w.output) if w.output is not None else Expr(0)) + crop)
    view = index_map(shape, c.extents[: len(c.outputs)], view_indices)
    return Match(
        "ConvTranspose" if transposed else "Conv",
        attributes,
        first,
        (size["n"], size["g"] * size["c"], *spatial_extents),
        second,
        (*kernel_lead, *tap_extents),
        (size["n"], size["g"] * size["f"], *result_spatial),
        shape,
        view,
        swapped,
    )


ReductionFields = tuple[str, str, IndexMap, Extents, Extents, Extents, IndexMap]
_REDUCTION_OPERATORS = {"sum": "ReduceSum", "max": "ReduceMax", "min": "ReduceMin"}


def reductions(operation: str, index: IndexMap, count: int) -> list[ReductionFields]:
    """Reduction of a view as a pooling or reduction operator.

    Gives (operator, attributes, layout of the operand, operand shape, result extents, their split, view of the result).
    """
    c = Contraction(index, index_map((), index.result, []), count)
    if any(extent == 0 for extent in index.result):
        return []
    windows = _windows(c, index, c.right, False)
    if operation == "max" and windows and index.fill == float("-inf"):
        split = _Split(c, index, c.right, windows)
        if len(windows) <= 3 and not split.channels:
            return [_pooling(split)]
    # A sum over shifted reads would first have to copy every shift.
    walked = any(len({c.is_reduced(i) for i in e.iterators}) == 2 for e in (*index.indices, *index.guards))
    if windows or walked or (index.fill and not index.is_total):
        return []
    outputs = [i for i in c.outputs if c.extents[i] > 1 and i in _used(index)]
    reduced = [i for i in c.reduced if c.extents[i] > 1]
    if operation == "sum" and any(i not in _used(index) for i in reduced):
        return []
    order = (*_in_source_order(index, outputs), *_in_source_order(index, reduced))
    layout = _layout(index, c, order)
    result = tuple(c.extents[i] for i in order[: len(outputs)])
    axes = tuple(range(len(outputs), len(order)))
    if not axes or not result:
        return []
    attributes = format_attributes(axes=axes, keepdims=0)
    return [
        (
            _REDUCTION_OPERATORS[operation],
            attributes,
            layout,
            layout.result,
            result,
            result,
            _result_view(c, order[: len(outputs)]),
        )
    ]


def sums(index: IndexMap, count: int) -> list[ReductionFields]:
    """Sum of a view as ReduceSum."""
    return [] if index.fill else reductions("sum", index, count)


def _pooling(split: _Split) -> ReductionFields:
    c, image = split.c, split.image
    lead = (*split.batch, *split.group)
    extents: list[int] = []
    position: dict[int, Expr] = {}
    begins, ends = [], []
    for w in split.windows:
        h = c.extents[w.output] if w.output is not None else 1
        r = c.extents[w.tap] if w.tap is not None else 1
        offset = w.offset if w.dilation > 0 else w.offset + w.dilation * (r - 1)
        span = w.stride * (h - 1) + abs(w.dilation) * (r - 1) + 1
        skip = max(offset, 0)
        length = min(image.source[w.axis] - skip, span + min(offset, 0))
        position[w.axis] = ex.iterator(len(lead) + len(extents)) + skip
        extents.append(length)
        begins.append(max(-offset, 0))
        ends.append(max(0, span - begins[-1] - length))
    layout = (*(c.extents[i] for i in lead), *extents)
    table = {i: ex.iterator(p) for p, i in enumerate(lead)}
    replacements = [table.get(i, Expr(0)) for i in range(c.rank)]
    indices = [
        position[a] if a in position else ex.substitute(e, replacements, layout) for a, e in enumerate(image.indices)
    ]
    guards = [ex.substitute(g, replacements, layout) for g in image.guards]
    heights = tuple(c.extents[w.output] if w.output is not None else 1 for w in split.windows)
    attributes = format_attributes(
        kernel_shape=[c.extents[w.tap] if w.tap is not None else 1 for w in split.windows],
        strides=[w.stride for w in split.windows],
        dilations=[abs(w.dilation) for w in split.windows],
        pads=[*begins, *ends],
    )
    channels = _size(c, lead)
    shape = (*(c.extents[i] for i in lead), *heights)
    view_indices = [ex.iterator(i) for i in (*lead, *(w.output for w in split.windows if w.output is not None))]
    return (
        "MaxPool",
        attributes,
        index_map(image.source, layout, indices, guards, image.fill),
        (1, channels, *extents),
        (1, channels, *heights),
        shape,
        index_map(shape, c.extents[: len(c.outputs)], view_indices),
    )
