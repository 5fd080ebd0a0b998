"""Dataclasses to plain JSON values and back.

Files of this form come from users and other machines, so decoding checks every type and never runs code.
"""

import base64
import binascii
import dataclasses
import json
import math
import types
import zlib
from collections.abc import Mapping
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from egraph_opt.errors import InputRejected

Record = TypeVar("Record")
NON_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def to_plain(value: Any) -> Any:
    """`value` as dicts, lists, strings, booleans and finite numbers; other floats become "inf", "-inf" or "nan"."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: to_plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"{type(value).__name__} has no plain form")


def from_plain(record: type[Record], data: Any, *, where: str = "") -> Record:
    """Build the dataclass `record` from `to_plain`'s form. Raises InputRejected naming the field that is wrong."""
    place = where or record.__name__
    if not isinstance(data, Mapping):
        raise InputRejected(f"{place}: an object was expected, not {type(data).__name__}")
    hints = get_type_hints(record)
    fields = {item.name: item for item in dataclasses.fields(record)}  # type: ignore[arg-type]
    unknown = sorted(str(key) for key in data if key not in fields)
    if unknown:
        raise InputRejected(f"{place}: unknown field {unknown[0]!r}")
    values: dict[str, Any] = {}
    for name, item in fields.items():
        if name in data:
            values[name] = _decode(hints[name], data[name], f"{place}.{name}")
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise InputRejected(f"{place}: field {name!r} is missing")
    return record(**values)


def packed(plain: Any) -> str:
    """Plain values as text for a model's metadata; equal values give equal texts."""
    text = json.dumps(plain, separators=(",", ":"), sort_keys=True)
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def unpacked(text: str, *, what: str, largest: int) -> Any:
    """Inverse of :func:`packed`. Raises InputRejected for anything else, or more than ``largest`` bytes of JSON."""
    try:
        unpacker = zlib.decompressobj()
        content = unpacker.decompress(base64.b64decode(text, validate=True), largest)
        if unpacker.unconsumed_tail or not unpacker.eof:
            raise InputRejected(f"{what} in the model cannot be read: cut off or too large")
        return json.loads(content)
    except (binascii.Error, zlib.error, ValueError, RecursionError) as error:
        raise InputRejected(f"{what} in the model cannot be read: {error}") from error


def _decode(kind: Any, data: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if data is None and type(None) in arguments:
            return None
        (only,) = (argument for argument in arguments if argument is not type(None))
        return _decode(only, data, where)
    if origin is tuple and isinstance(data, list):
        return tuple(_decode(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(data))
    if origin is dict and isinstance(data, Mapping):
        return {str(key): _decode(arguments[1], item, f"{where}[{key!r}]") for key, item in data.items()}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return from_plain(kind, data, where=where)
    if kind is float and isinstance(data, str) and data in NON_FINITE:
        return NON_FINITE[data]
    if kind is float and isinstance(data, int | float) and not isinstance(data, bool):
        return float(data)
    if isinstance(kind, type) and type(data) is kind:
        return data
    raise InputRejected(f"{where}: {getattr(kind, '__name__', kind)} was expected, not {type(data).__name__}")
