"""CUDA kernels of body terms, arranged as cuda_schedule says.

Where a body holds reductions or softmaxes, a warp or a block can compute them together at the indices they share, and
then walk over the rest of the output; otherwise every thread computes its elements alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import tvm
from tvm import tirx

from egraph_opt.backends import cuda_math, tvm_emit, tvm_math, tvm_schedule
from egraph_opt.backends import tvm_tree as tree
from egraph_opt.backends.cuda_schedule import LANES, TILE, TILES, WARP, CudaSchedule, reads, turns, wide_loads
from egraph_opt.backends.tvm_emit import Emitter, integer, number
from egraph_opt.backends.tvm_point import Array, Conditions, Evaluator, Point, position
from egraph_opt.backends.tvm_schedule import NormalForm
from egraph_opt.backends.tvm_stages import Visit, placed
from egraph_opt.backends.tvm_tree import Call, Constant, Guard, Load, Loop, Lowering, Node, Region, Stage
from egraph_opt.errors import EgraphOptError
from egraph_opt.ir import expr as ex
from egraph_opt.ir.expr import Expr, Extents
from egraph_opt.ir.terms import Reduce, Softmax, Source, Tensor

Value = Any
Env = Mapping[int, Value]

# Statements of one kernel.
CODE_LIMIT = 3000
# The most blocks of a launch.
MOST_BLOCKS = (1 << 31) - 1
_WHOLE_WARP = 0xFFFFFFFF


@dataclass(frozen=True)
class Launch:
    """Blocks, and threads of a block."""

    blocks: int
    threads: int


def cuda_module(name: str, body: Tensor, inputs: Sequence[Source], schedule: CudaSchedule) -> tuple[Value, Launch]:
    """A TVM module with one function ``name(inputs…, out)`` over flat float32 buffers, and how it is launched.

    Raises EgraphOptError for a body that has no CUDA form in this schedule.
    """
    for extents in (body.extents, *(source.extents for source in inputs)):
        if not 0 < prod(extents) < 1 << 31:
            raise EgraphOptError(f"a tensor of extents {list(extents)} is empty or too large for a CUDA kernel")
    buffers = [tvm_emit.parameter(source.name, (prod(source.extents),)) for source in inputs]
    output = tvm_emit.parameter("out", (prod(body.extents),))
    arrays = {source.name: Array(b, prod(source.extents)) for source, b in zip(inputs, buffers, strict=True)}
    writer = _Writer(arrays, Array(output, prod(body.extents)), schedule)
    launch = writer.kernel(body)
    code = writer.emitter.body()
    for variable, tag, extent in (
        (writer.thread, "threadIdx.x", launch.threads),
        (writer.block, "blockIdx.x", launch.blocks),
    ):
        index = tirx.IterVar(tvm.ir.Range(0, extent), variable, tirx.IterVar.ThreadIndex, tag)
        code = tirx.AttrStmt(index, "thread_extent", integer(extent), code)
    return tvm_emit.function(name, [*buffers, output], code), launch


class CudaEmitter(Emitter):
    """Statements of one thread: scratch buffers are registers."""

    def allocate(self, size: int, name: str) -> Value:
        return self._declared(size, name, "local")

    def shared(self, size: int, name: str) -> Value:
        """Memory that the threads of a block share."""
        return self._declared(size, name, "shared")

    def synchronize(self) -> None:
        """Wait until all threads of the block are here."""
        self.emit(tirx.Evaluate(tirx.call_intrin("void", "tirx.tvm_storage_sync", "shared")))

    def _declared(self, size: int, name: str, scope: str) -> Value:
        self._count += 1
        buffer = tirx.decl_buffer((size,), "float32", name=f"{name}{self._count}", scope=scope)
        self.emit(tirx.AllocBuffer(buffer))
        return buffer

    @contextmanager
    def strided(self, first: Value, extent: int, step: int) -> Iterator[Value]:
        """Statements for ``first``, ``first + step`` … below ``extent``, given that ``0 <= first < step``."""
        with self.loop("turn", -(-extent // step)) as turn:
            index = self.let(turn * integer(step) + first, "at")
            with self.when(None if extent % step == 0 else index < integer(extent)):
                yield index


class _CudaEvaluator(Evaluator):
    """Scalar code for one point. ``given`` has the values of nodes, under some conditions, that are there already."""

    emitter: CudaEmitter

    def __init__(self, emitter: CudaEmitter, arrays: dict[str, Array]) -> None:
        super().__init__(emitter, arrays)
        self.given: Mapping[tuple[int, Conditions], Value] = {}

    def _value(self, node: Node, point: Point, conditions: Conditions) -> Value:
        if (id(node), conditions) in self.given:
            return self.given[id(node), conditions]
        match node:
            case Constant(value, True):
                return cuda_math.operand(value)
            case Call(function, arguments):
                values = [self.value(argument, point, conditions) for argument in arguments]
                return self.emitter.let(cuda_math.apply(self.emitter, function, values))
        return super()._value(node, point, conditions)

    def reduction(self, node: Loop, point: Point, conditions: Conditions) -> Value:
        """A reduction by this thread alone."""
        emitter, combine = self.emitter, tvm_math.combine(node.operation)
        total = emitter.allocate(1, "total")
        emitter.store(total, integer(0), number(tree.IDENTITY[node.operation], 1), 1)

        def accumulate(piece: Region, env: Env) -> None:
            at = replace(point, extents=piece.extents, env=env, known={})
            value = emitter.let(self.value(piece.value, at, conditions))
            old = emitter.let(emitter.load(total, integer(0), 1))
            emitter.store(total, integer(0), combine(old, value, 1), 1)

        self.loops(Region(point.extents, node.value, Expr(0)), node.iterators, dict(point.env), accumulate)
        return emitter.let(emitter.load(total, integer(0), 1))


class _Writer:
    def __init__(self, arrays: dict[str, Array], output: Array, schedule: CudaSchedule) -> None:
        self.emitter = CudaEmitter(CODE_LIMIT)
        self.arrays = arrays
        self.evaluator = _CudaEvaluator(self.emitter, arrays)
        self.output = output
        self.schedule = schedule
        self.block, self.thread = tirx.Var("block", "int32"), tirx.Var("thread", "int32")
        self.lane: Value = self.thread
        # The greatest value and the sum of the exponentials of each row.
        self._softmax_rows: dict[tuple[Softmax, tuple[Expr, ...], Conditions], tuple[Node, Node]] = {}

    def kernel(self, body: Tensor) -> Launch:
        """Emit the statements of one thread."""
        form = tvm_schedule.normal_form(body)
        match self.schedule.kind:
            case "rows":
                return self._rows(form.region, form.axes)
            case "tiles":
                return self._tiles(form)
            case "vectors":
                return self._vectors(form)
        return self._elements(form.region, form.axes)

    def _elements(self, region: Region, axes: Sequence[int]) -> Launch:
        each, threads = self.schedule.each, self.schedule.threads
        total = prod(region.extents[axis] for axis in axes)
        blocks = -(-total // (threads * each))
        for number_of in range(each):
            base = self.block * integer(threads * each) + integer(threads * number_of)
            index = self.emitter.let(base + self.thread, "index")
            with self.emitter.when(None if total == blocks * threads * each else index < integer(total)):
                self._store(region, self._digits(region.extents, axes, index))
        return self._launch(blocks)

    def _vectors(self, form: NormalForm) -> Launch:
        """Each thread has LANES elements that lie side by side."""
        emitter, threads = self.emitter, self.schedule.threads
        wide, whole, inner = wide_loads(form), form.region, form.axes[-1]
        groups = {axis: whole.extents[axis] // (LANES if axis == inner else 1) for axis in form.axes}
        total = prod(groups.values())
        blocks = -(-total // threads)
        index = emitter.let(self.block * integer(threads) + self.thread, "index")
        with emitter.when(None if total == blocks * threads else index < integer(total)):
            digits = self._digits(groups, form.axes, index)
            first = emitter.let(digits[inner] * integer(LANES), "first")
            at = Point(whole.extents, {**digits, inner: first})
            loaded = [(node, above, self._wide(node, load, joined, inner, at)) for node, above, load, joined in wide]
            result = emitter.allocate(LANES, "result")
            for lane in range(LANES):
                env = {**digits, inner: emitter.let(first + integer(lane), "i")}
                self.evaluator.given = {
                    (id(node), above): emitter.load(values, integer(lane), 1) for node, above, values in loaded
                }
                value = self.evaluator.value(whole.value, Point(whole.extents, env))
                emitter.store(result, integer(lane), value, 1)
            values = emitter.load(result, integer(0), LANES)
            emitter.store(self.output.buffer, self._aligned(whole.target, inner, at), values, LANES)
        return self._launch(blocks)

    def _wide(self, node: Node, load: Load, conditions: Conditions, inner: int, at: Point) -> Value:
        """LANES neighbouring elements in registers; what is outside where a condition fails, none of which varies."""
        emitter = self.emitter
        values = emitter.load(self.arrays[load.buffer].buffer, self._aligned(load.offset, inner, at), LANES)
        test = self.evaluator.scalar_test(conditions, at)
        if test is not None:
            other = node.other if isinstance(node, Guard) else 0.0
            values = tirx.if_then_else(test, values, number(other, LANES))
        held = emitter.allocate(LANES, "wide")
        emitter.store(held, integer(0), values, LANES)
        return held

    def _aligned(self, offset: Expr, inner: int, at: Point) -> Value:
        """A position that LANES divides, written so that TVM sees it."""
        groups = {atom: coefficient // LANES for atom, coefficient in offset.terms if atom != inner}
        rest = position(Expr.of(offset.constant // LANES, groups), at.env, at.extents)
        return self.emitter.let(tirx.Div(at.env[inner], integer(LANES)) + rest, "group") * integer(LANES)

    def _tiles(self, form: NormalForm) -> Launch:
        """Each block turns a tile: reads along one axis, writes along the innermost one."""
        emitter, region, inner, across = self.emitter, form.region, form.axes[-1], self.schedule.axis
        rest = [axis for axis in form.axes if axis not in (inner, across)]
        sides = {axis: -(-region.extents[axis] // TILE) for axis in (across, inner)}
        found = {(id(read[0]), read[1]): read for read in reads(region.value) if turns(read[2], inner, across)}
        turned = list(found.values())[:TILES]
        if not turned:
            raise EgraphOptError(f"no input is read along axis {across}")
        # One column more than a row has: neighbours in a column lie in different banks.
        tiles = [emitter.shared(TILE * (TILE + 1), "tile") for _ in turned]
        tiled = {**{axis: region.extents[axis] for axis in rest}, **sides}
        digits = self._digits(tiled, list(tiled), self.block)
        begin = {axis: emitter.let(digits[axis] * integer(TILE), "begin") for axis in sides}
        column = emitter.let(tirx.Mod(self.thread, integer(TILE)), "column")
        row = emitter.let(tirx.Div(self.thread, integer(TILE)), "row")
        step = self.schedule.threads // TILE

        def walk(along: int, over: int) -> Iterator[tuple[Value, Env]]:
            """The points of the tile that this thread has, neighbouring threads beside each other along an axis."""
            with emitter.loop("turn", TILE // step) as turn:
                line = emitter.let(turn * integer(step) + row, "line")
                here = {along: begin[along] + column, over: begin[over] + line}
                env = {**digits, **{axis: emitter.let(place, "i") for axis, place in here.items()}}
                tests = [env[axis] < integer(region.extents[axis]) for axis in here if region.extents[axis] % TILE]
                with emitter.when(tirx.all(*tests) if tests else None):
                    yield line, env

        for line, env in walk(across, inner):
            at = Point(region.extents, env)
            for tile, (node, above, _, _) in zip(tiles, turned, strict=True):
                place = line * integer(TILE + 1) + column
                emitter.store(tile, place, self.evaluator.value(node, at, above), 1)
        emitter.synchronize()
        for line, env in walk(inner, across):
            place = emitter.let(column * integer(TILE + 1) + line, "place")
            self.evaluator.given = {
                (id(node), above): emitter.load(tile, place, 1)
                for tile, (node, above, _, _) in zip(tiles, turned, strict=True)
            }
            self._store(region, env)
        return self._launch(prod(region.extents[axis] for axis in rest) * prod(sides.values()))

    def _rows(self, region: Region, axes: Sequence[int]) -> Launch:
        emitter, share = self.emitter, self.schedule.share
        leads = {
            i for node in tree.walk(region.value) if isinstance(node, Stage) for e in node.lead for i in e.iterators
        }
        outer = [axis for axis in axes if axis in leads]
        inner = [axis for axis in axes if axis not in leads]
        rows, each = prod(region.extents[axis] for axis in outer), self.schedule.threads // share
        row, self.lane = self.block, self.thread
        if each > 1:
            row = emitter.let(self.block * integer(each) + tirx.Div(self.thread, integer(share)), "row")
            self.lane = emitter.let(tirx.Mod(self.thread, integer(share)), "lane")
        # Whole warps have no row at the end; none of them waits for others.
        with emitter.when(None if rows % each == 0 else row < integer(rows)):
            env = self._digits(region.extents, outer, row)
            placed = self._place(region, env)
            count = prod(region.extents[axis] for axis in inner)
            with emitter.strided(self.lane, count, share) as index:
                self._store(placed, {**env, **self._digits(placed.extents, inner, index)})
        return self._launch(-(-rows // each))

    def _launch(self, blocks: int) -> Launch:
        if blocks > MOST_BLOCKS:
            raise EgraphOptError(f"{blocks} blocks are too many for one CUDA launch")
        return Launch(blocks, self.schedule.threads)

    def _digits(self, extents: Mapping[int, int] | Extents, axes: Sequence[int], index: Value) -> dict[int, Value]:
        """The positions along ``axes`` that a fused index stands for."""
        found: dict[int, Value] = {}
        for axis in reversed(axes):
            extent = integer(extents[axis])
            found[axis] = self.emitter.let(tirx.Mod(index, extent) if axis != axes[0] else index, "i")
            if axis != axes[0]:
                index = self.emitter.let(tirx.Div(index, extent), "i")
        return found

    def _store(self, region: Region, env: Env) -> None:
        value = self.evaluator.value(region.value, Point(region.extents, env))
        self.emitter.store(self.output.buffer, position(region.target, env, region.extents), value, 1)

    # ---- what a block computes together ---------------------------------------------------------------------------

    def _place(self, region: Region, env: Env) -> Region:
        """Compute the reductions whose indices are all fixed here, by all threads of the block."""
        lowering = Lowering(region.extents)

        def compute(stage: Stage, conditions: Conditions, visit: Visit) -> Node:
            return self._stage(stage, lowering, env, conditions, visit)

        value = placed(region.value, env.keys(), compute)
        return Region(lowering.extents, value, region.target)

    def _stage(self, stage: Stage, lowering: Lowering, env: Env, conditions: Conditions, visit: Visit) -> Node:
        """The stage's value at any point of its row, with everything common to the row computed."""
        if isinstance(stage.term, Reduce):
            inner = visit(lowering.reduction(stage.term, stage.indices))
            if not isinstance(inner, Loop):
                return inner
            return self._together(inner.operation, inner.iterators, inner.value, lowering, env, conditions)
        key = stage.term, stage.lead, conditions
        if key not in self._softmax_rows:
            own = stage.term.extents[len(stage.lead) :]
            first = len(lowering.extents)
            lowering.extents = (*lowering.extents, *own)
            iterators = tuple(first + i for i in range(len(own)))
            value = visit(lowering.at(stage.term.tensor, (*stage.lead, *map(ex.iterator, iterators))))
            greatest = self._together("max", iterators, value, lowering, env, conditions)
            shifted = Call("exp", (Call("sub", (value, greatest)),))
            self._softmax_rows[key] = greatest, self._together("sum", iterators, shifted, lowering, env, conditions)
        greatest, total = self._softmax_rows[key]
        here = visit(lowering.at(stage.term.tensor, stage.indices))
        return Call("div", (Call("exp", (Call("sub", (here, greatest)),)), total))

    def _together(
        self,
        operation: str,
        iterators: Sequence[int],
        value: Node,
        lowering: Lowering,
        env: Env,
        conditions: Conditions,
    ) -> Node:
        """A reduction by all threads of a row: each its part, then pairs within a warp, then all warps."""
        emitter, combine, share = self.emitter, tvm_math.combine(operation), self.schedule.share
        total = emitter.allocate(1, "total")
        emitter.store(total, integer(0), number(tree.IDENTITY[operation], 1), 1)
        region = Region(lowering.extents, value, Expr(0))
        live = [i for i in iterators if lowering.extents[i] > 1]
        ones = {i: integer(0) for i in iterators if lowering.extents[i] == 1}
        with emitter.strided(self.lane, prod(lowering.extents[i] for i in live), share) as index:
            at = Point(region.extents, {**env, **ones, **self._digits(region.extents, live, index)})
            found = emitter.let(self.evaluator.value(value, at, conditions))
            old = emitter.let(emitter.load(total, integer(0), 1))
            emitter.store(total, integer(0), combine(old, found, 1), 1)
        mine = emitter.let(emitter.load(total, integer(0), 1))
        distance = WARP // 2
        while distance:
            other = emitter.let(
                tirx.call_pure_extern("float32", "__shfl_xor_sync", _whole_warp(), mine, integer(distance))
            )
            mine = emitter.let(combine(mine, other, 1))
            distance //= 2
        if share > WARP:
            warps = emitter.shared(share // WARP, "warps")
            with emitter.when(tirx.EQ(tirx.Mod(self.lane, integer(WARP)), integer(0))):
                emitter.store(warps, tirx.Div(self.lane, integer(WARP)), mine, 1)
            emitter.synchronize()
            mine = emitter.let(emitter.load(warps, integer(0), 1))
            for warp in range(1, share // WARP):
                mine = emitter.let(combine(mine, emitter.let(emitter.load(warps, integer(warp), 1)), 1))
        name = f"row{len(self.arrays)}"
        result = emitter.allocate(1, name)
        emitter.store(result, integer(0), mine, 1)
        self.arrays[name] = Array(result, 1)
        return Load(name, Expr(0))


def _whole_warp() -> Value:
    return tirx.const(_WHOLE_WARP, "uint32")
