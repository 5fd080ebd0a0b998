"""Canonical names depend on what a program computes, not on how it is written down."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from egraph_opt.ir.interpreter import run_program
from egraph_opt.ir.naming import canonical, renamed
from egraph_opt.ir.program import Program
from egraph_opt.ir.terms import Apply, Read, Source, Tensor, add, mul

SHAPE = (2, 3)


@st.composite
def programs(draw: st.DrawFn) -> Program:
    sources = [Source(f"x{i}", SHAPE) for i in range(draw(st.integers(1, 3)))]
    weights = [Source(f"w{i}", SHAPE, constant=True) for i in range(draw(st.integers(0, 2)))]
    values = {w.name: np.full(SHAPE, draw(st.integers(0, 1)), np.float32) for w in weights}
    terms: list[Tensor] = [Read(source) for source in (*sources, *weights)]
    definitions = []
    for i in range(draw(st.integers(1, 6))):
        left, right = draw(st.sampled_from(terms)), draw(st.sampled_from(terms))
        term = draw(st.sampled_from((add(left, right), mul(left, right), Apply("sub", (left, right)))))
        definitions.append((f"t{i}", term))
        terms.append(Read(Source(f"t{i}", SHAPE)))
    names = [name for name, _ in definitions]
    outputs = tuple(name for name in names if name == names[-1] or draw(st.booleans()))
    return Program(tuple(sources), tuple(definitions), outputs, values)


def shown(program: Program) -> tuple[object, ...]:
    """What is the same for equal programs."""
    constants = {name: value.tobytes() for name, value in program.constants.items()}
    needed = set(program.outputs)
    return list(program.definitions), sorted(needed), program.inputs, constants


@settings(max_examples=200, deadline=None, derandomize=True)
@given(programs(), st.randoms(use_true_random=False))
def test_other_names_give_the_same_program(program, random):
    old = [s.name for s in program.inputs] + list(program.constants) + [name for name, _ in program.definitions]
    new = [f"n{i}" for i in range(len(old))]
    random.shuffle(new)
    names = dict(zip(old, new, strict=True))
    other = Program(
        tuple(replace(source, name=names[source.name]) for source in program.inputs),
        tuple((names[name], renamed(term, names)) for name, term in program.definitions),
        tuple(names[name] for name in program.outputs),
        {names[name]: value for name, value in program.constants.items()},
    )
    assert shown(canonical(program)[0]) == shown(canonical(other)[0])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(programs())
def test_the_meaning_stays(program):
    inputs = {s.name: np.random.default_rng(i).normal(size=SHAPE) for i, s in enumerate(program.inputs)}
    found, names = canonical(program)
    results = run_program(found, {s.name: inputs[names[s.name]] for s in found.inputs})
    expected = run_program(program, inputs)
    for short in found.outputs:
        np.testing.assert_array_equal(results[short], expected[names[short]])
    assert sorted(names[short] for short in found.outputs) == sorted(program.outputs)
