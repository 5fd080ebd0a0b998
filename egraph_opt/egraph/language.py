"""The rule language: rules read as equations between terms over typed pattern variables.

A rule group is a generator function whose parameters are its pattern variables::

    @rule_group
    def sums(x: TensorVar, n: IntVar, k: IntVar) -> Iterator[Rule]:
        yield becomes("sum-merges", x.sum(k).sum(n), x.sum(n + k), exactness="reassociates")

``becomes`` is used from left to right, ``equal`` both ways; ``jointly`` matches several terms at once and ``together``
hands all terms that share an operand to one Python function. ``each(function, …)`` calls a Python function on bound
maps, texts and integers at match time; every tuple it returns is one firing, and ``.map(i)``, ``.text(i)``,
``.integer(i)``, ``.extents(i)`` name its fields on the right-hand side. ``given=[holds(predicate, …), constant(w)]``
are conditions.

A rule that cannot be right is refused where it is declared: see :mod:`egraph_opt.egraph.declaration`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, overload

from egraph_opt.egraph import declaration
from egraph_opt.egraph.pattern import (
    ArgsVar,
    BufferVar,
    Constant,
    Each,
    ExtentsVar,
    Fact,
    Field,
    IntVar,
    MapVar,
    Node,
    Pattern,
    TensorVar,
    TextVar,
    Variable,
    apply,
    call,
    constant,
    each,
    fields,
    fill,
    format_extents,
    holds,
    parse_extents,
    parts,
    variables,
)
from egraph_opt.errors import EgraphOptError

__all__ = [
    "ArgsVar",
    "BufferVar",
    "Constant",
    "Each",
    "ExtentsVar",
    "Fact",
    "Field",
    "IntVar",
    "MapVar",
    "Member",
    "Node",
    "Pattern",
    "Rule",
    "RuleGroup",
    "TensorVar",
    "TextVar",
    "Variable",
    "apply",
    "approximate",
    "becomes",
    "call",
    "cancels",
    "constant",
    "each",
    "equal",
    "fields",
    "fill",
    "format_extents",
    "holds",
    "jointly",
    "parse_extents",
    "parts",
    "rule_group",
    "together",
    "variables",
]


@dataclass(frozen=True)
class Approximate:
    """Both sides differ by at most ``bound``, relative to the largest magnitude of the result."""

    bound: float


# bitwise: equal bit by bit, NaN and infinities included. reassociates: sums and products in another order, equal for
# finite values within rounding. real_only: equal for real numbers, but NaN, infinities or rounding may show.
Exactness = Literal["bitwise", "reassociates", "real_only"] | Approximate
EXACTNESSES = ("bitwise", "reassociates", "real_only")
Condition = Each | Fact


def approximate(bound: float) -> Approximate:
    """The exactness of a rule whose sides differ by at most ``bound`` of the largest magnitude of the result."""
    if not 0 < bound < 1:
        raise EgraphOptError(f"approximate({bound}): the bound is a share of the result, between 0 and 1")
    return Approximate(bound)


class Member(Mapping[str, Any]):
    """One match of a ``together`` rule: its variables by name.

    Maps, extents, texts and integers are values; tensors and buffers are variables to write the right-hand side with,
    and so is ``term``, the term that was matched. Equal terms are equal variables: one term can match in several ways.
    """

    def __init__(self, term: Variable, values: Mapping[str, Any]) -> None:
        self.term = term
        self._values = dict(values)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


Combine = Callable[[Sequence[Member]], Sequence[Mapping[int, Pattern]]]


@dataclass(frozen=True)
class Rule:
    """``left`` equals ``right`` wherever ``left`` matches, the fields exist and ``given`` holds.

    ``original`` rules match terms of the program itself only, not those that rules made. With ``beside`` and
    ``united``: wherever ``left`` equals ``beside``, the two variables are equal. ``more`` are further pairs that are
    matched together with the first and equal as well. With ``combine`` all matches that agree on ``sharing`` are handed
    to it together. ``origin`` is the pack the rule comes from.
    """

    name: str
    left: Node
    right: Pattern
    exactness: Exactness = "bitwise"
    given: tuple[Condition, ...] = ()
    original: bool = False
    beside: Node | None = None
    united: tuple[Variable, Variable] | None = None
    more: tuple[tuple[Node, Pattern], ...] = ()
    combine: Combine | None = None
    sharing: tuple[Variable, ...] = ()
    group: str = ""
    documentation: str = ""
    origin: str = "built-in"

    def __post_init__(self) -> None:
        if not self.name or not self.name.isprintable() or set(self.name) & set(", "):
            raise EgraphOptError(f"rule {self.name!r}: a name has no spaces or commas and is not empty")
        if not isinstance(self.exactness, Approximate) and self.exactness not in EXACTNESSES:
            known = ", ".join(map(repr, EXACTNESSES))
            raise EgraphOptError(
                f"rule {self.name!r}: unknown exactness {self.exactness!r}; choose {known} or approximate(bound)"
            )
        declaration.check(self)

    @cached_property
    def matched(self) -> list[Node]:
        """All terms the rule has to find."""
        return [self.left, *([] if self.beside is None else [self.beside]), *(left for left, _ in self.more)]

    @cached_property
    def sides(self) -> list[Pattern | Each]:
        """Everything that uses what was matched: the right-hand sides and the Python functions."""
        return [self.right, *(right for _, right in self.more), *self.calls]

    @cached_property
    def calls(self) -> list[Each]:
        """The Python functions of the rule: its conditions and what its right-hand sides compute."""
        computed = [each_ for right in (self.right, *(right for _, right in self.more)) for each_ in fields(right)]
        return list(dict.fromkeys([*(c for c in self.given if isinstance(c, Each)), *computed]))

    @cached_property
    def facts(self) -> list[Fact]:
        """The conditions that the e-graph itself knows."""
        return [condition for condition in self.given if isinstance(condition, Fact)]

    @cached_property
    def asked(self) -> list[Variable]:
        """The variables its Python functions are called with, each once."""
        return list(dict.fromkeys(v for each_ in self.calls for v in variables(each_)))

    @cached_property
    def answered(self) -> list[Field]:
        """The computed fields its right-hand sides use, each once and in order."""
        found = {part for side in (self.right, *(r for _, r in self.more)) for part in parts(side)}
        return sorted((part for part in found if isinstance(part, Field)), key=lambda part: part.index)


def _conditions(name: str, given: Sequence[Condition]) -> tuple[Condition, ...]:
    if not isinstance(given, list | tuple):
        raise EgraphOptError(f"rule {name!r}: given is a list of conditions: given=[holds(…), constant(…)]")
    return tuple(given)


def becomes(
    name: str,
    left: Node,
    right: Pattern,
    *,
    exactness: Exactness = "bitwise",
    given: Sequence[Condition] = (),
    original: bool = False,
) -> Rule:
    """An equation used from left to right: whatever matches ``left`` becomes equal to ``right``."""
    return Rule(name, left, right, exactness, _conditions(name, given), original)


def equal(
    name: str, left: Node, right: Node, *, exactness: Exactness = "bitwise", given: Sequence[Condition] = ()
) -> tuple[Rule, Rule]:
    """An equation used both ways: as ``name`` from left to right, as ``name-back`` from right to left.

    Both sides use the same variables and compute nothing; an equation that computes is a :func:`becomes`.
    """
    declaration.check_both_ways(name, left, right)
    return (
        becomes(name, left, right, exactness=exactness, given=given),
        becomes(f"{name}-back", right, left, exactness=exactness, given=given),
    )


def cancels(
    name: str, left: Node, beside: Node, united: tuple[Variable, Variable], *, given: Sequence[Condition] = ()
) -> Rule:
    """Wherever the two terms are equal, so are the two variables."""
    return Rule(name, left, left, given=_conditions(name, given), beside=beside, united=united)


def jointly(
    name: str,
    *pairs: tuple[Node, Pattern],
    exactness: Exactness = "bitwise",
    given: Sequence[Condition] = (),
) -> Rule:
    """Several equations over one match: all left-hand sides are found together and share their variables.

    Every pair of matches fires, so among n operators of one input there are n². :func:`together` sees them all at once.
    """
    if len(pairs) < 2:
        raise EgraphOptError(f"rule {name!r}: jointly() takes at least two pairs; for one equation use becomes()")
    (left, right), *more = pairs
    return Rule(name, left, right, exactness, _conditions(name, given), more=tuple(more))


def together(
    name: str,
    member: Node,
    *,
    sharing: Variable | Sequence[Variable],
    combine: Combine,
    exactness: Exactness = "bitwise",
    given: Sequence[Condition] = (),
    original: bool = False,
) -> Rule:
    """All terms that match ``member`` and agree on ``sharing``, at once.

    ``combine`` gets the matches, each a mapping from variable names to values, and returns any number of mappings from
    a match's position to the term it equals. It is called once a run for every group of at least two.
    """
    shared = (sharing,) if isinstance(sharing, Variable) else tuple(sharing)
    return Rule(name, member, member, exactness, _conditions(name, given), original, combine=combine, sharing=shared)


@dataclass(frozen=True)
class RuleGroup:
    """A named set of rules that can be switched on and off together; ``origin`` is the pack it comes from."""

    name: str
    rules: tuple[Rule, ...]
    documentation: str = field(default="", compare=False)
    origin: str = "built-in"

    def of_pack(self, pack: str) -> RuleGroup:
        """The same group as part of a pack."""
        return replace(self, rules=tuple(replace(rule, origin=pack) for rule in self.rules), origin=pack)


_ANNOTATIONS = {c.__name__: c for c in (TensorVar, BufferVar, ArgsVar, MapVar, TextVar, ExtentsVar, IntVar)}

Generator = Callable[..., Iterator[Rule | tuple[Rule, ...]]]


@overload
def rule_group(name: Generator) -> RuleGroup: ...
@overload
def rule_group(name: str) -> Callable[[Generator], RuleGroup]: ...
def rule_group(name: str | Generator) -> RuleGroup | Callable[[Generator], RuleGroup]:
    """Turn a generator of rules into a group; its parameters are the pattern variables, typed by annotation.

    ``@rule_group`` names the group after the function, ``@rule_group("name")`` as told.
    """
    if not isinstance(name, str):
        return _group(name.__name__, name)
    return lambda function: _group(name, function)


def _group(name: str, function: Generator) -> RuleGroup:
    if not name.replace("_", "a").replace("-", "a").isalnum():
        raise EgraphOptError(f"rule group {name!r}: a name consists of letters, digits, '-' and '_'")
    documentation = inspect.getdoc(function) or ""
    rules: list[Rule] = []
    for found in function(*(_variable(name, p) for p in inspect.signature(function).parameters.values())):
        rules += found if isinstance(found, tuple) else (found,)
    for rule in rules:
        if not isinstance(rule, Rule):
            raise EgraphOptError(f"rule group {name!r}: yields {rule!r}; yield becomes(…), equal(…), jointly(…) …")
    names = [rule.name for rule in rules]
    for repeated in sorted({n for n in names if names.count(n) > 1}):
        raise EgraphOptError(f"rule group {name!r}: two rules are named {repeated!r}; give each its own name")
    return RuleGroup(name, tuple(replace(r, group=name, documentation=documentation) for r in rules), documentation)


def _variable(group: str, parameter: inspect.Parameter) -> Variable:
    annotation = parameter.annotation
    name = annotation.rpartition(".")[2] if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    if name not in _ANNOTATIONS:
        shown = "nothing" if annotation is inspect.Parameter.empty else repr(annotation)
        raise EgraphOptError(
            f"rule group {group!r}: parameter {parameter.name!r} is annotated {shown};"
            f" choose one of {', '.join(_ANNOTATIONS)}"
        )
    return _ANNOTATIONS[name](parameter.name)
