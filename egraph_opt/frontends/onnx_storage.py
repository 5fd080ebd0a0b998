"""Models in files of ours, of any size."""

from __future__ import annotations

from pathlib import Path

from onnx import ModelProto, TensorProto

from egraph_opt.frontends.onnx_weights import can_refer, point, size_of
from egraph_opt.frontends.onnx_writer import copy_fields, copy_frame, pieces, weights

# Weights of so many bytes lie in a file beside the model.
APART = 1 << 26
DATA = "model.onnx.data"


def store(model: ModelProto, folder: Path) -> Path:
    """Write a model of any size into an empty or new folder; returns the model file."""
    folder.mkdir(exist_ok=True)
    path = folder / "model.onnx"
    with path.open("wb") as file:
        file.writelines(pieces(model, DATA, APART))
    data = weights(model, APART)
    if data:
        with (folder / DATA).open("wb") as file:
            file.writelines(data)
    return path


def stored(model: ModelProto, folder: Path) -> ModelProto:
    """Write a model like ``store``; returns one whose large weights are those in the file."""
    store(model, folder)
    data = weights(model, APART)
    if not data:
        return model
    # A new one: protobuf frees the memory of a field only with the whole message.
    found = copy_frame(model)
    graph = found.graph
    graph.node.extend(model.graph.node)
    graph.value_info.extend(model.graph.value_info)
    graph.quantization_annotation.extend(model.graph.quantization_annotation)
    apart = {tensor.name: offset for tensor, offset in zip(data.tensors, data.offsets, strict=True)}
    for tensor in model.graph.initializer:
        entry = graph.initializer.add()
        if tensor.data_location == TensorProto.EXTERNAL or tensor.name not in apart or not can_refer(tensor):
            copy_fields(tensor, entry, frozenset())
            continue
        copy_fields(tensor, entry, frozenset(("raw_data",)))
        point(entry, str((folder / DATA).absolute()), apart[tensor.name], size_of(tensor))
    return found


def stored_bytes(path: Path) -> int:
    """Bytes of all files of a stored model."""
    data = path.with_name(DATA)
    return path.stat().st_size + (data.stat().st_size if data.exists() else 0)
