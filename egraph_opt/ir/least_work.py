"""The least work of a step: instructions that no code for it can leave out, and elements it has to read.

The operations are those of the term: what is computed by another algorithm (Winograd's for a convolution) is another
term. But whatever the order of evaluation, a value that was computed once may be used again, and what is known to be
zero (a view outside its source, say) need not be computed. So every count here is from below, and where counting would
take long nothing is counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np

from egraph_opt.ir import expr as ex
from egraph_opt.ir import library, scalar
from egraph_opt.ir.expr import Expr, Extents
from egraph_opt.ir.maps import IndexMap
from egraph_opt.ir.terms import Apply, Buffer, Call, Fill, Read, Reduce, Softmax, Tensor, View, children

# Points of a view that are looked at one by one, at most.
_ENUMERATED = 1 << 18
# Functions of which each argument matters wherever the other one is zero.
_SUMS = frozenset({"add", "sub", "min", "max"})


@dataclass(frozen=True)
class LeastWork:
    """``instructions`` are multiply-adds, or as many of other operations as take as long as one; ``elements_read`` are
    those of arguments."""

    instructions: int
    elements_read: int


@dataclass(frozen=True)
class Reach:
    """How many ``points`` of a view lie inside its source, and how many ``elements`` of the source these are."""

    points: int
    elements: int


@lru_cache(maxsize=100_000)
def reach(index: IndexMap) -> Reach:
    """What a view reads, at least; exact where that can be enumerated.

    Axes and guards that share no iterator are independent, so each group of them is counted alone.
    """
    if index.is_bijective:
        return Reach(prod(index.result), prod(index.result))
    axes = [(index.indices[axis], extent) for axis, extent in enumerate(index.source)]
    points = elements = 1
    for iterators in _independent([*index.indices, *index.guards], len(index.result)):
        extents = [index.result[i] for i in iterators]
        if prod(extents) > _ENUMERATED:
            return Reach(0, 0)
        shape = [[-1 if j == axis else 1 for j in range(len(extents))] for axis in range(len(extents))]
        grid = {i: np.arange(extents[k]).reshape(shape[k]) for k, i in enumerate(iterators)}
        inside = np.ones(extents, bool)
        position = np.zeros(extents, np.int64)
        for expression, extent in axes:
            if expression.iterators and expression.iterators <= grid.keys():
                value = ex.evaluate(expression, grid.__getitem__)
                inside &= (value >= 0) & (value < extent)
                position = position * extent + value
        for guard in index.guards:
            if guard.iterators and guard.iterators <= grid.keys():
                inside &= ex.evaluate(guard, grid.__getitem__) == 0
        points *= int(inside.sum())
        elements *= len(np.unique(position[inside]))
    fixed = [0 <= e.constant < extent for e, extent in axes if not e.iterators]
    fixed += [guard.constant == 0 for guard in index.guards if not guard.iterators]
    return Reach(points, elements) if all(fixed) else Reach(0, 0)


def _independent(expressions: Iterable[Expr], rank: int) -> list[list[int]]:
    """The iterators in groups such that no expression has iterators of two groups."""
    groups = [{i} for i in range(rank)]
    for expression in expressions:
        joined = [group for group in groups if not group.isdisjoint(expression.iterators)]
        if len(joined) > 1:
            groups = [group for group in groups if group.isdisjoint(expression.iterators)]
            groups.append(set().union(*joined))
    return [sorted(group) for group in groups]


def of_kernel(tensor: Tensor) -> LeastWork:
    """The least work of computing all values of a tensor once, by the operations that the term has."""
    terms, operands = _distinct(tensor)
    sizes = [prod(term.extents) for term in terms]
    known: list[_Known] = []
    for term, own in zip(terms, operands, strict=True):
        known.append(_known(term, [known[o] for o in own]))
    needed = [0] * len(terms)
    needed[-1] = sizes[-1]
    multiplications = rest = read = 0
    for number in reversed(range(len(terms))):
        term, size, own = terms[number], sizes[number], operands[number]
        missing = size - needed[number]
        match term:
            case Read():
                read += needed[number]
            case View(_, index):
                needed[own[0]] = max(needed[own[0]], reach(index).elements - missing)
            case Reduce():
                inner, taps = known[own[0]], sizes[own[0]] // max(size, 1)
                needed[own[0]] = max(needed[own[0]], needed[number] * taps)
                rest += max(0, inner.different(missing * taps) - needed[number])
            case Softmax():
                needed[own[0]] = max(needed[own[0]], needed[number])
                rest += round(known[own[0]].different(missing) * scalar.lookup("exp").cost)
            case Apply(function, _):
                parts = [known[o] for o in own]
                # Nothing is added to zero; and what a known number does to others may be nothing.
                computed = 0 if any(part.constant for part in parts) else _together(parts).different(missing)
                if function == "mul":
                    multiplications += computed
                else:
                    rest += round(computed * _operations(function))
                for operand in own:
                    others = [known[o].live for o in own if o != operand]
                    unused = 0 if function in _SUMS else size - _both(others, size)
                    needed[operand] = max(needed[operand], needed[number] - unused)
    # Each multiplication may be one with an addition.
    return LeastWork(max(multiplications, rest), read)


@dataclass(frozen=True)
class _Known:
    """What is known of a term's values.

    At ``live`` points at least they have to be computed or read (or are a number other than zero, where the term is
    ``constant``). Of two live points with different values of one of the sums of iterators in ``tells`` the values are
    different ones.
    """

    extents: Extents
    live: int
    tells: frozenset[frozenset[int]] = frozenset()
    constant: bool = False

    def different(self, missing: int) -> int:
        """How many different values there are at least, of points of which so many do not count."""
        told = _told(self.tells)
        alike = prod(extent for axis, extent in enumerate(self.extents) if axis not in told)
        return max(0, self.live - missing) // max(alike, 1)


def _told(tells: Iterable[frozenset[int]]) -> frozenset[int]:
    """The iterators that are known where these sums of them are."""
    told: set[int] = set()
    while True:
        more = {i for found in tells if len(found - told) == 1 for i in found - told}
        if not more:
            return frozenset(told)
        told |= more


def _axes(axes: Iterable[int]) -> frozenset[frozenset[int]]:
    return frozenset(frozenset((axis,)) for axis in axes)


def _together(parts: Sequence[_Known]) -> _Known:
    """What is known of the values of several terms of equal extents where all of them are live."""
    extents = parts[0].extents
    live = _both([part.live for part in parts], prod(extents))
    return _Known(extents, live, frozenset().union(*(part.tells for part in parts)))


def _known(term: Tensor, parts: Sequence[_Known]) -> _Known:
    extents = term.extents
    size, constant = prod(extents), bool(parts) and all(part.constant for part in parts)
    match term:
        case Read():
            return _Known(extents, size, _axes(range(len(extents))))
        case Fill(value, _):
            return _Known(extents, size if value else 0, constant=True)
        case View(_, index):
            inner, found = parts[0], reach(index)
            whole = prod(inner.extents)
            live = found.points if inner.live == whole else max(0, found.elements - (whole - inner.live))
            told = _told(inner.tells)
            sums = (e for axis, e in enumerate(index.indices) if axis in told and e.is_affine)
            return _Known(extents, live, frozenset(e.iterators for e in sums), constant)
        case Reduce():
            inner, whole = parts[0], prod(parts[0].extents)
            live = -(-inner.live * size // whole) if whole and not constant else 0
            return _Known(extents, live, _axes(i for i in _told(inner.tells) if i < len(extents)), constant)
        case Softmax():
            return _Known(extents, 0 if constant else parts[0].live, parts[0].tells, constant)
        case Apply(function, _):
            if constant:
                return _Known(extents, 0, constant=True)
            if function not in _SUMS:
                return _together(parts)
            changing = [part for part in parts if not part.constant]
            if all(part.live == size for part in changing):
                return _together(changing)
            # Where only one of them is live its values are those of the sum.
            both = frozenset.intersection(*(_told(part.tells) for part in changing))
            return _Known(extents, max(part.live for part in changing), _axes(both))


def _distinct(tensor: Tensor) -> tuple[list[Tensor], list[tuple[int, ...]]]:
    """Equal sub-terms once, each after its operands, which are given by their positions."""
    terms: list[Tensor] = []
    operands: list[tuple[int, ...]] = []
    known: dict[int, int] = {}
    numbers: dict[tuple[object, ...], int] = {}
    pending: list[Tensor] = [tensor]
    while pending:
        term = pending[-1]
        parts = [part for part in children(term) if not isinstance(part, Buffer)]
        waiting = [part for part in parts if id(part) not in known]
        if waiting:
            pending += waiting
            continue
        pending.pop()
        if id(term) in known:
            continue
        own = tuple(known[id(part)] for part in parts)
        key = _key(term, own)
        if key not in numbers:
            numbers[key] = len(terms)
            terms.append(term)
            operands.append(own)
        known[id(term)] = numbers[key]
    return terms, operands


def _key(term: Tensor, operands: tuple[int, ...]) -> tuple[object, ...]:
    match term:
        case Read(buffer):
            return "read", buffer
        case View(_, index):
            return "view", index, operands
        case Reduce(operation, _, count):
            return operation, count, operands
        case Softmax(_, count):
            return "softmax", count, operands
        case Apply(function, _):
            return "apply", function, operands
        case Fill():
            return "fill", term


def _both(counts: Iterable[int], size: int) -> int:
    """How many of ``size`` points several sets of so many of them have in common at least."""
    return max(0, size - sum(size - count for count in counts))


def _operations(function: str) -> float:
    """What a scalar function costs; a user's figure is not believed."""
    applied = scalar.lookup(function)
    return 1.0 if function in scalar.ADDED and applied.function.cost is not None else applied.cost


def of_call(call: Call) -> LeastWork:
    """The least work of a library call: multiply-adds of products and convolutions outside their padding."""
    shapes = tuple(argument.extents for argument in call.arguments)
    attributes = library.parse_attributes(call.attributes)
    if call.operator in library.ADDED:
        return LeastWork(0, 0)
    # An argument that is there twice is read once.
    products, read = 0, sum(prod(argument.extents) for argument in dict.fromkeys(call.arguments))
    match call.operator:
        case "MatMul" | "Gemm":
            products = prod(call.extents) * shapes[0][0 if attributes.get("transA") == "1" else -1]
        case "Conv":
            met = _windows(attributes, shapes[0][2:], shapes[1][2:], call.extents[2:])
            products = shapes[0][0] * prod(shapes[1][:2]) * met.pairs
            read = prod(shapes[0][:2]) * met.points + prod(shapes[1][:2]) * met.taps
        case "ConvTranspose":
            met = _windows(attributes, call.extents[2:], shapes[1][2:], shapes[0][2:])
            products = shapes[0][0] * prod(shapes[1][:2]) * met.pairs
            read = prod(shapes[1][:2]) * met.taps
        case "MaxPool" | "AveragePool":
            taps = library.integers(attributes["kernel_shape"])
            read = prod(shapes[0][:2]) * _windows(attributes, shapes[0][2:], taps, call.extents[2:]).points
    return LeastWork(products, read)


@dataclass(frozen=True)
class _Met:
    """Pairs of a window's place and a tap of it that lie inside an image, and how many of its points and taps are in
    one."""

    pairs: int
    points: int
    taps: int


def _windows(attributes: Mapping[str, str], image: Extents, taps: Extents, places: Extents) -> _Met:
    """What the windows at all places meet of an image. Axes are independent: all numbers are products."""
    strides = library.integers(attributes.get("strides", "")) or (1,) * len(image)
    dilations = library.integers(attributes.get("dilations", "")) or (1,) * len(image)
    pads = library.integers(attributes.get("pads", "")) or (0,) * (2 * len(image))
    pairs = points = used = 1
    for axis, extent in enumerate(image):
        found = np.add.outer(np.arange(places[axis]) * strides[axis], np.arange(taps[axis]) * dilations[axis])
        inside = (found >= pads[axis]) & (found < extent + pads[axis])
        pairs *= int(inside.sum())
        points *= len(np.unique(found[inside]))
        used *= int(inside.any(axis=0).sum())
    return _Met(pairs, points, used)
