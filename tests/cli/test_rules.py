"""``egraph-opt rules``, and --rules and --fp of the commands that run rules."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from egraph_opt.cli import main
from egraph_opt.rules.schedule import GROUPS
from tests.pipeline.foreign import write


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "list", "--rules", "-bias"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines[1:]]
    assert lines[0].split() == ["group", "rule", "exactness", "origin", "used", "what", "it", "is"]
    assert [(group.name, rule.name) for group in GROUPS for rule in group.rules] == [
        tuple(row[:2]) for row in rows[:-2]
    ]
    assert {row[1] for row in rows[:-2] if row[4] == "no"} == {"bias"}
    assert lines[-1].endswith("used (fp=default -bias)")


def test_list_of_a_pack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "list", "--rules", f"+{write(tmp_path, 'honest')}", "--fp", "strict"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:5] == ["honest_group", "honest-rule", "bitwise", "honest", "yes"]
    assert next(line for line in lines if " bias " in line).split()[4] == "no"


SHOWN = {
    "view-of-view": ["view(view(x, m), n) = view(x, t.0)", "where t = composed(n, m)", "runs: to saturation, before"],
    "bijection-cancels": ["view(x, m) = view(y, m)", "makes x = y", "if is_bijective(m)"],
    "sum-merges": ["sum(sum(x, j), k) = sum(x, j + k)", "exactness: reassociates", "runs: as phase "],
    "sum-is-contraction": ["sum(view(x, m) * view(fill(1), t.0), k)"],
    "fused-activation": ["f(view(read(reshape(op[attributes](args): e, s)), m))", "and as phase"],
    "gemm-left-transposed": ["MatMul(Transpose[perm=1,0](a): s, b): e = Gemm[transA=1](a, b): e"],
    "view-leaves-function": ["fires on terms of the program itself only"],
}


@pytest.mark.parametrize("name", SHOWN)
def test_show(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "show", name]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{name}  (group ")
    for part in SHOWN[name]:
        assert part in shown


def test_every_rule_can_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    for group in GROUPS:
        assert main(["rules", "show", group.name]) == 0
        shown = capsys.readouterr().out
        assert all(f"{rule.name}  (group {group.name}, built-in)" in shown for rule in group.rules)
        assert "Node(" not in shown
        assert "object at" not in shown


def test_show_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "honest")
    assert main(["rules", "show", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "honest-rule  (group honest_group, honest)" in shown
    assert "relu(x) = relu(view(x, t.0))" in shown
    assert "where t = function(extents(x))" in shown
    assert "A test." in shown


def test_show_something_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "show", "bais"]) == 2
    assert "no rule or group is named 'bais' (did you mean bias?)" in capsys.readouterr().err


def test_test_a_right_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("hypothesis")
    junit = tmp_path / "rules.xml"
    words = ["rules", "test", "sum-merges", "--examples", "5", "--seed", "3", "--junit", str(junit)]
    assert main(words) == 0
    assert "sum-merges" in capsys.readouterr().out
    assert [case.get("name") for case in ElementTree.parse(junit).iter("testcase")] == ["sum-merges"]


def test_test_a_wrong_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("hypothesis")
    assert main(["rules", "test", str(write(tmp_path, "errs")), "--examples", "10"]) == 4
    assert "errs-rule" in capsys.readouterr().out


def test_an_unknown_action(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "teach"]) == 2
    assert main(["rules"]) == 2
    assert "egraph-opt rules" in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "--help"]) == 0
    shown = capsys.readouterr().out
    for word in ("--rules +mine.py,-bias", "reassociates", "egraph-opt rules test mine.py --junit"):
        assert word in shown


def test_derive_with_rules_switched_off(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["derive", "matmul", "--rules", "-instantiation", "--growth"]) == 0
    shown = capsys.readouterr().out
    assert "0 ways to compute it" in shown
    assert "round  phase" in shown
    assert main(["derive", "matmul", "--rules", "-instanciation"]) == 2
    assert "did you mean instantiation" in capsys.readouterr().err


def test_derive_with_a_pack_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.py"
    path.write_text(
        "from egraph_opt.egraph.language import *\n"
        "def fails(m): raise ValueError('boom')\n"
        "@rule_group\ndef bad(x: TensorVar, m: MapVar):\n"
        "    yield becomes('bad-rule', x.view(m), x.view(each(fails, m).map(0)))\n"
    )
    assert main(["derive", "matmul", "--rules", f"+{path}"]) == 0
    shown = capsys.readouterr().out
    assert "note: rule pack bad was dropped: rule 'bad-rule': fails raised ValueError: boom" in shown
