"""``together`` rules: all matches that share an operand are handed to one Python function.

egglog lists the matches; here they are grouped, and what the function answers is added as terms and unions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from egglog import bindings

from egraph_opt.egraph import declaration, primitives
from egraph_opt.egraph.compiler import REMEMBERED, Compiled
from egraph_opt.egraph.encoding import Expression, added, application, expression, instance, literal, shown, union
from egraph_opt.egraph.language import Member, Rule
from egraph_opt.egraph.pattern import Node, Pattern, Variable, parts


@dataclass(frozen=True)
class _Row:
    """One match: the text that orders it, its variables as expressions, as values for the Python function, and the
    texts of its classes."""

    order: tuple[str, ...]
    bound: dict[str, Expression]
    values: dict[str, Any]
    classes: dict[str, str]


def combined(
    rule: Rule, compiled: Compiled, seen: set[tuple[tuple[str, ...], ...]], terms: Any, rows: Sequence[Any]
) -> list[list[bindings._Command]]:
    """The commands of every answer of the rule's function to groups of matches that it has not seen yet.

    ``terms`` and ``rows`` are egglog's print of the matches. Raises RuleError, naming the rule, when the function
    raises or answers with something that is no term of its members.
    """
    groups: dict[tuple[str, ...], list[_Row]] = {}
    texts: dict[int, str] = {}
    known: dict[int, Expression] = {}
    for number in rows:
        row = _row(rule, compiled, terms, number, texts, known)
        if row is not None:
            columns = terms.get(number).args
            shared = tuple(
                shown(terms, column, texts)
                for column, variable in zip(columns, compiled.members, strict=True)
                if variable in rule.sharing
            )
            groups.setdefault(shared, []).append(row)
    found = []
    for shared in sorted(groups):
        members = sorted(groups[shared], key=lambda row: row.order)
        key = tuple(row.order for row in members)
        if len(members) > 1 and key not in seen:
            seen.add(key)
            found += _answers(rule, compiled, members)
    return found


def _row(
    rule: Rule, compiled: Compiled, terms: Any, number: int, texts: dict[int, str], known: dict[int, Expression]
) -> _Row | None:
    """One printed match; None where a condition of the rule fails."""
    columns = dict(zip((v.name for v in compiled.members), terms.get(number).args, strict=True))
    literals: list[str] = []
    classes: dict[str, str] = {}
    values: dict[str, Any] = {}
    for variable in compiled.members:
        column = columns[variable.name]
        if variable.kind is None:
            classes[variable.name] = shown(terms, column, texts)
        else:
            value = terms.get(column).value.value
            literals.append(str(value))
            values[variable.name] = primitives.decode(value, variable.kind)
    asked = tuple(terms.get(columns[variable.name]).value.value for variable in rule.asked)
    if not primitives.answers(rule, asked):
        return None
    bound = {name: expression(terms, column, known) for name, column in columns.items()}
    return _Row((*literals, *classes.values()), bound, values, classes)


def _answers(rule: Rule, compiled: Compiled, rows: Sequence[_Row]) -> list[list[bindings._Command]]:
    bound: dict[str, Expression] = {}
    names: dict[str, str] = {}
    members = []
    for position, row in enumerate(rows):
        values = dict(row.values)
        for variable in compiled.members:
            if variable.kind is None:
                # Equal classes get one name, so that a function can tell that they are equal.
                handle = names.setdefault(row.classes[variable.name], f"{variable.name}#{position}")
                values[variable.name] = Variable(variable.sort, handle)
                bound[handle] = row.bound[variable.name]
        term = values.pop(compiled.members[0].name)
        members.append(Member(term, values))
    assert rule.combine is not None
    try:
        answers = [dict(answer) for answer in rule.combine(members)]
        for answer in answers:
            for position, right in answer.items():
                declaration.check_term(rule.name, right)
                if not 0 <= position < len(rows) or right.sort != rule.left.sort:
                    raise ValueError(f"no member {position} equals {right}")
        return [_commands(rule, rows, answer, bound) for answer in answers]
    except Exception as error:
        name = getattr(rule.combine, "__name__", "combine")
        raise primitives.RuleError(f"rule {rule.name!r}: {name} raised {type(error).__name__}: {error}") from error


def _commands(
    rule: Rule, rows: Sequence[_Row], answer: dict[int, Pattern], bound: dict[str, Expression]
) -> list[bindings._Command]:
    commands = []
    for position, right in sorted(answer.items()):
        commands.append(union(instance(rule.left, rows[position].bound), instance(right, bound)))
        origin = instance(rule.left, rows[position].bound, mirror=True)
        for part in parts(right):
            if isinstance(part, Node) and (part is right or part.constructor in REMEMBERED):
                row = application("derived", literal(rule.name), origin, instance(part, bound, mirror=True))
                commands.append(added(row))
    return commands
