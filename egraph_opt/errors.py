"""Every error this package raises on purpose, each with the exit code of the command line.

Exit codes: 0 done (also "nothing faster found"), 1 a bug of ours, 2 usage, 3 input rejected, 4 verification failed,
5 a limit hit without a usable result, 6 a backend is missing, 130 interrupted.
"""

import unicodedata
from typing import ClassVar

MESSAGE_LENGTH = 600
INTERNAL_EXIT_CODE = 1


class EgraphOptError(Exception):
    """Root of all errors; the message is one line and names what is wrong. Raised itself only for a bug of ours."""

    exit_code: ClassVar[int] = INTERNAL_EXIT_CODE

    def __str__(self) -> str:
        return one_line(super().__str__())


class UsageError(EgraphOptError):
    """An option or argument makes no sense."""

    exit_code = 2


class InputRejected(EgraphOptError):  # noqa: N818 - reads as what happened
    """A model, database or report file is broken, unsupported or does not run."""

    exit_code = 3


class VerificationFailed(EgraphOptError):  # noqa: N818
    """Two programs that must agree do not; nothing was written."""

    exit_code = 4


class LimitReached(EgraphOptError):  # noqa: N818
    """A time, memory or size limit was hit before there was a usable result."""

    exit_code = 5


class BackendMissing(EgraphOptError):  # noqa: N818
    """A library or tool that this request needs is not installed."""

    exit_code = 6


class Interrupted(EgraphOptError):  # noqa: N818
    """The user stopped the run."""

    exit_code = 130


def one_line(text: str) -> str:
    """`text` on one line without control characters, shortened: model files choose names that we print."""
    clean = "".join(
        " " if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"} else character for character in text
    )
    words = " ".join(clean.split())
    return words if len(words) <= MESSAGE_LENGTH else words[: MESSAGE_LENGTH - 1] + "…"
