"""Rules as egglog text.

A rule with Python functions becomes three: *find* collects the distinct arguments of all matches in a relation, Python
answers those it was never asked before as rows of a second relation, and the rule itself joins its pattern with them.
So a function is called once for equal arguments, and the matching itself stays inside egglog.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from egraph_opt.egraph import primitives
from egraph_opt.egraph.language import Rule
from egraph_opt.egraph.pattern import Constant, Field, Node, Pattern, Variable, parts, variables
from egraph_opt.errors import EgraphOptError

Row = tuple[str | int, ...]
# Beside the whole right-hand side, the sums and calls in it remember where they come from.
REMEMBERED = ("Sum", "Call")
# Operators that always have so many operands.
OPERANDS = {"MatMul": 2, "Transpose": 1}
# What can be added to a text or number without changing it.
_NEUTRAL = {"String": '""', "i64": "0"}


@dataclass
class Question:
    """``table`` holds the arguments of the matches of ``rule``, ``table!`` the answers to them."""

    table: str
    answer: Callable[[Row], list[Row]]
    answered: set[Row] = field(default_factory=set)
    rule: str = ""


@dataclass(frozen=True)
class Compiled:
    """A rule as egglog text, with what Python is asked, and the columns of the members of a ``together`` rule: the
    matched term, then its variables."""

    text: str
    question: Question | None = None
    members: tuple[Variable, ...] = ()


def compile_rule(rule: Rule, ruleset: str) -> Compiled:
    """egglog text of a rule: facts that match, unions, and the record of who derived what."""
    return _Compiler(rule, ruleset).compiled()


def quoted(text: str) -> str:
    """A text literal of egglog."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def members_table(rule: Rule) -> str:
    """The relation of the matches of a ``together`` rule."""
    return f"members-{rule.name}"


def _length(chain: Pattern) -> int | None:
    """The length of an argument list that is spelled out."""
    length = 0
    while isinstance(chain, Node) and chain.constructor == "Cons":
        chain, length = chain.arguments[1], length + 1
    return length if isinstance(chain, Node) else None


class _Compiler:
    def __init__(self, rule: Rule, ruleset: str) -> None:
        self.rule = rule
        self.ruleset = ruleset
        self.fresh = count()
        self.facts: list[str] = []
        self.met: set[str] = set()

    def compiled(self) -> Compiled:
        rule = self.rule
        root = self.match(rule.left)
        if rule.original:
            self.facts.append(f"(original {root})")
        if rule.beside is not None:
            self.facts.append(f"(= {root} {self.match(rule.beside)})")
        if rule.united is not None:
            self.facts.append(f"(!= {' '.join(self.match(part) for part in rule.united)})")
        pairs = [(root, rule.left, rule.right)]
        pairs += [(self.match(left), left, right) for left, right in rule.more]
        self.known_facts()
        if rule.combine is not None:
            return self.collected(root)
        name = quoted(rule.name)
        head = self.head(pairs)
        if not rule.calls:
            return Compiled(f"(rule ({' '.join(self.facts)}) ({head}) :ruleset {self.ruleset} :name {name})")
        table = f"ask-{self.ruleset}-{rule.name}"
        asked = rule.asked
        names = " ".join(variable.name for variable in asked)
        columns = " ".join(variable.sort for variable in asked)
        answers = " ".join(f.sort for f in rule.answered)
        fields = " ".join(_field_name(f) for f in rule.answered)
        facts = " ".join(self.facts)
        text = "\n".join(
            [
                f"(relation {table} ({columns}))",
                f"(relation {table}! ({columns} {answers}))",
                f"(rule ({facts}) (({table} {names})) :ruleset {self.ruleset}-find)",
                f"(rule (({table} {names})) ((delete ({table} {names}))) :ruleset {self.ruleset}-forget)",
                f"(rule ({facts} ({table}! {names} {fields})) ({head}) :ruleset {self.ruleset} :name {name})",
            ]
        )
        return Compiled(text, Question(table, partial(primitives.answers, rule), rule=rule.name))

    def known_facts(self) -> None:
        """Facts about extents and constants that the conditions and the right-hand sides use."""
        rule = self.rule
        used = dict.fromkeys(v for side in rule.sides for v in variables(side) if v.tensor is not None)
        for variable in used:
            assert variable.tensor is not None
            self.facts.append(f"(= {variable.name} ({variable.tensor.sort}Extents {variable.tensor.name}))")
        for fact in rule.facts:
            self.facts.append(f"(Constant{fact.variable.sort} {fact.variable.name})")

    def collected(self, root: str) -> Compiled:
        """A ``together`` rule: its matches as rows of a relation, which Python reads."""
        matched = Variable(self.rule.left.sort, root)
        members = (matched, *dict.fromkeys((*variables(self.rule.left), *self.rule.asked)))
        table = members_table(self.rule)
        names = " ".join(variable.name for variable in members)
        columns = " ".join(variable.sort for variable in members)
        facts = " ".join(self.facts)
        text = "\n".join(
            [
                f"(relation {table} ({columns}))",
                f"(rule ({facts}) (({table} {names})) :ruleset {self.ruleset}-find)",
                f"(rule (({table} {names})) ((delete ({table} {names}))) :ruleset {self.ruleset}-forget)",
            ]
        )
        return Compiled(text, members=members)

    def match(self, pattern: Pattern) -> str:
        """Facts that match a pattern; returns the variable that names its class."""
        match pattern:
            case Variable(sort, name, _) if sort in _NEUTRAL and name in self.met:
                # Few texts and numbers differ between the layers of a model: egglog would begin with them and pair all
                # terms that agree on one. So they are compared once the terms are matched.
                other = f"same{next(self.fresh)}-{name}"
                self.facts.append(f"(= (+ {other} {_NEUTRAL[sort]}) {name})")
                return other
            case Variable(_, name, _):
                self.met.add(name)
                return name
            case Constant(_, value):
                return str(value) if isinstance(value, int) else quoted(value)
            case Node(_, "Call", (Constant(_, operator), attributes, Node() as chain, extents)) if OPERANDS.get(
                str(operator)
            ) == _length(chain):
                inner = " ".join(
                    [quoted(str(operator)), self.match(attributes), self.match_open(chain), self.match(extents)]
                )
                return self.matched(f"(Call {inner})")
            case Node(_, constructor, arguments):
                return self.matched(f"({constructor} {' '.join([self.match(argument) for argument in arguments])})")
        raise EgraphOptError(f"rule {self.rule.name!r}: a computed field cannot be matched")

    def matched(self, term: str) -> str:
        name = f"node{next(self.fresh)}"
        self.facts.append(f"(= {name} {term})")
        return name

    def match_open(self, chain: Pattern) -> str:
        """An argument list whose end follows from the operator: egglog would begin with the end, which all share."""
        if isinstance(chain, Node) and chain.constructor == "Cons":
            first = self.match(chain.arguments[0])
            return self.matched(f"(Cons {first} {self.match_open(chain.arguments[1])})")
        return f"end{next(self.fresh)}"

    def head(self, pairs: list[tuple[str, Node, Pattern]]) -> str:
        if self.rule.united is not None:
            return f"(union {' '.join(self.build(part) for part in self.rule.united)})"
        actions = []
        for root, left, right in pairs:
            actions.append(f"(union {root} {self.build(right)})")
            origin = self.mirror(left)
            for part in parts(right):
                if isinstance(part, Node) and (part is right or part.constructor in REMEMBERED):
                    actions.append(f"(derived {quoted(self.rule.name)} {origin} {self.mirror(part)})")
        return " ".join(actions)

    def mirror(self, node: Node) -> str:
        return f"(N{node.constructor} {' '.join(self.build(argument) for argument in node.arguments)})"

    def build(self, pattern: Pattern) -> str:
        match pattern:
            case Variable(_, name, _):
                return name
            case Field():
                return _field_name(pattern)
            case Node(_, constructor, arguments):
                return f"({constructor} {' '.join(self.build(argument) for argument in arguments)})"
        return self.match(pattern)


def _field_name(part: Field) -> str:
    return f"field{part.index}"
