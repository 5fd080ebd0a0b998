"""Profile databases as files: what is in one, and moving measurements between them. Imported data are data, checked."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from egraph_opt.backends import tvm_trace
from egraph_opt.errors import InputRejected
from egraph_opt.extract.profile import KERNEL, MOST_ROWS, Profile, open_read_only

# What an imported measurement may be: milliseconds, samples, characters of a text.
LONGEST_SAMPLE, MOST_SAMPLES, LONGEST_TEXT = 1e6, 1000, 1 << 17
_COLUMNS = "device, signature, implementation, samples, error, day"

Row = tuple[str, str, str, str, str, int]


@dataclass(frozen=True)
class DeviceEntry:
    """One device of a database: how many steps and models were measured on it, how many ways failed, and when last."""

    device: str
    measured: int
    failed: int
    last: str


def info(path: Path) -> list[DeviceEntry]:
    """The devices of a database. Raises InputRejected where it cannot be read."""
    with closing(open_read_only(path)) as database:
        query = (
            "select device, sum(error = ''), sum(error != ''), max(day) from measurements group by device order by 1"
        )
        return [
            DeviceEntry(str(device), int(measured), int(failed), date.fromordinal(int(day)).isoformat() if day else "")
            for device, measured, failed, day in database.execute(query)
        ]


def export(path: Path, target: Path, device: str = "") -> int:
    """Copy what was measured on devices whose name contains ``device`` into a new database; returns the rows.

    Raises InputRejected for a target that exists.
    """
    if target.exists():
        raise InputRejected(f"{target} exists already")
    return _insert(target, [row for row in _rows(path) if device in row[0]], replace=True)


def import_(path: Path, source: Path, *, replace: bool = False) -> tuple[int, int]:
    """Take over the rows of another database; returns how many are new and how many were absurd and left out.

    Rows that are there already stay, unless ``replace``.
    """
    rows = list(_rows(source))
    sane = [row for row in rows if _is_sane(row)]
    return _insert(path, sane, replace=replace), len(rows) - len(sane)


def prune(path: Path, *, device: str = "", failed: bool = False, days: int | None = None) -> int:
    """Delete rows of devices whose name contains ``device``, only failures or older ones if asked; returns how many."""
    conditions, values = ["instr(device, ?) > 0" if device else "1"], [device] if device else []
    if failed:
        conditions.append("error != ''")
    if days is not None:
        conditions.append("day < ?")
        values.append(str(date.today().toordinal() - days))
    with closing(_writable(path)) as database, database:
        return database.execute(f"delete from measurements where {' and '.join(conditions)}", values).rowcount


def _rows(path: Path) -> Iterator[Row]:
    with closing(open_read_only(path)) as database:
        try:
            yield from database.execute(f"select {_COLUMNS} from measurements order by 1, 2, 3 limit ?", (MOST_ROWS,))
        except sqlite3.Error as error:
            raise InputRejected(f"{path} is not a profile database: {error}") from error


def _insert(path: Path, rows: list[Row], *, replace: bool) -> int:
    with closing(_writable(path)) as database, database:
        verb = "insert or replace" if replace else "insert or ignore"
        return database.executemany(f"{verb} into measurements values (?, ?, ?, ?, ?, ?)", rows).rowcount


def _writable(path: Path) -> sqlite3.Connection:
    try:
        return Profile.opened(path)
    except (sqlite3.Error, OSError) as error:
        raise InputRejected(f"{path} cannot be written: {error}") from error


def _is_sane(row: Row) -> bool:
    """Whether a row of a stranger's is one that this program might have written."""
    *texts, day = row
    if not all(isinstance(text, str) and len(text) <= LONGEST_TEXT for text in texts) or not isinstance(day, int):
        return False
    try:
        samples = json.loads(texts[3])
    except (ValueError, RecursionError):
        return False
    if not isinstance(samples, list) or len(samples) > MOST_SAMPLES or bool(samples) == bool(texts[4]):
        return False
    schedule = texts[2].removeprefix(KERNEL)
    if schedule != texts[2] and tvm_trace.is_trace(schedule):
        try:
            tvm_trace.checked(schedule)
        except InputRejected:
            return False
    return all(type(sample) in (int, float) and 0 < sample < LONGEST_SAMPLE for sample in samples)
