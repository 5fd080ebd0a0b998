"""Puts plans in the place of regions and writes the model again; everything else keeps its bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from egraph_opt.errors import EgraphOptError
from egraph_opt.frontends.onnx_emit import KERNEL_DOMAIN, Emitter, emit_call
from egraph_opt.frontends.onnx_model import LoadedModel, other_imports, overridable, used_names
from egraph_opt.frontends.onnx_reader import topological
from egraph_opt.frontends.onnx_weights import content_of, point, size_of
from egraph_opt.frontends.regions import Region
from egraph_opt.ir.program import Plan, Step
from egraph_opt.ir.terms import Call, Compute, Reshape

# Protocol buffers end at 2 GiB; beyond this much the weights go to a file of their own.
LARGEST_MODEL = 1_900_000_000
_ALIGNMENT = 4096
# Tensors below this many bytes stay in the model file.
SMALLEST_WEIGHT = 1024
# A tensor of so many bytes is written by itself: protobuf takes four times the bytes of a message to write it.
LARGEST_PIECE = 1 << 24


@dataclass
class _Unit:
    """Nodes that stay together in the order given."""

    nodes: list[NodeProto]

    def __post_init__(self) -> None:
        self.writes = {name for node in self.nodes for name in node.output if name}
        self.reads = {name for node in self.nodes for name in used_names(node)} - self.writes


def rebuild(
    loaded: LoadedModel,
    regions: Sequence[Region],
    replacements: Mapping[int, Plan],
    kernels: Mapping[str, str] | None = None,
) -> ModelProto:
    """The model with the region of each index in ``replacements`` computed by that plan.

    ``kernels`` gives the custom operator of each Compute step, and of each call that a kernel computes, by step name,
    so these names must differ between plans. Same inputs and outputs, opset and IR version; domains that calls need are
    imported on top. Raises EgraphOptError when a plan does not fit its region, NotExpressible when a call has no form
    at the model's opset.
    """
    emitter = Emitter(loaded.opset, set(loaded.names), other_imports(loaded.model))
    replaced = {i: region for region in regions if region.index in replacements for i in region.nodes}
    units: list[_Unit] = []
    for i, node in enumerate(loaded.nodes):
        region = replaced.get(i)
        if region is None:
            if i not in loaded.folded:
                units.append(_Unit([node]))
        elif i == region.nodes[-1]:
            emitter.nodes = []
            _emit_plan(emitter, loaded, region, replacements[region.index], kernels or {})
            units.append(_Unit(emitter.nodes))
    units += _needed_folded(loaded, units)
    model = copy_frame(loaded.model)
    graph = model.graph
    graph.node.extend(node for unit in _ordered(units) for node in unit.nodes)
    _add_initializers(model, loaded.graph, emitter.initializers)
    _add_value_info(graph, loaded.graph)
    _add_types(graph, emitter, {region.index: region for region in replaced.values()})
    used = {node.domain for node in graph.node}
    if KERNEL_DOMAIN in used:
        emitter.imports.setdefault(KERNEL_DOMAIN, 1)
    for domain in sorted(emitter.imports.keys() - other_imports(model).keys()):
        if domain in used:
            model.opset_import.append(helper.make_opsetid(domain, emitter.imports[domain]))
    return model


def _emit_plan(emitter: Emitter, loaded: LoadedModel, region: Region, plan: Plan, kernels: Mapping[str, str]) -> None:
    missing = set(region.program.outputs) - set(plan.outputs)
    if missing:
        raise EgraphOptError(f"the plan of region {region.index} lacks the output {sorted(missing)[0]!r}")
    names = {source.name: source.name for source in plan.inputs}
    for name, value in plan.constants.items():
        original = loaded.constants.get(name)
        unchanged = original is not None and name not in loaded.producer and same(original, value)
        names[name] = name if unchanged else emitter.constant(np.asarray(value, dtype=np.float32), f"{name}/constant")
    emit_steps(emitter, plan, region.program.outputs, names, prefix=f"egraph_opt/{region.index}/", kernels=kernels)


def emit_steps(
    emitter: Emitter,
    plan: Plan,
    outputs: Iterable[str],
    names: dict[str, str],
    *,
    prefix: str = "",
    kernels: Mapping[str, str] | None = None,
) -> None:
    """Append the nodes of a plan, which write these of its ``outputs``.

    ``names`` are those of the tensors that hold its inputs and constants; added are those of its steps, which begin
    with ``prefix``. ``kernels`` has the custom operators by step name.
    """
    owned = {step.name for step in plan.steps}
    copies: list[tuple[str, str]] = []
    for output in outputs:
        buffer = plan.outputs[output]
        if buffer in owned and buffer not in names:
            names[buffer] = output
        else:
            copies.append((buffer, output))
    for step in plan.steps:
        if step.name not in names:
            names[step.name] = emitter.fresh(f"{prefix}{step.name}")
        emit_step(emitter, step, names, kernels or {})
    for buffer, output in copies:
        emitter.node("Identity", [names[buffer]], output)


def emit_step(emitter: Emitter, step: Step, names: Mapping[str, str], kernels: Mapping[str, str]) -> None:
    try:
        inputs = [names[source.name] for source in step.arguments]
    except KeyError as error:
        raise EgraphOptError(f"step {step.name!r} reads the buffer {error.args[0]!r}, which nothing fills") from None
    output = names[step.name]
    if step.name in kernels:
        emitter.node(kernels[step.name], inputs, output, domain=KERNEL_DOMAIN)
        emitter.extents[output] = step.extents
        return
    match step.buffer:
        case Call() as call:
            emit_call(emitter, call, inputs, output)
        case Reshape(_, extents):
            emitter.need(5, "Reshape")
            emitter.node("Reshape", [*inputs, emitter.integers(extents, "shape")], output)
        case Compute():
            raise EgraphOptError(f"no kernel was given for step {step.name!r}")


def same(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    if one is other:
        return True
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def _needed_folded(loaded: LoadedModel, units: Iterable[_Unit]) -> list[_Unit]:
    """Folded nodes whose results something still reads; as a Constant where what they read has vanished."""
    needed = {name for unit in units for name in unit.reads} | {value.name for value in loaded.graph.output}
    exists = {name for unit in units for name in unit.writes} | {value.name for value in loaded.graph.input}
    exists |= {tensor.name for tensor in loaded.graph.initializer}
    alive: list[int] = []
    for i in sorted(loaded.folded, reverse=True):
        if needed.intersection(loaded.nodes[i].output):
            alive.append(i)
            needed.update(loaded.uses(i))
    kept = []
    for i in reversed(alive):
        node = loaded.nodes[i]
        if exists.issuperset(loaded.uses(i)):
            kept.append(_Unit([node]))
        else:
            constants = [(name, loaded.constants[name]) for name in node.output if name]
            made = [helper.make_node("Constant", [], [n], value=numpy_helper.from_array(v)) for n, v in constants]
            kept.append(_Unit(made))
        exists.update(kept[-1].writes)
    return kept


def _ordered(units: Sequence[_Unit]) -> list[_Unit]:
    writer = {name: i for i, unit in enumerate(units) for name in unit.writes}
    order = topological([{writer[name] for name in unit.reads if name in writer} for unit in units])
    if len(order) < len(units):
        raise EgraphOptError("replacing regions made a cycle")
    return [units[i] for i in order]


def copy_frame(source: ModelProto) -> ModelProto:
    """All but nodes, initializers and what is known about intermediate tensors; never one big serialized string."""
    model = ModelProto()
    copy_fields(source, model, frozenset(("graph",)))
    left_out = frozenset(("node", "initializer", "value_info", "quantization_annotation"))
    copy_fields(source.graph, model.graph, left_out)
    return model


def copy_fields(source: Any, target: Any, left_out: frozenset[str]) -> None:
    for descriptor, value in source.ListFields():
        if descriptor.name in left_out:
            continue
        if hasattr(value, "extend"):
            getattr(target, descriptor.name).extend(value)
        elif hasattr(value, "CopyFrom"):
            getattr(target, descriptor.name).CopyFrom(value)
        else:
            setattr(target, descriptor.name, value)


def copy_initializers(graph: GraphProto, tensors: Iterable[TensorProto]) -> None:
    """Add copies, field by field: a tensor of 2 GiB cannot be copied as a whole."""
    for tensor in tensors:
        copy_fields(tensor, graph.initializer.add(), frozenset())


def _add_initializers(model: ModelProto, original: GraphProto, made: dict[str, TensorProto]) -> None:
    graph, keep = model.graph, overridable(model)
    read = {name for node in graph.node for name in used_names(node)} | {value.name for value in graph.output} | keep
    new = [tensor for name, tensor in made.items() if name in read]
    if model.ir_version < 4:  # every initializer is an input there
        gone = {tensor.name for tensor in original.initializer if tensor.name not in read}
        inputs = [value for value in original.input if value.name not in gone]
        inputs += [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in new]
        del graph.input[:]
        graph.input.extend(inputs)
    old = [tensor for tensor in original.initializer if tensor.name in read]
    made.clear()
    new.reverse()
    while old or new:
        tensor = old.pop(0) if old else new.pop()  # each new one is freed when it is copied
        copy = graph.initializer.add()
        copy_fields(tensor, copy, frozenset())  # field by field: a tensor of 2 GiB cannot be copied as a whole


def _add_value_info(graph: GraphProto, original: GraphProto) -> None:
    exists = {name for node in graph.node for name in node.output}
    exists |= {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    graph.value_info.extend(value for value in original.value_info if value.name in exists)
    graph.quantization_annotation.extend(a for a in original.quantization_annotation if a.tensor_name in exists)


def _add_types(graph: GraphProto, emitter: Emitter, replaced: Mapping[int, Region]) -> None:
    """Types of what generated kernels compute and regions hand on: no runtime infers them through kernels, and some
    operators need them."""
    known = {value.name for value in (*graph.output, *graph.value_info)}
    extents = dict(emitter.extents)
    for _, region in sorted(replaced.items()):
        defined = {name: term.extents for name, term in region.program.definitions}
        extents |= {name: defined[name] for name in region.program.outputs}
    graph.value_info.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, found)
        for name, found in extents.items()
        if name not in known
    )


@dataclass(frozen=True)
class DataFile(Sequence[bytes]):
    """The content of a data file in pieces, each read from its tensor when it is its turn."""

    tensors: Sequence[TensorProto]
    offsets: Sequence[int]

    def __len__(self) -> int:
        return 2 * len(self.tensors)

    @overload
    def __getitem__(self, position: int) -> bytes: ...
    @overload
    def __getitem__(self, position: slice) -> Sequence[bytes]: ...
    def __getitem__(self, position: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(len(self)))]
        if not 0 <= position < len(self):
            raise IndexError(position)
        number, is_tensor = divmod(position, 2)
        if is_tensor:
            return content_of(self.tensors[number])
        end = self.offsets[number - 1] + size_of(self.tensors[number - 1]) if number else 0
        return bytes(self.offsets[number] - end)


def weights(model: ModelProto, largest: int | None = None) -> DataFile:
    """What belongs into a data file beside a model; nothing for one whose weights take at most ``largest`` bytes."""
    tensors, offsets, end = list[TensorProto](), list[int](), 0
    for tensor in model.graph.initializer:
        size = size_of(tensor)
        if size >= SMALLEST_WEIGHT:
            tensors.append(tensor)
            offsets.append(end + -end % _ALIGNMENT)
            end = offsets[-1] + size
    return DataFile(tensors, offsets) if end > (LARGEST_MODEL if largest is None else largest) else DataFile((), ())


def serialized(model: ModelProto, data_file: str, largest: int | None = None) -> bytes:
    """The bytes of the model file; of a model too large for one, the ``weights`` lie in ``data_file``."""
    return b"".join(pieces(model, data_file, largest))


def pieces(model: ModelProto, data_file: str, largest: int | None = None) -> Iterator[bytes]:
    """The bytes of the model file, large tensors one at a time; see ``serialized``."""
    data = weights(model, largest)
    alone = (t.data_location == TensorProto.EXTERNAL or size_of(t) >= LARGEST_PIECE for t in model.graph.initializer)
    if not data and not any(alone):
        yield bytes(model.SerializeToString(deterministic=True))
        return
    outline, offsets = copy_frame(model), iter(data.offsets)
    graph = outline.graph
    graph.node.extend(model.graph.node)
    graph.value_info.extend(model.graph.value_info)
    graph.quantization_annotation.extend(model.graph.quantization_annotation)
    if data:
        for tensor in model.graph.initializer:
            size = size_of(tensor)
            if size < SMALLEST_WEIGHT:
                graph.initializer.append(tensor)
                continue
            entry = graph.initializer.add()
            copy_fields(tensor, entry, frozenset(("raw_data", "external_data")))
            point(entry, data_file, next(offsets), size)
        yield bytes(outline.SerializeToString(deterministic=True))
        return
    content = bytes(graph.SerializeToString(deterministic=True))
    heads = [_head(tensor) for tensor in model.graph.initializer]
    sizes = [len(head) + size_of(tensor) for head, tensor in zip(heads, model.graph.initializer, strict=True)]
    outline.ClearField("graph")
    yield bytes(outline.SerializeToString(deterministic=True))
    yield _opening(_GRAPH, len(content) + sum(len(_opening(_INITIALIZER, size)) + size for size in sizes))
    yield content
    for tensor, head, size in zip(model.graph.initializer, heads, sizes, strict=True):
        yield _opening(_INITIALIZER, size) + head
        yield content_of(tensor)


# Field numbers of the ONNX format.
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9


def _head(tensor: TensorProto) -> bytes:
    """All of a serialized tensor but its raw data, which follow."""
    small = TensorProto()
    copy_fields(tensor, small, frozenset(("raw_data", "external_data", "data_location")))
    head = bytes(small.SerializeToString(deterministic=True))
    return head + _opening(_RAW_DATA, size_of(tensor)) if tensor.HasField("raw_data") or size_of(tensor) else head


def _opening(field: int, length: int) -> bytes:
    """What stands before a field of so many bytes in protobuf's encoding."""
    found, rest = bytearray([field << 3 | 2]), length
    while rest >= 128:
        found.append(rest & 127 | 128)
        rest >>= 7
    return bytes([*found, rest])
