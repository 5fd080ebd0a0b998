"""Congruence closure that can explain itself: which ground terms are equal by some equations, and by which steps.

R. Nieuwenhuis, A. Oliveras, "Fast congruence closure and extensions", 2007. A congruence is explained by equations
older than itself, so explanations end.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Set
from dataclasses import dataclass

from egraph_opt.egraph.ground import HELD, Terms, rebuilt
from egraph_opt.egraph.snapshot import ENode
from egraph_opt.limits import Check, unlimited

# Levels of parts down to which the length of an explanation is counted, not guessed.
DEEP = 4


@dataclass(frozen=True)
class Equation:
    """Terms ``left`` and ``right`` are equal by a rule; ``premise`` are two terms it takes to be equal already."""

    rule: str
    group: str
    left: int
    right: int
    instance: int = -1
    premise: tuple[int, int] | None = None


@dataclass(frozen=True)
class Move:
    """One use of an equation: at ``path`` inside a term, from left to right unless ``backwards``.

    The equation was taken for true at ``time``.
    """

    equation: Equation
    backwards: bool
    path: tuple[int, ...]
    time: int

    @property
    def old(self) -> int:
        return self.equation.right if self.backwards else self.equation.left

    @property
    def new(self) -> int:
        return self.equation.left if self.backwards else self.equation.right


@dataclass(frozen=True)
class _Edge:
    """``other`` is equal by an equation, or because the parts at some places are."""

    other: int
    equation: Equation | None
    time: int
    parts: tuple[tuple[int, int, int], ...] = ()


# A term and the e-node it is known as: its own, or that of what it holds or is held by.
_User = tuple[int, ENode]


class Closure:
    """Which terms are equal by some equations and congruence, and why. Nobody looks into ``opaque`` terms."""

    def __init__(self, terms: Terms, opaque: Set[int] = frozenset(), check: Check = unlimited) -> None:
        self.check = check
        self.terms = terms
        self.opaque = opaque
        self._parent: dict[int, int] = {}
        self._members: dict[int, list[int]] = {}
        self._users: dict[int, list[_User]] = {}
        self._signatures: dict[ENode, _User] = {}
        self._edges: dict[int, list[_Edge]] = {}
        self._pending: deque[tuple[int, int, Equation | None, tuple[tuple[int, int, int], ...]]] = deque()
        self._time = 0
        self._costs: dict[tuple[int, int, int], int] = {}

    def find(self, number: int) -> int:
        """The representative of a term's class."""
        if number not in self._parent:
            self.know(number)
        while self._parent[number] != number:
            self._parent[number] = self._parent[self._parent[number]]
            number = self._parent[number]
        return number

    def know(self, number: int) -> None:
        """Take a term and its parts into account."""
        if number in self._parent:
            return
        node = self.terms.nodes[number]
        if number in self.opaque:
            node = ENode("Nil", ())
        for child in node.children:
            self.know(child)
        self._parent[number] = number
        self._members[number] = [number]
        forms = [(number, node)]
        if node.constructor in ("Read", "Compute"):
            # What it holds is known as held by it, too.
            forms.append((node.children[0], ENode("Compute" if node.constructor == "Read" else "Read", (number,))))
        for form in forms:
            for child in set(form[1].children):
                self._users.setdefault(self.find(child), []).append(form)
            self._sign(form)
        self._settle()

    def merge(self, equation: Equation) -> None:
        """Take an equation for true."""
        self.know(equation.left)
        self.know(equation.right)
        if equation.left != equation.right:
            self._pending.append((equation.left, equation.right, equation, ()))
            self._settle()

    def known(self) -> list[int]:
        """All terms known, oldest first."""
        return list(self._parent)

    def _sign(self, user: _User) -> None:
        number, node = user
        if not node.children:
            return
        signature = rebuilt(node, [self.find(child) for child in node.children])
        other, same = self._signatures.setdefault(signature, user)
        if other != number and self.find(other) != self.find(number):
            held = node.constructor in ("Read", "Compute")
            pairs = zip(node.children, same.children, strict=True)
            parts = tuple((HELD if held else place, a, b) for place, (a, b) in enumerate(pairs) if a != b)
            self._pending.append((number, other, None, parts))

    def _settle(self) -> None:
        while self._pending:
            one, other, equation, parts = self._pending.popleft()
            a, b = self.find(one), self.find(other)
            if equation is None and a == b:
                continue
            self._time += 1
            turned = tuple((place, y, x) for place, x, y in parts)
            self._edges.setdefault(one, []).append(_Edge(other, equation, self._time, parts))
            self._edges.setdefault(other, []).append(_Edge(one, equation, self._time, turned))
            if a == b:
                continue
            if len(self._members[a]) > len(self._members[b]):
                a, b = b, a
            self._parent[a] = b
            self._members[b] += self._members.pop(a)
            users = self._users.pop(a, [])
            self._users.setdefault(b, []).extend(users)
            for user in users:
                self._sign(user)

    def equal(self, one: int, other: int) -> bool:
        """Whether two terms are known to be equal."""
        return self.find(one) == self.find(other)

    def moves(self, one: int, other: int) -> Iterator[Move]:
        """Uses of equations that lead from one term to an equal one, in order."""
        self.know(one)
        self.know(other)
        yield from self._moves(one, other, self._time + 1, ())

    def premise(self, move: Move) -> Iterator[Move]:
        """Why the premise of a move holds: uses of older equations that lead from its one term to the other."""
        if move.equation.premise is not None:
            yield from self._moves(*move.equation.premise, move.time, ())

    def _moves(self, one: int, other: int, before: int, path: tuple[int, ...]) -> Iterator[Move]:
        current = one
        for edge in self._way(one, other, before):
            if edge.equation is not None:
                yield Move(edge.equation, edge.equation.left != current, path, edge.time)
            for place, a, b in edge.parts:
                yield from self._moves(a, b, edge.time, (*path, place))
            current = edge.other

    def _cost(self, edge: _Edge, deep: int) -> int:
        """Number of equations behind an edge, those of parts of parts guessed."""
        if edge.equation is not None:
            premise = edge.equation.premise
            return 2 if premise is None else 2 + self._distance(*premise, edge.time, deep)
        return 1 + sum(self._distance(a, b, edge.time, deep) for _, a, b in edge.parts)

    def _distance(self, one: int, other: int, before: int, deep: int) -> int:
        if deep == 0:
            return 2
        key = (one, other, before)
        if key not in self._costs:
            self._costs[key] = sum(self._cost(edge, deep - 1) for edge in self._way(one, other, before, deep - 1))
        return self._costs[key]

    def _way(self, one: int, other: int, before: int, deep: int = DEEP) -> list[_Edge]:
        """A shortest way over edges older than ``before``."""
        self.check()
        came: dict[int, tuple[int, _Edge] | None] = {}
        queue: list[tuple[int, int, int, tuple[int, _Edge] | None]] = [(0, 0, one, None)]
        order = 0
        while queue:
            cost, _, current, step = heapq.heappop(queue)
            if current in came:
                continue
            came[current] = step
            if current == other:
                break
            for edge in self._edges.get(current, ()):
                if edge.time < before and edge.other not in came:
                    order += 1
                    heapq.heappush(queue, (cost + self._cost(edge, deep), order, edge.other, (current, edge)))
        way: list[_Edge] = []
        step = came[other]
        while step is not None:
            way.append(step[1])
            step = came[step[0]]
        return way[::-1]

    def used(self, one: int, other: int) -> set[Equation]:
        """The equations that an explanation rests on, those behind premises included."""
        found: set[Equation] = set()
        done: set[tuple[int, int, int]] = set()
        pending = [(one, other, self._time + 1)]
        while pending:
            a, b, before = pending.pop()
            if (a, b, before) in done or a == b:
                continue
            done.add((a, b, before))
            for edge in self._way(a, b, before):
                pending += [(x, y, edge.time) for _, x, y in edge.parts]
                if edge.equation is not None:
                    found.add(edge.equation)
                    if edge.equation.premise is not None:
                        pending.append((*edge.equation.premise, edge.time))
        return found
