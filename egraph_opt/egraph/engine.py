"""The e-graph itself: egglog sorts for terms, rule groups run on them, and the record of who derived what.

``Node`` mirrors every constructor and is never unioned: ``(NView x m)`` names the e-node ``(View x m)``, so the
relation ``derived`` can record which rule made which e-node equal to which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from egglog import bindings

from egraph_opt.egraph import analysis, encoding, families
from egraph_opt.egraph.compiler import Compiled, Question, Row, compile_rule, members_table
from egraph_opt.egraph.encoding import added, application, literal, named, union
from egraph_opt.egraph.language import Rule, RuleGroup
from egraph_opt.egraph.pattern import CONSTRUCTORS
from egraph_opt.errors import EgraphOptError
from egraph_opt.ir.program import Program


def _schema() -> str:
    lines = ["(sort Tensor)", "(sort Buffer)", "(sort Args)", "(sort Node)"]
    for name, (inputs, output) in CONSTRUCTORS.items():
        lines.append(f"(constructor {name} ({' '.join(inputs)}) {output})")
        lines.append(f"(constructor N{name} ({' '.join(inputs)}) Node)")
    lines += ["(relation derived (String Node Node))", "(relation original (Tensor))"]
    return "\n".join(lines)


@dataclass(frozen=True)
class RoundReport:
    """What one run of some rule groups did."""

    changed: bool
    matches: Mapping[str, int]


class EGraph:
    """An egglog e-graph over tensor terms.

    Rule groups become egglog rulesets of the same name; raw egglog text can be run beside them with :meth:`run_text`.
    ``watch`` is told what runs next: a group and the rule whose Python function is called, or "" for egglog itself.
    """

    def __init__(self, watch: Callable[[str, str], None] | None = None) -> None:
        self.egglog = bindings.EGraph()
        self._watch = watch or (lambda _group, _rule: None)
        self.groups: dict[str, RuleGroup] = {}
        self._analyses: list[str] = []
        self._rules: dict[str, str] = {}
        self._questions: dict[str, list[Question]] = {}
        self._families: dict[str, list[tuple[Rule, Compiled, set[tuple[tuple[str, ...], ...]]]]] = {}
        self._commands: dict[str, list[bindings._Command]] = {}
        self.run_text(_schema())

    def run_text(self, text: str) -> list[bindings._CommandOutput]:
        """Run egglog commands given as text (short ones: its parser's memory is quadratic)."""
        return self.egglog.run_program(*self.egglog.parse_program(text))

    def add_rules(self, groups: Iterable[RuleGroup]) -> None:
        """Declare rule groups; a group that is already there is left alone.

        Raises EgraphOptError when a rule of another group has the same name.
        """
        for group in groups:
            if group.name in self.groups:
                if self.groups[group.name] is not group and self.groups[group.name] != group:
                    raise EgraphOptError(f"two different rule groups are named {group.name!r}; rename one")
                continue
            for rule in group.rules:
                if rule.name in self._rules:
                    raise EgraphOptError(
                        f"rule {rule.name!r} is in group {self._rules[rule.name]!r} already; rename that of"
                        f" {group.name!r}"
                    )
                self._rules[rule.name] = group.name
            self.groups[group.name] = group
            self._add_ruleset(group.name)
            for rule in group.rules:
                for name in sorted(analysis.wanted(rule)):
                    self._add_analysis(name)
                compiled = compile_rule(rule, group.name)
                self.run_text(compiled.text)
                if compiled.question is not None:
                    self._questions.setdefault(group.name, []).append(compiled.question)
                if rule.combine is not None:
                    self._families.setdefault(group.name, []).append((rule, compiled, set()))

    def _add_ruleset(self, name: str) -> None:
        self.run_text(f"(ruleset {name}) (ruleset {name}-find) (ruleset {name}-forget)")

    def _add_analysis(self, name: str) -> None:
        if name not in self._analyses:
            self._analyses.append(name)
            self._add_ruleset(name)
            self.run_text(analysis.TEXTS[name])
            self._questions[name] = analysis.questions(name)

    @contextmanager
    def apart(self, watch: Callable[[str, str], None] | None = None) -> Iterator[None]:
        """Programs that are added inside, and all that comes of them, are forgotten afterwards; rules stay.

        Declaring the built-in rules takes egglog a quarter of a second. Add all rules before: those that are added
        inside are lost. After an exception inside the e-graph is of no use any more.
        """
        before, self._watch = self._watch, watch or self._watch
        self.run_text("(push)")
        yield
        self.run_text("(pop)")
        self._watch = before
        for questions in self._questions.values():
            for question in questions:
                question.answered.clear()
        for families_of_group in self._families.values():
            for _, _, seen in families_of_group:
                seen.clear()

    def add_program(self, program: Program, known: Iterable[str] = ()) -> None:
        """Add every definition; the tensor ``name`` is then the class of ``(Named name)``.

        Sources named in ``known`` are tensors of programs that were added before.
        """
        defined = set(known)
        commands: list[bindings._Command] = []
        for name, term in program.definitions:
            commands.append(union(named(name), encoding.encode(term, defined)))
            # Every tensor of the program may be materialized, whatever the rules do.
            commands.append(union(named(name), application("Read", application("Compute", named(name)))))
            for part in encoding.pointwise_parts(term):
                commands.append(added(application("original", encoding.encode(part, defined))))
            defined.add(name)
        for output in program.outputs:
            if output not in defined:
                source = next(s for s in program.inputs if s.name == output)
                read = application("Read", encoding.encode_buffer(source, set()))
                commands.append(union(named(output), read))
        self.egglog.run_program(*commands)

    def run(self, *groups: str, until_saturated: bool = False) -> RoundReport:
        """Run rule groups once (or until nothing changes), all matches of a group before any of its results."""
        matches: dict[str, int] = {}
        changed = False
        for group in groups:
            while True:
                for name in self._analyses:
                    self._saturate_analysis(name)
                combined = self._answer(group)
                again = any(combined.values())
                for rule, number in combined.items():
                    matches[rule] = matches.get(rule, 0) + number
                again |= self._run_ruleset(group, matches)
                changed = changed or again
                if not (again and until_saturated):
                    break
        return RoundReport(changed, matches)

    def _run_ruleset(self, name: str, matches: dict[str, int]) -> bool:
        changed = False
        self._watch(name, "")
        for output in self._run_cached(f"(run-schedule (run {name}))"):
            report = output.report  # type: ignore[union-attr]
            changed = changed or report.updated
            for rule, number in report.num_matches_per_rule.items():
                matches[rule] = matches.get(rule, 0) + number
        return changed

    def _saturate_analysis(self, name: str) -> None:
        while True:
            self._answer(name)
            if not self._run_ruleset(name, {}):
                return

    def _run_cached(self, text: str) -> list[bindings._CommandOutput]:
        if text not in self._commands:
            self._commands[text] = self.egglog.parse_program(text)
        return self.egglog.run_program(*self._commands[text])

    def _answer(self, group: str) -> dict[str, int]:
        """Collect the questions of a group's new matches and answer those that are new; matches of ``together``."""
        if group not in self._questions and group not in self._families:
            return {}
        self._watch(group, "")
        self._run_cached(f"(run-schedule (run {group}-find))")
        commands: list[bindings._Command] = []
        for question in self._questions.get(group, ()):
            for arguments in self._rows(question.table):
                if arguments in question.answered:
                    continue
                question.answered.add(arguments)
                given = [literal(argument) for argument in arguments]
                self._watch(group, question.rule)
                for record in question.answer(arguments):
                    commands.append(added(application(question.table + "!", *given, *map(literal, record))))
        matches: dict[str, int] = {}
        for rule, compiled, seen in self._families.get(group, ()):
            self._watch(group, rule.name)
            answers = families.combined(rule, compiled, seen, *self._printed(members_table(rule)))
            matches[rule.name] = len(answers)
            commands += [command for answer in answers for command in answer]
        self._watch(group, "")
        self.egglog.run_program(*commands)
        self._run_cached(f"(run-schedule (run {group}-forget))")
        return matches

    def _printed(self, table: str) -> tuple[Any, Sequence[Any]]:
        """The term table of egglog's print of a relation, and its rows in it."""
        printed: Any = self._run_cached(f"(print-function {table})")[0]
        return printed.termdag, [term for term, _ in printed.terms]

    def _rows(self, table: str) -> Iterator[Row]:
        """The rows of a relation of texts and integers."""
        terms, rows = self._printed(table)
        for row in rows:
            yield tuple(terms.get(child).value.value for child in terms.get(row).args)

    def size(self) -> int:
        """Number of e-nodes (rows of the tensor and buffer constructors)."""
        printed: Any = self._run_cached("(print-size)")[0]
        return sum(int(size) for name, size in printed.sizes if name in CONSTRUCTORS and name != "Named")
