"""Operators beside those of ir.library that kernel bodies and nodes outside the algebra are written with.

They move elements, fill, or resample; rules never speak of them. Attributes are texts as in ir.library.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from egraph_opt.errors import EgraphOptError
from egraph_opt.ir import resampling
from egraph_opt.ir.expr import Extents
from egraph_opt.ir.library import integers

Array = np.ndarray[Any, Any]

FILL, RESHAPE, RESIZE, STRIDED = "Fill", "Reshape", "Resize", "Strided"
MOVES = frozenset({"Expand", FILL, "Identity", "Pad", RESHAPE, RESIZE, "Slice", STRIDED})
# Those that take no time where arrays may be views of others.
FREE = frozenset({"Expand", "Identity", RESHAPE, "Slice", STRIDED})


def slices(attributes: Mapping[str, str], rank: int) -> tuple[slice, ...]:
    """What a Slice picks of each axis."""
    starts, ends, axes = (integers(attributes[name]) for name in ("starts", "ends", "axes"))
    steps = integers(attributes["steps"]) if "steps" in attributes else (1,) * len(axes)
    found = [slice(None)] * rank
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        found[axis] = slice(start, end, step)
    return tuple(found)


def pads(attributes: Mapping[str, str]) -> tuple[tuple[tuple[int, int], ...], float]:
    """What a Pad adds before and after each axis (less than zero cuts off), and the value."""
    given = integers(attributes["pads"])
    rank = len(given) // 2
    return tuple((given[i], given[rank + i]) for i in range(rank)), float(attributes.get("value", "0"))


def matrices(attributes: Mapping[str, str], extents: Extents) -> dict[int, np.ndarray]:
    """The matrices that a Resize multiplies the axes by that it changes."""
    sizes = integers(attributes["sizes"])
    scales = [float(scale) for scale in attributes["scales"].split(",")]
    found = {
        axis: resampling.weights(
            count,
            size,
            scale,
            mode=attributes["mode"],
            transform=attributes["transform"],
            cubic=float(attributes.get("cubic", "-0.75")),
            exclude_outside=attributes.get("exclude_outside") == "1",
        )
        for axis, (count, size, scale) in enumerate(zip(extents, sizes, scales, strict=True))
    }
    return {axis: matrix for axis, matrix in found.items() if not np.array_equal(matrix, np.eye(len(matrix)))}


def evaluate(operator: str, attributes: Mapping[str, str], arguments: Sequence[Array], extents: Extents) -> Array:
    """The value of a call. Raises EgraphOptError for an operator that is none of these."""
    if operator == FILL:
        return np.full(extents, float(attributes["value"]))
    (x,) = arguments
    match operator:
        case "Identity":
            return x
        case "Reshape":
            return x.reshape(extents)
        case "Expand":
            return np.broadcast_to(x, extents)
        case "Slice":
            return x[slices(attributes, x.ndim)]
        case "Strided":
            whole = np.ascontiguousarray(x).reshape(-1)[int(attributes["offset"]) :]
            steps = tuple(n * whole.itemsize for n in integers(attributes["strides"]))
            return np.lib.stride_tricks.as_strided(whole, extents, steps, writeable=False)
        case "Pad":
            widths, value = pads(attributes)
            cut = x[tuple(slice(max(0, -a), n - max(0, -b)) for (a, b), n in zip(widths, x.shape, strict=True))]
            return np.pad(cut, [(max(0, a), max(0, b)) for a, b in widths], constant_values=value)
        case "Resize":
            for axis, matrix in matrices(attributes, x.shape).items():
                x = np.moveaxis(np.tensordot(matrix.astype(x.dtype), x, (1, axis)), 0, axis)
            return x
    raise EgraphOptError(f"no operator {operator!r} moves elements")
