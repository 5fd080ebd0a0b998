"""Terms: nameless tensor programs, total functions from integer index vectors to numbers that are zero outside.

Two sorts. A *tensor* is a value; a *buffer* is a dense row-major array in memory. ``Read`` takes a buffer to its value
and
``Compute`` a tensor to a buffer that a generated kernel fills, so ``Read(Compute(t)) = t`` and ``Compute(Read(b)) =
b``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import prod

from egraph_opt.errors import EgraphOptError
from egraph_opt.ir import scalar
from egraph_opt.ir.expr import Extents
from egraph_opt.ir.maps import IndexMap

# A pool is the largest of what is a number, at least the least float32, as onnxruntime's MaxPool has it mostly. With
# NaN among them onnxruntime's answer depends on where it stands, so its own operators are used where there are any.
REDUCTIONS = ("sum", "max", "min", "pool")


@dataclass(frozen=True)
class Read:
    """The contents of a buffer."""

    buffer: Buffer

    @cached_property
    def extents(self) -> Extents:
        return self.buffer.extents


@dataclass(frozen=True)
class View:
    """``tensor`` re-indexed by an index map whose source extents are those of ``tensor``."""

    tensor: Tensor
    map: IndexMap

    def __post_init__(self) -> None:
        if self.tensor.extents != self.map.source:
            raise EgraphOptError(f"view {self.map} of a tensor of extents {list(self.tensor.extents)}")

    @property
    def extents(self) -> Extents:
        return self.map.result


@dataclass(frozen=True)
class Reduce:
    """Reduction of the last ``count`` axes by ``operation`` (one of REDUCTIONS)."""

    operation: str
    tensor: Tensor
    count: int

    def __post_init__(self) -> None:
        if self.operation not in REDUCTIONS:
            raise EgraphOptError(f"unknown reduction {self.operation!r}; known: {', '.join(REDUCTIONS)}")
        if not 0 <= self.count <= len(self.tensor.extents):
            raise EgraphOptError(f"cannot reduce {self.count} of {len(self.tensor.extents)} axes")

    @cached_property
    def extents(self) -> Extents:
        return self.tensor.extents[: len(self.tensor.extents) - self.count]


@dataclass(frozen=True)
class Apply:
    """A scalar function of the catalogue applied pointwise to tensors of equal extents."""

    function: str
    arguments: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        arity = scalar.lookup(self.function).function.arity
        if len(self.arguments) != arity:
            raise EgraphOptError(f"{self.function} takes {arity} arguments, not {len(self.arguments)}")
        if len({argument.extents for argument in self.arguments}) > 1:
            raise EgraphOptError(f"{self.function} of different extents {[list(a.extents) for a in self.arguments]}")

    @property
    def extents(self) -> Extents:
        return self.arguments[0].extents


@dataclass(frozen=True)
class Softmax:
    """Softmax over the last ``count`` axes together."""

    tensor: Tensor
    count: int

    @property
    def extents(self) -> Extents:
        return self.tensor.extents


@dataclass(frozen=True)
class Fill:
    """One value everywhere."""

    value: Fraction
    extents: Extents


@dataclass(frozen=True)
class Source:
    """A buffer that exists beforehand: a graph input, a weight or the result of an operator outside the algebra."""

    name: str
    extents: Extents
    constant: bool = False


@dataclass(frozen=True)
class Call:
    """The result of a library operator; ``attributes`` is canonical text (see ir.library)."""

    operator: str
    attributes: str
    arguments: tuple[Buffer, ...]
    extents: Extents


@dataclass(frozen=True)
class Compute:
    """The buffer that a generated kernel fills with a tensor's values."""

    tensor: Tensor

    @property
    def extents(self) -> Extents:
        return self.tensor.extents


@dataclass(frozen=True)
class Reshape:
    """The same memory under other extents of equal size."""

    buffer: Buffer
    extents: Extents

    def __post_init__(self) -> None:
        if prod(self.extents) != prod(self.buffer.extents):
            raise EgraphOptError(f"cannot reshape {list(self.buffer.extents)} to {list(self.extents)}")


Tensor = Read | View | Reduce | Apply | Softmax | Fill
Buffer = Source | Call | Compute | Reshape


def add(left: Tensor, right: Tensor) -> Apply:
    return Apply("add", (left, right))


def mul(left: Tensor, right: Tensor) -> Apply:
    return Apply("mul", (left, right))


def children(term: Tensor | Buffer) -> tuple[Tensor | Buffer, ...]:
    """The direct sub-terms in order."""
    match term:
        case Read(buffer) | Reshape(buffer, _):
            return (buffer,)
        case View(tensor, _) | Softmax(tensor, _) | Compute(tensor) | Reduce(_, tensor, _):
            return (tensor,)
        case Apply(_, arguments) | Call(_, _, arguments, _):
            return arguments
        case Fill() | Source():
            return ()


def leaves(tensor: Tensor) -> Iterator[Buffer]:
    """The buffers a kernel body reads, each once, in order of first appearance."""
    seen: set[Buffer] = set()
    stack: list[Tensor] = [tensor]
    while stack:
        current = stack.pop()
        if isinstance(current, Read):
            if current.buffer not in seen:
                seen.add(current.buffer)
                yield current.buffer
        else:
            stack.extend(reversed([child for child in children(current) if isinstance(child, Tensor)]))


def show(term: Tensor | Buffer) -> str:
    """One-line text of a term."""
    match term:
        case Read(buffer):
            return f"read({show(buffer)})"
        case View(tensor, index):
            return f"view({show(tensor)}, {index})"
        case Reduce(operation, tensor, count):
            return f"{operation}({show(tensor)}, {count})"
        case Apply(function, arguments):
            return f"{function}({', '.join(map(show, arguments))})"
        case Softmax(tensor, count):
            return f"softmax({show(tensor)}, {count})"
        case Fill(value, extents):
            return f"fill({value}, {list(extents)})"
        case Source(name, _, _):
            return name
        case Call(operator, attributes, arguments, _):
            inside = ", ".join(map(show, arguments))
            return f"{operator}[{attributes}]({inside})" if attributes else f"{operator}({inside})"
        case Compute(tensor):
            return f"compute({show(tensor)})"
        case Reshape(buffer, extents):
            return f"reshape({show(buffer)}, {list(extents)})"
