"""Definitions of scalar functions by other scalar functions, as straight-line steps.

A definition is a Python function; it is called once with symbols for its arguments, and what it does to them is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from egraph_opt.errors import EgraphOptError

# Steps of one definition: kernels write all of them out.
LONGEST = 64


@dataclass(frozen=True)
class Step:
    """A function of values: numbers, or positions (the arguments first, then the results of the steps before)."""

    function: str
    operands: tuple[int | Fraction, ...]


@dataclass(frozen=True)
class Formula:
    """``steps`` in order over ``arity`` arguments; the last one is the result."""

    arity: int
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        texts = [f"x{i}" for i in range(self.arity)]
        for step in self.steps:
            operands = (f"{o}" if isinstance(o, Fraction) else texts[o] for o in step.operands)
            texts.append(f"{step.function}({', '.join(operands)})")
        return texts[-1]

    def keeps_zero(self, known: Callable[[str], bool]) -> bool:
        """Whether the result is zero for zero arguments, whatever the functions of which nothing is ``known`` are."""
        zero = [True] * self.arity
        for step in self.steps:
            zeros = [o == 0 if isinstance(o, Fraction) else zero[o] for o in step.operands]
            zero.append(any(zeros) if step.function == "mul" else all(zeros) and known(step.function))
        return zero[-1]


@dataclass(frozen=True, eq=False)
class _Symbol:
    position: int


def trace(
    name: str, definition: Callable[..., Any], arity: int, parameters: Sequence[float], arity_of: Callable[[str], int]
) -> Formula:
    """The steps of ``definition(f, *arguments, *parameters)``.

    ``arity_of`` gives the number of arguments of a function and raises EgraphOptError for an unknown one. Raises
    EgraphOptError, naming the function and the step, for a definition that is not a composition of known functions.
    """
    steps: list[Step] = []
    known: dict[str, _Symbol] = {}

    def refuse(problem: str) -> EgraphOptError:
        return EgraphOptError(f"definition of the scalar function {name!r}: {problem}")

    def operand(value: Any) -> int | Fraction:
        if isinstance(value, _Symbol):
            return value.position
        try:
            return Fraction(value) if isinstance(value, Fraction | int) else Fraction(float(value))
        except (TypeError, ValueError, OverflowError):
            raise refuse(f"{value!r} is neither an argument, a result of f(…) nor a finite number") from None

    def f(function: str, *operands: object) -> _Symbol:
        if not isinstance(function, str):
            raise refuse(f"f takes the name of a function first, not {function!r}")
        try:
            wanted = arity_of(function)
        except EgraphOptError as error:
            raise refuse(str(error)) from None
        if len(operands) != wanted:
            raise refuse(f"{function} takes {wanted} arguments, not {len(operands)}")
        if not any(isinstance(value, _Symbol) for value in operands):
            raise refuse(f"{function} of numbers only; write the number it is")
        step = Step(function, tuple(map(operand, operands)))
        key = repr(step)  # as values, the position 2 and the number 2 are equal
        if key not in known:
            if len(steps) == LONGEST:
                raise refuse(f"more than {LONGEST} steps")
            steps.append(step)
            known[key] = _Symbol(arity + len(steps) - 1)
        return known[key]

    try:
        result = definition(f, *(_Symbol(i) for i in range(arity)), *parameters)
    except EgraphOptError:
        raise
    except Exception as error:
        raise refuse(f"it raised {type(error).__name__}: {error}; symbols are combined with f(…) only") from error
    if not isinstance(result, _Symbol) or not steps:
        raise refuse("it does not return a result of f(…)")
    return _ending_with(Formula(arity, tuple(steps)), result.position, refuse)


def _ending_with(formula: Formula, position: int, refuse: Callable[[str], EgraphOptError]) -> Formula:
    if position < formula.arity:
        raise refuse("it returns an argument as it is")
    return Formula(formula.arity, formula.steps[: position - formula.arity + 1])


def evaluated(
    formula: Formula,
    apply: Callable[..., Any],
    arguments: Sequence[Any],
    number: Callable[[Fraction], Any],
) -> Any:
    """The result with ``apply(function, *values)`` for every step and ``number(value)`` for every number."""
    values = list(arguments)
    for step in formula.steps:
        operands = (number(o) if isinstance(o, Fraction) else values[o] for o in step.operands)
        values.append(apply(step.function, *operands))
    return values[-1]
