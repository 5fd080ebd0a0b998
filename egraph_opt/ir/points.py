"""A tensor at some index points only: what a large kernel must compute is checked where it is cheap.

The points hold all corners of the result and are drawn from its borders more often than from its inside, because that
is where kernels differ from each other: padding, guards, and what is left over when a loop is split.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from egraph_opt.ir import expr as ex
from egraph_opt.ir.expr import Extents
from egraph_opt.ir.interpreter import Arithmetic, Array, FloatArithmetic, Interpreter
from egraph_opt.ir.terms import Apply, Fill, Read, Reduce, Softmax, Source, Tensor, View

# Elements of one array at a time.
_CHUNK = 1 << 18
# Points of a sample: at most, and at least even where each of them is a sum over everything.
MOST_POINTS, FEWEST_POINTS = 256, 16
# The share of a random point's coordinates that are the first or the last of their axis.
_BORDER = 0.5

Points = np.ndarray[Any, Any]


def sample(tensor: Tensor, budget: int, seed: int = 0) -> Points:
    """Index points of a tensor, int64 [rank, points] without repetition: as many as ``budget`` elements pay for.

    Corners come first. A tensor without elements has no points.
    """
    extents = tensor.extents
    if not prod(extents):
        return np.zeros((len(extents), 0), np.int64)
    count = MOST_POINTS
    while count > FEWEST_POINTS and work(tensor, count) > budget:
        count //= 2
    if prod(extents) <= count:
        return _unravelled(np.arange(prod(extents)), extents)
    generator = np.random.default_rng(seed)
    last = np.asarray(extents)[:, None] - 1
    long = [axis for axis, extent in enumerate(extents) if extent > 1]
    corners = np.zeros((len(extents), min(count, 1 << len(long))), np.int64)
    for position, axis in enumerate(reversed(long)):
        corners[axis] = (np.arange(corners.shape[1]) >> position & 1) * last[axis]
    corners[:, -1:] = last  # the end is among them even where not all corners are
    inside = generator.integers(0, last + 1, (len(extents), 2 * count))
    border = generator.integers(0, 2, inside.shape) * last
    mixed = np.where(generator.random(inside.shape) < _BORDER, border, inside)
    found = np.concatenate([corners, mixed], axis=1)
    _, first = np.unique(_linear(found, extents), return_index=True)
    return found[:, np.sort(first)[:count]]


def work(tensor: Tensor, count: int) -> int:
    """An upper bound of the elements that :func:`at` computes for so many points."""
    count = min(count, prod(tensor.extents))
    match tensor:
        case Read() | Fill():
            return count
        case View(inner, _):
            return count + work(inner, count)
        case Apply(_, arguments):
            return count + sum(work(argument, count) for argument in arguments)
        case Reduce(_, inner, reduced):
            return work(inner, count * prod(_last(inner, reduced)))
        case Softmax(inner, reduced):
            rows = min(count, prod(inner.extents[: len(inner.extents) - reduced]))
            return work(inner, rows * prod(_last(inner, reduced)))


def at(tensor: Tensor, points: Points, values: Mapping[str, Array], arithmetic: Arithmetic | None = None) -> Array:
    """The tensor at index points [rank, n] over named source arrays: an array [n], float64 unless said otherwise."""
    return _At(values, arithmetic or FloatArithmetic()).tensor(tensor, points)


def positions(points: Points, extents: Extents) -> Array:
    """The row-major positions of index points."""
    return _linear(points, extents)


@dataclass(frozen=True)
class _At:
    values: Mapping[str, Array]
    arithmetic: Arithmetic

    def tensor(self, term: Tensor, points: Points) -> Array:
        arithmetic = self.arithmetic
        match term:
            case Read(Source(name, extents)) if name in self.values:
                return arithmetic.normal(self.values[name].reshape(-1)[_linear(points, extents)])
            case Read(buffer):
                whole = Interpreter(dict(self.values), arithmetic).buffer(buffer)
                return np.asarray(whole.reshape(-1)[_linear(points, buffer.extents)])
            case View():
                return self._view(term, points)
            case Apply(function, arguments):
                return arithmetic.apply(function, *(self.tensor(argument, points) for argument in arguments))
            case Fill(value, _):
                return arithmetic.fill(value, (points.shape[1],))
            case Reduce(operation, inner, count):
                return self._reduced(operation, inner, count, points, term.extents)
            case Softmax(inner, count):
                return self._softmax(inner, count, points)

    def _view(self, term: View, points: Points) -> Array:
        index, count = term.map, points.shape[1]
        outside = np.full(count, self.arithmetic.outside(index.fill), self.arithmetic.normal(np.zeros(0)).dtype)
        if 0 in index.source:
            return outside
        valid = np.ones(count, dtype=bool)
        inner = np.zeros((len(index.source), count), np.int64)
        for axis, (expression, extent) in enumerate(zip(index.indices, index.source, strict=True)):
            position = ex.evaluate(expression, list(points))
            valid &= (position >= 0) & (position < extent)
            inner[axis] = np.clip(position, 0, extent - 1)
        for guard in index.guards:
            valid &= ex.evaluate(guard, list(points)) == 0
        found = self.tensor(term.tensor, inner)
        return found if valid.all() else np.where(valid, found, outside)

    def _reduced(self, operation: str, inner: Tensor, count: int, points: Points, extents: Extents) -> Array:
        """Each sum once, however often it is read, in pieces that fit into memory."""
        last = _last(inner, count)
        size = prod(last)
        different, places = np.unique(_linear(points, extents), return_inverse=True)
        if not size:
            empty = np.zeros((different.size, 0), self.arithmetic.normal(np.zeros(0)).dtype)
            return self.arithmetic.reduce(operation, empty, 1)[places]
        found = []
        rows = max(1, _CHUNK // size)
        for begin in range(0, different.size, rows):
            row = _unravelled(different[begin : begin + rows], extents)
            parts = [
                self.arithmetic.reduce(operation, self._block(inner, row, _unravelled(piece, last)), 1)
                for piece in _pieces(size)
            ]
            found.append(parts[0] if len(parts) == 1 else self.arithmetic.reduce(operation, np.stack(parts, -1), 1))
        return np.concatenate(found)[places] if found else self.arithmetic.normal(np.zeros(0))

    def _softmax(self, inner: Tensor, count: int, points: Points) -> Array:
        last = _last(inner, count)
        rank = len(inner.extents) - count
        leading = inner.extents[:rank]
        different, places = np.unique(_linear(points[:rank], leading), return_inverse=True)
        inside = _linear(points[rank:], last)
        found = self.arithmetic.normal(np.zeros(points.shape[1]))
        everything = _unravelled(np.arange(prod(last)), last)
        rows = max(1, _CHUNK // max(1, prod(last)))
        for begin in range(0, different.size, rows):
            block = self._block(inner, _unravelled(different[begin : begin + rows], leading), everything)
            weights = self.arithmetic.softmax(block, 1)
            here = (places >= begin) & (places < begin + rows)
            found[here] = weights[places[here] - begin, inside[here]]
        return found

    def _block(self, inner: Tensor, rows: Points, columns: Points) -> Array:
        """The tensor at all pairs of leading and last coordinates: [rows, columns]."""
        shape = (rows.shape[1], columns.shape[1])
        pairs = np.concatenate([np.repeat(rows, shape[1], axis=1), np.tile(columns, shape[0])])
        return self.tensor(inner, pairs).reshape(shape)


def _last(tensor: Tensor, count: int) -> Extents:
    return tensor.extents[len(tensor.extents) - count :]


def _pieces(size: int) -> list[Array]:
    return [np.arange(begin, min(begin + _CHUNK, size)) for begin in range(0, size, _CHUNK)]


def _linear(points: Points, extents: Extents) -> Array:
    total = np.zeros(points.shape[1], np.int64)
    for coordinate, extent in zip(points, extents, strict=True):
        total = total * extent + coordinate
    return total


def _unravelled(linear: Array, extents: Extents) -> Points:
    found = np.zeros((len(extents), linear.size), np.int64)
    for axis in reversed(range(len(extents))):
        linear, found[axis] = np.divmod(linear, max(extents[axis], 1))
    return found
