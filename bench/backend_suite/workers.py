"""Processes that optimize and judge: a crash or a hang costs one case, and the next gets a new process."""

import multiprocessing
import os
import queue
import signal
import tempfile
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.backend_suite.cases import Case
from bench.backend_suite.judge import Outcome, Reference, answer, judge
from bench.backend_suite.optimizers import Optimizer

# Hears of every case that is ready: how many are, its name and what became of it.
Done = Callable[[int, str, Any], None]

_START = multiprocessing.get_context("spawn")
# Seconds for a new process to come up; the networks of kind "real" take this many times the seconds of a case.
STARTING_SECONDS, REAL_SHARE = 60.0, 10.0


class Worker:
    """One process at a time that answers requests in turn. Close it when done."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._running: tuple[Any, Connection] | None = None

    def ask(self, request: tuple[Any, ...], seconds: float) -> Any:
        """The answer, or an Outcome "crash" or "hang"; then the process is gone and the next request starts another."""
        process, connection = self._running or self._started()
        try:
            connection.send(request)
            if not connection.poll(seconds):
                self.close(kill=True)
                return Outcome("hang", f"no answer within {seconds:.0f} s")
            return connection.recv()
        except (EOFError, OSError):
            process.join()
            self.close(kill=True)
            return Outcome("crash", _end(process.exitcode))

    def close(self, *, kill: bool = False) -> None:
        """End the process, if one runs."""
        if self._running is None:
            return
        process, connection = self._running
        self._running = None
        connection.close()
        if not kill:
            process.join(5.0)
        if process.is_alive():
            process.kill()
        process.join()

    def _started(self) -> tuple[Any, Connection]:
        ours, theirs = _START.Pipe()
        process = _START.Process(target=_serve, args=(theirs, self._scratch), daemon=False)
        process.start()
        theirs.close()
        self._running = (process, ours)
        if not ours.poll(STARTING_SECONDS):
            self.close(kill=True)
            raise RuntimeError(f"a worker process did not start within {STARTING_SECONDS:.0f} s")
        ours.recv()
        return process, ours


def _end(code: int | None) -> str:
    if code is not None and code < 0:
        return f"the process died of {signal.Signals(-code).name}"
    return f"the process ended with exit code {code}"


def _serve(connection: Connection, scratch: Path) -> None:
    """Answer the requests of a Worker until it closes the connection; runs in the worker's process."""
    os.environ["ALLOW_RELEASED_ONNX_OPSET_ONLY"] = "0"
    # The user's caches stay as they are, and do not matter for the result.
    os.environ["HOME"] = str(scratch)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    connection.send("ready")
    while True:
        try:
            case, reference, optimizer = connection.recv()
        except EOFError:
            return
        if optimizer is None:
            connection.send(answer(case))
            continue
        with tempfile.TemporaryDirectory(prefix="case-", dir=scratch) as folder:
            connection.send(judge(case, reference, optimizer, Path(folder)))


def answers(cases: Sequence[Case], *, processes: int, seconds: float, done: Done, scratch: Path) -> list[Reference]:
    """What onnxruntime computes for each case."""
    found = _each([(case, None, None) for case in cases], processes, seconds, done, scratch)
    return [Reference(problem=entry.reason) if isinstance(entry, Outcome) else entry for entry in found]


def outcomes(
    optimizer: Optimizer,
    cases: Sequence[tuple[Case, Reference]],
    *,
    processes: int,
    seconds: float,
    done: Done,
    scratch: Path,
) -> list[Outcome]:
    """What becomes of each case; ``seconds`` is the time limit of one."""
    found: list[Outcome] = _each([(*case, optimizer) for case in cases], processes, seconds, done, scratch)
    return found


def _each(requests: Sequence[tuple[Any, ...]], processes: int, seconds: float, done: Done, scratch: Path) -> list[Any]:
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    # The large networks first: begun last they would keep one process busy alone.
    for i in sorted(range(len(requests)), key=lambda i: requests[i][0].kind != "real"):
        waiting.put(i)
    found: list[Any] = [None] * len(requests)
    failures: list[BaseException] = []
    lock = threading.Lock()
    finished = 0

    def work() -> None:
        nonlocal finished
        worker = Worker(scratch)
        try:
            while not failures:
                i = waiting.get_nowait()
                limit = seconds * (REAL_SHARE if requests[i][0].kind == "real" else 1.0)
                found[i] = worker.ask(requests[i], limit)
                with lock:
                    finished += 1
                    done(finished, requests[i][0].name, found[i])
        except queue.Empty:
            return
        except BaseException as error:
            failures.append(error)
        finally:
            worker.close()

    threads = [threading.Thread(target=work) for _ in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return found
