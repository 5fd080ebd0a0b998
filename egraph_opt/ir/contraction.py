"""Re-indexings of a contraction ``sum(view(x, left) * view(w, right), count)``: the index arithmetic behind the
derivation rules.

Each function takes the two maps and the number of reduced axes and returns every way it applies as a tuple of new
maps and counts. Reduced iterators come last. All are exact: padding needs no care because every tensor is zero
outside its extents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, wraps
from itertools import combinations
from math import gcd, prod
from typing import TypeVar

from egraph_opt.ir import expr as ex
from egraph_opt.ir import maps
from egraph_opt.ir.expr import Expr, Extents
from egraph_opt.ir.maps import IndexMap, index_map

T = TypeVar("T")

# A re-indexing may not multiply the number of products by more than this (boundary relaxing, shears, substitutions).
GROWTH = 16
# A shear turns a window into a band of a dense product, which only pays while the window is wide.
SHEAR_GROWTH = 2


@dataclass(frozen=True)
class Contraction:
    """The iteration space of one contraction, with its iterators classified."""

    left: IndexMap
    right: IndexMap
    count: int

    @cached_property
    def extents(self) -> Extents:
        return self.left.result

    @cached_property
    def rank(self) -> int:
        return len(self.extents)

    @property
    def outputs(self) -> range:
        return range(self.rank - self.count)

    @property
    def reduced(self) -> range:
        return range(self.rank - self.count, self.rank)

    @cached_property
    def points(self) -> int:
        return prod(self.extents)

    @cached_property
    def operands(self) -> tuple[IndexMap, IndexMap]:
        return (self.left, self.right)

    @cached_property
    def expressions(self) -> tuple[Expr, ...]:
        """All indices and guards of both operands."""
        return tuple(e for operand in self.operands for e in (*operand.indices, *operand.guards))

    @cached_property
    def windows(self) -> tuple[int, ...]:
        """Reduced iterators that walk an axis together with an output iterator, windows overlapping."""
        outputs = set(self.outputs)
        mixed = [e.iterators for e in self.expressions if e.iterators & outputs and not self.is_injective(e)]
        return tuple(r for r in self.reduced if any(r in iterators for iterators in mixed))

    def is_reduced(self, iterator: int) -> bool:
        return iterator >= self.rank - self.count

    def is_injective(self, e: Expr) -> bool:
        """True when an affine index takes every value at most once: a mixed-radix number of its iterators."""
        return ex.is_injective(e, self.extents)

    def digits(self, e: Expr, d: int) -> tuple[int, ...]:
        """Iterators that index ``e`` already holds as the remainders of a split by ``d``; the rest is a window over
        the quotient.

        Empty when there are none, when one is too large for that or when the rest takes no value twice.
        """
        loose = tuple((v, c) for v, c in e.terms if c % d and isinstance(v, int))
        whole = Expr(0, tuple(term for term in e.terms if not term[1] % d))
        small = all(self.extents[v] <= d // gcd(d, c) for v, c in loose)
        return tuple(v for v, _ in loose) if small and not self.is_injective(whole) else ()

    @cached_property
    def substitutions(self) -> list[tuple[IndexMap, IndexMap, IndexMap]]:
        """Variable substitution: (left', right', view of the new result), at most one."""
        return _substitutions(self)

    @cached_property
    def is_split(self) -> bool:
        """False when a split needs no more products: of an operand's axis along digits the iterators have, of an
        iterator alone.

        The class of such a contraction holds the split one too, so most rules need only look at that.
        """
        return not self.splittable and not any(self.quotient_factors)

    @cached_property
    def quotient_factors(self) -> tuple[dict[int, int], dict[int, int]]:
        """Iterators alone in a quotient of an index, each with its smallest divisor: output iterators, reduced ones."""
        found: tuple[dict[int, int], dict[int, int]] = ({}, {})
        for operand in self.operands:
            for e in operand.indices:
                for quotient, _ in e.quotients:
                    i = quotient.dividend.as_iterator()
                    if i is not None and quotient.divisor < self.extents[i]:
                        factors = found[self.is_reduced(i)]
                        factors[i] = min(quotient.divisor, factors.get(i, quotient.divisor))
        return found

    @cached_property
    def splittable(self) -> dict[tuple[int, int], int]:
        """Axes (operand, axis) that can be split along digits the iterators have already, and the divisor for each."""
        return {
            (side, axis): d
            for side, operand in enumerate(self.operands)
            for axis, e in enumerate(operand.indices)
            if e.is_affine and not self.is_injective(e)
            for d in sorted({abs(c) for _, c in e.terms}, reverse=True)
            if d > 1 and self.digits(e, d)
        }


@lru_cache(maxsize=10_000)
def contraction(left: IndexMap, right: IndexMap, count: int) -> Contraction:
    """The contraction of two maps; one object, so that what is known about it is found once."""
    return Contraction(left, right, count)


def linear(function: Callable[[Contraction], list[T]]) -> Callable[[IndexMap, IndexMap, int], list[T]]:
    """A function of the two maps and the count of a contraction; a map that fills with anything but zero has no
    answer."""

    @wraps(function)
    def guarded(left: IndexMap, right: IndexMap, count: int) -> list[T]:
        return [] if left.fill or right.fill else function(contraction(left, right, count))

    return guarded


def is_dominated(c: Contraction) -> bool:
    """True when variable substitution gives a contraction of no more products: operators should compute that one."""
    return any(prod(left.result) <= c.points for left, _, _ in c.substitutions)


def once_split(function: Callable[[Contraction], list[T]]) -> Callable[[Contraction], list[T]]:
    """A function that leaves contractions alone whose axes can still be split along digits they have."""

    @wraps(function)
    def guarded(c: Contraction) -> list[T]:
        return function(c) if c.is_split else []

    return guarded


def reindex(
    index: IndexMap, result: Sequence[int], replacements: Sequence[Expr], guards: Iterable[Expr] = ()
) -> IndexMap:
    """The same view over new iterators, old iterator ``i`` being ``replacements[i]``; more guards may be added."""
    result = tuple(result)
    return index_map(
        index.source,
        result,
        [ex.substitute(e, replacements, result) for e in index.indices],
        [*(ex.substitute(g, replacements, result) for g in index.guards), *guards],
        index.fill,
    )


@linear
@once_split
def split_sums(c: Contraction) -> list[tuple[IndexMap, IndexMap, int, int]]:
    """Summation splitting (EINNET section 4.1): window iterators are summed last, the others first.

    Gives (left', right', inner count, outer count) with iterators in the order outputs, outer, inner. Summed last
    are all windows, all but the finest parts of split windows, or the windows of some of the axes.
    """
    chains = _window_chains(c)
    chosen = [
        tuple(chain[: max(0, len(chain) - kept)] for chain in chains)
        for kept in range(max(map(len, chains), default=0))
    ]
    chosen += [
        tuple(chain if i in some else [] for i, chain in enumerate(chains))
        for size in range(1, len(chains))
        for some in combinations(range(len(chains)), size)
    ]
    found = {}
    for parts in chosen:
        outer = sorted(r for part in parts for r in part)
        inner = [r for r in c.reduced if r not in outer]
        if not outer or not inner:
            continue
        order = [*c.outputs, *outer, *inner]
        replacements = [ex.iterator(order.index(i)) for i in range(c.rank)]
        extents = [c.extents[i] for i in order]
        found[tuple(outer)] = (
            reindex(c.left, extents, replacements),
            reindex(c.right, extents, replacements),
            len(inner),
            len(outer),
        )
    return list(found.values())


def _window_chains(c: Contraction) -> list[list[int]]:
    """Window iterators grouped by the index they share, coarsest first: a finer one is only summed last with the
    coarser ones.

    An iterator inside a quotient counts as coarse, because only outside the inner sum can the quotient become an
    iterator.
    """
    chains: list[list[int]] = []
    placed: set[int] = set()
    for e in c.expressions:
        weights: dict[int, tuple[bool, int]] = {}
        for atom, coefficient in e.terms:
            for i in {atom} if isinstance(atom, int) else atom.dividend.iterators:
                if i in c.windows and i not in placed:
                    inside = not isinstance(atom, int)
                    weights[i] = max(weights.get(i, (False, 0)), (inside, abs(coefficient)))
        if weights and len(e.iterators - set(weights)) > 0:
            chains.append(sorted(weights, key=lambda i: (weights[i], -i), reverse=True))
            placed |= set(weights)
    return chains


def _output_part(expression: Expr, c: Contraction) -> Expr | None:
    """The sum of the terms over output iterators only; None when an atom mixes output and reduced iterators."""
    part: list[tuple[ex.Atom, int]] = []
    for atom, coefficient in expression.terms:
        iterators = {atom} if isinstance(atom, int) else atom.dividend.iterators
        kinds = {c.is_reduced(i) for i in iterators}
        if len(kinds) == 2:
            return None
        if kinds == {False}:
            part.append((atom, coefficient))
    return Expr(0, tuple(part))


@linear
@once_split
def substitute_outputs(c: Contraction) -> list[tuple[IndexMap, IndexMap, IndexMap]]:
    """Variable substitution; see :attr:`Contraction.substitutions`."""
    return c.substitutions


def _substitutions(c: Contraction) -> list[tuple[IndexMap, IndexMap, IndexMap]]:
    """Variable substitution: the distinct index expressions of the operands become the new output iterators.

    Gives (left', right', view of the new result). An index ``g * part + rest`` becomes ``g * v + rest`` with the new
    iterator v = part. Output iterators inside an atom shared with a reduced iterator stay. Guards over output
    iterators only move to the view.
    """
    kept: set[int] = set()
    parts: dict[Expr, list[tuple[Expr, int, int]]] = {}
    moved: list[Expr] = []
    for operand in c.operands:
        for e, extent in zip(operand.indices, operand.source, strict=True):
            part = _output_part(e, c)
            if part is None:
                kept |= {i for i in e.iterators if not c.is_reduced(i)}
            elif len(part.terms) > 1 and c.is_injective(part):
                # Digits of a number are iterators of their own.
                kept |= part.iterators
            elif part.terms:
                unit, factor = _unit(part)
                parts.setdefault(unit, []).append((e - part, extent, factor))
        for g in operand.guards:
            if all(not c.is_reduced(i) for i in g.iterators):
                moved.append(g)
            else:
                kept |= {i for i in g.iterators if not c.is_reduced(i)}
    for i in kept:
        parts.setdefault(ex.iterator(i), [])
    if all(part.as_iterator() is not None for part in parts) and not moved:
        return []
    ordered = sorted(parts, key=lambda part: (min(part.iterators), part.as_iterator() is None, part.text))
    out = len(c.outputs)
    extents: list[int] = []
    starts: list[int] = []
    for part in ordered:
        low, high = ex.bounds(part, c.extents)
        for rest, extent, factor in parts[part]:
            # Where the operand is read outside for every reduced iterator the product is zero: no need to compute it.
            rest_low, rest_high = ex.bounds(rest, c.extents)
            low, high = max(low, -(rest_high // factor)), min(high, (extent - 1 - rest_low) // factor)
        if part.as_iterator() in kept:
            low, high = 0, c.extents[part.as_iterator() or 0] - 1
        if low > high:
            return []
        starts.append(low)
        extents.append(high - low + 1)
    new = (*extents, *c.extents[out:])
    if prod(new) > GROWTH * c.points:
        return []
    view = index_map(extents, c.extents[:out], [p + (-s) for p, s in zip(ordered, starts, strict=True)], moved)
    if view.is_identity:
        return []
    table = {i: ex.iterator(i + len(ordered) - out) for i in c.reduced}
    values: dict[Expr, Expr] = {}
    for position, (part, start) in enumerate(zip(ordered, starts, strict=True)):
        values[part] = ex.iterator(position) + start
        single = part.as_iterator()
        if single is not None:
            table[single] = values[part]

    def renumbered(e: Expr) -> Expr:
        part = _output_part(e, c)
        if part is None or not part.terms or (len(part.terms) > 1 and c.is_injective(part)):
            return ex.substitute(e, table, new)
        unit, factor = _unit(part)
        return ex.substitute(e - part, table, new) + values[unit] * factor

    operands = [
        index_map(
            operand.source,
            new,
            [renumbered(e) for e in operand.indices],
            [ex.substitute(g, table, new) for g in operand.guards if g not in moved],
            operand.fill,
        )
        for operand in c.operands
    ]
    return [(operands[0], operands[1], view)]


def _unit(part: Expr) -> tuple[Expr, int]:
    """``part`` without a constant as ``factor * unit``."""
    factor = maps.common_divisor(k for _, k in part.terms)
    return Expr(0, tuple((atom, k // factor) for atom, k in part.terms)), factor


@linear
@once_split
def shears(c: Contraction) -> list[tuple[IndexMap, IndexMap]]:
    """A window iterator becomes the position it reads: ``sum_r f(r, h+r) = sum_j f(j-h, j)``. Gives (left', right')."""
    found = []
    for r in c.windows:
        for side, operand in enumerate(c.operands):
            for e, extent in zip(operand.indices, operand.source, strict=True):
                if not e.is_affine or e.coefficient(r) != 1 or any(c.is_reduced(i) and i != r for i in e.iterators):
                    continue
                low, high = ex.bounds(e, c.extents)
                low, high = max(low, 0), min(high, extent - 1)
                size = high - low + 1
                if size < 1 or size > SHEAR_GROWTH * c.extents[r]:
                    continue
                new = tuple(size if i == r else n for i, n in enumerate(c.extents))
                replacements = [ex.iterator(i) for i in range(c.rank)]
                replacements[r] = ex.iterator(r) + low - (e - ex.iterator(r))
                guard = maps.in_range(replacements[r], c.extents[r], new)
                operands = [
                    reindex(o, new, replacements, [] if position == side else [guard])
                    for position, o in enumerate(c.operands)
                ]
                if (operands[0], operands[1]) not in found:
                    found.append((operands[0], operands[1]))
    return found
