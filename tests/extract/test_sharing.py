"""What is shared is paid once: the hard cases of extraction, on which the cheapest trees are not the cheapest whole."""

from __future__ import annotations

import pytest

from bench.extraction import graphs_of
from egraph_opt.extract.exact import solve
from egraph_opt.extract.graph import Graph, Option, graph_of, trees
from egraph_opt.extract.improve import heuristic
from egraph_opt.extract.landmarks import landmarks


def costs(graph: Graph) -> tuple[float, float, float]:
    """The cheapest trees with what they happen to share paid once, the quick choice, and the best one, proven."""
    ways = trees(graph, graph.cost)[1]
    order = graph.used(ways)
    assert order is not None
    found = solve(graph)
    assert found.gap == 0
    quick = heuristic(graph, landmarks(graph))
    return tuple(cost * graph.unit for cost in (graph.total(ways, order), quick.cost, found.pick.cost))  # type: ignore[return-value]


def graph(options: dict[int, list[tuple[float, tuple[int, ...]]]], *roots: int) -> Graph:
    texts = {o: [Option(c, n, f"{o}.{i}") for i, (c, n) in enumerate(found)] for o, found in options.items()}
    result = graph_of(texts, roots)
    assert result is not None
    return result


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_siblings_with_a_shared_input(count: int) -> None:
    """Each operator costs 3 of its own, or 1 as a slice of one operator that costs 4: a tree never pays for that."""
    joint = count
    options = {i: [(3.0, ()), (1.0, (joint,))] for i in range(count)} | {joint: [(4.0, ())]}
    tree, quick, best = costs(graph(options, *range(count)))
    assert tree == pytest.approx(3 * count)
    assert quick == best == pytest.approx(min(3 * count, 4 + count))
    assert best < tree or count == 2


@pytest.mark.parametrize("count", [3, 4, 7])
def test_a_shared_permutation(count: int) -> None:
    """Readers take 5 from the layout that is there, 3 from another one, into which the permutation takes 4."""
    x, turned = 0, 1
    options: dict[int, list[tuple[float, tuple[int, ...]]]] = {x: [(1.0, ())], turned: [(4.0, (x,))]}
    readers = range(2, 2 + count)
    options |= {i: [(5.0, (x,)), (3.0, (turned,))] for i in readers}
    tree, quick, best = costs(graph(options, *readers))
    assert tree == pytest.approx(1 + 5 * count)
    assert quick == best == pytest.approx(1 + 4 + 3 * count)
    assert best < tree


@pytest.mark.parametrize("layers", [2, 5, 20, 100])
def test_a_chain_of_residual_layers(layers: int) -> None:
    """A convolution (2) and the sum with what it read (1), or both as one kernel (5), which reads that once: as trees
    the first counts all that lies below twice, so it seems dearer from the second layer on."""
    options: dict[int, list[tuple[float, tuple[int, ...]]]] = {0: [(3.0, ())]}
    for layer in range(1, layers + 1):
        before, convolution, total = 2 * layer - 2, 2 * layer - 1, 2 * layer
        options[convolution] = [(2.0, (before,))]
        options[total] = [(1.0, (convolution, before)), (5.0, (before,))]
    tree, quick, best = costs(graph(options, 2 * layers))
    assert tree == pytest.approx(3 + 5 * layers)
    assert quick == best == pytest.approx(3 + 3 * layers)


@pytest.mark.parametrize("name", ["attention:2", "resnet18-b1"])
def test_models(name: str) -> None:
    """The same on real e-graphs: products of one input in several layers, a residual network."""
    for _, _, found, _ in graphs_of(name):
        tree, quick, best = costs(found)
        assert best < 0.95 * tree
        assert best <= quick <= tree
