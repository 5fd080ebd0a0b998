"""Evaluation of a tree at one vector of output points: loads with masks, folds, reduction loops."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from tvm import tirx

from egraph_opt.backends import tvm_math, tvm_tree
from egraph_opt.backends.tvm_emit import LANES, Emitter, integer, number, operand, splat
from egraph_opt.backends.tvm_tree import Call, Condition, Constant, Fold, Guard, Load, Loop, Node, Region, Stage
from egraph_opt.errors import EgraphOptError
from egraph_opt.ir import expr as ex
from egraph_opt.ir.expr import Expr, Extents, Quotient
from egraph_opt.ir.terms import Reduce

Value = Any
Conditions = tuple[Condition, ...]


@dataclass(frozen=True)
class Array:
    """A buffer a kernel reads or writes: the TVM buffer, addressed by row-major position, and its number of
    elements.
    """

    buffer: Value
    size: int


@dataclass(frozen=True)
class Point:
    """``lanes`` consecutive values of iterator ``axis`` from ``env[axis]`` on; only the first ``valid`` of them exist.

    ``env`` gives the position of every other open iterator. ``known`` holds what was computed at this point already.
    """

    extents: Extents
    env: Mapping[int, Value]
    axis: int | None = None
    lanes: int = 1
    valid: int = 1
    known: dict[Any, tuple[Any, Value]] = field(default_factory=dict)


def power_of_two(count: int) -> int:
    """The number of lanes for ``count`` elements: a power of two, at most LANES."""
    return min(LANES, 1 << max(count - 1, 0).bit_length())


def position(expression: Expr, env: Mapping[int, Value], extents: Extents) -> Value:
    """The expression as int32 code."""
    total: Value = integer(expression.constant)
    for atom, coefficient in expression.terms:
        if isinstance(atom, int):
            value = env[atom]
        else:
            value = _quotient(position(atom.dividend, env, extents), atom, extents, 1)
        total = total + (value * integer(coefficient) if coefficient != 1 else value)
    return total


def lane_positions(expression: Expr, point: Point) -> Value:
    """The expression at every lane."""
    if point.axis not in expression.iterators:
        return splat(position(expression, point.env, point.extents), point.lanes)
    total: Value = splat(integer(expression.constant), point.lanes)
    for atom, coefficient in expression.terms:
        if atom == point.axis:
            value = tirx.Ramp(point.env[point.axis], integer(1), point.lanes)
        elif isinstance(atom, int):
            value = splat(point.env[atom], point.lanes)
        else:
            value = _quotient(lane_positions(atom.dividend, point), atom, point.extents, point.lanes)
        total = total + value * splat(integer(coefficient), point.lanes)
    return total


def _quotient(dividend: Value, atom: Quotient, extents: Extents, lanes: int) -> Value:
    """Floor division by the machine's truncating one: the dividend is moved up so that it is never negative."""
    low, _ = ex.bounds(atom.dividend, extents)
    shift = max(0, -(low // atom.divisor))
    if shift:
        dividend = dividend + splat(integer(shift * atom.divisor), lanes)
    value = tirx.Div(dividend, splat(integer(atom.divisor), lanes))
    return value - splat(integer(shift), lanes) if shift else value


class Evaluator:
    """Writes the code that computes tree nodes at points."""

    def __init__(self, emitter: Emitter, arrays: dict[str, Array]) -> None:
        self.emitter = emitter
        self.arrays = arrays

    def value(self, node: Node, point: Point, conditions: Conditions = ()) -> Value:
        """The node's value, bound; no memory is touched in lanes where a condition fails."""
        key = (id(node), conditions)
        if key not in point.known:
            point.known[key] = (node, self._value(node, point, conditions))
        return point.known[key][1]

    def _value(self, node: Node, point: Point, conditions: Conditions) -> Value:
        bind = self.emitter.let
        match node:
            case Constant(value, own):
                return operand(value, point.lanes) if own else number(value, point.lanes)
            case Load():
                return bind(self.load(node, point, conditions, 0.0))
            case Guard(more, inner, other):
                joined = tuple(dict.fromkeys((*conditions, *more)))
                if isinstance(inner, Load):
                    return bind(self.load(inner, point, joined, other))
                value = self.value(inner, point, joined)
                holds = self._holds(more, point, point.lanes)
                return bind(tirx.Select(holds, value, number(other, point.lanes)))
            case Call(function, arguments):
                values = [self.value(argument, point, conditions) for argument in arguments]
                return bind(tvm_math.apply(self.emitter, function, values, point.lanes))
            case Fold(operation, items):
                combine = tvm_math.combine(operation)
                total = self.value(items[0], point, conditions)
                for item in items[1:]:
                    total = bind(combine(total, self.value(item, point, conditions), point.lanes))
                return total
            case Loop():
                return self.reduction(node, point, conditions)
            case Stage(Reduce() as term, indices):
                lowering = tvm_tree.Lowering(point.extents)
                inner = lowering.reduction(term, indices)
                opened = replace(point, extents=lowering.extents)
                return self.value(inner, opened, conditions)
        raise EgraphOptError("a softmax row was not computed before it is read")

    # ---- conditions -----------------------------------------------------------------------------------------------

    def _holds(self, conditions: Sequence[Condition], point: Point, lanes: int) -> Value:
        """All conditions, per lane; with ``lanes`` 1 they must not depend on the vector axis."""
        # Conditions are not bound to variables: TVM's code generator would analyse them, slowly, and fails on vectors.
        total: Value = None
        for condition in conditions:
            wide = lanes > 1 and point.axis in condition.expr.iterators
            at = lane_positions(condition.expr, point) if wide else position(condition.expr, point.env, point.extents)
            test = splat(_within(at, condition, point.extents, lanes if wide else 1), 1 if wide else lanes)
            total = test if total is None else tirx.And(total, test)
        return total

    def scalar_test(self, conditions: Sequence[Condition], point: Point) -> Value | None:
        """The conditions as one scalar test; None when there are none."""
        return self._holds(conditions, point, 1)

    def _mask(self, conditions: Sequence[Condition], point: Point) -> Value | None:
        """The lanes that exist and where all conditions hold; None for all of them."""
        total = self._holds(conditions, point, point.lanes)
        if point.valid < point.lanes:
            tail = self.emitter.first_lanes(point.valid, point.lanes)
            total = tail if total is None else tirx.And(total, tail)
        return total

    # ---- loads ----------------------------------------------------------------------------------------------------

    def load(self, node: Load, point: Point, conditions: Conditions, other: float) -> Value:
        """A vector of elements; ``other`` in the lanes where a condition fails, which are not read."""
        emitter, array, lanes = self.emitter, self.arrays[node.buffer], point.lanes
        varies = point.axis is not None and lanes > 1 and point.axis in node.offset.iterators
        varying = [c for c in conditions if lanes > 1 and point.axis in c.expr.iterators]
        uniform = [c for c in conditions if c not in varying]
        if not varies:
            low, high = ex.bounds(node.offset, point.extents)
            if varying and (low < 0 or high >= array.size):
                uniform.append(Condition(node.offset, 0, array.size))
            at = position(node.offset, point.env, point.extents)
            if uniform:
                single = emitter.load_masked(array.buffer, at, 1, self._holds(uniform, point, 1), other)
            else:
                single = emitter.load(array.buffer, at, 1)
            if lanes == 1:
                return single
            spread = splat(emitter.let(single), lanes)
            return tirx.Select(self._holds(varying, point, lanes), spread, number(other, lanes)) if varying else spread
        affine = not any(point.axis in quotient.dividend.iterators for quotient, _ in node.offset.quotients)
        stride = node.offset.coefficient(point.axis) if affine and point.axis is not None else 0
        if affine and stride == 1:
            at, mask = position(node.offset, point.env, point.extents), self._mask(conditions, point)
            if mask is None:
                return emitter.load(array.buffer, at, lanes)
            return emitter.load_masked(array.buffer, at, lanes, mask, other)
        if affine and not conditions and point.valid == lanes:
            return emitter.load_strided(array.buffer, position(node.offset, point.env, point.extents), stride, lanes)
        mask = self._mask(conditions, point)
        if affine and 1 < stride <= 4 and mask is not None:
            return emitter.load_strided_masked(
                array.buffer, position(node.offset, point.env, point.extents), stride, lanes, mask, other
            )
        at = lane_positions(node.offset, point)
        if mask is None:
            return tirx.BufferLoad(array.buffer, [at])
        # Lanes that are off read element 0 instead: no branches, and nothing simplifies the choice away later.
        found = tirx.BufferLoad(array.buffer, [tirx.Select(mask, at, splat(integer(0), lanes))])
        return tirx.Select(mask, found, number(other, lanes))

    # ---- reductions -----------------------------------------------------------------------------------------------

    def reduction(self, node: Loop, point: Point, conditions: Conditions) -> Value:
        """A reduction loop: one accumulator per lane, or vectors along a reduced axis when the point has one lane."""
        emitter = self.emitter
        combine = tvm_math.combine(node.operation)
        region, iterators = tvm_tree.fused(Region(point.extents, node.value, Expr(0)), node.iterators)
        inner = _innermost(region, iterators) if point.lanes == 1 else None
        outer = [i for i in iterators if i != inner]
        lanes = point.lanes if inner is None else power_of_two(region.extents[inner])
        chains = 4 if inner is not None and region.extents[inner] >= 8 * lanes else 1
        totals = [emitter.allocate(lanes, "total") for _ in range(chains)]
        unit = number(tvm_tree.IDENTITY[node.operation], lanes)
        for total in totals:
            emitter.store(total, integer(0), unit, lanes)

        def accumulate(total: Value, at: Point, piece: Region) -> None:
            value = self.value(piece.value, at, conditions)
            if at.valid < lanes and inner is not None:
                value = tirx.Select(emitter.first_lanes(at.valid, lanes), value, unit)
            old = emitter.let(emitter.load(total, integer(0), lanes))
            emitter.store(total, integer(0), combine(old, emitter.let(value), lanes), lanes)

        def innermost(piece: Region, env: Mapping[int, Value]) -> None:
            if inner is None:
                accumulate(totals[0], replace(point, extents=piece.extents, env=env, known={}), piece)
                return
            for block, base, valid in self.blocks(piece, inner, lanes, unroll=chains):
                for i, offset in enumerate(base):
                    at = Point(block.extents, {**env, inner: offset}, inner, lanes, valid)
                    accumulate(totals[i], at, block)

        self.loops(region, outer, dict(point.env), innermost)
        value = emitter.let(emitter.load(totals[0], integer(0), lanes))
        for total in totals[1:]:
            value = emitter.let(combine(value, emitter.let(emitter.load(total, integer(0), lanes)), lanes))
        return emitter.across(combine, value, lanes) if inner is not None else value

    def loops(
        self,
        region: Region,
        axes: Sequence[int],
        env: Mapping[int, Value],
        body: Callable[[Region, Mapping[int, Value]], None],
    ) -> None:
        """Serial loops over ``axes``, cut where a condition on one axis alone changes."""
        if not axes:
            body(region, env)
            return
        axis, count = axes[0], region.extents[axes[0]]
        for low, high in pairwise(sorted({0, count, *tvm_tree.cuts(region.value, axis, count)})):
            piece = tvm_tree.narrow(region, axis, low, high)
            if high - low == 1:
                self.loops(piece, axes[1:], {**env, axis: integer(0)}, body)
                continue
            with self.emitter.loop("k", high - low) as variable:
                self.loops(piece, axes[1:], {**env, axis: variable}, body)

    def blocks(
        self, region: Region, axis: int, lanes: int, unroll: int = 1
    ) -> Iterator[tuple[Region, list[Value], int]]:
        """Vector blocks along an axis, in loops where conditions are uniform: (region, first positions, valid
        lanes).
        """
        count = region.extents[axis]
        marks = {0, -(-count // lanes), count // lanes}
        for cut in tvm_tree.cuts(region.value, axis, count):
            marks |= {cut // lanes, -(-cut // lanes)}
        for low, high in pairwise(sorted(marks)):
            first, last = low * lanes, min(count, high * lanes)
            piece = tvm_tree.narrow(region, axis, first, last)
            blocks = high - low
            if blocks == 1:
                yield piece, [integer(0)], min(lanes, last - first)
                continue
            jam = unroll if blocks >= unroll else 1
            if blocks // jam > 0:
                with self.emitter.loop("b", blocks // jam) as variable:
                    yield piece, [variable * integer(lanes * jam) + integer(lanes * i) for i in range(jam)], lanes
            for rest in range(blocks - blocks % jam, blocks):
                yield piece, [integer(rest * lanes)], lanes


def _within(at: Value, condition: Condition, extents: Extents, lanes: int) -> Value:
    """``low <= at < high`` without the side the extents prove."""
    low, high = ex.bounds(condition.expr, extents)
    tests = []
    if low < condition.low:
        tests.append(tirx.GE(at, splat(integer(condition.low), lanes)))
    if high >= condition.high:
        tests.append(tirx.LT(at, splat(integer(condition.high), lanes)))
    if not tests:
        return splat(tirx.const(True, "bool"), lanes)
    return tests[0] if len(tests) == 1 else tirx.And(*tests)


def _innermost(region: Region, iterators: Sequence[int]) -> int | None:
    """The reduced iterator worth vectorizing: the one along which most loads are contiguous."""
    best, best_score = None, 0
    loads = [node for node in tvm_tree.walk(region.value) if isinstance(node, Load)]
    for iterator in iterators:
        if region.extents[iterator] < 4:
            continue
        score = sum({0: 1, 1: 3}.get(load.offset.coefficient(iterator), -1) for load in loads)
        if best is None or score > best_score:
            best, best_score = iterator, score
    return best
