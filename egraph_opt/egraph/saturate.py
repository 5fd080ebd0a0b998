"""Saturation under budgets: phases of rule groups, simplification to a fixpoint between rounds."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from egraph_opt.egraph.engine import EGraph
from egraph_opt.egraph.growth import TOP_RULES, growth_table
from egraph_opt.egraph.language import RuleGroup
from egraph_opt.ir.program import Program
from egraph_opt.limits import held_by

Stop = Literal["saturated", "e-nodes", "time", "memory"]


class PhaseLike(Protocol):
    """A rule group and the most rounds it may run."""

    @property
    def group(self) -> RuleGroup: ...
    @property
    def rounds(self) -> int: ...


@dataclass(frozen=True)
class Budget:
    """Limits of a saturation; hitting one ends it with what was found so far.

    They are looked at between the runs of rules, so one run may go beyond them. ``memory`` are the bytes that this
    process may hold.
    """

    enodes: int = 200_000
    seconds: float = 60.0
    memory: int | None = None


@dataclass(frozen=True)
class Round:
    """One round of one phase: e-nodes after and ``before`` it, seconds it took, and matches per rule.

    The matches include those of the simplifications that followed.
    """

    phase: str
    enodes: int
    seconds: float
    before: int = 0
    matches: Mapping[str, int] = field(default_factory=dict, compare=False)


@dataclass
class Saturation:
    """How a saturation went: rounds, matches per rule over all of them, and why it stopped.

    ``stop`` is "saturated" when every phase ran to its end – to its fixpoint, or for as many rounds as it is given –
    and else names the limit that was hit.

    ``made`` are the e-nodes that every rule made out of others, as far as the e-graph records them (whole right-hand
    sides, and the sums and calls in them); it is known once the e-graph was read, see :attr:`Snapshot.made`.
    """

    rounds: list[Round] = field(default_factory=list)
    matches: dict[str, int] = field(default_factory=dict)
    stop: Stop = "saturated"
    seconds: float = 0.0
    made: dict[str, int] = field(default_factory=dict)

    @property
    def enodes(self) -> int:
        """E-nodes at the end."""
        return self.rounds[-1].enodes if self.rounds else 0

    def __str__(self) -> str:
        return self.table()

    def table(self, rules: int = TOP_RULES) -> str:
        """Growth as text: e-nodes and seconds of every round that changed something, and the busiest rules."""
        rows = [(done.phase, done.before, done.enodes, done.seconds) for done in self.rounds]
        return growth_table(rows, self.matches, self.made, self.stop, rules)


def saturate(
    egraph: EGraph,
    phases: Sequence[PhaseLike],
    simplification: RuleGroup,
    *,
    budget: Budget | None = None,
    progress: Callable[[Round], None] | None = None,
) -> Saturation:
    """Run the phases in order; returns rounds, matches per rule and why it stopped."""
    run = _Run(egraph, simplification, budget or Budget())
    egraph.add_rules([simplification, *(phase.group for phase in phases)])
    run.simplify({})
    for phase in phases:
        for _ in range(phase.rounds):
            done, changed = run.round(phase.group.name)
            if progress is not None:
                progress(done)
            if run.exceeded(done.enodes):
                return run.result
            if not changed:
                break
    run.result.seconds = time.monotonic() - run.started
    return run.result


def together(parts: Sequence[Saturation]) -> Saturation:
    """How several saturations went, of parts of one program: phase by phase, their e-nodes and seconds added up."""
    whole = Saturation()
    sizes = [part.rounds[0].before if part.rounds else 0 for part in parts]
    left = [list(part.rounds) for part in parts]
    while any(left):
        phase = next(rounds for rounds in left if rounds)[0].phase
        before, seconds = sum(sizes), 0.0
        matches: dict[str, int] = {}
        for number, rounds in enumerate(left):
            if rounds and rounds[0].phase == phase:
                done = rounds.pop(0)
                sizes[number] = done.enodes
                seconds += done.seconds
                _count(matches, done.matches)
        whole.rounds.append(Round(phase, sum(sizes), seconds, before, matches))
    for part in parts:
        _count(whole.matches, part.matches)
        whole.seconds += part.seconds
        whole.stop = part.stop if whole.stop == "saturated" else whole.stop
    return whole


class _Run:
    def __init__(self, egraph: EGraph, simplification: RuleGroup, budget: Budget) -> None:
        self.egraph = egraph
        self.simplification = simplification
        self.budget = budget
        self.started = time.monotonic()
        self.result = Saturation()
        self.size = egraph.size()

    def round(self, group: str) -> tuple[Round, bool]:
        """Run a group once and simplify; whether the group itself changed anything."""
        begun, before = time.monotonic(), self.size
        matches: dict[str, int] = {}
        report = self.egraph.run(group)
        _count(matches, report.matches)
        if report.changed:
            self.simplify(matches)
        self.size = self.egraph.size()
        done = Round(group, self.size, time.monotonic() - begun, before, matches)
        self.result.rounds.append(done)
        _count(self.result.matches, matches)
        return done, report.changed

    def simplify(self, matches: dict[str, int]) -> None:
        """Simplify to a fixpoint, or until the time is over."""
        while time.monotonic() - self.started <= self.budget.seconds:
            report = self.egraph.run(self.simplification.name)
            _count(matches, report.matches)
            if not report.changed:
                break

    def exceeded(self, enodes: int) -> bool:
        """Whether a limit is hit; the result then says which."""
        self.result.seconds = time.monotonic() - self.started
        if enodes > self.budget.enodes:
            self.result.stop = "e-nodes"
        elif self.result.seconds > self.budget.seconds:
            self.result.stop = "time"
        elif self.budget.memory is not None and held_by(os.getpid()) > self.budget.memory:
            self.result.stop = "memory"
        return self.result.stop != "saturated"


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
