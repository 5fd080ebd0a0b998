"""The benchmark models by torch and by jax, operator by operator, against onnxruntime."""

from collections.abc import Callable
from functools import cache, partial

import numpy as np
import onnx
import pytest

from bench import gpu_peers
from bench.gpu_worker import error_of, inputs_of
from bench.models.dense_prediction import gcn
from bench.models.generative import fsrcnn, infogan
from bench.models.inception import inception_e
from bench.models.longformer import longformer
from bench.models.sequence import bert_layer, nasrnn
from egraph_opt.backends.onnxruntime import make_session
from egraph_opt.frontends.onnx_plain import PlainModel, plain

MODELS: dict[str, Callable[[int], onnx.ModelProto]] = {
    "fsrcnn": fsrcnn,
    "infogan": infogan,
    "gcn": partial(gcn, size=64),
    "inception-e": inception_e,
    "longformer": partial(longformer, positions=500, window=10),
    "nasrnn": partial(nasrnn, steps=2, hidden=64),
    "bert-layer": partial(bert_layer, positions=16, hidden=96, heads=4),
}


@cache
def known(name: str) -> tuple[PlainModel, list[np.ndarray]]:
    """A model and what onnxruntime says of it."""
    content = MODELS[name](1).SerializeToString()
    model = plain(content)
    return model, make_session(content).run(None, inputs_of(model))


@pytest.mark.parametrize("name", sorted(MODELS))
def test_torch(name: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    model, expected = known(name)
    with torch.inference_mode():
        inputs = [torch.from_numpy(value).double() for value in inputs_of(model).values()]
        found = gpu_peers.torch_module(model, torch.float64, "cpu")(*inputs)
    assert max(error_of(value.numpy(), wanted) for value, wanted in zip(found, expected, strict=True)) < 1e-5


@pytest.mark.parametrize("name", sorted(MODELS))
def test_jax(name: str) -> None:
    pytest.importorskip("jax", reason="jax is not installed")
    model, expected = known(name)
    found = gpu_peers.jax_function(model, np.float32)(*inputs_of(model).values())
    assert max(error_of(np.asarray(value), wanted) for value, wanted in zip(found, expected, strict=True)) < 1e-5
