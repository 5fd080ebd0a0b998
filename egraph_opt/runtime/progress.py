"""What a long run tells its caller while it works."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """One step of one phase.

    `phase` is a short stable word (read, saturate, extract, profile, lower, time, verify, write), `message` is for
    people, `done` and `total` count the phase's units; `total` is None where it is not known beforehand.
    """

    phase: str
    message: str = ""
    done: int = 0
    total: int | None = None

    def __str__(self) -> str:
        count = "" if self.total is None else f" {self.done}/{self.total}"
        return f"{self.phase}{count}{': ' + self.message if self.message else ''}"


ProgressCallback = Callable[[Progress], None]


def silent(event: Progress) -> None:
    """The callback that shows nothing."""
