"""Plans of every kind of choice compute what the program says, folded constants and left-out reshapes included."""

import random
import zlib
from math import inf, prod

import numpy as np
import pytest

from egraph_opt.egraph.saturate import saturated
from egraph_opt.egraph.snapshot import Snapshot
from egraph_opt.errors import EgraphOptError
from egraph_opt.extract import plans
from egraph_opt.extract.alternatives import Alternative, Extraction, Problem
from egraph_opt.extract.choose import choose
from egraph_opt.extract.plans import build_plan
from egraph_opt.extract.roofline import Device
from egraph_opt.frontends.onnx_reader import load
from egraph_opt.frontends.regions import partition
from egraph_opt.ir import maps
from egraph_opt.ir.interpreter import run_plan, run_program
from egraph_opt.ir.program import Plan, Program
from egraph_opt.ir.terms import Apply, Call, Compute, Read, Reshape, Source, View
from egraph_opt.rules.schedule import PHASES, SIMPLIFICATION
from tests.pipeline.support import band_attention, build, drawn, node, normal


def problem_of(program: Program) -> Problem:
    egraph, _ = saturated(program, PHASES, SIMPLIFICATION)
    return Extraction(Snapshot(egraph), Device()).problem(program.outputs)


def program_of(model: object) -> Program:
    (region,) = partition(load(model)).regions  # type: ignore[arg-type]
    return region.program


def luck(seed: int) -> object:
    """Costs that depend on nothing but the text of a step and the seed: any plan may come out cheapest."""
    return lambda alternative: random.Random(zlib.crc32(f"{seed} {alternative.text}".encode())).random() + 1e-3


def check(program: Program, plan: Plan) -> None:
    inputs = {s.name: normal(*s.extents, seed=i).astype(np.float64) for i, s in enumerate(program.inputs)}
    expected = run_program(program, inputs)
    found = run_plan(plan, inputs)
    check_extents(program, plan)
    assert set(found) == set(program.outputs)
    for name in program.outputs:
        assert found[name].shape == expected[name].shape
        # Folded weights are rounded to float32.
        assert np.allclose(found[name], expected[name], rtol=0, atol=1e-5 * np.abs(expected[name]).max())


def check_extents(program: Program, plan: Plan) -> None:
    """Operators of a library see the extents they were chosen for; kernels see memory of the right size."""
    held = {source.name: source.extents for source in plan.inputs}
    held |= {name: value.shape for name, value in plan.constants.items()}
    for step in plan.steps:
        for argument in step.arguments:
            if isinstance(step.buffer, Compute):
                assert prod(held[argument.name]) == prod(argument.extents)
            else:
                assert held[argument.name] == argument.extents
        held[step.name] = step.extents
    wanted = {name: term.extents for name, term in program.definitions}
    assert all(held[plan.outputs[name]] == wanted[name] for name in program.outputs)


@pytest.mark.parametrize("seed", range(12))
def test_any_choice_is_right(seed: int) -> None:
    program = program_of(drawn(seed + 100) if seed < 11 else band_attention())
    problem = problem_of(program)
    texts = set()
    for number in range(12):
        choice = choose(problem, luck(number))
        assert choice is not None
        plan = build_plan(problem, choice, program, prefix="p")
        check(program, plan)
        names = [step.name for step in plan.steps]
        assert names == [f"p{i}" for i in range(len(names))]
        texts.add(tuple(alternative.text for _, alternative in choice.steps))
    assert len(texts) > 2  # the choices do differ


def test_reshapes_are_left_out_where_nothing_needs_them() -> None:
    left_out = declared = kept = 0
    for seed in range(6):
        program = program_of(drawn(seed + 200))
        problem = problem_of(program)
        for number in range(6):
            choice = choose(problem, luck(number))
            assert choice is not None
            plan = build_plan(problem, choice, program, prefix="p")
            chosen = sum(isinstance(alternative.step, Reshape) for _, alternative in choice.steps)
            written = sum(isinstance(step.buffer, Reshape) for step in plan.steps)
            left_out += chosen - written
            kept += written
            declared += sum(step.shape is not None for step in plan.steps)
            assert all(isinstance(step.buffer, Compute) for step in plan.steps if step.shape is not None)
    assert left_out > 3
    assert declared > 0
    assert kept > 0


def transposed_convolution() -> Program:
    nodes = [node("ConvTranspose", "x w", "y", strides=[2, 2], pads=[1, 1, 1, 1])]
    return program_of(build(nodes, {"x": [1, 3, 4, 4]}, {"y": [1, 2, 8, 8]}, {"w": normal(3, 2, 4, 4)}))


def as_matrix_product(alternative: Alternative) -> float:
    """Cost infinity for every way to compute the sum of products but a library's."""
    body = isinstance(alternative.step, Compute) and "read(in1)" in alternative.text
    return inf if body or alternative.text.startswith("Conv") else alternative.estimate


def test_weights_are_folded_ahead_of_time() -> None:
    program = transposed_convolution()
    problem = problem_of(program)
    choice = choose(problem, as_matrix_product)
    assert choice is not None
    plan = build_plan(problem, choice, program, prefix="p")
    assert {"MatMul", "Gemm"} & {getattr(step.buffer, "operator", "") for step in plan.steps}
    (folded,) = plan.constants.items()
    assert folded[0].startswith("pfolded")
    assert folded[1].dtype == np.float32
    check(program, plan)


def test_folded_weights_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    program = transposed_convolution()
    problem = problem_of(program)
    choice = choose(problem, as_matrix_product)
    assert choice is not None
    monkeypatch.setattr(plans, "FOLDED_BYTES", 3 * 2 * 4 * 4 * 4 - 1)
    with pytest.raises(EgraphOptError, match="folded"):
        build_plan(problem, choice, program, prefix="p")


def test_a_kernel_declares_one_shape_only() -> None:
    """A kernel read under its own extents, and under two others: nothing of that may be left to the kernel."""
    x = Source("#0", (6,))
    kernel = Compute(Apply("relu", (Read(x),)))
    shapes = {2: (2, 3), 3: (3, 2)}
    for strict in (True, False):
        alternatives = {1: [Alternative(kernel, (0,), 1.0)]}
        for owner, shape in shapes.items():
            alternatives[owner] = [Alternative(Reshape(Source("#1", (6,)), shape), (1,), 1.0)]
            call = Call("Transpose", "perm=1,0", (Source(f"#{owner}", shape),), shape[::-1])
            alternatives[owner + 2] = [Alternative(call, (owner,), 1.0)]
        roots = {"a": 4, "b": 5} | ({"c": 1} if strict else {})
        extents = {0: (6,), 1: (6,), **shapes, 4: (3, 2), 5: (2, 3)}
        problem = Problem(alternatives, roots, {0: Source("x", (6,))}, {}, extents)
        relu = Apply("relu", (Read(Source("x", (6,))),))
        views = [View(View(relu, maps.reshape((6,), shape)), maps.permute(shape, (1, 0))) for shape in shapes.values()]
        definitions = (("a", views[0]), ("b", views[1]), *((("c", relu),) if strict else ()))
        program = Program((Source("x", (6,)),), definitions, tuple(roots))
        choice = choose(problem, lambda a: a.estimate)
        assert choice is not None
        plan = build_plan(problem, choice, program, prefix="p")
        check(program, plan)
        assert sum(isinstance(step.buffer, Reshape) for step in plan.steps) == (2 if strict else 1)


def test_texts_do_not_depend_on_names() -> None:
    """What a step does is the key of its measurements: the same in models that only differ in names and weights."""
    found = []
    for name, seed in (("w", 1), ("another", 2)):
        nodes = [node("MatMul", f"x {name}", "p"), node("Relu", "p", f"{name}_y")]
        program = program_of(build(nodes, {"x": [3, 4]}, {f"{name}_y": [3, 5]}, {name: normal(4, 5, seed=seed)}))
        alternatives: list[Alternative] = [a for found in problem_of(program).alternatives.values() for a in found]
        found.append(sorted(a.text for a in alternatives))
    assert found[0] == found[1]


def test_an_output_can_be_a_weight_itself() -> None:
    """The plan of such an output has no step, and still holds the weight."""
    x, w = Source("x", (2, 3)), Source("w", (2, 3), True)
    definitions = (("y", Apply("relu", (Read(x),))), ("z", Read(w)))
    program = Program((x,), definitions, ("y", "z"), {"w": normal(2, 3)})
    problem = problem_of(program)
    choice = choose(problem, lambda alternative: alternative.estimate)
    assert choice is not None
    plan = build_plan(problem, choice, program, prefix="s")
    assert plan.outputs["z"] in plan.constants
    check(program, plan)
