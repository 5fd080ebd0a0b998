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


def held_by(root: int) -> int:
    """Bytes of main memory that a process and its descendants hold; what lies in files, too, is not counted.

    0 where the system does not tell.
    """
    total, pending = 0, [(root, "")]
    while pending:
        process, parent = pending.pop()
        place = _PROCESSES / str(process)
        try:
            statistics = (place / "statm").read_text()
            resident, shared = statistics.split()[1:3]
            # A process that is just being started still has the memory of its parent, not a second time as much.
            total += (int(resident) - int(shared)) * _PAGE if statistics != parent else 0
            for task in os.listdir(place / "task"):
                children = (place / "task" / task / "children").read_text().split()
                pending += [(int(child), statistics) for child in children]
        except (OSError, ValueError):  # it has just ended, or this is another system
            continue
    return total
