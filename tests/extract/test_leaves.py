"""However many tensors a term reads, some plan reads them: kernels that would read too many are cut."""

import numpy as np
import pytest
from onnx import helper

from egraph_opt.egraph.saturate import Budget
from egraph_opt.extract.alternatives import LEAVES, Extraction
from egraph_opt.extract.choose import choose
from egraph_opt.extract.roofline import Device
from egraph_opt.frontends.onnx_reader import load
from egraph_opt.frontends.regions import partition
from egraph_opt.packs import select
from egraph_opt.saturation_worker import saturate_program
from tests.frontends.support import model_of
from tests.pipeline.support import static, wrong


def normalized_concatenation(parts: int):
    """As in DenseNet: what all layers before gave, side by side, normalized before it is read."""
    names = [f"x{i}" for i in range(parts)]
    shapes = dict.fromkeys(names, (1, 2, 4, 4))
    channels = 2 * parts
    nodes = [
        helper.make_node("Concat", names, ["c"], axis=1),
        helper.make_node("BatchNormalization", ["c", "scale", "bias", "mean", "variance"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("Conv", ["r", "w"], ["y"]),
    ]
    weights = {name: np.linspace(0.5, 2, channels, dtype=np.float32) for name in ("scale", "bias", "mean", "variance")}
    weights["w"] = np.ones((3, channels, 1, 1), np.float32)
    return model_of(nodes, shapes, ["y"], weights)


@pytest.mark.parametrize("parts", [2, LEAVES - 1, LEAVES, LEAVES + 1, 3 * LEAVES])
def test_a_normalized_concatenation_has_a_plan(parts):
    (region,) = partition(load(normalized_concatenation(parts))).regions
    found = saturate_program(region.program, select(), Budget())
    problem = Extraction(found.snapshot, Device()).problem(region.program.outputs)
    choice = choose(problem, lambda alternative: alternative.estimate)
    assert choice is not None


@pytest.mark.parametrize("portable", [False, True])
def test_what_reads_many_tensors_is_right(portable):
    model = normalized_concatenation(3 * LEAVES)
    result = static(model, portable=portable)
    assert not result.report.reverted
    generator = np.random.default_rng(0)
    feeds = {entry.name: generator.normal(size=(1, 2, 4, 4)).astype(np.float32) for entry in model.graph.input}
    assert not wrong(model, result, feeds)
