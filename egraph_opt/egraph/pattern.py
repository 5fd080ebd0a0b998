"""Patterns: terms of the e-graph with variables, from which the two sides of a rule are written.

Whatever is written is checked only when a rule is declared from it (see :mod:`egraph_opt.egraph.language`), so that
every complaint can name the rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

from egraph_opt.errors import EgraphOptError
from egraph_opt.ir.expr import Extents
from egraph_opt.ir.maps import IndexMap

Sort = Literal["Tensor", "Buffer", "Args", "String", "i64"]
# How a text or integer is shown to Python functions.
Kind = Literal["map", "text", "extents", "integer"]

# The constructors of terms: the sorts of their arguments and of their result.
CONSTRUCTORS: Mapping[str, tuple[tuple[Sort, ...], Sort]] = {
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


@dataclass(frozen=True)
class Pattern:
    """A variable, a literal, a computed field, or a constructor applied to patterns."""

    sort: Sort

    def view(self, m: Pattern | IndexMap) -> Node:
        """This tensor re-indexed by a map."""
        return Node("Tensor", "View", (self, Constant("String", m.text) if isinstance(m, IndexMap) else m))

    def sum(self, k: Pattern | int) -> Node:
        """The sum over the last ``k`` axes."""
        return Node("Tensor", "Sum", (self, integer(k)))

    def reduce(self, operation: Pattern | str, k: Pattern | int) -> Node:
        """The reduction of the last ``k`` axes by "max" or "min"."""
        return Node("Tensor", "Reduce", (text(operation), self, integer(k)))

    def softmax(self, k: Pattern | int) -> Node:
        """Softmax over the last ``k`` axes together."""
        return Node("Tensor", "Softmax", (self, integer(k)))

    def __mul__(self, other: Pattern) -> Node:
        return Node("Tensor", "Mul", (self, other))

    def __add__(self, other: Pattern | int) -> Node:
        if self.sort == "i64":
            return Node("i64", "+", (self, integer(other)))
        return Node("Tensor", "Add", (self, other))  # type: ignore[arg-type]  # checked where a rule is declared

    def compute(self) -> Node:
        """The buffer a generated kernel fills with this tensor."""
        return Node("Buffer", "Compute", (self,))

    def read(self) -> Node:
        """The contents of this buffer."""
        return Node("Tensor", "Read", (self,))

    def reshape(self, extents: Pattern) -> Node:
        """The memory of this buffer under other extents."""
        return Node("Buffer", "Reshape", (self, extents))


@dataclass(frozen=True)
class Node(Pattern):
    """A constructor applied to patterns."""

    constructor: str
    arguments: tuple[Pattern, ...]


@dataclass(frozen=True)
class Variable(Pattern):
    """A pattern variable; the sub-classes below are what parameters of rule groups are annotated with.

    ``tensor`` is set for the extents of another variable, see :attr:`extents`.
    """

    name: str
    kind: Kind | None = None
    tensor: Variable | None = None

    @property
    def extents(self) -> Variable:
        """The extents of this tensor or buffer, to be passed to Python functions or used on the right-hand side."""
        return Variable("String", f"{self.name}-extents", "extents", self)


class TensorVar(Variable):
    """A tensor."""

    def __init__(self, name: str) -> None:
        super().__init__("Tensor", name)


class BufferVar(Variable):
    """A buffer: an array in memory."""

    def __init__(self, name: str) -> None:
        super().__init__("Buffer", name)


class ArgsVar(Variable):
    """The whole argument list of a library call."""

    def __init__(self, name: str) -> None:
        super().__init__("Args", name)


class MapVar(Variable):
    """An index map; Python functions get it as an IndexMap."""

    def __init__(self, name: str) -> None:
        super().__init__("String", name, "map")


class TextVar(Variable):
    """A text: a scalar function, a reduction, a library operator, its attributes, the value of a constant."""

    def __init__(self, name: str) -> None:
        super().__init__("String", name, "text")


class ExtentsVar(Variable):
    """Extents, as of a constant or of a library call's result; Python functions get a tuple of integers."""

    def __init__(self, name: str) -> None:
        super().__init__("String", name, "extents")


class IntVar(Variable):
    """A number of axes."""

    def __init__(self, name: str) -> None:
        super().__init__("i64", name, "integer")


@dataclass(frozen=True)
class Constant(Pattern):
    """A literal text or integer."""

    value: str | int


@dataclass(frozen=True)
class Field(Pattern):
    """One field of a computed value, usable on the right-hand side and in conditions."""

    call: Each
    index: int
    kind: Kind = field(default="text", compare=False)


@dataclass(frozen=True)
class Each:
    """A Python function of bound variables, called at match time; one firing for every tuple it returns.

    Arguments arrive decoded (IndexMap, int, str, tuple of extents); returned IndexMaps, tuples of ints, ints and
    strings are encoded. ``predicate``: the function returns a truth value instead.
    """

    function: Callable[..., Any]
    arguments: tuple[Variable | Constant, ...]
    predicate: bool = False

    def map(self, index: int) -> Field:
        """Field ``index`` of the tuple, an index map."""
        return Field("String", self, index, "map")

    def text(self, index: int) -> Field:
        """Field ``index`` of the tuple, a text."""
        return Field("String", self, index, "text")

    value = text

    def extents(self, index: int) -> Field:
        """Field ``index`` of the tuple, extents."""
        return Field("String", self, index, "extents")

    def integer(self, index: int) -> Field:
        """Field ``index`` of the tuple, an integer."""
        return Field("i64", self, index, "integer")


@dataclass(frozen=True)
class Fact:
    """A property that the e-graph knows of a class; only "constant": it depends on weights only."""

    name: Literal["constant"]
    variable: Variable


def each(function: Callable[..., Sequence[tuple[Any, ...]]], *arguments: Pattern | str | int) -> Each:
    """Call ``function`` at match time; every tuple it returns is one firing of the rule."""
    return Each(function, _arguments(function, arguments))


def holds(predicate: Callable[..., bool], *arguments: Pattern | str | int) -> Each:
    """A condition for ``given=[…]``: the rule fires where ``predicate`` of the bound values is true."""
    return Each(predicate, _arguments(predicate, arguments), predicate=True)


def constant(variable: Variable) -> Fact:
    """A condition for ``given=[…]``: this tensor or buffer depends on weights only, so it costs nothing at run time."""
    return Fact("constant", variable)


def _arguments(function: Callable[..., Any], given: Sequence[Pattern | str | int]) -> tuple[Variable | Constant, ...]:
    converted: list[Variable | Constant] = []
    for argument in given:
        value = text(argument) if isinstance(argument, str) else integer(argument)
        if not isinstance(value, Variable | Constant):
            name = getattr(function, "__name__", str(function))
            raise EgraphOptError(f"{name}: only variables and literals can be passed to a Python function")
        converted.append(value)
    return tuple(converted)


def integer(value: Pattern | int | str) -> Pattern:
    """A literal integer as a pattern."""
    return Constant("i64", value) if isinstance(value, int) else text(value)


def text(value: Pattern | str) -> Pattern:
    """A literal text as a pattern."""
    return Constant("String", value) if isinstance(value, str) else value


def apply(function: Pattern | str, *arguments: Pattern) -> Node:
    """A scalar function applied pointwise; its name includes the parameters."""
    if function in ("add", "mul") and len(arguments) == 2:
        return Node("Tensor", str(function).capitalize(), arguments)
    return Node("Tensor", f"Apply{len(arguments)}", (text(function), *arguments))


def fill(value: Pattern | Fraction | int, extents: Pattern | Extents) -> Node:
    """One value everywhere."""
    shown = Constant("String", str(Fraction(value))) if isinstance(value, int | Fraction) else value
    shape = Constant("String", format_extents(extents)) if isinstance(extents, tuple) else extents
    return Node("Tensor", "Fill", (shown, shape))


def call(
    operator: Pattern | str,
    attributes: Pattern | str,
    arguments: Sequence[Pattern] | Pattern,
    extents: Pattern | Extents,
) -> Node:
    """A library call; ``arguments`` is a list of buffers or a variable for the whole list."""
    if isinstance(arguments, Pattern):
        chain: Pattern = arguments
    else:
        chain = Node("Args", "Nil", ())
        for argument in reversed(arguments):
            chain = Node("Args", "Cons", (argument, chain))
    shape = Constant("String", format_extents(extents)) if isinstance(extents, tuple) else extents
    return Node("Buffer", "Call", (text(operator), text(attributes), chain, shape))


def format_extents(extents: Sequence[int]) -> str:
    """Extents as the e-graph knows them."""
    return ",".join(map(str, extents))


def parse_extents(text: str) -> Extents:
    """Inverse of :func:`format_extents`."""
    return tuple(int(part) for part in text.split(",") if part)


def parts(pattern: Pattern) -> Iterator[Pattern]:
    """A pattern and all patterns in it, outermost first."""
    yield pattern
    if isinstance(pattern, Node):
        for argument in pattern.arguments:
            yield from parts(argument)


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


def fields(pattern: Pattern) -> list[Each]:
    """The computed values a pattern uses, each once."""
    return list(dict.fromkeys(part.call for part in parts(pattern) if isinstance(part, Field)))
