"""Programs (what is to be computed) and plans (how it will be): both are lists of named definitions.

A *program* defines tensors by terms over the program's sources and over tensors defined earlier, referred to by
``Read(Source(name, extents))``. A *plan* is a list of steps, each of which fills one buffer from buffers that exist
already.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from egraph_opt.ir.expr import Extents
from egraph_opt.ir.terms import Apply, Call, Compute, Fill, Read, Reduce, Reshape, Softmax, Source, Tensor, View, leaves


@dataclass(frozen=True)
class Program:
    """``definitions`` in execution order; ``constants`` holds the values of the sources marked constant (float32)."""

    inputs: tuple[Source, ...]
    definitions: tuple[tuple[str, Tensor], ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """Fill buffer ``name`` by a library call, a generated kernel or a reshape; its arguments are Sources only.

    A kernel may declare its result under another ``shape`` of the same size, and may read its arguments under other
    extents than they were declared with: kernels see memory only.
    """

    name: str
    buffer: Call | Compute | Reshape
    shape: Extents | None = None

    @property
    def extents(self) -> Extents:
        return self.buffer.extents if self.shape is None else self.shape

    @property
    def arguments(self) -> tuple[Source, ...]:
        match self.buffer:
            case Call(_, _, arguments, _):
                found = arguments
            case Compute(tensor):
                found = tuple(leaves(tensor))
            case Reshape(buffer, _):
                found = (buffer,)
        return tuple(source for source in found if isinstance(source, Source))


@dataclass(frozen=True)
class Plan:
    """Steps in execution order. ``outputs`` maps each output tensor of the program to the buffer that holds it.

    ``constants`` are the weights of the program that the steps use and those folded ahead of time (float32).
    """

    inputs: tuple[Source, ...]
    steps: tuple[Step, ...]
    outputs: Mapping[str, str]
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)


def rename(tensor: Tensor, names: Mapping[str, str]) -> Tensor:
    """The same kernel body with its sources renamed."""
    match tensor:
        case Read(Source() as source):
            return Read(replace(source, name=names.get(source.name, source.name), constant=False))
        case View(inner, index):
            return View(rename(inner, names), index)
        case Reduce(operation, inner, count):
            return Reduce(operation, rename(inner, names), count)
        case Softmax(inner, count):
            return Softmax(rename(inner, names), count)
        case Apply(function, arguments):
            return Apply(function, tuple(rename(argument, names) for argument in arguments))
        case Fill() | Read():
            return tensor


def kernel_signature(tensor: Tensor) -> tuple[Tensor, tuple[Source, ...]]:
    """A kernel body with its sources renamed ``in0, in1, …`` in order of first appearance, and the sources in that
    order.

    Two steps with equal signatures can share one compiled kernel, whatever buffers they read.
    """
    arguments = tuple(source for source in leaves(tensor) if isinstance(source, Source))
    return rename(tensor, {source.name: f"in{i}" for i, source in enumerate(arguments)}), arguments
