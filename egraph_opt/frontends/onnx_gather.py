"""Constant index tensors as quasi-affine expressions."""

from __future__ import annotations

import numpy as np

from egraph_opt.frontends.onnx_model import Array
from egraph_opt.ir import expr as ex
from egraph_opt.ir.expr import Expr, Extents


def fit(values: Array, extents: Extents, first: int = 0) -> Expr | None:
    """The expression over iterators ``first, first + 1, …`` of ``extents`` that equals ``values`` everywhere.

    Found are sums of one function per axis, each affine or built of ``i % d`` and ``i // d``; anything else gives None.
    """
    if values.size == 0:
        return None
    corner = (0,) * values.ndim
    base = int(values[corner])
    total = Expr(base)
    rebuilt = values.dtype.type(base)
    for axis in range(values.ndim):
        position: tuple[int | slice, ...] = (*corner[:axis], slice(None), *corner[axis + 1 :])
        line = np.asarray(values[position]) - base
        part = _fit_line(line, ex.iterator(first + axis), extents)
        if part is None:
            return None
        total = total + part
        rebuilt = rebuilt + line.reshape([-1 if i == axis else 1 for i in range(values.ndim)])
    return total if (rebuilt == values).all() else None


def _fit_line(line: Array, i: Expr, extents: Extents) -> Expr | None:
    """``line[i]`` with ``line[0] = 0``; peels off one digit of a mixed-radix numeral at a time."""
    if len(line) == 1:
        return Expr(0)
    step = int(line[1])
    breaks = (line[1:] - line[:-1] != step).nonzero()[0]
    if not len(breaks):
        return i * step
    digit = int(breaks[0]) + 1
    blocks = line[::digit]
    inside = line[:digit]
    whole = (blocks[:, None] + inside[None, :]).ravel()[: len(line)]
    if not (whole == line).all():
        return None
    rest = _fit_line(blocks, ex.floordiv(i, digit, extents), extents)
    return None if rest is None else rest + ex.modulo(i, digit, extents) * step


def runs(values: Array, most: int) -> list[tuple[int, int, int, int]] | None:
    """A vector as arithmetic progressions (start, count, first value, step) one after the other; None for more than
    ``most``."""
    found = list[tuple[int, int, int, int]]()
    steps = np.diff(values)
    start = 0
    while start < len(values):
        if len(found) == most:
            return None
        step = int(steps[start]) if start < len(steps) else 0
        other = (steps[start:] != step).nonzero()[0]
        count = int(other[0]) + 1 if len(other) else len(values) - start
        found.append((start, count, int(values[start]), step if count > 1 else 0))
        start += count
    return found
