"""Constant index tensors: what is quasi-affine is found, exactly, and nothing else."""

import time

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from bench.models.longformer import longformer
from egraph_opt.frontends.onnx_gather import fit
from egraph_opt.frontends.onnx_reader import load
from egraph_opt.frontends.regions import partition
from egraph_opt.ir import expr as ex
from egraph_opt.ir import maps
from egraph_opt.ir.terms import View
from tests.frontends.support import check_encoding, model_of


def values_of(expression: ex.Expr, extents: tuple[int, ...]) -> np.ndarray:
    return np.broadcast_to(ex.evaluate(expression, maps.grid(extents)), extents)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=3), st.data())
@settings(max_examples=200, deadline=None)
def test_affine_indices_are_found(extents, data):
    shape = tuple(extents)
    expression = ex.constant(data.draw(st.integers(-5, 5)))
    for axis in range(len(shape)):
        expression += ex.iterator(axis) * data.draw(st.integers(-4, 4))
    values = values_of(expression, shape)
    found = fit(values, shape)
    assert found is not None
    assert found.is_affine
    np.testing.assert_array_equal(values_of(found, shape), values)


@given(st.integers(2, 5), st.integers(2, 5), st.integers(1, 4), st.lists(st.integers(-9, 9), min_size=3, max_size=3))
@settings(max_examples=200, deadline=None)
def test_digits_are_found(inner, middle, outer, steps):
    shape = (inner * middle * outer,)
    i = ex.iterator(0)
    digits = (i, ex.floordiv(i, inner, shape), ex.floordiv(i, inner * middle, shape))
    expression = ex.modulo(digits[0], inner, shape) * steps[0]
    expression += ex.modulo(digits[1], middle, shape) * steps[1] + digits[2] * steps[2]
    values = values_of(expression, shape)
    found = fit(values, shape)
    # A step that continues another one's run hides the digit's border; what is found is right in any case.
    if found is not None:
        np.testing.assert_array_equal(values_of(found, shape), values)
    if len(set(steps)) == 3 and 0 not in steps and steps[1] != inner * steps[0]:
        assert found is not None


@given(st.lists(st.integers(0, 20), min_size=1, max_size=12), st.integers(1, 3))
@settings(max_examples=300, deadline=None)
def test_what_is_found_is_right_everywhere(numbers, rows):
    values = np.asarray([numbers] * rows) + np.arange(rows)[:, None] ** 2
    found = fit(values, values.shape)
    if found is not None:
        np.testing.assert_array_equal(values_of(found, values.shape), values)


def test_an_axis_offset():
    values = np.arange(12).reshape(3, 4)
    assert str(fit(values, (7, 3, 4, 5), 1)) == "4*i1+i2"


def test_irregular_indices_are_not_found():
    assert fit(np.asarray([0, 1, 5, 2]), (4,)) is None
    assert fit(np.asarray([[0, 1], [1, 3]]), (2, 2)) is None


def test_windows_as_longformer_gathers_them():
    index = np.arange(6)[:, None] + 2 * np.arange(3)[None, :]
    nodes = [
        helper.make_node("Pad", ["x", "pads"], ["p"]),
        helper.make_node("Gather", ["p", "index"], ["g"], axis=1),
        helper.make_node("MatMul", ["g", "q"], ["y"]),
    ]
    constants = {"pads": np.asarray([0, 2, 0, 0, 2, 0]), "index": index}
    model = model_of(nodes, {"x": (2, 6, 4), "q": (2, 6, 4, 1)}, ["y"], constants)
    loaded = check_encoding(model, portable=False)
    (region,) = partition(loaded).regions
    gathered = dict(region.program.definitions)["g"]
    assert isinstance(gathered, View)
    assert str(gathered.map) == "[2,10,4]->[2,6,3,4]: i0, i1+2*i2, i3"


def test_longformer_is_analysed_quickly():
    model = longformer(1, positions=2500, window=250)
    started = time.perf_counter()
    parts = partition(load(model))
    assert time.perf_counter() - started < 5
    assert not parts.opaque
    assert len(parts.regions) == 1
