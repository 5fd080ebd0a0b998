"""Plain definitions of the tensor operators as terms: what an operator means, nothing about how to run it."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import prod

from egraph_opt.errors import EgraphOptError
from egraph_opt.ir import expr as ex
from egraph_opt.ir import maps
from egraph_opt.ir.expr import Expr
from egraph_opt.ir.terms import Fill, Reduce, Tensor, View, mul


def convolution(
    x: Tensor, w: Tensor, *, strides: Sequence[int], dilations: Sequence[int], pads: Sequence[int], groups: int = 1
) -> Tensor:
    """Convolution of x [N, C, spatial…] with w [F, C/groups, kernel…] -> [N, F, spatial'…]; pads in ONNX order."""
    spatial = len(strides)
    size, kernel = x.extents[2:], w.extents[2:]
    per_group, filters = w.extents[1], w.extents[0] // groups
    out = [
        (size[a] + pads[a] + pads[a + spatial] - dilations[a] * (kernel[a] - 1) - 1) // strides[a] + 1
        for a in range(spatial)
    ]
    if min(out, default=1) < 1:
        raise EgraphOptError(f"convolution of size {list(size)} with kernel {list(kernel)} has an empty result")
    extents = (x.extents[0], w.extents[0], *out, per_group, *kernel)
    n, f, c = ex.iterator(0), ex.iterator(1), ex.iterator(2 + spatial)
    h = [ex.iterator(2 + a) for a in range(spatial)]
    r = [ex.iterator(3 + spatial + a) for a in range(spatial)]
    channel = ex.floordiv(f, filters, extents) * per_group + c if groups > 1 else c
    walk = [h[a] * strides[a] + r[a] * dilations[a] - pads[a] for a in range(spatial)]
    image = View(x, maps.index_map(x.extents, extents, [n, channel, *walk]))
    return Reduce("sum", mul(image, View(w, maps.index_map(w.extents, extents, [f, c, *r]))), 1 + spatial)


def transposed_convolution(
    x: Tensor,
    w: Tensor,
    *,
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
    output_padding: Sequence[int],
    groups: int = 1,
) -> Tensor:
    """Transposed convolution of x [N, C, spatial…] with w [C, F/groups, kernel…] -> [N, F, spatial'…]."""
    spatial = len(strides)
    size, kernel = x.extents[2:], w.extents[2:]
    filters, per_group = w.extents[1], x.extents[1] // groups
    out = [
        strides[a] * (size[a] - 1)
        + output_padding[a]
        + dilations[a] * (kernel[a] - 1)
        + 1
        - pads[a]
        - pads[a + spatial]
        for a in range(spatial)
    ]
    if min(out, default=1) < 1:
        raise EgraphOptError(f"transposed convolution of size {list(size)} with pads {list(pads)} has an empty result")
    extents = (x.extents[0], filters * groups, *out, per_group, *kernel)
    n, f, c = ex.iterator(0), ex.iterator(1), ex.iterator(2 + spatial)
    r = [ex.iterator(3 + spatial + a) for a in range(spatial)]
    channel = ex.floordiv(f, filters, extents) * per_group + c if groups > 1 else c
    reach = [ex.iterator(2 + a) + pads[a] - r[a] * dilations[a] for a in range(spatial)]
    index = [ex.floordiv(reach[a], strides[a], extents) for a in range(spatial)]
    guards = [ex.modulo(reach[a], strides[a], extents) for a in range(spatial)]
    image = View(x, maps.index_map(x.extents, extents, [n, channel, *index], guards))
    filter_index: list[Expr] = [channel, ex.modulo(f, filters, extents), *r]
    return Reduce("sum", mul(image, View(w, maps.index_map(w.extents, extents, filter_index))), 1 + spatial)


def matrix_product(a: Tensor, b: Tensor) -> Tensor:
    """a [batch…, M, K] times b [batch…, K, N] -> [batch…, M, N], batch axes broadcast as in numpy."""
    rank = max(len(a.extents), len(b.extents)) - 2
    lead = [(1,) * (rank + 2 - len(t.extents)) + t.extents[:-2] for t in (a, b)]
    batch = [max(p, q) for p, q in zip(*lead, strict=True)]
    extents = (*batch, a.extents[-2], b.extents[-1], a.extents[-1])
    m, n, k = (ex.iterator(rank + i) for i in range(3))

    def operand(t: Tensor, last: list[Expr]) -> View:
        own = len(t.extents) - 2
        index = [Expr(0) if t.extents[i] == 1 else ex.iterator(rank - own + i) for i in range(own)]
        return View(t, maps.index_map(t.extents, extents, [*index, *last]))

    return Reduce("sum", mul(operand(a, [m, k]), operand(b, [k, n])), 1)


def band_matrix_product(q: Tensor, k: Tensor, *, width: int, dilation: int) -> Tensor:
    """Dilated band of q k^T: q, k [batch, sequence, depth] -> [batch, sequence, width], centred, zero beyond the
    ends."""
    batch, length, depth = q.extents
    extents = (batch, length, width, depth)
    b, i, w, d = (ex.iterator(axis) for axis in range(4))
    left = View(q, maps.index_map(q.extents, extents, [b, i, d]))
    position = i + w * dilation - dilation * (width // 2)
    return Reduce("sum", mul(left, View(k, maps.index_map(k.extents, extents, [b, position, d]))), 1)


def pooling(
    x: Tensor,
    kernel: Sequence[int],
    *,
    operation: str,
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
) -> Tensor:
    """Pooling of x [N, C, spatial…]; ``operation`` is "max" (outside is -inf) or "average" (outside counts as zero)."""
    spatial = len(kernel)
    size = x.extents[2:]
    out = [
        (size[a] + pads[a] + pads[a + spatial] - dilations[a] * (kernel[a] - 1) - 1) // strides[a] + 1
        for a in range(spatial)
    ]
    if min(out, default=1) < 1:
        raise EgraphOptError(f"pooling of size {list(size)} with kernel {list(kernel)} has an empty result")
    extents = (*x.extents[:2], *out, *kernel)
    walk = [
        ex.iterator(2 + a) * strides[a] + ex.iterator(2 + spatial + a) * dilations[a] - pads[a] for a in range(spatial)
    ]
    fill = float("-inf") if operation == "max" else 0.0
    window = View(x, maps.index_map(x.extents, extents, [ex.iterator(0), ex.iterator(1), *walk], (), fill))
    if operation == "max":
        return Reduce("pool", window, spatial)
    total = Reduce("sum", window, spatial)
    return mul(total, Fill(Fraction(1, prod(kernel)), total.extents))
