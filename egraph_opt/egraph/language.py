"""The rule language: rules read as equations between terms over typed pattern variables.

A rule group is a generator function whose parameters are its pattern variables::

    @rule_group("derivation")
    def sums(x: TensorVar, n: IntVar, k: IntVar) -> Iterator[Rule]:
        yield equal("sum-merges", x.sum(k).sum(n), x.sum(n + k))

``each(function, …)`` calls a Python function on bound maps, texts and integers at match time; every tuple it returns
is one firing, and ``.map(i)``, ``.text(i)``, ``.integer(i)``, ``.extents(i)`` name its fields on the right-hand side.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import Any, Literal, TypeAlias

from egraph_opt.errors import EgraphOptError
from egraph_opt.ir.expr import Extents

Sort = Literal["Tensor", "Buffer", "Args", "String", "i64"]
Kind = Literal["map", "text", "extents", "integer", "value"]
Exactness = Literal["bitwise", "reassociates", "real_only"]


@dataclass(frozen=True)
class Pattern:
    """A term of the e-graph with variables: a constructor applied to patterns, a variable, a literal or a computed
    field."""

    sort: Sort

    def view(self, m: Pattern) -> Node:
        return Node("Tensor", "View", (self, m))

    def sum(self, k: Pattern | int) -> Node:
        return Node("Tensor", "Sum", (self, _integer(k)))

    def reduce(self, operation: Pattern | str, k: Pattern | int) -> Node:
        return Node("Tensor", "Reduce", (_text(operation), self, _integer(k)))

    def softmax(self, k: Pattern | int) -> Node:
        return Node("Tensor", "Softmax", (self, _integer(k)))

    def __mul__(self, other: Pattern) -> Node:
        return Node("Tensor", "Mul", (self, other))

    def __add__(self, other: Pattern) -> Node:
        return Node("i64", "+", (self, other)) if self.sort == "i64" else Node("Tensor", "Add", (self, other))

    def compute(self) -> Node:
        return Node("Buffer", "Compute", (self,))

    def read(self) -> Node:
        return Node("Tensor", "Read", (self,))

    def reshape(self, extents: Pattern) -> Node:
        return Node("Buffer", "Reshape", (self, extents))


@dataclass(frozen=True)
class Node(Pattern):
    constructor: str
    arguments: tuple[Pattern, ...]


@dataclass(frozen=True)
class Variable(Pattern):
    """A pattern variable. ``kind`` tells how a text or integer is shown to Python functions."""

    name: str
    kind: Kind | None = None


@dataclass(frozen=True)
class Constant(Pattern):
    value: str | int


@dataclass(frozen=True)
class Field(Pattern):
    """One field of a computed value, usable on the right-hand side and in conditions."""

    call: Each
    index: int


@dataclass(frozen=True)
class Each:
    """A Python function of bound variables, called at match time; one firing for every tuple it returns.

    Arguments arrive decoded (IndexMap, int, str, extents tuple); returned IndexMaps, tuples of ints, ints and
    strings are encoded. An exception ends the run and names the rule.
    """

    function: Callable[..., Sequence[tuple[Any, ...]]]
    arguments: tuple[Variable | Constant, ...]

    def map(self, index: int) -> Field:
        return Field("String", self, index)

    text = extents = value = map

    def integer(self, index: int) -> Field:
        return Field("i64", self, index)


def each(function: Callable[..., Sequence[tuple[Any, ...]]], *arguments: Pattern | str | int) -> Each:
    converted: list[Variable | Constant] = []
    for argument in arguments:
        value = _text(argument) if isinstance(argument, str) else _integer(argument)
        if not isinstance(value, Variable | Constant):
            raise EgraphOptError(f"{function.__name__}: only variables and literals can be passed to a Python function")
        converted.append(value)
    return Each(function, tuple(converted))


def _integer(value: Pattern | int | str) -> Pattern:
    return Constant("i64", value) if isinstance(value, int) else _text(value)


def _text(value: Pattern | str) -> Pattern:
    return Constant("String", value) if isinstance(value, str) else value


def apply(function: Pattern | str, *arguments: Pattern) -> Node:
    """A scalar function applied pointwise; its name includes the parameters."""
    return Node("Tensor", f"Apply{len(arguments)}", (_text(function), *arguments))


def fill(value: Pattern | Fraction | int, extents: Pattern | Extents) -> Node:
    shown = Constant("String", str(Fraction(value))) if isinstance(value, int | Fraction) else value
    shape = Constant("String", format_extents(extents)) if isinstance(extents, tuple) else extents
    return Node("Tensor", "Fill", (shown, shape))


def call(
    operator: Pattern | str, attributes: Pattern | str, arguments: Sequence[Pattern] | Pattern, extents: Pattern
) -> Node:
    """A library call; ``arguments`` is a list of buffers or a variable for the whole list."""
    if isinstance(arguments, Pattern):
        chain: Pattern = arguments
    else:
        chain = Node("Args", "Nil", ())
        for argument in reversed(arguments):
            chain = Node("Args", "Cons", (argument, chain))
    return Node("Buffer", "Call", (_text(operator), _text(attributes), chain, extents))


def format_extents(extents: Sequence[int]) -> str:
    return ",".join(map(str, extents))


def parse_extents(text: str) -> Extents:
    return tuple(int(part) for part in text.split(",") if part)


@dataclass(frozen=True)
class Rule:
    """``left`` equals ``right`` wherever ``left`` matches, the fields exist and ``given`` holds.

    ``original`` rules match terms of the program itself only, not those that rules made. With ``beside`` and
    ``united``: wherever ``left`` equals ``beside``, the two variables are equal.
    """

    name: str
    left: Node
    right: Pattern
    exactness: Exactness = "bitwise"
    given: tuple[Each, ...] = ()
    original: bool = False
    beside: Node | None = None
    united: tuple[Variable, Variable] | None = None
    group: str = ""
    documentation: str = ""

    def __post_init__(self) -> None:
        matched = [self.left, *([] if self.beside is None else [self.beside])]
        bound = {variable.name for side in matched for variable in variables(side)}
        sides: list[Pattern | Each] = [self.right, *self.calls]
        used = [v for side in sides for v in variables(side)]
        for variable in used:
            if variable.name not in bound:
                raise EgraphOptError(
                    f"rule {self.name!r}: variable {variable.name!r} is not bound by the left-hand side;"
                    " use it there or compute it with each()"
                )
        if len(fields(self.right)) > 1:
            raise EgraphOptError(
                f"rule {self.name!r}: the right-hand side uses {len(fields(self.right))} each() values; combine them"
            )

    @cached_property
    def calls(self) -> list[Each]:
        """The Python functions of the rule: its conditions and what its right-hand side computes."""
        return [*self.given, *fields(self.right)]

    @cached_property
    def asked(self) -> list[Variable]:
        """The variables its Python functions are called with, each once."""
        return list(dict.fromkeys(v for each_ in self.calls for v in variables(each_)))

    @cached_property
    def answered(self) -> list[Field]:
        """The computed fields its right-hand side uses, each once and in order."""
        found = {part for part in parts(self.right) if isinstance(part, Field)}
        return sorted(found, key=lambda part: part.index)


def variables(pattern: Pattern | Each) -> Iterator[Variable]:
    """All variables of a pattern, with repetitions."""
    match pattern:
        case Variable():
            yield pattern
        case Node(_, _, arguments):
            for argument in arguments:
                yield from variables(argument)
        case Field(_, each_, _):
            yield from variables(each_)
        case Each(_, arguments):
            for argument in arguments:
                yield from variables(argument)


def parts(pattern: Pattern) -> Iterator[Pattern]:
    """A pattern and all patterns in it, outermost first."""
    yield pattern
    if isinstance(pattern, Node):
        for argument in pattern.arguments:
            yield from parts(argument)


def fields(pattern: Pattern) -> list[Each]:
    """The computed values a pattern uses, each once."""
    return list(dict.fromkeys(part.call for part in parts(pattern) if isinstance(part, Field)))


def equal(
    name: str,
    left: Node,
    right: Pattern,
    *,
    exactness: Exactness = "bitwise",
    given: Sequence[Each] = (),
    original: bool = False,
) -> Rule:
    """An equation used from left to right: whatever matches ``left`` becomes equal to ``right``."""
    return Rule(name, left, right, exactness, tuple(given), original)


def cancels(
    name: str, left: Node, beside: Node, united: tuple[Variable, Variable], *, given: Sequence[Each] = ()
) -> Rule:
    """Wherever the two terms are equal, so are the two variables."""
    return Rule(name, left, left, given=tuple(given), beside=beside, united=united)


@dataclass(frozen=True)
class RuleGroup:
    """A named set of rules that can be switched on and off together."""

    name: str
    rules: tuple[Rule, ...]
    documentation: str = field(default="", compare=False)


_SORTS: dict[str, tuple[Sort, Kind | None]] = {
    "TensorVar": ("Tensor", None),
    "BufferVar": ("Buffer", None),
    "ArgsVar": ("Args", None),
    "MapVar": ("String", "map"),
    "TextVar": ("String", "text"),
    "ExtentsVar": ("String", "extents"),
    "IntVar": ("i64", "integer"),
}

# Parameter annotations of rule groups.
TensorVar: TypeAlias = Variable
BufferVar: TypeAlias = Variable
ArgsVar: TypeAlias = Variable
MapVar: TypeAlias = Variable
TextVar: TypeAlias = Variable
ExtentsVar: TypeAlias = Variable
IntVar: TypeAlias = Variable


def rule_group(name: str) -> Callable[[Callable[..., Iterator[Rule]]], RuleGroup]:
    """Turn a generator of rules into a group; its parameters are the pattern variables, typed by annotation."""

    def decorate(function: Callable[..., Iterator[Rule]]) -> RuleGroup:
        arguments = []
        for parameter in inspect.signature(function).parameters.values():
            annotation = str(parameter.annotation)
            if annotation not in _SORTS:
                raise EgraphOptError(
                    f"rule group {name!r}: parameter {parameter.name!r} is annotated {annotation!r};"
                    f" choose one of {', '.join(_SORTS)}"
                )
            sort, kind = _SORTS[annotation]
            arguments.append(Variable(sort, parameter.name, kind))
        rules = tuple(
            replace(r, group=name, documentation=inspect.getdoc(function) or "") for r in function(*arguments)
        )
        names = [r.name for r in rules]
        for repeated in {n for n in names if names.count(n) > 1}:
            raise EgraphOptError(f"rule group {name!r}: two rules are named {repeated!r}; give each its own name")
        return RuleGroup(name, rules, inspect.getdoc(function) or "")

    return decorate
