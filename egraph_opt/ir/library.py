"""Library operators that plans may call: what they are called, what they compute, what they cost.

Users add operators and kernels with :func:`egraph_opt.ir.extensions.register`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from egraph_opt.errors import EgraphOptError
from egraph_opt.ir import library_meanings as meaning
from egraph_opt.ir import library_normalizations as norm
from egraph_opt.ir.expr import Extents

if TYPE_CHECKING:
    from egraph_opt.ir.interpreter import Arithmetic

Array = np.ndarray[Any, Any]
Attributes = Mapping[str, str]
AttributeType = Literal["int", "ints", "float", "floats", "string"]

POINTWISE_ATTRIBUTE = "function"
EPILOGUE_ATTRIBUTE = "then"
_RESERVED = (POINTWISE_ATTRIBUTE, EPILOGUE_ATTRIBUTE)
_PARSERS: Mapping[str, Callable[[str], Any]] = {
    "int": int,
    "float": float,
    "string": str,
    "ints": lambda text: integers(text),
    "floats": lambda text: tuple(float(part) for part in text.split(",") if part),
}

# The axis of the result along which an operator takes a bias, and the operator that takes it.
BIASED: Mapping[str, tuple[int, str]] = {
    "Conv": (1, "Conv"),
    "ConvTranspose": (1, "ConvTranspose"),
    "MatMul": (1, "Gemm"),
}
# Unary functions that onnxruntime computes inside the operator before them.
FUSED: Mapping[str, tuple[str, ...]] = {
    "Conv": ("relu", "leaky_relu", "sigmoid", "tanh", "clip", "hard_sigmoid"),
}


@dataclass(frozen=True)
class OnnxOperator:
    """An operator that onnxruntime has: its name, its domain, and the version of the domain it is there ``since``."""

    op_type: str
    domain: str = ""
    since: int = 1


@dataclass(frozen=True)
class LibraryOperator:
    """One operator that rules may instantiate with ``call(name, attributes, arguments, extents)``.

    ``arity`` is the number of arguments, or the least and the most. ``attributes`` gives the type of each attribute by
    name. All functions take one value per argument in order and the attributes that are there by keyword:

    - ``shape(*extents, **attributes)`` gives the extents of the result and raises EgraphOptError for arguments that do
      not fit;
    - ``numpy(*arrays, **attributes)`` gives the result in the arrays' own type. With ``exact`` it is also passed
      ``arithmetic`` (see ir.interpreter) and computes with its methods only (``apply``, ``reduce``,
      ``reduce_product``, ``softmax``, ``fill``) and by moving elements, so that rules about it can be judged exactly;
    - ``flops(*extents, **attributes)`` is how many floating-point operations it spends, ``efficiency`` the share of the
      machine's peak it reaches at its best; or ``seconds(*extents, **attributes)`` says directly how long it takes;
    - ``kernel(*extents, **attributes)`` is the user's own TVM code for it: a PrimFunc over float32 buffers, arguments
      first, result last, or a list of ``te`` tensors in that order; EgraphOptError for extents it cannot do.

    ``onnx`` is the operator of onnxruntime with the same meaning and attributes. One of ``onnx`` and ``kernel`` is
    needed; where both are given they are timed against each other.
    """

    name: str
    arity: int | tuple[int, int]
    shape: Callable[..., Extents]
    numpy: Callable[..., Array]
    attributes: Mapping[str, AttributeType] = field(default_factory=dict, hash=False)
    flops: Callable[..., float] | None = None
    efficiency: float = 0.2
    seconds: Callable[..., float] | None = None
    onnx: OnnxOperator | None = None
    kernel: Callable[..., Any] | None = None
    exact: bool = False

    @property
    def arities(self) -> tuple[int, int]:
        """The least and the most number of arguments."""
        return (self.arity, self.arity) if isinstance(self.arity, int) else self.arity

    def typed(self, attributes: Attributes) -> dict[str, Any]:
        """Attribute values by their types. Raises EgraphOptError, naming the operator, for a wrong attribute."""
        found: dict[str, Any] = {}
        for key, text in attributes.items():
            if key in _RESERVED:
                continue
            if key not in self.attributes:
                known = ", ".join(sorted(self.attributes)) or "none"
                raise EgraphOptError(f"{self.name} has no attribute {key!r}; known: {known}")
            try:
                found[key] = _PARSERS[self.attributes[key]](text)
            except ValueError:
                raise EgraphOptError(f"attribute {key} of {self.name} is no {self.attributes[key]}: {text!r}") from None
        return found

    def result(self, attributes: Attributes, arguments: Sequence[Extents]) -> Extents:
        """Extents of the result. Raises EgraphOptError, naming the operator, for arguments that do not fit."""
        self.check_arity(len(arguments))
        try:
            return tuple(int(n) for n in self.shape(*arguments, **self.typed(attributes)))
        except EgraphOptError:
            raise
        except Exception as error:
            shapes = ", ".join(str(list(extents)) for extents in arguments)
            raise EgraphOptError(f"shape of {self.name}({shapes}) raised {type(error).__name__}: {error}") from error

    def check_arity(self, count: int) -> None:
        """Raise EgraphOptError for a wrong number of arguments."""
        least, most = self.arities
        if not least <= count <= most:
            wanted = str(least) if least == most else f"{least} to {most}"
            raise EgraphOptError(f"{self.name} takes {wanted} arguments, not {count}")


def format_attributes(**attributes: object) -> str:
    """Canonical attribute text: ``key=value`` pairs sorted by key, joined by ``;``; sequences as comma lists."""

    def show(value: object) -> str:
        return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)

    return ";".join(f"{key}={show(value)}" for key, value in sorted(attributes.items()) if value is not None)


def parse_attributes(text: str) -> dict[str, str]:
    """Inverse of :func:`format_attributes`, values still as text."""
    return dict(pair.split("=", 1) for pair in text.split(";") if pair)


def integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


_WINDOW: Mapping[str, AttributeType] = {"strides": "ints", "dilations": "ints", "pads": "ints"}
_POOL: Mapping[str, AttributeType] = {**_WINDOW, "kernel_shape": "ints"}
_AXES: Mapping[str, AttributeType] = {"axes": "ints", "keepdims": "int"}
_NORMAL: Mapping[str, AttributeType] = {"axis": "int", "epsilon": "float"}
_LRN: Mapping[str, AttributeType] = {"size": "int", "alpha": "float", "beta": "float", "bias": "float"}
_ANY = 1 << 31


def _built_in(
    name: str,
    arity: int | tuple[int, int],
    shape: Callable[..., Extents],
    numpy: Callable[..., Array],
    attributes: Mapping[str, AttributeType] = MappingProxyType({}),
) -> LibraryOperator:
    return LibraryOperator(name, arity, shape, numpy, attributes, onnx=OnnxOperator(name), exact=True)


# Their costs are in extract.roofline, which knows the machine's vectors, and their nodes in frontends.onnx_emit, which
# knows how they changed from opset to opset.
OPERATORS: tuple[LibraryOperator, ...] = (
    _built_in("MatMul", 2, meaning.matmul_shape, meaning.matmul),
    _built_in("Gemm", (2, 3), meaning.gemm_shape, meaning.gemm, {"transA": "int", "transB": "int"}),
    _built_in("Conv", (2, 3), meaning.conv_shape, meaning.conv, {**_WINDOW, "group": "int"}),
    _built_in(
        "ConvTranspose",
        (2, 3),
        meaning.conv_transpose_shape,
        meaning.conv_transpose,
        {**_WINDOW, "group": "int", "output_padding": "ints"},
    ),
    _built_in("Softmax", 1, meaning.softmax_shape, meaning.softmax, {"axis": "int"}),
    _built_in("Transpose", 1, meaning.transpose_shape, meaning.transpose, {"perm": "ints"}),
    _built_in("Concat", (1, _ANY), meaning.concat_shape, meaning.concat, {"axis": "int"}),
    _built_in("ReduceSum", 1, meaning.reduction_shape, meaning.reduce_sum, _AXES),
    _built_in("ReduceMax", 1, meaning.reduction_shape, meaning.reduce_max, _AXES),
    _built_in("ReduceMin", 1, meaning.reduction_shape, meaning.reduce_min, _AXES),
    _built_in("MaxPool", 1, meaning.pool_shape, meaning.max_pool, {**_POOL, "ceil_mode": "int"}),
    _built_in("GlobalMaxPool", 1, meaning.global_pool_shape, meaning.global_max_pool),
    _built_in("AveragePool", 1, meaning.pool_shape, meaning.average_pool, {**_POOL, "count_include_pad": "int"}),
    _built_in("LayerNormalization", (2, 3), norm.layer_shape, norm.layer_normalization, _NORMAL),
    _built_in("RMSNormalization", 2, norm.layer_shape, norm.rms_normalization, _NORMAL),
    _built_in("InstanceNormalization", 3, norm.instance_shape, norm.instance_normalization, {"epsilon": "float"}),
    _built_in("LRN", 1, norm.lrn_shape, norm.lrn, _LRN),
)
# What users added; only ir.extensions changes it.
ADDED: dict[str, LibraryOperator] = {}

_BUILT_IN = {operator.name: operator for operator in OPERATORS}


def lookup(operator: str) -> LibraryOperator:
    """The operator of a name; raises EgraphOptError for one that nobody registered."""
    found = _BUILT_IN.get(operator) or ADDED.get(operator)
    if found is None:
        known = ", ".join(sorted((*_BUILT_IN, *ADDED)))
        raise EgraphOptError(
            f"unknown library operator {operator!r}; register a LibraryOperator for it; known: {known}"
        )
    return found


def result_extents(operator: str, attributes: str, *arguments: Extents) -> Extents:
    """Extents of ``call(operator, attributes, …)`` of arguments of these extents; EgraphOptError where none fit."""
    return lookup(operator).result(parse_attributes(attributes), arguments)


def evaluate(
    operator: str, attributes: Attributes, arguments: Sequence[Array], extents: Extents, arithmetic: Arithmetic
) -> Array:
    """Value of a library call. Raises EgraphOptError for an operator without reference semantics."""
    result = _evaluate(operator, attributes, list(arguments), arithmetic)
    for function in attributes.get(EPILOGUE_ATTRIBUTE, "").split("|"):
        if function:
            result = arithmetic.apply(function, result)
    return result


def _evaluate(operator: str, attributes: Attributes, arguments: list[Array], arithmetic: Arithmetic) -> Array:
    if POINTWISE_ATTRIBUTE in attributes:
        rank = max(argument.ndim for argument in arguments)
        shape = np.broadcast_shapes(*(argument.shape for argument in arguments))
        full = [np.broadcast_to(a.reshape((1,) * (rank - a.ndim) + a.shape), shape) for a in arguments]
        return arithmetic.apply(attributes[POINTWISE_ATTRIBUTE], *full)
    record = lookup(operator)
    record.check_arity(len(arguments))
    given = record.typed(attributes)
    if record.exact:
        return record.numpy(*arguments, arithmetic=arithmetic, **given)
    if not np.issubdtype(arithmetic.normal(np.zeros(1)).dtype, np.floating):
        raise EgraphOptError(f"{operator} has no exact meaning; judge it in floating point")
    try:
        return arithmetic.normal(np.asarray(record.numpy(*arguments, **given)))
    except EgraphOptError:
        raise
    except Exception as error:
        raise EgraphOptError(f"the meaning of {operator} raised {type(error).__name__}: {error}") from error
