"""What holds for real numbers and not for floats stays as it is: every trap gives what the original gives.

All regions are replaced by what the static cost model likes best, faster or not, and fed the values at which identities
of real numbers break: zeros of both signs, infinities, numbers that are none, the largest and the smallest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from egraph_opt.backends.onnxruntime import make_session, run
from tests.pipeline.support import FLOAT, INT64, build, node, normal, static

INF, NAN = np.inf, np.nan
SPECIAL = np.array(
    [
        0,
        -0.0,
        1,
        -1,
        INF,
        -INF,
        NAN,
        1e-45,
        -1e-45,
        3e38,
        -3e38,
        1e-38,
        0.1,
        88.7,
        1000,
        -1000,
        2.5,
        -2.5,
        65504,
        70000,
    ],
    np.float32,
)
WHOLE = np.array([0, 1, -1, 7, -7, 2**31 - 1, 2**62, -(2**62), 2**63 - 1, -(2**63) + 1, 1 << 33, -(1 << 33)], np.int64)


@dataclass(frozen=True)
class Trap:
    """Nodes from x (and what else ``feeds`` has) to y; ``inside`` tells whether they are a region of the algebra.

    Sums may be taken in another order, so the sign of a zero that is a sum is nobody's (``signs``).
    """

    nodes: Sequence[onnx.NodeProto]
    weights: Mapping[str, Any] = field(default_factory=dict)
    feeds: Mapping[str, np.ndarray] = field(default_factory=lambda: {"x": SPECIAL})
    element: int = FLOAT
    inside: bool = True
    tolerance: float = 0.0
    signs: bool = True


def scalar(value: float) -> np.float32:
    return np.float32(value)


ROWS = np.array(
    [
        [1, 2, -INF, 0],
        [-INF, -INF, -INF, -INF],
        [INF, 1, 2, 3],
        [NAN, 0, 0, 0],
        [3e38, -1e38, 1e37, 0],
        [88, 89, 1e3, 1],
    ],
    np.float32,
)
# What is largest among what is no number depends on where it stands, for some operators.
ODD = np.array(
    [
        [NAN, 1, 2],
        [1, NAN, 2],
        [1, 2, NAN],
        [NAN, NAN, NAN],
        [-INF, -INF, -INF],
        [NAN, -INF, -INF],
        [-INF, NAN, -INF],
        [NAN, NAN, 1],
        [-0.0, -0.0, -0.0],
        [INF, NAN, 1],
        [-INF, NAN, INF],
        [-3e38, -INF, -3e38],
    ],
    np.float32,
)
WINDOWS = {"x": np.tile(ODD.reshape(1, 1, 1, 36), (1, 2, 3, 1))}
BOTH = {"x": np.repeat(SPECIAL, len(SPECIAL)), "z": np.tile(SPECIAL, len(SPECIAL))}
SQUARE = np.where(np.eye(4, dtype=np.float32) > 0, SPECIAL[3:7], normal(4, 4)).astype(np.float32)
IMAGE = {"x": np.concatenate([SPECIAL, normal(12)]).reshape(1, 2, 4, 4).astype(np.float32)}

TRAPS: dict[str, Trap] = {
    "x * 0": Trap([node("Mul", "x c", "a"), node("Neg", "a", "y")], {"c": scalar(0)}),
    "x - x": Trap([node("Sub", "x x", "a"), node("Neg", "a", "y")]),
    "x / x": Trap([node("Div", "x x", "a"), node("Neg", "a", "y")]),
    "x + 0": Trap([node("Add", "x c", "a"), node("Neg", "a", "y")], {"c": scalar(0)}),
    "x - 0": Trap([node("Sub", "x c", "a"), node("Neg", "a", "y")], {"c": scalar(0)}),
    "0 - x": Trap([node("Sub", "c x", "a"), node("Neg", "a", "y")], {"c": scalar(0)}),
    "x * 1 / 1": Trap([node("Mul", "x c", "a"), node("Div", "a c", "y")], {"c": scalar(1)}),
    "x + z - z": Trap([node("Add", "x z", "a"), node("Sub", "a z", "y")], feeds=BOTH),
    "x * z / z": Trap([node("Mul", "x z", "a"), node("Div", "a z", "y")], feeds=BOTH),
    "x / z * z": Trap([node("Div", "x z", "a"), node("Mul", "a z", "y")], feeds=BOTH),
    "(x + c) - c": Trap([node("Add", "x c", "a"), node("Sub", "a c", "y")], {"c": scalar(1e30)}),
    "(x * c) / c": Trap([node("Mul", "x c", "a"), node("Div", "a c", "y")], {"c": scalar(1e30)}),
    "x * c * d": Trap([node("Mul", "x c", "a"), node("Mul", "a d", "y")], {"c": scalar(1e30), "d": scalar(1e-30)}),
    "(x + inf) - inf": Trap([node("Add", "x c", "a"), node("Sub", "a c", "y")], {"c": scalar(INF)}),
    "c - (c - x)": Trap([node("Sub", "c x", "a"), node("Sub", "c a", "y")], {"c": scalar(1e8)}),
    "x * c - x * c": Trap(
        [node("Mul", "x c", "a"), node("Mul", "x d", "b"), node("Sub", "a b", "y")], {"c": scalar(2), "d": scalar(2)}
    ),
    "x * z + x * -z": Trap(
        [node("Neg", "z", "n"), node("Mul", "x z", "a"), node("Mul", "x n", "b"), node("Add", "a b", "y")], feeds=BOTH
    ),
    "1 / (1 / x)": Trap([node("Reciprocal", "x", "a"), node("Reciprocal", "a", "y")]),
    "x * (1 / z)": Trap([node("Reciprocal", "z", "a"), node("Mul", "x a", "y")], feeds=BOTH),
    "- - x": Trap([node("Neg", "x", "a"), node("Neg", "a", "b"), node("Abs", "b", "y")]),
    "log(exp x)": Trap([node("Exp", "x", "a"), node("Log", "a", "y")], tolerance=1e-5),
    "exp(log x)": Trap([node("Log", "x", "a"), node("Exp", "a", "y")], tolerance=1e-4),
    "sqrt(x) ** 2": Trap([node("Sqrt", "x", "a"), node("Pow", "a c", "y")], {"c": scalar(2)}, tolerance=1e-6),
    "sqrt(x) * sqrt(x)": Trap([node("Sqrt", "x", "a"), node("Mul", "a a", "y")], tolerance=1e-6),
    "sqrt(x * x)": Trap([node("Mul", "x x", "a"), node("Sqrt", "a", "y")], tolerance=1e-6),
    "x ** 0": Trap([node("Pow", "x c", "a"), node("Neg", "a", "y")], {"c": scalar(0)}),
    "max with a number that is none": Trap([node("Max", "x z", "a"), node("Neg", "a", "y")], feeds=BOTH),
    "min with a number that is none": Trap([node("Min", "x z", "a"), node("Neg", "a", "y")], feeds=BOTH),
    "clip": Trap([node("Clip", "x a b", "c"), node("Neg", "c", "y")], {"a": scalar(-2), "b": scalar(2)}),
    "relu": Trap([node("Relu", "x", "a"), node("Neg", "a", "y")]),
    "leaky relu": Trap([node("LeakyRelu", "x", "a", alpha=0.5), node("Neg", "a", "y")]),
    "where": Trap(
        [node("Greater", "x z", "c"), node("Where", "c x z", "a"), node("Neg", "a", "b"), node("Abs", "b", "y")],
        feeds=BOTH,
    ),
    "masked": Trap(
        [node("IsNaN", "x", "c"), node("Where", "c zero x", "a"), node("Neg", "a", "b"), node("Mul", "b b", "y")],
        {"zero": scalar(0)},
    ),
    "sigmoid and tanh": Trap([node("Sigmoid", "x", "a"), node("Tanh", "a", "y")], tolerance=1e-5),
    "softmax of -inf": Trap([node("Softmax", "x", "a"), node("Neg", "a", "y")], feeds={"x": ROWS}, tolerance=1e-5),
    "sum of infinities": Trap(
        [node("ReduceSum", "x axes", "a", keepdims=1), node("Sub", "x a", "y")],
        {"axes": [1]},
        {"x": ROWS},
        tolerance=1e-5,
    ),
    "largest of none": Trap(
        [node("ReduceMax", "x", "a", axes=[1], keepdims=1), node("Sub", "x a", "y")], {}, {"x": ROWS}, tolerance=1e-5
    ),
    "product with the identity": Trap(
        [node("MatMul", "x w", "a"), node("Neg", "a", "y")],
        {"w": np.eye(4, dtype=np.float32)},
        {"x": SQUARE},
        signs=False,
    ),
    "product with zeros": Trap(
        [node("MatMul", "x w", "a"), node("Neg", "a", "y")],
        {"w": np.zeros((4, 4), np.float32)},
        {"x": SQUARE},
        signs=False,
    ),
    "convolution of infinities with zeros": Trap(
        [node("Conv", "x w", "a", pads=[1, 1, 1, 1]), node("Neg", "a", "y")],
        {"w": np.zeros((2, 2, 3, 3), np.float32)},
        IMAGE,
        signs=False,
    ),
    "padding times infinity": Trap(
        [node("Pad", "x pads", "a"), node("Mul", "a z", "b"), node("Neg", "b", "y")],
        {"pads": [2, 2]},
        {"x": SPECIAL[:8], "z": np.roll(SPECIAL[:12], 5)},
    ),
    "padding over 0": Trap(
        [node("Pad", "x pads", "a"), node("Div", "a z", "b"), node("Neg", "b", "y")],
        {"pads": [2, 2]},
        {"x": SPECIAL[:8], "z": np.zeros(12, np.float32)},
    ),
    "parts of a concatenation times infinity": Trap(
        [node("Concat", "x c", "a", axis=0), node("Mul", "a z", "b"), node("Neg", "b", "y")],
        {"c": np.zeros(4, np.float32)},
        {"x": SPECIAL[:8], "z": np.roll(SPECIAL[:12], 5)},
    ),
    "parts of a concatenation over infinity": Trap(
        [node("Concat", "x z x", "a", axis=1), node("Div", "c a", "b"), node("Neg", "b", "y")],
        {"c": scalar(1)},
        {"x": np.tile(SPECIAL[:3], (5, 1)), "z": np.tile(SPECIAL[:7], (5, 1))},
    ),
    "largest of windows": Trap(
        [node("MaxPool", "x", "a", kernel_shape=[1, 3], strides=[1, 3]), node("Neg", "a", "b"), node("Abs", "b", "y")],
        feeds=WINDOWS,
    ),
    "largest of padded windows": Trap(
        [
            node("Neg", "x", "n"),
            node("MaxPool", "n", "a", kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1]),
            node("Neg", "a", "b"),
            node("Abs", "b", "y"),
        ],
        feeds=WINDOWS,
    ),
    "largest of all": Trap(
        [node("GlobalMaxPool", "x", "a"), node("Neg", "a", "b"), node("Abs", "b", "y")], {}, WINDOWS
    ),
    "largest of rows": Trap(
        [node("ReduceMax", "x", "a", axes=[1], keepdims=0), node("Neg", "a", "b"), node("Abs", "b", "y")],
        {},
        {"x": ODD},
    ),
    "least of columns": Trap(
        [node("Transpose", "x", "t", perm=[1, 0]), node("ReduceMin", "t", "a", axes=[0]), node("Neg", "a", "y")],
        {},
        {"x": ODD},
    ),
    "largest of all rows": Trap(
        [node("Neg", "x", "n"), node("ReduceMax", "n", "a", axes=[0, 1], keepdims=0), node("Neg", "a", "y")],
        {},
        {"x": ODD},
    ),
    "int64 (x * c) / c": Trap(
        [node("Mul", "x c", "a"), node("Div", "a c", "y")], {"c": np.array(3)}, {"x": WHOLE}, INT64, inside=False
    ),
    "int64 (x + c) - c": Trap(
        [node("Add", "x c", "a"), node("Sub", "a c", "y")], {"c": np.array(2**62)}, {"x": WHOLE}, INT64, inside=False
    ),
    "integer division": Trap(
        [node("Div", "x c", "a"), node("Mul", "a c", "y")], {"c": np.array(-4)}, {"x": WHOLE}, INT64, inside=False
    ),
    "integer remainder": Trap(
        [node("Mod", "x c", "a"), node("Div", "x c", "b"), node("Add", "a b", "y")],
        {"c": np.array(5)},
        {"x": WHOLE},
        INT64,
        inside=False,
    ),
    "fp16 (x * c) / c": Trap(
        [
            node("Cast", "x", "h", to=TensorProto.FLOAT16),
            node("Mul", "h c", "a"),
            node("Div", "a c", "b"),
            node("Cast", "b", "y", to=FLOAT),
        ],
        {"c": np.float16(1000)},
        inside=False,
    ),
    "fp16 there and back": Trap(
        [node("Cast", "x", "h", to=TensorProto.FLOAT16), node("Cast", "h", "y", to=FLOAT)], inside=False
    ),
    "int32 there and back": Trap(
        [node("Cast", "x", "h", to=TensorProto.INT32), node("Cast", "h", "y", to=FLOAT)],
        feeds={"x": np.array([0.5, -0.5, 2.7, -2.7, 1e9, -1e9], np.float32)},
        inside=False,
    ),
    "bool there and back": Trap(
        [node("Cast", "x", "h", to=TensorProto.BOOL), node("Cast", "h", "y", to=FLOAT)], inside=False
    ),
}


def model_of(trap: Trap) -> onnx.ModelProto:
    """The trap as a model."""
    shapes = {name: list(value.shape) for name, value in trap.feeds.items()}
    elements = dict.fromkeys([*shapes, "y"], trap.element)
    return build(trap.nodes, shapes, {"y": None}, trap.weights, elements=elements)


def differences(
    expected: np.ndarray, found: np.ndarray, tolerance: float, signs: bool = True
) -> list[tuple[int, float, float]]:
    """Places where values differ: in kind, in the sign of zeros, or by more than rounding."""
    one, other = (np.asarray(value).reshape(-1) for value in (expected, found))
    with np.errstate(all="ignore"):
        near = (one == other) | (np.abs(one - other) <= tolerance * np.abs(one)) | (np.isnan(one) & np.isnan(other))
        if one.dtype.kind == "f":
            near &= np.isnan(one) | (one != 0) | (np.signbit(one) == np.signbit(other)) | (not signs)
            near &= np.isfinite(one) == np.isfinite(other)
    return [(int(i), one[i].item(), other[i].item()) for i in np.flatnonzero(~near)]


def answers(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], optimized: bool) -> np.ndarray:
    session = make_session(model.SerializeToString(), threads=1, spin=False, optimize=optimized)
    return np.asarray(run(session, feeds)[0])


def check(trap: Trap, portable: bool, **options: Any) -> bool:
    """Hold a replaced trap against the original; tells whether it was replaced."""
    model = model_of(trap)
    result = static(model, portable=portable, **options)
    found = np.asarray(run(result.session(), trap.feeds)[0])
    # onnxruntime's own optimizations bend some of these; what it does without them is as good an answer.
    wrong = [
        differences(answers(model, trap.feeds, optimized), found, trap.tolerance, trap.signs)
        for optimized in (False, True)
    ]
    assert not all(wrong), f"differences (place, original, optimized): {wrong[0][:8]}"
    return result.report.changed


@pytest.mark.parametrize("name", TRAPS)
def test_traps_with_generated_kernels(name: str) -> None:
    assert check(TRAPS[name], portable=False) == TRAPS[name].inside


@pytest.mark.parametrize("name", TRAPS)
def test_traps_with_standard_operators(name: str) -> None:
    check(TRAPS[name], portable=True)


@pytest.mark.parametrize("name", [name for name, trap in TRAPS.items() if trap.inside])
def test_traps_under_the_strict_policy(name: str) -> None:
    check(TRAPS[name], portable=False, fp="strict")


def folded(trap: Trap) -> Trap:
    """The same from constants: what depends on weights only is computed ahead of time."""
    names = {"y": "trapped"}
    nodes = []
    for found in trap.nodes:
        nodes.append(onnx.NodeProto())
        nodes[-1].CopyFrom(found)
        nodes[-1].output[:] = [names.get(name, name) for name in found.output]
    zero = np.array([-0.0], np.float32) if trap.element == FLOAT else np.array([0])  # what changes nothing when added
    nodes += [node("Add", "trapped nothing", "u"), node("Neg", "u", "y")]
    return replace(trap, nodes=nodes, weights={**trap.weights, **trap.feeds}, feeds={"nothing": zero})


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("name", TRAPS)
def test_traps_of_constants(name: str, portable: bool) -> None:
    check(folded(TRAPS[name]), portable)


@pytest.mark.parametrize("element", [TensorProto.DOUBLE, TensorProto.FLOAT16])
@pytest.mark.parametrize("name", ["x * 0", "x - x", "x / x", "x + 0", "(x * c) / c", "log(exp x)", "sqrt(x) ** 2"])
def test_traps_of_other_types_stay(name: str, element: int) -> None:
    trap = TRAPS[name]
    kind = onnx.helper.tensor_dtype_to_np_dtype(element)

    def cast(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
        with np.errstate(all="ignore"):
            return {key: np.asarray(value).astype(kind) for key, value in values.items()}

    other = replace(trap, weights=cast(trap.weights), feeds=cast(trap.feeds), element=element)
    assert not check(other, portable=False)


SUMS = {
    "product": [node("MatMul", "x w", "a"), node("Relu", "a", "b"), node("Neg", "b", "y")],
    "sum": [node("ReduceSum", "x axes", "a", keepdims=1), node("Tanh", "a", "b"), node("Neg", "b", "y")],
    "softmax": [node("Softmax", "x", "a"), node("Tanh", "a", "b"), node("Neg", "b", "y")],
}


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("name", SUMS)
def test_sums_stay_under_the_strict_policy(name: str, portable: bool) -> None:
    """Their node does, in its place; what follows is optimized."""
    weights = {"w": normal(64, 64), "axes": [1]}
    read = {word for found in SUMS[name] for word in found.input}
    model = build(SUMS[name], {"x": [64, 64]}, {"y": None}, {key: w for key, w in weights.items() if key in read})
    result = static(model, portable=portable, fp="strict")
    assert SUMS[name][0].SerializeToString() in [found.SerializeToString() for found in result.model.graph.node]
    assert portable or (result.report.generated_kernels == 1 and len(result.model.graph.node) == 2)
    feeds = {"x": normal(64, 64, seed=1)}
    assert not differences(answers(model, feeds, True), np.asarray(run(result.session(), feeds)[0]), 1e-6)


def test_sums_of_huge_numbers_keep_their_order() -> None:
    feeds = {
        name: np.array([a, b, 1.0], np.float32) for name, a, b in (("x", 1, 3), ("u", 1e30, -1e30), ("v", -1e30, 1e30))
    }
    trap = Trap([node("Add", "x u", "a"), node("Add", "a v", "b"), node("Neg", "b", "y")], feeds=feeds)
    assert check(trap, portable=False)
    swapped = Trap([node("Add", "u v", "a"), node("Add", "a x", "b"), node("Neg", "b", "y")], feeds=feeds)
    assert check(swapped, portable=False)


def test_a_bent_identity_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison sees what it must see."""
    assert differences(np.array([0.0]), np.array([-0.0]), 0.1)
    assert differences(np.array([NAN]), np.array([1.0]), 0.1)
    assert differences(np.array([INF]), np.array([3e38], np.float32), 0.1)
    assert differences(np.array([1.0]), np.array([1.1]), 1e-3)
    assert not differences(np.array([NAN, INF, -0.0, 1.0]), np.array([NAN, INF, -0.0, 1.0]), 0.0)
