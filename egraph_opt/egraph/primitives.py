"""Python functions as egglog primitives: everything crosses the border as text.

egglog calls :func:`call`, :func:`count` and :func:`pick` (by reference, never by pickled value). A call returns records
separated by control characters; integers cross back in unary, because egglog can count matches in a text but not parse one.
"""

from __future__ import annotations

import base64
import pickle
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from egraph_opt.egraph.language import Constant, Each, Kind, format_extents, parse_extents
from egraph_opt.errors import EgraphOptError
from egraph_opt.ir import maps
from egraph_opt.ir.maps import IndexMap

_RECORD, _FIELD = "\x1e", "\x1f"
_registered: list[tuple[str, Each]] = []
_keys: dict[tuple[str, Each], str] = {}
_maps: dict[str, IndexMap] = {}


class RuleError(EgraphOptError):
    """A Python function of a rule raised; the message names the rule."""


def map_text(index: IndexMap) -> str:
    """Text of a map inside the e-graph; the map itself is kept so that it need not be parsed back."""
    text = index.text
    _maps.setdefault(text, index)
    return text


def map_of(text: str) -> IndexMap:
    found = _maps.get(text)
    if found is None:
        found = _maps[text] = maps.parse(text)
    return found


def register(rule: str, each: Each) -> str:
    """The key under which :func:`call` finds a rule's function."""
    identity = (rule, each)
    if identity not in _keys:
        _keys[identity] = str(len(_registered))
        _registered.append(identity)
    return _keys[identity]


@lru_cache(maxsize=None)
def call(key: str, *arguments: str) -> str:
    """All records a registered function returns for these arguments; empty text for none."""
    rule, each = _registered[int(key)]
    values = [_decode(argument, slot) for argument, slot in zip(arguments, each.arguments, strict=True)]
    try:
        records = each.function(*values)
        return _RECORD.join(_FIELD.join(_encode(field) for field in record) for record in records)
    except Exception as error:
        raise RuleError(f"rule {rule!r}: {each.function.__name__} raised {type(error).__name__}: {error}") from error


@lru_cache(maxsize=None)
def count(records: str) -> str:
    """Number of records, in unary."""
    return "1" * (records.count(_RECORD) + 1)


@lru_cache(maxsize=None)
def pick(records: str, record: int, field: int) -> str:
    return records.split(_RECORD)[record].split(_FIELD)[field]


@lru_cache(maxsize=None)
def pick_integer(records: str, record: int, field: int) -> str:
    return "1" * int(pick(records, record, field))


def _decode(text: str | int, slot: Any) -> Any:
    kind: Kind | None = None if isinstance(slot, Constant) else slot.kind
    if kind == "map":
        return map_of(str(text))
    if kind == "extents":
        return parse_extents(str(text))
    return text


def _encode(value: Any) -> str:
    if isinstance(value, IndexMap):
        return map_text(value)
    if isinstance(value, tuple):
        return format_extents(value)
    return str(value)


def reference(function: Callable[..., str]) -> str:
    """egglog text of a module-level Python function, pickled by reference."""
    return f'(py-object "{base64.b64encode(pickle.dumps(function, protocol=5)).decode()}")'
