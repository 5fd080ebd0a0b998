"""Devices of a TVM RPC tracker on the loopback interface: two workers, one of which dies, and such as lie."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

from egraph_opt.backends import runner
from egraph_opt.backends.model_timer import DevicesLost, TimedModel
from egraph_opt.backends.runner import ExecutorRunner, Machine
from egraph_opt.backends.tracker import TrackerExecutor, address_of
from egraph_opt.cli import main
from egraph_opt.errors import UsageError
from egraph_opt.frontends.onnx_standalone import standalone
from egraph_opt.ir.program import Step
from egraph_opt.ir.terms import Call, Source
from egraph_opt.limits import Limits

pytest.importorskip("tornado", reason="TVM's RPC needs it")

# Ends with its parent, however that ends.
BOUND = "import ctypes; ctypes.CDLL(None).prctl(1, 9)\n"
PRODUCT = Call("MatMul", "", (Source("x", (4, 8)), Source("w", (8, 3))), (4, 3))
TRACKER = (
    "import sys, time; from tvm.rpc.tracker import Tracker\n"
    "tracker = Tracker(host='127.0.0.1', port=19190, port_end=19290, silent=True)\n"
    "print(tracker.port, flush=True); sys.stdin.read(); tracker.terminate()"
)
# A server that answers nonsense, or has no such function.
STRANGER = (
    "import sys; from tvm.rpc.server import PopenRPCServerState; import tvm_ffi\n"
    "if sys.argv[2]: tvm_ffi.register_global_func('egraph_opt.measure', lambda request: bytearray(b'nonsense'))\n"
    "PopenRPCServerState('127.0.0.1', 19390, 19490, tracker_addr=('127.0.0.1', int(sys.argv[1])), key=sys.argv[3],"
    " silent=True).thread.join()"
)


class Process:
    """A program in a process with its own group, whose lines are kept in a file."""

    def __init__(self, folder: Path, program: str, *words: str) -> None:
        self.lines = folder / f"lines{len(list(folder.iterdir()))}"
        self.file: IO[bytes] = self.lines.open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-c", BOUND + program, *words],
            stdin=-1,
            stdout=self.file,
            stderr=self.file,
            start_new_session=True,
        )

    def wait_for(self, text: str, times: int = 1) -> None:
        until = time.monotonic() + 60
        while self.lines.read_text().count(text) < times:
            assert time.monotonic() < until, self.lines.read_text()
            assert self.process.poll() is None, self.lines.read_text()
            time.sleep(0.02)

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.file.close()


Start = Callable[..., Process]


@contextmanager
def starting(folder: Path) -> Iterator[Start]:
    """Start processes that end with the block."""
    started: list[Process] = []

    def begin(program: str, *words: str) -> Process:
        started.append(Process(folder, program, *words))
        return started[-1]

    try:
        yield begin
    finally:
        for process in started:
            process.kill()


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    with starting(tmp_path_factory.mktemp("lines")) as begin:
        yield begin


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a tracker."""
    with starting(tmp_path_factory.mktemp("lines")) as begin:
        process = begin(TRACKER)
        process.wait_for("\n")
        yield f"127.0.0.1:{process.lines.read_text().strip()}"


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "RETRY_SECONDS", 0.4)


def worker(start: Start, tracker: str, key: str = "here") -> Process:
    program = "import sys; from egraph_opt.cli import main; sys.exit(main(sys.argv[1:]))"
    return start(program, "worker", "--tracker", tracker, "--key", key)


def problems(found: Sequence[tuple[list[float], str]]) -> list[str]:
    return [error for samples, error in found if not samples]


def models(count: int) -> list[TimedModel]:
    return [TimedModel(standalone([Step("y", PRODUCT)], seed=number)) for number in range(count)]


def test_two_devices_share_the_work_and_one_of_them_dies(start: Start, tracker: str) -> None:
    both = [worker(start, tracker), worker(start, tracker)]
    for one in both:
        one.wait_for("measuring for")
    with TrackerExecutor(tracker, "here") as executor:
        by = ExecutorRunner(executor)
        assert by.machine(1) == Machine.here(1)
        found = by.time_each(models(3 * runner.CHUNK), threads=1, limits=Limits())
        assert problems(found) == []
        for one in both:
            assert "measuring what" in one.lines.read_text()
        busy = executor.submit(runner.measure, b"")  # fails there, but not the worker
        assert isinstance(busy.exception(), DevicesLost)

        first, second = both
        count = first.lines.read_text().count("measuring what")
        request = runner._packed("each", models(runner.CHUNK), {"threads": 1})
        started = [executor.submit(runner.measure, request) for _ in range(2)]
        first.wait_for("measuring what", count + 1)
        for child in psutil.Process(first.process.pid).children():  # the process of a session, not the worker itself
            child.kill()
        assert sum(future.exception() is not None for future in started) == 1
        first.wait_for("measuring for", 2)  # it listens again
        assert problems(by.time_each(models(runner.CHUNK), threads=1, limits=Limits())) == []

        count = first.lines.read_text().count("measuring what")
        victim = threading.Thread(target=lambda: (first.wait_for("measuring what", count + 1), first.kill()))
        victim.start()
        assert problems(by.time_each(models(3 * runner.CHUNK), threads=1, limits=Limits())) == []
        victim.join()
        assert first.process.returncode == -signal.SIGKILL
        second.kill()
        with pytest.raises(DevicesLost, match=r"measuring failed 3 times: .*(no device with the key 'here'|was lost)"):
            by.time_each(models(1), threads=1, limits=Limits())


def test_devices_that_lie_or_do_something_else_are_refused(start: Start, tracker: str) -> None:
    port = tracker.rpartition(":")[2]
    for words in (("yes", "liar"), ("", "plain")):
        start(STRANGER, port, *words)
    for key, reason in (("liar", "JSONDecodeError"), ("plain", r"127\.0\.0\.1:\d+ is no device of egraph-opt worker")):
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                executor = TrackerExecutor(tracker, key)
                break
            except DevicesLost:
                time.sleep(0.1)
        with executor, pytest.raises(DevicesLost, match=f"measuring failed 3 times: {reason}"):
            ExecutorRunner(executor).machine(1)


def test_optimizing_on_a_device(
    start: Start, tracker: str, save_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device = worker(start, tracker, "other")
    device.wait_for("measuring for")
    words = ["optimize", str(save_model()), "-o", str(tmp_path / "o.onnx"), "--profile-db", str(tmp_path / "p")]
    assert main([*words, "--threads", "1", "--rpc-tracker", tracker, "--rpc-key", "other"]) == 0
    assert device.lines.read_text().count("measuring what") > 2
    assert main([*words, "--rpc-tracker", tracker, "--rpc-key", "none"]) == 6
    assert capsys.readouterr().err.endswith(
        f"the tracker at {tracker} has no device with the key 'none'; it has other\n"
    )
    assert main([*words, "--rpc-tracker", tracker]) == 2
    assert "--rpc-tracker and --rpc-key belong together" in capsys.readouterr().err
    device.process.terminate()
    assert device.process.wait(20) == 130


def test_no_tracker_is_asked_where_nothing_is_timed(save_model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.0)
        words = ["optimize", str(save_model()), "--cost", "static", "--rpc-key", "a", "--rpc-tracker"]
        assert main([*words, f"127.0.0.1:{server.getsockname()[1]}"]) == 0
        with pytest.raises(BlockingIOError):  # nobody called
            server.accept()
    capsys.readouterr()
    assert main([*words, "nowhere"]) == 2
    assert "'nowhere' is not the address of a tracker" in capsys.readouterr().err


def test_what_is_no_tracker(save_model: Any, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr("egraph_opt.backends.tracker.TRACKER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert main(["optimize", str(save_model()), "--rpc-tracker", address, "--rpc-key", "a"]) == 6
        assert f"no TVM RPC tracker answers at {address}: timed out" in capsys.readouterr().err
    assert main(["worker", "--tracker", address, "--key", "a"]) == 6
    assert "Connection refused" in capsys.readouterr().err
    for text in ("here", "here:", ":1", "here:0", "here:65536", "here:x"):
        with pytest.raises(UsageError, match="is not the address of a tracker"):
            address_of(text)
    assert address_of("[::1]:9190") == ("::1", 9190)
