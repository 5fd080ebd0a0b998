"""Every built-in rule alone: sound, as exact as it claims, and it fires somewhere."""

from __future__ import annotations

import pytest

from egraph_opt.ir import definitions
from egraph_opt.ir.terms import Read, Source
from egraph_opt.rules.schedule import GROUPS
from egraph_opt.testing import check_rule
from tests.rules import operators

RULES = {rule.name: rule for group in GROUPS for rule in group.rules}


@pytest.mark.parametrize("name", sorted(RULES))
def test_a_rule_alone_is_sound_and_fires(name: str) -> None:
    # The counts of programs end the check; the limit is for a machine that hangs.
    report = check_rule(RULES[name], seconds=120)
    assert report.ok, report.message


def test_bijections_cancel_what_their_views_share() -> None:
    """Calls that give one value in one layout become one class."""
    x, w = Source("x", (1, 2, 5, 4)), Source("w", (3, 2, 3, 2), True)
    term = definitions.convolution(Read(x), Read(w), strides=(2, 1), dilations=(1, 2), pads=(1, 0, 2, 1))
    verdict, saturation = operators.verdict(operators.program((x, w), term))
    assert not verdict.mismatches
    assert saturation.matches["bijection-cancels"] > 0
