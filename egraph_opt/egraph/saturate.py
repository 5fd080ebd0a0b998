"""Saturation under budgets: phases of rule groups, simplification to a fixpoint between rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from egraph_opt.egraph.engine import EGraph
from egraph_opt.egraph.language import RuleGroup
from egraph_opt.ir.program import Program


class PhaseLike(Protocol):
    """A rule group and the most rounds it may run."""

    @property
    def group(self) -> RuleGroup: ...
    @property
    def rounds(self) -> int: ...


@dataclass(frozen=True)
class Budget:
    """Limits of a saturation; hitting one ends it with what was found so far."""

    enodes: int = 200_000
    seconds: float = 60.0


@dataclass(frozen=True)
class Round:
    """One round of one phase: e-nodes after it and seconds it took."""

    phase: str
    enodes: int
    seconds: float


@dataclass
class Saturation:
    """How a saturation went. ``stop`` is "saturated", "e-nodes" or "time"."""

    rounds: list[Round] = field(default_factory=list)
    matches: dict[str, int] = field(default_factory=dict)
    stop: str = "saturated"
    seconds: float = 0.0


def saturate(
    egraph: EGraph,
    phases: Sequence[PhaseLike],
    simplification: RuleGroup,
    *,
    budget: Budget | None = None,
    progress: Callable[[Round], None] | None = None,
) -> Saturation:
    """Run the phases in order; returns rounds, matches per rule and why it stopped."""
    budget = budget or Budget()
    started = time.monotonic()
    result = Saturation()
    egraph.add_rules([simplification, *(phase.group for phase in phases)])

    def simplify() -> None:
        _count(result.matches, egraph.run(simplification.name, until_saturated=True).matches)

    simplify()
    for phase in phases:
        for _ in range(phase.rounds):
            begun = time.monotonic()
            report = egraph.run(phase.group.name)
            _count(result.matches, report.matches)
            if report.changed:
                simplify()
            done = Round(phase.group.name, egraph.size(), time.monotonic() - begun)
            result.rounds.append(done)
            if progress is not None:
                progress(done)
            result.seconds = time.monotonic() - started
            if done.enodes > budget.enodes:
                result.stop = "e-nodes"
                return result
            if result.seconds > budget.seconds:
                result.stop = "time"
                return result
            if not report.changed:
                break
    result.seconds = time.monotonic() - started
    return result


def _count(total: dict[str, int], new: Mapping[str, int]) -> None:
    for name, number in new.items():
        total[name] = total.get(name, 0) + number


def saturated(
    program: Program,
    phases: Sequence[PhaseLike],
    simplification: RuleGroup,
    *,
    budget: Budget | None = None,
    progress: Callable[[Round], None] | None = None,
) -> tuple[EGraph, Saturation]:
    """A fresh e-graph of a program after saturation."""
    egraph = EGraph()
    egraph.add_program(program)
    return egraph, saturate(egraph, phases, simplification, budget=budget, progress=progress)
