"""Budgets, and what is told of how an e-graph grew."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from egraph_opt.derive import operator_program
from egraph_opt.egraph.growth import growth_table
from egraph_opt.egraph.saturate import Budget, saturated
from egraph_opt.egraph.snapshot import Snapshot
from egraph_opt.extract.alternatives import Extraction
from egraph_opt.extract.profile import Profile
from egraph_opt.extract.roofline import Device
from egraph_opt.extract.search import Search, search
from egraph_opt.ir import definitions
from egraph_opt.ir.interpreter import run_plan, run_program
from egraph_opt.ir.program import Program
from egraph_opt.ir.terms import Apply, Read, Source
from egraph_opt.rules.schedule import PHASES, SIMPLIFICATION


def conv_chain(layers: int) -> Program:
    """Layers of a 3x3 convolution and a ReLU."""
    x = Source("x", (1, 3, 6, 5))
    weights = tuple(Source(f"w{i}", (3, 3, 3, 3), True) for i in range(layers))
    definitions_ = []
    before = x
    for i, w in enumerate(weights):
        window = {"strides": (1, 1), "dilations": (1, 1), "pads": (1, 1, 1, 1), "groups": 1}
        conv = definitions.convolution(Read(before), Read(w), **window)
        definitions_.append((f"y{i}", Apply("relu", (conv,))))
        before = Source(f"y{i}", (1, 3, 6, 5))
    draw = np.random.default_rng(0)
    constants = {w.name: draw.standard_normal(w.extents).astype(np.float32) for w in weights}
    return Program((x, *weights), tuple(definitions_), (definitions_[-1][0],), constants)


def test_rounds_add_up() -> None:
    egraph, done = saturated(operator_program("conv"), PHASES, SIMPLIFICATION)
    snapshot = Snapshot(egraph)
    assert done.stop == "saturated"
    assert done.enodes == egraph.size() == snapshot.size
    assert all(one.enodes == other.before for one, other in zip(done.rounds, done.rounds[1:], strict=False))
    total: dict[str, int] = {}
    for entry in done.rounds:
        for rule, number in entry.matches.items():
            total[rule] = total.get(rule, 0) + number
    # The rest are the simplifications before the first round.
    assert all(done.matches[rule] >= number for rule, number in total.items())
    assert {rule for rule, number in done.matches.items() if number > total.get(rule, 0)} <= {
        rule.name for rule in SIMPLIFICATION.rules
    }


def test_made_counts_every_e_node_once() -> None:
    egraph, _ = saturated(operator_program("conv"), PHASES, SIMPLIFICATION)
    snapshot = Snapshot(egraph)
    for rule, number in snapshot.made.items():
        assert number == len({d.result for d in snapshot.derivations if d.rule == rule})
    assert snapshot.made["sum-splits"] > 0


def test_a_snapshot_travels() -> None:
    egraph, _ = saturated(operator_program("matmul"), PHASES, SIMPLIFICATION)
    snapshot = Snapshot(egraph)
    copy = pickle.loads(pickle.dumps(snapshot))
    assert list(copy.classes.items()) == list(snapshot.classes.items())
    assert list(copy.sorts.items()) == list(snapshot.sorts.items())
    assert (copy.names, copy.derivations) == (snapshot.names, snapshot.derivations)
    assert copy.extents == snapshot.extents


@pytest.mark.parametrize(
    ("budget", "stop"),
    [(Budget(enodes=1), "e-nodes"), (Budget(enodes=150), "e-nodes"), (Budget(seconds=1e-9), "time")],
)
def test_a_run_that_hits_its_budget_still_gives_a_right_plan(budget: Budget, stop: str) -> None:
    program = conv_chain(3)
    full = saturated(program, PHASES, SIMPLIFICATION)[1]
    egraph, done = saturated(program, PHASES, SIMPLIFICATION, budget=budget)
    assert done.stop == stop
    assert len(done.rounds) < len(full.rounds)
    item = Search(Extraction(Snapshot(egraph), Device()).problem(program.outputs), program, "s")
    search([item], Profile(None, "", ""), None, rounds=0, deadline=float("inf"))
    assert item.outcome is not None, item.failure
    inputs = {"x": np.random.default_rng(1).standard_normal((1, 3, 6, 5))}
    expected = run_program(program, inputs)
    found = run_plan(item.outcome.plan, inputs)
    for name in program.outputs:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, atol=1e-6)


def test_the_table() -> None:
    text = growth_table(
        [("splitting", 10, 12, 0.25), ("windows", 12, 12, 0.0)],
        {"often": 7, "never": 0, "busy": 3},
        {"busy": 1200},
        "time",
        rules=1,
    )
    assert text.splitlines() == [
        "round  phase      e-nodes  new  seconds",
        "    1  splitting       12   +2    0.250",
        "    2  windows         12    -    0.000",
        "12 e-nodes in 0.25 s; stopped by the limit of time",
        "",
        "rule  e-nodes made  matches",
        "busy         1,200        3",
        "and 1 rules that made fewer",
    ]


def test_a_saturation_prints_as_a_table() -> None:
    _, done = saturated(operator_program("conv"), PHASES, SIMPLIFICATION)
    lines = done.table().splitlines()
    assert lines[1].split()[1] == PHASES[0].group.name
    assert f"{done.enodes:,} e-nodes in " in done.table()
    assert any(line.startswith("view-of-view") for line in lines)
