"""Names and an order of definitions that depend on what a program computes alone.

The same model may be written with other names, in another order, with a weight twice. The e-graph of a program orders
classes by their terms, and these begin with names of sources: with canonical names all ties end the same way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

import numpy as np

from egraph_opt.ir.program import Program
from egraph_opt.ir.terms import Apply, Buffer, Call, Compute, Fill, Read, Reduce, Reshape, Softmax, Source, Tensor, View

# Inputs of equal extents up to so many are told apart by their uses; more of them by their order in the program.
TOLD_APART = 32
# Elements of a weight that its place in the order depends on.
SAMPLE = 4096


def canonical(program: Program) -> tuple[Program, dict[str, str]]:
    """The program under canonical names and in canonical order, and the names it had by the canonical ones.

    Constants of equal values are one; it has the name of the first of them. What no output needs comes last.
    """
    alias = _equal_constants(program)
    colors = {source.name: _digest("input", source.extents) for source in program.inputs}
    colors |= {name: _sampled(value) for name, value in program.constants.items()}
    alike: dict[bytes, list[str]] = {}
    for source in program.inputs:
        alike.setdefault(colors[source.name], []).append(source.name)
    marked = {}
    for equal in alike.values():
        for name in equal if 1 < len(equal) <= TOLD_APART else ():
            uses = _Hashes(program, {**colors, name: b"this"}, alias)
            marked[name] = _digest("input", *sorted(uses.of(output) for output in program.outputs))
    hashes = _Hashes(program, colors | marked, alias)
    positions = {output: number for number, output in enumerate(program.outputs)}
    outputs = sorted(positions, key=lambda output: (hashes.of(output), positions[output]))
    names = _Visit(program, alias).names((*outputs, *(name for name, _ in program.definitions)))
    terms = dict(program.definitions)
    new = {**names, **{copy: names[first] for copy, first in alias.items() if first in names}}
    definitions = tuple((names[name], renamed(terms[name], new)) for name in names if name in terms)
    ordered = {name: number for number, name in enumerate(names)}
    inputs = sorted((s for s in program.inputs if s.name in ordered), key=lambda source: ordered[source.name])
    found = Program(
        tuple(replace(source, name=names[source.name]) for source in inputs),
        definitions,
        tuple(names[output] for output in outputs),
        {names[name]: value for name, value in program.constants.items() if name in names},
    )
    return found, {short: name for name, short in names.items()}


def renamed(term: Tensor, names: Mapping[str, str]) -> Tensor:
    """The same term with other names of its sources."""
    match term:
        case Read(buffer):
            return Read(_renamed_buffer(buffer, names))
        case View(inner, index):
            return View(renamed(inner, names), index)
        case Reduce(operation, inner, count):
            return Reduce(operation, renamed(inner, names), count)
        case Softmax(inner, count):
            return Softmax(renamed(inner, names), count)
        case Apply(function, arguments):
            return Apply(function, tuple(renamed(argument, names) for argument in arguments))
        case Fill():
            return term


def _renamed_buffer(buffer: Buffer, names: Mapping[str, str]) -> Buffer:
    match buffer:
        case Source(name):
            return replace(buffer, name=names.get(name, name))
        case Compute(tensor):
            return Compute(renamed(tensor, names))
        case Reshape(inner, extents):
            return Reshape(_renamed_buffer(inner, names), extents)
        case Call(operator, attributes, arguments, extents):
            return Call(operator, attributes, tuple(_renamed_buffer(a, names) for a in arguments), extents)


def _equal_constants(program: Program) -> dict[str, str]:
    """The first constant of the same values for every later one."""
    groups: dict[bytes, list[str]] = {}
    alias: dict[str, str] = {}
    for name, value in program.constants.items():
        same = groups.setdefault(_sampled(value), [])
        first = next((n for n in same if _equal(program.constants[n], value)), None)
        if first is None:
            same.append(name)
        else:
            alias[name] = first
    return alias


def _equal(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return one is other or one.tobytes() == other.tobytes()  # bits: zeros have signs


def _sampled(value: np.ndarray[Any, Any]) -> bytes:
    """What a constant looks like from afar: equal for equal ones."""
    flat = value.reshape(-1)
    sample = np.ascontiguousarray(flat[:: max(1, flat.size // SAMPLE)])
    return _digest("constant", value.shape, value.dtype.str, sample.tobytes())


def _digest(*parts: object) -> bytes:
    total = blake2b(digest_size=16)
    for part in parts:
        content = part if isinstance(part, bytes) else str(part).encode(errors="surrogatepass")
        total.update(len(content).to_bytes(8, "little") + content)
    return total.digest()


@dataclass
class _Hashes:
    """Hashes of what definitions compute from sources of given ``colors``."""

    program: Program
    colors: Mapping[str, bytes]
    alias: Mapping[str, str]
    _known: dict[str, bytes] = field(default_factory=dict)

    def of(self, name: str) -> bytes:
        if not self._known:
            for defined, term in self.program.definitions:  # in execution order
                self._known[defined] = self._hash(term)
        return self._known.get(name) or self.colors[self.alias.get(name, name)]

    def _source(self, name: str, extents: tuple[int, ...]) -> bytes:
        found = self._known.get(name) or self.colors.get(self.alias.get(name, name))
        return found if found is not None else _digest("unknown", extents)

    def _hash(self, term: Tensor | Buffer) -> bytes:
        match term:
            case Source(name, extents):
                return self._source(name, extents)
            case View(inner, index):
                return _digest("view", index, self._hash(inner))
            case Fill(value, extents):
                return _digest("fill", value, extents)
            case Reduce(operation, inner, count):
                return _digest("reduce", operation, count, self._hash(inner))
            case Softmax(inner, count):
                return _digest("softmax", count, self._hash(inner))
            case Apply(function, arguments):
                return _digest("apply", function, *map(self._hash, arguments))
            case Read(inner) | Compute(inner):
                return _digest(type(term).__name__, self._hash(inner))
            case Reshape(buffer, extents):
                return _digest("reshape", extents, self._hash(buffer))
            case Call(operator, attributes, buffers, extents):
                return _digest("call", operator, attributes, extents, *map(self._hash, buffers))


@dataclass
class _Visit:
    program: Program
    alias: Mapping[str, str]

    def names(self, roots: tuple[str, ...]) -> dict[str, str]:
        """Canonical names of all definitions and sources in the order in which they are met, operands first.

        Each kind is counted for itself: a tensor that is only a copy changes no name of a source.
        """
        terms = dict(self.program.definitions)
        below = {name: [self.alias.get(n, n) for n in _sources(term)] for name, term in terms.items()}
        kinds = dict.fromkeys(self.program.constants, "w")
        counts: Counter[str] = Counter()
        found: dict[str, str] = {}
        stack = [(name, False) for name in reversed(roots)]
        while stack:
            name, ready = stack.pop()
            if name in found:
                continue
            if ready or name not in terms:
                kind = "t" if name in terms else kinds.get(name, "x")
                found[name] = f"{kind}{counts[kind]}"
                counts[kind] += 1
            else:
                stack.append((name, True))
                stack += [(need, False) for need in reversed(below[name])]
        return found


def _sources(term: Tensor | Buffer) -> Iterator[str]:
    """Names of the sources of a term in the order in which they are met."""
    match term:
        case Source(name):
            yield name
        case View(inner) | Reduce(_, inner) | Softmax(inner) | Read(inner) | Compute(inner) | Reshape(inner):
            yield from _sources(inner)
        case Apply(_, arguments):
            for argument in arguments:
                yield from _sources(argument)
        case Call(_, _, buffers):
            for buffer in buffers:
                yield from _sources(buffer)
