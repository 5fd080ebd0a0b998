"""The benchmark models: valid, of the right shapes and sizes, and computing what they are said to compute."""

import numpy as np
import onnx
import onnxruntime
import pytest

from bench.flops import multiply_adds, parameters
from bench.models import CATALOGUE, find, get, names
from bench.models.__main__ import main
from bench.models.dense_prediction import csrnet, gcn
from bench.models.longformer import longformer, longformer_masked
from bench.models.residual import resnet18, resnext50
from bench.models.sequence import bert_layer, nasrnn

# GMAC for one item of the batch, millions of parameters, shape of the output without its batch axis. ResNet and
# ResNeXt are published as 1.81 and 4.23 GMAC, 11.69 and 25.03 M with their unfolded normalizations.
EXPECTED = {
    "infogan-b1": (0.025312, 2.903, (3, 32, 32)),
    "dcgan-b1": (0.104628, 3.576, (3, 64, 64)),
    "fsrcnn-b1": (0.012747, 0.012773, (1, 128, 128)),
    "srcnn": (2.869, 0.0573, (1, 224, 224)),
    "gcn": (6.127, 34.85, (21, 224, 224)),
    "resnet18-b1": (1.814, 11.684, (1000,)),
    "csrnet": (20.72, 16.26, (1, 28, 28)),
    "csrnet-backend-b1": (1.691, 8.628, (1, 14, 14)),
    "longformer-quarter": (5.215, 1.574, (2500, 512)),
    "longformer-quarter-masked": (10.33, 7.824, (2500, 512)),
    "nasrnn": (0.020972, 4.194, (512,)),
    "resnext50": (4.230, 24.99, (1000,)),
    "inception-a": (0.348, 0.285, (288, 35, 35)),
    "inception-c": (0.618, 2.140, (768, 17, 17)),
    "inception-e": (0.388, 6.069, (2048, 8, 8)),
    "bert-layer": (0.931, 7.088, (128, 768)),
}
# Each takes a second or two to build or run, or needs 18 GiB; the command `python -m bench.run` runs them all.
RUN_IN_TESTS = (
    "infogan-b1",
    "dcgan-b1",
    "fsrcnn-b1",
    "nasrnn",
    "inception-a",
    "inception-c",
    "inception-e",
    "bert-layer",
)


def run(model: onnx.ModelProto, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(seed)
    inputs = {value.name: random.standard_normal(value.shape, dtype=np.float32) for value in session.get_inputs()}
    return inputs, session.run(None, inputs)[0]


def weights(model: onnx.ModelProto) -> list[np.ndarray]:
    """The matrices of the model in the order in which they are used."""
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return [arrays[node.input[1]] for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in arrays]


def test_names_are_unique_and_the_batch_is_in_the_name() -> None:
    assert len(set(names())) == len(names()) == 22
    assert find("infogan-b16") == (CATALOGUE[0], 16)
    with pytest.raises(KeyError, match=r"no benchmark model is called 'infogan'; the names are: infogan-b1,"):
        get("infogan")


@pytest.mark.parametrize("name", EXPECTED)
def test_size_of_every_model(name: str) -> None:
    billions, millions, shape = EXPECTED[name]
    model = get(name)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == 9
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
    dimensions = model.graph.output[0].type.tensor_type.shape.dim
    assert tuple(dimension.dim_value for dimension in dimensions) == (1, *shape)
    assert multiply_adds(model) == pytest.approx(billions * 1e9, rel=2e-3)
    assert parameters(model) == pytest.approx(millions * 1e6, rel=2e-3)


@pytest.mark.parametrize("name", RUN_IN_TESTS)
def test_outputs_are_of_order_one(name: str) -> None:
    _, output = run(get(name))
    assert np.isfinite(output).all()
    assert 0.05 < output.std() < 10


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (resnet18(2, size=64, classes=10), (2, 10)),
        (resnext50(1, size=64, classes=10), (1, 10)),
        (gcn(1, size=64, classes=5), (1, 5, 64, 64)),
        (csrnet(1, size=32), (1, 1, 4, 4)),
    ],
    ids=["resnet18", "resnext50", "gcn", "csrnet"],
)
def test_deep_networks_keep_their_scale_at_a_small_size(model: onnx.ModelProto, shape: tuple[int, ...]) -> None:
    onnx.checker.check_model(model, full_check=True)
    _, output = run(model)
    assert output.shape == shape
    assert 0.05 < output.std() < 10


def test_batch_scales_the_work() -> None:
    for name in ("infogan", "dcgan", "fsrcnn", "csrnet-backend"):
        assert multiply_adds(get(f"{name}-b16")) == 16 * multiply_adds(get(f"{name}-b1"))


def test_building_twice_gives_the_same_bytes() -> None:
    first, second = (get("fsrcnn-b1").SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


SMALL = {"positions": 23, "window": 3, "dilation": 2, "heads": 2, "head_size": 4}


@pytest.mark.parametrize("padding", [True, False], ids=["gather form", "dense with a mask"])
def test_longformer_is_dilated_band_attention(padding: bool) -> None:
    batch, positions, window, dilation, heads, size = 2, 23, 3, 2, 2, 4
    model = longformer(batch, **SMALL, slices=5) if padding else longformer_masked(batch, **SMALL)
    onnx.checker.check_model(model, full_check=True)
    inputs, output = run(model)
    x = inputs["input"].astype(np.float64)
    query, key, value, projection, first, second = weights(model)
    biases = [
        onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name.startswith("vector")
    ]

    mixed = np.zeros((batch, positions, heads, size))
    q, k, v = ((x @ weight).reshape(batch, positions, heads, size) for weight in (query, key, value))
    for item, position, head in np.ndindex(batch, positions, heads):
        scores, values = [], []
        for other in range(position - dilation * window, position + dilation * window + 1, dilation):
            inside = 0 <= other < positions
            if inside or padding:
                scores.append(q[item, position, head] @ k[item, other, head] if inside else 0.0)
                values.append(v[item, other, head] if inside else np.zeros(size))
        probabilities = np.exp(scores) / np.exp(scores).sum()
        mixed[item, position, head] = probabilities @ np.array(values) / np.sqrt(size)
    y = mixed.reshape(batch, positions, heads * size) @ projection
    for weight, bias in zip((first, second), biases, strict=True):
        y = np.maximum(y @ weight + bias, 0.0)
    np.testing.assert_allclose(output, x + y, rtol=0, atol=2e-5)


def test_longformer_gathers_by_constant_indices_of_five_slices() -> None:
    model = longformer(1, **SMALL)
    indices = [onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name.startswith("index")]
    gathers = [node for node in model.graph.node if node.op_type == "Gather"]
    assert len(gathers) == 2 * len(indices) == 10
    assert {index.dtype for index in indices} == {np.dtype(np.int64)}
    together = np.concatenate(indices)
    position, column = np.indices((23, 7))
    np.testing.assert_array_equal(together, position + 2 * column)


def test_nasrnn_uses_sixteen_products_a_step_and_the_same_weights_in_each() -> None:
    model = nasrnn(1, steps=3, hidden=8)
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    assert len(products) == 3 * 16
    assert len({node.input[1] for node in products}) == 16
    inputs, output = run(model)
    matrices = weights(model)[:16]

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    def relu(x: np.ndarray) -> np.ndarray:
        return np.maximum(x, 0)

    state = inputs["state"].astype(np.float64)
    for step in range(3):
        t = [inputs[f"x{step}"] @ matrices[2 * gate] + state @ matrices[2 * gate + 1] for gate in range(8)]
        left = np.tanh(sigmoid(sigmoid(t[1]) + np.tanh(t[2])) + np.tanh(sigmoid(t[4]) * np.tanh(t[5])))
        right = np.tanh(np.tanh(relu(t[0]) + sigmoid(t[3])) * np.tanh(sigmoid(t[6]) * relu(t[7])))
        state = np.tanh(left * right)
    np.testing.assert_allclose(output, state, rtol=0, atol=1e-5)


def test_bert_layer_normalizes_its_output() -> None:
    model = bert_layer(2, positions=6, hidden=24, heads=3)
    _, output = run(model)
    scale, bias = (
        onnx.numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))
        for name in model.graph.node[-1].input[1:]
    )
    normal = (output - bias) / scale
    np.testing.assert_allclose(normal.mean(axis=-1), 0, atol=1e-4)
    np.testing.assert_allclose(normal.std(axis=-1), 1, atol=1e-3)


def test_the_command_lists_and_writes(tmp_path: object, capsys: pytest.CaptureFixture[str]) -> None:
    path = f"{tmp_path}/model.onnx"
    assert main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(names())
    assert main(["fsrcnn-b1", "-o", path]) == 0
    assert onnx.load(path).graph.name == "fsrcnn"
    with pytest.raises(SystemExit, match="2"):
        main(["no-such-model"])
