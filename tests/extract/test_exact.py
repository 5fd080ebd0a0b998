"""Exact choices and their bounds on small AND-OR graphs against trying everything, and on the known hard cases."""

import random
from math import inf

import pytest

from bench.extraction import layers
from egraph_opt.extract.exact import solve
from egraph_opt.extract.graph import Graph, Option, graph_of, trees
from egraph_opt.extract.improve import Pick, heuristic, picked
from egraph_opt.extract.landmarks import landmarks
from egraph_opt.extract.relaxation import LOOP
from tests.extract.and_or import Options, cheapest, cover, drawn, permutes, residual, ring, siblings

GRAPHS = 120


def built(problem: tuple[Options, list[int]]) -> Graph:
    graph = graph_of(*problem)
    assert graph is not None
    return graph


def check(graph: Graph, pick: Pick) -> None:
    """A choice that can be carried out and costs what it says."""
    order = graph.used(pick.ways)
    assert order is not None
    assert list(pick.order) == order
    ready: set[int] = set()
    for node in order:
        assert graph.owner[pick.ways[node]] == node
        assert ready.issuperset(graph.needs[pick.ways[node]])
        ready.add(node)
    assert pick.cost == pytest.approx(sum(graph.cost[pick.ways[node]] for node in order))


@pytest.mark.parametrize("buffers", [5, 9, 14])
def test_exact_choices_are_the_cheapest(buffers: int) -> None:
    solved = 0
    for seed in range(GRAPHS):
        graph = graph_of(*drawn(seed, buffers))
        if graph is None:
            continue
        best, found = cheapest(graph), solve(graph)
        check(graph, found.pick)
        assert found.pick.cost == pytest.approx(best, abs=1e-6), (seed, buffers)
        assert found.gap == 0, (seed, buffers)
        solved += 1
    assert solved > GRAPHS / 2


@pytest.mark.parametrize("size", [LOOP, LOOP + 1, 9, 12])
def test_cycles_fill_nothing(size: int) -> None:
    """Of larger components the formulas are found only when a solution violates them."""
    for seed in range(GRAPHS // 2):
        graph = built(ring(seed, size))
        found = solve(graph)
        check(graph, found.pick)
        assert found.pick.cost == pytest.approx(cheapest(graph), abs=1e-6), (seed, size)
        assert found.gap == 0


@pytest.mark.parametrize("size", [5, 6, 7])
def test_what_the_relaxation_leaves_open_is_branched_over(size: int) -> None:
    graph = built(cover(size))
    found = solve(graph)
    assert found.pick.cost == pytest.approx(cheapest(graph), abs=1e-6)
    assert found.gap == 0
    assert found.nodes > 1


def test_bounds_hold_wherever_the_search_ends() -> None:
    graphs = [built(cover(6)), built(layers(2, 3, 1))]
    graphs += [g for seed in range(GRAPHS // 2) if (g := graph_of(*drawn(seed, 12))) is not None]
    for number, graph in enumerate(graphs):
        best = cheapest(graph)
        assert landmarks(graph).bound <= best + 1e-6, number
        for work in (0, 3):
            assert landmarks(graph, work=work).bound <= best + 1e-6, number
        for pivots in (1, 10, 40):
            found = solve(graph, pivots=pivots)
            check(graph, found.pick)
            assert found.bound <= best + 1e-6, (number, pivots)
            assert found.pick.cost >= best - 1e-6, (number, pivots)
        found = solve(graph, gap=0.2)
        assert found.bound <= best + 1e-6, number
        assert found.gap <= 0.2


def test_ways_that_no_cheapest_choice_takes_are_known() -> None:
    """A choice that takes a way costs the bound and the way's ``least``, as trying all choices with it shows."""
    checked = 0
    for seed in range(GRAPHS // 2):
        graph = graph_of(*drawn(seed, 9))
        if graph is None:
            continue
        found = landmarks(graph)
        for way, least in enumerate(found.least):
            cost = cheapest(graph, taking=way)
            if cost < inf:
                assert found.bound + least <= cost + 1e-6, (seed, way)
                checked += 1
    assert checked > 500


@pytest.mark.parametrize(
    ("problem", "best"),
    [
        (siblings(8), 4.0 * 8 + 8),
        (permutes(6), 3 + 6 + 6 * 5),
        (residual(10), 1 + 10 * 5),
    ],
    ids=["siblings", "shared permutes", "residual chain"],
)
def test_sharing_is_seen_where_trees_do_not_see_it(problem: tuple[Options, list[int]], best: float) -> None:
    graph = built(problem)
    tree = picked(graph, trees(graph, graph.cost)[1])
    assert tree is not None
    quick, exact = heuristic(graph, landmarks(graph)), solve(graph)
    assert exact.pick.cost * graph.unit == pytest.approx(best)
    assert exact.gap == 0
    assert quick.cost == pytest.approx(exact.pick.cost)
    assert tree.cost > exact.pick.cost * 1.05


def test_quick_choices_are_near_the_cheapest() -> None:
    """On graphs like those of models; see bench/extraction.py for real ones."""
    for seed in range(6):
        graph = built(layers(8, 4, seed))
        exact = solve(graph)
        quick = heuristic(graph, landmarks(graph))
        assert exact.gap <= 0.01, seed
        assert quick.cost <= exact.pick.cost * 1.02, seed


def test_costs_do_not_depend_on_numbers_or_order() -> None:
    """Other numbers of the buffers and another order of their options give the same cost and bound."""
    for seed in range(30):
        options, roots = layers(3, 3, seed)
        owners = sorted(options)
        draw = random.Random(seed)
        number = dict(zip(owners, draw.sample(range(1000), len(owners)), strict=True)) | {-1: -1}
        other: Options = {}
        for owner in draw.sample(owners, len(owners)):
            found = [Option(o.cost, tuple(number[n] for n in o.needs), o.text) for o in options[owner]]
            other[number[owner]] = draw.sample(found, len(found))
        costs = []
        for wanted in ((options, roots), (options, roots), (other, [number[r] for r in roots])):
            graph = built(wanted)
            found = solve(graph)
            costs.append((found.pick.cost, found.bound))
        assert costs[0] == costs[1]
        assert costs[0] == pytest.approx(costs[2], rel=1e-6)


def test_the_same_graph_gives_the_same_steps() -> None:
    graphs = [built(layers(6, 4, 3)) for _ in range(2)]
    first, second = (solve(graph, pivots=300) for graph in graphs)
    assert first.pick == second.pick
    assert (first.bound, first.nodes, first.pivots) == (second.bound, second.nodes, second.pivots)


def test_what_can_not_be_filled_has_no_graph() -> None:
    endless: Options = {1: [Option(1, (2,), "1")], 2: [Option(1, (1,), "2")]}
    assert graph_of(endless, [1]) is None
    assert graph_of({1: [Option(float("inf"), (), "1")]}, [1]) is None
    assert built(({**endless, 3: [Option(1, (), "3"), Option(0, (1,), "of 1")]}, [3])).cost[:-1] == pytest.approx([512])


def test_outputs_that_are_there_already_cost_nothing() -> None:
    graph = built(({1: [Option(1, (7,), "1")]}, [7]))
    assert solve(graph).pick.cost == 0
