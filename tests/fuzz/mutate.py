"""Changes of models: of bytes, of any field of the protocol buffer, and of what a graph means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from onnx import TensorProto, defs, helper, numpy_helper

from tests.fuzz.seeds import seeds
from tests.hostile.names import NAMES

INTEGERS = (0, 1, -1, 2, 3, 4, 5, 7, 13, 255, 256, 1 << 31, (1 << 31) - 1, 1 << 40, 1 << 62, -(1 << 63), (1 << 63) - 1)
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e30, 3e38, float("inf"), -float("inf"), float("nan"))
TEXTS = (*(name for name in NAMES.values() if len(name) < 1000), "", "x", "y", "w", "SAME_LOWER", "VALID", "...")
OPERATORS = sorted({schema.name for schema in defs.get_all_schemas() if schema.domain == ""})
POINTWISE = ("Relu", "Neg", "Exp", "Tanh", "Sqrt", "Abs", "Identity", "Sigmoid", "Log", "Softmax", "Transpose", "Round")
BINARY = ("Add", "Sub", "Mul", "Div", "MatMul", "Max", "Min", "Pow", "Concat", "PRelu")
LONGEST = 200_000


def mutated(seed: int, number: int) -> tuple[str, bytes]:
    """The case of this number: what was done to which model, and the bytes that came out."""
    random = np.random.default_rng((seed, number))
    name, content = seeds()[int(random.integers(len(seeds())))]
    steps = [name]
    kind = random.random()
    if kind < 0.07:
        for _ in range(random.integers(1, 4)):
            content, step = _bytes(content, random)
            steps.append(step)
        return " > ".join(steps), content
    model = onnx.ModelProto.FromString(content)
    for _ in range(min(random.geometric(0.5), 6)):
        change = _any_field if random.random() < 0.2 else MEANINGS[int(random.integers(len(MEANINGS)))]
        try:
            steps.append(change(model, random))
        except (ValueError, TypeError, IndexError, KeyError, OverflowError) as error:
            steps.append(f"({change.__name__}: {type(error).__name__})")
    content = model.SerializeToString()
    if kind > 0.98:
        content, step = _bytes(content, random)
        steps.append(step)
    return " > ".join(steps), content[:LONGEST]


def _bytes(content: bytes, random: np.random.Generator) -> tuple[bytes, str]:
    at, length = int(random.integers(len(content))), int(random.integers(1, 40))
    match random.integers(5):
        case 0:
            changed = bytearray(content)
            changed[at] ^= 1 << int(random.integers(8))
            return bytes(changed), f"bit at {at}"
        case 1:
            return content[:at] or b"\0", f"cut at {at}"
        case 2:
            return content[:at] + random.bytes(length) + content[at:], f"{length} bytes at {at}"
        case 3:
            return (content[:at] + content[at + length :]) or b"\0", f"without {length} bytes at {at}"
    return content[:at] + content[at : at + length] + content[at:], f"{length} bytes twice at {at}"


def _messages(message: Any, found: list[Any]) -> list[Any]:
    found.append(message)
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for part in value if field.is_repeated else [value]:
                _messages(part, found)
    return found


def _choice(random: np.random.Generator, values: Any) -> Any:
    return values[int(random.integers(len(values)))]


def _scalar(field: FieldDescriptor, random: np.random.Generator) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            text = _choice(random, TEXTS)
            return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
        case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
            return _choice(random, FLOATS)
        case FieldDescriptor.CPPTYPE_INT32:
            return int(np.int64(_choice(random, INTEGERS)).astype(np.int32))
        case FieldDescriptor.CPPTYPE_ENUM:
            return int(random.integers(0, 24))
        case FieldDescriptor.CPPTYPE_UINT64:
            return abs(_choice(random, INTEGERS))
    return _choice(random, INTEGERS)


def _any_field(model: onnx.ModelProto, random: np.random.Generator) -> str:
    everything = _messages(model, [])
    message = _choice(random, everything)
    field = _choice(
        random, [f for f, _ in message.ListFields()] if random.random() < 0.7 else message.DESCRIPTOR.fields
    )
    what = f"{message.DESCRIPTOR.name}.{field.name}"
    if field.is_repeated:
        values = getattr(message, field.name)
        match random.integers(4):
            case 0 if len(values):
                del values[int(random.integers(len(values)))]
                return f"{what} shorter"
            case 1 if len(values):
                values.append(_choice(random, values))
                return f"{what} repeats"
            case 2 if len(values) and field.type != FieldDescriptor.TYPE_MESSAGE:
                values[int(random.integers(len(values)))] = _scalar(field, random)
                return f"{what} changes"
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            others = [m for m in everything if field.message_type == m.DESCRIPTOR]
            values.append(_choice(random, others)) if others else values.add()
        else:
            values.append(_scalar(field, random))
        return f"{what} longer"
    if random.random() < 0.3:
        message.ClearField(field.name)
        return f"no {what}"
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        others = [m for m in everything if field.message_type == m.DESCRIPTOR and m is not message]
        copy = field.message_type._concrete_class()
        copy.CopyFrom(_choice(random, others))
        getattr(message, field.name).CopyFrom(copy)
    else:
        setattr(message, field.name, _scalar(field, random))
    return f"{what} changes"


def _names(model: onnx.ModelProto) -> list[str]:
    graph = model.graph
    return (
        [v.name for v in graph.input] + [t.name for t in graph.initializer] + [n for m in graph.node for n in m.output]
    )


def _operator(model: onnx.ModelProto, random: np.random.Generator) -> str:
    node = _choice(random, model.graph.node)
    family = OPERATORS if random.random() < 0.2 else POINTWISE if len(node.input) == 1 else BINARY
    node.op_type = _choice(random, family)
    if random.random() < 0.5:
        del node.attribute[:]
    return f"operator {node.op_type}"


def _rewire(model: onnx.ModelProto, random: np.random.Generator) -> str:
    node = _choice(random, model.graph.node)
    at = int(random.integers(len(node.input)))
    node.input[at] = _choice(random, _names(model))
    return f"{node.op_type} reads {node.input[at]}"


def _insert(model: onnx.ModelProto, random: np.random.Generator) -> str:
    """A node between a tensor and one of its readers."""
    reader = _choice(random, model.graph.node)
    at = int(random.integers(len(reader.input)))
    binary = random.random() < 0.5
    operator = _choice(random, BINARY if binary else POINTWISE)
    other = reader.input[at] if random.random() < 0.5 else _choice(random, _names(model))
    made = helper.make_node(operator, [reader.input[at], *([other] if binary else [])], [f"new{len(model.graph.node)}"])
    if operator == "Concat":
        made.attribute.append(helper.make_attribute("axis", int(random.integers(-1, 3))))
    reader.input[at] = made.output[0]
    model.graph.node.append(made)
    return f"{operator} before {reader.op_type}"


def _bypass(model: onnx.ModelProto, random: np.random.Generator) -> str:
    gone = _choice(random, model.graph.node)
    for node in model.graph.node:
        for at, name in enumerate(node.input):
            if name in gone.output:
                node.input[at] = gone.input[0]
    return f"around {gone.op_type}"


def _expose(model: onnx.ModelProto, random: np.random.Generator) -> str:
    """One more output."""
    name = _choice(random, _names(model))
    model.graph.output.append(helper.make_empty_tensor_value_info(name))
    return f"output {name}"


def _attribute(model: onnx.ModelProto, random: np.random.Generator) -> str:
    node = _choice(random, [node for node in model.graph.node if node.attribute])
    attribute = _choice(random, node.attribute)
    small = [int(n) for n in random.integers(-2, 5, size=8)]
    if attribute.type == onnx.AttributeProto.INT:
        attribute.i = small[0]
    elif attribute.type == onnx.AttributeProto.INTS:
        count = len(attribute.ints)
        attribute.ints[:] = small[:count] if random.random() < 0.5 else [small[0]] * count
    elif attribute.type == onnx.AttributeProto.FLOAT:
        attribute.f = _choice(random, FLOATS)
    return f"{node.op_type}.{attribute.name}"


def _weight(model: onnx.ModelProto, random: np.random.Generator) -> str:
    tensor = _choice(random, model.graph.initializer)
    value = np.array(numpy_helper.to_array(tensor))
    kind = int(random.integers(6))
    if value.dtype.kind == "f":
        if kind == 0:
            value = np.full_like(value, _choice(random, FLOATS))
        elif kind == 1:
            value.reshape(-1)[int(random.integers(value.size))] = _choice(random, FLOATS)
        elif kind == 2:
            value = np.round(value)
        elif kind == 3:
            value = value * value.dtype.type(_choice(random, (1e-30, 1e30, 1e-3, 1e3)))
        elif kind == 4:
            value = value.T.copy()
        else:
            value = value.reshape(-1)[:1].reshape([1] * value.ndim)
    elif kind < 4:
        value.reshape(-1)[int(random.integers(value.size))] = int(random.integers(-3, 7))
    else:
        value = np.append(value.reshape(-1), value.reshape(-1)[:1])[int(random.integers(2)) :]
    tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return f"weight {tensor.name}"


def _dimension(model: onnx.ModelProto, random: np.random.Generator) -> str:
    value = _choice(random, model.graph.input)
    dimension = _choice(random, value.type.tensor_type.shape.dim)
    if random.random() < 0.2:
        dimension.dim_param = "n"
        return f"{value.name} symbolic"
    dimension.dim_value = int(_choice(random, (0, 1, 1, 2, 3, 4, 5, 7, 8, 16)))
    return f"{value.name} of {dimension.dim_value}"


def _version(model: onnx.ModelProto, random: np.random.Generator) -> str:
    version = int(random.integers(6, 25))
    for entry in model.opset_import:
        if not entry.domain:
            entry.version = version
    return f"opset {version}"


def _input(model: onnx.ModelProto, random: np.random.Generator) -> str:
    """An initializer becomes an input, or its default."""
    tensor = _choice(random, model.graph.initializer)
    model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    if random.random() < 0.5:
        kept = [other for other in model.graph.initializer if other.name != tensor.name]
        name = tensor.name
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
        return f"input {name}"
    return f"default {tensor.name}"


def _shuffle(model: onnx.ModelProto, random: np.random.Generator) -> str:
    nodes = [model.graph.node[int(i)] for i in random.permutation(len(model.graph.node))]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return "other order"


def _type(model: onnx.ModelProto, random: np.random.Generator) -> str:
    """All of the model in another type."""
    kind = int(_choice(random, (TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT32)))
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = kind
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            value = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(kind))
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return f"type {kind}"


def _twice(model: onnx.ModelProto, random: np.random.Generator) -> str:
    """A node again under other names."""
    again = onnx.NodeProto()
    again.CopyFrom(_choice(random, model.graph.node))
    again.output[:] = [f"{name}_again{len(model.graph.node)}" for name in again.output]
    model.graph.node.append(again)
    _expose_last = helper.make_empty_tensor_value_info(again.output[0])
    model.graph.output.append(_expose_last)
    return f"{again.op_type} twice"


MEANINGS: tuple[Callable[[onnx.ModelProto, np.random.Generator], str], ...] = (
    _operator, _rewire, _rewire, _insert, _insert, _insert, _bypass, _expose, _attribute, _attribute, _weight, _weight,
    _dimension, _version, _input, _shuffle, _type, _twice,
)  # fmt: skip
