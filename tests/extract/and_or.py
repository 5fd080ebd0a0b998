"""AND-OR graphs for tests: drawn ones, the known hard cases, and the cheapest choice by trying everything."""

import random
from itertools import combinations
from math import inf

from egraph_opt.extract.graph import Graph, Option

Options = dict[int, list[Option]]


def drawn(seed: int, buffers: int) -> tuple[Options, list[int]]:
    """A random graph and its outputs: shared needs, cycles, costs of zero; some have no choice."""
    draw = random.Random(seed)
    options: Options = {}
    for owner in range(1, buffers + 1):
        found = []
        for number in range(draw.randint(1, 4)):
            others = [n for n in range(buffers + 1) if n != owner and (n < owner or draw.random() < 0.35)]
            needs = tuple(draw.sample(others, min(len(others), draw.randint(0, 3))))
            found.append(Option(draw.choice([0, 0, 0.5, 1, 2, 3, 5, 8, 13]), needs, f"{owner}.{number}"))
        options[owner] = found
    return options, [buffers, buffers - 1]


def ring(seed: int, size: int) -> tuple[Options, list[int]]:
    """Buffers that can all be had from their neighbours, for little, and from outside, for more; some are outputs."""
    draw = random.Random(seed)
    options: Options = {}
    for owner in range(size):
        beside = [(owner + step) % size for step in (1, -1, 2) if draw.random() < 0.7]
        options[owner] = [Option(draw.randint(1, 3), (n,), f"{owner} from {n}") for n in dict.fromkeys(beside)]
        options[owner].append(Option(draw.randint(6, 20), (-1,), f"{owner} from outside"))
    return options, draw.sample(range(size), max(2, size // 2))


def cover(size: int) -> tuple[Options, list[int]]:
    """Every two of some buffers want one of them: all but one are needed; the relaxation takes a half of each."""
    options: Options = {node: [Option(1, (), f"node {node}")] for node in range(size)}
    for number, ends in enumerate(combinations(range(size), 2)):
        options[size + number] = [Option(0.01, (end,), f"pair {number} by {end}") for end in ends]
    return options, list(range(size, len(options)))


def siblings(count: int) -> tuple[Options, list[int]]:
    """Operators of cost 10 each, or slices of cost 1 of one operator of cost 4 for each that it replaces."""
    options: Options = {0: [Option(4.0 * count, (), "joint")]}
    for sibling in range(1, count + 1):
        options[sibling] = [Option(10, (), f"own {sibling}"), Option(1, (0,), f"slice {sibling}")]
    return options, list(range(1, count + 1))


def permutes(count: int) -> tuple[Options, list[int]]:
    """Each reader takes its input as it is for 7, or permuted for 5; the permutation costs 6, once."""
    options: Options = {0: [Option(3, (), "input")], 1: [Option(6, (0,), "permutation")]}
    for reader in range(2, count + 2):
        options[reader] = [Option(7, (0,), f"plain {reader}"), Option(5, (1,), f"permuted {reader}")]
    return options, list(range(2, count + 2))


def residual(length: int) -> tuple[Options, list[int]]:
    """Blocks that add to their input what they compute of it; fused, a block computes its input's last step anew.

    As a tree everything before a block is paid for twice, so the best tree fuses wherever that shortens a branch.
    """
    options: Options = {0: [Option(1, (), "input")]}
    for block in range(length):
        inner, before, after = 2 * block + 1, 2 * block, 2 * block + 2
        options[inner] = [Option(4, (before,), f"inner {block}")]
        options[after] = [Option(1, (before, inner), f"add {block}"), Option(6, (before,), f"fused {block}")]
        if block:
            options[inner].append(Option(4.5, (before - 2, before - 1), f"inner {block} with add"))
    return options, [2 * length]


def cheapest(graph: Graph, taking: int | None = None) -> float:
    """The cost of the cheapest choice, by trying all that are not dearer than the best so far.

    With ``taking`` only choices that fill a node in that way count.
    """
    best = inf
    pick = [-1] * graph.nodes

    def go_on(cost: float) -> None:
        nonlocal best
        if cost >= best:
            return
        stack, seen = [graph.goal], {graph.goal}
        while stack and pick[stack[-1]] >= 0:
            for need in graph.needs[pick[stack.pop()]]:
                if need not in seen:
                    seen.add(need)
                    stack.append(need)
        if not stack:
            order = graph.used(pick)
            if order is not None and (taking is None or pick[graph.owner[taking]] == taking):
                best = graph.total(pick, order)
            return
        node = stack[-1]
        for way in graph.by[node]:
            pick[node] = way
            go_on(cost + graph.cost[way])
            pick[node] = -1

    go_on(0.0)
    return best
