"""What the reader accepts, and how it rejects what is broken: one line that names what is wrong."""

import contextlib
import itertools
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from egraph_opt.errors import EgraphOptError, InputRejected
from egraph_opt.frontends.onnx_reader import load
from egraph_opt.frontends.regions import partition
from tests.frontends.support import model_of, value

RELU = helper.make_node("Relu", ["x"], ["y"], name="activation")


def simple() -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Relu", ["p"], ["y"])]
    return model_of(nodes, {"x": (2, 3)}, ["y"], {"w": np.ones((3, 4), np.float32)})


def rejected(source: object, *words: str) -> None:
    with pytest.raises(InputRejected) as caught:
        load(source)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) <= 600
    for word in words:
        assert word in message


def test_types_and_constants():
    loaded = load(simple())
    assert loaded.type_of("p").shape == (2, 4)
    assert loaded.opset == 17
    assert set(loaded.constants) == {"w"}


def test_the_proto_given_is_left_alone():
    model = simple()
    model.graph.node.reverse()
    before = model.SerializeToString()
    load(model)
    assert model.SerializeToString() == before


def test_unsorted_nodes_are_sorted_as_onnxruntime_does():
    model = simple()
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    assert [node.op_type for node in load(model).nodes] == ["MatMul", "Relu"]


def test_wrong_declared_shapes_are_ignored():
    model = simple()
    model.graph.value_info.append(value("p", (7, 7)))
    model.graph.output[0].CopyFrom(value("y", (9, 9)))
    assert load(model).type_of("p").shape == (2, 4)
    assert load(model).type_of("y").shape == (2, 4)


def test_negative_and_symbolic_dimensions_are_unknown():
    for dim in (-1, "n"):
        loaded = load(model_of([RELU], {"x": (dim, 3)}, ["y"]))
        assert loaded.type_of("x").shape is None
        assert partition(loaded).regions == ()


def test_overridable_initializers_are_not_constant():
    model = simple()
    model.graph.input.append(value("w", (3, 4)))
    assert "w" not in load(model).constants
    model.ir_version = 3  # where every initializer is an input and none can be overridden
    assert "w" in load(model).constants


def test_version_3_without_weights_among_the_inputs():
    model = simple()
    model.ir_version = 3
    assert "w" in load(model).constants


def test_files_that_are_no_models(tmp_path: Path):
    path = tmp_path / "model.onnx"
    rejected(path, "model.onnx", "No such file")
    rejected(tmp_path, "not a regular file")
    path.write_bytes(b"")
    rejected(path, "empty")
    path.write_bytes(b"this is no protocol buffer" * 9)
    rejected(path, "not an ONNX model")
    path.write_bytes(simple().SerializeToString()[:-20])
    rejected(path)
    os.mkfifo(tmp_path / "pipe")
    rejected(tmp_path / "pipe", "not a regular file")
    rejected(b"", "empty")
    rejected(onnx.ModelProto(), "no graph")
    rejected("\0", "cannot read")


def test_undefined_and_duplicate_names():
    rejected(
        model_of([helper.make_node("Relu", ["nowhere"], ["y"], name="lost")], {"x": (2,)}, ["y"]), "nowhere", "lost"
    )
    rejected(model_of([RELU, RELU], {"x": (2,)}, ["y"]), "'y'", "twice")
    rejected(model_of([RELU], {"x": (2,)}, ["z"]), "graph output 'z'")
    assert len(load(model_of([RELU], {"x": (2,)}, ["y", "y"])).graph.output) == 2  # as onnxruntime does
    model = simple()
    model.graph.initializer.append(model.graph.initializer[0])
    rejected(model, "initializer 'w'", "2 times")
    shadow = helper.make_node("Relu", ["x"], ["x"])
    rejected(model_of([shadow], {"x": (2,)}, ["x"]), "'x'", "twice")


def test_cycles():
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    rejected(model_of(nodes, {"x": (2,)}, ["b"]), "cycle")


def test_broken_initializers():
    model = simple()
    model.graph.initializer[0].dims[0] = -3
    rejected(model, "'w'", "negative")
    model.graph.initializer[0].dims[0] = 1 << 62
    rejected(model, "'w'", "too many")
    model.graph.initializer[0].dims[0] = 5
    rejected(model, " w")
    model.graph.initializer[0].dims[0] = 3
    model.graph.initializer[0].data_type = 99
    rejected(model, "'w'", "99")


def test_bad_versions_attributes_and_operators():
    rejected(model_of([RELU], {"x": (2,)}, ["y"], opset=9999), "opset 9999")
    rejected(model_of([RELU], {"x": (2,)}, ["y"], ir_version=9999))
    rejected(model_of([helper.make_node("Softmax", ["x"], ["y"], axis="last")], {"x": (2,)}, ["y"]), "axis")
    rejected(model_of([helper.make_node("NoSuchOperator", ["x"], ["y"])], {"x": (2,)}, ["y"]), "NoSuchOperator")
    rejected(model_of([helper.make_node("Relu", ["x", "x"], ["y"])], {"x": (2,)}, ["y"]), "Relu")


def test_hostile_names_stay_on_one_line():
    name = "evil\n\x1b[31mname\u202e" + "x" * 5000
    rejected(model_of([helper.make_node("Relu", [name], ["y"])], {"x": (2,)}, ["y"]), "evil")


@pytest.mark.parametrize("equation", ["ii\x02->i", "i......->i", "i.->i", "ij-", "1->1", "i->j->k"])
def test_equations_that_hang_shape_inference(equation):
    node = helper.make_node("Einsum", ["x"], ["y"], name="sum", equation=equation)
    rejected(model_of([node], {"x": (3, 3)}, ["y"]), "bad equation", "sum")


def test_texts_that_are_not_utf_8():
    content = model_of([RELU], {"x": (2,)}, ["y"]).SerializeToString()
    for text in (b"activation", b"graph", b"Relu"):
        rejected(content.replace(text, b"\xff" * len(text)), "UTF-8")


def test_unknown_domains_pass():
    node = helper.make_node("Anything", ["x"], ["y"], domain="some.where")
    loaded = load(model_of([node], {"x": (2,)}, ["y"], domains=["some.where"]))
    assert partition(loaded).opaque == {0: "it is not a standard operator"}


def test_a_local_function_hides_the_standard_operator():
    model = model_of([RELU], {"x": (2,)}, ["y"])
    body = [helper.make_node("Neg", ["a"], ["b"])]
    model.functions.append(helper.make_function("", "Relu", ["a"], ["b"], body, [helper.make_opsetid("", 17)]))
    try:
        loaded = load(model)
    except InputRejected:
        return
    assert partition(loaded).regions == ()


def external(folder: Path, **entries: str) -> Path:
    """A model whose weight lies in ``weights.bin`` unless ``entries`` say otherwise."""
    model = simple()
    tensor = model.graph.initializer[0]
    (folder / "weights.bin").write_bytes(b"\0" * 16 + np.arange(12, dtype=np.float32).tobytes())
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in ({"location": "weights.bin", "offset": "16", "length": "48"} | entries).items():
        if text:
            tensor.external_data.add(key=key, value=text)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_external_data(tmp_path: Path):
    for entries in ({}, {"length": ""}):
        loaded = load(external(tmp_path, **entries))
        assert loaded.constants["w"].ravel().tolist() == list(range(12))
    rejected(external(tmp_path).read_bytes(), "another file")


@pytest.mark.parametrize(
    "entries",
    [
        {"location": "../weights.bin"},
        {"location": "/etc/hostname"},
        {"location": "sub/../../weights.bin"},
        {"location": ""},
        {"location": "link.bin"},
        {"location": "linked/secret.bin"},
        {"location": "missing.bin"},
        {"location": "pipe"},
        {"location": "."},
        {"location": "we\0ights.bin"},
        {"offset": "-1"},
        {"offset": "17"},
        {"offset": "x"},
        {"length": "1000000000000"},
        {"length": "-48"},
        {"length": "40"},
    ],
)
def test_external_data_that_is_refused(tmp_path: Path, entries: dict[str, str]):
    outside, folder = tmp_path / "outside", tmp_path / "model"
    outside.mkdir()
    folder.mkdir()
    for place in (outside / "secret.bin", tmp_path / "weights.bin"):
        place.write_bytes(b"\0" * 64)
    (folder / "link.bin").symlink_to(outside / "secret.bin")
    (folder / "linked").symlink_to(outside)
    os.mkfifo(folder / "pipe")
    rejected(external(folder, **entries), "w")


def test_external_data_through_a_link_to_the_model(tmp_path: Path):
    folder = tmp_path / "real"
    folder.mkdir()
    external(folder)
    (tmp_path / "linked").symlink_to(folder)
    assert "w" in load(tmp_path / "linked" / "model.onnx").constants


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_damaged_bytes_never_crash(data):
    content = bytearray(simple().SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(1, len(content)))
    with contextlib.suppress(InputRejected):
        partition(load(bytes(content[:cut])))


def test_deep_subgraphs():
    inner = helper.make_graph([helper.make_node("Identity", ["x"], ["z"])], "inner", [], [value("z", None)])
    for depth in range(8):
        node = helper.make_node("If", ["c"], [f"z{depth}"], then_branch=inner, else_branch=inner)
        inner = helper.make_graph([node], "inner", [], [value(f"z{depth}", None)])
    node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    model = model_of([node], {"x": (2,)}, ["y"], {"c": np.asarray(True)})
    assert set(load(model).uses(0)) == {"c", "x"}


def test_subgraphs_too_deep_for_the_parser():
    inner = b""
    for _ in range(300):  # node { attribute { type: GRAPH, g { … } } }, written by hand
        attribute = b"\x32" + varint(len(inner)) + inner + b"\xa0\x01\x05"
        node = b"\x2a" + varint(len(attribute)) + attribute
        inner = b"\x0a" + varint(len(node)) + node
    rejected(b"\x08\x08\x3a" + varint(len(inner)) + inner)


def varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number % 128 | 128]) + varint(number // 128)


def test_a_long_chain_is_quick():
    count = 20_000
    names = ["x", *(f"t{i}" for i in range(count - 1)), "y"]
    nodes = [helper.make_node("Relu", [a], [b]) for a, b in itertools.pairwise(names)]
    parts = partition(load(model_of(nodes, {"x": (2, 3)}, ["y"])))
    assert len(parts.regions) == 1
    assert len(parts.regions[0].nodes) == count


def test_string_and_sparse_initializers_are_left_alone():
    model = simple()
    model.graph.initializer.append(helper.make_tensor("words", TensorProto.STRING, [1], [b"a"]))
    values = numpy_helper.from_array(np.ones(1, np.float32), "sparse")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "indices")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3]))
    assert set(load(model).constants) == {"w"}


def test_a_huge_declared_shape_is_no_trouble():
    loaded = load(model_of([RELU], {"x": (2**40, 2**40)}, ["y"]))
    assert partition(loaded).regions == ()


def test_errors_have_the_exit_code():
    assert issubclass(InputRejected, EgraphOptError)
    assert InputRejected.exit_code == 3
