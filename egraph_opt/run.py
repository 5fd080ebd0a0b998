"""One run of the optimizer: its options, its limits, and what is to be said about it afterwards."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from egraph_opt.errors import one_line
from egraph_opt.limits import Limits
from egraph_opt.runtime.progress import Progress, ProgressCallback, silent
from egraph_opt.runtime.report import Candidates, Report, RevertedRegion

if TYPE_CHECKING:
    from egraph_opt.backends.processes import ProcessExecutor
    from egraph_opt.backends.runner import Runner
    from egraph_opt.candidates import Candidate
    from egraph_opt.egraph.saturate import Round
    from egraph_opt.extract.step_info import CostModel
    from egraph_opt.frontends.regions import Region
    from egraph_opt.ir.schedules import KernelSchedule, TuningModel

# Shares of a time limit after which nothing more is saturated, measured, read from e-graphs, and built, verified or
# timed as a whole; what is left is for the explanation and for writing.
SATURATION_SHARE, MEASURING_SHARE, READING_SHARE, BUILDING_SHARE = 0.3, 0.6, 0.7, 0.92
EXPLAINING_SHARE = 0.97
# What is not chosen by its time takes at most so many times that of the fastest program.
SLOWEST = 3.0
# The share after which a saturation is ended that does not end itself.
ENDING_SHARE = 0.55


@dataclass(frozen=True)
class Options:
    """What the user asked for; see ``pipeline.optimize``. ``cost`` is a name; with an ``objective`` that cost model
    decides."""

    portable: bool = False
    verify: int = 1
    time_limit: float | None = None
    memory_limit: int | None = None
    seed: int = 0
    threads: int | None = None
    cost: str = "measured"
    profile_db: Path | None = None
    objective: CostModel | None = None
    peak_memory: int | None = None
    slowest: float = SLOWEST
    prove: bool = False
    runtime: str = "onnxruntime"
    runner: Runner | None = None
    jobs: int = 1
    trials: int = 0
    tuning_seconds: float = 300.0
    schedules: tuple[KernelSchedule | TuningModel, ...] = ()

    @property
    def measured(self) -> bool:
        """Whether the steps of programs are measured."""
        return self.cost == "measured" if self.objective is None else bool(getattr(self.objective, "measures", False))

    @property
    def for_memory(self) -> bool:
        """Whether the program that needs least memory is looked for."""
        return bool(getattr(self.objective, "peak", False))

    @property
    def summed(self) -> CostModel | None:
        """The cost model by whose sum over all steps a program is chosen; None for its time, and for its peak."""
        return None if self.for_memory else self.objective

    @property
    def peak_limit(self) -> int | None:
        """Bytes that the intermediate buffers of a program may take at once, if it matters; 0 for the fewest."""
        return 0 if self.for_memory else self.peak_memory

    @property
    def timed(self) -> bool:
        """Whether the fastest program is looked for, by timing whole models."""
        return self.objective is None and self.cost == "measured"

    @property
    def times(self) -> bool:
        """Whether anything is timed: steps, or whole models, if only for information."""
        return self.measured or self.objective is not None


@dataclass
class Run:
    """The state of a run: seconds by phase, regions that keep their nodes, notes, warnings, and how much was measured.

    ``objects`` are the kernels compiled so far, by name; many are compiled in ``compilers``.
    """

    options: Options = field(default_factory=Options)
    progress: ProgressCallback = silent
    seconds: dict[str, float] = field(default_factory=dict)
    reverted: list[RevertedRegion] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    candidates: Candidates = field(default_factory=Candidates)
    objects: dict[str, bytes] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    compilers: ProcessExecutor | None = None
    expecting: bool = False

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the seconds of what happens inside to the report."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - begun

    def expect_kernels(self) -> None:
        """Let the processes that compile kernels get ready in the background."""
        if self.compilers is not None and not self.expecting:
            self.expecting = True
            self.compilers.prepare(import_module, "egraph_opt.backends.tvm_build")

    def deadline(self, share: float = 1.0) -> float:
        """When this share of the time limit is used up (monotonic seconds)."""
        limit = self.options.time_limit
        return self.started + share * limit if limit is not None else inf

    def limits(self, share: float = 1.0) -> Limits:
        """The limits of what may take this share of the time limit."""
        return Limits(self.deadline(share), self.options.memory_limit)

    @property
    def runner(self) -> Runner:
        """What makes the measurements: this machine, unless the user wants another."""
        from egraph_opt.backends.runner import LocalRunner

        return self.options.runner or LocalRunner()

    def grown(self, done: Round) -> None:
        """Tell of a round of a saturation."""
        self.progress(Progress("saturate", f"{done.phase}: {done.enodes} e-nodes"))

    def revert(self, region: Region, why: str) -> None:
        """A region keeps its nodes."""
        self.keep([RevertedRegion(str(region.index), one_line(why), len(region.nodes))])

    def keep(self, reverted: tuple[RevertedRegion, ...] | list[RevertedRegion]) -> None:
        """Regions keep their nodes; each is told once."""
        self.reverted += [entry for entry in reverted if entry not in self.reverted]

    def finished(self, report: Report, chosen: Candidate | None, why: str) -> Report:
        """The report of a run that ends with a candidate, or in words why with none."""
        after = dict(report.operators_before)
        kernels: tuple[str, ...] = ()
        generated = 0
        if chosen is not None:
            nodes = chosen.model.graph.node
            kernels = chosen.kernels
            after = dict(Counter(node.op_type for node in nodes if node.op_type not in kernels))
            generated = sum(node.op_type in kernels for node in nodes)
            report = replace(report, peak_memory=replace(report.peak_memory, optimized=chosen.peak))
        return replace(
            report,
            operators_after=after,
            generated_kernels=generated,
            kernels=kernels,
            accuracy=chosen.accuracy if chosen else None,
            seconds=dict(self.seconds),
            candidates=self.candidates,
            unchanged_because=why,
            reverted=tuple(self.reverted),
            notes=tuple(dict.fromkeys(self.notes)),
            warnings=tuple(dict.fromkeys(self.warnings)),
        )
