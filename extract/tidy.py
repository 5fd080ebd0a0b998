"""What is left over between the steps of a plan: moves that cancel, merge or change nothing, and steps done twice.

Kernels are written with standard operators one by one, so one may end with a slice that the next one's pad undoes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from egraph_opt.errors import EgraphOptError
from egraph_opt.extract.step_info import static_seconds
from egraph_opt.frontends.portable import express
from egraph_opt.ir import expr as ex
from egraph_opt.ir import library, maps
from egraph_opt.ir.expr import Extents
from egraph_opt.ir.maps import IndexMap
from egraph_opt.ir.program import Plan, Step, rename
from egraph_opt.ir.terms import Call, Compute, Read, Reshape, Source, View

# A move is followed back through so many others.
LONGEST_CHAIN = 8
# Moves that are written anew must save this share of their cost; smaller differences are rounding.
LEAST = 1e-6
# Constants of up to so many elements are compared by value: every kernel brings its own.
SMALL = 64


def tidied(plan: Plan) -> Plan:
    """The same plan without leftovers. Kernels stay, under the names they have."""
    return _Tidier(plan).plan()


def move(step: Step) -> IndexMap | None:
    """How a step that only moves elements reads its first argument; None for other steps."""
    buffer = step.buffer
    if isinstance(buffer, Reshape):
        return maps.reshape(buffer.buffer.extents, buffer.extents)
    if not isinstance(buffer, Call) or not buffer.arguments:
        return None
    given, source = library.parse_attributes(buffer.attributes), buffer.arguments[0].extents
    if library.EPILOGUE_ATTRIBUTE in given:
        return None
    match buffer.operator:
        case "Identity":
            return maps.identity(source)
        case "Transpose":
            return maps.permute(source, library.integers(given["perm"]))
        case "Expand":
            return maps.broadcast(source, buffer.extents)
        case "Slice":
            return _slice(source, buffer.extents, given)
        case "Pad":
            pads = library.integers(given["pads"])
            indices = [ex.iterator(axis) - pads[axis] for axis in range(len(source))]
            return maps.index_map(source, buffer.extents, indices, fill=float(given.get("value", 0.0)))
    return None


def _slice(source: Extents, result: Extents, given: Mapping[str, str]) -> IndexMap:
    starts, axes = library.integers(given["starts"]), library.integers(given["axes"])
    steps = library.integers(given["steps"]) if "steps" in given else (1,) * len(axes)
    indices = [ex.iterator(axis) for axis in range(len(source))]
    for start, axis, step in zip(starts, axes, steps, strict=True):
        begin = start + source[axis] if start < 0 else min(start, source[axis] - (step < 0))
        indices[axis] = indices[axis] * step + begin
    return maps.index_map(source, result, indices)


@dataclass
class _Tidier:
    given: Plan
    rewritten: int = 0

    def plan(self) -> Plan:
        plan = self.given
        self.steps = {step.name: step for step in plan.steps}
        self.outputs = dict(plan.outputs)
        self.constants = dict(plan.constants)
        self.held = {source.name: source.extents for source in plan.inputs}
        self.held |= {name: value.shape for name, value in plan.constants.items()}
        while any([self._same(), self._shorter()]):
            pass
        steps = self._needed()
        used = {source.name for step in steps for source in step.arguments} | set(self.outputs.values())
        constants = {name: value for name, value in self.constants.items() if name in used}
        return Plan(plan.inputs, tuple(steps), self.outputs, constants)

    def _needed(self) -> list[Step]:
        kept, needed = list[Step](), set(self.outputs.values())
        for step in reversed(self.steps.values()):
            if step.name in needed:
                kept.append(step)
                needed |= {source.name for source in step.arguments}
        return kept[::-1]

    def _same(self) -> bool:
        """Steps that do the same to the same buffers are one, and what changes nothing is left out."""
        alias: dict[str, str] = {}
        known: dict[object, str] = {}
        steps: dict[str, Step] = {}
        for name, value in self.constants.items():
            previous = known.setdefault((value.shape, value.tobytes()), name) if value.size <= SMALL else name
            if previous != name and self.read(name):
                alias[name] = previous
        for step in self._needed():
            step = _reading(step, alias)
            if isinstance(step.buffer, Compute):
                steps[step.name] = step
                continue
            found, first = move(step), step.arguments[0].name if step.arguments else ""
            if found is not None and found.is_identity and self._extents(first, steps) == step.extents:
                alias[step.name] = first
                continue
            previous = known.setdefault((step.buffer, step.shape), step.name)
            if previous != step.name:
                alias[step.name] = previous
            else:
                steps[step.name] = step
        self.steps = steps
        self.outputs = {name: alias.get(buffer, buffer) for name, buffer in self.outputs.items()}
        return bool(alias)

    def read(self, name: str) -> bool:
        """Whether anything reads a buffer."""
        steps = self.steps.values()
        return name in self.outputs.values() or any(a.name == name for step in steps for a in step.arguments)

    def _extents(self, name: str, steps: Mapping[str, Step]) -> Extents | None:
        return steps[name].extents if name in steps else self.held.get(name)

    def _shorter(self) -> bool:
        """Moves of moves are written anew where that costs less. Tells whether anything changed."""
        readers = Counter(source.name for step in self.steps.values() for source in step.arguments)
        readers.update(self.outputs.values())
        steps: dict[str, Step] = {}
        changed = False
        for step in self.steps.values():
            found = self._rewritten(step, steps, readers)
            if found is None:
                steps[step.name] = step
                continue
            changed = True
            written, constants = found
            readers.subtract(source.name for source in step.arguments)
            readers.update(source.name for new in written for source in new.arguments)
            steps |= {new.name: new for new in written}
            self.constants |= constants
            self.held |= {name: value.shape for name, value in constants.items()}
        self.steps = steps
        return changed

    def _rewritten(
        self, step: Step, before: Mapping[str, Step], readers: Mapping[str, int]
    ) -> tuple[Sequence[Step], Mapping[str, np.ndarray]] | None:
        """The cheapest way to write a move of moves, with its constants; None where it stays."""
        best, saving = None, 0.0
        for source, index, old in self._chains(step, before, readers):
            written = express(f"{step.name}/{self.rewritten}.", View(Read(source), index))
            if written is None:
                continue
            costs = [static_seconds(new.buffer) for new in written.steps if not isinstance(new.buffer, Compute)]
            saved = old - (sum(costs) if not index.is_identity else 0.0)  # then the copy is left out
            if saved > max(saving, LEAST * old):
                best, saving = written, saved
        if best is None:
            return None
        self.rewritten += 1
        return [*best.steps[:-1], replace(best.steps[-1], name=step.name)], best.constants

    def _chains(
        self, step: Step, before: Mapping[str, Step], readers: Mapping[str, int]
    ) -> Iterator[tuple[Source, IndexMap, float]]:
        """Buffers from which a move of moves can be made at once: the map, and the seconds of the moves it replaces."""
        index = move(step)
        if index is None or isinstance(step.buffer, Compute):
            return
        cost, alone = static_seconds(step.buffer), True
        for _ in range(LONGEST_CHAIN):
            source = step.arguments[0]
            if source.extents != self._extents(source.name, before):
                return  # read under another shape
            yield source, index, cost
            previous = before.get(source.name)
            inner = move(previous) if previous is not None else None
            if previous is None or inner is None or previous.shape is not None or isinstance(previous.buffer, Compute):
                return
            try:
                composed = maps.compose(index, inner)
            except EgraphOptError:
                return
            if composed is None:
                return
            alone = alone and readers[previous.name] == 1
            cost += static_seconds(previous.buffer) if alone else 0.0
            step, index = previous, composed


def _reading(step: Step, names: Mapping[str, str]) -> Step:
    """The step with its arguments renamed."""
    if not any(source.name in names for source in step.arguments):
        return step

    def other(source: Source) -> Source:
        return replace(source, name=names.get(source.name, source.name))

    match step.buffer:
        case Call() as called:
            arguments = tuple(other(a) for a in called.arguments if isinstance(a, Source))
            return replace(step, buffer=replace(called, arguments=arguments))
        case Reshape(Source() as source, extents):
            return replace(step, buffer=Reshape(other(source), extents))
        case Compute(tensor):
            return replace(step, buffer=Compute(rename(tensor, names)))
    raise EgraphOptError(f"not a step: {step.buffer}")
