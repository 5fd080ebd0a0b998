"""Every plan that extraction can offer is led back to its program by named rules, and the chains replay."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from egraph_opt.egraph.closure import Closure, Equation
from egraph_opt.egraph.engine import EGraph
from egraph_opt.egraph.ground import HELD, Terms
from egraph_opt.egraph.language import Rule, TensorVar, apply, becomes, jointly, rule_group
from egraph_opt.egraph.proof import UNKNOWN, Proof, Prover
from egraph_opt.egraph.snapshot import ENode, Snapshot
from egraph_opt.extract.alternatives import Alternative, Extraction
from egraph_opt.extract.choose import Choice, choose
from egraph_opt.extract.costs import Costs
from egraph_opt.extract.explain import ExplainedPlan, explain_plan
from egraph_opt.extract.profile import Profile
from egraph_opt.extract.roofline import Device
from egraph_opt.ir import definitions, maps
from egraph_opt.ir import expr as ex
from egraph_opt.ir.interpreter import evaluate
from egraph_opt.ir.program import Program
from egraph_opt.ir.terms import Apply, Call, Compute, Read, Reduce, Softmax, Source, View, add
from egraph_opt.rules.schedule import GROUPS
from egraph_opt.runtime.explanation import Part
from egraph_opt.runtime.explanation_replay import Replay
from tests.rules import operators

RULES = [rule for group in GROUPS for rule in group.rules]


def as_estimated(alternative: Alternative) -> float:
    return alternative.estimate


def by_library(alternative: Alternative) -> float:
    """Reductions in library calls, whatever they cost."""
    return alternative.estimate + (1.0 if isinstance(alternative.step, Compute) and "sum(" in alternative.text else 0.0)


def at_random(seed: int) -> Callable[[Alternative], float]:
    return lambda a: by_library(a) + zlib.crc32(f"{seed} {a.text}".encode()) % 97 / 97


def plans(program: Program, *costs: Callable[[Alternative], float]) -> list[tuple[Choice, ExplainedPlan]]:
    snapshot, _ = operators.saturated(program)
    problem = Extraction(snapshot, Device()).problem(program.outputs)
    found = []
    for cost in costs:
        choice = choose(problem, cost)
        assert choice is not None
        explained = explain_plan(
            problem,
            choice,
            Costs(Profile(None, "none"), lambda _: True),
            prefix="s",
            program=program,
            snapshot=snapshot,
            rules=RULES,
        )
        found.append((choice, explained))
    return found


def part_of(plan: ExplainedPlan) -> Part:
    return Part("0", (), (), plan.steps, 0.0, plan.terms, dict(plan.labels), plan.chains)


def rules_used(plan: ExplainedPlan) -> list[str]:
    return [step.rule for chain in plan.chains for step in chain.steps]


def image(*extents: int) -> Source:
    return Source("x", extents)


def convolution(strides=(1, 1), dilations=(1, 1), pads=(1, 1, 1, 1), groups=1, kernel=(3, 3)) -> Program:
    x, w = image(1, 2 * groups, 6, 5), Source("w", (2 * groups, 2, *kernel), True)
    term = definitions.convolution(Read(x), Read(w), strides=strides, dilations=dilations, pads=pads, groups=groups)
    return Program((x, w), (("y", term),), ("y",))


def transposed() -> Program:
    x, w = image(1, 2, 3, 3), Source("w", (2, 3, 4, 4), True)
    options = {"strides": (2, 2), "dilations": (1, 1), "pads": (1, 1, 1, 1), "output_padding": (0, 0)}
    return Program((x, w), (("y", definitions.transposed_convolution(Read(x), Read(w), **options)),), ("y",))


def product() -> Program:
    x, w = image(2, 3, 4), Source("w", (4, 5), True)
    return Program((x, w), (("y", definitions.matrix_product(Read(x), Read(w))),), ("y",))


def band() -> Program:
    q, k = Source("q", (2, 6, 3)), Source("k", (2, 6, 3))
    return Program((q, k), (("y", definitions.band_matrix_product(Read(q), Read(k), width=3, dilation=2)),), ("y",))


def pool(operation: str) -> Program:
    x = image(1, 2, 5, 5)
    options = {"strides": (2, 2), "dilations": (1, 1), "pads": (0, 0, 0, 0)}
    return Program((x,), (("y", definitions.pooling(Read(x), (2, 2), operation=operation, **options)),), ("y",))


def chain() -> Program:
    """Conv with a bias and an activation, then another Conv."""
    x, w, b = image(1, 3, 5, 5), Source("w", (4, 3, 3, 3), True), Source("b", (4,), True)
    v = Source("v", (2, 4, 1, 1), True)
    options = {"strides": (1, 1), "dilations": (1, 1)}
    c = definitions.convolution(Read(x), Read(w), pads=(1, 1, 1, 1), **options)
    d = add(Read(Source("c", c.extents)), View(Read(b), maps.index_map((4,), c.extents, [ex.iterator(1)])))
    e = Apply("relu", (Read(Source("d", c.extents)),))
    f = definitions.convolution(Read(Source("e", c.extents)), Read(v), pads=(0, 0, 0, 0), **options)
    return Program((x, w, b, v), (("c", c), ("d", d), ("e", e), ("f", f)), ("f",))


def residual() -> Program:
    """A block whose input is read twice, and both results are outputs."""
    x, w = image(1, 3, 4, 4), Source("w", (3, 3, 3, 3), True)
    options = {"strides": (1, 1), "dilations": (1, 1), "pads": (1, 1, 1, 1)}
    one = definitions.convolution(Read(x), Read(w), **options)
    a = Apply("relu", (Read(Source("c", one.extents)),))
    two = definitions.convolution(Read(Source("a", one.extents)), Read(w), **options)
    y = Apply("relu", (add(Read(Source("d", one.extents)), Read(Source("a", one.extents))),))
    return Program((x, w), (("c", one), ("a", a), ("d", two), ("y", y)), ("a", "y"))


def attention() -> Program:
    """Three products of one input, and a softmax."""
    x = image(4, 6)
    weights = [Source(name, (6, 3), True) for name in ("q", "k", "v")]
    terms = [(f"{w.name}x", definitions.matrix_product(Read(x), Read(w))) for w in weights]
    q, k = (Read(Source(name, (4, 3))) for name in ("qx", "kx"))
    turned = View(k, maps.permute((4, 3), [1, 0]))
    scores = definitions.matrix_product(q, turned)
    weight = Softmax(Read(Source("s", (4, 4))), 1)
    y = definitions.matrix_product(Read(Source("p", (4, 4))), Read(Source("vx", (4, 3))))
    return Program((x, *weights), (*terms, ("s", scores), ("p", weight), ("y", y)), ("y",))


PROGRAMS = {
    "conv": convolution(),
    "conv-strided": convolution(strides=(2, 2)),
    "conv-dilated": convolution(dilations=(2, 1), pads=(2, 1, 2, 1)),
    "conv-groups": convolution(groups=2),
    "conv-transpose": transposed(),
    "matmul": product(),
    "band-matmul": band(),
    "max-pool": pool("max"),
    "average-pool": pool("average"),
    "conv-relu-conv": chain(),
    "residual": residual(),
    "attention": attention(),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_chains_lead_to_the_plan_and_replay(name: str) -> None:
    for choice, plan in plans(PROGRAMS[name], as_estimated, by_library, at_random(1), at_random(2)):
        assert {chain.tensor for chain in plan.chains} >= set(PROGRAMS[name].outputs)
        assert UNKNOWN not in rules_used(plan)
        assert all(step.exact for chain in plan.chains for step in chain.steps)
        assert set(rules_used(plan)) <= {rule.name for rule in RULES}
        assert Replay(part_of(plan), seed=3).problems() == []
        assert {step.name for step in plan.steps} == {name for chain in plan.chains for name in chain.plan}
        assert len(plan.steps) <= len(choice.steps)


def test_a_library_call_is_explained_by_its_rule() -> None:
    ((_, plan),) = plans(PROGRAMS["conv-relu-conv"], by_library)
    assert any(step.operator == "Conv" for step in plan.steps)
    assert {"conv", "bias", "fused-activation"} <= set(rules_used(plan))


def test_rules_over_several_operators_are_explained() -> None:
    """Three products of one input become one: every one of them by the same rule."""

    def few(alternative: Alternative) -> float:
        apart = isinstance(alternative.step, Call) and alternative.step.extents in ((5, 3), (3, 5))
        return by_library(alternative) + (1.0 if apart else 0.0)

    x, weights = image(5, 4), [Source(f"w{number}", (4, 3), True) for number in range(3)]
    definitions_ = tuple((f"y{n}", definitions.matrix_product(Read(x), Read(w))) for n, w in enumerate(weights))
    ((_, plan),) = plans(Program((x, *weights), definitions_, ("y0", "y1", "y2")), few)
    assert sum(step.operator in ("MatMul", "Gemm", "Conv") for step in plan.steps) == 1
    assert all(any(s.rule.startswith("siblings") and s.exact for s in chain.steps) for chain in plan.chains)
    assert Replay(part_of(plan)).problems() == []


@settings(max_examples=12, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
@given(operators.chains())
def test_chains_of_drawn_programs_replay(program: Program) -> None:
    for _, plan in plans(program, as_estimated, at_random(1)):
        assert UNKNOWN not in rules_used(plan)
        assert Replay(part_of(plan), seed=5).problems() == []


def test_replay_finds_a_wrong_step() -> None:
    ((_, plan),) = plans(PROGRAMS["conv-strided"], by_library)
    part = part_of(plan)
    chain_, first = part.chains[0], part.chains[0].steps[0]
    assert Replay(part).problems() == []
    wrong = [
        replace(first, after=chain_.start),  # a term that is equal, but not what the whole became
        replace(first, whole=first.before),  # a term of another value
    ]
    for step in wrong:
        broken = replace(part, chains=(replace(chain_, steps=(step, *chain_.steps[1:])),))
        assert Replay(broken).problems()
    cut = replace(part, chains=(replace(chain_, steps=chain_.steps[:-1]),))
    assert Replay(cut).problems() == ["y: the chain does not end at the plan"]


@rule_group
def paired(x: TensorVar, y: TensorVar) -> Iterator[Rule]:
    yield jointly(
        "sum-beside-relu",
        (apply("tanh", x) + y, y + apply("tanh", x)),
        (apply("relu", x), apply("relu", x)),
    )


def test_rules_of_several_pairs_are_explained_pair_by_pair() -> None:
    x, y = image(2, 3), Source("y", (2, 3))
    tanh = Apply("tanh", (Read(x),))
    program = Program((x, y), (("a", add(tanh, Read(y))), ("b", Apply("relu", (Read(x),)))), ("a", "b"))
    egraph = EGraph()
    egraph.add_program(program)
    egraph.add_rules([paired])
    egraph.run("paired")
    prover = Prover(Snapshot(egraph), program, paired.rules)
    goal = prover.terms.encode(add(Read(y), tanh), {})
    (step,) = prover.prove(prover.known.named["a"], goal).steps
    assert (step.rule, step.exact) == ("sum-beside-relu", True)


@rule_group
def wrong(x: TensorVar) -> Iterator[Rule]:
    yield becomes("drops-relu", apply("relu", x), x)


def proof_with_a_wrong_rule(*groups: str) -> tuple[Prover, Proof]:
    """tanh, then relu; the wrong rule is known, and run if it is among the groups."""
    x, a = image(2, 3), Source("a", (2, 3))
    program = Program((x,), (("a", Apply("tanh", (Read(x),))), ("y", Apply("relu", (Read(a),)))), ("y",))
    egraph = EGraph()
    egraph.add_program(program)
    egraph.add_rules([wrong])
    egraph.run(*groups, until_saturated=True)
    prover = Prover(Snapshot(egraph), program, wrong.rules)
    return prover, prover.prove(prover.known.named["y"], prover.known.named["a"])


def test_the_chain_shows_which_rule_is_wrong() -> None:
    prover, proof = proof_with_a_wrong_rule("wrong")
    (step,) = proof.steps
    assert step.rule == "drops-relu"
    values = {"x": np.array([[-1.0, 2.0, 0.5]] * 2)}
    one, other = (evaluate(prover.terms.decode(number), values) for number in (step.before, step.after))
    assert not np.array_equal(one, other)


def test_rules_that_did_not_run_explain_nothing() -> None:
    _, proof = proof_with_a_wrong_rule()
    assert [step.rule for step in proof.steps] == [UNKNOWN]


def test_without_rules_the_step_has_no_name() -> None:
    program = PROGRAMS["conv"]
    snapshot, _ = operators.saturated(program)
    problem = Extraction(snapshot, Device()).problem(program.outputs)
    choice = choose(problem, by_library)
    assert choice is not None
    assert any(isinstance(alternative.step, Call) for _, alternative in choice.steps)
    snapshot.derivations.clear()
    plan = explain_plan(
        problem,
        choice,
        Costs(Profile(None, "none"), lambda _: True),
        prefix="s",
        program=program,
        snapshot=snapshot,
        rules=(),
    )
    assert rules_used(plan) == [UNKNOWN]
    assert Replay(part_of(plan)).problems() == []


def test_congruences_are_explained_by_older_equations() -> None:
    terms = Terms()
    a, b, c = (terms.held(terms.encode(Source(name, (2,)), {})) for name in "abc")

    def relu(number: int) -> int:
        return terms.add(ENode("Apply1", ("relu", number)))

    closure = Closure(terms)
    closure.know(relu(relu(a)))
    closure.know(relu(relu(c)))
    assert not closure.equal(relu(relu(a)), relu(relu(c)))
    closure.merge(Equation("one", "", a, b))
    closure.merge(Equation("two", "", b, c))
    assert closure.equal(relu(relu(a)), relu(relu(c)))
    moves = list(closure.moves(relu(relu(a)), relu(relu(c))))
    assert [(move.equation.rule, move.backwards, move.path) for move in moves] == [
        ("one", False, (0, 0)),
        ("two", False, (0, 0)),
    ]
    assert {equation.rule for equation in closure.used(relu(a), relu(c))} == {"one", "two"}
    assert not closure.equal(a, relu(a))


def test_explanations_do_not_rest_on_themselves() -> None:
    """The short way over f(a) = f(b) holds only because a = b, which is what is to be explained."""
    terms = Terms()
    names = [terms.held(terms.encode(Source(f"x{number}", (2,)), {})) for number in range(30)]
    one, other = (terms.add(ENode("Apply1", ("relu", number))) for number in (names[0], names[-1]))
    closure = Closure(terms)
    for number, (a, b) in enumerate(pairwise(names)):
        closure.merge(Equation(f"{number}", "", a, b))
    closure.know(one)
    closure.know(other)
    closure.merge(Equation("first", "", names[0], one))
    closure.merge(Equation("last", "", names[-1], other))
    assert [move.equation.rule for move in closure.moves(names[0], names[-1])] == [str(n) for n in range(29)]


def test_a_tensor_and_its_buffer_are_one() -> None:
    terms = Terms()
    x, y = (terms.encode(Source(name, (2, 3)), {}) for name in "xy")
    assert terms.encode(Compute(Read(Source("x", (2, 3)))), {}) == x
    tensor = terms.held(x)
    assert terms.held(tensor) == x
    assert terms.add(ENode("Reshape", (x, "2,3"))) == x
    assert terms.add(ENode("Reshape", (x, "6"))) != x
    closure = Closure(terms)
    whole = terms.add(ENode("Apply1", ("relu", tensor)))
    closure.know(whole)
    closure.merge(Equation("same", "", x, y))
    (move,) = closure.moves(whole, terms.add(ENode("Apply1", ("relu", terms.held(y)))))
    assert move.path == (0, HELD)
    assert terms.replaced_at(whole, move.path, move.new) == terms.replaced(whole, x, y)
    after = terms.add(ENode("Apply1", ("tanh", whole)))
    assert terms.replaced(after, terms.held(whole), y) == terms.add(ENode("Apply1", ("tanh", terms.held(y))))


def test_terms_keep_extents_and_places() -> None:
    terms = Terms()
    x = Source("x", (2, 3))
    number = terms.encode(Reduce("sum", Apply("add", (Read(x), Read(x))), 1), {})
    assert terms.extents[number] == (2,)
    y = terms.held(terms.encode(Source("y", (2, 3)), {}))
    one = terms.replaced_at(number, (0, 1), y)
    both = terms.replaced(number, terms.held(terms.encode(x, {})), y)
    assert terms.decode(one) == Reduce("sum", Apply("add", (Read(x), Read(Source("y", (2, 3))))), 1)
    assert terms.decode(both) == Reduce("sum", Apply("add", (Read(Source("y", (2, 3))),) * 2), 1)
