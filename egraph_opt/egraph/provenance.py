"""Where e-nodes come from, and the programs that a class stands for.

:class:`Provenance` answers which named rules made an e-node out of the program's own terms; :func:`programs` reads, for
every library call of a saturated e-graph, the smallest program of a tensor around it.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from egraph_opt.egraph import primitives
from egraph_opt.egraph.pattern import format_extents, parse_extents
from egraph_opt.egraph.snapshot import ENode, Snapshot, fraction
from egraph_opt.ir.program import Program
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
    children,
)

# A library call weighs more than any kernel body around it, so the smallest term has as few calls as possible.
_CALL_WEIGHT = 1_000


class Provenance:
    """Chains of rules from the e-nodes of a program to the others: shortest paths over the recorded derivations."""

    def __init__(self, snapshot: Snapshot, program: Program) -> None:
        self._owner = {node: owner for owner, nodes in snapshot.classes.items() for node in nodes}
        self._names = snapshot.names
        roots: list[ENode] = []
        for _, term in program.definitions:
            self._locate(term, set(dict(program.definitions)), roots)
        self._came: dict[ENode, tuple[ENode, str] | None] = dict.fromkeys(roots)
        following: dict[ENode, list[tuple[str, ENode]]] = {}
        for derivation in snapshot.derivations:
            following.setdefault(derivation.origin, []).append((derivation.rule, derivation.result))
        pending = deque(roots)
        while pending:
            node = pending.popleft()
            for rule, result in sorted(following.get(node, ()), key=lambda edge: edge[0]):
                if result not in self._came:
                    self._came[result] = (node, rule)
                    pending.append(result)

    def rules(self, node: ENode) -> tuple[str, ...]:
        """Names of the rules that made ``node``, first to last; empty for the program's own terms."""
        chain: list[str] = []
        step = self._came.get(node)
        while step is not None:
            node, rule = step
            chain.append(rule)
            step = self._came.get(node)
        return tuple(reversed(chain))

    def _locate(self, term: Tensor | Buffer, defined: set[str], found: list[ENode]) -> int:
        """The class of a term of the program; its e-nodes are added to ``found``."""

        def inside(child: Tensor | Buffer) -> int:
            return self._locate(child, defined, found)

        match term:
            case Read(Source(name)) if name in defined:
                return self._names[name]
            case Call(_, _, operands, _):
                chain = self._owner[ENode("Nil", ())]
                for operand in reversed(operands):
                    chain = self._owner[ENode("Cons", (inside(operand), chain))]
                node = enode(term, (chain,))
            case _:
                node = enode(term, [inside(child) for child in children(term)])
        found.append(node)
        return self._owner[node]


@dataclass(frozen=True)
class DerivedProgram:
    """One library call and the kernels around it: ``term`` computes the tensor, ``call`` is the call inside it.

    ``path`` are the terms from the whole down to the call; ``rules`` made the call out of the original program.
    """

    term: Tensor
    call: Call
    path: tuple[Tensor | Buffer, ...]
    rules: tuple[str, ...]


class Smallest:
    """The smallest term of every class, calls weighing more than anything else."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.parents: dict[int, list[tuple[int, ENode]]] = {}
        for owner, nodes in snapshot.classes.items():
            for node in nodes:
                for child in set(self.operands(node)):
                    self.parents.setdefault(child, []).append((owner, node))
        self.best: dict[int, ENode] = {}
        self.weights: dict[int, int] = {}
        self._terms: dict[int, Tensor | Buffer] = {}
        queue: list[tuple[int, int, int, ENode]] = []
        order = 0
        for owner, nodes in snapshot.classes.items():
            for node in nodes:
                if not self.operands(node) and snapshot.sorts[owner] != "Args":
                    order += 1
                    heapq.heappush(queue, (self.weight(node), order, owner, node))
        while queue:
            weight, _, owner, node = heapq.heappop(queue)
            if owner in self.weights:
                continue
            self.weights[owner], self.best[owner] = weight, node
            for parent, above in self.parents.get(owner, ()):
                below = self.operands(above)
                if (
                    parent not in self.weights
                    and snapshot.sorts[parent] != "Args"
                    and all(b in self.weights for b in below)
                ):
                    order += 1
                    total = self.weight(above) + sum(self.weights[b] for b in below)
                    heapq.heappush(queue, (total, order, parent, above))

    def operands(self, node: ENode) -> tuple[int, ...]:
        return self.snapshot.arguments(node.children[0]) if node.constructor == "Call" else node.children

    def weight(self, node: ENode) -> int:
        return _CALL_WEIGHT if node.constructor == "Call" else 1

    def term(self, owner: int) -> Tensor | Buffer:
        if owner not in self._terms:
            node = self.best[owner]
            self._terms[owner] = build(node, [self.term(child) for child in self.operands(node)])
        return self._terms[owner]


def enode(term: Tensor | Buffer, parts: Sequence[int]) -> ENode:
    """The e-node of a term over the classes (or numbers) of its parts: of its argument list, for a call."""
    inner = tuple(parts)
    match term:
        case Read() | Compute():
            return ENode(type(term).__name__, inner)
        case View(_, index):
            return ENode("View", (*inner, index.text))
        case Reduce("sum", _, count):
            return ENode("Sum", (*inner, count))
        case Reduce(operation, _, count):
            return ENode("Reduce", (operation, *inner, count))
        case Softmax(_, count):
            return ENode("Softmax", (*inner, count))
        case Apply("mul" | "add" as function, _):
            return ENode(function.capitalize(), inner)
        case Apply(function, _):
            return ENode(f"Apply{len(inner)}", (function, *inner))
        case Fill(value, extents):
            return ENode("Fill", (str(value), format_extents(extents)))
        case Source(name, extents, constant):
            return ENode("Source", (name, format_extents(extents), "constant" if constant else "input"))
        case Reshape(_, extents):
            return ENode("Reshape", (*inner, format_extents(extents)))
        case Call(operator, attributes, _, extents):
            return ENode("Call", (operator, attributes, *inner, format_extents(extents)))


def build(node: ENode, operands: list[Tensor | Buffer]) -> Tensor | Buffer:
    """The term of an e-node over the terms of its operands (the argument buffers, for a call)."""
    a = node.arguments
    first = operands[0] if operands else None
    match node.constructor:
        case "Read":
            return Read(first)  # type: ignore[arg-type]
        case "View":
            return View(first, primitives.map_of(str(a[1])))  # type: ignore[arg-type]
        case "Sum":
            return Reduce("sum", first, int(a[1]))  # type: ignore[arg-type]
        case "Reduce":
            return Reduce(str(a[0]), first, int(a[2]))  # type: ignore[arg-type]
        case "Mul" | "Add":
            return Apply(node.constructor.lower(), tuple(operands))  # type: ignore[arg-type]
        case "Apply1" | "Apply2":
            return Apply(str(a[0]), tuple(operands))  # type: ignore[arg-type]
        case "Softmax":
            return Softmax(first, int(a[1]))  # type: ignore[arg-type]
        case "Fill":
            return Fill(fraction(a[0]), parse_extents(str(a[1])))
        case "Source":
            return Source(str(a[0]), parse_extents(str(a[1])), a[2] == "constant")
        case "Compute":
            return Compute(first)  # type: ignore[arg-type]
        case "Reshape":
            return Reshape(first, parse_extents(str(a[1])))  # type: ignore[arg-type]
        case "Call":
            return Call(str(a[0]), str(a[1]), tuple(operands), parse_extents(str(a[3])))  # type: ignore[arg-type]
    raise AssertionError(node.constructor)


@dataclass(frozen=True)
class _Context:
    """How a class is reached from the root: the e-node above it in class ``above``."""

    node: ENode
    above: int


class _Programs:
    """Programs of one class: for each call, the lightest way from the class down to it."""

    def __init__(self, snapshot: Snapshot, root: int) -> None:
        self.snapshot = snapshot
        self.root = root
        self.smallest = Smallest(snapshot)

    @cached_property
    def contexts(self) -> Mapping[int, _Context | None]:
        smallest = self.smallest
        found: dict[int, _Context | None] = {}
        queue: list[tuple[int, int, int, _Context | None]] = [(0, 0, self.root, None)]
        order = 0
        while queue:
            weight, _, owner, context = heapq.heappop(queue)
            if owner in found:
                continue
            found[owner] = context
            for node in self.snapshot.classes[owner]:
                operands = smallest.operands(node)
                if node.constructor == "Call" or any(child not in smallest.weights for child in operands):
                    continue
                for position, child in enumerate(operands):
                    if child not in found:
                        order += 1
                        beside = sum(smallest.weights[other] for i, other in enumerate(operands) if i != position)
                        heapq.heappush(queue, (weight + 1 + beside, order, child, _Context(node, owner)))
        return found

    def __iter__(self) -> Iterator[tuple[ENode, tuple[Tensor | Buffer, ...]]]:
        for owner in self.contexts:
            for node in self.snapshot.classes[owner]:
                if node.constructor == "Call" and all(a in self.smallest.weights for a in self.smallest.operands(node)):
                    yield node, self._path(owner, node)

    def _path(self, owner: int, node: ENode) -> tuple[Tensor | Buffer, ...]:
        """The terms from the root to the call, outermost first."""
        term = build(node, [self.smallest.term(a) for a in self.smallest.operands(node)])
        path = [term]
        context = self.contexts[owner]
        while context is not None:
            operands = [term if child == owner else self.smallest.term(child) for child in context.node.children]
            term = build(context.node, operands)
            path.append(term)
            owner = context.above
            context = self.contexts[owner]
        return tuple(reversed(path))


def programs(snapshot: Snapshot, program: Program, tensor: str | int) -> list[DerivedProgram]:
    """For every library call that can compute ``tensor`` (a name of the program, or a class), the smallest program
    around it and the rules that made it.
    """
    provenance = Provenance(snapshot, program)
    found = []
    for node, path in _Programs(snapshot, snapshot.names[tensor] if isinstance(tensor, str) else tensor):
        whole, call = path[0], path[-1]
        if isinstance(call, Call) and not isinstance(whole, Source | Call | Compute | Reshape):
            found.append(DerivedProgram(whole, call, path, provenance.rules(node)))
    return found
