"""An order of classes and e-nodes that depends on the terms alone.

egglog's ids depend on its thread count and on the order of matches. Everything that breaks ties by order must not: the
same model has to give the same bytes. A class is known by its flattest term (of the least depth, then of the least
hash), which no other class can contain.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Protocol

Name = tuple[int, bytes]


class NodeLike(Protocol):
    """A constructor applied to class ids and literals."""

    @property
    def constructor(self) -> str: ...
    @property
    def arguments(self) -> tuple[str | int, ...]: ...
    @property
    def children(self) -> tuple[int, ...]: ...


def term_names(classes: Mapping[int, Sequence[NodeLike]]) -> tuple[dict[int, Name], dict[NodeLike, Name]]:
    """Depth and hash of the flattest term of every class, and those of every e-node over such terms."""
    of_nodes: dict[NodeLike, Name] = {}
    found: dict[int, Name] = {}
    users: dict[int, list[tuple[int, NodeLike]]] = {}
    missing: dict[tuple[int, NodeLike], int] = {}
    queue: list[tuple[Name, int]] = []
    for owner, nodes in classes.items():
        for node in nodes:
            children = set(node.children)
            missing[owner, node] = len(children)
            for child in children:
                users.setdefault(child, []).append((owner, node))
            if not children:
                of_nodes[node] = node_name(node, found)
                heapq.heappush(queue, (of_nodes[node], owner))
    # A term is deeper than its parts, so the first name to come out of the queue is the least one of its class.
    while queue:
        name, owner = heapq.heappop(queue)
        if owner in found:
            continue
        found[owner] = name
        for user in users.get(owner, ()):
            missing[user] -= 1
            if not missing[user]:
                of_nodes[user[1]] = node_name(user[1], found)
                if user[0] not in found:
                    heapq.heappush(queue, (of_nodes[user[1]], user[0]))
    return found, of_nodes


def node_name(node: NodeLike, names: Mapping[int, Name]) -> Name:
    """Depth and hash of an e-node over the flattest terms of its children."""
    content = [node.constructor.encode()]
    children = node.children
    depth = met = 0
    for argument in node.arguments:
        if met < len(children) and argument == children[met]:
            below = names[children[met]]
            met += 1
            depth = max(depth, below[0])
            content += (b"\1", below[1])
        else:
            content += (b"\2", str(argument).encode(errors="surrogatepass"), b"\0")
    return 1 + depth, blake2b(b"".join(content), digest_size=16).digest()


def numbering(ids: Iterable[int], names: Mapping[int, Name]) -> dict[int, int]:
    """New ids by old ones, in the order of the names; ids without a term come last."""
    known = [number for number in ids if number in names]
    rest = [number for number in ids if number not in names]
    return {old: new for new, old in enumerate([*sorted(known, key=names.__getitem__), *rest])}
