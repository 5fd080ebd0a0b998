"""Time models in a process of their own, which is watched and may be killed.

Two onnxruntime sessions in one process normally own two spinning thread pools, and a model timed against itself comes
out anywhere between 0.6 and 2.5 times as fast. On one pool for the whole process the ratio is 1.00 ± 0.02 and the
latencies are those of a session that is alone; its threads are as many, and pinned to the same processors, as those of
a session of the user's own. Such a pool forbids ordinary sessions ever after, so it belongs into a separate process,
which also keeps the caller's own threads, and kernels that crash, hang or eat memory, out of the measurement.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from egraph_opt.backends.environment import available_memory
from egraph_opt.backends.machine_lock import measuring_alone
from egraph_opt.backends.onnxruntime import RANDOM, Array, Fill
from egraph_opt.backends.runtime_timer import Setting, time_across
from egraph_opt.backends.runtimes import DEFAULT
from egraph_opt.backends.timing_worker import BEAT, Timed
from egraph_opt.errors import BackendMissing, EgraphOptError, InputRejected, LimitReached
from egraph_opt.limits import Limits, held_by

# Seconds between two looks at the worker.
_POLL = 0.02
# The share of the memory that is free which the worker may take.
_MEMORY_SHARE = 0.9
# Seconds that loading a step, its first run, or one turn of it may take; and the same of a whole model.
STAGE_SECONDS, MODEL_STAGE_SECONDS = 30.0, 900.0
# The worker finds modules exactly where its parent does; -P keeps the current folder out, which may hold anything.
WORKER = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    " from egraph_opt.backends.timing_worker import work; work(int(sys.argv[2]))"
)


@dataclass(frozen=True, slots=True)
class Expected:
    """What the only output of a model must be for the inputs that `timing_worker.drawn` gives: its ``values`` (float64)
    at row-major ``positions``, and how far each may be off; infinitely far where nothing can be said."""

    positions: Array
    values: Array
    allowed: Array


@dataclass(frozen=True, slots=True)
class TimedModel:
    """A model file, or a serialized model, the library of its generated kernels, what must be true of it, and the
    runtime that runs it."""

    model: Path | bytes
    kernel_library: Path | None = None
    expected: Expected | None = None
    runtime: str = DEFAULT


def time_models(
    models: Sequence[TimedModel],
    *,
    rounds: int = 9,
    seed: int = 0,
    shapes: Mapping[str, Sequence[int]] | None = None,
    fill: Fill = RANDOM,
    threads: int | None = None,
    enough_seconds: float = 60.0,
    timeout: float | None = None,
    limits: Limits | None = None,
) -> list[list[float]]:
    """Milliseconds per round of each model, in interleaved turns on one thread pool, or one for each runtime.

    All models get `random_inputs(seed, shapes, fill)`. Stops early, after at least three rounds, when `enough_seconds`
    have passed. Raises InputRejected where a model does not load, run or survive, LimitReached after ``timeout``
    seconds or at ``limits``, BackendMissing without a runtime.
    """
    until = time.monotonic() + (inf if timeout is None else timeout)
    allowed = (limits or Limits()).until(until)
    if any(timed.runtime != DEFAULT for timed in models):
        setting = Setting(threads, seed, shapes or {}, fill)
        with measuring_alone(allowed):
            return time_across(models, setting, rounds=rounds, enough_seconds=enough_seconds, limits=allowed)
    with tempfile.TemporaryDirectory(prefix="egraph-opt-") as folder:
        request = {
            "models": [
                [str(_as_file(timed.model, Path(folder) / f"{index}.onnx")), _optional_path(timed.kernel_library)]
                for index, timed in enumerate(models)
            ],
            "rounds": rounds,
            "seed": seed,
            "fill": fill,
            "shapes": {name: list(shape) for name, shape in (shapes or {}).items()},
            "threads": threads,
            "enough_seconds": enough_seconds,
            "names": [_name(timed) for timed in models],
        }
        answer = _ask_worker(request, allowed, MODEL_STAGE_SECONDS)
    if "error" in answer:
        raise InputRejected(answer["error"])
    return [[float(sample) for sample in samples] for samples in answer["samples"]]


def time_each(
    models: Sequence[TimedModel],
    *,
    rounds: int = 5,
    turn_seconds: float = 0.008,
    warm_seconds: float = 0.02,
    enough_seconds: float = 10.0,
    threads: int | None = None,
    stage_seconds: float = STAGE_SECONDS,
    limits: Limits | None = None,
) -> list[Timed]:
    """Milliseconds per round of each step, in interleaved turns, without the time of an empty run.

    All are run by the runtime of the first one, in one process.
    Gives (samples, "") or ([], reason) for each. One that does not give what is expected is not timed; one that
    crashes, hangs (for ``stage_seconds``) or takes all memory is found, and the others are timed without it, unless
    ``limits`` are reached. Raises DevicesLost where not even the process for it starts.
    """
    with tempfile.TemporaryDirectory(prefix="egraph-opt-") as folder:
        files = [
            [
                str(_as_file(timed.model, Path(folder) / f"{index}.onnx")),
                _optional_path(timed.kernel_library),
                _optional_path(_stored(timed.expected, Path(folder) / f"{index}.npz")),
            ]
            for index, timed in enumerate(models)
        ]
        settings = {
            "rounds": rounds,
            "turn": turn_seconds,
            "warm": warm_seconds,
            "enough": enough_seconds,
            "threads": threads,
            "runtime": models[0].runtime if models else DEFAULT,
        }
        names = [_name(timed) for timed in models]
        return _time_files(files, names, settings, stage_seconds, limits or Limits())


class DevicesLost(EgraphOptError):  # noqa: N818 - says what happened
    """Nobody is there, or left, who could measure."""

    exit_code = BackendMissing.exit_code


class _Fault(InputRejected):
    """The worker ended, or was ended, while it was busy with a model; None where it was busy with none."""

    def __init__(self, text: str, index: int | None) -> None:
        super().__init__(text)
        self.index = index


def _time_files(
    files: list[list[str | None]], names: list[str], settings: dict[str, Any], stage_seconds: float, limits: Limits
) -> list[Timed]:
    timed: list[Timed] = [([], "")] * len(files)
    left = list(range(len(files)))
    while left:
        request = {
            "models": [files[index] for index in left],
            "names": [names[index] for index in left],
            "alone": settings,
        }
        try:
            answer = _ask_worker(request, limits, stage_seconds)
            for index, (samples, error) in zip(left, answer["timed"], strict=True):
                timed[index] = list(samples), str(error)
            break
        except _Fault as fault:
            if fault.index is None:
                raise DevicesLost(f"measuring does not work here: {fault}") from None
            timed[left.pop(fault.index)] = [], str(fault)
        except LimitReached as limit:
            for index in left:
                timed[index] = [], str(limit)
            break
    return timed


def _ask_worker(request: dict[str, Any], limits: Limits, stage_seconds: float) -> dict[str, Any]:
    """The worker's answer. Raises LimitReached, and _Fault where the worker dies or has to be ended."""
    with measuring_alone(limits):
        return _ask(request, limits, stage_seconds)


def _ask(request: dict[str, Any], limits: Limits, stage_seconds: float) -> dict[str, Any]:
    paths = json.dumps([entry or str(Path.cwd()) for entry in sys.path])
    memory = int(min(limits.spare(), _MEMORY_SHARE * available_memory()))
    with (
        tempfile.TemporaryFile("w+") as asked,
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile() as err,
        tempfile.TemporaryFile() as beat,
    ):
        json.dump({**request, "memory": max(0, memory)}, asked)
        asked.seek(0)
        command = [sys.executable, "-P", "-c", WORKER, paths, str(beat.fileno())]
        worker = subprocess.Popen(command, stdin=asked, stdout=out, stderr=err, pass_fds=(beat.fileno(),))
        stages, begun, why = 0, time.monotonic(), ""
        try:
            while worker.poll() is None and not why:
                if reason := limits.reached():
                    raise LimitReached(f"timing was ended: {reason}")
                now, stage = time.monotonic(), _stage(beat.fileno())[0]
                if stage != stages:
                    stages, begun = stage, now
                elif now - begun > stage_seconds:
                    why = f"was ended: no answer for {stage_seconds:g} s"
                elif held_by(worker.pid) > memory:
                    why = f"was ended: it took more than {memory / 2**20:.0f} MiB of memory"
                with contextlib.suppress(subprocess.TimeoutExpired):
                    worker.wait(_POLL)
        finally:
            worker.kill()
            worker.wait()
        out.seek(0)
        lines = out.read().splitlines()
        err.seek(0)
        complaints = err.read().decode(errors="replace").splitlines()[-1:] or [""]
        stages, index = _stage(beat.fileno())
    if why or worker.returncode != 0 or not lines:
        why = why or f"died (exit code {worker.returncode}) {complaints[0]}".rstrip()
        names = " and ".join([request["names"][index]] if stages else dict.fromkeys(request["names"]))
        raise _Fault(f"the process that timed {names} {why}", index if stages else None)
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer


def _stage(beat: int) -> tuple[int, int]:
    """How many stages the worker has begun, and with which model it is busy."""
    data = os.pread(beat, BEAT.size, 0)
    stages, index = BEAT.unpack(data) if len(data) == BEAT.size else (0, 0)
    return int(stages), int(index)


def _name(timed: TimedModel) -> str:
    return str(timed.model.absolute()) if isinstance(timed.model, Path) else "it"


def _as_file(model: Path | bytes, place: Path) -> Path:
    if isinstance(model, Path):
        return model.absolute()
    place.write_bytes(model)
    return place


def _stored(expected: Expected | None, place: Path) -> Path | None:
    if expected is None:
        return None
    np.savez(place, positions=expected.positions, values=expected.values, allowed=expected.allowed)
    return place


def _optional_path(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())
