"""The Python functions of rules, called with the texts and integers that egglog knows.

Index maps and extents are texts inside the e-graph; the texts are decoded before a call and encoded after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from egraph_opt.egraph.pattern import Constant, Each, Field, Kind, Variable, format_extents, parse_extents
from egraph_opt.errors import EgraphOptError
from egraph_opt.ir import maps
from egraph_opt.ir.maps import IndexMap

if TYPE_CHECKING:
    from egraph_opt.egraph.language import Rule

Literal = str | int

_maps: dict[str, IndexMap] = {}


class RuleError(EgraphOptError):
    """A Python function of a rule raised; the message names the rule."""


def map_text(index: IndexMap) -> str:
    """Text of a map inside the e-graph; the map itself is kept so that it need not be parsed back."""
    text = index.text
    _maps.setdefault(text, index)
    return text


def map_of(text: str) -> IndexMap:
    """The map of a text; raises EgraphOptError when it is not one."""
    found = _maps.get(text)
    if found is None:
        found = _maps[text] = maps.parse(text)
    return found


def answers(rule: Rule, arguments: tuple[Literal, ...]) -> list[tuple[Literal, ...]]:
    """The values of ``rule.answered`` for every firing with these values of ``rule.asked``; none when a condition
    fails.

    Raises RuleError when a function of the rule raises, or answers with what its fields cannot be.
    """
    bound = {variable.name: value for variable, value in zip(rule.asked, arguments, strict=True)}
    records: tuple[tuple[Literal, ...], ...] = ((),)
    try:
        for each in rule.calls:
            records = _call(each, tuple(_argument(slot, bound) for slot in each.arguments))
            if not records:
                return []
    except Exception as error:
        name = getattr(each.function, "__name__", str(each.function))
        raise RuleError(f"rule {rule.name!r}: {name} raised {type(error).__name__}: {error}") from error
    return [tuple(_checked(rule, field, record) for field in rule.answered) for record in records]


def _checked(rule: Rule, field: Field, record: tuple[Literal, ...]) -> Literal:
    """The value of a field; raises RuleError when the answer has none, or one of another kind."""
    value = record[field.index] if field.index < len(record) else None
    try:
        match field.kind:
            case "integer" if isinstance(value, int):
                return value
            case "map" if isinstance(value, str):
                map_of(value)
                return value
            case "extents" if isinstance(value, str):
                parse_extents(value)
                return value
            case "text" if isinstance(value, str):
                return value
    except (EgraphOptError, ValueError):
        pass
    name = getattr(field.call.function, "__name__", str(field.call.function))
    raise RuleError(f"rule {rule.name!r}: field {field.index} of {name} is {value!r}, not of kind {field.kind}")


def _argument(slot: Variable | Constant, bound: Mapping[str, Literal]) -> Literal:
    return slot.value if isinstance(slot, Constant) else bound[slot.name]


@lru_cache(maxsize=200_000)
def _call(each: Each, arguments: tuple[Literal, ...]) -> tuple[tuple[Literal, ...], ...]:
    values = [
        decode(argument, None if isinstance(slot, Constant) else slot.kind)
        for argument, slot in zip(arguments, each.arguments, strict=True)
    ]
    found = each.function(*values)
    if each.predicate:
        found = [()] if found else []
    return tuple(tuple(map(_encode, record)) for record in found)


def decode(value: Literal, kind: Kind | None) -> Any:
    """What a Python function gets for a text or integer of the e-graph."""
    if kind == "map":
        return map_of(str(value))
    if kind == "extents":
        return parse_extents(str(value))
    return value


def _encode(value: Any) -> Literal:
    if isinstance(value, IndexMap):
        return map_text(value)
    if isinstance(value, tuple):
        return format_extents(value)
    return value if isinstance(value, int) else str(value)
