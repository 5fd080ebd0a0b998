"""The e-graph itself: egglog sorts for terms, rules compiled to egglog, and reading classes back.

``Node`` mirrors every constructor and is never unioned: ``(NView x m)`` names the e-node ``(View x m)``, so the relation
``derived`` can record which rule made which e-node equal to which.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import count

from egglog import bindings

from egraph_opt.egraph import language, primitives
from egraph_opt.egraph.language import Constant, Each, Field, Node, Pattern, Rule, RuleGroup, Variable
from egraph_opt.errors import EgraphOptError
from egraph_opt.ir.program import Program
from egraph_opt.ir.terms import Apply, Buffer, Call, Compute, Fill, Read, Reduce, Reshape, Softmax, Source, Tensor, View

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
# The most firings one match of a rule may have.
CHOICES = 128


def _schema() -> str:
    lines = ["(sort Tensor)", "(sort Buffer)", "(sort Args)", "(sort Node)"]
    for name, (inputs, output) in CONSTRUCTORS.items():
        lines.append(f"(constructor {name} ({' '.join(inputs)}) {output})")
        lines.append(f"(constructor N{name} ({' '.join(inputs)}) Node)")
    lines += ["(relation derived (String Node Node))", "(relation choice (i64))"]
    lines += [f"(choice {i})" for i in range(CHOICES)]
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
            self.run_text(f"(ruleset {group.name}) (ruleset {group.name}-find)")
            for rule in group.rules:
                self.run_text(compile_rule(rule, group.name))

    def add_program(self, program: Program) -> None:
        """Add every definition; the tensor ``name`` is then the class of ``(Named name)``."""
        defined: set[str] = set()
        commands: list[bindings._Command] = []
        for name, term in program.definitions:
            expression = encode(term, defined)
            named = _call("Named", _text(name))
            commands.append(bindings.ActionCommand(bindings.Union(_SPAN, named, expression)))
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
            once = f"(seq (run {group}-find) (run {group}))"
            for output in self.run_text(f"(run-schedule {f'(saturate {once})' if until_saturated else once})"):
                report = output.report  # type: ignore[union-attr]
                changed = changed or report.updated
                for rule, number in report.num_matches_per_rule.items():
                    name = rule.removesuffix("?")
                    if name == rule:
                        matches[name] = matches.get(name, 0) + number
        return RoundReport(changed, matches)

    def size(self) -> int:
        """Number of e-nodes (rows of the tensor and buffer constructors)."""
        functions = self.egglog.freeze().functions
        return sum(len(functions[name].rows) for name in CONSTRUCTORS if name in functions and name != "Named")


_SPAN = bindings.PanicSpan()


def _text(value: str) -> bindings.Lit:
    return bindings.Lit(_SPAN, bindings.String(value))


def _number(value: int) -> bindings.Lit:
    return bindings.Lit(_SPAN, bindings.Int(value))


def _call(name: str, *arguments: bindings._Expr) -> bindings.Call:
    return bindings.Call(_SPAN, name, list(arguments))


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


class _Compiler:
    """Turns one rule into egglog text."""

    def __init__(self, rule: Rule, ruleset: str) -> None:
        self.rule = rule
        self.ruleset = ruleset
        self.fresh = count()
        self.facts: list[str] = []
        self.fields: dict[Field, str] = {}

    def text(self) -> str:
        rule = self.rule
        root = self.match(rule.left)
        bound = list(dict.fromkeys(v.name for v in language.variables(rule.left)))
        sorts = {v.name: v.sort for v in language.variables(rule.left)}
        generators = language.fields(rule.right)
        if len(generators) > 1:
            raise EgraphOptError(
                f"rule {rule.name!r}: the right-hand side uses {len(generators)} each() values; combine them"
            )
        for condition in rule.given:
            self.facts.append(f'(!= {self.invoke(condition)} "")')
        name = _quoted(rule.name)
        if not generators:
            head = self.head(root)
            return f"(rule ({' '.join(self.facts)}) ({head}) :ruleset {self.ruleset} :name {name})"
        table = "options-" + rule.name
        columns = ["Tensor" if rule.left.sort == "Tensor" else "Buffer", *(sorts[v] for v in bound), "String", "i64"]
        first = [
            *self.facts,
            f"(= records {self.invoke(generators[0])})",
            '(!= records "")',
            f'(= number (count-matches (py-to-string (py-call {_COUNT} (py-from-string records))) "1"))',
        ]
        row = f"({table} {root} {' '.join(bound)} records number)"
        self.facts = [row, "(choice turn)", "(< turn number)"]
        head = self.head(root)  # collects the fields it needs
        return "\n".join(
            [
                f"(relation {table} ({' '.join(columns)}))",
                f"(rule ({' '.join(first)}) ({row}) :ruleset {self.ruleset}-find :name {_quoted(rule.name + '?')})",
                f"(rule ({' '.join(self.facts)}) ({head}) :ruleset {self.ruleset} :name {name})",
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

    def invoke(self, each: Each) -> str:
        key = primitives.register(self.rule.name, each)
        arguments = [f'(py-from-string "{key}")']
        for argument in each.arguments:
            convert = "py-from-int" if argument.sort == "i64" else "py-from-string"
            arguments.append(f"({convert} {self.match(argument)})")
        return f"(py-to-string (py-call {_CALL} {' '.join(arguments)}))"

    def head(self, root: str) -> str:
        right = self.build(self.rule.right)
        actions = f"(union {root} {right})"
        left_node = self.mirror(self.rule.left)
        if isinstance(self.rule.right, Node) and self.rule.right.constructor in CONSTRUCTORS:
            actions += f" (derived {_quoted(self.rule.name)} {left_node} {self.mirror(self.rule.right)})"
        return actions

    def mirror(self, node: Node) -> str:
        return f"(N{node.constructor} {' '.join(self.build(argument) for argument in node.arguments)})"

    def build(self, pattern: Pattern) -> str:
        match pattern:
            case Field(sort, _, index):
                if pattern not in self.fields:
                    name = self.fields[pattern] = f"field{index}"
                    function = _PICK if sort == "String" else _PICK_INTEGER
                    picked = f"(py-to-string (py-call {function} (py-from-string records) (py-from-int turn) (py-from-int {index})))"
                    self.facts.append(
                        f"(= {name} {picked})" if sort == "String" else f'(= {name} (count-matches {picked} "1"))'
                    )
                return self.fields[pattern]
            case Node(_, constructor, arguments):
                return f"({constructor} {' '.join(self.build(argument) for argument in arguments)})"
        return self.match(pattern)


_CALL = primitives.reference(primitives.call)
_COUNT = primitives.reference(primitives.count)
_PICK = primitives.reference(primitives.pick)
_PICK_INTEGER = primitives.reference(primitives.pick_integer)


def compile_rule(rule: Rule, ruleset: str) -> str:
    """egglog text of a rule: facts that match, a union, and the record of who derived what."""
    return _Compiler(rule, ruleset).text()
