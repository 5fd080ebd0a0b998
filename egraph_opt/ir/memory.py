"""Intermediate buffers in one arena: when each is alive, where it lies, and how large the arena has to be.

Where buffers lie is decided by size: the largest first, each into the smallest gap that fits between those that are
alive at the same time (Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020,
section 5.2, "greedy by size for offset calculation").
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# What every buffer begins at a multiple of: a cache line, and what vector and CUDA loads ask for.
ALIGNMENT = 256


@dataclass(frozen=True)
class Fill:
    """One step as far as memory goes: it fills ``buffer`` of ``size`` bytes and reads others.

    With ``alias`` the buffer is the memory of that other one.
    """

    buffer: str
    size: int
    reads: tuple[str, ...]
    alias: str = ""


@dataclass(frozen=True)
class Lifetime:
    """A buffer that is alive from the step ``first`` to the step ``last``, both included."""

    buffer: str
    size: int
    first: int
    last: int


@dataclass(frozen=True)
class MemoryPlan:
    """Where in an arena of ``peak`` bytes every buffer begins, in bytes.

    ``live`` is the largest sum of the sizes of buffers alive at once: no arena can be smaller.
    """

    offsets: Mapping[str, int]
    peak: int
    live: int


def lifetimes(fills: Sequence[Fill], kept: Collection[str]) -> list[Lifetime]:
    """When the buffers that steps fill are alive; those ``kept`` are until the end, aliases are one buffer.

    What no step fills (inputs and weights) does not count.
    """
    root: dict[str, str] = {}
    first: dict[str, tuple[int, int]] = {}
    last: dict[str, int] = {}
    for number, fill in enumerate(fills):
        for name in (fill.alias, *fill.reads) if fill.alias else fill.reads:
            if root.get(name) in first:
                last[root[name]] = number
        root[fill.buffer] = root.get(fill.alias, fill.alias) if fill.alias else fill.buffer
        if root[fill.buffer] == fill.buffer:
            first[fill.buffer] = number, fill.size
            last[fill.buffer] = number
    last |= {root[name]: len(fills) - 1 for name in kept if root.get(name) in first}
    return [Lifetime(name, size, begin, last[name]) for name, (begin, size) in first.items()]


def live_bytes(found: Iterable[Lifetime], steps: int) -> np.ndarray:
    """The bytes that are alive during each of so many steps."""
    change = np.zeros(steps + 1, dtype=np.int64)
    for item in found:
        change[item.first] += item.size
        change[item.last + 1] -= item.size
    return np.cumsum(change)[:steps]


def plan_buffers(found: Sequence[Lifetime], *, alignment: int = ALIGNMENT) -> MemoryPlan:
    """Places for buffers such that no two that are alive at once overlap; each begins at a multiple of ``alignment``.

    Equal sizes are placed in the order given, so the plan depends on nothing else.
    """
    steps = max((item.last for item in found), default=-1) + 1
    first, last = (np.array([getattr(item, name) for item in found], dtype=np.int64) for name in ("first", "last"))
    sizes = np.array([-(-item.size // alignment) * alignment for item in found], dtype=np.int64)
    begins = np.full(len(found), -1, dtype=np.int64)
    for i in np.argsort(-sizes, kind="stable"):
        beside = np.flatnonzero((begins >= 0) & (first <= last[i]) & (last >= first[i]))
        beside = beside[np.argsort(begins[beside], kind="stable")]
        # Between two neighbours a gap begins where all before it end.
        ends = np.maximum.accumulate(np.concatenate([[0], begins[beside] + sizes[beside]]))
        gaps = begins[beside] - ends[:-1]
        fitting = np.flatnonzero(gaps >= max(int(sizes[i]), 1))
        begins[i] = ends[fitting[np.argmin(gaps[fitting])]] if len(fitting) else ends[-1]
    peak = int((begins + sizes).max(initial=0))
    live = int(live_bytes(found, steps).max(initial=0))
    return MemoryPlan({item.buffer: int(begin) for item, begin in zip(found, begins, strict=True)}, peak, live)


def ordered(fills: Sequence[Fill], kept: Collection[str]) -> list[int]:
    """An order of the steps in which less is alive at once than in the order given, where one is found; their numbers.

    Of the steps whose arguments are there the one comes next that adds least memory, less what it is the last to read.
    """
    producer = {fill.buffer: number for number, fill in enumerate(fills)}
    reads = [dict.fromkeys(producer[name] for name in (*f.reads, f.alias) if name in producer) for f in fills]
    root: list[int] = []
    for number, fill in enumerate(fills):
        root.append(root[producer[fill.alias]] if fill.alias in producer else number)
    users: list[set[int]] = [set() for _ in fills]
    waiting = [len(found) for found in reads]
    readers: list[list[int]] = [[] for _ in fills]
    for number, found in enumerate(reads):
        for other in found:
            users[root[other]].add(number)
            readers[other].append(number)
    held = {root[producer[name]] for name in kept if name in producer}
    ready = [number for number, count in enumerate(waiting) if not count]
    order: list[int] = []

    def growth(number: int) -> tuple[int, int]:
        own = 0 if fills[number].alias else fills[number].size
        freed = {root[other] for other in reads[number]} - held
        return own - sum(fills[r].size for r in freed if users[r] == {number}), number

    while ready:
        chosen = min(ready, key=growth)
        ready.remove(chosen)
        order.append(chosen)
        for other in {root[o] for o in reads[chosen]}:
            users[other].discard(chosen)
        for reader in readers[chosen]:
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    before, after = (_peak([fills[i] for i in found], kept) for found in (range(len(fills)), order))
    return order if after < before else list(range(len(fills)))


def _peak(fills: Sequence[Fill], kept: Collection[str]) -> int:
    return int(live_bytes(lifetimes(fills, kept), len(fills)).max(initial=0))
