"""The benchmark of choices runs, on a generated graph."""

import json
from pathlib import Path

import pytest

from bench.extraction import main


def test_a_generated_graph_is_a_row_of_the_table_and_of_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.jsonl"
    assert main(["--models", "", "--sizes", "300", "--seconds", "60", "--output", str(file)]) == 0
    (row,) = [json.loads(line) for line in file.read_text().splitlines()]
    assert row["gap"] == 0
    assert row["bound"] == pytest.approx(row["best"])
    assert row["best"] <= row["quick"] <= row["trees"]
    assert "generated 300" in capsys.readouterr().out
