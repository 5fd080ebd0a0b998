"""At a limit less is tried; what hangs or grows is ended from outside, and the model remains as it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from egraph_opt import contest, explanation, exploration, limits, measuring, pipeline
from egraph_opt.backends import session_process
from egraph_opt.backends.session_process import SessionProcess
from egraph_opt.cli.arguments import byte_count
from egraph_opt.egraph.saturate import Budget
from egraph_opt.errors import InputRejected, LimitReached, UsageError
from egraph_opt.explanation import Origins
from egraph_opt.frontends import onnx_reader
from egraph_opt.frontends.onnx_reader import load
from egraph_opt.frontends.regions import partition
from egraph_opt.limits import OUT_OF_MEMORY, OUT_OF_TIME, Limits, held_by
from egraph_opt.packs import select
from egraph_opt.pipeline import optimize
from egraph_opt.saturation import Saturator
from tests.pipeline.support import build, node, normal, static

MIB = 1 << 20


def dense() -> onnx.ModelProto:
    nodes = [node("MatMul", "x w", "p"), node("Relu", "p", "r"), node("MatMul", "r w", "q"), node("Add", "q b", "y")]
    return build(nodes, {"x": [4, 8]}, {"y": [4, 8]}, {"w": normal(8, 8), "b": normal(8)})


def sums(count: int) -> onnx.ModelProto:
    """A sum of products that can be associated in any order: its e-graph would grow for minutes."""
    nodes = [node("MatMul", f"x w{i}", f"p{i}") for i in range(count)]
    nodes += [node("Add", f"{'p0' if i == 1 else f's{i - 1}'} p{i}", f"s{i}") for i in range(1, count)]
    weights = {f"w{i}": normal(16, 16, seed=i) for i in range(count)}
    return build(nodes, {"x": [16, 16]}, {f"s{count - 1}": [16, 16]}, weights)


class Peak:
    """The most bytes that a process and its descendants held inside the block."""

    def __init__(self, process: int) -> None:
        self.process = process
        self.bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.bytes = max(self.bytes, held_by(self.process))


def supervised(
    folder: Path, *words: str, run: str | None = None, file: str = "m.onnx"
) -> tuple[subprocess.CompletedProcess[str], int]:
    """The command line on a model in a folder, with another program in the place of the run; and its peak of memory."""
    program = (
        "import sys; from egraph_opt.cli import supervisor\n"
        f"if {run!r} is not None: real, supervisor._RUN = supervisor._RUN, supervisor._START + {run!r}\n"
        "else: real = None\n"
        "once = supervisor._run\n"
        "def ran(program, words, *rest, **options):\n"
        "    keep = real is not None and any(word.startswith('--keep') for word in words)\n"
        "    return once(real if keep else program, words, *rest, **options)\n"
        "supervisor._run = ran\n"
        "sys.exit(supervisor.supervised(sys.argv[1:]))"
    )
    (folder / "tmp").mkdir(exist_ok=True)
    environment = os.environ | {"HOME": str(folder), "TMPDIR": str(folder / "tmp")}
    environment["PYTHONPATH"] = os.pathsep.join([os.getcwd(), *sys.path])
    arguments = [sys.executable, "-c", program, "optimize", file, "-o", "o.onnx", "--threads", "1", *words]
    process = subprocess.Popen(
        arguments, cwd=folder, env=environment, start_new_session=True, stdout=-1, stderr=-1, text=True
    )
    with Peak(process.pid) as peak:
        out, err = process.communicate(timeout=300)
    with pytest.raises(ProcessLookupError):  # nothing is left of it
        os.killpg(process.pid, 0)
    assert list((folder / "tmp").iterdir()) == []
    return subprocess.CompletedProcess(arguments, process.returncode, out, err), peak.bytes


HANG = "import time\ntime.sleep(1000)"
HOG = "found = []\nwhile True: found.append(bytearray(b'x' * 2**22)); import time; time.sleep(0.005)"


def test_a_run_that_hangs_leaves_the_model_as_it_is(tmp_path: Path) -> None:
    onnx.save(dense(), tmp_path / "m.onnx")
    done, _ = supervised(tmp_path, "--time-limit", "1", run=HANG)
    assert done.returncode == 0, done.stderr
    assert "kept unchanged: the time limit was reached" in done.stdout
    assert onnx.load(tmp_path / "o.onnx") == dense()


def test_a_run_that_grows_leaves_the_model_as_it_is(tmp_path: Path) -> None:
    onnx.save(dense(), tmp_path / "m.onnx")
    done, peak = supervised(tmp_path, "--memory-limit", "500M", run=HOG)
    assert done.returncode == 0, done.stderr
    assert "kept unchanged: the memory limit was reached" in done.stdout
    assert onnx.load(tmp_path / "o.onnx") == dense()
    assert 300 * MIB < peak <= 1.2 * 500 * MIB


def test_where_not_even_a_copy_is_possible(tmp_path: Path) -> None:
    onnx.save(dense(), tmp_path / "m.onnx")
    done, _ = supervised(tmp_path, "--memory-limit", "20M")
    assert (done.returncode, done.stderr.count("\n")) == (5, 1)
    assert "the memory limit was reached" in done.stderr
    assert not (tmp_path / "o.onnx").exists()


def test_a_bad_model_is_refused_although_the_run_hangs(tmp_path: Path) -> None:
    onnx.save(build([node("Nonsense", "x", "y")], {"x": [1]}, {"y": [1]}), tmp_path / "m.onnx")
    done, _ = supervised(tmp_path, "--time-limit", "1", run=HANG)
    assert done.returncode == 3, done.stderr
    assert "does not load in onnxruntime" in done.stderr
    assert not (tmp_path / "o.onnx").exists()


def test_what_is_being_written_is_written(tmp_path: Path) -> None:
    """The limit passes after the run said that it writes."""
    onnx.save(dense(), tmp_path / "m.onnx")
    slow = (
        "import sys, time; from pathlib import Path\n"
        "Path(next(w for w in sys.argv if w.startswith('--announce=')).partition('=')[2]).touch()\n"
        "time.sleep(4); Path('o.onnx').write_text('done'); print('done')"
    )
    done, _ = supervised(tmp_path, "--time-limit", "1", run=slow)
    assert (done.returncode, done.stdout) == (0, "done\n")


def test_a_model_that_would_be_saturated_for_minutes(tmp_path: Path) -> None:
    onnx.save(sums(20), tmp_path / "m.onnx")
    done, _ = supervised(tmp_path, "--time-limit", "5", "--memory-limit", "2G", "--cost", "static")
    assert done.returncode == 0, done.stderr
    onnx.checker.check_model(tmp_path / "o.onnx")


def test_a_worker_is_ended_at_the_limits_of_the_run() -> None:
    (region,) = partition(load(sums(8))).regions
    for whole, reason in ((Limits(memory=1), OUT_OF_MEMORY), (Limits(time.monotonic() + 0.3), OUT_OF_TIME)):
        with Saturator(select(""), isolated=True, whole=whole) as saturator, pytest.raises(LimitReached, match=reason):
            saturator.saturate(region.program, Budget())


def test_an_e_graph_stops_growing_before_the_worker_is_ended() -> None:
    (region,) = partition(load(sums(8))).regions
    with Saturator(select(""), isolated=True) as saturator:
        found = saturator.saturate(region.program, Budget(memory=1))
    assert found.saturation.stop == "memory"
    assert len(found.saturation.rounds) == 1


@pytest.mark.parametrize("share", ["READING_SHARE", "MEASURING_SHARE", "BUILDING_SHARE"])
def test_every_phase_ends(share: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in (pipeline, exploration, measuring, contest):
        if hasattr(module, share):
            monkeypatch.setattr(module, share, 0.0)
    result = optimize(dense(), time_limit=1000.0, threads=1, profile_db=tmp_path / "p.sqlite", cost="static")
    if share == "MEASURING_SHARE":  # the choice then rests on estimates
        assert not result.report.reverted
    else:
        assert result.report.unchanged_because.startswith(OUT_OF_TIME)
        assert result.model == dense()


def test_a_limit_while_reading_leaves_a_model_that_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*_: Any) -> None:
        raise LimitReached(OUT_OF_TIME)

    monkeypatch.setattr(onnx_reader, "infer", late)
    result = optimize(dense(), time_limit=1000.0)
    assert result.report.unchanged_because == OUT_OF_TIME
    assert result.report.operators_after == {"MatMul": 2, "Relu": 1, "Add": 1}
    assert result.model == dense()
    broken = build([node("MatMul", "x w", "y")], {"x": [4, 8]}, {"y": [4, 8]}, {"w": normal(7, 8)})
    with pytest.raises(InputRejected, match="does not load in onnxruntime"):
        optimize(broken, time_limit=1000.0)


def test_memory_limit_of_the_library() -> None:
    limit = held_by(os.getpid()) + 400 * MIB
    with Peak(os.getpid()) as peak:
        result = optimize(sums(20), memory_limit=limit, time_limit=20.0, cost="static", threads=1)
    assert peak.bytes <= 1.2 * limit
    assert result.report.model
    with pytest.raises(UsageError, match="memory_limit"):
        optimize(dense(), memory_limit=0)


def test_explanations_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not [text for text in static(dense()).report.notes if "chain" in text]
    monkeypatch.setattr(explanation, "LARGEST", 0)
    (note,) = [text for text in static(dense()).report.notes if "chain" in text]
    assert "more than 0 derivations" in note
    monkeypatch.setattr(explanation, "LARGEST", 10**9)
    monkeypatch.setattr(pipeline, "EXPLAINING_SHARE", 0.0)
    (note,) = [text for text in static(dense(), time_limit=1000.0).report.notes if "chain" in text]
    assert OUT_OF_TIME in note


def test_chains_are_given_up_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check is asked again and again while the chains of one part are looked for."""
    asked = 0
    real = explanation.explain

    def counting(candidate: Any, origins: Origins, **options: Any) -> Any:
        class Counting(Limits):
            def check(self) -> None:
                nonlocal asked
                asked += 1

        return real(candidate, origins, **(options | {"limits": Counting()}))

    monkeypatch.setattr(explanation, "explain", counting)
    static(dense())
    assert asked > 20


class TestSessionProcess:
    def test_answers_and_errors(self, tmp_path: Path) -> None:
        onnx.save(dense(), tmp_path / "m.onnx")
        with SessionProcess() as sessions:
            assert [spec.name for spec in sessions.open(tmp_path / "m.onnx").outputs] == ["y"]
            (found,) = sessions.run({"x": np.zeros((4, 8), np.float32)})
            assert np.allclose(found, normal(8))
            with pytest.raises(InputRejected, match="the model does not run"):
                sessions.run({"x": np.zeros((4, 9), np.float32)})
            with pytest.raises(InputRejected, match="does not load"):
                sessions.open(b"garbage")

    def test_a_process_that_dies_is_named_and_replaced(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        onnx.save(dense(), tmp_path / "m.onnx")
        with monkeypatch.context() as patch:
            patch.setattr(session_process, "_COMMAND", "import os; os.abort()")
            sessions = SessionProcess()
            with pytest.raises(InputRejected, match=r"onnxruntime crashes on .*m\.onnx \(SIGABRT\)"):
                sessions.open(tmp_path / "m.onnx")
        assert sessions.open(tmp_path / "m.onnx").inputs
        sessions.close()

    @pytest.mark.parametrize("limits", [Limits(memory=1), Limits(deadline=0.0)])
    def test_limits(self, limits: Limits, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(session_process, "_COMMAND", HANG)
        with SessionProcess(limits) as sessions, pytest.raises(LimitReached, match="limit was reached"):
            sessions.open(b"")

    def test_it_ends_with_its_parent(self) -> None:
        program = (
            "import os; from egraph_opt.backends.session_process import SessionProcess\n"
            "sessions = SessionProcess(); sessions.release(); print(sessions._running[0].pid, flush=True)\n"
            "os.kill(os.getpid(), 9)"
        )
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
        assert done.returncode == -signal.SIGKILL
        for _ in range(200):
            state = Path("/proc", done.stdout.strip(), "stat")
            if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
                return
            time.sleep(0.05)
        raise AssertionError("it is still there")


@pytest.mark.parametrize(("text", "count"), [("4G", 4 << 30), ("500M", 500 << 20), ("1.5k", 1536), ("7", 7)])
def test_sizes(text: str, count: int) -> None:
    assert byte_count(text) == count
    assert byte_count(f"{text}B".replace("7B", "7b")) == count


@pytest.mark.parametrize("text", ["", "G", "-1", "0", "1e9", "nan", "4 G", "4X"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(Exception, match="is not a size"):
        byte_count(text)


def test_a_process_is_used_again_only_where_the_next_would_be_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx.save(dense(), tmp_path / "m.onnx")

    def process() -> int:
        with SessionProcess() as sessions:
            sessions.open(tmp_path / "m.onnx")
            assert sessions._running is not None
            return sessions._running[0].pid

    first = process()
    assert process() == first
    monkeypatch.setenv("ALLOW_RELEASED_ONNX_OPSET_ONLY", "0")
    other = process()
    assert other != first
    assert process() == other
    with SessionProcess(Limits(memory=1 << 40)) as limited:
        limited.open(tmp_path / "m.onnx")
    assert process() != other  # one that was under a limit is not kept


def test_what_a_process_holds_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Process 1 has started 2 and 4, and is just starting 3, which still lies in the memory of 1 and grows with it."""
    processes = (
        ("1", "9 7000 20 1", "python run", "2 3 4"),
        ("2", "9 30 20 1", "python work", ""),
        ("3", "9 7010 20 1", "python run", ""),
        ("4", "9 7000 6990 1", "python rest", ""),
    )
    for process, statistics, command, children in processes:
        (tmp_path / process / "task" / process).mkdir(parents=True)
        (tmp_path / process / "statm").write_text(statistics)
        (tmp_path / process / "cmdline").write_text(command)
        (tmp_path / process / "task" / process / "children").write_text(children)
    monkeypatch.setattr(limits, "_PROCESSES", tmp_path)
    assert held_by(1) == (6980 + 10 + 10) * os.sysconf("SC_PAGE_SIZE")
