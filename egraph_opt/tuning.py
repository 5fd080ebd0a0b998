"""Tuning the kernels that matter most: schedules proposed by MetaSchedule, timed like every other implementation."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import inf
from typing import TYPE_CHECKING

from egraph_opt.backends import tvm_build, tvm_trace
from egraph_opt.backends.environment import usable_threads
from egraph_opt.errors import EgraphOptError
from egraph_opt.extract.profile import KERNEL, Measurement
from egraph_opt.extract.profiler import Profiler, kernel_of
from egraph_opt.extract.search import kernel_steps
from egraph_opt.ir.schedules import KernelSchedule, TuningModel
from egraph_opt.runtime.progress import Progress, ProgressCallback
from egraph_opt.runtime.timing import significant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from egraph_opt.extract.choose import Choice
    from egraph_opt.ir.program import Step

# Seconds that tuning may take where nothing else is said.
TUNING_SECONDS = 300.0
# A kernel that gets fewer trials than this gets none.
FEWEST_TRIALS = 4
# Tuned kernels that are timed again at a time, and what signatures of their first times begin with.
FINALISTS, FIRST = 3, "first of "


@dataclass
class Tuning:
    """Tries ``trials`` schedules of the kernels of some plans, in at most ``seconds``, and profiles them.

    The trials are shared out by what the kernels cost in the plans. Nothing that the profile knows is timed again: with
    the same profile the same schedules are proposed, and only answered. ``schedules`` are a user's, tried with 0 trials
    as well; ``complaints`` say which of them are not used, and why.
    """

    profiler: Profiler
    trials: int
    seconds: float
    progress: ProgressCallback
    schedules: Sequence[KernelSchedule | TuningModel] = ()
    complaints: list[str] = field(default_factory=list)
    _asked: dict[str, list[tuple[KernelSchedule, str]]] = field(default_factory=dict)

    def run(self, choices: Sequence[Choice]) -> bool:
        """Tune the kernels of these plans; whether anything new was measured."""
        before = sum(map(len, self.profiler.profile.measured.values()))
        steps = kernel_steps(choices)
        with self._time_limit():
            self._own_schedules(steps)
            shares = self._shares(steps, Counter(a.text for choice in choices for _, a in choice.steps))
            for number, (signature, step, trials) in enumerate(shares, 1):
                if time.monotonic() >= self.profiler.deadline:
                    break
                self._tune(signature, step, trials, f"kernel {number} of {len(shares)}")
            self.trials -= sum(trials for _, _, trials in shares)
        return sum(map(len, self.profiler.profile.measured.values())) > before

    @contextmanager
    def _time_limit(self) -> Iterator[None]:
        """Tuning has its own time, within that of the whole run."""
        profiler = self.profiler
        before = profiler.deadline
        profiler.deadline = min(profiler.limits.deadline, time.monotonic() + self.seconds)
        started = time.monotonic()
        try:
            yield
        finally:
            # What tuning took is not taken from measuring.
            took = time.monotonic() - started
            self.seconds -= took
            profiler.deadline = min(profiler.limits.deadline, before + took)

    # ---- what a user gave -----------------------------------------------------------------------------------------

    def _own_schedules(self, steps: Sequence[tuple[str, Step]]) -> None:
        """Time what a user's schedules make of kernels."""
        from egraph_opt.backends.tvm_tune import trace_by

        wanted: list[tuple[str, Step]] = []
        for signature, step in steps:
            kernel = kernel_of(step, "")
            for schedule in self._fitting(kernel, space=False) if signature not in self._asked else ():
                try:
                    trace = trace_by(schedule, kernel)
                except EgraphOptError as error:
                    self._complain(str(error))
                    continue
                self._asked.setdefault(signature, []).append((schedule, trace))
            if signature in self._asked:
                wanted.append((signature, step))
        self.profiler.schedules = {key: [trace for _, trace in found] for key, found in self._asked.items()}
        if wanted:
            self.profiler.measure(wanted, lambda done, total: self._tell("your schedules", done, total))
        for signature, found in self._asked.items():
            for schedule, trace in found:
                why = self.profiler.profile.failure(signature, KERNEL + trace)
                if why:
                    self._complain(f"the schedule {schedule.name} is not used: {why}")

    def _fitting(self, kernel: tvm_build.Kernel, *, space: bool) -> list[KernelSchedule]:
        found = []
        for schedule in self.schedules:
            if isinstance(schedule, KernelSchedule) and schedule.space == space:
                try:
                    if schedule.fits(kernel.body):
                        found.append(schedule)
                except Exception as error:
                    why = f"its condition raised {type(error).__name__}: {error}"
                    self._complain(f"the schedule {schedule.name} is not used: {why}")
        return found

    def _complain(self, what: str) -> None:
        if what not in self.complaints:
            self.complaints.append(what)

    # ---- MetaSchedule ---------------------------------------------------------------------------------------------

    def _shares(self, steps: Sequence[tuple[str, Step]], uses: Counter[str]) -> list[tuple[str, Step, int]]:
        """Kernels with the trials they get, most costly first.

        What counts is what they cost untuned: so the shares are the same when all is tuned.
        """
        costs = {signature: self._seconds(signature, tuned=False) * uses[signature] for signature, _ in steps}
        order = sorted((entry for entry in steps if 0 < costs[entry[0]] < inf), key=lambda e: (-costs[e[0]], e[0]))
        fewest = min(FEWEST_TRIALS, self.trials)
        while order and self.trials:
            total = sum(costs[signature] for signature, _ in order)
            if self.trials * costs[order[-1][0]] >= fewest * total or len(order) == 1:
                break
            order.pop()
        left, rest = self.trials, sum(costs[signature] for signature, _ in order)
        found: list[tuple[str, Step, int]] = []
        for signature, step in order if self.trials else ():
            share = round(left * costs[signature] / rest)
            left, rest = left - share, rest - costs[signature]
            found.append((signature, step, share))
        return found

    def _tune(self, signature: str, step: Step, trials: int, which: str) -> None:
        from egraph_opt.backends.tvm_tune import Tuner

        profile = self.profiler.profile
        kernel, before = kernel_of(step, ""), self._seconds(signature, tuned=False)
        model = next((entry for entry in self.schedules if isinstance(entry, TuningModel)), None)
        threads = self.profiler.threads or usable_threads()
        done, known = 0, len(profile.implementations(signature))
        try:
            spaces = self._fitting(kernel, space=True)
            tuner = Tuner(kernel, trials, threads=threads, spaces=spaces, model=model)
            while traces := tuner.ask():
                self.profiler.schedules = {signature: traces}
                self.profiler.measure([(signature, step)], lambda _, __: None)
                measured = [self._answer(signature, trace) for trace in traces]
                if any(entry is None for entry in measured):  # for want of time
                    return
                tuner.tell([entry.seconds if entry is not None else inf for entry in measured])
                done += len(traces)
                best = f"best {_microseconds(self._seconds(signature))} (was {_microseconds(before)})"
                self._tell(f"{which}, {best}", done, trials)
            if len(profile.implementations(signature)) > known:
                self._settle(signature, step)
        except EgraphOptError as error:
            if model is not None or self._fitting(kernel, space=True):
                self._complain(str(error))

    def _settle(self, signature: str, step: Step) -> None:
        """Hold the fastest tuned kernels against the fastest of the others, in turns: the best of many was lucky, too.

        Their new times are relative to what is known of the other one, by which the trials were shared out.
        """
        profile = self.profiler.profile
        settled: set[str] = set()
        while True:
            found = [m for m in profile.implementations(signature) if m.samples and m.implementation.startswith(KERNEL)]
            found.sort(key=lambda m: (m.seconds, m.implementation))
            other = next((m for m in found if not _is_tuned(m.implementation)), None)
            if other is None or found[0] is other or found[0].implementation in settled:
                return
            new = [m for m in found if _is_tuned(m.implementation) and m.implementation not in settled][:FINALISTS]
            schedules = [m.implementation.removeprefix(KERNEL) for m in (other, *new)]
            again = {m.implementation: m for m in self.profiler.in_turns(signature, step, schedules)}
            if other.implementation not in again:
                return
            ratio = other.seconds / again.pop(other.implementation).seconds
            profile.add(replace(m, signature=FIRST + signature) for m in new)
            profile.add(replace(m, samples=tuple(sample * ratio for sample in m.samples)) for m in again.values())
            settled |= {m.implementation for m in new}

    def _answer(self, signature: str, trace: str) -> Measurement | None:
        """What a proposed schedule took when it was timed first: later runs must get the same answers."""
        profile = self.profiler.profile
        return profile.measured_as(FIRST + signature, KERNEL + trace) or profile.measured_as(signature, KERNEL + trace)

    def _seconds(self, signature: str, *, tuned: bool = True) -> float:
        """What the fastest implementation of a step takes; without those that are ``tuned`` if asked."""
        profile = self.profiler.profile
        found = (m for m in profile.implementations(signature) if tuned or not _is_tuned(m.implementation))
        return min((measurement.seconds for measurement in found), default=inf)

    def _tell(self, what: str, done: int, total: int) -> None:
        self.progress(Progress("tune", what, done, total))


def _is_tuned(implementation: str) -> bool:
    return tvm_trace.is_trace(implementation.removeprefix(KERNEL))


def _microseconds(seconds: float) -> str:
    return f"{significant(seconds * 1e6)} us"
