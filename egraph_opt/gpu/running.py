"""Runs a program on a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from egraph_opt.errors import InputRejected
from egraph_opt.gpu.device import Device
from egraph_opt.gpu.files import Program
from egraph_opt.runtime.timing import Spread

# Runs before timing; seconds of a round, and the most runs in one.
WARM_RUNS, ROUND_SECONDS, MOST_REPEATS = 5, 0.05, 1000


class Runner:
    """A program on a device, its weights uploaded, ready to run.

    ``memory`` says where in one arena the buffers lie that steps can write to; the device's libraries allocate the
    others themselves.

    Raises EgraphOptError for a program whose kernels the device cannot load.
    """

    def __init__(self, program: Program, device: Device) -> None:
        self.program = program
        self.device = device
        device.load(program.modules)
        self.memory = program.memory(device.fills)
        arena = device.arena(self.memory.peak)
        self._places = {
            step.buffer: device.part(arena, self.memory.offsets[step.buffer], step.extents)
            for step in program.steps
            if step.buffer in self.memory.offsets
        }
        self._weights = {name: device.upload(value) for name, value in program.constants.items()}
        last: dict[str, int] = {}
        for number, step in enumerate(program.steps):
            last.update(dict.fromkeys(step.arguments, number))
        kept = {*self._weights, *program.inputs, *program.outputs.values()}
        self._freed = [
            [name for name in step.arguments if last[name] == number and name not in kept]
            for number, step in enumerate(program.steps)
        ]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name. Raises InputRejected for inputs that the program does not take."""
        found = self._steps(self._uploaded(inputs))
        return {name: self.device.download(found[buffer]) for name, buffer in self.program.outputs.items()}

    def captured(self, inputs: Mapping[str, np.ndarray]) -> Callable[[], None]:
        """A run on these inputs that stays on the device, as one graph where the device has such."""
        uploaded = self._uploaded(inputs)

        def steps() -> None:
            self._steps(uploaded)

        return self.device.captured(steps)

    def latency(self, inputs: Mapping[str, np.ndarray], *, rounds: int = 9) -> Spread:
        """Milliseconds of one run that stays on the device, over some rounds."""
        replay = self.captured(inputs)
        once = min(self.device.seconds(replay, 1) for _ in range(WARM_RUNS))
        repeats = max(1, min(MOST_REPEATS, int(ROUND_SECONDS / max(once, 1e-9))))
        return Spread.of([self.device.seconds(replay, repeats) * 1e3 for _ in range(rounds)])

    def _uploaded(self, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        for name, extents in self.program.inputs.items():
            if name not in inputs:
                raise InputRejected(f"the input {name!r} is missing")
            if tuple(np.shape(inputs[name])) != extents:
                raise InputRejected(f"input {name!r} has shape {list(extents)}, not {list(np.shape(inputs[name]))}")
        return {name: self.device.upload(np.asarray(inputs[name])) for name in self.program.inputs}

    def _steps(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        buffers: dict[str, Any] = {**self._weights, **inputs}
        for step, freed in zip(self.program.steps, self._freed, strict=True):
            arguments = [buffers[name] for name in step.arguments]
            if step.work is None:
                buffers[step.buffer] = self.device.reshape(arguments[0], step.extents)
            else:
                result = self.device.work(step.work, arguments, self._places.get(step.buffer))
                buffers[step.buffer] = self.device.reshape(result, step.extents)
            for name in freed:
                del buffers[name]
        return buffers


def random_inputs(program: Program, seed: int = 0) -> dict[str, np.ndarray]:
    """Standard normal float32 values for every input."""
    generator = np.random.default_rng(seed)
    return {name: generator.standard_normal(shape, dtype=np.float32) for name, shape in program.inputs.items()}
