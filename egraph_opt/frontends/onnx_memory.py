"""How much memory the intermediate buffers of a model need at once."""

from __future__ import annotations

from collections.abc import Collection
from math import prod

from onnx import ModelProto, TensorProto, helper, shape_inference

from egraph_opt.frontends.onnx_model import used_names
from egraph_opt.frontends.onnx_writer import copy_frame
from egraph_opt.ir.memory import Fill, lifetimes, live_bytes, plan_buffers

# Operators whose result is their first input's memory.
_SAME_MEMORY = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
# Bytes of a tensor that no machine has; some models speak of such.
LARGEST = 1 << 48
# Initializers up to so many bytes may say what shapes are.
_TELLING = 1 << 10


def peak_of(model: ModelProto) -> int | None:
    """Bytes of an arena for all intermediate buffers and outputs, with the nodes in the order of the model.

    None where some size is unknown: a symbolic dimension, a sequence, an operator of which onnx knows nothing. Nothing
    is computed in place of its argument; weights and inputs do not count.
    """
    fills = _fills(model)
    if fills is None:
        return None
    return plan_buffers(lifetimes([fill for _, fill in fills], _kept(model))).peak


def beside(model: ModelProto, nodes: Collection[int]) -> int:
    """Bytes that other nodes' buffers hold while some nodes, given by position, run; 0 where that is unknown."""
    fills = _fills(model) or []
    own = [position in nodes for position, _ in fills]
    names = {fill.buffer for (_, fill), mine in zip(fills, own, strict=True) if mine}
    others = [item for item in lifetimes([fill for _, fill in fills], _kept(model)) if item.buffer not in names]
    alive = live_bytes(others, len(fills))
    return int(max((alive[number] for number, mine in enumerate(own) if mine), default=0))


def _kept(model: ModelProto) -> set[str]:
    return {value.name for value in model.graph.output}


def _fills(model: ModelProto) -> list[tuple[int, Fill]] | None:
    """The buffers that nodes fill, with the position of the node; None where a size is unknown."""
    sizes = _sizes(model)
    found = []
    for position, node in enumerate(model.graph.node):
        if node.op_type == "Constant":
            continue
        reads = tuple(dict.fromkeys(used_names(node)))
        for number, name in enumerate(name for name in node.output if name):
            if not 0 <= sizes.get(name, -1) < LARGEST:
                return None
            alias = node.input[0] if number == 0 and node.op_type in _SAME_MEMORY and not node.domain else ""
            found.append((position, Fill(name, sizes[name], reads, alias)))
    return found


def _sizes(model: ModelProto) -> dict[str, int]:
    """The bytes of all tensors whose shape is known."""
    bare = copy_frame(model)
    graph = bare.graph
    graph.node.extend(model.graph.node)
    for tensor in model.graph.initializer:
        if tensor.ByteSize() <= _TELLING:
            graph.initializer.append(tensor)
        else:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    graph.value_info.extend(model.graph.value_info)
    try:
        found = shape_inference.infer_shapes(bare).graph
    except Exception:  # a model that onnx has something against
        return {}
    sizes: dict[str, int] = {}
    for value in (*found.value_info, *found.output):
        kind = value.type.tensor_type
        known = kind.elem_type != TensorProto.UNDEFINED and kind.HasField("shape")
        if not known or any(not dimension.HasField("dim_value") for dimension in kind.shape.dim):
            continue
        each = helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
        sizes[value.name] = each * prod(dimension.dim_value for dimension in kind.shape.dim)
    return sizes
