"""What a check of rules found: a table, JUnit XML, an error."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

from egraph_opt.egraph.language import Approximate, Exactness
from egraph_opt.errors import VerificationFailed
from egraph_opt.testing.reproduction import Counterexample

Stop = Literal["done", "time"]


class RuleCheckFailed(VerificationFailed, AssertionError):  # noqa: N818 - reads as what happened
    """Some rules are wrong or were never seen to fire; the text holds a reproduction for each."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class RuleReport:
    """How one rule did: ``examples`` programs, on ``fired`` of which it fired, with so many ``matches``.

    ``checked`` is the number of e-nodes that were evaluated. ``evidence`` is the weakest of the arithmetics that were
    needed to see the two sides equal. ``stop`` is "time" where the limit ended the search.
    """

    rule: str
    group: str
    exactness: Exactness
    examples: int
    fired: int
    matches: int
    checked: int
    seconds: float
    evidence: str = ""
    stop: Stop = "done"
    counterexample: Counterexample | None = None

    @property
    def ok(self) -> bool:
        """The rule fired and was never wrong."""
        return self.counterexample is None and self.fired > 0

    @property
    def message(self) -> str:
        """What is wrong, with a reproduction; empty for a rule that passed."""
        if self.counterexample is not None:
            return self.counterexample.reproduction
        if self.fired:
            return ""
        ended = "; the time limit ended the search" if self.stop == "time" else ""
        return (
            f"rule {self.rule!r} never fired on {self.examples} programs grown from its left-hand side{ended}; pass"
            " programs on which it fires: check_rule(rule, programs=[…]) or a hypothesis strategy of programs"
        )

    @property
    def outcome(self) -> str:
        """One or two words: ok, wrong, never fired."""
        return "ok" if self.ok else "wrong" if self.counterexample is not None else "never fired"


@dataclass(frozen=True)
class CheckReport:
    """One report for every rule, in the order of the rules."""

    rules: tuple[RuleReport, ...]

    @property
    def ok(self) -> bool:
        """All rules passed."""
        return all(report.ok for report in self.rules)

    @property
    def failures(self) -> tuple[RuleReport, ...]:
        """The reports of the rules that did not pass."""
        return tuple(report for report in self.rules if not report.ok)

    def table(self) -> str:
        """A table for the terminal, the failures in full below it."""
        rows = [("group", "rule", "claims", "programs", "fired", "e-nodes", "seconds", "holds", "outcome")]
        for r in self.rules:
            claims = f"approximate({r.exactness.bound})" if isinstance(r.exactness, Approximate) else r.exactness
            numbers = (str(r.examples), str(r.fired), str(r.checked), f"{r.seconds:.1f}")
            rows.append((r.group, r.rule, claims, *numbers, r.evidence, r.outcome))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        right = (False, False, False, True, True, True, True, False, False)
        lines = [
            "  ".join(cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right, strict=True))
            for row in rows
        ]
        total = f"{len(self.rules)} rules, {len(self.failures)} failed, {sum(r.seconds for r in self.rules):.1f} s"
        return "\n".join([*(line.rstrip() for line in lines), total, *("\n" + r.message for r in self.failures)])

    def write_junit(self, path: Path | str) -> None:
        """JUnit XML with one test case per rule; the message of a failure is its reproduction."""
        suite = ElementTree.Element(
            "testsuite",
            name="egraph-opt rules",
            tests=str(len(self.rules)),
            failures=str(len(self.failures)),
            errors="0",
            skipped="0",
            time=f"{sum(r.seconds for r in self.rules):.3f}",
        )
        for report in self.rules:
            group = report.group or "rules"
            case = ElementTree.SubElement(
                suite, "testcase", classname=group, name=report.rule, time=f"{report.seconds:.3f}"
            )
            if not report.ok:
                kind = report.counterexample.kind if report.counterexample else report.outcome
                failure = ElementTree.SubElement(case, "failure", type=report.outcome, message=_xml(kind))
                failure.text = _xml(report.message)
            shown = f"{report.examples} programs, fired on {report.fired}, {report.checked} e-nodes evaluated"
            ElementTree.SubElement(case, "system-out").text = shown
        tree = ElementTree.ElementTree(suite)
        ElementTree.indent(tree)
        tree.write(path, encoding="utf-8", xml_declaration=True)

    def raise_on_failure(self) -> None:
        """Raise RuleCheckFailed with the reproductions where some rule did not pass."""
        if not self.ok:
            raise RuleCheckFailed("\n\n".join(report.message for report in self.failures))


def _xml(text: str) -> str:
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", " ", text)
