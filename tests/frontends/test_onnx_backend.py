"""The cases that onnx itself ships, 2,024 small models: read, cut into regions, rebuilt, run."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest

from bench.backend_suite.cases import KINDS, collect, with_weights
from egraph_opt.frontends.onnx_reader import load
from egraph_opt.frontends.onnx_writer import rebuild
from egraph_opt.frontends.regions import partition
from egraph_opt.ir import interpreter
from egraph_opt.ir.program import Plan
from tests.frontends.support import check_kernels, portable_plan, run

# onnx's reference evaluator cannot run these itself, or draws random numbers in them.
BEYOND_THE_REFERENCE = ("bernoulli", "training_dropout", "scan", "gradient", "momentum", "adam")
# All but the light networks.
KINDS_OF_SMALL = KINDS[:-1]


def models(*, constant: bool) -> Iterator[tuple[str, onnx.ModelProto, dict[str, Any]]]:
    """Name, model and inputs of each; with ``constant`` all inputs but the first become weights."""
    found = collect(KINDS_OF_SMALL)
    assert len(found) > 2000
    for case in found:
        prepared = with_weights(case) if constant else case
        yield prepared.name, prepared.model(), prepared.feeds


def run_or_none(model: onnx.ModelProto, feeds: dict[str, Any]) -> dict[str, Any] | None:
    try:
        return run(model, feeds)
    except Exception:  # many of these models use what onnxruntime does not implement
        return None


def agree(wanted: Any, found: Any) -> bool:
    if not isinstance(wanted, np.ndarray) or wanted.dtype.kind != "f":
        return True
    return wanted.shape == found.shape and np.allclose(wanted, found, rtol=1e-3, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("constant", [False, True])
def test_programs_and_their_standard_operators_agree_with_onnxruntime(constant):
    compared, wrong = 0, []
    for name, model, feeds in models(constant=constant):
        loaded = load(model)
        parts = partition(loaded)
        wanted = run_or_none(model, feeds) if parts.regions else None
        if wanted is None:
            continue
        if len(parts.regions) == 1 and not parts.opaque:
            (region,) = parts.regions
            inputs = {source.name: feeds[source.name] for source in region.program.inputs}
            found = interpreter.run_program(region.program, inputs)
            wrong += [f"{name}: program"] * (not all(agree(wanted[key], array) for key, array in found.items()))
        found_plans = {region.index: portable_plan(region, loaded.opset) for region in parts.regions}
        plans: dict[int, Plan] = {index: plan for index, plan in found_plans.items() if plan is not None}
        rebuilt = run(rebuild(loaded, parts.regions, plans), feeds)
        wrong += [f"{name}: rebuilt"] * (not all(agree(array, rebuilt[key]) for key, array in wanted.items()))
        compared += 1
    assert not wrong
    assert compared > 300


def test_kernels_in_the_place_of_every_region():
    compared = 0
    for name, model, feeds in models(constant=False):
        if any(word in name for word in BEYOND_THE_REFERENCE) or not partition(load(model)).regions:
            continue
        try:
            onnx.reference.ReferenceEvaluator(model).run(None, feeds)
        except Exception:  # a gap of the reference evaluator
            continue
        check_kernels(model, feeds)
        compared += 1
    assert compared > 300
