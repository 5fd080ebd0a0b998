"""Functions, operators and kernels that users add, from the model to the optimized model."""

from fractions import Fraction

import numpy as np
import onnx
import pytest

from egraph_opt.backends.environment import find_compiler
from egraph_opt.egraph.language import (
    BufferVar,
    ExtentsVar,
    TensorVar,
    TextVar,
    apply,
    becomes,
    call,
    each,
    equal,
    fill,
    holds,
    rule_group,
)
from egraph_opt.ir import extensions
from egraph_opt.ir.library import LibraryOperator, OnnxOperator
from egraph_opt.packs import Pack
from egraph_opt.pipeline import optimize
from tests.pipeline.support import MICROSOFT, QUICK_GELU, build, node, normal, static, wrong

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="kernels need a C compiler")


@pytest.fixture(autouse=True)
def nothing_stays():
    """Packs register what they bring for good; here only until the test ends."""
    with extensions.extended():
        yield


@rule_group("quick")
def quick(x: TensorVar):
    yield equal("quick", x * apply("sigmoid", x), apply("quick_gelu:1.0", x))


def gated():
    nodes = [node("MatMul", "x w", "p"), node("Sigmoid", "p", "s"), node("Mul", "p s", "y")]
    return build(nodes, {"x": [64, 128]}, {"y": [64, 96]}, {"w": normal(128, 96)})


VALUES, SQUASHED = {"x": normal(64, 128, seed=3)}, {"x": normal(256, 128, seed=3)}


def test_a_function_with_an_operator_is_written_where_there_are_no_kernels():
    result = static(gated(), portable=True, rules=(Pack("quick", (quick,), (QUICK_GELU,)),))
    assert result.report.operators_after == {"MatMul": 1, "QuickGelu": 1}
    assert [(entry.domain, entry.version) for entry in result.model.opset_import] == [("", 17), (MICROSOFT, 1)]
    assert not wrong(gated(), result, VALUES)


@needs_compiler
def test_a_function_is_computed_in_a_kernel():
    result = static(gated(), rules=(Pack("quick", (quick,), (QUICK_GELU,)),))
    assert result.report.operators_after == {"MatMul": 1}
    assert result.report.generated_kernels == 1
    assert not wrong(gated(), result, VALUES)


def test_a_node_of_another_domain_becomes_algebra():
    nodes = [
        node("Transpose", "x", "t", perm=[1, 0]),
        node("QuickGelu", "t", "q", MICROSOFT, alpha=1.5),
        node("Transpose", "q", "u", perm=[1, 0]),
        node("Relu", "u", "y"),
    ]
    model = build(nodes, {"x": [64, 128]}, {"y": [64, 128]}, domains=[MICROSOFT])
    assert static(model, portable=True).report.operators_after["Transpose"] == 2
    result = static(model, portable=True, rules=(Pack("quick", (), (QUICK_GELU,)),))
    assert "Transpose" not in result.report.operators_after
    assert not wrong(model, result, VALUES)


def kernel(factor):
    def made(x):
        from tvm import te

        source = te.placeholder(x, name="source")
        return [source, te.compute(x, lambda *i: factor * te.log(1 + te.exp(source[i])), name="y")]

    return made


def squashed(**changes):
    given = {
        "shape": lambda x: x,
        "numpy": lambda x: np.logaddexp(x, 0),
        "flops": lambda x: 1,
        "kernel": kernel(1.0),
        **changes,
    }
    return LibraryOperator("Squashed", 1, **given)


@rule_group("squashes")
def squashes(x: TensorVar):
    yield becomes("squashes", apply("softplus", x), call("Squashed", "", [x.compute()], x.extents).read())


def squashing():
    nodes = [node("MatMul", "x w", "p"), node("Softplus", "p", "y")]
    return build(nodes, {"x": [256, 128]}, {"y": [256, 96]}, {"w": normal(128, 96)})


def packed(record):
    return (Pack("squashes", (squashes,), operators=(record,)),)


@needs_compiler
def test_a_users_kernel_is_built_into_the_model_and_named_in_the_report(tmp_path):
    # So cheap that it is chosen, though a generated kernel could do the same.
    result = static(squashing(), rules=packed(squashed(seconds=lambda x: 0.0)))
    (name,) = result.report.kernels
    assert name.startswith("k_Squashed_")
    assert result.report.operators_after == {"MatMul": 1}
    assert not wrong(squashing(), result, SQUASHED)
    (path, *_) = result.save(tmp_path / "model.onnx")
    assert {n.op_type for n in onnx.load(path).graph.node} == {"MatMul", name}


@needs_compiler
def test_a_kernel_that_computes_something_else_is_not_used():
    result = static(squashing(), rules=packed(squashed(kernel=kernel(1.5), seconds=lambda x: 0.0)))
    assert not any(name.startswith("k_Squashed") for name in result.report.kernels)
    assert "the kernel of Squashed is not used" in result.report.table()
    assert not wrong(squashing(), result, SQUASHED)


@needs_compiler
def test_a_wrong_kernel_is_found_before_it_is_timed(tmp_path):
    result = optimize(
        squashing(),
        rules=packed(squashed(kernel=kernel(1.5), seconds=lambda x: 0.0)),
        threads=1,
        profile_db=tmp_path / "profile.sqlite",
    )
    assert any("the kernel of Squashed is not used: it does not compute" in note for note in result.report.notes)
    assert not any(name.startswith("k_Squashed") for name in result.report.kernels)


def test_a_kernel_is_no_part_of_a_portable_model():
    result = static(squashing(), portable=True, rules=packed(squashed(seconds=lambda x: 0.0)))
    assert result.report.operators_after == {"MatMul": 1, "Softplus": 1}


def wrong_extents(extents):
    return [(extents[::-1],)]


@pytest.mark.parametrize(
    ("operator", "extents", "complaint"),
    [("Squashed", wrong_extents, "a rule calls Squashed"), ("Tripled", lambda e: [(e,)], "unknown library operator")],
)
def test_a_rule_that_calls_nonsense_is_named_and_the_result_right(operator, extents, complaint):
    @rule_group("nonsense")
    def nonsense(x: TensorVar):
        called = call(operator, "", [x.compute()], each(extents, x.extents).extents(0))
        yield becomes("nonsense", apply("softplus", x), called.read(), given=[holds(lambda e: len(e) == 2, x.extents)])

    result = static(squashing(), rules=(Pack("nonsense", (nonsense,), operators=(squashed(),)),))
    assert complaint in result.report.table() or "nonsense" in result.report.table()
    assert not wrong(squashing(), result, SQUASHED)


def test_rules_over_operators_reach_added_ones():
    fused = LibraryOperator(
        "FusedMatMul",
        2,
        attributes={"alpha": "float"},
        shape=lambda a, b, alpha=1.0: (a[0], b[1]),
        numpy=lambda a, b, alpha=1.0: alpha * (a @ b),
        seconds=lambda a, b, alpha=1.0: 0.0,
        onnx=OnnxOperator("FusedMatMul", MICROSOFT),
    )

    @rule_group("scaled_products")
    def scaled_products(a: BufferVar, b: BufferVar, e: ExtentsVar, t: TextVar):
        f = each(lambda factor: [(f"alpha={float(Fraction(factor))}",)], t)
        product = call("MatMul", "", [a, b], e).read()
        yield becomes("scaled-product", product * fill(t, e), call("FusedMatMul", f.text(0), [a, b], e).read())

    model = build([node("Gemm", "x w", "y", alpha=0.5)], {"x": [64, 128]}, {"y": [64, 96]}, {"w": normal(128, 96)})
    result = static(model, rules=(Pack("products", (scaled_products,), operators=(fused,)),))
    assert result.report.operators_after == {"FusedMatMul": 1}
    assert result.report.kernels == ()
    np.testing.assert_array_equal(wrong(model, result, VALUES), [])
