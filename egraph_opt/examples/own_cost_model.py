"""A cost model of one's own is a function from a step to a number: memory traffic, number of kernels, anything."""

from __future__ import annotations

from math import inf

import numpy as np

from egraph_opt import EGraph
from egraph_opt.algebra import apply, evaluate, matmul, tensor, weight
from egraph_opt.scripting import StepInfo


def roofline(step: StepInfo) -> float:
    """Microseconds on a machine of 500 GFLOP/s in library calls, 20 in kernels, and 40 GB/s of memory."""
    speed = 20e3 if step.is_kernel else 500e3
    return max(step.operations / speed, step.bytes / 40e3)


def launches(step: StepInfo) -> float:
    """How many kernels and library calls there are, reshapes being free."""
    return 0 if step.is_reshape else 1


def library_only(step: StepInfo) -> float:
    """Library calls by their operations; generated kernels must not be used."""
    return inf if step.is_kernel else step.operations


def main() -> None:
    draw = np.random.default_rng(0)
    x = tensor("x", (32, 64))
    w, v = (weight(name, (64, 64), draw.standard_normal((64, 64))) for name in ("w", "v"))
    hidden = apply("relu", matmul(x, w) * 2 + 1)
    y = apply("tanh", matmul(hidden, v)) + x
    egraph = EGraph.of(y)
    egraph.saturate()

    values = {"x": draw.standard_normal((32, 64))}
    programs = {model: egraph.extract(cost=model, portable=False) for model in (roofline, launches)}
    programs[library_only] = egraph.extract(cost=library_only)
    for model, program in programs.items():
        print(f"{model.__name__}\n{program}\n")
        # The weights that are folded ahead of time are kept as float32.
        assert np.allclose(program.evaluate(values)["y"], evaluate(y, values), atol=1e-4)
    assert programs[launches].cost == len(programs[launches].costs) == 1
    assert programs[launches].kernels == 1
    assert programs[library_only].kernels == 0
    # Here a product is worth a library call, and what is between two of them one kernel.
    assert programs[roofline].kernels < len(programs[roofline].costs)


if __name__ == "__main__":
    main()
