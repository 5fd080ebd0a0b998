"""The strongest test of a set of rules: after saturation every e-node of every class must have its class's value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from egraph_opt.egraph import primitives
from egraph_opt.egraph.pattern import parse_extents
from egraph_opt.egraph.snapshot import ENode, Snapshot, fraction
from egraph_opt.ir import interpreter, library
from egraph_opt.ir.interpreter import Arithmetic, ModularArithmetic

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Mismatch:
    """An e-node whose value differs from that of its class; ``rules`` made this e-node."""

    node: ENode
    other: ENode
    rules: tuple[str, ...]
    owner: int = -1


@dataclass(frozen=True)
class Verdict:
    """``checked`` e-nodes were evaluated, ``skipped`` were beyond the size limit.

    ``chosen`` is the e-node of each class whose value the others were compared with and that terms above it used.
    """

    checked: int
    skipped: int
    mismatches: tuple[Mismatch, ...]
    chosen: Mapping[int, ENode] = field(default_factory=dict, compare=False, repr=False)


def judge(
    snapshot: Snapshot,
    sources: Mapping[str, Array],
    arithmetic: Arithmetic | None = None,
    limit: int = 1 << 22,
    agrees: Callable[[Array, Array], bool] | None = None,
) -> Verdict:
    """Evaluate every e-node exactly (integers modulo a prime unless told otherwise) and compare within each class.

    ``sources`` gives an integer array for every source buffer; e-nodes with more than ``limit`` elements are skipped.
    ``agrees`` compares two arrays of equal extents.
    """
    agrees = agrees or _equal
    arithmetic = arithmetic or ModularArithmetic()
    values: dict[int, Array] = {}
    origin: dict[int, ENode] = {}
    pending = [
        (owner, node) for owner, nodes in snapshot.classes.items() for node in nodes if snapshot.sorts[owner] != "Args"
    ]
    too_large = [item for item in pending if prod(snapshot.extents[item[0]]) > limit]
    skipped = len(too_large)
    large = {id(node) for _, node in too_large}
    pending = [item for item in pending if id(item[1]) not in large]
    rules: dict[ENode, set[str]] = {}
    for derivation in snapshot.derivations:
        rules.setdefault(derivation.result, set()).add(derivation.rule)
    mismatches: list[Mismatch] = []
    checked = 0
    while pending:
        rest = []
        for owner, node in pending:
            children = _operands(snapshot, node)
            if any(child not in values for child in children):
                rest.append((owner, node))
                continue
            value = _value(snapshot, node, values, sources, arithmetic)
            checked += 1
            if owner not in values:
                values[owner], origin[owner] = value, node
            elif value.shape != values[owner].shape or not agrees(value, values[owner]):
                blamed = rules.get(node, set()) | rules.get(origin[owner], set())
                mismatches.append(Mismatch(node, origin[owner], tuple(sorted(blamed)), owner))
        if len(rest) == len(pending):
            return Verdict(checked, skipped + len(rest), tuple(mismatches), origin)
        pending = rest
    return Verdict(checked, skipped, tuple(mismatches), origin)


def _equal(a: Array, b: Array) -> bool:
    if np.issubdtype(a.dtype, np.integer):
        return bool(np.array_equal(a, b))
    return bool(np.allclose(a, b, rtol=1e-6, atol=1e-6, equal_nan=True))


def _operands(snapshot: Snapshot, node: ENode) -> tuple[int, ...]:
    return snapshot.arguments(node.children[0]) if node.constructor == "Call" else node.children


def _value(
    snapshot: Snapshot, node: ENode, values: Mapping[int, Array], sources: Mapping[str, Array], arithmetic: Arithmetic
) -> Array:
    a = node.arguments
    operands = [values[child] for child in _operands(snapshot, node)]
    match node.constructor:
        case "Source":
            return arithmetic.normal(sources[str(a[0])])
        case "Read" | "Compute":
            return operands[0]
        case "View":
            return interpreter.view(operands[0], primitives.map_of(str(a[1])), arithmetic)
        case "Sum":
            return arithmetic.reduce("sum", operands[0], int(a[1]))
        case "Reduce":
            return arithmetic.reduce(str(a[0]), operands[0], int(a[2]))
        case "Mul" | "Add":
            return arithmetic.apply(node.constructor.lower(), *operands)
        case "Apply1" | "Apply2":
            return arithmetic.apply(str(a[0]), *operands)
        case "Softmax":
            return arithmetic.softmax(operands[0], int(a[1]))
        case "Fill":
            return arithmetic.fill(fraction(a[0]), parse_extents(str(a[1])))
        case "Reshape":
            return operands[0].reshape(parse_extents(str(a[1])))
        case "Call":
            attributes = library.parse_attributes(str(a[1]))
            return library.evaluate(str(a[0]), attributes, operands, parse_extents(str(a[3])), arithmetic)
    raise AssertionError(node.constructor)
