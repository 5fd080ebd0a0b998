"""What a generated kernel computes at one point of its output: a tree of scalar operations over buffer positions.

Views are gone: each :class:`Load` has the row-major position it reads as an index expression over the kernel's
iterators,
below :class:`Guard` conditions that could not be proved. Narrowing the iterators (:func:`substitute`) proves more of
them, so a loop nest that splits its axes into regions ends with guard-free bodies. Nothing here imports tvm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from itertools import pairwise, product
from math import gcd, inf, lcm, prod

import numpy as np

from egraph_opt.errors import EgraphOptError
from egraph_opt.ir import expr as ex
from egraph_opt.ir import scalar
from egraph_opt.ir.expr import Expr, Extents
from egraph_opt.ir.maps import IndexMap, linear
from egraph_opt.ir.terms import Apply, Fill, Read, Reduce, Softmax, Source, Tensor, View

# A reduction with at most this many points is unrolled; more when guards on residues will leave only a few of them.
UNROLLED_TAPS = 64
UNROLLED_GUARDED_TAPS = 256
IDENTITY = {"sum": 0.0, "max": -inf, "min": inf, "pool": float(np.finfo(np.float32).min)}


@dataclass(frozen=True)
class Condition:
    """``low <= expr < high``."""

    expr: Expr
    low: int
    high: int


@dataclass(frozen=True, eq=False)
class Constant:
    """``own``: the model contains it; otherwise it is what lies outside a tensor."""

    value: float
    own: bool = False


@dataclass(frozen=True, eq=False)
class Load:
    """Element ``offset`` (row-major) of a buffer."""

    buffer: str
    offset: Expr


@dataclass(frozen=True, eq=False)
class Guard:
    """``value`` where all conditions hold, ``other`` elsewhere; ``value`` must not be loaded elsewhere."""

    conditions: tuple[Condition, ...]
    value: Node
    other: float


@dataclass(frozen=True, eq=False)
class Call:
    """A function of the scalar catalogue."""

    function: str
    arguments: tuple[Node, ...]


@dataclass(frozen=True, eq=False)
class Fold:
    """An unrolled reduction."""

    operation: str
    items: tuple[Node, ...]


@dataclass(frozen=True, eq=False)
class Loop:
    """A reduction over iterators that no output position depends on."""

    operation: str
    iterators: tuple[int, ...]
    value: Node


@dataclass(frozen=True, eq=False)
class Stage:
    """A softmax or a long reduction at ``indices``; worth computing once where its leading indices are fixed."""

    term: Softmax | Reduce
    indices: tuple[Expr, ...]

    @property
    def lead(self) -> tuple[Expr, ...]:
        """The indices that choose a row; the others lie inside the row."""
        return self.indices[: -self.term.count] if isinstance(self.term, Softmax) and self.term.count else self.indices

    @property
    def own(self) -> tuple[Expr, ...]:
        return self.indices[len(self.lead) :]


Node = Constant | Load | Guard | Call | Fold | Loop | Stage


@dataclass(frozen=True)
class Region:
    """A box of index points: extents of every iterator, the value at a point, the output position it goes to."""

    extents: Extents
    value: Node
    target: Expr


def children(node: Node) -> tuple[Node, ...]:
    match node:
        case Guard(_, value, _) | Loop(_, _, value):
            return (value,)
        case Call(_, items) | Fold(_, items):
            return items
        case _:
            return ()


def walk(root: Node) -> Iterator[Node]:
    """Every node once."""
    seen: set[int] = set()
    stack = [root]
    while stack:
        node = stack.pop()
        if id(node) not in seen:
            seen.add(id(node))
            yield node
            stack.extend(reversed(children(node)))


def expressions(root: Node) -> Iterator[Expr]:
    """Every index expression of a tree."""
    for node in walk(root):
        match node:
            case Load(_, offset):
                yield offset
            case Guard(conditions, _, _):
                yield from (condition.expr for condition in conditions)
            case Stage(_, indices):
                yield from indices


# ---- construction with local simplification -------------------------------------------------------------------------


def guarded(conditions: Iterable[Condition], value: Node, other: float, extents: Extents) -> Node:
    """A Guard without the conditions that always hold; the constant when one never does."""
    kept: dict[Condition, None] = {}
    for condition in conditions:
        low, high = ex.bounds(condition.expr, extents)
        if high < condition.low or low >= condition.high:
            return Constant(other)
        if low < condition.low or high >= condition.high:
            kept[condition] = None
    if not kept or (isinstance(value, Constant) and value.value == other and not value.own):
        return value
    if isinstance(value, Guard) and value.other == other:
        return guarded((*kept, *value.conditions), value.value, other, extents)
    return Guard(tuple(kept), value, other)


def never(conditions: Iterable[Condition], extents: Extents) -> bool:
    """True when a condition provably holds nowhere."""
    return isinstance(guarded(conditions, Load("", Expr(0)), 0.0, extents), Constant)


def call(function: str, arguments: tuple[Node, ...]) -> Node:
    """A Call; constant arguments are folded.

    The zero that is outside a tensor is the unit of add and annihilates mul; a zero of the model's own does neither:
    infinity times zero is no number, and -0 + 0 is 0.
    """
    constants = [argument.value for argument in arguments if isinstance(argument, Constant)]
    if len(constants) == len(arguments):
        with np.errstate(all="ignore"):
            values = [np.asarray(value, dtype=np.float32) for value in constants]
            value = float(np.asarray(scalar.lookup(function)(*values), dtype=np.float32))
            return Constant(value, any(argument.own for argument in arguments if isinstance(argument, Constant)))
    outside = [argument for argument in arguments if isinstance(argument, Constant) and not argument.own]
    if function == "mul" and any(argument.value == 0.0 for argument in outside):
        return Constant(0.0)
    for argument, kept in (arguments, arguments[::-1]) if len(arguments) == 2 else ():
        if not isinstance(argument, Constant):
            continue
        if argument.value == 1.0 and function == "mul":
            return kept
        if argument.value == 0.0 and function == "add" and not argument.own:
            return kept
    return Call(function, arguments)


def side_by_side(total: Node, extents: Extents) -> Node:
    """A sum whose terms tile an axis takes nothing from any of them: -0 is added instead of 0, which would change -0.

    Anything else stays as it is.
    """
    parts, stack = list[Guard](), [total]
    while stack:
        node = stack.pop()
        if isinstance(node, Call) and node.function == "add":
            stack += node.arguments
        elif isinstance(node, Guard) and len(node.conditions) == 1 and node.other == 0.0:
            parts.append(node)
        else:
            return total
    shifts = [part.conditions[0].expr.constant for part in parts]
    axes = {part.conditions[0].expr - shift for part, shift in zip(parts, shifts, strict=True)}
    if len(parts) < 2 or len(axes) > 1:
        return total
    limits = [(part.conditions[0].low, part.conditions[0].high) for part in parts]
    ranges = [(low - shift, high - shift) for (low, high), shift in zip(limits, shifts, strict=True)]
    order = sorted(range(len(parts)), key=ranges.__getitem__)
    low, high = ex.bounds(next(iter(axes)), extents)
    joined = all(ranges[one][1] == ranges[next_one][0] for one, next_one in pairwise(order))
    if not joined or ranges[order[0]][0] > low or ranges[order[-1]][1] <= high:
        return total
    bare: list[Node] = [Guard(parts[i].conditions, parts[i].value, -0.0) for i in order]
    return reduce(lambda one, other: Call("add", (one, other)), bare)


def fold(operation: str, items: Iterable[Node]) -> Node:
    """A Fold without identity elements; a pool begins with one, so that what is no number is passed over."""
    unit = IDENTITY[operation]
    if operation == "pool":
        kept = [item for item in items if not (isinstance(item, Constant) and item.value <= unit)]
        return Fold(operation, (Constant(unit, own=True), *kept))
    kept = [item for item in items if not (isinstance(item, Constant) and item.value == unit)]
    if not kept:
        return Constant(unit)
    return kept[0] if len(kept) == 1 else Fold(operation, tuple(kept))


def conditions_of(index: IndexMap, at: tuple[Expr, ...], extents: Extents) -> list[Condition]:
    """When the view reads its source at the result point ``at``."""
    found = [zero(ex.substitute(guard, at, extents)) for guard in index.guards]
    for expression, extent in zip(index.indices, index.source, strict=True):
        low, high = ex.bounds(expression, index.result)
        if low < 0 or high >= extent:
            found.append(Condition(ex.substitute(expression, at, extents), 0, extent))
    return found


def zero(guard: Expr) -> Condition:
    """``guard = 0``, as a range of the dividend when the guard is a single quotient."""
    if len(guard.terms) == 1 and guard.quotients and abs(guard.terms[0][1]) == 1:
        quotient, sign = guard.quotients[0]
        low = -guard.constant * sign * quotient.divisor
        return Condition(quotient.dividend, low, low + quotient.divisor)
    return Condition(guard, 0, 1)


class Lowering:
    """Evaluates terms at symbolic points; ``extents`` grows by the iterators of reduction loops."""

    def __init__(self, extents: Extents) -> None:
        self.extents = extents
        self._known: dict[tuple[int, tuple[Expr, ...]], tuple[Tensor, Node]] = {}

    def at(self, term: Tensor, indices: tuple[Expr, ...]) -> Node:
        key = (id(term), indices)
        if key not in self._known:
            self._known[key] = (term, self._at(term, indices))
        return self._known[key][1]

    def _at(self, term: Tensor, indices: tuple[Expr, ...]) -> Node:
        match term:
            case Read(Source(name, extents, _)):
                return Load(name, linear(indices, extents))
            case Fill(value, _):
                return Constant(float(np.float32(Fraction(value))), own=True)
            case View(inner, index):
                conditions = conditions_of(index, indices, self.extents)
                if never(conditions, self.extents):
                    return Constant(index.fill)
                moved = tuple(ex.substitute(e, indices, self.extents) for e in index.indices)
                return guarded(conditions, self.at(inner, moved), index.fill, self.extents)
            case Apply(function, arguments):
                found = call(function, tuple(self.at(argument, indices) for argument in arguments))
                return side_by_side(found, self.extents) if function == "add" else found
            case Reduce(_, _, count) if looped_axes(term) and count:
                return Stage(term, indices)
            case Softmax(_, count) if count:
                return Stage(term, indices)
            case Softmax():
                return Constant(1.0)
            case Reduce():
                return self.reduction(term, indices)
        raise EgraphOptError(f"a kernel cannot read {type(term).__name__} terms over buffers that are not sources")

    def reduction(self, term: Reduce, indices: tuple[Expr, ...]) -> Node:
        """The reduction in place: short axes unrolled, long ones a Loop over fresh iterators."""
        own = term.tensor.extents[len(term.extents) :]
        looped = looped_axes(term)
        first = len(self.extents)
        self.extents = (*self.extents, *(own[axis] for axis in looped))
        loops = {axis: ex.iterator(first + i) for i, axis in enumerate(looped)}
        ranges = [[loops[axis]] if axis in loops else [Expr(i) for i in range(n)] for axis, n in enumerate(own)]
        items = [self.at(term.tensor, (*indices, *point)) for point in product(*ranges)]
        value = fold(term.operation, items)
        iterators = tuple(range(first, first + len(looped)))
        return Loop(term.operation, iterators, value) if iterators else value


def looped_axes(term: Reduce) -> tuple[int, ...]:
    """The reduced axes that become loops, counted from the first reduced one."""
    own = term.tensor.extents[len(term.extents) :]
    limit = UNROLLED_GUARDED_TAPS if _has_residues(term.tensor, len(term.extents)) else UNROLLED_TAPS
    unrolled = list(range(len(own)))
    if prod(own) > limit and _is_contiguous(term.tensor):
        # One long run of memory: unrolling its short axes would only take it apart.
        unrolled = [axis for axis, extent in enumerate(own) if extent == 1]
    while unrolled and prod(own[axis] for axis in unrolled) > limit:
        unrolled.remove(max(unrolled, key=lambda axis: own[axis]))
    return tuple(axis for axis in range(len(own)) if axis not in unrolled)


def _is_contiguous(term: Tensor) -> bool:
    """Whether consecutive points read consecutive elements: no view in between."""
    match term:
        case Read() | Fill():
            return True
        case Apply(_, arguments):
            return all(map(_is_contiguous, arguments))
        case _:
            return False


def _has_residues(term: Tensor, first: int) -> bool:
    match term:
        case View(inner, index):
            guards = any(guard.quotients and max(guard.iterators) >= first for guard in index.guards)
            return guards or _has_residues(inner, first)
        case Apply(_, arguments):
            return any(_has_residues(argument, first) for argument in arguments)
        case _:
            return False


# ---- narrowing ------------------------------------------------------------------------------------------------------


def rewrite(root: Node, change: Callable[[Node, Callable[[Node], Node]], Node | None]) -> Node:
    """Rebuild a tree. ``change(node, visit)`` gives a replacement, or None to keep the node over rewritten children."""
    known: dict[int, Node] = {}

    def visit(node: Node) -> Node:
        if id(node) not in known:
            changed = change(node, visit)
            known[id(node)] = _rebuilt(node, visit) if changed is None else changed
        return known[id(node)]

    return visit(root)


def _rebuilt(node: Node, visit: Callable[[Node], Node]) -> Node:
    match node:
        case Guard(conditions, value, other):
            return Guard(conditions, visit(value), other)
        case Loop(operation, iterators, value):
            return Loop(operation, iterators, visit(value))
        case Call(function, arguments):
            return call(function, tuple(map(visit, arguments)))
        case Fold(operation, items):
            return fold(operation, map(visit, items))
    return node


def substitute(region: Region, replaced: Mapping[int, Expr], extents: Extents) -> Region:
    """The region with some iterators replaced by expressions over iterators of the new extents."""
    table = {i: replaced.get(i, ex.iterator(i)) for i in range(len(region.extents))}

    def moved(expression: Expr) -> Expr:
        if expression.is_affine and not any(i in replaced for i in expression.iterators):
            return expression
        return ex.substitute(expression, table, extents)

    def change(node: Node, visit: Callable[[Node], Node]) -> Node | None:
        match node:
            case Load(buffer, offset):
                return Load(buffer, moved(offset))
            case Guard(conditions, value, other):
                found = [Condition(moved(c.expr), c.low, c.high) for c in conditions]
                if never(found, extents):
                    return Constant(other)
                return guarded(found, visit(value), other, extents)
            case Stage(term, indices):
                return Stage(term, tuple(map(moved, indices)))
        return None

    return Region(extents, rewrite(region.value, change), moved(region.target))


def narrow(region: Region, axis: int, low: int, high: int, step: int = 1, phase: int = 0) -> Region:
    """Only the points ``step * i + phase`` with ``low <= i < high`` of one iterator, renumbered from 0."""
    extents = (*region.extents[:axis], high - low, *region.extents[axis + 1 :])
    moved = Expr(0) if high - low == 1 else ex.iterator(axis)
    return substitute(region, {axis: (moved + low) * step + phase}, extents)


def phase_factor(values: Iterable[Expr], axis: int, extent: int, limit: int) -> int:
    """The smallest step whose phases of ``axis`` free every quotient of it; 1 when there is none up to ``limit``."""
    factor = 1
    stack = list(values)
    while stack:
        for quotient, _ in stack.pop().quotients:
            coefficient = quotient.dividend.coefficient(axis)
            if coefficient:
                factor = lcm(factor, quotient.divisor // gcd(coefficient, quotient.divisor))
            stack.append(quotient.dividend)
    factor = min(factor, extent)
    return factor if factor <= limit else 1


def cuts(root: Node, axis: int, extent: int) -> set[int]:
    """Interior points of ``[0, extent)`` where a condition on this iterator alone changes."""
    found: set[int] = set()
    for node in walk(root):
        for condition in node.conditions if isinstance(node, Guard) else ():
            terms = condition.expr.terms
            if len(terms) != 1 or terms[0][0] != axis:
                continue
            c, k = terms[0][1], condition.expr.constant
            for bound in (condition.low - k, condition.high - k):
                # c*i >= bound changes at ceil(bound/c); for c < 0 at floor(bound/c) + 1.
                found.add(-(-bound // c) if c > 0 else bound // c + 1)
    return {cut for cut in found if 0 < cut < extent}


def merged(region: Region, outer: int, inner: int) -> Region | None:
    """The region with two iterators fused into ``outer``; None when some index would need a division for it."""
    width = region.extents[inner]
    extents = list(region.extents)
    extents[outer], extents[inner] = extents[outer] * width, 1
    new, whole = tuple(extents), ex.iterator(outer)
    high = ex.floordiv(whole, width, new)
    found = substitute(region, {outer: high, inner: whole - high * width}, new)
    before = sum(map(_quotients, (*expressions(region.value), region.target)))
    after = sum(map(_quotients, (*expressions(found.value), found.target)))
    return found if after <= before else None


def fused(region: Region, iterators: Iterable[int]) -> tuple[Region, list[int]]:
    """The region with neighbouring ones of these iterators merged where it can be, and those that are left."""
    kept: list[int] = []
    for iterator in iterators:
        joined = merged(region, kept[-1], iterator) if kept else None
        if joined is None:
            kept.append(iterator)
        else:
            region = joined
    return region, kept


def split(region: Region, axis: int, width: int) -> tuple[Region, int]:
    """Iterator ``axis`` written as ``width * axis + new``; ``width`` must divide its extent."""
    new = len(region.extents)
    extents = [*region.extents, width]
    extents[axis] //= width
    found = substitute(region, {axis: ex.iterator(axis) * width + ex.iterator(new)}, tuple(extents))
    return found, new


def _quotients(expression: Expr) -> int:
    return sum(1 + _quotients(quotient.dividend) for quotient, _ in expression.quotients)


def digit_widths(region: Region, axis: int) -> list[int]:
    """Divisors of the extent by which an index divides exactly this iterator, ascending."""
    found: set[int] = set()
    stack = list(expressions(region.value))
    while stack:
        for quotient, _ in stack.pop().quotients:
            if quotient.dividend == ex.iterator(axis) and region.extents[axis] % quotient.divisor == 0:
                found.add(quotient.divisor)
            stack.append(quotient.dividend)
    return sorted(found)
