"""What a model file says about itself, read without its weights."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from egraph_opt.errors import InputRejected


def metadata(path: Path, key: str) -> str | None:
    """The metadata entry ``key`` of a model file, None where it has none. Raises InputRejected for other files."""
    if not path.is_file():
        raise InputRejected(f"{path} {'is not a file' if path.exists() else 'does not exist'}")
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise InputRejected(f"{path} is no ONNX model: {error}") from error
    return next((entry.value for entry in model.metadata_props if entry.key == key), None)
