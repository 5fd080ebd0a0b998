"""The operators of ir.moves by torch."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from egraph_opt.errors import EgraphOptError
from egraph_opt.ir import library, moves
from egraph_opt.ir.expr import Extents

Tensor = Any

# torch's names of the linear modes by the number of axes, which are the last ones.
_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def move(operator: str, attributes: str, x: Tensor, extents: Extents) -> Tensor:
    """The value of a call, which may share memory with ``x``. Raises EgraphOptError for an unknown operator."""
    given = library.parse_attributes(attributes)
    match operator:
        case "Identity":
            return x
        case "Reshape":
            return x.reshape(extents)
        case "Expand":
            return x.expand(extents)
        case "Slice":
            for axis, part in enumerate(moves.slices(given, x.dim())):
                x = _picked(x, axis, range(*part.indices(x.shape[axis])))
            return x
        case "Strided":
            whole = x.contiguous()
            offset = whole.storage_offset() + int(given["offset"])
            return whole.as_strided(extents, library.integers(given["strides"]), offset)
        case "Pad":
            return _padded(x, *moves.pads(given))
        case "Resize":
            return _resized(x, attributes)
    raise EgraphOptError(f"torch has no counterpart of {operator}")


def _picked(x: Tensor, axis: int, chosen: range) -> Tensor:
    """Some elements of an axis; torch knows no negative steps."""
    if chosen.step > 0:
        return x[(slice(None),) * axis + (slice(chosen.start, chosen.stop, chosen.step),)]
    forth = chosen[::-1]
    return x[(slice(None),) * axis + (slice(forth.start, forth.stop, forth.step),)].flip(axis)


def _padded(x: Tensor, widths: tuple[tuple[int, int], ...], value: float) -> Tensor:
    from torch.nn import functional

    return functional.pad(x, [n for pair in reversed(widths) for n in pair], value=value)


def _resized(x: Tensor, attributes: str) -> Tensor:
    import torch
    from torch.nn import functional

    given = library.parse_attributes(attributes)
    sizes, scales = library.integers(given["sizes"]), [float(scale) for scale in given["scales"].split(",")]
    count = x.dim() - 2
    exact = all(scale == size / n for scale, size, n in zip(scales, sizes, x.shape, strict=True))
    corners = given["transform"] == "align_corners"
    known = corners or given["transform"] == "half_pixel"
    if given["mode"] == "linear" and known and exact and count in _LINEAR and sizes[:2] == tuple(x.shape[:2]):
        return functional.interpolate(x, size=sizes[2:], mode=_LINEAR[count], align_corners=corners)
    for axis, matrix in _matrices(attributes, tuple(x.shape), x.device):
        x = torch.tensordot(matrix, x, ([1], [axis])).movedim(0, axis)
    return x


@lru_cache(maxsize=64)
def _matrices(attributes: str, extents: Extents, device: Any) -> list[tuple[int, Tensor]]:
    """Made once: a graph that is captured cannot hold copies from the host."""
    import torch

    found = moves.matrices(library.parse_attributes(attributes), extents)
    return [(axis, torch.tensor(matrix, dtype=torch.float32, device=device)) for axis, matrix in found.items()]
