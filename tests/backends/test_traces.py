"""Schedule traces: what is let in, and kernels arranged by them against numpy, beside inaccessible memory."""

import json

import numpy as np
import pytest
from tvm import s_tir

from egraph_opt.backends import tvm_blocks, tvm_build, tvm_scheduled, tvm_trace, tvm_tune
from egraph_opt.backends.tvm_emit import CodeTooLongError
from egraph_opt.errors import EgraphOptError, InputRejected
from egraph_opt.ir.program import kernel_signature
from egraph_opt.ir.schedules import KernelSchedule, TuningModel, schedule
from egraph_opt.ir.terms import Apply, Reduce, leaves
from tests.backends.bodies import CASES, read
from tests.backends.kernel_helpers import evaluate, fenced

NOTHING = "[[],[]]"


def kernel_of(term, trace=NOTHING):
    body, _ = kernel_signature(term)
    return tvm_build.Kernel(body, tuple(leaves(body)), trace)


def check(kernel, tolerance=1e-5, arrays=None):
    random = np.random.default_rng(0)
    if arrays is None:
        arrays = {source.name: random.standard_normal(source.extents).astype(np.float32) for source in kernel.inputs}
    expected = evaluate(kernel.body, arrays)
    function = tvm_build.jit(kernel)
    for at_end in (False, True):
        found = fenced(np.full(expected.shape, np.nan), at_end=at_end)
        function(*(fenced(arrays[source.name], at_end=at_end) for source in kernel.inputs), found)
        found = found[: expected.size].reshape(expected.shape)
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance, err_msg=kernel.schedule)


@pytest.mark.parametrize("name", [name for name in CASES if name != "empty"])
def test_blocks_agree_with_numpy(name):
    check(kernel_of(CASES[name]))


def proposed(term, count):
    tuner = tvm_tune.Tuner(kernel_of(term), count, threads=2)
    found = []
    while traces := tuner.ask():
        found += traces
        tuner.tell([1e-5 * (1 + len(trace) % 13) for trace in traces])
    return found


@pytest.mark.parametrize("name", ["overlap-add-image", "nhwc-7", "pad", "softmax-inner", "layer-norm", "depthwise"])
def test_proposed_schedules_agree_with_numpy_and_are_the_same_again(name):
    traces = proposed(CASES[name], 6)
    assert len(set(traces)) == len(traces) == 6
    assert traces == proposed(CASES[name], 6)
    assert all(tvm_trace.checked(trace) for trace in traces)
    right = 0
    for trace in traces:
        try:
            check(kernel_of(CASES[name], trace), tolerance=1e-4)
            right += 1
        except EgraphOptError:  # one that TVM refuses
            continue
    assert right


def test_a_trace_is_part_of_what_a_kernel_is_and_gives_the_same_loops_again():
    term = CASES["gelu"]
    module = tvm_blocks.blocks_module(kernel_of(term).body, kernel_of(term).inputs)
    arrangement = s_tir.Schedule(module, seed=1)
    (loop,) = arrangement.get_loops(arrangement.get_sblock("out"))
    outer, inner = arrangement.split(loop, arrangement.sample_perfect_tile(loop, n=2, max_innermost_factor=64))
    arrangement.vectorize(inner)
    arrangement.parallel(outer)
    text = tvm_trace.text_of(arrangement)
    again = tvm_trace.replayed(text, module)
    assert again.mod.script() == arrangement.mod.script()
    assert tvm_trace.text_of(again) == text
    assert kernel_of(term, text).name != kernel_of(term).name != kernel_of(term, "").name
    check(kernel_of(term, text))
    assert "T.parallel" in tvm_build.arranged(kernel_of(term, text)).script()


def instruction(name, *attributes):
    return json.dumps([[["GetSBlock", [], ["out", "main"], ["b0"]], [name, ["b0"], list(attributes), []]], []])


BAD = {
    "no json": "[[],",
    "deep": "[" * 50_000,
    "long": "[[],[]]" + " " * tvm_trace.LONGEST,
    "no pair": "[[]]",
    "object": '[{"a": 1}, []]',
    "unknown": instruction("RunThis"),
    "layout": instruction("TransformLayout", "code"),
    "code": instruction("Annotate", "pragma_import_llvm", "define void @f()"),
    "other annotation": instruction("Annotate", ["pragma_import_c"]),
    "no attribute": instruction("Annotate"),
    "nested object": '[[["GetSBlock", [], ["out", {"a": 1}], ["b0"]]], []]',
    "decision": '[[["GetSBlock", [], ["out", "main"], ["b0"]]], [[7, 1]]]',
}


@pytest.mark.parametrize("kind", BAD)
def test_what_does_more_than_arrange_loops_is_refused(kind):
    with pytest.raises(InputRejected):
        tvm_trace.checked(BAD[kind])
    with pytest.raises(EgraphOptError):
        tvm_build.machine_code(kernel_of(CASES["residual"], BAD[kind] if BAD[kind].startswith("[") else "[1]"))


def test_a_trace_of_another_kernel_fails_alone():
    with pytest.raises(EgraphOptError, match="does not fit"):
        tvm_build.machine_code(
            kernel_of(CASES["residual"], json.dumps([[["GetSBlock", [], ["stage7", "main"], ["b0"]]], []]))
        )


def test_code_that_unrolling_makes_too_long_is_refused(monkeypatch):
    monkeypatch.setattr(tvm_scheduled, "CODE_LIMIT", 20)
    with pytest.raises(CodeTooLongError):
        tvm_build.machine_code(kernel_of(CASES["gelu"]))


def test_chains_of_values_that_are_used_twice_stay_short():
    term = read("x", 16, 64)
    for _ in range(40):  # put in each other's place they would be of 2^40 operations
        term = Apply("relu", (Apply("sub", (term, read("y", 16, 64))),))
    check(kernel_of(term))


@pytest.mark.parametrize("operation", ["max", "min", "pool"])
def test_reductions_know_what_is_not_a_number(operation):
    values = np.random.default_rng(0).standard_normal((4, 300)).astype(np.float32)
    values[1, 7] = np.nan
    kernel = kernel_of(Reduce(operation, read("x", 4, 300), 1))
    found = tvm_build.run_kernel(kernel, values)
    assert list(np.isnan(found)) == [False, operation != "pool", False, False]
    wanted = np.nanmin(values, 1) if operation == "min" else np.nanmax(values, 1)
    np.testing.assert_array_equal(found[~np.isnan(found)], wanted[~np.isnan(found)])


def test_a_softmax_of_rows_with_infinities():
    values = np.zeros((3, 40), np.float32)
    values[0, 1], values[1, 2], values[2] = np.nan, -np.inf, -np.inf
    found = tvm_build.run_kernel(kernel_of(CASES["softmax"].__class__(read("x", 3, 40), 1)), values)
    assert np.isnan(found[0]).all()
    assert np.isnan(found[2]).all()
    assert found[1, 2] == 0
    assert np.isclose(found[1].sum(), 1)


# ---- what users give -------------------------------------------------------------------------------------------------


def wide(arrangement):
    *_, last = arrangement.get_loops(arrangement.get_sblock("out"))
    arrangement.vectorize(arrangement.split(last, [None, 8])[1])


def test_a_users_schedule_becomes_a_trace():
    declared = schedule(when=lambda body: len(body.extents) == 2)(wide)
    assert declared.name == "wide"
    assert not declared.fits(read("x", 4))
    check(kernel_of(CASES["gelu"], tvm_tune.trace_by(declared, kernel_of(CASES["gelu"]))))


def annotated(arrangement):
    arrangement.annotate(arrangement.get_sblock("out"), "pragma_import_c", "int f() { return 1; }")


@pytest.mark.parametrize(
    ("arrange", "complaint"),
    [
        (lambda arrangement: 1 / 0, "raised ZeroDivisionError"),
        (lambda arrangement: 7, "returned a int"),
        (annotated, "not allowed"),
        (lambda arrangement: arrangement.get_sblock("none"), "raised"),
    ],
)
def test_a_wrong_schedule_is_named(arrange, complaint):
    with pytest.raises(EgraphOptError, match=f"the schedule own is not used: .*{complaint}"):
        tvm_tune.trace_by(KernelSchedule("own", arrange), kernel_of(CASES["gelu"]))


def test_a_users_space_and_model_decide_what_is_proposed():
    from tvm.ir.utils import derived_object
    from tvm.s_tir.meta_schedule.cost_model import PyCostModel

    asked, answered = [], []

    def tiles(arrangement):
        (loop,) = arrangement.get_loops(arrangement.get_sblock("out"))
        arrangement.split(loop, arrangement.sample_perfect_tile(loop, n=3, max_innermost_factor=8))

    def model():
        @derived_object
        class Own(PyCostModel):
            def load(self, path): ...
            def save(self, path): ...
            def update(self, context, candidates, results):
                answered.extend(results)

            def predict(self, context, candidates):
                asked.extend(candidates)
                return np.ones(len(candidates))

        return Own()

    space = KernelSchedule("tiles", tiles, space=True)
    tuner = tvm_tune.Tuner(kernel_of(CASES["gelu"]), 8, threads=1, spaces=[space], model=TuningModel("own", model))
    traces = tuner.ask()
    assert traces
    assert all([i[0] for i in tvm_trace.checked(trace)[0]][2:4] == ["SamplePerfectTile", "Split"] for trace in traces)
    tuner.tell([float("inf")] * len(traces))
    assert asked
    assert len(answered) == len(traces)
    with pytest.raises(EgraphOptError, match="cost model own is a int"):
        tvm_tune.Tuner(kernel_of(CASES["gelu"]), 8, threads=1, model=TuningModel("own", lambda: 7))
    with pytest.raises(EgraphOptError, match="space of schedules fails"):
        tvm_tune.Tuner(
            kernel_of(CASES["gelu"]), 8, threads=1, spaces=[KernelSchedule("bad", lambda s: s.none(), space=True)]
        ).ask()
