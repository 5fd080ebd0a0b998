"""Drawings of graphs: nothing overlaps, everything flows down."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from egraph_opt.runtime.graph_layout import HEIGHT, layout


def drawn(number: int, seed: int) -> tuple[dict[str, float], list[tuple[str, str]]]:
    """A random graph: mostly a chain, with branches and long edges, as models have them."""
    generator = random.Random(seed)
    widths = {f"n{i}": generator.uniform(80, 230) for i in range(number)}
    edges = [(f"n{max(0, i - generator.choice([1, 1, 1, 2, 3, 9]))}", f"n{i}") for i in range(1, number)]
    edges += [(f"n{generator.randrange(i)}", f"n{i}") for i in range(1, number) if generator.random() < 0.3]
    return widths, edges


@pytest.mark.parametrize(("number", "seed"), [(1, 0), (5, 1), (30, 2), (60, 3), (200, 4)])
def test_no_node_covers_another_and_edges_run_down(number: int, seed: int) -> None:
    widths, edges = drawn(number, seed)
    found = layout(widths, edges)
    assert set(found.centres) == set(widths)
    for node, (x, y) in found.centres.items():
        assert widths[node] / 2 - 1e-6 <= x <= found.width - widths[node] / 2 + 1e-6
        assert HEIGHT / 2 <= y <= found.height
        for other, (x2, y2) in found.centres.items():
            if node < other and y == y2:
                assert abs(x - x2) >= (widths[node] + widths[other]) / 2, f"{node} and {other} overlap"
    for a, b in edges:
        route = found.routes[a, b]
        assert route[0] == found.centres[a]
        assert route[-1] == found.centres[b]
        assert all(one[1] < two[1] for one, two in pairwise(route))
        for x, y in route[1:-1]:
            for node, (x2, y2) in found.centres.items():
                assert y != y2 or abs(x - x2) > widths[node] / 2, f"the edge from {a} to {b} crosses {node}"


def test_the_same_graph_is_drawn_the_same() -> None:
    assert layout(*drawn(40, 7)) == layout(*drawn(40, 7))


def test_a_chain_is_straight() -> None:
    found = layout({"a": 90, "b": 200, "c": 90}, [("a", "b"), ("b", "c")])
    assert {x for x, _ in found.centres.values()} == {100.0}


def test_nothing_is_drawn_for_nothing() -> None:
    assert layout({}, []).centres == {}
