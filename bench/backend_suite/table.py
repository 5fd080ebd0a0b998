"""The table: classes by optimizers, and the cases that are not right."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from bench.backend_suite.judge import CLASSES, Outcome

Entry = TypeVar("Entry")
# Of the reason of a case that is not right, this many characters are printed.
REASON_LENGTH = 200


@dataclass(frozen=True)
class Row:
    """What became of the cases of one optimizer; none where it is not installed. ``seconds`` of wall clock.

    ``processor_seconds`` of all processes together: what the row costs on a machine that is busy with other things.
    """

    name: str
    version: str
    setting: str
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    seconds: float = 0.0
    processor_seconds: float = 0.0

    def counts(self) -> dict[str, int]:
        """Cases by class; those that are unchanged are right, too."""
        found = Counter(outcome.kind for outcome in self.outcomes.values())
        return {kind: found[kind] + (found["unchanged"] if kind == "right" else 0) for kind in CLASSES}

    def wrong(self) -> dict[str, Outcome]:
        """The cases that are not right, by name."""
        return {name: outcome for name, outcome in self.outcomes.items() if not outcome.right}


def sample(entries: Sequence[Entry], count: int, rotation: int) -> list[Entry]:
    """At most ``count`` entries far apart; as many rotations as it takes go through all of them."""
    stride = -(-len(entries) // max(count, 1)) or 1
    return list(entries[rotation % stride :: stride])[:count]


def table(rows: Sequence[Row]) -> str:
    """A Markdown table: a line for each class, a column for each optimizer."""
    lines = [["", *(f"{row.name} {row.version}" for row in rows)]]
    lines += [["cases", *(_shown(row, len(row.outcomes)) for row in rows)]]
    for kind in CLASSES:
        label = "of these unchanged" if kind == "unchanged" else kind
        lines.append([label, *(_shown(row, row.counts()[kind]) for row in rows)])
    lines.append(["seconds", *(_shown(row, round(row.seconds)) for row in rows)])
    lines.append(["processor seconds", *(_shown(row, round(row.processor_seconds)) for row in rows)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    text = []
    for line in lines:
        cells = zip(line, widths, strict=True)
        text.append(" | ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(cells)))
    settings = [f"{row.name}: {row.setting}" for row in rows if row.setting]
    return "\n".join([*(f"| {line} |" for line in text), "", *settings])


def complaints(rows: Sequence[Row]) -> str:
    """The cases that are not right, optimizer by optimizer, with the reasons."""
    lines = []
    for row in rows:
        wrong = row.wrong()
        if row.outcomes:
            lines.append(f"{row.name}: {len(wrong)} of {len(row.outcomes)} not right")
        lines += [f"  {name}: {outcome.kind}: {outcome.reason[:REASON_LENGTH]}" for name, outcome in wrong.items()]
    return "\n".join(lines)


def as_json(rows: Sequence[Row]) -> dict[str, Any]:
    """The rows for a JSON file."""
    return {
        "optimizers": [
            {
                "name": row.name,
                "version": row.version,
                "setting": row.setting,
                "cases": len(row.outcomes),
                "counts": row.counts(),
                "seconds": round(row.seconds, 1),
                "processor_seconds": round(row.processor_seconds, 1),
                "optimizing_seconds": round(sum(outcome.seconds for outcome in row.outcomes.values()), 1),
                "not_right": {
                    name: {"class": outcome.kind, "reason": outcome.reason} for name, outcome in row.wrong().items()
                },
            }
            for row in rows
        ]
    }


def _shown(row: Row, count: int) -> str:
    return str(count) if row.outcomes else "–"
