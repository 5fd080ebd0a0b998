"""How users arrange the loops of kernels: own schedules, spaces of them, and models that foresee what they cost.

::

    @schedule(when=lambda body: not reductions(body))
    def wide(arrangement):  # a tvm.s_tir.Schedule of the kernel's blocks
        *_, last = arrangement.get_loops(arrangement.get_sblock("out"))
        arrangement.vectorize(arrangement.split(last, [None, 16])[1])

A pack file holds them at module level, beside rules. Nothing here imports tvm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from egraph_opt.errors import UsageError
from egraph_opt.ir.terms import Tensor

Arranges = Callable[..., Any]


@dataclass(frozen=True)
class KernelSchedule:
    """A function that arranges the ``tvm.s_tir.Schedule`` of a kernel whose body it is ``when``.

    With ``space`` it samples decisions, or returns several schedules: what tuning looks through instead of the built-in
    spaces; ``arrange`` may then also be a function without arguments that returns a MetaSchedule SpaceGenerator.
    """

    name: str
    arrange: Arranges
    when: Callable[[Tensor], bool] | None = None
    space: bool = False

    def fits(self, body: Tensor) -> bool:
        """Whether it is for kernels of this body."""
        return self.when is None or bool(self.when(body))


@dataclass(frozen=True)
class TuningModel:
    """A function without arguments that returns the MetaSchedule cost model that tuning asks what to try."""

    name: str
    make: Callable[[], Any]


def schedule(
    *, when: Callable[[Tensor], bool] | None = None, space: bool = False, name: str = ""
) -> Callable[[Arranges], KernelSchedule]:
    """Declare a schedule of kernels, or with ``space`` a space of them.

    ``when`` gets the kernel's body, a term of ``egraph_opt.ir.terms`` over its sources. The result is tried for every
    kernel of the best plans, checked as all kernels are, and used where it is the fastest. A space is looked through
    with ``trials`` above 0.
    """
    if when is not None and not callable(when):
        raise UsageError(f"when is a function of a kernel's body, not {when!r}")

    def declared(arrange: Arranges) -> KernelSchedule:
        return KernelSchedule(name or getattr(arrange, "__name__", "schedule"), arrange, when, space)

    return declared


def tuning_model(make: Callable[[], Any]) -> TuningModel:
    """Declare the cost model of tuning: a function that returns a ``tvm.s_tir.meta_schedule.cost_model.CostModel``."""
    return TuningModel(getattr(make, "__name__", "model"), make)
