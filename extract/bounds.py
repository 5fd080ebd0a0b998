"""Lower bounds of what steps take that were not measured, from what the machine was measured to do at its best.

A step takes no less than a call and its arithmetic at the highest rate that was seen, or its memory traffic at the
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
from egraph_opt.ir import library
from egraph_opt.ir.least_work import of_call, of_kernel
from egraph_opt.ir.program import Step
from egraph_opt.ir.terms import Call, Compute, Read, Reshape, Source, add

# The sides of square products that are timed for the rate of arithmetic, the largest of which no processor's caches
# hold, and the elements of sums for the bandwidths of its caches and its memory.
_PRODUCTS = (256, 1024)
_SUMS = (1 << 10, 1 << 13, 1 << 16, 1 << 19, 1 << 22)
# Operations of a multiply-add.
_FUSED = 2
# How much better than its probes a machine may be: probes are measured like everything else, with other things going
# on, and other code may be a little better than theirs.
_FASTER_ARITHMETIC, _FASTER_MEMORY, _FASTER_START = 1.1, 1.5, 1.5


def _product(side: int) -> Call:
    matrix = (side, side)
    return Call("MatMul", "", (Source("a", matrix), Source("b", matrix, True)), matrix)


def _sum(elements: int) -> Compute:
    return Compute(add(Read(Source("a", (elements,))), Read(Source("b", (elements,)))))


def probes() -> list[tuple[str, Step]]:
    """The steps that tell what a machine can do, with their signatures."""
    steps: list[Call | Compute] = [*map(_product, (1, *_PRODUCTS)), *map(_sum, (1, *_SUMS))]
    return [(signature(step), Step("y", step)) for step in steps]


def ceilings(profile: Profile) -> Device | None:
    """The machine at its best, as far as its probes tell; None where one of them is missing."""
    taken: dict[str, float] = {}
    for text, _ in probes():
        found = profile.verdict(text)
        if found is None or not found.samples:
            return None
        taken[text] = min(found.samples) / 1e3
    call, kernel = taken[signature(_product(1))], taken[signature(_sum(1))]

    def rate(amount: float, step: Call | Compute, start: float) -> float:
        """Of the whole time half is its own at least, whatever the start takes."""
        seconds = taken[signature(step)]
        return amount / max(seconds - start, seconds / 2)

    flops = _FASTER_ARITHMETIC * max(rate(_FUSED * side**3, _product(side), call) for side in _PRODUCTS)
    bandwidths: list[tuple[int, float]] = []
    limit, fastest = 1 << 62, 0.0
    for count in reversed(_SUMS):
        # What is larger is no faster, but for a sum so small that one thread does it alone.
        size = 3 * count * FLOAT_BYTES
        fastest = max(fastest, _FASTER_MEMORY * rate(size, _sum(count), kernel))
        bandwidths.append((limit, fastest))
        limit = size - 1
    bandwidths.append((limit, fastest))
    return Device(
        flops=flops,
        bandwidths=tuple(reversed(bandwidths)),
        call_seconds=call / _FASTER_START,
        kernel_seconds=kernel / _FASTER_START,
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
            if found is not None and found.samples and not isinstance(step, Reshape):
                self.scale = min(self.scale, found.seconds / self._bound(text, step))

    def _bound(self, text: str, step: Call | Compute) -> float:
        if text not in self._known:
            # An operator of users may have a kernel of theirs.
            called = isinstance(step, Call) and step.operator not in library.ADDED
            start = self.best.call_seconds if called else self.best.kernel_seconds
            work = of_kernel(step.tensor) if isinstance(step, Compute) else of_call(step)
            moving = self.best.memory_seconds(work.elements_read + prod(step.extents))
            self._known[text] = start + max(_FUSED * work.instructions / self.best.flops, moving)
        return self._known[text]
