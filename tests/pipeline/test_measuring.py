"""What is said about measurements that are not to be trusted."""

from egraph_opt.extract.profile import MODELS, Measurement
from egraph_opt.measuring import LONGEST_NAME, unsteady

STEADY = Measurement("MatMul", "library", (1.0, 1.01, 1.02))
SHAKY = Measurement("Conv", "kernel ", (1.0, 1.5, 3.0))


def test_a_note_says_which_measurements_are_unsteady_how_much_and_what_to_do() -> None:
    (note,) = unsteady([STEADY, SHAKY])
    assert note == (
        "1 of 2 measurements are unsteady, most of all Conv (kernel): its quartiles are 1.25 and 2.25 ms;"
        " measure again while the machine is idle, with another --profile-db"
    )


def test_what_takes_no_time_on_the_whole_may_vary() -> None:
    tiny = Measurement("Add", "library", (0.0001, 0.001, 0.01))
    failed = Measurement("Conv", "library", (), "too slow")
    models = Measurement(MODELS + "a b", "original", (1.0, 9.0, 99.0))
    assert unsteady([]) == []
    assert unsteady([STEADY, tiny, failed, models]) == []
    (note,) = unsteady([Measurement("x" * 999, "library", SHAKY.samples)])
    assert "x" * (LONGEST_NAME - 1) + "…" in note
    assert "x" * LONGEST_NAME not in note
