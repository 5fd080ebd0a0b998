"""Finding terms in a snapshot, and the e-nodes of a class as text."""

from __future__ import annotations

from collections.abc import Set
from functools import cached_property

from egraph_opt.egraph.provenance import Smallest, build, enode
from egraph_opt.egraph.snapshot import ENode, Snapshot
from egraph_opt.ir import printing
from egraph_opt.ir.terms import Buffer, Call, Read, Source, Tensor, children


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
            case Call(_, _, operands, _):
                chain: int | None = self._owner.get(ENode("Nil", ()))
                for operand in reversed(operands):
                    found = self._find(operand, known)
                    if found is None or chain is None:
                        return None
                    chain = self._owner.get(ENode("Cons", (found, chain)))
                return None if chain is None else enode(term, (chain,))
        parts = [self._find(child, known) for child in children(term)]
        inner = [part for part in parts if part is not None]
        return enode(term, inner) if len(inner) == len(parts) else None


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
