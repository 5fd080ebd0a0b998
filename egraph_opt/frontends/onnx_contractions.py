"""Encodings of matrix products, einsum, reductions, softmax and batch normalization."""

from __future__ import annotations

from fractions import Fraction
from math import isfinite

import numpy as np

from egraph_opt.frontends.onnx_context import NodeContext, OperatorEncoding, normal_axes, normal_axis, require
from egraph_opt.frontends.onnx_windows import Encoded, reduce_axes
from egraph_opt.ir import expr as ex
from egraph_opt.ir import maps
from egraph_opt.ir.expr import Expr
from egraph_opt.ir.terms import Fill, Reduce, Softmax, Tensor, View, add, mul


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
    bias = broadcast_to(node.tensor(2), (m, n))
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


def einsum(node: NodeContext) -> Encoded:
    equation = node.text("equation", "").replace(" ", "")
    require(all(c.isascii() and (c.isalpha() or c in ",->") for c in equation), "an ellipsis or an odd character")
    left, arrow, result = equation.partition("->")
    letters, operands = left.split(","), node.tensors()
    require(len(letters) == len(operands) in (1, 2), "not one or two operands")
    if not arrow:
        result = "".join(sorted(c for c in set(left) - {","} if left.count(c) == 1))
    sizes: dict[str, int] = {}
    for names, operand in zip(letters, operands, strict=True):
        require(len(names) == len(operand.extents) == len(set(names)), "a letter repeats or is missing in one operand")
        for name, extent in zip(names, operand.extents, strict=True):
            require(sizes.setdefault(name, extent) == extent, f"{name} has two extents")
    require(len(set(result)) == len(result) and set(result) <= set(sizes), "odd result letters")
    order = [*result, *(name for name in sizes if name not in result)]
    product = tuple(sizes[name] for name in order)
    views = [
        View(operand, maps.index_map(operand.extents, product, [ex.iterator(order.index(name)) for name in names]))
        for names, operand in zip(letters, operands, strict=True)
    ]
    whole: Tensor = mul(*views) if len(views) == 2 else views[0]
    return (Reduce("sum", whole, len(order) - len(result)) if len(order) > len(result) else whole,)


def _reduction(op_type: str, operation: str, *, mean: bool = False, input_since: int = 18) -> OperatorEncoding:
    def encode(node: NodeContext) -> Encoded:
        x = node.tensor(0)
        axes = node.integers(1, "axes", as_input=node.opset >= input_since)
        keep, noop = node.integer("keepdims", 1) != 0, node.integer("noop_with_empty_axes", 0) != 0
        if not axes:
            axes = () if noop else tuple(range(len(x.extents)))
        return (reduce_axes(x, operation, tuple(sorted(normal_axes(axes, len(x.extents)))), keep=keep, mean=mean),)

    return OperatorEncoding(op_type, encode)


def softmax(node: NodeContext) -> Encoded:
    x = node.tensor(0)
    rank = len(x.extents)
    require(rank >= 1, "a scalar")
    if node.opset < 13:  # the axes from ``axis`` on together
        axis = normal_axis(node.integer("axis", 1), rank) if rank > 1 or node.integer("axis", 1) != 1 else 1
        require(axis < rank, "axis past the end")
        return (Softmax(x, rank - axis),)
    axis = normal_axis(node.integer("axis", -1), rank)
    if axis == rank - 1:
        return (Softmax(x, 1),)
    order = [*(i for i in range(rank) if i != axis), axis]
    moved = Softmax(View(x, maps.permute(x.extents, order)), 1)
    return (View(moved, maps.permute(moved.extents, [order.index(i) for i in range(rank)])),)


def batch_normalization(node: NodeContext) -> Encoded:
    node.only_output()
    node.ignore("momentum")
    require(node.integer("training_mode", 0) == 0 and node.integer("spatial", 1) == 1, "training, or not per channel")
    x, epsilon = node.tensor(0), node.number("epsilon", 1e-5)
    require(len(x.extents) >= 2, "no channel axis")
    values = [node.constant(i) for i in range(1, 5)]
    arrays = [value.astype(np.float64) for value in values if value is not None]
    require(len(arrays) == 4 and all(a.shape == x.extents[1:2] for a in arrays), "odd parameters")
    gamma, beta, mean, variance = arrays
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(variance + epsilon)
        shift = beta - mean * scale
        numbers = np.stack([scale, shift]).astype(np.float32)
    require(np.isfinite(numbers).all(), "the scale is not finite")
    views = [
        View(part, maps.index_map(part.extents, x.extents, [ex.iterator(1)]))
        for part in (node.fresh_constant(numbers[0], "scale"), node.fresh_constant(numbers[1], "shift"))
    ]
    return (add(mul(x, views[0]), views[1]),)


CONTRACTION_OPERATORS: tuple[OperatorEncoding, ...] = (
    OperatorEncoding("MatMul", matmul),
    OperatorEncoding("Gemm", gemm),
    OperatorEncoding("Einsum", einsum),
    _reduction("ReduceSum", "sum", input_since=13),
    _reduction("ReduceMean", "sum", mean=True),
    _reduction("ReduceMax", "max"),
    _reduction("ReduceMin", "min"),
    OperatorEncoding("Softmax", softmax),
    OperatorEncoding("BatchNormalization", batch_normalization),
)
