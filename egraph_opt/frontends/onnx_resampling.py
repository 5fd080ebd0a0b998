"""Encodings of operators that pick elements by a rule along every axis: Pad, Resize, Upsample, Gather, Trilu, and the
moves between depth and space."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from math import isnan

import numpy as np

from egraph_opt.frontends.onnx_context import (
    LARGEST_AXIS,
    NodeContext,
    OperatorEncoding,
    normal_axes,
    normal_axis,
    require,
)
from egraph_opt.frontends.onnx_gather import fit, runs
from egraph_opt.frontends.onnx_model import Array
from egraph_opt.frontends.onnx_windows import Encoded
from egraph_opt.ir import expr as ex
from egraph_opt.ir import maps
from egraph_opt.ir.expr import Expr, Extents
from egraph_opt.ir.terms import Tensor, View, add

# Index tensors beyond this many entries are not analysed (Longformer's has 20 million over all slices).
_LARGEST_INDEX = 1 << 26
# An index of one axis is taken apart into up to this many arithmetic progressions.
_MOST_RUNS = 16


def iterators(extents: Extents) -> list[Expr]:
    return [ex.iterator(axis) for axis in range(len(extents))]


def picked(x: Tensor, axis: int, positions: Array) -> Tensor:
    """The elements of one axis in the order of ``positions`` (not negative): one view, or pieces side by side."""
    extents = (*x.extents[:axis], len(positions), *x.extents[axis + 1 :])
    indices = iterators(extents)
    whole = fit(positions, extents, axis)
    if whole is not None:
        return View(x, maps.index_map(x.extents, extents, [*indices[:axis], whole, *indices[axis + 1 :]]))
    pieces = runs(positions, _MOST_RUNS)
    require(pieces, "the index is not quasi-affine")
    placed = list[Tensor]()
    for start, count, first, step in pieces or ():
        part = (*extents[:axis], count, *extents[axis + 1 :])
        inside = [*indices[:axis], ex.iterator(axis) * step + first, *indices[axis + 1 :]]
        piece = View(x, maps.index_map(x.extents, part, inside))
        outside = [*indices[:axis], ex.iterator(axis) - start, *indices[axis + 1 :]]
        placed.append(View(piece, maps.index_map(part, extents, outside)))
    return reduce(add, placed)


def _pads(node: NodeContext, rank: int) -> tuple[Sequence[int], Sequence[int], Sequence[int], float]:
    """Axes, elements before and after each of them, and the value of constant padding."""
    as_input, axes = node.opset >= 11, None
    pads = node.integers(1, "paddings" if node.opset < 2 else "pads", as_input=as_input)
    if as_input:
        value = node.constant(2)
        fill = 0.0 if value is None or not value.size else float(value.reshape(-1)[0])
        axes = node.integers(3, "axes", as_input=True) if node.opset >= 18 else None
    else:
        fill = node.number("value", 0.0)
    axes = normal_axes(tuple(range(rank)) if axes is None else axes, rank)
    if pads is None or len(pads) != 2 * len(axes):
        require(False, "odd pads")
        return (), (), (), 0.0
    return axes, pads[: len(axes)], pads[len(axes) :], fill


def pad(node: NodeContext) -> Encoded:
    x, mode = node.tensor(0), node.text("mode", "constant")
    require(mode in ("constant", "reflect", "edge", "wrap"), f"mode {mode}")
    axes, before, after, fill = _pads(node, len(x.extents))
    require(not isnan(fill), "padding with NaN")
    if mode == "constant":
        extents, indices = list(x.extents), iterators(x.extents)
        for axis, begin, end in zip(axes, before, after, strict=True):
            extents[axis] += begin + end
            require(extents[axis] >= 1, "empty")
            indices[axis] = ex.iterator(axis) - begin
        return (View(x, maps.index_map(x.extents, extents, indices, fill=fill)),)
    for axis, begin, end in zip(axes, before, after, strict=True):
        n = x.extents[axis]
        require(min(begin, end) >= 0, f"negative pads in mode {mode}")
        require(begin + n + end <= LARGEST_AXIS, "too many positions")
        positions = np.arange(-begin, n + end)
        if mode == "edge":
            positions = positions.clip(0, n - 1)
        elif mode == "wrap":
            require(max(begin, end) <= n, "pads longer than the tensor in mode wrap")
            positions = positions % n
        else:
            require(max(begin, end) < n, "pads longer than the tensor in mode reflect")
            positions = np.abs(positions)
            positions = np.where(positions < n, positions, 2 * (n - 1) - positions)
        if begin or end:
            x = picked(x, axis, positions)
    return (x,)


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
    if index.ndim == 1:
        return (picked(x, axis, index),)
    extents = (*x.extents[:axis], *index.shape, *x.extents[axis + 1 :])
    position = fit(index, extents, axis)
    if position is None:
        require(False, "the index is not quasi-affine")
        return ()
    before = [ex.iterator(i) for i in range(axis)]
    after = [ex.iterator(axis + index.ndim + i) for i in range(len(x.extents) - axis - 1)]
    return (View(x, maps.index_map(x.extents, extents, [*before, position, *after])),)


def trilu(node: NodeContext) -> Encoded:
    x, upper = node.tensor(0), node.integer("upper", 1) != 0
    offset = node.constant(1)
    k = 0 if offset is None else int(offset.reshape(()))
    require(len(x.extents) >= 2, "no matrix")
    rows, columns = x.extents[-2:]
    require(abs(k) <= rows + columns, "the diagonal is far outside")
    places = iterators(x.extents)
    distance = places[-1] - places[-2] - k
    # Zero where the distance is not negative (not positive for the lower part), -1 elsewhere.
    reach = rows + columns + abs(k) + 1
    guard = ex.floordiv(distance if upper else Expr(0) - distance, reach, x.extents)
    return (View(x, maps.index_map(x.extents, x.extents, places, [guard])),)


def _positions(n: int, count: int, scale: float, transform: str, rounding: str) -> Array:
    """The source position of every target position of nearest-neighbour resampling.

    Declined where single and double precision disagree: then runtimes do too.
    """
    require(count <= LARGEST_AXIS, "too many positions")
    found = []
    for kind in (np.dtype(np.float64), np.dtype(np.float32)):
        target: Array = np.arange(count).astype(kind)
        origin: Array
        half, factor = kind.type(0.5), kind.type(scale)
        match transform:
            case "asymmetric":
                origin = target / factor
            case "half_pixel" | "half_pixel_symmetric":
                origin = (target + half) / factor - half
                if transform == "half_pixel_symmetric":
                    adjustment = kind.type(count) / (factor * kind.type(n))
                    origin = origin + kind.type(n) / kind.type(2) * (kind.type(1) - adjustment)
            case "pytorch_half_pixel":
                origin = (target + half) / factor - half if count > 1 else target * 0
            case "tf_half_pixel_for_nn":
                origin = (target + half) / factor
            case _:  # align_corners
                origin = target * kind.type(n - 1) / kind.type(max(count - 1, 1))
        match rounding:
            case "floor":
                whole = np.floor(origin)
            case "ceil":
                whole = np.ceil(origin)
            case "round_prefer_ceil":
                whole = np.floor(origin + half)
            case _:
                whole = np.ceil(origin - half)
        found.append(whole.astype(np.int64).clip(0, n - 1))
    require((found[0] == found[1]).all(), "positions that depend on rounding")
    return np.asarray(found[0])


def _resampled(x: Tensor, counts: Sequence[int], scales: Sequence[float], transform: str, rounding: str) -> Tensor:
    require(len(counts) == len(scales) == len(x.extents) and min(counts, default=1) >= 1, "odd scales or sizes")
    for axis, (count, scale) in enumerate(zip(counts, scales, strict=True)):
        n = x.extents[axis]
        if count != n or scale != 1:
            x = picked(x, axis, _positions(n, count, scale, transform, rounding))
    return x


def _is_trivial(x: Tensor, counts: Sequence[int], scales: Sequence[float]) -> bool:
    return tuple(counts) == x.extents and all(scale == 1 for scale in scales)


def _scaled(x: Tensor, scales: Sequence[float]) -> list[int]:
    require(len(scales) == len(x.extents) and all(0 < s < 1 << 20 for s in scales), "odd scales")
    return [int(np.floor(n * np.float64(s))) for n, s in zip(x.extents, scales, strict=True)]


def upsample(node: NodeContext) -> Encoded:
    x, mode = node.tensor(0), node.text("mode", "nearest")
    if node.opset < 7:
        require(len(x.extents) == 4, "not an image")
        scales = [1.0, 1.0, node.number("height_scale", 1.0), node.number("width_scale", 1.0)]
    elif node.opset < 9:
        given = node.attribute("scales", ())
        scales = [float(s) for s in given] if isinstance(given, tuple) else []
    else:
        value = node.constant(1)
        scales = [] if value is None else [float(s) for s in value.ravel()]
    counts = _scaled(x, scales)
    require(mode == "nearest" or _is_trivial(x, counts, scales), f"mode {mode}")
    require(all(s >= 1 for s in scales), "a scale below 1")
    return (_resampled(x, counts, scales, "asymmetric", "floor"),)


def resize(node: NodeContext) -> Encoded:
    x, mode = node.tensor(0), node.text("mode", "nearest")
    rank = len(x.extents)
    node.ignore("cubic_coeff_a", "exclude_outside", "extrapolation_value")  # not for nearest neighbours
    transform = "asymmetric" if node.opset < 11 else node.text("coordinate_transformation_mode", "half_pixel")
    rounding = "floor" if node.opset < 11 else node.text("nearest_mode", "round_prefer_floor")
    require(transform != "tf_crop_and_resize", "a region of interest")
    require(node.integer("antialias", 0) == 0, "antialias")
    scales_at = 1 if node.opset < 11 else 2
    value, sizes = node.constant(scales_at), node.constant(3) if node.opset >= 11 else None
    axes = normal_axes(node.integer_list("axes", tuple(range(rank))), rank)
    policy = node.text("keep_aspect_ratio_policy", "stretch")
    scales, counts = [1.0] * rank, list(x.extents)
    if value is not None and value.size:
        require(value.size == len(axes), "odd scales")
        for axis, scale in zip(axes, value.ravel(), strict=True):
            scales[axis] = float(scale)
        counts = _scaled(x, scales)
    elif sizes is not None and sizes.size == len(axes):
        require(policy == "stretch", f"keep_aspect_ratio_policy {policy}")
        for axis, count in zip(axes, sizes.ravel(), strict=True):
            counts[axis] = int(count)
            scales[axis] = int(count) / x.extents[axis]
    else:
        require(False, "no scales or sizes")
    require(mode == "nearest" or _is_trivial(x, counts, scales), f"mode {mode}")
    require(node.opset >= 11 or all(s >= 1 for s in scales), "a scale below 1 at opset 10")
    return (_resampled(x, counts, scales, transform, rounding),)


def _blocks(node: NodeContext, since: int) -> tuple[Tensor, int, str]:
    """The image, the size of a block, and the order of its pixels among the channels, which is told ``since`` an
    opset."""
    x, block, mode = node.tensor(0), node.integer("blocksize", 0), "DCR"
    if node.opset >= since:
        mode = node.text("mode", "DCR")
    require(len(x.extents) == 4 and block >= 1 and mode in ("DCR", "CRD"), "odd attributes")
    return x, block, mode


def depth_to_space(node: NodeContext) -> Encoded:
    x, block, mode = _blocks(node, since=11)
    batch, channels, height, width = x.extents
    require(channels % block**2 == 0, "the block does not divide the channels")
    fewer = channels // block**2
    extents = (batch, fewer, height * block, width * block)
    n, c, h, w = iterators(extents)
    phase = ex.modulo(h, block, extents) * block + ex.modulo(w, block, extents)
    channel = phase * fewer + c if mode == "DCR" else c * block**2 + phase
    indices = [n, channel, ex.floordiv(h, block, extents), ex.floordiv(w, block, extents)]
    return (View(x, maps.index_map(x.extents, extents, indices)),)


def space_to_depth(node: NodeContext) -> Encoded:
    x, block, mode = _blocks(node, since=28)
    batch, channels, height, width = x.extents
    require(height % block == 0 and width % block == 0, "the block does not divide the tensor")
    extents = (batch, channels * block**2, height // block, width // block)
    n, c, h, w = iterators(extents)
    if mode == "DCR":
        phase, channel = ex.floordiv(c, channels, extents), ex.modulo(c, channels, extents)
    else:
        phase, channel = ex.modulo(c, block**2, extents), ex.floordiv(c, block**2, extents)
    row, column = ex.floordiv(phase, block, extents), ex.modulo(phase, block, extents)
    return (View(x, maps.index_map(x.extents, extents, [n, channel, h * block + row, w * block + column])),)


RESAMPLING_OPERATORS: tuple[OperatorEncoding, ...] = (
    OperatorEncoding("Pad", pad, outside="padding with NaN; computed pads; reflection beyond the tensor"),
    OperatorEncoding("Gather", gather, outside="computed indices; constant ones that are not regular"),
    OperatorEncoding("Trilu", trilu, 14, outside="a computed diagonal"),
    OperatorEncoding("Upsample", upsample, outside="modes other than nearest; computed scales"),
    OperatorEncoding("Resize", resize, 10, outside="modes other than nearest; computed scales or sizes"),
    OperatorEncoding("DepthToSpace", depth_to_space),
    OperatorEncoding("SpaceToDepth", space_to_depth),
)
