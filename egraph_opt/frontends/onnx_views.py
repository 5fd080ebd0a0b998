"""Encodings of operators that only move elements: each result is one view, or a sum of placed views."""

from __future__ import annotations

from functools import reduce
from math import prod

import numpy as np

from egraph_opt.frontends.onnx_context import (
    LARGEST_ARITY,
    NodeContext,
    OperatorEncoding,
    normal_axes,
    normal_axis,
    require,
)
from egraph_opt.frontends.onnx_resampling import RESAMPLING_OPERATORS, iterators
from egraph_opt.frontends.onnx_windows import Encoded
from egraph_opt.ir import expr as ex
from egraph_opt.ir import maps
from egraph_opt.ir.expr import Extents
from egraph_opt.ir.terms import Tensor, View, add


def identity(node: NodeContext) -> Encoded:
    return (node.tensor(0),)


def dropout(node: NodeContext) -> Encoded:
    node.only_output_used()
    node.ignore("ratio", "seed")
    require(node.opset >= 7 or node.integer("is_test", 0) != 0, "training")
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
    wanted = node.integers(1, "shape", as_input=node.opset >= 5)
    require(wanted is not None, "no shape")
    extents = list(wanted or ())
    require(node.integer("allowzero", 0) == 0 or 0 not in extents, "empty")
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
    if node.opset < 6:
        times, axes = node.constant(1), node.constant(2)
        if times is None or axes is None or times.size != 1 or axes.size != 1:
            require(False, "odd tiles or axis")
            return ()
        axis = normal_axis(int(axes.reshape(())), len(x.extents))
        repeats = tuple(int(times.reshape(())) if i == axis else 1 for i in range(len(x.extents)))
    require(repeats is not None and len(repeats) == len(x.extents) and min(repeats, default=1) >= 1, "odd repeats")
    extents = tuple(n * times for n, times in zip(x.extents, repeats or (), strict=True))
    indices = [ex.modulo(i, n, extents) for i, n in zip(iterators(extents), x.extents, strict=True)]
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
    extents, indices = list(x.extents), iterators(x.extents)
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


def split(node: NodeContext) -> Encoded:
    x = node.tensor(0)
    axis, parts = normal_axis(node.integer("axis", 0), len(x.extents)), len(node.node.output)
    n = x.extents[axis]
    # Version 1 has both the attribute and the input.
    sizes = node.integers(1, "split", as_input=node.opset >= 13 or (node.opset < 2 and node.has(1)))
    if node.opset >= 18:
        require(node.integer("num_outputs", parts) == parts, "num_outputs is not the number of results")
    if sizes is None:
        each = -(-n // parts) if node.opset >= 18 else n // parts
        sizes = (*((each,) * (parts - 1)), n - each * (parts - 1))
        require(node.opset >= 18 or n % parts == 0, "an uneven split")
    require(len(sizes) == parts and sum(sizes) == n and min(sizes) >= 1, "odd sizes")
    start, views = 0, []
    for count in sizes:
        extents, indices = list(x.extents), iterators(x.extents)
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
        indices = iterators(part.extents)
        indices[axis] = ex.iterator(axis) - start
        placed.append(View(part, maps.index_map(part.extents, extents, indices)))
        start += part.extents[axis]
    return (reduce(add, placed),)


VIEW_OPERATORS: tuple[OperatorEncoding, ...] = (
    OperatorEncoding("Identity", identity),
    OperatorEncoding("Dropout", dropout, outside="training; a mask as second result"),
    OperatorEncoding("Transpose", transpose),
    OperatorEncoding("Reshape", reshape, outside="a computed shape"),
    OperatorEncoding("Flatten", flatten),
    OperatorEncoding("Squeeze", squeeze, outside="computed axes"),
    OperatorEncoding("Unsqueeze", unsqueeze, outside="computed axes"),
    OperatorEncoding("Expand", expand, 8, outside="a computed shape"),
    OperatorEncoding("Tile", tile, outside="computed repeats"),
    OperatorEncoding("Slice", slice_, outside="computed limits"),
    OperatorEncoding("Split", split, outside="computed sizes"),
    OperatorEncoding("Concat", concat, outside=f"more than {LARGEST_ARITY} inputs"),
    *RESAMPLING_OPERATORS,
)
