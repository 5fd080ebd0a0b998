"""Quasi-affine index expressions with one canonical form.

An expression is an integer combination of *atoms* plus a constant. An atom is an iterator (numbered ``0..rank-1`` of
the result a view produces) or a floor division ``e//d`` of an expression by a positive constant. There is no modulo
atom:
``e % d`` is written ``e - d*(e//d)``, so ``d*(e//d) + e%d`` is ``e`` without any rule. Every simplification holds
for all index points of the given extents; nothing is assumed outside them.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from math import gcd, prod

import numpy as np

from egraph_opt.errors import EgraphOptError

Extents = tuple[int, ...]

# Below this number of index points bounds are found by enumeration, so they are exact.
_ENUMERATION_LIMIT = 1024


@dataclass(frozen=True)
class Quotient:
    """The atom ``dividend // divisor`` (floor division by a constant of at least 2)."""

    dividend: Expr
    divisor: int

    @cached_property
    def key(self) -> tuple[int, int, str]:
        return (1, self.divisor, self.dividend.text)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.dividend, self.divisor))


Atom = int | Quotient


def _term_key(term: tuple[Atom, int]) -> tuple[int, int, str]:
    atom = term[0]
    return (0, atom, "") if isinstance(atom, int) else atom.key


@dataclass(frozen=True, init=False)
class Expr:
    """``constant + sum(coefficient * atom)``; terms are sorted, coefficients are never zero."""

    constant: int
    terms: tuple[tuple[Atom, int], ...] = ()

    def __init__(self, constant: int, terms: tuple[tuple[Atom, int], ...] = ()) -> None:
        # Expressions are made by the million: this is what the frozen dataclass would do, without its detour.
        own = self.__dict__
        own["constant"] = constant
        own["terms"] = terms

    def __hash__(self) -> int:
        found: int | None = self.__dict__.get("hash")
        if found is None:
            found = self.__dict__["hash"] = hash((self.constant, self.terms))
        return found

    @staticmethod
    def of(constant: int, terms: Mapping[Atom, int]) -> Expr:
        kept = [term for term in terms.items() if term[1]]
        if len(kept) > 1:
            kept.sort(key=_term_key)
        return Expr(constant, tuple(kept))

    @cached_property
    def text(self) -> str:
        parts: list[str] = []
        for atom, coefficient in self.terms:
            name = f"i{atom}" if isinstance(atom, int) else f"({atom.dividend.text})//{atom.divisor}"
            if not isinstance(atom, int) and coefficient != 1:
                name = f"({name})"
            factor = "" if abs(coefficient) == 1 else f"{abs(coefficient)}*"
            parts.append(("-" if coefficient < 0 else "+" if parts else "") + factor + name)
        if self.constant or not parts:
            parts.append(f"{self.constant:+d}" if parts else str(self.constant))
        return "".join(parts)

    def __str__(self) -> str:
        return self.text

    def __add__(self, other: Expr | int) -> Expr:
        if isinstance(other, int):
            return Expr(self.constant + other, self.terms)
        if not other.terms:
            return Expr(self.constant + other.constant, self.terms)
        if not self.terms:
            return Expr(self.constant + other.constant, other.terms)
        terms = dict(self.terms)
        for atom, coefficient in other.terms:
            terms[atom] = terms.get(atom, 0) + coefficient
        return Expr.of(self.constant + other.constant, terms)

    def __neg__(self) -> Expr:
        return self * -1

    def __sub__(self, other: Expr | int) -> Expr:
        return self + (-other)

    def __mul__(self, factor: int) -> Expr:
        if factor == 0:
            return Expr(0)
        if factor == 1:
            return self
        return Expr(self.constant * factor, tuple([(atom, c * factor) for atom, c in self.terms]))

    def coefficient(self, atom: Atom) -> int:
        """The coefficient of an atom, 0 when it does not occur."""
        return next((c for a, c in self.terms if a == atom), 0)

    @cached_property
    def iterators(self) -> frozenset[int]:
        """All iterators the expression depends on, inside quotients too."""
        found: set[int] = set()
        for atom, _ in self.terms:
            if isinstance(atom, int):
                found.add(atom)
            else:
                found |= atom.dividend.iterators
        return frozenset(found)

    @cached_property
    def quotients(self) -> tuple[tuple[Quotient, int], ...]:
        return tuple((atom, c) for atom, c in self.terms if isinstance(atom, Quotient))

    @property
    def is_affine(self) -> bool:
        return not self.quotients

    @property
    def is_constant(self) -> bool:
        return not self.terms

    def as_iterator(self) -> int | None:
        """The iterator this expression is, if it is exactly one."""
        if self.constant == 0 and len(self.terms) == 1 and self.terms[0][1] == 1 and isinstance(self.terms[0][0], int):
            return self.terms[0][0]
        return None


def constant(value: int) -> Expr:
    return Expr(value)


@cache
def iterator(index: int) -> Expr:
    return Expr(0, ((index, 1),))


def evaluate(expr: Expr, points: Callable[[int], np.ndarray] | Sequence[np.ndarray]) -> np.ndarray:
    """Value of the expression; ``points`` gives the (broadcastable int64) values of each iterator."""
    get = points if callable(points) else points.__getitem__
    total: np.ndarray = np.asarray(expr.constant, dtype=np.int64)
    for atom, coefficient in expr.terms:
        value = get(atom) if isinstance(atom, int) else evaluate(atom.dividend, get) // atom.divisor
        total = total + coefficient * value
    return total


@lru_cache(maxsize=200_000)
def bounds(expr: Expr, extents: Extents) -> tuple[int, int]:
    """Inclusive lower and upper bound over all index points of ``extents`` (exact when affine or the domain is
    small)."""
    if not expr.quotients:
        low = high = expr.constant
        for atom, c in expr.terms:
            last = max(extents[atom] - 1, 0) * c  # type: ignore[index]
            low, high = low + min(0, last), high + max(0, last)
        return low, high
    involved = sorted(expr.iterators)
    if prod(extents[i] for i in involved) <= _ENUMERATION_LIMIT and all(extents[i] > 0 for i in involved):
        grids = np.meshgrid(*(np.arange(extents[i]) for i in involved), indexing="ij", sparse=True)
        values = evaluate(expr, dict(zip(involved, grids, strict=True)).__getitem__)
        return int(values.min()), int(values.max())
    return _interval(expr, extents)


def _interval(expr: Expr, extents: Extents) -> tuple[int, int]:
    low = high = expr.constant
    for atom, c in expr.terms:
        if isinstance(atom, int):
            ends = (0, max(extents[atom] - 1, 0))
        else:
            inner = bounds(atom.dividend, extents)
            ends = (inner[0] // atom.divisor, inner[1] // atom.divisor)
        low, high = low + min(c * ends[0], c * ends[1]), high + max(c * ends[0], c * ends[1])
    # e - d*(e//d) lies in [0, d-1]; so does (e//a) - k*(e//(a*k)) in [0, k-1].
    for atom, c in expr.quotients:
        candidates: list[tuple[Expr, int]] = [(atom.dividend, atom.divisor)]
        candidates += [
            (Expr(0, ((other, 1),)), atom.divisor // other.divisor)
            for other, _ in expr.quotients
            if other != atom and other.dividend == atom.dividend and atom.divisor % other.divisor == 0
        ]
        for whole, modulus in candidates:
            if c % modulus:
                continue
            factor = -(c // modulus)
            rest = expr - whole * factor - Expr(0, ((atom, c),))
            if len(rest.quotients) >= len(expr.quotients):
                continue
            rest_low, rest_high = bounds(rest, extents)
            residue = (0, modulus - 1)
            low = max(low, rest_low + min(factor * residue[0], factor * residue[1]))
            high = min(high, rest_high + max(factor * residue[0], factor * residue[1]))
    return low, high


def is_injective(expr: Expr, extents: Extents) -> bool:
    """True when an affine expression takes every value at most once: a mixed-radix number of its iterators."""
    if not expr.is_affine:
        return False
    reach = 1
    for c, i in sorted((abs(c), i) for i, c in expr.terms if isinstance(i, int)):
        if c < reach:
            return False
        reach = c * (extents[i] - 1) + reach
    return True


@lru_cache(maxsize=200_000)
def floordiv(expr: Expr, divisor: int, extents: Extents) -> Expr:
    """Canonical ``expr // divisor`` over the index points of ``extents``; ``divisor`` must be positive."""
    if divisor <= 0:
        raise EgraphOptError(f"floor division of an index expression by {divisor}; the divisor must be positive")
    if divisor == 1:
        return expr
    # (d*a + b)//d = a + b//d
    outside: dict[Atom, int] = {}
    inside: dict[Atom, int] = {}
    for atom, c in expr.terms:
        whole = int(c / divisor)
        if whole:
            outside[atom] = whole
        if c - whole * divisor:
            inside[atom] = c - whole * divisor
    pulled = Expr.of(expr.constant // divisor, outside)
    rest = Expr.of(expr.constant % divisor, inside)
    return pulled + _floordiv_rest(rest, divisor, extents)


def _floordiv_rest(rest: Expr, divisor: int, extents: Extents) -> Expr:
    low, high = bounds(rest, extents)
    if low // divisor == high // divisor:
        return Expr(low // divisor)
    # (g*a + b)//(g*k) = a//k when 0 <= b < g; the plain gcd is the case b = constant.
    for part in sorted({gcd(divisor, abs(c)) for _, c in rest.terms}, reverse=True):
        if part == 1:
            continue
        multiples = Expr(0, tuple((atom, c) for atom, c in rest.terms if c % part == 0))
        others = Expr(rest.constant % part, tuple((atom, c) for atom, c in rest.terms if c % part))
        other_low, other_high = bounds(others, extents)
        if other_low >= 0 and other_high < part:
            whole = Expr(rest.constant // part, tuple((atom, c // part) for atom, c in multiples.terms))
            return floordiv(whole, divisor // part, extents)
    # (e//a + x)//b = (e + a*x)//(a*b) for integer x
    if len(rest.quotients) == 1 and rest.quotients[0][1] == 1:
        inner = rest.quotients[0][0]
        x = rest - Expr(0, ((inner, 1),))
        return floordiv(inner.dividend + x * inner.divisor, inner.divisor * divisor, extents)
    return Expr(0, ((Quotient(rest, divisor), 1),))


def modulo(expr: Expr, divisor: int, extents: Extents) -> Expr:
    """Canonical ``expr % divisor`` (in ``[0, divisor)``), written with a floor division."""
    return expr - floordiv(expr, divisor, extents) * divisor


def substitute(expr: Expr, replacements: Sequence[Expr] | Mapping[int, Expr], extents: Extents) -> Expr:
    """Replace iterator ``i`` by ``replacements[i]``; ``extents`` are those of the iterators in the replacements."""
    total = expr.constant
    terms: dict[Atom, int] = {}
    for atom, c in expr.terms:
        if isinstance(atom, int):
            value = replacements[atom]
        else:
            value = floordiv(substitute(atom.dividend, replacements, extents), atom.divisor, extents)
        total += value.constant * c
        for inner, k in value.terms:
            terms[inner] = terms.get(inner, 0) + k * c
    return Expr.of(total, terms)


def parse(text: str, extents: Extents) -> Expr:
    """Read the text form; also accepts ``%``. Raises EgraphOptError on anything that is not quasi-affine."""

    def walk(node: ast.expr) -> Expr:
        match node:
            case ast.Constant(value=int(value)) if not isinstance(value, bool):
                return Expr(value)
            case ast.Name(id=name) if name.startswith("i") and name[1:].isdigit() and int(name[1:]) < len(extents):
                return iterator(int(name[1:]))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -walk(operand)
            case ast.BinOp(left=left, op=operator, right=right):
                a, b = walk(left), walk(right)
                match operator:
                    case ast.Add():
                        return a + b
                    case ast.Sub():
                        return a - b
                    case ast.Mult() if a.is_constant or b.is_constant:
                        return b * a.constant if a.is_constant else a * b.constant
                    case ast.FloorDiv() if b.is_constant:
                        return floordiv(a, b.constant, extents)
                    case ast.Mod() if b.is_constant:
                        return modulo(a, b.constant, extents)
        raise EgraphOptError(f"not a quasi-affine index expression over {len(extents)} iterators: {text!r}")

    try:
        return walk(ast.parse(text.strip(), mode="eval").body)
    except SyntaxError as error:
        raise EgraphOptError(f"not an index expression: {text!r}") from error
