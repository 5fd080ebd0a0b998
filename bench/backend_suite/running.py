"""Running a model on a case's inputs, also those whose types numpy does not have."""

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

# onnxruntime's names of types that it converts neither from nor to numpy begin so.
UNKNOWN_TO_NUMPY = ("bfloat16", "float8", "float4", "int4", "uint4", "int2", "uint2")


def run_case(session: Any, feeds: Mapping[str, Any]) -> list[Any]:
    """All outputs in order; those of a type without numpy counterpart as a map of their shape and bytes.

    Raises InputRejected where the model fails on these inputs.
    """
    from egraph_opt.backends.onnxruntime import reason, run
    from egraph_opt.errors import InputRejected

    if not any(_is_unknown(value.type) for value in [*session.get_inputs(), *session.get_outputs()]):
        return run(session, feeds)
    try:
        given = {value.name: _given(value.type, feeds[value.name]) for value in session.get_inputs()}
        return [_found(value) for value in session.run_with_ort_values(None, given)]
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        raise InputRejected(f"the model does not run: {reason(error)}") from error


def _is_unknown(kind: str) -> bool:
    return any(f"({name}" in kind for name in UNKNOWN_TO_NUMPY)


def _given(kind: str, value: Any) -> Any:
    import onnxruntime

    if not _is_unknown(kind):
        return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value).reshape(value.shape))
    content = numpy_helper.from_array(value).raw_data
    made = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
        list(value.shape), helper.np_dtype_to_tensor_dtype(value.dtype)
    )
    if made.tensor_size_in_bytes() != len(content):
        raise ValueError(f"{len(content)} bytes for a {kind} of {made.tensor_size_in_bytes()}")
    ctypes.memmove(made.data_ptr(), content, len(content))
    return made


def _found(value: Any) -> Any:
    if not _is_unknown(value.data_type()):
        return value.numpy()
    content = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return {value.data_type(): np.array(value.shape()), "bytes": np.frombuffer(content, np.uint8)}
