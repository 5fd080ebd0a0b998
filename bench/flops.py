"""How much work a model is: multiply-adds of its contractions, and its parameters."""

import math

import onnx

Shapes = dict[str, tuple[int, ...]]


def multiply_adds(model: onnx.ModelProto) -> int:
    """Multiply-adds of all Conv, ConvTranspose, Gemm and MatMul nodes, by their definition (padding counts).

    All shapes must be known; ValueError otherwise.
    """
    shapes = _shapes(model)
    return sum(_node_multiply_adds(node, shapes) for node in model.graph.node)


def parameters(model: onnx.ModelProto) -> int:
    """Elements of all float initializers with at least one axis."""
    return sum(
        math.prod(tensor.dims)
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and tensor.dims
    )


def _node_multiply_adds(node: onnx.NodeProto, shapes: Shapes) -> int:
    match node.op_type:
        case "Conv":  # a weight is [out, in / groups, kernel]: every output element takes one row of it
            return math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])
        case "ConvTranspose":  # a weight is [in, out / groups, kernel]: every input element gives one row of it
            return math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])
        case "Gemm":
            transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
            return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][0 if transposed else 1]
        case "MatMul":
            return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
    return 0


def _shapes(model: onnx.ModelProto) -> Shapes:
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dimensions = value.type.tensor_type.shape.dim
        if not all(dimension.HasField("dim_value") for dimension in dimensions):
            raise ValueError(f"the shape of {value.name!r} is not known")
        shapes[value.name] = tuple(dimension.dim_value for dimension in dimensions)
    return shapes
