"""Index maps: how a view reads the tensor it views.

``view(t, m)[i] = t[m(i)]`` when every guard of ``m`` is 0 at ``i`` and ``m(i)`` lies inside ``t``; the fill value (0
unless said otherwise) elsewhere. Transpose, slice, pad, broadcast, stride, dilation, zero insertion, im2col, reshape
and diagonal are all index maps. Equal maps have equal canonical forms wherever the simplifier can prove it, and the
canonical text is their identity inside the e-graph.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from math import gcd, prod
from typing import Any

import numpy as np

from egraph_opt.errors import EgraphOptError
from egraph_opt.ir import expr as ex
from egraph_opt.ir.expr import Expr, Extents

# Whether a map is a bijection is found by enumeration up to this number of elements, where no algebra tells.
_ENUMERATION_LIMIT = 1 << 14


@dataclass(frozen=True)
class IndexMap:
    """A canonical index map; build it with :func:`index_map`, never directly.

    ``source`` are the extents of the viewed tensor, ``result`` those of the view; ``indices`` has one expression
    over the result's iterators per source axis; the map reads ``fill`` where a guard is not 0 or an index is outside
    the source.
    """

    source: Extents
    result: Extents
    indices: tuple[Expr, ...]
    guards: tuple[Expr, ...] = ()
    fill: float = 0.0

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.source, self.result, self.indices, self.guards, self.fill))

    @cached_property
    def text(self) -> str:
        body = ", ".join(index.text for index in self.indices)
        where = f" where {', '.join(guard.text for guard in self.guards)}" if self.guards else ""
        fill = f" else {self.fill!r}" if self.fill != 0.0 else ""
        return f"{_extents_text(self.source)}->{_extents_text(self.result)}: {body}{where}{fill}"

    def __str__(self) -> str:
        return self.text

    @cached_property
    def is_total(self) -> bool:
        """True when no index point reads outside: the fill value never appears."""
        return not self.guards and all(
            low >= 0 and high < extent
            for (low, high), extent in zip(
                (ex.bounds(index, self.result) for index in self.indices), self.source, strict=True
            )
        )

    @cached_property
    def is_identity(self) -> bool:
        return (
            self.source == self.result
            and not self.guards
            and all(
                index == _axis(i, extent)
                for i, (index, extent) in enumerate(zip(self.indices, self.source, strict=True))
            )
        )

    @cached_property
    def offset(self) -> Expr:
        """Row-major position in the source that an index point reads."""
        return linear(self.indices, self.source)

    @cached_property
    def is_reshape(self) -> bool:
        """True when the view has the same elements in the same row-major order."""
        if prod(self.source) != prod(self.result) or self.guards:
            return False
        own = linear([_axis(i, extent) for i, extent in enumerate(self.result)], self.result)
        return self.offset == own and self.is_total

    @cached_property
    def is_bijective(self) -> bool:
        """True when every source element is read exactly once."""
        if prod(self.source) != prod(self.result) or not self.is_total:
            return False
        if self.digits is not None:
            # A mixed-radix numeral system: each stride is the product of the smaller ones' extents.
            reach = 1
            for digit in sorted(self.digits, key=lambda digit: digit.stride):
                if digit.stride != reach:
                    return False
                reach *= digit.extent
            return reach == prod(self.result) and self.offset.constant == 0
        if prod(self.source) > _ENUMERATION_LIMIT:
            return False
        flat = np.broadcast_to(ex.evaluate(self.offset, grid(self.result)), self.result).ravel()
        return bool(np.array_equal(np.sort(flat), np.arange(flat.size)))

    @cached_property
    def digits(self) -> tuple[Digit, ...] | None:
        """The result's iterators as digits of which the offset is a linear combination; None when there are no such
        digits."""
        divisors: dict[int, set[int]] = {}
        for quotient in _quotients(self.offset):
            i = quotient.dividend.as_iterator()
            if i is not None:
                divisors.setdefault(i, set()).add(quotient.divisor)
        parts: list[tuple[int, int, int]] = []
        replacements: list[Expr] = []
        for i, extent in enumerate(self.result):
            weights = [1, *sorted(divisors.get(i, ())), extent]
            if any(large % small for small, large in pairwise(weights)):
                return None
            total = Expr(0)
            for small, large in pairwise(weights):
                total = total + ex.iterator(len(parts)) * small
                parts.append((i, small, large // small))
            replacements.append(total)
        offset = ex.substitute(self.offset, replacements, tuple(extent for _, _, extent in parts))
        if not offset.is_affine:
            return None
        return tuple(
            Digit(i, weight, extent, offset.coefficient(position))
            for position, (i, weight, extent) in enumerate(parts)
            if extent > 1
        )

    @cached_property
    def permutation(self) -> tuple[int, ...] | None:
        """``p`` with ``result axis j = source axis p[j]`` when the map only permutes axes, else None."""
        if self.guards or len(self.source) != len(self.result) or not self.is_bijective:
            return None
        order = [-1] * len(self.result)
        free = [axis for axis, extent in enumerate(self.result) if extent == 1]
        for axis, index in enumerate(self.indices):
            i = index.as_iterator()
            if i is None and index == Expr(0) and self.source[axis] == 1 and free:
                i = free.pop(0)
            if i is None or self.source[axis] != self.result[i] or order[i] != -1:
                return None
            order[i] = axis
        return tuple(order)


@dataclass(frozen=True)
class Digit:
    """A digit of result iterator ``iterator``, worth ``weight`` there and ``stride`` elements of the source."""

    iterator: int
    weight: int
    extent: int
    stride: int


def _quotients(e: Expr) -> Iterator[ex.Quotient]:
    for quotient, _ in e.quotients:
        yield quotient
        yield from _quotients(quotient.dividend)


def _axis(i: int, extent: int) -> Expr:
    # An iterator of extent 1 is always 0, and the canonical form knows it.
    return ex.iterator(i) if extent > 1 else Expr(0)


def linear(indices: Sequence[Expr], extents: Extents) -> Expr:
    """Row-major position of a multi-dimensional index."""
    total = Expr(0)
    for index, extent in zip(indices, extents, strict=True):
        total = total * extent + index
    return total


def grid(extents: Extents) -> list[np.ndarray]:
    """One broadcastable int64 array per axis holding that axis's index values."""
    rank = len(extents)
    return [
        np.arange(n, dtype=np.int64).reshape([-1 if i == axis else 1 for i in range(rank)])
        for axis, n in enumerate(extents)
    ]


def index_map(
    source: Sequence[int],
    result: Sequence[int],
    indices: Iterable[Expr],
    guards: Iterable[Expr] = (),
    fill: float = 0.0,
) -> IndexMap:
    """The canonical index map; see :class:`IndexMap`. Raises EgraphOptError when ranks do not fit."""
    return _canonical(tuple(source), tuple(result), tuple(indices), tuple(guards), float(fill))


@lru_cache(maxsize=200_000)
def _canonical(
    source: Extents, result: Extents, indices: tuple[Expr, ...], guards: tuple[Expr, ...], fill: float
) -> IndexMap:
    if len(indices) != len(source):
        raise EgraphOptError(f"an index map needs one index per source axis: {len(indices)} for extents {list(source)}")
    for expression in (*indices, *guards):
        if any(i >= len(result) for i in expression.iterators):
            raise EgraphOptError(f"index {expression} uses an iterator beyond the result extents {list(result)}")
    units = {i: Expr(0) if extent == 1 else ex.iterator(i) for i, extent in enumerate(result)}
    if 1 in result:
        indices = tuple(ex.substitute(index, units, result) for index in indices)
        guards = tuple(ex.substitute(guard, units, result) for guard in guards)
    spans = [ex.bounds(index, result) for index in indices]
    empty = any(low >= extent or high < 0 for (low, high), extent in zip(spans, source, strict=True))
    kept, conditions = _split_guards(guards, result)
    for guard in kept:
        low, high = ex.bounds(guard, result)
        empty = empty or low > 0 or high < 0
    ranges = _tighten(conditions, indices, source, result)
    if empty or ranges is None:
        return IndexMap(source, result, tuple(Expr(0) for _ in source), (Expr(1),), fill)
    unique = {guard.text: guard for guard in (*kept, *ranges) if guard != Expr(0)}
    found = tuple(unique[text] for text in sorted(unique))
    if found != guards:  # rewriting a guard can open the way for the next simplification
        return _canonical(source, result, indices, found, fill)
    total = not found and all(low >= 0 and high < extent for (low, high), extent in zip(spans, source, strict=True))
    return IndexMap(source, result, indices, found, 0.0 if total else fill)


def in_range(expression: Expr, extent: int, extents: Extents) -> Expr:
    """A guard that is 0 exactly where ``0 <= expression < extent``."""
    if extent == 1:
        return expression
    return ex.floordiv(expression, extent, extents)


def _split_guards(guards: Iterable[Expr], result: Extents) -> tuple[list[Expr], dict[Expr, tuple[int, int]]]:
    """Separate general guards from range conditions ``low <= e < high`` (keyed by e without its constant)."""
    kept: list[Expr] = []
    conditions: dict[Expr, tuple[int, int]] = {}
    for guard in guards:
        if len(guard.terms) == 1 and len(guard.quotients) == 1 and abs(guard.quotients[0][1]) == 1:
            # (e//d) + c = 0  <=>  -c*d <= e < (-c+1)*d
            quotient, sign = guard.quotients[0]
            step = -guard.constant * sign
            low, high = step * quotient.divisor, (step + 1) * quotient.divisor
            base = Expr(0, quotient.dividend.terms)
            low, high = low - quotient.dividend.constant, high - quotient.dividend.constant
        elif len(guard.terms) == 1 and guard.is_affine:
            # c*i + k = 0: one value of an iterator, or none
            atom, c = guard.terms[0]
            if guard.constant % c:
                kept.append(Expr(1))
                continue
            base, low = Expr(0, ((atom, 1),)), -guard.constant // c
            high = low + 1
        else:
            kept.append(guard)
            continue
        factor = common_divisor(c for _, c in base.terms)
        if factor > 1:
            base = Expr(0, tuple((atom, c // factor) for atom, c in base.terms))
            low, high = -(-low // factor), -(-high // factor)
        if base.terms and base.terms[0][1] < 0:
            base, low, high = -base, 1 - high, 1 - low
        old = conditions.get(base)
        conditions[base] = (low, high) if old is None else (max(low, old[0]), min(high, old[1]))
    return kept, conditions


def _tighten(
    conditions: dict[Expr, tuple[int, int]], indices: tuple[Expr, ...], source: Extents, result: Extents
) -> list[Expr] | None:
    """Range conditions as canonical guards, without what the domain or the source's own extents imply; None if
    unsatisfiable."""
    guards: list[Expr] = []
    for base, (low, high) in conditions.items():
        domain_low, domain_high = ex.bounds(base, result)
        own_low, own_high = domain_low, domain_high + 1
        for index, extent in zip(indices, source, strict=True):
            terms, first, last = _range_of(index, extent)
            if terms == base:
                own_low, own_high = max(own_low, first), min(own_high, last + 1)
            elif -terms == base:
                own_low, own_high = max(own_low, -last), min(own_high, 1 - first)
        if max(low, own_low) >= min(high, own_high):
            return None
        if low <= own_low and high >= own_high:
            continue
        low, high = max(low, own_low), min(high, own_high)
        guards.append(in_range(base + (-low), high - low, result))
    return guards


def _range_of(index: Expr, extent: int) -> tuple[Expr, int, int]:
    """``0 <= index < extent`` as ``first <= terms <= last``, terms without a constant and without an outer quotient."""
    if len(index.quotients) == 1 and index.quotients[0][1] == 1:
        quotient = index.quotients[0][0]
        rest = index - Expr(0, ((quotient, 1),))
        index, extent = quotient.dividend + rest * quotient.divisor, extent * quotient.divisor
    return Expr(0, index.terms), -index.constant, extent - 1 - index.constant


@lru_cache(maxsize=200_000)
def compose(outer: IndexMap, inner: IndexMap) -> IndexMap | None:
    """The map of ``view(view(t, inner), outer)``; None when the two fill values cannot be told by one map."""
    if outer.source != inner.result:
        raise EgraphOptError(f"cannot compose {outer} after {inner}: {list(inner.result)} is not {list(outer.source)}")
    if outer.fill == inner.fill or outer.is_total:
        fill = inner.fill
    elif inner.is_total:
        fill = outer.fill
    else:
        return None
    result = outer.result
    indices = [ex.substitute(index, outer.indices, result) for index in inner.indices]
    guards = [*outer.guards, *(ex.substitute(guard, outer.indices, result) for guard in inner.guards)]
    for index, extent in zip(outer.indices, outer.source, strict=True):
        low, high = ex.bounds(index, result)
        if low < 0 or high >= extent:
            guards.append(in_range(index, extent, result))
    return index_map(inner.source, result, indices, guards, fill)


def identity(extents: Sequence[int]) -> IndexMap:
    return index_map(extents, extents, [ex.iterator(i) for i in range(len(extents))])


def permute(extents: Sequence[int], order: Sequence[int]) -> IndexMap:
    """Result axis ``j`` is source axis ``order[j]``."""
    indices = [Expr(0)] * len(order)
    for j, axis in enumerate(order):
        indices[axis] = ex.iterator(j)
    return index_map(extents, [extents[axis] for axis in order], indices)


def reshape(source: Sequence[int], result: Sequence[int]) -> IndexMap:
    """Same elements in row-major order; raises EgraphOptError when the sizes differ."""
    source, result = tuple(source), tuple(result)
    if prod(source) != prod(result):
        raise EgraphOptError(
            f"cannot reshape {list(source)} to {list(result)}: {prod(source)} and {prod(result)} elements"
        )
    position = linear([_axis(i, extent) for i, extent in enumerate(result)], result)
    indices: list[Expr] = []
    for extent in reversed(source):
        indices.append(ex.modulo(position, extent, result))
        position = ex.floordiv(position, extent, result)
    return index_map(source, result, reversed(indices))


def broadcast(source: Sequence[int], result: Sequence[int]) -> IndexMap:
    """numpy/ONNX broadcasting of trailing axes."""
    lead = len(result) - len(source)
    if lead < 0 or any(n not in (1, result[lead + axis]) for axis, n in enumerate(source)):
        raise EgraphOptError(f"cannot broadcast {list(source)} to {list(result)}")
    return index_map(source, result, [Expr(0) if n == 1 else ex.iterator(lead + axis) for axis, n in enumerate(source)])


def inverse(bijection: IndexMap) -> IndexMap | None:
    """The map back, for permutations and for splits and merges of axes; None when it is not found."""
    if not bijection.is_bijective:
        return None
    order = bijection.permutation
    if order is not None:
        back = [order.index(axis) for axis in range(len(order))]
        return permute(bijection.result, back)
    if bijection.digits is None:
        return None
    # Each result iterator is made of digits of the source's row-major position, with known strides.
    position = linear([_axis(i, extent) for i, extent in enumerate(bijection.source)], bijection.source)
    indices = [Expr(0)] * len(bijection.result)
    for digit in bijection.digits:
        value = ex.modulo(ex.floordiv(position, digit.stride, bijection.source), digit.extent, bijection.source)
        indices[digit.iterator] = indices[digit.iterator] + value * digit.weight
    found = index_map(bijection.result, bijection.source, indices)
    composed = compose(bijection, found)
    return found if composed is not None and composed.is_identity else None


def gathered(values: np.ndarray, index: IndexMap, fill: Any = None) -> np.ndarray:
    """Evaluate ``view(values, index)`` with numpy: shape ``index.result``, dtype of ``values``.

    ``fill`` is the value outside in another arithmetic than floating point.
    """
    fill = index.fill if fill is None else fill
    points = grid(index.result)
    valid: np.ndarray = np.ones((1,) * len(index.result), dtype=bool)
    positions = []
    for expression, extent in zip(index.indices, index.source, strict=True):
        position = ex.evaluate(expression, points)
        low, high = ex.bounds(expression, index.result)
        if low < 0 or high >= extent:
            valid = valid & (position >= 0) & (position < extent)
            position = np.clip(position, 0, max(extent - 1, 0))
        positions.append(position)
    for guard in index.guards:
        valid = valid & (ex.evaluate(guard, points) == 0)
    if 0 in index.source or 0 in index.result:
        return np.full(index.result, fill, dtype=values.dtype)
    taken = values[tuple(positions)] if positions else values
    if valid.all():
        # ascontiguousarray makes an array of rank 0 one of rank 1.
        return np.ascontiguousarray(np.broadcast_to(taken, index.result)).reshape(index.result)
    return np.where(np.broadcast_to(valid, index.result), taken, np.asarray(fill, dtype=values.dtype))


_TEXT = re.compile(r"\[([\d,]*)\]->\[([\d,]*)\]: (.*?)(?: where (.*?))?(?: else (.*))?$")


def _extents_text(extents: Extents) -> str:
    return f"[{','.join(map(str, extents))}]"


@lru_cache(maxsize=200_000)
def parse(text: str) -> IndexMap:
    """Read the canonical text of a map; raises EgraphOptError when it is not one."""
    match = _TEXT.match(text)
    if match is None:
        raise EgraphOptError(f"not an index map: {text!r}")
    source, result = (tuple(int(n) for n in part.split(",") if n) for part in match.group(1, 2))
    split = [part for part in match.group(3).split(", ") if part]
    indices = [ex.parse(part, result) for part in split]
    guards = [ex.parse(part, result) for part in (match.group(4) or "").split(", ") if part]
    return index_map(source, result, indices, guards, float(match.group(5) or 0.0))


def common_divisor(values: Iterable[int]) -> int:
    """Greatest common divisor; 0 for no values."""
    total = 0
    for value in values:
        total = gcd(total, value)
    return abs(total)
