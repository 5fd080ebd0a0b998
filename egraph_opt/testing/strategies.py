"""Hypothesis strategies of extents, index maps and tensors; what is simple is drawn often and shrunk to."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import count
from math import prod

from hypothesis import strategies as st

from egraph_opt.ir import expr as ex
from egraph_opt.ir import maps, scalar
from egraph_opt.ir.expr import Expr, Extents
from egraph_opt.ir.maps import IndexMap
from egraph_opt.ir.terms import Apply, Fill, Read, Reduce, Softmax, Source, Tensor, View, add, mul

# Extents that barely fit show what large ones hide.
_EXTENT = st.sampled_from((1, 2, 2, 3, 4))
# No tensor that is drawn has more elements.
MOST_ELEMENTS = 4096
UNARY = ("relu", "sigmoid", "exp", "tanh", "neg", "abs", "leaky_relu:0.25", "clip:-1.0,1.0", "reciprocal")
BINARY = ("sub", "prelu", "max", "min", "div")


def extents(rank: int | None = None, *, most_axes: int = 4) -> st.SearchStrategy[Extents]:
    """Small extents; ``rank`` axes or at most ``most_axes``."""
    ranks = [n for n in (1, 2, 3, 2, 3, 0, 4) if n <= most_axes] if rank is None else [rank]
    return _shapes(tuple(ranks))


@st.composite
def _shapes(draw: st.DrawFn, ranks: tuple[int, ...]) -> Extents:
    rank = draw(st.sampled_from(ranks))
    if rank > 1 and draw(chance(3)):
        # Equal extents let through what confuses axes.
        return (draw(_EXTENT),) * rank
    return tuple(draw(_EXTENT) for _ in range(rank))


def factorings(size: int) -> list[Extents]:
    """Some ways to write a number of elements as extents."""
    found: list[Extents] = [(size,), (1, size)]
    found += [(d, size // d) for d in range(2, size) if size % d == 0]
    found += [(a, b, size // a // b) for a in (2, 3) for b in (2, 3) if size % (a * b) == 0]
    return found


@st.composite
def index_maps(draw: st.DrawFn, source: Sequence[int] | None = None, result: Sequence[int] | None = None) -> IndexMap:
    """Index maps between extents: identity, permutation, reshape, broadcast, window, stride, padding or phases.

    Extents that are not given are drawn.
    """
    if source is None and result is None and draw(chance(2)):
        # Axes of equal extents in another order: what is taken for its inverse, or in the wrong order, fits.
        cube = (draw(st.sampled_from((2, 3))),) * 3
        return maps.permute(cube, draw(st.permutations(range(3))))
    if source is None:
        return draw(_onto(tuple(result) if result is not None else draw(extents())))
    if result is None:
        return draw(_of(tuple(source)))
    return draw(_between(tuple(source), tuple(result)))


@st.composite
def _onto(draw: st.DrawFn, result: Extents) -> IndexMap:
    kinds = ("identity", "permutation", "permutation", "leading", "reshape", "affine", "affine", "affine", "phases")
    kind = draw(st.sampled_from(kinds))
    if kind == "identity":
        return maps.identity(result)
    if kind in ("permutation", "leading"):
        # Softmax and reductions care for the last axes.
        moving = len(result) if kind == "permutation" else max(0, len(result) - draw(st.integers(1, 2)))
        order = [*draw(st.permutations(range(moving))), *range(moving, len(result))]
        return maps.permute([result[order.index(axis)] for axis in range(len(order))], order)
    if kind == "reshape":
        return maps.reshape(draw(st.sampled_from(factorings(prod(result)))), result)
    indices: list[Expr] = []
    source: list[int] = []
    free = list(range(len(result)))
    while free or (len(indices) < 5 and draw(chance(2))):
        own = [free.pop(0)] if free else []
        if len(free) > 0 and draw(chance(5)):
            own.append(free.pop(draw(st.integers(0, len(free) - 1))))
        e = Expr(draw(st.sampled_from((0, 0, 0, -1, 1))))
        for i in own:
            if not draw(chance(1)):
                e = e + ex.iterator(i) * draw(st.sampled_from((1, 1, 1, 2, 3, -1)))
        if kind == "phases" and draw(chance(6)):
            e = (ex.floordiv if draw(st.booleans()) else ex.modulo)(e, draw(st.sampled_from((2, 3))), result)
        low, high = ex.bounds(e, result)
        e = e + (-low if low < -2 else 0)
        indices.append(e)
        source.append(max(1, min(5, high + 1 - min(low, 0) + draw(st.sampled_from((0, 0, -1, 1))))))
    order = draw(st.permutations(range(len(indices))))
    guards = [ex.modulo(ex.iterator(0) + 1, 2, result)] if len(result) > 0 and draw(chance(1)) else []
    return maps.index_map([source[i] for i in order], result, [indices[i] for i in order], guards)


@st.composite
def _of(draw: st.DrawFn, source: Extents) -> IndexMap:
    kind = draw(st.sampled_from(("identity", "permutation", "permutation", "reshape", "window", "window", "window")))
    if kind == "identity":
        return maps.identity(source)
    if kind == "permutation":
        return maps.permute(source, draw(st.permutations(range(len(source)))))
    if kind == "reshape":
        return maps.reshape(source, draw(st.sampled_from(factorings(prod(source)))))
    axes: list[int] = []
    result: list[int] = []
    for axis, extent in enumerate(source):
        for iterators in range(draw(st.sampled_from((1, 1, 2, 0)))):
            axes.append(axis)
            result.append(max(1, extent + draw(st.sampled_from((0, -1, 1)))) if not iterators else draw(_EXTENT))
    if draw(chance(2)):
        axes.append(-1)
        result.append(draw(_EXTENT))
    order = draw(st.permutations(range(len(axes))))
    shown = tuple(result[i] for i in order)
    indices = []
    for axis in range(len(source)):
        e = Expr(draw(st.sampled_from((0, 0, 0, -1, 1))))
        for place, i in enumerate(order):
            if axes[i] == axis:
                e = e + ex.iterator(place) * draw(st.sampled_from((1, 1, 1, 2)))
        indices.append(e)
    return maps.index_map(source, shown, indices)


@st.composite
def _between(draw: st.DrawFn, source: Extents, result: Extents) -> IndexMap:
    if prod(source) == prod(result) and draw(chance(5)):
        return maps.reshape(source, result)
    free = list(range(len(result)))
    indices = []
    for extent in source:
        fitting = [i for i in free if result[i] == extent] or free
        if not fitting or (extent == 1 and draw(chance(5))):
            indices.append(Expr(0))
            continue
        chosen = draw(st.sampled_from(fitting))
        free.remove(chosen)
        indices.append(ex.iterator(chosen) + draw(st.sampled_from((0, 0, 0, 0, -1, 1))))
    return maps.index_map(source, result, indices)


def chance(tenths: int) -> st.SearchStrategy[bool]:
    """True in so many of ten draws; shrinks to False."""
    return st.integers(0, 9).map(lambda n: n > 9 - tenths)


@st.composite
def tensors(
    draw: st.DrawFn, result: Sequence[int] | None = None, *, depth: int = 2, prefix: str = "t", constants: bool = True
) -> Tensor:
    """Tensor terms of at most ``depth`` operators over sources called ``prefix`` and a number."""
    numbers = count()
    shape = tuple(result) if result is not None else draw(extents())

    def source(wanted: Extents) -> Tensor:
        return Read(Source(f"{prefix}{next(numbers)}", wanted, constants and draw(chance(3))))

    def term(wanted: Extents, left: int) -> Tensor:
        kinds = ("source", "view", "sum", "reduce", "unary", "add", "mul", "binary", "softmax", "fill")
        kind = draw(st.sampled_from(kinds)) if left and prod(wanted) < MOST_ELEMENTS else "source"
        match kind:
            case "view":
                index = draw(index_maps(None, wanted))
                return View(term(index.source, left - 1), index)
            case "sum" | "reduce":
                more = draw(extents(draw(st.integers(1, 2))))
                operation = "sum" if kind == "sum" else draw(st.sampled_from(("max", "min")))
                return Reduce(operation, term((*wanted, *more), left - 1), len(more))
            case "unary":
                return Apply(draw(st.sampled_from(UNARY)), (term(wanted, left - 1),))
            case "add" | "mul":
                return (add if kind == "add" else mul)(term(wanted, left - 1), term(wanted, left - 1))
            case "binary":
                function = draw(st.sampled_from(BINARY))
                return Apply(function, (term(wanted, left - 1), term(wanted, left - 1)))
            case "softmax" if wanted:
                return Softmax(term(wanted, left - 1), draw(st.integers(1, len(wanted))))
            case "fill":
                return Fill(draw(st.sampled_from((Fraction(1), Fraction(0), Fraction(1, 2), Fraction(-3)))), wanted)
        return source(wanted)

    return term(shape, depth)


def functions(arity: int) -> st.SearchStrategy[str]:
    """Names of scalar functions, those that users registered included."""
    added = [f.name for f in scalar.ADDED.values() if f.arity == arity and not f.attributes]
    return st.sampled_from((*(UNARY if arity == 1 else BINARY), *sorted(added)))
