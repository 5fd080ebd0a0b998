"""A multi-pattern rule: all matrix products of one input become one product, of which each is a slice.

``together`` collects every term that matches and hands those that share an operand to a Python function, which says
what each of them equals. (``jointly`` is for a fixed number of terms: among n siblings it would try all pairs.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from operator import add

import numpy as np

from egraph_opt import BufferVar, EGraph, ExtentsVar, Member, Rule, call, holds, rule_group, together
from egraph_opt.algebra import evaluate, tensor, weight
from egraph_opt.egraph.pattern import Pattern
from egraph_opt.ir.expr import Extents
from egraph_opt.ir.notation import index_map
from egraph_opt.scripting import StepInfo


def are_matrices(result: Extents, weights: Extents) -> bool:
    return len(result) == len(weights) == 2


def side_by_side(members: Sequence[Member]) -> list[Mapping[int, Pattern]]:
    """x·w, x·v, … as slices of x·(w v …)."""
    (rows, _), (inner, _) = members[0]["e"], members[0]["w-extents"]
    widths = [member["e"][1] for member in members]
    total = sum(widths)
    parts: list[Pattern] = []
    slices = []
    for position, (member, width) in enumerate(zip(members, widths, strict=True)):
        first = sum(widths[:position])
        # Where a view reads outside of what it views it is zero, so the wide matrix is a sum.
        placed = index_map((inner, width), (inner, total), lambda i, j, first=first: (i, j - first))
        parts.append(member["w"].read().view(placed))
        slices.append(index_map((rows, total), (rows, width), lambda i, j, first=first: (i, j + first)))
    product = call("MatMul", "", [members[0]["x"], reduce(add, parts).compute()], (rows, total)).read()
    return [{position: product.view(index).compute() for position, index in enumerate(slices)}]


@rule_group
def twins(x: BufferVar, w: BufferVar, e: ExtentsVar) -> Iterator[Rule]:
    """Matrix products of one input as one."""
    product = call("MatMul", "", [x, w], e)
    given = [holds(are_matrices, e, w.extents)]
    yield together("twin-products", product, sharing=x, combine=side_by_side, given=given)


def computing(step: StepInfo) -> float:
    """The number of steps that calculate; moving elements is free."""
    return 1 if step.operations else 0


def main() -> None:
    draw = np.random.default_rng(0)
    x = tensor("x", (6, 8))
    widths = {"query": 8, "key": 8, "value": 4}
    heads = {name: x @ weight(f"w_{name}", (8, n), draw.standard_normal((8, n))) for name, n in widths.items()}
    egraph = EGraph.of(heads)
    print(egraph.saturate(["instantiation", twins]))
    assert not egraph.judge().mismatches

    program = egraph.extract(cost=computing)
    print(program)
    assert program.cost == 1
    found = program.evaluate(values := {"x": draw.standard_normal((6, 8))})
    for name, expression in heads.items():
        assert np.allclose(found[name], evaluate(expression, values), atol=1e-5)


if __name__ == "__main__":
    main()
