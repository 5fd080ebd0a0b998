"""Runtimes that run a whole ONNX model: onnxruntime, which is always there, and others that are extras.

Whatever runs a model, its session is used as onnxruntime's: `get_inputs`, `get_outputs` and `run(None, inputs)`. So all
code that runs, verifies and times models is the same for all runtimes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from egraph_opt.errors import BackendMissing, InputRejected, UsageError

if TYPE_CHECKING:
    from egraph_opt.backends.onnxruntime import Array, ValueSpec

# The runtime that every model is for unless its metadata say otherwise, and whose answers and latency count.
DEFAULT = "onnxruntime"
# What a user asks for to have all installed runtimes tried.
AUTO = "auto"
NAMES = (DEFAULT, "openvino", "torch")
# What users may ask for.
CHOICES = (*NAMES, AUTO)
# The metadata entry of a model that names its runtime.
KEY = "egraph_opt.runtime"


class Session(Protocol):
    """A model that is ready to run, used like an ``onnxruntime.InferenceSession``."""

    def get_inputs(self) -> Sequence[ValueSpec]:
        """What it has to be fed."""

    def get_outputs(self) -> Sequence[ValueSpec]:
        """What it returns."""

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, Array], run_options: Any = None) -> Any:
        """The outputs of these names, all in order if None, as a list of arrays.

        Raises InputRejected, or an exception of the runtime's, where the model fails on these inputs.
        """


class Runtime(Protocol):
    """Something that runs whole ONNX models on the processor, with one thread pool of its own for each process."""

    @property
    def name(self) -> str:
        """What users call it."""

    @property
    def package(self) -> str:
        """The distribution that it comes with."""

    def load(
        self, model: str | Path | bytes, *, threads: int | None = None, kernel_library: Path | None = None
    ) -> Session:
        """A session of a model file or serialized model. ``threads`` None leaves the runtime's own choice.

        Raises InputRejected for a model that it cannot load, BackendMissing where it is not installed.
        """

    def bound(self, session: Any, inputs: Mapping[str, Array]) -> Callable[[], object]:
        """A run of a session on inputs that are bound once, for timing single steps."""


def find(name: str) -> Runtime:
    """A runtime by its name. Raises UsageError for an unknown one."""
    if name == "onnxruntime":
        from egraph_opt.backends.onnxruntime_runtime import OnnxRuntime

        return OnnxRuntime()
    if name == "openvino":
        from egraph_opt.backends.openvino_runtime import OpenVino

        return OpenVino()
    if name == "torch":
        from egraph_opt.backends.torch_runtime import Torch

        return Torch()
    raise UsageError(f"unknown runtime {name!r}; known: {', '.join(NAMES)}")


def declared(model: Path | bytes) -> str:
    """The runtime that a model's metadata name; the default one where they name none, or cannot be read."""
    from egraph_opt.frontends.onnx_metadata import metadata

    try:
        return metadata(model, KEY) or DEFAULT
    except InputRejected:  # which the runtime will say better
        return DEFAULT


def alone(name: str, threads: int | None) -> Runtime:
    """A runtime in a process of our own that runs no other one: all its sessions share one thread pool."""
    if name != DEFAULT:
        return find(name)
    from egraph_opt.backends.onnxruntime import create_process_pool
    from egraph_opt.backends.onnxruntime_runtime import OnnxRuntime

    create_process_pool(threads)
    return OnnxRuntime(pooled=True)


def empty_caller(runtime: Runtime) -> Callable[[], object]:
    """A run of a model that does nothing, bound like a step: what every measurement pays for the call."""
    import numpy as np

    from egraph_opt.backends.onnxruntime import EMPTY_MODEL

    return runtime.bound(runtime.load(EMPTY_MODEL), {"x": np.zeros(1, np.float32)})


def problem(name: str) -> str:
    """Why a runtime cannot be used here, and what to do about it; empty where it can. Imports nothing of it."""
    if importlib.util.find_spec(find(name).package) is not None:
        return ""
    # onnxruntime is no extra: without it nothing works.
    what = "egraph-opt" if name == DEFAULT else f"egraph-opt[{name}]"
    return f"{name} is not installed: pip install '{what}'"


def version(name: str) -> str:
    """The installed version of a runtime, "missing" where there is none. Imports nothing of it."""
    import importlib.metadata

    try:
        return importlib.metadata.version(find(name).package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def asked(choice: str) -> tuple[str, ...]:
    """The runtimes beside the default one that a choice stands for: "auto" for all that are installed.

    Raises UsageError for an unknown one, BackendMissing, naming the extra, for one that is not installed.
    """
    if choice == AUTO:
        return tuple(name for name in NAMES if name != DEFAULT and not problem(name))
    missing = problem(choice)
    if missing:
        raise BackendMissing(missing)
    return () if choice == DEFAULT else (choice,)
