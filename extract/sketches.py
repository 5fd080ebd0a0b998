"""Plans as plain data, with how their constants are computed from a model's weights, for where only these are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from egraph_opt.extract.problem import Problem, buffer_name, signature
from egraph_opt.gpu.files import Folding, Sketch, SketchStep
from egraph_opt.ir import plain
from egraph_opt.ir.program import Plan, Step, kernel_signature
from egraph_opt.ir.terms import Call, Compute, Reshape, Tensor


def sketch_of(steps: Sequence[Step], outputs: Mapping[str, str], folded: Sequence[Folding] = ()) -> Sketch:
    """The sketch of a plan's steps."""
    found = [
        SketchStep(
            step.name,
            tuple(source.name for source in step.arguments),
            step.extents,
            "" if isinstance(step.buffer, Reshape) else signature(step.buffer),
        )
        for step in steps
    ]
    return Sketch(tuple(found), dict(outputs), tuple(folded))


@contextmanager
def not_computed(problem: Problem) -> Iterator[None]:
    """Inside, the folded buffers of a problem have zeros that take no memory for their values."""
    stand_ins = {
        owner: np.broadcast_to(np.float32(0), problem.extents[owner])
        for owner in problem.folded
        if owner not in problem.values
    }
    problem.values |= stand_ins
    try:
        yield
    finally:
        for owner in stand_ins:
            del problem.values[owner]


def foldings(problem: Problem, plan: Plan) -> tuple[Folding, ...]:
    """What has to be computed, in order, for the constants of a plan that are no weights of the model."""
    owners = {id(value): owner for owner, value in problem.values.items()}
    wanted = {owners[id(value)]: name for name, value in plan.constants.items() if id(value) in owners}
    found: dict[int, Folding] = {}
    for owner in wanted:
        _collect(problem, owner, wanted, found)
    return tuple(found.values())


def _collect(problem: Problem, owner: int, names: Mapping[int, str], found: dict[int, Folding]) -> str:
    """Add a folded buffer after what it reads; its name."""
    if owner in problem.given:
        return problem.given[owner].name
    name = names.get(owner, buffer_name(owner))
    if owner in found:
        return name
    term = problem.folded[owner]
    step = Step(name, Compute(term) if isinstance(term, Tensor) else term)
    reads = step.arguments
    body = operator = attributes = ""
    if isinstance(step.buffer, Compute):
        tensor, reads = kernel_signature(step.buffer.tensor)
        body = plain.to_json(tensor)
    elif isinstance(step.buffer, Call):
        operator, attributes = step.buffer.operator, step.buffer.attributes
    arguments = tuple(_collect(problem, int(read.name.removeprefix("#")), names, found) for read in reads)
    found[owner] = Folding(name, arguments, problem.extents[owner], body, operator, attributes)
    return name
