"""Static costs: a roofline of the machine, a lower bound on what a step can take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from egraph_opt.ir import library
from egraph_opt.ir.expr import Extents

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Device:
    """A machine: peak float32 operations a second, bandwidth by working-set size (bytes a second), launch cost (seconds)."""

    flops: float = 5.5e11
    bandwidths: tuple[tuple[int, float], ...] = ((1 << 20, 6e11), (16 << 20, 2.5e11), (1 << 62, 4.5e10))
    call_seconds: float = 2e-6
    kernel_seconds: float = 1e-6
    reshape_seconds: float = 1.5e-6
    scalar_seconds: float = 1.2e-11

    def memory_seconds(self, elements: int) -> float:
        """Time to move this many float32 values once, by the cache level the working set fits."""
        size = elements * FLOAT_BYTES
        return size / next(speed for limit, speed in self.bandwidths if size <= limit)


def call_operations(operator: str, attributes: Mapping[str, str], arguments: tuple[Extents, ...], result: Extents) -> int:
    """Floating-point operations of a library call, two for each multiply-add."""
    match operator:
        case "MatMul":
            return 2 * prod(result) * arguments[0][-1]
        case "Gemm":
            return 2 * prod(result) * arguments[0][0 if attributes.get("transA") == "1" else 1]
        case "Conv":
            return 2 * prod(result) * prod(arguments[1][1:])
        case "ConvTranspose":
            return 2 * prod(arguments[0]) * prod(arguments[1][1:])
        case "MaxPool":
            return prod(result) * prod(library.integers(attributes["kernel_shape"]))
    return prod(arguments[0]) if arguments else prod(result)


def call_seconds(device: Device, operator: str, attributes: str, arguments: tuple[Extents, ...], result: Extents) -> float:
    """Lower bound on the time of a library call."""
    moved = prod(result) + sum(prod(extents) for extents in arguments)
    work = call_operations(operator, library.parse_attributes(attributes), arguments, result)
    return device.call_seconds + max(work / device.flops, device.memory_seconds(moved))


def kernel_seconds(device: Device, elements: int, density: float, read: int) -> float:
    """Lower bound on the time of a generated kernel: ``density`` scalar operations for each of its ``elements``.

    ``read`` is the number of values it reads from memory at least once.
    """
    return device.kernel_seconds + max(elements * density * device.scalar_seconds, device.memory_seconds(elements + read))
