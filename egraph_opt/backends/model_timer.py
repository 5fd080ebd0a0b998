"""Time whole models in a process of their own.

Two onnxruntime sessions in one process normally own two spinning thread pools, and a model timed against itself comes
out anywhere between 0.6 and 2.5 times as fast. On one pool for the whole process the ratio is 1.00 ± 0.02 and the
latencies are those of a session that is alone. Such a pool forbids ordinary sessions ever after, so it belongs into a
separate process, which also keeps the caller's own threads, and crashes of kernels, out of the measurement.
"""

import contextlib
import json
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

from egraph_opt.backends.onnxruntime import (
    RANDOM,
    Fill,
    bound_caller,
    caller,
    create_process_pool,
    empty_caller,
    input_specs,
    make_session,
    random_inputs,
    run,
)
from egraph_opt.errors import InputRejected, LimitReached
from egraph_opt.limits import Limits
from egraph_opt.runtime.compare import compare_outputs
from egraph_opt.runtime.timing import sample_turns

# Seconds between two looks at the limits.
_POLL = 0.05
# The worker finds modules exactly where its parent does; -P keeps the current folder out, which may hold anything.
WORKER = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from egraph_opt.backends.model_timer import work; work()"
)


@dataclass(frozen=True, slots=True)
class Expected:
    """Inputs of a model by name, and what its only output must be for them."""

    inputs: Mapping[str, np.ndarray]
    output: np.ndarray


@dataclass(frozen=True, slots=True)
class TimedModel:
    """A model file, or a serialized model, the library of its generated kernels, and what must be true of it."""

    model: Path | bytes
    kernel_library: Path | None = None
    expected: Expected | None = None


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
    """Milliseconds per round of each model, in interleaved turns on one thread pool.

    All models get `random_inputs(seed, shapes, fill)`. Stops early, after at least three rounds, when `enough_seconds`
    have passed. Raises InputRejected where a model does not load, run or survive, LimitReached after ``timeout``
    seconds or at ``limits``.
    """
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
        }
        until = time.monotonic() + (inf if timeout is None else timeout)
        answer = _ask_worker(request, (limits or Limits()).until(until))
    if "error" in answer:
        raise InputRejected(answer["error"])
    return [[float(sample) for sample in samples] for samples in answer["samples"]]


def time_each(
    models: Sequence[TimedModel],
    *,
    rounds: int = 5,
    turn_seconds: float = 0.008,
    warm_seconds: float = 0.02,
    threads: int | None = None,
    timeout: float = 120.0,
    limits: Limits | None = None,
) -> list[tuple[list[float], str]]:
    """Milliseconds per round of each model alone, one after the other, without the time of an empty run.

    Gives (samples, "") or ([], reason) for each; a model that does not give the expected output is not timed. A model
    that crashes or hangs the worker is found and the others are timed again without it, unless ``limits`` are reached.
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
        settings = {"rounds": rounds, "turn": turn_seconds, "warm": warm_seconds, "threads": threads}
        return _time_files(files, settings, timeout, limits or Limits())


def _time_files(
    files: list[list[str | None]], settings: dict[str, Any], timeout: float, limits: Limits
) -> list[tuple[list[float], str]]:
    if not files:
        return []
    if reason := limits.reached():
        return [([], reason)] * len(files)
    try:
        answer = _ask_worker({"models": files, "alone": settings}, limits.until(time.monotonic() + timeout))
        return [(list(samples), str(error)) for samples, error in answer["timed"]]
    except (InputRejected, LimitReached) as error:
        if len(files) == 1:
            return [([], str(error))]
    middle = len(files) // 2
    return [
        *_time_files(files[:middle], settings, timeout, limits),
        *_time_files(files[middle:], settings, timeout, limits),
    ]


def work() -> None:
    """The worker: a request on stdin, the answer as the last line on stdout."""
    request = json.load(sys.stdin)
    try:
        answer: dict[str, Any]
        answer = {"timed": _alone(request)} if "alone" in request else {"samples": _sample(request)}
    except InputRejected as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))


def _sample(request: Mapping[str, Any]) -> list[list[float]]:
    create_process_pool(request["threads"])
    calls = []
    for model, library in request["models"]:
        session = make_session(model, kernel_library=library, process_pool=True)
        inputs = random_inputs(
            input_specs(session), seed=request["seed"], shapes=request["shapes"], fill=tuple(request["fill"])
        )
        run(session, inputs)
        calls.append(caller(session, inputs))
    return sample_turns(calls, rounds=request["rounds"], enough_seconds=request["enough_seconds"])


def _alone(request: Mapping[str, Any]) -> list[tuple[list[float], str]]:
    settings = request["alone"]
    create_process_pool(settings["threads"])
    turns = {"turn_seconds": settings["turn"], "warm_seconds": settings["warm"]}
    overhead: float | None = None
    timed: list[tuple[list[float], str]] = []
    for model, library, expected in request["models"]:
        try:
            session = make_session(model, kernel_library=library, process_pool=True)
            if expected is not None:
                _verify(session, Path(expected))
            call = bound_caller(session, random_inputs(input_specs(session), seed=0))
            call()
            if overhead is None:
                overhead = min(sample_turns([empty_caller()], rounds=3, **turns)[0])
            samples = sample_turns([call], rounds=settings["rounds"], **turns)[0]
            timed.append(([max(sample - overhead, 1e-5) for sample in samples], ""))
        except InputRejected as error:
            timed.append(([], str(error)))
    return timed


def _ask_worker(request: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    paths = json.dumps([entry or str(Path.cwd()) for entry in sys.path])
    with tempfile.TemporaryFile("w+") as asked, tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile() as err:
        json.dump(request, asked)
        asked.seek(0)
        worker = subprocess.Popen([sys.executable, "-P", "-c", WORKER, paths], stdin=asked, stdout=out, stderr=err)
        try:
            while worker.poll() is None:
                if reason := limits.reached():
                    raise LimitReached(f"timing was ended: {reason}")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    worker.wait(_POLL)
        finally:
            worker.kill()
            worker.wait()
        out.seek(0)
        lines = out.read().splitlines()
        err.seek(0)
        complaints = err.read().decode(errors="replace").splitlines()[-1:] or [""]
    if worker.returncode != 0 or not lines:
        names = " and ".join(entry[0] for entry in request["models"])
        code = worker.returncode
        raise InputRejected(f"the process that timed {names} died (exit code {code}) {complaints[0]}".rstrip())
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer


def _as_file(model: Path | bytes, place: Path) -> Path:
    if isinstance(model, Path):
        return model.absolute()
    place.write_bytes(model)
    return place


def _stored(expected: Expected | None, place: Path) -> Path | None:
    if expected is None:
        return None
    arrays: dict[str, Any] = {f"input {name}": value for name, value in expected.inputs.items()}
    np.savez(place, output=expected.output, **arrays)
    return place


def _verify(session: Any, expected: Path) -> None:
    """Raise InputRejected where the output is not the expected one."""
    with np.load(expected) as stored:
        inputs = {name.removeprefix("input "): stored[name] for name in stored.files if name.startswith("input ")}
        errors = compare_outputs([stored["output"]], run(session, inputs), names=["output"])
    for error in errors:
        if not error.within:
            how = error.mismatch or f"it differs by {error.max_relative:.1e} of its range"
            raise InputRejected(f"it does not compute what it should: {how}")


def _optional_path(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())
