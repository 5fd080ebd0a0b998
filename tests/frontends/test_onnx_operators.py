"""Every operator, with drawn attributes, against onnxruntime: its term, also written with standard operators."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper

from egraph_opt.frontends.onnx_context import FreshConstants
from egraph_opt.frontends.onnx_operators import OPERATORS, explain
from egraph_opt.frontends.onnx_reader import load
from egraph_opt.frontends.onnx_writer import rebuild
from egraph_opt.frontends.regions import partition
from egraph_opt.ir import interpreter
from egraph_opt.ir.terms import Apply, Read, Reduce, View
from tests.frontends.support import check_encoding, model_of, portable_plan, run

EXAMPLES = settings(max_examples=50, deadline=None)
OPSETS = st.sampled_from((8, 9, 10, 11, 12, 13, 17, 18, 21, 22))


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def single(op_type: str, inputs: dict, constants: dict | None = None, *, opset: int = 17, order=None, **attributes):
    """A model of one node whose inputs are the graph inputs and then the constants, or ``order``."""
    names = order or [*inputs, *(constants or {})]
    given = {key: value for key, value in attributes.items() if value is not None}
    return model_of([helper.make_node(op_type, names, ["y"], **given)], inputs, ["y"], constants, opset=opset)


@st.composite
def windows(draw, rank: int) -> dict[str, list[int]]:
    def many(low: int, high: int, count: int = rank) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=count, max_size=count))

    return {
        "size": many(1, 7),
        "kernel": many(1, 4),
        "strides": many(1, 3),
        "dilations": many(1, 3),
        "pads": many(0, 3, 2 * rank),
        "output_padding": many(0, 2),
    }


def runs(model) -> bool:
    """Whether onnxruntime takes the model: some drawn attributes have no meaning."""
    feeds = {
        i.name: np.zeros([d.dim_value for d in i.type.tensor_type.shape.dim], np.float32) for i in model.graph.input
    }
    try:
        return all(array.size for array in run(model, feeds).values())
    except Exception:
        return False


@given(st.data(), st.integers(1, 3), st.integers(1, 3), st.booleans(), OPSETS)
@EXAMPLES
def test_conv(data, rank, group, bias, opset):
    drawn = data.draw(windows(rank))
    auto_pad = data.draw(st.sampled_from((None, None, "SAME_UPPER", "SAME_LOWER", "VALID")))
    same = auto_pad in ("SAME_UPPER", "SAME_LOWER")
    constants = {"w": weights(group * 2, 3, *drawn["kernel"])} | ({"b": weights(group * 2)} if bias else {})
    model = single(
        "Conv",
        {"x": (2, group * 3, *drawn["size"])},
        constants,
        opset=opset,
        group=group,
        strides=drawn["strides"],
        dilations=None if same else drawn["dilations"],
        pads=None if auto_pad else drawn["pads"],
        auto_pad=auto_pad,
    )
    assume(runs(model))
    check_encoding(model, portable=False)


@given(st.data(), st.integers(1, 3), st.integers(1, 3), st.booleans())
@EXAMPLES
def test_conv_transpose(data, rank, group, bias):
    drawn = data.draw(windows(rank))
    kind = data.draw(st.sampled_from(("pads", "pads", "output_shape", "SAME_UPPER", "SAME_LOWER", "VALID")))
    full = [
        s * (n - 1) + (k - 1) * d + 1
        for n, k, s, d in zip(drawn["size"], drawn["kernel"], drawn["strides"], drawn["dilations"], strict=True)
    ]
    more = [min(p, s - 1) for p, s in zip(drawn["output_padding"], drawn["strides"], strict=True)]
    model = single(
        "ConvTranspose",
        {"x": (2, group * 3, *drawn["size"])},
        {"w": weights(group * 3, 2, *drawn["kernel"])} | ({"b": weights(group * 2)} if bias else {}),
        group=group,
        strides=drawn["strides"],
        dilations=drawn["dilations"],
        pads=drawn["pads"] if kind == "pads" else None,
        output_padding=more if kind == "pads" else None,
        output_shape=[max(1, n - p) for n, p in zip(full, drawn["pads"], strict=False)]
        if kind == "output_shape"
        else None,
        auto_pad=kind if kind.isupper() else None,
    )
    assume(runs(model))
    feasible = not kind.startswith("SAME") or all(
        n * s <= whole for n, s, whole in zip(drawn["size"], drawn["strides"], full, strict=True)
    )
    if kind == "output_shape":
        # onnx's own inference loses an axis for some of these; such a node is left alone.
        feasible = bool(partition(load(model)).regions)
    if feasible:
        check_encoding(model, portable=False)


@given(st.data(), st.sampled_from(("MaxPool", "AveragePool")), st.integers(1, 3), st.booleans(), OPSETS)
@EXAMPLES
def test_pools(data, op_type, rank, ceil, opset):
    drawn = data.draw(windows(rank))
    dilated = opset >= (10 if op_type == "MaxPool" else 19)
    model = single(
        op_type,
        {"x": (1, 2, *drawn["size"])},
        opset=opset,
        kernel_shape=drawn["kernel"],
        strides=drawn["strides"],
        dilations=drawn["dilations"] if dilated else None,
        pads=[min(p, k - 1) for p, k in zip(drawn["pads"], drawn["kernel"] * 2, strict=True)],
        ceil_mode=int(ceil) if opset >= 10 else None,
        count_include_pad=data.draw(st.integers(0, 1)) if op_type == "AveragePool" else None,
    )
    assume(runs(model))
    loaded = load(model)
    assume(partition(loaded).regions)  # windows that lie outside the tensor are left alone
    check_encoding(model, portable=False)


@pytest.mark.parametrize("op_type", ["GlobalAveragePool", "GlobalMaxPool"])
def test_global_pools(op_type):
    # The largest of NaN is onnxruntime's own business: pools are library calls, and no other operators can do them.
    check_encoding(single(op_type, {"x": (2, 3, 4, 5)}), portable=op_type != "GlobalMaxPool")


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((3, 4), (4, 5)),
        ((2, 3, 4), (4, 5)),
        ((3, 4), (2, 4, 5)),
        ((2, 1, 3, 4), (5, 4, 6)),
        ((4,), (4, 5)),
        ((2, 3, 4), (4,)),
        ((4,), (4,)),
        ((1, 3, 4), (2, 4, 1)),
    ],
)
def test_matmul(a, b):
    check_encoding(single("MatMul", {"a": a, "b": b}))


@given(st.booleans(), st.booleans(), st.sampled_from((None, (), (1,), (5,), (3, 1), (1, 5), (3, 5))), st.data(), OPSETS)
@EXAMPLES
def test_gemm(trans_a, trans_b, bias, data, opset):
    scale = st.sampled_from((None, 0.0, 0.5, 1.0, 0.1))
    if bias is None:
        assume(opset >= 11)
    model = single(
        "Gemm",
        {"a": (4, 3) if trans_a else (3, 4), "b": (5, 4) if trans_b else (4, 5)},
        None if bias is None else {"c": weights(*bias)},
        opset=opset,
        transA=int(trans_a),
        transB=int(trans_b),
        alpha=data.draw(scale),
        beta=data.draw(scale),
    )
    check_encoding(model)


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ij,jk->ik", [(3, 4), (4, 5)]),
        ("bhqd, bhkd -> bhqk", [(2, 3, 4, 5), (2, 3, 6, 5)]),
        ("ij,jk", [(3, 4), (4, 5)]),
        ("i,j->ij", [(3,), (4,)]),
        ("ij->ji", [(3, 4)]),
        ("ijk->j", [(3, 4, 2)]),
        ("ij,ij->", [(3, 4), (3, 4)]),
        ("bij,bj->bi", [(2, 3, 4), (2, 4)]),
    ],
)
def test_einsum(equation, shapes):
    check_encoding(single("Einsum", {f"x{i}": shape for i, shape in enumerate(shapes)}, equation=equation))


@given(st.sampled_from(("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin")), st.data(), st.integers(0, 1), OPSETS)
@EXAMPLES
def test_reductions(op_type, data, keep, opset):
    axes = data.draw(st.none() | st.lists(st.integers(-4, 3), min_size=1, max_size=4, unique_by=lambda axis: axis % 4))
    as_input = opset >= (13 if op_type == "ReduceSum" else 18)
    constants = {"axes": np.asarray(axes, dtype=np.int64)} if as_input and axes is not None else None
    given_axes = None if as_input else axes
    check_encoding(single(op_type, {"x": (2, 3, 1, 4)}, constants, opset=opset, axes=given_axes, keepdims=keep))


def test_reduction_of_no_axes():
    empty = {"axes": np.zeros(0, dtype=np.int64)}
    check_encoding(single("ReduceSum", {"x": (2, 3)}, empty, noop_with_empty_axes=1))
    check_encoding(single("ReduceSum", {"x": (2, 3)}, empty))


@pytest.mark.parametrize("opset", [8, 11, 13, 22])
@pytest.mark.parametrize("axis", [None, 0, 1, 2, -1, -2])
def test_softmax(opset, axis):
    if axis is not None and axis < 0 and opset < 11:
        axis += 3
    check_encoding(single("Softmax", {"x": (2, 3, 4)}, opset=opset, axis=axis))


def test_softmax_of_old_opsets_takes_the_axes_together():
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    model = single("Softmax", {"x": (2, 3, 4)}, opset=12, axis=1)
    np.testing.assert_allclose(run(model, {"x": x})["y"].sum(axis=(1, 2)), 1, rtol=1e-5)
    check_encoding(model)


@pytest.mark.parametrize("opset", [7, 9, 14, 17])
def test_batch_normalization(opset):
    constants = {"s": weights(3), "b": weights(3) + 1, "m": weights(3) * 2, "v": abs(weights(3)) + 0.5}
    check_encoding(single("BatchNormalization", {"x": (2, 3, 4)}, constants, opset=opset, epsilon=1e-3))


UNARY = {
    "Neg": {}, "Abs": {}, "Exp": {}, "Tanh": {}, "Sigmoid": {}, "Relu": {}, "Erf": {}, "Softplus": {}, "Identity": {},
    "Dropout": {}, "LeakyRelu": {"alpha": 0.3}, "Elu": {"alpha": 0.7}, "HardSigmoid": {"alpha": 0.3, "beta": 0.4},
    "HardSwish": {}, "Gelu": {},
}  # fmt: skip


@pytest.mark.parametrize("opset", [8, 12, 13, 17, 20, 22])
@pytest.mark.parametrize("op_type", UNARY)
def test_unary(op_type, opset):
    if opset < OPERATORS[op_type].since:
        pytest.skip("newer than the opset")
    check_encoding(single(op_type, {"x": (2, 3)}, opset=opset, **UNARY[op_type]))
    check_encoding(single(op_type, {"x": (2, 3)}, opset=opset))


@pytest.mark.parametrize("op_type", ["Sqrt", "Log", "Reciprocal"])
def test_unary_of_positive(op_type):
    nodes = [helper.make_node("Abs", ["x"], ["a"]), helper.make_node(op_type, ["a"], ["y"])]
    check_encoding(model_of(nodes, {"x": (2, 3)}, ["y"]))


@given(st.sampled_from(("Add", "Sub", "Mul", "Div", "Min", "Max", "Sum", "PRelu")), st.data(), OPSETS)
@EXAMPLES
def test_broadcasting(op_type, data, opset):
    def shape(rank: int) -> tuple[int, ...]:
        return tuple(data.draw(st.sampled_from((1, n))) for n in (2, 3, 4)[3 - rank :])

    left = (2, 3, 4) if op_type == "PRelu" else shape(data.draw(st.integers(0, 3)))
    model = single(op_type, {"a": left, "b": shape(data.draw(st.integers(0, 3)))}, opset=opset)
    check_encoding(model)


@pytest.mark.parametrize("op_type", ["Sum", "Min", "Max"])
@pytest.mark.parametrize("count", [1, 3])
def test_variadic(op_type, count):
    check_encoding(single(op_type, {f"x{i}": (2, 1) if i else (1, 3) for i in range(count)}))


@pytest.mark.parametrize("opset", [8, 10])
@pytest.mark.parametrize("limits", [{}, {"min": 0.0}, {"max": 0.5}, {"min": -0.5, "max": 0.5}])
def test_clip_by_attributes(limits, opset):
    check_encoding(single("Clip", {"x": (3, 4)}, opset=opset, **limits))


@pytest.mark.parametrize("opset", [11, 13, 22])
@pytest.mark.parametrize("limits", [(None, None), (0.0, None), (None, 0.5), (-0.5, 0.5)])
def test_clip_by_inputs(limits, opset):
    constants = {n: np.float32(v) for n, v in zip(("low", "high"), limits, strict=True) if v is not None}
    order = ["x", *(n if n in constants else "" for n in ("low", "high"))]
    check_encoding(single("Clip", {"x": (3, 4)}, constants, opset=opset, order=order))


@given(st.permutations(range(4)))
@EXAMPLES
def test_transpose(order):
    check_encoding(single("Transpose", {"x": (2, 3, 1, 4)}, perm=order))


@pytest.mark.parametrize("shape", [[24], [4, 6], [0, -1], [2, 0, 4, 1], [-1], [3, 2, 2, 2]])
def test_reshape(shape):
    check_encoding(single("Reshape", {"x": (2, 3, 4)}, {"shape": np.asarray(shape)}))


@pytest.mark.parametrize("opset", [8, 11, 13])
@pytest.mark.parametrize("axis", [0, 1, 3, -1])
def test_flatten(opset, axis):
    check_encoding(single("Flatten", {"x": (2, 3, 4)}, opset=opset, axis=axis % 3 if opset < 11 and axis < 0 else axis))


@pytest.mark.parametrize("opset", [11, 13])
@pytest.mark.parametrize(
    ("op_type", "axes"), [("Squeeze", None), ("Squeeze", [1]), ("Squeeze", [-1, 1]), ("Unsqueeze", [0, -1])]
)
def test_squeeze_and_unsqueeze(op_type, axes, opset):
    constants = {"axes": np.asarray(axes)} if opset >= 13 and axes is not None else None
    check_encoding(single(op_type, {"x": (2, 1, 3, 1)}, constants, opset=opset, axes=axes if opset < 13 else None))


@pytest.mark.parametrize("shape", [[2, 3, 4], [3, 1], [5, 1, 1, 1], [1]])
def test_expand(shape):
    check_encoding(single("Expand", {"x": (3, 1)} if len(shape) != 3 else {"x": (3, 4)}, {"shape": np.asarray(shape)}))


def test_tile():
    check_encoding(single("Tile", {"x": (2, 1, 3)}, {"repeats": np.asarray([2, 3, 1])}))


@given(st.data(), st.sampled_from((8, 9, 10, 13, 21)))
@EXAMPLES
def test_slice(data, opset):
    sizes = (5, 6, 7)
    axes = data.draw(st.lists(st.integers(-3, 2), min_size=1, max_size=3, unique_by=lambda axis: axis % 3))
    if opset < 10:
        axes = [axis % 3 for axis in axes]
    starts, ends, steps = [], [], []
    for _ in axes:
        starts.append(data.draw(st.integers(-9, 9)))
        steps.append(data.draw(st.sampled_from((1, 2, 3, -1, -2))) if opset >= 10 else 1)
        # onnxruntime reads the largest integers as "to the end" even when it walks backwards, numpy as "nothing".
        far = (2**31, 2**63 - 1) if steps[-1] > 0 else (-(2**31), -(2**63))
        ends.append(data.draw(st.integers(-9, 9) | st.sampled_from(far)))
    lists = {"starts": starts, "ends": ends, "axes": axes}
    if opset < 10:
        model = single("Slice", {"x": sizes}, opset=opset, **lists)
    else:
        model = single(
            "Slice", {"x": sizes}, {k: np.asarray(v) for k, v in {**lists, "steps": steps}.items()}, opset=opset
        )
    assume(runs(model))
    check_encoding(model)


@given(
    st.lists(st.integers(-1, 3), min_size=6, max_size=6),
    st.sampled_from((0.0, 1.5, -np.inf)),
    st.sampled_from((8, 11, 18)),
)
@EXAMPLES
def test_pad(pads, fill, opset):
    if opset < 11:
        model = single("Pad", {"x": (3, 4, 3)}, opset=opset, pads=pads, value=fill)
    else:
        constants = {"pads": np.asarray(pads), "value": np.float32(fill)}
        model = single("Pad", {"x": (3, 4, 3)}, constants, opset=opset)
    check_encoding(model)


def test_pad_of_some_axes():
    constants = {"pads": np.asarray([1, 2, 0, 3]), "value": np.float32(0), "axes": np.asarray([-1, 0])}
    check_encoding(single("Pad", {"x": (3, 4, 3)}, constants, opset=18))


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("sizes", [None, [1, 2, 3]])
def test_split(opset, sizes):
    attributes = {"axis": -1} | ({"num_outputs": 3} if opset >= 18 and sizes is None else {})
    constants = {}
    if sizes is not None and opset >= 13:
        constants = {"split": np.asarray(sizes)}
    elif sizes is not None:
        attributes["split"] = sizes
    node = helper.make_node("Split", ["x", *constants], ["a", "b", "c"], **attributes)
    check_encoding(model_of([node], {"x": (2, 6)}, ["a", "b", "c"], constants, opset=opset))


def test_uneven_split():
    node = helper.make_node("Split", ["x"], ["a", "b", "c"], num_outputs=3)
    check_encoding(model_of([node], {"x": (7, 2)}, ["a", "b", "c"], opset=18))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concat(axis):
    shapes = {"a": [2, 3, 4], "b": [2, 3, 4], "c": [2, 3, 4]}
    shapes["b"][axis] = 1
    check_encoding(single("Concat", shapes, axis=axis))


@pytest.mark.parametrize("index", [2, [0, 2, 4], [[0, 1], [2, 3], [4, 5]], [-1, -2], [[5]], [0, 0, 3, 3], [0, 3, 1, 4]])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather(index, axis):
    check_encoding(single("Gather", {"x": (6, 7, 8)}, {"index": np.asarray(index)}, axis=axis), portable=False)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(mode):
    check_encoding(single("DepthToSpace", {"x": (2, 12, 2, 3)}, blocksize=2, mode=mode))


def test_space_to_depth():
    check_encoding(single("SpaceToDepth", {"x": (2, 3, 4, 6)}, blocksize=2))


DECLINED = {
    "a dynamic shape": (single("Relu", {"x": ("n", 3)}), "static shape"),
    "an empty tensor": (single("Relu", {"x": (0, 3)}), "static shape"),
    "an irregular index": (single("Gather", {"x": (6, 3)}, {"i": np.asarray([[0, 1], [5, 2]])}), "quasi-affine"),
    "another padding": (single("Pad", {"x": (4, 3)}, {"p": np.asarray([4] * 4)}, mode="reflect"), "mode reflect"),
    "a computed condition": (single("Where", {"c": (3,), "a": (3,), "b": (3,)}), "not constant"),
    "an unknown operator": (single("LpNormalization", {"x": (3, 3)}), "outside the algebra"),
    "crossed limits": (single("Clip", {"x": (3,)}, {"l": np.float32(1), "h": np.float32(0)}), "cross"),
}  # fmt: skip


@pytest.mark.parametrize("case", DECLINED)
def test_what_is_outside_the_algebra_says_why(case):
    model, reason = DECLINED[case]
    assert reason in partition(load(model)).opaque[0]


def test_canonical_form_of_a_grouped_convolution():
    loaded = load(single("Conv", {"x": (1, 4, 5)}, {"w": weights(6, 2, 3)}, group=2, pads=[1, 1]))
    terms, _ = explain(loaded.nodes[0], loaded, FreshConstants(loaded.names))
    assert terms is not None
    term = terms["y"]
    assert isinstance(term, Reduce)
    product = term.tensor
    assert isinstance(product, Apply)
    assert product.function == "mul"
    data, weight = product.arguments
    assert isinstance(data, View)
    assert isinstance(weight, View)
    assert str(data.map) == "[1,4,5]->[1,6,5,2,3]: 0, i3+2*((i1)//3), i2+i4-1"
    assert str(weight.map) == "[6,2,3]->[1,6,5,2,3]: i1, i3, i4"
    assert isinstance(weight.tensor, Read)
    assert weight.tensor.buffer.constant


@pytest.mark.parametrize("sides", ["xy", "xc", "cy"])
def test_a_choice_keeps_what_is_not_a_number_infinities_and_the_signs_of_zeros(sides):
    special = np.asarray([np.nan, np.inf, -np.inf, -0.0, 0.0, 1.0], dtype=np.float32)
    condition = np.asarray([True, False]).repeat(6).reshape(2, 6)
    inputs = {"a": (2, 6), "b": (2, 6)}
    constants = {"p": condition, "c": np.stack([special[::-1], special])}
    first, second = ("a" if sides[0] == "x" else "c"), ("b" if sides[1] == "y" else "c")
    model = single("Where", inputs, constants, order=["p", first, second])
    feeds = {name: np.stack([special, special[::-1]]) for name in inputs}
    wanted = run(model, feeds)["y"]
    loaded = load(model)
    (region,) = partition(loaded).regions
    used = {source.name: feeds[source.name] for source in region.program.inputs}
    plan = portable_plan(region, loaded.opset)
    assert plan is not None
    portable = run(rebuild(loaded, (region,), {0: plan}), feeds)["y"]
    computed = interpreter.run_program(region.program, used)["y"]
    for found in (computed, portable):
        np.testing.assert_array_equal(found, wanted)
    # onnxruntime itself makes negative zeros positive.
    values = feeds | constants
    exact = np.where(condition, values[first], values[second])
    numbers = ~np.isnan(exact)
    np.testing.assert_array_equal(np.signbit(computed[numbers]), np.signbit(exact[numbers]))
