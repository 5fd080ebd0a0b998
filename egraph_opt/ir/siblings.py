"""Contractions that share an operand as one: their other operands are laid side by side, or added.

Of a contraction ``sum(view(x, m) * view(w, n), k)`` the *columns* are the output iterators that only ``w`` has. Two
contractions of one ``x`` that read it in the same way differ in their columns and in ``w`` only, so one contraction
with all columns computes both (QKV, Inception branches, gates of a recurrent cell). Windows of different extents are
made equal by enlarging kernels with zeros. A tensor laid out by columns is a sum of views that are zero elsewhere.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import gcd, prod

from egraph_opt.ir import expr as ex
from egraph_opt.ir import maps
from egraph_opt.ir.contraction import Contraction, contraction
from egraph_opt.ir.expr import Expr, Extents
from egraph_opt.ir.maps import IndexMap, index_map

# Kernels may be enlarged with zeros until there are this many times as many products.
ENLARGED = 2.0


@dataclass(frozen=True)
class Window:
    """How a contraction walks one axis of the shared operand: ``outputs + step * tap + offset``, ``taps`` taps.

    ``tap`` is the reduced iterator, None for a single tap.
    """

    outputs: Expr
    tap: int | None
    step: int
    offset: int
    taps: int


@dataclass(frozen=True)
class Member:
    """One contraction, ``shared`` being the operand that all of them read, ``own`` the other."""

    shared: IndexMap
    own: IndexMap
    count: int

    @cached_property
    def contraction(self) -> Contraction:
        return contraction(self.shared, self.own, self.count)

    @cached_property
    def rows(self) -> list[int]:
        """Output iterators of the shared operand."""
        return [i for i in self.contraction.outputs if i in _used(self.shared)]

    @cached_property
    def columns(self) -> list[int]:
        """Output iterators that only the other operand has."""
        return [i for i in self.contraction.outputs if i not in self.rows]

    @property
    def width(self) -> int:
        """Number of columns."""
        return prod(self.contraction.extents[i] for i in self.columns)

    @property
    def uses_all(self) -> bool:
        """Whether the operand of its own is read at as many points as it has elements, or more."""
        return prod(self.contraction.extents[i] for i in _used(self.own)) >= prod(self.own.source)

    @cached_property
    def windows(self) -> tuple[Window, ...] | None:
        """How every axis of the shared operand is walked; None where one is not walked by a free tap, or by none."""
        c = self.contraction
        if any(c.is_reduced(i) for g in self.shared.guards for i in g.iterators):
            return None
        found = []
        for position, e in enumerate(self.shared.indices):
            taps = [i for i in e.iterators if c.is_reduced(i)]
            elsewhere = {i for p, f in enumerate(self.shared.indices) if p != position for i in f.iterators}
            if len(taps) > 1 or any(i in elsewhere or not e.coefficient(i) for i in taps):
                return None
            if not taps:
                found.append(Window(e + (-e.constant), None, 1, e.constant, 1))
                continue
            tap, step = taps[0], e.coefficient(taps[0])
            rest = e - ex.iterator(tap) * step
            if tap in rest.iterators:
                return None
            found.append(Window(rest + (-rest.constant), tap, step, rest.constant, c.extents[tap]))
        return tuple(found)

    @property
    def is_proper(self) -> bool:
        """A product of two zero-filled operands that both have every reduced iterator, strides and groups split off."""
        own, shared, c = _used(self.own), _used(self.shared), self.contraction
        reduced = [i for i in c.reduced if c.extents[i] > 1]
        linear = not (self.shared.fill or self.own.fill)
        return linear and c.is_split and all(i in own and i in shared for i in reduced)

    def renumbered(self, e: Expr) -> Expr:
        """An expression over rows, rows being numbered 0, 1, …"""
        table = {i: ex.iterator(position) for position, i in enumerate(self.rows)}
        return ex.substitute(e, table, tuple(self.contraction.extents[i] for i in self.rows))

    @cached_property
    def row_extents(self) -> Extents:
        return tuple(self.contraction.extents[i] for i in self.rows)


def _used(operand: IndexMap) -> set[int]:
    return {i for e in (*operand.indices, *operand.guards) for i in e.iterators}


@dataclass(frozen=True)
class _Space:
    """The common reduced iterators of some contractions: what the shared operand is read through, without columns.

    ``shared`` is over rows and ``taps``; ``places[i]`` tells, for member ``i``, each of its reduced iterators over the
    common ones, with the guards under which it exists.
    """

    shared: IndexMap
    taps: Extents
    places: tuple[tuple[dict[int, Expr], tuple[Expr, ...]], ...]


# As Joined, without the positions.
Merged = tuple[IndexMap, tuple[IndexMap, ...], IndexMap, int, tuple[IndexMap, ...]]


@dataclass(frozen=True)
class Joined:
    """Some contractions as one: ``view(sum(view(x, shared) * view(sum_i view(w_i, own_i), result), count), views_i)``.

    ``positions`` are those of the contractions, in the order of ``own`` and ``views``.
    """

    positions: tuple[int, ...]
    shared: IndexMap
    own: tuple[IndexMap, ...]
    result: IndexMap
    count: int
    views: tuple[IndexMap, ...]


def joined(members: Sequence[tuple[IndexMap, IndexMap, int, Hashable, Hashable]]) -> list[Joined]:
    """All ways to compute some of these contractions of one operand as one, as many as possible at once.

    A member is given by the maps of the shared operand and its own, the number of reduced axes, and what identifies the
    contraction and its own operand: a contraction that was found in several ways counts once, and so do several that
    use all of one operand, which are forms of the same one.
    """
    groups: dict[object, list[tuple[int, Member]]] = {}
    for i, (shared, own, count, _, _) in enumerate(members):
        member = Member(shared, own, count)
        if member.is_proper and member.columns:
            for key in _keys(member):
                if key is not None:
                    groups.setdefault(key, []).append((i, member))
    found: dict[tuple[int, ...], Joined] = {}
    for group in groups.values():
        distinct: dict[int, Member] = {}
        known: set[object] = set()
        for i, member in sorted(group, key=lambda item: item[1].width):
            _, _, _, whole, operand = members[i]
            marks = {("contraction", whole), *({("operand", operand)} if member.uses_all else ())}
            if not marks & known:
                distinct[i] = member
                known |= marks
        positions = tuple(sorted(distinct))
        if len(positions) > 1 and positions not in found:
            merged = _side_by_side([distinct[i] for i in positions])
            if merged is not None:
                found[positions] = Joined(positions, *merged)
    return list(found.values())


def summed(
    shared: IndexMap, own: IndexMap, count: int, other_shared: IndexMap, other_own: IndexMap, other_count: int
) -> list[tuple[IndexMap, IndexMap, IndexMap, IndexMap, int, IndexMap]]:
    """The sum of two contractions of one operand as one contraction: their own operands are added.

    Gives the maps of the shared operand, of both others, of their sum, the reduced axes, and the view of the result.
    """
    members = [Member(shared, own, count), Member(other_shared, other_own, other_count)]
    if not all(member.is_proper for member in members):
        return []
    one, other = members
    keys, other_keys = _keys(one), _keys(other)
    alike = keys[0] == other_keys[0] or (keys[1] is not None and keys[1] == other_keys[1])
    if not alike or one.columns != other.columns:
        return []
    space = _common(members)
    if space is None:
        return []
    merged = _merged(members, space, [0, 0], one.width)
    if merged is None:
        return []
    first, (left, right), result, axes, views = merged
    return [(first, left, right, result, axes, views[0])]


def _keys(member: Member) -> tuple[object, object]:
    """What members of equal windows have in common, and members whose windows can be enlarged to be equal (None where
    they cannot)."""
    exact = _reading(member)
    windows = member.windows
    if windows is None:
        return ("alike", exact.text, member.count), None
    # An axis without outputs, like that of channels, has to be walked alike.
    walked = tuple(
        (member.renumbered(w.outputs).text, () if w.outputs.terms else (w.step, w.offset, w.taps)) for w in windows
    )
    guards = tuple(sorted(member.renumbered(g).text for g in member.shared.guards))
    return ("alike", exact.text, member.count), ("similar", member.shared.source, member.row_extents, walked, guards)


def _reading(member: Member) -> IndexMap:
    """How a member reads the shared operand, over its rows and then what it reduces."""
    c = member.contraction
    order = [*member.rows, *c.reduced]
    table = {i: ex.iterator(position) for position, i in enumerate(order)}
    extents = tuple(c.extents[i] for i in order)
    return index_map(
        member.shared.source,
        extents,
        [ex.substitute(e, table, extents) for e in member.shared.indices],
        [ex.substitute(g, table, extents) for g in member.shared.guards],
    )


def _common(members: Sequence[Member]) -> _Space | None:
    """The reduced iterators that all members can be read over."""
    first = members[0]
    if any(member.windows is None for member in members):
        return _same(members)
    axes = []
    for windows in zip(*(member.windows or () for member in members), strict=True):
        walking = [w for w in windows if w.tap is not None]
        offset = min(min(w.offset, w.offset + w.step * (w.taps - 1)) for w in windows)
        end = max(max(w.offset, w.offset + w.step * (w.taps - 1)) for w in windows)
        step = gcd(*(w.step for w in walking if w.taps > 1), *(w.offset - offset for w in windows)) or 1
        axes.append((offset, step, (end - offset) // step + 1, bool(walking) or end > offset))
    rows = len(first.rows)
    walked = [axis for axis, (_, _, _, has_tap) in enumerate(axes) if has_tap]
    taps = tuple(axes[axis][2] for axis in walked)
    extents = (*first.row_extents, *taps)
    iterators = {axis: ex.iterator(rows + position) for position, axis in enumerate(walked)}
    indices = []
    for axis, window in enumerate(first.windows or ()):
        offset, step, _, _ = axes[axis]
        indices.append(first.renumbered(window.outputs) + offset + iterators.get(axis, Expr(0)) * step)
    guards = [first.renumbered(g) for g in first.shared.guards]
    shared = index_map(first.shared.source, extents, indices, guards)
    places = []
    for member in members:
        table: dict[int, Expr] = {}
        conditions: list[Expr] = []
        for axis, window in enumerate(member.windows or ()):
            offset, step, _, _ = axes[axis]
            position = iterators.get(axis, Expr(0)) * step + (offset - window.offset)
            if window.tap is None:
                conditions.append(position)
                continue
            value = position if window.step > 0 else -position
            conditions.append(ex.modulo(value, abs(window.step), extents))
            tap = ex.floordiv(value, abs(window.step), extents)
            conditions.append(maps.in_range(tap, window.taps, extents))
            table[window.tap] = tap
        places.append((table, tuple(conditions)))
    return _Space(shared, taps, tuple(places))


def _same(members: Sequence[Member]) -> _Space:
    """Members that read the shared operand in exactly the same way."""
    shared, rows = _reading(members[0]), len(members[0].rows)
    places: list[tuple[dict[int, Expr], tuple[Expr, ...]]] = []
    for member in members:
        reduced = member.contraction.reduced
        places.append(({r: ex.iterator(rows + position) for position, r in enumerate(reduced)}, ()))
    return _Space(shared, shared.result[rows:], tuple(places))


def _side_by_side(
    members: Sequence[Member],
) -> Merged | None:
    """One contraction of the columns of all members."""
    space = _common(members)
    if space is None:
        return None
    starts = [0, *accumulate(member.width for member in members)]
    return _merged(members, space, starts[:-1], starts[-1])


def _merged(members: Sequence[Member], space: _Space, starts: Sequence[int], width: int) -> Merged | None:
    """One contraction over rows, ``width`` columns and the common taps; member ``i`` has the columns from
    ``starts[i]``.

    None where that takes too many products, or where elements of an operand would have to be repeated.
    """
    rows = members[0].row_extents
    if prod(space.shared.result) * width > ENLARGED * sum(member.contraction.points for member in members):
        return None
    extents = (*rows, width, *space.taps)
    # Iterators of the space, whose taps follow the rows, over rows, column, taps.
    lifted = [ex.iterator(i if i < len(rows) else i + 1) for i in range(len(space.shared.result))]
    needed = {position for m in members for position, i in enumerate(m.rows) if i in _used(m.own)}
    kept = [i for i in range(len(extents)) if i >= len(rows) or i in needed]
    compact = tuple(extents[i] for i in kept)
    if prod(compact) > ENLARGED * sum(prod(member.own.source) for member in members):
        return None
    own, views = [], []
    for member, (taps, conditions), start in zip(members, space.places, starts, strict=True):
        own.append(_laid_out(member, start, taps, conditions, lifted, extents, kept))
        c = member.contraction
        chosen = maps.linear([ex.iterator(i) for i in member.columns], tuple(c.extents[i] for i in member.columns))
        output = tuple(c.extents[i] for i in c.outputs)
        views.append(index_map((*rows, width), output, [*(ex.iterator(i) for i in member.rows), chosen + start]))
    shared = _reindexed(space.shared, lifted, extents)
    result = index_map(compact, extents, [ex.iterator(i) for i in kept])
    return shared, tuple(own), result, len(space.taps), tuple(views)


def _laid_out(
    member: Member,
    start: int,
    taps: dict[int, Expr],
    conditions: Sequence[Expr],
    lifted: Sequence[Expr],
    extents: Extents,
    kept: Sequence[int],
) -> IndexMap:
    """A member's own operand over the ``kept`` iterators, zero outside its columns and taps."""
    c = member.contraction
    own = ex.iterator(len(member.rows)) + (-start)
    replacements = [Expr(0)] * c.rank
    for position, i in enumerate(member.rows):
        replacements[i] = ex.iterator(position)
    stride = member.width
    for i in member.columns:
        stride //= c.extents[i]
        replacements[i] = ex.modulo(ex.floordiv(own, stride, extents), c.extents[i], extents)
    for i, tap in taps.items():
        replacements[i] = ex.substitute(tap, lifted, extents)
    guards = [maps.in_range(own, member.width, extents), *(ex.substitute(g, lifted, extents) for g in conditions)]
    whole = _reindexed(member.own, replacements, extents, guards)
    places = {i: ex.iterator(position) for position, i in enumerate(kept)}
    compact = tuple(extents[i] for i in kept)
    return _reindexed(whole, [places.get(i, Expr(0)) for i in range(len(extents))], compact)


def _reindexed(
    index: IndexMap, replacements: Sequence[Expr], extents: Extents, guards: Sequence[Expr] = ()
) -> IndexMap:
    return index_map(
        index.source,
        extents,
        [ex.substitute(e, replacements, extents) for e in index.indices],
        [*(ex.substitute(g, replacements, extents) for g in index.guards), *guards],
    )
