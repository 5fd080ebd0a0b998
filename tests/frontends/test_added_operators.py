"""Added functions and operators in models: read from nodes, written as nodes, domains imported."""

from dataclasses import replace

import numpy as np
import pytest
from onnx import helper

from egraph_opt.backends.onnxruntime import make_session
from egraph_opt.errors import EgraphOptError
from egraph_opt.frontends.onnx_context import FreshConstants
from egraph_opt.frontends.onnx_emit import NotExpressible, supports
from egraph_opt.frontends.onnx_operators import explain
from egraph_opt.frontends.onnx_reader import load
from egraph_opt.frontends.onnx_standalone import standalone
from egraph_opt.frontends.onnx_writer import rebuild
from egraph_opt.frontends.portable import express
from egraph_opt.frontends.regions import partition
from egraph_opt.ir import extensions, scalar
from egraph_opt.ir.library import LibraryOperator, OnnxOperator
from egraph_opt.ir.program import Plan, Step
from egraph_opt.ir.scalar import ScalarFunction
from egraph_opt.ir.terms import Apply, Call, Read, Source
from tests.pipeline.support import MICROSOFT, QUICK_GELU, build, node

MISH = ScalarFunction(
    "mish", 1, keeps_zero=True, onnx="Mish", since=18, definition=lambda f, x: f("mul", x, f("tanh", f("softplus", x)))
)
FUSED = LibraryOperator(
    "FusedMatMul",
    2,
    attributes={"alpha": "float", "transA": "int"},
    shape=lambda a, b, alpha=1.0, transA=0: (a[1] if transA else a[0], b[1]),  # noqa: N803
    numpy=lambda a, b, alpha=1.0, transA=0: alpha * ((a.T if transA else a) @ b),  # noqa: N803
    flops=lambda a, b, alpha=1.0, transA=0: 2 * a[0] * a[1] * b[1],  # noqa: N803
    onnx=OnnxOperator("FusedMatMul", MICROSOFT),
)


def terms(model):
    """The terms of the first node, or why it is opaque."""
    loaded = load(model)
    return explain(loaded.nodes[0], loaded, FreshConstants(loaded.names))


def quick_gelu(**attributes):
    nodes = [node("QuickGelu", "x", "y", MICROSOFT, **attributes)]
    return build(nodes, {"x": [2, 3]}, {"y": [2, 3]}, domains=[MICROSOFT])


def test_a_node_of_another_domain_becomes_the_function():
    with extensions.extended(QUICK_GELU):
        found, _ = terms(quick_gelu(alpha=1.5))
        assert found == {"y": Apply("quick_gelu:1.5", (Read(Source("x", (2, 3))),))}
        found, _ = terms(quick_gelu())
        assert found["y"].function == "quick_gelu:1.702"
        found, reason = terms(quick_gelu(beta=1.0))
        assert found is None
        assert reason == "unknown attributes beta"
    assert terms(quick_gelu()) == (None, "it is not a standard operator")


def test_a_node_without_an_attribute_that_has_no_default_stays():
    bare = ScalarFunction(
        "quick", 1, onnx="QuickGelu", domain=MICROSOFT, attributes=("alpha",), definition=QUICK_GELU.definition, since=1
    )
    with extensions.extended(bare):
        assert terms(quick_gelu()) == (None, "attribute alpha is missing")
        assert terms(quick_gelu(alpha=2.0))[0] is not None


def test_a_node_older_than_the_function_stays():
    late = replace(QUICK_GELU, since=2)
    with extensions.extended(late):
        assert terms(quick_gelu()) == (None, "opset 1 is older than 2")


def test_an_added_function_goes_before_the_built_in_encoding_of_a_node():
    model = build([node("Mish", "x", "y")], {"x": [2]}, {"y": [2]}, opset=18)
    with extensions.extended(MISH):
        assert terms(model)[0] == {"y": Apply("mish", (Read(Source("x", (2,))),))}
    with extensions.extended(replace(MISH, since=19)):
        found, _ = terms(model)
    assert found is None or found["y"].function == "mul"


def test_a_function_of_the_model_hides_the_operator():
    model = quick_gelu(alpha=1.0)
    body = helper.make_node("Relu", ["a"], ["b"])
    own = helper.make_function(MICROSOFT, "QuickGelu", ["a"], ["b"], [body], model.opset_import, ["alpha"])
    model.functions.append(own)
    with extensions.extended(QUICK_GELU):
        assert terms(model) == (None, "it is not a standard operator")


def ran(steps, opset, *values):
    model = standalone(steps, opset=opset)
    session = make_session(model, threads=1, spin=False)
    return session.run(None, {f"x{i}": value for i, value in enumerate(values)})[0], model


@pytest.mark.parametrize(
    ("record", "text", "opset", "expected"),
    [
        (MISH, "mish", 18, {"Mish"}),
        (MISH, "mish", 17, {"Softplus", "Tanh", "Mul"}),
        (QUICK_GELU, "quick_gelu:1.5", 17, {"QuickGelu"}),
        (
            ScalarFunction("own", 1, definition=QUICK_GELU.definition, attributes=("a",)),
            "own:1.5",
            17,
            {"Mul", "Sigmoid"},
        ),
    ],
)
def test_a_function_is_written_as_its_operator_or_step_by_step(record, text, opset, expected):
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    with extensions.extended(record):
        body = Apply(text, (Read(Source("x", (3, 4))),))
        found, model = ran(express("y", body).steps, opset, x)
        meant = scalar.lookup(text)(x.astype(np.float64))
    np.testing.assert_allclose(found, meant, atol=1e-6)
    assert {n.op_type for n in load(model).nodes} == expected


def test_a_function_with_neither_form_cannot_be_written():
    bare = ScalarFunction("mish", 1, lambda x: x, True, 1, "Mish", since=18)
    with extensions.extended(bare):
        call = Call("Mish", "function=mish", (Source("x", (2,)),), (2,))
        assert supports(call, 18)
        assert not supports(call, 17)


def test_an_operator_is_written_with_typed_attributes():
    a, b = np.random.default_rng(0).standard_normal((2, 4, 4)).astype(np.float32)
    sources = (Source("a", (4, 4)), Source("b", (4, 4)))
    with extensions.extended(FUSED):
        found, model = ran([Step("y", Call("FusedMatMul", "alpha=0.5;transA=1", sources, (4, 4)))], 17, a, b)
    np.testing.assert_allclose(found, 0.5 * a.T @ b, rtol=1e-5)
    assert (MICROSOFT, 1) in {(o.domain, o.version) for o in load(model).model.opset_import}


def test_an_unknown_operator_is_an_error_that_names_it():
    with pytest.raises(EgraphOptError, match="'FusedMatMul'"):
        supports(Call("FusedMatMul", "", (Source("a", (4, 4)),), (4, 4)), 17)


@pytest.mark.parametrize("imported", [None, 1, 3])
def test_the_written_model_imports_the_domain_once(imported):
    domains = [] if imported is None else [MICROSOFT]
    model = build([node("MatMul", "a b", "y")], {"a": [4, 4], "b": [4, 4]}, {"y": [4, 4]}, domains=domains)
    for entry in model.opset_import:
        entry.version = imported if entry.domain == MICROSOFT else entry.version
    loaded = load(model)
    (region,) = partition(loaded).regions
    sources = (Source("a", (4, 4)), Source("b", (4, 4)))
    plan = Plan(sources, (Step("s", Call("FusedMatMul", "alpha=2.0", sources, (4, 4))),), {"y": "s"})
    with extensions.extended(FUSED):
        written = rebuild(loaded, [region], {region.index: plan})
    imports = [(entry.domain, entry.version) for entry in written.opset_import]
    assert imports == [("", 17), (MICROSOFT, imported or 1)]
    assert [(n.op_type, n.domain) for n in written.graph.node] == [("FusedMatMul", MICROSOFT)]


def test_a_domain_that_is_too_old_is_refused():
    model = build([node("MatMul", "a b", "y")], {"a": [4, 4], "b": [4, 4]}, {"y": [4, 4]}, domains=["own.domain"])
    loaded = load(model)
    (region,) = partition(loaded).regions
    sources = (Source("a", (4, 4)), Source("b", (4, 4)))
    plan = Plan(sources, (Step("s", Call("Late", "", sources, (4, 4))),), {"y": "s"})
    late = LibraryOperator(
        "Late", 2, FUSED.shape, FUSED.numpy, flops=FUSED.flops, onnx=OnnxOperator("L", "own.domain", 2)
    )
    with extensions.extended(late), pytest.raises(NotExpressible, match=r"Late needs own\.domain 2, the model has 1"):
        rebuild(loaded, [region], {region.index: plan})
