"""Where measurements are made: on this machine, or wherever a ``concurrent.futures.Executor`` runs a function.

What is sent is plain data – small models, shared libraries of kernels, expected values, in one zip archive – and so is
what comes back: a JSON text. :func:`measure` is the function that an executor runs. It times in a process of its own,
and never while another measurement runs on its machine (`machine_lock`), however many workers there are.
"""

from __future__ import annotations

import io
import json
import math
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from egraph_opt.backends.environment import device_key, kernel_target
from egraph_opt.backends.model_timer import DevicesLost, Expected, TimedModel, time_each, time_models
from egraph_opt.backends.onnxruntime import Fill
from egraph_opt.backends.runtimes import DEFAULT, NAMES, problem, version
from egraph_opt.backends.timing_worker import Timed
from egraph_opt.errors import BackendMissing, EgraphOptError, InputRejected, LimitReached, one_line
from egraph_opt.limits import Limits

T = TypeVar("T")
# Models in one request: a device that is lost costs at most these a second try.
CHUNK = 8
# How often a request is sent before it is given up, and seconds until the first other try: that a device is gone
# becomes known after a moment.
TRIES, RETRY_SECONDS = 3, 1.0
# Bytes of an answer, and milliseconds of a sample, that are believed.
LARGEST_ANSWER, LONGEST_SAMPLE = 1 << 20, 1e9
# Seconds between two looks at the limits.
_POLL = 0.05
# What a measurement may end with, wherever it is made.
_ERRORS: tuple[type[EgraphOptError], ...] = (InputRejected, LimitReached, BackendMissing)


class Refused(EgraphOptError):  # noqa: N818
    """An answer that cannot be right."""


@dataclass(frozen=True)
class Machine:
    """What measures: the key of its measurements in a profile database, what its kernels are compiled for, and the
    versions of the runtimes that it has."""

    device: str
    target: str
    runtimes: tuple[tuple[str, str], ...] = ()

    @classmethod
    def here(cls, threads: int | None) -> Machine:
        """This machine, with so many threads of a runtime; None: its own choice."""
        versions = tuple((name, version(name)) for name in NAMES if not problem(name))
        return cls(device_key(threads), kernel_target(), versions)

    def key(self, runtime: str) -> str:
        """The key of measurements that are made in a runtime."""
        if runtime == DEFAULT:
            return self.device
        return f"{self.device}, {runtime} {dict(self.runtimes).get(runtime, 'missing')}"


class Runner(Protocol):
    """Whoever makes measurements."""

    def machine(self, threads: int | None, limits: Limits | None = None) -> Machine:
        """What measures. Raises DevicesLost where nobody is there, LimitReached where the answer takes too long."""

    def time_each(self, models: Sequence[TimedModel], *, threads: int | None, limits: Limits) -> list[Timed]:
        """See `model_timer.time_each`. Raises DevicesLost where nobody is left who could measure."""

    def time_models(
        self,
        models: Sequence[TimedModel],
        *,
        rounds: int,
        seed: int,
        shapes: Mapping[str, Sequence[int]] | None = None,
        fill: Fill,
        threads: int | None,
        enough_seconds: float,
        limits: Limits,
    ) -> list[list[float]]:
        """See `model_timer.time_models`. Raises DevicesLost, too."""


@dataclass(frozen=True)
class LocalRunner:
    """This machine."""

    def machine(self, threads: int | None, limits: Limits | None = None) -> Machine:
        return Machine.here(threads)

    def time_each(self, models: Sequence[TimedModel], *, threads: int | None, limits: Limits) -> list[Timed]:
        return time_each(models, threads=threads, limits=limits)

    def time_models(self, models: Sequence[TimedModel], **options: Any) -> list[list[float]]:
        return time_models(models, **options)


@dataclass
class ExecutorRunner:
    """The machine, or several of one kind, on which an executor runs what is submitted.

    The first that answers says what kind it is; answers of others, and such as cannot be right, are refused and their
    work is submitted again, TRIES times in all.
    """

    executor: Executor
    _machine: Machine | None = field(default=None, init=False)

    def machine(self, threads: int | None, limits: Limits | None = None) -> Machine:
        if self._machine is None:
            request = _packed("describe", (), {"threads": threads})
            self._answers([request], threads, lambda answer: None, limits or Limits(), {})
        assert self._machine is not None
        return self._machine

    def time_each(self, models: Sequence[TimedModel], *, threads: int | None, limits: Limits) -> list[Timed]:
        chunks = [models[begin : begin + CHUNK] for begin in range(0, len(models), CHUNK)]
        requests = [_packed("each", chunk, {"threads": threads, "seconds": _seconds(limits)}) for chunk in chunks]
        found: dict[int, list[Timed]] = {}
        reason = ""

        def check(answer: Mapping[str, Any]) -> list[Timed]:
            return [_timed(entry) for entry in _list(answer.get("timed"))]

        try:
            self._answers(requests, threads, check, limits, found, [len(chunk) for chunk in chunks])
        except LimitReached as limit:
            reason = str(limit)
        missing: Timed = ([], reason)
        return [timed for i, chunk in enumerate(chunks) for timed in found.get(i, [missing] * len(chunk))]

    def time_models(
        self, models: Sequence[TimedModel], *, threads: int | None, limits: Limits, **options: Any
    ) -> list[list[float]]:
        request = _packed("together", models, {**options, "threads": threads, "seconds": _seconds(limits)})
        found: dict[int, list[list[float]]] = {}

        def check(answer: Mapping[str, Any]) -> list[list[float]]:
            samples = [_samples(entry) for entry in _list(answer.get("samples"))]
            if len({len(entry) for entry in samples}) > 1 or not all(samples):
                raise Refused("models that were timed in turns have different numbers of samples")
            return samples

        self._answers([request], threads, check, limits, found, [len(models)])
        return found[0]

    def _answers(
        self,
        requests: Sequence[bytes],
        threads: int | None,
        check: Callable[[Mapping[str, Any]], Any],
        limits: Limits,
        found: dict[int, Any],
        counts: Sequence[int] = (),
    ) -> None:
        """Fill ``found`` with the checked answer to each request, by its number."""
        tries = dict.fromkeys(range(len(requests)), 0)
        running: dict[Future[bytes], int] = {}
        later: dict[int, float] = {}

        def submit(number: int) -> None:
            tries[number] += 1
            try:
                running[self.executor.submit(measure, requests[number])] = number
            except Exception as error:  # an executor that is broken or shut down
                raise DevicesLost(f"the executor takes no more work: {error}") from error

        try:
            for number in tries:
                submit(number)
            while running or later:
                limits.check()
                for number in [number for number, when in later.items() if time.monotonic() >= when]:
                    del later[number]
                    submit(number)
                if not running:
                    time.sleep(_POLL)
                done, _ = wait(running, _POLL, FIRST_COMPLETED)
                for future in sorted(done, key=running.__getitem__):
                    number = running.pop(future)
                    try:
                        answer = check(self._believed(future.result()))
                        if counts and len(answer) != counts[number]:
                            raise Refused(f"{len(answer)} answers to {counts[number]} questions")
                        found[number] = answer
                    except _ERRORS:
                        raise
                    except Exception as error:  # of the machine, of the way there, or of what came back
                        if tries[number] == TRIES:
                            raise DevicesLost(f"measuring failed {TRIES} times: {_reason(error)}") from error
                        later[number] = time.monotonic() + RETRY_SECONDS * tries[number]
        finally:
            for future in running:
                future.cancel()

    def _believed(self, data: bytes) -> Mapping[str, Any]:
        """The answer as data, if it can be that of this kind of machine."""
        data = bytes(data)
        if len(data) > LARGEST_ANSWER:
            raise Refused(f"an answer of {len(data)} bytes")
        answer = json.loads(data)
        if not isinstance(answer, dict) or not all(isinstance(answer.get(key), str) for key in ("device", "target")):
            raise Refused("an answer that does not say where it comes from")
        versions = [(one_line(str(name)), one_line(str(text))) for name, text in _list(answer.get("runtimes"))]
        machine = Machine(one_line(answer["device"]), one_line(answer["target"]), tuple(versions))
        if self._machine is None:
            self._machine = machine
        if machine != self._machine:
            raise Refused(f"measured on {machine.device} although the others are {self._machine.device}")
        if isinstance(answer.get("error"), str):
            raise next((kind for kind in _ERRORS if kind.__name__ == answer.get("kind")), InputRejected)(
                answer["error"]
            )
        return answer


def measure(request: bytes) -> bytes:
    """Make the measurements of a request on this machine; the answer is a JSON text.

    Whoever sends requests can run code here: they hold shared libraries.
    """
    with tempfile.TemporaryDirectory(prefix="egraph-opt-") as name, zipfile.ZipFile(io.BytesIO(request)) as archive:
        folder = Path(name)
        archive.extractall(folder)
        asked = json.loads((folder / "request.json").read_text())
        options = asked["options"]
        machine = Machine.here(options["threads"])
        answer: dict[str, Any] = asdict(machine)
        models = [_unpacked(folder, *entry) for entry in asked["models"]]
        seconds = options.pop("seconds", None)
        limits = Limits() if seconds is None else Limits(time.monotonic() + seconds)
        try:
            if asked["kind"] == "each":
                answer["timed"] = time_each(models, **options, limits=limits)
            elif asked["kind"] == "together":
                answer["samples"] = time_models(models, **options, limits=limits)
        except _ERRORS as error:
            answer |= {"error": str(error), "kind": type(error).__name__}
    return json.dumps(answer).encode()


def _packed(kind: str, models: Sequence[TimedModel], options: Mapping[str, Any]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        entries: list[list[str | None]] = []
        libraries: dict[Path, str] = {}
        for index, timed in enumerate(models):
            # A folder of its own: a model's weights lie beside it, under the name that is written in the model.
            place = f"{index}/{timed.model.name if isinstance(timed.model, Path) else 'model.onnx'}"
            if isinstance(timed.model, Path):
                weights = timed.model.with_name(timed.model.name + ".data")
                archive.write(timed.model, place)
                if weights.exists():
                    archive.write(weights, f"{index}/{weights.name}")
            else:
                archive.writestr(place, timed.model)
            library = timed.kernel_library
            if library is not None and library not in libraries:
                libraries[library] = f"kernels{len(libraries)}.so"
                archive.write(library, libraries[library])
            expected = None
            if timed.expected is not None:
                expected = f"{index}/expected.npz"
                with archive.open(expected, "w") as file:
                    e = timed.expected
                    np.savez(file, positions=e.positions, values=e.values, allowed=e.allowed)
            entries.append([place, None if library is None else libraries[library], expected, timed.runtime])
        asked = {"kind": kind, "models": entries, "options": dict(options)}
        archive.writestr("request.json", json.dumps(asked))
    return data.getvalue()


def _unpacked(folder: Path, model: str, library: str | None, expected: str | None, runtime: str) -> TimedModel:
    meant = None
    if expected is not None:
        with np.load(folder / expected) as stored:
            meant = Expected(*(stored[name] for name in ("positions", "values", "allowed")))
    return TimedModel(folder / model, None if library is None else folder / library, meant, runtime)


def _seconds(limits: Limits) -> float | None:
    left = limits.left()
    return left if math.isfinite(left) else None


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise Refused("an answer of another form")
    return value


def _samples(value: Any) -> list[float]:
    samples = _list(value)
    if not all(type(sample) in (int, float) and 0 < sample < LONGEST_SAMPLE for sample in samples):
        raise Refused("a time that is not positive and finite")
    return [float(sample) for sample in samples]


def _timed(value: Any) -> Timed:
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[1], str):
        raise Refused("an answer of another form")
    samples, error = _samples(value[0]), one_line(value[1])
    if bool(samples) == bool(error):
        raise Refused("neither times nor a reason why there are none")
    return samples, error


def _reason(error: BaseException) -> str:
    return one_line(str(error) if isinstance(error, EgraphOptError) else f"{type(error).__name__}: {error}")
