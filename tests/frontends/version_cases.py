"""For every operator of the algebra and every version of it: nodes that use each of its attributes and inputs."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from onnx import helper

from egraph_opt.frontends.onnx_operators import OPERATORS
from tests.frontends import version_cases_moves as moves
from tests.frontends.version_case import Case, attributes_of, case, floats, ints, versions, weights


def cases(op_type: str, version: int) -> list[Case]:
    """The cases of an operator at a version; KeyError for an operator without any."""
    found = list(_CASES[op_type](version))
    if version < 6 and "consumed_inputs" in attributes_of(op_type, version):
        first = found[0]
        found.append(Case(first.inputs, {**first.attributes, "consumed_inputs": [0]}, first.outputs, "", first.oracle,
                          first.positive))  # fmt: skip
    return found


def _unary(positive: bool = False, oracle: Any = None, **attributes: float) -> Callable[[int], Iterator[Case]]:
    def make(version: int) -> Iterator[Case]:
        yield case((2, 3), positive=positive, oracle=oracle)
        if attributes:
            yield case((2, 3), positive=positive, **attributes)

    return make


def _binary(function: Callable[..., Any], positive: bool = False) -> Callable[[int], Iterator[Case]]:
    def make(version: int) -> Iterator[Case]:
        if version >= 7:
            yield case((2, 3, 4), (3, 1), positive=positive)
            yield case((3, 1), floats(1.5), positive=positive)
            yield case((), (2, 3), positive=positive)
            return
        yield case((2, 3), (2, 3), positive=positive, oracle=function)
        yield case((2, 3), (3,), declined="without broadcast")
        for shape, axis in (((3,), None), ((), None), ((1, 1), None), ((2,), 0), ((2, 3), 0), ((3,), 1)):
            aligned = _aligned(function, 2, axis)
            given = {"broadcast": 1} | ({} if axis is None else {"axis": axis})
            yield case((2, 3), shape, positive=positive, oracle=aligned, **given)

    return make


def _aligned(function: Callable[..., Any], rank: int, axis: int | None) -> Callable[..., Any]:
    def compute(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        start = rank - y.ndim if axis is None or y.size == 1 else axis
        return function(x, y.reshape(y.shape + (1,) * (rank - y.ndim - start)) if y.ndim < rank else y)

    return compute


def _pow(version: int) -> Iterator[Case]:
    yield from _binary(np.power, positive=True)(version)
    if version >= 7:
        for exponent in (2.0, 3.0, 4.0, 0.5, 1.0, -1.0, 0.0):
            yield case((2, 3), floats(exponent), positive=exponent == 0.5)
    if version >= 12:
        yield case((2, 3), ints(2), declined="not a float32")


def _variadic(function: Callable[..., Any]) -> Callable[[int], Iterator[Case]]:
    def make(version: int) -> Iterator[Case]:
        yield case((2, 3), (2, 3), (2, 3), oracle=function)
        yield case((2, 3), oracle=function)
        if version >= 8:
            yield case((2, 1), (3,), ())

    return make


def _clip(version: int) -> Iterator[Case]:
    if version < 11:
        for given in ({}, {"min": 0.0}, {"max": 0.5}, {"min": -0.5, "max": 0.5}):
            yield case((3, 4), oracle=lambda x, g=given: x.clip(g.get("min"), g.get("max")) if g else x, **given)
        return
    yield case((3, 4))
    yield case((3, 4), np.float32(-0.5), np.float32(0.5))
    yield case((3, 4), "", np.float32(0.5))
    yield case((3, 4), (), declined="not constant")
    yield case((3, 4), np.float32(1), np.float32(0), declined="cross")


def _prelu(version: int) -> Iterator[Case]:
    def oracle(x: np.ndarray, slope: np.ndarray) -> np.ndarray:
        return np.where(x < 0, x * (slope if slope.size == 1 else slope[:, None]), x)

    if version < 7:
        yield case((2, 3, 4), weights(3), oracle=oracle)
        yield case((2, 3, 4), weights(1), oracle=oracle)
    else:
        yield case((2, 3, 4), weights(3, 1))
        yield case((2, 3, 4), (1,))
        yield case((2, 3, 4), weights(2, 3, 4))


def _where(version: int) -> Iterator[Case]:
    mask = np.tril(np.ones((4, 4), dtype=bool))
    yield case(mask, (2, 4, 4), np.float32(-np.inf))
    yield case(mask, np.float32(np.nan), (2, 1, 4))
    yield case(mask, (4, 4), (4, 1))
    yield case(mask[:, :1], (3,), floats(-0.0, 1, 2))
    yield case(mask, floats(1), floats(2, 3, 4, 5))
    yield case(np.ones((1, 3), dtype=bool), (2, 1), (1, 1))
    yield case(np.zeros((1, 3), dtype=bool), (2, 1), (1, 1))


def _conv(version: int) -> Iterator[Case]:
    yield case((1, 4, 6, 7), weights(6, 2, 3, 2), weights(6), group=2, strides=[2, 1], dilations=[1, 2],
               pads=[1, 0, 2, 1], kernel_shape=[3, 2])  # fmt: skip
    yield case((1, 2, 9), weights(3, 2, 3), dilations=[2])
    yield case((1, 2, 4, 5, 3), weights(3, 2, 2, 2, 2), pads=[1, 0, 0, 0, 1, 0])
    for auto_pad in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        yield case((1, 2, 6, 7), (3, 2, 2, 3), auto_pad=auto_pad, strides=[2, 2])
    yield case((1, 1, 2, 2, 2, 2), weights(1, 1, 1, 1, 1, 1), declined="1 to 3 spatial axes")


def _conv_transpose(version: int) -> Iterator[Case]:
    yield case((1, 4, 3, 4), weights(4, 3, 3, 2), weights(6), group=2, strides=[2, 3], dilations=[1, 2],
               pads=[1, 0, 0, 1], output_padding=[1, 2], kernel_shape=[3, 2])  # fmt: skip
    yield case((1, 2, 3, 3), weights(2, 3, 3, 3), strides=[2, 2], output_shape=[6, 6])
    for auto_pad in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        yield case((1, 2, 3, 3), weights(2, 3, 3, 3), strides=[2, 2], auto_pad=auto_pad)


def _pool(op_type: str) -> Callable[[int], Iterator[Case]]:
    def make(version: int) -> Iterator[Case]:
        known = attributes_of(op_type, version)
        base: dict[str, Any] = {"kernel_shape": [3, 2]}
        unsaid = op_type == "AveragePool" and version < 7
        yield case((1, 2, 6, 7), **base, strides=[2, 2], pads=[1, 1, 2, 0], declined="padding counts" if unsaid else "")
        for auto_pad in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
            yield case((1, 2, 6, 6), **base, auto_pad=auto_pad, strides=[2, 2],
                       declined="padding counts" if unsaid and auto_pad.startswith("SAME") else "")  # fmt: skip
        if "ceil_mode" in known:
            yield case((1, 2, 6, 8), **base, ceil_mode=1, strides=[2, 3])
        if "dilations" in known:
            yield case((1, 2, 6, 8), **base, dilations=[2, 1])
        if "count_include_pad" in known:
            yield case((1, 2, 6, 8), **base, count_include_pad=1, pads=[1, 1, 2, 0])
        if "storage_order" in known:
            yield case((1, 2, 6, 8), **base, storage_order=1)
            yield case((1, 2, 6, 8), **base, outputs=2, declined="more than one result")
        if "p" in known:
            for p in (1, 2, 3):
                yield case((1, 2, 6, 8), **base, p=float(p) if version < 2 else p, oracle=_lp_pool(p))

    return make


def _lp_pool(p: int) -> Callable[..., Any]:
    def compute(x: np.ndarray) -> np.ndarray:
        windows = np.lib.stride_tricks.sliding_window_view(np.abs(x) ** p, (3, 2), axis=(2, 3))
        return windows.sum(axis=(-2, -1)) ** (1 / p)

    return compute


def _global_lp_pool(version: int) -> Iterator[Case]:
    yield case((2, 3, 4, 5), oracle=lambda x: np.sqrt((x * x).sum(axis=(2, 3), keepdims=True)))
    for p in (1, 3):
        yield case((2, 3, 4), p=float(p) if version < 2 else p,
                   oracle=lambda x, p=p: (np.abs(x) ** p).sum(axis=2, keepdims=True) ** (1 / p))  # fmt: skip


def _gemm(version: int) -> Iterator[Case]:
    def oracle(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        return 0.5 * a.T @ b.T + 2.0 * c

    if version < 7:
        given = {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}
        yield case((4, 3), (5, 4), weights(3, 5), **given, oracle=oracle)
        yield case((4, 3), (5, 4), weights(5), **given, broadcast=1, oracle=oracle)
        yield case((3, 4), (4, 5), weights(5), declined="without broadcast")
        return
    yield case((4, 3), (5, 4), weights(5), transA=1, transB=1, alpha=0.5, beta=2.0)
    yield case((3, 4), (4, 5), (3, 1), beta=0.0)
    if version >= 11:
        yield case((3, 4), (4, 5))


def _einsum(version: int) -> Iterator[Case]:
    for equation, *shapes in (
        ("bij,bjk->bik", (2, 3, 4), (2, 4, 5)),
        ("ii->i", (3, 3)),
        ("iij", (3, 3, 4)),
        ("...ij,...jk->...ik", (2, 1, 3, 4), (5, 4, 2)),
        ("...i,...i", (2, 3, 4), (2, 3, 4)),
        ("ab, bc, cd -> ad", (2, 3), (3, 4), (4, 5)),
        ("i,i,i->", (3,), (3,), (3,)),
        ("b...->...b", (2, 3, 4)),
        ("i,j,k->kji", (2,), (3,), (4,)),
    ):
        letters = np.einsum(equation.replace(" ", ""), *(np.zeros(shape) for shape in shapes))
        yield case(*shapes, equation=equation, oracle=_einsum_of(equation) if letters.size else None)


def _einsum_of(equation: str) -> Callable[..., Any]:
    return lambda *arrays: np.einsum(equation.replace(" ", ""), *arrays)


def _reduction(input_since: int, function: Any, positive: bool = False) -> Callable[[int], Iterator[Case]]:
    def make(version: int) -> Iterator[Case]:
        for axes in (None, [1], [-1, 0] if version >= 11 else [2, 0]):
            for keep in (0, 1):
                given: dict[str, Any] = {"keepdims": keep}
                inputs: list[Any] = [(2, 3, 4)]
                if axes is not None and version >= input_since:
                    inputs.append(ints(*axes))
                elif axes is not None:
                    given["axes"] = axes
                sorted_axes = None if axes is None else tuple(axes)
                oracle = (lambda x, *_, a=sorted_axes, k=keep: function(x, a, bool(k))) if function else None
                yield case(*inputs, positive=positive, oracle=oracle, **given)
        if version >= input_since:
            plain = function is None
            yield case((2, 3), ints(), positive=positive, noop_with_empty_axes=1,
                       oracle=None, declined="" if plain else "no axes")  # fmt: skip
            yield case((2, 3), positive=positive, noop_with_empty_axes=0,
                       oracle=(lambda x: function(x, None, True)) if function else None)  # fmt: skip

    return make


def _softmax(version: int) -> Iterator[Case]:
    yield case((2, 3, 4))
    for axis in (0, 1, 2, *((-1, -2) if version >= 11 else ())):
        yield case((2, 3, 4), axis=axis)


def _layer_normalization(version: int) -> Iterator[Case]:
    yield case((2, 3, 4), weights(4), weights(4))
    yield case((2, 3, 4), (3, 4), axis=1, epsilon=0.1, stash_type=1)
    yield case((2, 3, 4), weights(2, 3, 4), weights(1, 4), axis=-3)
    yield case((2, 3, 4), weights(3, 4), weights(3, 4), outputs=3, axis=1)
    yield case((2, 3), weights(3), stash_type=11, declined="statistics of another type")


def _rms_normalization(version: int) -> Iterator[Case]:
    yield case((2, 3, 4), weights(4))
    yield case((2, 3, 4), weights(3, 4), axis=1, epsilon=0.1, stash_type=1)
    yield case((2, 3), weights(3), stash_type=11, declined="statistics of another type")


def _instance(x: np.ndarray, s: np.ndarray, b: np.ndarray, epsilon: float = 1e-5) -> np.ndarray:
    axes = tuple(range(2, x.ndim))
    shape = (1, -1, *(1 for _ in axes))
    centered = x - x.mean(axis=axes, keepdims=True)
    scaled = centered / np.sqrt(centered.var(axis=axes, keepdims=True) + epsilon)
    return scaled * s.reshape(shape) + b.reshape(shape)


def _instance_normalization(version: int) -> Iterator[Case]:
    yield case((2, 3, 4, 5), weights(3), weights(3, seed=4), oracle=_instance)
    yield case((2, 3, 4), (3,), (3,), epsilon=0.1, oracle=lambda x, s, b: _instance(x, s, b, 0.1))


def _group_normalization(version: int) -> Iterator[Case]:
    count = 2 if version < 21 else 6
    yield case((2, 6, 4, 5), weights(count), weights(count, seed=4), num_groups=2)
    yield case((2, 6, 4), (count,), (count,), num_groups=2, epsilon=0.1)
    if version >= 21:
        yield case((2, 6, 4), weights(6), weights(6), num_groups=3, stash_type=1)
        yield case((2, 6, 4), weights(6), weights(6), num_groups=3, stash_type=11, declined="another type")


def _batch_normalization(version: int) -> Iterator[Case]:
    parameters = (weights(3), weights(3, seed=4), weights(3, seed=5), np.abs(weights(3, seed=6)) + np.float32(0.5))
    evaluated: dict[str, Any] = {"is_test": 1} if version < 7 else {}
    old: dict[str, Any] = {"consumed_inputs": [0, 0, 0, 1, 1]} if version < 6 else {}
    evaluated |= old

    def oracle(*arrays: np.ndarray) -> np.ndarray:
        x, (s, b, m, v) = arrays[0], (a.reshape(1, -1, *(1 for _ in arrays[0].shape[2:])) for a in arrays[1:])
        return (x - m) / np.sqrt(v + 1e-3) * s + b

    known = attributes_of("BatchNormalization", version)
    yield case((2, 3, 4), *parameters, epsilon=1e-3, momentum=0.8, oracle=oracle, **evaluated)
    yield case((2, 3, 4), (3,), (3,), (3,), parameters[3], epsilon=1e-3, oracle=oracle, **evaluated)
    if version < 7:
        yield case((2, 3, 4), *parameters, is_test=0, declined="training", **old)
    if "training_mode" in known:
        yield case((2, 3, 4), *parameters, training_mode=1, outputs=3 if version >= 14 else 5, declined="more than one")
        yield case((2, 3, 4), *parameters, training_mode=1, declined="training")
    if "spatial" in known:
        wide = [np.abs(weights(3, 4, seed=i)) + np.float32(0.5) for i in range(4)]
        yield case((2, 3, 4), *wide, spatial=0, **evaluated,
                   oracle=lambda x, s, b, m, v: (x - m) / np.sqrt(v + 1e-5) * s + b)  # fmt: skip


def _lrn_of_four(x: np.ndarray) -> np.ndarray:
    squares = np.pad(x * x, ((0, 0), (1, 2), (0, 0), (0, 0)))
    total = sum(squares[:, tap : tap + x.shape[1]] for tap in range(4))
    return x / (1 + 0.05 * total) ** 0.75


def _lrn(version: int) -> Iterator[Case]:
    yield case((2, 6, 3, 4), size=3)
    yield case((2, 6, 3, 4), size=5, alpha=0.2, beta=0.6, bias=1.5)
    yield case((2, 6, 3, 4), size=4, alpha=0.2, oracle=_lrn_of_four)  # onnxruntime takes odd sizes only


def _gelu(version: int) -> Iterator[Case]:
    yield case((2, 3))
    for kind in ("none", "tanh"):
        yield case((2, 3), approximate=kind)


def _selu_of(alpha: float, gamma: float) -> Callable[..., Any]:
    return lambda x: gamma * np.where(x > 0, x, alpha * (np.exp(x) - 1))


def _selu(version: int) -> Iterator[Case]:
    alpha, gamma = (1.6732, 1.0507) if version < 6 else (1.6732632, 1.050701)
    yield case((2, 3), oracle=_selu_of(alpha, gamma))
    yield case((2, 3), alpha=1.5, gamma=2.0, oracle=_selu_of(1.5, 2.0))


def _celu(version: int) -> Iterator[Case]:
    def of(alpha: float) -> Callable[..., Any]:
        return lambda x: np.maximum(x, 0) + np.minimum(0, alpha * (np.exp(x / alpha) - 1))

    yield case((2, 3), oracle=of(1.0))
    yield case((2, 3), alpha=2.5, oracle=of(2.5))
    yield case((2, 3), alpha=-1.0, declined="alpha")


def _cast(version: int) -> Iterator[Case]:
    to = (lambda name, number: name) if version < 6 else (lambda name, number: number)
    yield case((2, 3), to=to("FLOAT", 1), oracle=lambda x: x)
    yield case((2, 3), to=to("INT32", 6), declined="another type")
    if version >= 19:
        yield case((2, 3), to=1, saturate=0, oracle=lambda x: x)
    if version >= 24:
        yield case((2, 3), to=1, round_mode="up", oracle=lambda x: x)


def _cast_like(version: int) -> Iterator[Case]:
    yield case((2, 3), floats(1), oracle=lambda x, _: x)
    yield case((2, 3), ints(1), declined="another type")
    if version >= 19:
        yield case((2, 3), floats(1), saturate=0, oracle=lambda x, _: x)
    if version >= 24:
        yield case((2, 3), floats(1), round_mode="up", oracle=lambda x, _: x)


def _elu_of(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, np.exp(x) - 1)


def _image(version: int) -> Iterator[Case]:
    yield case((2, 3, 4, 5))
    yield case((2, 3, 4))


_CASES: dict[str, Callable[[int], Iterator[Case]]] = {
    "Add": _binary(np.add),
    "Sub": _binary(np.subtract),
    "Mul": _binary(np.multiply),
    "Div": _binary(np.divide, positive=True),
    "Pow": _pow,
    "Min": _variadic(lambda *a: np.minimum.reduce(a)),
    "Max": _variadic(lambda *a: np.maximum.reduce(a)),
    "Sum": _variadic(lambda *a: sum(a)),
    "Mean": _variadic(lambda *a: sum(a) / len(a)),
    "Neg": _unary(oracle=np.negative),
    "Abs": _unary(oracle=np.abs),
    "Sqrt": _unary(True, np.sqrt),
    "Reciprocal": _unary(True, np.reciprocal),
    "Exp": _unary(oracle=np.exp),
    "Log": _unary(True, np.log),
    "Erf": _unary(),
    "Tanh": _unary(oracle=np.tanh),
    "Sigmoid": _unary(oracle=lambda x: 1 / (1 + np.exp(-x))),
    "Relu": _unary(oracle=lambda x: np.maximum(x, 0)),
    "LeakyRelu": lambda v: iter(
        [
            case((2, 3), oracle=lambda x: np.where(x < 0, 0.01 * x, x)),
            case((2, 3), alpha=0.3, oracle=lambda x: np.where(x < 0, 0.3 * x, x)),
        ]
    ),
    "Elu": lambda v: iter(
        [
            case((2, 3), oracle=_elu_of),
            case((2, 3), alpha=0.7, oracle=lambda x: np.where(x > 0, x, 0.7 * (np.exp(x) - 1))),
        ]
    ),
    "HardSigmoid": lambda v: iter(
        [
            case((2, 3), oracle=lambda x: (0.2 * x + 0.5).clip(0, 1)),
            case((2, 3), alpha=0.3, beta=0.4, oracle=lambda x: (0.3 * x + 0.4).clip(0, 1)),
        ]
    ),
    "HardSwish": _unary(oracle=lambda x: x * (x / 6 + 0.5).clip(0, 1)),
    "Softplus": _unary(oracle=lambda x: np.log1p(np.exp(x))),
    "Softsign": _unary(oracle=lambda x: x / (1 + np.abs(x))),
    "Mish": _unary(oracle=lambda x: x * np.tanh(np.log1p(np.exp(x)))),
    "Swish": lambda v: iter(
        [
            case((2, 3), oracle=lambda x: x / (1 + np.exp(-x))),
            case((2, 3), alpha=1.5, oracle=lambda x: x / (1 + np.exp(-1.5 * x))),
        ]
    ),
    "Selu": _selu,
    "Celu": _celu,
    "Gelu": _gelu,
    "Clip": _clip,
    "PRelu": _prelu,
    "Where": _where,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MaxPool": _pool("MaxPool"),
    "AveragePool": _pool("AveragePool"),
    "LpPool": _pool("LpPool"),
    "GlobalLpPool": _global_lp_pool,
    "GlobalAveragePool": _image,
    "GlobalMaxPool": _image,
    "MatMul": lambda v: iter([case((2, 3, 4), (4, 5)), case((4,), (2, 4, 3)), case((2, 1, 3, 4), (5, 4, 6))]),
    "Gemm": _gemm,
    "Einsum": _einsum,
    "ReduceSum": _reduction(13, None),
    "ReduceMean": _reduction(18, None),
    "ReduceMax": _reduction(18, None),
    "ReduceMin": _reduction(18, None),
    "ReduceL1": _reduction(18, lambda x, a, k: np.abs(x).sum(axis=a, keepdims=k)),
    "ReduceL2": _reduction(18, lambda x, a, k: np.sqrt((x * x).sum(axis=a, keepdims=k))),
    "ReduceSumSquare": _reduction(18, lambda x, a, k: (x * x).sum(axis=a, keepdims=k)),
    "ReduceLogSum": _reduction(18, lambda x, a, k: np.log(x.sum(axis=a, keepdims=k)), positive=True),
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "LayerNormalization": _layer_normalization,
    "RMSNormalization": _rms_normalization,
    "InstanceNormalization": _instance_normalization,
    "GroupNormalization": _group_normalization,
    "BatchNormalization": _batch_normalization,
    "LRN": _lrn,
    "Transpose": moves.transpose_cases,
    "Reshape": moves.reshape_cases,
    "Flatten": moves.flatten_cases,
    "Squeeze": moves.squeeze_cases,
    "Unsqueeze": moves.unsqueeze_cases,
    "Concat": moves.concat_cases,
    "Split": moves.split_cases,
    "Slice": moves.slice_cases,
    "Pad": moves.pad_cases,
    "Expand": moves.expand_cases,
    "Tile": moves.tile_cases,
    "Identity": _unary(),
    "Gather": moves.gather_cases,
    "Dropout": moves.dropout_cases,
    "Trilu": moves.trilu_cases,
    "Upsample": moves.upsample_cases,
    "Resize": moves.resize_cases,
    "DepthToSpace": moves.depth_to_space_cases,
    "SpaceToDepth": moves.space_to_depth_cases,
}


def all_cases() -> list[tuple[str, int]]:
    """Every operator of the algebra with each version of it."""
    return [(op_type, version) for op_type in OPERATORS for version in versions(op_type)]


def node_of(tried: Case, op_type: str) -> Any:
    """The node, with inputs x0, x1 … and results y0, y1 …."""
    names = ["" if isinstance(given, str) else f"x{i}" for i, given in enumerate(tried.inputs)]
    return helper.make_node(op_type, names, [f"y{i}" for i in range(tried.outputs)], **tried.attributes)
