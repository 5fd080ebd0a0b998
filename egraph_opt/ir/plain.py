"""Kernel bodies as JSON text and back, for files that travel between machines."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

from egraph_opt.errors import EgraphOptError, InputRejected
from egraph_opt.ir import maps
from egraph_opt.ir.terms import Apply, Fill, Read, Reduce, Softmax, Source, Tensor, View

# Rows of one body.
MOST_TERMS = 100_000


def to_json(body: Tensor) -> str:
    """A body over sources as a table of its terms, each after those inside it; equal terms are one row."""
    rows: list[list[Any]] = []
    known: dict[Tensor, int] = {}

    def add(term: Tensor) -> int:
        if term not in known:
            match term:
                case Read(Source(name, extents, _)):
                    row: list[Any] = ["Read", name, list(extents)]
                case View(inner, index):
                    row = ["View", add(inner), str(index)]
                case Reduce(operation, inner, count):
                    row = ["Reduce", operation, add(inner), count]
                case Softmax(inner, count):
                    row = ["Softmax", add(inner), count]
                case Apply(function, arguments):
                    row = ["Apply", function, [add(argument) for argument in arguments]]
                case Fill(value, extents):
                    row = ["Fill", str(value), list(extents)]
                case _:
                    raise EgraphOptError(f"a kernel body holds a {type(term).__name__}")
            known[term] = len(rows)
            rows.append(row)
        return known[term]

    add(body)
    return json.dumps(rows, separators=(",", ":"))


def from_json(text: str) -> Tensor:
    """Inverse of :func:`to_json`. Raises InputRejected for anything else."""
    try:
        rows = json.loads(text)
        if len(rows) > MOST_TERMS:
            raise InputRejected(f"a kernel body has {len(rows)} terms; {MOST_TERMS} are allowed")
        terms: list[Tensor] = []
        for row in rows:
            terms.append(_term(row, terms))
        return terms[-1]
    except InputRejected:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, EgraphOptError, RecursionError) as error:
        raise InputRejected(f"a kernel body cannot be read: {error}") from error


def _term(row: list[Any], terms: list[Tensor]) -> Tensor:
    match row:
        case ["Read", str(name), extents]:
            return Read(Source(name, tuple(map(int, extents))))
        case ["View", int(inner), str(index)]:
            return View(terms[inner], maps.parse(index))
        case ["Reduce", str(operation), int(inner), int(count)]:
            return Reduce(operation, terms[inner], count)
        case ["Softmax", int(inner), int(count)]:
            return Softmax(terms[inner], count)
        case ["Apply", str(function), arguments]:
            return Apply(function, tuple(terms[i] for i in arguments))
        case ["Fill", str(value), extents]:
            return Fill(Fraction(value), tuple(map(int, extents)))
    raise InputRejected(f"a kernel body has the row {row!r}")
