"""Library calls of a plan as standard ONNX nodes, legal at the model's own opset."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from egraph_opt.errors import EgraphOptError
from egraph_opt.frontends.onnx_model import Array
from egraph_opt.ir import library, scalar
from egraph_opt.ir.expr import Extents
from egraph_opt.ir.formulas import evaluated
from egraph_opt.ir.terms import Call

KERNEL_DOMAIN = "egraph_opt.kernels"


class NotExpressible(EgraphOptError):  # noqa: N818 - says what is the case
    """A call needs an operator that the model's opset does not have."""


@dataclass
class Emitter:
    """Collects nodes and initializers; ``taken`` are the names already in use and grows.

    ``imports`` are the versions of the other domains that the model imports, and grows by those that nodes need.
    ``extents`` are those of float32 tensors that no runtime infers: what generated kernels compute.
    """

    opset: int
    taken: set[str]
    imports: dict[str, int] = field(default_factory=dict)
    nodes: list[NodeProto] = field(default_factory=list)
    initializers: dict[str, TensorProto] = field(default_factory=dict)
    extents: dict[str, Extents] = field(default_factory=dict)
    _by_content: dict[tuple[str, Extents, bytes], str] = field(default_factory=dict)

    def fresh(self, hint: str) -> str:
        name, number = hint, 0
        while not name or name in self.taken:
            number += 1
            name = f"{hint}_{number}"
        self.taken.add(name)
        return name

    def constant(self, value: Array, hint: str) -> str:
        """Name of an initializer with this value; equal values share one."""
        value = np.asarray(value, order="C")  # ascontiguousarray would give a scalar one axis
        key = (value.dtype.str, value.shape, hashlib.sha256(value.tobytes()).digest())
        if key not in self._by_content:
            name = self.fresh(hint)
            self._by_content[key] = name
            self.initializers[name] = numpy_helper.from_array(value, name)
        return self._by_content[key]

    def integers(self, values: Sequence[int], hint: str) -> str:
        return self.constant(np.asarray(values, dtype=np.int64), hint)

    def node(self, op_type: str, inputs: Sequence[str], output: str, *, domain: str = "", **attributes: Any) -> str:
        """Append one node and return ``output``; attributes that are None are left out."""
        given: dict[str, Any] = {name: value for name, value in attributes.items() if value is not None}
        name = self.fresh(f"{output}/{op_type}")
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], name, None, domain or None, **given))
        return output

    def need(self, opset: int, what: str) -> None:
        if self.opset < opset:
            raise NotExpressible(f"{what} needs opset {opset}, the model has {self.opset}")

    def need_domain(self, domain: str, since: int, what: str) -> None:
        """Import a domain, in the version that has an operator where the model does not import it yet."""
        if domain == "":
            self.need(since, what)
        elif self.imports.setdefault(domain, since) < since:
            raise NotExpressible(f"{what} needs {domain} {since}, the model has {self.imports[domain]}")


@dataclass(frozen=True)
class Attributes:
    """The attributes of a call, read from their canonical text as the operator needs them."""

    text: str

    def get(self, key: str) -> str | None:
        try:
            return library.parse_attributes(self.text).get(key)
        except ValueError:
            raise EgraphOptError(f"not an attribute text: {self.text!r}") from None

    def integer(self, key: str) -> int | None:
        value = self.get(key)
        return None if value is None else int(value)

    def integers(self, key: str) -> list[int] | None:
        value = self.get(key)
        return None if value is None else [int(n) for n in value.split(",") if n]

    def required(self, key: str) -> list[int]:
        value = self.integers(key)
        if value is None:
            raise EgraphOptError(f"attribute {key} is missing in {self.text!r}")
        return value


def emit_call(emitter: Emitter, call: Call, inputs: Sequence[str], output: str) -> None:
    """Append the nodes that compute ``call`` from the tensors ``inputs`` into ``output``.

    Raises NotExpressible when the model's opset has no operator for it, EgraphOptError for an unknown operator.
    """
    # Older nodes broadcast by attributes; what is written here is what version 7 means.
    emitter.need(7, "code")
    attributes = Attributes(call.attributes)
    chain = [text for text in (attributes.get(library.EPILOGUE_ATTRIBUTE) or "").split("|") if text]
    result = emitter.fresh(f"{output}/before") if chain else output
    function = attributes.get(library.POINTWISE_ATTRIBUTE)
    if function is not None:
        emit_function(emitter, function, inputs, result)
    elif call.operator in _EMIT:
        _EMIT[call.operator](emitter, call, attributes, inputs, result)
    elif call.operator in library.ADDED:
        _added(emitter, library.ADDED[call.operator], attributes, inputs, result)
    else:
        raise EgraphOptError(f"no ONNX form of the library operator {call.operator!r}")
    for i, text in enumerate(chain):
        following = output if i == len(chain) - 1 else emitter.fresh(f"{output}/before")
        emit_function(emitter, text, [result], following)
        result = following


def supports(call: Call, opset: int) -> bool:
    """Whether a call can be written at an opset."""
    try:
        emit_call(Emitter(opset, set()), call, [f"x{i}" for i in range(len(call.arguments))], "y")
    except NotExpressible:
        return False
    return True


def unavailable(opset: int) -> frozenset[str]:
    """The library operators that no model of an opset can have."""
    return frozenset(operator for operator, since in _NORMALIZATIONS.items() if opset < since)


def emit_function(emitter: Emitter, text: str, inputs: Sequence[str], output: str) -> None:
    """Append the nodes of one scalar function with numpy broadcasting."""
    applied = scalar.lookup(text)
    function, parameters = applied.function, applied.parameters
    if not scalar.is_built_in(text):
        _added_function(emitter, applied, inputs, output)
        return
    match function.onnx:
        case "Clip":
            _clip(emitter, parameters, inputs, output)
        case "HardSwish" if emitter.opset < 14:
            gate = emitter.node("HardSigmoid", inputs, emitter.fresh(f"{output}/gate"), alpha=1 / 6, beta=0.5)
            emitter.node("Mul", [inputs[0], gate], output)
        case "Where":
            _masked(emitter, inputs, output)
        case "IsNaN":
            _unless_nan(emitter, parameters[0], inputs[0], output)
        case "Gelu" if emitter.opset < 20:
            _gelu(emitter, inputs[0], output)
        case _:
            name = function.onnx
            if name == "Erf":
                emitter.need(9, "Erf")
            if name in ("Min", "Max"):
                emitter.need(8, f"{name} with broadcasting")
            given: dict[str, Any] = dict(zip(function.attributes, parameters, strict=True))
            emitter.node(name, inputs, output, **given)


def _added_function(emitter: Emitter, applied: scalar.Applied, inputs: Sequence[str], output: str) -> None:
    """The operator of the same meaning where the model can have it, else the definition step by step."""
    function, formula = applied.function, applied.formula
    if function.onnx:
        try:
            emitter.need_domain(function.domain, function.since, function.onnx)
        except NotExpressible:
            if formula is None:
                raise
        else:
            given: dict[str, Any] = dict(zip(function.attributes, applied.parameters, strict=True))
            emitter.node(function.onnx, inputs, output, domain=function.domain, **given)
            return
    if formula is None:
        raise NotExpressible(f"the scalar function {function.name} has no form in standard operators")
    left = iter(range(len(formula.steps) - 1, -1, -1))

    def step(inner: str, *operands: str) -> str:
        result = output if next(left) == 0 else emitter.fresh(f"{output}/{function.name}")
        emit_function(emitter, inner, operands, result)
        return result

    evaluated(formula, step, inputs, lambda v: emitter.constant(np.asarray(float(v), np.float32), function.name))


def _added(
    emitter: Emitter,
    operator: library.LibraryOperator,
    attributes: Attributes,
    inputs: Sequence[str],
    output: str,
) -> None:
    """The node of an operator that a user added."""
    if operator.onnx is None:
        raise NotExpressible(f"{operator.name} is computed by a kernel only, which this model cannot have")
    emitter.need_domain(operator.onnx.domain, operator.onnx.since, operator.name)
    given = operator.typed(library.parse_attributes(attributes.text))
    emitter.node(operator.onnx.op_type, inputs, output, domain=operator.onnx.domain, **given)


def _clip(emitter: Emitter, parameters: Sequence[float], inputs: Sequence[str], output: str) -> None:
    low, high = (p if math.isfinite(p) else None for p in parameters)
    if low == 0 and high is None:
        emitter.node("Relu", inputs, output)
    elif emitter.opset < 11:
        emitter.node("Clip", inputs, output, min=low, max=high)
    else:
        limits = [
            "" if p is None else emitter.constant(np.asarray(p, dtype=np.float32), "clip_limit") for p in (low, high)
        ]
        while limits and not limits[-1]:
            limits.pop()
        emitter.node("Clip", [*inputs, *limits], output)


def _masked(emitter: Emitter, inputs: Sequence[str], output: str) -> None:
    emitter.need(9, "Where")
    condition = emitter.node("Cast", [inputs[1]], emitter.fresh(f"{output}/keep"), to=int(TensorProto.BOOL))
    nothing = emitter.constant(np.asarray(-0.0, dtype=np.float32), "nothing")
    emitter.node("Where", [condition, inputs[0], nothing], output)


def _unless_nan(emitter: Emitter, value: float, x: str, output: str) -> None:
    emitter.need(9, "IsNaN")
    condition = emitter.node("IsNaN", [x], emitter.fresh(f"{output}/is_nan"))
    emitter.node("Where", [condition, emitter.constant(np.asarray(value, dtype=np.float32), "value"), x], output)


def _gelu(emitter: Emitter, x: str, output: str) -> None:
    # The form that onnxruntime recognises and fuses: x * (erf(x / sqrt 2) + 1) * 0.5
    emitter.need(9, "Erf")
    root, one, half = (emitter.constant(np.asarray(v, dtype=np.float32), "gelu") for v in (math.sqrt(2), 1.0, 0.5))
    scaled = emitter.node("Div", [x, root], emitter.fresh(f"{output}/scaled"))
    erf = emitter.node("Erf", [scaled], emitter.fresh(f"{output}/erf"))
    shifted = emitter.node("Add", [erf, one], emitter.fresh(f"{output}/shifted"))
    product = emitter.node("Mul", [x, shifted], emitter.fresh(f"{output}/product"))
    emitter.node("Mul", [product, half], output)


def _simple(emitter: Emitter, call: Call, attributes: Attributes, inputs: Sequence[str], output: str) -> None:
    emitter.node(call.operator, inputs, output)


def _gemm(emitter: Emitter, call: Call, attributes: Attributes, inputs: Sequence[str], output: str) -> None:
    inputs = list(inputs)
    if len(inputs) == 2 and emitter.opset < 11:
        inputs.append(emitter.constant(np.zeros(1, dtype=np.float32), "zero"))
    emitter.node("Gemm", inputs, output, transA=attributes.integer("transA"), transB=attributes.integer("transB"))


def _windowed(emitter: Emitter, call: Call, attributes: Attributes, inputs: Sequence[str], output: str) -> None:
    given: dict[str, Any] = {
        name: attributes.integers(name) for name in ("kernel_shape", "strides", "pads", "dilations", "output_padding")
    }
    if call.operator in ("MaxPool", "AveragePool") and given["dilations"] is not None:
        if all(n == 1 for n in given["dilations"]):
            given["dilations"] = None
        else:
            emitter.need(10 if call.operator == "MaxPool" else 19, f"a dilated {call.operator}")
    given |= {name: attributes.integer(name) for name in ("group", "count_include_pad")}
    emitter.node(call.operator, inputs, output, **given)


def _reduction(emitter: Emitter, call: Call, attributes: Attributes, inputs: Sequence[str], output: str) -> None:
    axes, keep = attributes.required("axes"), attributes.integer("keepdims")
    if emitter.opset >= (13 if call.operator == "ReduceSum" else 18):
        emitter.node(call.operator, [inputs[0], emitter.integers(axes, "axes")], output, keepdims=keep)
    else:
        emitter.node(call.operator, inputs, output, axes=axes, keepdims=keep)


def _softmax(emitter: Emitter, call: Call, attributes: Attributes, inputs: Sequence[str], output: str) -> None:
    rank, axis = len(call.extents), attributes.integer("axis")
    axis = (-1 if axis is None else axis) % max(rank, 1)
    if emitter.opset >= 13 or axis == rank - 1:
        emitter.node("Softmax", inputs, output, axis=axis)
        return
    order = [*(i for i in range(rank) if i != axis), axis]  # older versions take all axes from ``axis`` on together
    moved = emitter.node("Transpose", inputs, emitter.fresh(f"{output}/moved"), perm=order)
    soft = emitter.node("Softmax", [moved], emitter.fresh(f"{output}/softmax"), axis=rank - 1)
    emitter.node("Transpose", [soft], output, perm=[order.index(i) for i in range(rank)])


def _transpose(emitter: Emitter, call: Call, attributes: Attributes, inputs: Sequence[str], output: str) -> None:
    emitter.node("Transpose", inputs, output, perm=attributes.required("perm"))


def _concat(emitter: Emitter, call: Call, attributes: Attributes, inputs: Sequence[str], output: str) -> None:
    emitter.node("Concat", inputs, output, axis=attributes.required("axis")[0])


def _slice(emitter: Emitter, call: Call, attributes: Attributes, inputs: Sequence[str], output: str) -> None:
    starts, ends, axes = (attributes.required(name) for name in ("starts", "ends", "axes"))
    steps = attributes.integers("steps")
    if steps is not None and all(n == 1 for n in steps):
        steps = None
    if emitter.opset < 10:
        if steps is not None:
            emitter.need(10, "Slice with steps")
        emitter.node("Slice", inputs, output, starts=starts, ends=ends, axes=axes)
        return
    lists = [starts, ends, axes, *([steps] if steps is not None else [])]
    emitter.node("Slice", [inputs[0], *(emitter.integers(values, "slice") for values in lists)], output)


def _pad(emitter: Emitter, call: Call, attributes: Attributes, inputs: Sequence[str], output: str) -> None:
    pads, value = attributes.required("pads"), attributes.get("value")
    if emitter.opset < 11:
        emitter.node("Pad", inputs, output, pads=pads, value=None if value is None else float(value))
        return
    fill = [] if value is None else [emitter.constant(np.asarray(float(value), dtype=np.float32), "pad_value")]
    emitter.node("Pad", [inputs[0], emitter.integers(pads, "pads"), *fill], output)


def _expand(emitter: Emitter, call: Call, attributes: Attributes, inputs: Sequence[str], output: str) -> None:
    emitter.need(8, "Expand")
    emitter.node("Expand", [inputs[0], emitter.integers(call.extents, "shape")], output)


_NORMALIZATIONS = {"LayerNormalization": 17, "RMSNormalization": 23, "InstanceNormalization": 7, "LRN": 7}


def _normalization(emitter: Emitter, call: Call, attributes: Attributes, inputs: Sequence[str], output: str) -> None:
    emitter.need(_NORMALIZATIONS[call.operator], call.operator)
    given = library.lookup(call.operator).typed(library.parse_attributes(attributes.text))
    emitter.node(call.operator, inputs, output, **given)


_EMIT: dict[str, Callable[[Emitter, Call, Attributes, Sequence[str], str], None]] = {
    "MatMul": _simple,
    "GlobalAveragePool": _simple,
    "GlobalMaxPool": _simple,
    "Identity": _simple,
    "Gemm": _gemm,
    "Conv": _windowed,
    "ConvTranspose": _windowed,
    "MaxPool": _windowed,
    "AveragePool": _windowed,
    "ReduceSum": _reduction,
    "ReduceMean": _reduction,
    "ReduceMax": _reduction,
    "ReduceMin": _reduction,
    "Softmax": _softmax,
    "Transpose": _transpose,
    "Concat": _concat,
    "Slice": _slice,
    "Pad": _pad,
    "Expand": _expand,
    **dict.fromkeys(_NORMALIZATIONS, _normalization),
}
