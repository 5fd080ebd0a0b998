"""``egraph-opt explain``: what it says about models that were optimized, and about others."""

from __future__ import annotations

import base64
import json
import re
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from egraph_opt.cli import main
from egraph_opt.errors import InputRejected
from egraph_opt.extract.roofline import STEP_SECONDS
from egraph_opt.frontends.onnx_metadata import metadata
from egraph_opt.runtime.explanation import KEY, Explanation, Option, packed, unpacked
from egraph_opt.runtime.explanation_page import page
from egraph_opt.runtime.explanation_replay import Replay
from egraph_opt.runtime.explanation_text import option, text
from tests.pipeline.support import build, node, normal, static


def small() -> onnx.ModelProto:
    """Conv, bias, activation, and a product at the end."""
    return build(
        [
            node("Conv", "x w", "c", name="first", pads=[1, 1, 1, 1]),
            node("Add", "c b", "d", name="bias"),
            node("Relu", "d", "e", name="activation"),
            node("Flatten", "e", "f", name="flat"),
            node("MatMul", "f v", "y", name="last"),
        ],
        {"x": [1, 8, 20, 20]},
        {"y": [1, 5]},
        {"w": normal(16, 8, 3, 3), "b": normal(16, 1, 1), "v": normal(6400, 5) / 80},
    )


@pytest.fixture(scope="module")
def optimized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("explain") / "small.opt.onnx"
    static(small()).save(path)
    return path


@pytest.fixture(scope="module")
def explanation(optimized: Path) -> Explanation:
    found = metadata(optimized, KEY)
    assert found is not None
    return unpacked(found)


def test_the_written_model_tells_how_it_came_about(explanation: Explanation) -> None:
    (part,) = explanation.parts
    assert [n.name for n in part.before] == ["first", "bias", "activation", "flat", "last"]
    assert part.after
    assert part.chains
    assert part.note == ""
    assert {name for step in part.steps for name in step.nodes} == {n.name for n in part.after}
    assert {name for chain in part.chains for name in chain.nodes} == {n.name for n in part.before}
    for step in part.steps:
        assert step.chosen.source == "estimated"
        assert 0 < step.chosen.cost <= step.chosen.total
        assert step.chosen.charge == (0.0 if step.operator == "Reshape" else STEP_SECONDS)
        assert len(step.runners_up) <= 3
        assert [o.total for o in step.runners_up] == sorted(o.total for o in step.runners_up)
        assert step.why
    assert Replay(part, seed=1).problems() == []


def test_equal_models_carry_equal_explanations() -> None:
    first, second = (static(small()).model.SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_text(optimized: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(optimized)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("graph: 1 part replaced")
    assert re.search(r"^ +1\. \S+ \(\w+\)", shown, re.MULTILINE)
    assert "runner-up 1: " in shown
    assert "chosen: " in shown
    assert re.search(r"^ +- \w+ = .*\n(.*\n)* +\+ \w+ = ", shown, re.MULTILINE)


def test_what_every_step_costs_is_told_apart(explanation: Explanation) -> None:
    found = Option("f(a)", 5.1e-6, 9e-6, "measured", 2e-6)
    assert option(found, "s") == "3.1 us measured + 2 us per step, 9 us with all it needs: f(a)"
    assert option(replace(found, charge=0.0), "s") == "5.1 us measured, 9 us with all it needs: f(a)"
    assert option(Option("f(a)", 512, 512, "estimated"), "B") == "512 B estimated, 512 B with all it needs: f(a)"
    assert " us estimated + 2 us per step, " in text(explanation)
    assert "<small>estimated + 2 us per step</small>" in page(explanation)


def test_one_node(optimized: Path, explanation: Explanation, capsys: pytest.CaptureFixture[str]) -> None:
    (part,) = explanation.parts
    for name in ("first", "c", part.after[0].name, part.steps[0].name):
        assert main(["explain", str(optimized), "--node", name]) == 0
        assert capsys.readouterr().out
    last = text(explanation, "last")
    assert len(last) < len(text(explanation))
    assert "(MatMul)" in last
    assert main(["explain", str(optimized), "--node", "frist"]) == 2
    assert "no replaced part has a node 'frist'; did you mean first" in capsys.readouterr().err


class Page(HTMLParser):
    """Collects what matters of a page, and complains about tags that do not match."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(content)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page(optimized: Path, explanation: Explanation, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "why.html"
    assert main(["explain", str(optimized), "--html", str(path)]) == 0
    assert capsys.readouterr().out == f"written: {path}\n"
    content = path.read_text(encoding="utf-8")
    assert content == page(explanation)
    found = Page(content)
    names = {attributes.get("data-name") for tag, attributes in found.tags if tag == "g"}
    (part,) = explanation.parts
    assert names >= {n.name for n in (*part.before, *part.after)}
    assert sum(tag == "svg" for tag, _ in found.tags) == 2
    chains = [a for tag, a in found.tags if tag == "section" and "data-chain" in a]
    assert len(chains) == len(part.chains)
    assert sum(tag == "mark" for tag, _ in found.tags) >= sum(len(chain.steps) for chain in part.chains)
    # Self-contained: nothing that a browser would fetch.
    assert not {"link", "img", "iframe", "object"} & {tag for tag, _ in found.tags}
    assert all("src" not in attributes and "href" not in attributes for _, attributes in found.tags)
    assert "url(" not in content
    assert "@import" not in content
    assert "://" not in content


def test_page_opens_at_a_node(explanation: Explanation) -> None:
    assert 'data-node="last"' in page(explanation, "last")


def test_names_cannot_break_out_of_the_page() -> None:
    attack = '</script><script>alert("x")</script>'
    model = small()
    model.graph.node[0].name = attack
    model.graph.node[0].input[0] = model.graph.input[0].name = f"in{attack}"
    found = metadata_of(static(model).model)
    content = page(unpacked(found))
    assert 'alert("x")' not in content
    assert content.count("<script") == 1
    Page(content)


def metadata_of(model: onnx.ModelProto) -> str:
    return next(entry.value for entry in model.metadata_props if entry.key == KEY)


def test_other_models_are_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(small(), path)
    assert main(["explain", str(path)]) == 3
    assert "holds no explanation" in capsys.readouterr().err
    (tmp_path / "n.onnx").write_bytes(b"nothing of the kind")
    assert main(["explain", str(tmp_path / "n.onnx")]) == 3
    assert main(["explain", str(tmp_path / "o.onnx")]) == 3
    assert "does not exist" in capsys.readouterr().err


def test_the_model_is_not_overwritten(optimized: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = optimized.read_bytes()
    assert main(["explain", str(optimized), "--html", str(optimized)]) == 2
    assert optimized.read_bytes() == content


def test_an_optimized_model_is_explained_anew_when_optimized_again() -> None:
    once = static(small(), portable=True).model
    again = static(once, portable=True)
    assert again.report.changed
    assert sum(entry.key == KEY for entry in again.model.metadata_props) == 1
    found = unpacked(metadata_of(again.model))
    assert {n.name for part in found.parts for n in part.before} <= {n.name for n in once.graph.node}


def changed(explanation: Explanation, *path: Any, value: Any) -> str:
    """The packed explanation with one value replaced."""
    data = json.loads(zlib.decompress(base64.b64decode(packed(explanation))))
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return base64.b64encode(zlib.compress(json.dumps(data).encode())).decode()


def test_damaged_explanations_are_rejected(explanation: Explanation) -> None:
    good = packed(explanation)
    assert unpacked(good) == explanation
    chain = next(n for n, chain in enumerate(explanation.parts[0].chains) if chain.steps)
    damaged = [
        "",
        "nothing",
        good[:-8],
        base64.b64encode(b"nothing").decode(),
        base64.b64encode(zlib.compress(b"[1]")).decode(),
        changed(explanation, "schema", value=99),
        changed(explanation, "parts", 0, "chains", 0, "goal", value=10**6),
        changed(explanation, "parts", 0, "chains", chain, "steps", 0, "after", value=-1),
        changed(explanation, "parts", 0, "steps", 0, "chain", value=99),
        changed(explanation, "parts", 0, "terms", 0, "constructor", value="Nothing"),
        changed(explanation, "parts", 0, "terms", -1, "arguments", value=["99999"] * 2),
        changed(explanation, "parts", 0, "seconds", value="soon"),
    ]
    for content in damaged:
        with pytest.raises(InputRejected):
            unpacked(content)


def test_a_model_comes_without_chains_rather_than_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise LookupError("no such class")

    monkeypatch.setattr("egraph_opt.explanation.explain_plan", fails)
    result = static(small())
    assert result.report.changed
    (part,) = unpacked(metadata_of(result.model)).parts
    assert part.chains == ()
    assert part.steps[0].runners_up
    assert part.note == "the chain of rules was not looked up: LookupError: no such class"
    assert any("not looked up" in line for line in result.report.notes)
    assert "not looked up" in text(unpacked(metadata_of(result.model)))
    Page(page(unpacked(metadata_of(result.model))))


def test_a_model_comes_without_explanation_rather_than_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("something unexpected")

    monkeypatch.setattr("egraph_opt.explanation.explain", fails)
    result = static(small())
    assert result.report.changed
    assert not [entry for entry in result.model.metadata_props if entry.key == KEY]
    assert any("the model carries no explanation: RuntimeError" in line for line in result.report.notes)


def test_measured_costs_are_told_from_estimates(tmp_path: Path) -> None:
    from egraph_opt.pipeline import optimize

    result = optimize(small(), threads=1, profile_db=tmp_path / "p.sqlite", time_limit=60)
    entries = [entry.value for entry in result.model.metadata_props if entry.key == KEY]
    if result.report.changed:
        (part,) = unpacked(entries[0]).parts
        assert {step.chosen.source for step in part.steps if step.operator != "Reshape"} == {"measured"}
    else:
        assert entries == []
    assert np.isfinite(sum(result.report.seconds.values()))
