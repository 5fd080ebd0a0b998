"""Terms as egglog expressions, built through its Python classes: its parser's memory is quadratic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from egglog import bindings

from egraph_opt.egraph import primitives
from egraph_opt.egraph.pattern import Constant, Node, Pattern, Variable, format_extents
from egraph_opt.errors import EgraphOptError
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

SPAN = bindings.PanicSpan()
Expression = bindings.Call | bindings.Lit


def literal(value: str | int) -> bindings.Lit:
    """A text or an integer."""
    return bindings.Lit(SPAN, bindings.Int(value) if isinstance(value, int) else bindings.String(value))


def application(name: str, *arguments: bindings._Expr) -> bindings.Call:
    """A constructor, function or relation applied to expressions."""
    return bindings.Call(SPAN, name, list(arguments))


def named(name: str) -> bindings.Call:
    """The tensor that a program's definition of this name defines."""
    return application("Named", literal(name))


def added(expression: bindings._Expr) -> bindings._Command:
    """The command that adds an expression, or a row of a relation."""
    return bindings.ActionCommand(bindings.Expr_(SPAN, expression))


def union(one: bindings._Expr, other: bindings._Expr) -> bindings._Command:
    """The command that makes two terms equal."""
    return bindings.ActionCommand(bindings.Union(SPAN, one, other))


def encode(term: Tensor, defined: set[str]) -> bindings.Call:
    """The egglog expression of a tensor term; sources named in ``defined`` stand for earlier definitions."""
    match term:
        case Read(Source(name, _, _)) if name in defined:
            return named(name)
        case Read(buffer):
            return application("Read", encode_buffer(buffer, defined))
        case View(inner, index):
            return application("View", encode(inner, defined), literal(primitives.map_text(index)))
        case Reduce("sum", inner, number):
            return application("Sum", encode(inner, defined), literal(number))
        case Reduce(operation, inner, number):
            return application("Reduce", literal(operation), encode(inner, defined), literal(number))
        case Softmax(inner, number):
            return application("Softmax", encode(inner, defined), literal(number))
        case Apply("mul" | "add" as function, (left, right)):
            return application(function.capitalize(), encode(left, defined), encode(right, defined))
        case Apply(function, arguments):
            encoded = [encode(argument, defined) for argument in arguments]
            return application(f"Apply{len(arguments)}", literal(function), *encoded)
        case Fill(value, extents):
            return application("Fill", literal(str(Fraction(value))), literal(format_extents(extents)))


def encode_buffer(buffer: Buffer, defined: set[str]) -> bindings.Call:
    """The egglog expression of a buffer term."""
    match buffer:
        case Source(name, extents, constant):
            kind = "constant" if constant else "input"
            return application("Source", literal(name), literal(format_extents(extents)), literal(kind))
        case Compute(tensor):
            return application("Compute", encode(tensor, defined))
        case Reshape(inner, extents):
            return application("Reshape", encode_buffer(inner, defined), literal(format_extents(extents)))
        case Call(operator, attributes, arguments, extents):
            chain = application("Nil")
            for argument in reversed(arguments):
                chain = application("Cons", encode_buffer(argument, defined), chain)
            shape = literal(format_extents(extents))
            return application("Call", literal(operator), literal(attributes), chain, shape)


def pointwise_parts(term: Tensor | Buffer) -> Iterator[Tensor]:
    """The pointwise functions and softmaxes of a term: what views move through."""
    if isinstance(term, Apply | Softmax):
        yield term
    # The product of a contraction is no pointwise function of its own.
    inner = term.tensor if isinstance(term, Reduce) else term
    for child in children(inner if isinstance(inner, Apply) and isinstance(term, Reduce) else term):
        yield from pointwise_parts(child)


def instance(pattern: Pattern, bound: Mapping[str, Expression], mirror: bool = False) -> Expression:
    """The expression of a pattern without computed fields; with ``mirror`` its outermost e-node itself, as a Node."""
    match pattern:
        case Variable(_, name):
            if name not in bound:
                raise EgraphOptError(f"variable {name!r} is not one of a match: use those that the members hold")
            return bound[name]
        case Constant(_, value):
            return literal(value)
        case Node(_, constructor, arguments):
            inside = [instance(argument, bound) for argument in arguments]
            return application(f"N{constructor}" if mirror else constructor, *inside)
    raise EgraphOptError("a computed field cannot be used here: compute it in the function itself")


def expression(terms: Any, number: int, known: dict[int, Expression]) -> Expression:
    """The expression of a term that egglog printed (``terms`` is its term table)."""
    if number not in known:
        term = terms.get(number)
        if hasattr(term, "args"):
            known[number] = application(term.name, *(expression(terms, child, known) for child in term.args))
        else:
            known[number] = literal(term.value.value)
    return known[number]


def shown(terms: Any, number: int, known: dict[int, str]) -> str:
    """The text of a term that egglog printed: equal for equal classes."""
    if number not in known:
        term = terms.get(number)
        if hasattr(term, "args"):
            known[number] = f"({term.name} {' '.join(shown(terms, child, known) for child in term.args)})"
        else:
            known[number] = repr(term.value.value)
    return known[number]
