"""ONNX's standard operators by torch, with the meanings they have from opset 13 on. Contractions, windows and
normalizations are those of `gpu.torch_library`.

Every function takes the attributes of a node and its inputs (None where one is left out) and gives its results. Inputs
that say how, such as shapes and axes, are lists of integers where they are constants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from math import prod
from typing import Any

from egraph_opt.errors import InputRejected
from egraph_opt.gpu import torch_library

Tensor = Any
Attributes = Mapping[str, Any]
Function = Callable[..., Tensor]

# The inputs of an operator that say how, by their positions.
HOW: Mapping[str, tuple[int, ...]] = {
    "Reshape": (1,),
    "Expand": (1,),
    "Tile": (1,),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
    "Slice": (1, 2, 3, 4),
    "Resize": (3,),
    "Split": (1,),
    "Pad": (1, 3),
    "ConstantOfShape": (0,),
    "Trilu": (1,),
    **{f"Reduce{kind}": (1,) for kind in ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "SumSquare")},
}


def lookup(operator: str, opset: int) -> Function:
    """What computes an operator of an opset. Raises InputRejected where torch has nothing for it."""
    found = functions().get(operator)
    if found is None:
        raise InputRejected(f"torch has no counterpart of {operator}")
    if operator == "GroupNormalization" and opset < 21:
        raise InputRejected("torch scales groups of channels otherwise than GroupNormalization before opset 21")
    return found


def _integers(value: Any) -> list[int]:
    """The integers of an input that says how."""
    return value if isinstance(value, list) else [int(n) for n in value.reshape(-1).tolist()]


def _unary(function: Callable[[Tensor], Tensor]) -> Function:
    return lambda attributes, x: function(x)


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    return lambda attributes, x, y: function(x, y)


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    def fold(attributes: Attributes, first: Tensor, *others: Tensor) -> Tensor:
        for other in others:
            first = function(first, other)
        return first

    return fold


def _mean(attributes: Attributes, *inputs: Tensor) -> Tensor:
    return sum(inputs[1:], start=inputs[0]) / len(inputs)


def _divided(x: Tensor, y: Tensor) -> Tensor:
    import torch

    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def _clip(attributes: Attributes, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    import torch

    x = x if low is None else torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


def _gelu(attributes: Attributes, x: Tensor) -> Tensor:
    from torch.nn import functional

    return functional.gelu(x, approximate=attributes.get("approximate", "none"))


def _gemm(attributes: Attributes, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    found = (a.t() if attributes.get("transA") else a) @ (b.t() if attributes.get("transB") else b)
    found = found if alpha == 1.0 else found * alpha
    return found if c is None else found + (c if beta == 1.0 else c * beta)


def _pads(attributes: Attributes, x: Tensor, kernel: Sequence[int]) -> list[int]:
    """The padding before and after every spatial axis."""
    how, count = attributes.get("auto_pad", "NOTSET"), len(kernel)
    if how not in ("SAME_UPPER", "SAME_LOWER"):
        return list(attributes.get("pads", [0] * 2 * count)) if how == "NOTSET" else [0] * 2 * count
    steps, dilations = attributes.get("strides", [1] * count), attributes.get("dilations", [1] * count)
    totals = [
        max(0, (-(-size // step) - 1) * step + (taps - 1) * dilation + 1 - size)
        for size, step, dilation, taps in zip(x.shape[2:], steps, dilations, kernel, strict=True)
    ]
    less, more = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return less + more if how == "SAME_UPPER" else more + less


def _window(attributes: Attributes, *names: str) -> dict[str, Any]:
    return {name: attributes[name] for name in names if name in attributes}


def _conv(attributes: Attributes, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    given = _window(attributes, "strides", "dilations", "group")
    return torch_library.implementation("Conv")(x, w, b, pads=_pads(attributes, x, w.shape[2:]), **given)


def _conv_transpose(attributes: Attributes, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    if attributes.get("output_shape") or attributes.get("auto_pad", "NOTSET") != "NOTSET":
        raise InputRejected("ConvTranspose with a given output is not translated for torch")
    given = _window(attributes, "strides", "dilations", "group", "pads", "output_padding")
    return torch_library.implementation("ConvTranspose")(x, w, b, **given)


def _max_pool(attributes: Attributes, x: Tensor) -> Tensor:
    kernel = attributes["kernel_shape"]
    given = _window(attributes, "strides", "dilations", "ceil_mode")
    return torch_library.implementation("MaxPool")(x, kernel_shape=kernel, pads=_pads(attributes, x, kernel), **given)


def _average_pool(attributes: Attributes, x: Tensor) -> Tensor:
    if attributes.get("ceil_mode"):
        raise InputRejected("AveragePool with ceil_mode is not translated for torch")
    kernel = attributes["kernel_shape"]
    given = _window(attributes, "strides", "dilations", "count_include_pad")
    return torch_library.implementation("AveragePool")(
        x, kernel_shape=kernel, pads=_pads(attributes, x, kernel), **given
    )


def _batch_normalization(attributes: Attributes, x: Tensor, *parameters: Tensor) -> Tensor:
    from torch.nn import functional

    if attributes.get("training_mode"):
        raise InputRejected("BatchNormalization in training is not translated for torch")
    scale, bias, mean, variance = parameters
    return functional.batch_norm(x, mean, variance, scale, bias, eps=attributes.get("epsilon", 1e-5))


def _normalization(operator: str, *names: str) -> Function:
    def normalize(attributes: Attributes, *inputs: Tensor) -> Tensor:
        return torch_library.implementation(operator)(*inputs, **_window(attributes, *names))

    return normalize


def _group_normalization(attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    from torch.nn import functional

    return functional.group_norm(x, attributes["num_groups"], scale, bias, attributes.get("epsilon", 1e-5))


def _lrn(attributes: Attributes, x: Tensor) -> Tensor:
    given = {"alpha": 1e-4, "beta": 0.75, "bias": 1.0} | _window(attributes, "alpha", "beta", "bias", "size")
    return torch_library.implementation("LRN")(x, **given)


def _reduction(function: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Function:
    def reduce(attributes: Attributes, x: Tensor, axes: Any = None) -> Tensor:
        given = attributes.get("axes", []) if axes is None else _integers(axes)
        if not given and attributes.get("noop_with_empty_axes"):
            return x
        return function(x, tuple(given) or tuple(range(x.dim())), bool(attributes.get("keepdims", 1)))

    return reduce


def _reshape(attributes: Attributes, x: Tensor, shape: Any) -> Tensor:
    wanted = _integers(shape)
    if not attributes.get("allowzero"):
        wanted = [x.shape[i] if n == 0 else n for i, n in enumerate(wanted)]
    return x.reshape(wanted)


def _flatten(attributes: Attributes, x: Tensor) -> Tensor:
    axis = attributes.get("axis", 1)
    axis = axis if axis >= 0 else axis + x.dim()
    return x.reshape(prod(x.shape[:axis]), prod(x.shape[axis:]))


def _squeeze(attributes: Attributes, x: Tensor, axes: Any = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(_integers(axes)))


def _unsqueeze(attributes: Attributes, x: Tensor, axes: Any) -> Tensor:
    given = _integers(axes)
    rank = x.dim() + len(given)
    for axis in sorted(axis % rank for axis in given):
        x = x.unsqueeze(axis)
    return x


def _transpose(attributes: Attributes, x: Tensor) -> Tensor:
    return x.permute(attributes.get("perm", list(reversed(range(x.dim())))))


def _concat(attributes: Attributes, *inputs: Tensor) -> Tensor:
    import torch

    return torch.cat(inputs, dim=attributes["axis"])


def _split(attributes: Attributes, x: Tensor, sizes: Any = None) -> Sequence[Tensor]:
    axis = attributes.get("axis", 0)
    if sizes is not None:
        return x.split(_integers(sizes), axis)  # type: ignore[no-any-return]
    # As long as all but the last are equal; without a number there is one part for each result.
    count = attributes.get("num_outputs", attributes["results"])
    return x.split(-(-x.shape[axis] // count), axis)  # type: ignore[no-any-return]


def _slice(attributes: Attributes, x: Tensor, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Tensor:
    import torch

    first, last = _integers(starts), _integers(ends)
    for i, axis in enumerate(range(len(first)) if axes is None else _integers(axes)):
        step = 1 if steps is None else _integers(steps)[i]
        places = range(x.shape[axis])[first[i] : last[i] : step]
        if step > 0:
            x = x[(slice(None),) * (axis % x.dim()) + (slice(places.start, places.stop, step),)]
        else:
            x = x.index_select(axis, torch.tensor(list(places), dtype=torch.int64))
    return x


def _pad(attributes: Attributes, x: Tensor, pads: Any, value: Tensor | None = None, axes: Any = None) -> Tensor:
    from torch.nn import functional

    given, mode = _integers(pads), attributes.get("mode", "constant")
    chosen = list(range(x.dim())) if axes is None else [axis % x.dim() for axis in _integers(axes)]
    sides = {axis: (given[i], given[i + len(chosen)]) for i, axis in enumerate(chosen)}
    order = [n for axis in reversed(range(x.dim())) for n in sides.get(axis, (0, 0))]
    if mode == "constant":
        return functional.pad(x, order, value=0.0 if value is None else value.item())
    raise InputRejected(f"Pad with mode {mode} is not translated for torch")


def _tile(attributes: Attributes, x: Tensor, repeats: Any) -> Tensor:
    return x.repeat(_integers(repeats))


def _expand(attributes: Attributes, x: Tensor, shape: Any) -> Tensor:
    import torch

    return x.expand(torch.broadcast_shapes(x.shape, tuple(_integers(shape))))


def _gather(attributes: Attributes, x: Tensor, places: Tensor) -> Tensor:
    import torch

    axis = attributes.get("axis", 0) % x.dim()
    flat = places.reshape(-1).to(torch.int64)
    flat = torch.where(flat < 0, flat + x.shape[axis], flat)
    return x.index_select(axis, flat).reshape([*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]])


def _resize(
    attributes: Attributes, x: Tensor, roi: Any = None, scales: Tensor | None = None, sizes: Any = None
) -> Tensor:
    """Where torch takes the elements from the same places: linearly, and the nearest one of whole multiples."""
    from torch.nn import functional

    if sizes is not None:
        wanted = _integers(sizes)
    else:
        factors = [] if scales is None else scales.tolist()
        wanted = [round(n * factor) for n, factor in zip(x.shape, factors, strict=True)]
        if any(abs(n * factor - size) > 1e-6 for n, factor, size in zip(x.shape, factors, wanted, strict=True)):
            raise InputRejected("Resize by factors that do not divide is not translated for torch")
    place = attributes.get("coordinate_transformation_mode", "half_pixel")
    how = attributes.get("mode", "nearest"), place, attributes.get("nearest_mode", "round_prefer_floor")
    kind = {3: "linear", 4: "bilinear", 5: "trilinear"}.get(x.dim())
    odd = {"antialias", "axes", "exclude_outside", "keep_aspect_ratio_policy"} & {n for n, v in attributes.items() if v}
    if odd or kind is None or wanted[:2] != list(x.shape[:2]):
        raise InputRejected(f"Resize with {', '.join(sorted(odd)) or 'these axes'} is not translated for torch")
    if how[0] == "linear" and (place in ("half_pixel", "align_corners") or (place[0] == "p" and min(wanted[2:]) > 1)):
        return functional.interpolate(x, wanted[2:], mode=kind, align_corners=place == "align_corners")
    whole = all(size % n == 0 for n, size in zip(x.shape, wanted, strict=True))
    if whole and how[0] == "nearest" and how[1:] in (("asymmetric", "floor"), ("half_pixel", "round_prefer_floor")):
        return functional.interpolate(x, wanted[2:], mode="nearest")
    raise InputRejected(f"Resize with {', '.join(how)} is not translated for torch")


def _shape(attributes: Attributes, x: Tensor) -> Tensor:
    import torch

    return torch.tensor(list(x.shape)[attributes.get("start", 0) : attributes.get("end")], dtype=torch.int64)


def _constant(attributes: Attributes) -> Tensor:
    import numpy as np
    import torch

    (value,) = [value for name, value in attributes.items() if name != "results"]
    kind = None if isinstance(value, np.ndarray) else np.float32 if _has_float(value) else np.int64
    return torch.from_numpy(np.array(value, kind))


def _has_float(value: Any) -> bool:
    return any(isinstance(n, float) for n in (value if isinstance(value, list) else [value]))


def _constant_of_shape(attributes: Attributes, shape: Any) -> Tensor:
    import torch

    value = attributes.get("value")
    return torch.zeros(_integers(shape)) if value is None else torch.from_numpy(value).expand(_integers(shape))


def _cast(attributes: Attributes, x: Tensor) -> Tensor:
    import torch

    # The numbers are those of onnx.TensorProto.DataType.
    kinds = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool, 11: torch.float64}
    if attributes["to"] not in kinds:
        raise InputRejected(f"a Cast to type {attributes['to']} is not translated for torch")
    return x.to(kinds[attributes["to"]])


def _trilu(attributes: Attributes, x: Tensor, diagonal: Any = None) -> Tensor:
    k = 0 if diagonal is None else _integers(diagonal)[0]
    return x.triu(k) if attributes.get("upper", 1) else x.tril(k)


def _depth_to_space(attributes: Attributes, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    b = attributes["blocksize"]
    if attributes.get("mode", "DCR") == "DCR":
        return x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)
    return x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // b**2, h * b, w * b)


def _space_to_depth(attributes: Attributes, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    b = attributes["blocksize"]
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b**2, h // b, w // b)


@cache
def functions() -> Mapping[str, Function]:
    """What computes each operator."""
    import torch
    from torch.nn import functional

    library = {name: torch_library.implementation(name) for name in ("MatMul", "GlobalMaxPool")}
    return {
        "Abs": _unary(torch.abs),
        "Neg": _unary(torch.neg),
        "Sqrt": _unary(torch.sqrt),
        "Reciprocal": _unary(torch.reciprocal),
        "Exp": _unary(torch.exp),
        "Log": _unary(torch.log),
        "Erf": _unary(torch.erf),
        "Tanh": _unary(torch.tanh),
        "Sigmoid": _unary(torch.sigmoid),
        "Sin": _unary(torch.sin),
        "Cos": _unary(torch.cos),
        "Floor": _unary(torch.floor),
        "Ceil": _unary(torch.ceil),
        "Round": _unary(torch.round),
        "Sign": _unary(torch.sign),
        "Relu": _unary(torch.relu),
        "Softsign": _unary(functional.softsign),
        "Softplus": _unary(lambda x: torch.logaddexp(x, torch.zeros_like(x))),
        "Mish": _unary(functional.mish),
        "HardSwish": _unary(functional.hardswish),
        "Identity": _unary(lambda x: x),
        "Not": _unary(torch.logical_not),
        "IsNaN": _unary(torch.isnan),
        "Dropout": lambda attributes, x, *_: x,
        "LeakyRelu": lambda attributes, x: functional.leaky_relu(x, attributes.get("alpha", 0.01)),
        "Elu": lambda attributes, x: functional.elu(x, attributes.get("alpha", 1.0)),
        "Celu": lambda attributes, x: functional.celu(x, attributes.get("alpha", 1.0)),
        "HardSigmoid": lambda attributes, x: torch.clamp(
            x * attributes.get("alpha", 0.2) + attributes.get("beta", 0.5), 0, 1
        ),
        "Swish": lambda attributes, x: x * torch.sigmoid(attributes.get("alpha", 1.0) * x),
        "Gelu": _gelu,
        "Clip": _clip,
        "PRelu": lambda attributes, x, slope: torch.where(x < 0, x * slope, x),
        "Add": _binary(torch.add),
        "Sub": _binary(torch.sub),
        "Mul": _binary(torch.mul),
        "Div": _binary(_divided),
        "Pow": _binary(lambda x, y: torch.pow(x, y).to(x.dtype)),
        "Max": _folded(torch.maximum),
        "Min": _folded(torch.minimum),
        "Sum": _folded(torch.add),
        "Mean": _mean,
        "Equal": _binary(torch.eq),
        "Greater": _binary(torch.gt),
        "GreaterOrEqual": _binary(torch.ge),
        "Less": _binary(torch.lt),
        "LessOrEqual": _binary(torch.le),
        "And": _binary(torch.logical_and),
        "Or": _binary(torch.logical_or),
        "Where": lambda attributes, condition, x, y: torch.where(condition, x, y),
        "MatMul": _binary(library["MatMul"]),
        "Gemm": _gemm,
        "Einsum": lambda attributes, *inputs: torch.einsum(attributes["equation"].replace(" ", ""), *inputs),
        "Conv": _conv,
        "ConvTranspose": _conv_transpose,
        "MaxPool": _max_pool,
        "AveragePool": _average_pool,
        "GlobalMaxPool": _unary(library["GlobalMaxPool"]),
        "GlobalAveragePool": _unary(lambda x: x.mean(dim=tuple(range(2, x.dim())), keepdim=True)),
        "Softmax": lambda attributes, x: x.softmax(attributes.get("axis", -1)),
        "LogSoftmax": lambda attributes, x: x.log_softmax(attributes.get("axis", -1)),
        "BatchNormalization": _batch_normalization,
        "LayerNormalization": _normalization("LayerNormalization", "axis", "epsilon"),
        "RMSNormalization": _normalization("RMSNormalization", "axis", "epsilon"),
        "InstanceNormalization": _normalization("InstanceNormalization", "epsilon"),
        "GroupNormalization": _group_normalization,
        "LRN": _lrn,
        "ReduceSum": _reduction(lambda x, axes, keep: x.sum(dim=axes, keepdim=keep)),
        "ReduceMean": _reduction(lambda x, axes, keep: x.mean(dim=axes, keepdim=keep)),
        "ReduceMax": _reduction(lambda x, axes, keep: x.amax(dim=axes, keepdim=keep)),
        "ReduceMin": _reduction(lambda x, axes, keep: x.amin(dim=axes, keepdim=keep)),
        "ReduceL1": _reduction(lambda x, axes, keep: x.abs().sum(dim=axes, keepdim=keep)),
        "ReduceL2": _reduction(lambda x, axes, keep: (x * x).sum(dim=axes, keepdim=keep).sqrt()),
        "ReduceSumSquare": _reduction(lambda x, axes, keep: (x * x).sum(dim=axes, keepdim=keep)),
        "ReduceLogSum": _reduction(lambda x, axes, keep: x.sum(dim=axes, keepdim=keep).log()),
        "Reshape": _reshape,
        "Flatten": _flatten,
        "Squeeze": _squeeze,
        "Unsqueeze": _unsqueeze,
        "Transpose": _transpose,
        "Concat": _concat,
        "Split": _split,
        "Slice": _slice,
        "Pad": _pad,
        "Tile": _tile,
        "Expand": _expand,
        "Gather": _gather,
        "Resize": _resize,
        "Shape": _shape,
        "Constant": _constant,
        "ConstantOfShape": _constant_of_shape,
        "Cast": _cast,
        "Trilu": _trilu,
        "DepthToSpace": _depth_to_space,
        "SpaceToDepth": _space_to_depth,
    }
