"""One model for several sizes: programs made for certain input shapes, and the original for all others.

Standard operators compare the lengths of the inputs' symbolic dimensions with those that a program was made for; nested
Ifs run the program that fits, at last the original. Weights lie inside the branches that use them, because onnxruntime
rearranges only those ahead of time; of a model too large for that, they lie outside and are shared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from egraph_opt.errors import UsageError
from egraph_opt.frontends.onnx_emit import Emitter
from egraph_opt.frontends.onnx_model import all_names, opset_of, overridable, standard, subgraphs
from egraph_opt.frontends.onnx_symbols import Place, symbols
from egraph_opt.frontends.onnx_writer import LARGEST_MODEL, copy_fields, copy_frame, copy_initializers, same

# Before this version of the operators nothing compares numbers in onnxruntime.
LOWEST_OPSET = 7


def dispatch(original: ModelProto, programs: Sequence[tuple[Mapping[str, int], ModelProto]]) -> ModelProto:
    """The original with, for each of these lengths of symbolic dimensions, the program to run there.

    All programs give lengths to the same dimensions and have the inputs and outputs of the original. Same interface,
    opset and IR version as the original. Raises UsageError where the operators of its opset cannot tell shapes apart.
    """
    if opset_of(original) < LOWEST_OPSET:
        raise UsageError(
            f"the model's opset {opset_of(original)} has no operators to choose by shape; opset {LOWEST_OPSET} has"
        )
    bodies = [original, *(program for _, program in programs)]
    taken = {name for body in bodies for name in all_names(body.graph)}
    emitter = Emitter(opset_of(original), taken)
    branches = _Branches(original, emitter, _fit_into_one_file(bodies))
    places = _places(original, programs[0][0])
    key = emitter.fresh("egraph_opt/lengths")
    otherwise = branches.graph(original)
    for lengths, program in reversed(programs):
        emitter.nodes = []
        fits = _equal(emitter, key, [lengths[name] for name, _ in places])
        outputs = [emitter.fresh(f"{name}/chosen") for name in branches.outputs]
        choice = helper.make_node("If", [fits], outputs, then_branch=branches.graph(program), else_branch=otherwise)
        otherwise = branches.wrapped([*emitter.nodes, choice], outputs)
    # What would be the branch of one more choice is the model itself.
    emitter.nodes = []
    _gather(emitter, key, [place for _, place in places])
    model = copy_frame(original)
    graph = model.graph
    names = {output.name: name for output, name in zip(otherwise.output, branches.outputs, strict=True)}
    for node in otherwise.node:
        rename(node, names)
    graph.node.extend([*emitter.nodes, *otherwise.node])
    copy_initializers(graph, [*branches.outside.values(), *emitter.initializers.values()])
    if model.ir_version < 4:
        _make_inputs_of_initializers(graph, {tensor.name for tensor in original.graph.initializer})
    imports = {standard(entry.domain): entry for body in reversed(bodies) for entry in body.opset_import}
    del model.opset_import[:]
    model.opset_import.extend(imports[domain] for domain in sorted(imports))
    return model


def _fit_into_one_file(bodies: Iterable[ModelProto]) -> bool:
    """Whether every branch can have weights of its own."""
    return bool(sum(tensor.ByteSize() for body in bodies for tensor in body.graph.initializer) < LARGEST_MODEL)


def _places(original: ModelProto, lengths: Mapping[str, int]) -> list[tuple[str, Place]]:
    """The dimensions that the choice depends on, with every place where they occur, in the order of the inputs.

    Runtimes do not check that a dimension has one length wherever it occurs, so the model must.
    """
    order = {value.name: i for i, value in enumerate(original.graph.input)}
    found = [(name, place) for name, places in symbols(original).items() if name in lengths for place in places]
    return sorted(found, key=lambda item: (order[item[1][0]], item[1][1]))


def _gather(emitter: Emitter, key: str, places: Sequence[Place]) -> None:
    """Nodes that put the lengths at these places into one vector."""
    inputs = list(dict.fromkeys(name for name, _ in places))
    parts = [emitter.fresh(f"{key}/of") for _ in inputs] if len(inputs) > 1 else [key]
    for name, part in zip(inputs, parts, strict=True):
        shape = emitter.node("Shape", [name], emitter.fresh(f"{key}/shape"))
        axes = emitter.integers([axis for other, axis in places if other == name], "axes")
        emitter.node("Gather", [shape, axes], part)
    if len(inputs) > 1:
        emitter.node("Concat", parts, key, axis=0)


def _equal(emitter: Emitter, key: str, values: Sequence[int]) -> str:
    """Whether a vector has these values, as a tensor of one element."""
    equal = emitter.node("Equal", [key, emitter.integers(values, "lengths")], emitter.fresh(f"{key}/equal"))
    if len(values) == 1:
        return equal
    numbers = emitter.node("Cast", [equal], emitter.fresh(f"{equal}/numbers"), to=int(TensorProto.FLOAT))
    least = emitter.node("ReduceMin", [numbers], emitter.fresh(f"{equal}/least"), keepdims=0)
    return emitter.node("Cast", [least], emitter.fresh(f"{equal}/all"), to=int(TensorProto.BOOL))


class _Branches:
    """Makes graphs of models. ``outside`` are the initializers that they leave to the model around them, by name.

    ``outputs`` are the model's outputs that its nodes compute; only those depend on what is chosen.
    """

    def __init__(self, original: ModelProto, emitter: Emitter, own_weights: bool) -> None:
        graph = original.graph
        made = {name for node in graph.node for name in node.output}
        self.types = [value for value in graph.output if value.name in made]
        self.outputs = [value.name for value in self.types]
        self.outside = {
            tensor.name: tensor
            for tensor in graph.initializer
            if tensor.name in overridable(original) | {value.name for value in graph.output}
        }
        self._emitter = emitter
        self._own_weights = own_weights
        # Before IR version 4 every initializer is an input, and branches have none.
        self._as_nodes = original.ir_version < 4
        # Names inside a branch must not be those of the model around it.
        self._inside = {name: emitter.fresh(f"{name}/inside") for name in self.outputs}

    def graph(self, body: ModelProto) -> GraphProto:
        """A model's nodes and weights as a branch."""
        names = dict(self._inside)
        own = [tensor for tensor in body.graph.initializer if tensor.name not in self.outside]
        if not self._own_weights:
            names |= {tensor.name: self._share(tensor) for tensor in body.graph.initializer}
            own = []
        nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in own if self._as_nodes]
        for node in body.graph.node:
            copy = NodeProto.FromString(node.SerializeToString())
            rename(copy, names)
            nodes.append(copy)
        graph = self.wrapped(nodes, list(self._inside.values()))
        graph.value_info.extend(info for info in body.graph.value_info if info.name not in self._inside)
        graph.quantization_annotation.extend(body.graph.quantization_annotation)
        copy_initializers(graph, own if not self._as_nodes else [])
        return graph

    def wrapped(self, nodes: Iterable[NodeProto], outputs: Sequence[str]) -> GraphProto:
        """Nodes as a branch with these outputs, whose shapes are left open because branches differ in them."""
        graph = GraphProto(name="program", node=nodes)
        for name, value in zip(outputs, self.types, strict=True):
            output = graph.output.add(name=name, type=value.type)
            if output.type.HasField("tensor_type"):
                output.type.tensor_type.ClearField("shape")
        return graph

    def _share(self, tensor: TensorProto) -> str:
        """Put a weight outside; returns its name there, a new one if another weight has its own."""
        known = self.outside.setdefault(tensor.name, tensor)
        if known is tensor or same(numpy_helper.to_array(known), numpy_helper.to_array(tensor)):
            return tensor.name
        name = self._emitter.fresh(tensor.name)
        copy = self.outside[name] = TensorProto()
        copy_fields(tensor, copy, frozenset(("name",)))
        copy.name = name
        return name


def rename(node: NodeProto, names: Mapping[str, str]) -> None:
    """Give tensors other names in what a node reads and writes, its subgraphs included."""
    for field in (node.input, node.output):
        for i, name in enumerate(field):
            field[i] = names.get(name, name)
    for graph in subgraphs(node):
        own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
        own |= {name for inner in graph.node for name in inner.output}
        left = {before: after for before, after in names.items() if before not in own}
        for inner in graph.node:
            rename(inner, left)
        for value in graph.output:
            value.name = left.get(value.name, value.name)


def _make_inputs_of_initializers(graph: GraphProto, before: Set[str]) -> None:
    """Before IR version 4 every initializer is an input: add the new ones, leave out those that went into branches."""
    inputs = [value for value in graph.input if value.name not in before]
    inputs += [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in graph.initializer]
    del graph.input[:]
    graph.input.extend(inputs)
