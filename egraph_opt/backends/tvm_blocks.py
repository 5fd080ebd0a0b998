"""Kernel bodies as schedulable TVM functions: one block for every stage, scalar code, nothing arranged yet.

What :mod:`tvm_lower` writes is final; this is what schedule traces and a user's schedule functions start from. Buffers
of stages keep their axes; arguments and the output are flat, as in all generated kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import tvm
from tvm import s_tir, tirx

from egraph_opt.backends import tvm_emit, tvm_schedule
from egraph_opt.backends import tvm_tree as tree
from egraph_opt.backends.tvm_emit import Emitter, integer, number
from egraph_opt.backends.tvm_point import Array, Evaluator, Point, position
from egraph_opt.backends.tvm_share import phases_of
from egraph_opt.backends.tvm_tree import Call, Condition, Fold, Load, Loop, Lowering, Node, Region, Stage
from egraph_opt.errors import EgraphOptError
from egraph_opt.ir import expr as ex
from egraph_opt.ir.expr import Expr
from egraph_opt.ir.terms import Reduce, Softmax, Source, Tensor

Value = Any
# The function's name while it is scheduled, which traces refer to, and the name of its last block.
FUNCTION, OUTPUT = "main", "out"
# NaN is the largest and the smallest; a pool, which begins with a number, passes over it.
_EXTREMA = {"max": "llvm.maximum", "min": "llvm.minimum", "pool": "llvm.maxnum"}
# The largest of a softmax's row: where NaN is in the row its powers are NaN anyway. TVM can take this one apart.
_ROW_MAXIMUM = "row maximum"
_INITIAL = {_ROW_MAXIMUM: "pool"}
# Values computed at one point of a block, and phases of it that are computed together.
MOST_VALUES, MOST_PHASES = 2_000, 16


def blocks_module(body: Tensor, inputs: Sequence[Source]) -> Value:
    """The module with the function ``main(inputs..., out)`` in blocks ``stage0``, ``stage1``, … and ``out``.

    Raises EgraphOptError for a body without elements, or one that is too long to be analysed.
    """
    if not prod(body.extents) or any(prod(term.extents) >= 1 << 31 for term in (body, *inputs)):
        raise EgraphOptError(f"a kernel of extents {list(body.extents)} has no loops to be scheduled")
    buffers = [tvm_emit.parameter(source.name, (max(prod(source.extents), 1),)) for source in inputs]
    output = tvm_emit.parameter(OUTPUT, (prod(body.extents),))
    writer = _Writer({source.name: Array(b, prod(source.extents)) for source, b in zip(inputs, buffers, strict=True)})
    regions, axes = output_regions(body)
    writer.block(OUTPUT, regions, axes, output)
    root = s_tir.SBlock([], [], [], "root", writer.body(), None, writer.between)
    function = tirx.PrimFunc([*buffers, output], s_tir.SBlockRealize([], True, root))
    for name, value in (("global_symbol", FUNCTION), ("tirx.noalias", True), ("s_tir", True)):
        function = function.with_attr(name, value)
    return tvm.IRModule({FUNCTION: function})


def output_regions(body: Tensor) -> tuple[list[Region], list[int]]:
    """What the last block computes at one point, phase by phase, and the axes its loops run over.

    Where an index divides an axis its phases are computed together: none of them divides anything any more.
    """
    form = tvm_schedule.normal_form(body)
    regions = [form.region]
    for axis in form.axes:
        step, extent = phases_of(form.region, axis), form.region.extents[axis]
        if step > 1 and extent % step == 0 and len(regions) * step <= MOST_PHASES:
            regions = [
                tree.narrow(region, axis, 0, extent // step, step, phase) for region in regions for phase in range(step)
            ]
    return regions, [axis for axis in form.axes if regions[0].extents[axis] > 1]


@dataclass(frozen=True, eq=False)
class _Element(Load):
    """An element of a stage's buffer, by its position along every axis."""

    indices: tuple[Expr, ...] = ()


class _Expressions(Emitter):
    """Collects what is bound as a chain of ``let … in`` around one expression."""

    def __init__(self) -> None:
        super().__init__(MOST_VALUES)
        self._bound: list[tuple[Value, Value]] = []

    def let(self, value: Value, name: str = "v") -> Value:
        if len(self._bound) == MOST_VALUES:
            raise EgraphOptError("a kernel computes too much at one point to be scheduled")
        variable = tirx.Var(f"t{len(self._bound)}", value.ty)
        self._bound.append((variable, _kept(value)))
        return variable

    def load_masked(self, buffer: Value, position: Value, lanes: int, mask: Value, other: float) -> Value:
        # What is likely can be cut out of loops, so that the rest needs no condition.
        return super().load_masked(buffer, position, lanes, tirx.likely(mask), other)

    def whole(self, value: Value) -> Value:
        """The value with everything that was bound for it."""
        for variable, bound in reversed(self._bound):
            value = tirx.Let(variable, bound, value)
        return value


def _kept(value: Value) -> Value:
    """The value in a form that TVM's simplifier does not put in the place of its variable: a chain in which each value
    is used twice would become exponentially long. LLVM sees that it is x * 1 - 0, which is x in every case.
    """
    if str(value.ty.dtype) != "float32":
        return value
    one, nothing = tirx.const(1.0, "float32"), tirx.const(-0.0, "float32")
    return tirx.call_llvm_intrin("float32", "llvm.fmuladd", value, one, nothing)


def unwrapped(value: Value) -> Value:
    """The value that :func:`_kept` wrapped."""
    if isinstance(value, tvm.ir.Call) and getattr(value.op, "name", "") == "tirx.call_llvm_intrin":
        return value.args[1]
    return value


class _Evaluator(Evaluator):
    """Scalars; elements of stages are read from their buffers."""

    def _value(self, node: Node, point: Point, conditions: tuple[Condition, ...]) -> Value:
        match node:
            case Fold(operation, items) if operation in _EXTREMA:
                total = self.value(items[0], point, conditions)
                for item in items[1:]:
                    total = self.emitter.let(_combined(operation, total, self.value(item, point, conditions)))
                return total
            case Call("max" | "min" as function, arguments):
                one, other = (self.value(argument, point, conditions) for argument in arguments)
                return self.emitter.let(_combined(function, one, other))
        return super()._value(node, point, conditions)

    def load(self, node: Load, point: Point, conditions: tuple[Condition, ...], other: float) -> Value:
        if not isinstance(node, _Element):
            return super().load(node, point, conditions, other)
        at = [position(index, point.env, point.extents) for index in node.indices] or [integer(0)]
        found = tirx.BufferLoad(self.arrays[node.buffer].buffer, at)
        holds = self.scalar_test(conditions, point)
        return found if holds is None else tirx.if_then_else(tirx.likely(holds), found, tirx.const(other, "float32"))


def _combined(operation: str, one: Value, other: Value) -> Value:
    """One step of a reduction that mentions its operands once, so that long chains stay short when put together."""
    if operation in _EXTREMA:
        return tirx.call_llvm_pure_intrin("float32", _EXTREMA[operation], one, other)
    return tirx.Max(one, other) if operation == _ROW_MAXIMUM else one + other


class _Writer:
    """Statements of the blocks, each after those it reads, and the buffers ``between`` them."""

    def __init__(self, arrays: dict[str, Array]) -> None:
        self.arrays = arrays
        self.between: list[Value] = []
        self._statements: list[Value] = []
        self._stages: dict[Tensor, str] = {}

    def body(self) -> Value:
        """All blocks."""
        return self._statements[0] if len(self._statements) == 1 else tirx.SeqStmt(self._statements)

    def block(self, name: str, regions: Sequence[Region], axes: Sequence[int], buffer: Value) -> None:
        """A nest of loops that stores the values of regions of equal extents at their targets in a flat buffer."""
        order = [axis for axis in axes if regions[0].extents[axis] > 1]
        inside = {axis: tirx.Var(f"v{axis}", "int32") for axis in order}
        stores = []
        for region in regions:
            env = {axis: inside.get(axis, integer(0)) for axis in range(len(region.extents))}
            value = self._value(self._staged(region.value), region, env)
            stores.append(tirx.BufferStore(buffer, value, [position(region.target, env, region.extents)]))
        store = stores[0] if len(stores) == 1 else tirx.SeqStmt(stores)
        self._nest(name, regions[0], inside, (), store, None, buffer)

    def stage(self, name: str, region: Region, kept: Sequence[int]) -> str:
        """A block that fills a buffer of its own over the kept axes; the iterators of a Loop as value are reduced."""
        loop = region.value if isinstance(region.value, Loop) else None
        inner = self._staged(region.value if loop is None else loop.value)
        reduced = () if loop is None else loop.iterators
        buffer = tirx.decl_buffer([region.extents[axis] for axis in kept] or [1], "float32", name=name, scope="global")
        inside = {a: tirx.Var(f"v{a}", "int32") for a in (*kept, *reduced) if region.extents[a] > 1}
        env = {axis: inside.get(axis, integer(0)) for axis in range(len(region.extents))}
        indices = [env[axis] for axis in kept] or [integer(0)]
        value, init = self._value(inner, region, env), None
        if loop is not None:
            unit = tree.IDENTITY[_INITIAL.get(loop.operation, loop.operation)]
            init = tirx.BufferStore(buffer, number(unit, 1), indices)
            value = _combined(loop.operation, tirx.BufferLoad(buffer, indices), value)
        self._nest(name, region, inside, reduced, tirx.BufferStore(buffer, value, indices), init, buffer)
        self.arrays[name] = Array(buffer, prod(region.extents[axis] for axis in kept))
        self.between.append(buffer)
        return name

    def _value(self, node: Node, region: Region, env: dict[int, Value]) -> Value:
        emitter = _Expressions()
        value = _Evaluator(emitter, self.arrays).value(node, Point(region.extents, env))
        return emitter.whole(value)

    def _nest(
        self,
        name: str,
        region: Region,
        inside: dict[int, Value],
        reduced: Sequence[int],
        body: Value,
        init: Value,
        buffer: Value,
    ) -> None:
        """Loops around a block; ``inside`` has the block's variables, outermost first."""
        kinds = {axis: tirx.IterVar.CommReduce if axis in reduced else tirx.IterVar.DataPar for axis in inside}
        iterators = [tirx.IterVar((0, region.extents[axis]), inside[axis], kinds[axis]) for axis in inside]
        known = {array.buffer: array.buffer for array in self.arrays.values()} | {buffer: buffer}
        bare = s_tir.SBlock(iterators, [], [], name, body, init)
        reads, writes, _ = s_tir.analysis.get_sblock_access_region(bare, known)
        outside = {axis: tirx.Var(f"i{axis}", "int32") for axis in inside}
        made = s_tir.SBlock(iterators, reads, writes, name, body, init)
        nest: Value = s_tir.SBlockRealize([outside[axis] for axis in inside], True, made)
        for axis in reversed(inside):
            nest = tirx.For(outside[axis], 0, region.extents[axis], tirx.ForKind.SERIAL, nest)
        self._statements.append(nest)

    def _staged(self, value: Node) -> Node:
        """A tree that reads its softmaxes and long reductions from the buffers of their blocks."""

        def change(node: Node, _: object) -> Node | None:
            if not isinstance(node, Stage):
                return None
            if node.term not in self._stages:
                self._stages[node.term] = self._stage_of(node.term)
            name = self._stages[node.term]
            found = self._element(name, node.indices)
            if not isinstance(node.term, Softmax):
                return found
            return Call("div", (found, self._element(f"{name.removesuffix('_exp')}_sum", node.lead)))

        return tree.rewrite(value, change)

    def _element(self, name: str, indices: tuple[Expr, ...]) -> _Element:
        return _Element(name, Expr(0), indices)

    def _stage_of(self, term: Softmax | Reduce) -> str:
        return self._softmax(term) if isinstance(term, Softmax) else self._reduction(term)

    def _reduction(self, term: Reduce) -> str:
        lowering = Lowering(term.extents)
        value = lowering.reduction(term, _iterators(term))
        kept = range(len(term.extents))
        inner = self._staged(value.value) if isinstance(value, Loop) else value
        value = Loop(value.operation, value.iterators, inner) if isinstance(value, Loop) else inner
        return self.stage(f"stage{len(self._stages)}", Region(lowering.extents, value, Expr(0)), kept)

    def _softmax(self, term: Softmax) -> str:
        lowering = Lowering(term.extents)
        its = _iterators(term)
        whole = range(len(term.extents))
        lead = whole[: -term.count]
        own = tuple(axis for axis in whole if axis not in lead and term.extents[axis] > 1)
        value = self._staged(lowering.at(term.tensor, its))
        name = f"stage{len(self._stages)}"
        if not isinstance(value, Load):
            region = Region(lowering.extents, value, Expr(0))
            value = self._element(self.stage(name, region, whole), its)
        largest = self.stage(f"{name}_max", Region(lowering.extents, Loop(_ROW_MAXIMUM, own, value), Expr(0)), lead)
        shifted = Call("sub", (value, self._element(largest, its[: len(lead)])))
        powers = self.stage(f"{name}_exp", Region(lowering.extents, Call("exp", (shifted,)), Expr(0)), whole)
        total = Loop("sum", own, self._element(powers, its))
        self.stage(f"{name}_sum", Region(lowering.extents, total, Expr(0)), lead)
        return powers


def _iterators(term: Tensor) -> tuple[Expr, ...]:
    return tuple(ex.iterator(axis) if extent > 1 else Expr(0) for axis, extent in enumerate(term.extents))
