"""Reads ONNX models. Models are untrusted: every problem becomes one line of InputRejected, and no file outside the
model's folder is opened."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, checker, defs, helper

from egraph_opt.errors import InputRejected
from egraph_opt.frontends.onnx_checks import check_names, check_structure, label
from egraph_opt.frontends.onnx_external import load_external_data
from egraph_opt.frontends.onnx_folding import Folder
from egraph_opt.frontends.onnx_inference import infer, skeleton
from egraph_opt.frontends.onnx_model import (
    Array,
    LoadedModel,
    TensorType,
    opset_of,
    overridable,
    standard,
    subgraphs,
    used_names,
)
from egraph_opt.frontends.onnx_weights import array_of
from egraph_opt.limits import Check, unlimited

# Inference and folding feed each other; every round makes progress, exporters' models need two.
_ROUNDS = 64


class Objection(InputRejected):
    """What onnx refuses, but onnxruntime may load all the same; of ``loaded`` nothing but the model is known."""

    def __init__(self, message: str, model: ModelProto, path: Path | None) -> None:
        super().__init__(message)
        self.loaded = LoadedModel(model, {}, {}, frozenset(), path)


def load(
    source: str | os.PathLike[str] | bytes | ModelProto,
    *,
    parsed: Callable[[ModelProto], ModelProto] | None = None,
    check: Check = unlimited,
) -> LoadedModel:
    """Read and check a model: a path, serialized bytes, or a proto (which is left as it is).

    ``parsed`` gets the model before it is analysed and gives one that may refer to files of ours; ``check`` is called
    again and again and may raise to end it.
    Raises InputRejected, naming what is wrong; Objection where onnxruntime may see it otherwise.
    """
    model, path = parse(source)
    if parsed is not None:
        model = parsed(model)
    check()
    try:
        check_names(model)
    except InputRejected as error:
        raise Objection(str(error), model, path) from error
    _sort_nodes(model.graph)
    newest = defs.onnx_opset_version()
    if opset_of(model) > newest:
        raise Objection(f"opset {opset_of(model)} is newer than {newest}, the newest known here", model, path)
    bare = skeleton(model)
    try:
        checker.check_model(_as_the_checker_likes(bare))
    except Exception as error:  # the checker raises ValidationError, ValueError, RuntimeError …
        raise Objection(f"not a valid ONNX model: {error}", model, path) from error
    return _analyse(model, bare, path, check)


def rebuilt(model: ModelProto, original: LoadedModel) -> LoadedModel:
    """A model that was made of one that is known: without another check, with what is known of the constants."""
    return LoadedModel(model, infer(skeleton(model), original.constants), original.constants, frozenset())


def parse(source: str | os.PathLike[str] | bytes | ModelProto) -> tuple[ModelProto, Path | None]:
    """A model as it is, and where it lies, if anywhere. Raises InputRejected for what no reader survives."""
    path: Path | None = None
    if isinstance(source, ModelProto):
        model = ModelProto()
        model.MergeFrom(source)
    elif isinstance(source, bytes):
        model = _parse(source, "the model")
    else:
        path = Path(source)
        model = _parse(_contents(path), str(path))
    if not model.HasField("graph") or not (model.graph.node or model.graph.output):
        raise InputRejected("the model has no graph")
    check_structure(model)
    load_external_data(model, path)
    return model, path


def _as_the_checker_likes(bare: ModelProto) -> ModelProto:
    """A copy without the liberties that onnxruntime allows and the checker does not."""
    model = ModelProto()
    model.CopyFrom(bare)
    if model.ir_version == 3:
        model.ir_version = 4  # version 3 wants every initializer among the inputs
    for value in model.graph.output:
        if value.type.WhichOneof("value") is None:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    if 18 <= opset_of(model) < 21:
        # The checker calls the first version deprecated; runtimes know it.
        model.opset_import.append(helper.make_opsetid("deprecated", 1))
        for node in model.graph.node:
            if node.op_type == "GroupNormalization" and standard(node.domain) == "":
                node.domain = "deprecated"
    for value in (*model.graph.input, *model.graph.output):
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.SetInParent()  # an unknown rank
    return model


def _contents(path: Path) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputRejected(f"{path} is not a regular file")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise InputRejected(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def _parse(data: bytes, what: str) -> ModelProto:
    if not data:
        raise InputRejected(f"{what} is empty")
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except (DecodeError, RuntimeError, UnicodeDecodeError) as error:
        raise InputRejected(f"{what} is not an ONNX model: {error}") from error
    return model


def _analyse(model: ModelProto, bare: ModelProto, path: Path | None, check: Check) -> LoadedModel:
    constants = _initializer_values(model)
    folder, folded = Folder(model), set[int]()
    types: dict[str, TensorType] = {}
    for _ in range(_ROUNDS):
        check()
        types = infer(bare, constants)
        before = len(folded)
        for i, node in enumerate(model.graph.node):
            if i in folded:
                continue
            check()
            values = folder.fold(node, types, constants)
            if values is None:
                continue
            folded.add(i)
            for name, value in zip(node.output, values, strict=True):
                if name:
                    constants[name] = value
        if len(folded) == before or all(
            types.get(name, TensorType(0, None)).shape is not None
            for node in model.graph.node
            for name in node.output
            if name
        ):
            break
    for name, value in constants.items():
        types[name] = TensorType(helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
    return LoadedModel(model, types, constants, frozenset(folded), path)


def _initializer_values(model: ModelProto) -> dict[str, Array]:
    defaults = overridable(model)
    values: dict[str, Array] = {}
    for tensor in model.graph.initializer:
        if tensor.name in defaults or tensor.data_type == TensorProto.STRING:
            continue
        try:
            values[tensor.name] = array_of(tensor)
        except Exception as error:  # to_array raises whatever the decoding of its data type raises
            raise InputRejected(f"initializer {tensor.name!r} is broken: {error}") from error
    return values


def _sort_nodes(graph: GraphProto) -> None:
    """Bring nodes into execution order, as onnxruntime does; raises InputRejected for a cycle."""
    producer = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    waiting: list[set[int]] = []
    for node in graph.node:
        waiting.append({producer[name] for name in used_names(node) if name in producer})
    if all(not needed or max(needed) < i for i, needed in enumerate(waiting)):
        pass
    else:
        order = topological(waiting)
        if len(order) < len(waiting):
            stuck = next(i for i in range(len(waiting)) if i not in set(order))
            raise InputRejected(f"the graph has a cycle through {label(graph.node[stuck])}")
        nodes = [NodeProto.FromString(graph.node[i].SerializeToString()) for i in order]
        del graph.node[:]
        graph.node.extend(nodes)
    for node in graph.node:
        for inner in subgraphs(node):
            _sort_nodes(inner)


def topological(waiting: list[set[int]]) -> list[int]:
    """An order in which every item comes after those it waits for, the earliest possible first; shorter if cyclic."""
    import heapq

    followers: list[list[int]] = [[] for _ in waiting]
    missing = [len(needed) for needed in waiting]
    for i, needed in enumerate(waiting):
        for j in needed:
            followers[j].append(i)
    ready = [i for i, count in enumerate(missing) if count == 0]
    heapq.heapify(ready)
    order = []
    while ready:
        i = heapq.heappop(ready)
        order.append(i)
        for j in followers[i]:
            missing[j] -= 1
            if missing[j] == 0:
                heapq.heappush(ready, j)
    return order
