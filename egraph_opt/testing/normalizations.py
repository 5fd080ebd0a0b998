"""Normalizations written out in pieces, as hypothesis strategies of programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction

from hypothesis import strategies as st

from egraph_opt.ir import expr as ex
from egraph_opt.ir import maps
from egraph_opt.ir import normalization as norm
from egraph_opt.ir.program import Program
from egraph_opt.ir.terms import Apply, Fill, Read, Reduce, Source, Tensor, View, add, mul
from egraph_opt.testing.operators import program
from egraph_opt.testing.strategies import extents

_EPSILON = 2.0**-10


@st.composite
def standardizations(draw: st.DrawFn) -> Program:
    """Mean and variance over some axes, with or without scale and bias over the same, the other or some axes."""
    shape = draw(extents(draw(st.sampled_from((2, 3, 3, 4)))))
    rank = len(shape)
    first = draw(st.integers(0, rank - 1))
    # Trailing axes are those of layer normalization; any others of the rest.
    axes = tuple(range(max(1, first), rank)) if draw(st.booleans()) else _some(draw, rank)
    others = tuple(axis for axis in range(rank) if axis not in axes)
    told = draw(st.sampled_from((axes, others, others[1:], others[:1], _some(draw, rank))))
    x = Source("x", shape)
    sources = [x]
    centered = draw(st.booleans())
    find = norm.standardized if centered else norm.root_mean_square_scaled
    term = find(Read(x), axes, _EPSILON)
    parts = draw(st.sampled_from(("none", "scale", "scale", "both", "both")))
    if parts != "none":
        scale = _parameter(sources, "scale", told, shape)
        term = mul(scale, term) if draw(st.integers(0, 3)) == 3 else mul(term, scale)
    if parts == "both":
        term = add(term, _parameter(sources, "bias", told, shape))
    return program(sources, term)


@st.composite
def local_responses(draw: st.DrawFn) -> Program:
    """Local response normalization over a window of channels."""
    shape = draw(extents(draw(st.sampled_from((4, 3)))))
    size, axis = draw(st.integers(1, 5)), draw(st.sampled_from((1, 1, 1, 0, 2)))
    x = Source("x", shape)
    rank = len(shape)
    places = [ex.iterator(i) for i in range(rank)]
    places[axis] = ex.iterator(axis) + ex.iterator(rank) - (size - 1) // 2
    window = View(mul(Read(x), Read(x)), maps.index_map(shape, (*shape, size), places))
    scaled = mul(Reduce("sum", window, 1), Fill(Fraction(1, 64) / size, shape))
    base = add(scaled, Fill(Fraction(3, 2), shape))
    return program([x], Apply("div", (Read(x), Apply("pow", (base, Fill(Fraction(3, 4), shape))))))


def _some(draw: st.DrawFn, rank: int) -> tuple[int, ...]:
    chosen: set[int] = draw(st.sets(st.integers(0, rank - 1), min_size=1, max_size=2))
    return tuple(sorted(chosen))


def _parameter(sources: list[Source], name: str, axes: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    sources.append(Source(name, tuple(shape[axis] for axis in axes), constant=True))
    places = [ex.iterator(axis) for axis in axes]
    return View(Read(sources[-1]), maps.index_map(sources[-1].extents, shape, places))


NORMALIZATIONS: Mapping[str, Callable[[], st.SearchStrategy[Program]]] = {
    "standardizations": standardizations,
    "local responses": local_responses,
}
