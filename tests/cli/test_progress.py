"""Progress lines in a log and on a terminal."""

import io

from egraph_opt.cli.progress import ProgressPrinter
from egraph_opt.runtime.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_log_shows_phases_and_ends() -> None:
    stream = io.StringIO()
    printer = ProgressPrinter(stream=stream)
    for done in range(1, 101):
        printer(Progress("profile", "", done, 100))
    printer(Progress("verify", "seed\n0"))
    printer.close()
    texts = [line[11:] for line in stream.getvalue().splitlines()]
    assert texts == ["profile 1/100", "profile 100/100", "verify: seed 0"]


def test_terminal_rewrites_one_line_per_phase() -> None:
    stream = Terminal()
    printer = ProgressPrinter(stream=stream)
    for done in (1, 2):
        printer(Progress("profile", "x" * 500, done, 2))
    printer(Progress("verify"))
    printer.close()
    printer.close()
    text = stream.getvalue()
    assert text.count("\n") == 2
    assert text.count("\r\x1b[K") == 3
    assert all(len(part) < 80 for part in text.replace("\r\x1b[K", "\n").split("\n"))


def test_verbose_shows_every_event() -> None:
    stream = Terminal()
    printer = ProgressPrinter(every_event=True, stream=stream)
    for done in range(1, 6):
        printer(Progress("profile", "", done, 5))
    assert len(stream.getvalue().splitlines()) == 5
