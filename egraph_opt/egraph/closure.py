"""Ground terms, the equations between them that rules gave, and proofs: congruence closure that can explain itself.

Terms are numbered; a term is an :class:`ENode` over the numbers of its parts. A tensor and the buffer that holds it are
one term here: ``Read(Compute(t))`` is ``t`` and ``Compute(Read(b))`` is ``b``.

Explanations: R. Nieuwenhuis, A. Oliveras, "Fast congruence closure and extensions", 2007. A congruence is explained by
equations older than itself, so explanations end.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from egraph_opt.egraph.pattern import CONSTRUCTORS, format_extents
from egraph_opt.egraph.provenance import build
from egraph_opt.egraph.snapshot import ENode
from egraph_opt.ir.terms import (
    Apply,
    Buffer,
    Call,
    Compute,
    Fill,
    Read,
    Reduce,
    Reshape,
    Softmax,
    Source,
    Tensor,
    View,
)


class Terms:
    """Ground terms by number, each once."""

    def __init__(self) -> None:
        self.nodes: list[ENode] = []
        self._numbers: dict[ENode, int] = {}
        self._built: dict[int, Tensor | Buffer] = {}

    def add(self, node: ENode) -> int:
        """The number of a term given by its constructor and the numbers of its parts."""
        opposite = {"Read": "Compute", "Compute": "Read"}.get(node.constructor)
        if opposite is not None and self.nodes[node.children[0]].constructor == opposite:
            return self.nodes[node.children[0]].children[0]
        if node not in self._numbers:
            self._numbers[node] = len(self.nodes)
            self.nodes.append(node)
        return self._numbers[node]

    def encode(self, term: Tensor | Buffer, known: Mapping[str, int]) -> int:
        """The number of a term; sources named in ``known`` stand for the tensor or buffer of that number."""

        def inside(child: Tensor | Buffer) -> int:
            return self.encode(child, known)

        match term:
            case Source(name) if name in known:
                return self.as_buffer(known[name])
            case Read(buffer):
                return self.add(ENode("Read", (inside(buffer),)))
            case View(tensor, index):
                return self.add(ENode("View", (inside(tensor), index.text)))
            case Reduce("sum", tensor, count):
                return self.add(ENode("Sum", (inside(tensor), count)))
            case Reduce(operation, tensor, count):
                return self.add(ENode("Reduce", (operation, inside(tensor), count)))
            case Apply("mul" | "add" as function, arguments):
                return self.add(ENode(function.capitalize(), tuple(map(inside, arguments))))
            case Apply(function, arguments):
                return self.add(ENode(f"Apply{len(arguments)}", (function, *map(inside, arguments))))
            case Softmax(tensor, count):
                return self.add(ENode("Softmax", (inside(tensor), count)))
            case Fill(value, extents):
                return self.add(ENode("Fill", (str(value), format_extents(extents))))
            case Source(name, extents, constant):
                kind = "constant" if constant else "input"
                return self.add(ENode("Source", (name, format_extents(extents), kind)))
            case Compute(tensor):
                return self.add(ENode("Compute", (inside(tensor),)))
            case Reshape(buffer, extents):
                return self.add(ENode("Reshape", (inside(buffer), format_extents(extents))))
            case Call(operator, attributes, operands, extents):
                chain = self.add(ENode("Nil", ()))
                for operand in reversed(operands):
                    chain = self.add(ENode("Cons", (inside(operand), chain)))
                return self.add(ENode("Call", (operator, attributes, chain, format_extents(extents))))

    def as_buffer(self, number: int) -> int:
        """The buffer that holds a tensor; a buffer is itself."""
        tensor = CONSTRUCTORS[self.nodes[number].constructor][1] == "Tensor"
        return self.add(ENode("Compute", (number,))) if tensor else number

    def operands(self, number: int) -> tuple[int, ...]:
        """The parts of a term; the buffers of a call."""
        node = self.nodes[number]
        if node.constructor != "Call":
            return node.children
        found = []
        chain = self.nodes[node.children[0]]
        while chain.constructor == "Cons":
            found.append(chain.children[0])
            chain = self.nodes[chain.children[1]]
        return tuple(found)

    def decode(self, number: int) -> Tensor | Buffer:
        """The term itself, for evaluation."""
        if number not in self._built:
            parts = [self.decode(part) for part in self.operands(number)]
            self._built[number] = build(self.nodes[number], parts)
        return self._built[number]

    def replaced(self, number: int, old: int, new: int) -> int:
        """A term with every occurrence of ``old`` in it replaced."""
        done = {old: new}

        def walk(current: int) -> int:
            if current not in done:
                node = self.nodes[current]
                parts = {child: walk(child) for child in node.children}
                done[current] = self.add(over(node, parts)) if any(a != b for a, b in parts.items()) else current
            return done[current]

        return walk(number)

    def replaced_at(self, number: int, path: tuple[int, ...], new: int) -> int:
        """A term with the part at one place replaced; the path counts the parts."""
        if not path:
            return new
        node = self.nodes[number]
        parts = list(node.children)
        parts[path[0]] = self.replaced_at(parts[path[0]], path[1:], new)
        return self.add(rebuilt(node, parts))


def over(node: ENode, parts: Mapping[int, int]) -> ENode:
    """An e-node over other parts."""
    return rebuilt(node, [parts[child] for child in node.children])


def rebuilt(node: ENode, parts: Iterable[int]) -> ENode:
    """An e-node over other parts, in order."""
    rest = iter(parts)
    sorts = CONSTRUCTORS[node.constructor][0]
    return ENode(
        node.constructor,
        tuple(
            next(rest) if sort in ("Tensor", "Buffer", "Args") else argument
            for argument, sort in zip(node.arguments, sorts, strict=True)
        ),
    )


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
    """One use of an equation: at ``path`` inside a term, from left to right unless ``backwards``."""

    equation: Equation
    backwards: bool
    path: tuple[int, ...]

    @property
    def old(self) -> int:
        return self.equation.right if self.backwards else self.equation.left

    @property
    def new(self) -> int:
        return self.equation.left if self.backwards else self.equation.right


@dataclass(frozen=True)
class _Edge:
    other: int
    equation: Equation | None
    time: int


class Closure:
    """Which terms are equal by some equations and congruence, and why."""

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self._parent: dict[int, int] = {}
        self._members: dict[int, list[int]] = {}
        self._users: dict[int, list[int]] = {}
        self._signatures: dict[ENode, int] = {}
        self._edges: dict[int, list[_Edge]] = {}
        self._pending: list[tuple[int, int, Equation | None]] = []
        self._time = 0

    def find(self, number: int) -> int:
        """The representative of a term's class."""
        self.know(number)
        while self._parent[number] != number:
            self._parent[number] = self._parent[self._parent[number]]
            number = self._parent[number]
        return number

    def know(self, number: int) -> None:
        """Take a term and its parts into account."""
        if number in self._parent:
            return
        for child in self.terms.nodes[number].children:
            self.know(child)
        self._parent[number] = number
        self._members[number] = [number]
        for child in set(self.terms.nodes[number].children):
            self._users.setdefault(self.find(child), []).append(number)
        self._sign(number)
        self._settle()

    def merge(self, equation: Equation) -> None:
        """Take an equation for true."""
        self.know(equation.left)
        self.know(equation.right)
        self._pending.append((equation.left, equation.right, equation))
        self._settle()

    def known(self) -> list[int]:
        """All terms known, oldest first."""
        return list(self._parent)

    def _sign(self, number: int) -> None:
        node = self.terms.nodes[number]
        if not node.children:
            return
        signature = rebuilt(node, [self.find(child) for child in node.children])
        other = self._signatures.setdefault(signature, number)
        if other != number and self.find(other) != self.find(number):
            self._pending.append((number, other, None))

    def _settle(self) -> None:
        while self._pending:
            one, other, equation = self._pending.pop(0)
            if one == other:
                continue
            a, b = self.find(one), self.find(other)
            if equation is None and a == b:
                continue
            self._time += 1
            self._edges.setdefault(one, []).append(_Edge(other, equation, self._time))
            self._edges.setdefault(other, []).append(_Edge(one, equation, self._time))
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
        yield from self._moves(one, other, self._time + 1, ())

    def _moves(self, one: int, other: int, before: int, path: tuple[int, ...]) -> Iterator[Move]:
        current = one
        for edge in self._way(one, other, before):
            if edge.equation is not None:
                yield Move(edge.equation, edge.equation.left != current, path)
            else:
                here, there = self.terms.nodes[current].children, self.terms.nodes[edge.other].children
                for place, (a, b) in enumerate(zip(here, there, strict=True)):
                    if a != b:
                        yield from self._moves(a, b, edge.time, (*path, place))
            current = edge.other

    def _way(self, one: int, other: int, before: int) -> list[_Edge]:
        """A shortest way over edges older than ``before``; equations count a little more than congruences."""
        if one == other:
            return []
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
                    heapq.heappush(queue, (cost + 2 if edge.equation else cost + 1, order, edge.other, (current, edge)))
        way: list[_Edge] = []
        current = other
        while current != one:
            step = came[current]
            assert step is not None
            way.append(step[1])
            current = step[0]
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
            current = a
            for edge in self._way(a, b, before):
                if edge.equation is None:
                    here, there = self.terms.nodes[current].children, self.terms.nodes[edge.other].children
                    pending += [(x, y, edge.time) for x, y in zip(here, there, strict=True)]
                else:
                    found.add(edge.equation)
                    if edge.equation.premise is not None:
                        pending.append((*edge.equation.premise, edge.time))
                current = edge.other
        return found
