"""Re-indexings of a contraction ``sum(view(x, left) * view(w, right), count)``: the index arithmetic behind the derivation rules.

Each function takes the two maps and the number of reduced axes and returns every way it applies as a tuple of new maps and
counts. Reduced iterators come last. All are exact: padding needs no care because every tensor is zero outside its extents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, wraps
from itertools import product
from math import prod
from typing import TypeVar

from egraph_opt.ir import expr as ex
from egraph_opt.ir import maps
from egraph_opt.ir.expr import Expr, Extents
from egraph_opt.ir.maps import IndexMap, index_map

T = TypeVar("T")

# A re-indexing may not multiply the number of products by more than this (boundary relaxing, shears, substitutions).
GROWTH = 16
# Splitting a window may add a tap for every so many at most.
WASTE = 4
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
        """Reduced iterators that share an expression with an output iterator."""
        outputs = set(self.outputs)
        mixed = [e.iterators for e in self.expressions if e.iterators & outputs]
        return tuple(r for r in self.reduced if any(r in iterators for iterators in mixed))

    def is_reduced(self, iterator: int) -> bool:
        return iterator >= self.rank - self.count

    def is_injective(self, e: Expr) -> bool:
        """True when an affine index takes every value at most once: a mixed-radix number of its iterators."""
        if not e.is_affine:
            return False
        reach = 1
        for c, i in sorted((abs(c), i) for i, c in e.terms if isinstance(i, int)):
            if c < reach:
                return False
            reach = c * (self.extents[i] - 1) + reach
        return True

    def digits(self, e: Expr, d: int) -> list[int]:
        """Iterators of an affine index whose coefficient ``d`` does not divide, if together they never reach ``d``; else none."""
        loose = [(int(v), c) for v, c in e.terms if c % d and isinstance(v, int)]
        reach = sum(abs(c) * (self.extents[v] - 1) for v, c in loose)
        return [v for v, _ in loose] if reach < d else []

    @cached_property
    def substitutions(self) -> list[tuple[IndexMap, IndexMap, IndexMap]]:
        """Variable substitution: (left', right', view of the new result), at most one."""
        return _substitutions(self)

    @cached_property
    def is_split(self) -> bool:
        """False when the axis of an operand can still be split along digits that the iterators have already.

        The class of such a contraction holds the one over the split axis too, so most rules need only look at that.
        """
        return not any(
            self.digits(e, abs(c))
            for operand in self.operands
            for e in operand.indices
            if e.is_affine and not self.is_injective(e)
            for _, c in e.terms
            if abs(c) > 1
        )


@lru_cache(maxsize=10_000)
def contraction(left: IndexMap, right: IndexMap, count: int) -> Contraction:
    """The contraction of two maps; one object, so that what is known about it is found once."""
    return Contraction(left, right, count)


def linear(function: Callable[[Contraction], list[T]]) -> Callable[[IndexMap, IndexMap, int], list[T]]:
    """A function of the two maps and the count of a contraction; a map that fills with anything but zero has no answer."""

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

    Gives (left', right', inner count, outer count) with iterators in the order outputs, outer, inner, for every non-empty
    set of window iterators that leaves something to sum first.
    """
    found = []
    for chosen in product(*(range(len(chain) + 1) for chain in _window_chains(c))):
        outer = sorted(r for chain, taken in zip(_window_chains(c), chosen, strict=True) for r in chain[:taken])
        if outer:
            inner = [r for r in c.reduced if r not in outer]
            if not inner:
                continue
            order = [*c.outputs, *outer, *inner]
            replacements = [ex.iterator(order.index(i)) for i in range(c.rank)]
            extents = [c.extents[i] for i in order]
            found.append(
                (
                    reindex(c.left, extents, replacements),
                    reindex(c.right, extents, replacements),
                    len(inner),
                    len(outer),
                )
            )
    return found


def _window_chains(c: Contraction) -> list[list[int]]:
    """Window iterators grouped by the index they share, coarsest first: a finer one is only summed last with the coarser ones.

    An iterator inside a quotient counts as coarse, because only outside the inner sum can the quotient become an iterator.
    """
    chains: list[list[int]] = []
    placed: set[int] = set()
    for e in c.expressions:
        weights = {}
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

    Gives (left', right', view of the new result). Output iterators inside an atom shared with a reduced iterator stay.
    Guards over output iterators only move to the view.
    """
    kept: set[int] = set()
    parts: dict[Expr, list[tuple[Expr, int]]] = {}
    moved: list[Expr] = []
    for operand in c.operands:
        for e, extent in zip(operand.indices, operand.source, strict=True):
            part = _output_part(e, c)
            if part is None:
                kept |= {i for i in e.iterators if not c.is_reduced(i)}
            elif part.terms:
                parts.setdefault(part, []).append((e, extent))
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
        for e, extent in parts[part]:
            # Where the operand is read outside for every reduced iterator the product is zero: no need to compute it.
            rest_low, rest_high = ex.bounds(e - part, c.extents)
            low, high = max(low, -rest_high), min(high, extent - 1 - rest_low)
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
    shift = len(ordered) - out
    operands = []
    for operand in c.operands:
        indices = []
        for e in operand.indices:
            part = _output_part(e, c)
            indices.append(_renumber(e, part, ordered, starts, out, shift, new))
        guards = [_renumber(g, None, ordered, starts, out, shift, new) for g in operand.guards if g not in moved]
        operands.append(index_map(operand.source, new, indices, guards, operand.fill))
    if view.is_identity:
        return []
    return [(operands[0], operands[1], view)]


def _renumber(
    e: Expr, part: Expr | None, ordered: Sequence[Expr], starts: Sequence[int], out: int, shift: int, extents: Extents
) -> Expr:
    """Rewrite one index over the new iterators: its output part becomes an iterator, reduced iterators are renumbered."""
    table: dict[int, Expr] = {}
    for position, new in enumerate(ordered):
        single = new.as_iterator()
        if single is not None:
            table[single] = ex.iterator(position) + starts[position]
    for i in e.iterators:
        if i >= out:
            table[i] = ex.iterator(i + shift)
    if part is None or not part.terms:
        return ex.substitute(e, table, extents)
    position = ordered.index(part)
    return ex.substitute(e - part, table, extents) + ex.iterator(position) + starts[position]


def _radix(c: Contraction, factors: Mapping[int, int]) -> tuple[list[Expr], list[int], list[Expr], list[int]]:
    """Split iterators ``v = factor*v1 + v2``, in place.

    Returns (replacements of the old iterators, new extents, the output view's indices, positions of each v2).
    """
    replacements: list[Expr] = []
    extents: list[int] = []
    back: list[Expr] = []
    digits: list[int] = []
    for i, extent in enumerate(c.extents):
        if i in factors:
            d = factors[i]
            replacements.append(ex.iterator(len(extents)) * d + ex.iterator(len(extents) + 1))
            digits.append(len(extents) + 1)
            extents += [-(-extent // d), d]
            if not c.is_reduced(i):
                back += [ex.floordiv(ex.iterator(i), d, c.extents), ex.modulo(ex.iterator(i), d, c.extents)]
        else:
            replacements.append(ex.iterator(len(extents)))
            extents.append(extent)
            if not c.is_reduced(i):
                back.append(ex.iterator(i))
    return replacements, extents, back, digits


def _relaxed_guards(
    c: Contraction, factors: Mapping[int, int], replacements: Sequence[Expr], extents: Extents
) -> list[Expr]:
    """A reduced iterator whose extent its factor does not divide must read zero beyond that extent."""
    return [
        ex.floordiv(replacements[i], c.extents[i], extents) if c.extents[i] > 1 else replacements[i]
        for i, d in factors.items()
        if c.is_reduced(i) and c.extents[i] % d
    ]


@linear
def split_axes(c: Contraction) -> list[tuple[IndexMap, IndexMap, IndexMap, IndexMap, int, IndexMap]]:
    """Mixed-radix split of iterators together with the operand axis they walk (dilation and stride become phases).

    For an index ``sum(c_i * v_i) + c0`` and a factor d > 1 among its coefficients, the iterators whose coefficient d does
    not divide are split by d, and the axis becomes ``x'[y1, y2…] = x[d*y1 + sum(c_j*y2_j) + c0]``. Gives (left view of x,
    left', view of w, right', count', view of the new result); the operand that is not split has an identity view.
    """
    found = []
    for side, operand in enumerate(c.operands):
        for axis, e in enumerate(operand.indices):
            # An index that takes no value twice is a reshape or a slice of its axis: nothing to separate.
            if not e.is_affine or c.is_injective(e):
                continue
            for d in sorted({abs(coefficient) for _, coefficient in e.terms if abs(coefficient) > 1}):
                option = _split_axis(c, side, axis, e, d)
                if option is not None:
                    found.append(option)
    return found


def _split_axis(
    c: Contraction, side: int, axis: int, e: Expr, d: int
) -> tuple[IndexMap, IndexMap, IndexMap, IndexMap, int, IndexMap] | None:
    # An iterator that never reaches d is a digit already; splitting it again would only rename it.
    loose = {int(v) for v, coefficient in e.terms if coefficient % d and isinstance(v, int)}
    factors = {v: d for v in loose if c.extents[v] > d}
    replacements, extents, back, digits = _radix(c, factors)
    new = tuple(extents)
    if prod(new) > GROWTH * c.points:
        return None
    digits = sorted((*digits, *(replacements[v].as_iterator() or 0 for v in loose if v not in factors)))
    walked = ex.substitute(Expr(0, e.terms), replacements, new)
    digit_part = Expr(0, tuple((a, k) for a, k in walked.terms if a in digits))
    whole = Expr(0, tuple((a, k // d) for a, k in walked.terms if a not in digits))
    low, high = ex.bounds(whole, new)
    # Split axis of the operand: positions beyond the source read zero, so only the part that meets it is kept.
    operand = c.operands[side]
    digit_low, digit_high = ex.bounds(digit_part, new)
    low = max(low, -((digit_high + e.constant) // d))
    high = min(high, (operand.source[axis] - 1 - e.constant - digit_low) // d)
    if low > high:
        return None
    digit_extents = [new[int(a)] for a in digits]
    split = (*operand.source[:axis], high - low + 1, *digit_extents, *operand.source[axis + 1 :])
    inner = ex.iterator(axis) * d + (low * d + e.constant)
    for position, a in enumerate(digits):
        inner = inner + ex.iterator(axis + 1 + position) * digit_part.coefficient(a)
    skip = len(digits)
    view = index_map(
        operand.source,
        split,
        [inner if a == axis else ex.iterator(a if a < axis else a + skip) for a in range(len(operand.source))],
    )
    guards = _relaxed_guards(c, factors, replacements, new)
    walked_indices = [ex.substitute(i, replacements, new) for i in operand.indices]
    indices = [
        *walked_indices[:axis],
        whole + (-low),
        *(ex.iterator(a) for a in digits),
        *walked_indices[axis + 1 :],
    ]
    walked_guards = [ex.substitute(g, replacements, new) for g in operand.guards]
    moved = index_map(split, new, indices, walked_guards, operand.fill)
    other = reindex(c.operands[1 - side], new, replacements, guards)
    outputs = len(c.outputs) + sum(1 for i in factors if not c.is_reduced(i))
    result = index_map(new[:outputs], c.extents[: len(c.outputs)], back)
    kept = maps.identity(c.operands[1 - side].source)
    count = len(new) - outputs
    return (view, moved, kept, other, count, result) if side == 0 else (kept, other, view, moved, count, result)


IteratorSplit = tuple[IndexMap, IndexMap, int, IndexMap]


@linear
def split_quotients(c: Contraction) -> list[IteratorSplit]:
    """Mixed-radix split of an iterator by the divisor of a quotient it occurs in (strides of a transposed convolution, groups).

    Output iterators are split only when they are alone in the quotient. Gives (left', right', count', view of the new result).
    """
    factors: set[tuple[int, int]] = set()
    for e in c.expressions:
        for quotient, _ in e.quotients:
            inside = quotient.dividend.iterators
            factors |= {(i, quotient.divisor) for i in inside if c.is_reduced(i) or len(inside) == 1}
    return [_split_iterator(c, i, d) for i, d in sorted(factors) if d < c.extents[i]]


@linear
@once_split
def split_windows(c: Contraction) -> list[IteratorSplit]:
    """Split a window of R taps into p parts of ceil(R/p), for p = 2 and 3, where that adds little work.

    Gives (left', right', count', view of the new result).
    """
    found = []
    for r in c.windows:
        extent = c.extents[r]
        if not _is_plain_window(c, r):
            continue
        for parts in (2, 3):
            size = -(-extent // parts)
            if size >= parts and parts * size * WASTE <= (WASTE + 1) * extent:
                found.append(_split_iterator(c, r, size))
    return found


def _is_plain_window(c: Contraction, r: int) -> bool:
    """A tap that some output walks one by one over an axis of one operand, of which the other operand knows nothing.

    Strided and dilated windows become plain ones by splitting axes first.
    """
    for operand, other in (c.operands, c.operands[::-1]):
        walked = [e for e in operand.indices if r in e.iterators]
        if len(walked) != 1 or any(r in g.iterators for g in operand.guards):
            continue
        outputs = [i for i in walked[0].iterators if not c.is_reduced(i)]
        apart = all(not e.iterators & set(outputs) for e in (*other.indices, *other.guards))
        if outputs and apart and walked[0].is_affine and abs(walked[0].coefficient(r)) == 1:
            return all(abs(walked[0].coefficient(o)) == 1 for o in outputs)
    return False


def _split_iterator(c: Contraction, i: int, d: int) -> IteratorSplit:
    replacements, extents, back, _ = _radix(c, {i: d})
    new = tuple(extents)
    guards = _relaxed_guards(c, {i: d}, replacements, new)
    outputs = len(c.outputs) + (0 if c.is_reduced(i) else 1)
    view = index_map(new[:outputs], c.extents[: len(c.outputs)], back)
    return (reindex(c.left, new, replacements), reindex(c.right, new, replacements, guards), len(new) - outputs, view)


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
