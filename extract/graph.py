"""The AND-OR graph of an extraction in arrays, without what no cheapest choice can need.

Nodes are buffers, numbered from 0; the last one is the goal, whose only way needs all outputs. Ways are the steps that
fill them: ``owner``, ``needs`` and ``cost`` of each. A choice is one way per node, read for the nodes the goal needs.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import frexp, inf

# Costs are scaled so that the goal costs about this much: tolerances are absolute.
SCALE_EXPONENT = 10
# The smallest difference between two trees, as a share of the largest cost, and the bits of what is told as infinite.
_GRAIN, _LARGEST = 2.0**-60, 1000


@dataclass(frozen=True)
class Option:
    """One way to fill a buffer, as a caller gives it: ``text`` orders ways of equal cost."""

    cost: float
    needs: tuple[int, ...]
    text: str


@dataclass(frozen=True, eq=False)
class Graph:
    """See the module; ``origin`` tells the buffer and the number of the option each way was, None for the goal's.

    ``by`` lists the ways of every node, ``users`` the ways that need it. A cost of 1 is ``unit`` of the caller's.
    """

    nodes: int
    owner: list[int]
    needs: list[tuple[int, ...]]
    cost: list[float]
    origin: list[tuple[int, int] | None]
    by: list[list[int]]
    users: list[list[int]]
    unit: float

    @property
    def goal(self) -> int:
        """The last node."""
        return self.nodes - 1

    def used(self, pick: Sequence[int]) -> list[int] | None:
        """The nodes a choice fills, each after those it needs, the goal last; None when it is cyclic or incomplete.

        ``pick`` is the way of every node, -1 where it has none.
        """
        needs, order, state = self.needs, list[int](), bytearray(self.nodes)
        stack = [self.goal]
        while stack:
            node = stack[-1]
            if state[node]:
                stack.pop()
                if state[node] == 1:
                    state[node] = 2
                    order.append(node)
                continue
            if pick[node] < 0:
                return None
            state[node] = 1
            for need in needs[pick[node]]:
                if state[need] == 0:
                    stack.append(need)
                elif state[need] == 1:
                    return None
        return order

    def total(self, pick: Sequence[int], order: Iterable[int]) -> float:
        """What the ways of these nodes cost together."""
        return sum([self.cost[pick[node]] for node in order])

    def components(self) -> list[list[int]]:
        """Sets of two and more nodes that all need one another by some way, in ascending order."""
        below = [sorted({need for way in self.by[node] for need in self.needs[way]}) for node in range(self.nodes)]
        return sorted(sorted(found) for found in _components(below) if len(found) > 1)


def trees(graph: Graph, cost: Sequence[float]) -> tuple[list[float], list[int]]:
    """The cheapest tree under every node, nothing shared: its cost and the way it begins with.

    Infinity and -1 where there is none. The ways chosen form no cycle. What is shared again and again makes trees of
    a deep graph dearer than numbers of fixed precision can tell apart, so costs are counted in whole grains.
    """
    best, pick = [0] * graph.nodes, [-1] * graph.nodes
    left = [len(needs) for needs in graph.needs]
    grain = max((own for own in cost if own < inf), default=0.0) * _GRAIN or 1.0
    total = [-1 if own == inf else round(own / grain) for own in cost]
    heap = [(total[way], way) for way, needs in enumerate(graph.needs) if not needs and total[way] >= 0]
    heapq.heapify(heap)
    while heap:
        value, way = heapq.heappop(heap)
        node = graph.owner[way]
        if pick[node] >= 0:
            continue
        best[node], pick[node] = value, way
        for user in graph.users[node]:
            left[user] -= 1
            if total[user] >= 0:
                total[user] += value
                if not left[user] and pick[graph.owner[user]] < 0:
                    heapq.heappush(heap, (total[user], user))
    found = zip(best, pick, strict=True)
    return [v * grain if way >= 0 and v.bit_length() <= _LARGEST else inf for v, way in found], pick


def graph_of(options: Mapping[int, Sequence[Option]], roots: Sequence[int]) -> Graph | None:
    """The graph of what ``roots`` need, or None where they cannot be filled at a finite cost.

    Needs that are no buffers of ``options`` are there already. Left out are options of infinite cost, those that
    cannot be carried out, those that need what another one needs and more at no lower cost, and unused buffers. The
    order of options of the same buffer does not matter.
    """
    fillable = _fillable(options)
    goals = sorted({root for root in roots if root in options})
    if not fillable.issuperset(goals):
        return None
    numbers: dict[int, int] = {}
    kept: dict[int, list[tuple[float, tuple[int, ...], int]]] = {}
    pending = list(reversed(goals))
    while pending:
        owner = pending.pop()
        if owner not in kept:
            numbers[owner] = len(numbers)
            kept[owner] = _undominated(owner, options, fillable)
            pending += [need for _, needs, _ in reversed(kept[owner]) for need in reversed(needs)]
    ways = [
        (numbers[owner], tuple(numbers[need] for need in needs), cost, (owner, index))
        for owner, found in kept.items()
        for cost, needs, index in found
    ]
    owners = [node for node, _, _, _ in ways] + [len(numbers)]
    needs = [needs for _, needs, _, _ in ways] + [tuple(numbers[root] for root in goals)]
    cost = [cost for _, _, cost, _ in ways] + [0.0]
    rough = _linked(len(numbers) + 1, owners, needs, cost, [*(origin for _, _, _, origin in ways), None], 1.0)
    pick = trees(rough, cost)[1]
    total = rough.total(pick, rough.used(pick) or ())
    unit = 2.0 ** (frexp(total)[1] - SCALE_EXPONENT) if total > 0 else 1.0
    return replace(rough, cost=[c / unit for c in cost], unit=unit)


def restricted(graph: Graph, kept: Iterable[int]) -> tuple[Graph | None, list[int]]:
    """The graph of some of the ways only, as far as the goal can use them, and the number of each way in ``graph``.

    None where they do not fill the goal.
    """
    allowed = bytearray(len(graph.owner))
    for way in kept:
        allowed[way] = 1
    pick = trees(graph, [0.0 if allowed[way] else inf for way in range(len(graph.owner))])[1]
    if pick[graph.goal] < 0:
        return None, []
    useful = [
        [w for w in graph.by[n] if allowed[w] and all(pick[m] >= 0 for m in graph.needs[w])] for n in range(graph.nodes)
    ]
    reached = bytearray(graph.nodes)
    reached[graph.goal] = 1
    pending = [graph.goal]
    while pending:
        for way in useful[pending.pop()]:
            for need in graph.needs[way]:
                if not reached[need]:
                    reached[need] = 1
                    pending.append(need)
    numbers = [way for way, node in enumerate(graph.owner) if reached[node] and way in useful[node]]
    nodes = {node: number for number, node in enumerate(n for n in range(graph.nodes) if reached[n])}
    small = _linked(
        len(nodes),
        [nodes[graph.owner[way]] for way in numbers],
        [tuple(nodes[need] for need in graph.needs[way]) for way in numbers],
        [graph.cost[way] for way in numbers],
        [graph.origin[way] for way in numbers],
        graph.unit,
    )
    return small, numbers


def _linked(
    nodes: int,
    owner: list[int],
    needs: list[tuple[int, ...]],
    cost: list[float],
    origin: list[tuple[int, int] | None],
    unit: float,
) -> Graph:
    by: list[list[int]] = [[] for _ in range(nodes)]
    users: list[list[int]] = [[] for _ in range(nodes)]
    for way, node in enumerate(owner):
        by[node].append(way)
        for need in needs[way]:
            users[need].append(way)
    return Graph(nodes, owner, needs, cost, origin, by, users, unit)


def _fillable(options: Mapping[int, Sequence[Option]]) -> set[int]:
    """The buffers that can be filled at a finite cost without needing themselves."""
    waiting: dict[int, list[tuple[int, list[int]]]] = {}
    found: set[int] = set()
    pending: list[int] = []
    for owner, ways in options.items():
        for way in ways:
            needs = {need for need in way.needs if need in options}
            if way.cost == inf or owner in needs:
                continue
            left = [len(needs)]
            for need in needs:
                waiting.setdefault(need, []).append((owner, left))
            if not needs:
                pending.append(owner)
    while pending:
        owner = pending.pop()
        if owner not in found:
            found.add(owner)
            for user, left in waiting.get(owner, ()):
                left[0] -= 1
                if not left[0]:
                    pending.append(user)
    return found


def _undominated(
    owner: int, options: Mapping[int, Sequence[Option]], fillable: set[int]
) -> list[tuple[float, tuple[int, ...], int]]:
    kept: list[tuple[float, tuple[int, ...], int]] = []
    sets: list[set[int]] = []
    ranked = sorted(enumerate(options[owner]), key=lambda item: (item[1].cost, len(item[1].needs), item[1].text))
    for index, way in ranked:
        needs = tuple(dict.fromkeys(need for need in way.needs if need in options))
        if way.cost == inf or owner in needs or not fillable.issuperset(needs):
            continue
        if not any(other.issubset(needs) for other in sets):
            kept.append((way.cost, needs, index))
            sets.append(set(needs))
    return kept


def _components(below: Sequence[Sequence[int]]) -> list[list[int]]:
    """Strongly connected components (Tarjan, 1972), without recursion."""
    index, low = [-1] * len(below), [0] * len(below)
    path: list[int] = []
    found: list[list[int]] = []
    on_path = bytearray(len(below))
    count = 0
    for start in range(len(below)):
        if index[start] >= 0:
            continue
        work = [(start, 0)]
        while work:
            node, position = work.pop()
            if position == 0:
                index[node] = low[node] = count
                count += 1
                path.append(node)
                on_path[node] = 1
            if position > 0:
                low[node] = min(low[node], low[below[node][position - 1]])
            advanced = False
            for step in range(position, len(below[node])):
                after = below[node][step]
                if index[after] < 0:
                    work += [(node, step + 1), (after, 0)]
                    advanced = True
                    break
                if on_path[after]:
                    low[node] = min(low[node], index[after])
            if advanced:
                continue
            if low[node] == index[node]:
                component = []
                while True:
                    member = path.pop()
                    on_path[member] = 0
                    component.append(member)
                    if member == node:
                        break
                found.append(component)
    return found
