"""Small random operators and chains of them, as hypothesis strategies of programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from math import prod
from typing import Any

from hypothesis import strategies as st

from egraph_opt.ir import definitions, maps
from egraph_opt.ir import expr as ex
from egraph_opt.ir.program import Program
from egraph_opt.ir.terms import (
    Apply,
    Buffer,
    Call,
    Compute,
    Fill,
    Read,
    Reduce,
    Reshape,
    Softmax,
    Source,
    Tensor,
    View,
    add,
    children,
    mul,
)


def program(inputs: Sequence[Source], *results: Tensor) -> Program:
    """A program of these sources and results, which are called y, y1, y2, …"""
    names = ["y" if i == 0 else f"y{i}" for i in range(len(results))]
    return Program(tuple(inputs), tuple(zip(names, results, strict=True)), tuple(names))


def channels(draw: st.DrawFn) -> tuple[int, int, int]:
    """Channels and filters of one group, number of groups."""
    return draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.sampled_from([1, 1, 1, 2, 3]))


@st.composite
def convolutions(draw: st.DrawFn, *, transposed: bool = False, most_axes: int = 3, large: int = 9) -> Program:
    """Conv or ConvTranspose, 1 to 3 spatial axes; the kernel shrinks with the number of axes to keep the judge fast."""
    rank = draw(st.sampled_from([axes for axes in (1, 2, 2, 2, 3) if axes <= most_axes]))
    limit = {1: large, 2: min(large, 5), 3: 2}[rank]
    kernel = [draw(st.integers(1, limit)) for _ in range(rank)]
    strides = [draw(st.integers(1, 4 if rank < 3 else 2)) for _ in range(rank)]
    dilations = [draw(st.integers(1, 4 if rank < 3 else 2)) for _ in range(rank)]
    pads = [draw(st.integers(0, 3)) for _ in range(2 * rank)]
    per_group, filters, groups = channels(draw)
    batch = draw(st.integers(1, 2))
    if transposed:
        size = [draw(st.integers(1, 5 if rank < 3 else 3)) for _ in range(rank)]
        extra = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(strides, dilations, strict=True)]
        full = [
            s * (n - 1) + e + d * (k - 1) + 1
            for s, n, e, d, k in zip(strides, size, extra, dilations, kernel, strict=True)
        ]
        for axis, total in enumerate(full):
            pads[axis] = min(pads[axis], total - 1)
            pads[axis + rank] = min(pads[axis + rank], total - 1 - pads[axis])
        x, w = (
            Source("x", (batch, per_group * groups, *size)),
            Source("w", (per_group * groups, filters, *kernel), True),
        )
        term = definitions.transposed_convolution(
            Read(x), Read(w), strides=strides, dilations=dilations, pads=pads, output_padding=extra, groups=groups
        )
        return program((x, w), term)
    size = []
    for axis, (k, d) in enumerate(zip(kernel, dilations, strict=True)):
        least = max(1, d * (k - 1) + 1 - pads[axis] - pads[axis + rank])
        size.append(least + draw(st.integers(0, 5 if rank < 3 else 2)))
    x, w = Source("x", (batch, per_group * groups, *size)), Source("w", (filters * groups, per_group, *kernel), True)
    return program(
        (x, w),
        definitions.convolution(Read(x), Read(w), strides=strides, dilations=dilations, pads=pads, groups=groups),
    )


@st.composite
def matrix_products(draw: st.DrawFn) -> Program:
    """MatMul with broadcast batch axes, operands stored in any axis order."""
    rows, inner, columns = (draw(st.integers(1, 4)) for _ in range(3))
    batch = [draw(st.integers(1, 3)) for _ in range(draw(st.integers(0, 2)))]
    tensors: list[Tensor] = []
    sources = []
    for name, last in (("a", (rows, inner)), ("b", (inner, columns))):
        lead = [draw(st.sampled_from([1, n])) for n in batch[draw(st.integers(0, len(batch))) :]]
        extents = (*lead, *last)
        order = draw(st.permutations(range(len(extents))))
        source = Source(name, tuple(extents[axis] for axis in order))
        sources.append(source)
        back = maps.permute(source.extents, [order.index(axis) for axis in range(len(order))])
        tensors.append(Read(source) if back.is_identity else View(Read(source), back))
    return program(sources, definitions.matrix_product(*tensors))


@st.composite
def band_products(draw: st.DrawFn) -> Program:
    """Dilated band of q k^T, or of a band of scores times values, with zeros or a gathered border beyond the ends."""
    batch, length, depth = draw(st.integers(1, 2)), draw(st.integers(2, 9)), draw(st.integers(1, 3))
    width, dilation = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    if draw(st.booleans()):
        q, k = Source("q", (batch, length, depth)), Source("k", (batch, length, depth))
        return program((q, k), definitions.band_matrix_product(Read(q), Read(k), width=width, dilation=dilation))
    p, v = Source("p", (batch, length, width)), Source("v", (batch, length, depth))
    extents = (batch, length, depth, width)
    b, i, d, w = (ex.iterator(axis) for axis in range(4))
    left = View(Read(p), maps.index_map(p.extents, extents, [b, i, w]))
    right = View(Read(v), maps.index_map(v.extents, extents, [b, i + w * dilation - dilation * (width // 2), d]))
    return program((p, v), Reduce("sum", mul(left, right), 1))


@st.composite
def pools(draw: st.DrawFn) -> Program:
    rank = draw(st.integers(1, 2))
    kernel = [draw(st.integers(1, 4)) for _ in range(rank)]
    strides = [draw(st.integers(1, 3)) for _ in range(rank)]
    dilations = [draw(st.sampled_from((1, 1, 2))) for _ in range(rank)]
    pads = [draw(st.integers(0, 2)) for _ in range(2 * rank)]
    size = []
    for axis, (k, d) in enumerate(zip(kernel, dilations, strict=True)):
        size.append(max(1, d * (k - 1) + 1 - pads[axis] - pads[axis + rank]) + draw(st.integers(0, 4)))
    x = Source("x", (draw(st.integers(1, 2)), draw(st.integers(1, 3)), *size))
    operation = draw(st.sampled_from(["max", "average"]))
    term = definitions.pooling(Read(x), kernel, operation=operation, strides=strides, dilations=dilations, pads=pads)
    return program((x,), term)


@st.composite
def reductions(draw: st.DrawFn) -> Program:
    """A sum, mean, maximum or minimum over some axes."""
    extents = tuple(draw(st.integers(1, 4)) for _ in range(draw(st.integers(1, 4))))
    order = draw(st.permutations(range(len(extents))))
    count = draw(st.integers(1, len(extents)))
    x = Source("x", extents)
    moved = View(Read(x), maps.permute(extents, order))
    operation = draw(st.sampled_from(["sum", "mean", "max", "min"]))
    if operation != "mean":
        return program((x,), Reduce(operation, moved, count))
    total = Reduce("sum", moved, count)
    return program((x,), mul(total, Fill(Fraction(1, prod(moved.extents[len(extents) - count :])), total.extents)))


@st.composite
def sliced(draw: st.DrawFn) -> Program:
    """A convolution of either kind that reads an image through a Slice with steps."""
    whole = draw(convolutions(transposed=draw(st.booleans()), most_axes=2, large=4))
    x = next(source for source in whole.inputs if source.name == "x")
    steps = [1, 1, *(draw(st.integers(1, 3)) for _ in x.extents[2:])]
    starts = [0, 0, *(draw(st.integers(0, 1)) for _ in x.extents[2:])]
    larger = Source("x", tuple(n * s + start for n, s, start in zip(x.extents, steps, starts, strict=True)))
    index = [ex.iterator(i) * s + start for i, (s, start) in enumerate(zip(steps, starts, strict=True))]
    seen = View(Read(larger), maps.index_map(larger.extents, x.extents, index))
    inputs = tuple(larger if source == x else source for source in whole.inputs)
    return program(inputs, replaced(whole.definitions[0][1], Read(x), seen))


def replaced(term: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """The term with every occurrence of a sub-term exchanged."""
    return new if term == old else rebuilt(term, lambda part: replaced(part, old, new))  # type: ignore[return-value]


def rebuilt(term: Tensor | Buffer, change: Callable[[Any], Any]) -> Tensor | Buffer:
    """The term with its direct sub-terms changed."""
    match term:
        case Read(buffer):
            return Read(change(buffer))
        case View(inner, index):
            return View(change(inner), index)
        case Reduce() | Softmax() | Compute():
            return replace(term, tensor=change(term.tensor))
        case Apply(function, arguments):
            return Apply(function, tuple(map(change, arguments)))
        case Call(operator, attributes, operands, extents):
            return Call(operator, attributes, tuple(map(change, operands)), extents)
        case Reshape(buffer, extents):
            return Reshape(change(buffer), extents)
    return term


def renamed(whole: Program, prefix: str) -> Program:
    """The program with a prefix before all names, so that several can stand side by side."""

    def change(term: Any) -> Any:
        return replace(term, name=prefix + term.name) if isinstance(term, Source) else rebuilt(term, change)

    return Program(
        tuple(map(change, whole.inputs)),
        tuple((prefix + name, change(term)) for name, term in whole.definitions),
        tuple(prefix + name for name in whole.outputs),
    )


def moved(draw: st.DrawFn, term: Tensor, *, pad: bool) -> Tensor:
    """A spatial axis sliced with a step, or padded with some value (Slice and Pad of ONNX)."""
    axis = draw(st.integers(2, len(term.extents) - 1))
    extents = list(term.extents)
    step, start, fill = 1, 0, 0.0
    if pad:
        before, after = draw(st.integers(0, 1)), draw(st.integers(0, 1))
        start, fill = -before, draw(st.sampled_from([0.0, -1.0, 0.5]))
        extents[axis] += before + after
    else:
        step, start = draw(st.integers(1, 2)), draw(st.integers(0, extents[axis] - 1))
        extents[axis] = -(-(extents[axis] - start) // step)
    index = [ex.iterator(i) * step + start if i == axis else ex.iterator(i) for i in range(len(extents))]
    return View(term, maps.index_map(term.extents, extents, index, (), fill))


@st.composite
def chains(draw: st.DrawFn) -> Program:
    """Convolutions or matrix products with bias, activation, residual, softmax and scale between them."""
    size = (draw(st.integers(2, 4)), draw(st.integers(2, 4)))
    width = draw(st.integers(1, 3))
    x = Source("x", (draw(st.integers(1, 2)), width, *size))
    sources = [x]
    term: Tensor = Read(x)
    for step in range(draw(st.integers(1, 2))):
        filters = draw(st.sampled_from([width, 2]))
        kernel = draw(st.sampled_from([(1, 1), (3, 3), (3, 1), (2, 2)]))
        dilation = draw(st.sampled_from([1, 2]))
        pads = [dilation * (k - 1) // 2 for k in kernel] + [
            dilation * (k - 1) - dilation * (k - 1) // 2 for k in kernel
        ]
        w = Source(f"w{step}", (filters, term.extents[1], *kernel), True)
        sources.append(w)
        before = term
        term = definitions.convolution(term, Read(w), strides=(1, 1), dilations=(dilation, dilation), pads=pads)
        for kind in draw(
            st.lists(
                st.sampled_from(
                    ["bias", "relu", "prelu", "residual", "softmax", "scale", "sigmoid", "slice", "pad", "permute"]
                ),
                max_size=3,
            )
        ):
            term = _followed(draw, kind, f"{step}{len(sources)}", sources, term, before)
    return program(sources, term)


def _followed(draw: st.DrawFn, kind: str, name: str, sources: list[Source], term: Tensor, before: Tensor) -> Tensor:
    channel = (term.extents[1], 1, 1)
    match kind:
        case "bias" | "prelu" | "scale":
            source = Source(kind + name, channel, True)
            sources.append(source)
            spread = View(Read(source), maps.broadcast(channel, term.extents))
            function = {"bias": "add", "prelu": "prelu", "scale": "mul"}[kind]
            swapped = kind != "prelu" and draw(st.booleans())
            return Apply(function, (spread, term) if swapped else (term, spread))
        case "slice" | "pad":
            return moved(draw, term, pad=kind == "pad")
        case "permute":
            return View(term, maps.permute(term.extents, (0, 1, 3, 2)))
        case "residual":
            if before.extents == term.extents:
                return add(term, before) if draw(st.booleans()) else add(before, term)
            return term
        case "softmax":
            axis = draw(st.integers(1, 3))
            order = [a for a in range(4) if a != axis] + [axis]
            last = View(term, maps.permute(term.extents, order))
            return View(Softmax(last, 1), maps.permute(last.extents, [order.index(a) for a in range(4)]))
    return Apply(kind, (term,))


def anything() -> st.SearchStrategy[Program]:
    """Every kind of operator and chain."""
    return st.one_of(
        convolutions(),
        convolutions(transposed=True),
        matrix_products(),
        band_products(),
        pools(),
        reductions(),
        chains(),
    )


@st.composite
def siblings(draw: st.DrawFn) -> Program:
    """Two or three convolutions or matrix products that share an operand, or are added up."""
    number, summed = draw(st.sampled_from([2, 3])), draw(st.booleans())
    shared_weight = draw(st.booleans())
    sources: list[Source] = []
    terms: list[Tensor] = []
    if draw(st.booleans()):
        rows, inner, columns = (draw(st.integers(1, 3)) for _ in range(3))
        for i in range(number):
            wide = columns if summed or shared_weight else draw(st.integers(1, 3))
            high = rows if summed or not shared_weight else draw(st.integers(1, 3))
            a = _shared(sources, "a", (high, inner), None if shared_weight else 0, i)
            b = _shared(sources, "b", (inner, wide), 0 if shared_weight else None, i)
            terms.append(definitions.matrix_product(Read(a), Read(b)))
    else:
        per_group, filters, groups = channels(draw)
        size = (draw(st.integers(3, 5)), draw(st.integers(1, 4)))
        strides = (draw(st.integers(1, 2)), 1)
        half = 0
        for i in range(number):
            # Kernels of odd extents and half as much padding give results of one size.
            half = draw(st.integers(0, 1)) if not shared_weight or i == 0 else half
            own = draw(st.integers(1, 2)) if not (summed or shared_weight) else filters
            x = _shared(sources, "x", (1, per_group * groups, *size), None if shared_weight else 0, i)
            w = _shared(sources, "w", (own * groups, per_group, 2 * half + 1, 1), 0 if shared_weight else None, i)
            pads = (half, 0, half, 0)
            term = definitions.convolution(
                Read(x), Read(w), strides=strides, dilations=(1, 1), pads=pads, groups=groups
            )
            terms.append(term)
    if not summed:
        return program(sources, *terms)
    total = terms[0]
    for term in terms[1:]:
        total = add(total, term)
    return program(sources, total)


def _shared(sources: list[Source], name: str, extents: tuple[int, ...], member: int | None, i: int) -> Source:
    """The source of member ``i``: that of ``member`` for all of them, or one of its own."""
    found = Source(f"{name}{i if member is None else member}", extents, name in ("w", "b"))
    if found not in sources:
        sources.append(found)
    return found


@st.composite
def nested(draw: st.DrawFn) -> Program:
    """A product of three matrices, or a convolution of a convolution."""
    if draw(st.booleans()):
        n = [draw(st.integers(1, 4)) for _ in range(4)]
        a, b, c = (Source(name, (n[i], n[i + 1]), i > 0) for i, name in enumerate("abc"))
        if draw(st.booleans()):
            term = definitions.matrix_product(definitions.matrix_product(Read(a), Read(b)), Read(c))
        else:
            term = definitions.matrix_product(Read(a), definitions.matrix_product(Read(b), Read(c)))
        return program((a, b, c), term)
    widths = [draw(st.integers(1, 2)) for _ in range(3)]
    sources = [Source("x", (1, widths[0], draw(st.integers(3, 5)), draw(st.integers(1, 3))))]
    inner: Tensor = Read(sources[0])
    for i in range(2):
        kernel = (draw(st.integers(1, 3)) if inner.extents[2] > 2 else 1, 1)
        sources.append(Source(f"w{i}", (widths[i + 1], widths[i], *kernel), True))
        pads = (draw(st.integers(0, 1)), 0, draw(st.integers(0, 1)), 0)
        inner = definitions.convolution(
            inner, Read(sources[-1]), strides=(draw(st.integers(1, 2)), 1), dilations=(1, 1), pads=pads
        )
    return program(sources, inner)


@st.composite
def commuted(draw: st.DrawFn, whole: st.SearchStrategy[Program]) -> Program:
    """The same program with the operands of its products and sums in any order."""

    def turned(term: Any) -> Any:
        found = rebuilt(term, turned)
        if isinstance(found, Apply) and found.function in ("mul", "add") and draw(st.booleans()):
            return Apply(found.function, found.arguments[::-1])
        return found

    found = draw(whole)
    return Program(found.inputs, tuple((name, turned(term)) for name, term in found.definitions), found.outputs)


CONTRACTIONS: Mapping[str, Callable[[], st.SearchStrategy[Program]]] = {
    "convolutions": lambda: convolutions(most_axes=2),
    "transposed convolutions": lambda: convolutions(transposed=True, most_axes=2, large=5),
    "matrix products": matrix_products,
    "band products": band_products,
    "siblings": siblings,
    "nested": nested,
}
REDUCTIONS: Mapping[str, Callable[[], st.SearchStrategy[Program]]] = {"pools": pools, "reductions": reductions}


def sizes(program: Program) -> int:
    """The largest number of elements of any part of a program, views included."""

    def largest(term: object) -> int:
        own = prod(getattr(term, "extents", ()))
        return max([own, *(largest(child) for child in children(term))])  # type: ignore[arg-type]

    return max(largest(term) for _, term in program.definitions)
