"""Functions called in other processes of this machine, through the interface of ``concurrent.futures``.

Unlike the standard library's pool it never imports the caller's main module, does not hear Ctrl-C, survives a process
that crashes, and ends processes where a limit is reached.
"""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from egraph_opt.errors import EgraphOptError
from egraph_opt.limits import Limits

T = TypeVar("T")
P = ParamSpec("P")
# The process finds modules exactly where its parent does; -P keeps the current folder out, which may hold anything.
# It does not hear Ctrl-C, which is for the parent, but ends with the parent.
_COMMAND = (
    "import json, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); sys.path[:] = json.loads(sys.argv[1]);"
    " from egraph_opt.backends.processes import work; work(int(sys.argv[2]))"
)
# Seconds between two looks at the limits.
_POLL = 0.05


class ProcessDied(EgraphOptError):  # noqa: N818 - says what happened
    """The process that a function was called in ended before it returned."""


class ProcessExecutor(Executor):
    """Calls functions in ``most`` processes at once, which are started when they are needed.

    Functions, arguments and results must be picklable, and the modules of functions are imported there. A call raises
    what the function raises, :class:`ProcessDied` where the process ends, and LimitReached at ``limits``, which ends
    its process.
    """

    def __init__(self, most: int, *, limits: Limits | None = None) -> None:
        self.most = most
        self.limits = limits or Limits()
        self._threads = ThreadPoolExecutor(most, "processes")
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._all: set[_Process] = set()
        self._ended = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call a function in a process that is or becomes free. Raises RuntimeError after the shutdown."""
        return self._threads.submit(self._call, pickle.dumps((fn, args, kwargs)))

    def prepare(self, fn: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Start the processes in the background and call a function in each, one after the other: the caller goes on
        meanwhile and needs a processor, too."""
        self._threads.submit(self._prepare, pickle.dumps((fn, args, kwargs)))

    def _prepare(self, request: bytes) -> None:
        for _ in range(self.most):
            with self._lock:
                if self._ended or len(self._all) >= self.most:
                    return
                process = _Process()
                self._all.add(process)
            self._asked(process, request)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes: once all calls have returned, or at once where what was not begun is cancelled."""
        if cancel_futures:
            with self._lock:
                self._ended = True
                for process in self._all:
                    process.kill()
        self._threads.shutdown(wait=wait or cancel_futures, cancel_futures=cancel_futures)
        with self._lock:
            for process in self._all:
                process.close()
            self._all.clear()
            self._idle.clear()

    def __exit__(self, *_: object) -> None:
        """End the processes at once: what nobody has asked for until now is not wanted."""
        self.shutdown(cancel_futures=True)

    def _call(self, request: bytes) -> Any:
        self.limits.check()
        with self._lock:
            process = self._idle.pop() if self._idle else _Process()
            self._all.add(process)
        succeeded, answer = self._asked(process, request)
        if not succeeded:
            raise answer
        return answer

    def _asked(self, process: _Process, request: bytes) -> tuple[bool, Any]:
        """What a process answers, which then waits for more, or is no more."""
        try:
            found = process.answer(request, self.limits)
        except BaseException:
            with self._lock:
                self._all.discard(process)
            process.close()
            raise
        with self._lock:
            self._idle.append(process)
        return found


class _Process:
    def __init__(self) -> None:
        self._connection, theirs = Pipe()
        paths = json.dumps([entry or str(Path.cwd()) for entry in sys.path])
        nothing = subprocess.DEVNULL
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _COMMAND, paths, str(theirs.fileno())],
            stdin=nothing,
            stdout=nothing,
            stderr=nothing,
            pass_fds=(theirs.fileno(),),
        )
        theirs.close()

    def answer(self, request: bytes, limits: Limits) -> tuple[bool, Any]:
        """Whether a call succeeded, and what it returned or raised."""
        try:
            self._connection.send_bytes(request)
            while not self._connection.poll(_POLL):
                limits.check()
            found: tuple[bool, Any] = pickle.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            code = self._process.wait()
            how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
            raise ProcessDied(f"the process ended ({how})") from None
        return found

    def kill(self) -> None:
        """End the process; whoever waits for its answer is told."""
        self._process.kill()

    def close(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.wait()
        self._connection.close()


def work(number: int) -> None:
    """The process: calls come in and answers go out until the parent closes the connection."""
    connection = Connection(number)
    while True:
        try:
            request = connection.recv_bytes()
        except (EOFError, OSError):
            return
        try:
            function, arguments, named = pickle.loads(request)
            answer = pickle.dumps((True, function(*arguments, **named)))
        except Exception as error:
            try:
                answer = pickle.dumps((False, error))
                pickle.loads(answer)
            except Exception:  # an exception that cannot be sent
                answer = pickle.dumps((False, EgraphOptError(f"{type(error).__name__}: {error}")))
        connection.send_bytes(answer)
