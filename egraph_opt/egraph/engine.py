"""The e-graph itself: egglog sorts for terms, rules compiled to egglog, and reading classes back.

``Node`` mirrors every constructor and is never unioned: ``(NView x m)`` names the e-node ``(View x m)``, so the
relation ``derived`` can record which rule made which e-node equal to which.

Python functions of rules are answered in batches: a *find* rule collects the distinct arguments of all matches in a
relation, Python answers those it was never asked before as rows of a second relation, and the rule itself joins its
pattern with them. So a function is called once for equal arguments, and the matching itself stays inside egglog.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import count
from typing import Any

from egglog import bindings

from egraph_opt.egraph import language, primitives
from egraph_opt.egraph.language import Constant, Field, Node, Pattern, Rule, RuleGroup, Variable
from egraph_opt.errors import EgraphOptError
from egraph_opt.ir.program import Program
from egraph_opt.ir.terms import (
    Apply,
    Buffer,
    Call,
    Compute,
    Fill,
    Read,
    Reduce,
    Reshape,
    Softmax,
    Source,
    Tensor,
    View,
    children,
)

CONSTRUCTORS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "Read": (("Buffer",), "Tensor"),
    "View": (("Tensor", "String"), "Tensor"),
    "Sum": (("Tensor", "i64"), "Tensor"),
    "Reduce": (("String", "Tensor", "i64"), "Tensor"),
    "Mul": (("Tensor", "Tensor"), "Tensor"),
    "Add": (("Tensor", "Tensor"), "Tensor"),
    "Apply1": (("String", "Tensor"), "Tensor"),
    "Apply2": (("String", "Tensor", "Tensor"), "Tensor"),
    "Softmax": (("Tensor", "i64"), "Tensor"),
    "Fill": (("String", "String"), "Tensor"),
    "Named": (("String",), "Tensor"),
    "Source": (("String", "String", "String"), "Buffer"),
    "Call": (("String", "String", "Args", "String"), "Buffer"),
    "Compute": (("Tensor",), "Buffer"),
    "Reshape": (("Buffer", "String"), "Buffer"),
    "Nil": ((), "Args"),
    "Cons": (("Buffer", "Args"), "Args"),
}
_REMEMBERED = ("Sum", "Call")


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
    """

    def __init__(self) -> None:
        self.egglog = bindings.EGraph()
        self.groups: dict[str, RuleGroup] = {}
        self._questions: dict[str, list[_Question]] = {}
        self._commands: dict[str, list[bindings._Command]] = {}
        self.run_text(_schema())

    def run_text(self, text: str) -> list[bindings._CommandOutput]:
        """Run egglog commands given as text (short ones: its parser's memory is quadratic)."""
        return self.egglog.run_program(*self.egglog.parse_program(text))

    def add_rules(self, groups: Iterable[RuleGroup]) -> None:
        """Declare rule groups; a group that is already there is left alone."""
        for group in groups:
            if group.name in self.groups:
                continue
            self.groups[group.name] = group
            self.run_text(f"(ruleset {group.name}) (ruleset {group.name}-find) (ruleset {group.name}-forget)")
            for rule in group.rules:
                compiler = _Compiler(rule, group.name)
                self.run_text(compiler.text())
                if compiler.question is not None:
                    self._questions.setdefault(group.name, []).append(compiler.question)

    def add_program(self, program: Program) -> None:
        """Add every definition; the tensor ``name`` is then the class of ``(Named name)``."""
        defined: set[str] = set()
        commands: list[bindings._Command] = []
        for name, term in program.definitions:
            expression = encode(term, defined)
            named = _call("Named", _text(name))
            commands.append(bindings.ActionCommand(bindings.Union(_SPAN, named, expression)))
            # Every tensor of the program may be materialized, whatever the rules do.
            materialized = _call("Read", _call("Compute", named))
            commands.append(bindings.ActionCommand(bindings.Union(_SPAN, named, materialized)))
            for part in _pointwise_parts(term):
                expression = _call("original", encode(part, defined))
                commands.append(bindings.ActionCommand(bindings.Expr_(_SPAN, expression)))
            defined.add(name)
        for output in program.outputs:
            if output not in defined:
                source = next(s for s in program.inputs if s.name == output)
                commands.append(
                    bindings.ActionCommand(
                        bindings.Union(
                            _SPAN, _call("Named", _text(output)), _call("Read", encode_buffer(source, set()))
                        )
                    )
                )
        self.egglog.run_program(*commands)

    def run(self, *groups: str, until_saturated: bool = False) -> RoundReport:
        """Run rule groups once (or until nothing changes), all matches of a group before any of its results."""
        matches: dict[str, int] = {}
        changed = False
        for group in groups:
            while True:
                self._answer(group)
                again = False
                for output in self._run_cached(f"(run-schedule (run {group}))"):
                    report = output.report  # type: ignore[union-attr]
                    again = again or report.updated
                    for rule, number in report.num_matches_per_rule.items():
                        matches[rule] = matches.get(rule, 0) + number
                changed = changed or again
                if not (again and until_saturated):
                    break
        return RoundReport(changed, matches)

    def _run_cached(self, text: str) -> list[bindings._CommandOutput]:
        if text not in self._commands:
            self._commands[text] = self.egglog.parse_program(text)
        return self.egglog.run_program(*self._commands[text])

    def _answer(self, group: str) -> None:
        """Collect the questions of a group's new matches and answer those that are new."""
        if group not in self._questions:
            return
        self._run_cached(f"(run-schedule (run {group}-find))")
        rows: list[bindings._Command] = []
        for question in self._questions[group]:
            for arguments in self._rows(question.table):
                if arguments in question.answered:
                    continue
                question.answered.add(arguments)
                given = [_literal(argument) for argument in arguments]
                for record in primitives.answers(question.rule, arguments):
                    row = _call(question.table + "!", *given, *map(_literal, record))
                    rows.append(bindings.ActionCommand(bindings.Expr_(_SPAN, row)))
        self.egglog.run_program(*rows)
        self._run_cached(f"(run-schedule (run {group}-forget))")

    def _rows(self, table: str) -> Iterator[tuple[str | int, ...]]:
        """The rows of a relation of texts and integers."""
        printed: Any = self._run_cached(f"(print-function {table})")[0]
        terms = printed.termdag
        for term, _ in printed.terms:
            yield tuple(terms.get(child).value.value for child in terms.get(term).args)

    def size(self) -> int:
        """Number of e-nodes (rows of the tensor and buffer constructors)."""
        printed: Any = self._run_cached("(print-size)")[0]
        return sum(int(size) for name, size in printed.sizes if name in CONSTRUCTORS and name != "Named")


_SPAN = bindings.PanicSpan()


def _text(value: str) -> bindings.Lit:
    return bindings.Lit(_SPAN, bindings.String(value))


def _number(value: int) -> bindings.Lit:
    return bindings.Lit(_SPAN, bindings.Int(value))


def _literal(value: str | int) -> bindings.Lit:
    return _number(value) if isinstance(value, int) else _text(value)


def _call(name: str, *arguments: bindings._Expr) -> bindings.Call:
    return bindings.Call(_SPAN, name, list(arguments))


def _pointwise_parts(term: Tensor | Buffer) -> Iterator[Tensor]:
    """The pointwise functions and softmaxes of a term: what views move through."""
    if isinstance(term, Apply | Softmax):
        yield term
    # The product of a contraction is no pointwise function of its own.
    inner = term.tensor if isinstance(term, Reduce) else term
    for child in children(inner if isinstance(inner, Apply) and isinstance(term, Reduce) else term):
        yield from _pointwise_parts(child)


def encode(term: Tensor, defined: set[str]) -> bindings.Call:
    """The egglog expression of a tensor term; sources named in ``defined`` stand for earlier definitions."""
    match term:
        case Read(Source(name, _, _)) if name in defined:
            return _call("Named", _text(name))
        case Read(buffer):
            return _call("Read", encode_buffer(buffer, defined))
        case View(inner, index):
            return _call("View", encode(inner, defined), _text(primitives.map_text(index)))
        case Reduce("sum", inner, number):
            return _call("Sum", encode(inner, defined), _number(number))
        case Reduce(operation, inner, number):
            return _call("Reduce", _text(operation), encode(inner, defined), _number(number))
        case Softmax(inner, number):
            return _call("Softmax", encode(inner, defined), _number(number))
        case Apply("mul" | "add" as function, (left, right)):
            return _call(function.capitalize(), encode(left, defined), encode(right, defined))
        case Apply(function, arguments):
            encoded = [encode(argument, defined) for argument in arguments]
            return _call(f"Apply{len(arguments)}", _text(function), *encoded)
        case Fill(value, extents):
            return _call("Fill", _text(str(Fraction(value))), _text(language.format_extents(extents)))


def encode_buffer(buffer: Buffer, defined: set[str]) -> bindings.Call:
    """The egglog expression of a buffer term."""
    match buffer:
        case Source(name, extents, constant):
            kind = "constant" if constant else "input"
            return _call("Source", _text(name), _text(language.format_extents(extents)), _text(kind))
        case Compute(tensor):
            return _call("Compute", encode(tensor, defined))
        case Reshape(inner, extents):
            return _call("Reshape", encode_buffer(inner, defined), _text(language.format_extents(extents)))
        case Call(operator, attributes, arguments, extents):
            chain = _call("Nil")
            for argument in reversed(arguments):
                chain = _call("Cons", encode_buffer(argument, defined), chain)
            return _call("Call", _text(operator), _text(attributes), chain, _text(language.format_extents(extents)))


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


@dataclass
class _Question:
    """What a rule's Python functions are asked: ``table`` holds the arguments of its matches."""

    rule: Rule
    table: str
    answered: set[tuple[str | int, ...]] = field(default_factory=set)


class _Compiler:
    """Turns one rule into egglog text."""

    def __init__(self, rule: Rule, ruleset: str) -> None:
        self.rule = rule
        self.ruleset = ruleset
        self.fresh = count()
        self.facts: list[str] = []
        self.question: _Question | None = None

    def text(self) -> str:
        rule = self.rule
        root = self.match(rule.left)
        if rule.original:
            self.facts.append(f"(original {root})")
        if rule.beside is not None:
            self.facts.append(f"(= {root} {self.match(rule.beside)})")
        if rule.united is not None:
            self.facts.append(f"(!= {' '.join(self.match(part) for part in rule.united)})")
        name = _quoted(rule.name)
        if not rule.calls:
            return f"(rule ({' '.join(self.facts)}) ({self.head(root)}) :ruleset {self.ruleset} :name {name})"
        table = f"ask-{self.ruleset}-{rule.name}"
        self.question = _Question(rule, table)
        asked = rule.asked
        variables = " ".join(variable.name for variable in asked)
        columns = " ".join(variable.sort for variable in asked)
        answers = " ".join(f.sort for f in rule.answered)
        fields = " ".join(_field_name(f) for f in rule.answered)
        facts = " ".join(self.facts)
        return "\n".join(
            [
                f"(relation {table} ({columns}))",
                f"(relation {table}! ({columns} {answers}))",
                f"(rule ({facts}) (({table} {variables})) :ruleset {self.ruleset}-find)",
                f"(rule (({table} {variables})) ((delete ({table} {variables}))) :ruleset {self.ruleset}-forget)",
                f"(rule ({facts} ({table}! {variables} {fields})) ({self.head(root)})"
                f" :ruleset {self.ruleset} :name {name})",
            ]
        )

    def match(self, pattern: Pattern) -> str:
        """Facts that match a pattern; returns the variable that names its class."""
        match pattern:
            case Variable(_, name, _):
                return name
            case Constant(_, value):
                return str(value) if isinstance(value, int) else _quoted(value)
            case Node(_, constructor, arguments):
                inner = " ".join([self.match(argument) for argument in arguments])
                name = f"node{next(self.fresh)}"
                self.facts.append(f"(= {name} ({constructor} {inner}))")
                return name
        raise EgraphOptError(f"rule {self.rule.name!r}: a computed field cannot be matched")

    def head(self, root: str) -> str:
        if self.rule.united is not None:
            return f"(union {' '.join(self.build(part) for part in self.rule.united)})"
        actions = f"(union {root} {self.build(self.rule.right)})"
        origin = self.mirror(self.rule.left)
        for part in language.parts(self.rule.right):
            # Beside the whole right-hand side, the sums and calls in it remember where they come from.
            if isinstance(part, Node) and (part is self.rule.right or part.constructor in _REMEMBERED):
                actions += f" (derived {_quoted(self.rule.name)} {origin} {self.mirror(part)})"
        return actions

    def mirror(self, node: Node) -> str:
        return f"(N{node.constructor} {' '.join(self.build(argument) for argument in node.arguments)})"

    def build(self, pattern: Pattern) -> str:
        match pattern:
            case Field():
                return _field_name(pattern)
            case Node(_, constructor, arguments):
                return f"({constructor} {' '.join(self.build(argument) for argument in arguments)})"
        return self.match(pattern)


def _field_name(part: Field) -> str:
    return f"field{part.index}"


def compile_rule(rule: Rule, ruleset: str) -> str:
    """egglog text of a rule: facts that match, a union, and the record of who derived what."""
    return _Compiler(rule, ruleset).text()
