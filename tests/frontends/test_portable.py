"""Kernel bodies written with standard operators compute the same in onnxruntime as the interpreter says."""

from collections.abc import Callable
from fractions import Fraction
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from egraph_opt.frontends.onnx_reader import load
from egraph_opt.frontends.onnx_writer import rebuild
from egraph_opt.frontends.portable import express
from egraph_opt.frontends.regions import partition
from egraph_opt.ir import expr as ex
from egraph_opt.ir import interpreter, maps
from egraph_opt.ir.program import Plan
from egraph_opt.ir.terms import Apply, Call, Fill, Read, Reduce, Softmax, Source, Tensor, View, add, leaves, mul
from tests.frontends.support import model_of, run


def test_equal_parts_of_sums_are_computed_once() -> None:
    body: Tensor = Read(Source("x", (2, 3)))
    for _ in range(9):
        body = add(body, body)
    assert check(body) == ["Add"] * 9


def check(body: Tensor) -> list[str] | None:
    """The operators the body was written with, None if it was not; its value is compared."""
    written = express("result", body)
    if written is None:
        return None
    assert written.steps[-1].name == "result"
    assert written.steps[-1].extents == body.extents
    sources = [leaf for leaf in leaves(body) if isinstance(leaf, Source)]
    inputs = {source.name: source.extents for source in sources} or {"unused": (1,)}
    model = model_of([helper.make_node("Sum", list(inputs), ["y"])], inputs, ["y"])
    if len(inputs) > 1 or len(set(inputs.values())) > 1:
        model = model_of([helper.make_node("Relu", [name], [f"y_{name}"]) for name in inputs], inputs, [])
        del model.graph.node[:]
        model.graph.node.append(helper.make_node("Concat", [f"f_{name}" for name in inputs], ["y"], axis=0))
        for name in reversed(list(inputs)):
            model.graph.node.insert(0, helper.make_node("Flatten", [name], [f"f2_{name}"], axis=0))
            model.graph.node.insert(1, helper.make_node("Transpose", [f"f2_{name}"], [f"f_{name}"]))
        model.graph.output.append(helper.make_tensor_value_info("y", 1, None))
    loaded = load(model)
    parts = partition(loaded)
    (region,) = parts.regions
    plan = Plan(region.program.inputs, written.steps, {"y": "result"}, written.constants)
    generator = np.random.default_rng(0)
    feeds = {name: generator.normal(size=shape).astype(np.float32) for name, shape in inputs.items()}
    wanted = interpreter.evaluate(body, feeds)
    found = run(rebuild(loaded, parts.regions, {0: plan}), feeds)["y"]
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    return [step.buffer.operator if isinstance(step.buffer, Call) else "Reshape" for step in written.steps]


X = Read(Source("x", (2, 3, 4)))
Move = Callable[[Tensor], View]


@st.composite
def moves(draw, extents: tuple[int, ...]) -> maps.IndexMap:
    """One move of elements as operators make them."""
    rank = len(extents)
    kind = draw(st.sampled_from(("permute", "split", "merge", "broadcast", "slice", "pad", "tile", "reverse")))
    iterators = [ex.iterator(axis) for axis in range(rank)]
    axis = draw(st.integers(0, rank - 1))
    n = extents[axis]
    if kind == "permute":
        return maps.permute(extents, draw(st.permutations(range(rank))))
    if kind == "split":
        part = draw(st.sampled_from([d for d in range(1, n + 1) if n % d == 0]))
        return maps.reshape(extents, (*extents[:axis], part, n // part, *extents[axis + 1 :]))
    if kind == "merge" and rank > 1:
        first = min(axis, rank - 2)
        return maps.reshape(extents, (*extents[:first], extents[first] * extents[first + 1], *extents[first + 2 :]))
    if kind == "broadcast" and prod(extents) < 200:
        result = (*extents[:axis], 2, *extents[axis:])
        return maps.index_map(extents, result, [ex.iterator(i + (i >= axis)) for i in range(rank)])
    result = list(extents)
    if kind == "slice":
        start, step = draw(st.integers(0, n - 1)), draw(st.integers(1, 3))
        result[axis] = len(range(start, n, step))
        iterators[axis] = ex.iterator(axis) * step + start
    elif kind == "pad" and prod(extents) < 200:
        before, after = draw(st.integers(-1, 2)), draw(st.integers(0, 2))
        result[axis] = max(1, n + before + after)
        iterators[axis] = ex.iterator(axis) - before
    elif kind == "tile" and prod(extents) < 200:
        result[axis] = 2 * n
        iterators[axis] = ex.modulo(ex.iterator(axis), n, tuple(result))
    elif kind == "reverse":
        iterators[axis] = ex.iterator(axis) * -1 + (n - 1)
    return maps.index_map(extents, result, iterators)


@given(st.data(), st.integers(1, 3))
@settings(max_examples=300, deadline=None)
def test_drawn_views(data, count):
    """A chain of views, each a step of its own: all of them have a form."""
    term: Tensor = X
    for _ in range(count):
        term = View(term, data.draw(moves(term.extents)))
    assert check(term) is not None


@given(st.data(), st.integers(2, 3))
@settings(max_examples=300, deadline=None)
def test_composed_views(data, count):
    """The same as one map: not every one has a form, but what is written is right."""
    index = maps.identity(X.extents)
    for _ in range(count):
        outer = maps.compose(data.draw(moves(index.result)), index)
        assert outer is not None
        index = outer
    check(View(X, index))


@pytest.mark.parametrize(
    ("index", "operators"),
    [
        (maps.identity((2, 3, 4)), ["Identity"]),
        (maps.permute((2, 3, 4), (2, 0, 1)), ["Transpose"]),
        (maps.reshape((2, 3, 4), (6, 4)), ["Reshape"]),
        (maps.index_map((2, 3, 4), (2, 2, 4), [ex.iterator(0), ex.iterator(1) + 1, ex.iterator(2)]), ["Slice"]),
        (maps.index_map((2, 3, 4), (2, 3, 2), [ex.iterator(0), ex.iterator(1), ex.iterator(2) * 2 + 1]), ["Slice"]),
        (maps.index_map((2, 3, 4), (2, 5, 4), [ex.iterator(0), ex.iterator(1) - 1, ex.iterator(2)]), ["Pad"]),
        (maps.broadcast((2, 3, 4), (5, 2, 3, 4)), ["Reshape", "Expand"]),
    ],
)
def test_simple_views_are_one_operator(index, operators):
    assert check(View(X, index)) == operators


def test_depth_to_space_and_back():
    source = Read(Source("x", (1, 8, 3, 5)))
    split = maps.reshape((1, 8, 3, 5), (1, 2, 2, 2, 3, 5))
    moved = maps.compose(maps.permute(split.result, (0, 1, 4, 2, 5, 3)), split)
    assert moved is not None
    merged = maps.compose(maps.reshape(moved.result, (1, 2, 6, 10)), moved)
    assert merged is not None
    assert check(View(source, merged)) == ["Reshape", "Transpose", "Reshape"]
    back = maps.inverse(merged)
    if back is not None:
        assert check(View(Read(Source("x", (1, 2, 6, 10))), back)) == ["Reshape", "Transpose", "Reshape"]


def test_broadcast_operands_stay_small():
    bias = View(Read(Source("b", (3,))), maps.index_map((3,), (2, 3, 4), [ex.iterator(1)]))
    operators = check(Apply("relu", (add(X, bias),)))
    assert operators == ["Reshape", "Add", "Relu"]
    scaled = check(mul(X, Fill(Fraction(1, 3), (2, 3, 4))))
    assert scaled == ["Mul"]


@pytest.mark.parametrize("shift", range(4))
def test_windows_merged_and_rolled(shift):
    """As Swin merges its windows: with a shift every window at the border is broken off."""
    x = Read(Source("x", (4, 5, 16)))
    row, column = ex.iterator(1), ex.iterator(2)

    def rolled(first: int, count: int, offset: int) -> View:
        """Rows from ``first`` on, as many as ``count``, placed at ``offset``."""
        moved, extents = row + (first - offset), (1, 8, 8, 5)
        high, left = ex.floordiv(moved, 4, extents), ex.floordiv(column, 4, extents)
        inner = (moved - high * 4) * 4 + column - left * 4
        guards = [ex.floordiv(row - offset, count, extents)] if count < 8 else []
        return View(x, maps.index_map((4, 5, 16), extents, [high * 2 + left, ex.iterator(3), inner], guards))

    body = rolled(shift, 8 - shift, 0)
    if shift:
        body = add(body, rolled(0, shift, 8 - shift))
    operators = check(body)
    assert operators is not None
    assert "Transpose" in operators


@pytest.mark.parametrize("length", [5, 6])
@pytest.mark.parametrize("start", [0, 1])
def test_axes_may_break_off_within_a_digit(length, start):
    """Whole digits would reach past a source of 5, which is padded first."""
    i = ex.iterator(0) + start
    high = ex.floordiv(i, 3, (5 - start, 2))
    turned = maps.index_map((2, length), (5 - start, 2), [ex.iterator(1), (i - high * 3) * 2 + high])
    assert check(View(Read(Source("x", (2, length))), turned)) is not None


def test_zero_insertion():
    h = ex.iterator(0) + 1
    index = maps.index_map((4,), (9,), [ex.floordiv(h, 2, (9,))], [ex.modulo(h, 2, (9,))])
    assert check(View(Read(Source("x", (4,))), index)) is not None


def placed(name: str, source: tuple[int, ...], result: tuple[int, ...], starts: tuple[int, ...]) -> View:
    indices = [ex.iterator(axis) - start for axis, start in enumerate(starts)]
    return View(Read(Source(name, source)), maps.index_map(source, result, indices))


def test_placed_parts_are_concatenated():
    parts = [
        placed("a", (2, 1), (2, 6), (0, 0)),
        placed("b", (2, 3), (2, 6), (0, 1)),
        placed("c", (2, 2), (2, 6), (0, 4)),
    ]
    assert check(add(add(parts[1], parts[0]), parts[2])) == ["Concat"]
    corners = [placed(f"x{i}{j}", (2, 3), (4, 6), (2 * i, 3 * j)) for i in range(2) for j in range(2)]
    assert check(add(add(corners[0], corners[3]), add(corners[2], corners[1]))) == ["Concat"] * 3


def test_phases_are_interleaved():
    def phase(name: str, i: int, j: int) -> View:
        extents = (6, 8)
        h, w = ex.iterator(0) - i, ex.iterator(1) - j
        index = [ex.floordiv(h, 2, extents), ex.floordiv(w, 2, extents)]
        return View(
            Read(Source(name, (3, 4))),
            maps.index_map((3, 4), extents, index, [ex.modulo(e, 2, extents) for e in (h, w)]),
        )

    phases = [phase(f"x{i}{j}", i, j) for i in range(2) for j in range(2)]
    operators = check(add(add(phases[0], phases[1]), add(phases[2], phases[3])))
    assert operators is not None
    assert operators.count("Concat") == 3
    assert "Pad" not in operators


def test_overlapping_parts_are_added():
    parts = [placed("a", (2, 3), (2, 4), (0, 0)), placed("b", (2, 3), (2, 4), (0, 1))]
    operators = check(add(*parts))
    assert operators is not None
    assert operators[-1] == "Add"


@pytest.mark.parametrize("operation", ["sum", "max", "min"])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_reductions(operation, count):
    assert check(Reduce(operation, View(X, maps.permute((2, 3, 4), (1, 2, 0))), count)) is not None


def test_a_sum_over_broadcast_axes_counts_them():
    index = maps.index_map((2, 3, 4), (2, 3, 4, 5), [ex.iterator(i) for i in range(3)])
    assert check(Reduce("sum", View(X, index), 1)) is not None


def test_windows_are_unrolled_while_few():
    source = Read(Source("x", (9, 2)))
    window = maps.index_map((9, 2), (7, 2, 3), [ex.iterator(0) + ex.iterator(2), ex.iterator(1)])
    operators = check(Reduce("sum", View(source, window), 1))
    assert operators is not None
    assert operators.count("Add") == 2
    assert operators.count("Slice") == 3
    many = maps.index_map((90, 2), (41, 2, 50), [ex.iterator(0) + ex.iterator(2), ex.iterator(1)])
    assert check(Reduce("sum", View(Read(Source("x", (90, 2))), many), 1)) is None


def test_overlap_add_of_a_transposed_convolution():
    """out[h] = sum over r of t[r, (h + 1 - r) / 2] where that is whole."""
    extents = (10, 4)
    h, r = ex.iterator(0), ex.iterator(1)
    position = h + 1 - r
    index = maps.index_map((4, 5), extents, [r, ex.floordiv(position, 2, extents)], [ex.modulo(position, 2, extents)])
    assert check(Reduce("sum", View(Read(Source("t", (4, 5))), index), 1)) is not None


@pytest.mark.parametrize("count", [1, 2])
def test_softmax(count):
    assert check(Softmax(X, count)) is not None
    column = View(Read(Source("b", (3,))), maps.index_map((3,), (2, 3, 4), [ex.iterator(1)]))
    assert check(Softmax(column, count)) is not None


def test_shared_parts_are_computed_once():
    shared = Apply("exp", (X,))
    assert check(mul(shared, Apply("tanh", (shared,)))) == ["Exp", "Tanh", "Mul"]


def test_what_has_no_form():
    diagonal = maps.index_map((3, 3), (3,), [ex.iterator(0), ex.iterator(0)])
    assert check(View(Read(Source("x", (3, 3))), diagonal)) in (None, ["Reshape", "Slice", "Reshape"])
    oblique = maps.index_map((3, 3), (3, 3), [ex.iterator(0), ex.iterator(0) - ex.iterator(1)])
    check(View(Read(Source("x", (3, 3))), oblique))
