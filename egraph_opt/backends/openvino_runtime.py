"""OpenVINO as a runtime: standard operators on the processor, in float32 as the model says."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from egraph_opt.backends.onnxruntime import NUMPY_TYPES, Array, ValueSpec
from egraph_opt.errors import BackendMissing, InputRejected, one_line


@dataclass(frozen=True)
class OpenVino:
    """OpenVINO on the processor, one request at a time, threads pinned as it likes."""

    name: str = "openvino"
    package: str = "openvino"

    def load(
        self, model: str | Path | bytes, *, threads: int | None = None, kernel_library: Path | None = None
    ) -> OpenVinoSession:
        """A session of a model of standard operators; see `runtimes.Runtime.load`."""
        if kernel_library is not None:
            raise InputRejected("OpenVINO runs no generated kernels")
        from egraph_opt.frontends.onnx_plain import signature

        openvino = import_openvino()
        inputs, outputs = (
            tuple(ValueSpec(value.name, value.type, value.shape) for value in values) for values in signature(model)
        )
        # Without the hint it computes in bfloat16 where the processor can.
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = str(threads)
        name = "the model" if isinstance(model, bytes) else str(model)
        try:
            core = openvino.Core()
            read = core.read_model(model, b"") if isinstance(model, bytes) else core.read_model(str(model))
            return OpenVinoSession(openvino, core.compile_model(read, "CPU", settings), inputs, outputs)
        except InputRejected:
            raise
        except Exception as error:  # its exceptions share no base class of their own
            raise InputRejected(f"{name} does not load in OpenVINO: {_reason(error)}") from error

    def bound(self, session: Any, inputs: Mapping[str, Array]) -> Callable[[], object]:
        """A run without copies."""
        found: Callable[[], object] = session.bound(inputs)
        return found


class OpenVinoSession:
    """A compiled model with one request, used like a session of onnxruntime; runs from several threads take turns.

    Raises InputRejected where OpenVINO made other inputs or outputs of the model than it has.
    """

    def __init__(self, openvino: Any, compiled: Any, inputs: Sequence[ValueSpec], outputs: Sequence[ValueSpec]) -> None:
        self._openvino = openvino
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)
        ports = {name: port for port in compiled.inputs for name in port.get_names()}
        # An input that nothing reads may be gone.
        self._ports = {spec.name: ports[spec.name] for spec in inputs if spec.name in ports}
        # Outputs come in the order of the model; their names may have been merged with those of equal tensors.
        if len(compiled.outputs) != len(outputs) or len(set(self._ports.values())) != len(compiled.inputs):
            raise InputRejected("OpenVINO made other inputs or outputs of it")
        self._request = compiled.create_infer_request()
        self._held: dict[str, Array] = {}
        self._lock = threading.Lock()

    def get_inputs(self) -> tuple[ValueSpec, ...]:
        """What it has to be fed."""
        return self._inputs

    def get_outputs(self) -> tuple[ValueSpec, ...]:
        """What it returns."""
        return self._outputs

    def run(
        self, output_names: Sequence[str] | None, input_feed: Mapping[str, Array], run_options: Any = None
    ) -> list[Array]:
        """The outputs of these names, all in order if None. Raises InputRejected where the model fails."""
        try:
            with self._lock:
                self._feed(input_feed)
                self._request.infer()
                values = [
                    np.array(self._request.get_output_tensor(i).data, NUMPY_TYPES[spec.type])
                    for i, spec in enumerate(self._outputs)
                ]
        except InputRejected:
            raise
        except Exception as error:
            raise InputRejected(f"OpenVINO: {_reason(error)}") from error
        if output_names is None:
            return values
        named = dict(zip((spec.name for spec in self._outputs), values, strict=True))
        return [named[name] for name in output_names]

    def bound(self, inputs: Mapping[str, Array]) -> Callable[[], object]:
        """A run on these inputs that copies nothing. Raises InputRejected where the model fails on them."""
        self.run(None, inputs)
        infer: Callable[[], object] = self._request.infer
        return infer

    def _feed(self, inputs: Mapping[str, Array]) -> None:
        for spec in self._inputs:
            value = inputs.get(spec.name)
            if value is None:
                raise InputRejected(f"the input {spec.name!r} is missing")
            kind = NUMPY_TYPES[spec.type]
            if value.dtype != kind or len(value.shape) != len(spec.shape):
                raise InputRejected(f"the input {spec.name!r} is {value.dtype} {list(value.shape)}, not {spec.type}")
            if spec.name in self._ports:
                # It reads the array itself, which has to live until the next inputs come.
                array = np.require(value, requirements=["C", "A"])
                self._held[spec.name] = array
                tensor = self._openvino.Tensor(array, shared_memory=array.size > 0)
                self._request.set_tensor(self._ports[spec.name], tensor)


def import_openvino() -> Any:
    """The package, without its telemetry. Raises BackendMissing where it is not installed."""
    # It would send a message to its maker, and leave files in the home folder, as soon as it is imported; without this
    # module it takes a stub in its place.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise BackendMissing(f"openvino cannot be used: {one_line(str(error))}") from error
    return openvino


def _reason(error: BaseException) -> str:
    """What OpenVINO complains about, on one line, without the places in its source."""
    lines = [line.strip() for line in str(error).splitlines()]
    return one_line(" ".join(line for line in lines if line and not line.startswith(("Exception from", "Check '"))))
