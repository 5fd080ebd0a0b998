"""The benchmark of jobs compares results and times of the same model."""

import json
from pathlib import Path

import pytest

from bench import jobs
from bench.jobs import Row, main


class Here:
    """Runs in this process what the benchmark runs in fresh ones."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __enter__(self) -> "Here":
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, _: object, model: str, count: int) -> "Here":
        self.row = Row(model, count, {"read": 1.0, "saturate": 8.0 / count, "extract": 2.0}, 12.0, 4.0, 20.0, "one")
        return self

    def result(self) -> Row:
        return self.row


def test_rows_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "ProcessPoolExecutor", Here)
    file = tmp_path / "rows.jsonl"
    assert main(["--models", "gcn", "--jobs", "1,2", "--output", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "1.67x" in printed  # 10 s of search, then 6 s
    assert "by processor time alone: 1.67x" in printed  # 20 s, then 4 s and half of 16 s
    assert "results do not depend on the jobs" in printed
    assert [json.loads(line)["jobs"] for line in file.read_text().splitlines()] == [1, 2]


def test_different_results_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def result(self: Here) -> Row:
        return Row(self.row.model, self.row.jobs, {"saturate": 1.0}, 1.0, 1.0, 1.0, str(self.row.jobs))

    monkeypatch.setattr(jobs, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(Here, "result", result)
    assert main(["--models", "gcn", "--output", str(tmp_path / "rows.jsonl")]) == 1
