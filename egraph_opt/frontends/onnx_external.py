"""Tensors stored in files beside the model. Nothing outside the model's folder is ever opened."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path

from onnx import GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, helper

from egraph_opt.errors import InputRejected
from egraph_opt.frontends.onnx_model import subgraphs


def load_external_data(model: ModelProto, path: Path | None) -> None:
    """Bring all tensors of ``model``, which lies at ``path``, into the proto. Raises InputRejected."""
    for tensor in _tensors(model):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        if path is None:
            raise InputRejected(f"the tensor {tensor.name!r} lies in another file; pass the model's path instead")
        tensor.raw_data = _external_bytes(tensor, path)
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    yield from _tensors_of_graph(model.graph)
    for function in model.functions:
        yield from _tensors_of_nodes(function.node)


def _tensors_of_graph(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    yield from _tensors_of_sparse(graph.sparse_initializer)
    yield from _tensors_of_nodes(graph.node)


def _tensors_of_sparse(found: Iterable[SparseTensorProto]) -> Iterator[TensorProto]:
    for sparse in found:
        yield sparse.values
        yield sparse.indices


def _tensors_of_nodes(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("sparse_tensor"):
                yield from _tensors_of_sparse([attribute.sparse_tensor])
            yield from _tensors_of_sparse(attribute.sparse_tensors)
        for inner in subgraphs(node):
            yield from _tensors_of_graph(inner)


def _external_bytes(tensor: TensorProto, path: Path) -> bytes:
    """The bytes of a tensor stored beside the model; raises InputRejected for anything outside its folder."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location, what = entries.get("location", ""), f"external data of {tensor.name!r}"
    folder = os.path.realpath(path.parent)
    if "\0" in location:  # no name of a file
        location = ""
    target = os.path.realpath(os.path.join(folder, location))
    parts = location.replace("\\", "/").split("/")
    if not location or os.path.isabs(location) or ".." in parts or os.path.commonpath([folder, target]) != folder:
        raise InputRejected(f"{what}: the location {location!r} is not inside the model's folder")
    try:
        offset = int(entries.get("offset", "0"))
        with open(target, "rb", opener=_open_regular) as file:
            size = os.fstat(file.fileno()).st_size
            most = 16 * prod(tensor.dims)
            length = int(entries["length"]) if "length" in entries else min(size - offset, _byte_count(tensor))
            if not (0 <= offset <= size and 0 <= length <= min(size - offset, most)):
                raise InputRejected(f"{what}: {length} bytes at {offset} of {location!r}, which has {size}")
            file.seek(offset)
            data = file.read(length)
    except (OSError, ValueError) as error:
        raise InputRejected(f"{what}: cannot read {location!r}: {getattr(error, 'strerror', None) or error}") from error
    return data


def _byte_count(tensor: TensorProto) -> int:
    bits = 4 if tensor.data_type in (TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1) else 0
    width = bits or 8 * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    return -(-int(prod(tensor.dims)) * width // 8)


def _open_regular(name: str, flags: int) -> int:
    # O_NONBLOCK: opening a FIFO would wait for ever. O_NOFOLLOW: the name was resolved, a link would be new.
    descriptor = os.open(name, flags | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{name} is not a regular file")
    return descriptor
