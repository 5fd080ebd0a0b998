"""Library calls by torch against their meanings in numpy; the same code runs on a GPU."""

import numpy as np
import pytest

from egraph_opt.gpu import torch_library
from egraph_opt.ir import library, scalar
from egraph_opt.ir.interpreter import FloatArithmetic

torch = pytest.importorskip("torch", reason="torch is not installed")

X = (2, 6, 9, 8)
CALLS = [
    ("MatMul", "", [(3, 4, 5), (5, 6)]),
    ("MatMul", "then=relu|tanh", [(4, 5), (5, 6)]),
    ("Gemm", "transA=1;transB=1", [(5, 4), (6, 5), (6,)]),
    ("Gemm", "", [(4, 5), (5, 6)]),
    ("Conv", "pads=1,0,2,1;strides=2,1", [X, (4, 6, 3, 3), (4,)]),
    ("Conv", "dilations=2,1;group=3;pads=1,1,1,1", [X, (9, 2, 3, 2)]),
    ("Conv", "pads=1,1", [(2, 3, 10), (4, 3, 3)]),
    ("Conv", "", [(1, 2, 4, 5, 6), (3, 2, 2, 2, 2)]),
    ("ConvTranspose", "pads=1,1,1,1;strides=2,2", [X, (6, 4, 4, 4), (4,)]),
    ("ConvTranspose", "group=2;output_padding=1,1;pads=0,1,1,0;strides=2,3", [X, (6, 2, 3, 3), (4,)]),
    ("ConvTranspose", "output_padding=1;strides=2", [(1, 3, 5), (3, 2, 3), (2,)]),
    ("Softmax", "axis=1", [(2, 5, 3)]),
    ("Transpose", "perm=2,0,1", [(2, 5, 3)]),
    ("Concat", "axis=1", [(2, 5), (2, 3), (2, 1)]),
    ("ReduceSum", "axes=0,2;keepdims=0", [(2, 5, 3)]),
    ("ReduceMax", "axes=-1;keepdims=1", [(2, 5, 3)]),
    ("ReduceMin", "axes=1;keepdims=0", [(2, 5, 3)]),
    ("MaxPool", "kernel_shape=3,2;pads=1,0,0,1;strides=2,2", [X]),
    ("MaxPool", "ceil_mode=1;dilations=2,1;kernel_shape=3,3;strides=2,2", [X]),
    ("AveragePool", "dilations=2,1;kernel_shape=3,2;strides=2,2", [X]),
    ("AveragePool", "count_include_pad=1;kernel_shape=3,3;pads=1,0,2,1;strides=2,2", [X]),
    ("GlobalMaxPool", "", [X]),
    ("LayerNormalization", "axis=-1;epsilon=1e-05", [(2, 5, 7), (7,), (7,)]),
    ("LayerNormalization", "axis=1;epsilon=0.001", [(2, 5, 7), (5, 7)]),
    ("RMSNormalization", "axis=-1;epsilon=1e-05", [(2, 5, 7), (7,)]),
    ("InstanceNormalization", "epsilon=1e-05", [X, (6,), (6,)]),
    ("LRN", "alpha=0.01;beta=0.75;bias=1.5;size=4", [X]),
    ("Add", "function=add", [(2, 5, 3), (5, 1)]),
    ("Mul", "function=mul;then=sigmoid", [(2, 5, 3), (1,)]),
]


@pytest.mark.parametrize(("operator", "attributes", "shapes"), CALLS)
def test_calls(operator: str, attributes: str, shapes: list[tuple[int, ...]]) -> None:
    random = np.random.default_rng(0)
    arrays = [random.standard_normal(shape, dtype=np.float32) for shape in shapes]
    given = library.parse_attributes(attributes)
    exact = [array.astype(np.float64) for array in arrays]
    expected = library.evaluate(operator, given, exact, (), FloatArithmetic(np.float64))
    found = torch_library.call(operator, attributes, [torch.from_numpy(array) for array in arrays]).numpy()
    assert torch_library.supports(operator, attributes)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("operator", "attributes", "shapes"), CALLS)
def test_calls_that_write_where_they_are_told(operator: str, attributes: str, shapes: list[tuple[int, ...]]) -> None:
    random = np.random.default_rng(0)
    arguments = [torch.from_numpy(random.standard_normal(shape, dtype=np.float32)) for shape in shapes]
    expected = torch_library.call(operator, attributes, arguments)
    assert torch_library.fills(operator, attributes) == (
        operator in {"MatMul", "Gemm", "Concat"} and not attributes.startswith("then")
    )
    if torch_library.fills(operator, attributes):
        into = torch.full(expected.shape, float("nan"))
        assert torch_library.call_into(operator, attributes, arguments, into) is into
        np.testing.assert_allclose(into.numpy(), expected.numpy(), rtol=1e-6, atol=1e-6)


def test_every_built_in_operator_is_tested() -> None:
    assert {name for name, _, _ in CALLS} >= {operator.name for operator in library.OPERATORS}


@pytest.mark.parametrize("name", sorted(torch_library.FUNCTIONS))
def test_functions(name: str) -> None:
    function = scalar.lookup(name).function
    values = np.asarray([-3.0, -1.0, -0.0, 0.0, 0.5, 2.0, 7.0, np.nan, np.inf], np.float32)
    arrays = [values, *(np.full_like(values, 0.5) for _ in range(function.arity - 1))]
    values_of = {
        "clip": (-1.0, 2.0),
        "leaky_relu": (0.1,),
        "elu": (1.5,),
        "hard_sigmoid": (0.2, 0.5),
        "unless_nan": (3.0,),
    }
    text = f"{name}:{','.join(map(str, values_of[name]))}" if name in values_of else name
    with np.errstate(all="ignore"):
        expected = scalar.lookup(text)(*arrays)
    found = torch_library.apply(text, [torch.from_numpy(array) for array in arrays]).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_list_of_functions_is_complete() -> None:
    assert set(torch_library._functions()) == torch_library.FUNCTIONS


def test_averages_without_their_padding() -> None:
    x = torch.ones((1, 2, 5))
    found = torch_library.call("AveragePool", "kernel_shape=3;pads=1,2;strides=2", [x])
    assert found.tolist() == torch.ones((1, 2, 3)).tolist()
