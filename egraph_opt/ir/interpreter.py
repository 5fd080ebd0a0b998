"""The judge: evaluates every term with numpy, in floating point or exactly in integers modulo a prime.

In the modular arithmetic a scalar function that is not a ring operation is a fixed pseudo-random polynomial of its
arguments: rules must hold whatever the function is, so equal values there are strong evidence for equal terms.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from fractions import Fraction
from math import prod
from typing import Any, Protocol

import numpy as np

from egraph_opt.errors import EgraphOptError
from egraph_opt.ir import library, maps, scalar
from egraph_opt.ir.formulas import evaluated
from egraph_opt.ir.program import Plan, Program
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
)

Array = np.ndarray[Any, Any]


class Arithmetic(Protocol):
    """Number system terms are evaluated in.

    ``contracts``: a sum of products may be taken without making the products, in any order.
    """

    @property
    def contracts(self) -> bool: ...
    def fill(self, value: Fraction, extents: tuple[int, ...]) -> Array: ...
    def apply(self, function: str, *arguments: Array) -> Array: ...
    def reduce(self, operation: str, values: Array, count: int) -> Array: ...
    def softmax(self, values: Array, count: int) -> Array: ...
    def reduce_product(self, left: Array, right: Array) -> Array: ...
    def outside(self, fill: float) -> Any: ...
    def normal(self, values: Array) -> Array: ...


@dataclass(frozen=True)
class FloatArithmetic:
    """IEEE arithmetic of one dtype; float64 serves as the reference for float32 programs."""

    dtype: Any = np.float64
    contracts = True

    def fill(self, value: Fraction, extents: tuple[int, ...]) -> Array:
        return np.full(extents, float(value), dtype=self.dtype)

    def apply(self, function: str, *arguments: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(scalar.lookup(function)(*arguments), dtype=self.dtype)

    def reduce(self, operation: str, values: Array, count: int) -> Array:
        axes = tuple(range(values.ndim - count, values.ndim))
        if operation == "sum":
            return np.asarray(values.sum(axis=axes))
        if operation == "pool":
            return np.asarray(np.maximum(np.fmax.reduce(values, axis=axes), self.dtype(np.finfo(np.float32).min)))
        return np.asarray(values.max(axis=axes) if operation == "max" else values.min(axis=axes))

    def softmax(self, values: Array, count: int) -> Array:
        axes = tuple(range(values.ndim - count, values.ndim))
        with np.errstate(all="ignore"):
            raised = np.exp(values - values.max(axis=axes, keepdims=True))
            return np.asarray(raised / raised.sum(axis=axes, keepdims=True))

    def reduce_product(self, left: Array, right: Array) -> Array:
        return np.asarray(left @ right)

    def outside(self, fill: float) -> float:
        return fill

    def normal(self, values: Array) -> Array:
        return np.asarray(values, dtype=self.dtype)


@dataclass(frozen=True)
class ModularArithmetic:
    """Integers modulo a prime below 2**24, so a sum of 2**14 products still fits into int64.

    Functions that users added are what their definitions say, so a rule may relate them to other functions.
    """

    prime: int = 16777213
    contracts = True

    def fill(self, value: Fraction, extents: tuple[int, ...]) -> Array:
        return np.full(extents, value.numerator * pow(value.denominator, -1, self.prime) % self.prime, dtype=np.int64)

    def apply(self, function: str, *arguments: Array) -> Array:
        base = function.partition(":")[0]
        p = self.prime
        if base == "add":
            return np.asarray((arguments[0] + arguments[1]) % p)
        if base == "sub":
            return np.asarray((arguments[0] - arguments[1]) % p)
        if base == "mul":
            return np.asarray(arguments[0] * arguments[1] % p)
        if base == "neg":
            return np.asarray(-arguments[0] % p)
        if base == "max":
            return np.maximum(*arguments)
        if base == "min":
            return np.minimum(*arguments)
        applied = scalar.lookup(function)
        if applied.exact and applied.formula is not None:
            return np.asarray(evaluated(applied.formula, self._step, arguments, self._number))
        seed = zlib.crc32(function.encode())
        total = np.zeros_like(arguments[0]) if applied.keeps_zero else np.full_like(arguments[0], seed % p)
        mixed = np.zeros_like(arguments[0])
        for position, argument in enumerate(arguments):
            mixed = (mixed * 48271 + argument * (seed % 7919 + position + 2)) % p
        return np.asarray((total + mixed * mixed % p * mixed + mixed * (seed % 104729 + 1)) % p)

    def _step(self, function: str, *operands: Array) -> Array:
        return self.apply(function, *np.broadcast_arrays(*operands))

    def _number(self, value: Fraction) -> Array:
        return self.fill(value, ())

    def reduce(self, operation: str, values: Array, count: int) -> Array:
        axes = tuple(range(values.ndim - count, values.ndim))
        if operation == "sum":
            return np.asarray(values.sum(axis=axes) % self.prime)
        return np.asarray(values.min(axis=axes) if operation == "min" else values.max(axis=axes))

    def softmax(self, values: Array, count: int) -> Array:
        axes = tuple(range(values.ndim - count, values.ndim))
        weights = self.apply("exp", values)
        total = weights.sum(axis=axes, keepdims=True) % self.prime
        return np.asarray((weights * (total * total % self.prime + 12289)) % self.prime)

    def reduce_product(self, left: Array, right: Array) -> Array:
        return np.asarray(left @ right % self.prime)

    def outside(self, fill: float) -> int:
        # -inf is smaller than every residue, +inf larger; other fills are exact fractions.
        if fill in (float("-inf"), float("inf")):
            return -1 if fill < 0 else self.prime
        value = Fraction(fill)
        return value.numerator * pow(value.denominator, -1, self.prime) % self.prime

    def normal(self, values: Array) -> Array:
        return np.asarray(values, dtype=np.int64)


@dataclass
class Interpreter:
    """Evaluates terms over named buffers; results of equal buffers are kept."""

    values: MutableMapping[str, Array]
    arithmetic: Arithmetic = field(default_factory=FloatArithmetic)

    def tensor(self, term: Tensor) -> Array:
        """Values of a tensor term: an array of the term's extents. Raises EgraphOptError for an unknown source."""
        arithmetic = self.arithmetic
        match term:
            case Read(buffer):
                return self.buffer(buffer)
            case View(inner, index):
                return view(self.tensor(inner), index, arithmetic)
            case Reduce("sum", Apply("mul", (View() as left, View() as right)), count) if arithmetic.contracts:
                return contraction(
                    self.tensor(left.tensor), left.map, self.tensor(right.tensor), right.map, count, arithmetic
                )
            case Reduce(operation, inner, count):
                return arithmetic.reduce(operation, self.tensor(inner), count)
            case Apply(function, arguments):
                return arithmetic.apply(function, *(self.tensor(argument) for argument in arguments))
            case Softmax(inner, count):
                return arithmetic.softmax(self.tensor(inner), count)
            case Fill(value, extents):
                return arithmetic.fill(value, extents)

    def buffer(self, term: Buffer) -> Array:
        """Contents of a buffer term."""
        match term:
            case Source(name, extents, _):
                if name not in self.values:
                    raise EgraphOptError(f"no value for source {name!r}; known: {', '.join(sorted(self.values))}")
                values = self.arithmetic.normal(self.values[name])
                if values.size == prod(extents):
                    return values.reshape(extents)
                if values.shape != extents:
                    raise EgraphOptError(f"source {name!r} has shape {list(values.shape)}, not {list(extents)}")
                return values
            case Compute(tensor):
                return self.tensor(tensor)
            case Reshape(buffer, extents):
                return self.buffer(buffer).reshape(extents)
            case Call(operator, attributes, arguments, extents):
                values = library.evaluate(
                    operator,
                    library.parse_attributes(attributes),
                    [self.buffer(a) for a in arguments],
                    extents,
                    self.arithmetic,
                )
                if values.shape != extents:
                    raise EgraphOptError(
                        f"{operator}[{attributes}] gives {list(values.shape)}, declared {list(extents)}"
                    )
                return values


def view(values: Array, index: maps.IndexMap, arithmetic: Arithmetic) -> Array:
    """``view(values, index)``; shape ``index.result``."""
    if index.permutation is not None:
        return np.transpose(values, index.permutation)
    return maps.gathered(values, index, arithmetic.outside(index.fill))


def contraction(
    left: Array, left_map: maps.IndexMap, right: Array, right_map: maps.IndexMap, count: int, arithmetic: Arithmetic
) -> Array:
    """``sum`` over the last ``count`` iterators of the product of two views, without materializing the whole
    product."""
    extents = left_map.result
    rank, out = len(extents), len(extents) - count
    operands = []
    subscripts = []
    for values, index in ((left, left_map), (right, right_map)):
        used = sorted(set().union(*(e.iterators for e in (*index.indices, *index.guards))))
        kept = [i if i in used else None for i in range(rank)]
        reduced = maps.index_map(
            index.source,
            [extents[i] if k is not None else 1 for i, k in enumerate(kept)],
            index.indices,
            index.guards,
            index.fill,
        )
        operands.append(view(values, reduced, arithmetic).reshape([extents[i] for i in used]))
        subscripts.append(used)
    missing = [i for i in range(rank) if i not in subscripts[0] and i not in subscripts[1]]
    if missing:
        operands.append(arithmetic.fill(Fraction(1), tuple(extents[i] for i in missing)))
        subscripts.append(missing)
    exact = np.issubdtype(operands[0].dtype, np.integer)
    pairs = [item for operand, subscript in zip(operands, subscripts, strict=True) for item in (operand, subscript)]
    result = np.einsum(*pairs, list(range(out)), optimize=not exact)
    return (
        arithmetic.normal(result % arithmetic.prime)
        if isinstance(arithmetic, ModularArithmetic)
        else np.asarray(result)
    )


def evaluate(term: Tensor, values: Mapping[str, Array], arithmetic: Arithmetic | None = None) -> Array:
    """Value of one tensor term over named source arrays (float64 unless another arithmetic is given)."""
    return Interpreter(dict(values), arithmetic or FloatArithmetic()).tensor(term)


def run_program(
    program: Program, inputs: Mapping[str, Array], arithmetic: Arithmetic | None = None
) -> dict[str, Array]:
    """All outputs of a program by name."""
    interpreter = Interpreter({**program.constants, **inputs}, arithmetic or FloatArithmetic())
    for name, term in program.definitions:
        interpreter.values[name] = interpreter.tensor(term)
    return {name: interpreter.values[name] for name in program.outputs}


def run_plan(plan: Plan, inputs: Mapping[str, Array], arithmetic: Arithmetic | None = None) -> dict[str, Array]:
    """All outputs of a plan by the program's output names."""
    interpreter = Interpreter({**plan.constants, **inputs}, arithmetic or FloatArithmetic())
    for step in plan.steps:
        interpreter.values[step.name] = interpreter.buffer(step.buffer).reshape(step.extents)
    return {output: interpreter.values[name] for output, name in plan.outputs.items()}
