"""A saturated e-graph read back into Python: classes of e-nodes, and who derived what."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from functools import cache, cached_property
from typing import Any, NamedTuple

from egraph_opt.egraph import canonical, primitives
from egraph_opt.egraph.engine import EGraph
from egraph_opt.egraph.pattern import CONSTRUCTORS, parse_extents
from egraph_opt.errors import EgraphOptError
from egraph_opt.ir.expr import Extents

Field = str | int

# Where the sub-terms stand among the arguments of every constructor.
OPERANDS = {
    name: tuple(i for i, sort in enumerate(inputs) if sort in ("Tensor", "Buffer", "Args"))
    for name, (inputs, _) in CONSTRUCTORS.items()
}


class _Fields(NamedTuple):
    constructor: str
    arguments: tuple[Field, ...]


class ENode(_Fields):
    """A constructor applied to class ids (for sub-terms) and literals, in the order of ``CONSTRUCTORS``.

    A tuple, since it is compared and hashed more than anything else.
    """

    @cached_property
    def children(self) -> tuple[int, ...]:
        """Class ids of the sub-terms."""
        return tuple([int(self.arguments[position]) for position in OPERANDS[self.constructor]])


class Derivation(NamedTuple):
    """Rule ``rule`` made e-node ``result`` equal to ``origin``."""

    rule: str
    origin: ENode
    result: ENode


@contextmanager
def no_collection() -> Iterator[None]:
    """Without looking for cyclic garbage: hundreds of thousands of objects are made here, and none of them is any."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            if not gc.get_freeze_count():
                # What was made joins the oldest objects at once, instead of being looked at again and again till then.
                gc.freeze()
                gc.unfreeze()
            gc.enable()


class Snapshot:
    """Classes of a saturated e-graph.

    ``classes[id]`` holds the e-nodes of a class, ``sorts[id]`` its sort, ``names`` the classes of the program's
    tensors.
    """

    def __init__(self, egraph: EGraph) -> None:
        with no_collection():
            self._read(egraph)

    @classmethod
    def of(
        cls,
        classes: dict[int, list[ENode]],
        sorts: dict[int, str],
        names: dict[str, int],
        derivations: list[Derivation],
    ) -> Snapshot:
        """A snapshot of these tables."""
        found = cls.__new__(cls)
        found.classes, found.sorts, found.names, found.derivations = classes, sorts, names, derivations
        return found

    def _read(self, egraph: EGraph) -> None:
        frozen = egraph.egglog.freeze().functions
        show = egraph.egglog.value_to_string
        number = egraph.egglog.value_to_i64
        ids: dict[tuple[str, object], int] = {}
        texts: dict[object, str] = {}
        self.classes: dict[int, list[ENode]] = {}
        self.sorts: dict[int, str] = {}
        self.names: dict[str, int] = {}
        nodes: dict[object, ENode] = {}

        def field(value: object, sort: str) -> Field:
            if sort == "String":
                if value not in texts:
                    texts[value] = show(value)  # type: ignore[arg-type]
                return texts[value]
            if sort == "i64":
                return number(value)  # type: ignore[arg-type]
            found = ids.setdefault((sort, value), len(ids))
            self.sorts[found] = sort
            return found

        for name, (inputs, output) in CONSTRUCTORS.items():
            for row in frozen[name].rows:
                arguments = tuple(field(v, sort) for v, sort in zip(row.inputs, inputs, strict=True))
                owner = int(field(row.output, output))
                if name == "Named":
                    self.names[str(arguments[0])] = owner
                    self.classes.setdefault(owner, [])
                else:
                    self.classes.setdefault(owner, []).append(ENode(name, arguments))
            for row in frozen["N" + name].rows:
                nodes[row.output] = ENode(
                    name, tuple(field(v, sort) for v, sort in zip(row.inputs, inputs, strict=True))
                )
        self.derivations = [
            Derivation(show(row.inputs[0]), nodes[row.inputs[1]], nodes[row.inputs[2]])
            for row in frozen["derived"].rows
        ]
        self._renumber()

    def __getstate__(self) -> dict[str, object]:
        """Plain tables with every e-node once: a fifth of the bytes and of the time that the objects would take."""
        numbers: dict[ENode, int] = {}

        def number(node: ENode) -> int:
            return numbers.setdefault(node, len(numbers))

        classes = [(owner, [number(node) for node in nodes]) for owner, nodes in self.classes.items()]
        derivations = [(d.rule, number(d.origin), number(d.result)) for d in self.derivations]
        nodes = [(node.constructor, *node.arguments) for node in numbers]
        return {"nodes": nodes, "classes": classes, "derived": derivations, "sorts": self.sorts, "names": self.names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        with no_collection():
            nodes = [ENode(row[0], row[1:]) for row in state["nodes"]]
            self.classes = {owner: [nodes[number] for number in numbers] for owner, numbers in state["classes"]}
            self.derivations = [
                Derivation(rule, nodes[origin], nodes[result]) for rule, origin, result in state["derived"]
            ]
        self.sorts, self.names = state["sorts"], state["names"]

    @cached_property
    def made(self) -> Mapping[str, int]:
        """How many e-nodes every rule made out of others: whole right-hand sides, and the sums and calls in them."""
        with no_collection():
            return Counter(rule for rule, _ in {(d.rule, d.result) for d in self.derivations})

    def _renumber(self) -> None:
        """Bring ids, classes and e-nodes into an order that depends on the terms alone."""
        names, of_nodes = canonical.term_names(self.classes)
        new = canonical.numbering(list(self.sorts), names)

        # Rules name most e-nodes several times.
        @cache
        def renumbered(node: ENode) -> ENode:
            arguments = list(node.arguments)
            for position in OPERANDS[node.constructor]:
                arguments[position] = new[int(arguments[position])]
            return ENode(node.constructor, tuple(arguments))

        self.classes = {
            new[owner]: [renumbered(node) for node in sorted(self.classes[owner], key=of_nodes.__getitem__)]
            for owner in sorted(self.classes, key=new.__getitem__)
        }
        self.sorts = {new[owner]: self.sorts[owner] for owner in sorted(self.sorts, key=new.__getitem__)}
        self.names = {name: new[owner] for name, owner in sorted(self.names.items())}
        found = ((d.rule, renumbered(d.origin), renumbered(d.result)) for d in self.derivations)
        self.derivations = [Derivation(*parts) for parts in sorted(found)]

    def rename(self, names: Mapping[str, str]) -> None:
        """Give sources and tensors other names; the order of classes and e-nodes stays."""

        @cache
        def other(node: ENode) -> ENode:
            return ENode("Source", (names.get(str(node.arguments[0]), node.arguments[0]), *node.arguments[1:]))

        for nodes in self.classes.values():
            for i, node in enumerate(nodes):
                if node.constructor == "Source":
                    nodes[i] = other(node)
        self.names = {names.get(name, name): owner for name, owner in self.names.items()}
        for i, (rule, origin, result) in enumerate(self.derivations):
            if "Source" in (origin.constructor, result.constructor):
                ends = [other(node) if node.constructor == "Source" else node for node in (origin, result)]
                self.derivations[i] = Derivation(rule, *ends)

    @property
    def size(self) -> int:
        return sum(len(nodes) for nodes in self.classes.values())

    @cached_property
    def extents(self) -> Mapping[int, Extents]:
        """Extents of every tensor and buffer class."""
        known: dict[int, Extents] = {}
        pending = [
            (owner, node) for owner, nodes in self.classes.items() for node in nodes if self.sorts[owner] != "Args"
        ]
        while pending:
            rest = []
            for owner, node in pending:
                if owner in known:
                    continue
                found = self._extents(node, known)
                if found is None:
                    rest.append((owner, node))
                else:
                    known[owner] = found
            if len(rest) == len(pending):
                raise EgraphOptError("the e-graph holds a class whose extents cannot be told")
            pending = rest
        return known

    def _extents(self, node: ENode, known: Mapping[int, Extents]) -> Extents | None:
        a = node.arguments
        match node.constructor:
            case "View":
                return primitives.map_of(str(a[1])).result
            case "Fill" | "Source" | "Reshape":
                return parse_extents(str(a[1]))
            case "Call":
                return parse_extents(str(a[3]))
            case "Sum" | "Reduce":
                inner, count = (a[0], a[1]) if node.constructor == "Sum" else (a[1], a[2])
                base = known.get(int(inner))
                return None if base is None else base[: len(base) - int(count)]
            case _:
                return known.get(node.children[-1])

    def arguments(self, args: int) -> tuple[int, ...]:
        """The buffer classes of an argument list."""
        found: list[int] = []
        while True:
            node = self.classes[args][0]
            if node.constructor == "Nil":
                return tuple(found)
            found.append(int(node.arguments[0]))
            args = int(node.arguments[1])


def fraction(text: Field) -> Fraction:
    return Fraction(str(text))
