"""Expressions: tensor programs as Python values, and the programs they stand for. Written with egraph_opt.algebra."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from math import isfinite
from typing import Any

import numpy as np

from egraph_opt.errors import UsageError
from egraph_opt.ir import definitions, maps, printing
from egraph_opt.ir.expr import Extents
from egraph_opt.ir.program import Program
from egraph_opt.ir.terms import Apply, Buffer, Fill, Read, Reduce, Softmax, Source, Tensor, View, children

Array = np.ndarray[Any, Any]
Number = int | float | Fraction


@dataclass(frozen=True, eq=False)
class Expression:
    """A tensor of ``shape``: an operation on other expressions. Made by the functions of egraph_opt.algebra.

    ``build`` makes the term from the terms of the operands; ``values`` are those of a weight, if they are known.
    """

    operation: str
    operands: tuple[Expression, ...]
    build: Callable[..., Tensor] = field(repr=False)
    source: Source | None = None
    values: Array | None = field(default=None, repr=False)

    @cached_property
    def shape(self) -> Extents:
        """Extents of the tensor."""
        return self.build(*(Read(Source(f"#{i}", operand.shape)) for i, operand in enumerate(self.operands))).extents

    @cached_property
    def term(self) -> Tensor:
        """The whole expression as one term over its sources."""
        terms: dict[Expression, Tensor] = {}
        for part in ordered([self]):
            terms[part] = part.build(*(terms[operand] for operand in part.operands))
        return terms[self]

    def __repr__(self) -> str:
        return f"<{self.operation} {printing.extents_text(self.shape)}>"

    def __str__(self) -> str:
        return printing.program_text(to_program(self))

    def __add__(self, other: Expression | Number) -> Expression:
        return apply("add", self, other)

    def __radd__(self, other: Number) -> Expression:
        return apply("add", other, self)

    def __mul__(self, other: Expression | Number) -> Expression:
        return apply("mul", self, other)

    def __rmul__(self, other: Number) -> Expression:
        return apply("mul", other, self)

    def __sub__(self, other: Expression | Number) -> Expression:
        return apply("sub", self, other)

    def __rsub__(self, other: Number) -> Expression:
        return apply("sub", other, self)

    def __truediv__(self, other: Expression | Number) -> Expression:
        return apply("div", self, other)

    def __rtruediv__(self, other: Number) -> Expression:
        return apply("div", other, self)

    def __neg__(self) -> Expression:
        return apply("neg", self)

    def __matmul__(self, other: Expression) -> Expression:
        return matmul(self, other)

    def sum(self, k: int | None = None) -> Expression:
        """The sum over the last ``k`` axes, over all of them without ``k``."""
        return self._reduced("sum", k)

    def max(self, k: int | None = None) -> Expression:
        """The maximum over the last ``k`` axes."""
        return self._reduced("max", k)

    def min(self, k: int | None = None) -> Expression:
        """The minimum over the last ``k`` axes."""
        return self._reduced("min", k)

    def softmax(self, k: int = 1) -> Expression:
        """Softmax over the last ``k`` axes together."""
        self._check_axes("softmax", k)
        return made("softmax", lambda t: Softmax(t, k), self)

    def transpose(self, *order: int) -> Expression:
        """Axis ``j`` of the result is axis ``order[j]``; without an order the axes are reversed."""
        chosen = order or tuple(reversed(range(len(self.shape))))
        if sorted(chosen) != list(range(len(self.shape))):
            raise UsageError(f"transpose of {list(self.shape)} by {list(chosen)}: not an order of its axes")
        return made("view", lambda t: View(t, maps.permute(self.shape, chosen)), self)

    def reshape(self, *shape: int) -> Expression:
        """The same elements in row-major order under another shape."""
        return made("view", lambda t: View(t, maps.reshape(self.shape, shape)), self)

    def broadcast(self, *shape: int) -> Expression:
        """Repeated along new and unit axes as numpy does."""
        return made("view", lambda t: View(t, maps.broadcast(self.shape, shape)), self)

    def _reduced(self, operation: str, k: int | None) -> Expression:
        count = len(self.shape) if k is None else k
        self._check_axes(operation, count)
        return made(operation, lambda t: Reduce(operation, t, count), self)

    def _check_axes(self, operation: str, count: int) -> None:
        if not 0 <= count <= len(self.shape):
            raise UsageError(f"{operation} over the last {count} axes of {list(self.shape)}")


def fill(value: Number, shape: Sequence[int]) -> Expression:
    """One value everywhere."""
    if isinstance(value, float) and not isfinite(value):
        raise UsageError(f"fill with {value}: the value must be finite")
    # The shortest decimal of a float is what was meant: 0.1 is 1/10.
    exact = Fraction(repr(value)) if isinstance(value, float) else Fraction(value)
    extents = tuple(shape)
    return made("fill", lambda: Fill(exact, extents))


def apply(function: str, *arguments: Expression | Number) -> Expression:
    """A scalar function of the catalogue, pointwise; shapes are broadcast as in numpy and numbers stand for themselves.

    Parameters are part of the name: ``leaky_relu:0.01``, ``clip:0.0,6.0``. Raises UsageError for an unknown
    function, another number of arguments, or shapes that cannot be broadcast.
    """
    shapes = [argument.shape for argument in arguments if isinstance(argument, Expression)]
    try:
        shape = tuple(np.broadcast_shapes(*shapes))
    except ValueError:
        shown = " and ".join(str(list(one)) for one in shapes)
        raise UsageError(f"{function} of {shown}: these shapes cannot be broadcast together") from None
    operands = [a if isinstance(a, Expression) else fill(a, shape) for a in arguments]
    full = [a if a.shape == shape else a.broadcast(*shape) for a in operands]
    return made(function, lambda *terms: Apply(function, terms), *full)


def matmul(left: Expression, right: Expression) -> Expression:
    """The matrix product of [batch…, M, K] and [batch…, K, N], batch axes broadcast as in numpy."""
    a, b = left.shape, right.shape
    if min(len(a), len(b)) < 2 or a[-1] != b[-2]:
        raise UsageError(f"matmul of {list(a)} and {list(b)}: the last axis must match the last but one of the other")
    try:
        np.broadcast_shapes(a[:-2], b[:-2])
    except ValueError:
        raise UsageError(f"matmul of {list(a)} and {list(b)}: the batch axes cannot be broadcast") from None
    return made("matmul", definitions.matrix_product, left, right)


def ordered(roots: Sequence[Expression]) -> list[Expression]:
    """All parts of some expressions, operands first, each once."""
    found: dict[Expression, None] = {}
    stack = [(root, False) for root in reversed(roots)]
    while stack:
        part, done = stack.pop()
        if part in found:
            continue
        if done:
            found[part] = None
        else:
            stack.append((part, True))
            stack += [(operand, False) for operand in reversed(part.operands)]
    return list(found)


def to_program(expressions: Expression | Mapping[str, Expression], *, stem: str = "t") -> Program:
    """The program that computes some expressions by name; a single one is called ``y``.

    (``result`` where an input is called ``y``.)

    Every operation is a tensor of its own, named ``stem`` and a number, but views and summed products are part of what
    reads them. Raises
    UsageError where two different sources, or a source and an output, have one name.
    """
    if isinstance(expressions, Expression):
        names_taken = {part.source.name for part in ordered([expressions]) if part.source is not None}
        expressions = {"result" if "y" in names_taken else "y": expressions}
    outputs = dict(expressions)
    parts = ordered(list(outputs.values()))
    leaves = _leaves(parts)
    for name in outputs:
        if name in leaves:
            raise UsageError(f"the output {name!r} has the name of an input; rename one")
    users: dict[Expression, list[Expression]] = {}
    for part in parts:
        for operand in part.operands:
            users.setdefault(operand, []).append(part)
    names: dict[Expression, str] = {}
    for name, expression in outputs.items():
        names.setdefault(expression, name)
    taken, terms, found, number = {*leaves, *outputs}, dict[Expression, Tensor](), list[tuple[str, Tensor]](), 0
    for part in parts:
        term = part.build(*(terms[operand] for operand in part.operands))
        if part not in names and _inline(part, users.get(part, [])):
            terms[part] = term
            continue
        if part not in names:
            while f"{stem}{number}" in taken:
                number += 1
            names[part] = f"{stem}{number}"
            taken.add(names[part])
        found.append((names[part], term))
        terms[part] = Read(Source(names[part], term.extents))
    found += [(name, terms[e]) for name, e in outputs.items() if names[e] != name]
    inputs = tuple(leaf.source for leaf in leaves.values() if leaf.source is not None and not leaf.source.constant)
    constants = {name: leaf.values for name, leaf in leaves.items() if leaf.values is not None}
    return Program(inputs, tuple(found), tuple(outputs), constants)


def _inline(part: Expression, users: Sequence[Expression]) -> bool:
    if part.source is not None or part.operation == "fill":
        return True
    if len(users) != 1:
        return False
    return part.operation == "view" or (part.operation == "mul" and users[0].operation == "sum")


def _leaves(parts: Sequence[Expression]) -> dict[str, Expression]:
    found: dict[str, Expression] = {}
    for part in parts:
        if part.source is None:
            continue
        other = found.setdefault(part.source.name, part)
        if other.source != part.source:
            assert other.source is not None
            shapes = f"{list(other.source.extents)} and {list(part.source.extents)}"
            raise UsageError(f"two different sources are named {part.source.name!r}, of shapes {shapes}")
        if other.values is not part.values and (
            other.values is None or part.values is None or not np.array_equal(other.values, part.values)
        ):
            raise UsageError(f"two weights of different values are named {part.source.name!r}")
    return found


def sources(program: Program) -> tuple[Source, ...]:
    """Inputs and weights of a program, each once."""
    defined = {name for name, _ in program.definitions}
    found = {source.name: source for source in program.inputs}
    seen: set[int] = set()
    for _, term in program.definitions:
        stack: list[Tensor | Buffer] = [term]
        while stack:
            current = stack.pop()
            if isinstance(current, Source) and current.name not in defined:
                found.setdefault(current.name, current)
            if id(current) not in seen:
                seen.add(id(current))
                stack.extend(reversed(children(current)))
    return tuple(found.values())


def checked_inputs(program: Program, inputs: Mapping[str, Any]) -> dict[str, Array]:
    """Arrays for all sources of a program that have no values; raises UsageError where they do not fit."""
    wanted = {source.name: source for source in sources(program)}
    unknown = sorted(set(inputs) - set(wanted))
    if unknown:
        raise UsageError(f"no input is named {unknown[0]!r}; the inputs: {', '.join(wanted) or 'none'}")
    arrays: dict[str, Array] = {}
    for name, source in wanted.items():
        if name not in inputs:
            if name in program.constants:
                continue
            what = "weight" if source.constant else "input"
            raise UsageError(f"{what} {name!r} of shape {list(source.extents)} has no value")
        arrays[name] = np.asarray(inputs[name])
        if arrays[name].shape != source.extents:
            shape = list(arrays[name].shape)
            raise UsageError(f"input {name!r} has shape {shape}, declared {list(source.extents)}")
    return arrays


def made(name: str, build: Callable[..., Tensor], *operands: Expression) -> Expression:
    found = Expression(name, operands, build)
    _ = found.shape  # complains here about what does not fit
    return found
