"""Library calls by torch: cuBLAS and cuDNN on a GPU, oneDNN on a processor. Same meanings as ir.library."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from math import prod
from typing import Any, cast

from egraph_opt.errors import EgraphOptError
from egraph_opt.gpu import torch_moves
from egraph_opt.ir import library, moves, scalar
from egraph_opt.ir.expr import Extents
from egraph_opt.ir.formulas import evaluated

Tensor = Any
Integers = Sequence[int]
# The scalar functions that torch has; others need a definition over these.
FUNCTIONS = frozenset(
    {
        *(
            "add",
            "mul",
            "sub",
            "div",
            "min",
            "max",
            "pow",
            "prelu",
            "masked",
            "neg",
            "abs",
            "sqrt",
            "reciprocal",
            "exp",
        ),
        *("log", "erf", "tanh", "sigmoid", "relu", "leaky_relu", "elu", "clip", "hard_sigmoid", "hard_swish"),
        *("softplus", "gelu", "unless_nan"),
    }
)


def call(
    operator: str, attributes: str, arguments: Sequence[Tensor], extents: Extents = (), like: Tensor | None = None
) -> Tensor:
    """The value of a library call, or of one of ir.moves, whose result has ``extents``; a Fill is on ``like``'s device.

    It may share memory with its arguments. Raises EgraphOptError for an operator that torch has no counterpart of.
    """
    given = library.parse_attributes(attributes)
    if operator == moves.FILL:
        return _fill(float(given["value"]), extents, like)
    if operator in moves.MOVES:
        return torch_moves.move(operator, attributes, arguments[0], extents)
    if library.POINTWISE_ATTRIBUTE in given:
        result = apply(given[library.POINTWISE_ATTRIBUTE], arguments)
    elif operator in _OPERATORS:
        result = _OPERATORS[operator](*arguments, **library.lookup(operator).typed(given))
    else:
        raise EgraphOptError(f"torch has no counterpart of {operator}")
    for function in given.get(library.EPILOGUE_ATTRIBUTE, "").split("|"):
        if function:
            result = apply(function, [result])
    return result


def fills(operator: str, attributes: str) -> bool:
    """Whether :func:`call_into` can do it."""
    return operator in _INTO and not library.parse_attributes(attributes).get(library.EPILOGUE_ATTRIBUTE)


def call_into(operator: str, attributes: str, arguments: Sequence[Tensor], into: Tensor) -> Tensor:
    """A library call that writes its result to a tensor which is there, returned."""
    given = library.lookup(operator).typed(library.parse_attributes(attributes))
    return _OPERATORS[operator](*arguments, **given, out=into)


def implementation(operator: str) -> Callable[..., Tensor]:
    """What computes an operator that torch has: a function of its inputs, with its attributes by name."""
    return _OPERATORS[operator]


def supports(operator: str, attributes: str) -> bool:
    """Whether :func:`call` can do it."""
    given = library.parse_attributes(attributes)
    if operator in moves.MOVES:
        return True
    functions = [f for f in given.get(library.EPILOGUE_ATTRIBUTE, "").split("|") if f]
    functions += [given[library.POINTWISE_ATTRIBUTE]] if library.POINTWISE_ATTRIBUTE in given else []
    return all(map(_has_function, functions)) and (library.POINTWISE_ATTRIBUTE in given or operator in _OPERATORS)


def apply(function: str, arguments: Sequence[Tensor]) -> Tensor:
    """A scalar function of tensors, which may broadcast."""
    applied = scalar.lookup(function)
    known = _functions().get(applied.function.name)
    if known is not None:
        return known(*arguments, *applied.parameters)
    if applied.formula is None:
        raise EgraphOptError(f"torch has no counterpart of the scalar function {function!r}")
    first = arguments[0]
    return evaluated(
        applied.formula,
        lambda inner, *operands: apply(inner, operands),
        arguments,
        lambda value: first.new_full((), float(value)),
    )


@lru_cache(maxsize=1024)
def _fill(value: float, extents: Extents, like: Tensor | None) -> Tensor:
    """A constant tensor, made once: inside a CUDA graph that would be a kernel of its own."""
    import torch

    return torch.full(extents, value, device=None if like is None else like.device)


def _has_function(function: str) -> bool:
    applied = scalar.lookup(function)
    if applied.function.name in FUNCTIONS:
        return True
    return applied.formula is not None and all(_has_function(step.function) for step in applied.formula.steps)


def _functions() -> Mapping[str, Callable[..., Tensor]]:
    import torch
    from torch.nn import functional

    return {
        "add": torch.add,
        "mul": torch.mul,
        "sub": torch.sub,
        "div": torch.div,
        "min": torch.minimum,
        "max": torch.maximum,
        "pow": torch.pow,
        "prelu": lambda x, slope: torch.where(x < 0, x * slope, x),
        "unless_nan": lambda x, value: torch.where(torch.isnan(x), value, x),
        "masked": lambda x, keep: torch.where(keep != 0, x, torch.full_like(x, -0.0)),
        "neg": torch.neg,
        "abs": torch.abs,
        "sqrt": torch.sqrt,
        "reciprocal": torch.reciprocal,
        "exp": torch.exp,
        "log": torch.log,
        "erf": torch.erf,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "relu": torch.relu,
        "leaky_relu": functional.leaky_relu,
        "elu": functional.elu,
        "clip": torch.clamp,
        "hard_sigmoid": lambda x, a, b: torch.clamp(x * a + b, 0, 1),
        "hard_swish": functional.hardswish,
        "softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
        "gelu": lambda x: 0.5 * x * (1 + torch.erf(x * 0.5**0.5)),
    }


def _window(
    x: Tensor, strides: Integers, dilations: Integers, pads: Integers
) -> tuple[list[int], list[int], list[int]]:
    count = x.dim() - 2
    return list(strides) or [1] * count, list(dilations) or [1] * count, list(pads) or [0] * (2 * count)


def _spatial(name: str, x: Tensor) -> Callable[..., Tensor]:
    """torch's function of this name for as many spatial axes as there are."""
    import torch

    count = x.dim() - 2
    if not 1 <= count <= 3:
        raise EgraphOptError(f"torch has no {name} over {count} axes")
    return cast(Callable[..., Tensor], getattr(torch, f"{name}{count}d"))


def _padded(x: Tensor, pads: Integers, value: float) -> Tensor:
    """Padding of the spatial axes, before and after each; negative padding cuts off."""
    from torch.nn import functional

    count = len(pads) // 2
    order = [pads[i + side * count] for i in reversed(range(count)) for side in (0, 1)]
    return functional.pad(x, order, value=value) if any(order) else x


def _split(pads: Integers) -> tuple[list[int], list[int]]:
    """The padding that is the same on both sides, which torch's operators do themselves, and what is left."""
    count = len(pads) // 2
    common = [max(0, min(pads[i], pads[i + count])) for i in range(count)]
    return common, [pads[i] - common[i % count] for i in range(2 * count)]


def _conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    strides: Integers = (),
    dilations: Integers = (),
    pads: Integers = (),
    group: int = 1,
) -> Tensor:
    step, dilation, pad = _window(x, strides, dilations, pads)
    common, rest = _split(pad)
    kind = _spatial("conv", x)
    return kind(_padded(x, rest, 0.0), w, b, stride=step, padding=common, dilation=dilation, groups=group)


def _conv_transpose(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    strides: Integers = (),
    dilations: Integers = (),
    pads: Integers = (),
    output_padding: Integers = (),
    group: int = 1,
) -> Tensor:
    step, dilation, pad = _window(x, strides, dilations, pads)
    count = x.dim() - 2
    extra = list(output_padding) or [0] * count
    kind = _spatial("conv_transpose", x)
    common, rest = _split(pad)
    native = not any(rest) and all(e < max(s, d) for e, s, d in zip(extra, step, dilation, strict=True))
    if native:
        return kind(x, w, b, stride=step, padding=common, output_padding=extra, dilation=dilation, groups=group)
    # Uneven padding is cut off afterwards; what lies beyond the last window is the bias alone.
    full = kind(x, w, None, stride=step, dilation=dilation, groups=group)
    sides = [-p for p in pad[:count]] + [e - p for e, p in zip(extra, pad[count:], strict=True)]
    result = _padded(full, sides, 0.0)
    return result if b is None else result + b.reshape(1, -1, *(1,) * count)


def _max_pool(
    x: Tensor,
    *,
    kernel_shape: Integers,
    strides: Integers = (),
    dilations: Integers = (),
    pads: Integers = (),
    ceil_mode: int = 0,
) -> Tensor:
    step, dilation, pad = _window(x, strides, dilations, pads)
    given = {"strides": step, "dilations": dilation, "pads": pad, "ceil_mode": ceil_mode}
    wanted = library.lookup("MaxPool").shape(tuple(x.shape), kernel_shape=kernel_shape, **given)
    x = _padded(x, _complete(x, wanted, kernel_shape, step, dilation, pad), float("-inf"))
    kind = _spatial("max_pool", x)
    return kind(x, list(kernel_shape), step, 0, dilation)


def _complete(
    x: Tensor, wanted: Integers, taps: Integers, step: Integers, dilation: Integers, pad: Integers
) -> list[int]:
    """The padding with which every window lies inside."""
    count = x.dim() - 2
    after = [
        (wanted[2 + i] - 1) * step[i] + dilation[i] * (taps[i] - 1) + 1 - x.shape[2 + i] - pad[i] for i in range(count)
    ]
    return [*pad[:count], *after]


def _average_pool(
    x: Tensor,
    *,
    kernel_shape: Integers,
    strides: Integers = (),
    dilations: Integers = (),
    pads: Integers = (),
    count_include_pad: int = 0,
) -> Tensor:
    step, dilation, pad = _window(x, strides, dilations, pads)
    channels = x.shape[1]
    kind = _spatial("conv", x)
    window = x.new_ones((channels, 1, *kernel_shape)) / prod(kernel_shape)
    found = kind(_padded(x, pad, 0.0), window, None, stride=step, dilation=dilation, groups=channels)
    if count_include_pad or not any(pad):
        return found
    inside = _padded(x.new_ones((1, 1, *x.shape[2:])), pad, 0.0)
    return found / kind(inside, window[:1], None, stride=step, dilation=dilation)


def _layer_normalization(
    x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5
) -> Tensor:
    from torch.nn import functional

    return functional.layer_norm(x, x.shape[axis:], scale, bias, epsilon)


def _rms_normalization(x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5) -> Tensor:
    from torch.nn import functional

    return functional.rms_norm(x, x.shape[axis:], scale, epsilon)


def _instance_normalization(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    from torch.nn import functional

    return functional.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


def _lrn(x: Tensor, *, size: int, alpha: float, beta: float, bias: float) -> Tensor:
    from torch.nn import functional

    before = (size - 1) // 2
    squares = functional.pad((x * x).movedim(1, -1), (before, size - 1 - before))
    total = squares.unfold(-1, size, 1).sum(-1).movedim(-1, 1)
    return x / (total * (alpha / size) + bias) ** beta


def _matmul(a: Tensor, b: Tensor, *, out: Tensor | None = None) -> Tensor:
    import torch

    return torch.matmul(a, b, out=out)


def _gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    transA: int = 0,  # noqa: N803 - as ONNX calls them
    transB: int = 0,  # noqa: N803
    out: Tensor | None = None,
) -> Tensor:
    import torch

    left, right = a.t() if transA else a, b.t() if transB else b
    return torch.matmul(left, right, out=out) if c is None else torch.addmm(c, left, right, out=out)


def _concat(*parts: Tensor, axis: int, out: Tensor | None = None) -> Tensor:
    import torch

    return torch.cat(parts, dim=axis, out=out)


def _axis_wise(name: str) -> Callable[..., Tensor]:
    def reduced(x: Tensor, *, axes: Integers, keepdims: int = 1) -> Tensor:
        return getattr(x, name)(dim=tuple(axes), keepdim=bool(keepdims))

    return reduced


_OPERATORS: Mapping[str, Callable[..., Tensor]] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Softmax": lambda x, axis=-1: x.softmax(axis),
    "Transpose": lambda x, perm: x.permute(*perm),
    "Concat": _concat,
    "ReduceSum": _axis_wise("sum"),
    "ReduceMax": _axis_wise("amax"),
    "ReduceMin": _axis_wise("amin"),
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalMaxPool": lambda x: x.amax(dim=tuple(range(2, x.dim())), keepdim=True),
    "LayerNormalization": _layer_normalization,
    "RMSNormalization": _rms_normalization,
    "InstanceNormalization": _instance_normalization,
    "LRN": _lrn,
}

# Those that can write their result to memory which is there: their functions take it as ``out``.
_INTO = frozenset({"MatMul", "Gemm", "Concat"})
