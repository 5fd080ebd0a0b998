"""How an e-graph grew, as text: e-nodes and seconds of every round, and the rules that made the most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# Rules shown in the table.
TOP_RULES = 12


def growth_table(
    rounds: Sequence[tuple[str, int, int, float]],
    matches: Mapping[str, int],
    made: Mapping[str, int],
    stop: str,
    rules: int = TOP_RULES,
) -> str:
    """Rounds as (phase, e-nodes before, e-nodes after, seconds), then the ``rules`` busiest rules.

    ``matches`` and ``made`` count matches and recorded e-nodes per rule; ``stop`` is "saturated" or names the limit.
    """
    rows = [("round", "phase", "e-nodes", "new", "seconds")]
    for number, (phase, before, after, seconds) in enumerate(rounds, 1):
        new = f"{after - before:+,}" if after != before else "-"
        rows.append((str(number), phase, f"{after:,}", new, f"{seconds:.3f}"))
    lines = _aligned(rows, left=(1,))
    total = rounds[-1][2] if rounds else 0
    end = "every phase ran to its end" if stop == "saturated" else f"stopped by the limit of {stop}"
    lines.append(f"{total:,} e-nodes in {sum(row[3] for row in rounds):.2f} s; {end}")
    busiest = sorted({*matches, *made}, key=lambda name: (-made.get(name, 0), -matches.get(name, 0), name))
    shown = [name for name in busiest if matches.get(name, 0) or made.get(name, 0)]
    if shown:
        counts = [(name, f"{made.get(name, 0):,}", f"{matches.get(name, 0):,}") for name in shown[:rules]]
        lines += ["", *_aligned([("rule", "e-nodes made", "matches"), *counts], left=(0,))]
        if len(shown) > rules:
            lines.append(f"and {len(shown) - rules} rules that made fewer")
    return "\n".join(lines)


def _aligned(rows: Sequence[tuple[str, ...]], left: tuple[int, ...]) -> list[str]:
    """Rows as columns: those of ``left`` to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
