"""Layers for drawing a graph: K. Sugiyama, S. Tagawa, M. Toda, "Visual understanding of hierarchical systems", 1981."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

# Pixels: height of a node, between neighbours, between layers, and the room a line passing by takes.
HEIGHT, GAP, BETWEEN, PASSING = 46, 26, 44, 14
SWEEPS = 8


@dataclass(frozen=True)
class Layout:
    """Centres of the nodes, the points that each edge passes, and the size of the drawing."""

    centres: Mapping[str, tuple[float, float]]
    routes: Mapping[tuple[str, str], tuple[tuple[float, float], ...]]
    width: float
    height: float


def layout(widths: Mapping[str, float], edges: Iterable[tuple[str, str]]) -> Layout:
    """Positions for nodes of these widths, producers above consumers; ``edges`` must not be circular. Deterministic."""
    distinct = [(a, b) for a, b in dict.fromkeys(edges) if a != b and a in widths and b in widths]
    layers = _layers(list(widths), distinct)
    sizes = dict(widths)
    short, chains = _shortened(layers, distinct, sizes)
    order = _ordered(layers, short)
    x = _placed(order, short, sizes)
    left = min((x[n] - sizes[n] / 2 for n in x), default=0.0)
    y = {n: HEIGHT / 2 + layer * (HEIGHT + BETWEEN) for n, layer in layers.items()}
    centres = {n: (x[n] - left, y[n]) for n in x}
    right = max((centres[n][0] + sizes[n] / 2 for n in x), default=0.0)
    routes = {edge: tuple(centres[n] for n in chain) for edge, chain in chains.items()}
    bottom = max(y.values(), default=0.0) + HEIGHT / 2
    return Layout({n: centres[n] for n in widths}, routes, right, bottom)


def _layers(nodes: Sequence[str], edges: Sequence[tuple[str, str]]) -> dict[str, int]:
    below: dict[str, list[str]] = {n: [] for n in nodes}
    missing = dict.fromkeys(nodes, 0)
    for a, b in edges:
        below[a].append(b)
        missing[b] += 1
    layers = {n: 0 for n in nodes if not missing[n]}
    ready = list(layers)
    for node in ready:
        for child in below[node]:
            layers[child] = max(layers.get(child, 0), layers[node] + 1)
            missing[child] -= 1
            if not missing[child]:
                ready.append(child)
    # Sources stand right above what reads them first.
    for node in reversed(ready):
        if below[node]:
            layers[node] = max(layers[node], min(layers[child] for child in below[node]) - 1)
    return {n: layers.get(n, 0) for n in nodes}


def _shortened(
    layers: dict[str, int], edges: Sequence[tuple[str, str]], sizes: dict[str, float]
) -> tuple[list[tuple[str, str]], dict[tuple[str, str], list[str]]]:
    """Edges between neighbouring layers, with invisible nodes where an edge passes layers."""
    short: list[tuple[str, str]] = []
    chains: dict[tuple[str, str], list[str]] = {}
    for number, (a, b) in enumerate(edges):
        chain = [a]
        for layer in range(layers[a] + 1, layers[b]):
            passing = f"\0{number}:{layer}"
            layers[passing] = layer
            sizes[passing] = PASSING
            chain.append(passing)
        chain.append(b)
        chains[a, b] = chain
        short += pairwise(chain)
    return short, chains


def _ordered(layers: Mapping[str, int], edges: Sequence[tuple[str, str]]) -> list[list[str]]:
    """Nodes of every layer from left to right, each near the middle of its neighbours."""
    rows: list[list[str]] = [[] for _ in range(max(layers.values(), default=-1) + 1)]
    for node, layer in layers.items():
        rows[layer].append(node)
    above: dict[str, list[str]] = {}
    below: dict[str, list[str]] = {}
    for a, b in edges:
        above.setdefault(b, []).append(a)
        below.setdefault(a, []).append(b)
    best, least = [list(row) for row in rows], _crossings(rows, below)
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        neighbours = above if down else below
        for row in rows if down else rows[::-1]:
            place = {n: p for other in rows for p, n in enumerate(other)}
            middle = {
                n: sum(place[m] for m in neighbours[n]) / len(neighbours[n]) if n in neighbours else float(place[n])
                for n in row
            }
            row.sort(key=middle.__getitem__)
        found = _crossings(rows, below)
        if found < least:
            best, least = [list(row) for row in rows], found
    return best


def _crossings(rows: Sequence[Sequence[str]], below: Mapping[str, Sequence[str]]) -> int:
    total = 0
    for row, following in pairwise(rows):
        place = {n: p for p, n in enumerate(following)}
        ends = [place[m] for n in row for m in sorted(below.get(n, ()), key=place.__getitem__)]
        total += sum(1 for i, a in enumerate(ends) for b in ends[i + 1 :] if a > b)
    return total


def _placed(
    rows: Sequence[Sequence[str]], edges: Sequence[tuple[str, str]], sizes: Mapping[str, float]
) -> dict[str, float]:
    """Centres from left to right: near the middle of the neighbours, as far as there is room."""
    near: dict[str, list[str]] = {}
    for a, b in edges:
        near.setdefault(a, []).append(b)
        near.setdefault(b, []).append(a)
    x: dict[str, float] = {}
    for row in rows:
        total = sum(sizes[n] for n in row) + GAP * (len(row) - 1)
        at = -total / 2
        for node in row:
            x[node] = at + sizes[node] / 2
            at += sizes[node] + GAP
    for sweep in range(2 * SWEEPS):
        for row in rows if sweep % 2 == 0 else rows[::-1]:
            wanted = [sum(x[m] for m in near[n]) / len(near[n]) if n in near else x[n] for n in row]
            forward: list[float] = []
            for node, want in zip(row, wanted, strict=True):
                room = (sizes[row[len(forward) - 1]] + sizes[node]) / 2 + GAP if forward else 0.0
                forward.append(max(want, forward[-1] + room) if forward else want)
            backward: list[float] = []
            for node, want in zip(reversed(row), reversed(wanted), strict=True):
                room = (sizes[row[len(row) - len(backward)]] + sizes[node]) / 2 + GAP if backward else 0.0
                backward.append(min(want, backward[-1] - room) if backward else want)
            # Pushed to the right by half, to the left by half.
            for node, left, right in zip(row, forward, reversed(backward), strict=True):
                x[node] = (left + right) / 2
    return x
