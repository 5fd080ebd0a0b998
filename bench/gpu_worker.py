"""One measurement of a benchmark model on a GPU, in a process that can be ended when it takes too long."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from egraph_opt.gpu.files import KERNEL, MODE, Bundle, read_arrays
from egraph_opt.runtime.timing import Spread

if TYPE_CHECKING:
    from egraph_opt.extract.profile import Profile
    from egraph_opt.frontends.onnx_plain import PlainModel

ARCHITECTURE = "sm_90"
# Rounds of timing; seconds of one, and the most runs in it.
ROUNDS, ROUND_SECONDS, MOST_REPEATS = 9, 0.05, 1000
# How far torch in float64 may be from onnxruntime, as a share of the largest magnitude: both are float32's error apart.
SAME = 1e-3


@dataclass(frozen=True)
class Task:
    """What to measure: a ``model`` of the catalogue done in a ``way`` at a ``precision`` on a ``device``.

    Ways: ``profile`` fills the database; ``ours`` and ``library`` are this project's programs with and without
    generated kernels; ``eager`` and ``graph`` are torch operator by operator, and that as one CUDA graph; ``compile``
    is torch.compile; ``xla`` is jax. Precisions: ``float32``, ``TF32`` and ``float16``.
    """

    model: str
    way: str
    precision: str
    device: str
    folder: Path


class Worker:
    """A process for tasks, started when there is one."""

    def __init__(self) -> None:
        self._process: Any = None
        self._pipe: Connection | None = None

    def ask(self, task: Task, seconds: float) -> dict[str, Any]:
        """What came of a task; with ``problem`` when it failed or took too long."""
        if self._process is None or not self._process.is_alive() or self._pipe is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, other = context.Pipe()
            self._process = context.Process(target=_serve, args=(other,), daemon=True)
            self._process.start()
            other.close()
        try:
            self._pipe.send(task)
            if self._pipe.poll(seconds):
                found: dict[str, Any] = self._pipe.recv()
                return found
            problem = f"it took longer than {seconds:.0f} s"
        except (EOFError, OSError):
            problem = "its process ended"
        self.close()
        return {"problem": problem}

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process = self._pipe = None


def _serve(pipe: Connection) -> None:
    # jax would take the whole memory of the device at once.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    with contextlib.suppress(EOFError):
        while True:
            task = pipe.recv()
            begun = time.monotonic()
            try:
                found = perform(task)
            except Exception as error:  # whatever torch, jax and their compilers raise
                found = {"problem": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
            pipe.send({**found, "seconds": time.monotonic() - begun})


def perform(task: Task) -> dict[str, Any]:
    """Do a task in this process."""
    if task.way == "profile":
        return _profile(task)
    if task.way in ("ours", "library"):
        return _own(task)
    return _peer(task)


# ---- the model and what is right ------------------------------------------------------------------------------------


@cache
def original(name: str) -> PlainModel:
    """A benchmark model as plain data, its weights drawn from their seed."""
    from bench.models import catalogue
    from egraph_opt.frontends.onnx_plain import plain

    return plain(catalogue.get(name).SerializeToString())


def inputs_of(model: PlainModel) -> dict[str, np.ndarray]:
    """Standard normal inputs, the same everywhere."""
    generator = np.random.default_rng(0)
    shapes = {value.name: tuple(int(n) for n in value.shape if n is not None) for value in model.inputs}
    return {name: generator.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


@cache
def exact(name: str, device: str, folder: Path) -> tuple[np.ndarray, ...]:
    """The outputs in float64 by torch, held against those of onnxruntime that were computed with the bundle."""
    import torch

    from bench.gpu_peers import torch_module

    model = original(name)
    where = "cpu" if device == "host" else "cuda"
    with torch.inference_mode():
        inputs = [torch.from_numpy(value).to(where, torch.float64) for value in inputs_of(model).values()]
        found = tuple(value.cpu().numpy() for value in torch_module(model, torch.float64, where)(*inputs))
    sample = folder / f"{name}.npz"
    for value, wanted in zip(found, read_arrays(sample).values() if sample.exists() else (), strict=False):
        difference = error_of(sampled(value), wanted)
        if difference > SAME:
            raise RuntimeError(f"torch in float64 and onnxruntime differ by {difference:.1e}")
    return found


def sampled(value: np.ndarray, most: int = 1 << 16) -> np.ndarray:
    """Elements of an array, evenly spread; all of them where there are few."""
    flat = np.ascontiguousarray(value).reshape(-1)
    return flat[:: -(-flat.size // most)]


def error_of(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, as a share of the largest magnitude."""
    difference = np.abs(found.astype(np.float64) - expected)
    if not np.isfinite(difference).all():
        return float("inf")
    return float(difference.max(initial=0.0) / max(float(np.abs(expected).max(initial=0.0)), 1e-30))


def _errors(outputs: Sequence[np.ndarray], task: Task) -> float:
    return max(map(error_of, outputs, exact(task.model, task.device, task.folder)))


# ---- ours -----------------------------------------------------------------------------------------------------------


def database(folder: Path, precision: str) -> Path:
    """The profile database of a precision."""
    return folder / f"{precision}.db"


def _device(task: Task) -> Any:
    from egraph_opt.gpu.devices import device_of

    return device_of(task.device, ARCHITECTURE, tf32=task.precision == "TF32")


def _opened(task: Task, device: Any) -> Profile:
    from egraph_opt.extract.profile import Profile

    return Profile(database(task.folder, task.precision), device.key, MODE)


def _profile(task: Task) -> dict[str, Any]:
    """Measure what is not in the database yet. Kernels take the same time at every precision: they use no TF32."""
    from egraph_opt.extract.profile import Profile, devices
    from egraph_opt.gpu.profiling import measure

    bundle = Bundle.read(task.folder / f"{task.model}.bundle")
    device = _device(task)
    profile = _opened(task, device)
    before = database(task.folder, "float32")
    if task.precision != "float32" and before.exists():
        for key in devices(before):
            known = Profile(before, key, MODE).measured.values()
            kernels = [way for ways in known for name, way in ways.items() if name.startswith(KERNEL)]
            profile.add(way for way in kernels if not profile.knows(way.signature, way.implementation))
    failures = measure(bundle, device, profile)
    return {"ways": len(bundle.works), "failures": failures, "warning": profile.warning}


def _own(task: Task) -> dict[str, Any]:
    from egraph_opt.gpu.assembly import best_program
    from egraph_opt.gpu.running import Runner

    bundle, model, device = Bundle.read(task.folder / f"{task.model}.bundle"), original(task.model), _device(task)
    program = best_program(bundle, _opened(task, device), model.weights, kernels=task.way == "ours")
    inputs = inputs_of(model)
    runner = Runner(program, device)
    error = _errors(list(runner.run(inputs).values()), task)
    spread = runner.latency(inputs, rounds=ROUNDS)
    works = [step.work for step in program.steps if step.work is not None]
    kernels = sum(work.is_kernel for work in works)
    memory = program.memory().peak
    return {
        **_row(spread, error),
        "calls": len(works) - kernels,
        "kernels": kernels,
        "expected": program.seconds * 1e3,
        "memory": memory,
        "steps": sorted({work.signature for work in works}),
        "key": device.key,
    }


# ---- the peers ------------------------------------------------------------------------------------------------------


def _row(spread: Spread, error: float) -> dict[str, Any]:
    return {"milliseconds": [spread.lower, spread.median, spread.upper], "error": error}


def _peer(task: Task) -> dict[str, Any]:
    run, outputs, seconds = (_jax if task.way == "xla" else _torch)(task)
    error = _errors(outputs(), task)
    once = min(seconds(run, 1) for _ in range(5))
    repeats = max(1, min(MOST_REPEATS, int(ROUND_SECONDS / max(once, 1e-9))))
    return _row(Spread.of([seconds(run, repeats) * 1e3 for _ in range(ROUNDS)]), error)


Seconds = Callable[[Callable[[], object], int], float]


def _torch(task: Task) -> tuple[Callable[[], object], Callable[[], list[np.ndarray]], Seconds]:
    import torch

    from bench.gpu_peers import torch_module

    half, host = task.precision == "float16", task.device == "host"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = task.precision == "TF32"
    torch.backends.cudnn.benchmark = True
    where, kind = ("cpu" if host else "cuda"), (torch.float16 if half else torch.float32)
    model = original(task.model)
    module = torch_module(model, kind, where, channels_last=half)
    inputs = [torch.from_numpy(value).to(where, kind) for value in inputs_of(model).values()]
    if half:
        inputs = [x.to(memory_format=torch.channels_last) if x.dim() == 4 else x for x in inputs]
    function: Callable[..., Any] = module
    if task.way == "compile":
        torch._dynamo.reset()
        torch._inductor.config.freezing = True
        function = torch.compile(module, mode="default" if host else "max-autotune", fullgraph=True)

    def call() -> Any:
        with torch.inference_mode() if task.way != "compile" else torch.no_grad():
            return function(*inputs)

    run = call
    if task.way == "graph" and not host:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = call()

        def run() -> Any:
            graph.replay()
            return kept

    def outputs() -> list[np.ndarray]:
        for _ in range(3):
            found = run()
        return [value.float().cpu().numpy() for value in found]

    def on_device(body: Callable[[], object], repeats: int) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        for _ in range(repeats):
            body()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3 / repeats

    return run, outputs, _by_clock if host else on_device


def _by_clock(body: Callable[[], object], repeats: int) -> float:
    begun = time.perf_counter()
    for _ in range(repeats):
        body()
    return (time.perf_counter() - begun) / repeats


def _jax(task: Task) -> tuple[Callable[[], object], Callable[[], list[np.ndarray]], Seconds]:
    import jax
    import jax.numpy as jnp

    from bench.gpu_peers import jax_function

    jax.config.update("jax_default_matmul_precision", {"TF32": "tensorfloat32"}.get(task.precision, "highest"))
    kind = jnp.float16 if task.precision == "float16" else jnp.float32
    model = original(task.model)
    function = jax_function(model, kind)
    inputs = [jnp.asarray(value, kind) for value in inputs_of(model).values()]

    def run() -> Any:
        return function(*inputs)

    def seconds(body: Callable[[], object], repeats: int) -> float:
        jax.block_until_ready(body())
        begun = time.perf_counter()
        for _ in range(repeats):
            found = body()
        jax.block_until_ready(found)
        return (time.perf_counter() - begun) / repeats

    return run, lambda: [np.asarray(value, np.float32) for value in run()], seconds


def lookup_steps(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """The signatures of all steps in some results."""
    return {step for row in rows for step in row.get("steps", ())}
