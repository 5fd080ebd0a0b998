"""A good choice on an AND-OR graph within milliseconds: a greedy start and exchanges that know what is shared.

A start takes the cheapest trees, or lets every node take the way whose whole closure, shared nodes counted once, costs
least so far; a third is led by landmarks. Then single nodes change their way, and groups of nodes change theirs
together to read a node that none reads yet: slices of one operator in the place of several operators pay only all at
once.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from egraph_opt.extract.graph import Graph, trees
from egraph_opt.extract.landmarks import Landmarks
from egraph_opt.limits import Check, unlimited

# An exchange must save this share of the whole; smaller differences are rounding.
LEAST = 1e-9
# Times a node's closure may be improved in the greedy start, and rounds of exchanges.
REVISIONS, ROUNDS = 4, 30
# Nodes emptied together at the most.
EMPTIED = 20
# Starts led by landmarks: the share of the true costs that counts beside what the landmarks leave of them, and whether
# the start goes by closures or by trees.
Shares = Sequence[tuple[float, bool]]
QUICK: Shares = ((0.01, False),)
BROAD: Shares = ((0.01, False), (0.01, True))
THOROUGH: Shares = ((0.003, False), (0.01, False), (0.01, True), (0.03, True), (0.1, False), (0.1, True))


@dataclass(frozen=True)
class Pick:
    """A choice: the way of every node (-1 where it has none), the filled nodes in execution order and their cost."""

    ways: tuple[int, ...]
    order: tuple[int, ...]
    cost: float


def picked(graph: Graph, ways: Sequence[int]) -> Pick | None:
    """The choice of these ways, or None when it is cyclic or incomplete."""
    order = graph.used(ways)
    return None if order is None else Pick(tuple(ways), tuple(order), graph.total(ways, order))


def heuristic(
    graph: Graph,
    found: Landmarks,
    starts: Iterable[Sequence[int]] = (),
    *,
    shares: Shares = QUICK,
    until: float = inf,
    check: Check = unlimited,
) -> Pick:
    """The best choice found by exchanges from several starts: the landmarks', and the best of the others.

    What the landmarks leave of the costs leads to nodes that many will share: their cost is paid for already. For each
    of ``shares`` there is a start, up to ``until`` (seconds of processor time); ``starts``, ways of every node (-1 for
    none), are tried as well. ``check`` is called again and again and may raise to end it.
    """
    tree = trees(graph, graph.cost)[1]
    plain = [pick for ways in (tree, greedy(graph, graph.cost), *starts) if (pick := picked(graph, ways)) is not None]
    first = improved(graph, min(plain, key=_cost), until, check)
    if found.bound >= first.cost * (1 - LEAST):
        return first
    return min([first, *guided(graph, found.rest, shares, until, check)], key=_cost)


def guided(
    graph: Graph, rest: Sequence[float], shares: Shares, until: float = inf, check: Check = unlimited
) -> list[Pick]:
    """Choices of what is cheap by ``rest`` with shares of the true costs added, improved."""
    result = []
    for share, by_closure in shares:
        if time.process_time() > until:
            break
        cost = [left + share * own for left, own in zip(rest, graph.cost, strict=True)]
        pick = picked(graph, greedy(graph, cost) if by_closure else trees(graph, cost)[1])
        if pick is not None:
            result.append(improved(graph, pick, until, check))
    return result


def _cost(pick: Pick) -> float:
    return pick.cost


def greedy(graph: Graph, cost: Sequence[float]) -> list[int]:
    """Ways of all nodes by their closures: the nodes under a way, each once, at the cost of the way it took itself."""
    best, pick = [inf] * graph.nodes, [-1] * graph.nodes
    closure = [0] * graph.nodes
    revisions = [0] * graph.nodes
    left = [len(needs) for needs in graph.needs]
    waiting = bytearray(graph.nodes)
    heap: list[tuple[float, int]] = []

    def offer(way: int) -> None:
        node, needs = graph.owner[way], graph.needs[way]
        # The largest closure's cost is known; the others add what they do not share with it.
        largest = max(needs, key=lambda need: (best[need], need)) if needs else -1
        total = cost[way] + (best[largest] if needs else 0.0)
        if total >= best[node] * (1 - LEAST):
            return
        union = closure[largest] if needs else 0
        for need in needs:
            rest = closure[need] & ~union
            union |= rest
            while rest:
                low = rest & -rest
                total += cost[pick[low.bit_length() - 1]]
                rest ^= low
            if total >= best[node] * (1 - LEAST):
                return
        if union >> node & 1 or revisions[node] >= REVISIONS:
            return
        revisions[node] += 1
        best[node], pick[node], closure[node] = total, way, union | 1 << node
        if not waiting[node]:
            waiting[node] = 1
            heapq.heappush(heap, (total, node))

    for way, needs in enumerate(graph.needs):
        if not needs:
            offer(way)
    counted = bytearray(graph.nodes)
    while heap:
        _, node = heapq.heappop(heap)
        waiting[node] = 0
        for user in graph.users[node]:
            if not counted[node]:
                left[user] -= 1
            if not left[user]:
                offer(user)
        counted[node] = 1
    return pick


def improved(graph: Graph, start: Pick, until: float = inf, check: Check = unlimited) -> Pick:
    """The choice after exchanges of single ways and of groups of ways, until none helps, or ``until`` has passed."""
    state = _State(graph, start)
    for _ in range(ROUNDS):
        before = state.pick.cost
        for change in (state.exchange, state.gather, state.scatter):
            state.complete()
            for node in reversed(range(graph.nodes)) if change == state.gather else reversed(state.pick.order):
                check()
                if time.process_time() > until:
                    return state.pick
                change(node)
        if state.pick.cost >= before * (1 - LEAST):
            break
    return state.pick


class _State:
    """A choice while it is improved.

    ``ways`` has for a filled node its way, for another the way it would take: the cheapest where filled nodes are
    free, at the cost ``extra``.
    """

    def __init__(self, graph: Graph, start: Pick) -> None:
        self.graph = graph
        self.take(start)
        self.complete()

    def take(self, pick: Pick) -> None:
        graph = self.graph
        self.pick = pick
        self.ways = list(pick.ways)
        self.filled = bytearray(graph.nodes)
        self.position = [-1] * graph.nodes
        self.readers = [0] * graph.nodes
        for place, node in enumerate(pick.order):
            self.filled[node] = 1
            self.position[node] = place
            for need in graph.needs[pick.ways[node]]:
                self.readers[need] += 1

    def complete(self) -> None:
        """Find how the nodes that are not filled would be filled at the least additional cost."""
        graph = self.graph
        self.extra = [0.0 if filled else inf for filled in self.filled]
        left = [sum([not self.filled[need] for need in needs]) for needs in graph.needs]
        total = list(graph.cost)
        heap = [(total[way], way) for way, count in enumerate(left) if not count and not self.filled[graph.owner[way]]]
        heapq.heapify(heap)
        while heap:
            value, way = heapq.heappop(heap)
            node = graph.owner[way]
            if self.extra[node] < inf:
                continue
            self.extra[node], self.ways[node] = value, way
            for user in graph.users[node]:
                left[user] -= 1
                total[user] += value
                if not left[user] and self.extra[graph.owner[user]] == inf:
                    heapq.heappush(heap, (total[user], user))

    def saving(self, changes: dict[int, int], held: Mapping[int, int] | None = None) -> float:
        """What the whole would cost less with these ways, minus infinity where they make a cycle.

        What is needed anew counts before what is needed no longer, so nothing is looked at that is needed both before
        and after: the work depends on what changes, not on what lies below. ``held`` are further readers of nodes.
        """
        graph, ways, filled, readers = self.graph, self.ways, self.filled, self.readers
        needs, cost = graph.needs, graph.cost
        more = dict(held) if held else {}
        changed = [node for node in changes if filled[node]]
        stack = [changes[node] for node in changed]
        saved, again = 0.0, False
        while stack:
            way = stack.pop()
            saved -= cost[way]
            for need in needs[way]:
                more[need] = count = more.get(need, 0) + 1
                if not filled[need]:
                    if count == 1:
                        stack.append(changes.get(need, ways[need]))
                elif need in changes:
                    again = True
        if again and self.cyclic(changes):  # it would seem to free all that lies below
            return -inf
        stack = [ways[node] for node in changed]
        while stack:
            way = stack.pop()
            saved += cost[way]
            for need in needs[way]:
                more[need] = count = more.get(need, 0) - 1
                if readers[need] + count == 0:
                    stack.append(changes.get(need, ways[need]))
        return saved

    def support(self, node: int) -> dict[int, int]:
        """How many more readers every node would have, were ``node`` filled as it is completed, and itself one."""
        graph, ways = self.graph, self.ways
        more = {node: 1}
        stack = [node]
        while stack:
            for need in graph.needs[ways[stack.pop()]]:
                more[need] = more.get(need, 0) + 1
                if more[need] == 1 and not self.filled[need]:
                    stack.append(need)
        return more

    def exchange(self, node: int) -> None:
        """Give a filled node the way that lowers the whole cost most, if any does."""
        graph = self.graph
        if not self.filled[node] or len(graph.by[node]) < 2:
            return
        limit = LEAST * self.pick.cost
        found = []
        for way in graph.by[node]:
            if way != self.ways[node] and (saved := self.saving({node: way})) > limit:
                found.append((-saved, way))
        for _, way in sorted(found):
            if self.attempt({node: way}):
                return

    def attempt(self, changes: dict[int, int]) -> bool:
        """Change some ways if the whole then costs less."""
        if self.saving(changes) <= LEAST * self.pick.cost or self.cyclic(changes):
            return False
        ways = list(self.ways)
        for node, way in changes.items():
            ways[node] = way
        trial = picked(self.graph, ways)
        if trial is None or trial.cost >= self.pick.cost * (1 - LEAST):
            return False
        before = self.pick.order
        self.take(trial)
        for node in before:  # what it would cost now is found by the next completion
            self.extra[node] = inf
        for node in trial.order:
            self.extra[node] = 0.0
        return True

    def cyclic(self, changes: dict[int, int]) -> bool:
        """Whether nodes would wait for themselves. Filled nodes before all changed ones cannot need these."""
        graph, ways, position = self.graph, self.ways, self.position
        stack = [node for node in changes if self.filled[node]]
        lowest = min([position[node] for node in stack], default=0)
        state: dict[int, int] = {}
        while stack:
            node = stack[-1]
            if node in state:
                state[stack.pop()] = 2
                continue
            state[node] = 1
            for need in graph.needs[changes.get(node, ways[node])]:
                known = state.get(need, 0)
                if known == 1:
                    return True
                if not known and (not self.filled[need] or position[need] >= lowest or need in changes):
                    stack.append(need)
        return False

    def gather(self, node: int) -> None:
        """Let all filled nodes that would rather read ``node``, were it there, change their ways together."""
        if self.filled[node] or self.extra[node] == inf:
            return
        changes, options = self._readers(node)
        for limit in (LEAST * self.pick.cost, self.extra[node]):
            chosen = {owner: way for loss, owner, way in options if loss <= limit}
            if chosen and self.attempt({**changes, **chosen}):
                return

    def _readers(self, node: int) -> tuple[dict[int, int], list[tuple[float, int, int]]]:
        """Ways of nodes between, and (loss, owner, way) for the filled nodes that could read ``node`` if it were free.

        The loss ignores that several together free what they share.
        """
        graph, extra = self.graph, self.extra
        free = {node: 0.0}
        changes: dict[int, int] = {}
        interested: dict[int, list[tuple[float, int]]] = {}
        pending = [node]
        while pending:
            current = pending.pop()
            for way in graph.users[current]:
                owner = graph.owner[way]
                if way == self.ways[owner] and self.filled[owner]:
                    continue
                total = graph.cost[way] + sum([free.get(need, extra[need]) for need in graph.needs[way]])
                if self.filled[owner]:
                    interested.setdefault(owner, []).append((total, way))
                elif total < free.get(owner, extra[owner]) * (1 - LEAST):
                    free[owner] = total
                    changes[owner] = way
                    pending.append(owner)
        options = []
        held = self.support(node)
        for owner, found in interested.items():
            _, way = min(found)
            options.append((-self.saving({**changes, owner: way}, held), owner, way))
        return changes, sorted(options)

    def scatter(self, node: int) -> None:
        """Empty a filled node: all that read it change to ways without it, or are emptied as well where they cannot."""
        graph, extra = self.graph, self.extra
        if not self.filled[node] or self.readers[node] < 2:
            return
        empty = {node}
        changes: dict[int, int] = {}
        pending = [node]
        while pending:
            for way in graph.users[pending.pop()]:
                owner = graph.owner[way]
                if not self.filled[owner] or self.ways[owner] != way or owner in empty:
                    continue
                options = [
                    (graph.cost[other] + sum([extra[need] for need in graph.needs[other]]), other)
                    for other in graph.by[owner]
                    if empty.isdisjoint(graph.needs[other])
                ]
                total, chosen = min(options, default=(inf, -1))
                if total < inf:
                    changes[owner] = chosen
                elif owner == graph.goal or len(empty) > EMPTIED:
                    return
                else:
                    empty.add(owner)
                    changes.pop(owner, None)
                    pending.append(owner)
        self.attempt(changes)
