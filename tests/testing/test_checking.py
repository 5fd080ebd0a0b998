"""What a check of rules reports, and that it depends on its arguments only."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egraph_opt.egraph.language import (
    BufferVar,
    ExtentsVar,
    IntVar,
    MapVar,
    Rule,
    RuleGroup,
    TensorVar,
    apply,
    becomes,
    call,
    constant,
    holds,
    rule_group,
)
from egraph_opt.errors import BackendMissing, UsageError, VerificationFailed
from egraph_opt.ir.expr import Extents
from egraph_opt.ir.maps import IndexMap
from egraph_opt.ir.program import Program
from egraph_opt.ir.terms import Apply, Read, Source
from egraph_opt.testing import (
    CheckReport,
    RuleCheckFailed,
    check_rule,
    check_rules,
    index_maps,
    programs,
    programs_of,
    replay,
    tensors,
)

x, y = TensorVar("x"), TensorVar("y")
m = MapVar("m")
k, j = IntVar("k"), IntVar("j")


@rule_group
def mixed(x: TensorVar, y: TensorVar, k: IntVar, j: IntVar) -> Iterator[Rule]:
    """One right, one wrong, one that never fires."""
    yield becomes("sums", x.sum(j).sum(k), x.sum(j + k), exactness="reassociates")
    yield becomes("drops", apply("relu", x), x)
    yield becomes("never", x * y, y * x, given=[holds(lambda extents: len(extents) > 50, x.extents)])


@pytest.fixture(scope="module")
def report() -> CheckReport:
    return check_rules(mixed)


def test_outcomes(report: CheckReport) -> None:
    assert [r.outcome for r in report.rules] == ["ok", "wrong", "never fired"]
    assert [r.rule for r in report.failures] == ["drops", "never"]
    assert not report.ok
    assert report.rules[0].evidence == "modulo a prime"
    assert report.rules[0].fired >= 50
    assert "programs=" in report.rules[2].message


def test_the_table_names_every_rule_and_shows_reproductions(report: CheckReport) -> None:
    table = report.table()
    assert "3 rules, 2 failed" in table
    assert all(name in table for name in ("sums", "drops", "never", "mixed"))
    assert "one = evaluate(left, values" in table


def test_a_failed_check_raises_with_its_reproductions(report: CheckReport) -> None:
    with pytest.raises(RuleCheckFailed) as failed:
        report.raise_on_failure()
    assert isinstance(failed.value, VerificationFailed)
    assert "one = evaluate(left, values" in str(failed.value)
    CheckReport(report.rules[:1]).raise_on_failure()


def test_junit_has_one_case_a_rule(report: CheckReport, tmp_path) -> None:
    path = tmp_path / "rules.xml"
    report.write_junit(path)
    suite = ElementTree.parse(path).getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("3", "2")
    cases = {case.get("name"): case for case in suite.iter("testcase")}
    assert list(cases) == ["sums", "drops", "never"]
    assert cases["sums"].find("failure") is None
    failure = cases["drops"].find("failure")
    assert failure is not None
    assert failure.text is not None
    assert "one = evaluate(left, values" in failure.text
    assert {case.get("classname") for case in cases.values()} == {"mixed"}


def test_a_check_depends_on_its_arguments_only() -> None:
    first, again, other = (check_rule(mixed.rules[1], seed=seed) for seed in (0, 0, 1))
    assert replace(first, seconds=0) == replace(again, seconds=0)
    assert "seed 1" in other.message
    assert "seed 0" in first.message


def test_the_counterexample_is_as_small_as_it_gets() -> None:
    counterexample = check_rule(becomes("drops", apply("relu", x), x)).counterexample
    assert counterexample is not None
    (source,) = counterexample.program.inputs
    assert all(extent <= 3 for extent in source.extents)
    assert len(source.extents) <= 1


def _broken(index: IndexMap) -> bool:
    raise KeyError("nothing")


BROKEN = becomes("broken", x.view(m), x.view(m), given=[holds(_broken, m)])


def test_a_rule_that_raises_has_failed_and_replays() -> None:
    report = check_rule(BROKEN)
    assert report.outcome == "wrong"
    assert "_broken raised KeyError" in report.message
    assert report.counterexample is not None
    with pytest.raises(Exception, match="_broken raised KeyError"):
        replay(BROKEN, report.counterexample.program)
    with pytest.raises(Exception, match="_broken raised KeyError"):
        exec(report.message, {"rule": BROKEN, "BROKEN": BROKEN})


def test_extents_that_do_not_fit_are_a_fault() -> None:
    e = ExtentsVar("e")
    a, b = BufferVar("a"), BufferVar("b")
    swapped = becomes("swapped", call("MatMul", "", [a, b], e), call("MatMul", "", [b, a], e))
    assert check_rule(swapped).outcome == "wrong"


def test_conditions_on_weights_are_met() -> None:
    report = check_rule(becomes("commutes", x * y, y * x, given=[constant(y)]))
    assert report.ok
    assert report.fired == report.examples


def test_programs_of_the_user() -> None:
    def many(extents: Extents) -> bool:
        return len(extents) > 4

    rule = becomes("many", apply("relu", x), apply("max", x, x), given=[holds(many, x.extents)])
    assert check_rule(rule).outcome == "never fired"
    source = Source("a", (1, 2, 1, 2, 1))
    program = Program((source,), (("y", Apply("relu", (Read(source),))),), ("y",))
    for given_programs in ([program], st.just(program)):
        report = check_rule(rule, programs=given_programs)
        assert report.outcome == "wrong"
        assert report.fired == 1


@pytest.mark.parametrize(
    ("rules", "given_programs", "message"),
    [
        ("sums", None, "'sums' is no rule"),
        ([1], None, "1 is no rule"),
        (mixed, {"sum": []}, "'sum', which is none of the rules"),
        (mixed, {"sums": [1]}, "1 is no Program"),
    ],
)
def test_what_is_no_rule_is_refused(rules: object, given_programs: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_rules(rules, programs=given_programs)  # type: ignore[arg-type]


def test_rules_and_groups_mix() -> None:
    seen: list[str] = []
    report = check_rules([RuleGroup("one", mixed.rules[:1]), mixed.rules[0]], progress=lambda r: seen.append(r.rule))
    assert report.ok
    assert seen == ["sums", "sums"]


@settings(max_examples=40, derandomize=True, deadline=None)
@given(st.data())
def test_strategies_give_what_was_asked_for(data: st.DataObject) -> None:
    source, result = (2, 3), (3, 1, 2)
    assert data.draw(index_maps(source)).source == source
    assert data.draw(index_maps(None, result)).result == result
    between = data.draw(index_maps(source, result))
    assert (between.source, between.result) == (source, result)
    assert data.draw(tensors(result)).extents == result
    assert data.draw(programs()).outputs
    assert data.draw(programs_of(mixed.rules[0])).outputs


def test_without_hypothesis_the_fix_is_named() -> None:
    code = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "try:\n    import egraph_opt.testing\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert BackendMissing.__name__ in found
    assert "pip install egraph-opt[test]" in found
