"""Tensor programs written as expressions.

::

    x, w = tensor("x", (4, 8)), weight("w", (8, 16))
    y = apply("relu", matmul(x, w) + 1)
    windows = view(image, (6, 3), lambda h, r: h + r)  # zero outside
    print(evaluate(y, {"x": ..., "w": ...}))

Expressions are values without names of their own; :func:`to_program` turns some of them into a program whose tensors
are the operations, as the nodes of a model are. Nothing is computed before :func:`evaluate`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from egraph_opt.errors import UsageError
from egraph_opt.ir import definitions, interpreter, library, notation, printing
from egraph_opt.ir.expr import Extents
from egraph_opt.ir.expression import Expression, apply, checked_inputs, fill, made, matmul, to_program
from egraph_opt.ir.interpreter import Arithmetic, FloatArithmetic
from egraph_opt.ir.terms import Buffer, Call, Compute, Read, Reshape, Source, Tensor, View

__all__ = [
    "Expression",
    "apply",
    "call",
    "convolution",
    "evaluate",
    "fill",
    "matmul",
    "pooling",
    "tensor",
    "text",
    "to_program",
    "transposed_convolution",
    "view",
    "weight",
]


def tensor(name: str, shape: Sequence[int]) -> Expression:
    """An input of this name and shape. The same name and shape is the same input."""
    return _leaf(Source(name, _shape(name, shape)), None)


def weight(name: str, shape: Sequence[int], values: Any = None) -> Expression:
    """A tensor known ahead of time, so that work on weights alone costs nothing; ``values`` are kept as float32.

    Without values everything but evaluating and writing models works; these then ask for them.
    """
    extents = _shape(name, shape)
    if values is None:
        return _leaf(Source(name, extents, True), None)
    array = np.asarray(values, dtype=np.float32)
    if array.shape != extents:
        raise UsageError(f"weight {name!r} of shape {list(extents)} has values of shape {list(array.shape)}")
    return _leaf(Source(name, extents, True), array)


def convolution(
    x: Expression,
    w: Expression,
    *,
    strides: int | Sequence[int] = 1,
    dilations: int | Sequence[int] = 1,
    pads: int | Sequence[int] = 0,
    groups: int = 1,
) -> Expression:
    """Convolution of x [N, C, spatial…] with w [F, C/groups, kernel…]; one number is for all axes, pads as in ONNX."""
    rank = _spatial("convolution", x, w, x.shape[1:2] == (w.shape[1] * groups,) and w.shape[0] % groups == 0, groups)
    options: dict[str, Any] = {
        "strides": _each("strides", strides, rank, 1),
        "dilations": _each("dilations", dilations, rank, 1),
        "pads": _each("pads", pads, 2 * rank, 0),
        "groups": groups,
    }
    return made("convolution", lambda a, b: definitions.convolution(a, b, **options), x, w)


def transposed_convolution(
    x: Expression,
    w: Expression,
    *,
    strides: int | Sequence[int] = 1,
    dilations: int | Sequence[int] = 1,
    pads: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
) -> Expression:
    """Transposed convolution of x [N, C, spatial…] with w [C, F/groups, kernel…]."""
    fits = x.shape[1:2] == w.shape[:1] and groups > 0 and w.shape[0] % groups == 0
    rank = _spatial("transposed convolution", x, w, fits, groups)
    options: dict[str, Any] = {
        "strides": _each("strides", strides, rank, 1),
        "dilations": _each("dilations", dilations, rank, 1),
        "pads": _each("pads", pads, 2 * rank, 0),
        "output_padding": _each("output_padding", output_padding, rank, 0),
        "groups": groups,
    }
    return made("transposed convolution", lambda a, b: definitions.transposed_convolution(a, b, **options), x, w)


def pooling(
    x: Expression,
    kernel: Sequence[int],
    *,
    operation: str = "max",
    strides: int | Sequence[int] = 1,
    dilations: int | Sequence[int] = 1,
    pads: int | Sequence[int] = 0,
) -> Expression:
    """Pooling of x [N, C, spatial…] by "max" or "average" (there the padding counts as zeros)."""
    if operation not in ("max", "average"):
        raise UsageError(f"pooling by {operation!r}: choose 'max' or 'average'")
    if len(x.shape) != 2 + len(kernel):
        raise UsageError(f"pooling of {list(x.shape)} with a kernel {list(kernel)}: it needs {len(kernel) + 2} axes")
    options: dict[str, Any] = {
        "operation": operation,
        "strides": _each("strides", strides, len(kernel), 1),
        "dilations": _each("dilations", dilations, len(kernel), 1),
        "pads": _each("pads", pads, 2 * len(kernel), 0),
    }
    return made("pooling", lambda t: definitions.pooling(t, tuple(kernel), **options), x)


def view(
    x: Expression,
    shape: Sequence[int],
    index: Callable[..., Any],
    *,
    where: Callable[..., Any] | None = None,
    fill: float = 0.0,
) -> Expression:
    """``result[i…] = x[index(i…)]``: any re-indexing, written as a function of the result's iterators.

    ``view(x, (n, h, r), lambda n, h, r: (n, h + r))`` are windows. Arithmetic is quasi-affine: iterators and whole
    numbers with ``+ -``, and ``* // %`` by whole numbers. What is read outside of ``x``, or where the condition
    ``where(i…)`` (``lambda h: h % 2 == 0``; a tuple for several) does not hold, is ``fill``.
    """
    index_map = notation.index_map(x.shape, _shape("view", shape), index, where, fill)
    return made("view", lambda t: View(t, index_map), x)


def call(operator: str, *arguments: Expression, shape: Sequence[int] | None = None, **attributes: object) -> Expression:
    """The result of a library operator, as rules over operators see it: ``call("MatMul", x, w)``.

    Attributes are those of the ONNX operator; ``shape`` is that of the result, found out where it is not given. Raises
    EgraphOptError for an operator that nobody registered or arguments that do not fit.
    """
    text = library.format_attributes(**attributes)
    shapes = [argument.shape for argument in arguments]
    found = library.lookup(operator).result(library.parse_attributes(text), shapes)
    if shape is not None and tuple(shape) != found:
        raise UsageError(f"{operator} of {' and '.join(str(list(s)) for s in shapes)} is {list(found)}, not {shape}")
    return made(operator, lambda *t: Read(Call(operator, text, tuple(map(_buffer, t)), found)), *arguments)


def text(term: Expression | Tensor | Buffer) -> str:
    """One line of index notation: ``sum[i2<8](x[i0, i2] * w[i2, i1])`` is a matrix product."""
    return printing.term_text(term.term if isinstance(term, Expression) else term)


def evaluate(
    expression: Expression, inputs: Mapping[str, Any], *, arithmetic: Arithmetic | None = None
) -> np.ndarray[Any, Any]:
    """The value of an expression by its definition, in float64 unless another arithmetic is given.

    ``inputs`` holds an array for every input, and for every weight that has no values. Raises UsageError for a
    missing or unknown name or another shape.
    """
    program = to_program(expression)
    arrays = checked_inputs(program, inputs)
    return interpreter.run_program(program, arrays, arithmetic or FloatArithmetic())[program.outputs[0]]


def _leaf(source: Source, values: np.ndarray[Any, Any] | None) -> Expression:
    return Expression(source.name, (), lambda: Read(source), source, values)


def _buffer(term: Tensor) -> Buffer:
    """A tensor in memory; reshapes of memory stay such."""
    match term:
        case Read(buffer):
            return buffer
        case View(Read(buffer), index) if index.is_reshape:
            return Reshape(buffer, index.result)
    return Compute(term)


def _shape(name: str, shape: Sequence[int]) -> Extents:
    extents = tuple(shape)
    if any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in extents):
        raise UsageError(f"{name}: extents are whole numbers of at least 1, not {list(extents)}")
    return extents


def _each(option: str, values: int | Sequence[int], count: int, smallest: int) -> tuple[int, ...]:
    chosen = (values,) * count if isinstance(values, int) else tuple(values)
    if len(chosen) != count or any(value < smallest for value in chosen):
        raise UsageError(f"{option}: {count} whole numbers of at least {smallest}, not {list(chosen)}")
    return chosen


def _spatial(operation: str, x: Expression, w: Expression, fits: bool, groups: int) -> int:
    if len(x.shape) != len(w.shape) or len(x.shape) < 3 or groups < 1 or not fits:
        raise UsageError(
            f"{operation} of {list(x.shape)} with {list(w.shape)} in {groups} groups: the channels or the axes do not"
            " fit"
        )
    return len(x.shape) - 2
