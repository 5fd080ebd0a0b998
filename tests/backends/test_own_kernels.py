"""Kernels of added functions and operators: right values, new names for new code, complaints that say what is wrong."""

import re

import numpy as np
import pytest

from egraph_opt.backends import tvm_build
from egraph_opt.backends.environment import find_compiler
from egraph_opt.backends.model_timer import Expected, TimedModel, time_each
from egraph_opt.backends.onnxruntime import make_session
from egraph_opt.backends.timing_worker import drawn
from egraph_opt.backends.tvm_own import own_kernel
from egraph_opt.errors import EgraphOptError
from egraph_opt.extract.alternatives import Alternative, signature
from egraph_opt.extract.implement import Implementer
from egraph_opt.extract.own_kernels import refuse_wrong, trial
from egraph_opt.extract.profile import Profile
from egraph_opt.extract.profiler import KERNEL, Profiler, Runnable
from egraph_opt.extract.trials import expected
from egraph_opt.frontends.onnx_standalone import standalone
from egraph_opt.ir import extensions
from egraph_opt.ir.library import LibraryOperator, OnnxOperator
from egraph_opt.ir.program import Plan, Step
from egraph_opt.ir.scalar import ScalarFunction
from egraph_opt.ir.terms import Apply, Call, Compute, Read, Source

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="kernels need a C compiler")
SHAPE = (5, 7)


def rows(scale):
    """Rows divided by ``scale`` times their length."""

    def kernel(x):
        from tvm import te

        source = te.placeholder(x, name="x")
        k = te.reduce_axis((0, x[1]), name="k")
        length = te.compute((x[0],), lambda i: te.sum(source[i, k] * source[i, k], axis=k), name="length")
        return [source, te.compute(x, lambda i, j: source[i, j] / (te.sqrt(length[i]) * scale), name="y")]

    return kernel


def operator(**changes):
    given = {
        "shape": lambda x: x,
        "numpy": lambda x: x / np.sqrt((x * x).sum(axis=1, keepdims=True)),
        "flops": lambda x: 3 * x[0] * x[1],
        "kernel": rows(1.0),
        **changes,
    }
    return LibraryOperator("RowNorm", 1, **given)


def called(shape=SHAPE):
    return Call("RowNorm", "", (Source("x", shape),), shape)


def measured(record, folder):
    """What the profiler found out about the operator's kernel."""
    with extensions.extended(record):
        profile = Profile(None, "device")
        profiler = Profiler(profile, find_compiler(), 1, 17)
        call = called()
        profiler.runnable(Alternative(call, (), 1.0))
        profiler.measure([(signature(call), Step("y", call))], lambda done, total: None)
        return profile.best(signature(call)), profiler.complaints()


@pytest.mark.parametrize("lanes", [1, 3, 16, 40])
def test_a_function_defined_by_others_has_kernel_code(lanes):
    record = ScalarFunction(
        "double_silu", 2, definition=lambda f, x, y: f("sub", f("mul", x, f("sigmoid", f("mul", y, 2))), 0.25)
    )
    x, y = np.random.default_rng(0).standard_normal((2, lanes)).astype(np.float32)
    with extensions.extended(record):
        body = Apply("double_silu", (Read(Source("in0", (lanes,))), Read(Source("in1", (lanes,)))))
        kernel = tvm_build.Kernel(body, (Source("in0", (lanes,)), Source("in1", (lanes,))))
        found = tvm_build.run_kernel(kernel, x, y)
    np.testing.assert_allclose(found, x / (1 + np.exp(-2 * y)) - 0.25, atol=1e-6)


def test_a_kernel_of_another_definition_has_another_name():
    def name(definition):
        with extensions.extended(ScalarFunction("own", 1, definition=definition)):
            return tvm_build.Kernel(Apply("own", (Read(Source("in0", (4,))),)), (Source("in0", (4,)),)).name

    assert name(lambda f, x: f("mul", x, x)) == name(lambda f, x: f("mul", x, x))
    assert name(lambda f, x: f("mul", x, x)) != name(lambda f, x: f("mul", x, 2))


def test_a_users_kernel_runs_in_the_library(tmp_path):
    values = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
    with extensions.extended(operator()):
        kernel = own_kernel("RowNorm", "", [SHAPE], SHAPE)
        library = tvm_build.build_library([kernel], tmp_path / "own.so", compiler=str(find_compiler()))
        model = standalone([Step("y", called())], {"y": kernel.name})
        (found,) = make_session(model, kernel_library=library, threads=1, spin=False).run(None, {"x0": values})
    np.testing.assert_allclose(found, values / np.linalg.norm(values, axis=1, keepdims=True), rtol=1e-5)


def test_a_parallel_tvm_script_kernel_over_unaligned_memory_runs(tmp_path):
    from tvm.script import tirx as T  # noqa: N812

    shape = (5, 16)

    @T.prim_func
    def doubled(x: T.Buffer((5, 16), "float32"), y: T.Buffer((5, 16), "float32")):
        for i in T.parallel(5):
            for j in T.vectorized(16):
                y[i, j] = x[i, j] * T.float32(2)

    record = operator(kernel=lambda x: doubled, numpy=lambda x: 2 * x)
    with extensions.extended(record):
        kernel = own_kernel("RowNorm", "", [shape], shape)
        library = tvm_build.build_library([kernel], tmp_path / "own.so", compiler=str(find_compiler()))
        model = standalone([Step("y", called(shape))], {"y": kernel.name})
    session = make_session(model, kernel_library=library, threads=2)
    memory = np.arange(81, dtype=np.float32)[1:]  # four bytes off; code that expects more alignment crashes
    (found,) = session.run(None, {"x0": memory.reshape(shape)})
    np.testing.assert_array_equal(found, 2 * memory.reshape(shape))


def test_the_profiler_times_a_kernel_that_does_what_it_says(tmp_path):
    best, complaints = measured(operator(), tmp_path)
    assert best.implementation == KERNEL
    assert best.samples
    assert complaints == ()


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        (operator(kernel=rows(1.01)), "RowNorm is not used: it does not compute what it should: it differs by 9.9e-03"),
        (operator(numpy=lambda x: x[:1]), "numpy of RowNorm gives [1, 7], its shape [5, 7]"),
        (operator(numpy=lambda x: x + "a"), "the meaning of RowNorm raised"),
        (operator(kernel=lambda x: 7), "the kernel of RowNorm is a int, not a TVM PrimFunc or te tensors"),
        (operator(kernel=lambda x: x[9]), "the kernel of RowNorm raised IndexError"),
        (operator(kernel=lambda x: rows(1.0)(x[::-1])), "takes float32[7, 5], float32[7, 5]; it is called with"),
    ],
)
def test_a_wrong_kernel_is_not_used_and_the_report_says_why(record, complaint, tmp_path):
    best, complaints = measured(record, tmp_path)
    assert best is None or not best.samples
    assert complaint in complaints[0]


def test_a_kernel_that_crashes_is_named_and_ends_nothing(tmp_path):
    from tvm.script import tirx as T  # noqa: N812

    @T.prim_func
    def wild(x: T.Buffer((5, 7), "float32"), y: T.Buffer((5, 7), "float32")):
        for i in T.serial(5):
            y[i * 60000000, 0] = x[i, 0]

    best, complaints = measured(operator(kernel=lambda x: wild), tmp_path)
    assert not best.samples
    assert "died" in complaints[0]


def test_a_changed_kernel_is_measured_anew():
    def key(record):
        with extensions.extended(record):
            return signature(called())

    assert key(operator()) == key(operator())
    assert key(operator()) != key(operator(kernel=rows(2.0)))


def test_only_models_with_kernels_can_have_it():
    alternative = Alternative(called(), (), 1.0)
    with extensions.extended(operator()):
        assert Runnable(17, kernels=True)(alternative)
        assert not Runnable(17, kernels=False)(alternative)
    with extensions.extended(operator(onnx=OnnxOperator("Identity", since=1))):
        assert Runnable(17, kernels=False)(alternative)


def test_a_function_without_a_definition_stays_out_of_kernels():
    record = ScalarFunction("mish", 1, lambda x: x * np.tanh(np.logaddexp(x, 0)), True, 20, "Mish", since=18)
    with extensions.extended(record):
        step = Compute(Apply("mish", (Read(Source("x", (4,))),)))
        assert Runnable(18, kernels=True)(Alternative(step, (), 1.0))
        assert not Runnable(17, kernels=True)(Alternative(step, (), 1.0))
        plan = Plan((Source("x", (4,)),), (Step("y", step),), {"y": "y"})
        implementer = Implementer(Profile(None, "device"), kernels_allowed=True)
        (written,) = implementer.implement(plan).steps
    assert isinstance(written.buffer, Call)
    assert not implementer.kernels


def test_a_kernel_that_was_never_timed_is_tried_before_it_is_used(tmp_path):
    plan = Plan((Source("x", SHAPE),), (Step("y", called()),), {"y": "y"})
    for record, right in ((operator(), True), (operator(kernel=rows(3.0)), False)):
        with extensions.extended(record):
            implementer = Implementer(Profile(None, "device"), kernels_allowed=True)
            implementer.implement(plan)
            ((name, call),) = implementer.untried.items()
            library = tvm_build.build_library(list(implementer.kernels.values()), tmp_path / f"{name}.so")
            if right:
                refuse_wrong(call, library, 17)
            else:
                with pytest.raises(EgraphOptError, match="the kernel of RowNorm is not used: it does not compute"):
                    refuse_wrong(call, library, 17)


def test_a_model_that_gives_something_else_is_not_timed():
    model = standalone([Step("y", Call("Softmax", "axis=1", (Source("x", SHAPE),), SHAPE))])
    (x,) = (value.astype(np.float64) for value in drawn([SHAPE]))
    meant = (np.exp(x) / np.exp(x).sum(1, keepdims=True)).reshape(-1)
    wrong = meant.copy()
    wrong[23] *= 1.5
    places = np.arange(35)
    nan = np.where(places == 3, np.nan, meant)
    unsure = expected(places, np.where(places == 3, 0.9, meant), nan)  # rounding decides whether it is a number
    several = [expected(places, meant), expected(places, wrong), expected(places, nan), unsure]
    somewhere = expected(places[::2], wrong[::2])  # not where it is wrong
    last = Expected(places, wrong, np.where(wrong == meant, 1e-3, np.inf))
    timed = time_each([TimedModel(model, expected=e) for e in (*several, somewhere, last)], rounds=1, threads=1)
    problem = "it does not compute what it should: "
    assert [bool(samples) for samples, _ in timed] == [True, False, False, True, True, True]
    assert re.fullmatch(problem + r"it differs by .*e-02 of its range, first at \[3, 2\]", timed[1][1])
    assert timed[2][1] == problem + "NaN or infinities in different places, first at [0, 3]"


def test_trials_have_the_meaning_in_float64():
    with extensions.extended(operator()):
        kernel = own_kernel("RowNorm", "", [SHAPE], SHAPE)
        _, found = trial(called(), kernel, 17)
    (x,) = (value.astype(np.float64) for value in drawn([SHAPE]))
    meant = x / np.sqrt((x * x).sum(1, keepdims=True))
    np.testing.assert_allclose(found.values.reshape(SHAPE), meant, rtol=1e-6)
    assert found.allowed.max() < 1.1e-4
