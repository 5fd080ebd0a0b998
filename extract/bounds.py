"""Lower bounds of what steps take that were not measured, from what the machine was measured to do at its best.

A step takes no less than its arithmetic at the highest rate that was seen, and no less than its memory traffic at the
highest bandwidth: the roofline model (Williams, Waterman and Patterson, CACM 52(4), 2009) with measured ceilings. The
ceilings come from a few probes, which are measured and kept like any step. A plan that is all measured and no dearer
than what the bounds allow is therefore the cheapest of the alternatives.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod

from egraph_opt.extract.problem import Alternative, signature
from egraph_opt.extract.profile import Profile
from egraph_opt.extract.roofline import FLOAT_BYTES, Device
from egraph_opt.ir.least_work import of_call, of_kernel
from egraph_opt.ir.program import Step
from egraph_opt.ir.terms import Call, Compute, Read, Reshape, Source, add

# The sides of square products that are timed for the rate of arithmetic, and the elements of sums for the bandwidths of
# caches and memory.
_PRODUCTS = (256, 1024)
_SUMS = (1 << 13, 1 << 16, 1 << 19, 1 << 22)
# Operations of a multiply-add.
_FUSED = 2
# How much better than its probes a machine may be: probes are measured like everything else, with other things going
# on, and other code may be a little better than theirs.
_FASTER_ARITHMETIC, _FASTER_MEMORY = 1.1, 1.5
# Seconds by which a measured time may be too small: what an empty model takes is subtracted, and varies.
_RESOLUTION = 2e-7


def _product(side: int) -> Call:
    matrix = (side, side)
    return Call("MatMul", "", (Source("a", matrix), Source("b", matrix, True)), matrix)


def _sum(elements: int) -> Compute:
    return Compute(add(Read(Source("a", (elements,))), Read(Source("b", (elements,)))))


def probes() -> list[tuple[str, Step]]:
    """The steps that tell what a machine can do, with their signatures."""
    steps: list[Call | Compute] = [*map(_product, _PRODUCTS), *map(_sum, _SUMS)]
    return [(signature(step), Step("y", step)) for step in steps]


def ceilings(profile: Profile) -> Device | None:
    """The machine at its best, as far as its probes tell; None where one of them is missing."""
    taken: dict[Call | Compute | Reshape, float] = {}
    for text, step in probes():
        found = profile.verdict(text)
        if found is None or not found.samples:
            return None
        taken[step.buffer] = min(found.samples) / 1e3
    flops = _FASTER_ARITHMETIC * max(_FUSED * side**3 / taken[_product(side)] for side in _PRODUCTS)
    bandwidths: list[tuple[int, float]] = []
    limit, fastest = 1 << 62, 0.0
    for count in reversed(_SUMS):
        # What is larger is no faster, but for a sum so small that one thread does it alone, or that starting it counts.
        size = 3 * count * FLOAT_BYTES
        fastest = max(fastest, _FASTER_MEMORY * size / taken[_sum(count)])
        bandwidths.append((limit, fastest))
        limit = size - 1
    bandwidths.append((limit, fastest))
    return Device(
        flops=flops,
        bandwidths=tuple(reversed(bandwidths)),
        call_seconds=0.0,
        kernel_seconds=0.0,
        scalar_seconds=1 / flops,
        lanes=1,
    )


@dataclass
class Bounds:
    """Seconds that a step takes at least, on a machine that does what ``best`` says at its best.

    Should a step be faster than that, all bounds are lowered by as much: ``scale`` is the share of them that counts.
    """

    best: Device
    scale: float = 1.0
    _known: dict[str, float] = field(default_factory=dict)

    def __call__(self, alternative: Alternative) -> float:
        step = alternative.step
        if isinstance(step, Reshape):
            return alternative.estimate
        return self.scale * self._bound(alternative.text, step)

    def heed(self, steps: Iterable[tuple[str, Call | Compute | Reshape]], profile: Profile) -> None:
        """Lower the bounds to what was measured of some steps, given with their signatures."""
        for text, step in steps:
            found = profile.verdict(text)
            if found is None or found.seconds <= _RESOLUTION or isinstance(step, Reshape):
                continue
            bound = self._bound(text, step)
            if found.samples and found.seconds < bound:
                self.scale = min(self.scale, found.seconds / bound)

    def _bound(self, text: str, step: Call | Compute) -> float:
        if text not in self._known:
            work = of_kernel(step.tensor) if isinstance(step, Compute) else of_call(step)
            moving = self.best.memory_seconds(work.elements_read + prod(step.extents))
            computing = _FUSED * work.instructions / self.best.flops
            self._known[text] = max(computing, moving, _RESOLUTION) - _RESOLUTION
        return self._known[text]
