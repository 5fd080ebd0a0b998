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

import numpy as np

from egraph_opt.extract.graph import Graph

# Costs below this (of about a thousand for the goal) are zero.
ZERO = 1e-9
# Landmarks at the most; and between two measurements of all heights one is found per so many ways.
WORK, STALE = 20_000, 600


@dataclass(frozen=True)
class Landmarks:
    """``cuts`` are sets of ways; every choice costs at least ``bound``, and with a way ``bound`` + ``least`` of it.

    ``rest`` is what the bound leaves of the cost of each way.
    """

    bound: float
    cuts: tuple[tuple[int, ...], ...]
    least: list[float]
    rest: list[float]


def landmarks(graph: Graph, *, work: int = WORK, until: float = inf) -> Landmarks:
    """Landmarks until the goal can be had from what costs are left at no cost.

    It ends earlier after ``work`` landmarks, or at ``until`` (seconds of processor time).
    """
    return _Cutter(graph).run(work, until)


class _Cutter:
    """``cost`` is what is left of each way's, ``height`` of a node the cheapest way's cost after its costliest need.

    ``last`` is that need of every way, ``ready`` its height. Any need would do for a valid landmark, so the heights are
    found anew only now and then. ``zero`` of a node lists its ways without cost.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.cost = [cost if cost > ZERO else 0.0 for cost in graph.cost]
        self.zero: list[list[int]] = [[way for way in found if self.cost[way] <= ZERO] for found in graph.by]
        self.owner = np.array(graph.owner)
        width = max((len(needs) for needs in graph.needs), default=0) + 1
        # The node after the last stands for no need.
        self.padded = np.full((len(graph.owner), width), graph.nodes)
        for way, needs in enumerate(graph.needs):
            self.padded[way, : len(needs)] = needs
        self._measure()

    def _measure(self) -> None:
        """Find the heights."""
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

    def run(self, work: int, until: float) -> Landmarks:
        graph, cost = self.graph, self.cost
        bound = 0.0
        cuts: list[tuple[int, ...]] = []
        fresh, often = 0, max(1, len(cost) // STALE)
        while len(cuts) < work and time.process_time() < until:
            cut = self._cut()
            least = min([cost[way] for way in cut])
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
                if cost[way] <= ZERO:
                    cost[way] = 0.0
                    self.zero[graph.owner[way]].append(way)
        self._measure()
        return Landmarks(bound, tuple(cuts), [left + ready for left, ready in zip(cost, self.ready, strict=True)], cost)

    def _cut(self) -> list[int]:
        """The ways that enter the zone from which the goal costs nothing more, along the costliest needs."""
        zone = np.zeros(self.graph.nodes + 1, bool)
        zone[self.graph.goal] = True
        last, zero = self.last, self.zero
        seen = bytearray(self.graph.nodes)
        seen[self.graph.goal] = 1
        stack = [self.graph.goal]
        found = [self.graph.goal]
        while stack:
            for way in zero[stack.pop()]:
                need = last[way]
                if need >= 0 and not seen[need]:
                    seen[need] = 1
                    stack.append(need)
                    found.append(need)
        zone[found] = True
        enters = np.flatnonzero(zone[self.owner])
        result: list[int] = enters[~zone[self.padded[enters]].any(axis=1)].tolist()
        return result
