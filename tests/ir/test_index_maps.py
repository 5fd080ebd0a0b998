"""Index expressions and maps against brute force over all index points."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egraph_opt.errors import EgraphOptError
from egraph_opt.ir import expr as ex
from egraph_opt.ir import maps
from egraph_opt.ir.expr import Expr, Extents
from egraph_opt.ir.maps import IndexMap

MANY = settings(max_examples=400, deadline=None, derandomize=True)
SOME = settings(max_examples=150, deadline=None, derandomize=True)

extents_of = st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple)


@st.composite
def expressions(draw: st.DrawFn, extents: Extents, depth: int = 2) -> Expr:
    e = Expr(draw(st.integers(-3, 4)))
    for i in range(len(extents)):
        e = e + ex.iterator(i) * draw(st.sampled_from([0, 0, 1, 1, 1, 2, 3, 4, -1, -2]))
    if depth and draw(st.booleans()):
        inner = draw(expressions(extents, depth - 1))
        d = draw(st.integers(2, 5))
        part = (ex.floordiv if draw(st.booleans()) else ex.modulo)(inner, d, extents)
        e = e + part * draw(st.sampled_from([1, -1, 2, d]))
    return e


@st.composite
def raw_maps(draw: st.DrawFn, result: Extents) -> tuple[Extents, Extents, list[Expr], list[Expr]]:
    source = draw(extents_of)
    indices = [draw(expressions(result, 1)) for _ in source]
    guards = []
    for _ in range(draw(st.integers(0, 2))):
        inner = draw(expressions(result, 0))
        kind = draw(st.sampled_from([ex.floordiv, ex.modulo, None]))
        guards.append(inner if kind is None else kind(inner, draw(st.integers(2, 5)), result))
    return source, result, indices, guards


def values_of(e: Expr, extents: Extents) -> np.ndarray:
    return np.broadcast_to(ex.evaluate(e, maps.grid(extents)), extents)


def brute_force(
    values: np.ndarray, source: Extents, result: Extents, indices: list[Expr], guards: list[Expr]
) -> np.ndarray:
    inside = np.ones(result, bool)
    positions = []
    for e, extent in zip(indices, source, strict=True):
        position = values_of(e, result)
        inside &= (position >= 0) & (position < extent)
        positions.append(np.clip(position, 0, extent - 1))
    for guard in guards:
        inside &= values_of(guard, result) == 0
    return np.where(inside, values[tuple(positions)], 0)


def numbered(extents: Extents) -> np.ndarray:
    return np.arange(1, int(np.prod(extents)) + 1).reshape(extents)


@MANY
@given(st.data(), extents_of)
def test_bounds_hold_at_every_point(data: st.DataObject, extents: Extents) -> None:
    e = data.draw(expressions(extents))
    low, high = ex.bounds(e, extents)
    found = values_of(e, extents)
    assert low <= found.min()
    assert found.max() <= high
    if e.is_affine:
        assert (low, high) == (found.min(), found.max())
    wide = ex._interval(e, extents)  # what bounds() uses where it cannot enumerate
    assert wide[0] <= found.min()
    assert found.max() <= wide[1]


@MANY
@given(st.data(), extents_of, st.integers(1, 7))
def test_division_and_remainder(data: st.DataObject, extents: Extents, divisor: int) -> None:
    e = data.draw(expressions(extents))
    np.testing.assert_array_equal(
        values_of(ex.floordiv(e, divisor, extents), extents), values_of(e, extents) // divisor
    )
    np.testing.assert_array_equal(values_of(ex.modulo(e, divisor, extents), extents), values_of(e, extents) % divisor)


@MANY
@given(st.data(), extents_of)
def test_sums_products_and_texts(data: st.DataObject, extents: Extents) -> None:
    a, b = data.draw(expressions(extents)), data.draw(expressions(extents))
    np.testing.assert_array_equal(values_of(a + b, extents), values_of(a, extents) + values_of(b, extents))
    np.testing.assert_array_equal(values_of(a * -3 + 2, extents), values_of(a, extents) * -3 + 2)
    assert a + b == b + a
    assert (a + b - b).text == a.text
    assert ex.parse(a.text, extents) == a
    assert hash(ex.parse(a.text, extents)) == hash(a)


@SOME
@given(st.data(), extents_of, extents_of)
def test_substitution(data: st.DataObject, old: Extents, new: Extents) -> None:
    replacements = []
    for extent in old:
        inner = data.draw(expressions(new, 1))
        replacements.append(ex.modulo(inner, extent, new))  # inside the old extents, where canonical forms hold
    e = data.draw(expressions(old))
    points = [values_of(r, new) for r in replacements]
    expected = np.broadcast_to(ex.evaluate(e, points), new)
    np.testing.assert_array_equal(values_of(ex.substitute(e, replacements, new), new), expected)


def test_known_simplifications() -> None:
    extents = (4, 6)
    i, j = ex.iterator(0), ex.iterator(1)
    assert ex.floordiv(i * 6 + j, 6, extents) == i
    assert ex.modulo(i * 6 + j, 6, extents) == j
    assert ex.floordiv(j, 3, extents) * 3 + ex.modulo(j, 3, extents) == j
    assert ex.floordiv(ex.floordiv(j, 2, extents), 3, extents) == Expr(0)
    assert ex.floordiv(i, 4, extents) == Expr(0)
    assert ex.modulo(i + 4, 8, extents) == i + 4


@pytest.mark.parametrize("text", ["i0*i1", "i5", "1.5", "i0//0", "i0//i1", "f(i0)", "i0 +", "True"])
def test_texts_that_are_no_expressions(text: str) -> None:
    with pytest.raises(EgraphOptError):
        ex.parse(text, (3, 4))


@MANY
@given(st.data(), extents_of)
def test_canonical_maps_read_what_was_asked(data: st.DataObject, result: Extents) -> None:
    source, _, indices, guards = raw = data.draw(raw_maps(result))
    index = maps.index_map(*raw)
    values = numbered(source)
    np.testing.assert_array_equal(maps.gathered(values, index), brute_force(values, source, result, indices, guards))
    assert maps.parse(index.text) == index
    found = maps.gathered(values, index)
    assert not index.is_total or (found > 0).all()
    if index.is_bijective:
        assert sorted(found.ravel()) == sorted(values.ravel())
    if index.is_reshape:
        np.testing.assert_array_equal(found.ravel(), values.ravel())
    if index.permutation is not None:
        np.testing.assert_array_equal(found, values.transpose(index.permutation))
    if index.is_identity:
        np.testing.assert_array_equal(found, values)


@MANY
@given(st.data(), extents_of, extents_of)
def test_composition(data: st.DataObject, middle: Extents, result: Extents) -> None:
    inner = maps.index_map(*data.draw(raw_maps(middle)))
    _, _, indices, guards = data.draw(raw_maps(result))
    outer = maps.index_map(middle, result, [(indices * 3)[axis] for axis in range(len(middle))], guards)
    values = numbered(inner.source)
    composed = maps.compose(outer, inner)
    assert composed is not None
    np.testing.assert_array_equal(maps.gathered(values, composed), maps.gathered(maps.gathered(values, inner), outer))


@st.composite
def bijections(draw: st.DrawFn) -> IndexMap:
    """Reshapes and permutations, one after the other."""
    found = maps.identity(draw(extents_of))
    for _ in range(draw(st.integers(1, 4))):
        extents = found.result
        if draw(st.booleans()):
            step = maps.permute(extents, draw(st.permutations(range(len(extents)))))
        else:
            axis = draw(st.integers(0, len(extents) - 1))
            n = extents[axis]
            d = draw(st.sampled_from([d for d in range(1, n + 1) if n % d == 0]))
            split = (*extents[:axis], n // d, d, *extents[axis + 1 :])
            merged = (*split[:1], int(np.prod(split[1:3])), *split[3:])
            step = maps.reshape(
                extents, draw(st.sampled_from([split, merged if np.prod(merged) == np.prod(split) else split]))
            )
        composed = maps.compose(step, found)
        assert composed is not None
        found = composed
    return found


@MANY
@given(bijections())
def test_inverses(index: IndexMap) -> None:
    assert index.is_bijective
    back = maps.inverse(index)
    if back is None:  # allowed where no digits are found, but what is given must be right
        return
    for first, second in ((index, back), (back, index)):
        composed = maps.compose(second, first)
        assert composed is not None
        values = numbered(first.source)
        np.testing.assert_array_equal(maps.gathered(values, composed), values)


@pytest.mark.parametrize(
    ("source", "result"), [((4, 6), (2, 3, 4)), ((2, 3, 4), (4, 6)), ((12,), (2, 6)), ((5, 1), (5,)), ((), (1, 1))]
)
def test_reshapes(source: Extents, result: Extents) -> None:
    index = maps.reshape(source, result)
    assert index.is_reshape
    values = numbered(source)
    np.testing.assert_array_equal(maps.gathered(values, index), values.reshape(result))
    assert maps.gathered(values, index).shape == result


def test_phase_splits_have_an_inverse() -> None:
    """The layout of a result by phases: ``h`` as ``(h//2, h%2)``, moved to the front."""
    i, extents = ex.iterator(1), (3, 8)
    index = maps.index_map((2, 4, 3), extents, [ex.modulo(i, 2, extents), ex.floordiv(i, 2, extents), ex.iterator(0)])
    assert index.is_bijective
    back = maps.inverse(index)
    assert back is not None
    assert back.text == "[3,8]->[2,4,3]: i2, i0+2*i1"


def test_guards_the_source_implies_are_dropped() -> None:
    """A quotient inside its axis already says where its dividend lies."""
    extents = (8, 3)
    reach = ex.iterator(0) - ex.iterator(1)
    inside = maps.index_map((4,), extents, [ex.floordiv(reach, 2, extents)], [ex.floordiv(reach, 8, extents)])
    assert inside == maps.index_map((4,), extents, [ex.floordiv(reach, 2, extents)])


def test_maps_that_do_not_fit() -> None:
    with pytest.raises(EgraphOptError, match="one index per source axis"):
        maps.index_map((2, 3), (2,), [ex.iterator(0)])
    with pytest.raises(EgraphOptError, match="beyond the result"):
        maps.index_map((2,), (2,), [ex.iterator(1)])
    with pytest.raises(EgraphOptError, match="cannot reshape"):
        maps.reshape((2, 3), (4,))
    with pytest.raises(EgraphOptError, match="cannot compose"):
        maps.compose(maps.identity((2,)), maps.identity((3,)))
    with pytest.raises(EgraphOptError, match="not an index map"):
        maps.parse("nonsense")
