"""A few hundred cases of the fuzzer, always the same; and files on which it once found something.

``python -m tests.fuzz --seconds 3600`` runs it for as long as one likes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.fuzz.__main__ import Fuzzer
from tests.fuzz.mutate import mutated
from tests.fuzz.oracle import verdict
from tests.fuzz.seeds import MAKERS, convolutions, local, seeds
from tests.hostile.build import good
from tests.pipeline.support import build, drawn, node, normal

CASES = 240


@pytest.mark.parametrize("half", [0, 1])
def test_damaged_models(half: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", ":".join(path for path in sys.path if path))
    fuzzer = Fuzzer()
    fuzzer.judge([f"0 {number}" for number in range(half * CASES // 2, (half + 1) * CASES // 2)])
    assert fuzzer.findings == []
    assert sum(fuzzer.counts.values()) == CASES // 2
    assert fuzzer.counts["ok 0, changed"] > CASES // 10  # else it has lost its teeth
    assert fuzzer.counts["ok 3"] > CASES // 10


def test_cases_are_functions_of_their_numbers() -> None:
    assert mutated(3, 5) == mutated(3, 5)
    assert len({mutated(3, number)[1] for number in range(50)}) > 40
    assert {name for name, _ in seeds()} == set(MAKERS)


@pytest.mark.parametrize("name", MAKERS)
def test_seeds_are_valid(name: str, tmp_path: Path) -> None:
    assert verdict(MAKERS[name]().SerializeToString(), tmp_path)[0] in ("ok 0", "ok 0, changed")


def folded_reshapes() -> onnx.ModelProto:
    """Two buffers of weights that are reshapes of each other: neither was computed before the other."""
    model = drawn(2)
    mean = next(found for found in model.graph.node if found.op_type == "ReduceMean")
    mean.input[0] = "t9"
    return model


def doubled() -> onnx.ModelProto:
    """Forty sums of a sum and itself: a tree of 2 ** 40 operations."""
    nodes = [node("Add", f"t{i} t{i}", f"t{i + 1}") for i in range(40)]
    return build(nodes, {"t0": [2, 3]}, {"t40": [2, 3]})


def two_fields() -> onnx.ModelProto:
    model = good()
    model.graph.initializer[0].int32_data.append(3)
    return model


def output_twice() -> onnx.ModelProto:
    model = good()
    model.graph.output.append(model.graph.output[0])
    return model


def initializer_twice() -> onnx.ModelProto:
    model = good()
    model.graph.initializer.append(model.graph.initializer[0])
    return model


def input_twice() -> onnx.ModelProto:
    model = good(ir_version=3)
    for _ in range(2):
        model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3]))
    return model


def reversed_and_refused() -> onnx.ModelProto:
    """Unsorted, and with what onnx refuses."""
    model = two_fields()
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def other_versions() -> onnx.ModelProto:
    """Functions that import another version than the model."""
    model = local()
    model.opset_import[0].version = 9
    return model


def overflowing() -> onnx.ModelProto:
    """The float64 reference computes what is no number, silently."""
    model = convolutions()
    for tensor in model.graph.initializer:
        if tensor.name == "v":
            tensor.CopyFrom(numpy_helper.from_array(np.full((4, 4, 3, 3), np.nan, np.float32), "v"))
    return model


def times_zero() -> onnx.ModelProto:
    nodes = [node("Mul", "x zero", "a"), node("Neg", "a", "b"), node("Add", "b w", "y")]
    return build(nodes, {"x": [2, 4]}, {"y": None}, {"zero": np.float32(0), "w": normal(4)})


FOUND: tuple[Callable[[], onnx.ModelProto], ...] = (
    folded_reshapes, doubled, two_fields, output_twice, initializer_twice, input_twice, reversed_and_refused,
    other_versions, overflowing, times_zero,
)  # fmt: skip


@pytest.mark.parametrize("make", FOUND, ids=lambda make: make.__name__)
@pytest.mark.parametrize("portable", [False, True])
def test_what_was_found(make: Callable[[], onnx.ModelProto], portable: bool, tmp_path: Path) -> None:
    found, details = verdict(make().SerializeToString(), tmp_path, portable=portable)
    assert found.startswith("ok"), details
