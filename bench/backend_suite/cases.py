"""The cases of onnx's backend test-suite, as models with inputs: what the table and the tests run through.

The answers that onnx ships with them are not used: an optimized model is held against what onnxruntime computes for the
original. Cases that onnxruntime does not run are sorted out by whoever runs them.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

# The kinds that onnx's runner loads; "real" are its nine light networks, whose weights are constants.
KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator", "real")
# onnxruntime's newest IR version; a later stamp alone would keep it from loading the model.
HIGHEST_IR_VERSION = 13
# Weights that are no inputs exist since this IR version.
WEIGHTS_ALONE = 4


@dataclass(frozen=True)
class Case:
    """A model, serialized, and its ``feeds``: arrays, lists of arrays or None by input name."""

    name: str
    kind: str
    content: bytes
    feeds: dict[str, Any]

    def model(self) -> onnx.ModelProto:
        """The model, a new one at every call."""
        return onnx.ModelProto.FromString(self.content)


def collect(kinds: Sequence[str] = KINDS) -> tuple[Case, ...]:
    """All cases of these kinds; in the order of their names within a kind, the same in every run."""
    return tuple(case for kind in kinds for case in _of_kind(kind))


def with_weights(case: Case) -> Case:
    """The case with all numeric inputs but the first as weights: more is known of it, so more is rewritten."""
    model, feeds = case.model(), dict(case.feeds)
    known = {tensor.name for tensor in model.graph.initializer}
    required = [entry.name for entry in model.graph.input if entry.name not in known]
    for name in required[1:]:
        value = feeds.get(name)
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            model.graph.initializer.append(numpy_helper.from_array(feeds.pop(name), name))
            known.add(name)
    kept = [entry for entry in model.graph.input if entry.name not in known]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.ir_version = max(model.ir_version, WEIGHTS_ALONE)
    return Case(case.name, case.kind, model.SerializeToString(), feeds)


@cache
def _of_kind(kind: str) -> tuple[Case, ...]:
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = sorted(load_model_tests(kind=kind), key=lambda case: case.name)
    return tuple(_prepared(case, kind) for case in found)


def _prepared(found: Any, kind: str) -> Case:
    if found.url is not None:
        model = onnx.load(Path(onnx.__file__).parent.parent / found.url)
        values = [_range(entry) for entry in _required(model)]
    elif found.model is None:
        folder = Path(found.model_dir)
        model = onnx.load(folder / "model.onnx")
        stored = sorted((folder / "test_data_set_0").glob("input_*.pb"), key=lambda path: int(path.stem[6:]))
        values = [_read(path, entry.type) for path, entry in zip(stored, _required(model), strict=False)]
    else:
        model = onnx.ModelProto()
        model.CopyFrom(found.model)
        values = [_value(given) for given in found.data_sets[0][0]]
    # Fewer values than inputs: the others are optional.
    feeds = {entry.name: value for entry, value in zip(_required(model), values, strict=False)}
    model.ir_version = min(model.ir_version, HIGHEST_IR_VERSION)
    return Case(found.name, kind, model.SerializeToString(), feeds)


def _required(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    weights = {tensor.name for tensor in model.graph.initializer}
    return [entry for entry in model.graph.input if entry.name not in weights]


def _range(entry: onnx.ValueInfoProto) -> np.ndarray:
    """0 to 1 in equal steps: what onnx's runner feeds the light networks with."""
    shape = tuple(size.dim_value or 1 for size in entry.type.tensor_type.shape.dim)
    count = int(np.prod(shape))
    return (np.arange(count).reshape(shape) / count).astype(np.float32)


def _read(path: Path, kind: onnx.TypeProto) -> Any:
    holders = {"sequence_type": onnx.SequenceProto, "optional_type": onnx.OptionalProto}
    holder = holders.get(kind.WhichOneof("value") or "", onnx.TensorProto)
    return _value(holder.FromString(path.read_bytes()))


def _value(given: Any) -> Any:
    if isinstance(given, onnx.TensorProto):
        return numpy_helper.to_array(given)
    if isinstance(given, onnx.SequenceProto):
        return numpy_helper.to_list(given)
    if isinstance(given, onnx.OptionalProto):
        return numpy_helper.to_optional(given)
    return np.asarray(given) if isinstance(given, np.generic) else given
