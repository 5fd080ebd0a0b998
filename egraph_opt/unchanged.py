"""The model as it is, for a run that a limit ended."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from egraph_opt.backends.environment import package_versions
from egraph_opt.errors import InputRejected
from egraph_opt.frontends.onnx_storage import store
from egraph_opt.frontends.onnx_weights import bring_in
from egraph_opt.limits import Limits
from egraph_opt.result import Result
from egraph_opt.runtime.report import Report

if TYPE_CHECKING:
    import onnx

    from egraph_opt.backends.session_process import SessionProcess

# Seconds, and share of a time limit, in which onnxruntime must load the model.
LOADING_SECONDS, LOADING_SHARE = 3.0, 0.1


def unchanged(
    report: Report, model: onnx.ModelProto, why: str, threads: int | None, library: Path | None = None
) -> Result:
    """A model with its kernels as a result of its own; ``report`` has no operators yet."""
    operators = dict(Counter(node.op_type for node in model.graph.node))
    notes = tuple(dict.fromkeys(report.notes))
    found = replace(report, operators_before=operators, operators_after=operators, unchanged_because=why, notes=notes)
    return Result(bring_in(model), found, library.read_bytes() if library is not None else None, threads)


def load_in_time(
    model: onnx.ModelProto,
    name: str,
    sessions: SessionProcess,
    time_limit: float | None,
    memory: int | None,
    library: Path | None = None,
) -> None:
    """Raises InputRejected where onnxruntime does not load a model, LimitReached where it takes too long."""
    patience = max(LOADING_SECONDS, LOADING_SHARE * (time_limit or 0.0))
    sessions.limits = Limits(time.monotonic() + patience, memory)
    with tempfile.TemporaryDirectory(prefix="egraph-opt-") as folder:
        stored = store(model, Path(folder))
        try:
            sessions.open(stored, kernel_library=library, optimize=False)
        except InputRejected as error:
            raise InputRejected(str(error).replace(str(stored), name)) from error


def kept(
    path: Path, why: str, *, portable: bool, threads: int | None, time_limit: float | None, memory: int | None
) -> Result:
    """A model file that onnxruntime loads, unchanged."""
    from egraph_opt.backends.session_process import SessionProcess
    from egraph_opt.frontends.onnx_reader import parse

    with SessionProcess() as sessions:
        model = parse(path)[0]
        load_in_time(model, str(path), sessions, time_limit, memory)
    report = Report(model=path.name, portable=portable, operators_before={}, versions=package_versions())
    return unchanged(report, model, why, threads)
