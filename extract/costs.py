"""What the steps of a plan cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf

from egraph_opt.extract.priced_extraction import PricedAlternative
from egraph_opt.extract.problem import Alternative
from egraph_opt.extract.profile import KERNEL, Measurement, Profile
from egraph_opt.extract.roofline import STEP_SECONDS
from egraph_opt.extract.step_info import CostModel, priced
from egraph_opt.ir.terms import Call, Reshape

# onnxruntime keeps a blocked layout between neighbouring Convs, so a chain of them takes less time than the sum of its
# Convs measured alone. With this factor on every Conv there is a second plan that stays with chains of Convs.
CHAINED_CONV = 0.8


@dataclass
class Costs:
    """Seconds of an alternative: measured if it was, else its estimate; what failed or cannot be run costs infinity.

    With a ``bound`` it takes the place of estimates. With ``certain`` only what was measured counts. ``conv`` is the
    share of its cost that a Conv is charged. Every step is charged STEP_SECONDS on top. With an ``objective`` this cost
    model says what a step costs, knowing its seconds; estimates are in its unit, too. What was offered as a kernel that
    then could not be built is written with standard operators, which cost something else than time: with ``as_kernels``
    such an alternative costs infinity.
    """

    profile: Profile
    possible: Callable[[Alternative], bool]
    bound: Callable[[Alternative], float] | None = None
    certain: bool = False
    conv: float = 1.0
    objective: CostModel | None = None
    as_kernels: bool = False

    def __call__(self, alternative: Alternative) -> float:
        step = alternative.step
        if isinstance(step, Reshape):
            return alternative.estimate
        if not self.possible(alternative) or (self.as_kernels and self.profile.failure(alternative.text, KERNEL)):
            return inf
        found = self.profile.verdict(alternative.text)
        if found is None and self.certain:
            return inf
        if self.objective is not None:
            return self._objective(self.objective, alternative, found)
        if found is not None:
            seconds = found.seconds
        else:
            seconds = alternative.estimate if self.bound is None else self.bound(alternative)
        return STEP_SECONDS + (seconds * self.conv if is_conv(alternative) else seconds)

    def seconds(self, alternative: Alternative) -> float:
        """How long an alternative takes, whatever decides; infinity where it must not be used."""
        if self(alternative) == inf:
            return inf
        if not isinstance(alternative, PricedAlternative):
            return replace(self, objective=None)(alternative)
        found = self.profile.verdict(alternative.text)
        return alternative.static if found is None else STEP_SECONDS + found.seconds

    def _objective(self, objective: CostModel, alternative: Alternative, found: Measurement | None) -> float:
        if found is None or not isinstance(alternative, PricedAlternative):
            return alternative.estimate
        if not found.samples:
            return inf
        return priced(objective, replace(alternative.info, measured=found.seconds))


def is_conv(alternative: Alternative) -> bool:
    """Whether an alternative is a library Conv."""
    return isinstance(alternative.step, Call) and alternative.step.operator == "Conv"


def needs_measuring(alternative: Alternative, profile: Profile) -> bool:
    """Whether nothing is known of an alternative that takes time."""
    return not isinstance(alternative.step, Reshape) and profile.verdict(alternative.text) is None
