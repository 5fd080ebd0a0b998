"""Texts of kernels, made once for all that differ in the buffers they read only: the layers of a model repeat."""

from __future__ import annotations

from collections.abc import Mapping

from egraph_opt.egraph.pattern import CONSTRUCTORS
from egraph_opt.extract.problem import Alternative, Body
from egraph_opt.ir.expr import Extents

# Where the literals stand among the arguments of every constructor.
_LITERALS = {
    name: tuple(i for i, sort in enumerate(inputs) if sort in ("String", "i64"))
    for name, (inputs, _) in CONSTRUCTORS.items()
}


class Forms:
    """Bodies of one form differ in the buffers they read only; ``extents`` are those of the buffers."""

    def __init__(self, extents: Mapping[int, Extents]) -> None:
        self.extents = extents
        self._numbers: dict[tuple[object, ...], int] = {}
        self._known: dict[Body, tuple[int, tuple[int, ...]]] = {}
        self._texts: dict[tuple[int, ...], str] = {}

    def text(self, body: Body, alternative: Alternative) -> str:
        """The text of the kernel of a body, an alternative."""
        form, reads = self._form(body)
        first: dict[int, int] = {}
        key = (form, *[first.setdefault(leaf, len(first)) for leaf in reads])
        if key not in self._texts:
            self._texts[key] = alternative.text
        return self._texts[key]

    def _form(self, body: Body) -> tuple[int, tuple[int, ...]]:
        """The number of a body's form, and the buffers it reads, load by load."""
        found = self._known.get(body)
        if found is None:
            node, parts = body.node, [self._form(part) for part in body.parts]
            key: tuple[object, ...]
            if node.constructor == "Read":
                key, reads = (self.extents[node.children[0]],), node.children
            else:
                literals = [node.arguments[position] for position in _LITERALS[node.constructor]]
                key = (node.constructor, *literals, *[form for form, _ in parts])
                reads = tuple([leaf for _, some in parts for leaf in some])
            found = self._known[body] = self._numbers.setdefault(key, len(self._numbers)), reads
        return found
