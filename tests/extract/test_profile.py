"""The profile database: shared, broken, unwritable, old."""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from egraph_opt.extract.profile import SCHEMA_VERSION, Measurement, Profile

STEP, KERNEL = "MatMul[](2x3,3x4)->2x4", "kernel(2x3) relu(in0)"


def test_measurements_survive(tmp_path: Path) -> None:
    path = tmp_path / "new" / "p.sqlite"
    profile = Profile(path, "device")
    assert profile.best(STEP) is None
    profile.add([Measurement(STEP, "library", (3.0, 1.0, 2.0)), Measurement(STEP, "other", (1.5,))])
    profile.add([Measurement(KERNEL, "kernel a", (), "too long")])
    again = Profile(path, "device")
    assert again.measured == profile.measured
    best = again.best(STEP)
    assert best is not None
    assert (best.implementation, best.seconds) == ("other", 1.5e-3)
    failed = again.best(KERNEL)
    assert failed is not None
    assert (failed.seconds, failed.error) == (float("inf"), "too long")
    assert again.knows(KERNEL, "kernel a")
    assert not again.knows(KERNEL, "kernel b")
    assert not again.warning


def test_devices_and_modes_are_apart(tmp_path: Path) -> None:
    path = tmp_path / "p.sqlite"
    Profile(path, "device", "native").add([Measurement(STEP, "library", (1.0,)), Measurement(KERNEL, "k", (1.0,))])
    assert Profile(path, "another").measured == {}
    portable = Profile(path, "device", "portable")
    assert portable.best(STEP) is not None  # a library call is the same in both
    assert portable.best(KERNEL) is None


def test_without_a_file_nothing_is_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    profile = Profile(None, "device")
    profile.add([Measurement(STEP, "library", (1.0,))])
    assert profile.best(STEP) is not None
    assert not list(tmp_path.iterdir())


def test_comparisons_of_models(tmp_path: Path) -> None:
    path = tmp_path / "p.sqlite"
    profile = Profile(path, "device")
    assert profile.comparison("a", "b") is None
    profile.add_comparison("a", "b", ([0.1, 1 / 3], [0.2, 2 / 3]))
    assert Profile(path, "device").comparison("a", "b") == ((0.1, 1 / 3), (0.2, 2 / 3))
    assert profile.comparison("b", "a") is None
    profile.add_comparison("a", "c", ([0.1, 0.2], [0.2]))  # as a damaged database would have it
    assert profile.comparison("a", "c") is None


def _write(path: Path, statements: str) -> None:
    database = sqlite3.connect(path)
    database.executescript(statements)
    database.close()


BROKEN = {
    "garbage": lambda path: path.write_bytes(b"this is no database" * 100),
    "truncated": lambda path: (
        Profile(path, "device").add([Measurement(STEP, "l", (1.0,))] * 1),
        os.truncate(path, 700),
    ),
    "folder": lambda path: path.mkdir(),
    "future": lambda path: _write(path, f"pragma user_version={SCHEMA_VERSION + 1}"),
    "foreign": lambda path: _write(path, "create table measurements (a text)"),
    "samples": lambda path: (
        Profile(path, "device").add([])
        or _write(path, "insert into measurements values ('device', 's', 'i', '{\"a\"', '', 0)")
    ),
    "numbers": lambda path: (
        Profile(path, "device").add([])
        or _write(path, "insert into measurements values ('device', 's', 'i', '5', '', 0)")
    ),
    "nested": lambda path: (
        Profile(path, "device").add([])
        or _write(path, f"insert into measurements values ('device', 's', 'i', '{'[' * 100000}', '', 0)")
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_databases_are_not_used_and_not_changed(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "p.sqlite"
    BROKEN[kind](path)
    before = path.read_bytes() if path.is_file() else None
    profile = Profile(path, "device")
    assert profile.warning.startswith(f"profile database {path} is not used: ")
    assert profile.measured == {}
    profile.add([Measurement(STEP, "library", (1.0,))])
    assert profile.best(STEP) is not None  # this run still knows what it measured
    assert (path.read_bytes() if path.is_file() else None) == before


@pytest.mark.parametrize("samples", ["[NaN]", "[0]", "[-1]", "[1e300]", "[Infinity]"])
def test_impossible_times_are_ignored(tmp_path: Path, samples: str) -> None:
    path = tmp_path / "p.sqlite"
    Profile(path, "device").add([Measurement(STEP, "library", (2.0,))])
    _write(path, f"insert into measurements values ('device', '{STEP}', 'fake', '{samples}', '', 0)")
    best = Profile(path, "device").best(STEP)
    assert best is not None
    assert best.implementation == "library"


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs user ids")
def test_read_only_databases_are_read(tmp_path: Path) -> None:
    """In a process without privileges, as root may write everywhere."""
    path = tmp_path / "p.sqlite"
    Profile(path, "device").add([Measurement(STEP, "library", (1.0,))])
    path.chmod(0o444)
    for folder in (tmp_path, *list(tmp_path.parents)[:-1]):
        folder.chmod(0o555 if folder == tmp_path else folder.stat().st_mode | 0o055)
    code = f"""
import os, sys
from pathlib import Path
from egraph_opt.extract.profile import Profile, Measurement
if os.geteuid() == 0:
    os.setuid(65534)
profile = Profile(Path({str(path)!r}), "device")
profile.add([Measurement("x", "library", (1.0,))])
print(profile.best({STEP!r}) is not None, profile.best("x") is not None, profile.warning)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    tmp_path.chmod(0o755)
    assert done.stdout.startswith("True True profile database"), done.stderr
    assert "cannot be written" in done.stdout
    assert Profile(path, "device").best("x") is None


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "p.sqlite"
    code = """
import sys
from pathlib import Path
from egraph_opt.extract.profile import Profile, Measurement
profile = Profile(Path(sys.argv[1]), "device")
for i in range(20):
    own = Measurement(f"step {sys.argv[2]} {i}", "library", (1.0 + i,))
    profile.add([own, Measurement("common", sys.argv[2], (1.0,))])
assert not profile.warning, profile.warning
"""
    workers = [subprocess.Popen([sys.executable, "-c", code, str(path), str(n)]) for n in range(4)]
    assert [worker.wait() for worker in workers] == [0] * 4
    found = Profile(path, "device").measured
    assert len(found) == 4 * 20 + 1
    assert sorted(found["common"]) == ["0", "1", "2", "3"]


def test_samples_keep_all_their_digits(tmp_path: Path) -> None:
    value = 0.1 + 0.2
    Profile(tmp_path / "p", "d").add([Measurement(STEP, "library", (value,))])
    best = Profile(tmp_path / "p", "d").best(STEP)
    assert best is not None
    assert best.samples == (value,)
    assert json.loads(json.dumps(value)) == value
