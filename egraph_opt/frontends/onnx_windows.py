"""Encodings of convolutions and pools: everything whose index walks windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import inf, prod

import numpy as np

from egraph_opt.frontends.onnx_context import LARGEST_AXIS, NodeContext, OperatorEncoding, require
from egraph_opt.ir import expr as ex
from egraph_opt.ir import maps, normalization
from egraph_opt.ir.expr import Expr, Extents
from egraph_opt.ir.terms import Apply, Fill, Reduce, Tensor, View, add, mul

Encoded = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Windows:
    """Windows over the spatial axes; tuples have one entry per spatial axis, ``pads`` are those at the beginning."""

    kernel: Extents
    strides: Extents
    dilations: Extents
    pads: Extents
    ends: Extents
    result: Extents

    def index(self, axis: int, position: Expr, tap: Expr) -> Expr:
        return position * self.strides[axis] + tap * self.dilations[axis] - self.pads[axis]


def _windows(node: NodeContext, spatial: Extents, kernel: Extents, *, ceil: bool = False) -> Windows:
    rank = len(spatial)
    ones = (1,) * rank
    strides, dilations = node.integer_list("strides", ones), node.integer_list("dilations", ones)
    pads, auto_pad = node.integer_list("pads", (0,) * (2 * rank)), node.text("auto_pad", "NOTSET")
    require(
        len(kernel) == len(strides) == len(dilations) == rank and len(pads) == 2 * rank, "attributes of another rank"
    )
    require(
        min((*kernel, *strides, *dilations), default=1) >= 1 and min(pads, default=0) >= 0, "an attribute is negative"
    )
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    begins, ends = pads[:rank], pads[rank:]
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        require(all(n == 1 for n in dilations), "auto_pad with dilations differs between runtimes")
        totals = [max((-(-n // s) - 1) * s + r - n, 0) for n, s, r in zip(spatial, strides, reach, strict=True)]
        halves = tuple(total // 2 for total in totals)
        rest = tuple(total - half for total, half in zip(totals, halves, strict=True))
        begins, ends = (halves, rest) if auto_pad == "SAME_UPPER" else (rest, halves)
        ceil = False
    elif auto_pad == "VALID":
        begins = ends = (0,) * rank
        require(not ceil, "auto_pad VALID with ceil_mode differs between runtimes")
    else:
        require(auto_pad == "NOTSET", f"auto_pad {auto_pad}")
    result = []
    for n, b, e, r, s in zip(spatial, begins, ends, reach, strides, strict=True):
        room = n + b + e - r
        require(room >= 0, "the window is larger than the padded tensor")
        count = (-(-room // s) if ceil else room // s) + 1
        # The last window must begin inside the tensor or its padding at the beginning.
        result.append(count - 1 if ceil and (count - 1) * s >= n + b else count)
    return Windows(kernel, strides, dilations, tuple(begins), tuple(ends), tuple(result))


def _channel(group: int, per_group: int, features: int, f: Expr, c: Expr, domain: Extents) -> Expr:
    """Channel that tap ``c`` of feature ``f`` reads when each group has ``per_group`` channels."""
    return ex.floordiv(f, features // group, domain) * per_group + c if group > 1 else c


def _with_bias(node: NodeContext, result: Tensor, features: int) -> Tensor:
    if not node.has(2):
        return result
    bias = node.tensor(2)
    require(bias.extents == (features,), "the bias has other extents")
    return add(result, View(bias, maps.index_map(bias.extents, result.extents, [ex.iterator(1)])))


def conv(node: NodeContext) -> Encoded:
    x, w = node.tensor(0), node.tensor(1)
    require(3 <= len(x.extents) <= 5 and len(w.extents) == len(x.extents), "only 1 to 3 spatial axes")
    (batch, channels, *spatial), (features, per_group, *kernel) = x.extents, w.extents
    group, rank = node.integer("group", 1), len(spatial)
    require(node.integer_list("kernel_shape", tuple(kernel)) == tuple(kernel), "kernel_shape is not that of the weight")
    require(group >= 1 and channels == per_group * group and features % group == 0, "groups do not divide the channels")
    windows = _windows(node, tuple(spatial), tuple(kernel))
    product = (batch, features, *windows.result, per_group, *kernel)
    n, f, c = ex.iterator(0), ex.iterator(1), ex.iterator(2 + rank)
    taps = [ex.iterator(3 + rank + axis) for axis in range(rank)]
    positions = [windows.index(axis, ex.iterator(2 + axis), tap) for axis, tap in enumerate(taps)]
    data = maps.index_map(x.extents, product, [n, _channel(group, per_group, features, f, c, product), *positions])
    weight = maps.index_map(w.extents, product, [f, c, *taps])
    result = Reduce("sum", mul(View(x, data), View(w, weight)), 1 + rank)
    return (_with_bias(node, result, features),)


def conv_transpose(node: NodeContext) -> Encoded:
    x, w = node.tensor(0), node.tensor(1)
    require(3 <= len(x.extents) <= 5 and len(w.extents) == len(x.extents), "only 1 to 3 spatial axes")
    (batch, channels, *spatial), (weight_channels, per_group, *kernel) = x.extents, w.extents
    group, rank = node.integer("group", 1), len(spatial)
    require(node.integer_list("kernel_shape", tuple(kernel)) == tuple(kernel), "kernel_shape is not that of the weight")
    require(group >= 1 and channels == weight_channels and channels % group == 0, "groups do not divide the channels")
    features = per_group * group
    windows = _transposed_windows(node, tuple(spatial), tuple(kernel))
    product = (batch, features, *windows.result, channels // group, *kernel)
    n, f, c = ex.iterator(0), ex.iterator(1), ex.iterator(2 + rank)
    taps = [ex.iterator(3 + rank + axis) for axis in range(rank)]
    channel = _channel(group, channels // group, features, f, c, product)
    positions, guards = [], []
    for axis, tap in enumerate(taps):
        scattered = ex.iterator(2 + axis) + windows.pads[axis] - tap * windows.dilations[axis]
        positions.append(ex.floordiv(scattered, windows.strides[axis], product))
        guards.append(ex.modulo(scattered, windows.strides[axis], product))
    data = maps.index_map(x.extents, product, [n, channel, *positions], guards)
    weight = maps.index_map(w.extents, product, [channel, ex.modulo(f, per_group, product), *taps])
    result = Reduce("sum", mul(View(x, data), View(w, weight)), 1 + rank)
    return (_with_bias(node, result, features),)


def _transposed_windows(node: NodeContext, spatial: Extents, kernel: Extents) -> Windows:
    rank = len(spatial)
    ones, zeros = (1,) * rank, (0,) * rank
    strides, dilations = node.integer_list("strides", ones), node.integer_list("dilations", ones)
    pads, more = node.integer_list("pads", zeros * 2), node.integer_list("output_padding", zeros)
    wanted, auto_pad = node.integer_list("output_shape", ()), node.text("auto_pad", "NOTSET")
    require(len(strides) == len(dilations) == len(more) == rank and len(pads) == 2 * rank, "attributes of another rank")
    require(min((*kernel, *strides, *dilations)) >= 1 and min((*pads, *more)) >= 0, "an attribute is negative")
    require(len(wanted) in (0, rank), "output_shape of another rank")
    require(auto_pad in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"), f"auto_pad {auto_pad}")
    full = [
        s * (n - 1) + m + d * (k - 1) + 1
        for n, k, s, d, m in zip(spatial, kernel, strides, dilations, more, strict=True)
    ]
    begins, ends = (pads[:rank], pads[rank:]) if auto_pad == "NOTSET" else (zeros, zeros)
    if wanted or auto_pad.startswith("SAME"):
        target = wanted or tuple(n * s for n, s in zip(spatial, strides, strict=True))
        totals = [whole - n for whole, n in zip(full, target, strict=True)]
        require(min(totals) >= 0, "the wanted result is larger than the full one")
        halves = tuple(total // 2 for total in totals)
        rest = tuple(total - half for total, half in zip(totals, halves, strict=True))
        begins, ends = (halves, rest) if auto_pad == "SAME_UPPER" else (rest, halves)
    result = tuple(whole - b - e for whole, b, e in zip(full, begins, ends, strict=True))
    require(min(result) >= 1, "the result is empty")
    return Windows(kernel, strides, dilations, tuple(begins), tuple(ends), result)


def _pooled(node: NodeContext) -> tuple[Tensor, Windows]:
    x = node.tensor(0)
    node.only_output_used()
    require(3 <= len(x.extents) <= 5, "only 1 to 3 spatial axes")
    kernel, ceil = node.integer_list("kernel_shape", ()), node.integer("ceil_mode", 0)
    windows = _windows(node, x.extents[2:], kernel, ceil=ceil != 0)
    require(
        all(p < k for p, k in zip((*windows.pads, *windows.ends), kernel * 2, strict=True)),
        "pads reach past the kernel",
    )
    return x, windows


def _window_view(x: Tensor, windows: Windows, fill: float) -> View:
    rank = len(windows.kernel)
    product = (*x.extents[:2], *windows.result, *windows.kernel)
    positions = [windows.index(axis, ex.iterator(2 + axis), ex.iterator(2 + rank + axis)) for axis in range(rank)]
    return View(x, maps.index_map(x.extents, product, [ex.iterator(0), ex.iterator(1), *positions], fill=fill))


def _counts(extents: Extents, windows: Windows, *, padding: bool) -> np.ndarray:
    """How many elements each window averages: extents ``windows.result``, all at least 1 or the node is declined."""
    total = np.ones((), dtype=np.int64)
    written = [prod(windows.result), *(n * k for n, k in zip(windows.result, windows.kernel, strict=True))]
    require(max(written) <= LARGEST_AXIS, "too many windows to count")
    for axis, n in enumerate(extents):
        low, high = (-windows.pads[axis], n + windows.ends[axis]) if padding else (0, n)
        taps = np.arange(windows.kernel[axis]) * windows.dilations[axis] - windows.pads[axis]
        position = np.arange(windows.result[axis])[:, None] * windows.strides[axis] + taps
        total = np.multiply.outer(total, ((position >= low) & (position < high)).sum(axis=1))
    require(total.min() >= 1, "a window lies outside the tensor")
    return np.asarray(total)


def max_pool(node: NodeContext) -> Encoded:
    node.ignore("storage_order")
    x, windows = _pooled(node)
    _counts(x.extents[2:], windows, padding=False)
    return (Reduce("pool", _window_view(x, windows, -inf), len(windows.kernel)),)


def average_pool(node: NodeContext) -> Encoded:
    padding = node.integer("count_include_pad", 0) != 0
    x, windows = _pooled(node)
    padded = any(windows.pads) or any(windows.ends)
    require(node.opset >= 7 or not padded, "whether padding counts is not said before opset 7")
    _counts(x.extents[2:], windows, padding=False)
    counts = _counts(x.extents[2:], windows, padding=padding)
    total = Reduce("sum", _window_view(x, windows, 0.0), len(windows.kernel))
    if counts.min() == counts.max():
        return (mul(total, Fill(Fraction(1, int(counts.max())), total.extents)),)
    shares = node.fresh_constant(1.0 / counts, "reciprocal_counts")
    return (mul(total, View(shares, maps.broadcast(shares.extents, total.extents))),)


def reduce_axes(x: Tensor, operation: str, axes: tuple[int, ...], *, keep: bool, mean: bool = False) -> Tensor:
    """Reduction of some axes, which stay with extent 1 or go; ``axes`` are sorted and not negative."""
    return normalization.mean(x, axes, keep=keep) if mean else normalization.reduced(x, operation, axes, keep=keep)


def _norm(x: Tensor, total: Callable[[Tensor], Tensor], p: float) -> Tensor:
    """The p-th root of ``total`` of the p-th powers."""
    if p == 1:
        return total(Apply("abs", (x,)))
    if p == 2:
        return Apply("sqrt", (total(mul(x, x)),))
    powers = total(Apply("pow", (Apply("abs", (x,)), Fill(Fraction(p), x.extents))))
    return Apply("pow", (powers, Fill(Fraction(1 / p), powers.extents)))


def _exponent(node: NodeContext) -> float:
    p = node.number("p", 2.0) if node.opset < 2 else float(node.integer("p", 2))
    require(p >= 1, "p is less than 1")
    return p


def lp_pool(node: NodeContext) -> Encoded:
    p = _exponent(node)
    x, windows = _pooled(node)
    count = len(windows.kernel)
    return (_norm(x, lambda powers: Reduce("sum", _window_view(powers, windows, 0.0), count), p),)


def global_lp_pool(node: NodeContext) -> Encoded:
    x, p = node.tensor(0), _exponent(node)
    require(len(x.extents) >= 3, "no spatial axes")
    axes = tuple(range(2, len(x.extents)))
    return (_norm(x, lambda powers: reduce_axes(powers, "sum", axes, keep=True), p),)


def _global_pool(operation: str, *, mean: bool) -> OperatorEncoding:
    def encode(node: NodeContext) -> Encoded:
        x = node.tensor(0)
        require(len(x.extents) >= 3, "no spatial axes")
        return (reduce_axes(x, operation, tuple(range(2, len(x.extents))), keep=True, mean=mean),)

    return OperatorEncoding("GlobalAveragePool" if mean else "GlobalMaxPool", encode)


WINDOW_OPERATORS: tuple[OperatorEncoding, ...] = (
    OperatorEncoding("Conv", conv, outside="more than 3 spatial axes; auto_pad SAME with dilations"),
    OperatorEncoding("ConvTranspose", conv_transpose, outside="more than 3 spatial axes"),
    OperatorEncoding("MaxPool", max_pool, outside="indices as second result; windows outside the tensor"),
    OperatorEncoding("AveragePool", average_pool, outside="windows outside the tensor; pads before opset 7"),
    _global_pool("sum", mean=True),
    _global_pool("pool", mean=False),
    OperatorEncoding("LpPool", lp_pool),
    OperatorEncoding("GlobalLpPool", global_lp_pool),
)
