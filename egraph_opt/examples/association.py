"""MatMul re-association by operation count: (A·B)·C where A·(B·C) is cheaper, and the other way round."""

from __future__ import annotations

import numpy as np

from egraph_opt import EGraph
from egraph_opt.algebra import evaluate, tensor
from egraph_opt.scripting import StepInfo


def operations(step: StepInfo) -> float:
    """The cost of a step: its additions and multiplications."""
    return step.operations


def cheapest(rows: int, inner: int, columns: int, last: int) -> int:
    """Operations of the best order of a product of three, checked against the order it was written in."""
    a, b, c = tensor("a", (rows, inner)), tensor("b", (inner, columns)), tensor("c", (columns, last))
    product = (a @ b) @ c
    egraph = EGraph.of(product)
    egraph.saturate()
    program = egraph.extract(cost=operations)
    print(program, end="\n\n")

    draw = np.random.default_rng(0)
    values = {name: draw.standard_normal(e.shape) for name, e in (("a", a), ("b", b), ("c", c))}
    assert np.allclose(program.evaluate(values)["y"], evaluate(product, values))
    return round(program.cost)


def main() -> None:
    # As written: 2·100·4·100 + 2·100·100·4 operations. Re-associated: 2·4·100·4 + 2·100·4·4.
    assert cheapest(100, 4, 100, 4) == 2 * 4 * 100 * 4 + 2 * 100 * 4 * 4
    # Here the order it was written in is the best one.
    assert cheapest(4, 100, 4, 100) == 2 * 4 * 100 * 4 + 2 * 4 * 4 * 100


if __name__ == "__main__":
    main()
