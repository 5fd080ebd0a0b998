"""Weights that lie in files of ours while a model is worked on: tensors refer to them, arrays are views of them.

Models read from elsewhere never refer to files (``onnx_external`` brings everything in), so a reference is ours.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from egraph_opt.frontends.onnx_model import Array

# Tensors of at most so many bytes stay in memory: shape inference looks at small ones.
SMALLEST = 1 << 16
_KEYS = ("location", "offset", "length")


def size_of(tensor: TensorProto) -> int:
    """Bytes of a tensor's raw data, wherever they lie; 0 where it has none."""
    if tensor.data_location == TensorProto.EXTERNAL:
        return _place(tensor)[2]
    return len(tensor.raw_data)


def content_of(tensor: TensorProto) -> bytes:
    """A tensor's raw data."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return bytes(tensor.raw_data)
    path, offset, length = _place(tensor)
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)


def array_of(tensor: TensorProto) -> Array:
    """A tensor's values, read-only; of one that lies in a file a view of it."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    path, offset, _ = _place(tensor)
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    # A plain array: what is made of it is no view of a file.
    return np.memmap(path, dtype, "r", offset, tuple(tensor.dims)).view(np.ndarray)


def can_refer(tensor: TensorProto) -> bool:
    """Whether a tensor is worth lying in a file, and its raw data are its values as numpy knows them."""
    size = size_of(tensor)
    return size > SMALLEST and (tensor.data_location == TensorProto.EXTERNAL or _is_plain(tensor, size))


def point(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    """Let a tensor refer to a file."""
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in zip(_KEYS, (location, str(offset), str(length)), strict=True):
        tensor.external_data.add(key=key, value=value)


def bring_in(model: ModelProto) -> ModelProto:
    """The same model, which now refers to no file."""
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            content = content_of(tensor)
            tensor.ClearField("data_location")
            del tensor.external_data[:]
            tensor.raw_data = content
    return model


def _place(tensor: TensorProto) -> tuple[Path, int, int]:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location, offset, length = (entries[key] for key in _KEYS)
    return Path(location), int(offset), int(length)


def _is_plain(tensor: TensorProto, size: int) -> bool:
    """Whether the raw data are the values one after the other as numpy knows them."""
    if tensor.data_type in (TensorProto.STRING, TensorProto.UNDEFINED):
        return False
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    return dtype.kind in "biufc" and size == dtype.itemsize * int(np.prod(tensor.dims, dtype=np.int64))
