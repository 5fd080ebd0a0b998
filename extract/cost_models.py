"""What programs can be chosen by: time, memory traffic, energy, number of launches, peak memory, or a mixture.

Every one is a function of one step, as a user's own is (:class:`egraph_opt.extract.step_info.StepInfo`). One that has
an attribute ``measures`` that is true gets steps with the seconds they were measured to take.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, prod

from egraph_opt.errors import UsageError
from egraph_opt.extract.roofline import FLOAT_BYTES, STEP_SECONDS, Device
from egraph_opt.extract.step_info import CostModel, StepInfo

# What the operations of a library call are divided by where its operator reaches no known share of the peak.
_COMMON_EFFICIENCY = 0.2


@dataclass(frozen=True)
class Latency:
    """Seconds on the machine where the steps are measured; of others what a typical processor should take."""

    unit = "s"
    measures = True

    def __call__(self, step: StepInfo) -> float:
        return step.seconds


@dataclass(frozen=True)
class Roofline:
    """Seconds a step should take at best on a described device: launch, and the slower of computing and memory.

    Memory is as fast as the smallest cache that holds what the step touches (Williams, Waterman and Patterson,
    "Roofline", CACM 52(4), 2009, with one roof for every cache level).
    """

    device: Device = field(default_factory=Device)
    unit = "s"

    def __call__(self, step: StepInfo) -> float:
        device = self.device
        if step.is_reshape:
            return device.reshape_seconds
        memory = device.memory_seconds(step.bytes // FLOAT_BYTES)
        if step.is_kernel:
            return STEP_SECONDS + device.kernel_seconds + max(step.operations * device.scalar_seconds, memory)
        speed = device.flops * device.efficiency.get(step.operator, _COMMON_EFFICIENCY)
        return STEP_SECONDS + device.call_seconds + max(step.operations / speed, memory)


@dataclass(frozen=True)
class Traffic:
    """Bytes that a step reads and writes, each at least once."""

    unit = "B"

    def __call__(self, step: StepInfo) -> float:
        return step.bytes


@dataclass(frozen=True)
class Launches:
    """One for every library call and kernel; none for another shape of the same memory."""

    unit = ""

    def __call__(self, step: StepInfo) -> float:
        return 0.0 if step.is_reshape else 1.0


@dataclass(frozen=True)
class Energy:
    """Joules, roughly: picojoules for each operation and for each byte, by the memory that holds what a step touches.

    The defaults are those of a 45 nm processor (Horowitz, "Computing's energy problem", ISSCC 2014, figure 1.1.9): half
    of the operations additions at 0.9 pJ and half multiplications at 3.7 pJ; 8 bytes from 8 KiB take 10 pJ, from 32 KiB
    20 pJ, from 1 MiB 100 pJ, from DRAM 1.3 nJ. Programs compare well by it, machines do not.
    """

    operation: float = 2.3
    bytes: tuple[tuple[int, float], ...] = ((8 << 10, 1.25), (32 << 10, 2.5), (1 << 20, 12.5), (1 << 62, 162.5))
    unit = "J"

    def __call__(self, step: StepInfo) -> float:
        each = next(cost for size, cost in self.bytes if step.bytes <= size)
        return 1e-12 * (step.operations * self.operation + step.bytes * each)


@dataclass(frozen=True)
class PeakMemory:
    """Bytes of the buffers that steps fill. Their sum is what a program takes at most; it is chosen by its peak."""

    unit = "B"
    peak = True

    def __call__(self, step: StepInfo) -> float:
        return 0.0 if step.is_reshape else float(FLOAT_BYTES * prod(step.result))


@dataclass(frozen=True)
class Blended:
    """A weighted sum of cost models, such as ``{Latency(): 1.0, Energy(): 0.01}``; weights are at least 0."""

    parts: tuple[tuple[CostModel, float], ...]
    unit = ""

    @property
    def measures(self) -> bool:
        """Whether one of the parts asks for measured seconds."""
        return any(measures(model) for model, _ in self.parts)

    def __call__(self, step: StepInfo) -> float:
        return sum(weight * model(step) for model, weight in self.parts)


def blended(parts: Mapping[CostModel, float]) -> Blended:
    """A weighted sum of cost models. Raises UsageError for what cannot be blended, and where there is nothing."""
    if not parts or any(not 0 <= weight < inf for weight in parts.values()):
        raise UsageError("a blend needs at least one cost model, and finite weights of at least 0")
    for model in parts:
        if not callable(model):
            raise UsageError(f"{model!r} is no cost model; a blend is made of functions of one step")
        if isinstance(model, PeakMemory):
            raise UsageError("a peak of memory is no sum over steps and cannot be blended; peak_memory= limits it")
    return Blended(tuple(parts.items()))


# What --cost knows by name, beside "measured" and "static".
NAMED: Mapping[str, CostModel] = {
    "traffic": Traffic(),
    "energy": Energy(),
    "launches": Launches(),
    "memory": PeakMemory(),
}


def measures(model: CostModel) -> bool:
    """Whether a cost model wants steps to be measured first."""
    return bool(getattr(model, "measures", False))


def unit_of(model: CostModel | None) -> str:
    """The unit of what a cost model says; seconds where time decides."""
    return "s" if model is None else str(getattr(model, "unit", ""))


def name_of(model: CostModel) -> str:
    """What reports call a cost model."""
    named = next((name for name, known in NAMED.items() if known == model), "")
    return named or str(getattr(model, "__name__", type(model).__name__))
