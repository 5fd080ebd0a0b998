"""Finding terms in a snapshot, and the e-nodes of a class as text."""

from __future__ import annotations

from collections.abc import Set
from functools import cached_property

from egraph_opt.egraph import primitives
from egraph_opt.egraph.pattern import format_extents
from egraph_opt.egraph.provenance import Smallest, build
from egraph_opt.egraph.snapshot import ENode, Snapshot
from egraph_opt.ir import printing
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


class Lookup:
    """The classes of one snapshot by term; sources named in ``defined`` stand for the program's own tensors."""

    def __init__(self, snapshot: Snapshot, defined: Set[str]) -> None:
        self.snapshot = snapshot
        self.defined = defined
        self._owner = {node: owner for owner, nodes in snapshot.classes.items() for node in nodes}

    def find(self, term: Tensor | Buffer) -> int | None:
        """The class that holds a term; None where the e-graph does not."""
        if isinstance(term, Read) and isinstance(term.buffer, Source) and term.buffer.name in self.defined:
            return self.snapshot.names[term.buffer.name]
        known: dict[int, int | None] = {}
        return self._find(term, known)

    def _find(self, term: Tensor | Buffer, known: dict[int, int | None]) -> int | None:
        # Terms share their parts: every part is looked up once.
        if id(term) not in known:
            node = self._node(term, known)
            known[id(term)] = node if isinstance(node, int) or node is None else self._owner.get(node)
        return known[id(term)]

    def _node(self, term: Tensor | Buffer, known: dict[int, int | None]) -> ENode | int | None:
        match term:
            case Read(Source(name)) if name in self.defined:
                return self.snapshot.names[name]
            case Fill(value, extents):
                return ENode("Fill", (str(value), format_extents(extents)))
            case Source(name, extents, constant):
                return ENode("Source", (name, format_extents(extents), "constant" if constant else "input"))
            case Call(operator, attributes, operands, extents):
                chain: int | None = self._owner.get(ENode("Nil", ()))
                for operand in reversed(operands):
                    found = self._find(operand, known)
                    if found is None or chain is None:
                        return None
                    chain = self._owner.get(ENode("Cons", (found, chain)))
                return None if chain is None else ENode("Call", (operator, attributes, chain, format_extents(extents)))
            case Apply(function, arguments):
                classes = [self._find(argument, known) for argument in arguments]
                inner = tuple(found for found in classes if found is not None)
                if len(inner) < len(classes):
                    return None
                if function in ("mul", "add"):
                    return ENode(function.capitalize(), inner)
                return ENode(f"Apply{len(inner)}", (function, *inner))
        child = self._find(term.buffer if isinstance(term, Read | Reshape) else term.tensor, known)
        if child is None:
            return None
        match term:
            case Read():
                return ENode("Read", (child,))
            case Compute():
                return ENode("Compute", (child,))
            case View(_, index):
                return ENode("View", (child, primitives.map_text(index)))
            case Reduce("sum", _, count):
                return ENode("Sum", (child, count))
            case Reduce(operation, _, count):
                return ENode("Reduce", (operation, child, count))
            case Softmax(_, count):
                return ENode("Softmax", (child, count))
            case Reshape(_, extents):
                return ENode("Reshape", (child, format_extents(extents)))


class Texts:
    """E-nodes of one snapshot as text: each over the smallest terms of the classes it uses."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    @cached_property
    def _smallest(self) -> Smallest:
        return Smallest(self.snapshot)

    def members(self, owner: int) -> tuple[str, ...]:
        """The e-nodes of a class, shortest first."""
        smallest = self._smallest
        found = set()
        for node in self.snapshot.classes[owner]:
            operands = smallest.operands(node)
            if all(child in smallest.weights for child in operands):
                found.add(printing.term_text(build(node, [smallest.term(child) for child in operands])))
        return tuple(sorted(found, key=lambda text: (len(text), text)))
