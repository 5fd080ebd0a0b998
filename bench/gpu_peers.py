"""The benchmark models as torch and as jax have them, operator by operator, each at its best on a GPU.

Both read the model as plain data (`egraph_opt.frontends.onnx_plain`) and know the operators that the benchmark models
have; constants that say how, such as shapes and axes, are numbers of Python, so that compilers see them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from egraph_opt.frontends.onnx_plain import PlainModel, PlainNode

Array = Any
# Inputs that say how an operator works, which are constants in all models here.
HOW = {
    "Reshape": (1,),
    "Slice": (1, 2, 3, 4),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
    "Pad": (1, 2),
    "Resize": (1, 2, 3),
    "Gather": (),
}


@dataclass(frozen=True)
class Step:
    """One node: its function is called with the attributes and the inputs; those in ``how`` are constants."""

    node: PlainNode
    how: Mapping[int, Any]


def steps_of(model: PlainModel) -> list[Step]:
    """The nodes in order, with the constants that say how."""
    constants = dict(model.weights)
    found = []
    for node in model.nodes:
        if node.operator == "Constant":
            constants[node.outputs[0]] = np.asarray(next(iter(node.attributes.values())))
            continue
        how = {
            i: constants[name].ravel().tolist()
            for i, name in enumerate(node.inputs)
            if name and i in HOW.get(node.operator, ()) and name in constants
        }
        found.append(Step(node, how))
    return found


def used_weights(model: PlainModel) -> dict[str, np.ndarray]:
    """The weights that are no constants which say how, and the values of Constant nodes."""
    made = {
        n.outputs[0]: np.asarray(next(iter(n.attributes.values()))) for n in model.nodes if n.operator == "Constant"
    }
    read = {name for step in steps_of(model) for i, name in enumerate(step.node.inputs) if name and i not in step.how}
    return {name: value for name, value in {**model.weights, **made}.items() if name in read}


# ---- torch ----------------------------------------------------------------------------------------------------------


def torch_module(model: PlainModel, dtype: Any, device: str, *, channels_last: bool = False) -> Any:
    """A module whose forward takes the inputs in order and gives the outputs in order."""
    import torch

    steps = steps_of(model)
    functions = [torch_function(step.node.operator, model.opset) for step in steps]
    names = {}

    class Original(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            for number, (name, value) in enumerate(used_weights(model).items()):
                tensor = torch.from_numpy(np.array(value)).to(device)
                if tensor.is_floating_point():
                    tensor = tensor.to(dtype)
                    if channels_last and tensor.dim() == 4:
                        tensor = tensor.to(memory_format=torch.channels_last)
                names[name] = f"weight{number}"
                self.register_parameter(f"weight{number}", torch.nn.Parameter(tensor, requires_grad=False))

        def forward(self, *inputs: Array) -> tuple[Array, ...]:
            values = {value.name: given for value, given in zip(model.inputs, inputs, strict=True)}
            for step, function in zip(steps, functions, strict=True):
                arguments = [
                    step.how[i]
                    if i in step.how
                    else None
                    if not name
                    else values[name]
                    if name in values
                    else getattr(self, names[name])
                    for i, name in enumerate(step.node.inputs)
                ]
                values[step.node.outputs[0]] = function(step.node.attributes, *arguments)
            return tuple(values[value.name] for value in model.outputs)

    return Original().eval()


def torch_function(operator: str, opset: int) -> Callable[..., Array]:
    """An operator by torch."""
    from egraph_opt.backends.torch_operators import lookup

    return {"Resize": _torch_resize, "Pad": _torch_pad, "Gather": _torch_gather}.get(operator) or lookup(
        operator, opset
    )


def _torch_resize(given: Mapping[str, Any], x: Array, *how: Any) -> Array:
    from torch.nn import functional

    assert given["mode"] == "linear", "the benchmark models resize linearly"
    corners = given.get("coordinate_transformation_mode", "half_pixel") == "align_corners"
    return functional.interpolate(x, size=_sizes(x.shape, how)[2:], mode="bilinear", align_corners=corners)


def _sizes(shape: Any, how: Any) -> list[int]:
    scales = how[1] if len(how) > 1 else None
    return [int(n * s) for n, s in zip(shape, scales, strict=True)] if scales else [int(n) for n in how[2]]


def _torch_pad(given: Mapping[str, Any], x: Array, pads: list[int], value: Any = None) -> Array:
    from torch.nn import functional

    sides = zip(pads[: x.dim()], pads[x.dim() :], strict=True)
    order = [n for pair in reversed(list(sides)) for n in pair]
    return functional.pad(x, order, value=value[0] if value else 0.0)


def _torch_gather(given: Mapping[str, Any], x: Array, places: Array) -> Array:
    axis = given.get("axis", 0) % x.dim()
    found = x.index_select(axis, places.reshape(-1))
    return found.reshape([*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]])


# ---- jax ------------------------------------------------------------------------------------------------------------


def jax_function(model: PlainModel, dtype: Any) -> Callable[..., tuple[Array, ...]]:
    """A compiled function of the inputs in order that gives the outputs in order; the weights lie on the device."""
    import jax
    import jax.numpy as jnp

    steps = steps_of(model)
    weights = {
        name: jnp.asarray(value, dtype if np.issubdtype(value.dtype, np.floating) else value.dtype)
        for name, value in used_weights(model).items()
    }
    known = _jax_functions()

    def forward(weights: Mapping[str, Array], *inputs: Array) -> tuple[Array, ...]:
        values = {**weights, **{value.name: given for value, given in zip(model.inputs, inputs, strict=True)}}
        for step in steps:
            arguments = [
                step.how[i] if i in step.how else values[name] if name else None
                for i, name in enumerate(step.node.inputs)
            ]
            values[step.node.outputs[0]] = known[step.node.operator](step.node.attributes, *arguments)
        return tuple(values[value.name] for value in model.outputs)

    compiled = jax.jit(forward)
    return lambda *inputs: compiled(weights, *inputs)  # type: ignore[no-any-return]


def _pairs(pads: Any, count: int) -> list[tuple[int, int]]:
    given = list(pads) if pads else [0] * (2 * count)
    return list(zip(given[:count], given[count:], strict=True))


def _jax_conv(given: Mapping[str, Any], x: Array, w: Array, b: Array | None = None) -> Array:
    from jax import lax

    count = x.ndim - 2
    found = lax.conv_general_dilated(
        x,
        w,
        given.get("strides") or [1] * count,
        _pairs(given.get("pads"), count),
        rhs_dilation=given.get("dilations") or [1] * count,
        feature_group_count=given.get("group", 1),
    )
    return found if b is None else found + b.reshape(-1, *(1,) * count)


def _jax_conv_transpose(given: Mapping[str, Any], x: Array, w: Array, b: Array | None = None) -> Array:
    from jax import lax

    assert given.get("group", 1) == 1, "the benchmark models transpose no grouped convolutions"
    count = x.ndim - 2
    dilations = given.get("dilations") or [1] * count
    extra = given.get("output_padding") or [0] * count
    spans = [d * (k - 1) for d, k in zip(dilations, w.shape[2:], strict=True)]
    pads = [
        (span - before, span - after + more)
        for span, (before, after), more in zip(spans, _pairs(given.get("pads"), count), extra, strict=True)
    ]
    found = lax.conv_general_dilated(
        x,
        w[(slice(None), slice(None), *(slice(None, None, -1),) * count)].swapaxes(0, 1),
        [1] * count,
        pads,
        lhs_dilation=given.get("strides") or [1] * count,
        rhs_dilation=dilations,
    )
    return found if b is None else found + b.reshape(-1, *(1,) * count)


def _jax_pool(combine: Any, start: float) -> Callable[..., Array]:
    def pool(given: Mapping[str, Any], x: Array) -> Array:
        from jax import lax

        kernel, count = given["kernel_shape"], x.ndim - 2
        assert not given.get("ceil_mode"), "the benchmark models pool whole windows"
        steps = (1, 1, *(given.get("strides") or [1] * count))
        pads = ((0, 0), (0, 0), *_pairs(given.get("pads"), count))
        return lax.reduce_window(x, np.asarray(start, x.dtype), combine, (1, 1, *kernel), steps, pads)

    return pool


def _jax_average_pool(given: Mapping[str, Any], x: Array) -> Array:
    import jax.numpy as jnp
    from jax import lax

    total = _jax_pool(lax.add, 0.0)(given, x)
    if given.get("count_include_pad"):
        return total / prod(given["kernel_shape"])
    return total / _jax_pool(lax.add, 0.0)(given, jnp.ones_like(x))


def _jax_slice(
    given: Mapping[str, Any], x: Array, starts: list[int], ends: list[int], axes: Any = None, steps: Any = None
) -> Array:
    chosen = [slice(None)] * x.ndim
    for i, axis in enumerate(range(len(starts)) if axes is None else axes):
        chosen[axis] = slice(starts[i], ends[i], 1 if steps is None else steps[i])
    return x[tuple(chosen)]


def _jax_pad(given: Mapping[str, Any], x: Array, pads: list[int], value: Any = None) -> Array:
    import jax.numpy as jnp

    return jnp.pad(x, _pairs(pads, x.ndim), constant_values=value[0] if value else 0.0)


def _jax_resize(given: Mapping[str, Any], x: Array, *how: Any) -> Array:
    import jax.numpy as jnp

    from egraph_opt.ir import resampling

    transform = given.get("coordinate_transformation_mode", "half_pixel")
    for axis, (count, length) in enumerate(zip(x.shape, _sizes(x.shape, how), strict=True)):
        if count != length:
            weights = resampling.weights(count, length, length / count, mode=given["mode"], transform=transform)
            x = jnp.moveaxis(jnp.tensordot(jnp.asarray(weights, x.dtype), x, (1, axis)), 0, axis)
    return x


def _jax_layer_normalization(given: Mapping[str, Any], x: Array, scale: Array, bias: Array) -> Array:
    axes = tuple(range(given.get("axis", -1) % x.ndim, x.ndim))
    centered = x - x.mean(axes, keepdims=True)
    spread = (centered * centered).mean(axes, keepdims=True)
    return centered / (spread + given.get("epsilon", 1e-5)) ** 0.5 * scale + bias


def _jax_functions() -> Mapping[str, Callable[..., Array]]:
    import jax
    import jax.numpy as jnp
    from jax import lax

    return {
        "Add": lambda given, x, y: x + y,
        "Mul": lambda given, x, y: x * y,
        "Div": lambda given, x, y: x / y,
        "MatMul": lambda given, x, y: x @ y,
        "Gemm": lambda given, a, b, c: (a.T if given.get("transA") else a) @ (b.T if given.get("transB") else b) + c,
        "Conv": _jax_conv,
        "ConvTranspose": _jax_conv_transpose,
        "MaxPool": _jax_pool(lax.max, -np.inf),
        "AveragePool": _jax_average_pool,
        "GlobalAveragePool": lambda given, x: x.mean(tuple(range(2, x.ndim)), keepdims=True),
        "Relu": lambda given, x: jax.nn.relu(x),
        "PRelu": lambda given, x, slope: jnp.where(x < 0, x * slope, x),
        "Tanh": lambda given, x: jnp.tanh(x),
        "Sigmoid": lambda given, x: jax.nn.sigmoid(x),
        "Erf": lambda given, x: lax.erf(x),
        "Softmax": lambda given, x: jax.nn.softmax(x, given.get("axis", -1)),
        "LayerNormalization": _jax_layer_normalization,
        "Reshape": lambda given, x, shape: x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(shape)]),
        "Flatten": lambda given, x: x.reshape(prod(x.shape[: given.get("axis", 1)]), -1),
        "Transpose": lambda given, x: x.transpose(given["perm"]),
        "Squeeze": lambda given, x, axes: x.squeeze(tuple(axes)),
        "Unsqueeze": lambda given, x, axes: jnp.expand_dims(x, tuple(axes)),
        "Concat": lambda given, *parts: jnp.concatenate(parts, given["axis"]),
        "Gather": lambda given, x, places: jnp.take(x, places, axis=given.get("axis", 0)),
        "Slice": _jax_slice,
        "Pad": _jax_pad,
        "Resize": _jax_resize,
    }
