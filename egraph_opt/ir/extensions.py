"""Scalar functions, library operators and kernels that users add to the built-in ones.

``register(record, …)`` makes records known everywhere: to the rule language, the interpreter, the costs, the generated
kernels and the written model. ``with extended(record, …):`` does so for a while, for tests and scripts.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from itertools import product
from typing import Any

import numpy as np

from egraph_opt.errors import EgraphOptError
from egraph_opt.ir import library, scalar
from egraph_opt.ir.library import LibraryOperator, OnnxOperator
from egraph_opt.ir.scalar import Applied, ScalarFunction
from egraph_opt.ir.terms import Apply, Buffer, Call, Tensor, children

Record = ScalarFunction | LibraryOperator

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
# Terms apply functions of one or two arguments.
_ARITIES = (1, 2)
_ATTRIBUTE_TYPES = ("int", "ints", "float", "floats", "string")
# Where the meaning of a function is compared with its definition, and how far they may differ, of the magnitude.
_SAMPLES = np.linspace(-6.0, 6.0, 25)
_TOLERANCE = 1e-5


def register(*records: Record) -> None:
    """Add records; one that is known already is passed over.

    Raises EgraphOptError, naming the record and what is wrong with it, for a record that contradicts itself, a name
    that is taken by another one, and an ONNX operator that another function stands for. Either all are added or none.
    """
    before = dict(scalar.ADDED), dict(library.ADDED)
    try:
        for record in records:
            _add(record)
    except BaseException:
        _restore(*before)
        raise


def registered() -> tuple[Record, ...]:
    """Everything that was added, functions first, in the order of registration."""
    return (*scalar.ADDED.values(), *library.ADDED.values())


@contextmanager
def extended(*records: Record) -> Iterator[None]:
    """These records, too, inside the ``with`` block; afterwards what was registered before."""
    before = dict(scalar.ADDED), dict(library.ADDED)
    try:
        register(*records)
        yield
    finally:
        _restore(*before)


def is_exact(name: str) -> bool:
    """Whether modular arithmetic can judge rules about a function or operator; others are judged in floating point.

    Raises EgraphOptError for an unknown name.
    """
    if name in library.ADDED or not (name in scalar.ADDED or scalar.is_built_in(name)):
        return library.lookup(name).exact
    return scalar.lookup(name).exact


def function_of(domain: str, op_type: str) -> ScalarFunction | None:
    """The added function that stands for an ONNX operator."""
    return next((f for f in scalar.ADDED.values() if f.onnx == op_type and f.domain == domain), None)


def added_functions(*terms: Tensor | Buffer) -> tuple[str, ...]:
    """The functions in some terms, with their parameters, that are not built in; sorted."""
    if not scalar.ADDED:
        return ()
    found: set[str] = set()
    stack: list[Tensor | Buffer] = list(terms)
    while stack:
        term = stack.pop()
        if isinstance(term, Apply):
            found.add(term.function)
        elif isinstance(term, Call):
            text = library.parse_attributes(term.attributes)
            found |= {text.get(library.POINTWISE_ATTRIBUTE, ""), *text.get(library.EPILOGUE_ATTRIBUTE, "").split("|")}
        stack.extend(children(term))
    return tuple(sorted(function for function in found if function and not scalar.is_built_in(function)))


def identity(*terms: Tensor | Buffer) -> str:
    """What tells versions of the added functions in some terms apart; empty where there are only built-in ones.

    Measurements and compiled kernels are kept under it.
    """
    return ",".join(f"{function}={_digest(scalar.lookup(function))}" for function in added_functions(*terms))


def _digest(applied: Applied) -> str:
    """Of everything that generated code and nodes depend on, inner functions included."""
    function = applied.function
    inner = sorted({step.function for step in applied.formula.steps}) if applied.formula else []
    nested = [_digest(scalar.lookup(text)) for text in inner if not scalar.is_built_in(text)]
    content = f"{applied.formula}|{function.onnx}|{function.domain}|{function.attributes}|{applied.parameters}|{nested}"
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _restore(functions: dict[str, ScalarFunction], operators: dict[str, LibraryOperator]) -> None:
    for known, before in ((scalar.ADDED, functions), (library.ADDED, operators)):
        known.clear()
        known.update(before)  # type: ignore[arg-type]
    scalar.lookup.cache_clear()


def _add(record: Record) -> None:
    if not isinstance(record, ScalarFunction | LibraryOperator):
        raise EgraphOptError(f"{record!r} is neither a ScalarFunction nor a LibraryOperator")
    what = "scalar function" if isinstance(record, ScalarFunction) else "library operator"
    if not isinstance(record.name, str) or not _NAME.fullmatch(record.name):
        raise EgraphOptError(f"{what} {record.name!r}: a name is a letter followed by letters, digits and '_'")

    def refuse(problem: str) -> EgraphOptError:
        return EgraphOptError(f"{what} {record.name!r}: {problem}")

    built_in: Iterable[Record] = scalar.CATALOGUE if isinstance(record, ScalarFunction) else library.OPERATORS
    known: Record | None = (scalar.ADDED if isinstance(record, ScalarFunction) else library.ADDED).get(record.name)
    if known is None and any(other.name == record.name for other in built_in):
        raise refuse("the built-in one of this name cannot be replaced; choose another name")
    if known is not None:
        if not _same(known, record):
            raise refuse("another one of this name is registered; choose another name, or use extended(…) for a while")
        return
    if isinstance(record, ScalarFunction):
        _check_function(record, refuse)
        scalar.ADDED[record.name] = record
    else:
        _check_operator(record, refuse)
        library.ADDED[record.name] = record
    scalar.lookup.cache_clear()


def _same(one: Record, other: Record) -> bool:
    """Equal records; functions read twice from the same text are equal."""
    return one == other or (
        type(one) is type(other)
        and all(_equal(getattr(one, entry.name), getattr(other, entry.name)) for entry in fields(one))
    )


def _equal(one: Any, other: Any) -> bool:
    code, other_code = getattr(one, "__code__", None), getattr(other, "__code__", None)
    if code is None or other_code is None:
        return bool(one == other)
    held, other_held = ([cell.cell_contents for cell in f.__closure__ or ()] for f in (one, other))
    return (
        code == other_code
        and (one.__defaults__, one.__kwdefaults__) == (other.__defaults__, other.__kwdefaults__)
        and len(held) == len(other_held)
        and all(_equal(a, b) for a, b in zip(held, other_held, strict=True))
    )


# ---- what is wrong with a record -----------------------------------------------------------------------------------

Refuse = Callable[[str], EgraphOptError]


def _check_function(function: ScalarFunction, refuse: Refuse) -> None:
    if function.arity not in _ARITIES:
        raise refuse(f"it takes {function.arity} arguments; one or two are possible")
    if function.definition is None and not function.onnx:
        raise refuse("nothing computes it; give a definition by other functions, or the name of an onnx operator")
    if function.definition is None and function.numpy is None:
        raise refuse("it has no meaning; give numpy, or a definition by other functions")
    if function.definition is None and function.cost is None:
        raise refuse("give its cost, in multiples of one float addition")
    if function.cost is not None and not 0 <= function.cost < float("inf"):
        raise refuse(f"a cost of {function.cost}")
    if len(function.defaults) not in (0, len(function.attributes)):
        raise refuse(f"{len(function.defaults)} defaults of {len(function.attributes)} attributes")
    other = next((f for f in (*scalar.CATALOGUE, *scalar.ADDED.values()) if _stands_for(f, function)), None)
    if other is not None:
        raise refuse(f"the ONNX operator {function.onnx} is the function {other.name!r} already")
    parameters = function.defaults or (1.0,) * len(function.attributes)
    applied = Applied(function, tuple(map(float, parameters)))
    assert applied.formula is None or applied.cost >= 0  # traced: whatever is wrong with the definition is raised here
    points = [np.array([0.0])] * function.arity
    if function.keeps_zero and float(_values(applied, points, refuse)[0]) != 0:
        raise refuse("it does not keep zero: its value at zero is another")
    if function.numpy is not None and applied.formula is not None:
        _check_definition(applied, refuse)


def _stands_for(one: ScalarFunction, other: ScalarFunction) -> bool:
    return bool(other.onnx) and (one.onnx, one.domain) == (other.onnx, other.domain)


def _check_definition(applied: Applied, refuse: Refuse) -> None:
    grid = np.array(list(product(_SAMPLES, repeat=applied.function.arity))).T
    meant = _values(applied, list(grid), refuse)
    defined = _values(Applied(_without_numpy(applied.function), applied.parameters), list(grid), refuse)
    with np.errstate(all="ignore"):
        wrong = ~(np.abs(meant - defined) <= _TOLERANCE * np.maximum(1.0, np.abs(meant)))
    wrong &= np.isfinite(meant) | np.isfinite(defined)
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        point = ", ".join(f"{axis[at]:g}" for axis in grid)
        raise refuse(f"at ({point}) numpy gives {meant[at]:g}, but its definition {defined[at]:g}")


def _without_numpy(function: ScalarFunction) -> ScalarFunction:
    return ScalarFunction(function.name, function.arity, attributes=function.attributes, definition=function.definition)


def _values(applied: Applied, points: list[np.ndarray[Any, Any]], refuse: Refuse) -> np.ndarray[Any, Any]:
    try:
        with np.errstate(all="ignore"):
            found = np.asarray(applied(*points), dtype=np.float64)
    except EgraphOptError:
        raise
    except Exception as error:
        raise refuse(f"its meaning raised {type(error).__name__}: {error}") from error
    if found.shape != points[0].shape:
        raise refuse(f"its meaning gives {list(found.shape)} for arguments of extents {list(points[0].shape)}")
    return found


def _check_operator(operator: LibraryOperator, refuse: Refuse) -> None:
    least, most = operator.arities
    if not 1 <= least <= most:
        raise refuse(f"it takes {operator.arity} arguments; at least one is needed")
    if operator.onnx is None and operator.kernel is None:
        raise refuse("nothing computes it; give the onnx operator that does, or a kernel")
    if operator.onnx is not None and not isinstance(operator.onnx, OnnxOperator):
        raise refuse(f"onnx is an OnnxOperator, not {operator.onnx!r}")
    if operator.flops is None and operator.seconds is None:
        raise refuse("it has no cost; give flops, or seconds")
    if not 0 < operator.efficiency <= 1:
        raise refuse(f"an efficiency of {operator.efficiency}; it is a share of the machine's peak")
    for name, kind in operator.attributes.items():
        if kind not in _ATTRIBUTE_TYPES:
            raise refuse(f"attribute {name} has the type {kind!r}; known: {', '.join(_ATTRIBUTE_TYPES)}")
        if name in (library.POINTWISE_ATTRIBUTE, library.EPILOGUE_ATTRIBUTE) or not _NAME.fullmatch(name):
            raise refuse(f"an attribute cannot be called {name!r}")
    for part in ("shape", "numpy", "flops", "seconds", "kernel"):
        given = getattr(operator, part)
        if given is not None and not callable(given):
            raise refuse(f"{part} is a function, not {given!r}")
