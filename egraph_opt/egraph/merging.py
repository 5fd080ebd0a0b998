"""One e-graph out of those of a program's windows: equal e-nodes are one, and what they equal is equal."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from egraph_opt.egraph.snapshot import OPERANDS, Derivation, ENode, Snapshot, no_collection

_Classes = Mapping[int, int] | Sequence[int]


@no_collection()
def merged(snapshots: Sequence[Snapshot], defined: Collection[str]) -> Snapshot:
    """The e-graph that holds what any of the snapshots holds, closed under congruence.

    ``defined`` are the tensors that some snapshot defines: where another one has a source of that name, it is meant.
    The order of classes and e-nodes follows from the snapshots alone.
    """
    merger = _Merger(frozenset(defined))
    for snapshot in snapshots:
        merger.add(snapshot)
    return merger.result()


class _Merger:
    """``owner`` tells the class of every e-node seen so far, ``parent`` the class that a class became a part of.

    Classes keep the number they got first; the lower of two that turn out to be equal stays.
    """

    def __init__(self, defined: frozenset[str]) -> None:
        self.defined = defined
        self.owner: dict[ENode, int] = {}
        self.parent: list[int] = []
        self.sorts: list[str] = []
        self.names: dict[str, int] = {}
        self.derivations: list[Derivation] = []
        self.awaited: list[tuple[str, int]] = []
        # The classes that became parts of others.
        self.gone: set[int] = set()
        self.joined = False

    def find(self, number: int) -> int:
        parent = self.parent
        while parent[number] != number:
            parent[number] = number = parent[parent[number]]
        return number

    def union(self, one: int, other: int) -> None:
        one, other = self.find(one), self.find(other)
        if one != other:
            self.parent[max(one, other)] = min(one, other)
            self.gone.add(max(one, other))
            self.joined = True

    def fresh(self, sort: str) -> int:
        self.parent.append(len(self.parent))
        self.sorts.append(sort)
        return self.parent[-1]

    def add(self, snapshot: Snapshot) -> None:
        """Take over the e-nodes of a snapshot, in its classes or in those that are known to be the same."""
        new = self._classes(snapshot)
        places: dict[ENode, ENode] = {}
        for owner, nodes in snapshot.classes.items():
            target = self.find(new[owner])
            for node in nodes:
                place = places[node] = self._moved(node, new)
                if self._stands_in(node):
                    continue
                known = self.owner.setdefault(place, target)
                if known != target:
                    self.union(known, target)
                    target = self.find(target)
        for name, owner in snapshot.names.items():
            self.union(self.names.setdefault(name, new[owner]), new[owner])
        for rule, origin, result in snapshot.derivations:
            ends = [places.get(node) or self._moved(node, new) for node in (origin, result)]
            self.derivations.append(Derivation(rule, *ends))

    def _classes(self, snapshot: Snapshot) -> dict[int, int]:
        """The class here of every class of a snapshot: one that holds the same e-node, or a new one.

        Snapshots list classes after those of their flattest e-node, so most are found at once; the others turn out to
        be equal when all e-nodes are compared.
        """
        new = {owner: self.names[name] for name, owner in snapshot.names.items() if name in self.names}
        for owner, sort in sorted(snapshot.sorts.items()):
            if owner in new:
                continue
            found = None
            for node in snapshot.classes.get(owner, ()):
                if self._stands_in(node):
                    found = self._filled(str(node.arguments[0]))
                    if found is None:
                        found = self.fresh(sort)
                        self.awaited.append((str(node.arguments[0]), found))
                elif self.owner and all(child in new for child in node.children):
                    found = self.owner.get(self._moved(node, new))
                if found is not None:
                    break
            new[owner] = self.find(found) if found is not None else self.fresh(sort)
        return new

    def _stands_in(self, node: ENode) -> bool:
        """Whether an e-node is a source only because its snapshot does not define it."""
        return node.constructor == "Source" and node.arguments[0] in self.defined

    def _filled(self, name: str) -> int | None:
        """The class of the buffer that a defined tensor is computed into."""
        if name not in self.names:
            return None
        return self.owner.get(ENode("Compute", (self.find(self.names[name]),)))

    def _moved(self, node: ENode, new: _Classes) -> ENode:
        """An e-node over other classes; itself where they are the same."""
        arguments = list(node.arguments)
        changed = False
        for position in OPERANDS[node.constructor]:
            before = int(arguments[position])
            after = self.find(new[before])
            if after != before:
                arguments[position] = after
                changed = True
        return ENode(node.constructor, tuple(arguments)) if changed else node

    def result(self) -> Snapshot:
        for name, buffer in self.awaited:
            filled = self._filled(name)
            if filled is not None:
                self.union(buffer, filled)
        while self.joined:
            self.joined = False
            before, self.owner = self.owner, {}
            for node, owner in before.items():
                place = self._settled(node)
                known = self.owner.setdefault(place, self.find(owner))
                if known != owner:
                    self.union(known, owner)
        classes: dict[int, list[ENode]] = {}
        for node, owner in self.owner.items():
            classes.setdefault(self.find(owner), []).append(node)
        return Snapshot.of(
            {owner: classes[owner] for owner in sorted(classes)},
            {owner: self.sorts[owner] for owner in sorted(classes)},
            {name: self.find(owner) for name, owner in sorted(self.names.items())},
            self._derivations(),
        )

    def _derivations(self) -> list[Derivation]:
        """Derivations over the final classes; a source that another snapshot defines is the buffer computed there."""
        found: dict[Derivation, None] = {}
        for rule, *ends in self.derivations:
            origin, result = [self._computed(node) if self._stands_in(node) else self._settled(node) for node in ends]
            if origin != result:
                found[Derivation(rule, origin, result)] = None
        return list(found)

    def _computed(self, source: ENode) -> ENode:
        return ENode("Compute", (self.find(self.names[str(source.arguments[0])]),))

    def _settled(self, node: ENode) -> ENode:
        """An e-node of classes here over those that they are parts of by now; itself where they are none."""
        return node if self.gone.isdisjoint(node.children) else self._moved(node, self.parent)
