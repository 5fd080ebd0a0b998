"""Windows of large programs: they cover everything, and merged they are the e-graph of the whole."""

import random

import numpy as np
import pytest

from bench.models.chains import chain
from egraph_opt.egraph import canonical as order
from egraph_opt.egraph.merging import merged
from egraph_opt.egraph.saturate import Budget, together
from egraph_opt.egraph.snapshot import OPERANDS, Derivation, ENode, Snapshot
from egraph_opt.egraph.soundness import judge
from egraph_opt.frontends.onnx_reader import load
from egraph_opt.frontends.regions import partition
from egraph_opt.ir.naming import canonical
from egraph_opt.ir.program import Program
from egraph_opt.ir.terms import Source, leaves
from egraph_opt.ir.windows import windows
from egraph_opt.packs import select
from egraph_opt.saturation_worker import Saturated, saturate_canonical


def program(kind: str, layers: int) -> Program:
    regions = partition(load(chain(kind, layers))).regions
    return canonical(max((region.program for region in regions), key=lambda p: len(p.definitions)))[0]


def saturated(some: Program) -> Saturated:
    return saturate_canonical(some, select(), Budget())


def renumbered(snapshot: Snapshot) -> Snapshot:
    snapshot._renumber()
    return snapshot


@pytest.mark.parametrize("kind", ["conv", "residual", "attention", "siblings"])
def test_windows_cover_the_program(kind: str) -> None:
    whole = program(kind, 24)
    found = windows(whole, 16, 2)
    assert len(found) > 2
    defined = dict(whole.definitions)
    assert {name for window in found for name, _ in window.definitions} == set(defined)
    for window in found:
        own = [name for name, _ in window.definitions]
        assert own == [name for name in defined if name in set(own)], "the order of execution is kept"
        assert all(term is defined[name] for name, term in window.definitions)
        known = {source.name for source in window.inputs} | set(window.constants)
        for name, term in window.definitions:
            assert {s.name for s in leaves(term) if isinstance(s, Source)} <= known
            known.add(name)
        read = {s.name for n, t in whole.definitions if n not in set(own) for s in leaves(t) if isinstance(s, Source)}
        assert set(window.outputs) == set(own) & (read | set(whole.outputs))


@pytest.mark.parametrize("kind", ["conv", "residual"])
def test_windows_are_about_equally_large(kind: str) -> None:
    """Those at the ends have surroundings on one side only."""
    sizes = [len(window.definitions) for window in windows(program(kind, 60), 40, 8)]
    assert len(sizes) > 2
    assert max(sizes) - min(sizes) <= 4


def test_small_and_entangled_programs_stay_whole() -> None:
    small = program("conv", 4)
    assert windows(small) == (small,)
    whole = program("conv", 40)
    assert windows(whole, 20, 100) == (whole,)


@pytest.mark.parametrize(("kind", "layers"), [("conv", 24), ("residual", 20)])
def test_merged_windows_are_the_e_graph_of_the_whole(kind: str, layers: int) -> None:
    """Classes, e-nodes, names and derivations: all the same."""
    whole = program(kind, layers)
    parts = windows(whole, len(whole.definitions) // 2)
    assert len(parts) == 2
    found = [saturated(part).snapshot for part in parts]
    both = renumbered(merged(found, {name for name, _ in whole.definitions}))
    alone = renumbered(saturated(whole).snapshot)
    assert both.classes == alone.classes
    assert both.sorts.items() <= alone.sorts.items()
    assert both.names == alone.names
    changing = {d for d in alone.derivations if d.origin != d.result}
    assert set(both.derivations) == changing
    assert dict(both.extents) == {owner: e for owner, e in alone.extents.items() if owner in both.sorts}


@pytest.mark.parametrize(("kind", "layers"), [("attention", 24), ("siblings", 16)])
def test_windows_lose_nothing_where_layers_are_joined(kind: str, layers: int) -> None:
    """Chains of linear layers can be multiplied out from end to end: the surroundings bound how far that is looked
    for, but nothing that the whole offers is missing here."""
    whole = program(kind, layers)
    parts = windows(whole, len(whole.definitions) // 2)
    assert len(parts) == 2
    both = merged([saturated(part).snapshot for part in parts], {name for name, _ in whole.definitions})
    alone = saturated(whole).snapshot
    offered, found = (set(order.term_names(s.classes)[1].values()) for s in (alone, both))
    assert offered <= found


def test_merged_e_graphs_are_sound() -> None:
    """All e-nodes of a class have equal values, also where classes of two windows became one."""
    whole = program("residual", 3)
    parts = windows(whole, len(whole.definitions) // 2, 2)
    assert len(parts) == 2
    both = merged([saturated(part).snapshot for part in parts], {name for name, _ in whole.definitions})
    draw = np.random.default_rng(0)
    read = {s.name: s for _, term in whole.definitions for s in leaves(term) if isinstance(s, Source)}
    sources = {name: draw.integers(-9, 9, s.extents) for name, s in read.items() if name not in dict(whole.definitions)}
    verdict = judge(both, sources)
    assert verdict.checked > 1000
    assert not verdict.mismatches


def test_merging_depends_on_nothing_but_the_snapshots() -> None:
    """Other numbers of classes give the same merged e-graph, up to its numbers."""
    whole = program("residual", 6)
    parts = windows(whole, len(whole.definitions) // 2, 2)
    assert len(parts) == 2
    names = {name for name, _ in whole.definitions}
    found = [saturated(part).snapshot for part in parts]
    first = renumbered(merged(found, names))
    draw = random.Random(0)
    for snapshot in found:
        new = dict(zip(snapshot.sorts, draw.sample(range(10**6), len(snapshot.sorts)), strict=True))
        _renumber(snapshot, new)
    second = renumbered(merged(found, names))
    assert first.classes == second.classes
    assert set(first.derivations) == set(second.derivations)


def _renumber(snapshot: Snapshot, new: dict[int, int]) -> None:
    def moved(node: ENode) -> ENode:
        arguments = list(node.arguments)
        for position in OPERANDS[node.constructor]:
            arguments[position] = new[int(arguments[position])]
        return ENode(node.constructor, tuple(arguments))

    snapshot.classes = {new[owner]: [moved(node) for node in nodes] for owner, nodes in snapshot.classes.items()}
    snapshot.sorts = {new[owner]: sort for owner, sort in snapshot.sorts.items()}
    snapshot.names = {name: new[owner] for name, owner in snapshot.names.items()}
    snapshot.derivations = [Derivation(d.rule, moved(d.origin), moved(d.result)) for d in snapshot.derivations]


def test_rounds_of_parts_are_added_up() -> None:
    whole = program("conv", 12)
    parts = windows(whole, len(whole.definitions) // 2, 2)
    assert len(parts) == 2
    found = [saturated(part).saturation for part in parts]
    both = together(found)
    assert both.enodes == sum(part.enodes for part in found)
    assert both.matches == {
        rule: sum(part.matches.get(rule, 0) for part in found) for rule in {*found[0].matches, *found[1].matches}
    }
    assert both.rounds[0].before == sum(part.rounds[0].before for part in found)
    assert [r.before for r in both.rounds[1:]] == [r.enodes for r in both.rounds[:-1]]
    found[1].stop = "e-nodes"
    assert together(found).stop == "e-nodes"


def test_what_another_window_fills_is_read_there() -> None:
    """A source that stands for a tensor of another window is that tensor's buffer, in derivations too, whichever of
    the two windows comes first."""
    source = ENode("Source", ("x", "4", "input"))
    filling = Snapshot.of(
        {
            0: [source],
            1: [ENode("Read", (0,))],
            2: [ENode("Apply1", ("relu", 1)), ENode("Read", (3,))],
            3: [ENode("Compute", (2,))],
        },
        {0: "Buffer", 1: "Tensor", 2: "Tensor", 3: "Buffer"},
        {"t": 2},
        [],
    )
    middle = ENode("Source", ("t", "4", "input"))
    back = ENode("Reshape", (0, "4"))
    reading = Snapshot.of(
        {0: [middle, back], 1: [ENode("Read", (0,))]},
        {0: "Buffer", 1: "Tensor"},
        {"u": 1},
        [Derivation("to itself", middle, back)],
    )
    for order_of in ((filling, reading), (reading, filling)):
        both = merged(order_of, {"t", "u"})
        assert both.names["t"] == both.names["u"]
        (buffer,) = (o for o, nodes in both.classes.items() if any(n.constructor == "Compute" for n in nodes))
        compute, again = ENode("Compute", (both.names["t"],)), ENode("Reshape", (buffer, "4"))
        assert set(both.classes[buffer]) == {compute, again}
        assert both.derivations == [Derivation("to itself", compute, again)]
        assert not any(middle in nodes for nodes in both.classes.values())
