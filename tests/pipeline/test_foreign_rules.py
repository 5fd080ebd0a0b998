"""Rule packs that raise, hang, crash, grow or lie: dropped and named, and the result is verified all the same."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from egraph_opt.derive import operator_program
from egraph_opt.egraph.language import MapVar, Rule, TensorVar, apply, becomes, each, rule_group
from egraph_opt.egraph.saturate import Budget
from egraph_opt.errors import LimitReached, UsageError
from egraph_opt.ir import maps
from egraph_opt.ir.expr import Extents
from egraph_opt.ir.maps import IndexMap
from egraph_opt.ir.program import Program
from egraph_opt.ir.terms import Apply, Read, Source, Tensor, add
from egraph_opt.packs import Pack, select
from egraph_opt.saturation import Saturator
from egraph_opt.saturation_worker import Limits, Worker
from tests.pipeline.foreign import BODIES, write
from tests.pipeline.support import build, node, normal, static, wrong


def small_program(count: int = 1) -> Program:
    """Definitions t0 = relu(x) + x, t1 = relu(t0) + t0, …"""
    x = Source("x", (3, 4))
    definitions: list[tuple[str, Tensor]] = []
    for i in range(count):
        term = Read(x if i == 0 else Source(f"t{i - 1}", (3, 4)))
        definitions.append((f"t{i}", add(Apply("relu", (term,)), term)))
    return Program((x,), tuple(definitions), (definitions[-1][0],))


def model() -> onnx.ModelProto:
    nodes = [node("MatMul", "x w", "p"), node("Relu", "p", "r"), node("Add", "r x", "y")]
    return build(nodes, {"x": [3, 4]}, {"y": [3, 4]}, {"w": normal(4, 4)})


# What every kind of pack is blamed for.
BLAMED = {
    "raises": "rule 'raises-rule': function raised ValueError: boom",
    "loops": "rule loops-rule: its Python function ran longer than 1 seconds",
    "recurses": "rule 'recurses-rule': function raised RecursionError: maximum recursion depth exceeded",
    "exits": "rule exits-rule: ended the process (exit code 3)",
    "aborts": "rule aborts-rule: crashed (SIGABRT)",
    "leaves": "rule leaves-rule: SystemExit",
    "number": "rule 'number-rule': function raised TypeError: 'int' object is not iterable",
    "short": "rule 'short-rule': field 0 of function is None, not of kind map",
    "text": "rule 'text-rule': field 0 of function is 'no map', not of kind map",
    "huge": "rule huge-rule: OverflowError",
    "misshapen": "with it, terms have impossible shapes; of its rules fired misshapen-rule",
    "resizes": "rule resizes-rule made terms of a wrong shape",
    "grows": "the limit of e-nodes was hit; rule grows-rule matched 3,000 times",
}


@pytest.mark.parametrize("kind", BLAMED)
def test_a_pack_that_fails_is_dropped_and_named(kind: str, tmp_path: Path) -> None:
    bad, good = write(tmp_path, kind), write(tmp_path, "honest")
    program, budget = small_program(), Budget(enodes=2000)
    with Saturator(select(f"+{good},+{bad}"), call_seconds=1.0) as saturator:
        found = saturator.saturate(program, budget)
        again = saturator.saturate(small_program(2), budget)
    assert [pack.name for pack in saturator.selection.packs] == ["honest"]
    (note,) = saturator.notes
    assert note.startswith(f"rule pack {kind} was dropped: {BLAMED[kind]}")
    with Saturator(select(f"+{good}")) as alone:
        expected = alone.saturate(program, budget)
    assert found.snapshot.classes == expected.snapshot.classes
    assert found.saturation.stop == again.saturation.stop == "saturated"
    assert not alone.notes


def test_every_kind_is_tested() -> None:
    assert BLAMED.keys() | {"lies", "errs", "honest"} == BODIES.keys()


def test_of_two_bad_packs_both_are_dropped(tmp_path: Path) -> None:
    spec = ",".join(f"+{write(tmp_path, kind)}" for kind in ("raises", "honest", "exits"))
    with Saturator(select(spec)) as saturator:
        saturator.saturate(small_program(), Budget())
    assert [pack.name for pack in saturator.selection.packs] == ["honest"]
    assert [note.split()[2] for note in saturator.notes] == ["raises", "exits"]


def test_what_breaks_our_own_rules_is_found_by_elimination(tmp_path: Path) -> None:
    """The pack is fine by itself; the program is not, and it stays the program's fault."""
    with (
        Saturator(select(f"+{write(tmp_path, 'honest')}"), memory=1) as saturator,
        pytest.raises(LimitReached) as caught,
    ):
        saturator.saturate(small_program(), Budget())
    assert "more than 0 MiB of memory" in str(caught.value)
    assert not saturator.notes


def test_a_worker_finds_what_this_process_finds() -> None:
    program = small_program(3)
    here = Saturator().saturate(program, Budget())
    with Saturator(isolated=True) as isolated:
        there = isolated.saturate(program, Budget())
    assert there.snapshot.classes == here.snapshot.classes
    assert there.snapshot.names == here.snapshot.names
    assert there.snapshot.made == here.snapshot.made == here.saturation.made
    assert [(r.phase, r.enodes) for r in there.saturation.rounds] == [
        (r.phase, r.enodes) for r in here.saturation.rounds
    ]


def test_nothing_is_left_of_the_program_before() -> None:
    conv, matmul = operator_program("conv"), operator_program("matmul")
    fresh = Saturator(select("-layout")).saturate(conv, Budget())  # the last e-graph was another one
    with Saturator(select("-layout")) as saturator:
        for program in (conv, matmul):
            saturator.saturate(program, Budget())
        again = saturator.saturate(conv, Budget())
    assert again.snapshot.classes == fresh.snapshot.classes
    assert again.saturation.matches == fresh.saturation.matches


def test_an_e_graph_in_which_something_failed_is_not_used_again() -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    saturator = Saturator(progress=interrupt)
    with pytest.raises(KeyboardInterrupt):
        saturator.saturate(small_program(2), Budget())
    saturator.progress = None
    after = saturator.saturate(small_program(1), Budget())
    assert after.snapshot.names.keys() == {"t0"}


def test_a_worker_is_ended_at_its_limits() -> None:
    with Worker() as worker:
        with pytest.raises(Exception, match=r"it took longer than 0\.01 seconds"):
            worker.saturate(small_program(60), select(), Budget(), Limits(seconds=0.01))
        assert not worker.alive


def test_an_interrupt_ends_the_worker() -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    with Worker() as worker:
        with pytest.raises(KeyboardInterrupt):
            worker.saturate(small_program(), select(), Budget(), Limits(), interrupt)
        worker._process.wait(2)
        assert not worker.alive


def _swapped(extents: Extents) -> list[tuple[IndexMap, IndexMap]]:
    order = tuple(reversed(range(len(extents))))
    turned = tuple(reversed(extents))
    return [(maps.permute(extents, order), maps.permute(turned, order))]


@rule_group
def defined_here(x: TensorVar, m: MapVar) -> Iterator[Rule]:
    """A group that lives in no file that a worker could import."""
    t = each(_swapped, x.extents)
    yield becomes("turned-relu", apply("relu", x), apply("relu", x.view(t.map(0))).view(t.map(1)))


def test_a_pack_made_in_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    # As where the module is a script or a notebook: nothing that can be imported elsewhere.
    monkeypatch.setattr(sys.modules[__name__], "__file__", "/nowhere/else.py")
    with Saturator(select([Pack("script", (defined_here,))])) as saturator:
        found = saturator.saturate(small_program(), Budget())
    assert not saturator.notes
    assert found.saturation.matches["turned-relu"] > 0
    assert found.snapshot.made["turned-relu"] > 0


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("errs", "rule errs-rule is wrong: its sides differ by "),
        # Nothing records which terms became equal to a variable, so this one is found by leaving it out.
        (
            "lies",
            "a candidate was wrong (output y differs by 5.1e-01 of its range); without its rule lies-rule it is right",
        ),
    ],
)
def test_a_lie_is_found_by_verification_and_named(kind: str, reason: str, tmp_path: Path) -> None:
    m = model()
    expected = static(m)
    result = static(m, rules=f"+{write(tmp_path, kind)},+{write(tmp_path, 'honest')}")
    (note,) = [note for note in result.report.notes if "dropped" in note]
    assert note.startswith(f"rule pack {kind} was dropped: {reason}")
    assert wrong(m, result, {"x": normal(3, 4, seed=1)}) == []
    assert result.report.changed
    assert result.report.operators_after == expected.report.operators_after
    assert [(use.name, use.rules, use.fired) for use in result.report.packs] == [("honest", 1, 1)]
    assert "rules: honest (1 rule, 1 fired)" in result.report.table()
    assert not result.report.reverted


def test_two_lies_that_are_too_large_to_be_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("egraph_opt.egraph.blame.ELEMENTS", 0)
    m = model()
    result = static(m, rules=f"+{write(tmp_path, 'lies')},+{write(tmp_path, 'errs')}")
    notes = [note for note in result.report.notes if "dropped" in note]
    assert [note.split()[2] for note in notes] == ["lies", "errs"]
    assert all("without it it is right" in note for note in notes)
    assert wrong(m, result, {"x": normal(3, 4, seed=1)}) == []


def test_the_whole_run_survives(tmp_path: Path) -> None:
    m = model()
    spec = ",".join(f"+{write(tmp_path, kind)}" for kind in ("raises", "exits", "lies", "honest"))
    result = static(m, rules=spec)
    dropped = [note.split()[2] for note in result.report.notes if "was dropped" in note]
    assert dropped == ["raises", "exits", "lies"]
    assert wrong(m, result, {"x": np.linspace(-2, 2, 12, dtype=np.float32).reshape(3, 4)}) == []
    assert result.report.rules.startswith("fp=default +raises@")


def test_a_pack_that_raises_when_it_is_loaded_is_an_error_of_usage(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("raise RuntimeError('no such luck')")
    with pytest.raises(
        UsageError, match=r"rule pack .*broken.py raised when it was loaded: RuntimeError: no such luck"
    ):
        static(model(), rules=f"+{path}")
