"""onnxruntime, or another runtime, in a process of its own.

Making a session cannot be interrupted, a model may crash the process it is in, and the memory that sessions took is
given back only when their process ends.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from egraph_opt.backends.onnxruntime import Array, ValueSpec, input_specs, make_session, output_specs, run
from egraph_opt.backends.runtimes import DEFAULT, find
from egraph_opt.errors import BackendMissing, EgraphOptError, InputRejected, LimitReached, one_line
from egraph_opt.limits import Limits

# The process finds modules exactly where its parent does; -P keeps the current folder out, which may hold anything.
# It does not hear Ctrl-C, which is for the parent, but ends with the parent's process group.
_COMMAND = (
    "import json, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); sys.path[:] = json.loads(sys.argv[1]);"
    " from egraph_opt.backends.session_process import work; work(int(sys.argv[2]))"
)
# Seconds between two looks at the limits.
_POLL = 0.05
# Seconds that a run may take beyond its own limit, for one operator that is not interrupted.
_OPERATOR_SECONDS = 1.0
_ERRORS: tuple[type[EgraphOptError], ...] = (InputRejected, LimitReached, BackendMissing)


@dataclass(frozen=True)
class _Setting:
    """What a process was started with: whose child it is, its command and its environment."""

    parent: int
    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]

    @classmethod
    def here(cls) -> _Setting:
        paths = json.dumps([entry or str(Path.cwd()) for entry in sys.path])
        command = (sys.executable, "-P", "-c", _COMMAND, paths)
        return cls(os.getpid(), command, tuple(sorted(os.environ.items())))


# A process without a session that waits for its next use: starting one takes as long as importing onnxruntime.
_SPARE: list[tuple[_Setting, subprocess.Popen[bytes], Connection]] = []


def _end_spare() -> None:
    while _SPARE:
        setting, process, _ = _SPARE.pop()
        if setting.parent == os.getpid():  # not that of a process this one was forked from
            process.kill()
            process.wait()


atexit.register(_end_spare)


@dataclass(frozen=True, slots=True)
class Opened:
    """What the session of a model takes and gives."""

    inputs: tuple[ValueSpec, ...]
    outputs: tuple[ValueSpec, ...]


class SessionProcess:
    """One session at a time, in another process that is ended when a limit is reached and started again when needed.

    It starts in the background; one that no limit was set for is kept for the next. Close it, or use it as a context
    manager.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._runtime = DEFAULT
        self._running: tuple[subprocess.Popen[bytes], Connection] | None = None
        self._last: weakref.finalize[..., SessionProcess] | None = None
        self._setting: _Setting
        self._start()

    def __enter__(self) -> SessionProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the session; the process, too, unless the next can have it."""
        if self._running is None:
            return
        if self.limits == Limits() and not _SPARE:
            try:
                self.release()
            except EgraphOptError:
                return
            _SPARE.append((self._setting, *self._running))
            self._running = None
            if self._last is not None:
                self._last.detach()
        else:
            self._end()

    def _end(self) -> None:
        """End the process at once."""
        if self._running is None:
            return
        process, connection = self._running
        self._running = None
        if self._last is not None:
            self._last.detach()
        process.kill()
        process.wait()
        connection.close()

    def open(
        self,
        model: Path | bytes,
        *,
        kernel_library: Path | None = None,
        threads: int | None = None,
        optimize: bool = True,
        runtime: str = DEFAULT,
    ) -> Opened:
        """Make a session of a model in the place of the one before; see `make_session`, and `runtimes` for others.

        Raises InputRejected where the model does not load or ends the process, LimitReached at a limit.
        """
        self._runtime = runtime
        found: Opened = self._ask(
            ("open", model, kernel_library, threads, optimize, runtime),
            inf,
            "the model" if isinstance(model, bytes) else str(model),
        )
        return found

    def run(self, inputs: Mapping[str, Array], *, seconds: float = threading.TIMEOUT_MAX) -> list[Any]:
        """All outputs in order; raises as `onnxruntime.run` does, and as `open`."""
        found: list[Any] = self._ask(("run", dict(inputs), seconds), seconds + _OPERATOR_SECONDS, "the model")
        return found

    def release(self) -> None:
        """End the session."""
        if self._running is not None:
            self._ask(("release",), inf, "")

    def _start(self) -> tuple[subprocess.Popen[bytes], Connection]:
        if self._running is None:
            self._setting = _Setting.here()
            if _SPARE and _SPARE[0][0] == self._setting and _SPARE[0][1].poll() is None:
                _, process, ours = _SPARE.pop()
                self._running = process, ours
                self._last = weakref.finalize(self, process.kill)
        if self._running is None:
            _end_spare()
            import multiprocessing

            ours, theirs = multiprocessing.Pipe()
            process = subprocess.Popen(
                [*self._setting.command, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
            )
            theirs.close()
            self._running = process, ours
            self._last = weakref.finalize(self, process.kill)  # where nobody closed it
        return self._running

    def _ask(self, request: tuple[Any, ...], seconds: float, what: str) -> Any:
        process, connection = self._start()
        until = time.monotonic() + seconds
        try:
            connection.send(request)
            while not connection.poll(_POLL):
                reason = self.limits.reached()
                if not reason and time.monotonic() > until:
                    reason = f"the model ran longer than {seconds - _OPERATOR_SECONDS:.0f} s"
                if reason:
                    raise LimitReached(reason)
            kind, *answer = connection.recv()
        except (EOFError, OSError):
            code = process.wait()
            self._end()
            how = f"({signal.Signals(-code).name})" if code < 0 else f"(exit code {code})"
            raise InputRejected(f"{self._runtime} crashes on {what} {how}") from None
        except BaseException:
            self._end()
            raise
        if kind == "failed":
            name, text = answer
            raise next((error for error in _ERRORS if error.__name__ == name), EgraphOptError)(text)
        return answer[0]


def work(connection_number: int) -> None:
    """The process: requests come in and answers go out until the parent closes the connection."""
    connection = Connection(connection_number)
    requests: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()

    def read() -> None:
        while True:
            try:
                requests.put(connection.recv())
            except (EOFError, OSError):
                os._exit(0)  # the parent is gone; whatever runs is of no use

    threading.Thread(target=read, daemon=True).start()
    session: Any = None
    answer: Any
    while True:
        kind, *request = requests.get()
        try:
            if kind == "run":
                answer = run(session, request[0], seconds=request[1])
            else:
                session = None
                answer = None
                if kind == "open":
                    model, library, threads, optimize, runtime = request
                    if runtime == DEFAULT:
                        session = make_session(
                            model, kernel_library=library, threads=threads, optimize=optimize, spin=False
                        )
                    else:
                        session = find(runtime).load(model, kernel_library=library, threads=threads)
                    answer = Opened(input_specs(session), output_specs(session))
            connection.send(("done", answer))
        except MemoryError:
            connection.send(("failed", "LimitReached", "it takes more memory than there is"))
        except Exception as error:
            text = str(error) if isinstance(error, EgraphOptError) else f"{type(error).__name__}: {error}"
            connection.send(("failed", type(error).__name__, one_line(text)))
