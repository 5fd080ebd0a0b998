"""Planted wrong rules are caught, with a reproduction that runs; their correct twins pass."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest

from egraph_opt.testing import RuleReport, check_rule
from tests.rules.planted_operators import OPERATORS
from tests.rules.planted_terms import TERMS

PLANTED = {**OPERATORS, **TERMS}
LIMIT = 10.0


@pytest.mark.parametrize("name", PLANTED)
def test_a_wrong_rule_is_caught_with_a_reproduction_that_runs(name: str) -> None:
    report = check_rule(PLANTED[name](False), seconds=LIMIT)
    assert report.outcome == "wrong", f"{report.rule} fired on {report.fired} of {report.examples} programs"
    assert report.counterexample is not None
    one, other = reproduced(report)
    assert one.shape != other.shape or not bits(one, other)


@pytest.mark.parametrize("name", PLANTED)
def test_its_correct_twin_passes(name: str) -> None:
    report = check_rule(PLANTED[name](True))
    assert report.ok, report.message


def reproduced(report: RuleReport) -> tuple[np.ndarray, np.ndarray]:
    """What the pasted code of a counterexample computes."""
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(report.message, names)
    assert "left:" in printed.getvalue()
    return names["one"], names["other"]


def bits(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and bool(
        ((one == other) & (np.signbit(one) == np.signbit(other)) | ((one != one) & (other != other))).all()
    )
