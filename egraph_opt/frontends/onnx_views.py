"""Encodings of operators that only move elements: each result is one view, or a sum of placed views."""

from __future__ import annotations

from functools import reduce
from math import isnan, prod

import numpy as np

from egraph_opt.frontends.onnx_context import (
    LARGEST_ARITY,
    NodeContext,
    OperatorEncoding,
    normal_axes,
    normal_axis,
    require,
)
from egraph_opt.frontends.onnx_gather import fit
from egraph_opt.frontends.onnx_windows import Encoded
from egraph_opt.ir import expr as ex
from egraph_opt.ir import maps
from egraph_opt.ir.expr import Expr, Extents
from egraph_opt.ir.terms import Tensor, View, add

# Index tensors beyond this many entries are not analysed (Longformer's has 20 million over all slices).
_LARGEST_INDEX = 1 << 26


def _iterators(extents: Extents) -> list[Expr]:
    return [ex.iterator(axis) for axis in range(len(extents))]


def identity(node: NodeContext) -> Encoded:
    return (node.tensor(0),)


def dropout(node: NodeContext) -> Encoded:
    node.only_output()
    node.ignore("ratio", "seed")
    if node.opset >= 12 and node.has(2):
        training = node.constant(2)
        require(training is not None and not training.any(), "training")
    return (node.tensor(0),)


def transpose(node: NodeContext) -> Encoded:
    x = node.tensor(0)
    rank = len(x.extents)
    order = node.integer_list("perm", tuple(reversed(range(rank))))
    require(sorted(order) == list(range(rank)), "perm is not a permutation")
    return (View(x, maps.permute(x.extents, order)),)


def reshaped(x: Tensor, extents: Extents) -> Tensor:
    require(min(extents, default=1) >= 1 and prod(extents) == prod(x.extents), "other number of elements")
    return View(x, maps.reshape(x.extents, extents))


def reshape(node: NodeContext) -> Encoded:
    x = node.tensor(0)
    wanted = node.integers(1, "shape", as_input=True)
    require(wanted is not None and node.integer("allowzero", 0) == 0, "no shape, or zeros in it")
    extents = list(wanted or ())
    require(extents.count(-1) <= 1 and min(extents, default=0) >= -1, "odd shape")
    for axis, n in enumerate(extents):
        if n == 0:
            require(axis < len(x.extents), "0 beyond the rank")
            extents[axis] = x.extents[axis]
    if -1 in extents:
        rest = -prod(extents)
        require(rest > 0 and prod(x.extents) % rest == 0, "-1 does not come out even")
        extents[extents.index(-1)] = prod(x.extents) // rest
    return (reshaped(x, tuple(extents)),)


def flatten(node: NodeContext) -> Encoded:
    x, axis = node.tensor(0), node.integer("axis", 1)
    rank = len(x.extents)
    require(-rank <= axis <= rank, "axis")
    axis = axis + rank if axis < 0 else axis
    return (reshaped(x, (prod(x.extents[:axis]), prod(x.extents[axis:]))),)


def squeeze(node: NodeContext) -> Encoded:
    x = node.tensor(0)
    axes = node.integers(1, "axes", as_input=node.opset >= 13)
    if axes is None:
        axes = tuple(axis for axis, n in enumerate(x.extents) if n == 1)
    axes = normal_axes(axes, len(x.extents))
    require(all(x.extents[axis] == 1 for axis in axes), "a squeezed axis is not 1")
    return (reshaped(x, tuple(n for axis, n in enumerate(x.extents) if axis not in axes)),)


def unsqueeze(node: NodeContext) -> Encoded:
    x = node.tensor(0)
    axes = node.integers(1, "axes", as_input=node.opset >= 13)
    require(axes is not None, "no axes")
    rank = len(x.extents) + len(axes or ())
    places = normal_axes(axes or (), rank)
    rest = iter(x.extents)
    return (reshaped(x, tuple(1 if axis in places else next(rest) for axis in range(rank))),)


def expand(node: NodeContext) -> Encoded:
    x, wanted = node.tensor(0), node.integers(1, "shape", as_input=True)
    require(wanted is not None, "no shape")
    try:
        extents = np.broadcast_shapes(x.extents, wanted or ())
    except ValueError:
        extents = ()
        require(False, "extents do not broadcast")
    require(0 not in extents, "empty")
    return (x if extents == x.extents else View(x, maps.broadcast(x.extents, extents)),)


def tile(node: NodeContext) -> Encoded:
    x, repeats = node.tensor(0), node.integers(1, "repeats", as_input=True)
    require(repeats is not None and len(repeats) == len(x.extents) and min(repeats, default=1) >= 1, "odd repeats")
    extents = tuple(n * times for n, times in zip(x.extents, repeats or (), strict=True))
    indices = [ex.modulo(i, n, extents) for i, n in zip(_iterators(extents), x.extents, strict=True)]
    return (View(x, maps.index_map(x.extents, extents, indices)),)


def slice_(node: NodeContext) -> Encoded:
    x, as_input = node.tensor(0), node.opset >= 10
    rank = len(x.extents)
    starts, ends = node.integers(1, "starts", as_input=as_input), node.integers(2, "ends", as_input=as_input)
    axes = node.integers(3, "axes", as_input=as_input)
    steps = node.integers(4, "steps", as_input=True) if as_input else None
    if starts is None or ends is None:
        require(False, "no starts or ends")
        return ()
    axes = normal_axes(tuple(range(len(starts))) if axes is None else axes, rank)
    steps = (1,) * len(starts) if steps is None else steps
    require(len(starts) == len(ends) == len(axes) == len(steps) and 0 not in steps, "odd lengths or steps")
    extents, indices = list(x.extents), _iterators(x.extents)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        n = x.extents[axis]
        # Unlike Python, ONNX lets a backward slice begin at the first element even when it starts before it.
        low, high = (0, n) if step > 0 else (-1, n - 1)
        first = min(max(start + n if start < 0 else start, 0), high)
        last = min(max(end + n if end < 0 else end, low), high)
        span = range(first, last, step)
        require(len(span) > 0, "empty")
        extents[axis] = len(span)
        indices[axis] = ex.iterator(axis) * step + span.start
    return (View(x, maps.index_map(x.extents, extents, indices)),)


def pad(node: NodeContext) -> Encoded:
    x, as_input = node.tensor(0), node.opset >= 11
    rank = len(x.extents)
    require(node.text("mode", "constant") == "constant", "not constant padding")
    pads, axes = node.integers(1, "pads", as_input=as_input), None
    if as_input:
        value = node.constant(2)
        fill = 0.0 if value is None or not value.size else float(value.reshape(-1)[0])
        axes = node.integers(3, "axes", as_input=True) if node.opset >= 18 else None
    else:
        fill = node.number("value", 0.0)
    axes = normal_axes(tuple(range(rank)) if axes is None else axes, rank)
    if pads is None or isnan(fill) or len(pads) != 2 * len(axes):
        require(False, "odd pads")
        return ()
    extents, indices = list(x.extents), _iterators(x.extents)
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        extents[axis] += before + after
        require(extents[axis] >= 1, "empty")
        indices[axis] = ex.iterator(axis) - before
    return (View(x, maps.index_map(x.extents, extents, indices, fill=fill)),)


def split(node: NodeContext) -> Encoded:
    x = node.tensor(0)
    axis, parts = normal_axis(node.integer("axis", 0), len(x.extents)), len(node.node.output)
    n = x.extents[axis]
    sizes = node.integers(1, "split", as_input=node.opset >= 13)
    if node.opset >= 18:
        require(node.integer("num_outputs", parts) == parts, "num_outputs is not the number of results")
    if sizes is None:
        each = -(-n // parts) if node.opset >= 18 else n // parts
        sizes = (*((each,) * (parts - 1)), n - each * (parts - 1))
        require(node.opset >= 18 or n % parts == 0, "an uneven split")
    require(len(sizes) == parts and sum(sizes) == n and min(sizes) >= 1, "odd sizes")
    start, views = 0, []
    for count in sizes:
        extents, indices = list(x.extents), _iterators(x.extents)
        extents[axis] = count
        indices[axis] = ex.iterator(axis) + start
        views.append(View(x, maps.index_map(x.extents, extents, indices)))
        start += count
    return tuple(views)


def concat(node: NodeContext) -> Encoded:
    parts = node.tensors()
    require(len(parts) <= LARGEST_ARITY, "too many parts")
    rank = len(parts[0].extents)
    axis = normal_axis(node.integer("axis", 1), rank)
    others = {(*part.extents[:axis], *part.extents[axis + 1 :]) for part in parts if len(part.extents) == rank}
    require(len(others) == 1 and all(len(part.extents) == rank for part in parts), "other extents differ")
    if len(parts) == 1:
        return (parts[0],)
    extents = list(parts[0].extents)
    extents[axis] = sum(part.extents[axis] for part in parts)
    start, placed = 0, list[Tensor]()
    for part in parts:
        indices = _iterators(part.extents)
        indices[axis] = ex.iterator(axis) - start
        placed.append(View(part, maps.index_map(part.extents, extents, indices)))
        start += part.extents[axis]
    return (reduce(add, placed),)


def gather(node: NodeContext) -> Encoded:
    x, index = node.tensor(0), node.constant(1)
    axis = normal_axis(node.integer("axis", 0), len(x.extents))
    n = x.extents[axis]
    if index is None or index.dtype.kind not in "iu" or not 0 < index.size <= _LARGEST_INDEX:
        require(False, "the index is no small tensor of integers")
        return ()
    index = index.astype(np.int64)
    require(index.min() >= -n and index.max() < n, "an index is out of range")
    index = np.where(index < 0, index + n, index)
    extents = (*x.extents[:axis], *index.shape, *x.extents[axis + 1 :])
    position = fit(index, extents, axis)
    if position is None:
        require(False, "the index is not quasi-affine")
        return ()
    before = [ex.iterator(i) for i in range(axis)]
    after = [ex.iterator(axis + index.ndim + i) for i in range(len(x.extents) - axis - 1)]
    return (View(x, maps.index_map(x.extents, extents, [*before, position, *after])),)


def depth_to_space(node: NodeContext) -> Encoded:
    x, block, mode = node.tensor(0), node.integer("blocksize", 1), node.text("mode", "DCR")
    require(len(x.extents) == 4 and block >= 1 and mode in ("DCR", "CRD"), "odd attributes")
    batch, channels, height, width = x.extents
    require(channels % block**2 == 0, "the block does not divide the channels")
    fewer = channels // block**2
    extents = (batch, fewer, height * block, width * block)
    n, c, h, w = _iterators(extents)
    phase = ex.modulo(h, block, extents) * block + ex.modulo(w, block, extents)
    channel = phase * fewer + c if mode == "DCR" else c * block**2 + phase
    indices = [n, channel, ex.floordiv(h, block, extents), ex.floordiv(w, block, extents)]
    return (View(x, maps.index_map(x.extents, extents, indices)),)


def space_to_depth(node: NodeContext) -> Encoded:
    x, block = node.tensor(0), node.integer("blocksize", 1)
    require(len(x.extents) == 4 and block >= 1, "odd attributes")
    batch, channels, height, width = x.extents
    require(height % block == 0 and width % block == 0, "the block does not divide the tensor")
    extents = (batch, channels * block**2, height // block, width // block)
    n, c, h, w = _iterators(extents)
    phase = ex.floordiv(c, channels, extents)
    row, column = ex.floordiv(c, channels * block, extents), ex.modulo(phase, block, extents)
    indices = [n, ex.modulo(c, channels, extents), h * block + row, w * block + column]
    return (View(x, maps.index_map(x.extents, extents, indices)),)


VIEW_OPERATORS: tuple[OperatorEncoding, ...] = (
    OperatorEncoding("Identity", identity),
    OperatorEncoding("Dropout", dropout),
    OperatorEncoding("Transpose", transpose),
    OperatorEncoding("Reshape", reshape),
    OperatorEncoding("Flatten", flatten),
    OperatorEncoding("Squeeze", squeeze),
    OperatorEncoding("Unsqueeze", unsqueeze),
    OperatorEncoding("Expand", expand, 8),
    OperatorEncoding("Tile", tile),
    OperatorEncoding("Slice", slice_),
    OperatorEncoding("Pad", pad),
    OperatorEncoding("Split", split),
    OperatorEncoding("Concat", concat),
    OperatorEncoding("Gather", gather),
    OperatorEncoding("DepthToSpace", depth_to_space),
    OperatorEncoding("SpaceToDepth", space_to_depth),
)
