"""Matching contractions with Conv and ConvTranspose, 1 to 3 spatial axes; see :mod:`egraph_opt.ir.matching`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from egraph_opt.ir import expr as ex
from egraph_opt.ir.contraction import Contraction, is_dominated, linear, once_split
from egraph_opt.ir.expr import Expr
from egraph_opt.ir.library import format_attributes
from egraph_opt.ir.maps import IndexMap, index_map
from egraph_opt.ir.matching import Match, groups, in_source_order, size, used


@dataclass(frozen=True)
class Window:
    """One spatial axis of a convolution: index ``stride*output + dilation*tap + offset`` of a source axis of the image.

    ``tap`` or ``output`` is None for an axis walked by one iterator only (kernel extent 1). For a transposed
    convolution the index is ``(output + offset - dilation*tap) / stride``.
    """

    axis: int
    output: int | None
    tap: int | None
    stride: int
    dilation: int
    offset: int


@dataclass(frozen=True)
class Split:
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
        used_here, other = used(self.image), used(self.kernel)
        return in_source_order(self.image, [i for i in self._outputs if i in used_here and i not in other])

    @cached_property
    def group(self) -> tuple[int, ...]:
        used_here, other = used(self.image), used(self.kernel)
        return in_source_order(self.image, [i for i in self._outputs if i in used_here and i in other])

    @cached_property
    def filters(self) -> tuple[int, ...]:
        used_here = used(self.image)
        return in_source_order(self.kernel, [i for i in self._outputs if i not in used_here and i in used(self.kernel)])

    @cached_property
    def channels(self) -> tuple[int, ...]:
        c = self.c
        return in_source_order(self.image, [i for i in c.reduced if i not in self.spatial and c.extents[i] > 1])

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
        windows = windows_of(c, image, kernel, transposed)
        plain = _plain_axes(c, image, kernel, windows)
        if transposed:  # there a stride is one of the result, not of how the image is read
            plain = tuple(w for w in plain if w.stride == 1)
        if transposed and not windows:
            continue
        options = [windows] if windows else []
        if not windows and groups(c).batch:
            continue  # a batched matrix product, not a convolution
        if plain and len(plain) + len(windows) <= 3:
            options.append(tuple(sorted((*windows, *plain), key=lambda w: w.axis)))
        for option in options:
            if len(option) <= 3:
                match = _convolution(Split(c, image, kernel, option), transposed, swapped)
                if match is not None:
                    found.append(match)
    return found


def windows_of(c: Contraction, image: IndexMap, kernel: IndexMap, transposed: bool) -> tuple[Window, ...]:
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
    kept: list[Window] = []
    for w in found:
        own = {w.output, w.tap}
        elsewhere = [e for a, e in enumerate(image.indices) if a != w.axis]
        elsewhere += [g for g in image.guards if g not in taken_guards]
        kernel_uses = [e for e in (*kernel.indices, *kernel.guards) if w.output in e.iterators]
        if not any(own & e.iterators for e in elsewhere) and not kernel_uses:
            kept.append(w)
        elif not c.is_injective(image.indices[w.axis]):
            return ()
        # Windows that do not overlap may as well be a group and its channels.
    return tuple(kept)


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
    """Row axes that the image stores after a channel: as spatial axes of kernel extent 1 the layout can stay.

    Without any window that is a convolution of kernel extent 1.
    """
    taken = {i for w in windows for i in (w.output, w.tap)}
    other = used(kernel)
    channel_axes = [
        a for a, e in enumerate(image.indices) if any(c.is_reduced(i) and i not in taken for i in e.iterators)
    ]
    found = []
    for axis, e in enumerate(image.indices):
        if len(e.terms) != 1 or not isinstance(e.terms[0][0], int) or e.terms[0][1] < 1:
            continue
        i, stride = e.terms[0][0], e.terms[0][1]
        alone = sum(i in f.iterators for f in (*image.indices, *image.guards)) == 1
        if not alone or i in taken or i in other or c.is_reduced(i):
            continue
        if channel_axes and axis > channel_axes[0]:
            found.append(Window(axis, i, None, stride, 1, e.constant))
    return tuple(found)


@dataclass(frozen=True)
class Axis:
    """One spatial axis of a call: what it reads of the image, its attributes and the extent of its result.

    The contraction's output iterator ``o`` is at ``o + shift`` of the result.
    """

    start: int
    length: int
    begin: int
    end: int
    extra: int
    flipped: bool
    height: int
    shift: int


def forward_axis(w: Window, c: Contraction, extent: int) -> Axis | None:
    """The axis of a Conv or pooling; None when it reads nothing of the image's ``extent`` positions."""
    h = c.extents[w.output] if w.output is not None else 1
    r = c.extents[w.tap] if w.tap is not None else 1
    # A tap that walks backwards is a flipped kernel that starts at its last tap.
    offset = w.offset if w.dilation > 0 else w.offset + w.dilation * (r - 1)
    span = w.stride * (h - 1) + abs(w.dilation) * (r - 1) + 1
    start = max(offset, 0)
    length = min(extent - start, span + min(offset, 0))
    if length < 1:
        return None
    begin = max(-offset, 0)
    return Axis(start, length, begin, max(0, span - begin - length), 0, w.dilation < 0, h, 0)


def _transposed_axis(w: Window, c: Contraction, extent: int) -> Axis | None:
    h = c.extents[w.output] if w.output is not None else 1
    r = c.extents[w.tap] if w.tap is not None else 1
    reach = w.stride * (extent - 1) + w.dilation * (r - 1) + 1
    begin = max(w.offset, 0)
    end = reach - begin - h
    # Beyond what output padding can add the result is zero, as it is where the view leaves the call's result.
    extra = min(max(-end, 0), max(w.stride, w.dilation) - 1)
    end = max(end, 0)
    height = reach + extra - begin - end
    return Axis(0, extent, begin, end, extra, False, height, min(w.offset, 0)) if height > 0 else None


def _convolution(split: Split, transposed: bool, swapped: bool) -> Match | None:
    c, image = split.c, split.image
    axes: list[Axis] = []
    for w in split.windows:
        axis = (_transposed_axis if transposed else forward_axis)(w, c, image.source[w.axis])
        if axis is None:
            return None
        axes.append(axis)
    n, g, k, f = (size(c, members) for members in (split.batch, split.group, split.channels, split.filters))
    results = (*split.batch, *split.group, *split.filters)
    heights = tuple(axis.height for axis in axes)
    first = image_layout(split, axes)
    second = _kernel_layout(split, axes, transposed)
    taps = second.result[len(second.result) - len(axes) :]
    attributes = format_attributes(
        strides=[w.stride for w in split.windows],
        dilations=[abs(w.dilation) for w in split.windows],
        pads=[*(axis.begin for axis in axes), *(axis.end for axis in axes)],
        group=g,
        output_padding=[axis.extra for axis in axes] if transposed else None,
    )
    shape = (*(c.extents[i] for i in results), *heights)
    places = [
        (Expr(0) if w.output is None else ex.iterator(w.output)) + axis.shift
        for w, axis in zip(split.windows, axes, strict=True)
    ]
    return Match(
        "ConvTranspose" if transposed else "Conv",
        attributes,
        first,
        (n, g * k, *(axis.length for axis in axes)),
        second,
        (g * k, f, *taps) if transposed else (g * f, k, *taps),
        (n, g * f, *heights),
        shape,
        index_map(shape, c.extents[: len(c.outputs)], [*(ex.iterator(i) for i in results), *places]),
        swapped,
    )


def image_layout(split: Split, axes: Sequence[Axis]) -> IndexMap:
    """The image as [batch…, group…, channel…, spatial…]."""
    c, image = split.c, split.image
    lead = (*split.batch, *split.group, *split.channels)
    layout = (*(c.extents[i] for i in lead), *(axis.length for axis in axes))
    table = {i: ex.iterator(position) for position, i in enumerate(lead)}
    replacements = [table.get(i, Expr(0)) for i in range(c.rank)]
    walked = {
        w.axis: ex.iterator(len(lead) + position) + axis.start
        for position, (w, axis) in enumerate(zip(split.windows, axes, strict=True))
    }
    return index_map(
        image.source,
        layout,
        [walked[a] if a in walked else ex.substitute(e, replacements, layout) for a, e in enumerate(image.indices)],
        # Guards about the windows are what a transposed convolution means.
        [ex.substitute(g, replacements, layout) for g in image.guards if not split.spatial & g.iterators],
        image.fill,
    )


def _kernel_layout(split: Split, axes: Sequence[Axis], transposed: bool) -> IndexMap:
    """Conv: [group…, filter…, channel…, tap…]; ConvTranspose: [group…, channel…, filter…, tap…]."""
    c, kernel = split.c, split.kernel
    inner = (*split.channels, *split.filters) if transposed else (*split.filters, *split.channels)
    order = (*split.group, *inner)
    taps = [w.tap for w in split.windows]
    layout = (*(c.extents[i] for i in order), *(c.extents[t] if t is not None else 1 for t in taps))
    table = {i: ex.iterator(position) for position, i in enumerate(order)}
    for position, (tap, axis) in enumerate(zip(taps, axes, strict=True)):
        if tap is not None:
            i = ex.iterator(len(order) + position)
            table[tap] = (-i) + (c.extents[tap] - 1) if axis.flipped else i
    replacements = [table.get(i, Expr(0)) for i in range(c.rank)]
    return index_map(
        kernel.source,
        layout,
        [ex.substitute(e, replacements, layout) for e in kernel.indices],
        [ex.substitute(g, replacements, layout) for g in kernel.guards],
    )
