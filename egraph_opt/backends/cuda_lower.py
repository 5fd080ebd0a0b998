"""CUDA kernels of body terms: a thread for some elements of the output, or a block for each row of it.

Where a body holds reductions or softmaxes, a block of threads can compute them together at the indices they share, and
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
from egraph_opt.backends.tvm_emit import Emitter, integer, number
from egraph_opt.backends.tvm_point import Array, Conditions, Evaluator, Point, position
from egraph_opt.backends.tvm_stages import Visit, placed
from egraph_opt.backends.tvm_tree import Call, Constant, Load, Loop, Lowering, Node, Region, Stage
from egraph_opt.errors import EgraphOptError
from egraph_opt.ir import expr as ex
from egraph_opt.ir.expr import Expr
from egraph_opt.ir.terms import Reduce, Softmax, Source, Tensor

Value = Any
Env = Mapping[int, Value]

# Threads of a block that computes elements alone.
THREADS = 256
# Elements that one thread computes, in the schedules that are worth measuring.
ELEMENTS = (1, 4)
# Threads that share a row.
ROW_THREADS = (128, 512)
# Statements of one kernel.
CODE_LIMIT = 3000
# The most blocks of a launch.
MOST_BLOCKS = (1 << 31) - 1


@dataclass(frozen=True)
class CudaSchedule:
    """``rows`` are computed by a block of ``threads`` each; otherwise each thread computes ``elements`` alone."""

    rows: bool
    threads: int
    elements: int = 1

    def __str__(self) -> str:
        return f"rows threads={self.threads}" if self.rows else f"elements threads={self.threads} each={self.elements}"


@dataclass(frozen=True)
class Launch:
    """Blocks, and threads of a block."""

    blocks: int
    threads: int


def schedules(body: Tensor) -> tuple[CudaSchedule, ...]:
    """The arrangements of a body worth measuring, best guess first."""
    form = tvm_schedule.normal_form(body)
    stages = [node for node in tree.walk(form.region.value) if isinstance(node, Stage)]
    total = prod(body.extents)
    alone = tuple(CudaSchedule(False, THREADS, n) for n in ELEMENTS if n == 1 or total >= n * THREADS * 64)
    together = tuple(CudaSchedule(True, threads) for threads in ROW_THREADS)
    if any(isinstance(stage.term, Softmax) for stage in stages):
        return together
    return (*together, *alone) if stages else alone


def parse_schedule(text: str) -> CudaSchedule:
    """Inverse of ``str``."""
    kind, *rest = text.split()
    given = {key: int(value) for key, value in (part.split("=") for part in rest)}
    return CudaSchedule(kind == "rows", given["threads"], given.get("each", 1))


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
    """Scalar code for one point."""

    emitter: CudaEmitter

    def _value(self, node: Node, point: Point, conditions: Conditions) -> Value:
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
        self._exchange: Value = None
        # The greatest value and the sum of the exponentials of each row.
        self._softmax_rows: dict[tuple[Softmax, tuple[Expr, ...], Conditions], tuple[Node, Node]] = {}

    def kernel(self, body: Tensor) -> Launch:
        """Emit the statements of one thread."""
        form = tvm_schedule.normal_form(body)
        region, axes = form.region, form.axes
        return self._rows(region, axes) if self.schedule.rows else self._elements(region, axes)

    def _elements(self, region: Region, axes: Sequence[int]) -> Launch:
        each, threads = self.schedule.elements, self.schedule.threads
        total = prod(region.extents[axis] for axis in axes)
        blocks = -(-total // (threads * each))
        for number_of in range(each):
            base = self.block * integer(threads * each) + integer(threads * number_of)
            index = self.emitter.let(base + self.thread, "index")
            with self.emitter.when(None if total == blocks * threads * each else index < integer(total)):
                self._store(region, self._digits(region, axes, index))
        return self._launch(blocks)

    def _rows(self, region: Region, axes: Sequence[int]) -> Launch:
        leads = {
            i for node in tree.walk(region.value) if isinstance(node, Stage) for e in node.lead for i in e.iterators
        }
        outer = [axis for axis in axes if axis in leads]
        inner = [axis for axis in axes if axis not in leads]
        self._exchange = self.emitter.shared(self.schedule.threads, "exchange")
        env = self._digits(region, outer, self.block)
        placed = self._place(region, env)
        count = prod(region.extents[axis] for axis in inner)
        with self.emitter.strided(self.thread, count, self.schedule.threads) as index:
            self._store(placed, {**env, **self._digits(placed, inner, index)})
        return self._launch(prod(region.extents[axis] for axis in outer))

    def _launch(self, blocks: int) -> Launch:
        if blocks > MOST_BLOCKS:
            raise EgraphOptError(f"{blocks} blocks are too many for one CUDA launch")
        return Launch(blocks, self.schedule.threads)

    def _digits(self, region: Region, axes: Sequence[int], index: Value) -> dict[int, Value]:
        """The positions along ``axes`` that a fused index stands for."""
        found: dict[int, Value] = {}
        for axis in reversed(axes):
            extent = integer(region.extents[axis])
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
        """A reduction by all threads: each its share, then pairs of threads through shared memory."""
        emitter, combine, threads = self.emitter, tvm_math.combine(operation), self.schedule.threads
        total = emitter.allocate(1, "total")
        emitter.store(total, integer(0), number(tree.IDENTITY[operation], 1), 1)
        region = Region(lowering.extents, value, Expr(0))
        live = [i for i in iterators if lowering.extents[i] > 1]
        ones = {i: integer(0) for i in iterators if lowering.extents[i] == 1}
        with emitter.strided(self.thread, prod(lowering.extents[i] for i in live), threads) as index:
            at = Point(region.extents, {**env, **ones, **self._digits(region, live, index)})
            found = emitter.let(self.evaluator.value(value, at, conditions))
            old = emitter.let(emitter.load(total, integer(0), 1))
            emitter.store(total, integer(0), combine(old, found, 1), 1)
        mine = emitter.let(emitter.load(total, integer(0), 1))
        emitter.store(self._exchange, self.thread, mine, 1)
        emitter.synchronize()
        width = threads // 2
        while width:
            with emitter.when(self.thread < integer(width)):
                one = emitter.let(emitter.load(self._exchange, self.thread, 1))
                other = emitter.let(emitter.load(self._exchange, self.thread + integer(width), 1))
                emitter.store(self._exchange, self.thread, combine(one, other, 1), 1)
            emitter.synchronize()
            width //= 2
        name = f"row{len(self.arrays)}"
        result = emitter.allocate(1, name)
        emitter.store(result, integer(0), emitter.load(self._exchange, integer(0), 1), 1)
        emitter.synchronize()
        self.arrays[name] = Array(result, 1)
        return Load(name, Expr(0))
