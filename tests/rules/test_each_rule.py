"""Every rule alone, on terms grown from its own pattern; and every rule fires somewhere."""

from __future__ import annotations

import contextlib

import pytest

from egraph_opt.egraph.engine import EGraph
from egraph_opt.egraph.language import Rule, RuleGroup
from egraph_opt.egraph.snapshot import Snapshot
from egraph_opt.egraph.soundness import judge
from egraph_opt.ir import definitions
from egraph_opt.ir.program import Program
from egraph_opt.ir.terms import Apply, Read, Reduce, Source
from egraph_opt.rules.schedule import GROUPS
from tests.rules import operators
from tests.rules.growth import Grower, Unfit

RULES = {rule.name: rule for group in GROUPS for rule in group.rules}
# Two terms that are equal but not the same are no pattern to grow: see the test below.
SPECIAL = {"bijection-cancels"}
SEEDS = 150


def _convolution(*, transposed: bool, swapped: bool) -> Program:
    x, w = Source("x", (1, 2, 5, 4)), Source("w", (2, 3, 3, 2) if transposed else (3, 2, 3, 2), True)
    window = {"strides": (2, 1), "dilations": (1, 2), "pads": (1, 0, 2, 1)}
    if transposed:
        term = definitions.transposed_convolution(Read(x), Read(w), output_padding=(1, 0), **window)
    else:
        term = definitions.convolution(Read(x), Read(w), **window)
    assert isinstance(term, Reduce)
    assert isinstance(term.tensor, Apply)
    if swapped:
        term = Reduce("sum", Apply("mul", term.tensor.arguments[::-1]), term.count)
    return operators.program((x, w), term)


# Patterns that chance rarely completes.
RARE = {
    "conv-swapped": [_convolution(transposed=False, swapped=True)],
    "conv-transpose": [_convolution(transposed=True, swapped=False)],
    "conv-transpose-swapped": [_convolution(transposed=True, swapped=True)],
}


@pytest.mark.parametrize("name", sorted(set(RULES) - SPECIAL))
def test_a_rule_alone_is_sound_and_fires(name: str) -> None:
    fired = sum(_fires(RULES[name], program) for program in RARE.get(name, ()))
    for seed in range(SEEDS):
        with contextlib.suppress(Unfit):
            fired += _fires(RULES[name], Grower(seed).program(RULES[name]))
    assert fired, f"{name} never fires on {SEEDS} terms grown from its pattern"


def _fires(rule: Rule, program: Program) -> int:
    egraph = EGraph()
    egraph.add_rules([RuleGroup("alone", (rule,))])
    egraph.add_program(program)
    report = egraph.run("alone")
    found = judge(Snapshot(egraph), operators.values(program))
    assert not found.mismatches, found.mismatches[0]
    assert not found.skipped
    return report.matches.get(rule.name, 0)


def test_bijections_cancel_what_their_views_share() -> None:
    """Calls that give one value in one layout become one class."""
    program = _convolution(transposed=False, swapped=False)
    verdict, saturation = operators.verdict(program)
    assert not verdict.mismatches
    assert saturation.matches["bijection-cancels"] > 0
