"""The saturation benchmark: what it measures and how it is written down."""

import json
from pathlib import Path

import pytest

from bench.models.chains import CHAINS, chain
from bench.saturation import OPERATORS, Row, doubling, format_row, main, measure


@pytest.mark.parametrize("kind", CHAINS)
def test_chains_grow_layer_by_layer(kind: str) -> None:
    one, two, four = (measure("chain", kind, layers) for layers in (1, 2, 4))
    assert one.failure is None
    assert one.stop == two.stop == four.stop == "saturated"
    # Every further layer adds the same e-nodes; the first and the last differ from those between.
    assert 1.9 < (four.enodes - one.enodes) / max(two.enodes - one.enodes, 1) < 3.6


def test_chains_have_weights_of_their_own() -> None:
    model = chain("residual", 3)
    assert [node.op_type for node in model.graph.node].count("Conv") == 6


def test_every_operator_is_measured() -> None:
    for name in OPERATORS:
        row = measure("operator", name, 1)
        assert row.failure is None
        assert row.enodes > 10
        assert row.enodes == row.growth[-1][1]


def test_doubling() -> None:
    short, long = Row("chain", "conv", 5, cpu_seconds=1.0), Row("chain", "conv", 20, cpu_seconds=4.0)
    assert doubling(short, long) == pytest.approx(2.0)
    assert format_row(long, short).split()[-1] == "2.00"
    assert "failed: boom" in format_row(Row("model", "m", failure="boom"))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.jsonl"
    assert main(["chains", "--lengths", "1,2", "--output", str(output)]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["name"], row["layers"]) for row in rows] == [(kind, n) for kind in CHAINS for n in (1, 2)]
    assert all(row["peak_mib"] > 10 and row["machine"] and row["growth"] for row in rows)
    assert "conv x 2" in capsys.readouterr().out
