"""Functions and operators that users register: what is refused, what they mean, and that nothing stays behind."""

import math
from fractions import Fraction

import numpy as np
import pytest

from egraph_opt.errors import EgraphOptError
from egraph_opt.extract.alternatives import signature
from egraph_opt.extract.roofline import Device, call_seconds
from egraph_opt.ir import extensions, interpreter, library, scalar
from egraph_opt.ir.interpreter import FloatArithmetic, ModularArithmetic
from egraph_opt.ir.library import LibraryOperator, OnnxOperator
from egraph_opt.ir.scalar import ScalarFunction
from egraph_opt.ir.terms import Apply, Call, Compute, Read, Source
from tests.pipeline.support import answers, build, node


def silu(**changes):
    given = {"keeps_zero": True, "definition": lambda f, x: f("mul", x, f("sigmoid", x)), **changes}
    return ScalarFunction("silu", 1, **given)


def scaled(**changes):
    """alpha * a @ b"""
    given = {
        "attributes": {"alpha": "float"},
        "shape": lambda a, b, alpha=1.0: (*a[:-1], b[-1]),
        "numpy": lambda a, b, *, arithmetic, alpha=1.0: arithmetic.apply(
            "mul", arithmetic.reduce_product(a, b), arithmetic.fill(Fraction(alpha), (*a.shape[:-1], b.shape[-1]))
        ),
        "flops": lambda a, b, alpha=1.0: 2 * math.prod(a) * b[-1],
        "onnx": OnnxOperator("FusedMatMul", "com.microsoft"),
        "exact": True,
        **changes,
    }
    return LibraryOperator("ScaledMatMul", 2, **given)


def test_a_definition_is_the_meaning_the_cost_and_the_exact_value():
    with extensions.extended(silu()):
        applied = scalar.lookup("silu")
        x = np.linspace(-5, 5, 11)
        np.testing.assert_allclose(applied(x), x / (1 + np.exp(-x)), rtol=1e-12)
        assert applied.cost == scalar.lookup("mul").cost + scalar.lookup("sigmoid").cost
        assert applied.keeps_zero
        assert applied.exact
        exact, values = ModularArithmetic(), np.arange(7)
        expected = exact.apply("mul", values, exact.apply("sigmoid", values))
        np.testing.assert_array_equal(exact.apply("silu", values), expected)
        assert not exact.apply("silu", np.zeros(1, dtype=np.int64)).any()


def test_parameters_and_exact_numbers_reach_the_definition():
    swish = ScalarFunction(
        "swish", 1, attributes=("beta",), definition=lambda f, x, beta: f("mul", x, f("sigmoid", f("mul", x, beta)))
    )
    third = ScalarFunction("third", 1, definition=lambda f, x: f("mul", x, Fraction(1, 3)))
    with extensions.extended(swish, third):
        np.testing.assert_allclose(scalar.lookup("swish:2.0")(np.array([1.0])), 1 / (1 + math.exp(-2)))
        exact = ModularArithmetic()
        np.testing.assert_array_equal(exact.apply("third", np.array([3, 6])), [1, 2])


def test_a_function_that_keeps_zero_only_in_floats_is_not_judged_exactly():
    expm1 = ScalarFunction("expm1", 1, keeps_zero=True, definition=lambda f, x: f("sub", f("exp", x), 1))
    with extensions.extended(expm1):
        assert not extensions.is_exact("expm1")
        assert not ModularArithmetic().apply("expm1", np.zeros(1, dtype=np.int64)).any()


def test_a_function_without_a_definition_is_not_judged_exactly():
    with extensions.extended(ScalarFunction("mish", 1, lambda x: x * np.tanh(np.logaddexp(x, 0)), True, 20, "Mish")):
        assert not extensions.is_exact("mish")
    assert extensions.is_exact("gelu")
    assert extensions.is_exact("MatMul")


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        (silu(definition=None, numpy=np.abs), "'silu': nothing computes it"),
        (silu(definition=None, onnx="Mish", cost=1), "it has no meaning; give numpy"),
        (silu(definition=None, numpy=np.abs, onnx="Mish"), "give its cost"),
        (silu(definition=lambda f, x: f("mul", x)), "mul takes 2 arguments, not 1"),
        (silu(definition=lambda f, x: f("mull", x, x)), "'silu': unknown scalar function 'mull'"),
        (silu(definition=lambda f, x: f("silu", x)), "unknown scalar function 'silu'"),
        (silu(definition=lambda f, x: x * x), "it raised TypeError"),
        (silu(definition=lambda f, x: x), "it does not return a result of f"),
        (silu(definition=lambda f, x: f("mul", x, math.inf)), "inf is neither an argument"),
        (silu(definition=lambda f, x: f("exp", x)), "its value at zero is another"),
        (silu(numpy=np.abs), "at (-6) numpy gives 6, but its definition -0.0148"),
        (ScalarFunction("relu", 1, definition=lambda f, x: f("max", x, 0)), "the built-in one of this name"),
        (ScalarFunction("a:b", 1, definition=lambda f, x: f("abs", x)), "a name is a letter followed by"),
        (ScalarFunction("three", 3, definition=lambda f, x, y, z: f("add", x, y)), "it takes 3 arguments"),
        (silu(onnx="Sigmoid"), "the ONNX operator Sigmoid is the function 'sigmoid' already"),
        (scaled(onnx=None), "'ScaledMatMul': nothing computes it"),
        (scaled(flops=None), "it has no cost"),
        (scaled(efficiency=0), "an efficiency of 0"),
        (scaled(attributes={"alpha": "double"}), "attribute alpha has the type 'double'"),
        (scaled(shape="(n, m)"), "shape is a function, not '(n, m)'"),
        ("silu", "is neither a ScalarFunction nor a LibraryOperator"),
    ],
)
def test_a_wrong_record_is_refused_with_its_name_and_nothing_stays(record, complaint):
    with pytest.raises(EgraphOptError) as caught:
        extensions.register(ScalarFunction("fine", 1, definition=lambda f, x: f("abs", x)), record)
    assert complaint in str(caught.value)
    assert extensions.registered() == ()


def test_the_same_record_twice_is_one_and_another_of_its_name_an_error():
    def read():
        return silu()

    with extensions.extended(read()):
        extensions.register(read())
        assert len(extensions.registered()) == 1
        with pytest.raises(EgraphOptError, match="'silu': another one of this name is registered"):
            extensions.register(silu(definition=lambda f, x: f("abs", x)))
        with pytest.raises(EgraphOptError, match="another one of this name"):
            extensions.register(silu(cost=3))


def test_extended_restores_what_was_there():
    with extensions.extended(silu()):
        with extensions.extended(scaled()):
            assert [record.name for record in extensions.registered()] == ["silu", "ScaledMatMul"]
            assert scalar.lookup("silu").function.name == "silu"
        assert [record.name for record in extensions.registered()] == ["silu"]
    with pytest.raises(EgraphOptError, match="unknown scalar function 'silu'"):
        scalar.lookup("silu")


def test_another_definition_is_another_kernel_and_another_measurement():
    def seen(record):
        with extensions.extended(record):
            step = Compute(Apply("silu", (Read(Source("x", (4,))),)))
            return signature(step), extensions.identity(step)

    one, other = seen(silu()), seen(silu(definition=lambda f, x: f("mul", x, f("hard_sigmoid:0.2,0.5", x))))
    assert one == seen(silu())
    assert one[0] != other[0]
    assert one[1] != other[1]
    step = Compute(Apply("relu", (Read(Source("x", (4,))),)))
    with extensions.extended(silu()):
        assert signature(step) == "kernel(4) relu(read(in0))"


def test_an_operator_has_extents_values_and_a_cost():
    a, b = np.arange(6.0).reshape(2, 3), np.arange(12.0).reshape(3, 4)
    call = Call("ScaledMatMul", "alpha=0.5", (Source("a", (2, 3)), Source("b", (3, 4))), (2, 4))
    with extensions.extended(scaled()):
        assert library.result_extents("ScaledMatMul", "alpha=0.5", (2, 3), (3, 4)) == (2, 4)
        np.testing.assert_allclose(interpreter.evaluate(Read(call), {"a": a, "b": b}), 0.5 * a @ b)
        exact = interpreter.evaluate(Read(call), {"a": a, "b": b}, ModularArithmetic())
        np.testing.assert_array_equal(exact * 2 % ModularArithmetic().prime, a @ b)
        small = call_seconds(Device(), "ScaledMatMul", "alpha=0.5", ((2, 3), (3, 4)), (2, 4))
        large = call_seconds(Device(), "ScaledMatMul", "", ((512, 512), (512, 512)), (512, 512))
        assert 0 < small < large
    with extensions.extended(scaled(seconds=lambda a, b, alpha=1.0: 1.5)):
        assert call_seconds(Device(call_seconds=0.5), "ScaledMatMul", "", ((2, 3), (3, 4)), (2, 4)) == 2.0


def test_plain_numpy_is_judged_in_floating_point_only():
    plain = scaled(numpy=lambda a, b, alpha=1.0: alpha * (a @ b), exact=False)
    values = [np.ones((2, 3)), np.ones((3, 4))]
    with extensions.extended(plain):
        found = library.evaluate("ScaledMatMul", {"alpha": "2"}, values, (2, 4), FloatArithmetic(np.float32))
        assert found.dtype == np.float32
        assert (found == 6).all()
        assert not extensions.is_exact("ScaledMatMul")
        with pytest.raises(EgraphOptError, match="ScaledMatMul has no exact meaning"):
            library.evaluate("ScaledMatMul", {}, values, (2, 4), ModularArithmetic())


@pytest.mark.parametrize(
    ("attributes", "arguments", "extents", "complaint"),
    [
        ("beta=1", ((2, 3), (3, 4)), (2, 4), "ScaledMatMul has no attribute 'beta'; known: alpha"),
        ("alpha=x", ((2, 3), (3, 4)), (2, 4), "attribute alpha of ScaledMatMul is no float: 'x'"),
        ("", ((2, 3),), (2, 4), "ScaledMatMul takes 2 arguments, not 1"),
        ("", ((), (3, 4)), (2, 4), "with the extents [2, 4]; they are [4]"),
        ("", ((2, 3), ()), (2, 4), "shape of ScaledMatMul([2, 3], []) raised IndexError"),
        ("", ((2, 3), (3, 4)), (4, 2), "with the extents [4, 2]; they are [2, 4]"),
    ],
)
def test_a_wrong_call_is_an_error_that_names_the_operator(attributes, arguments, extents, complaint):
    with extensions.extended(scaled()), pytest.raises(EgraphOptError) as caught:
        call_seconds(Device(), "ScaledMatMul", attributes, arguments, extents)
    assert complaint in str(caught.value)


def test_an_operator_that_nobody_registered_is_an_error_that_names_it():
    with pytest.raises(EgraphOptError, match="unknown library operator 'Frobnicate'; register a LibraryOperator"):
        call_seconds(Device(), "Frobnicate", "", ((2,),), (2,))


@pytest.mark.parametrize("cost", [math.nan, -1.0, math.inf])
def test_a_cost_that_is_no_cost_is_refused(cost):
    record = scaled(flops=lambda a, b, alpha=1.0: cost)
    with extensions.extended(record), pytest.raises(EgraphOptError, match="the cost of ScaledMatMul is"):
        call_seconds(Device(), "ScaledMatMul", "", ((2, 3), (3, 4)), (2, 4))


def test_built_in_operators_know_their_result():
    found = library.result_extents("Conv", "group=2;pads=1,1,1,1;strides=2,2", (1, 4, 7, 8), (6, 2, 3, 3))
    assert found == (1, 6, 4, 4)
    assert library.result_extents("ConvTranspose", "strides=2,2", (1, 4, 3, 3), (4, 5, 2, 2)) == (1, 5, 6, 6)
    assert library.result_extents("Gemm", "transA=1", (3, 2), (3, 4)) == (2, 4)
    assert library.result_extents("Concat", "axis=1", (2, 3), (2, 5)) == (2, 8)
    assert library.result_extents("ReduceSum", "axes=1;keepdims=0", (2, 3, 4)) == (2, 4)
    with pytest.raises(EgraphOptError, match=r"MatMul of extents \[2, 3\] and \[4, 5\]"):
        library.result_extents("MatMul", "", (2, 3), (4, 5))


@pytest.mark.parametrize("length", range(4, 12))
@pytest.mark.parametrize(("kernel", "stride", "pads"), [(3, 2, (0, 0)), (2, 3, (1, 1)), (3, 2, (1, 1)), (2, 2, (0, 1))])
def test_pooling_with_windows_left_over_is_what_onnxruntime_computes(length, kernel, stride, pads):
    x = np.random.default_rng(length).standard_normal((1, 2, length)).astype(np.float32)
    given = {"kernel_shape": [kernel], "strides": [stride], "pads": list(pads), "ceil_mode": 1}
    model = build([node("MaxPool", "x", "y", **given)], {"x": [1, 2, length]}, {"y": None})
    (expected,) = answers(model, {"x": x})
    text = library.format_attributes(**given)
    assert library.result_extents("MaxPool", text, x.shape) == expected.shape
    found = library.evaluate(
        "MaxPool", library.parse_attributes(text), [x], expected.shape, FloatArithmetic(np.float32)
    )
    np.testing.assert_array_equal(found, expected)
