"""Fair timing of two models: each in a process of its own, taking turns, with pauses between the turns.

One process would share a thread pool's caches and memory arena between the two, and two processes at work at the same
time would share the cores. onnxruntime's threads spin for a while after a run, hence the pause before the next turn.
"""

import math
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

PAUSE_SECONDS = 0.2
TURN_SECONDS = 0.2
FEWEST_ROUNDS = 3
_START = multiprocessing.get_context("spawn")


class WorkerError(Exception):
    """A worker process could not load or run its model; the message is onnxruntime's."""


def kernel_library(model: Path) -> Path:
    """Where the generated kernels of a model file are, if it has any: OUT.kernels.so beside OUT.onnx."""
    return model.with_suffix(".kernels.so")


class Worker:
    """One model in one process. The process starts at the first request and again after `close`."""

    def __init__(self, model: Path, *, threads: int, seed: int = 0, lean: bool = False, timeout: float = 900.0) -> None:
        """`lean` saves memory where a model fills it; `timeout` is the most seconds one request may take."""
        self._arguments = (model, threads, seed, lean)
        self._timeout = timeout
        self._running: tuple[Any, Connection] | None = None

    def measure(self, count: int) -> list[float]:
        """Seconds of each of `count` runs, after a few runs that are not counted. Raises WorkerError."""
        times: list[float] = self._ask(("measure", count))
        return times

    def outputs(self) -> dict[str, Array]:
        """The outputs for the seeded random inputs, by name. Raises WorkerError."""
        arrays: dict[str, Array] = self._ask(("outputs", 0))
        return arrays

    def close(self) -> None:
        """End the process, if it runs."""
        if self._running is None:
            return
        process, connection = self._running
        self._running = None
        connection.close()
        process.join(5.0)
        if process.is_alive():
            process.kill()
            process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, request: tuple[str, int]) -> Any:
        if self._running is None:
            ours, theirs = _START.Pipe()
            process = _START.Process(target=_serve, args=(theirs, *self._arguments), daemon=True)
            process.start()
            theirs.close()
            self._running = (process, ours)
        process, connection = self._running
        try:
            connection.send(request)
            if not connection.poll(self._timeout):
                process.kill()
                raise WorkerError(f"no answer within {self._timeout:.0f} s")
            succeeded, answer = connection.recv()
        except (EOFError, OSError):
            process.join()
            raise WorkerError(f"the process ended with exit code {process.exitcode}") from None
        if not succeeded:
            raise WorkerError(answer)
        return answer


def _serve(connection: Connection, model: Path, threads: int, seed: int, lean: bool) -> None:
    """Answer the requests of a Worker until it closes the connection; runs in the worker's process."""
    try:
        call, outputs = _open(model, threads, seed, lean)
        while True:
            request, count = connection.recv()
            if request == "outputs":
                connection.send((True, outputs()))
                continue
            for _ in range(max(1, min(count // 4, 20))):
                call()
            times = []
            for _ in range(count):
                start = time.perf_counter()
                call()
                times.append(time.perf_counter() - start)
            connection.send((True, times))
    except EOFError:
        return
    except Exception as error:
        connection.send((False, f"{type(error).__name__}: {error}"))


def _open(model: Path, threads: int, seed: int, lean: bool) -> tuple[Callable[[], Any], Callable[[], dict[str, Array]]]:
    """A run of a model file, in the runtime it is for, on seeded normal values that are bound; and its outputs."""
    from egraph_opt.backends.runtimes import DEFAULT, declared, find

    name = declared(model)
    if name == DEFAULT:
        return _open_in_onnxruntime(model, threads, seed, lean)
    runtime = find(name)
    session = runtime.load(model, threads=threads)
    inputs = _inputs(session, seed)
    names = [output.name for output in session.get_outputs()]
    return runtime.bound(session, inputs), lambda: dict(zip(names, session.run(None, inputs), strict=True))


def _open_in_onnxruntime(
    model: Path, threads: int, seed: int, lean: bool
) -> tuple[Callable[[], Any], Callable[[], dict[str, Array]]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # The pattern of the first run is allocated beside the memory of the first run: twice the memory, no faster.
    options.enable_mem_pattern = not lean
    library = kernel_library(model)
    if library.exists():
        options.register_custom_ops_library(str(library))
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    # Bound inputs and outputs: what is timed is the model, not the copies and conversions of the Python interface.
    binding = session.io_binding()
    for name, value in _inputs(session, seed).items():
        binding.bind_cpu_input(name, value)
    names = [output.name for output in session.get_outputs()]
    for name in names:
        binding.bind_output(name)

    def call() -> None:
        session.run_with_iobinding(binding)

    def outputs() -> dict[str, Array]:
        call()
        return dict(zip(names, binding.copy_outputs_to_cpu(), strict=True))

    return call, outputs


def _inputs(session: Any, seed: int) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    inputs = {}
    for value in session.get_inputs():
        if value.type != "tensor(float)" or not all(isinstance(size, int) for size in value.shape):
            raise ValueError(f"input {value.name!r} is {value.type} {value.shape}, not float32 of a known shape")
        inputs[value.name] = random.standard_normal(tuple(value.shape), dtype=np.float32)
    return inputs


@dataclass(frozen=True)
class Comparison:
    """Two models timed in turns: seconds for each round (the median of the turn), and how far the outputs differ."""

    original: tuple[float, ...]
    candidate: tuple[float, ...]
    largest_error: float

    def speed_up(self) -> tuple[float, float, float]:
        """First quartile, median and third quartile of original / candidate, taken round by round."""
        ratios = [before / after for before, after in zip(self.original, self.candidate, strict=True)]
        first, median, third = np.quantile(ratios, (0.25, 0.5, 0.75)).tolist()
        return first, median, third

    def milliseconds(self) -> tuple[float, float]:
        """Median over the rounds, of the original and of the candidate."""
        return statistics.median(self.original) * 1e3, statistics.median(self.candidate) * 1e3


def compare(
    original: Path,
    candidate: Path,
    *,
    rounds: int,
    threads: int,
    seed: int = 0,
    lean: bool = False,
    budget: float = 180.0,
) -> Comparison:
    """Time two model files with the same inputs and outputs, in turns, and compare their outputs.

    Every round times both, in changing order. After `budget` seconds no round starts, but three are always made.
    With `lean` a process ends after its turn, so that the two models never hold memory at the same time.
    Raises WorkerError when one of them cannot be loaded or run.
    """
    with (
        Worker(original, threads=threads, seed=seed, lean=lean) as first,
        Worker(candidate, threads=threads, seed=seed, lean=lean) as second,
    ):
        workers = (first, second)
        outputs, counts = [], []
        for worker in workers:
            outputs.append(worker.outputs())
            estimate = min(worker.measure(1))
            counts.append(max(1, min(1000, math.ceil(TURN_SECONDS / estimate))))
            if lean:
                worker.close()
            time.sleep(PAUSE_SECONDS)

        times: tuple[list[float], list[float]] = ([], [])
        start = time.monotonic()
        for number in range(rounds):
            if number >= FEWEST_ROUNDS and time.monotonic() - start > budget:
                break
            for side in (0, 1) if number % 2 == 0 else (1, 0):
                times[side].append(statistics.median(workers[side].measure(counts[side])))
                if lean:
                    workers[side].close()
                time.sleep(PAUSE_SECONDS)
    return Comparison(tuple(times[0]), tuple(times[1]), largest_error(outputs[0], outputs[1]))


def largest_error(expected: dict[str, Array], actual: dict[str, Array]) -> float:
    """Largest |actual - expected| of any output, as a share of that output's largest magnitude.

    Infinite where a value is NaN or infinite in one only. Raises WorkerError when names or shapes differ.
    """
    if expected.keys() != actual.keys():
        raise WorkerError(f"the outputs are {sorted(actual)}, not {sorted(expected)}")
    return max((_error(expected[name], actual[name], name) for name in expected), default=0.0)


def _error(expected: Array, actual: Array, name: str) -> float:
    if expected.shape != actual.shape:
        raise WorkerError(f"output {name!r} has shape {list(actual.shape)}, not {list(expected.shape)}")
    differs = ~((expected == actual) | (np.isnan(expected) & np.isnan(actual)))
    if not differs.any():
        return 0.0
    left, right = expected.astype(np.float64), actual.astype(np.float64)
    difference = float(np.abs(left[differs] - right[differs]).max())
    scale = float(np.abs(left[np.isfinite(left)], dtype=np.float64).max(initial=0.0))
    return difference / scale if math.isfinite(difference) and scale > 0.0 else math.inf
