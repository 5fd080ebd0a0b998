"""The least work of a step: instructions that no code for it can leave out, and elements it has to read.

Whatever the order of evaluation, a value that was computed once may be used again, and what is known to be zero (a view
outside its source, say) need not be computed. So every count here is from below: of two points the one that may be left
out is, and where counting would take long nothing is counted.
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
    """The least work of computing all values of a tensor once."""
    terms, operands = _distinct(tensor)
    sizes = [prod(term.extents) for term in terms]
    live: list[int] = []
    for number, term in enumerate(terms):
        live.append(_live(term, sizes[number], [(live[o], sizes[o]) for o in operands[number]]))
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
                taps = sizes[own[0]] // max(size, 1)
                needed[own[0]] = max(needed[own[0]], needed[number] * taps)
                rest += max(0, live[own[0]] - missing * taps - needed[number])
            case Softmax():
                needed[own[0]] = max(needed[own[0]], needed[number])
                rest += round(max(0, live[own[0]] - missing) * scalar.lookup("exp").cost)
            case Apply(function, _):
                executed = _both([live[o] for o in own], size)
                if function == "mul":
                    multiplications += max(0, executed - missing)
                else:
                    rest += round(max(0, executed - missing) * _operations(function))
                for position, operand in enumerate(own):
                    others = [live[o] for i, o in enumerate(own) if i != position]
                    unused = 0 if function in _SUMS else size - _both(others, size)
                    needed[operand] = max(needed[operand], needed[number] - unused)
    # Each multiplication may be one with an addition.
    return LeastWork(max(multiplications, rest), read)


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


def _live(term: Tensor, size: int, operands: Sequence[tuple[int, int]]) -> int:
    """At how many points a value has to be computed or read at least; operands are given by theirs and by sizes."""
    match term:
        case Read():
            return size
        case Fill(value, _):
            return 0 if value in (0, 1) else size
        case View(_, index):
            (inner, whole), found = operands[0], reach(index)
            return found.points if inner == whole else max(0, found.elements - (whole - inner))
        case Reduce():
            (inner, whole) = operands[0]
            return -(-inner * size // whole) if whole else 0
        case Softmax():
            return operands[0][0]
        case Apply(function, _):
            counts = [inner for inner, _ in operands]
            return max(counts) if function in _SUMS else _both(counts, size)


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
    products, read = 0, sum(map(prod, shapes))
    match call.operator:
        case "MatMul" | "Gemm":
            products = prod(call.extents) * shapes[0][0 if attributes.get("transA") == "1" else -1]
        case "Conv":
            pairs, touched = _windows(attributes, shapes[0][2:], shapes[1][2:], call.extents[2:])
            products = shapes[0][0] * prod(shapes[1][:2]) * pairs
            read -= prod(shapes[0]) - prod(shapes[0][:2]) * touched
        case "ConvTranspose":
            pairs, _ = _windows(attributes, call.extents[2:], shapes[1][2:], shapes[0][2:])
            products = shapes[0][0] * prod(shapes[1][:2]) * pairs
            read = prod(shapes[1])
        case "MaxPool" | "AveragePool":
            taps = library.integers(attributes["kernel_shape"])
            _, touched = _windows(attributes, shapes[0][2:], taps, call.extents[2:])
            read = prod(shapes[0][:2]) * touched
    return LeastWork(products, read)


def _windows(attributes: Mapping[str, str], image: Extents, taps: Extents, places: Extents) -> tuple[int, int]:
    """Pairs of a window's place and a tap of it that lie inside the image, and how many points of the image they are.

    Axes are independent: both are products.
    """
    strides = library.integers(attributes.get("strides", "")) or (1,) * len(image)
    dilations = library.integers(attributes.get("dilations", "")) or (1,) * len(image)
    pads = library.integers(attributes.get("pads", "")) or (0,) * (2 * len(image))
    pairs = touched = 1
    for axis, extent in enumerate(image):
        met = np.add.outer(np.arange(places[axis]) * strides[axis], np.arange(taps[axis]) * dilations[axis])
        met = met[(met >= pads[axis]) & (met < extent + pads[axis])]
        pairs *= met.size
        touched *= len(np.unique(met))
    return pairs, touched
