"""Every version of every operator of the algebra, each attribute included: the term against a runtime of that version.

The judge is onnxruntime, where that lacks the version onnx's reference evaluator, and where both do a formula beside
the case.
"""

import warnings

import numpy as np
import onnx
import pytest
from onnx import defs, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from egraph_opt.frontends.onnx_operators import OPERATORS
from egraph_opt.frontends.onnx_reader import load
from egraph_opt.frontends.onnx_writer import rebuild
from egraph_opt.frontends.regions import partition
from egraph_opt.ir import interpreter
from tests.frontends.support import portable_plan, run, value
from tests.frontends.version_case import Case, versions
from tests.frontends.version_cases import all_cases, cases, node_of

# The newest opset that onnxruntime loads.
NEWEST_RUNNABLE = 26
# What the algebra knows of these begins later than the first version, whose meaning differs.
LATER: dict[str, int] = {}


def model_of(tried: Case, op_type: str, version: int) -> onnx.ModelProto:
    inputs, weights = [], []
    for i, given in enumerate(tried.inputs):
        if isinstance(given, tuple):
            inputs.append(value(f"x{i}", given))
        elif not isinstance(given, str):
            weights.append(numpy_helper.from_array(np.asarray(given), f"x{i}"))
    outputs = [helper.make_empty_tensor_value_info(f"y{i}") for i in range(tried.outputs)]
    graph = helper.make_graph([node_of(tried, op_type)], "graph", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=8)


def drawn(tried: Case) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(11)
    shapes = {f"x{i}": given for i, given in enumerate(tried.inputs) if isinstance(given, tuple)}
    feeds = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return {name: np.abs(array) + np.float32(0.1) for name, array in feeds.items()} if tried.positive else feeds


def judged(tried: Case, model: onnx.ModelProto, feeds: dict[str, np.ndarray], version: int) -> tuple[str, list]:
    """Who computed the results, and the results."""
    if version <= NEWEST_RUNNABLE:
        try:
            return "onnxruntime", list(run(model, feeds).values())
        except Exception:  # it lacks this version of the operator
            pass
    if tried.oracle is not None:
        arrays = [feeds[f"x{i}"] if isinstance(given, tuple) else given for i, given in enumerate(tried.inputs)]
        arrays = [array.astype(np.float64) for array in arrays if not isinstance(array, str)]
        found = tried.oracle(*arrays)
        return "formula", found if isinstance(found, list) else [found]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return "reference", ReferenceEvaluator(model).run(None, feeds)


@pytest.mark.parametrize(("op_type", "version"), all_cases(), ids=str)
def test_version(op_type, version):
    encoded = 0
    for tried in cases(op_type, version):
        model = model_of(tried, op_type, version)
        feeds = drawn(tried)
        loaded = load(model)
        parts = partition(loaded)
        if tried.declined:
            assert tried.declined in parts.opaque[0], tried
            continue
        encoded += 1
        if loaded.folded:
            continue
        assert not parts.opaque, (parts.opaque, tried)
        (region,) = parts.regions
        judge, wanted = judged(tried, model, feeds, version)
        found = interpreter.run_program(region.program, {s.name: feeds[s.name] for s in region.program.inputs})
        for i, array in enumerate(wanted):
            _compare(array, found[f"y{i}"], (judge, tried))
        plan = portable_plan(region, loaded.opset) if version >= 7 else None
        if plan is not None and judge == "onnxruntime":
            rebuilt = run(rebuild(loaded, parts.regions, {0: plan}), feeds)
            for i, array in enumerate(wanted):
                _compare(array, rebuilt[f"y{i}"], ("rebuilt", tried))
    assert encoded


def _compare(wanted: np.ndarray, found: np.ndarray, what: object) -> None:
    assert np.shape(wanted) == found.shape, what
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5, err_msg=str(what))


@pytest.mark.parametrize(("op_type", "version"), all_cases(), ids=str)
def test_the_cases_use_every_attribute_and_input(op_type, version):
    schema = defs.get_schema(op_type, version, "")
    tried = cases(op_type, version)
    used = {name for one in tried for name in one.attributes}
    assert used == set(schema.attributes), op_type
    most = max(sum(not isinstance(given, str) for given in one.inputs) for one in tried)
    roi = op_type == "Resize" and version >= 11  # never read for nearest neighbours
    assert most >= min(schema.max_input, 3) - roi or schema.max_input > 100


@pytest.mark.parametrize("op_type", OPERATORS)
def test_the_algebra_begins_with_the_first_version(op_type):
    assert OPERATORS[op_type].since == LATER.get(op_type, versions(op_type)[0])
