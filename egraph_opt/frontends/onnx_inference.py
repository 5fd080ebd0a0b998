"""Types and shapes of all tensors, by onnx's own shape inference on a copy of the model without weights.

Declared shapes of intermediate tensors and outputs are ignored: onnxruntime only warns when they are wrong. Shape data
is propagated by folding (``onnx_folding``), not by onnx's data propagation, which has no bound: 30 doubling Concats in
a file of one kilobyte exhaust the memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper, shape_inference

from egraph_opt.frontends.onnx_model import Array, TensorType, overridable, standard

# Initializers up to this size keep their values for inference: they may be shapes, axes or repeats.
SMALL_ELEMENTS = 4096


def skeleton(model: ModelProto) -> ModelProto:
    """The model with every large initializer turned into a graph input, so that it is small whatever its weights."""
    graph = model.graph
    bare = ModelProto()
    bare.ir_version = model.ir_version
    bare.opset_import.extend(model.opset_import)
    bare.functions.extend(model.functions)
    bare.graph.name = graph.name
    bare.graph.node.extend(graph.node)
    bare.graph.input.extend(graph.input)
    bare.graph.output.extend(graph.output)
    bare.graph.value_info.extend(graph.value_info)
    bare.graph.sparse_initializer.extend(graph.sparse_initializer)
    inputs = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if is_small(tensor):
            bare.graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            bare.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return bare


def is_small(tensor: TensorProto) -> bool:
    return int(prod(tensor.dims)) <= SMALL_ELEMENTS


def infer(bare: ModelProto, constants: Mapping[str, Array]) -> dict[str, TensorType]:
    """Types of the tensors of the main graph; of the ``constants`` that folding found so far small ones are used."""
    work = ModelProto()
    work.CopyFrom(bare)
    defaults = overridable(bare)
    del work.graph.initializer[:]
    # The default of an overridable initializer says nothing about shapes: the caller may pass another value.
    work.graph.initializer.extend(tensor for tensor in bare.graph.initializer if tensor.name not in defaults)
    present = {tensor.name for tensor in bare.graph.initializer}
    foreign = {name for node in bare.graph.node if standard(node.domain) != "" for name in node.output}
    _forget_declared_shapes(work, foreign)
    folded = {name for name, value in constants.items() if value.size <= SMALL_ELEMENTS and name not in present}
    for i in reversed([i for i, node in enumerate(work.graph.node) if folded.issuperset(filter(None, node.output))]):
        del work.graph.node[i]
    for name in sorted(folded):
        work.graph.initializer.append(numpy_helper.from_array(constants[name], name))
    try:
        inferred = shape_inference.infer_shapes(work)
    except Exception:  # onnx raises several types here; a model it cannot infer is still a model
        inferred = work
    types: dict[str, TensorType] = {}
    for value in (*inferred.graph.value_info, *inferred.graph.output, *inferred.graph.input):
        types[value.name] = type_of(value)
    for tensor in inferred.graph.initializer:
        types[tensor.name] = TensorType(tensor.data_type, tuple(tensor.dims))
    return types


def type_of(value: ValueInfoProto) -> TensorType:
    if value.type.WhichOneof("value") != "tensor_type":
        return TensorType(0, None)
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return TensorType(tensor.elem_type, None)
    # onnxruntime reads a negative dimension as an unknown one, so do we.
    known = [dim.dim_value for dim in tensor.shape.dim if dim.HasField("dim_value") and dim.dim_value >= 0]
    return TensorType(tensor.elem_type, tuple(known) if len(known) == len(tensor.shape.dim) else None)


def _forget_declared_shapes(model: ModelProto, keep: set[str]) -> None:
    kept = [value for value in model.graph.value_info if value.name in keep]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    for value in model.graph.output:
        if value.name not in keep and value.type.WhichOneof("value") == "tensor_type":
            value.type.tensor_type.ClearField("shape")
