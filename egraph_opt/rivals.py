"""What other runtimes make of a model: it runs in them as it is, and by plans chosen by what steps cost there."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from egraph_opt.backends.model_timer import TimedModel
from egraph_opt.backends.runtimes import AUTO, DEFAULT, asked, version
from egraph_opt.candidates import Builder, Candidate, Prover
from egraph_opt.errors import EgraphOptError, one_line
from egraph_opt.extract.portable_extraction import PortableExtraction
from egraph_opt.extract.search import Search
from egraph_opt.measuring import Measurer
from egraph_opt.run import BUILDING_SHARE, MEASURING_SHARE
from egraph_opt.runtime.progress import Progress
from egraph_opt.runtime.report import Latency, RuntimeLatency
from egraph_opt.runtime.timing import Spread

if TYPE_CHECKING:
    from egraph_opt.exploration import Explorer
    from egraph_opt.extract.costs import Costs
    from egraph_opt.frontends.onnx_model import LoadedModel
    from egraph_opt.frontends.regions import Region
    from egraph_opt.run import Run
    from egraph_opt.runtime.timing import Comparison
    from egraph_opt.verification import Judge


@dataclass
class Rivals:
    """The runtimes beside onnxruntime that take part in optimizing the model stored as ``original``.

    ``main`` is the one that plans are looked for first. ``originals`` are the model as it is in each of the others, and
    in the main one where that is another; verified, so those that cannot run it are left out, with a note.
    """

    run: Run
    loaded: LoadedModel
    original: Path
    judge: Judge
    regions: Sequence[Region]
    folder: Path
    originals: dict[str, Candidate] = field(default_factory=dict)
    found: dict[str, tuple[Mapping[int, Search], Costs]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in asked(self.run.options.runtime):
            self.run.progress(Progress("verify", f"the original in {name}"))
            candidate = Candidate(self.loaded.model, TimedModel(self.original, runtime=name), {}, ())
            with self.run.phase("build and verify"):
                verdict = self.judge.verdict(candidate.stored, self.regions)
            if isinstance(verdict, str):
                self.run.notes.append(f"{name} takes no part: {one_line(verdict)}")
            else:
                self.originals[name] = replace(candidate, accuracy=verdict)

    @property
    def main(self) -> str:
        """The runtime that was asked for, onnxruntime where all take part."""
        choice = self.run.options.runtime
        return DEFAULT if choice == AUTO else choice

    @property
    def nobody(self) -> bool:
        """Whether there is no runtime to optimize the model for."""
        return self.main != DEFAULT and not self.originals

    def candidates(self, explorer: Explorer) -> list[Candidate]:
        """Verified models for the other runtimes: the original as it is, and the ones by plans found for them.

        Each runtime but the main one gets a search of its own in the e-graphs that ``explorer`` has.
        """
        planned = [
            self._planned(name, explorer)
            for name in self.originals
            # What is left then is for the candidates that are there.
            if name != self.main and time.monotonic() < self.run.deadline(MEASURING_SHARE)
        ]
        return [*self.originals.values(), *(candidate for candidate in planned if candidate is not None)]

    def latencies(self, timed: Sequence[tuple[Candidate, Comparison]]) -> tuple[RuntimeLatency, ...]:
        """For the report: the original and the fastest model found, in every runtime that something was timed in."""
        rows = []
        for name in (DEFAULT, *self.originals) if self.originals else ():
            mine = [(c, found) for c, found in timed if c.stored.runtime == name]
            best = max((f for c, f in mine if c.plans), key=lambda found: found.ratio.median, default=None)
            plain = next((f for c, f in mine if not c.plans), None)
            if name == DEFAULT and timed:  # what all are compared with
                one = timed[0][1]
                plain = replace(one, b=one.a, ratio=Spread(1.0, 1.0, 1.0))
            both = [None if found is None else Latency.of(found) for found in (plain, best)]
            rows.append(RuntimeLatency(name, version(name), *both))
        return tuple(rows)

    def _planned(self, name: str, explorer: Explorer) -> Candidate | None:
        measurer = Measurer(self.run, None, self.loaded.opset, name)
        with self.run.phase("extract"):
            searches = dict(self._searches(explorer))
        measurer.look(list(searches.values()))
        measurer.conclude(searches)
        self.found[name] = searches, measurer.costs
        limits = self.run.limits(BUILDING_SHARE)
        folder = self.folder / name
        folder.mkdir()
        builder = Builder(self.loaded, self.regions, measurer.profile, None, folder, limits=limits, runtime=name)
        plans = {
            index: item.outcome.plan
            for index, item in searches.items()
            if item.outcome is not None and builder.saves(item, timed=True)
        }
        if not plans:
            return None
        with self.run.phase("build and verify"):
            found, reverted = Prover(builder, self.judge, self.regions, limits.deadline).prove(plans)
        self.run.notes += [
            f"{name} gets no plan for region {entry.region}: {entry.reason}"
            for entry in (reverted if found is None else found.reverted)
        ]
        return None if found is None else replace(found, reverted=())

    def _searches(self, explorer: Explorer) -> Iterator[tuple[int, Search]]:
        """Searches in the same e-graphs for plans of standard operators."""
        for index, known in sorted(explorer.searches.items()):
            problem = known.problem
            if explorer.portable is None:
                extraction = PortableExtraction(explorer.snapshots[index], self.loaded.opset, explorer.unavailable)
                try:
                    problem = explorer.ready(extraction).problem(known.program.outputs)
                except EgraphOptError:  # this region keeps its nodes
                    continue
            yield index, Search(problem, known.program, known.prefix)
