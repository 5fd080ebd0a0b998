"""What an operator encoding sees of the node it encodes, and how it declines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np
from onnx import AttributeProto, NodeProto

from egraph_opt.frontends.onnx_model import Array, LoadedModel, TensorType
from egraph_opt.ir.expr import Extents
from egraph_opt.ir.terms import Read, Source, Tensor

# Operators with more arguments stay opaque: they become nested terms, and terms are walked recursively.
LARGEST_ARITY = 64
# Positions of one axis that are written out one by one.
LARGEST_AXIS = 1 << 22

AttributeValue = int | float | str | tuple[int, ...] | tuple[float, ...]


class Declined(Exception):  # noqa: N818 - not an error: the node stays opaque
    """Raised by an encoding whose node is outside the algebra; the message says why."""


def require(condition: object, reason: str) -> None:
    if not condition:
        raise Declined(reason)


@dataclass
class FreshConstants:
    """Constant sources made while encoding; names are deterministic and never those of the model."""

    taken: frozenset[str]
    values: dict[str, Array] = field(default_factory=dict)

    def add(self, value: Array, hint: str) -> Source:
        number = 0
        while (name := f"{hint}_{number}" if number else hint) in self.taken or name in self.values:
            number += 1
        self.values[name] = np.asarray(value, dtype=np.float32, order="C")
        return Source(name, tuple(value.shape), constant=True)

    def forget_after(self, count: int) -> None:
        """Drop what was added after there were ``count`` values."""
        while len(self.values) > count:
            self.values.popitem()


@dataclass
class NodeContext:
    """One node, the types and constants around it, and the attributes read so far."""

    node: NodeProto
    opset: int
    loaded: LoadedModel
    fresh: FreshConstants
    _read: set[str] = field(default_factory=set)

    @property
    def inputs(self) -> int:
        """Number of inputs; trailing absent ones do not count."""
        return max((i + 1 for i, name in enumerate(self.node.input) if name), default=0)

    def has(self, position: int) -> bool:
        return position < len(self.node.input) and bool(self.node.input[position])

    def input_type(self, position: int) -> TensorType:
        require(self.has(position), f"input {position} is absent")
        return self.loaded.type_of(self.node.input[position])

    def tensor(self, position: int) -> Tensor:
        """An input as a term: float32 and of static shape, else Declined."""
        name, known = self.node.input[position] if self.has(position) else "", self.input_type(position)
        require(known.is_algebraic and known.shape is not None, f"{name!r} is not a float32 tensor of static shape")
        return Read(Source(name, known.shape or (), constant=name in self.loaded.constants))

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(self.tensor(i) for i in range(len(self.node.input)))

    def known(self, position: int) -> Array | None:
        """The value of an input where it is constant, else None."""
        return self.loaded.constants.get(self.node.input[position]) if self.has(position) else None

    def constant(self, position: int) -> Array | None:
        """The value of an input; None if the input is absent; Declined if it is not constant."""
        if not self.has(position):
            return None
        value = self.loaded.constants.get(self.node.input[position])
        require(value is not None, f"{self.node.input[position]!r} is not constant")
        return value

    def integers(self, position: int, attribute: str, *, as_input: bool) -> tuple[int, ...] | None:
        """Integers that are an input at later opsets and an attribute at earlier ones; None when not given."""
        if not as_input:
            found = self.attribute(attribute, None)
            return None if found is None else _integers(found)
        value = self.constant(position)
        return None if value is None else tuple(int(n) for n in value.ravel())

    def attribute(self, name: str, default: AttributeValue | None) -> AttributeValue | None:
        self._read.add(name)
        for attribute in self.node.attribute:
            if attribute.name == name:
                return _value(attribute)
        return default

    def integer(self, name: str, default: int) -> int:
        value = self.attribute(name, default)
        require(isinstance(value, int), f"attribute {name} is not an integer")
        return int(value)  # type: ignore[arg-type]

    def number(self, name: str, default: float) -> float:
        value = self.attribute(name, default)
        require(isinstance(value, float), f"attribute {name} is not a float")
        return float(value)  # type: ignore[arg-type]

    def text(self, name: str, default: str) -> str:
        value = self.attribute(name, default)
        require(isinstance(value, str), f"attribute {name} is not a string")
        return str(value)

    def integer_list(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        return _integers(self.attribute(name, default))

    def only_output(self) -> None:
        """Declined when the node has more than its first result."""
        require(not any(self.node.output[1:]), "it has more than one result")

    def only_output_used(self) -> None:
        """Declined when something reads more than the node's first result."""
        require(not self.loaded.used.intersection(self.node.output[1:]), "more than one result is used")

    def unread_attributes(self) -> list[str]:
        return sorted({attribute.name for attribute in self.node.attribute} - self._read)

    def ignore(self, *names: str) -> None:
        """Attributes without influence on what is encoded."""
        self._read |= set(names)

    def fresh_constant(self, value: Array, purpose: str) -> Tensor:
        return Read(self.fresh.add(value, f"{self.node.output[0]}/{purpose}"))


Encode = Callable[[NodeContext], tuple[Tensor | None, ...]]


@dataclass(frozen=True)
class OperatorEncoding:
    """How nodes of one standard operator become terms, one per result (None for an absent one).

    ``since`` is the first opset whose meaning ``encode`` knows; it raises Declined for nodes outside the algebra.
    ``outside`` says which those are, for the table of operators; what holds for all of them is not repeated there.
    """

    op_type: str
    encode: Encode
    since: int = 1
    outside: str = ""


def size(extents: Extents) -> int:
    return prod(extents)


def normal_axis(axis: int, rank: int) -> int:
    require(-rank <= axis < rank, f"axis {axis} of {rank}")
    return axis % rank


def normal_axes(axes: tuple[int, ...], rank: int) -> tuple[int, ...]:
    found = tuple(normal_axis(axis, rank) for axis in axes)
    require(len(set(found)) == len(found), f"axes {list(axes)} repeat")
    return found


def _value(attribute: AttributeProto) -> AttributeValue:
    match attribute.type:
        case AttributeProto.INT:
            return attribute.i
        case AttributeProto.FLOAT:
            return attribute.f
        case AttributeProto.STRING:
            return attribute.s.decode("utf-8", "replace")
        case AttributeProto.INTS:
            return tuple(attribute.ints)
        case AttributeProto.FLOATS:
            return tuple(attribute.floats)
    raise Declined(f"attribute {attribute.name} has an unusual type")


def _integers(value: object) -> tuple[int, ...]:
    require(
        isinstance(value, tuple) and all(isinstance(n, int) for n in value), "an attribute is not a list of integers"
    )
    return tuple(value)  # type: ignore[arg-type]


Catalogue = Mapping[str, OperatorEncoding]
