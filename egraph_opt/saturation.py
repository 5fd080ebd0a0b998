"""Saturating regions with rules that may be anybody's: a pack that raises, hangs, crashes or grows beyond all bounds is
dropped and named, and the region is saturated again without it.

Large programs are saturated as windows and merged; windows and programs side by side where there are several ``jobs``.
What comes out does not depend on their number.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from math import inf

from egraph_opt.egraph.blame import misshapen, wrong_rules
from egraph_opt.egraph.merging import merged
from egraph_opt.egraph.saturate import Budget, Round, together
from egraph_opt.errors import EgraphOptError, LimitReached, one_line
from egraph_opt.ir.naming import canonical
from egraph_opt.ir.program import Program
from egraph_opt.ir.windows import windows
from egraph_opt.limits import Limits as RunLimits
from egraph_opt.packs import Selection
from egraph_opt.saturation_worker import Fault, Limits, Saturated, Worker, Workers, saturate_canonical

# Programs of at least this many definitions are saturated in a worker although all rules are our own: starting one and
# reading its answer costs about half a second, and egglog itself can only be interrupted there. So are several that
# have as many together, where there are several jobs.
LARGE = 100
# The share of the memory that is left to a run in which an e-graph may grow: reading it back takes as much again.
GROWING_SHARE = 0.5
# With a memory limit there are no more workers at once than have so many bytes each: GCN's e-graph takes 0.7 GiB.
WORKER_BYTES = 1 << 30
# A worker is ended after its budget of seconds this many times over, plus so many seconds: it also reads the e-graph.
PATIENCE, GRACE = 1.5, 10.0


@dataclass
class Saturator:
    """Saturates programs with one selection of rules; packs that misbehave are dropped for all programs that follow.

    ``notes`` says what was dropped and why. Ordinary programs are saturated in this process; those with foreign rules,
    large ones, and all of them with a limit of ``memory`` (bytes) or ``isolated``, in workers, as many as there are
    ``jobs``, that are killed where they go beyond their limits or the ``whole`` run goes beyond its own. Close the
    saturator, or use it as a context manager.
    """

    selection: Selection = field(default_factory=Selection)
    memory: int | None = None
    call_seconds: float = Limits.call_seconds
    isolated: bool = False
    progress: Callable[[Round], None] | None = None
    notes: list[str] = field(default_factory=list)
    whole: RunLimits = field(default_factory=RunLimits)
    jobs: int = 1
    _workers: Workers = field(default_factory=Workers)
    # By the identity of programs, which are kept so that no other one can have it.
    _begun: dict[int, tuple[Program, _Begun]] = field(default_factory=dict)
    _telling: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Saturator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, operators: int = 0) -> None:
        """Start workers in the background, where a model of so many operators will need them."""
        if operators >= LARGE:
            self._workers.start(self._concurrent)
        elif self._apart:
            self._workers.start(1)

    def close(self) -> None:
        """End the workers."""
        self._forget()
        self._workers.close()

    def begin(self, tasks: Sequence[tuple[Program, Budget]], deadline: float = inf) -> None:
        """Let workers saturate programs that will be asked for, each within its budget, the largest first.

        Does nothing with one job, or where that would take longer than one after the other.
        """
        self._forget()
        definitions = sum(len(program.definitions) for program, _ in tasks)
        if self.jobs < 2 or len(tasks) < 2 or (definitions < LARGE and not self._apart):
            return
        for program, budget in sorted(tasks, key=lambda task: -len(task[0].definitions)):
            begun = self._prepared(program, self.selection, budget, deadline, aside=True)
            self._begun[id(program)] = program, begun

    def ready(self, program: Program) -> bool:
        """Whether a program that was begun is done."""
        _, begun = self._begun.get(id(program), (program, None))
        return begun is not None and all(part.future is not None and part.future.done() for part in begun.parts)

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
        self._forget()
        self.selection = self.selection.without([pack])
        self.notes.append(one_line(f"rule pack {pack} was dropped: {reason}"))

    def _forget(self) -> None:
        """What was begun with other rules, or is not wanted any more."""
        for _, begun in self._begun.values():
            for part in begun.parts:
                if part.future is not None:
                    part.future.cancel()
        self._begun.clear()

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
        _, begun = self._begun.pop(id(program), (program, None))
        if begun is None or begun.selection is not selection:
            left = deadline - time.monotonic()
            if left <= 0:
                raise LimitReached("the time limit was reached")
            begun = self._prepared(program, selection, replace(budget, seconds=min(budget.seconds, left)), deadline)
        found = [self._part(part, selection) for part in begun.parts]
        if len(found) == 1:
            whole = found[0]
        else:
            snapshot = merged([part.snapshot for part in found], {name for name, _ in begun.program.definitions})
            whole = Saturated(snapshot, together([part.saturation for part in found]))
            whole.saturation.made = dict(snapshot.made)
        whole.snapshot.rename(begun.names)
        return whole

    def _prepared(
        self, program: Program, selection: Selection, budget: Budget, deadline: float, *, aside: bool = False
    ) -> _Begun:
        """A program in canonical form and its windows, which may have begun ``aside``; each gets its share."""
        ordered, names = canonical(program)
        found = windows(ordered)
        total = sum(len(window.definitions) for window in found)
        apart = bool(selection.packs) or self._apart or len(ordered.definitions) >= LARGE
        parts = []
        for window in found:
            share = len(window.definitions) / total
            own = replace(budget, enodes=int(budget.enodes * share), seconds=budget.seconds * share * self.jobs)
            parts.append(_Part(window, replace(own, seconds=min(own.seconds, budget.seconds)), deadline, apart))
        if aside or (self.jobs > 1 and len(parts) > 1):
            for part in sorted(parts, key=lambda part: -len(part.program.definitions)):
                part.future = self._workers.submit(self._concurrent, self._in_worker, part, selection)
        return _Begun(ordered, names, selection, parts)

    def _tell(self, done: Round) -> None:
        if self.progress is not None:
            with self._telling:
                self.progress(done)

    @property
    def _concurrent(self) -> int:
        """Workers at once."""
        fitting = self.jobs if self.whole.memory is None else int(self.whole.spare() // WORKER_BYTES)
        return max(1, min(self.jobs, fitting))

    def _part(self, part: _Part, selection: Selection) -> Saturated:
        if part.future is not None:
            try:
                return part.future.result()
            except Fault as fault:
                if not fault.limit or self.whole.memory is None or time.monotonic() > self.whole.deadline:
                    raise
                self._workers.wait()  # beside others there was not enough memory; alone there may be
        elif not part.apart:
            return saturate_canonical(part.program, selection, part.budget, self.progress)
        return self._in_worker(self._workers.take(), part, selection)

    def _in_worker(self, worker: Worker, part: _Part, selection: Selection) -> Saturated:
        """Saturate there, and put the worker back."""
        left = max(0.0, part.deadline - time.monotonic())
        budget = replace(part.budget, seconds=min(part.budget.seconds, left))
        if self.whole.memory is not None:
            share = GROWING_SHARE / (self._concurrent if part.future is not None else 1)
            budget = replace(budget, memory=int(share * max(self.whole.spare(), 0.0)))
        limits = Limits(PATIENCE * budget.seconds + GRACE, self.call_seconds, self.memory, self.whole)
        try:
            if not left:
                raise Fault("the time limit was reached", limit=True)
            return worker.saturate(part.program, selection, budget, limits, self._tell)
        finally:
            self._workers.put(worker)

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


@dataclass
class _Part:
    """A window of a program, what it may take until when, whether in a worker, and its result where it has begun."""

    program: Program
    budget: Budget
    deadline: float
    apart: bool
    future: Future[Saturated] | None = None


@dataclass(frozen=True)
class _Begun:
    """A program in canonical form, the names it had, the rules and its windows."""

    program: Program
    names: Mapping[str, str]
    selection: Selection
    parts: Sequence[_Part]


def _sentence(where: str, reason: str) -> str:
    """What happened where; errors of rules name them already."""
    return reason if reason.startswith("rule ") else f"{where}: {reason}"


def _by_pack(found: Iterable[tuple[str, str]]) -> dict[str, str]:
    reasons: dict[str, list[str]] = {}
    for pack, reason in found:
        reasons.setdefault(pack, []).append(reason)
    return {pack: "; ".join(parts) for pack, parts in reasons.items()}
