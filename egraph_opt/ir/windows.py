"""Overlapping windows of a large program: rules see little further than from one operator to the next.

What rules make of a definition depends on what lies around it. So a large program is divided into parts, each with its
surroundings, and the windows are saturated one by one or side by side: merged again they are the e-graph of the whole,
up to what only chains of rewrites from one end of the surroundings to the other could find.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from egraph_opt.ir.program import Program
from egraph_opt.ir.terms import Source, leaves

# Definitions of a part, about, and how many definitions its surroundings reach in every direction. With 6 the e-graphs
# of all models tried were those of the whole already.
SIZE, REACH = 100, 8
# Windows that hold more than this share of all definitions save nothing.
LARGEST_SHARE = 0.85
# How often parts are made larger or smaller so that windows become equally large.
_ADJUSTMENTS = 8


def windows(program: Program, size: int = SIZE, reach: int = REACH) -> tuple[Program, ...]:
    """Programs that together define what ``program`` defines, each tensor with its surroundings in one of them.

    What a window reads that others define is an input of it. The program itself where it is not large, or where its
    parts are too close to one another: all of them use the same matrix, say.
    """
    count = round(len(program.definitions) / size)
    if count < 2:
        return (program,)
    found = _Neighbours.of(program).covered(count, reach)
    if max(map(len, found)) > LARGEST_SHARE * len(program.definitions):
        return (program,)
    return tuple(_window(program, positions) for positions in found)


@dataclass(frozen=True)
class _Neighbours:
    """Definitions, by position, and behind them the sources that several of them read, each with what it is next to.

    Weights of one axis do not count: many definitions add the same zeros, and no rule joins them for that.
    """

    definitions: int
    beside: Sequence[Sequence[int]]

    @classmethod
    def of(cls, program: Program) -> _Neighbours:
        numbers = {name: position for position, (name, _) in enumerate(program.definitions)}
        definitions = len(numbers)
        beside: list[set[int]] = [set() for _ in range(definitions)]
        for position, (_, term) in enumerate(program.definitions):
            for source in leaves(term):
                if not isinstance(source, Source):
                    continue
                if source.constant and sum(extent > 1 for extent in source.extents) < 2:
                    continue
                number = numbers.setdefault(source.name, len(beside))
                if number == len(beside):
                    beside.append(set())
                beside[position].add(number)
                beside[number].add(position)
        return cls(definitions, [sorted(some) for some in beside])

    def distances(self, start: Iterable[int]) -> dict[int, int]:
        """How far everything is from ``start``, in the order in which it is met."""
        found = dict.fromkeys(start, 0)
        pending = list(found)
        for number in pending:
            for other in self.beside[number]:
                if other not in found:
                    found[other] = found[number] + 1
                    pending.append(other)
        return found

    def ordered(self) -> list[int]:
        """All definitions from one far end to the other; what is not connected follows one after the other."""
        order: dict[int, None] = {}
        for first in range(self.definitions):
            if first not in order:
                far = next(reversed(self.distances([first])))
                order |= dict.fromkeys(self.distances([far]))
        return [number for number in order if number < self.definitions]

    def covered(self, count: int, reach: int) -> list[list[int]]:
        """Positions of the definitions of so many windows, which are about equally large."""
        order = self.ordered()
        total = len(order)
        shares = [total / count] * count
        found: list[list[int]] = []
        for _ in range(_ADJUSTMENTS):
            ends = [round(end) for end in accumulate(shares, initial=0.0)]
            windows = [self.within(order[begin:end], reach) for begin, end in pairwise(ends)]
            if not found or max(map(len, windows)) < max(map(len, found)):
                found = windows
            wanted = [share / max(len(window), 1) for share, window in zip(shares, windows, strict=True)]
            shares = [share * total / sum(wanted) for share in wanted]
        return found

    def within(self, part: Sequence[int], reach: int) -> list[int]:
        """Positions of the definitions that are at most ``reach`` away from a part."""
        found = self.distances(part)
        return sorted(number for number, far in found.items() if far <= reach and number < self.definitions)


def _window(program: Program, positions: Sequence[int]) -> Program:
    inside = set(positions)
    definitions = tuple(program.definitions[position] for position in positions)
    defined = {name for name, _ in definitions}
    outside = {
        source.name
        for position, (_, term) in enumerate(program.definitions)
        if position not in inside
        for source in leaves(term)
        if isinstance(source, Source)
    }
    sources = (source for _, term in definitions for source in leaves(term) if isinstance(source, Source))
    read = {source.name: source for source in sources if source.name not in defined}
    return Program(
        tuple(source for source in read.values() if not source.constant),
        definitions,
        tuple(name for name, _ in definitions if name in outside or name in program.outputs),
        {name: program.constants[name] for name in read if name in program.constants},
    )
