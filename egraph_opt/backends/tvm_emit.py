"""Statement builder and vector primitives for generated kernels.

Kernels are built with explicit vectors (``float32x16`` expressions), never with TVM's vectorizer, so that what a guard
protects is decided here: a masked load touches no memory in lanes that are off, on every target LLVM knows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import tvm
from tvm import tirx

from egraph_opt.errors import EgraphOptError

# Everything TVM is Any here: its annotations are not to be relied on.
Value = Any

LANES = 16


def integer(value: int) -> Value:
    return tirx.const(value, "int32")


def vector_type(lanes: int, scalar: str = "float32") -> str:
    return scalar if lanes == 1 else f"{scalar}x{lanes}"


def splat(value: Value, lanes: int) -> Value:
    return value if lanes == 1 else tirx.Broadcast(value, lanes)


def number(value: float, lanes: int) -> Value:
    """A float32 constant in every lane; infinities allowed."""
    return splat(tirx.const(float(np.float32(value)), "float32"), lanes)


def operand(value: float, lanes: int) -> Value:
    """A constant of the model. TVM takes x * 0 for 0 and x + 0 for x, so it must not see a zero."""
    if value == 0.0:
        sign = tirx.const(float(np.copysign(1.0, value)), "float32")
        zero = tirx.call_llvm_pure_intrin("float32", "llvm.copysign", tirx.const(0.0, "float32"), sign)
        return splat(zero, lanes)
    return number(value, lanes)


def shuffle(vectors: Sequence[Value], lanes: Sequence[int]) -> Value:
    """Lanes picked from the concatenation of vectors."""
    return tirx.Shuffle(list(vectors), list(lanes))


class CodeTooLongError(EgraphOptError):
    """A kernel body in this arrangement needs more statements than are worth compiling."""


class Emitter:
    """A stack of statement lists; every loop and branch collects its body in a list of its own."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._scopes: list[list[Value]] = [[]]
        self._count = 0
        self._home = self._scopes[0]

    def emit(self, statement: Value) -> None:
        self._limit -= 1
        if self._limit < 0:
            raise CodeTooLongError("a generated kernel became too long to compile in this arrangement")
        self._scopes[-1].append(statement)

    def let(self, value: Value, name: str = "v") -> Value:
        """Compute a value once; TVM expressions are trees, so whatever is used twice must go through here.

        Numbers go through a buffer that LLVM turns into a register. TVM's code generator would substitute the values of
        variables into each other while it analyses them, which is exponential for chains such as maxima.
        """
        self._count += 1
        kind = tvm.DataType(str(value.ty.dtype))
        if kind.type_code != tvm.DataTypeCode.FLOAT:
            variable = tirx.Var(f"{name}{self._count}", value.ty)
            self.emit(tirx.Bind(variable, value))
            return variable
        register = self.allocate(kind.lanes, name)
        self.store(register, integer(0), value, kind.lanes)
        return self.load(register, integer(0), kind.lanes)

    def body(self) -> Value:
        """Everything emitted at the outermost level."""
        (statements,) = self._scopes
        return _sequence(statements)

    @contextmanager
    def loop(self, name: str, extent: Value, *, low: Value = 0, parallel: bool = False) -> Iterator[Value]:
        """Statements emitted inside run for ``low <= variable < low + extent``."""
        self._count += 1
        variable = tirx.Var(f"{name}{self._count}", "int32")
        self._scopes.append([])
        yield variable
        inside = _sequence(self._scopes.pop())
        kind = tirx.ForKind.PARALLEL if parallel else tirx.ForKind.SERIAL
        self.emit(tirx.For(variable, low, extent, kind, inside))

    @contextmanager
    def counted(self, name: str, extent: int) -> Iterator[Value]:
        """A loop, or nothing but the statements themselves when they run once."""
        if extent == 1:
            yield integer(0)
            return
        with self.loop(name, extent) as variable:
            yield variable

    @contextmanager
    def when_between(self, value: Value, low: int, high: int, extent: int) -> Iterator[None]:
        """Statements that run for ``low <= value < high``, given that ``0 <= value < extent``."""
        tests = [value >= low] if low > 0 else []
        tests += [value < high] if high < extent else []
        with self.when(tirx.all(*tests) if tests else None):
            yield

    @contextmanager
    def when(self, condition: Value | None) -> Iterator[None]:
        """Statements emitted inside run only if the scalar condition holds; None always holds."""
        if condition is None:
            yield
            return
        self._scopes.append([])
        yield
        self.emit(tirx.IfThenElse(condition, _sequence(self._scopes.pop()), None))

    def allocate(self, size: int, name: str) -> Value:
        """A float32 scratch buffer that lives until the enclosing scope ends."""
        self._count += 1
        buffer = tirx.decl_buffer((size,), "float32", name=f"{name}{self._count}", scope="global", data_alignment=64)
        self.emit(tirx.AllocBuffer(buffer))
        return buffer

    def hoist_here(self) -> None:
        """From now on :meth:`hoisted` buffers live in the current scope."""
        self._home = self._scopes[-1]

    def hoisted(self, size: int, name: str) -> Value:
        """A scratch buffer allocated once per task, not once per row."""
        self._count += 1
        buffer = tirx.decl_buffer((size,), "float32", name=f"{name}_{self._count}", scope="global", data_alignment=64)
        self._home.insert(0, tirx.AllocBuffer(buffer))
        return buffer

    # ---- memory ---------------------------------------------------------------------------------------------------

    def load(self, buffer: Value, position: Value, lanes: int) -> Value:
        """``lanes`` neighbouring elements, all of which must exist."""
        return tirx.BufferLoad(buffer, [_ramp(position, lanes)])

    def load_masked(self, buffer: Value, position: Value, lanes: int, mask: Value, other: float) -> Value:
        """Neighbouring elements where the mask holds, ``other`` where it does not; memory is touched only there."""
        if lanes == 1:
            return tirx.if_then_else(mask, self.load(buffer, position, 1), tirx.const(other, "float32"))
        address = tirx.address_of(tirx.BufferLoad(buffer, [position]))
        kind = vector_type(lanes)
        return tirx.call_llvm_pure_intrin(kind, "llvm.masked.load", address, mask, number(other, lanes))

    def store(self, buffer: Value, position: Value, value: Value, lanes: int, mask: Value | None = None) -> None:
        """Neighbouring elements, only where the mask holds if there is one."""
        if mask is None:
            self.emit(tirx.BufferStore(buffer, value, [_ramp(position, lanes)]))
        else:
            address = tirx.address_of(tirx.BufferLoad(buffer, [position]))
            self.emit(tirx.Evaluate(tirx.call_llvm_intrin("void", "llvm.masked.store", value, address, mask)))

    def load_strided(self, buffer: Value, position: Value, stride: int, lanes: int) -> Value:
        """Every ``stride``-th element; small strides as full loads, which end with the last element, and a shuffle."""
        span = stride * (lanes - 1) + 1
        if not 1 < stride <= 4 or span < lanes:
            return tirx.BufferLoad(buffer, [tirx.Ramp(position, integer(stride), lanes)])
        starts = [*range(0, span - lanes, lanes), span - lanes]
        parts = [self.let(self.load(buffer, position + integer(start), lanes)) for start in starts]
        return shuffle(parts, _strided_lanes(starts, stride, lanes))

    def load_strided_masked(
        self, buffer: Value, position: Value, stride: int, lanes: int, mask: Value, other: float
    ) -> Value:
        """Every ``stride``-th element where the mask holds, as masked full loads and a shuffle."""
        starts = list(range(0, stride * lanes, lanes))
        off = self.first_lanes(0, lanes)
        parts = []
        for start in starts:
            spread = [p // stride if p % stride == 0 else lanes for p in range(start, start + lanes)]
            part_mask = shuffle((mask, off), spread)
            parts.append(self.let(self.load_masked(buffer, position + integer(start), lanes, part_mask, other)))
        return shuffle(parts, _strided_lanes(starts, stride, lanes))

    # ---- vectors --------------------------------------------------------------------------------------------------

    def first_lanes(self, count: int, lanes: int) -> Value:
        """The constant mask of the first ``count`` lanes."""
        # Not a comparison of constants: TVM would fold it into a vector constant of booleans, which it cannot express.
        if lanes == 1:
            return tirx.const(count > 0, "bool")
        return shuffle([tirx.const(lane < count, "bool") for lane in range(lanes)], range(lanes))

    def transposed(self, rows: Sequence[Value], lanes: int) -> list[Value]:
        """``lanes`` vectors of ``lanes`` elements, rows and columns exchanged: log2(lanes) rounds of block swaps."""
        current = list(rows)
        step = 1
        while step < lanes:
            following = list(current)
            for i in range(lanes):
                if i & step:
                    continue
                a, b = current[i], current[i + step]
                low = [lane if not lane & step else lanes + lane - step for lane in range(lanes)]
                high = [lane + step if not lane & step else lanes + lane for lane in range(lanes)]
                following[i] = self.let(shuffle((a, b), low))
                following[i + step] = self.let(shuffle((a, b), high))
            current = following
            step *= 2
        return current

    def across(self, combine: Any, value: Value, lanes: int) -> Value:
        """All lanes combined into a scalar."""
        while lanes > 1:
            half = lanes // 2
            low = self.let(shuffle((value,), range(half)))
            high = self.let(shuffle((value,), range(half, lanes)))
            value = self.let(combine(low, high, half))
            lanes = half
        return value


def _strided_lanes(starts: Sequence[int], stride: int, lanes: int) -> list[int]:
    """Where every stride-th element lies in the concatenation of ``lanes`` long parts that begin at ``starts``."""
    picked = []
    for element in range(0, stride * lanes, stride):
        part = next(i for i, start in enumerate(starts) if start <= element < start + lanes)
        picked.append(part * lanes + element - starts[part])
    return picked


def _ramp(position: Value, lanes: int) -> Value:
    return position if lanes == 1 else tirx.Ramp(position, integer(1), lanes)


def _sequence(statements: list[Value]) -> Value:
    if not statements:
        return tirx.Evaluate(integer(0))
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(statements)


def function(name: str, buffers: Sequence[Value], body: Value) -> Value:
    """A module with one kernel over float32 buffers aligned to their element only."""
    made = tirx.PrimFunc(list(buffers), body).with_attr("global_symbol", name).with_attr("tirx.noalias", True)
    return tvm.IRModule({name: made})


def parameter(name: str, extents: Sequence[int]) -> Value:
    """A kernel argument as a flat view of the caller's tensor."""
    return tirx.decl_buffer(tuple(extents), "float32", name=name, data_alignment=4)
