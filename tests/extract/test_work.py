"""Work grows with a model, not with its square: counted steps, since times depend on the machine."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise
from math import inf
from typing import Any

import pytest

from bench.extraction import layers
from egraph_opt.egraph.snapshot import ENode
from egraph_opt.errors import LimitReached
from egraph_opt.extract.alternatives import Alternative, Body, Extraction, Problem
from egraph_opt.extract.choose import choose, choose_exactly
from egraph_opt.extract.exact import solve
from egraph_opt.extract.forms import Forms
from egraph_opt.extract.graph import Graph, Option, graph_of, trees
from egraph_opt.extract.improve import _State, heuristic, picked
from egraph_opt.extract.landmarks import landmarks
from egraph_opt.extract.roofline import Device
from egraph_opt.extract.search import Search, search
from egraph_opt.ir import definitions
from egraph_opt.ir.program import Program
from egraph_opt.ir.terms import Apply, Call, Read, Source, add
from tests.extract.and_or import Options, residual
from tests.extract.test_search import Device as Machine
from tests.rules import operators


class Counted(list[Any]):
    """A list that counts how often one of its elements is looked up."""

    def __init__(self, elements: Iterable[Any]) -> None:
        super().__init__(elements)
        self.count = 0

    def __getitem__(self, index: Any) -> Any:
        self.count += 1
        return super().__getitem__(index)


def counted(graph: Graph, work: Callable[[Graph], object]) -> int:
    """Look-ups of neighbours."""
    watched = replace(graph, needs=Counted(graph.needs), by=Counted(graph.by), users=Counted(graph.users))  # type: ignore[arg-type]
    work(watched)
    return sum(found.count for found in (watched.needs, watched.by, watched.users))  # type: ignore[attr-defined]


def grows(sizes: Iterable[int], work: Callable[[int], int]) -> list[float]:
    counts = [work(size) for size in sizes]
    return [after / before for before, after in pairwise(counts)]


def built(size: int) -> Graph:
    graph = graph_of(*residual(size))
    assert graph is not None
    return graph


def layered(size: int) -> Graph:
    graph = graph_of(*layers(size, 4, 1))
    assert graph is not None
    return graph


@pytest.mark.parametrize("model", [built, layered])
def test_exchanges_look_at_what_changes_only(model: Callable[[int], Graph], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a change saves is found from what it changes, not from all that lies below it."""
    saving = _State.saving
    spent = 0

    def watched(self: _State, *arguments: Any) -> float:
        nonlocal spent
        before = self.graph.needs.count
        result = saving(self, *arguments)
        spent += self.graph.needs.count - before
        return result

    monkeypatch.setattr(_State, "saving", watched)

    def work(size: int) -> int:
        nonlocal spent
        spent = 0
        graph = model(size)
        found = landmarks(graph, work=100)
        counted(graph, lambda graph: heuristic(graph, found))
        return spent

    factors = grows([80, 160, 320], work)
    assert max(factors) < 2.6, factors


@pytest.mark.parametrize("model", [built, layered])
def test_landmarks_do_not_begin_anew(model: Callable[[int], Graph]) -> None:
    """From a size on at which heights are not found anew for every landmark."""
    factors = grows([640, 1280], lambda size: counted(model(size), landmarks))
    assert max(factors) < 2.6, factors


@pytest.mark.parametrize("blocks", [20, 100, 1100])
def test_deep_graphs_are_chosen_from_as_well_as_shallow_ones(blocks: int) -> None:
    """The tree below the goal costs 2 ** blocks and more: what floats cannot tell apart, or even hold."""
    options: Options = {0: [Option(1, (), "input")]}
    for block in range(blocks):
        before, turned, inner, after = (3 * block + i for i in range(4))
        options[turned] = [Option(1, (before,), f"turned {block}")]
        options[inner] = [Option(3, (before,), f"plain {block}"), Option(1, (turned,), f"of turned {block}")]
        options[after] = [Option(1, (before, inner), f"add {block}")]
    graph = graph_of(options, [3 * blocks])
    assert graph is not None
    cost, ways = trees(graph, graph.cost)
    found = picked(graph, ways)
    assert found is not None
    assert found.cost * graph.unit == pytest.approx(1 + 3 * blocks)
    assert (cost[graph.goal] == inf) == (blocks > 1000)
    assert solve(graph).gap == 0


def residual_network(blocks: int) -> Program:
    """Blocks of a convolution that is added to its input, each with its own weights."""
    shape, terms, weights = (1, 4, 6, 6), [], []
    before = Source("x", shape)
    inputs = before
    for i in range(blocks):
        w = Source(f"w{i}", (4, 4, 3, 3), True)
        c = definitions.convolution(Read(before), Read(w), strides=(1, 1), dilations=(1, 1), pads=(1, 1, 1, 1))
        y = Apply("relu", (add(Read(Source(f"c{i}", shape)), Read(before)),))
        terms += [(f"c{i}", c), (f"y{i}", y)]
        weights.append(w)
        before = Source(f"y{i}", shape)
    return Program((inputs, *weights), tuple(terms), (f"y{blocks - 1}",))


def test_bodies_are_combined_once() -> None:
    def bodies(blocks: int) -> int:
        program = residual_network(blocks)
        extraction = Extraction(operators.saturated(program)[0], Device())
        made: list[tuple[object, ...]] = []
        body = extraction._body
        extraction._body = lambda owner, node, parts, *rest: (  # type: ignore[method-assign]
            made.append((id(node), parts)) or body(owner, node, parts, *rest)
        )
        extraction.problem(program.outputs)
        assert len(made) < 1.5 * len(set(made))
        return len(made)

    factors = grows([8, 16], bodies)
    assert max(factors) < 2.6, factors


def test_kernels_of_one_form_share_a_text_and_others_do_not() -> None:
    program = residual_network(3)
    problem = Extraction(operators.saturated(program)[0], Device()).problem(program.outputs)
    seen = 0
    for found in problem.alternatives.values():
        for alternative in found:
            plain = Alternative(alternative.step, alternative.needs, alternative.estimate)
            assert alternative.text == plain.text
            seen += 1
    assert seen > 50


def test_kernels_that_read_one_buffer_twice_are_of_another_text() -> None:
    def body(constructor: str, arguments: tuple[str | int, ...], parts: tuple[Body, ...] = ()) -> Body:
        return Body(ENode(constructor, arguments), parts, 1.0, frozenset())

    def text(name: str, of: Body) -> str:
        return forms.text(of, Alternative(Call(name, "", (), (2,)), (), 0.0))

    forms = Forms({1: (2,), 2: (2,), 3: (3,)})
    one, two, other = (body("Read", (buffer,)) for buffer in (1, 2, 3))
    first = text("first", body("Mul", (8, 9), (one, two)))
    assert text("renamed", body("Mul", (9, 8), (two, one))) == first
    assert text("squared", body("Mul", (8, 8), (one, one))) != first
    assert text("longer", body("Mul", (8, 7), (one, other))) != first
    assert text("summed", body("Add", (8, 9), (one, two))) != first
    assert text("maximum", body("Reduce", ("max", 8, 1), (one,))) != text(
        "pool", body("Reduce", ("pool", 8, 1), (one,))
    )


def problem_of(blocks: int) -> Problem:
    options, roots = residual(blocks)
    found = {
        owner: [
            Alternative(Call(o.text, "", tuple(Source(f"#{n}", (1,)) for n in o.needs), (1,)), o.needs, o.cost)
            for o in ways
        ]
        for owner, ways in options.items()
    }
    return Problem(found, {"y": roots[0]}, {}, {})


@pytest.mark.parametrize("choosing", [choose, choose_exactly])
def test_choosing_ends_at_a_limit(choosing: Any) -> None:
    problem = problem_of(30)
    for allowed in (0, 5, 40):
        calls = 0

        def check(allowed: int = allowed) -> None:
            nonlocal calls
            calls += 1
            if calls > allowed:
                raise LimitReached("the time limit was reached")

        with pytest.raises(LimitReached):
            choosing(problem, lambda a: a.estimate, check=check)
        assert calls == allowed + 1


def test_a_search_that_reaches_a_limit_says_so() -> None:
    def check() -> None:
        raise LimitReached("the time limit was reached")

    machine = Machine(*residual(4), 0)
    item = Search(machine.problem, Program((), (), ()), "s")
    search([item], machine.profile, None, rounds=5, deadline=float("inf"), check=check)
    assert item.outcome is None
    assert item.failure == "the time limit was reached"
