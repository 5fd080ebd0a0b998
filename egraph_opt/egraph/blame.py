"""Which rule is to blame: what suspected rules made equal is evaluated with numpy, one recorded firing at a time."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from egraph_opt.egraph import primitives
from egraph_opt.egraph.language import Approximate, Rule
from egraph_opt.egraph.provenance import Smallest, build
from egraph_opt.egraph.snapshot import Derivation, ENode, Snapshot
from egraph_opt.errors import EgraphOptError
from egraph_opt.ir.interpreter import Interpreter
from egraph_opt.ir.terms import Apply, Buffer, Reduce, Source, Tensor, children

Term = Tensor | Buffer
# Elements that evaluating a firing may take, and seconds for all of them. A product that is summed at once counts for
# this many elements less.
ELEMENTS, SECONDS, CONTRACTED = 1 << 27, 10.0, 32
# Firings of each rule that are looked at, the smallest first.
FIRINGS = 16
# Errors up to this share of the largest magnitude are rounding.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Wrong:
    """A firing of ``rule`` that is not true; ``how`` says in words by how much."""

    rule: str
    how: str


def wrong_rules(snapshot: Snapshot, suspects: Mapping[str, Rule], *, seed: int = 0) -> list[Wrong]:
    """The suspected rules of which a recorded firing is found to be wrong, each once.

    Both sides of a firing are evaluated over the smallest terms of the classes below them. Firings that are too large
    to be evaluated are passed over, so a rule that is not listed may be wrong all the same.
    """
    smallest = Smallest(snapshot)
    deadline = time.monotonic() + SECONDS
    found: list[Wrong] = []
    for name in sorted(suspects):
        exactness = suspects[name].exactness
        bound = exactness.bound if isinstance(exactness, Approximate) else ROUNDING
        for left, right in _firings(snapshot, smallest, name):
            if time.monotonic() > deadline:
                return found
            how = _difference(left, right, bound, seed)
            if how:
                found.append(Wrong(name, how))
                break
    return found


def misshapen(snapshot: Snapshot, suspects: Collection[str]) -> tuple[str, ...] | None:
    """The suspected rules that made terms of impossible shapes; None where all shapes are right.

    Empty where there are such terms and no suspected rule is recorded to have made one.
    """
    try:
        extents = snapshot.extents
        unfit = {node for nodes in snapshot.classes.values() for node in nodes if not _fits(snapshot, node, extents)}
        own = {
            node: snapshot._extents(node, extents)
            for owner, nodes in snapshot.classes.items()
            for node in nodes
            if snapshot.sorts[owner] != "Args"
        }
    except (EgraphOptError, IndexError, ValueError):
        return ()
    if not unfit and all(
        own[node] == extents[owner] for owner, nodes in snapshot.classes.items() for node in nodes if node in own
    ):
        return None
    owners = _owners(snapshot)
    hollow = {owner for owner, nodes in snapshot.classes.items() if nodes and unfit.issuperset(nodes)}
    return tuple(
        sorted(
            {
                d.rule
                for d in snapshot.derivations
                if d.rule in suspects
                and (d.result in unfit or hollow.intersection(d.result.children) or _differ(own, owners, d))
            }
        )
    )


def _owners(snapshot: Snapshot) -> dict[ENode, int]:
    return {node: owner for owner, nodes in snapshot.classes.items() for node in nodes}


def _differ(own: Mapping[ENode, object], owners: Mapping[ENode, int], firing: Derivation) -> bool:
    """Whether the two sides of a firing, which share a class, have different shapes."""
    one, other = firing.origin, firing.result
    return owners.get(one, -1) == owners.get(other, -2) and own.get(one) != own.get(other)


def _fits(snapshot: Snapshot, node: ENode, extents: Mapping[int, tuple[int, ...]]) -> bool:
    """Whether the shapes of an e-node's operands fit it."""
    operands = [extents[child] for child in node.children] if node.constructor not in ("Nil", "Cons", "Call") else []
    match node.constructor:
        case "View":
            return primitives.map_of(str(node.arguments[1])).source == operands[0]
        case "Mul" | "Add" | "Apply2":
            return operands[0] == operands[1]
        case "Reshape":
            return prod(operands[0]) == prod(snapshot._extents(node, extents) or ())
        case "Sum" | "Reduce" | "Softmax":
            return 0 <= int(node.arguments[-1]) <= len(operands[0])
    return True


def _firings(snapshot: Snapshot, smallest: Smallest, rule: str) -> Iterator[tuple[Term, Term]]:
    """Both sides of the recorded firings of a rule, those that are cheapest to evaluate first."""
    owners = _owners(snapshot)
    known: dict[int, int] = {}
    sides: list[tuple[int, str, Term, Term]] = []
    for derivation in snapshot.derivations:
        # The others are about a sum or call inside the right-hand side.
        if derivation.rule == rule and owners.get(derivation.origin, -1) == owners.get(derivation.result, -2):
            try:
                left, right = (_term(smallest, node) for node in (derivation.origin, derivation.result))
                work = _work(left, known) + _work(right, known)
            except (KeyError, EgraphOptError, ValueError, IndexError, RecursionError):
                continue
            if work <= ELEMENTS:
                sides.append((work, f"{derivation.origin} {derivation.result}", left, right))
    sides.sort(key=lambda side: side[:2])
    for _, _, left, right in sides[:FIRINGS]:
        yield left, right


def _term(smallest: Smallest, node: ENode) -> Term:
    return build(node, [smallest.term(child) for child in smallest.operands(node)])


def _work(term: Term, known: dict[int, int]) -> int:
    """Elements to be computed for a term; equal classes are one object, which counts every time it is met first."""
    if id(term) not in known:
        known[id(term)] = 0
        below = sum(_work(child, known) for child in children(term))
        if isinstance(term, Reduce) and isinstance(term.tensor, Apply):
            own = prod(term.tensor.extents) // CONTRACTED
        else:
            own = prod(term.extents)
        known[id(term)] = below + own
    return known[id(term)]


class _Evaluator(Interpreter):
    """Evaluates every term object once: the terms of a network are trees with very many equal branches."""

    def __init__(self, values: dict[str, np.ndarray]) -> None:
        super().__init__(values)
        self._known: dict[int, np.ndarray] = {}

    def tensor(self, term: Tensor) -> np.ndarray:
        if id(term) not in self._known:
            self._known[id(term)] = super().tensor(term)
        return self._known[id(term)]

    def buffer(self, term: Buffer) -> np.ndarray:
        if id(term) not in self._known:
            self._known[id(term)] = super().buffer(term)
        return self._known[id(term)]

    def value(self, term: Term) -> np.ndarray:
        return self.tensor(term) if isinstance(term, Tensor) else self.buffer(term)


def _difference(left: Term, right: Term, bound: float, seed: int) -> str:
    """In words how two terms differ on random values; empty when they agree or cannot be compared."""
    sources: dict[str, Source] = {}
    for term in (left, right):
        _sources(term, sources, set())
    draw = np.random.default_rng(seed)
    values = {name: draw.standard_normal(sources[name].extents) for name in sorted(sources)}
    try:
        with np.errstate(all="ignore"):
            evaluator = _Evaluator(values)
            one, other = evaluator.value(left), evaluator.value(right)
    except (RecursionError, MemoryError):
        return ""
    except Exception as error:  # a term that cannot be evaluated is as wrong as one of another value
        return f"it makes a term that has no value ({type(error).__name__}: {error})"
    if one.shape != other.shape:
        return f"its sides have the shapes {list(one.shape)} and {list(other.shape)}"
    scale = float(np.max(np.abs(one[np.isfinite(one)]), initial=0.0))
    if np.allclose(one, other, rtol=bound, atol=bound * scale, equal_nan=True):
        return ""
    with np.errstate(all="ignore"):
        difference = float(np.nanmax(np.abs(one - other))) / max(scale, 1e-300)
    return f"its sides differ by {difference:.1e} of the range where they have the shape {list(one.shape)}"


def _sources(term: Term, found: dict[str, Source], seen: set[int]) -> None:
    if id(term) in seen:
        return
    seen.add(id(term))
    if isinstance(term, Source):
        found[term.name] = term
    for child in children(term):
        _sources(child, found, seen)
