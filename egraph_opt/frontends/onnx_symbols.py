"""Symbolic dimensions of a model's inputs: what they are called, and models in which they have a length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import ModelProto, ValueInfoProto

from egraph_opt.errors import UsageError
from egraph_opt.frontends.onnx_model import overridable
from egraph_opt.frontends.onnx_writer import copy_fields, copy_initializers

# Where a dimension occurs: the name of an input and an axis of it.
Place = tuple[str, int]


def symbols(model: ModelProto) -> dict[str, tuple[Place, ...]]:
    """The dimensions of the inputs that have no length, by name, each with the places where it occurs.

    A dimension without a name is called by its place: ``data[0]``.
    """
    weights = {tensor.name for tensor in model.graph.initializer} - overridable(model)
    found: dict[str, list[Place]] = {}
    for value in model.graph.input:
        if value.name in weights or not value.type.HasField("tensor_type"):
            continue
        for axis, dimension in enumerate(value.type.tensor_type.shape.dim):
            if not dimension.HasField("dim_value"):
                found.setdefault(dimension.dim_param or f"{value.name}[{axis}]", []).append((value.name, axis))
    return {name: tuple(places) for name, places in found.items()}


def lengths_of(model: ModelProto, name: str, shape: Sequence[int]) -> dict[str, int]:
    """What the symbolic dimensions of input ``name`` are when it has this shape.

    Raises UsageError where the shape does not fit the input.
    """
    value = next((value for value in model.graph.input if value.name == name), None)
    if value is None:
        raise UsageError(f"the model has no input {name!r}")
    dimensions = value.type.tensor_type.shape.dim
    lengths: dict[str, int] = {}
    fits = len(dimensions) == len(shape)
    for axis, (dimension, length) in enumerate(zip(dimensions, shape, strict=False)):
        if dimension.HasField("dim_value"):
            fits = fits and dimension.dim_value == length
        else:
            fits = fits and lengths.setdefault(dimension.dim_param or f"{name}[{axis}]", length) == length
    if not fits:
        declared = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in dimensions]
        raise UsageError(f"input {name!r} has the shape {declared}, not {list(shape)}")
    return lengths


def input_shapes(model: ModelProto, lengths: Mapping[str, int]) -> dict[str, list[int]]:
    """The shapes of the inputs that have some of these dimensions; dimensions that are not given are 1."""
    places = {place: lengths[name] for name, found in symbols(model).items() if name in lengths for place in found}
    return {
        value.name: [
            places.get((value.name, axis), dimension.dim_value if dimension.HasField("dim_value") else 1)
            for axis, dimension in enumerate(value.type.tensor_type.shape.dim)
        ]
        for value in model.graph.input
        if value.name in {name for name, _ in places}
    }


def bind(model: ModelProto, lengths: Mapping[str, int]) -> ModelProto:
    """A copy in which these symbolic dimensions of inputs and outputs have lengths.

    Raises UsageError for a name that is no symbolic dimension of an input.
    """
    known = symbols(model)
    for name in lengths:
        if name not in known:
            raise UsageError(f"the inputs have no symbolic dimension {name!r}; they have {_listed(known)}")
    bound = ModelProto()
    copy_fields(model, bound, frozenset(("graph",)))
    copy_fields(model.graph, bound.graph, frozenset(("initializer", "value_info")))
    copy_initializers(bound.graph, model.graph.initializer)
    places = {place: lengths[name] for name, found in known.items() if name in lengths for place in found}
    for value in (*bound.graph.input, *bound.graph.output):
        _bind(value, places, lengths)
    return bound


def _bind(value: ValueInfoProto, places: Mapping[Place, int], lengths: Mapping[str, int]) -> None:
    if value.type.HasField("tensor_type"):
        for axis, dimension in enumerate(value.type.tensor_type.shape.dim):
            length = places.get((value.name, axis), lengths.get(dimension.dim_param))
            if length is not None and not dimension.HasField("dim_value"):
                dimension.dim_value = length


def _listed(known: Mapping[str, Sequence[Place]]) -> str:
    return ", ".join(known) if known else "none"
