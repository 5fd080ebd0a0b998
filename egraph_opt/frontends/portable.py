"""Kernel bodies written with standard operators, for outputs that must run without generated kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from itertools import product
from math import prod

import numpy as np

from egraph_opt.frontends.portable_moves import joined as joined_parts
from egraph_opt.frontends.portable_moves import view
from egraph_opt.frontends.portable_steps import Inexpressible, StepWriter, Value, needed_steps
from egraph_opt.frontends.portable_views import Box, box, fixed, restricted
from egraph_opt.ir import maps, scalar
from egraph_opt.ir.maps import IndexMap
from egraph_opt.ir.program import Step
from egraph_opt.ir.terms import Apply, Fill, Read, Reduce, Softmax, Source, Tensor, View

# A reduction without an operator of its own is unrolled up to this many summands.
UNROLLED = 32


@dataclass(frozen=True)
class Portable:
    """Steps that compute one kernel body, the last of which has the name asked for, and the constants they need."""

    steps: tuple[Step, ...]
    constants: Mapping[str, np.ndarray]


def express(name: str, body: Tensor, view: Callable[[StepWriter, Value, IndexMap], Value] = view) -> Portable | None:
    """The body of a kernel (a term over Sources) as library calls and reshapes; None when it has no such form.

    The last step is called ``name``, the others and the constants ``name/0``, ``name/1`` … Views are written by
    ``view``, which raises Inexpressible for one that it cannot write.
    """
    writer = _Writer(name, write_view=view)
    try:
        result = writer.materialized(writer.tensor(body))
    except Inexpressible:
        return None
    if not writer.steps or writer.steps[-1].name != result.name:
        result = writer.call("Identity", (result,), result.extents)
    *before, last = needed_steps(writer.steps, result.name)
    steps = (*before, Step(name, last.buffer))
    read = {source.name for step in steps for source in step.arguments}
    return Portable(steps, {key: value for key, value in writer.constants.items() if key in read})


@dataclass
class _Writer(StepWriter):
    write_view: Callable[[StepWriter, Value, IndexMap], Value] = view
    _known: dict[Tensor, Value] = field(default_factory=dict)

    def tensor(self, term: Tensor) -> Value:
        if term not in self._known:
            self._known[term] = self._tensor(term)
        return self._known[term]

    def _tensor(self, term: Tensor) -> Value:
        match term:
            case Read(Source() as source):
                return Value(Source(source.name, source.extents), source.extents)
            case Fill(value, extents):
                return self.constant(float(value), extents)
            case Apply("add", _):
                return self._sum(term)
            case Apply(function, arguments):
                return self._apply(function, tuple(self.tensor(argument) for argument in arguments))
            case View(_, index) if any(guard.is_constant and guard.constant for guard in index.guards):
                return self.constant(index.fill, index.result)  # it reads nothing
            case View(inner, index):
                return self.write_view(self, self.tensor(inner), index)
            case Softmax(inner, count):
                return self._softmax(self.tensor(inner), count)
            case Reduce():
                return self._reduce(term)
        raise Inexpressible

    def _apply(self, function: str, arguments: tuple[Value, ...]) -> Value:
        held = tuple(np.broadcast_shapes(*(argument.source.extents for argument in arguments)))
        sources = [argument.source for argument in arguments]
        if function == "prelu" and sources[0].extents != held:  # PRelu broadcasts its slope only
            sources[0] = self.call("Expand", (sources[0],), held)
        known = scalar.lookup(function).function
        operator = known.onnx or known.name
        return Value(self.call(operator, tuple(sources), held, function=function), arguments[0].extents)

    def _softmax(self, value: Value, count: int) -> Value:
        rank = len(value.extents)
        source = self.materialized(value, range(rank - count, rank))
        if count == 0:
            return self.constant(1.0, value.extents)
        merged = (*source.extents[: rank - count], prod(source.extents[rank - count :]))
        flat = self.reshape(source, merged)
        soft = self.call("Softmax", (flat,), merged, axis=len(merged) - 1)
        return Value(self.reshape(soft, source.extents), value.extents)

    def _reduce(self, term: Reduce) -> Value:
        if term.operation == "pool":
            raise Inexpressible
        rank, count = len(term.tensor.extents), term.count
        before = (len(self.steps), dict(self.constants), dict(self._known))
        try:
            value = self.tensor(term.tensor)
        except Inexpressible:
            del self.steps[before[0] :]
            self.constants, self._known = before[1:]
            return self._unrolled(term)
        source = self.materialized(value, range(rank - count, rank))
        if count == 0:
            return value
        operator = f"Reduce{term.operation.capitalize()}"
        held = source.extents[: rank - count]
        reduced = self.call(operator, (source,), held, axes=tuple(range(rank - count, rank)), keepdims=0)
        return Value(reduced, term.extents)

    def _unrolled(self, term: Reduce) -> Value:
        extents = term.tensor.extents[len(term.extents) :]
        if prod(extents) > UNROLLED:
            raise Inexpressible
        function = {"sum": "add", "max": "max", "min": "min"}[term.operation]
        parts = [_at(term.tensor, point) for point in product(*(range(n) for n in extents))]
        return self.tensor(reduce(lambda left, right: Apply(function, (left, right)), parts))

    def _sum(self, term: Tensor) -> Value:
        summands = _summands(term)
        placed = [(part.tensor, part.map, box(part.map)) for part in summands if isinstance(part, View)]
        boxes = [(inner, index, where) for inner, index, where in placed if where is not None and index.fill == 0]
        if len(boxes) == len(summands):
            tiled = self._tiled(boxes, frozenset())
            if tiled is not None:
                return tiled
        # As it is written, not all summands one after the other: equal parts of sums are computed once.
        assert isinstance(term, Apply)
        return self._apply("add", tuple(self.tensor(argument) for argument in term.arguments))

    def _tiled(self, parts: list[tuple[Tensor, IndexMap, Box]], done: frozenset[int]) -> Value | None:
        """Parts whose boxes tile the result as concatenations and interleavings, axis after axis."""
        extents = parts[0][1].result
        if len(parts) == 1:
            inner, index, where = parts[0]
            if not all(part.is_all(extents[axis]) for axis, part in enumerate(where) if axis not in done):
                return None
            return self.write_view(self, self.tensor(inner), restricted(index, where))
        for axis, extent in enumerate(extents):
            keys = sorted({where[axis] for _, _, where in parts}, key=lambda part: part.offset)
            if axis in done or len(keys) == 1:
                continue
            ends = [part.offset + part.count for part in keys]
            joined = all(part.step == 1 for part in keys) and [part.offset for part in keys] == [0, *ends[:-1]]
            woven = [(part.offset, part.step, part.count) for part in keys] == [
                (i, len(keys), extent // len(keys)) for i in range(len(keys))
            ]
            if not (joined and ends[-1] == extent) and not (woven and extent % len(keys) == 0):
                continue
            groups = [[part for part in parts if part[2][axis] == key] for key in keys]
            values = [self._tiled(group, done | {axis}) for group in groups]
            if any(value is None for value in values):
                return None
            return joined_parts(self, [value for value in values if value is not None], axis, woven=not joined)
        return None


def _summands(term: Tensor) -> list[Tensor]:
    found, stack = list[Tensor](), [term]
    while stack:
        current = stack.pop()
        if isinstance(current, Apply) and current.function == "add":
            stack.extend(reversed(current.arguments))
        else:
            found.append(current)
    return found


def _at(tensor: Tensor, point: tuple[int, ...]) -> Tensor:
    """The tensor at one position of its last axes."""
    match tensor:
        case View(inner, index):
            chosen = maps.compose(fixed(index.result, point), index)
            assert chosen is not None
            return View(inner, chosen)
        case Apply(function, arguments):
            return Apply(function, tuple(_at(argument, point) for argument in arguments))
        case Fill(value, extents):
            return Fill(value, extents[: len(extents) - len(point)])
        case _:
            return View(tensor, fixed(tensor.extents, point))
