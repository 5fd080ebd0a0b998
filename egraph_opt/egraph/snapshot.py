"""A saturated e-graph read back into Python: classes of e-nodes, and who derived what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from egraph_opt.egraph import canonical, primitives
from egraph_opt.egraph.engine import EGraph
from egraph_opt.egraph.pattern import CONSTRUCTORS, parse_extents
from egraph_opt.errors import EgraphOptError
from egraph_opt.ir.expr import Extents

Field = str | int


@dataclass(frozen=True)
class ENode:
    """A constructor applied to class ids (for sub-terms) and literals, in the order of ``CONSTRUCTORS``."""

    constructor: str
    arguments: tuple[Field, ...]

    @cached_property
    def children(self) -> tuple[int, ...]:
        """Class ids of the sub-terms."""
        inputs = CONSTRUCTORS[self.constructor][0]
        return tuple(
            int(a) for a, sort in zip(self.arguments, inputs, strict=True) if sort in ("Tensor", "Buffer", "Args")
        )


@dataclass(frozen=True)
class Derivation:
    """Rule ``rule`` made e-node ``result`` equal to ``origin``."""

    rule: str
    origin: ENode
    result: ENode


class Snapshot:
    """Classes of a saturated e-graph.

    ``classes[id]`` holds the e-nodes of a class, ``sorts[id]`` its sort, ``names`` the classes of the program's
    tensors.
    """

    def __init__(self, egraph: EGraph) -> None:
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

    def _renumber(self) -> None:
        """Bring ids, classes and e-nodes into an order that depends on the terms alone."""
        names = canonical.term_names(self.classes)
        new = canonical.numbering(list(self.sorts), names)

        def renumbered(node: ENode) -> ENode:
            inputs = CONSTRUCTORS[node.constructor][0]
            return ENode(
                node.constructor,
                tuple(
                    new[int(a)] if sort in ("Tensor", "Buffer", "Args") else a
                    for a, sort in zip(node.arguments, inputs, strict=True)
                ),
            )

        self.classes = {
            new[owner]: [
                renumbered(node) for node in sorted(self.classes[owner], key=lambda n: canonical.node_name(n, names))
            ]
            for owner in sorted(self.classes, key=new.__getitem__)
        }
        self.sorts = {new[owner]: self.sorts[owner] for owner in sorted(self.sorts, key=new.__getitem__)}
        self.names = {name: new[owner] for name, owner in sorted(self.names.items())}
        self.derivations = [Derivation(d.rule, renumbered(d.origin), renumbered(d.result)) for d in self.derivations]

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
