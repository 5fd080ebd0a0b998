"""Steps of standard operators under construction, and values that are held without their broadcast axes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from egraph_opt.ir.expr import Extents
from egraph_opt.ir.library import format_attributes
from egraph_opt.ir.program import Step
from egraph_opt.ir.terms import Call, Reshape, Source


class Inexpressible(Exception):  # noqa: N818 - says what is the case
    """Raised inside for what standard operators cannot say."""


@dataclass(frozen=True)
class Value:
    """A tensor of extents ``extents`` held in a buffer whose axes are as long, or 1 where the tensor does not vary."""

    source: Source
    extents: Extents


@dataclass
class StepWriter:
    """Collects the steps of one kernel body; what they are called begins with ``name``."""

    name: str
    steps: list[Step] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    _reshaped: dict[str, Source] = field(default_factory=dict)
    _count: int = 0

    def _fresh(self) -> str:
        self._count += 1
        return f"{self.name}/{self._count - 1}"

    def call(self, operator: str, arguments: tuple[Source, ...], extents: Extents, **attributes: object) -> Source:
        step = Step(self._fresh(), Call(operator, format_attributes(**attributes), arguments, extents))
        self.steps.append(step)
        return Source(step.name, extents)

    def reshape(self, source: Source, extents: Extents) -> Source:
        if source.extents == extents:
            return source
        previous = self._reshaped.get(source.name)
        if previous is not None:  # two reshapes are one; the first is dropped at the end if nothing else reads it
            return self.reshape(previous, extents)
        step = Step(self._fresh(), Reshape(source, extents))
        self.steps.append(step)
        self._reshaped[step.name] = source
        return Source(step.name, extents)

    def pad(self, source: Source, extents: Extents, pads: list[int], value: float) -> Source:
        """Pads as ONNX orders them; negative ones cut off."""
        return self.call("Pad", (source,), extents, pads=pads, value=value or None)

    def constant(self, value: float, extents: Extents) -> Value:
        ones = (1,) * len(extents)
        name = self._fresh()
        self.constants[name] = np.full(ones, value, dtype=np.float32)
        return Value(Source(name, ones), extents)

    def materialized(self, value: Value, axes: range | None = None) -> Source:
        """The buffer with the given axes (all unless said otherwise) at their full extents."""
        chosen = range(len(value.extents)) if axes is None else axes
        held = value.source.extents
        wanted = tuple(n if axis in chosen else held[axis] for axis, n in enumerate(value.extents))
        return value.source if held == wanted else self.call("Expand", (value.source,), wanted)


def needed_steps(steps: list[Step], result: str) -> list[Step]:
    """The steps that ``result``, the last one, depends on."""
    kept, needed = list[Step](), {result}
    for step in reversed(steps):
        if step.name in needed:
            kept.append(step)
            needed |= {source.name for source in step.arguments}
    return kept[::-1]
