"""The linear relaxation of an extraction, tightened by the cuts it violates.

A column per way (taken) and per node (filled), both between 0 and 1. The ways of a node add up to it; what the ways of
one node take of another is at most that one; the goal is 1. That alone lets a cycle fill itself, and flow split in two
count as two: so for a set of nodes and one node of it, the ways of the set that need nothing of the set are at least
that node (a loop formula of the set, in answer set programming; a directed cut, for Steiner trees). Violated ones are
found as minimum cuts of the graph in which every way keeps the need that is supported least.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import inf
from typing import Any

import numpy as np

from egraph_opt.errors import EgraphOptError
from egraph_opt.extract.graph import Graph
from egraph_opt.limits import Check, unlimited

# What is less is taken for zero, in shares of a way; a cut must be violated by more than the second.
ZERO, VIOLATED = 1e-6, 1e-3
# Of a component of up to so many nodes the formulas of all sets go into the relaxation from the start.
LOOP = 4
# Cuts found in one round, disjoint ones for one node, and nodes looked at per round.
CUTS, NESTED = 400, 3


@dataclass(frozen=True)
class Solution:
    """The optimum of the relaxation: its cost, the share taken of every way and filled of every node, and by how much
    the cost rises at least with each way, or node, that is at 0 (negative: without one that is at 1).
    """

    cost: float
    ways: list[float]
    nodes: list[float]
    reduced: list[float]


class Relaxation:
    """The relaxation of one graph in a linear-program solver that keeps its basis from one solution to the next.

    ``check`` is called while cuts are looked for, and may raise to end it.
    """

    def __init__(self, graph: Graph, cuts: Iterable[Sequence[int]], check: Check = unlimited) -> None:
        self.check = check
        self.graph = graph
        self.ways = len(graph.owner)
        self.pivots = 0
        self._counts = [len(needs) for needs in graph.needs]
        self._ground = [way for way, needs in enumerate(graph.needs) if not needs]
        self._known: set[tuple[int, tuple[int, ...]]] = set()
        self._solver = self._build([*self._structure(), *self._loops(), *((1.0, inf, cut, ()) for cut in cuts)])

    def _structure(self) -> list[tuple[float, float, Sequence[int], Sequence[int]]]:
        """Rows as (lowest, highest, columns that count, columns that count negative)."""
        graph = self.graph
        rows: list[tuple[float, float, Sequence[int], Sequence[int]]] = []
        for node in range(graph.nodes):
            rows.append((0.0, 0.0, graph.by[node], (self.ways + node,)))
            readers: dict[int, list[int]] = {}
            for way in graph.by[node]:
                for need in graph.needs[way]:
                    readers.setdefault(need, []).append(way)
            rows += [(-inf, 0.0, found, (self.ways + need,)) for need, found in readers.items()]
        return rows

    def _loops(self) -> list[tuple[float, float, Sequence[int], Sequence[int]]]:
        rows: list[tuple[float, float, Sequence[int], Sequence[int]]] = []
        for component in self.graph.components():
            sizes = range(2, len(component) + 1) if len(component) <= LOOP else (2, len(component))
            for size in sizes:
                for nodes in combinations(component, size):
                    if size == 2 and not self._mutual(*nodes):
                        continue
                    cut = self._entering(frozenset(nodes))
                    rows += [(0.0, inf, cut, (self.ways + node,)) for node in nodes]
        return rows

    def _mutual(self, one: int, other: int) -> bool:
        return any(other in self.graph.needs[way] for way in self.graph.by[one]) and any(
            one in self.graph.needs[way] for way in self.graph.by[other]
        )

    def _entering(self, nodes: frozenset[int]) -> list[int]:
        return [way for node in sorted(nodes) for way in self.graph.by[node] if nodes.isdisjoint(self.graph.needs[way])]

    def _build(self, rows: Sequence[tuple[float, float, Sequence[int], Sequence[int]]]) -> Any:
        import highspy

        columns = self.ways + self.graph.nodes
        program = highspy.HighsLp()
        program.num_col_, program.num_row_ = columns, len(rows)
        program.col_cost_ = np.array(self.graph.cost + [0.0] * self.graph.nodes)
        lowest = np.zeros(columns)
        lowest[self.ways + self.graph.goal] = 1.0
        program.col_lower_, program.col_upper_ = lowest, np.ones(columns)
        program.row_lower_ = np.array([row[0] for row in rows])
        program.row_upper_ = np.array([row[1] for row in rows])
        starts = np.cumsum([0, *(len(row[2]) + len(row[3]) for row in rows)])
        program.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        program.a_matrix_.start_ = starts.astype(np.int32)
        program.a_matrix_.index_ = np.array([column for row in rows for column in (*row[2], *row[3])], np.int32)
        signs = [sign for row in rows for sign in [1.0] * len(row[2]) + [-1.0] * len(row[3])]
        program.a_matrix_.value_ = np.array(signs)
        solver = highspy.Highs()
        for name, value in (("output_flag", False), ("threads", 1), ("random_seed", 0), ("parallel", "off")):
            solver.setOptionValue(name, value)
        solver.passModel(program)
        return solver

    def fix(self, columns: Iterable[int], value: float) -> None:
        """Hold columns (ways, then nodes) at a value."""
        for column in columns:
            self._solver.changeColBounds(column, value, value)

    def release(self, columns: Iterable[int]) -> None:
        """Let columns be anything between 0 and 1 again."""
        for column in columns:
            self._solver.changeColBounds(column, 0.0, 1.0)

    def solve(self, pivots: int, seconds: float) -> Solution | None:
        """The optimum, None when there is no solution.

        Raises EgraphOptError where more than ``pivots`` or ``seconds`` are needed.
        """
        import highspy

        solver = self._solver
        solver.setOptionValue("simplex_iteration_limit", max(1, pivots))
        solver.setOptionValue("time_limit", solver.getRunTime() + seconds)
        solver.run()
        information = solver.getInfo()
        self.pivots += max(0, information.simplex_iteration_count)
        status = solver.getModelStatus()
        if status == highspy.HighsModelStatus.kInfeasible:
            return None
        if status != highspy.HighsModelStatus.kOptimal:
            raise EgraphOptError(f"the linear program was not solved: {solver.modelStatusToString(status)}")
        found = solver.getSolution()
        values, reduced = list(found.col_value), list(found.col_dual)
        return Solution(information.objective_function_value, values[: self.ways], values[self.ways :], reduced)

    def tighten(self, solution: Solution) -> int:
        """Add cuts that a solution violates; how many."""
        found = self._violated(solution)
        for node, cut in found:
            signs = [1.0] * len(cut)
            if node == self.graph.goal:
                self._solver.addRow(1.0, inf, len(cut), np.array(cut, np.int32), np.array(signs))
            else:
                columns = np.array([*cut, self.ways + node], np.int32)
                self._solver.addRow(0.0, inf, len(columns), columns, np.array([*signs, -1.0]))
        return len(found)

    def _violated(self, solution: Solution) -> list[tuple[int, tuple[int, ...]]]:
        """Nodes, each with the ways of a loop formula that it violates; the most filled nodes first."""
        graph, shares, filled = self.graph, solution.ways, solution.nodes
        support = self._support(shares, filled)
        source = graph.nodes
        capacity: dict[tuple[int, int], float] = {}
        for way, share in enumerate(shares):
            if share > ZERO:
                needs = graph.needs[way]
                arc = (min(needs, key=lambda need: (support[need], need)) if needs else source, graph.owner[way])
                capacity[arc] = capacity.get(arc, 0.0) + share
        beside: dict[int, list[int]] = {}
        for tail, head in capacity:
            beside.setdefault(head, []).append(tail)
            beside.setdefault(tail, []).append(head)
        found: list[tuple[int, tuple[int, ...]]] = []
        covered = [0] * (graph.nodes + 1)
        targets = sorted((n for n in range(graph.nodes) if filled[n] > 10 * VIOLATED), key=lambda n: (-filled[n], -n))
        for target in targets:
            if covered[target] >= NESTED or len(found) >= CUTS:
                continue
            self.check()
            flow = _Flow(capacity, beside, source, target)
            for _ in range(NESTED):
                side = flow.cut(filled[target] - VIOLATED)
                if side is None:
                    break
                cut = self._landmark(side)
                violation = filled[target] - sum([shares[way] for way in cut])
                if violation <= VIOLATED or (target, cut) in self._known:
                    break
                self._known.add((target, cut))
                found.append((target, cut))
                for node in side:
                    covered[node] += 1
                flow.saturate(side)
        return found

    def _support(self, shares: Sequence[float], filled: Sequence[float]) -> list[float]:
        """How far every node is filled from the ground up: the least fixed point, so a cycle supports nothing."""
        graph = self.graph
        support = [0.0] * graph.nodes
        pending = deque(node for node in range(graph.nodes) if filled[node] > ZERO)
        waiting = bytearray(graph.nodes)
        for node in pending:
            waiting[node] = 1
        while pending:
            node = pending.popleft()
            waiting[node] = 0
            total = 0.0
            for way in graph.by[node]:
                if shares[way] > ZERO:
                    total += min([shares[way], *[support[need] for need in graph.needs[way]]])
            total = min(total, filled[node])
            if total > support[node] + ZERO:
                support[node] = total
                for way in graph.users[node]:
                    owner = graph.owner[way]
                    if shares[way] > ZERO and not waiting[owner]:
                        waiting[owner] = 1
                        pending.append(owner)
        return support

    def _landmark(self, side: Iterable[int]) -> tuple[int, ...]:
        """The ways that enter a set of nodes first: their needs can all be filled without the set."""
        graph = self.graph
        inside = bytearray(graph.nodes)
        for node in side:
            inside[node] = 1
        left = self._counts.copy()
        reached = bytearray(graph.nodes)
        cut = []
        pending = self._ground.copy()
        while pending:
            way = pending.pop()
            node = graph.owner[way]
            if inside[node]:
                cut.append(way)
            elif not reached[node]:
                reached[node] = 1
                for user in graph.users[node]:
                    left[user] -= 1
                    if not left[user]:
                        pending.append(user)
        return tuple(sorted(cut))


class _Flow:
    """A flow from ``source`` to ``target`` along arcs of a capacity, found from the target backwards."""

    def __init__(
        self, capacity: dict[tuple[int, int], float], beside: dict[int, list[int]], source: int, target: int
    ) -> None:
        self.capacity = capacity
        self.beside = beside
        self.source = source
        self.target = target
        self.rest = dict(capacity)
        self.flow = 0.0

    def cut(self, wanted: float) -> list[int] | None:
        """The nodes from which the target can still be reached when the flow cannot reach ``wanted``, else None."""
        rest, beside = self.rest, self.beside
        while self.flow < wanted:
            after = {self.target: -1}
            pending = deque([self.target])
            while pending and self.source not in after:
                node = pending.popleft()
                for tail in beside.get(node, ()):
                    if tail not in after and rest.get((tail, node), 0.0) > ZERO / 10:
                        after[tail] = node
                        pending.append(tail)
            if self.source not in after:
                return list(after)
            path, tail = [], self.source
            while after[tail] >= 0:
                path.append((tail, after[tail]))
                tail = after[tail]
            amount = min(rest[arc] for arc in path)
            for tail, head in path:
                rest[tail, head] -= amount
                rest[head, tail] = rest.get((head, tail), 0.0) + amount
            self.flow += amount
        return None

    def saturate(self, side: Sequence[int]) -> None:
        """Open the arcs into a set of nodes, so that the next cut is another one."""
        inside = set(side)
        for arc in self.capacity:
            if arc[1] in inside and arc[0] not in inside:
                self.rest[arc] = self.rest.get(arc, 0.0) + 1.0
