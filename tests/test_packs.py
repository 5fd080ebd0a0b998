"""Rule packs: how they are found and loaded, and what a choice of rules means."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from egraph_opt import packs
from egraph_opt.egraph.language import Rule, RuleGroup, TensorVar, apply, approximate, becomes, rule_group
from egraph_opt.errors import UsageError
from egraph_opt.packs import Pack, Selection, available, load, select
from egraph_opt.rules.schedule import GROUPS, PACK_ROUNDS, PHASES, SIMPLIFICATION
from tests.pipeline.foreign import write


@rule_group
def doubts(x: TensorVar) -> Iterator[Rule]:
    """One rule of every exactness."""
    yield becomes("keeps-bits", apply("abs", apply("neg", x)), apply("abs", x))
    yield becomes("re-orders", apply("neg", x) + x, x + apply("neg", x), exactness="reassociates")
    yield becomes("for-reals", apply("log", apply("exp", x)), x, exactness="real_only")
    yield becomes("roughly", apply("tanh", x), apply("erf", x), exactness=approximate(0.2))


PACK = Pack("doubtful", (doubts,))


def used(selection: Selection) -> set[str]:
    return {rule.name for group in selection.groups for rule in group.rules}


BUILT_IN = {rule.name for group in GROUPS for rule in group.rules}


def entry_points(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    points = [metadata.EntryPoint(name, value, packs.ENTRY_POINTS) for name, value in values.items()]
    monkeypatch.setattr(packs, "_entry_points", lambda: points)


def test_nothing_is_chosen_by_default() -> None:
    selection = select()
    assert selection.phases == PHASES
    assert selection.simplification is SIMPLIFICATION
    assert selection.groups == GROUPS
    assert selection.text == "fp=default"


def test_every_rule_and_group_can_be_switched_off() -> None:
    for group in GROUPS:
        left = select(f"-{group.name}")
        assert used(left) == BUILT_IN - {rule.name for rule in group.rules}
        assert left.text == f"fp=default -{group.name}"
        for rule in group.rules:
            clear = f"{group.name}.{rule.name}" if rule.name in {group.name for group in GROUPS} else rule.name
            without = select(f"-{clear}")
            assert used(without) == BUILT_IN - {rule.name}
            assert without == select(f"-{group.name}.{rule.name}")
            expected = group.name if len(group.rules) == 1 else clear
            assert without.text == f"fp=default -{expected}"
    assert [phase.group.name for phase in select("-windows").phases] == [
        phase.group.name for phase in PHASES if phase.group.name != "windows"
    ]


def test_words_count_in_their_order() -> None:
    assert "bias" in used(select("-epilogue,+bias"))
    assert "bias-left" not in used(select("-epilogue,+bias"))
    assert "bias" not in used(select("+bias,-epilogue"))
    assert used(select(["-epilogue", "+epilogue"])) == BUILT_IN


@pytest.mark.parametrize(
    ("fp", "expected"),
    [
        ("strict", {"keeps-bits", "roughly"}),
        ("default", {"keeps-bits", "re-orders", "roughly"}),
        ("real", {"keeps-bits", "re-orders", "for-reals", "roughly"}),
    ],
)
def test_the_policy_decides_by_exactness(fp: str, expected: set[str]) -> None:
    selection = select([PACK], fp)
    assert used(selection) - BUILT_IN == expected
    allowed = {rule.name for group in GROUPS for rule in group.rules if rule.exactness == "bitwise" or fp != "strict"}
    assert used(selection) & BUILT_IN == allowed
    assert selection.foreign == dict.fromkeys(expected, "doubtful")


def test_approximate_rules_run_only_where_they_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "roughly" in used(select([PACK, "+roughly"]))
    assert "roughly" not in used(select([PACK, "-doubts", "+keeps-bits"]))
    assert select([PACK]).text == "fp=default +doubtful +roughly"
    assert select([PACK, "-roughly"]).text == "fp=default +doubtful -roughly"
    monkeypatch.setattr(packs, "GROUPS", (*GROUPS, doubts))  # as if it were built in
    assert not Selection().uses(doubts.rules[-1])
    assert select("+roughly").uses(doubts.rules[-1])
    assert select("+doubts").uses(doubts.rules[-1])


def test_groups_of_packs_run_at_two_places() -> None:
    names = [phase.group.name for phase in select([PACK]).phases]
    places = [position for position, name in enumerate(names) if name == "doubts"]
    assert places[0] == 0
    assert names[places[1] - 2 : places[1]] == ["instantiation", "pooling"]
    assert all(phase.rounds == PACK_ROUNDS for phase in select([PACK]).phases if phase.group.name == "doubts")


def test_origin_is_kept() -> None:
    (pack,) = select([PACK]).packs
    assert {rule.origin for rule in pack.rules} == {"doubtful"}
    assert pack.groups[0].origin == "doubtful"
    assert {rule.origin for group in GROUPS for rule in group.rules} == {"built-in"}


def test_a_pack_can_be_switched_off_again() -> None:
    selection = select([PACK, "-doubtful"])
    assert not selection.packs
    assert select([PACK]).without(["doubtful"]) == select([])
    assert select([PACK]).switched_off("re-orders") == select([PACK, "-re-orders"])


FILE = '''
"""What it is for."""
from egraph_opt.egraph.language import *
from egraph_opt.rules.pointwise import pointwise  # ours, not its own
@rule_group
def mine(x: TensorVar):
    yield becomes("one", apply("abs", x), apply("abs", x))
loose = becomes("two", apply("neg", TensorVar("x")), apply("neg", TensorVar("x")))
'''


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "my pack.py"
    path.write_text(FILE)
    pack = load(str(path))
    assert pack.name == "my_pack"
    assert [rule.name for rule in pack.rules] == ["one", "two"]
    assert [group.name for group in pack.groups] == ["mine", "my_pack-rules"]
    assert pack.documentation == "What it is for."
    assert pack.reference == str(path)
    assert load(str(path)) is pack
    text = select(f"+{path}").text
    assert text == f"fp=default +my_pack@{pack.identity}"
    path.write_text(FILE.replace("abs", "exp"))
    assert select(f"+{path}").text != text


def test_a_file_with_a_pack(tmp_path: Path) -> None:
    path = tmp_path / "file.py"
    path.write_text(FILE + "from egraph_opt.packs import Pack\nP = Pack('named', (mine,), documentation='Told.')\n")
    pack = load(str(path))
    assert (pack.name, pack.documentation) == ("named", "Told.")
    assert [rule.name for rule in pack.rules] == ["one", "two"]


def test_a_built_in_group() -> None:
    pack = load("epilogue")
    assert "bias" in [rule.name for rule in pack.rules]
    assert select([pack]) == select("+epilogue")


def test_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    entry_points(
        monkeypatch, given="tests.test_packs:PACK", made="tests.test_packs:made", group="tests.test_packs:doubts"
    )
    assert list(available()) == ["given", "group", "made"]
    assert load("given").name == "doubtful"
    assert load("made").name == "made"
    assert load("group").rules[0].name == "keeps-bits"
    assert "keeps-bits" in used(select("+given"))


def made() -> Pack:
    return Pack("made", (RuleGroup("others", doubts.rules),))


def test_listing_imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    entry_points(monkeypatch, absent="no_such_module:PACK")
    assert available() == {"absent": "no_such_module:PACK"}
    with pytest.raises(UsageError, match=r"rule pack 'absent' .* raised when it was loaded: ModuleNotFoundError"):
        load("absent")


def raises() -> Pack:
    raise RuntimeError("no such luck")


def leaves() -> Pack:
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("tests.test_packs:raises", "raised when it was loaded: RuntimeError: no such luck"),
        ("tests.test_packs:leaves", "ends the process"),
        ("tests.test_packs:FILE", "is a str, not an egraph_opt.packs.Pack"),
    ],
)
def test_a_bad_entry_point(value: str, complaint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry_points(monkeypatch, bad=value)
    with pytest.raises(UsageError, match="rule pack 'bad'") as caught:
        load("bad")
    assert complaint in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("1 / 0", "raised when it was loaded: ZeroDivisionError"),
        ("import sys; sys.exit(0)", "ends the process"),
        ("def broken(:", "raised when it was loaded: SyntaxError"),
        ("x = 1", "is empty: no Pack, RuleGroup, Rule or schedule is at module level"),
        ("from egraph_opt.egraph.language import *\nbecomes('r', TensorVar('x').sum(1), TensorVar('y').sum(1))", "'y'"),
        (
            "from egraph_opt.packs import Pack\nP = Pack('two words', ())\nfrom egraph_opt.rules import derivation",
            "empty",
        ),
    ],
)
def test_a_bad_file(text: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        select(f"+{path}")
    assert complaint in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("-epilog", "no rule, group or loaded pack is named 'epilog' (did you mean epilogue?)"),
        ("-biass", "(did you mean bias"),
        ("+no_such_pack", "unknown rule pack 'no_such_pack'; installed packs: installed"),
        ("-installed", "'installed'; it is installed but not loaded, +installed loads it"),
        ("+instaled", "unknown rule pack 'instaled' (did you mean installed?)"),
        ("bias", "rules are switched by +NAME or -NAME, not 'bias'"),
        ("+", "rules are switched by +NAME or -NAME, not '+'"),
        ("+missing/file.py", "No such file or directory"),
    ],
)
def test_unknown_names(spec: str, complaint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry_points(monkeypatch, installed="tests.test_packs:PACK")
    with pytest.raises(UsageError) as caught:
        select(spec)
    assert complaint in str(caught.value)


def test_unknown_policy() -> None:
    with pytest.raises(UsageError, match="unknown policy 'fast'; choose strict, default, real"):
        select(fp="fast")


@pytest.mark.parametrize("name", ["epilogue", "extents"])
def test_a_group_with_a_name_that_is_taken(name: str) -> None:
    pack = Pack("clash", (RuleGroup(name, doubts.rules),))
    with pytest.raises(UsageError, match=f"rule pack 'clash': its group '{name}' has the name of a built-in"):
        select([pack])


def test_a_rule_with_a_name_that_is_taken() -> None:
    x = TensorVar("x")
    group = RuleGroup("fine", (becomes("bias", apply("abs", x), apply("abs", x)),))
    with pytest.raises(UsageError, match="rule pack 'clash': its rule 'bias' has the name of a built-in"):
        select([Pack("clash", (group,))])
    with pytest.raises(UsageError, match="rule pack 'second': its group 'doubts' has the name of a group of pack"):
        select([PACK, Pack("second", (doubts,))])
    with pytest.raises(UsageError, match="two different rule packs are named 'doubtful'"):
        select([PACK, Pack("doubtful", (group,))])


def test_two_files(tmp_path: Path) -> None:
    one, other = write(tmp_path, "honest"), write(tmp_path, "honest", "second")
    selection = select(f"+{one},+{other},-second-rule")
    assert [pack.name for pack in selection.packs] == ["honest", "second"]
    assert set(selection.foreign) == {"honest-rule"}
    assert pickle.loads(pickle.dumps(selection.text)) == selection.text


@pytest.mark.parametrize("body", ["import os\nos._exit(0)", "raise KeyboardInterrupt", "import time\ntime.sleep(60)"])
def test_a_pack_that_ends_or_hangs_at_import_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    monkeypatch.setattr(packs, "IMPORT_SECONDS", 5.0)
    path = tmp_path / "harmful.py"
    path.write_text(body)
    with pytest.raises(UsageError, match=r"rule pack .*harmful\.py.* (ends the process|was not imported)"):
        packs.load(str(path))


def test_rules_of_a_group_that_are_listed_again_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "aliased.py"
    path.write_text(
        "from egraph_opt import TensorVar, IntVar, becomes, rule_group\n"
        "@rule_group\ndef own(x: TensorVar, k: IntVar):\n    yield becomes('same-sum', x.sum(k), x.sum(k))\n"
        "rules = own.rules\n"
    )
    assert [rule.name for group in packs.load(str(path)).groups for rule in group.rules] == ["same-sum"]
