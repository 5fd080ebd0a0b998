"""Ground terms by number.

A term is an :class:`ENode` over the numbers of its parts, so parts have smaller numbers. A tensor and the buffer that
holds it are one term here: ``Read(Compute(t))`` is ``t`` and ``Compute(Read(b))`` is ``b``. So are a buffer and its
memory under the extents it has already: ``Reshape(b, extents of b)`` is ``b``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from egraph_opt.egraph.pattern import CONSTRUCTORS, parse_extents
from egraph_opt.egraph.primitives import map_of
from egraph_opt.egraph.provenance import build, enode
from egraph_opt.egraph.snapshot import ENode
from egraph_opt.ir.expr import Extents
from egraph_opt.ir.terms import Buffer, Call, Source, Tensor, children

# The place, in a path through a term, of the buffer that holds a tensor or the tensor in a buffer.
HELD = -1


class Terms:
    """Ground terms by number, each once."""

    def __init__(self) -> None:
        self.nodes: list[ENode] = []
        self.extents: list[Extents] = []
        self._numbers: dict[ENode, int] = {}
        self._built: dict[int, Tensor | Buffer] = {}

    def add(self, node: ENode) -> int:
        """The number of a term given by its constructor and the numbers of its parts."""
        opposite = {"Read": "Compute", "Compute": "Read"}.get(node.constructor)
        if opposite is not None and self.nodes[node.children[0]].constructor == opposite:
            return self.nodes[node.children[0]].children[0]
        if node not in self._numbers:
            extents = self._extents(node)
            if node.constructor == "Reshape" and self.extents[node.children[0]] == extents:
                return node.children[0]
            self._numbers[node] = len(self.nodes)
            self.nodes.append(node)
            self.extents.append(extents)
        return self._numbers[node]

    def _extents(self, node: ENode) -> Extents:
        """Extents of a term; an argument list has none."""
        arguments = node.arguments
        match node.constructor:
            case "Nil" | "Cons":
                return ()
            case "View":
                return map_of(str(arguments[1])).result
            case "Fill" | "Source" | "Reshape":
                return parse_extents(str(arguments[1]))
            case "Call":
                return parse_extents(str(arguments[3]))
        inner = self.extents[node.children[-1]]
        return inner[: len(inner) - int(arguments[-1])] if node.constructor in ("Sum", "Reduce") else inner

    def encode(self, term: Tensor | Buffer, known: Mapping[str, int]) -> int:
        """The number of a term; sources named in ``known`` stand for the tensor or buffer of that number."""

        def inside(child: Tensor | Buffer) -> int:
            return self.encode(child, known)

        match term:
            case Source(name) if name in known:
                return self.as_buffer(known[name])
            case Call(_, _, operands, _):
                chain = self.add(ENode("Nil", ()))
                for operand in reversed(operands):
                    chain = self.add(ENode("Cons", (inside(operand), chain)))
                return self.add(enode(term, (chain,)))
        return self.add(enode(term, [inside(child) for child in children(term)]))

    def is_tensor(self, number: int) -> bool:
        """Whether a term is a tensor, not a buffer or a list of them."""
        return CONSTRUCTORS[self.nodes[number].constructor][1] == "Tensor"

    def held(self, number: int) -> int:
        """The buffer that holds a tensor, or the tensor in a buffer."""
        return self.add(ENode("Compute" if self.is_tensor(number) else "Read", (number,)))

    def as_buffer(self, number: int) -> int:
        """The buffer that holds a tensor; a buffer is itself."""
        return self.held(number) if self.is_tensor(number) else number

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
        if self.nodes[old].constructor in ("Read", "Compute"):
            # What is held is all that can be told apart.
            old, new = self.held(old), self.held(new)
        # Parts have smaller numbers than the terms they are in.
        above: set[int] = set()
        pending = [number]
        while pending:
            current = pending.pop()
            if current > old and current not in above:
                above.add(current)
                pending += self.nodes[current].children
        done = {old: new}
        for current in sorted(above):
            node = self.nodes[current]
            parts = [done.get(child, child) for child in node.children]
            done[current] = current if parts == list(node.children) else self.add(rebuilt(node, parts))
        return done.get(number, number)

    def replaced_at(self, number: int, path: tuple[int, ...], new: int) -> int:
        """A term with the part at one place replaced; the path counts the parts, HELD is what holds it or is held."""
        if not path:
            return new
        if path[0] == HELD:
            return self.held(self.replaced_at(self.held(number), path[1:], new))
        node = self.nodes[number]
        parts = list(node.children)
        parts[path[0]] = self.replaced_at(parts[path[0]], path[1:], new)
        return self.add(rebuilt(node, parts))


# Where the parts stand among the arguments of every constructor.
_PLACES = {
    name: tuple(i for i, sort in enumerate(sorts) if sort in ("Tensor", "Buffer", "Args"))
    for name, (sorts, _) in CONSTRUCTORS.items()
}


def rebuilt(node: ENode, parts: Iterable[int]) -> ENode:
    """An e-node over other parts, in order."""
    arguments = list(node.arguments)
    for place, part in zip(_PLACES[node.constructor], parts, strict=True):
        arguments[place] = part
    return ENode(node.constructor, tuple(arguments))
