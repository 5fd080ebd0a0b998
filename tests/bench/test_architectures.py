"""Current architectures as exported: accepted, nearly all of their nodes inside the algebra, and what is computed is
right."""

import numpy as np
import onnx
import pytest

from bench.coverage import LEAST_SHARE, coverage, table
from bench.models.architectures import ARCHITECTURES
from bench.models.light import light, names
from egraph_opt.frontends.onnx_reader import load
from egraph_opt.frontends.regions import partition
from egraph_opt.ir import interpreter
from tests.frontends.support import run


def drawn(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(5)
    weights = {tensor.name for tensor in model.graph.initializer}
    feeds = {}
    for entry in model.graph.input:
        if entry.name in weights:
            continue
        kind, shape = entry.type.tensor_type.elem_type, [d.dim_value for d in entry.type.tensor_type.shape.dim]
        is_float = kind == onnx.TensorProto.FLOAT
        feeds[entry.name] = (
            generator.normal(size=shape).astype(np.float32) if is_float else generator.integers(2, size=shape)
        )
    return feeds


def check(model: onnx.ModelProto, tolerance: float) -> None:
    """What the regions compute in float64 is what onnxruntime computes, given what enters them."""
    loaded = load(model)
    parts = partition(loaded)
    assert parts.regions
    wanted = {
        name for region in parts.regions for name in (*region.program.outputs, *(s.name for s in region.program.inputs))
    }
    told = onnx.ModelProto()
    told.CopyFrom(model)
    known = {value.name for value in told.graph.output}
    told.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in sorted(wanted - known))
    feeds = drawn(model)
    values = run(told, feeds) | feeds
    for region in parts.regions:
        found = interpreter.run_program(region.program, {s.name: values[s.name] for s in region.program.inputs})
        for name, array in found.items():
            scale = np.abs(values[name]).max()
            np.testing.assert_allclose(array, values[name], rtol=tolerance, atol=tolerance * scale, err_msg=name)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_is_inside_the_algebra(name):
    model = ARCHITECTURES[name](1)
    found = coverage(name, model)
    assert found.share >= LEAST_SHARE, table([found])
    check(model, 1e-4)


@pytest.mark.parametrize("name", names())
def test_a_real_graph_is_inside_the_algebra(name):
    found = coverage(name, light(name))
    assert found.share == 1.0, table([found])
    assert found.regions == 1


def test_light_models_are_drawn_by_seed():
    one, same, other = light("squeezenet"), light("squeezenet"), light("squeezenet", seed=1)
    assert one.SerializeToString() == same.SerializeToString() != other.SerializeToString()
