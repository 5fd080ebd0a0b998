"""Limits of one run: when it must end, and how much memory it and all that it starts may hold."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

from egraph_opt.errors import LimitReached

OUT_OF_TIME = "the time limit was reached"
OUT_OF_MEMORY = "the memory limit was reached"
# Raises LimitReached where a limit is reached.
Check = Callable[[], None]
# Seconds between two looks at the memory.
_LOOK = 0.05
_PAGE = os.sysconf("SC_PAGE_SIZE")
_PROCESSES = Path("/proc")


def unlimited() -> None:
    """The check of a run without limits."""


@dataclass
class Limits:
    """When a run must end (monotonic seconds), and the bytes that this process and its descendants may hold."""

    deadline: float = inf
    memory: int | None = None
    _looked: float = field(default=-inf, repr=False)
    _reached: bool = field(default=False, repr=False)

    def check(self) -> None:
        """Raises LimitReached, with the reason, where a limit is reached; cheap enough for every turn of a loop."""
        reason = self.reached()
        if reason:
            raise LimitReached(reason)

    def reached(self) -> str:
        """Which limit is reached, in words; empty where none is."""
        now = time.monotonic()
        if now > self.deadline:
            return OUT_OF_TIME
        if self.memory is None:
            return ""
        if now - self._looked >= _LOOK:
            self._looked, self._reached = now, held_by(os.getpid()) > self.memory
        return OUT_OF_MEMORY if self._reached else ""

    def left(self) -> float:
        """Seconds until the end."""
        return self.deadline - time.monotonic()

    def spare(self) -> float:
        """Bytes that may still be taken."""
        return inf if self.memory is None else self.memory - held_by(os.getpid())

    def until(self, deadline: float) -> Limits:
        """The same with an end that is not later than this one."""
        return Limits(min(self.deadline, deadline), self.memory)


# The pages of two processes that share their memory, read one after the other, differ by no more than this share.
NEARLY = 0.05


def held_by(root: int) -> int:
    """Bytes of main memory that a process and its descendants hold; what lies in files, too, is not counted.

    0 where the system does not tell.
    """
    total = 0
    pending: list[tuple[int, tuple[int, bytes] | None]] = [(root, None)]
    while pending:
        process, parent = pending.pop()
        place = _PROCESSES / str(process)
        try:
            resident, shared = map(int, (place / "statm").read_text().split()[1:3])
            own = (resident, (place / "cmdline").read_bytes())
            total += (resident - shared) * _PAGE if not _is_starting(own, parent) else 0
            for task in os.listdir(place / "task"):
                children = (place / "task" / task / "children").read_text().split()
                pending += [(int(child), own) for child in children]
        except (OSError, ValueError):  # it has just ended, or this is another system
            continue
    return total


def _is_starting(own: tuple[int, bytes], parent: tuple[int, bytes] | None) -> bool:
    """Whether a process, given by its pages and its command, is only being started by another one like it.

    Until then it has the memory of its parent, not a second time as much.
    """
    return parent is not None and own[1] == parent[1] and abs(own[0] - parent[0]) <= NEARLY * parent[0]
