"""The judge for saturated e-graphs of small programs; the operators are drawn by egraph_opt.testing."""

from __future__ import annotations

import numpy as np

from egraph_opt.egraph.engine import EGraph
from egraph_opt.egraph.saturate import Budget, Saturation, saturate
from egraph_opt.egraph.snapshot import Snapshot
from egraph_opt.egraph.soundness import Verdict, judge
from egraph_opt.ir.program import Program
from egraph_opt.rules.schedule import PHASES, SIMPLIFICATION
from egraph_opt.testing.operators import (
    anything,
    band_products,
    chains,
    convolutions,
    matrix_products,
    pools,
    program,
    reductions,
    sliced,
)

__all__ = [
    "anything",
    "band_products",
    "chains",
    "convolutions",
    "matrix_products",
    "pools",
    "program",
    "reductions",
    "saturated",
    "sliced",
    "values",
    "verdict",
]

SEED = 7


def saturated(whole: Program) -> tuple[Snapshot, Saturation]:
    egraph = EGraph()
    egraph.add_program(whole)
    saturation = saturate(egraph, PHASES, SIMPLIFICATION, budget=Budget(enodes=20_000, seconds=600.0))
    return Snapshot(egraph), saturation


def values(whole: Program) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(SEED)
    return {source.name: generator.integers(1, 1 << 20, source.extents) for source in whole.inputs}


def verdict(whole: Program) -> tuple[Verdict, Saturation]:
    snapshot, saturation = saturated(whole)
    return judge(snapshot, values(whole)), saturation
