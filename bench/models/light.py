"""The nine real graphs inside the onnx package, whose weights were taken out, with seeded random weights instead."""

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

_FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
_GAIN = 1.6


def names() -> tuple[str, ...]:
    """The names of the graphs, without "light_"."""
    return tuple(sorted(path.stem.removeprefix("light_") for path in _FOLDER.glob("light_*.onnx")))


def light(name: str, *, seed: int = 0) -> onnx.ModelProto:
    """A graph with weights drawn so that activations keep their size; KeyError for an unknown name."""
    path = _FOLDER / f"light_{name}.onnx"
    if not path.exists():
        raise KeyError(f"no light model is called {name!r}; the names are: {', '.join(names())}")
    model = onnx.load(str(path))
    random = np.random.default_rng(seed)
    initial = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    positive = {node.input[4] for node in model.graph.node if node.op_type == "BatchNormalization"}
    kept = []
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape" or node.input[0] not in initial:
            kept.append(node)
            continue
        shape = [int(n) for n in initial[node.input[0]]]
        values = _drawn(random, shape, positive=node.output[0] in positive)
        model.graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
    model.ir_version = max(model.ir_version, 4)  # before, weights had to be inputs as well
    del model.graph.node[:]
    model.graph.node.extend(kept)
    used = {name for node in kept for name in node.input}
    for i in reversed(range(len(model.graph.initializer))):
        if model.graph.initializer[i].name not in used:
            del model.graph.initializer[i]
    for i in reversed(range(len(model.graph.input))):
        if model.graph.input[i].name not in used or model.graph.input[i].name in initial:
            del model.graph.input[i]
    return model


def _drawn(random: np.random.Generator, shape: list[int], *, positive: bool) -> np.ndarray:
    if len(shape) < 2:
        values = random.standard_normal(shape, dtype=np.float32) * np.float32(0.1)
        return values + np.float32(1.0) if not positive else np.abs(values) + np.float32(0.5)
    deviation = _GAIN / np.sqrt(np.prod(shape[1:]))
    return random.standard_normal(shape, dtype=np.float32) * np.float32(deviation)
