"""Models for other runtimes than onnxruntime, with made-up latencies and with planted faults of these runtimes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest

from egraph_opt.backends import runner, runtime_timer, runtimes, session_process
from egraph_opt.backends.onnxruntime import make_session
from egraph_opt.backends.onnxruntime import run as run_session
from egraph_opt.cli import main
from egraph_opt.errors import BackendMissing, InputRejected, UsageError
from egraph_opt.evaluation import benchmark, check
from egraph_opt.extract import profiler
from egraph_opt.extract.profile import Measurement, devices
from egraph_opt.frontends.onnx_metadata import entry, metadata
from egraph_opt.pipeline import optimize
from egraph_opt.runtime.report import Report
from tests.pipeline.support import build, node, normal, upscaler

pytestmark = pytest.mark.skipif(bool(runtimes.problem("openvino")), reason="openvino is not installed")
FEEDS = {"x": normal(1, 4, 6, 6)}
# In the place of the first import of a process: in it OpenVINO crashes.
CRASH = (
    " import os; from egraph_opt.backends import openvino_runtime as o; o.OpenVino.load = lambda *a, **b: os.abort();"
    " from egraph_opt"
)


class Timer:
    """Milliseconds of whole models by runtime: of the original, and of others."""

    def __init__(self) -> None:
        self.milliseconds = {"onnxruntime": (10.0, 10.0), "openvino": (10.0, 10.0)}
        self.timed: list[list[str]] = []

    def time_models(self, models: Sequence[Any], *, rounds: int, **options: Any) -> list[list[float]]:
        self.timed.append([timed.runtime for timed in models])
        first = onnx.load(models[0].model).graph.node
        found = []
        for timed in models:
            same = [n.op_type for n in onnx.load(timed.model).graph.node] == [n.op_type for n in first]
            found.append([self.milliseconds[timed.runtime][0 if same else 1]] * rounds)
        return found


@pytest.fixture
def timer(monkeypatch: pytest.MonkeyPatch) -> Timer:
    """Steps are measured as if a ConvTranspose was slow. OpenVINO is the only other runtime."""
    state = Timer()
    problem = runtimes.problem

    def measure(self: Any, steps: Any, progress: Any) -> None:
        for signature, _ in steps:
            kernel = signature.startswith("kernel(")
            implementation = profiler.LIBRARY if not kernel else profiler.KERNEL if self.compiler else profiler.PORTABLE
            milliseconds = 100.0 if signature.startswith("ConvTranspose") else 1.0
            self.profile.add([Measurement(signature, implementation, (milliseconds,))])

    monkeypatch.setattr(runner.LocalRunner, "time_models", lambda self, models, **o: state.time_models(models, **o))
    monkeypatch.setattr(profiler.Profiler, "measure", measure)
    monkeypatch.setattr(runtimes, "problem", lambda name: "not here" if name == "torch" else problem(name))
    return state


def optimized(runtime: str, database: Path, model: onnx.ModelProto | None = None) -> Any:
    return optimize(model or upscaler(), threads=1, profile_db=database, runtime=runtime)


def right(result: Any) -> bool:
    expected = run_session(make_session(upscaler().SerializeToString(), threads=1, spin=False), FEEDS)
    found = run_session(result.session(), FEEDS)
    return bool(abs(found[0] - expected[0]).max() < 1e-4)


def test_the_fastest_runtime_wins_and_the_model_says_so(timer: Timer, tmp_path: Path, capsys) -> None:
    timer.milliseconds = {"onnxruntime": (10.0, 8.0), "openvino": (6.0, 4.0)}
    result = optimized("auto", tmp_path / "p")
    report = result.report
    assert report.runtime == result.runtime == entry(result.model, runtimes.KEY) == "openvino"
    assert report.latency.speedup.median == 2.5
    assert report.portable
    assert [n.op_type for n in result.model.graph.node] != [n.op_type for n in upscaler().graph.node]
    assert all(n.domain == "" for n in result.model.graph.node)
    assert result.library is None
    assert not [note for note in report.notes if "explanation" in note or "chain of rules" in note]
    assert type(result.session()).__name__ == "OpenVinoSession"
    assert right(result)
    # The original and its candidates in onnxruntime, the original and a plan in OpenVINO.
    (timed,) = timer.timed
    assert timed[0] == "onnxruntime"
    assert timed.count("openvino") == 2
    rows = {row.name: row for row in report.runtimes}
    assert rows["openvino"].original.speedup.median == pytest.approx(10 / 6)
    assert rows["openvino"].optimized.speedup.median == 2.5
    assert rows["onnxruntime"].original.speedup.median == 1.0
    assert rows["onnxruntime"].optimized.speedup.median == 1.25
    assert Report.from_dict(report.to_dict()) == report
    assert f"in openvino {runtimes.version('openvino')}, ms" in report.table()
    assert report.table().count("run by") == 1

    # The commands follow what the model says, or what they are told.
    original, path = tmp_path / "model.onnx", tmp_path / "model.opt.onnx"
    onnx.save(upscaler(), original)
    result.save(path)
    assert metadata(path, runtimes.KEY) == "openvino"
    assert check(original, path).equal
    asked: list[str] = []
    find = runtimes.find

    def sessions(name: str) -> Any:
        asked.append(name)
        return find(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtimes, "find", sessions)
        for options, expected in (
            ([], ["onnxruntime", "openvino"]),
            (["--runtime", "onnxruntime"], ["onnxruntime", "onnxruntime"]),
            (["--runtime", "openvino,onnxruntime"], ["openvino", "onnxruntime"]),
        ):
            asked.clear()
            assert main(["check", str(original), str(path), *options]) == 0
            assert asked[-2:] == expected
    assert main(["check", str(original), str(path), "--runtime", "tvm"]) == 2
    assert "unknown runtime 'tvm'" in capsys.readouterr().err
    assert main(["bench", str(original), str(path), "--rounds", "3", "--threads", "1"]) == 0
    assert main(["bench", str(path), "--runtime", "openvino,openvino"]) == 2
    capsys.readouterr()
    assert main(["bench", str(path), "--rounds", "3", "--threads", "1", "--runtime", "onnxruntime"]) == 0
    assert f"{path} in onnxruntime" in capsys.readouterr().out
    assert benchmark(path, threads=1, rounds=3).median > 0

    # For onnxruntime again, it says nothing any more.
    timer.milliseconds = {"onnxruntime": (10.0, 1.0), "openvino": (10.0, 10.0)}
    again = optimized("onnxruntime", tmp_path / "q", onnx.load(path))
    assert (again.runtime == "onnxruntime") == again.report.changed


def test_the_same_database_gives_the_same_bytes(timer: Timer, tmp_path: Path) -> None:
    timer.milliseconds = {"onnxruntime": (10.0, 8.0), "openvino": (6.0, 4.0)}
    first = optimized("auto", tmp_path / "p")
    timer.milliseconds = {"onnxruntime": (1.0, 1.0), "openvino": (10.0, 10.0)}
    second = optimized("auto", tmp_path / "p")
    assert second.model.SerializeToString(deterministic=True) == first.model.SerializeToString(deterministic=True)
    assert second.report.runtimes == first.report.runtimes
    assert len(timer.timed) == 1
    assert any("openvino" in device for device in devices(tmp_path / "p"))


def test_equal_models_in_two_runtimes_are_told_apart(timer: Timer, tmp_path: Path) -> None:
    timer.milliseconds = {"onnxruntime": (10.0, 8.0), "openvino": (6.0, 4.0)}
    for _ in range(2):  # timed, and from the database
        result = optimize(upscaler(), threads=1, profile_db=tmp_path / "p", runtime="auto", portable=True)
        found = {row.name: row.optimized.speedup.median for row in result.report.runtimes}
        assert found == {"onnxruntime": 1.25, "openvino": 2.5}


def test_one_runtime_alone(timer: Timer, tmp_path: Path) -> None:
    timer.milliseconds = {"onnxruntime": (10.0, 1.0), "openvino": (6.0, 4.0)}
    result = optimized("openvino", tmp_path / "p")
    assert result.runtime == "openvino"
    assert timer.timed == [["onnxruntime", "openvino", "openvino"]]
    assert right(result)
    # As it is, where its own plan is no better.
    timer.milliseconds["openvino"] = (6.0, 7.0)
    result = optimized("openvino", tmp_path / "q")
    assert result.runtime == "openvino"
    assert [n.op_type for n in result.model.graph.node] == [n.op_type for n in upscaler().graph.node]
    assert right(result)


@pytest.mark.parametrize("runtime", ["openvino", "auto"])
@pytest.mark.parametrize("milliseconds", [9.9])
def test_what_is_not_faster_than_the_original_in_onnxruntime_is_not_used(
    timer: Timer, tmp_path: Path, runtime: str, milliseconds: float
) -> None:
    timer.milliseconds["openvino"] = (milliseconds, milliseconds)
    result = optimized(runtime, tmp_path / "p")
    assert result.report.unchanged_because == "nothing faster was found"
    assert result.report.runtime == result.runtime == "onnxruntime"
    assert result.model == upscaler()


def test_a_tie_is_for_onnxruntime(timer: Timer, tmp_path: Path) -> None:
    timer.milliseconds = {"onnxruntime": (10.0, 5.0), "openvino": (4.95, 4.95)}
    assert optimized("auto", tmp_path / "p").runtime == "onnxruntime"


@pytest.fixture
def lying(monkeypatch: pytest.MonkeyPatch) -> Any:
    """OpenVINO gives wrong answers, from its ``first``-th session on."""

    class Liar:
        first, sessions = 0, 0

    state, opened, answered = Liar(), session_process.SessionProcess.open, session_process.SessionProcess.run

    def open_(self: Any, *arguments: Any, runtime: str = "onnxruntime", **options: Any) -> Any:
        state.sessions += runtime == "openvino"
        return opened(self, *arguments, runtime=runtime, **options)

    def run(self: Any, inputs: Any, **options: Any) -> Any:
        wrong = self._runtime == "openvino" and state.sessions > state.first
        return [value + 1 if wrong else value for value in answered(self, inputs, **options)]

    monkeypatch.setattr(session_process.SessionProcess, "open", open_)
    monkeypatch.setattr(session_process.SessionProcess, "run", run)
    return state


def test_a_runtime_that_answers_wrongly_is_refused(timer: Timer, lying: Any, tmp_path: Path) -> None:
    timer.milliseconds = {"onnxruntime": (10.0, 10.0), "openvino": (1.0, 1.0)}
    result = optimized("auto", tmp_path / "p")
    assert result.runtime == "onnxruntime"
    assert not any("openvino" in timed for timed in timer.timed)
    assert any(note.startswith("openvino takes no part: output y differs by") for note in result.report.notes)
    alone = optimized("openvino", tmp_path / "p")
    assert alone.report.unchanged_because == "openvino does not run it"


def test_a_plan_that_a_runtime_answers_wrongly_is_refused(timer: Timer, lying: Any, tmp_path: Path) -> None:
    lying.first = 1
    timer.milliseconds = {"onnxruntime": (10.0, 10.0), "openvino": (5.0, 1.0)}
    result = optimized("auto", tmp_path / "p")
    assert result.report.latency.speedup.median == 2.0
    assert [n.op_type for n in result.model.graph.node] == [n.op_type for n in upscaler().graph.node]
    assert any(note.startswith("openvino gets no plan for region 0: output y differs") for note in result.report.notes)


def test_a_model_that_a_runtime_cannot_load_is_no_candidate(timer: Timer, tmp_path: Path) -> None:
    nodes = [node("MatMul", "x w", "p"), node("Relu", "p", "r"), node("Det", "r", "y")]
    model = build(nodes, {"x": [3, 4]}, {"y": []}, {"w": normal(4, 3)})
    result = optimized("auto", tmp_path / "p", model)
    assert result.runtime == "onnxruntime"
    assert any(note.startswith("openvino takes no part") and "Det" in note for note in result.report.notes)


def test_a_model_outside_the_algebra_may_still_run_faster_elsewhere(timer: Timer, tmp_path: Path) -> None:
    timer.milliseconds["openvino"] = (5.0, 5.0)
    model = build([node("TopK", "x k", "v i")], {"x": [3, 40]}, {"v": [3, 2]}, {"k": [2]})
    assert optimized("auto", tmp_path / "p", model).runtime == "openvino"
    assert optimized("onnxruntime", tmp_path / "p", model).report.unchanged_because.startswith("no part of the model")


def test_a_crash_of_a_runtime_is_no_crash_of_the_run(timer: Timer, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(session_process, "_COMMAND", session_process._COMMAND.replace(" from egraph_opt", CRASH, 1))
    result = optimized("auto", tmp_path / "p")
    assert result.runtime == "onnxruntime"
    assert any("openvino takes no part: openvino crashes" in note for note in result.report.notes)


def test_a_crash_while_it_is_timed_drops_what_it_was_to_run(timer: Timer, tmp_path: Path, monkeypatch) -> None:
    timer.milliseconds["onnxruntime"] = (10.0, 5.0)
    known = timer.time_models

    def time_models(models: Any, **options: Any) -> Any:
        if any(timed.runtime == "openvino" for timed in models):
            setting = runtime_timer.Setting(threads=1)
            return runtime_timer.time_across(models, setting, rounds=options["rounds"], limits=options["limits"])
        return known(models, **options)

    monkeypatch.setattr(timer, "time_models", time_models)
    monkeypatch.setattr(runtime_timer, "_COMMAND", runtime_timer._COMMAND.replace(" from egraph_opt", CRASH, 1))
    result = optimized("auto", tmp_path / "p")
    assert result.runtime == "onnxruntime"
    assert result.report.latency.speedup.median == 2.0
    dropped = "a candidate was dropped: the process that timed models in openvino died (SIGABRT)"
    assert dropped in result.report.notes


def test_options_that_do_not_go_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    with pytest.raises(UsageError, match="chosen by its speed alone"):
        optimize(upscaler(), runtime="auto", cost="static")
    with pytest.raises(UsageError, match="for several lengths"):
        optimize(upscaler("N"), runtime="openvino", shapes={"N": [1, 2]})
    with pytest.raises(UsageError, match="unknown runtime 'tvm'"):
        optimize(upscaler(), runtime="tvm")
    monkeypatch.setattr(runtimes.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendMissing, match=r"pip install 'egraph-opt\[openvino\]'"):
        optimize(upscaler(), runtime="openvino")
    path = tmp_path / "model.onnx"
    onnx.save(upscaler(), path)
    for command in (["bench", str(path)], ["check", str(path), str(path)], ["optimize", str(path)]):
        assert main([*command, "--runtime", "openvino"]) == BackendMissing.exit_code
        assert "openvino is not installed: pip install 'egraph-opt[openvino]'" in capsys.readouterr().err


def test_a_model_for_an_unknown_runtime_is_refused(tmp_path: Path) -> None:
    model = upscaler()
    model.metadata_props.add(key=runtimes.KEY, value="abacus")
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    with pytest.raises((InputRejected, UsageError), match="abacus"):
        check(path, path)
