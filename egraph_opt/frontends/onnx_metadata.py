"""What a model says about itself beside what it computes; of a file this is read without its weights."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from egraph_opt.errors import InputRejected


def metadata(source: Path | bytes, key: str) -> str | None:
    """The metadata entry ``key`` of a model file or serialized model, None where it has none.

    Raises InputRejected for other files.
    """
    if isinstance(source, Path) and not source.is_file():
        raise InputRejected(f"{source} {'is not a file' if source.exists() else 'does not exist'}")
    try:
        if isinstance(source, bytes):
            model = onnx.load_model_from_string(source)
        else:
            model = onnx.load(source, load_external_data=False)
    except (DecodeError, ValueError) as error:
        name = "the model" if isinstance(source, bytes) else source
        raise InputRejected(f"{name} is no ONNX model: {error}") from error
    return entry(model, key)


def entry(model: onnx.ModelProto, key: str) -> str | None:
    """The metadata entry ``key`` of a model, None where it has none."""
    return next((found.value for found in model.metadata_props if found.key == key), None)


def put(model: onnx.ModelProto, key: str, value: str | None) -> None:
    """Give a model a metadata entry in the place of one that is there; None takes it away."""
    kept = [found for found in model.metadata_props if found.key != key]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    if value is not None:
        model.metadata_props.add(key=key, value=value)
