"""Replays the chains of an explanation: after every step the interpreter must find the same values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from egraph_opt.egraph.ground import Terms
from egraph_opt.egraph.pattern import CONSTRUCTORS
from egraph_opt.egraph.proof_step import ProofStep
from egraph_opt.egraph.provenance import build
from egraph_opt.egraph.snapshot import ENode
from egraph_opt.errors import InputRejected
from egraph_opt.ir.interpreter import Arithmetic, Interpreter, ModularArithmetic
from egraph_opt.ir.terms import Apply, Buffer, Read, Source, Tensor
from egraph_opt.runtime.explanation import Part

Array = np.ndarray[Any, Any]


def terms_of(part: Part) -> Terms:
    """The table of a part's terms; positions stay numbers. Raises InputRejected for a table in another order."""
    terms = Terms()
    for position, term in enumerate(part.terms):
        sorts = CONSTRUCTORS[term.constructor][0]
        arguments = tuple(a if sort == "String" else int(a) for a, sort in zip(term.arguments, sorts, strict=True))
        if terms.add(ENode(term.constructor, arguments)) != position:
            raise InputRejected(f"the explanation in the model holds term {position} twice")
    return terms


class Replay:
    """Values of a part's terms over arrays for its sources; random integers unless they are given."""

    def __init__(
        self,
        part: Part,
        sources: Mapping[str, Array] | None = None,
        arithmetic: Arithmetic | None = None,
        *,
        seed: int = 0,
    ) -> None:
        self.part = part
        self.terms = terms_of(part)
        self.arithmetic = arithmetic or ModularArithmetic()
        self._sources = dict(sources or {})
        self._generator = np.random.default_rng(seed)
        self._values: dict[int, Array] = {}

    def value(self, number: int) -> Array:
        """Value of a term."""
        wanted: set[int] = set()
        pending = [number]
        while pending:
            current = pending.pop()
            if current not in wanted and current not in self._values:
                wanted.add(current)
                pending += self.terms.nodes[current].children
        for current in sorted(wanted):
            if self.terms.nodes[current].constructor not in ("Nil", "Cons"):
                self._values[current] = self._evaluated(current)
        return self._values[number]

    def _evaluated(self, number: int) -> Array:
        node = self.terms.nodes[number]
        if node.constructor == "Source":
            name, extents = str(node.arguments[0]), tuple(int(n) for n in str(node.arguments[1]).split(",") if n)
            if name not in self._sources:
                self._sources[name] = self._generator.integers(1, 1 << 20, extents)
            return Interpreter({name: self._sources[name]}, self.arithmetic).buffer(Source(name, extents))
        if node.constructor == "Mul" and self._only_summed(number):
            return np.zeros(())
        values: dict[str, Array] = {}
        term = self._shallow(number, values)
        interpreter = Interpreter(values, self.arithmetic)
        return interpreter.tensor(term) if self.terms.is_tensor(number) else interpreter.buffer(term)  # type: ignore[arg-type]

    def _shallow(self, number: int, values: dict[str, Array]) -> Tensor | Buffer:
        """A term over the values of its parts; a contraction as a whole, so that its product is never made."""
        parts: list[Tensor | Buffer] = []
        for child in self.terms.operands(number):
            if self.terms.nodes[number].constructor == "Sum" and self._is_product(child):
                sides = [self._shallow(side, values) for side in self.terms.nodes[child].children]
                parts.append(Apply("mul", tuple(sides)))  # type: ignore[arg-type]
                continue
            values[str(child)] = self._values[child]
            leaf = Source(str(child), self._values[child].shape)
            parts.append(Read(leaf) if self.terms.is_tensor(child) else leaf)
        return build(self.terms.nodes[number], parts)

    def _is_product(self, number: int) -> bool:
        node = self.terms.nodes[number]
        return node.constructor == "Mul" and all(self.terms.nodes[c].constructor == "View" for c in node.children)

    def _only_summed(self, number: int) -> bool:
        if not self._is_product(number):
            return False
        shown = {n for chain in self.part.chains for s in chain.steps for n in s.terms}
        users = [node for node in self.terms.nodes if number in node.children]
        return number not in shown and bool(users) and all(node.constructor == "Sum" for node in users)

    def problems(self) -> list[str]:
        """What is wrong with the part's chains; empty for chains that are right."""
        found: list[str] = []
        for chain in self.part.chains:
            if self._walk(chain.tensor, chain.start, chain.steps, found) != chain.goal:
                found.append(f"{chain.tensor}: the chain does not end at the plan")
        return found

    def _walk(self, name: str, start: int, steps: Sequence[ProofStep], found: list[str]) -> int:
        """Check steps one by one, adding to ``found``; the term they end at."""
        expected = self.value(start)
        current = start
        for number, step in enumerate(steps, 1):
            where = f"{name}, step {number} ({step.rule})"
            if not _same(self.value(step.before), self.value(step.after)):
                found.append(f"{where}: the two sides differ")
            if not _same(self.value(step.whole), expected):
                found.append(f"{where}: the whole has another value than the original")
            if not self._follows(current, step.whole, step.before, step.after):
                found.append(f"{where}: the whole is not the one before with this change")
            if step.given >= 0:
                self._walk(where, step.given, step.because, found)
            current = step.whole
        return current

    def _follows(self, whole: int, following: int, before: int, after: int) -> bool:
        """Whether two terms are the same but for some occurrences of ``before`` that became ``after``."""
        changed = self.terms.replaced
        return changed(whole, before, after) == following or any(
            changed(whole, *pair) == changed(following, *pair) for pair in ((before, after), (after, before))
        )


def _same(one: Array, other: Array) -> bool:
    if np.issubdtype(one.dtype, np.integer):
        return one.size == other.size and bool(np.array_equal(one.reshape(-1), other.reshape(-1)))
    return one.size == other.size and bool(np.allclose(one.reshape(-1), other.reshape(-1), rtol=1e-6, atol=1e-6))
