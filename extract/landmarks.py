"""A lower bound of every choice from landmarks: sets of ways of which each choice contains one.

The bound is LM-cut (Helmert and Domshlak, "Landmarks, critical paths and abstractions: what's the difference anyway?",
2009): extraction with sharing is planning without deletes, buffers are its facts and ways its actions. Each landmark
cuts the goal off; its cheapest way's cost goes to the bound and is taken off all its ways, so costs are counted once.
"""

from __future__ import annotations

import heapq
import time
from dataclasses import dataclass
from math import inf

from egraph_opt.extract.graph import Graph
from egraph_opt.limits import Check, unlimited

# Costs below this (of about a thousand for the goal) are zero.
ZERO = 1e-9
# Landmarks at the most; and between two measurements of all heights one is found per so many ways.
WORK, STALE = 20_000, 600
# In large graphs measurements look at about so many ways per landmark: they would take most of the time otherwise.
MEASURED = 1_500


@dataclass(frozen=True)
class Landmarks:
    """``cuts`` are sets of ways; every choice costs at least ``bound``, and with a way ``bound`` + ``least`` of it.

    ``rest`` is what the bound leaves of the cost of each way.
    """

    bound: float
    cuts: tuple[tuple[int, ...], ...]
    least: list[float]
    rest: list[float]


def landmarks(graph: Graph, *, work: int = WORK, until: float = inf, check: Check = unlimited) -> Landmarks:
    """Landmarks until the goal can be had from what costs are left at no cost.

    It ends earlier after ``work`` landmarks, or at ``until`` (seconds of processor time). ``check`` is called again and
    again and may raise to end it.
    """
    return _Cutter(graph, check).run(work, until)


class _Cutter:
    """``cost`` is what is left of each way's, ``height`` of a node the cheapest way's cost after its costliest need.

    ``last`` is that need of every way, ``ready`` its height. Any need would do for a valid landmark, so the heights are
    found anew only now and then. In between costs only fall, so the zone from which the goal costs nothing more, along
    the costliest needs, only grows: ``zone`` tells its nodes, ``inside`` how many needs of every way are in it, and
    ``entering`` holds the ways that enter it.
    """

    def __init__(self, graph: Graph, check: Check = unlimited) -> None:
        self.graph = graph
        self.check = check
        self.cost = [cost if cost > ZERO else 0.0 for cost in graph.cost]
        self._measure()

    def _measure(self) -> None:
        """Find the heights, and the zone again."""
        graph, cost = self.graph, self.cost
        users, owner = graph.users, graph.owner
        self.height = height = [inf] * graph.nodes
        self.last = last = [-1] * len(owner)
        self.ready = ready = [0.0] * len(owner)
        left = [len(needs) for needs in graph.needs]
        heap = [(cost[way], owner[way]) for way, count in enumerate(left) if not count]
        for value, node in heap:
            height[node] = min(height[node], value)
        heapq.heapify(heap)
        done = bytearray(graph.nodes)
        while heap:
            value, node = heapq.heappop(heap)
            if done[node]:
                continue
            done[node] = 1
            for way in users[node]:
                left[way] -= 1
                if not left[way]:
                    last[way], ready[way] = node, value
                    total, above = value + cost[way], owner[way]
                    if total < height[above]:
                        height[above] = total
                        heapq.heappush(heap, (total, above))
        self.zone = bytearray(graph.nodes)
        self.inside = [0] * len(owner)
        self.entering = set[int]()
        self._enclose(graph.goal)

    def run(self, work: int, until: float) -> Landmarks:
        graph, cost = self.graph, self.cost
        bound = 0.0
        cuts: list[tuple[int, ...]] = []
        fresh, often = 0, max(1, len(cost) // STALE, len(cost) ** 2 // MEASURED**2)
        while len(cuts) < work and time.process_time() < until:
            self.check()
            cut = sorted(self.entering)
            least = min([cost[way] for way in cut], default=0.0)
            if least <= 0 or len(cuts) - fresh >= often:
                self._measure()
                if self.height[graph.goal] <= ZERO or (least <= 0 and fresh == len(cuts)):
                    break
                fresh = len(cuts)
                continue
            bound += least
            cuts.append(tuple(cut))
            for way in cut:
                cost[way] -= least
            for way in cut:
                if cost[way] <= ZERO:
                    cost[way] = 0.0
                    self._enclose(self.last[way])
        self._measure()
        return Landmarks(bound, tuple(cuts), [left + ready for left, ready in zip(cost, self.ready, strict=True)], cost)

    def _enclose(self, node: int) -> None:
        """Add a node to the zone, and those that its ways without cost need last."""
        graph, cost, zone, inside, entering = self.graph, self.cost, self.zone, self.inside, self.entering
        stack = [node]
        while stack:
            node = stack.pop()
            if node < 0 or zone[node]:
                continue
            zone[node] = 1
            for way in graph.users[node]:
                inside[way] += 1
                entering.discard(way)
            for way in graph.by[node]:
                if not inside[way]:
                    entering.add(way)
                if cost[way] <= ZERO:
                    stack.append(self.last[way])
