"""Expressions mean what numpy says, and what does not fit is refused by name and shape."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from egraph_opt import algebra
from egraph_opt.algebra import Expression, apply, call, convolution, evaluate, matmul, pooling, tensor, view, weight
from egraph_opt.errors import EgraphOptError, UsageError
from egraph_opt.ir.interpreter import ModularArithmetic
from egraph_opt.ir.printing import program_text, term_text

DRAW = np.random.default_rng(0)
X, W, V = DRAW.standard_normal((4, 8)), DRAW.standard_normal((8, 16)), DRAW.standard_normal((8,))
VALUES = {"x": X, "w": W, "v": V}
x, w, v = tensor("x", (4, 8)), tensor("w", (8, 16)), tensor("v", (8,))


def _softmax(values: np.ndarray) -> np.ndarray:
    raised = np.exp(values - values.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


MEANINGS: dict[str, tuple[Expression, np.ndarray]] = {
    "matmul": (matmul(x, w), X @ W),
    "operators": (2 * (x + v) - x * 0.1 + 1 - (-x) / 4, 2 * (X + V) - X * 0.1 + 1 + X / 4),
    "numbers on the left": (3 - x + 1 / (x * x + 1), 3 - X + 1 / (X * X + 1)),
    "function": (apply("relu", x), np.maximum(X, 0)),
    "parameters": (apply("clip:-0.5,0.5", x), np.clip(X, -0.5, 0.5)),
    "sum": (x.sum(1), X.sum(axis=1)),
    "sum of all": (x.sum(), X.sum()),
    "max": (x.max(1), X.max(axis=1)),
    "softmax": (x.softmax(), _softmax(X)),
    "transpose": (x.transpose(), X.T),
    "reshape": (x.reshape(2, 2, 8), X.reshape(2, 2, 8)),
    "broadcast": (v.broadcast(3, 8), np.broadcast_to(V, (3, 8))),
    "batched matmul": (matmul(x.reshape(2, 2, 8), w), X.reshape(2, 2, 8) @ W),
    "windows": (
        view(v, (8, 3), lambda i, r: i + r - 1),
        np.array([[np.pad(V, 1)[i + r] for r in range(3)] for i in range(8)]),
    ),
    "floor division and remainder": (
        view(x, (32,), lambda i: (i // 8, i % 8)),
        X.ravel(),
    ),
    "subtraction from a number": (view(v, (8,), lambda i: 7 - i), V[::-1]),
    "fill": (view(v, (9,), lambda i: i, fill=-1.0), np.append(V, -1.0)),
    "where": (
        view(x, (4, 8), lambda i, j: (i, j), where=lambda i, j: (j % 2 == 0, i > 0, j < 6)),
        X * (np.arange(8) % 2 == 0) * (np.arange(4)[:, None] > 0) * (np.arange(8) < 6),
    ),
    "where iterators are compared": (
        view(x, (4, 8), lambda i, j: (i, j), where=lambda i, j: j <= i + 2),
        X * (np.arange(8) <= np.arange(4)[:, None] + 2),
    ),
    "where nothing holds": (view(v, (8,), lambda i: i, where=lambda i: i >= 9), np.zeros(8)),
    "diagonal": (view(x, (4,), lambda i: (i, i)), np.diag(X)),
    "library call": (call("Gemm", x, w.transpose(), transB=1), X @ W),
}


@pytest.mark.parametrize("name", MEANINGS)
def test_meaning(name: str) -> None:
    expression, expected = MEANINGS[name]
    used = {source: VALUES[source] for source in VALUES if f"let {source}:" in str(expression)}
    found = evaluate(expression, used)
    assert found.shape == expected.shape == expression.shape
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def _convolved(image: np.ndarray, filters: np.ndarray, stride: int, dilation: int, pads: tuple[int, ...]) -> np.ndarray:
    """Straight from the definition, for one group."""
    padded = np.pad(image, [(0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])])
    reach = [dilation * (n - 1) + 1 for n in filters.shape[2:]]
    size = [(padded.shape[2 + a] - reach[a]) // stride + 1 for a in range(2)]
    result = np.zeros((image.shape[0], filters.shape[0], *size))
    for i, j in np.ndindex(*size):
        rows = slice(i * stride, i * stride + reach[0], dilation)
        columns = slice(j * stride, j * stride + reach[1], dilation)
        result[:, :, i, j] = np.einsum("ncrs,fcrs->nf", padded[:, :, rows, columns], filters)
    return result


@pytest.mark.parametrize(("stride", "dilation", "groups"), [(1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 2, 2)])
def test_convolution(stride: int, dilation: int, groups: int) -> None:
    image, filters = DRAW.standard_normal((2, 4, 7, 6)), DRAW.standard_normal((6, 4 // groups, 3, 2))
    pads = (1, 0, 2, 1)
    expression = convolution(
        tensor("i", image.shape),
        tensor("f", filters.shape),
        strides=stride,
        dilations=dilation,
        pads=pads,
        groups=groups,
    )
    halves = zip(np.split(image, groups, axis=1), np.split(filters, groups), strict=True)
    expected = np.concatenate([_convolved(a, b, stride, dilation, pads) for a, b in halves], axis=1)
    np.testing.assert_allclose(evaluate(expression, {"i": image, "f": filters}), expected, atol=1e-12)


def test_transposed_convolution_is_the_adjoint() -> None:
    image, back = DRAW.standard_normal((1, 3, 7, 7)), DRAW.standard_normal((1, 5, 4, 4))
    filters = DRAW.standard_normal((5, 3, 3, 3))
    f = tensor("f", filters.shape)
    there = evaluate(convolution(tensor("i", image.shape), f, strides=2, pads=1), {"i": image, "f": filters})
    transposed = algebra.transposed_convolution(tensor("b", back.shape), f, strides=2, pads=1)
    assert transposed.shape == image.shape
    returned = evaluate(transposed, {"b": back, "f": filters})
    assert np.isclose((there * back).sum(), (image * returned).sum())


def test_pooling() -> None:
    image = DRAW.standard_normal((1, 2, 6, 6))
    blocks = image.reshape(1, 2, 3, 2, 3, 2)
    i = tensor("i", image.shape)
    np.testing.assert_allclose(evaluate(pooling(i, (2, 2), strides=2), {"i": image}), blocks.max(axis=(3, 5)))
    average = pooling(i, (2, 2), strides=2, operation="average")
    np.testing.assert_allclose(evaluate(average, {"i": image}), blocks.mean(axis=(3, 5)))


def test_weights_bring_their_values() -> None:
    known = weight("k", (8,), V)
    assert np.allclose(evaluate(x + known, {"x": X}), X + V.astype(np.float32))
    with pytest.raises(UsageError, match="weight 'k' of shape \\[8\\] has no value"):
        evaluate(x + weight("k", (8,)), {"x": X})


def test_another_arithmetic() -> None:
    found = evaluate(x.sum(), {"x": np.full((4, 8), 7)}, arithmetic=ModularArithmetic(prime=13))
    assert found == 32 * 7 % 13


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "matmul": (lambda: matmul(x, x), "matmul of [4, 8] and [4, 8]"),
    "batch": (lambda: matmul(tensor("a", (2, 3, 4)), tensor("b", (3, 4, 5))), "batch axes cannot be broadcast"),
    "add": (lambda: x + w, "add of [4, 8] and [8, 16]"),
    "unknown function": (lambda: apply("rectify", x), "unknown scalar function 'rectify'"),
    "arity": (lambda: apply("relu", x, x), "relu takes 1 arguments, not 2"),
    "convolution": (lambda: convolution(tensor("i", (1, 3, 8)), tensor("f", (4, 2, 3))), "of [1, 3, 8] with [4, 2, 3]"),
    "empty convolution": (lambda: convolution(tensor("i", (1, 2, 2)), tensor("f", (4, 2, 3))), "empty result"),
    "pads": (lambda: convolution(tensor("i", (1, 2, 8)), tensor("f", (4, 2, 3)), pads=(1, 1, 1)), "pads: 2 whole"),
    "axes": (lambda: x.sum(3), "sum over the last 3 axes of [4, 8]"),
    "order": (lambda: x.transpose(0, 0), "transpose of [4, 8] by [0, 0]"),
    "reshape": (lambda: x.reshape(5, 5), "cannot reshape [4, 8] to [5, 5]"),
    "iterators": (lambda: view(x, (4,), lambda i, j: (i, j)), "one iterator for each of its 1 axes"),
    "rank": (lambda: view(x, (4,), lambda i: i), "returns 1 numbers, the tensor has 2 axes"),
    "product of iterators": (lambda: view(x, (4, 8), lambda i, j: (i * j, j)), "quasi-affine"),
    "fraction": (lambda: view(v, (8,), lambda i: i * 0.5), "quasi-affine"),
    "division by zero": (lambda: view(v, (8,), lambda i: i // 0), "must be positive"),
    "joined conditions": (lambda: view(v, (8,), lambda i: i, where=lambda i: 1 <= i < 3), "return several conditions"),
    "unequal": (lambda: view(v, (8,), lambda i: i, where=lambda i: i != 3), "no such guard"),
    "no condition": (lambda: view(v, (8,), lambda i: i, where=lambda i: i), "is no condition"),
    "extent": (lambda: tensor("t", (4, 0)), "at least 1, not [4, 0]"),
    "values": (lambda: weight("t", (4,), np.zeros(3)), "has values of shape [3]"),
    "two shapes": (lambda: str(x + tensor("x", (1, 8))), "two different sources are named 'x'"),
    "two values": (lambda: str(weight("k", (1,), [1]) + weight("k", (1,), [2])), "different values are named 'k'"),
    "output": (lambda: algebra.to_program({"x": x + 1}), "has the name of an input"),
    "unknown input": (lambda: evaluate(x, {"x": X, "z": X}), "no input is named 'z'"),
    "input shape": (lambda: evaluate(x, {"x": W}), "has shape [8, 16], declared [4, 8]"),
    "operator": (lambda: call("MatMull", x, w), "unknown library operator 'MatMull'"),
    "result shape": (lambda: call("MatMul", x, w, shape=(4, 4)), "is [4, 16], not (4, 4)"),
    "infinite": (lambda: x * float("inf"), "must be finite"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(EgraphOptError) as refused:
        make()
    assert message in str(refused.value)


def test_programs_are_named_and_shared() -> None:
    hidden = apply("relu", x @ w)
    program = algebra.to_program({"sum": hidden + hidden, "kept": hidden})
    assert [name for name, _ in program.definitions] == ["t0", "kept", "sum"]
    assert program_text(program).splitlines() == [
        "let x: 4×8",
        "let w: 8×16",
        "let t0: 4×16 = sum[i2<8](x[i0, i2] * w[i2, i1])",
        "let kept: 4×16 = relu(t0)",
        "let sum: 4×16 = kept + kept",
        "return sum, kept",
    ]


def test_sharing_does_not_explode() -> None:
    doubled = x
    for _ in range(200):
        doubled = doubled + doubled
    program = algebra.to_program(doubled)
    assert len(program.definitions) == 200
    assert evaluate(doubled, {"x": np.ones((4, 8))})[0, 0] == 2.0**200


def test_an_input_called_y() -> None:
    assert algebra.to_program(tensor("y", (2,)) + 1).outputs == ("result",)


def test_text_binds_as_it_is_read() -> None:
    a, b, c = (tensor(name, (2,)) for name in "abc")
    assert term_text((a - (b - c)).term) == "a - (b - c)"
    assert term_text((a - b - c).term) == "a - b - c"
    assert term_text(((a + b) * c / (a * b)).term) == "(a + b) * c / (a * b)"
    assert term_text((a * -0.5).term) == "a * (-1/2)"
    padded = view(a, (4,), lambda i: i - 1, where=lambda i: i % 2 == 0, fill=-1.0)
    assert term_text(padded.term) == "a[i0-1 where i0-2*((i0)//2) = 0 else -1]"
