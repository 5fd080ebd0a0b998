"""torch as a runtime: the standard operators of a model one after the other, on the processor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from egraph_opt.backends.onnxruntime import Array, ValueSpec
from egraph_opt.errors import BackendMissing, InputRejected, one_line

if TYPE_CHECKING:
    from egraph_opt.backends.torch_operators import Function
    from egraph_opt.frontends.onnx_plain import PlainModel, PlainNode

# Before this opset operators have other meanings.
LOWEST_OPSET = 13


@dataclass(frozen=True)
class Torch:
    """torch on the processor, operator by operator. The number of threads holds for the whole process."""

    name: str = "torch"
    package: str = "torch"

    def load(
        self, model: str | Path | bytes, *, threads: int | None = None, kernel_library: Path | None = None
    ) -> TorchSession:
        """A session of a model of standard operators; see `runtimes.Runtime.load`."""
        if kernel_library is not None:
            raise InputRejected("torch runs no generated kernels")
        try:
            import torch
        except ImportError as error:
            raise BackendMissing(f"torch cannot be used: {one_line(str(error))}") from error
        from egraph_opt.frontends.onnx_plain import plain

        name = "the model" if isinstance(model, bytes) else str(model)
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            read = plain(model)
            if read.opset < LOWEST_OPSET:
                raise InputRejected(f"it has opset {read.opset}, and torch is given models from {LOWEST_OPSET} on")
            return TorchSession(read)
        except InputRejected as error:
            raise InputRejected(f"{name} does not load in torch: {error}") from error

    def bound(self, session: Any, inputs: Mapping[str, Array]) -> Callable[[], object]:
        """A run that converts no arrays."""
        found: Callable[[], object] = session.bound(inputs)
        return found


@dataclass(frozen=True)
class _Step:
    """A node: what computes it, from which tensors, and which tensors nobody needs afterwards."""

    node: PlainNode
    function: Function
    attributes: Mapping[str, Any]
    how: Mapping[int, list[int]]
    freed: tuple[str, ...]


class TorchSession:
    """A model as a list of torch's operations, used like a session of onnxruntime.

    Raises InputRejected for an operator that torch has no counterpart of.
    """

    def __init__(self, model: PlainModel) -> None:
        import torch

        self._torch = torch
        self._inputs = tuple(ValueSpec(value.name, value.type, value.shape) for value in model.inputs)
        self._outputs = tuple(ValueSpec(value.name, value.type, value.shape) for value in model.outputs)
        self._weights = {name: torch.from_numpy(np.array(value)) for name, value in model.weights.items()}
        self._steps = _steps(model)

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
        wanted = [spec.name for spec in self._outputs] if output_names is None else output_names
        found = self._run(self._tensors(input_feed))
        # Copies: an output may be an input or a weight.
        return [np.array(found[name].numpy(), order="C") for name in wanted]

    def bound(self, inputs: Mapping[str, Array]) -> Callable[[], object]:
        """A run on these inputs, the outputs being left where they are."""
        tensors = self._tensors(inputs)
        return lambda: self._run(tensors)

    def _tensors(self, inputs: Mapping[str, Array]) -> dict[str, Any]:
        missing = [spec.name for spec in self._inputs if spec.name not in inputs]
        if missing:
            raise InputRejected(f"the input {missing[0]!r} is missing")
        try:
            return {
                spec.name: self._torch.from_numpy(np.require(inputs[spec.name], requirements=["C", "W"]))
                for spec in self._inputs
            }
        except TypeError as error:
            raise InputRejected(f"torch: {error}") from error

    def _run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        values: dict[str, Any] = {**self._weights, **inputs}
        step = None
        try:
            with self._torch.inference_mode():
                for step in self._steps:
                    arguments = [
                        step.how[i] if i in step.how else values[name] if name else None
                        for i, name in enumerate(step.node.inputs)
                    ]
                    results = step.function(step.attributes, *arguments)
                    if len(step.node.outputs) == 1:
                        results = (results,)
                    values.update(zip(step.node.outputs, results, strict=True))
                    for name in step.freed:
                        del values[name]
        except Exception as error:
            where = f" in {step.node.operator}" if step is not None else ""
            raise InputRejected(f"torch: {type(error).__name__}{where}: {error}") from error
        return values


def _steps(model: PlainModel) -> list[_Step]:
    from egraph_opt.backends.torch_operators import HOW, lookup

    kept = {*model.weights, *(value.name for value in (*model.inputs, *model.outputs))}
    last = {name: i for i, node in enumerate(model.nodes) for name in (*node.inputs, *node.outputs) if name}
    constants = dict(model.weights)
    steps = []
    for number, node in enumerate(model.nodes):
        if len(node.outputs) > 1 and node.operator != "Split":
            raise InputRejected(f"torch has no counterpart of {node.operator} with several results")
        if node.operator == "Constant" and "value" in node.attributes:
            constants[node.outputs[0]] = node.attributes["value"]
        how = {
            i: [int(n) for n in constants[name].reshape(-1)]
            for i, name in enumerate(node.inputs)
            if i in HOW.get(node.operator, ()) and name in constants
        }
        freed = tuple(
            dict.fromkeys(n for n in (*node.inputs, *node.outputs) if n and last[n] == number and n not in kept)
        )
        attributes = {**node.attributes, "results": len(node.outputs)} if node.operator == "Split" else node.attributes
        steps.append(_Step(node, lookup(node.operator, model.opset), attributes, how, freed))
    return steps
