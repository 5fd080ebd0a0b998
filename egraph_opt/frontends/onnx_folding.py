"""Evaluation of nodes whose inputs are all constant, so that computed shapes, axes and index tensors become known.

Only deterministic operators of the list below are evaluated, only while results stay small; whatever fails stays a
node.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from math import prod

import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from egraph_opt.errors import InputRejected, one_line
from egraph_opt.frontends.onnx_model import Array, TensorType, opset_of, standard

# Bytes of one folded result, and of all of them; number of nodes evaluated (each costs about a millisecond).
RESULT_BYTES = 16 << 20
TOTAL_BYTES = 64 << 20
FLOAT_BYTES = 4 << 20
EVALUATIONS = 5000

_FOLDABLE_NAMES = """
    Abs Add And ArgMax ArgMin BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast Ceil Clip Compress Concat
    ConstantOfShape CumSum Div Equal Erf Exp Expand EyeLike Flatten Floor Gather GatherElements GatherND Greater
    GreaterOrEqual Identity IsInf IsNaN Less LessOrEqual Log Max Min Mod Mul Neg NonZero Not OneHot Or Pad Pow
    Range Reciprocal ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Relu Reshape Round ScatterElements
    ScatterND Sigmoid Sign Slice Split Sqrt Squeeze Sub Sum Tanh Tile TopK Transpose Trilu Unique Unsqueeze
    Where Xor
"""
FOLDABLE = frozenset(_FOLDABLE_NAMES.split())
# Their results are no larger than their inputs, though no one knows how large beforehand.
_SHRINKING = frozenset(("Compress", "NonZero", "Unique"))


class Folder:
    """Folds the nodes of one model; keeps count of the budgets across calls."""

    def __init__(self, model: ModelProto) -> None:
        self._imports = [entry for entry in model.opset_import if standard(entry.domain) == ""]
        self._ir_version = model.ir_version
        self._opset = opset_of(model)
        self._hidden = frozenset((standard(function.domain), function.name) for function in model.functions)
        self._bytes_left = TOTAL_BYTES
        self._evaluations_left = EVALUATIONS

    def fold(
        self, node: NodeProto, types: Mapping[str, TensorType], constants: Mapping[str, Array]
    ) -> list[Array] | None:
        """Values of all results of a node, or None when they are not known or too large."""
        if standard(node.domain) != "" or ("", node.op_type) in self._hidden:
            return None
        if node.op_type == "Constant":
            return _constant(node)
        if node.op_type in ("Shape", "Size"):
            return self._shape(node, types.get(node.input[0]))
        if (
            node.op_type not in FOLDABLE
            or not all(node.output)
            or not all(name in constants for name in node.input if name)
        ):
            return None
        inputs = {name: constants[name] for name in node.input if name}
        if self._evaluations_left <= 0 or not all(_plain(value) for value in inputs.values()):
            return None
        if sum(value.nbytes for value in inputs.values()) > RESULT_BYTES or not self._fits(node, inputs):
            return None
        if _is_treacherous(node, inputs):
            return None
        self._evaluations_left -= 1
        if node.op_type == "Relu":  # the reference implementation loses the sign of zeros
            (value,) = inputs.values()
            kept = np.where(value < 0, np.zeros_like(value), value)
            return [kept] if self._pay([kept]) else None
        if node.op_type == "GatherElements":  # the reference implementation fails beyond 64 elements
            found = _gather_elements(node, *(inputs[name] for name in node.input))
            return [found] if found is not None and self._pay([found]) else None
        model = self._single(node, inputs, as_initializers=False)
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                results = ReferenceEvaluator(model).run(None, inputs)
        except Exception:  # the reference implementation raises anything; the node then simply stays
            return None
        values = [np.asarray(result) for result in results]
        if not all(_plain(value) for value in values) or not self._matches(node, types, values):
            return None
        return values if self._pay(values) else None

    def _shape(self, node: NodeProto, known: TensorType | None) -> list[Array] | None:
        if known is None or known.shape is None:
            return None
        if node.op_type == "Size":
            return [np.asarray(prod(known.shape), dtype=np.int64)] if prod(known.shape) < 1 << 62 else None
        given = {attribute.name: attribute.i for attribute in node.attribute}
        rank = len(known.shape)
        start, end = given.get("start", 0), given.get("end", rank)
        return [np.asarray(known.shape[slice(start, end)], dtype=np.int64)]

    def _fits(self, node: NodeProto, inputs: Mapping[str, Array]) -> bool:
        """Whether the results are known to be small before anything is computed."""
        if node.op_type in _SHRINKING:
            return sum(value.size for value in inputs.values()) * 64 <= RESULT_BYTES
        if node.op_type == "Range" and not _range_is_sane([inputs[name] for name in node.input]):
            return False
        try:
            inferred = shape_inference.infer_shapes(self._single(node, inputs, as_initializers=True))
        except Exception:  # as in onnx_inference
            return False
        for value in inferred.graph.output:
            tensor = value.type.tensor_type
            if not tensor.HasField("shape") or not all(dim.HasField("dim_value") for dim in tensor.shape.dim):
                return False
            bytes_needed = 8 * prod(dim.dim_value for dim in tensor.shape.dim)
            is_float = tensor.elem_type in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
            if bytes_needed > min(self._bytes_left, 2 * FLOAT_BYTES if is_float else RESULT_BYTES):
                return False
        return True

    def _single(self, node: NodeProto, inputs: Mapping[str, Array], *, as_initializers: bool) -> ModelProto:
        values = [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for n, v in inputs.items()
        ]
        small = [numpy_helper.from_array(v, n) for n, v in inputs.items() if v.size <= 4096] if as_initializers else []
        kept = {tensor.name for tensor in small}
        outputs = [helper.make_empty_tensor_value_info(name) for name in node.output]
        graph = helper.make_graph([node], "fold", [v for v in values if v.name not in kept], outputs, small)
        return helper.make_model(graph, opset_imports=self._imports, ir_version=self._ir_version)

    def _matches(self, node: NodeProto, types: Mapping[str, TensorType], values: list[Array]) -> bool:
        for name, value in zip(node.output, values, strict=True):
            known = types.get(name)
            if known is None:
                continue
            if known.element and known.element != helper.np_dtype_to_tensor_dtype(value.dtype):
                return False
            if known.shape is not None and known.shape != value.shape:
                return False
        return True

    def _pay(self, values: list[Array]) -> bool:
        cost = sum(value.nbytes for value in values)
        if cost > min(RESULT_BYTES, self._bytes_left):
            return False
        self._bytes_left -= cost
        return True


def _constant(node: NodeProto) -> list[Array] | None:
    for attribute in node.attribute:
        match attribute.name:
            case "value" if attribute.type == AttributeProto.TENSOR:
                try:
                    return [numpy_helper.to_array(attribute.t)]
                except Exception as error:
                    raise InputRejected(f"constant {one_line(node.output[0])!r} is broken: {error}") from error
            case "value_int":
                return [np.asarray(attribute.i, dtype=np.int64)]
            case "value_ints":
                return [np.asarray(attribute.ints, dtype=np.int64)]
            case "value_float":
                return [np.asarray(attribute.f, dtype=np.float32)]
            case "value_floats":
                return [np.asarray(attribute.floats, dtype=np.float32)]
    return None


def _gather_elements(node: NodeProto, data: Array, indices: Array) -> Array | None:
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    rank = data.ndim
    if not -rank <= axis < rank or indices.ndim != rank or indices.dtype.kind != "i":
        return None
    axis %= rank
    inside = all(i == axis or n <= m for i, (n, m) in enumerate(zip(indices.shape, data.shape, strict=True)))
    if not inside or (indices.size and not -data.shape[axis] <= indices.min() <= indices.max() < data.shape[axis]):
        return None
    cut = tuple(slice(None) if i == axis else slice(n) for i, n in enumerate(indices.shape))
    return np.asarray(np.take_along_axis(data[cut], indices, axis))


def _plain(value: Array) -> bool:
    return value.dtype.kind in "biuf" and value.dtype.itemsize <= 8


def _range_is_sane(limits: list[Array]) -> bool:
    if len(limits) != 3 or any(value.size != 1 for value in limits):
        return False
    start, limit, delta = (float(value.reshape(())) for value in limits)
    return delta != 0 and abs((limit - start) / delta) * 8 <= RESULT_BYTES


def _is_treacherous(node: NodeProto, inputs: Mapping[str, Array]) -> bool:
    """Cases whose result differs between runtimes: integer division rounding, casts out of range, integer powers."""
    values = [inputs[name] for name in node.input if name]
    integers = any(value.dtype.kind in "iu" for value in values)
    if node.op_type in ("Div", "Mod"):
        return integers and (any(bool(np.any(value < 0)) for value in values) or bool(np.any(values[-1] == 0)))
    if node.op_type == "Pow":
        return integers and bool(np.any(values[-1] < 0))
    if node.op_type == "Cast":
        target = next((a.i for a in node.attribute if a.name == "to"), 0)
        small = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)
        if target not in small:
            return True
        if values[0].dtype.kind == "f":
            return not bool(np.all(np.abs(values[0].astype(np.float64)) < 2**31))  # not a number is not less
        return (
            target == TensorProto.INT32
            and bool(values[0].size)
            and bool(np.any(np.abs(values[0].astype(object)) >= 2**31))
        )
    return False
