"""Sessions of onnxruntime: the operator library, the judge of original models, and the runtime of optimized ones."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from egraph_opt.errors import BackendMissing, InputRejected, LimitReached, one_line

Array = NDArray[Any]
Shapes = Mapping[str, Sequence[int]]
# The value of all integers and of all floats of the inputs; None: random ones.
Fill = tuple[int | None, int | None]
RANDOM: Fill = (None, None)

PROVIDERS = ("CPUExecutionProvider",)
# y = Identity(x) over one float, opset 13, serialized: backends do not import onnx.
EMPTY_MODEL = bytes.fromhex(
    "080812003a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a02"
    "0801620f0a0179120a0a08080112040a02080142040a00100d"
)
SILENT = 4
# Seconds in which new threads begin their work.
_SETTLE_SECONDS = 1.0
MAXIMUM_INPUT_BYTES = 8 << 30
NUMPY_TYPES: Mapping[str, type[Any]] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
    "tensor(int16)": np.int16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
    "tensor(bool)": np.bool_,
    "tensor(string)": np.object_,
}


@dataclass(frozen=True, slots=True)
class ValueSpec:
    """An input or output: its name, onnxruntime's type text such as ``tensor(float)`` and its dimensions.

    A dimension is a number, the name of a symbol, or None where nothing is known.
    """

    name: str
    type: str
    shape: tuple[int | str | None, ...]


def make_session(
    model: str | Path | bytes,
    *,
    kernel_library: str | Path | None = None,
    threads: int | None = None,
    optimize: bool = True,
    spin: bool = True,
    process_pool: bool = False,
) -> Any:
    """An ``onnxruntime.InferenceSession`` on the CPU for a model file or serialized model.

    `kernel_library` holds the generated kernels; loading it runs its code, so only pass files that
    `runtime.cache.trusted_library` returned or that were just built. `threads` None leaves onnxruntime's default.
    `optimize` False runs the graph as written. `spin` False lets idle threads sleep between runs, so that several
    sessions in one process do not slow each other down. `process_pool` uses the pool of `create_process_pool`. Raises
    InputRejected for a model that does not load.
    """
    runtime = _onnxruntime()
    options = runtime.SessionOptions()
    # Failures arrive as exceptions; onnxruntime's own lines on stderr would repeat them.
    options.log_severity_level = SILENT
    level = runtime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    if process_pool:
        options.use_per_session_threads = False
    else:
        options.intra_op_num_threads = threads or 0
    if not spin:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    source = model if isinstance(model, bytes) else str(model)
    name = "the model" if isinstance(model, bytes) else str(model)
    try:
        if kernel_library is not None:
            options.register_custom_ops_library(str(kernel_library))
        # The fallback would retry and print to stdout.
        return runtime.InferenceSession(source, options, providers=list(PROVIDERS), enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        raise InputRejected(f"{name} does not load in onnxruntime: {reason(error)}") from error


def create_process_pool(threads: int | None) -> None:
    """Make one thread pool for all sessions of this process, with the threads that one session of its own would have.

    A session that chooses their number itself also pins each of them to a processor, which a pool does not: here its
    threads are pinned likewise. Only for processes of our own: afterwards onnxruntime refuses every session with a pool
    of its own, and the pool can be neither resized nor removed.
    """
    usual = _pinning_by(lambda: make_session(EMPTY_MODEL, threads=threads))
    pool = _pinning_by(lambda: _onnxruntime().set_global_thread_pool_sizes(threads or 0, 1))
    for (thread, _), (_, processors) in zip(sorted(pool.items()), sorted(usual.items()), strict=False):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(thread, processors)


def _pinning_by(start: Callable[[], Any]) -> dict[int, set[int]]:
    """The processors of the threads that something starts and keeps, by their numbers; nothing where nobody tells."""
    before, kept = _threads(), start()
    until = time.monotonic() + _SETTLE_SECONDS
    found = {}
    for thread in _threads() - before:
        with contextlib.suppress(OSError):  # it was a short one
            # A thread pins itself, at some time before it first falls asleep.
            while _state(thread) != "S" and time.monotonic() < until:
                time.sleep(0.001)
            found[thread] = os.sched_getaffinity(thread)
    del kept
    return found


def _state(thread: int) -> str:
    return Path(f"/proc/self/task/{thread}/stat").read_text().rpartition(")")[2].split()[0]


def _threads() -> set[int]:
    tasks = Path("/proc/self/task")
    return {int(name) for name in os.listdir(tasks)} if tasks.is_dir() else set()


def input_specs(session: Any) -> tuple[ValueSpec, ...]:
    """What `session` has to be fed."""
    return tuple(_spec(value) for value in session.get_inputs())


def output_specs(session: Any) -> tuple[ValueSpec, ...]:
    """What `session` returns."""
    return tuple(_spec(value) for value in session.get_outputs())


def random_inputs(
    specs: Sequence[ValueSpec],
    *,
    seed: int = 0,
    shapes: Shapes | None = None,
    default_dimension: int = 1,
    fill: Fill = RANDOM,
) -> dict[str, Array]:
    """Random values for every input: the same seed and shapes give the same values on every machine.

    Floats are standard normal, integers 0 or 1 (they may be indices or lengths). `shapes` gives whole shapes by input
    name, and lengths of symbolic dimensions by symbol (one number); the others are `default_dimension` long. With
    `fill` all integers (booleans, strings), or all floats, have one value: some models run on few values only. Raises
    InputRejected for a type that cannot be drawn and for a shape that contradicts the model.
    """
    given = dict(shapes or {})
    symbols = {dimension for spec in specs for dimension in spec.shape if isinstance(dimension, str)}
    for name, lengths in given.items():
        if name not in {spec.name for spec in specs} and not (name in symbols and len(lengths) == 1):
            known = ", ".join([spec.name for spec in specs] + sorted(symbols))
            raise InputRejected(f"shape given for {name}, which is neither an input nor a symbolic dimension ({known})")
    generator = np.random.default_rng(seed)
    return {spec.name: _draw(spec, _concrete_shape(spec, given, default_dimension), generator, fill) for spec in specs}


def run(session: Any, inputs: Mapping[str, Array], *, seconds: float = threading.TIMEOUT_MAX) -> list[Any]:
    """All outputs in order.

    Raises InputRejected where the model fails on these inputs, LimitReached where it runs longer than ``seconds``; a
    single operator is not interrupted.
    """
    options = _onnxruntime().RunOptions()
    timer = threading.Timer(seconds, setattr, (options, "terminate", True))
    timer.daemon = True
    if seconds < threading.TIMEOUT_MAX:
        timer.start()
    try:
        return list(session.run(None, dict(inputs), options))
    except Exception as error:
        if options.terminate:
            raise LimitReached(f"the model ran longer than {seconds:.0f} s") from error
        raise InputRejected(f"the model does not run: {reason(error)}") from error
    finally:
        timer.cancel()


def caller(session: Any, inputs: Mapping[str, Array]) -> Callable[[], object]:
    """A call without arguments that runs `session` once, for the timers in `runtime.timing`."""
    feed = dict(inputs)
    return lambda: session.run(None, feed)


def bound_caller(session: Any, inputs: Mapping[str, Array]) -> Callable[[], object]:
    """Like `caller`, with inputs and outputs bound once, so that no call copies or allocates them.

    Raises InputRejected where the model fails or an output's shape is not static.
    """
    runtime = _onnxruntime()
    binding = session.io_binding()
    try:
        held = [runtime.OrtValue.ortvalue_from_numpy(value) for value in inputs.values()]
        for name, value in zip(inputs, held, strict=True):
            binding.bind_ortvalue_input(name, value)
        for spec in output_specs(session):
            value = runtime.OrtValue.ortvalue_from_shape_and_type(list(spec.shape), NUMPY_TYPES[spec.type])
            held.append(value)
            binding.bind_ortvalue_output(spec.name, value)
        session.run_with_iobinding(binding)
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        raise InputRejected(f"the model does not run: {reason(error)}") from error

    def call() -> object:
        # The binding does not own the values it points to; this closure does.
        return held and session.run_with_iobinding(binding)

    return call


def reason(error: BaseException) -> str:
    """What onnxruntime complains about, on one line, without its error number."""
    text = one_line(str(error))
    for prefix in ("[ONNXRuntimeError] : ", "/onnxruntime_src/"):
        text = text.removeprefix(prefix)
    number, _, rest = text.partition(" : ")
    return rest if number.isdigit() else text


def _onnxruntime() -> Any:
    # Official builds send events to their maker unless this is set before they are loaded.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendMissing(f"onnxruntime is not installed: {one_line(str(error))}") from error
    # In case somebody else loaded it before.
    onnxruntime.disable_telemetry_events()
    return onnxruntime


def _spec(value: Any) -> ValueSpec:
    shape = value.shape if isinstance(value.shape, list | tuple) else []
    return ValueSpec(value.name, value.type, tuple(shape))


def _concrete_shape(spec: ValueSpec, given: Shapes, default_dimension: int) -> tuple[int, ...]:
    if spec.name in given:
        shape = tuple(given[spec.name])
        fits = len(shape) == len(spec.shape) and all(
            not isinstance(declared, int) or declared == length
            for declared, length in zip(spec.shape, shape, strict=True)
        )
        if not fits:
            raise InputRejected(f"input {spec.name} has shape {list(spec.shape)}, not {list(shape)}")
        return shape
    return tuple(
        dimension
        if isinstance(dimension, int)
        else int(given[dimension][0])
        if dimension is not None and dimension in given
        else default_dimension
        for dimension in spec.shape
    )


def _draw(spec: ValueSpec, shape: tuple[int, ...], generator: np.random.Generator, fill: Fill) -> Array:
    dtype = NUMPY_TYPES.get(spec.type)
    if dtype is None:
        raise InputRejected(f"input {spec.name} is a {spec.type}, for which no random values can be drawn")
    if any(length < 0 for length in shape):
        raise InputRejected(f"input {spec.name} has a negative dimension: {list(shape)}")
    count = 1
    for length in shape:
        count *= length
    if count * 8 > MAXIMUM_INPUT_BYTES:
        raise InputRejected(f"input {spec.name} of shape {list(shape)} is too large to draw")
    if np.issubdtype(dtype, np.floating):
        if fill[1] is not None:
            return np.full(shape, fill[1], dtype)
        # float32 first: half the memory of float64, and all narrower types round from the same values.
        narrow = np.float64 if dtype is np.float64 else np.float32
        return generator.standard_normal(shape, dtype=narrow).astype(dtype, copy=False)
    values = generator.integers(0, 2, size=shape) if fill[0] is None else np.full(shape, fill[0])
    return values.astype(str).astype(object) if dtype is np.object_ else values.astype(dtype)
