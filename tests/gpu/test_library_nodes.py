"""Nodes outside the algebra as library calls, and the operators that only kernel bodies are written with."""

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from egraph_opt import offline
from egraph_opt.backends.cuda_build import find_nvcc
from egraph_opt.backends.cuda_works import library_work
from egraph_opt.errors import InputRejected
from egraph_opt.extract.gpu_devices import GPUS
from egraph_opt.frontends.library_nodes import library_step
from egraph_opt.frontends.onnx_reader import load
from egraph_opt.gpu import torch_library
from egraph_opt.gpu.device import called
from egraph_opt.gpu.files import LIBRARY, LibraryCall
from egraph_opt.gpu.host_device import HostDevice
from egraph_opt.gpu.running import Runner, random_inputs
from egraph_opt.ir import expr as ex
from egraph_opt.ir import library, maps, moves
from egraph_opt.ir.program import kernel_signature
from egraph_opt.ir.terms import Apply, Call, Compute, Fill, Reduce, Softmax, View
from tests.backends.bodies import read
from tests.backends.kernel_helpers import evaluate
from tests.pipeline.support import answers

X = (1, 3, 5, 8)
I0, I1, I2 = map(ex.iterator, range(3))


def resize(shape: tuple[int, ...], opset: int = 19, **attributes: object) -> onnx.ModelProto:
    scales = [1.0, 1.0, *(wanted / n for wanted, n in zip(shape[2:], X[2:], strict=True))]
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Resize", ["a", "", "scales"], ["b"], **attributes),
        helper.make_node("Neg", ["b"], ["y"]),
    ]
    weights = [onnx.numpy_helper.from_array(np.asarray(scales, np.float32), "scales")]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, X)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)]
    graph = helper.make_graph(nodes, "resize", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


MODES = [
    ((1, 3, 10, 16), {"mode": "linear"}),
    ((1, 3, 10, 16), {"mode": "linear", "coordinate_transformation_mode": "align_corners"}),
    ((1, 3, 6, 4), {"mode": "linear", "coordinate_transformation_mode": "asymmetric"}),
    ((1, 3, 1, 12), {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"}),
    ((1, 3, 6, 10), {"mode": "linear", "coordinate_transformation_mode": "half_pixel_symmetric"}),
    ((1, 3, 8, 12), {"mode": "cubic"}),
    ((1, 3, 8, 12), {"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": 1}),
]


@pytest.mark.parametrize(("shape", "attributes"), MODES)
def test_resampling_means_what_onnx_says(shape: tuple[int, ...], attributes: dict[str, object]) -> None:
    loaded = load(resize(shape, **attributes))
    step = library_step(loaded.nodes[1], loaded)
    assert not isinstance(step, str)
    assert isinstance(step.buffer, Call)
    x = np.abs(np.random.default_rng(0).standard_normal(X, dtype=np.float32))
    found = moves.evaluate("Resize", library.parse_attributes(step.buffer.attributes), [x.astype(np.float64)], shape)
    # Not by onnx's own evaluator: it takes the middle of what is resampled to a single element.
    (expected,) = answers(resize(shape, **attributes), {"x": x})
    np.testing.assert_allclose(-found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("shape", "attributes"), MODES)
def test_torch_resamples_the_same(shape: tuple[int, ...], attributes: dict[str, object]) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    loaded = load(resize(shape, **attributes))
    step = library_step(loaded.nodes[1], loaded)
    assert not isinstance(step, str)
    assert isinstance(step.buffer, Call)
    x = np.random.default_rng(0).standard_normal(X, dtype=np.float32)
    expected = moves.evaluate("Resize", library.parse_attributes(step.buffer.attributes), [x], shape)
    found = torch_library.call("Resize", step.buffer.attributes, [torch.from_numpy(x)], shape)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(find_nvcc() is None, reason="no nvcc: the CUDA toolkit is not installed")
def test_a_model_with_such_a_node_has_a_program() -> None:
    model = resize((1, 3, 10, 16), mode="linear")
    program = offline.choose(model)
    assert "not measured" in program.device
    operators = [call.operator for step in program.steps if step.work is not None for call in step.work.calls]
    assert "Resize" in operators
    inputs = random_inputs(program)
    (expected,) = answers(model, inputs)
    found = Runner(program, HostDevice(program.architecture)).run(inputs)
    np.testing.assert_allclose(found["y"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"mode": "linear", "antialias": 1}, "antialias"),
        ({"mode": "cubic", "keep_aspect_ratio_policy": "not_larger"}, ""),
    ],
)
def test_what_no_library_call_computes_is_refused(attributes: dict[str, object], reason: str) -> None:
    with pytest.raises(InputRejected, match=rf"\(Resize\) is outside the algebra: .*{reason}"):
        offline.plan(resize((1, 3, 10, 16), **attributes))


def shifted(*extents: int) -> View:
    """Windows of a vector that overlap, beyond both of its ends."""
    indices = [I0 * 2 + I1 - 3]
    return View(read("x", 20), maps.index_map((20,), extents, indices, fill=0.5))


BODIES = {
    "pointwise": Apply("relu", (Apply("add", (read("x", 4, 6), read("y", 4, 6))),)),
    "constant": Apply("mul", (read("x", 4, 6), Fill(3, (4, 6)))),
    "broadcast": Apply("mul", (read("x", 4, 6), View(read("b", 6), maps.index_map((6,), (4, 6), [I1])))),
    "transpose": View(read("x", 4, 6), maps.index_map((4, 6), (6, 4), [I1, I0])),
    "backwards": View(read("x", 4, 6), maps.index_map((4, 6), (4, 6), [I0, -I1 + 5])),
    "every-second": View(read("x", 4, 6), maps.index_map((4, 6), (2, 3), [I0 * 2 + 1, I1 * 2])),
    "padded": View(read("x", 4, 6), maps.index_map((4, 6), (7, 6), [I0 - 2, I1], fill=-1.0)),
    "windows": shifted(9, 5),
    "sum-of-windows": Reduce("sum", shifted(9, 5), 1),
    "softmax": Softmax(read("x", 4, 6), 1),
}


@pytest.mark.parametrize("name", sorted(BODIES))
def test_kernel_bodies_are_written_as_library_calls(name: str) -> None:
    body = BODIES[name]
    work = library_work(Compute(body), GPUS["h200"])
    assert work is not None
    assert work.implementation == LIBRARY
    assert work.estimate > 0
    draw = np.random.default_rng(0)
    arrays = [draw.standard_normal(extents, dtype=np.float32) for extents in work.arguments]
    expected = evaluate(kernel_signature(body)[0], {f"in{i}": value for i, value in enumerate(arrays)})
    np.testing.assert_allclose(HostDevice().work(work, arrays), expected, rtol=1e-6, atol=1e-6)
    # Buffers lie there under other extents sometimes.
    flat = [value.reshape(-1) for value in arrays]
    np.testing.assert_allclose(HostDevice().work(work, flat), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", sorted(BODIES))
def test_torch_makes_the_same_calls(name: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    work = library_work(Compute(BODIES[name]), GPUS["h200"])
    assert work is not None
    draw = np.random.default_rng(0)
    arrays = [draw.standard_normal(extents, dtype=np.float32) for extents in work.arguments]

    def call(each: LibraryCall, values: Sequence[object]) -> object:
        return torch_library.call(each.operator, each.attributes, values, each.extents)

    found = called(work, [torch.from_numpy(value) for value in arrays], call)
    np.testing.assert_allclose(found.numpy(), HostDevice().work(work, arrays), rtol=1e-5, atol=1e-6)


def test_what_libraries_cannot_write_has_no_such_work() -> None:
    diagonal = View(
        read("x", 4, 6, 5), maps.index_map((4, 6, 5), (4, 6), [I0, I1, ex.floordiv(I0 * 6 + I1, 5, (4, 6))])
    )
    assert library_work(Compute(diagonal), GPUS["h200"]) is None
