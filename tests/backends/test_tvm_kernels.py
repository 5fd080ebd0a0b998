"""Generated kernels against numpy, with every buffer placed before and after an inaccessible page."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from egraph_opt.backends import tvm_build, tvm_emit, tvm_schedule
from egraph_opt.ir.program import kernel_signature
from egraph_opt.ir.terms import Apply, Reduce, leaves
from tests.backends.bodies import CASES, bodies, read
from tests.backends.kernel_helpers import evaluate, fenced


def check(term, *, tolerance=1e-5, schedules=None, seed=0):
    body, _ = kernel_signature(term)
    inputs = tuple(leaves(body))
    random = np.random.default_rng(seed)
    arrays = {source.name: random.standard_normal(source.extents).astype(np.float32) for source in inputs}
    expected = evaluate(body, arrays)
    for schedule in schedules or ("", *tvm_schedule.schedules(body)):
        try:
            function = tvm_build.jit(tvm_build.Kernel(body, inputs, schedule))
        except tvm_emit.CodeTooLongError:
            assert schedule
            continue
        for at_end in (False, True):
            found = fenced(np.full(expected.shape, np.nan), at_end=at_end)
            function(*(fenced(arrays[source.name], at_end=at_end) for source in inputs), found)
            np.testing.assert_allclose(
                found[: expected.size].reshape(expected.shape),
                expected,
                rtol=tolerance,
                atol=tolerance,
                err_msg=schedule,
            )


@pytest.mark.parametrize("name", CASES)
def test_kernel_agrees_with_numpy(name):
    check(CASES[name])


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(bodies())
def test_drawn_kernels_agree_with_numpy(term):
    check(term, tolerance=1e-4)


FINITE = np.concatenate([np.linspace(-110, 110, 20001), np.logspace(-38, 38, 2001), -np.logspace(-38, 38, 2001)])
SPECIAL = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 1e-42, 3.4e38, -3.4e38])


@pytest.mark.parametrize("function", ["exp", "log", "tanh", "erf", "sigmoid", "softplus", "relu", "abs", "sqrt"])
def test_functions_are_accurate_everywhere(function):
    values = np.concatenate([FINITE, SPECIAL]).astype(np.float32)
    body = Apply(function, (read("in0", values.size),))
    found = tvm_build.run_kernel(tvm_build.Kernel(body, tuple(leaves(body))), values)
    with np.errstate(all="ignore"):
        expected = evaluate(body, {"in0": values}).astype(np.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize("operation", ["max", "min"])
def test_nan_survives_extrema(operation):
    values = np.arange(40, dtype=np.float32).reshape(2, 20)
    values[1, 7] = np.nan
    body = Reduce(operation, read("in0", 2, 20), 1)
    found = tvm_build.run_kernel(tvm_build.Kernel(body, tuple(leaves(body))), values)
    assert not np.isnan(found[0])
    assert np.isnan(found[1])


def test_names_and_schedules_are_deterministic():
    body, _ = kernel_signature(CASES["max-pool"])
    kernel = tvm_build.Kernel(body, tuple(leaves(body)))
    assert kernel.name == tvm_build.Kernel(body, tuple(leaves(body))).name
    assert kernel.name.startswith("k_")
    assert tvm_schedule.schedules(body) == tvm_schedule.schedules(body)


def test_what_is_masked_keeps_infinities_what_is_not_a_number_and_the_signs_of_zeros():
    special = np.asarray([np.nan, np.inf, -np.inf, -0.0, 0.0, 1.0], dtype=np.float32)
    x, y = np.resize(special, 37), np.resize(special[::-1], 37)
    keep = np.arange(37) % 5 < 2
    names = [read(name, 37) for name in "abcd"]
    chosen = Apply("add", (Apply("masked", (names[0], names[1])), Apply("masked", (names[2], names[3]))))
    body, _ = kernel_signature(chosen)
    function = tvm_build.jit(tvm_build.Kernel(body, tuple(leaves(body)), ""))
    found, wanted = np.empty(37, dtype=np.float32), np.where(keep, x, y)
    function(x, keep.astype(np.float32), y, (~keep).astype(np.float32), found)
    np.testing.assert_array_equal(found, wanted)
    numbers = ~np.isnan(wanted)
    np.testing.assert_array_equal(np.signbit(found[numbers]), np.signbit(wanted[numbers]))
