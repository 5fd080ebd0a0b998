"""Optimized models answer as the originals do: drawn models, native and portable, and their distance to float64."""

from typing import Any

import numpy as np
import onnx
import pytest

from egraph_opt.backends.onnxruntime import run
from egraph_opt.frontends.onnx_reader import load
from egraph_opt.frontends.regions import partition
from egraph_opt.ir.interpreter import run_program
from tests.pipeline.support import answers, band_attention, drawn, normal, static, wrong


def distances(model: onnx.ModelProto, result: Any, feeds: dict[str, np.ndarray]) -> tuple[float, float]:
    """Largest errors, relative to the range, of the original and of the optimized model against float64."""
    (region,) = partition(load(model)).regions
    exact = run_program(region.program, feeds)
    found = []
    for values in (answers(model, feeds), run(result.session(), feeds)):
        errors = [
            np.abs(value - exact[output.name]).max() / np.abs(exact[output.name]).max()
            for output, value in zip(model.graph.output, values, strict=True)
        ]
        found.append(float(max(errors)))
    return found[0], found[1]


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_drawn_models(seed: int, portable: bool) -> None:
    model = drawn(seed)
    result = static(model, portable=portable)
    assert result.report.changed
    assert not result.report.reverted
    feeds = {"x": normal(*(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim), seed=seed)}
    original, optimized = distances(model, result, feeds)
    assert optimized <= max(4 * original, 1e-6)


def test_band_attention() -> None:
    model = band_attention()
    result = static(model)
    assert result.report.changed
    assert not result.report.reverted
    assert "Gather" not in result.report.operators_after
    feeds = {name: normal(2, 24, 3, seed=i) for i, name in enumerate("qkv")}
    original, optimized = distances(model, result, feeds)
    assert optimized <= max(4 * original, 1e-6)
    # Standard operators may be unable to express the windows; then the original remains.
    assert not wrong(model, static(model, portable=True), feeds)
