"""Static costs: what a step should take on a machine described by its peak, its caches and what calls cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, prod

from egraph_opt.errors import EgraphOptError, UsageError
from egraph_opt.ir import library
from egraph_opt.ir.expr import Extents

FLOAT_BYTES = 4
# What every step costs in a model beyond its time alone: InfoGAN at batch 1 takes 145 us as the sum of its steps and
# 188 us as a whole; charged with this, plans of fewer steps are chosen and it takes 150 us.
STEP_SECONDS = 2e-6


@dataclass(frozen=True)
class Device:
    """A machine: peak float32 operations a second, bandwidth by working-set size (bytes a second), seconds per call.

    ``efficiency`` is the share of the peak that an operator reaches at its best; ``lanes`` is the vector width its
    innermost dimension is rounded up to.
    """

    flops: float = 5.5e11
    bandwidths: tuple[tuple[int, float], ...] = ((1 << 20, 8e11), (16 << 20, 2.5e11), (1 << 62, 5e10))
    call_seconds: float = 1.2e-6
    kernel_seconds: float = 1e-7
    reshape_seconds: float = 0.5e-6
    scalar_seconds: float = 1.2e-11
    lanes: int = 16
    efficiency: Mapping[str, float] = field(
        default_factory=lambda: {"MatMul": 0.95, "Gemm": 0.95, "Conv": 0.9, "ConvTranspose": 0.6}, hash=False
    )

    def __post_init__(self) -> None:
        """Raises UsageError for a machine that cannot be."""
        positive = (self.flops, self.lanes, *self.efficiency.values(), *(speed for _, speed in self.bandwidths))
        seconds = (self.call_seconds, self.kernel_seconds, self.reshape_seconds, self.scalar_seconds)
        if not (self.bandwidths and all(n > 0 for n in positive) and all(n >= 0 for n in seconds)):
            raise UsageError("speeds of a device are above 0, and its seconds at least 0")

    def memory_seconds(self, elements: int) -> float:
        """Time to move this many float32 values once, by the cache level the working set fits."""
        size = elements * FLOAT_BYTES
        for limit, speed in self.bandwidths:
            if size <= limit:
                return size / speed
        raise EgraphOptError(f"no bandwidth is known for {size} bytes")

    def rounded(self, extent: int) -> int:
        """An extent in whole vectors."""
        return -(-extent // self.lanes) * self.lanes


def call_operations(
    device: Device, operator: str, attributes: Mapping[str, str], arguments: tuple[Extents, ...], result: Extents
) -> int:
    """Floating-point operations a library call spends, two for each multiply-add, in whole vectors."""
    match operator:
        case "MatMul" | "Gemm":
            inner = arguments[0][0 if attributes.get("transA") == "1" else -1]
            return 2 * prod(result[:-1]) * device.rounded(result[-1]) * inner
        case "Conv":
            groups = int(attributes.get("group", "1"))
            filters = arguments[1][0] // groups
            return 2 * (prod(result) // filters) * device.rounded(filters) * prod(arguments[1][1:])
        case "ConvTranspose":
            return 2 * prod(arguments[0]) * prod(arguments[1][1:])
        case "MaxPool":
            return prod(result) * prod(library.integers(attributes["kernel_shape"]))
    return prod(arguments[0]) if arguments else prod(result)


def _added_seconds(
    device: Device, operator: library.LibraryOperator, attributes: str, arguments: tuple[Extents, ...], result: Extents
) -> float:
    """Expected time of an operator that a user added, as its record says; the call itself comes on top."""
    given = library.parse_attributes(attributes)
    found = operator.result(given, arguments)
    if found != result:
        raise EgraphOptError(
            f"a rule calls {operator.name}[{attributes}]({', '.join(str(list(a)) for a in arguments)}) with the extents"
            f" {list(result)}; they are {list(found)}"
        )
    count = operator.seconds or operator.flops
    try:
        cost = float(count(*arguments, **operator.typed(given))) if count is not None else 0.0
    except Exception as error:
        raise EgraphOptError(f"the cost of {operator.name} raised {type(error).__name__}: {error}") from error
    if not 0 <= cost < inf:
        raise EgraphOptError(f"the cost of {operator.name} is {cost}")
    if operator.seconds is not None:
        return device.call_seconds + cost
    moved = prod(result) + sum(prod(extents) for extents in arguments)
    return device.call_seconds + max(cost / (device.flops * operator.efficiency), device.memory_seconds(moved))


def call_seconds(
    device: Device, operator: str, attributes: str, arguments: tuple[Extents, ...], result: Extents
) -> float:
    """Expected time of a library call at its best.

    Raises EgraphOptError for an operator that nobody registered, and where a rule gives it wrong extents.
    """
    known = library.lookup(operator)
    if operator in library.ADDED:
        return _added_seconds(device, known, attributes, arguments, result)
    moved = prod(result) + sum(prod(extents) for extents in arguments)
    work = call_operations(device, operator, library.parse_attributes(attributes), arguments, result)
    speed = device.flops * device.efficiency.get(operator, 0.2)
    return device.call_seconds + max(work / speed, device.memory_seconds(moved))


def kernel_seconds(device: Device, elements: int, density: float, read: int) -> float:
    """Expected time of a generated kernel at its best: ``density`` scalar operations for each of its ``elements``.

    ``read`` is the number of values it reads from memory at least once.
    """
    return device.kernel_seconds + max(
        elements * density * device.scalar_seconds, device.memory_seconds(elements + read)
    )
