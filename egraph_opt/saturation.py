"""Saturating regions with rules that may be anybody's: a pack that raises, hangs, crashes or grows beyond all bounds is
dropped and named, and the region is saturated again without it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from math import inf

from egraph_opt.egraph.blame import misshapen, wrong_rules
from egraph_opt.egraph.saturate import Budget, Round
from egraph_opt.errors import EgraphOptError, LimitReached, one_line
from egraph_opt.ir.program import Program
from egraph_opt.limits import Limits as RunLimits
from egraph_opt.packs import Selection
from egraph_opt.saturation_worker import Fault, Limits, Saturated, Worker, saturate_program

# Programs of at least this many definitions are saturated in a worker although all rules are our own: starting one and
# reading its answer costs about half a second, and egglog itself can only be interrupted there.
LARGE = 100
# The share of the memory that is left to a run in which an e-graph may grow: reading it back takes as much again.
GROWING_SHARE = 0.5
# A worker is ended after its budget of seconds this many times over, plus so many seconds: it also reads the e-graph.
PATIENCE, GRACE = 1.5, 10.0


@dataclass
class Saturator:
    """Saturates programs with one selection of rules; packs that misbehave are dropped for all programs that follow.

    ``notes`` says what was dropped and why. Ordinary programs are saturated in this process; those with foreign rules,
    large ones, and all of them with a limit of ``memory`` (bytes) or ``isolated``, in a worker that is killed where it
    goes beyond its limits or the ``whole`` run goes beyond its own. Close the saturator, or use it as a context
    manager.
    """

    selection: Selection = field(default_factory=Selection)
    memory: int | None = None
    call_seconds: float = Limits.call_seconds
    isolated: bool = False
    progress: Callable[[Round], None] | None = None
    notes: list[str] = field(default_factory=list)
    whole: RunLimits = field(default_factory=RunLimits)
    _worker: Worker | None = None

    def __enter__(self) -> Saturator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the worker in the background, where there will be need of it."""
        if self._worker is None and self._apart:
            self._worker = Worker()

    def close(self) -> None:
        """End the worker."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def saturate(self, program: Program, budget: Budget, deadline: float = inf) -> Saturated:
        """The saturated e-graph of a program.

        Raises LimitReached where the worker had to be ended for want of time or memory, EgraphOptError where something
        fails, and no pack is to blame. After ``deadline`` (monotonic seconds) nothing is tried again.
        """
        while True:
            try:
                found = self._once(program, self.selection, budget, deadline)
                problem = self._growth(found) or self._shapes(found)
            except Fault as fault:
                problem = self._culprits(fault, program, budget, deadline)
            if not problem:
                return found
            for pack, reason in problem.items():
                self.drop(pack, reason)

    @property
    def _apart(self) -> bool:
        return bool(self.selection.packs) or self.isolated or self.memory is not None

    def drop(self, pack: str, reason: str) -> None:
        """Use a pack no more."""
        self.selection = self.selection.without([pack])
        self.notes.append(one_line(f"rule pack {pack} was dropped: {reason}"))

    def suspects(self, found: Saturated) -> tuple[str, ...]:
        """The packs whose rules made anything of an e-graph."""
        rules = {rule for rule in found.saturation.matches if found.saturation.matches[rule]}
        return tuple(dict.fromkeys(pack for rule, pack in self.selection.foreign.items() if rule in rules))

    def blame(self, found: Saturated) -> dict[str, str]:
        """The packs with rules that are found to be wrong on an e-graph, each with the reason in words."""
        rules = {rule.name: rule for pack in self.selection.packs for rule in pack.rules}
        wrong = wrong_rules(found.snapshot, {name: rules[name] for name in self.selection.foreign})
        return _by_pack((self.selection.foreign[w.rule], f"rule {w.rule} is wrong: {w.how}") for w in wrong)

    def _once(self, program: Program, selection: Selection, budget: Budget, deadline: float) -> Saturated:
        left = deadline - time.monotonic()
        if left <= 0:
            raise LimitReached("the time limit was reached")
        budget = replace(budget, seconds=min(budget.seconds, left))
        if not selection.packs and not self._apart and len(program.definitions) < LARGE:
            return saturate_program(program, selection, budget, self.progress)
        if self._worker is not None and not self._worker.alive:
            self.close()
        if self._worker is None:
            self._worker = Worker()
        if self.whole.memory is not None:
            budget = replace(budget, memory=int(GROWING_SHARE * max(self.whole.spare(), 0.0)))
        limits = Limits(PATIENCE * budget.seconds + GRACE, self.call_seconds, self.memory, self.whole)
        return self._worker.saturate(program, selection, budget, limits, self.progress)

    def _culprits(self, fault: Fault, program: Program, budget: Budget, deadline: float) -> dict[str, str]:
        """The packs that a fault comes from, each with the reason in words; raises when it is none of them."""
        where = f"rule {fault.rule}" if fault.rule else f"a rule of group {fault.group}" if fault.group else "a rule"
        for pack in self.selection.packs:
            if fault.rule in {rule.name for rule in pack.rules} or fault.group in {g.name for g in pack.groups}:
                return {pack.name: _sentence(where, fault.reason)}
        if not self.selection.packs:
            raise fault.error()
        # Something of our own failed: on what a pack made, or for a reason of its own.
        reason = f"with it, {_sentence(where, fault.reason)}"
        try:
            self._once(program, self.selection.without(pack.name for pack in self.selection.packs), budget, deadline)
        except (Fault, EgraphOptError):
            raise fault.error() from None
        alone = {pack.name: self._alone(pack.name, program, budget, deadline) for pack in self.selection.packs}
        found = {name: problem for name, problem in alone.items() if problem is not None}
        return {name: problem or reason for name, problem in found.items()} or dict.fromkeys(alone, reason)

    def _alone(self, pack: str, program: Program, budget: Budget, deadline: float) -> str | None:
        """What is wrong with one pack alone, in words as far as it is known; None when nothing is."""
        others = [other.name for other in self.selection.packs if other.name != pack]
        try:
            found = self._once(program, self.selection.without(others), budget, deadline)
        except (Fault, EgraphOptError):
            return ""
        return self._shapes(found).get(pack)

    def _growth(self, found: Saturated) -> dict[str, str]:
        """The pack that grew most, where a limit was hit and foreign rules took part."""
        if found.saturation.stop == "saturated" or not self.selection.packs:
            return {}
        foreign = self.selection.foreign
        counts = {
            rule: max(found.saturation.made.get(rule, 0), found.saturation.matches.get(rule, 0)) for rule in foreign
        }
        busiest = max(sorted(foreign), key=counts.__getitem__, default="")
        if not counts.get(busiest):
            return {}
        grown = f"rule {busiest} matched {found.saturation.matches.get(busiest, 0):,} times"
        total = f"{found.saturation.enodes:,} e-nodes in {found.saturation.seconds:.1f} s"
        return {foreign[busiest]: f"the limit of {found.saturation.stop} was hit; {grown} among {total}"}

    def _shapes(self, found: Saturated) -> dict[str, str]:
        """Packs whose rules made terms that no tensor can have."""
        if not self.suspects(found):
            return {}
        rules = misshapen(found.snapshot, self.selection.foreign)
        if rules is None:
            return {}
        named = _by_pack((self.selection.foreign[rule], f"rule {rule} made terms of a wrong shape") for rule in rules)
        if named:
            return named
        foreign = self.selection.foreign
        fired = ((foreign[rule], rule) for rule, count in found.saturation.matches.items() if count and rule in foreign)
        return {
            pack: f"with it, terms have impossible shapes; of its rules fired {rules.replace('; ', ', ')}"
            for pack, rules in _by_pack(fired).items()
        }


def _sentence(where: str, reason: str) -> str:
    """What happened where; errors of rules name them already."""
    return reason if reason.startswith("rule ") else f"{where}: {reason}"


def _by_pack(found: Iterable[tuple[str, str]]) -> dict[str, str]:
    reasons: dict[str, list[str]] = {}
    for pack, reason in found:
        reasons.setdefault(pack, []).append(reason)
    return {pack: "; ".join(parts) for pack, parts in reasons.items()}
