"""The process in which models are timed; see `model_timer`, which starts, watches and ends it."""

from __future__ import annotations

import json
import math
import os
import resource
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from egraph_opt.backends.onnxruntime import (
    Array,
    caller,
    create_process_pool,
    input_specs,
    make_session,
    random_inputs,
    run,
)
from egraph_opt.backends.runtimes import DEFAULT, alone, empty_caller
from egraph_opt.errors import InputRejected
from egraph_opt.limits import held_by
from egraph_opt.runtime.compare import compare_outputs
from egraph_opt.runtime.timing import sample_turns

# How many stages have begun, and with which model.
BEAT = struct.Struct("<qq")
# A prime: what is read in a wrong place is hardly ever what should have been read.
PERIOD = 65_521
# The least time that is kept of a run when that of an empty one is taken off, in milliseconds.
_LEAST = 1e-5
Timed = tuple[list[float], str]


def work(beat: int) -> None:
    """A request on stdin, the answer as the last line on stdout; the file ``beat`` tells what is going on."""
    request = json.load(sys.stdin)
    stages = 0

    def tell(index: int) -> None:
        nonlocal stages
        stages += 1
        os.pwrite(beat, BEAT.pack(stages, index), 0)

    memory = int(request["memory"])
    # The parent counts what is in use; what asks for much more at once gets nothing. Arenas ask for up to twice as much
    # as they use.
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (2 * memory if most < 0 else min(2 * memory, most), most))
    answer: dict[str, Any]
    try:
        if "alone" in request:
            answer = {"timed": _each(request, tell, memory // 2)}
        else:
            answer = {"samples": _together(request, tell)}
    except InputRejected as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))


def drawn(shapes: Sequence[Sequence[Any]]) -> list[Array]:
    """The inputs, float32 of these shapes in order, that steps are timed with and held against what is expected.

    Long ones repeat PERIOD numbers: drawing them all would take longer than many a step.
    """
    generator = np.random.default_rng(0)
    found = []
    for shape in shapes:
        size = math.prod(shape)
        some = generator.standard_normal(min(size, PERIOD), dtype=np.float32)
        found.append(np.resize(some, tuple(shape)))
    return found


def _together(request: Mapping[str, Any], tell: Callable[[int], None]) -> list[list[float]]:
    """Whole models, called as users call them."""
    create_process_pool(request["threads"])
    calls = []
    for index, (model, library) in enumerate(request["models"]):
        tell(index)
        session = make_session(model, kernel_library=library, process_pool=True)
        inputs = random_inputs(
            input_specs(session), seed=request["seed"], shapes=request["shapes"], fill=tuple(request["fill"])
        )
        run(session, inputs)
        calls.append(caller(session, inputs))
    return sample_turns(calls, rounds=request["rounds"], enough_seconds=request["enough_seconds"], announce=tell)


def _each(request: Mapping[str, Any], tell: Callable[[int], None], memory: int) -> list[Timed]:
    """Single steps, of which only the right ones are timed: in turns, as many as ``memory`` bytes hold."""
    settings = request["alone"]
    threads = settings["threads"]
    runtime = alone(settings["runtime"], threads)
    turns = {"turn_seconds": settings["turn"], "warm_seconds": settings["warm"]}
    overhead = min(sample_turns([empty_caller(runtime)], rounds=3, **turns)[0])
    timed: list[Timed] = [([], "")] * len(request["models"])
    ready: dict[int, Callable[[], object]] = {}

    def take_turns() -> None:
        numbers = list(ready)
        found = sample_turns(
            list(ready.values()),
            rounds=settings["rounds"],
            enough_seconds=settings["enough"],
            announce=lambda position: tell(numbers[position]),
            **turns,
        )
        for index, samples in zip(numbers, found, strict=True):
            timed[index] = ([max(sample - overhead, _LEAST) for sample in samples], "")
        ready.clear()

    for index, (model, library, expected) in enumerate(request["models"]):
        tell(index)
        try:
            session = runtime.load(model, threads=threads, kernel_library=library)
            specs = input_specs(session)
            inputs = dict(zip((spec.name for spec in specs), drawn([spec.shape for spec in specs]), strict=True))
            if expected is not None:
                _verify(session, inputs, Path(expected))
            elif runtime.name != DEFAULT:
                _as_onnxruntime(session, inputs, model)
            ready[index] = runtime.bound(session, inputs)
        except InputRejected as error:
            timed[index] = ([], str(error))
        if held_by(os.getpid()) > memory:
            take_turns()
    take_turns()
    return timed


def _as_onnxruntime(session: Any, inputs: Mapping[str, Array], model: str) -> None:
    """Raise InputRejected where another runtime answers otherwise than onnxruntime, which here makes no threads."""
    expected = run(make_session(model, threads=1, spin=False), inputs)
    for error in compare_outputs(expected, run(session, inputs)):
        if not error.within:
            how = error.mismatch or f"it differs by {error.max_relative:.1e} of its range"
            raise InputRejected(f"it does not compute what it should: {how}")


def _verify(session: Any, inputs: Mapping[str, Array], expected: Path) -> None:
    """Raise InputRejected where the output is not the expected one."""
    (output,) = run(session, inputs)
    with np.load(expected) as stored:
        positions, values, allowed = (stored[name] for name in ("positions", "values", "allowed"))
    found = output.reshape(-1)[positions].astype(np.float64)
    with np.errstate(all="ignore"):
        error = np.where((found == values) | (np.isnan(found) & np.isnan(values)), 0.0, np.abs(found - values))
    right = (error <= allowed) | np.isinf(allowed)
    if right.all():
        return
    largest = float(error[~right].max())
    scale = float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
    how = f"it differs by {largest / scale:.1e} of its range" if scale > 0 else f"it differs by {largest:.1e}"
    if not np.isfinite(largest):
        how = "NaN or infinities in different places"
    place = np.unravel_index(positions[int(np.argmin(right))], output.shape)
    raise InputRejected(f"it does not compute what it should: {how}, first at {list(map(int, place))}")
