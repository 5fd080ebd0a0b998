"""How much memory the intermediate buffers of a model need at once."""

from __future__ import annotations

from collections.abc import Collection
from math import prod

from onnx import TensorProto, helper

from egraph_opt.frontends.onnx_model import LoadedModel, TensorType
from egraph_opt.ir.memory import Fill, lifetimes, live_bytes, plan_buffers

# Operators whose result is their first input's memory.
_SAME_MEMORY = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
# Bytes of a tensor that no machine has; some models speak of such.
LARGEST = 1 << 48


def peak_of(loaded: LoadedModel) -> int | None:
    """Bytes of an arena for all intermediate buffers and outputs, with the nodes in the order of the model.

    None where some size is unknown: a symbolic dimension, a sequence, an operator of which onnx knows nothing. Nothing
    is computed in place of its argument; weights and inputs do not count.
    """
    fills = _fills(loaded)
    if fills is None:
        return None
    return plan_buffers(lifetimes([fill for _, fill in fills], _kept(loaded))).peak


def beside(loaded: LoadedModel, nodes: Collection[int]) -> int:
    """Bytes that other nodes' buffers hold while some nodes, given by position, run; 0 where that is unknown."""
    fills = _fills(loaded) or []
    own = [position in nodes for position, _ in fills]
    names = {fill.buffer for (_, fill), mine in zip(fills, own, strict=True) if mine}
    others = [item for item in lifetimes([fill for _, fill in fills], _kept(loaded)) if item.buffer not in names]
    alive = live_bytes(others, len(fills))
    return int(max((alive[number] for number, mine in enumerate(own) if mine), default=0))


def _kept(loaded: LoadedModel) -> set[str]:
    return {value.name for value in loaded.graph.output}


def _fills(loaded: LoadedModel) -> list[tuple[int, Fill]] | None:
    """The buffers that nodes fill, with the position of the node; None where a size is unknown."""
    found = []
    for position, node in enumerate(loaded.nodes):
        if node.op_type == "Constant":
            continue
        for number, name in enumerate(name for name in node.output if name):
            size = _size(loaded.type_of(name))
            if size is None or size >= LARGEST:
                return None
            alias = node.input[0] if number == 0 and node.op_type in _SAME_MEMORY and not node.domain else ""
            found.append((position, Fill(name, size, loaded.uses(position), alias)))
    return found


def _size(known: TensorType) -> int | None:
    """The bytes of a tensor, if its type is known."""
    if known.element == TensorProto.UNDEFINED or known.shape is None:
        return None
    return int(helper.tensor_dtype_to_np_dtype(known.element).itemsize) * prod(known.shape)
