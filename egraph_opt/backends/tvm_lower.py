"""Loop nests of generated kernels: a body term and a schedule to a TVM function.

Every loop is cut into pieces in which all conditions on its iterator alone are decided, and unrolled into phases
where an
index divides it, so inner bodies are free of guards except at vector tails. Outer loops are fused into one range
that is
shared out to threads. Softmax rows and long reductions are computed where their leading indices are fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from typing import Any

from tvm import tirx

from egraph_opt.backends import tvm_emit, tvm_math, tvm_schedule
from egraph_opt.backends import tvm_tree as tree
from egraph_opt.backends.tvm_emit import CodeTooLongError, Emitter, integer, number, shuffle
from egraph_opt.backends.tvm_point import Array, Evaluator, Point, position, power_of_two
from egraph_opt.backends.tvm_schedule import PHASES, Schedule
from egraph_opt.backends.tvm_share import divided, phases_of, steps
from egraph_opt.backends.tvm_stages import Visit, placed
from egraph_opt.backends.tvm_tree import Call, Condition, Constant, Load, Loop, Lowering, Node, Region, Stage
from egraph_opt.errors import EgraphOptError
from egraph_opt.ir import expr as ex
from egraph_opt.ir.expr import Expr
from egraph_opt.ir.maps import linear
from egraph_opt.ir.terms import Reduce, Softmax, Source, Tensor
from egraph_opt.ir.terms import children as term_children

Value = Any
Env = Mapping[int, Value]

# Work (operations plus elements moved) one task must have before another is worth launching, and the most tasks.
TASK_WORK = 16_384
MOST_TASKS = 24
# Limit on tree nodes written out because axes are cut into pieces; above it outer axes keep their conditions as masks.
CODE_BUDGET = 4000
# Statements in one kernel; LLVM takes about 0.1 ms for each.
CODE_LIMIT = 8000


@dataclass(frozen=True)
class Sink:
    """Where computed vectors go: stored to ``array`` and, for softmax rows, folded into the vector ``total``."""

    array: Array
    operation: str = ""
    total: Value = None


def tasks_for(body: Tensor) -> int:
    """How many tasks a kernel's work is worth; 1 means no parallel launch."""
    operations, moved = tvm_schedule.estimate(body)
    wanted = int((operations / 4 + moved / 4) // TASK_WORK)
    return 1 if wanted < 2 else max(count for count in (2, 4, 8, MOST_TASKS) if count <= wanted)


def kernel_module(name: str, body: Tensor, inputs: Sequence[Source], schedule: str) -> Value:
    """The TVM module with one function ``name(inputs..., output)``.

    Raises CodeTooLongError when a schedule given by its text makes too much code; the default one is the first that
    fits.
    """
    for extents in (body.extents, *(source.extents for source in inputs)):
        if prod(extents) >= 1 << 31:
            raise EgraphOptError(f"a tensor of extents {list(extents)} is too large for a generated kernel")
    options = [tvm_schedule.parse(body, schedule)] if schedule else tvm_schedule.candidates(body)
    attempts = [(option, budget) for option in options for budget in (CODE_BUDGET, 0)]
    for option, budget in attempts[:-1]:
        try:
            return _written(name, body, inputs, option, budget)
        except CodeTooLongError:
            continue
    return _written(name, body, inputs, *attempts[-1])


def _written(name: str, body: Tensor, inputs: Sequence[Source], schedule: Schedule, budget: int) -> Value:
    buffers = [tvm_emit.parameter(source.name, (max(prod(source.extents), 1),)) for source in inputs]
    output = tvm_emit.parameter("out", (max(prod(body.extents), 1),))
    arrays = {source.name: Array(b, prod(source.extents)) for source, b in zip(inputs, buffers, strict=True)}
    writer = Writer(arrays, budget)
    if prod(body.extents):
        writer.kernel(body, schedule, Array(output, prod(body.extents)))
    return tvm_emit.function(name, [*buffers, output], writer.emitter.body())


class Writer:
    """Writes one kernel."""

    def __init__(self, arrays: dict[str, Array], budget: int) -> None:
        self.emitter = Emitter(CODE_LIMIT)
        self.arrays = arrays
        self.evaluator = Evaluator(self.emitter, arrays)
        self._budget = budget

    def kernel(self, body: Tensor, schedule: Schedule, output: Array) -> None:
        form = tvm_schedule.normal_form(body)
        region = self.prepared(form.region, schedule)
        tasks = 1 if schedule.serial else tasks_for(body)
        inner = [axis for axis in (schedule.transpose, schedule.vector) if axis is not None]
        outer = [axis for axis in form.axes if axis not in inner]
        sink = Sink(output)
        self.emitter.hoist_here()
        region = self.place(region, {})
        regions = divided(region, outer, schedule, tasks)
        outer = regions[0][1]
        leads = {
            i for node in tree.walk(region.value) if isinstance(node, Stage) for e in node.lead for i in e.iterators
        }
        shared = [axis for axis in outer if axis in leads] or outer
        rest = [axis for axis in outer if axis not in shared]
        sizes = [prod(steps(piece, axis) for axis in shared) for piece, _ in regions]
        total = sum(sizes)
        tasks = min(tasks, total)
        if not self._code_fits(regions[0][0], outer, inner):
            self._budget = 0

        def rows(index: Value) -> None:
            first = 0
            for (piece, _), size in zip(regions, sizes, strict=True):
                with self.emitter.when_between(index, first, first + size, total):
                    self.shared(piece, index - integer(first), shared, rest, schedule, sink)
                first += size

        if tasks == 1:
            with self.emitter.loop("row", total) as row:
                rows(row)
            return
        with self.emitter.loop("task", tasks, parallel=True) as task:
            self.emitter.hoist_here()
            low = self.emitter.let(tirx.Div(task * integer(total), integer(tasks)), "low")
            high = self.emitter.let(tirx.Div((task + 1) * integer(total), integer(tasks)), "high")
            with self.emitter.loop("row", high - low, low=low) as row:
                rows(row)

    # ---- axes -----------------------------------------------------------------------------------------------------

    def shared(
        self, region: Region, index: Value, shared: Sequence[int], rest: Sequence[int], schedule: Schedule, sink: Sink
    ) -> None:
        """Axes whose positions are the digits of one fused index."""
        digits: dict[int, tuple[Value, int]] = {}
        for axis in reversed(shared):
            count, step = steps(region, axis), phases_of(region, axis)
            digit = self.emitter.let(tirx.Mod(index, integer(count)) if axis != shared[0] else index, "i")
            digits[axis] = digit, step
            if axis != shared[0]:
                index = self.emitter.let(tirx.Div(index, integer(count)), "i")

        def descend(piece: Region, env: Env, axes: Sequence[int]) -> None:
            if axes:
                self.along(piece, axes[0], env, lambda p, e: descend(p, e, axes[1:]), digits[axes[0]])
            else:
                self.nest(piece, env, rest, schedule, sink)

        descend(region, {}, shared)

    def nest(self, region: Region, env: Env, axes: Sequence[int], schedule: Schedule, sink: Sink) -> None:
        """Loops over ``axes``, then vectors."""
        region = self.place(region, env)
        if axes:
            self.along(region, axes[0], env, lambda piece, e: self.nest(piece, e, axes[1:], schedule, sink))
        elif schedule.vector is None:
            point = Point(region.extents, env)
            value = self.evaluator.value(region.value, point)
            self.emitter.store(sink.array.buffer, position(region.target, env, region.extents), value, 1)
        elif schedule.transpose is None:
            self.rows(region, env, schedule.vector, sink)
        else:
            self.tiles(region, env, schedule.vector, schedule.transpose, sink)

    def along(
        self,
        region: Region,
        axis: int,
        env: Env,
        body: Callable[[Region, Env], None],
        digit: tuple[Value, int] | None = None,
    ) -> None:
        """One axis in phases and pieces: a loop each, or a branch each when ``digit`` has the position and the step."""
        extent = region.extents[axis]
        step = phases_of(region, axis) if digit is None else digit[1]
        count = -(-extent // step)
        phases = [tree.narrow(region, axis, 0, count, step, phase) for phase in range(step)] if step > 1 else [region]
        marks = {0, count, extent // step}
        if self._budget:
            marks |= {cut for phase in phases for cut in tree.cuts(phase.value, axis, count)}
        for low, high in pairwise(sorted(marks)):
            alive = [phase for i, phase in enumerate(phases) if step * low + i < extent]
            pieces = [tree.narrow(phase, axis, low, high) for phase in alive]
            if digit is not None:
                with self.emitter.when_between(digit[0], low, high, count):
                    for piece in pieces:
                        body(piece, {**env, axis: digit[0] - integer(low)})
            elif high - low == 1:
                for piece in pieces:
                    body(piece, {**env, axis: integer(0)})
            else:
                with self.emitter.loop("i", high - low) as variable:
                    for piece in pieces:
                        body(piece, {**env, axis: variable})

    def _code_fits(self, region: Region, outer: Sequence[int], inner: Sequence[int]) -> bool:
        pieces = 1.0
        size = sum(1 for _ in tree.walk(region.value))
        for axis in (*inner, *outer):
            step = phases_of(region, axis)
            phase = tree.narrow(region, axis, 0, -(-region.extents[axis] // step), step, 0)
            pieces *= (len(tree.cuts(phase.value, axis, phase.extents[axis])) + 1) * step
            size = min(size, sum(1 for _ in tree.walk(phase.value)))
        return pieces * size <= CODE_BUDGET

    # ---- vectors --------------------------------------------------------------------------------------------------

    def rows(self, region: Region, env: Env, axis: int, sink: Sink) -> int:
        """Vectors along ``axis``, phases of it interleaved in registers; returns the number of lanes."""
        extent = region.extents[axis]
        step = phases_of(region, axis)
        count = -(-extent // step)
        phases = [tree.narrow(region, axis, 0, count, step, i) for i in range(step)] if step > 1 else [region]
        return self.interleaved(phases, env, axis, extent, region.target.coefficient(axis) == 1, sink)

    def interleaved(self, phases: Sequence[Region], env: Env, axis: int, extent: int, dense: bool, sink: Sink) -> int:
        """Regions whose targets alternate; ``extent`` elements in all, neighbours in memory when ``dense``."""
        step, emitter = len(phases), self.emitter
        count = -(-extent // step)
        lanes = power_of_two(count)
        marks = {0, -(-count // lanes), (extent // step) // lanes}
        for phase in phases:
            for cut in tree.cuts(phase.value, axis, count):
                marks |= {cut // lanes, -(-cut // lanes)}
        for low, high in pairwise(sorted(marks)):
            first, last = low * lanes, min(count, high * lanes)
            pieces = [tree.narrow(phase, axis, first, last) for phase in phases]
            with emitter.counted("b", high - low) as block:
                at = {**env, axis: block * integer(lanes) if high - low > 1 else integer(0)}
                values = []
                for i, piece in enumerate(pieces):
                    valid = min(lanes, -(-(extent - i) // step) - first)
                    values.append(self.evaluator.value(piece.value, Point(piece.extents, at, axis, lanes, valid)))
                    self._accumulate(sink, values[-1], lanes, valid)
                base = position(pieces[0].target, at, pieces[0].extents)
                whole = min(lanes * step, extent - step * first)
                if dense:
                    self._store_interleaved(sink, base, values, lanes, whole)
                else:
                    for i, (piece, value) in enumerate(zip(pieces, values, strict=True)):
                        valid = min(lanes, -(-(extent - i) // step) - first)
                        self._store_strided(sink, piece, phases[i], at, axis, value, lanes, valid)
        return lanes

    def _store_interleaved(self, sink: Sink, base: Value, values: Sequence[Value], lanes: int, whole: int) -> None:
        step = len(values)
        for part in range(step):
            valid = min(lanes, whole - part * lanes)
            if valid <= 0:
                break
            value = values[0]
            if step > 1:
                order = [(e % step) * lanes + e // step for e in range(part * lanes, (part + 1) * lanes)]
                value = self.emitter.let(shuffle(values, order))
            mask = None if valid == lanes else self.emitter.first_lanes(valid, lanes)
            self.emitter.store(sink.array.buffer, base + integer(part * lanes), value, lanes, mask)

    def _store_strided(
        self, sink: Sink, piece: Region, phase: Region, env: Env, axis: int, value: Value, lanes: int, valid: int
    ) -> None:
        base, stride = position(piece.target, env, piece.extents), phase.target.coefficient(axis)
        for lane in range(valid):
            element = value if lanes == 1 else shuffle((value,), (lane,))
            self.emitter.store(sink.array.buffer, base + integer(lane * stride), element, 1)

    def _accumulate(self, sink: Sink, value: Value, lanes: int, valid: int) -> None:
        if sink.operation:
            unit = number(tree.IDENTITY[sink.operation], lanes)
            if valid < lanes:
                value = self.emitter.let(tirx.Select(self.emitter.first_lanes(valid, lanes), value, unit))
            old = self.emitter.let(self.emitter.load(sink.total, integer(0), lanes))
            new = tvm_math.combine(sink.operation)(old, value, lanes)
            self.emitter.store(sink.total, integer(0), new, lanes)

    def tiles(self, region: Region, env: Env, axis: int, across: int, sink: Sink) -> None:
        """Vectors computed along ``axis``, transposed in registers and stored along ``across``."""
        width = region.extents[across]
        step = phases_of(region, axis)
        if step == 1 and width <= PHASES and region.target.coefficient(axis) == width:
            phases = [tree.narrow(region, across, i, i + 1) for i in range(width)]
            at = {**env, across: integer(0)}
            self.interleaved(phases, at, axis, width * region.extents[axis], True, sink)
            return
        for phase in range(step):
            count = -(-(region.extents[axis] - phase) // step)
            self._tiles(tree.narrow(region, axis, 0, count, step, phase), env, axis, across, count, sink)

    def _tiles(self, region: Region, env: Env, axis: int, across: int, count: int, sink: Sink) -> None:
        emitter = self.emitter
        rows = power_of_two(region.extents[across])
        lanes = min(rows, power_of_two(count))
        stride = region.target.coefficient(axis)
        # The side with the longer stride is walked along its lines, so that every cache line is used up before it is
        # lost.
        loads = [node.offset.coefficient(across) for node in tree.walk(region.value) if isinstance(node, Load)]
        along_store = stride > max(map(abs, loads), default=0)
        first, second = (axis, across) if along_store else (across, axis)
        sizes = {axis: lanes, across: rows}
        for strip, first_base, first_used in self._pieces(region, first, sizes[first]):
            for piece, second_base, second_used in self._pieces(strip, second, sizes[second]):
                bases = {first: first_base, second: second_base}
                used = {first: first_used, second: second_used}
                at = {**env, **bases}
                columns = [number(0.0, lanes)] * rows
                for row in range(used[across]):
                    point_env = {**at, across: bases[across] + integer(row)}
                    point = Point(piece.extents, point_env, axis, lanes, used[axis])
                    columns[row] = self.evaluator.value(piece.value, point)
                groups = [emitter.transposed(columns[i : i + lanes], lanes) for i in range(0, rows, lanes)]
                start = position(piece.target, at, piece.extents)
                mask = None if used[across] == rows else emitter.first_lanes(used[across], rows)
                for lane in range(used[axis]):
                    parts = [group[lane] for group in groups]
                    value = parts[0] if len(parts) == 1 else emitter.let(shuffle(parts, range(rows)))
                    emitter.store(sink.array.buffer, start + integer(lane * stride), value, rows, mask)

    def _pieces(self, region: Region, axis: int, lanes: int) -> Iterator[tuple[Region, Value, int]]:
        for piece, bases, valid in self.evaluator.blocks(region, axis, lanes):
            yield piece, bases[0], valid

    # ---- stages ---------------------------------------------------------------------------------------------------

    def prepared(self, region: Region, schedule: Schedule) -> Region:
        """Make softmaxes inside reductions visible, and compute those completely that no single row level suits."""
        lowering = Lowering(region.extents)

        def expand(node: Node, visit: Callable[[Node], Node]) -> Node | None:
            if isinstance(node, Stage) and isinstance(node.term, Reduce) and _has_softmax(node.term):
                return visit(lowering.reduction(node.term, node.indices))
            return None

        value = tree.rewrite(region.value, expand)
        region = Region(lowering.extents, value, region.target)
        looped = {i for node in tree.walk(value) if isinstance(node, Loop) for i in node.iterators}
        inner = looped | {axis for axis in (schedule.vector, schedule.transpose) if axis is not None}
        known: dict[int, str] = {}

        def whole(node: Node, visit: Callable[[Node], Node]) -> Node | None:
            if not isinstance(node, Stage) or not isinstance(node.term, Softmax):
                return None
            if not any(i in inner for e in node.lead for i in e.iterators):
                return None
            if id(node.term) not in known:
                known[id(node.term)] = self.materialized(node.term)
            return Load(known[id(node.term)], linear(node.indices, node.term.extents))

        return replace(region, value=tree.rewrite(value, whole))

    def materialized(self, term: Softmax) -> str:
        """Compute a whole softmax into scratch memory, serially; returns the array's name."""
        array = self._scratch(prod(term.extents))
        its = tuple(ex.iterator(i) if n > 1 else Expr(0) for i, n in enumerate(term.extents))
        region = Region(term.extents, Stage(term, its), linear(its, term.extents))
        axes = [i for i, n in enumerate(term.extents) if n > 1 and i < len(term.extents) - 1]
        last = len(term.extents) - 1 if term.extents[-1] > 1 else None
        self.nest(region, {}, axes, Schedule(last), Sink(self.arrays[array]))
        return array

    def place(self, region: Region, env: Env) -> Region:
        """Compute the stages whose leading indices are all fixed here and read them from scratch memory."""
        rows: dict[object, Node] = {}

        def compute(stage: Stage, conditions: tuple[Condition, ...], _: Visit) -> Node:
            row = (id(stage.term), stage.lead, conditions)
            if row not in rows:
                rows[row] = self._stage(stage, region, env, conditions)
            return _element(rows[row], stage)

        if not any(isinstance(node, Stage) for node in tree.walk(region.value)):
            return region
        return replace(region, value=placed(region.value, env.keys(), compute))

    def _scratch(self, size: int) -> str:
        name = f"scratch{len(self.arrays)}"
        self.arrays[name] = Array(self.emitter.hoisted(size, name), size)
        return name

    def _stage(self, stage: Stage, region: Region, env: Env, conditions: tuple[Condition, ...]) -> Node:
        """Code for one stage; the node has Load(row, 0) where an element of the row is to be read."""
        point = Point(region.extents, env)
        test = self.evaluator.scalar_test(conditions, point)
        with self.emitter.when(test):
            if isinstance(stage.term, Softmax):
                return self._softmax(stage.term, stage.lead, region, env)
            name = self._scratch(1)
            lowering = Lowering(region.extents)
            value = lowering.reduction(stage.term, stage.indices)
            inside = self.place(Region(lowering.extents, value, Expr(0)), env)
            result = self.evaluator.value(inside.value, Point(inside.extents, env))
            self.emitter.store(self.arrays[name].buffer, integer(0), result, 1)
            return Load(name, Expr(0))

    def _softmax(self, term: Softmax, lead: tuple[Expr, ...], outer: Region, env: Env) -> Node:
        own = term.extents[len(lead) :]
        first = len(outer.extents)
        lowering = Lowering((*outer.extents, *own))
        its = tuple(ex.iterator(first + i) if n > 1 else Expr(0) for i, n in enumerate(own))
        value = lowering.at(term.tensor, (*lead, *its))
        region = self.prepared(Region(lowering.extents, value, linear(its, own)), Schedule(None))
        axes: list[int] = []
        for axis in (first + i for i, n in enumerate(own) if n > 1):
            joined = tree.merged(region, axes[-1], axis) if axes else None
            region = region if joined is None else joined
            axes += [axis] if joined is None else []
        row = self._scratch(prod(own))
        greatest, inverse = self._scratch(1), self._scratch(1)
        if not axes:  # rows of one element
            self.emitter.store(self.arrays[row].buffer, integer(0), number(1.0, 1), 1)
            return Load(row, Expr(0))
        self._pass(region, env, axes, row, "max", greatest)
        flat = Region((*outer.extents, prod(own)), Constant(0.0), ex.iterator(first))
        shifted = Call("sub", (Load(row, ex.iterator(first)), Load(greatest, Expr(0))))
        flat = replace(flat, value=Call("exp", (shifted,)))
        self._pass(flat, env, [first], row, "sum", inverse)
        total = self.emitter.let(self.emitter.load(self.arrays[inverse].buffer, integer(0), 1))
        self.emitter.store(self.arrays[inverse].buffer, integer(0), number(1.0, 1) / total, 1)
        return Call("mul", (Load(row, Expr(0)), Load(inverse, Expr(0))))

    def _pass(self, region: Region, env: Env, axes: Sequence[int], row: str, operation: str, result: str) -> None:
        """Store a row and reduce it at once; ``result`` receives the reduction."""
        emitter = self.emitter
        total = emitter.allocate(tvm_emit.LANES, "total")
        lanes = tvm_emit.LANES
        emitter.store(total, integer(0), number(tree.IDENTITY[operation], lanes), lanes)
        self.nest(region, env, axes[:-1], Schedule(axes[-1]), Sink(self.arrays[row], operation, total))
        value = emitter.let(emitter.load(total, integer(0), lanes))
        value = emitter.across(tvm_math.combine(operation), value, lanes)
        emitter.store(self.arrays[result].buffer, integer(0), value, 1)


def _element(row: Node, stage: Stage) -> Node:
    """The stage's element inside its computed row."""
    if isinstance(row, Load):
        own = stage.term.extents[len(stage.lead) :]
        return Load(row.buffer, linear(stage.own, own) if isinstance(stage.term, Softmax) else Expr(0))
    assert isinstance(row, Call)
    return Call(row.function, (_element(row.arguments[0], stage), row.arguments[1]))


def _has_softmax(term: Tensor) -> bool:
    return isinstance(term, Softmax) or any(
        _has_softmax(child) for child in term_children(term) if isinstance(child, Tensor)
    )
