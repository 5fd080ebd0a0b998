"""Normalizations are recognized, whatever the layout, and nothing else is."""

import pytest

from egraph_opt.egraph.engine import EGraph
from egraph_opt.egraph.language import RuleGroup
from egraph_opt.egraph.snapshot import Snapshot
from egraph_opt.egraph.soundness import judge
from egraph_opt.rules.normalization import normalization
from tests.rules import operators
from tests.rules.normalizations import PROGRAMS, STRANGERS

CASES = [(rule.name, i) for rule in normalization.rules for i in range(len(PROGRAMS[rule.name]))]
OPERATORS = ("LayerNormalization", "RMSNormalization", "InstanceNormalization", "LRN")


def _calls(snapshot: Snapshot) -> set[str]:
    nodes = [node for members in snapshot.classes.values() for node in members]
    return {str(node.arguments[0]) for node in nodes if node.constructor == "Call"}


@pytest.mark.parametrize(("name", "position"), CASES)
def test_a_rule_alone_is_sound_and_fires(name, position):
    whole = PROGRAMS[name][position]
    egraph = EGraph()
    egraph.add_rules([RuleGroup("alone", tuple(rule for rule in normalization.rules if rule.name == name))])
    egraph.add_program(whole)
    report = egraph.run("alone")
    assert report.changed
    snapshot = Snapshot(egraph)
    assert _calls(snapshot) & set(OPERATORS)
    verdict = judge(snapshot, operators.values(whole))
    assert not verdict.mismatches, verdict.mismatches[0]
    assert not verdict.skipped


@pytest.mark.parametrize("name", STRANGERS)
def test_what_only_looks_like_a_normalization_is_left_alone(name):
    snapshot, _ = operators.saturated(STRANGERS[name])
    assert not _calls(snapshot) & set(OPERATORS)


@pytest.mark.parametrize("name", ["layer-normalization", "instance-normalization", "local-response-normalization"])
def test_after_saturation_everything_is_equal(name):
    for whole in PROGRAMS[name][:2]:
        verdict, _ = operators.verdict(whole)
        assert not verdict.mismatches, verdict.mismatches[0]
