"""From regions to searches: saturate every region, read what it could be computed by, and distrust foreign rules."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from egraph_opt.egraph.saturate import Budget
from egraph_opt.errors import EgraphOptError, LimitReached, UsageError
from egraph_opt.extract.alternatives import Extraction
from egraph_opt.extract.constrained import with_others
from egraph_opt.extract.cost_models import Latency, Traffic
from egraph_opt.extract.portable_extraction import PortableExtraction
from egraph_opt.extract.portable_plan import Expressible
from egraph_opt.extract.priced_extraction import PricedExtraction, seconds_alone
from egraph_opt.extract.problem import Problem
from egraph_opt.extract.roofline import Device
from egraph_opt.extract.search import Search
from egraph_opt.frontends.onnx_memory import beside
from egraph_opt.limits import OUT_OF_MEMORY, OUT_OF_TIME
from egraph_opt.run import READING_SHARE, SATURATION_SHARE, Run
from egraph_opt.runtime.progress import Progress
from egraph_opt.runtime.report import PackUse, Saturation, SaturationRound
from egraph_opt.saturation import LARGE, Saturator
from egraph_opt.saturation_worker import Saturated

if TYPE_CHECKING:
    from egraph_opt.candidates import Prover
    from egraph_opt.egraph.snapshot import Snapshot
    from egraph_opt.extract.step_info import CostModel
    from egraph_opt.frontends.onnx_model import LoadedModel
    from egraph_opt.frontends.regions import Region
    from egraph_opt.packs import Selection

# Seconds that saturating all regions may take, and that a single region may.
SATURATION_SECONDS, REGION_SECONDS = 120.0, 60.0

# Where no firing of a rule is found to be wrong, so many rules are left out in turn.
RULES_TRIED = 8

# Chooses and measures the plans of some searches.
Measure = Callable[[Sequence[Search]], None]


def free_prefix(names: Iterable[str]) -> str:
    """A short text such that none of the names begins with it and a digit."""
    taken = set(names)
    prefix = "r"
    while any(re.match(rf"{prefix}\d", name) for name in taken):
        prefix += "r"
    return prefix


@dataclass
class Explorer:
    """The searches of all ``regions`` by their index. The names of all steps will begin with ``prefix`` and a number.

    Plans call none of the library operators that are ``unavailable``. With ``portable`` at an opset, kernels cost what
    the standard operators cost they are written with. ``device`` says what steps should take; with an ``objective``
    this cost model says what they cost. ``model`` is the one that the regions are of.
    """

    regions: Sequence[Region]
    saturator: Saturator
    prefix: str
    run: Run
    unavailable: frozenset[str] = frozenset()
    portable: int | None = None
    device: Device = field(default_factory=Device)
    objective: CostModel | None = None
    model: LoadedModel | None = None
    searches: dict[int, Search] = field(default_factory=dict)
    found: dict[int, Saturated] = field(default_factory=dict)

    @property
    def snapshots(self) -> Mapping[int, Snapshot]:
        """The saturated e-graphs by the index of their region."""
        return {index: found.snapshot for index, found in self.found.items()}

    @property
    def saturations(self) -> tuple[Saturation, ...]:
        """How the e-graphs came about, for the report."""
        return tuple(_record(index, self.found[index]) for index in sorted(self.found))

    @property
    def uses(self) -> tuple[PackUse, ...]:
        """What the packs that are in use contributed, for the report."""
        selection = self.saturator.selection
        fired = {rule for found in self.found.values() for rule, count in found.saturation.matches.items() if count}
        return tuple(
            PackUse(
                pack.name,
                len(pack.rules),
                sum(rule.name in fired for rule in pack.rules),
                tuple(rule.name for rule in pack.rules if rule.name not in selection.foreign),
                pack.reference,
            )
            for pack in selection.packs
        )

    def explore(self, regions: Iterable[Region] | None = None) -> None:
        """Saturate regions, all of them unless told which, until the time for it is used up."""
        chosen = list(self.regions if regions is None else regions)
        until = min(time.monotonic() + SATURATION_SECONDS, self.run.deadline(SATURATION_SHARE))
        limits = self.run.limits(READING_SHARE)
        left = until - time.monotonic()
        share = Budget(seconds=min(REGION_SECONDS, left, 4 * left / max(1, len(chosen))))
        self.saturator.begin([(region.program, share) for region in chosen], until)
        for number, region in enumerate(chosen):
            left = until - time.monotonic()
            late = left <= 0 and not self.saturator.ready(region.program)
            if late or (reason := limits.reached()):
                self.run.revert(region, OUT_OF_TIME if late else reason)
                continue
            self.run.progress(Progress("saturate", f"region {region.index}", number, len(chosen)))
            # No region takes the time of all that follow.
            budget = Budget(seconds=min(REGION_SECONDS, left, 4 * left / (len(chosen) - number)))
            with self._or_revert(region):
                self._explore(region, budget, until)

    def _explore(self, region: Region, budget: Budget, until: float) -> None:
        while True:
            with self.run.phase("saturate"):
                found = self.saturator.saturate(region.program, budget, until)
            if self.portable is None and len(region.program.definitions) >= LARGE:
                self.run.expect_kernels()
            with self.run.phase("extract"):
                try:
                    problem = self._problem(found.snapshot, region.program.outputs)
                except LimitReached:
                    raise
                except Exception as error:
                    suspects = self.saturator.suspects(found)
                    if not suspects:
                        raise
                    for pack in suspects:
                        self.saturator.drop(pack, f"no plan can be read from what its rules made: {error}")
                    continue
            self.found[region.index] = found
            prefix = f"{self.prefix}{region.index}s"
            self.searches[region.index] = Search(problem, region.program, prefix, self._beside(region))
            return

    def _problem(self, snapshot: Snapshot, outputs: Sequence[str]) -> Problem:
        """What there is to choose from: what is good for the end, and what is fast where there is more than one end."""
        if self.objective is not None:
            by = self._priced(snapshot, self.objective)
            fast = self.ready(self._priced(snapshot, Latency())).problem(outputs)
            return with_others(self.ready(by).problem(outputs), fast, lambda found: by.priced(found.info))
        problem = self.ready(self._timed(snapshot)).problem(outputs)
        if self.run.options.peak_limit is None:
            return problem
        # Kernels that move few bytes need few buffers, and compute less anew than those of the fewest buffers.
        small = self.ready(self._priced(snapshot, Traffic())).problem(outputs)
        return with_others(problem, small, seconds_alone)

    def _beside(self, region: Region) -> int:
        """Bytes that the rest of the model holds meanwhile, where memory is limited."""
        if self.model is None or not self.run.options.peak_limit:
            return 0
        return beside(self.model, set(region.nodes))

    def _timed(self, snapshot: Snapshot) -> Extraction:
        if self.portable is None:
            return Extraction(snapshot, self.device, self.unavailable)
        return PortableExtraction(snapshot, self.portable, self.unavailable)

    def _priced(self, snapshot: Snapshot, model: CostModel) -> PricedExtraction:
        written = None if self.portable is None else Expressible(self.portable)
        return PricedExtraction(snapshot, model, written, self.unavailable)

    def ready(self, extraction: Extraction) -> Extraction:
        """The same extraction, within the limits of the run and as free with NaN as the rules are."""
        extraction.check = self.run.limits(READING_SHARE).check
        extraction.any_order = self.saturator.selection.fp == "real"
        return extraction

    @contextmanager
    def _or_revert(self, region: Region) -> Iterator[None]:
        """Whatever fails inside, the region's original nodes remain."""
        try:
            yield
        except EgraphOptError as error:
            if self.objective is not None and isinstance(error, UsageError):
                raise  # the user's cost model is wrong, not the region
            self.run.revert(region, str(error))
        except RecursionError:
            self.run.revert(region, "its terms are nested too deeply")
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # egglog's panics are not Exceptions
            self.run.revert(region, f"internal error: {type(error).__name__}: {error}")

    def vet(self, prover: Prover, measure: Measure) -> None:
        """Verify the plans of regions in which foreign rules fired; packs that lie are dropped and their regions
        explored and ``measure``d again without them.
        """
        innocent: set[int] = set()
        while True:
            suspicious = [i for i in sorted(self.found) if i not in innocent and self.saturator.suspects(self.found[i])]
            wrong = self._wrong(suspicious, prover)
            if not wrong:
                return
            guilty: dict[str, str] = {}
            for index in wrong:
                guilty |= self.saturator.blame(self.found[index])
            if not guilty:
                index, reason = next(iter(wrong.items()))
                guilty = self._tried_without(index, reason, prover, measure)
                if not guilty:
                    innocent.add(index)
            touched = [i for i in sorted(self.found) if set(self.saturator.suspects(self.found[i])) & set(guilty)]
            for pack, reason in guilty.items():
                self.saturator.drop(pack, reason)
            self._again(touched, measure)

    def _wrong(self, indices: Iterable[int], prover: Prover) -> dict[int, str]:
        """The regions of these whose plan is wrong or cannot be built, and why."""
        plans = {i: item.plan for i in indices if (item := self.searches[i].outcome) is not None}
        if not plans:
            return {}
        self.run.progress(Progress("verify", "plans of foreign rules"))
        with self.run.phase("build and verify"):
            _, reverted = prover.prove(plans)
        return {
            int(entry.region): entry.reason for entry in reverted if entry.reason not in (OUT_OF_TIME, OUT_OF_MEMORY)
        }

    def _tried_without(self, index: int, reason: str, prover: Prover, measure: Measure) -> dict[str, str]:
        """The packs of a region whose plan is right once one of their rules, one of them or all of them are gone."""
        before, selection = (self.found[index], self.searches[index]), self.saturator.selection
        packs = self.saturator.suspects(self.found[index])
        fired = [rule for rule in selection.foreign if self.found[index].saturation.matches.get(rule)]
        trials: list[tuple[Selection, tuple[str, ...], str]] = []
        for rule in fired if len(fired) <= RULES_TRIED else ():
            trials.append((selection.switched_off(rule), (selection.foreign[rule],), f"without its rule {rule}"))
        for some in dict.fromkeys([*((pack,) for pack in packs), packs]):
            trials.append((selection.without(some), some, "without it"))
        for tried, blamed, how in trials:
            if time.monotonic() > prover.deadline:
                break
            self.saturator.selection = tried
            self._again([index], measure)
            right = index in self.searches and not self._wrong([index], prover)
            self.saturator.selection = selection
            self.found[index], self.searches[index] = before
            if right:
                return dict.fromkeys(blamed, f"a candidate was wrong ({reason}); {how} it is right")
        return {}

    def _again(self, indices: Sequence[int], measure: Measure) -> None:
        for index in indices:
            del self.found[index], self.searches[index]
        self.explore(region for region in self.regions if region.index in indices)
        new = [self.searches[index] for index in indices if index in self.searches]
        if new:
            measure(new)


def _record(index: int, found: Saturated) -> Saturation:
    done = found.saturation
    rounds = tuple(SaturationRound(r.phase, r.enodes, r.seconds, r.before) for r in done.rounds)
    return Saturation(str(index), rounds, done.stop, dict(done.matches), dict(sorted(done.made.items())))
