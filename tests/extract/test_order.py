"""egglog's ids and the order of its rows are luck; nothing that follows may depend on them."""

import copy
import random

import pytest

from egraph_opt.egraph.pattern import CONSTRUCTORS
from egraph_opt.egraph.saturate import saturated
from egraph_opt.egraph.snapshot import ENode, Snapshot
from egraph_opt.extract.alternatives import Extraction
from egraph_opt.extract.choose import choose
from egraph_opt.extract.plans import build_plan
from egraph_opt.extract.roofline import Device
from egraph_opt.frontends.onnx_reader import load
from egraph_opt.frontends.regions import partition
from egraph_opt.ir.program import Program
from egraph_opt.rules.schedule import PHASES, SIMPLIFICATION
from tests.pipeline.support import drawn


def shuffled(snapshot: Snapshot, seed: int) -> Snapshot:
    """The same classes under other ids and in another order, as another run of egglog might have given them."""
    draw = random.Random(seed)
    ids = list(snapshot.sorts)
    new = dict(zip(ids, draw.sample(ids, len(ids)), strict=True))

    def renumbered(node: ENode) -> ENode:
        sorts = CONSTRUCTORS[node.constructor][0]
        pairs = zip(node.arguments, sorts, strict=True)
        return ENode(node.constructor, tuple(new[a] if s in ("Tensor", "Buffer", "Args") else a for a, s in pairs))

    other = copy.copy(snapshot)
    other.__dict__.pop("extents", None)
    owners = draw.sample(list(snapshot.classes), len(snapshot.classes))
    other.classes = {}
    for owner in owners:
        nodes = [renumbered(node) for node in snapshot.classes[owner]]
        other.classes[new[owner]] = draw.sample(nodes, len(nodes))
    other.sorts = {new[owner]: sort for owner, sort in snapshot.sorts.items()}
    other.names = {name: new[owner] for name, owner in snapshot.names.items()}
    other.derivations = []
    return other


def plan_of(snapshot: Snapshot, program: Program) -> tuple[object, ...]:
    problem = Extraction(snapshot, Device()).problem(program.outputs)
    choice = choose(problem, lambda a: a.estimate)
    assert choice is not None
    plan = build_plan(problem, choice, program, prefix="p")
    texts = [a.text for found in problem.alternatives.values() for a in found]
    return plan.steps, plan.outputs, [(name, value.tobytes()) for name, value in plan.constants.items()], texts


@pytest.mark.parametrize("seed", range(5))
def test_plans_do_not_depend_on_ids(seed: int) -> None:
    (region,) = partition(load(drawn(seed + 300))).regions
    egraph, _ = saturated(region.program, PHASES, SIMPLIFICATION)
    snapshot = Snapshot(egraph)
    expected = plan_of(snapshot, region.program)
    for number in range(3):
        other = shuffled(snapshot, number)
        assert other.classes != snapshot.classes
        other._renumber()
        assert list(other.classes.items()) == list(snapshot.classes.items())
        assert plan_of(other, region.program) == expected
