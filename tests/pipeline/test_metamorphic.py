"""What a model is called and how it is written down does not matter: the answers and the plan found stay the same."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from egraph_opt.backends.onnxruntime import run
from egraph_opt.pipeline import optimize
from egraph_opt.runtime.compare import compare_outputs
from egraph_opt.runtime.report import Report
from tests.pipeline.drawn_models import drawing, models
from tests.pipeline.support import (
    answers,
    band_attention,
    build,
    chain_of_regions,
    drawn,
    node,
    normal,
    static,
    wrong,
)

Random = np.random.Generator
# Operators with their counts, and names of kernels, which are hashes of what they compute.
Written = tuple[Counter[str], tuple[str, ...]]
ALPHABET = ["a", "Z", "0", "/", "_", " ", "é", '"', "(", "r0s", "\n", "#1", "😀"]


def upsampling() -> onnx.ModelProto:
    """Convolutions, a transposed one, and two outputs that do not depend on each other."""
    nodes = [
        node("Conv", "x v", "a", pads=[1, 1, 1, 1]),
        node("Relu", "a", "b"),
        node("ConvTranspose", "b w", "c", strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Tanh", "c", "y"),
        node("Mul", "b b", "d"),
        node("ReduceMean", "d", "z", axes=[2, 3]),
    ]
    weights = {"v": normal(5, 4, 3, 3), "w": normal(5, 3, 4, 4)}
    return build(nodes, {"x": [1, 4, 6, 6]}, {"y": [1, 3, 12, 12], "z": [1, 5, 1, 1]}, weights)


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "upsampling": upsampling,
    "band attention": band_attention,
    "regions": lambda: chain_of_regions(3),
    "drawn 0": lambda: drawn(0),
    "drawn 3": lambda: drawn(3),
    "drawn 5": lambda: drawn(5),
}


def copy(model: onnx.ModelProto) -> onnx.ModelProto:
    duplicate = onnx.ModelProto()
    duplicate.CopyFrom(model)
    return duplicate


def renamed(model: onnx.ModelProto, random: Random) -> onnx.ModelProto:
    """All tensors and nodes but inputs and outputs under other names."""
    model = copy(model)
    kept = {value.name for value in (*model.graph.input, *model.graph.output)}
    names: dict[str, str] = {}

    def other(name: str) -> str:
        if not name or name in kept:
            return name
        if name not in names:
            letters = random.choice(ALPHABET, size=int(random.integers(0, 6)))
            names[name] = f"{''.join(letters)}{len(names)}"
        return names[name]

    for tensor in model.graph.initializer:
        tensor.name = other(tensor.name)
    for found in model.graph.node:
        found.name = other(f"node {len(names)}")
        found.input[:] = [other(name) for name in found.input]
        found.output[:] = [other(name) for name in found.output]
    del model.graph.value_info[:]
    return model


def shuffled(model: onnx.ModelProto, random: Random) -> onnx.ModelProto:
    """Nodes in another valid order, initializers in any."""
    model = copy(model)
    left, done = list(model.graph.node), {value.name for value in model.graph.input}
    done |= {tensor.name for tensor in model.graph.initializer}
    del model.graph.node[:]
    while left:
        ready = [found for found in left if done.issuperset(filter(None, found.input))]
        chosen = ready[int(random.integers(len(ready)))]
        left.remove(chosen)
        done.update(chosen.output)
        model.graph.node.append(chosen)
    tensors = [model.graph.initializer[int(i)] for i in random.permutation(len(model.graph.initializer))]
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)
    return model


def with_constants(model: onnx.ModelProto, random: Random) -> onnx.ModelProto:
    """Some initializers as Constant nodes."""
    model = copy(model)
    kept = []
    for tensor in list(model.graph.initializer):
        if random.random() < 0.5:
            model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
        else:
            kept.append(tensor)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


def with_copies(model: onnx.ModelProto, random: Random) -> onnx.ModelProto:
    """Some uses of initializers read a copy of their own."""
    model = copy(model)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for i, found in enumerate(model.graph.node):
        for at, name in enumerate(found.input):
            if name in tensors and random.random() < 0.5:
                model.graph.initializer.append(tensors[name])
                model.graph.initializer[-1].name = found.input[at] = f"{name} of {i}, {at}"
    return model


def with_identities(model: onnx.ModelProto, random: Random) -> onnx.ModelProto:
    """Identity nodes between tensors and some of their readers."""
    model = copy(model)
    nodes = []
    for i, found in enumerate(model.graph.node):
        for at, name in enumerate(found.input):
            if name and random.random() < 0.4:
                taken = len(model.graph.node) + len(nodes)
                nodes.append(helper.make_node("Identity", [name], [f"{name} for {i}, {at}, {taken}"]))
                found.input[at] = nodes[-1].output[0]
        nodes.append(found)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def other_outputs(model: onnx.ModelProto, random: Random) -> onnx.ModelProto:
    """Outputs in another order."""
    model = copy(model)
    outputs = [model.graph.output[int(i)] for i in random.permutation(len(model.graph.output))]
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    return model


CHANGES = (renamed, shuffled, with_constants, with_copies, with_identities, other_outputs)


def feeds(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {
        value.name: normal(*(dim.dim_value for dim in value.type.tensor_type.shape.dim), seed=i)
        for i, value in enumerate(model.graph.input)
    }


@cache
def plan_of(name: str, portable: bool) -> Written:
    """Operators and kernels of the optimized model."""
    return plan(MODELS[name](), portable)


def plan(model: onnx.ModelProto, portable: bool) -> Written:
    report = static(model, portable=portable).report
    assert report.changed
    return _plan(report)


def _plan(report: Report) -> Written:
    assert not report.reverted
    # In parts that are left alone they stay; onnxruntime takes them out.
    found = Counter(report.operators_after)
    for operator in ("Identity", "Constant"):
        found.pop(operator, None)
    return found, report.kernels


def check(name: str, changes: list[int], seed: int, portable: bool) -> None:
    random = np.random.default_rng(seed)
    original = model = MODELS[name]()
    for change in changes:
        model = CHANGES[change](model, random)
    onnx.checker.check_model(model)
    result = static(model, portable=portable)
    names = [value.name for value in original.graph.output]
    expected = dict(zip(names, answers(original, feeds(original)), strict=True))
    found = run(result.session(), feeds(original))
    order = [value.name for value in model.graph.output]
    assert all(error.within for error in compare_outputs([expected[n] for n in order], found))
    assert _plan(result.report) == plan_of(name, portable)


@drawing(10)
@given(
    st.sampled_from(sorted(MODELS)),
    st.lists(st.integers(0, len(CHANGES) - 1), min_size=1, max_size=3),
    st.integers(0, 9),
)
def test_the_way_of_writing_does_not_matter(name: str, changes: list[int], seed: int) -> None:
    check(name, changes, seed, portable=name != "band attention")  # which needs kernels


@pytest.mark.parametrize("change", range(len(CHANGES)), ids=[change.__name__ for change in CHANGES])
@pytest.mark.parametrize("portable", [False, True])
def test_each_way_of_writing(change: int, portable: bool) -> None:
    check("upsampling", [change], 1, portable)


@drawing(8)
@given(models(), st.lists(st.integers(0, len(CHANGES) - 1), min_size=1, max_size=3), st.integers(0, 9), st.booleans())
def test_the_way_of_writing_drawn_models_does_not_matter(
    original: onnx.ModelProto, changes: list[int], seed: int, portable: bool
) -> None:
    random = np.random.default_rng(seed)
    model = original
    for change in changes:
        model = CHANGES[change](model, random)
    onnx.checker.check_model(model)
    plans = [_plan(static(m, portable=portable).report) for m in (original, model)]
    assert plans[0] == plans[1]


def bare(model: onnx.ModelProto) -> bytes:
    """The content without its metadata."""
    model = copy(model)
    del model.metadata_props[:]
    return model.SerializeToString(deterministic=True)


def check_again(model: onnx.ModelProto, folder: Path, **options: Any) -> bool:
    """Optimize twice; the second time nothing changes. Tells whether the first time something did."""
    first = optimize(model, threads=1, **options)
    assert not wrong(model, first, feeds(model))
    first.save(folder / "model.onnx")
    second = optimize(folder / "model.onnx", threads=1, **options)
    assert not second.report.changed, (first.report.operators_after, second.report.operators_after)
    assert bare(second.model) == bare(first.model)
    assert second.library == first.library
    return first.report.changed


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_optimizing_again_changes_nothing(name: str, portable: bool, tmp_path: Path) -> None:
    check_again(MODELS[name](), tmp_path, cost="static", portable=portable)


@pytest.mark.usefixtures("home")
@drawing(10)
@given(models(), st.booleans())
def test_optimizing_drawn_models_again_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, model: onnx.ModelProto, portable: bool
) -> None:
    check_again(model, tmp_path_factory.mktemp("again"), cost="static", portable=portable)


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("portable", [False, True])
def test_optimizing_again_with_the_same_measurements_changes_nothing(portable: bool, tmp_path: Path) -> None:
    options = {"portable": portable, "profile_db": tmp_path / "profile.sqlite"}
    check_again(slow_exporter(), tmp_path, **options)


def slow_exporter() -> onnx.ModelProto:
    """What is much faster without its moves, however it is timed."""
    nodes = [
        node("Transpose", "x", "a", perm=[0, 2, 3, 1]),
        node("Tanh", "a", "b"),
        node("Transpose", "b", "c", perm=[0, 3, 1, 2]),
        node("Tile", "c repeats", "d"),
        node("Slice", "d begin end axes", "y"),
    ]
    weights = {"repeats": [1, 4, 1, 1], "begin": [64], "end": [128], "axes": [1]}
    return build(nodes, {"x": [1, 64, 96, 96]}, {"y": [1, 64, 96, 96]}, weights)


BYTES = """
import hashlib, sys
from egraph_opt import candidates, saturation
from egraph_opt.extract import profiler
from egraph_opt.pipeline import optimize
candidates.CHEAPER = 0.0
saturation.LARGE, profiler.MANY_KERNELS = 1, 1  # several jobs also where it saves nothing
for path in sys.argv[2:]:
    for portable in (False, True):
        result = optimize(path, cost="static", threads=1, portable=portable, jobs=int(sys.argv[1]))
        parts = [result.model.SerializeToString(deterministic=True), result.library or b""]
        print(result.report.changed, *(hashlib.sha256(part).hexdigest() for part in parts))
"""


def test_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    paths = []
    for name, make in MODELS.items():
        if name != "band attention":
            paths.append(tmp_path / f"{name}.onnx")
            onnx.save(make(), paths[-1])
    answers = set()
    for seed in (0, 1, 77):
        environment = os.environ | {"PYTHONHASHSEED": str(seed), "RAYON_NUM_THREADS": str(seed % 3 + 1)}
        words = [sys.executable, "-c", BYTES, str(seed % 3 + 1), *map(str, paths)]
        done = subprocess.run(words, env=environment, check=True, capture_output=True, text=True)
        assert done.stdout.count("True") == 2 * len(paths)
        answers.add(done.stdout)
    assert len(answers) == 1
