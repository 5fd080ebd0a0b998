"""Encodings of matrix products, reductions and softmax."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import isfinite

import numpy as np

from egraph_opt.frontends.onnx_context import NodeContext, OperatorEncoding, normal_axes, normal_axis, require
from egraph_opt.frontends.onnx_einsum import EINSUM
from egraph_opt.frontends.onnx_windows import Encoded, reduce_axes
from egraph_opt.ir import expr as ex
from egraph_opt.ir import maps
from egraph_opt.ir.expr import Expr
from egraph_opt.ir.normalization import reduced, spread
from egraph_opt.ir.terms import Apply, Fill, Reduce, Softmax, Tensor, View, add, mul


def matmul(node: NodeContext) -> Encoded:
    a, b = node.tensor(0), node.tensor(1)
    require(a.extents and b.extents, "an operand is a scalar")
    k = a.extents[-1]
    require(b.extents[max(len(b.extents) - 2, 0)] == k, "inner extents differ")
    rows, columns = a.extents[-2:-1], b.extents[-1:] if len(b.extents) > 1 else ()
    try:
        batch = np.broadcast_shapes(a.extents[:-2], b.extents[:-2])
    except ValueError:
        batch = ()
        require(False, "batch extents do not broadcast")
    product = (*batch, *rows, *columns, k)
    m, n, inner = ex.iterator(len(batch)), ex.iterator(len(batch) + len(rows)), ex.iterator(len(product) - 1)

    def lead(extents: tuple[int, ...]) -> list[Expr]:
        skipped = len(batch) - len(extents)
        return [Expr(0) if n == 1 else ex.iterator(skipped + axis) for axis, n in enumerate(extents)]

    left = [*lead(a.extents[:-2]), *([m] if rows else []), inner]
    right = [*lead(b.extents[:-2]), inner, *([n] if columns else [])]
    views = View(a, maps.index_map(a.extents, product, left)), View(b, maps.index_map(b.extents, product, right))
    return (Reduce("sum", mul(*views), 1),)


def gemm(node: NodeContext) -> Encoded:
    a, b = node.tensor(0), node.tensor(1)
    require(len(a.extents) == len(b.extents) == 2, "an operand is not a matrix")
    trans_a, trans_b = node.integer("transA", 0) != 0, node.integer("transB", 0) != 0
    alpha, beta = node.number("alpha", 1.0), node.number("beta", 1.0)
    if node.opset < 7:
        node.ignore("broadcast")
    require(isfinite(alpha) and isfinite(beta), "alpha or beta is not finite")
    m, k = a.extents[::-1] if trans_a else a.extents
    other, n = b.extents[::-1] if trans_b else b.extents
    require(k == other, "inner extents differ")
    product = (m, n, k)
    row, column, inner = (ex.iterator(i) for i in range(3))
    left = View(a, maps.index_map(a.extents, product, [inner, row] if trans_a else [row, inner]))
    right = View(b, maps.index_map(b.extents, product, [column, inner] if trans_b else [inner, column]))
    result: Tensor = Reduce("sum", mul(left, right), 1)
    if alpha != 1:
        result = mul(result, Fill(Fraction(alpha), result.extents))
    if not node.has(2) or beta == 0:
        return (result,)
    bias = node.tensor(2)
    if node.opset < 7:
        require(node.integer("broadcast", 0) != 0 or bias.extents == (m, n), "other extents without broadcast")
    bias = broadcast_to(bias, (m, n))
    if beta != 1:
        bias = mul(bias, Fill(Fraction(beta), bias.extents))
    return (add(result, bias),)


def broadcast_to(tensor: Tensor, extents: tuple[int, ...]) -> Tensor:
    """The tensor as it is when it has the extents already, else a broadcasting view; Declined when it does not fit."""
    if tensor.extents == extents:
        return tensor
    lead = len(extents) - len(tensor.extents)
    fits = lead >= 0 and all(n in (1, extents[lead + axis]) for axis, n in enumerate(tensor.extents))
    require(fits, f"cannot broadcast {tensor.extents} to {extents}")
    return View(tensor, maps.broadcast(tensor.extents, extents))


_Around = Callable[[Tensor], Tensor]


def _itself(x: Tensor) -> Tensor:
    return x


def _square(x: Tensor) -> Tensor:
    return mul(x, x)


def _function(name: str) -> _Around:
    return lambda x: Apply(name, (x,))


def _reduction(
    op_type: str,
    operation: str,
    *,
    before: _Around = _itself,
    after: _Around = _itself,
    mean: bool = False,
    input_since: int = 18,
) -> OperatorEncoding:
    def encode(node: NodeContext) -> Encoded:
        x = node.tensor(0)
        axes = node.integers(1, "axes", as_input=node.opset >= input_since)
        keep, noop = node.integer("keepdims", 1) != 0, node.integer("noop_with_empty_axes", 0) != 0
        if not axes:
            # Runtimes differ in whether the functions around the sum are applied then.
            require(not noop or (before, after) == (_itself, _itself), "no axes")
            axes = () if noop else tuple(range(len(x.extents)))
        places = tuple(sorted(normal_axes(axes, len(x.extents))))
        return (after(reduce_axes(before(x), operation, places, keep=keep, mean=mean)),)

    return OperatorEncoding(op_type, encode, outside="computed axes")


def _normalized_axes(node: NodeContext, rank: int) -> tuple[int, ...]:
    """The axes of a softmax: before opset 13 all from ``axis`` on together."""
    require(rank >= 1, "a scalar")
    old = node.opset < 13
    axis = node.integer("axis", 1 if old else -1)
    require(not old or axis != rank, "axis past the end")
    axis = normal_axis(axis, rank)
    return tuple(range(axis, rank)) if old else (axis,)


def softmax(node: NodeContext) -> Encoded:
    x = node.tensor(0)
    rank = len(x.extents)
    axes = _normalized_axes(node, rank)
    if axes[-1] == rank - 1:
        return (Softmax(x, len(axes)),)
    order = [*(i for i in range(rank) if i not in axes), *axes]
    moved = Softmax(View(x, maps.permute(x.extents, order)), 1)
    return (View(moved, maps.permute(moved.extents, [order.index(i) for i in range(rank)])),)


def log_softmax(node: NodeContext) -> Encoded:
    x = node.tensor(0)
    axes = _normalized_axes(node, len(x.extents))
    shifted = Apply("sub", (x, spread(reduced(x, "max", axes), x.extents)))
    total = reduced(Apply("exp", (shifted,)), "sum", axes)
    return (Apply("sub", (shifted, spread(Apply("log", (total,)), x.extents))),)


CONTRACTION_OPERATORS: tuple[OperatorEncoding, ...] = (
    OperatorEncoding("MatMul", matmul),
    OperatorEncoding("Gemm", gemm),
    EINSUM,
    _reduction("ReduceSum", "sum", input_since=13),
    _reduction("ReduceMean", "sum", mean=True),
    _reduction("ReduceMax", "max"),
    _reduction("ReduceMin", "min"),
    _reduction("ReduceL1", "sum", before=_function("abs")),
    _reduction("ReduceL2", "sum", before=_square, after=_function("sqrt")),
    _reduction("ReduceSumSquare", "sum", before=_square),
    _reduction("ReduceLogSum", "sum", after=_function("log")),
    OperatorEncoding("Softmax", softmax),
    OperatorEncoding("LogSoftmax", log_softmax),
)
