"""Time models of several runtimes in turns, each runtime in a process of its own.

Two runtimes in one process own a thread pool each, and the threads of one that spin or are pinned take the cores from
the other. So every runtime has a process; one works while the others wait until its threads are asleep.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import inf
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from egraph_opt.backends import runtimes
from egraph_opt.backends.onnxruntime import RANDOM, Fill, caller, input_specs, random_inputs, run
from egraph_opt.errors import BackendMissing, EgraphOptError, InputRejected, LimitReached, one_line
from egraph_opt.limits import Limits
from egraph_opt.runtime.timing import FEWEST_ROUNDS, sample_turns

if TYPE_CHECKING:
    from egraph_opt.backends.model_timer import TimedModel

# The process finds modules exactly where its parent does; -P keeps the current folder out, which may hold anything.
_COMMAND = (
    "import json, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); sys.path[:] = json.loads(sys.argv[1]);"
    " from egraph_opt.backends.runtime_timer import work; work(int(sys.argv[2]))"
)
# Seconds between two turns, after which the threads of a runtime no longer spin, and seconds of runs that are not timed
# at the begin of a turn: the other processes left nothing in the caches.
PAUSE_SECONDS, SETTLE_SECONDS = 0.05, 0.03
# Seconds between two looks at the limits, and that loading models or one turn may take.
_POLL, STAGE_SECONDS = 0.05, 900.0


@dataclass(frozen=True)
class Setting:
    """How models are run: the threads, and what their inputs are drawn from."""

    threads: int | None = None
    seed: int = 0
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    fill: Fill = RANDOM


def time_across(
    models: Sequence[TimedModel],
    setting: Setting,
    *,
    rounds: int = 9,
    enough_seconds: float = inf,
    limits: Limits | None = None,
) -> list[list[float]]:
    """Milliseconds per round of each model in its own runtime, in interleaved turns of the runtimes' processes.

    Stops early, after at least three rounds, when ``enough_seconds`` have passed. Raises InputRejected where a model
    does not load, run or survive, BackendMissing without its runtime, LimitReached at ``limits``.
    """
    chosen = limits or Limits()
    samples: list[list[float]] = [[] for _ in models]
    with ExitStack() as stack:
        parties = [
            stack.enter_context(_party(name, models, setting, chosen))
            for name in dict.fromkeys(timed.runtime for timed in models)
        ]
        begun = time.monotonic()
        for number in range(rounds):
            if number >= FEWEST_ROUNDS and time.monotonic() - begun >= enough_seconds:
                break
            for party in parties if number % 2 == 0 else reversed(parties):
                time.sleep(PAUSE_SECONDS)
                for position, sample in party.turn(number % 2 == 1):
                    samples[position].append(sample)
    return samples


@dataclass
class _Party:
    """The process of a runtime, and the positions of its models among all."""

    runtime: str
    positions: Sequence[int]
    process: subprocess.Popen[bytes]
    connection: Connection
    limits: Limits

    def turn(self, backwards: bool) -> list[tuple[int, float]]:
        """The milliseconds of each model in one turn."""
        found: list[float] = self.ask(("turn", backwards))
        return list(zip(self.positions, found, strict=True))

    def ask(self, request: tuple[Any, ...]) -> Any:
        """The answer of the process; raises what it raised, and where it does not survive."""
        until = time.monotonic() + STAGE_SECONDS
        try:
            self.connection.send(request)
            while not self.connection.poll(_POLL):
                if reason := self.limits.reached():
                    raise LimitReached(f"timing was ended: {reason}")
                if time.monotonic() > until:
                    raise InputRejected(f"{self.runtime} did not answer within {STAGE_SECONDS:.0f} s")
            kind, answer = self.connection.recv()
        except (EOFError, OSError):
            code = self.process.wait()
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise InputRejected(f"the process that timed models in {self.runtime} died ({how})") from None
        if kind == "missing":
            raise BackendMissing(answer)
        if kind == "failed":
            raise InputRejected(answer)
        return answer


@contextmanager
def _party(name: str, models: Sequence[TimedModel], setting: Setting, limits: Limits) -> Iterator[_Party]:
    """The process of a runtime with its models loaded; it ends with the block."""
    import multiprocessing

    positions = [position for position, timed in enumerate(models) if timed.runtime == name]
    paths = json.dumps([entry or str(Path.cwd()) for entry in sys.path])
    ours, theirs = multiprocessing.Pipe()
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _COMMAND, paths, str(theirs.fileno())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(theirs.fileno(),),
    )
    theirs.close()
    try:
        party = _Party(name, positions, process, ours, limits)
        files = [(models[position].model, models[position].kernel_library) for position in positions]
        party.ask(("load", name, files, setting))
        yield party
    finally:
        process.kill()
        process.wait()
        ours.close()


def work(connection_number: int) -> None:
    """The process of one runtime: it loads models once, then times them turn by turn."""
    connection = Connection(connection_number)
    calls: list[Any] = []
    while True:
        try:
            kind, *request = connection.recv()
        except (EOFError, OSError):
            os._exit(0)  # the parent is gone
        try:
            if kind == "load":
                calls = _loaded(*request)
                answer: Any = None
            else:
                (backwards,) = request
                order = reversed(calls) if backwards else calls
                answer = [sample_turns([call], rounds=1, warm_seconds=SETTLE_SECONDS)[0][0] for call in order]
                answer = answer[::-1] if backwards else answer
            connection.send(("done", answer))
        except BackendMissing as error:
            connection.send(("missing", str(error)))
        except MemoryError:
            connection.send(("failed", "it takes more memory than there is"))
        except Exception as error:
            text = str(error) if isinstance(error, EgraphOptError) else f"{type(error).__name__}: {error}"
            connection.send(("failed", one_line(text)))


def _loaded(name: str, files: Sequence[tuple[Path | bytes, Path | None]], setting: Setting) -> list[Any]:
    runtime = runtimes.alone(name, setting.threads)
    calls = []
    for model, library in files:
        session = runtime.load(model, threads=setting.threads, kernel_library=library)
        inputs = random_inputs(input_specs(session), seed=setting.seed, shapes=setting.shapes, fill=setting.fill)
        run(session, inputs)
        call = caller(session, inputs)
        sample_turns([call], rounds=1)  # memory and code are made in the first runs
        calls.append(call)
    return calls
