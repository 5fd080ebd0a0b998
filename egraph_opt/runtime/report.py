"""What one optimization did, as data: printed as a table, kept as JSON.

Every part that a run did not reach keeps its empty default, so a report can be written at any point of the pipeline.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from egraph_opt.runtime.artifacts import Publication
from egraph_opt.runtime.quantities import byte_text, quantity
from egraph_opt.runtime.records import from_plain, to_plain
from egraph_opt.runtime.timing import Comparison, Spread, significant

SCHEMA = 1
# A plan is the cheapest where none can be cheaper by more than this share: sums are rounded.
PROVEN = 1e-6


@dataclass(frozen=True, slots=True)
class Latency:
    """End-to-end latencies in milliseconds, interleaved, and the spread of original / optimized per round."""

    original: Spread
    optimized: Spread
    speedup: Spread
    rounds: int = 0

    @classmethod
    def of(cls, found: Comparison) -> Self:
        """What a comparison of the original with the optimized model says."""
        return cls(found.a, found.b, found.ratio, found.rounds)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Errors of the optimized model.

    `max_absolute` and `max_relative` compare it with the original in onnxruntime; relative errors are relative to the
    largest magnitude of the output. The float64 errors (relative, too) compare both with a float64 reference and are
    None where the reference could not be computed. `inputs` counts the random inputs, drawn from `seed`.
    """

    max_absolute: float
    max_relative: float
    original_float64: float | None = None
    optimized_float64: float | None = None
    inputs: int = 1
    seed: int = 0


@dataclass(frozen=True, slots=True)
class SaturationRound:
    """One round of one region's saturation: its phase, the e-nodes after it, its seconds, and the e-nodes before it."""

    phase: str
    e_nodes: int
    seconds: float = 0.0
    before: int = 0


@dataclass(frozen=True, slots=True)
class Saturation:
    """The saturation of one region; `stop_reason` is "saturated" or names the limit.

    `rule_matches` and `rule_e_nodes` count the matches of every rule and the e-nodes it is recorded to have made.
    """

    region: str
    rounds: tuple[SaturationRound, ...]
    stop_reason: str
    rule_matches: dict[str, int] = field(default_factory=dict)
    rule_e_nodes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PackUse:
    """A rule pack that was in use: how many rules it has, how many of them fired, and which were switched `off` or not
    allowed by the floating-point policy."""

    name: str
    rules: int
    fired: int
    off: tuple[str, ...] = ()
    reference: str = ""


@dataclass(frozen=True, slots=True)
class RevertedRegion:
    """A region that kept its original nodes, and why."""

    region: str
    reason: str
    nodes: int = 0


@dataclass(frozen=True, slots=True)
class Specialization:
    """How a model that chooses its program by shape does for some `lengths` of symbolic dimensions.

    `dropped` says why there is no program for them; `other` marks lengths that the original is kept for.
    """

    lengths: dict[str, int]
    latency: Latency | None = None
    accuracy: Accuracy | None = None
    dropped: str = ""
    other: bool = False


@dataclass(frozen=True, slots=True)
class Candidates:
    """Library calls and kernels considered; the others came from the profile database or were never needed."""

    total: int = 0
    measured: int = 0
    from_database: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Expectation:
    """What the chosen plans should take by themselves, in seconds, and how good a choice they are.

    No plan of the `alternatives`, the steps there were to choose from, takes less than `bound` seconds: what was not
    measured takes at least what its work takes at the machine's highest rates; where nothing is measured, what it is
    expected to take. 0 where no bound is known. `measurements` is how many different ones of them were measured, now or
    earlier; of the chosen plans' steps, `unmeasured` were not.
    """

    seconds: float
    bound: float
    alternatives: int
    measurements: int = 0
    unmeasured: int = 0

    @property
    def excess(self) -> float | None:
        """By what share the cheapest possible plan may be exceeded; 0 is a proof, None unknown."""
        return max(0.0, self.seconds / self.bound - 1) if self.bound > 0 else None

    def __str__(self) -> str:
        excess, count = self.excess, f"{self.alternatives:,} alternatives"
        if excess is None:
            choice = f"chosen from {count}"
        elif not self.measurements:
            above = "" if excess <= PROVEN else f"at most {max(excess, 0.0005):.1%} above "
            choice = f"{above}the cheapest of {count} by estimates"
        elif excess <= PROVEN:
            choice = f"proven cheapest of {count}"
        else:
            choice = f"proven to be within {max(excess, 0.0005):.1%} of the cheapest of {count}"
        measured = f"{self.measurements:,} measured"
        share = f" ({self.measurements / self.alternatives:.1%})" if self.measurements and self.alternatives else ""
        estimated = f", {self.unmeasured:,} of its own steps estimated" if self.unmeasured else ""
        return f"{quantity(self.seconds, 's')} expected, {choice}; {measured}{share}{estimated}"


@dataclass(frozen=True, slots=True)
class RuntimeLatency:
    """What a runtime, `name` and `version`, needs for the original and for the best model found for it.

    Each is compared with the original in onnxruntime, whose latency stands on the left; None where there is none.
    """

    name: str
    version: str
    original: Latency | None = None
    optimized: Latency | None = None


@dataclass(frozen=True, slots=True)
class Objective:
    """What a program was chosen by instead of its latency: a cost model by `name`, the `unit` it is in, and what it
    says of the parts inside the algebra `before` and `after`."""

    name: str
    unit: str
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class PeakMemory:
    """Bytes of an arena for all intermediate buffers and outputs, in the order of the nodes; None where unknown."""

    original: int | None = None
    optimized: int | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """Everything worth knowing about one optimized model.

    `operators_before` and `operators_after` count nodes by operator type; generated kernels are counted apart in
    `generated_kernels` and listed by name in `kernels`. `seconds` are per phase in the order they ran.
    `unchanged_because` is empty when the model changed, otherwise the message for the user. `rules` is the choice of
    rules as text, `packs` are those from outside. `specializations` are the lengths of symbolic dimensions that
    programs were asked for, and others that were tested. `objective` is there where the program was not chosen by its
    latency, `expectation` where it was. `runtime` is what the model is for, `runtimes` are all that took part where
    others than onnxruntime did. `warnings` are told even where `notes` are not wanted.
    """

    model: str
    target: str = "cpu"
    portable: bool = False
    operators_before: dict[str, int] = field(default_factory=dict)
    operators_after: dict[str, int] = field(default_factory=dict)
    generated_kernels: int = 0
    kernels: tuple[str, ...] = ()
    latency: Latency | None = None
    accuracy: Accuracy | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    saturation: tuple[Saturation, ...] = ()
    candidates: Candidates = Candidates()
    unchanged_because: str = ""
    reverted: tuple[RevertedRegion, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    rules: str = ""
    packs: tuple[PackUse, ...] = ()
    specializations: tuple[Specialization, ...] = ()
    objective: Objective | None = None
    peak_memory: PeakMemory = PeakMemory()
    runtime: str = "onnxruntime"
    runtimes: tuple[RuntimeLatency, ...] = ()
    expectation: Expectation | None = None

    @property
    def changed(self) -> bool:
        """Whether the written model differs from the original."""
        return not self.unchanged_because

    @property
    def rule_matches(self) -> dict[str, int]:
        """Matches per rule over all regions, most frequent first."""
        total: dict[str, int] = {}
        for region in self.saturation:
            for rule, count in region.rule_matches.items():
                total[rule] = total.get(rule, 0) + count
        return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and strings; infinities and NaN become strings, as JSON has none."""
        return {"schema": SCHEMA, **to_plain(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. Raises InputRejected naming the field that is missing, unknown or of a wrong
        type."""
        return from_plain(cls, {key: value for key, value in data.items() if key != "schema"})

    def write_json(self, path: Path) -> None:
        """Write the report atomically, keys in declaration order."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        with Publication() as publication:
            publication.stage(path).write_text(text + "\n", encoding="utf-8")

    def table(self) -> str:
        """The before/after table, ready to print."""
        return "\n".join(_table_lines(self))

    def growth(self) -> str:
        """How the e-graph of every region grew, ready to print."""
        from egraph_opt.egraph.growth import growth_table

        parts = []
        for region in self.saturation:
            rounds = [(r.phase, r.before, r.e_nodes, r.seconds) for r in region.rounds]
            table = growth_table(rounds, region.rule_matches, region.rule_e_nodes, region.stop_reason)
            parts.append(f"region {region.region}\n{table}")
        return "\n\n".join(parts)


def _table_lines(report: Report) -> list[str]:
    kind = "portable" if report.portable else "native"
    rows: list[tuple[str, str, str]] = [("", "before", "after")]
    after = sum(report.operators_after.values()) + report.generated_kernels
    rows.append(("operators", *_pair(sum(report.operators_before.values()), after)))
    for operator in _operators_in_order(report):
        rows.append(
            (f"  {operator}", *_pair(report.operators_before.get(operator, 0), report.operators_after.get(operator, 0)))
        )
    rows.append(("  generated kernels", *_pair(0, report.generated_kernels)))
    latency, accuracy = report.latency, report.accuracy
    if latency:
        rows.append(("latency, ms (quartiles)", str(latency.original), str(latency.optimized)))
        rows.append(
            ("speed-up", "", f"{latency.speedup.median:.2f}x ({latency.speedup.lower:.2f}–{latency.speedup.upper:.2f})")
        )
    if accuracy:
        rows.append(("largest error, absolute", "", f"{accuracy.max_absolute:.1e}"))
        rows.append(("largest error, of the range", "", f"{accuracy.max_relative:.1e}"))
        if accuracy.original_float64 is not None or accuracy.optimized_float64 is not None:
            rows.append(
                ("error against float64", _error(accuracy.original_float64), _error(accuracy.optimized_float64))
            )
    rows += _chosen_by(report)
    for found in report.runtimes:
        rows += _run_by(found)
    if report.runtimes:
        rows.append(("run by", "", report.runtime))
    for entry in report.specializations:
        rows += _specialized(entry)
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{report.model}  ({report.target}, {kind})"]
    lines += [
        f"  {label:<{widths[0]}}  {before:>{widths[1]}}  {after:>{widths[2]}}".rstrip() for label, before, after in rows
    ]
    lines += [f"  rules: {', '.join(map(_pack, report.packs))}"] if report.packs else []
    lines += [f"  plan: {report.expectation}"] if report.expectation is not None else []
    lines += [f"  time spent: {_seconds(report.seconds)}"] if report.seconds else []
    lines += [f"  kept unchanged: {report.unchanged_because}"] if report.unchanged_because else []
    lines += [f"  region {entry.region} reverted: {entry.reason}" for entry in report.reverted]
    lines += [f"  note: {note}" for note in report.notes]
    lines += [f"  warning: {warning}" for warning in report.warnings]
    return lines


def _chosen_by(report: Report) -> list[tuple[str, str, str]]:
    rows = []
    peak, objective = report.peak_memory, report.objective
    if peak.original is not None or peak.optimized is not None:
        before, after = (_size(size) for size in (peak.original, peak.optimized if report.changed else peak.original))
        rows.append(("intermediate buffers, peak", before, after))
    if objective is not None:
        before, after = (quantity(value, objective.unit) for value in (objective.before, objective.after))
        rows.append((f"{objective.name} (estimated)", before, after))
    return rows


def _size(size: int | None) -> str:
    return "unknown" if size is None else byte_text(size)


def _run_by(found: RuntimeLatency) -> list[tuple[str, str, str]]:
    """What a runtime needs for the original and for its best model, and how much faster than onnxruntime that is."""
    name = f"{found.name} {found.version}"
    pair = (found.original, found.optimized)
    latencies = ["-" if latency is None else str(latency.optimized) for latency in pair]
    ratios = ["-" if latency is None else f"{latency.speedup.median:.2f}x" for latency in pair]
    return [(f"in {name}, ms", latencies[0], latencies[1]), (f"in {name}, speed-up", ratios[0], ratios[1])]


def _specialized(entry: Specialization) -> list[tuple[str, str, str]]:
    name = ", ".join(f"{symbol}={length}" for symbol, length in entry.lengths.items())
    name = f"any other, as {name}" if entry.other else name
    rows = []
    if entry.latency is not None:
        latency = entry.latency
        rows.append((f"{name}: latency, ms", str(latency.original), str(latency.optimized)))
        rows.append((f"{name}: speed-up", "", f"{latency.speedup.median:.2f}x"))
    if entry.accuracy is not None and not entry.dropped:
        rows.append((f"{name}: largest error, of the range", "", f"{entry.accuracy.max_relative:.1e}"))
    if entry.dropped:
        rows.append((f"{name}: the original runs", "", ""))
    return rows


def _pack(pack: PackUse) -> str:
    off = f", not used: {', '.join(pack.off)}" if pack.off else ""
    return f"{pack.name} ({pack.rules} rule{'s' if pack.rules != 1 else ''}, {pack.fired} fired{off})"


def _operators_in_order(report: Report) -> list[str]:
    """Operator types, most frequent before the optimization first, then the new ones."""
    before, after = report.operators_before, report.operators_after
    return sorted({*before, *after}, key=lambda name: (-before.get(name, 0), -after.get(name, 0), name))


def _pair(before: int, after: int) -> tuple[str, str]:
    return str(before or "-"), str(after or "-")


def _error(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1e}"


def _seconds(phases: Mapping[str, float]) -> str:
    parts = ", ".join(f"{phase} {significant(seconds, 2)}" for phase, seconds in phases.items())
    return f"{significant(sum(phases.values()))} s ({parts})"
