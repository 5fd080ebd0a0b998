"""Choosing one alternative per needed buffer so that the whole costs least, shared buffers paid once.

The exact optimum of such a DAG choice is NP-hard: ``choose`` finds a good one within milliseconds, ``choose_exactly``
the best one with a proof, or a good one with a bound. Ties go by the text of the step, so results do not depend on
luck. Costs are not negative; an alternative of infinite cost is never chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from egraph_opt.egraph.snapshot import no_collection
from egraph_opt.extract.alternatives import Alternative, Problem
from egraph_opt.extract.exact import LARGE, PIVOTS, PROVED, SECONDS, solve
from egraph_opt.extract.graph import Graph, Option, graph_of, trees
from egraph_opt.extract.improve import BROAD, QUICK, Pick, heuristic, improved, picked
from egraph_opt.extract.landmarks import landmarks
from egraph_opt.limits import Check, unlimited

Cost = Callable[[Alternative], float]
# Landmarks for a quick choice.
QUICK_WORK = 2_000


@dataclass(frozen=True)
class Choice:
    """The chosen alternative of every needed buffer in execution order, and the sum of their costs in seconds.

    No choice costs less than ``bound``, where one is known.
    """

    steps: tuple[tuple[int, Alternative], ...]
    cost: float
    bound: float = 0.0

    @property
    def gap(self) -> float:
        """How much cheaper the cheapest choice may be, as a share of this one's cost; 0 for a proof."""
        return max(0.0, 1 - self.bound / self.cost) if self.cost > 0 else 0.0


@no_collection()
def choose(problem: Problem, cost: Cost, start: Cost | None = None, *, check: Check = unlimited) -> Choice | None:
    """A cheap choice found quickly, or None when some output cannot be computed.

    The search starts, among others, from the best tree under ``start``. ``check`` is called again and again and may
    raise to end it.
    """
    graph = _graph(problem, cost)
    if graph is None:
        return None
    starts = [] if start is None else [trees(graph, _costs(graph, problem, start))[1]]
    found = landmarks(graph, work=QUICK_WORK, check=check)
    shares = BROAD if len(graph.owner) <= LARGE else QUICK
    return _choice(problem, cost, graph, heuristic(graph, found, starts, shares=shares, check=check))


@no_collection()
def choose_exactly(
    problem: Problem,
    cost: Cost,
    *,
    starts: Sequence[Choice] = (),
    gap: float = PROVED,
    pivots: int = PIVOTS,
    seconds: float = SECONDS,
    check: Check = unlimited,
) -> Choice | None:
    """The cheapest choice with its bound, or None when some output cannot be computed.

    The search ends when the bound is within ``gap`` (a share of the cost), or after ``pivots`` of linear programs; the
    result depends on the machine only where it takes more than ``seconds``. ``starts`` are choices to begin with.
    ``check`` is called again and again and may raise to end it.
    """
    graph = _graph(problem, cost)
    if graph is None:
        return None
    ways = [_ways(problem, graph, start) for start in starts]
    found = solve(graph, starts=ways, gap=gap, pivots=pivots, seconds=seconds, check=check)
    return _choice(problem, cost, graph, found.pick, found.bound)


def gathered(problem: Problem, choice: Choice, cost: Cost) -> Choice:
    """The choice after exchanges of one and of several alternatives at once, where these make it cheaper.

    Operators that share an input become slices of one operator in this way, which no single exchange finds: the first
    of them would have to pay for the whole.
    """
    graph = _graph(problem, cost)
    start = picked(graph, _ways(problem, graph, choice)) if graph is not None else None
    if graph is None or start is None:
        return choice
    found = _choice(problem, cost, graph, improved(graph, start))
    return found if found.cost < choice.cost else choice


def totals(problem: Problem, cost: Cost) -> dict[int, float]:
    """What filling each buffer costs with all it needs, nothing shared."""
    best: dict[int, float] = {}
    values = {owner: [(cost(a), a.needs) for a in found] for owner, found in problem.alternatives.items()}
    users: dict[int, set[int]] = {}
    for owner, ways in values.items():
        for _, needs in ways:
            for need in needs:
                users.setdefault(need, set()).add(owner)
    pending = dict.fromkeys(sorted(values))
    while pending:
        owner = next(iter(pending))
        del pending[owner]
        for own, needs in values[owner]:
            total = own + sum(best.get(need, inf) for need in needs if need in problem.alternatives)
            if total < best.get(owner, inf) * (1 - 1e-9):
                best[owner] = total
                pending.update(dict.fromkeys(sorted(users.get(owner, ()))))
    return best


def _graph(problem: Problem, cost: Cost) -> Graph | None:
    options = {o: [Option(cost(a), a.needs, a.text) for a in found] for o, found in problem.alternatives.items()}
    return graph_of(options, sorted(problem.roots.values()))


def _costs(graph: Graph, problem: Problem, cost: Cost) -> list[float]:
    return [0.0 if origin is None else cost(problem.alternatives[origin[0]][origin[1]]) for origin in graph.origin]


def _ways(problem: Problem, graph: Graph, choice: Choice) -> list[int]:
    """The ways of a choice; where the graph has left one out for a better one, the first that needs no more."""
    ways = [found[0] if len(found) == 1 else -1 for found in graph.by]
    nodes = _nodes(graph)
    for owner, alternative in choice.steps:
        if owner in nodes:
            found = graph.by[nodes[owner]]
            needs = {nodes.get(need, -1) for need in alternative.needs if need in problem.alternatives}
            same = [way for way in found if _alternative(problem, graph, way) is alternative]
            less = [way for way in found if needs.issuperset(graph.needs[way])]
            ways[nodes[owner]] = next(iter([*same, *less]), -1)
    return ways


def _nodes(graph: Graph) -> Mapping[int, int]:
    return {origin[0]: node for node, origin in zip(graph.owner, graph.origin, strict=True) if origin is not None}


def _alternative(problem: Problem, graph: Graph, way: int) -> Alternative | None:
    origin = graph.origin[way]
    return None if origin is None else problem.alternatives[origin[0]][origin[1]]


def _choice(problem: Problem, cost: Cost, graph: Graph, pick: Pick, bound: float = 0.0) -> Choice:
    steps = []
    for node in pick.order:
        origin = graph.origin[pick.ways[node]]
        if origin is not None:
            steps.append((origin[0], problem.alternatives[origin[0]][origin[1]]))
    total = sum(cost(alternative) for _, alternative in steps)
    return Choice(tuple(steps), total, total if bound >= pick.cost else bound * graph.unit)
