"""Runtimes beside onnxruntime: same answers, same interface, clear refusals. Those not installed are skipped."""

import importlib.util
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest

from egraph_opt.backends import model_timer, runtime_timer, runtimes, session_process
from egraph_opt.backends.model_timer import TimedModel, time_each, time_models
from egraph_opt.backends.onnxruntime import input_specs, make_session, output_specs, random_inputs, run
from egraph_opt.backends.session_process import SessionProcess
from egraph_opt.errors import BackendMissing, EgraphOptError, InputRejected, LimitReached, UsageError
from egraph_opt.runtime.compare import compare_outputs
from tests.pipeline.support import INT64, band_attention, build, drawn, node, normal, upscaler

OTHERS = [
    pytest.param(name, marks=pytest.mark.skipif(bool(runtimes.problem(name)), reason=f"{name} is not installed"))
    for name in runtimes.NAMES
    if name != runtimes.DEFAULT
]
# In the place of the first import of a process: in it OpenVINO crashes.
CRASH = (
    " import os; from egraph_opt.backends import openvino_runtime as o; o.OpenVino.load = lambda *a, **b: os.abort();"
    " from egraph_opt"
)
openvino = pytest.mark.skipif(bool(runtimes.problem("openvino")), reason="openvino is not installed")


def odd() -> onnx.ModelProto:
    """Symbolic extents, an input that nobody reads, equal outputs, an output that is an input, integers, a scalar."""
    nodes = [
        node("Relu", "x", "a"),
        node("Identity", "a", "b"),
        node("Shape", "x", "shape"),
        node("ReduceMax", "x", "largest", keepdims=0),
        node("Cast", "x", "whole", to=INT64),
        node("Add", "a i", "sum"),
    ]
    pair = ["N", 3]
    outputs = {"b": pair, "a": pair, "shape": [2], "largest": [], "whole": pair, "sum": pair}
    inputs = {"x": pair, "unused": [2], "i": [3]}
    return build(nodes, inputs, outputs, elements={"shape": INT64, "whole": INT64})


def moves() -> onnx.ModelProto:
    """What moves elements, as exporters and our own plans write it."""
    nodes = [
        node("Transpose", "x", "t", perm=[0, 2, 3, 1]),
        node("Slice", "t starts ends axes steps", "s"),
        node("Pad", "s pads", "p"),
        node("Reshape", "p shape", "r"),
        node("Split", "r", "u v", axis=1),
        node("Concat", "v u", "c", axis=2),
        node("Gather", "c places", "g", axis=1),
        node("Unsqueeze", "g axis", "q"),
        node("Squeeze", "q axis", "w"),
        node("Expand", "w wide", "e"),
        node("Tile", "e twice", "y"),
        node("DepthToSpace", "x", "d", blocksize=2, mode="CRD"),
        node("Flatten", "d", "f", axis=2),
    ]
    weights = {
        "starts": np.array([5, 0]),
        "ends": np.array([-(2**40), 2**40]),
        "axes": np.array([2, 1]),
        "steps": np.array([-2, 3]),
        "pads": np.array([0, 0, 1, 0, 0, 0, 0, -1]),
        "shape": np.array([0, 4, -1]),
        "places": np.array([[1, 0], [-1, 1]]),
        "axis": np.array([1]),
        "wide": np.array([3, 1, 1, 1, 1]),
        "twice": np.array([1, 1, 1, 2, 1]),
    }
    return build(nodes, {"x": [1, 4, 6, 6]}, {"y": [3, 1, 2, 4, 12], "f": [1, 144]}, weights)


MODELS = {"odd": odd, "moves": moves, "upscaler": upscaler, "band": band_attention} | {
    f"drawn {seed}": lambda seed=seed: drawn(seed) for seed in range(12)
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("made", MODELS)
def test_other_runtimes_answer_as_onnxruntime(name: str, made: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(MODELS[made](), path)
    expected = make_session(path, threads=1, spin=False)
    for source in (path, path.read_bytes()):
        session = runtimes.find(name).load(source, threads=1)
        assert input_specs(session) == input_specs(expected)
        assert output_specs(session) == output_specs(expected)
        names = [spec.name for spec in output_specs(session)]
        for seed, length in ((0, 4), (1, 5)):  # twice, and with other extents where they are symbolic
            inputs = random_inputs(input_specs(expected), seed=seed, default_dimension=length)
            errors = compare_outputs(run(expected, inputs), run(session, inputs), names=names)
            assert not [error for error in errors if not error.within]
        (last,) = session.run([names[-1]], inputs)
        np.testing.assert_array_equal(last, run(session, inputs)[-1])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_torch_computes_every_operator_of_its_table_as_onnxruntime() -> None:
    """onnx's own cases; what torch is not given must be refused, by type or attribute, never computed otherwise."""
    pytest.importorskip("torch", reason="torch is not installed")
    from onnx.backend.test.case.node import collect_testcases

    from egraph_opt.backends import torch_operators

    covered: set[str] = set()
    for case in collect_testcases(None):
        model = case.model
        if model is None:
            continue
        operators = {n.op_type for n in model.graph.node}
        if not operators <= torch_operators.functions().keys():
            continue
        try:
            expected = make_session(model.SerializeToString(), threads=1, optimize=False, spin=False)
            values, _ = case.data_sets[0]
            inputs = {spec.name: value for spec, value in zip(input_specs(expected), values, strict=True)}
            right = run(expected, inputs)
        except (EgraphOptError, ValueError):  # onnxruntime does not have it
            continue
        try:
            session = runtimes.find("torch").load(model.SerializeToString(), threads=1)
            found = run(session, inputs)
        except InputRejected:
            continue
        names = [spec.name for spec in output_specs(expected)]
        assert not [e for e in compare_outputs(right, found, names=names) if not e.within], model.graph.name
        covered |= operators
    assert covered >= {
        "Conv",
        "ConvTranspose",
        "MaxPool",
        "Slice",
        "Pad",
        "Softmax",
        "Resize",
        "ReduceMean",
        "InstanceNormalization",
    }


@pytest.mark.parametrize("name", OTHERS)
def test_what_a_runtime_cannot_run_is_refused(name: str, tmp_path: Path) -> None:
    runtime = runtimes.find(name)
    with pytest.raises(InputRejected):
        runtime.load(b"garbage")
    with pytest.raises(InputRejected, match="Det"):
        runtime.load(build([node("Det", "x", "y")], {"x": [3, 3]}, {"y": []}).SerializeToString())
    model = upscaler().SerializeToString()
    with pytest.raises(InputRejected, match="runs no generated kernels"):
        runtime.load(model, kernel_library=tmp_path / "model.kernels.so")
    session = runtime.load(model, threads=1)
    with pytest.raises(InputRejected, match="'x' is missing"):
        session.run(None, {})
    with pytest.raises(InputRejected):
        run(session, {"x": normal(1, 5, 6, 6)})


@pytest.mark.parametrize("name", OTHERS)
def test_a_session_serves_several_threads(name: str) -> None:
    session = runtimes.find(name).load(upscaler().SerializeToString(), threads=1)
    inputs = [{"x": normal(1, 4, 6, 6, seed=seed)} for seed in range(4)]
    expected = [session.run(None, feed)[0] for feed in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            for right, found in zip(expected, pool.map(lambda feed: session.run(None, feed), inputs), strict=True):
                np.testing.assert_array_equal(found[0], right)


def test_names_and_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="unknown runtime 'tvm'; known: onnxruntime, openvino, torch"):
        runtimes.find("tvm")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendMissing, match=r"openvino is not installed: pip install 'egraph-opt\[openvino\]'"):
        runtimes.asked("openvino")
    assert runtimes.asked("auto") == ()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert runtimes.asked("auto") == ("openvino", "torch")
    assert runtimes.asked("onnxruntime") == ()


def test_every_other_runtime_is_an_extra() -> None:
    project = tomllib.loads(Path(__file__).parents[2].joinpath("pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for name in runtimes.NAMES:
        if name != runtimes.DEFAULT:
            assert any(requirement.startswith(runtimes.find(name).package) for requirement in extras[name])


@openvino
def test_openvino_sends_nothing_and_leaves_no_files(tmp_path: Path) -> None:
    """Importing it would create ~/intel and send a message, were its telemetry there."""
    path = tmp_path / "model.onnx"
    onnx.save(upscaler(), path)
    home = tmp_path / "home"
    home.mkdir()
    code = (
        "import sys; from egraph_opt.backends.runtimes import find; find('openvino').load(sys.argv[1]);"
        " assert sys.modules['openvino_telemetry'] is None"
    )
    paths = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": paths}
    subprocess.run([sys.executable, "-c", code, str(path)], env=environment, check=True, timeout=60)
    assert not list(home.rglob("*"))


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The processes that timing starts."""
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def remembered(*arguments, **options):
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(runtime_timer.subprocess, "Popen", remembered)
    yield started
    assert all(process.poll() is not None for process in started)


@openvino
def test_runtimes_take_turns_in_processes_of_their_own(save_model, processes) -> None:
    path = save_model(batch="N")
    models = [TimedModel(path), TimedModel(path, runtime="openvino"), TimedModel(path.read_bytes())]
    samples = time_models(models, rounds=4, threads=1, shapes={"N": [3]})
    assert [len(of_one) for of_one in samples] == [4, 4, 4]
    assert all(0 < sample < 1000 for of_one in samples for sample in of_one)
    assert len(processes) == 2
    make_session(path)


@openvino
def test_steps_are_timed_in_another_runtime(save_model, tmp_path: Path) -> None:
    path = save_model()
    det = build([node("Det", "x", "y")], {"x": [3, 3]}, {"y": []}).SerializeToString()
    models = [TimedModel(path, runtime="openvino"), TimedModel(det, runtime="openvino")]
    (samples, fine), (none, problem) = time_each(models, rounds=3, threads=1)
    assert len(samples) == 3
    assert not fine
    assert not none
    assert "Det" in problem


@openvino
def test_steps_that_another_runtime_computes_otherwise_are_not_timed(
    save_model, monkeypatch: pytest.MonkeyPatch
) -> None:
    lie = (
        " from egraph_opt.backends import openvino_runtime as o; honest = o.OpenVinoSession.run;"
        " o.OpenVinoSession.run = lambda self, *a: [v + (v.size > 1) for v in honest(self, *a)]; from egraph_opt"
    )
    monkeypatch.setattr(model_timer, "WORKER", model_timer.WORKER.replace(" from egraph_opt", lie, 1))
    ((samples, problem),) = time_each([TimedModel(save_model(), runtime="openvino")], rounds=3, threads=1)
    assert not samples
    assert "it does not compute what it should: it differs by" in problem


@openvino
def test_a_crash_and_a_limit_end_the_timing_of_several_runtimes(
    save_model, processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [TimedModel(save_model()), TimedModel(save_model(), runtime="openvino")]
    with pytest.raises(LimitReached, match="the time limit was reached"):
        time_models(models, timeout=0.01)
    with monkeypatch.context() as patch:
        patch.setattr(runtime_timer, "STAGE_SECONDS", 0.0)
        with pytest.raises(InputRejected, match="onnxruntime did not answer within 0 s"):
            time_models(models)
    monkeypatch.setattr(runtime_timer, "_COMMAND", runtime_timer._COMMAND.replace(" from egraph_opt", CRASH, 1))
    with pytest.raises(InputRejected, match=r"the process that timed models in openvino died \(SIGABRT\)"):
        time_models(models)


@openvino
def test_sessions_in_another_process_may_be_of_another_runtime(save_model, monkeypatch: pytest.MonkeyPatch) -> None:
    path, x = save_model(), {"x": normal(2, 4)}
    with SessionProcess() as sessions:
        opened = sessions.open(path, threads=1)
        expected = sessions.run(x)
        assert sessions.open(path, threads=1, runtime="openvino") == opened
        np.testing.assert_allclose(sessions.run(x)[0], expected[0], rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(session_process, "_COMMAND", session_process._COMMAND.replace(" from egraph_opt", CRASH, 1))
    with SessionProcess() as sessions:
        with pytest.raises(InputRejected, match=r"openvino crashes on .*model\.onnx \(SIGABRT\)"):
            sessions.open(path, threads=1, runtime="openvino")
        sessions.open(path, threads=1)
