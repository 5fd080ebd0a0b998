"""The cheapest choice on an AND-OR graph and a proof of it, or a good one and a bound: branch and cut.

Landmarks bound the cost and drop the ways that no better choice takes; what is left goes into a linear relaxation
with lazy cuts, whose solutions also lead to better choices, and the rest is branched over. Work is limited by counted
steps, so results do not depend on the machine; a limit in seconds of processor time is there for safety.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf

from egraph_opt.errors import EgraphOptError, LimitReached
from egraph_opt.extract.graph import Graph, restricted
from egraph_opt.extract.improve import QUICK, THOROUGH, Pick, guided, heuristic, improved, picked
from egraph_opt.extract.landmarks import landmarks
from egraph_opt.extract.relaxation import ZERO, Relaxation, Solution
from egraph_opt.limits import Check, unlimited

# A choice is the cheapest when none can be cheaper by more than this share.
PROVED = 1e-7
# Pivots of the linear program, and seconds, after which the bound so far is what there is.
PIVOTS, SECONDS = 200_000, 60.0
# The shares of the seconds after which no more landmarks, and no better starts, are looked for.
LANDMARKS, STARTS = 0.4, 0.6
# Graphs of more ways get fewer starts.
LARGE = 4_000
# Rounds of cuts at the root end when so many of them raise the bound by less than this share of the gap.
STALLED, PROGRESS = 8, 0.02
# One in so many rounds at the root, and of the nodes, looks for better choices.
GUIDED = 5
# Rounds of cuts at other nodes.
ROUNDS = 3


@dataclass(frozen=True)
class Exact:
    """A choice, the cost that none can go below, and what that took; both costs as in the graph."""

    pick: Pick
    bound: float
    nodes: int
    pivots: int
    seconds: float
    timed_out: bool

    @property
    def gap(self) -> float:
        """How much cheaper the cheapest choice may be, as a share of this one."""
        return max(0.0, 1 - self.bound / self.pick.cost) if self.pick.cost > 0 else 0.0


def solve(
    graph: Graph,
    *,
    starts: Iterable[Sequence[int]] = (),
    gap: float = PROVED,
    pivots: int = PIVOTS,
    seconds: float = SECONDS,
    check: Check = unlimited,
) -> Exact:
    """The cheapest choice up to a share ``gap``, or the best found within ``pivots`` and ``seconds``.

    ``starts`` are further choices to begin with, as ways of every node (-1 for none). ``check`` is called again and
    again and may raise to end it.
    """
    began = time.process_time()
    found = landmarks(graph, until=began + LANDMARKS * seconds, check=check)
    shares = THOROUGH if len(graph.owner) <= LARGE else QUICK
    best = heuristic(graph, found, starts, shares=shares, until=began + STARTS * seconds, check=check)
    if found.bound >= best.cost * (1 - max(gap, PROVED)):
        bound = best.cost if _proved(found.bound, best) else found.bound
        return Exact(best, bound, 0, 0, time.process_time() - began, False)
    kept = [way for way, least in enumerate(found.least) if found.bound + least < best.cost * (1 - PROVED)]
    small, numbers = restricted(graph, kept)
    if small is None:
        return Exact(best, best.cost, 0, 0, time.process_time() - began, False)
    new = {way: number for number, way in enumerate(numbers)}
    cuts = [[new[way] for way in cut if way in new] for cut in found.cuts]
    search = _Search(small, cuts, best.cost, found.bound, max(gap, PROVED), pivots, began + seconds, check)
    search.run()
    if search.best is not None:
        ways = [-1] * graph.nodes
        for way in search.best.ways:
            if way >= 0:
                ways[graph.owner[numbers[way]]] = numbers[way]
        better = picked(graph, ways)
        if better is not None:
            best = min(best, improved(graph, better, began + seconds, check), key=lambda pick: pick.cost)
    bound = min(search.bound, best.cost)
    if _proved(bound, best):
        bound = best.cost
    return Exact(best, bound, search.nodes, search.relaxation.pivots, time.process_time() - began, search.timed_out)


def _proved(bound: float, best: Pick) -> bool:
    return bound >= best.cost * (1 - PROVED)


class _Search:
    """Branch and cut for a choice cheaper than ``limit``; every other choice costs ``bound`` at least."""

    def __init__(
        self,
        graph: Graph,
        cuts: Sequence[Sequence[int]],
        limit: float,
        bound: float,
        gap: float,
        pivots: int,
        deadline: float,
        check: Check,
    ) -> None:
        self.graph = graph
        self.limit = limit
        self.bound = bound
        self.gap = gap
        self.pivots = pivots
        self.deadline = deadline
        self.check = check
        self.best: Pick | None = None
        self.nodes = 0
        self.timed_out = False
        self.unclear = inf
        self.relaxation = Relaxation(graph, cuts, check)
        self.removed: set[int] = set()

    def run(self) -> None:
        """Fill in ``best``, ``bound`` and how it ended."""
        try:
            self._root()
        except LimitReached:
            raise
        except EgraphOptError:  # out of pivots or time: the bound so far holds
            self._out_of_time()
            return
        self._branch()
        self.bound = min(self.bound, self.unclear)

    def _root(self) -> None:
        stalled = rounds = 0
        while True:
            solution = self._solve()
            if solution is None:
                self.bound = inf
                return
            before, self.bound = self.bound, max(self.bound, solution.cost)
            rounds += 1
            if rounds % GUIDED == 0 or self._fractional(solution) is None:
                self._guided(solution)
            self._remove(solution)
            if self._done():
                return
            stalled = stalled + 1 if self.bound - before < PROGRESS * (self.limit - self.bound) else 0
            if stalled > STALLED or self._out_of_time() or not self.relaxation.tighten(solution):
                return

    def _branch(self) -> None:
        """Best first; of the two halves of a node the fuller one first."""
        if self._done():
            return
        count = 0
        heap: list[tuple[float, int, tuple[tuple[int, float], ...]]] = [(self.bound, count, ())]
        held: tuple[tuple[int, float], ...] = ()
        while heap:
            bound, _, fixed = heap[0]
            if self._hopeless(bound):
                self.bound = self.limit
                return
            self.bound = max(self.bound, bound)
            if self._done() or self._out_of_time():
                return
            heapq.heappop(heap)
            self.relaxation.release([column for column, _ in held if column not in self.removed])
            for column, value in fixed:
                self.relaxation.fix([column], value)
            held = fixed
            self.nodes += 1
            try:
                solution = self._node()
            except LimitReached:
                raise
            except EgraphOptError:
                self._out_of_time()
                return
            if solution is None:
                continue
            between = self._fractional(solution)
            if between is None:
                continue
            value = (solution.ways + solution.nodes)[between]
            for side in (1.0, 0.0) if value >= 0.5 else (0.0, 1.0):
                count += 1
                heapq.heappush(heap, (max(bound, solution.cost), count, (*fixed, (between, side))))
        self.bound = self.limit

    def _node(self) -> Solution | None:
        """The relaxation's solution with cuts; None where nothing better is there or it is a choice, then kept."""
        rounds = 0
        while True:
            solution = self._solve()
            if solution is None or self._hopeless(solution.cost):
                return None
            whole = self._fractional(solution) is None
            if whole or (rounds == 0 and self.nodes % GUIDED == 0):
                self._guided(solution)
            rounds += 1
            if self._hopeless(solution.cost):
                return None
            if (rounds > ROUNDS and not whole) or not self.relaxation.tighten(solution):
                if whole and not self._hopeless(solution.cost):  # a whole solution that is no choice, by rounding
                    self.unclear = min(self.unclear, solution.cost)
                return None if whole else solution

    def _solve(self) -> Solution | None:
        self.check()
        left = self.deadline - time.process_time()
        return self.relaxation.solve(self.pivots - self.relaxation.pivots, max(0.1, left))

    def _done(self) -> bool:
        return self.bound >= self.limit * (1 - self.gap)

    def _hopeless(self, bound: float) -> bool:
        return bound >= self.limit * (1 - PROVED)

    def _out_of_time(self) -> bool:
        self.timed_out = time.process_time() > self.deadline
        return self.timed_out or self.relaxation.pivots >= self.pivots

    def _remove(self, solution: Solution) -> None:
        """Drop the ways and nodes that cost too much where they are used at all; right at the root only."""
        slack = self.limit * (1 - PROVED) - solution.cost
        values = solution.ways + solution.nodes
        columns = [
            column
            for column, reduced in enumerate(solution.reduced)
            if reduced > slack and values[column] < ZERO and column not in self.removed
        ]
        self.removed.update(columns)
        self.relaxation.fix(columns, 0.0)

    def _fractional(self, solution: Solution) -> int | None:
        """The column to branch over: the node most in between, else the way; None when all are whole."""
        ways = len(solution.ways)
        for first, values in ((ways, solution.nodes), (0, solution.ways)):
            number = min(range(len(values)), key=lambda i: (abs(values[i] - 0.5), i))
            if ZERO < values[number] < 1 - ZERO:
                return first + number
        return None

    def _take(self, pick: Pick | None) -> None:
        if pick is not None and pick.cost < self.limit * (1 - PROVED):
            self.best, self.limit = pick, pick.cost

    def _guided(self, solution: Solution) -> None:
        """Look for a choice near the relaxation's."""
        shares = solution.ways
        self._take(picked(self.graph, [max(found, key=lambda way: shares[way]) for found in self.graph.by]))
        away = [cost * (1 - share) for cost, share in zip(self.graph.cost, shares, strict=True)]
        dear = [max(0.0, reduced) for reduced in solution.reduced[: len(shares)]]
        for rest in (away, dear):
            for pick in guided(self.graph, rest, QUICK, self.deadline, self.check):
                self._take(pick)
