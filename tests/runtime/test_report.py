"""The report: its table, and the way to JSON and back."""

import json
import math
from pathlib import Path

import pytest

from egraph_opt.errors import InputRejected
from egraph_opt.runtime.report import (
    Accuracy,
    Candidates,
    Expectation,
    Latency,
    Report,
    RevertedRegion,
    Saturation,
    SaturationRound,
)
from egraph_opt.runtime.timing import Spread

FULL = Report(
    model="infogan.onnx",
    operators_before={"ConvTranspose": 5, "Relu": 4, "Tanh": 1},
    operators_after={"MatMul": 5},
    generated_kernels=5,
    kernels=("k0", "k1"),
    latency=Latency(Spread(4.77, 4.7, 4.9), Spread(2.06, 2.0, 2.1), Spread(2.31, 2.28, 2.4), rounds=9),
    accuracy=Accuracy(5e-7, 4.2e-7, original_float64=1.1e-7, optimized_float64=2e-7, inputs=2),
    seconds={"saturate": 3.14, "profile": 30.0},
    saturation=(
        Saturation(
            "r0",
            (SaturationRound("phases", 10), SaturationRound("phases", 25, 0.5)),
            "saturated",
            {"sum-splits": 3, "hoist": 7},
        ),
        Saturation("r1", (), "time limit", {"sum-splits": 5}),
    ),
    candidates=Candidates(total=12, measured=7, from_database=4, failed=1),
    expectation=Expectation(2.01e-3, 1.95e-3, alternatives=390, measurements=45),
    reverted=(RevertedRegion("r1", "time limit", 3),),
    notes=("no C compiler",),
    warnings=("the profile database is broken",),
    versions={"egglog": "13.2.0"},
)

TABLE = """\
infogan.onnx  (cpu, native)
                                        before             after
  operators                                 10                10
    ConvTranspose                            5                 -
    Relu                                     4                 -
    Tanh                                     1                 -
    MatMul                                   -                 5
  generated kernels                          -                 5
  latency, ms (quartiles)     4.77 (4.70–4.90)  2.06 (2.00–2.10)
  speed-up                                      2.31x (2.28–2.40)
  largest error, absolute                                5.0e-07
  largest error, of the range                            4.2e-07
  error against float64                1.1e-07           2.0e-07
  plan: 2.01 ms expected, proven to be within 3.1% of the cheapest of 390 alternatives; 45 measured (11.5%)
  time spent: 33.1 s (saturate 3.1, profile 30)
  region r1 reverted: time limit
  note: no C compiler
  warning: the profile database is broken"""


def test_table() -> None:
    lines = FULL.table().splitlines()
    assert [line.split() for line in lines] == [line.split() for line in TABLE.splitlines()]
    assert len({len(line) for line in lines[1:12]}) == 1, "the last column is aligned"


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (Expectation(5e-5, 5e-5, 120, 60), "50 us expected, proven cheapest of 120 alternatives; 60 measured (50.0%)"),
        (
            Expectation(5e-5, 4e-5, 1200, 0, 7),
            "50 us expected, at most 25.0% above the cheapest of 1,200 alternatives by estimates; 0 measured, 7 of its"
            " own steps estimated",
        ),
        (Expectation(5e-5, 0.0, 12, 3), "50 us expected, chosen from 12 alternatives; 3 measured (25.0%)"),
        (
            Expectation(1.00001, 1.0, 12, 12),
            "1e+03 ms expected, proven to be within 0.1% of the cheapest of 12 alternatives; 12 measured (100.0%)",
        ),
    ],
)
def test_a_plan_and_how_sure_it_is(found: Expectation, text: str) -> None:
    """A proof is claimed only where there is one: a gap that rounds to nothing is shown as one."""
    assert str(found) == text


def test_table_of_an_unchanged_model() -> None:
    report = Report(model="m.onnx", portable=True, unchanged_because="nothing faster was found")
    assert report.table().splitlines()[0] == "m.onnx  (cpu, portable)"
    assert report.table().splitlines()[-1] == "  kept unchanged: nothing faster was found"
    assert not report.changed
    assert FULL.changed


def test_round_trip_through_json(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    FULL.write_json(path)
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data["latency"]["speedup"]["median"] == 2.31
    assert data["schema"] == 1
    assert Report.from_dict(data) == FULL
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


def test_empty_report_round_trips() -> None:
    assert Report.from_dict(Report("m").to_dict()) == Report("m")


def test_infinities_survive_json(tmp_path: Path) -> None:
    report = Report("m", accuracy=Accuracy(math.inf, math.nan, optimized_float64=-math.inf))
    report.write_json(tmp_path / "r.json")
    accuracy = Report.from_dict(json.loads((tmp_path / "r.json").read_text())).accuracy
    assert accuracy is not None
    assert accuracy.max_absolute == math.inf
    assert math.isnan(accuracy.max_relative)
    assert accuracy.optimized_float64 == -math.inf


def test_rule_matches_add_up() -> None:
    assert list(FULL.rule_matches.items()) == [("sum-splits", 8), ("hoist", 7)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": 3}, "Report.model: str was expected, not int"),
        ({"surprise": 1}, "Report: unknown field 'surprise'"),
        ({"kernels": ["a", 1]}, r"Report.kernels\[1\]: str was expected, not int"),
        ({"seconds": {"read": "quick"}}, r"Report.seconds\['read'\]: float was expected, not str"),
        ({"latency": [1]}, "Report.latency: an object was expected, not list"),
        ({"portable": 1}, "Report.portable: bool was expected, not int"),
        ({"saturation": [{"region": "r"}]}, r"Report.saturation\[0\]: field 'rounds' is missing"),
    ],
)
def test_wrong_data_is_rejected(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputRejected, match=message):
        Report.from_dict({**FULL.to_dict(), **change})
