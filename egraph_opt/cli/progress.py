"""Progress on stderr: one living line on a terminal, plain lines in a log."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from egraph_opt.errors import one_line
from egraph_opt.runtime.progress import Progress, ProgressCallback, silent

LOG_INTERVAL_SECONDS = 2.0


@contextmanager
def shown(*, quiet: bool, every_event: bool) -> Iterator[ProgressCallback]:
    """A callback that prints progress while the block runs, or nothing where that is asked for."""
    if quiet:
        yield silent
        return
    printer = ProgressPrinter(every_event=every_event)
    try:
        yield printer
    finally:
        printer.close()


class ProgressPrinter:
    """A progress callback. In a log it prints phase changes, ends of counts and otherwise a line every few seconds;
    with `every_event` it prints every event on a line of its own, on terminals, too."""

    def __init__(self, *, every_event: bool = False, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._every_event = every_event
        self._live = self._stream.isatty() and not every_event
        self._start = time.monotonic()
        self._last_line = 0.0
        self._phase = ""
        self._open_line = False

    def __call__(self, event: Progress) -> None:
        """Show `event`."""
        now = time.monotonic()
        text = f"[{now - self._start:6.1f} s] {one_line(str(event))}"
        new_phase = event.phase != self._phase
        if self._live:
            if new_phase:
                self.close()
            self._stream.write("\r\x1b[K" + text[: self._columns() - 1])
            self._open_line = True
        elif (
            self._every_event or new_phase or event.done == event.total or now - self._last_line >= LOG_INTERVAL_SECONDS
        ):
            self._stream.write(text + "\n")
            self._last_line = now
        self._phase = event.phase
        self._stream.flush()

    def close(self) -> None:
        """End the living line, so that what follows starts on a new one."""
        if self._open_line:
            self._stream.write("\n")
            self._stream.flush()
        self._open_line = False

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except OSError:
            return 80
