"""Index notation: views written as Python functions from the iterators of the result to the index they read.

``lambda n, h, r: (n, h + r)`` is called once with symbolic iterators. Their arithmetic is quasi-affine: ``+`` and ``-``
among themselves, ``*``, ``//`` and ``%`` by integers, comparisons with integers or each other as conditions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from egraph_opt.errors import UsageError
from egraph_opt.ir import expr as ex
from egraph_opt.ir import maps
from egraph_opt.ir.expr import Expr, Extents
from egraph_opt.ir.maps import IndexMap


class Condition:
    """What must hold for an index point to be read: a guard of an index map."""

    def __init__(self, guard: Expr) -> None:
        self.guard = guard

    def __bool__(self) -> NoReturn:
        raise UsageError(
            "a condition on iterators has no truth value while the view is built; return several conditions as a tuple"
            " instead of joining them with 'and' or writing a < b < c"
        )


class Index:
    """A quasi-affine expression of the iterators of a view whose extents are ``extents``."""

    # Comparisons make conditions, so an index is no key.
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, expr: Expr, extents: Extents) -> None:
        self.expr = expr
        self.extents = extents

    def __repr__(self) -> str:
        return self.expr.text

    def __add__(self, other: Index | int) -> Index:
        return Index(self.expr + self._expr(other, "+"), self.extents)

    __radd__ = __add__

    def __neg__(self) -> Index:
        return Index(-self.expr, self.extents)

    def __sub__(self, other: Index | int) -> Index:
        return Index(self.expr - self._expr(other, "-"), self.extents)

    def __rsub__(self, other: int) -> Index:
        return -self + other

    def __mul__(self, factor: int) -> Index:
        return Index(self.expr * self._number(factor, "*"), self.extents)

    __rmul__ = __mul__

    def __floordiv__(self, divisor: int) -> Index:
        return Index(ex.floordiv(self.expr, self._number(divisor, "//"), self.extents), self.extents)

    def __mod__(self, divisor: int) -> Index:
        return Index(ex.modulo(self.expr, self._number(divisor, "%"), self.extents), self.extents)

    def __eq__(self, other: object) -> Condition:  # type: ignore[override]
        return Condition(self.expr - self._expr(other, "=="))

    def __ne__(self, other: object) -> NoReturn:
        raise UsageError(f"{self!r} != {other!r}: an index map has no such guard; use == < <= > >=")

    def __lt__(self, other: Index | int) -> Condition:
        difference = self.expr - self._expr(other, "<")
        low, _ = ex.bounds(difference, self.extents)
        return Condition(maps.in_range(difference + (-low), -low, self.extents) if low < 0 else Expr(1))

    def __ge__(self, other: Index | int) -> Condition:
        difference = self.expr - self._expr(other, ">=")
        _, high = ex.bounds(difference, self.extents)
        return Condition(maps.in_range(difference, high + 1, self.extents) if high >= 0 else Expr(1))

    def __le__(self, other: Index | int) -> Condition:
        return self < other + 1

    def __gt__(self, other: Index | int) -> Condition:
        return self >= other + 1

    def _expr(self, other: object, sign: str) -> Expr:
        return other.expr if isinstance(other, Index) else Expr(self._number(other, sign))

    def _number(self, other: object, sign: str) -> int:
        if isinstance(other, bool) or not isinstance(other, int):
            raise UsageError(
                f"{self!r} {sign} {other!r}: an index is quasi-affine, made of iterators and whole numbers with + -"
                " among themselves and * // % by whole numbers"
            )
        return other


def index_map(
    source: Extents,
    result: Extents,
    index: Callable[..., Any],
    where: Callable[..., Any] | None = None,
    fill: float = 0.0,
) -> IndexMap:
    """The map of ``view[i…] = source[index(i…)]`` where ``where(i…)`` holds, ``fill`` elsewhere.

    Raises UsageError for functions of another number of iterators, or an index of another rank than ``source``.
    """
    found = [_index(part, result) for part in _called(index, result, "index")]
    if len(found) != len(source):
        raise UsageError(
            f"view of {list(source)} as {list(result)}: the index function returns {len(found)} numbers, the tensor has"
            f" {len(source)} axes"
        )
    guards = [_guard(part) for part in _called(where, result, "where")] if where is not None else []
    return maps.index_map(source, result, found, guards, fill)


def _called(function: Callable[..., Any], result: Extents, what: str) -> Iterable[Any]:
    iterators = [Index(ex.iterator(axis), result) for axis in range(len(result))]
    try:
        inspect.signature(function).bind(*iterators)
    except TypeError as error:
        raise UsageError(
            f"view as {list(result)}: the {what} function must take one iterator for each of its {len(result)} axes"
            f" ({error})"
        ) from None
    found = function(*iterators)
    return found if isinstance(found, tuple | list) else (found,)


def _index(part: object, result: Extents) -> Expr:
    if isinstance(part, Index):
        return part.expr
    if isinstance(part, int) and not isinstance(part, bool):
        return Expr(part)
    raise UsageError(f"view as {list(result)}: {part!r} is no index; return iterators and whole numbers")


def _guard(part: object) -> Expr:
    if isinstance(part, Condition):
        return part.guard
    if isinstance(part, bool):
        return Expr(0 if part else 1)
    raise UsageError(f"{part!r} is no condition; compare iterators with == < <= > >=")
