"""Partition of a model into convex regions of algebraic nodes, each a program of its own.

Every node gets a level: a node of the algebra has the level of its algebraic producers, one more than that of its
opaque producers; regions are the connected components of equal level. A path that leaves a region through an opaque
node comes back on a higher level, so a region can be replaced as a whole without making a cycle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from egraph_opt.frontends.onnx_context import FreshConstants
from egraph_opt.frontends.onnx_model import FLOAT, LoadedModel, TensorType
from egraph_opt.frontends.onnx_operators import HEAVY, VIEWS, explain
from egraph_opt.ir.program import Program
from egraph_opt.ir.terms import Reduce, Softmax, Source, Tensor, children, leaves

# Nodes of these operators go where only terms use their results that do not read them: the terms say it themselves.
ABSORBED = frozenset(("IsNaN",))


@dataclass(frozen=True)
class Region:
    """``nodes`` are positions in the model's node list, ascending; ``program`` says what they compute together.

    ``worthwhile`` is False when there is nothing to gain: only views, or a single pointwise operation.
    """

    index: int
    nodes: tuple[int, ...]
    program: Program
    worthwhile: bool


@dataclass(frozen=True)
class Partition:
    """All regions of a model, and for every other node that is not folded the reason why it is opaque."""

    regions: tuple[Region, ...]
    opaque: Mapping[int, str]


def partition(loaded: LoadedModel, *, ordered: bool = False) -> Partition:
    """The regions of a model in the order of their first nodes. Deterministic.

    With ``ordered`` nodes whose results depend on the order of elements, sums above all, stay outside.
    """
    terms, opaque, fresh = _encode_all(loaded, ordered)
    levels = _levels(loaded, terms)
    members = _components(loaded, terms, levels)
    users = _users(loaded)
    values = {**loaded.constants, **fresh.values}
    regions = tuple(_region(i, nodes, loaded, terms, users, values) for i, nodes in enumerate(members))
    return Partition(regions, opaque)


def _encode_all(
    loaded: LoadedModel, ordered: bool
) -> tuple[dict[int, dict[str, Tensor]], dict[int, str], FreshConstants]:
    types = dict(loaded.types)
    known = replace(loaded, types=types)
    fresh = FreshConstants(loaded.names)
    terms: dict[int, dict[str, Tensor]] = {}
    opaque: dict[int, str] = {}
    for i, node in enumerate(loaded.nodes):
        if i in loaded.folded:
            continue
        found, reason = explain(node, known, fresh)
        if found is None:
            opaque[i] = reason
            continue
        if ordered and any(map(_reduces, found.values())):
            opaque[i] = "its elements are combined in an order that is to stay"
            continue
        terms[i] = found
        for name, term in found.items():
            # Encodings know extents that inference could not find.
            types[name] = TensorType(FLOAT, term.extents)
    for i in _absorbed(loaded, terms, opaque):
        terms[i] = {}
        del opaque[i]
    return dict(sorted(terms.items())), opaque, fresh


def _reduces(term: Tensor) -> bool:
    if isinstance(term, Reduce | Softmax):
        return True
    return any(_reduces(child) for child in children(term) if isinstance(child, Tensor))


def _absorbed(
    loaded: LoadedModel, terms: Mapping[int, Mapping[str, Tensor]], opaque: Mapping[int, str]
) -> tuple[int, ...]:
    candidates = [i for i in opaque if loaded.nodes[i].op_type in ABSORBED and not loaded.nodes[i].domain]
    users = _users(loaded) if candidates else {}

    def unread(user: int, name: str) -> bool:
        read = (s.name for term in terms.get(user, {}).values() for s in leaves(term) if isinstance(s, Source))
        return user in terms and name not in read

    return tuple(
        i for i in candidates if all(unread(u, name) for name in loaded.nodes[i].output for u in users.get(name, ()))
    )


def _levels(loaded: LoadedModel, terms: Mapping[int, object]) -> list[int]:
    levels: list[int] = []
    for i in range(len(loaded.nodes)):
        level = 0
        if i not in loaded.folded:
            for name in _dynamic_uses(loaded, i):
                j = loaded.producer.get(name)
                if j is not None:
                    level = max(level, levels[j] + (i in terms and j not in terms))
        levels.append(level)
    return levels


def _dynamic_uses(loaded: LoadedModel, position: int) -> list[str]:
    return [name for name in loaded.uses(position) if name not in loaded.constants]


def _components(loaded: LoadedModel, terms: Mapping[int, object], levels: list[int]) -> list[list[int]]:
    parent = {i: i for i in terms}

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i in terms:
        for name in _dynamic_uses(loaded, i):
            j = loaded.producer.get(name)
            if j in terms and j is not None and levels[i] == levels[j]:
                one, other = find(i), find(j)
                parent[max(one, other)] = min(one, other)
    groups: dict[int, list[int]] = {}
    for i in terms:
        groups.setdefault(find(i), []).append(i)
    return [groups[root] for root in sorted(groups)]


def _users(loaded: LoadedModel) -> dict[str, set[int]]:
    """Positions of the nodes that use each tensor; -1 stands for the graph's outputs.

    Folded nodes do not count: the Shape of a tensor is no reason to keep the tensor, the writer has the value.
    """
    users: dict[str, set[int]] = {}
    for i in range(len(loaded.nodes)):
        if i in loaded.folded:
            continue
        for name in loaded.uses(i):
            users.setdefault(name, set()).add(i)
    for value in loaded.graph.output:
        users.setdefault(value.name, set()).add(-1)
    return users


def _region(
    index: int,
    nodes: list[int],
    loaded: LoadedModel,
    terms: Mapping[int, Mapping[str, Tensor]],
    users: Mapping[str, set[int]],
    values: Mapping[str, np.ndarray],
) -> Region:
    inside = set(nodes)
    definitions = [(name, term) for i in nodes for name, term in terms[i].items()]
    defined = {name for name, _ in definitions}
    inputs: dict[str, Source] = {}
    constants: dict[str, np.ndarray] = {}
    for _, term in definitions:
        for source in leaves(term):
            if not isinstance(source, Source) or source.name in defined:
                continue
            if source.constant:
                constants[source.name] = values[source.name]
            else:
                inputs[source.name] = source
    outputs = tuple(name for name, _ in definitions if not users.get(name, set()) <= inside)
    program = Program(tuple(inputs.values()), tuple(definitions), outputs, constants)
    return Region(index, tuple(nodes), program, bool(outputs) and _worthwhile(loaded, nodes))


def _worthwhile(loaded: LoadedModel, nodes: list[int]) -> bool:
    operators = [loaded.nodes[i].op_type for i in nodes]
    return any(name in HEAVY for name in operators) or sum(name not in VIEWS for name in operators) >= 2
