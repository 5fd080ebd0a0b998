"""Moving measurements between databases, and the command that does it."""

import json
import sqlite3
from contextlib import closing
from datetime import date
from pathlib import Path

import pytest

from egraph_opt.cli import main
from egraph_opt.errors import InputRejected
from egraph_opt.extract import profile_files
from egraph_opt.extract.profile import FAILURE_DAYS, SCHEMA_VERSION, TABLE_1, Measurement, Profile, devices

GOOD, FAILED = Measurement("a", "library", (1.0, 2.0)), Measurement("b", "library", (), "it failed")
TODAY = date.today().toordinal()


def write(path: Path, *rows: tuple[object, ...]) -> None:
    Profile(path, "device").add([])
    with closing(sqlite3.connect(path)) as database, database:
        database.executemany("insert into measurements values (?, ?, ?, ?, ?, ?)", rows)


def test_from_one_machine_to_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, between, other = tmp_path / "one.db", tmp_path / "between.db", tmp_path / "other.db"
    Profile(one, "first").add([GOOD, FAILED])
    Profile(one, "second").add([GOOD])
    Profile(other, "first").add([Measurement("a", "library", (9.0,))])
    assert main(["cache", "export", str(between), "--profile-db", str(one), "--device", "first"]) == 0
    assert devices(between) == ["first"]
    assert main(["cache", "import", str(between), "--profile-db", str(other)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 measurements taken over"
    found = Profile(other, "first")
    assert (found.best("a"), found.failure("b", "library")) == (Measurement("a", "library", (9.0,)), "it failed")
    assert main(["cache", "import", str(between), "--profile-db", str(other), "--replace"]) == 0
    assert Profile(other, "first").best("a") == GOOD
    assert main(["cache", "info", "--profile-db", str(one)]) == 0
    assert f"first          1       1  {date.today().isoformat()}" in capsys.readouterr().out
    assert main(["cache", "prune", "--profile-db", str(one), "--device", "first", "--failed"]) == 0
    assert [(e.device, e.measured, e.failed) for e in profile_files.info(one)] == [("first", 1, 0), ("second", 1, 0)]
    assert main(["cache", "prune", "--profile-db", str(one), "--older", "1"]) == 0
    assert len(profile_files.info(one)) == 2
    assert main(["cache", "prune", "--profile-db", str(one)]) == 0
    assert profile_files.info(one) == []


@pytest.mark.parametrize(
    "row",
    [
        ("d", "s", "i", json.dumps([0.0]), "", TODAY),
        ("d", "s", "i", json.dumps([-1.0]), "", TODAY),
        ("d", "s", "i", json.dumps([1e9]), "", TODAY),
        ("d", "s", "i", "[NaN]", "", TODAY),
        ("d", "s", "i", json.dumps([1.0] * 5000), "", TODAY),
        ("d", "s", "i", json.dumps(["1"]), "", TODAY),
        ("d", "s", "i", json.dumps({"a": 1}), "", TODAY),
        ("d", "s", "i", "[]", "", TODAY),
        ("d", "s", "i", "[1.0]", "failed and measured", TODAY),
        ("d", "s", "i", "[" * 100_000, "", TODAY),
        ("d" * 200_000, "s", "i", "[1.0]", "", TODAY),
        ("d", b"bytes", "i", "[1.0]", "", TODAY),
        ("d", "s", "i", "[1.0]", "", "a day"),
        ("d", "s", 'kernel [[["RunThis",[],[],[]]],[]]', "[1.0]", "", TODAY),
        ("d", "s", "kernel [" + "[" * 70_000, "[1.0]", "", TODAY),
    ],
)
def test_absurd_values_are_left_out(tmp_path: Path, row: tuple[object, ...]) -> None:
    source, target = tmp_path / "source.db", tmp_path / "target.db"
    write(source, row, ("d", "good", "i", "[1.5]", "", TODAY))
    assert profile_files.import_(target, source) == (1, 1)
    assert set(Profile(target, "d").measured) == {"good"}


def test_traces_are_taken_over(tmp_path: Path) -> None:
    source, target = tmp_path / "source.db", tmp_path / "target.db"
    trace = 'kernel [[["GetSBlock",[],["out","main"],["b0"]],["GetLoops",["b0"],[],["l1"]]],[]]'
    write(source, ("d", "native kernel() x", trace, "[1.0]", "", TODAY))
    assert profile_files.import_(target, source) == (1, 0)
    best = Profile(target, "d").best("kernel() x")
    assert best is not None
    assert best.implementation == trace


def test_what_is_no_database_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.db"
    path.write_text("text")
    assert main(["cache", "import", str(path), "--profile-db", str(tmp_path / "mine.db")]) == 3
    assert "is not a profile database" in capsys.readouterr().err
    assert main(["cache", "info", "--profile-db", str(tmp_path / "missing.db")]) == 3
    assert main(["cache", "import", "--profile-db", str(path)]) == 2
    assert main(["cache", "path", str(path)]) == 2
    with pytest.raises(InputRejected, match="exists already"):
        profile_files.export(path, path)


def test_failures_are_forgotten_after_a_while(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    Profile(path, "device", today=1000).add([GOOD, FAILED])
    soon, late = (Profile(path, "device", today=1000 + days) for days in (FAILURE_DAYS - 1, FAILURE_DAYS))
    assert soon.knows("b", "library")
    assert not late.knows("b", "library")
    assert late.best("a") == GOOD


def test_a_database_of_the_first_version_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(TABLE_1)
        database.execute("insert into measurements values ('device', 'a', 'library', '[1.0, 2.0]', '')")
        database.execute("insert into measurements values ('device', 'b', 'library', '[]', 'it failed')")
        database.execute("pragma user_version=1")
    profile = Profile(path, "device")
    assert (profile.warning, profile.best("a"), profile.knows("b", "library")) == ("", GOOD, False)
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("pragma user_version").fetchone() == (SCHEMA_VERSION,)
