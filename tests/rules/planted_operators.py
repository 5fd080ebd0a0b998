"""Wrong rules about library operators, of the kinds that TASO, PET and EINNET shipped, each with its correct twin."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from egraph_opt.egraph.language import (
    BufferVar,
    ExtentsVar,
    MapVar,
    Node,
    Pattern,
    Rule,
    TextVar,
    apply,
    becomes,
    call,
    each,
    fill,
    holds,
    jointly,
)
from egraph_opt.ir import expr as ex
from egraph_opt.ir import library, maps
from egraph_opt.ir.expr import Extents
from egraph_opt.ir.library import format_attributes, parse_attributes
from egraph_opt.ir.maps import IndexMap

a, b, c, d = BufferVar("a"), BufferVar("b"), BufferVar("c"), BufferVar("d")
attributes = TextVar("attributes")
e, s = ExtentsVar("e"), ExtentsVar("s")

Fields = list[tuple[object, ...]]


def conv(first: Pattern, second: Pattern, extents: Pattern = e, text: Pattern | str = attributes) -> Node:
    return call("Conv", text, [first, second], extents)


def matmul(first: Pattern, second: Pattern, extents: Pattern = e) -> Node:
    return call("MatMul", "", [first, second], extents)


def one_group(text: str) -> bool:
    return parse_attributes(text)["group"] == "1"


def _concatenated(axis: int, one: Extents, other: Extents) -> Extents:
    return (*one[:axis], one[axis] + other[axis], *one[axis + 1 :])


def _alike(one: Extents, other: Extents, axis: int) -> bool:
    return len(one) == len(other) and all(p == q for i, (p, q) in enumerate(zip(one, other, strict=True)) if i != axis)


def _images_and_kernels(x: Extents, w: Extents, y: Extents, v: Extents) -> Fields:
    return [(_concatenated(1, x, y), _concatenated(1, w, v))] if _alike(x, y, 1) and _alike(w, v, 1) else []


def sum_of_convolutions(right: bool) -> Rule:
    """TASO: a sum of convolutions is one of the concatenated channels; with groups it is not."""
    f = each(_images_and_kernels, a.extents, b.extents, c.extents, d.extents)
    images, kernels = (
        call("Concat", "axis=1", [one, other], f.extents(i)) for i, (one, other) in enumerate([(a, c), (b, d)])
    )
    return becomes(
        "sum-of-convolutions",
        conv(a, b).read() + conv(c, d).read(),
        conv(images, kernels).read(),
        exactness="reassociates",
        given=[holds(one_group, attributes)] if right else [],
    )


def _filters(w: Extents, v: Extents, one: Extents, other: Extents) -> Fields:
    if not _alike(w, v, 0) or not _alike(one, other, 1):
        return []
    both = _concatenated(1, one, other)
    start = [ex.iterator(i) for i in range(len(both))]
    shifted = [i + one[1] if axis == 1 else i for axis, i in enumerate(start)]
    return [
        (_concatenated(0, w, v), both, maps.index_map(both, one, start), maps.index_map(both, other, shifted)),
    ]


def sibling_convolutions(right: bool) -> Rule:
    """TASO: convolutions of one input are one of the concatenated filters; with groups it is not."""
    f = each(_filters, b.extents, c.extents, e, s)
    both = conv(a, call("Concat", "axis=0", [b, c], f.extents(0)), f.extents(1))
    return jointly(
        "sibling-convolutions",
        (conv(a, b, e), both.read().view(f.map(2)).compute()),
        (conv(a, c, s), both.read().view(f.map(3)).compute()),
        exactness="reassociates",
        given=[holds(one_group, attributes)] if right else [],
    )


def _columns(swapped: bool) -> Callable[..., Fields]:
    def fields(b_: Extents, c_: Extents, one: Extents, other: Extents) -> Fields:
        if len(one) != 2 or one != other or len(b_) != 2 or b_ != c_:
            return []
        both = (one[0], 2 * one[1])
        views = [maps.index_map(both, one, [ex.iterator(0), ex.iterator(1) + shift]) for shift in (0, one[1])]
        return [((b_[0], 2 * b_[1]), both, *(views[::-1] if swapped else views))]

    return fields


def sibling_products(right: bool) -> Rule:
    """Two products of one matrix as one; the slices of the result are swapped."""
    f = each(_columns(not right), b.extents, c.extents, e, s)
    both = matmul(a, call("Concat", "axis=1", [b, c], f.extents(0)), f.extents(1))
    return jointly(
        "sibling-products",
        (matmul(a, b, e), both.read().view(f.map(2)).compute()),
        (matmul(a, c, s), both.read().view(f.map(3)).compute()),
        exactness="reassociates",
    )


def associated_products(right: bool) -> Rule:
    """(A B) C = A (B C); the middle matrix is transposed where it is square."""

    def inner(first: Extents, middle: Extents, last: Extents) -> Fields:
        if len(first) != 2 or len(middle) != 2 or len(last) != 2 or (not right and middle[0] != middle[1]):
            return []
        return [(middle[::-1], (middle[0], last[1]))]

    f = each(inner, a.extents, b.extents, c.extents)
    turned = b if right else call("Transpose", "perm=1,0", [b], f.extents(0))
    return becomes(
        "associated-products",
        matmul(matmul(a, b, s), c, e),
        matmul(a, matmul(turned, c, f.extents(1)), e),
        exactness="reassociates",
    )


def transposed_product(right: bool) -> Rule:
    """The transpose of a product; the operands keep their order."""

    def shapes(first: Extents, second: Extents, result: Extents) -> Fields:
        if len(first) != 2 or len(second) != 2:
            return []
        turned = first[::-1], second[::-1]
        return [turned] if right or (turned[0][1] == turned[1][0] and result == (first[1], second[0])) else []

    f = each(shapes, a.extents, b.extents, s)
    one, other = (call("Transpose", "perm=1,0", [m], f.extents(i)) for i, m in enumerate((a, b)))
    product = matmul(other, one, s) if right else matmul(one, other, s)
    return becomes(
        "transposed-product", call("Transpose", "perm=1,0", [matmul(a, b, e)], s), product, exactness="reassociates"
    )


def relu_of_convolution(right: bool) -> Rule:
    """EINNET: a ReLU after a convolution is dropped."""

    def fused(text: str) -> Fields:
        return [(format_attributes(**parse_attributes(text), then="relu" if right else None),)]

    text = each(fused, attributes).text(0)
    return becomes("relu-of-convolution", apply("relu", conv(a, b).read()), conv(a, b, e, text).read())


def relu_of_bias(right: bool) -> Rule:
    """The fused activation comes before the bias."""

    def fused(text: str) -> Fields:
        return [(format_attributes(**parse_attributes(text), then="relu"),)]

    text = each(fused, attributes).text(0)
    y = c.read()
    after = apply("relu", y + conv(a, b).read()) if right else y + conv(a, b, e, text).read()
    return becomes("relu-of-bias", apply("relu", conv(a, b).read() + y), after)


def _window(text: str) -> dict[str, list[int]]:
    return {key: list(library.integers(value)) for key, value in parse_attributes(text).items()}


def strided_convolution(right: bool) -> Rule:
    """A strided convolution keeps some results of one without strides; it keeps the first ones."""

    def dense(text: str, x: Extents, w: Extents, extents: Extents) -> Fields:
        window = _window(text)
        if max(window["strides"]) == 1:
            return []
        plain = format_attributes(**{**window, "strides": [1] * len(window["strides"])})
        full = library.result_extents("Conv", plain, x, w)
        steps = [1, 1, *(window["strides"] if right else [1] * len(window["strides"]))]
        return [(plain, full, maps.index_map(full, extents, [ex.iterator(i) * n for i, n in enumerate(steps)]))]

    f = each(dense, attributes, a.extents, b.extents, e)
    kept = conv(a, b, f.extents(1), f.text(0)).read().view(f.map(2))
    return becomes("strided-convolution", conv(a, b).read(), kept, exactness="reassociates")


def padded_convolution(right: bool) -> Rule:
    """The pads of a convolution as a view of its image; begin and end are exchanged."""

    def outside(text: str, x: Extents) -> Fields:
        window = _window(text)
        pads, rank = window["pads"], len(window["strides"])
        begin, end = (pads[:rank], pads[rank:]) if right else (pads[rank:], pads[:rank])
        larger = (*x[:2], *(n + p + q for n, p, q in zip(x[2:], begin, end, strict=True)))
        index = [ex.iterator(0), ex.iterator(1), *(ex.iterator(2 + i) - p for i, p in enumerate(begin))]
        return [(format_attributes(**{**window, "pads": [0] * 2 * rank}), maps.index_map(x, larger, index))]

    f = each(outside, attributes, a.extents)
    padded = a.read().view(f.map(1)).compute()
    return becomes("padded-convolution", conv(a, b), conv(padded, b, e, f.text(0)), exactness="reassociates")


def enlarged_kernel(right: bool) -> Rule:
    """A kernel with a border of zeros and larger pads; the zeros are all at its end."""

    def larger(text: str, w: Extents) -> Fields:
        window = _window(text)
        grown = (*w[:2], *(n + 2 for n in w[2:]))
        shift = 1 if right else 0
        index = [ex.iterator(0), ex.iterator(1), *(ex.iterator(i) - shift for i in range(2, len(w)))]
        pads = [p + q for p, q in zip(window["pads"], [*window["dilations"]] * 2, strict=True)]
        return [(format_attributes(**{**window, "pads": pads}), maps.index_map(w, grown, index))]

    f = each(larger, attributes, b.extents)
    kernel = b.read().view(f.map(1)).compute()
    return becomes("enlarged-kernel", conv(a, b), conv(a, kernel, e, f.text(0)), exactness="reassociates")


def dilated_convolution(right: bool) -> Rule:
    """EINNET: a dilated convolution is a plain one of the phases of its image; the permutation is dropped."""

    def phases(text: str, x: Extents, w: Extents) -> Fields:
        window = _window(text)
        (dilation, *others), strides = window["dilations"], window["strides"]
        if others or max(strides) > 1 or any(window["pads"]) or dilation == 1 or x[2] % dilation:
            return []
        n, channels, length = x
        apart = (n, dilation, channels, length // dilation)
        i = [ex.iterator(axis) for axis in range(4)]
        split = maps.index_map(x, apart, [i[0], i[2], i[3] * dilation + i[1]])
        batches = (n * dilation, channels, length // dilation)
        plain = format_attributes(**{**window, "dilations": [1]})
        result = library.result_extents("Conv", plain, batches, w)
        results = (n, dilation, *result[1:])
        final = (n, result[1], result[2] * dilation)
        if right:
            h = ex.iterator(2)
            phase, place = ex.modulo(h, dilation, final), ex.floordiv(h, dilation, final)
            together_ = maps.index_map(results, final, [ex.iterator(0), phase, ex.iterator(1), place])
        else:
            together_ = maps.reshape(results, final)
        return [(split, batches, plain, result, results, together_)]

    f = each(phases, attributes, a.extents, b.extents)
    image = a.read().view(f.map(0)).compute().reshape(f.extents(1))
    parts = call("Conv", f.text(2), [image, b], f.extents(3)).reshape(f.extents(4))
    return becomes("dilated-convolution", conv(a, b).read(), parts.read().view(f.map(5)), exactness="reassociates")


def pooled_sum(right: bool) -> Rule:
    """Windows that reach outside: the average counts only what is inside."""

    def uncounted(text: str, x: Extents, extents: Extents) -> Fields:
        window = _window(text)
        rank, kernel = len(window["kernel_shape"]), window["kernel_shape"]
        if right and any(window["pads"]):
            return []
        shape = (*extents, *kernel)
        index = [ex.iterator(0), ex.iterator(1)]
        for axis in range(rank):
            walk = ex.iterator(2 + axis) * window["strides"][axis] + ex.iterator(2 + rank + axis)
            index.append(walk - window["pads"][axis])
        return [(maps.index_map(x, shape, index), rank, str(len(shape) and prod(kernel)), extents)]

    f = each(uncounted, attributes, a.extents, e)
    windows = a.read().view(f.map(0)).sum(f.integer(1))
    ones = fill(1, a.extents).view(f.map(0)).sum(f.integer(1))
    return becomes(
        "pooled-sum",
        call("AveragePool", attributes, [a], e).read(),
        apply("div", windows, ones),
        exactness="reassociates",
    )


def transposed_memory(right: bool) -> Rule:
    """A copy in another order taken for the same memory."""

    def shape(index: IndexMap) -> Fields:
        same = index.is_reshape if right else index.is_bijective
        return [(index.result,)] if same else []

    m = MapVar("m")
    f = each(shape, m)
    return becomes("transposed-memory", b.read().view(m).compute(), b.reshape(f.extents(0)))


OPERATORS: dict[str, Callable[[bool], Rule]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        sum_of_convolutions,
        sibling_convolutions,
        sibling_products,
        associated_products,
        transposed_product,
        relu_of_convolution,
        relu_of_bias,
        strided_convolution,
        padded_convolution,
        enlarged_kernel,
        dilated_convolution,
        pooled_sum,
        transposed_memory,
    )
}
