"""Where(IsNaN(x), a number, x), which exporters write behind a softmax whose rows may be all masked, is one term."""

import numpy as np
import pytest
from onnx import TensorProto

from egraph_opt.backends import tvm_build
from egraph_opt.frontends.onnx_reader import load
from egraph_opt.frontends.regions import partition
from egraph_opt.ir import interpreter
from egraph_opt.ir.program import kernel_signature
from egraph_opt.ir.terms import Apply, Read, Source, leaves
from tests.frontends.support import run
from tests.pipeline.support import build, node, static, wrong

ROWS = np.array([[0.5, -np.inf, 1.0], [-np.inf] * 3, [np.nan, 1.0, 2.0], [np.inf, -0.0, 0.0]], np.float32)
ZERO = np.float32(0)


def guarded_softmax(value=ZERO, order="c zero s", **outputs):
    nodes = [node("Softmax", "x", "s", axis=-1), node("IsNaN", "s", "c"), node("Where", order, "y")]
    return build(nodes, {"x": [4, 3]}, {"y": [4, 3], **outputs}, {"zero": np.asarray(value)})


@pytest.mark.parametrize("value", [ZERO, np.float32([-1.5]), np.float32([[2.0]])])
def test_it_is_one_region(value):
    model = guarded_softmax(value)
    parts = partition(load(model))
    assert not parts.opaque
    (region,) = parts.regions
    assert region.nodes == (0, 1, 2)
    found = interpreter.run_program(region.program, {"x": ROWS})
    assert not np.isnan(found["y"]).any()
    np.testing.assert_allclose(found["y"], run(model, {"x": ROWS})["y"], rtol=1e-6)


@pytest.mark.parametrize("order", ["c s zero", "c zero x"])
def test_other_choices_stay(order):
    parts = partition(load(guarded_softmax(order=order)))
    assert set(parts.opaque) == {1, 2}


def test_a_number_that_is_none_is_no_number():
    assert set(partition(load(guarded_softmax(np.float32(np.nan)))).opaque) == {1, 2}


def test_a_value_of_higher_rank_stays():
    nodes = [node("Exp", "x", "s"), node("IsNaN", "s", "c"), node("Where", "c zero s", "y")]
    model = build(nodes, {"x": [3]}, {"y": [1, 3]}, {"zero": np.zeros((1, 1), np.float32)})
    assert set(partition(load(model)).opaque) == {1, 2}


@pytest.mark.parametrize("portable", [False, True])
def test_the_test_stays_where_others_need_it(portable):
    model = guarded_softmax()
    model.graph.output.add(name="c").type.tensor_type.elem_type = TensorProto.BOOL
    assert set(partition(load(model)).opaque) == {1}
    result = static(model, portable=portable)
    assert [n.op_type for n in result.model.graph.node].count("IsNaN") >= 1
    assert not wrong(model, result, {"x": ROWS})


@pytest.mark.parametrize("portable", [False, True])
def test_the_optimized_model_keeps_numbers(portable):
    nodes = [
        node("Softmax", "x", "s", axis=-1),
        node("IsNaN", "s", "c"),
        node("Where", "c zero s", "t"),
        node("MatMul", "t w", "p"),
        node("Relu", "p", "y"),
    ]
    weights = {"zero": np.asarray(ZERO), "w": np.float32([[1, -2], [3, 4], [-5, 6]])}
    model = build(nodes, {"x": [4, 3]}, {"y": [4, 2]}, weights)
    result = static(model, portable=portable)
    assert not wrong(model, result, {"x": ROWS})


def test_kernels_replace_it_in_every_lane():
    x = np.resize(np.float32([np.nan, np.inf, -np.inf, -0.0, 0.0, 1.0]), 37)
    body, _ = kernel_signature(Apply("unless_nan:0.25", (Read(Source("a", (37,))),)))
    found = np.empty(37, np.float32)
    tvm_build.jit(tvm_build.Kernel(body, tuple(leaves(body)), ""))(x, found)
    wanted = np.where(np.isnan(x), np.float32(0.25), x)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(wanted))
