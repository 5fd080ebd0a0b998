"""Files that are broken or meant to harm end with the right exit code and one line, and do no harm.

``python -m tests.hostile.driver FOLDER CASE`` runs one case again and prints all that was seen.
"""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.build import MODEL, Case
from tests.hostile.cases import CASES
from tests.hostile.driver import MEMORY, SECONDS, files

TOGETHER = [case for case in CASES if not case.alone]
GROUPS = 4
# What onnxruntime and Python open for themselves.
SYSTEM = ("/proc", "/sys/", "/dev/null", "/dev/urandom", "/etc/localtime", "/etc/ld.so")


def seen(cases: Sequence[Case], folder: Path) -> dict[str, dict[str, Any]]:
    """What every case did; a case that ends its process has only a status and a text."""
    found: dict[str, dict[str, Any]] = {}
    environment = os.environ | {"HOME": str(folder / "home"), "MALLOC_ARENA_MAX": "2"}
    while left := [case.name for case in cases if case.name not in found]:
        words = [sys.executable, "-m", "tests.hostile.driver", str(folder / str(len(found))), *left]
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
        begun = ""
        for line in done.stdout.splitlines():
            entry = json.loads(line)
            begun = entry.get("begin", begun)
            if "end" in entry:
                found[entry["end"]] = entry
        assert begun, done.stderr
        if begun not in found:
            found[begun] = {"ended": done.returncode, "text": done.stderr[-2000:]}
    return found


def complaints(case: Case, found: dict[str, Any], folder: Path) -> list[str]:
    """All that is wrong with how a case ended."""
    if "ended" in found:
        return [f"the process ended with {found['ended']}: {found['text']}"]
    wrong = [found["problem"]] if found["problem"] else []
    lines = [line for line in found["err"].splitlines() if not line.startswith("[")]  # without progress
    text = found["out"] if found["code"] == 0 else "\n".join(lines)
    if found["code"] not in case.codes:
        wrong.append(f"exit code {found['code']}")
    elif case.fragment not in text and len(case.codes) == 1:
        wrong.append(f"{case.fragment!r} is not in {text!r}")
    if (found["code"] != 0) != (len(lines) == 1) or "Traceback" in found["err"]:
        wrong.append(f"not one line: {found['err']!r}")
    if any(not character.isprintable() for character in "".join(lines)):
        wrong.append(f"control characters in {lines!r}")
    if found["code"] and (found["new"] or found["gone"] or not found["kept"]):
        wrong.append(f"half written: {found['new']}, {found['gone']}")
    if any(name.startswith(".") for name in found["new"]) or found["left"]:
        wrong.append(f"left behind: {found['new']}, {found['left']}")
    if found["leaks"] or found["pwned"]:
        wrong.append("a secret was read, or a name was executed")
    own = [
        str(folder.resolve()),
        *(os.path.realpath(path) for path in (*sys.path, sys.prefix, sys.base_prefix) if path),
    ]
    strange = [
        path
        for path in found["opened"]
        if not path.startswith((*own, *SYSTEM)) or f"{os.sep}outside" in path or path.startswith("event ")
    ]
    return [*wrong, *(f"opened {path}" for path in strange)]


@pytest.mark.parametrize("group", range(GROUPS))
def test_hostile_files(group: int, tmp_path: Path) -> None:
    cases = TOGETHER[group::GROUPS]
    found = seen(cases, tmp_path)
    wrong = {case.name: complaints(case, found[case.name], tmp_path) for case in cases}
    assert {name: texts for name, texts in wrong.items() if texts} == {}


@pytest.mark.parametrize("case", [case for case in CASES if case.alone], ids=lambda case: case.name)
def test_files_that_crash_onnxruntime(case: Case, tmp_path: Path) -> None:
    def limits() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (2 * MEMORY, 2 * MEMORY))

    (tmp_path / "model").mkdir()
    case.make(tmp_path / "model")
    before = files(tmp_path / "model")
    environment = os.environ | {"TMPDIR": str(tmp_path), "HOME": str(tmp_path), "MALLOC_ARENA_MAX": "2"}
    done = subprocess.run(
        [sys.executable, "-m", "egraph_opt", "optimize", MODEL, "-q", "--cost", "static"],
        cwd=tmp_path / "model", env=environment | {"PYTHONPATH": os.getcwd()}, preexec_fn=limits, timeout=SECONDS,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode in case.codes, done.stderr
    assert case.fragment in done.stderr
    assert done.stderr.count("\n") == 1
    assert files(tmp_path / "model") == before
    assert not list(tmp_path.glob("egraph-opt-*"))


def test_there_are_many_and_names_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 60
