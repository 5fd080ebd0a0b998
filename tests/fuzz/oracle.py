"""What must be true of every file, however damaged."""

from __future__ import annotations

import contextlib
import io
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from egraph_opt.backends.onnxruntime import Fill, input_specs, make_session, output_specs, random_inputs, run
from egraph_opt.cli import main
from egraph_opt.errors import EgraphOptError
from egraph_opt.runtime.compare import compare_outputs

# Inputs to compare on that are none of those that the tool verified with.
SEED = 12345
FILLS: tuple[Fill, ...] = ((None, None), (0, None), (1, None), (1, 1))
OPTIONS = ["--cost", "static", "--threads", "1", "--time-limit", "20", "-q"]
# Exit codes that may be: done, rejected, a limit was hit.
ALLOWED = (0, 3, 5)
# Reasons for which we reject what onnxruntime runs, each with why.
STRICTER: Mapping[str, str] = {}


def verdict(content: bytes, folder: Path, *, portable: bool = True) -> tuple[str, str]:
    """(class, details); classes other than those that begin with "ok" are findings."""
    path, out = folder / "model.onnx", folder / "out.onnx"
    for file in folder.iterdir():
        file.unlink()
    path.write_bytes(content)
    printed, complained = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(complained):
            code = main(["optimize", str(path), "-o", str(out), *OPTIONS, *(["--portable"] if portable else [])])
    except BaseException:
        return "traceback", traceback.format_exc()[-1500:]
    message = complained.getvalue().strip()
    if code not in ALLOWED:
        return f"exit code {code}", message
    if "\n" in message or (code != 0) != bool(message):
        return "message", message
    if code and {file.name for file in folder.iterdir()} != {"model.onnx"}:
        return "half written", message
    if path.read_bytes() != content:
        return "input changed", message
    answers = _answers(path)
    if code:
        if answers is None:
            return f"ok {code}", message
        return f"rejected with {code} though it runs", message
    library = out.with_name("out.kernels.so")
    if answers is None:
        try:
            make_session(out, kernel_library=library if library.exists() else None, threads=1, spin=False)
        except EgraphOptError as error:
            with contextlib.suppress(EgraphOptError):
                make_session(path, threads=1, spin=False)
                return "output does not load", str(error)
        return "ok 0, does not run", ""
    return _compared(path, out, library if library.exists() else None, answers)


def _compared(
    path: Path, out: Path, library: Path | None, answers: tuple[dict[str, Any], list[Any]]
) -> tuple[str, str]:
    inputs, expected = answers
    try:
        session = make_session(out, kernel_library=library, threads=1, spin=False)
    except EgraphOptError as error:
        return "output does not load", str(error)
    before = make_session(path, threads=1, spin=False)
    # Shapes that onnxruntime reports depend on what it infers; those that are declared must be the same.
    specs = [[(s.name, s.type) for s in found(session)] for found in (input_specs, output_specs)]
    if specs != [[(s.name, s.type) for s in found(before)] for found in (input_specs, output_specs)] or _changed(
        path, out
    ):
        return "interface changed", str(specs)
    try:
        found = run(session, inputs)
    except EgraphOptError as error:
        return "output does not run", str(error)
    wrong = _wrong(expected, found)
    changed = "ok 0" if path.read_bytes() == out.read_bytes() else "ok 0, changed"
    if not wrong:
        return changed, ""
    # Some models differ from themselves: random numbers, or rounding that another order of the same sums blows up.
    if _wrong(expected, run(before, inputs)) or _unstable(path, inputs, expected, wrong):
        return "ok 0, unstable", wrong
    if _is_extreme(path):
        return "ok 0, overflows", wrong
    # Known, see tests/pipeline/test_float_traps.py: of windows with NaN it takes the largest number.
    if "NaN" in wrong and any(found.op_type == "MaxPool" for found in onnx.load(path).graph.node):
        return "ok 0, NaN in MaxPool", wrong
    return "mismatch", wrong


def _changed(one: Path, other: Path) -> bool:
    """Whether declarations of inputs or outputs differ."""
    graphs = [onnx.load(path, load_external_data=False).graph for path in (one, other)]
    old = onnx.load(one, load_external_data=False).ir_version < 4  # every weight is an input there
    return list(graphs[0].output) != list(graphs[1].output) or (
        not old and list(graphs[0].input) != list(graphs[1].input)
    )


def _wrong(expected: list[Any], found: list[Any]) -> str:
    return "; ".join(
        f"{e.name}: {e.mismatch or f'{e.max_relative:.1e}'}" for e in compare_outputs(expected, found) if not e.within
    )


def _unstable(path: Path, inputs: Mapping[str, Any], expected: list[Any], wrong: str) -> bool:
    """Whether inputs that differ in the last bits change the answers as much."""
    session = make_session(path, threads=1, spin=False)
    random = np.random.default_rng(SEED)
    for _ in range(4):
        near = {
            name: (value * (1 + 2e-7 * random.choice([-1, 1], value.shape))).astype(value.dtype)
            if value.dtype in (np.float32, np.float64)
            else value
            for name, value in inputs.items()
        }
        try:
            if _wrong(expected, run(session, near)):
                return True
        except EgraphOptError:
            return True
    return False


def _is_extreme(path: Path) -> bool:
    """Whether weights are so large that sums overflow in one order and not in another."""
    graph = onnx.load(path).graph
    tensors = [*graph.initializer, *(a.t for node in graph.node for a in node.attribute if a.HasField("t"))]
    values = [np.abs(np.asarray(onnx.numpy_helper.to_array(t), np.float64)) for t in tensors if t.data_type != 8]
    return any(bool(np.any(value[np.isfinite(value)] > 1e15)) for value in values)


def _answers(path: Path) -> tuple[dict[str, Any], list[Any]] | None:
    """Inputs on which the model runs without optimizations, and what it says to them with the ordinary ones."""
    for optimize in (False, True):
        try:
            session = make_session(path, threads=1, spin=False, optimize=optimize)
        except EgraphOptError:
            return None
    for fill in FILLS:
        try:
            inputs = random_inputs(input_specs(session), seed=SEED, fill=fill)
            return inputs, run(session, inputs, seconds=5.0)
        except (EgraphOptError, MemoryError):
            continue
    return None
