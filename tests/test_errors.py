"""Error messages are one line, whatever a model file put into them."""

import pytest

from egraph_opt import errors


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.EgraphOptError, 1),
        (errors.UsageError, 2),
        (errors.InputRejected, 3),
        (errors.VerificationFailed, 4),
        (errors.LimitReached, 5),
        (errors.BackendMissing, 6),
        (errors.Interrupted, 130),
    ],
)
def test_exit_codes(error: type[errors.EgraphOptError], code: int) -> None:
    assert error.exit_code == code
    assert issubclass(error, errors.EgraphOptError)


def test_messages_lose_control_characters_and_length() -> None:
    hostile = "node 'a\nb\x1b[31m\u202e\u2028c\ud800' " + "x" * 10_000
    message = str(errors.InputRejected(hostile))
    assert message.startswith("node 'a b [31m c ' x")
    assert message.isprintable()
    assert len(message) == errors.MESSAGE_LENGTH
