"""The profile database: what steps were measured to cost on which machine, in one SQLite file."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import statistics
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

from egraph_opt.errors import InputRejected

SCHEMA_VERSION = 2
# The only object that a database may hold: views and triggers of a stranger's would be code that runs here.
TABLE = (
    "CREATE TABLE measurements (device text, signature text, implementation text,"
    " samples text, error text, day integer, primary key (device, signature, implementation))"
)
# What version 1 held: no days.
TABLE_1 = (
    "CREATE TABLE measurements (device text, signature text, implementation text,"
    " samples text, error text, primary key (device, signature, implementation))"
)
# Days after which a failure is forgotten: it may have been the machine's.
FAILURE_DAYS = 30
# Bytes of one value; rows of one device.
LARGEST_VALUE, MOST_ROWS = 1 << 20, 1 << 20
# What signatures of whole models begin with.
MODELS = "models "
# What signatures of kernel steps begin with, and the names of generated kernels as their implementations.
KERNEL_STEP, KERNEL = "kernel(", "kernel "
# How long to wait for another process that writes.
LOCK_SECONDS = 10


@dataclass(frozen=True)
class Measurement:
    """Milliseconds of several runs of one step in one implementation; no samples when it failed, with the reason."""

    signature: str
    implementation: str
    samples: tuple[float, ...]
    error: str = ""

    @property
    def seconds(self) -> float:
        """Median time in seconds; infinite for a failure."""
        return statistics.median(self.samples) / 1e3 if self.samples else math.inf


@dataclass
class Profile:
    """Measurements of one device, by step signature; kept in a file when there is one.

    ``mode`` tells which implementations were tried ("native" or "portable"): it is part of a kernel step's key.
    A database that cannot be opened or written is used as far as it goes; ``warning`` then says what was wrong.
    Failures are forgotten FAILURE_DAYS after they happened; ``today`` is the number of the day.
    """

    path: Path | None
    device: str
    mode: str = "native"
    warning: str = ""
    measured: dict[str, dict[str, Measurement]] = field(default_factory=dict)
    today: int = field(default_factory=lambda: date.today().toordinal())

    def __post_init__(self) -> None:
        if self.path is None:
            return
        try:
            rows = self._rows(self.path)
            for signature, implementation, samples, error in rows:
                values = tuple(float(sample) for sample in json.loads(samples))
                if all(0 < value < 1e9 for value in values):
                    found = Measurement(str(signature), str(implementation), values, str(error))
                    self.measured.setdefault(found.signature, {})[found.implementation] = found
        except (sqlite3.Error, OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
            self.measured.clear()
            self.warning = f"profile database {self.path} is not used: {error}"

    def _rows(self, path: Path) -> list[tuple[str, str, str, str]]:
        """All measurements of this device, even where the file may only be read."""
        try:
            database = self.opened(path)
        except (sqlite3.Error, OSError) as error:
            if not path.is_file() or (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
                raise
            self.warning = f"profile database {path} cannot be written: {error}"
            database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
        with closing(database):
            _check_version(database)
            _check_content(database)
            query = (
                "select signature, implementation, samples, error from measurements"
                " where device = ? and (error = '' or day > ?) limit ?"
            )
            return database.execute(query, (self.device, self.today - FAILURE_DAYS, MOST_ROWS)).fetchall()

    @staticmethod
    def opened(path: Path) -> sqlite3.Connection:
        """A database for writing, made where there is none. Raises sqlite3.Error or OSError where that fails."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        database = sqlite3.connect(path, timeout=LOCK_SECONDS)
        database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST_VALUE)
        try:
            if _check_version(database, older=True) == 1:
                _bring_up_to_date(database)
            if _check_version(database) == 0:
                tables = {name for (name,) in database.execute("select name from sqlite_master where type = 'table'")}
                if tables and _check_version(database) == 0:
                    raise sqlite3.DatabaseError("it belongs to another program")
                database.execute("pragma journal_mode=wal")
                with database:
                    database.execute("begin immediate")
                    if _check_version(database) == 0:  # no other process was faster
                        database.execute(TABLE)
                        database.execute(f"pragma user_version={SCHEMA_VERSION}")
            _check_content(database)
        except BaseException:
            database.close()
            raise
        return database

    def _keep(self, measurement: Measurement) -> None:
        found = replace(measurement, signature=self._key(measurement.signature))
        self.measured.setdefault(found.signature, {})[found.implementation] = found

    def _key(self, signature: str) -> str:
        return f"{self.mode} {signature}" if signature.startswith(KERNEL_STEP) else signature

    def add(self, measurements: Iterable[Measurement]) -> None:
        """Keep measurements and write them to the file at once."""
        found = list(measurements)
        for measurement in found:
            self._keep(measurement)
        if self.path is None or self.warning:
            return
        rows = [
            (self.device, self._key(m.signature), m.implementation, json.dumps(m.samples), m.error, self.today)
            for m in found
        ]
        try:
            with closing(self.opened(self.path)) as database, database:
                database.executemany("insert or replace into measurements values (?, ?, ?, ?, ?, ?)", rows)
        except (sqlite3.Error, OSError) as error:
            self.warning = f"profile database {self.path} cannot be written: {error}"

    def best(self, signature: str) -> Measurement | None:
        """The fastest implementation of a step, a failure if all failed, None if it was never measured."""
        found = self.measured.get(self._key(signature))
        return min(found.values(), key=lambda m: (m.seconds, m.implementation)) if found else None

    def verdict(self, signature: str) -> Measurement | None:
        """What :meth:`best` says, but None as well where only kernels failed: standard operators may still do it."""
        found = self.best(signature)
        if found is None or found.samples or not signature.startswith(KERNEL_STEP):
            return found
        return None if all(name.startswith(KERNEL) for name in self.measured[self._key(signature)]) else found

    def knows(self, signature: str, implementation: str) -> bool:
        """Whether this implementation of a step was measured, or failed."""
        return self.measured_as(signature, implementation) is not None

    def implementations(self, signature: str) -> tuple[Measurement, ...]:
        """All that was measured of a step, or failed."""
        return tuple(self.measured.get(self._key(signature), {}).values())

    def measured_as(self, signature: str, implementation: str) -> Measurement | None:
        """What is known of one implementation of a step."""
        return self.measured.get(self._key(signature), {}).get(implementation)

    def failure(self, signature: str, implementation: str) -> str:
        """Why this implementation of a step failed; empty where it did not."""
        found = self.measured_as(signature, implementation)
        return "" if found is None or found.samples else found.error

    def comparison(self, original: str, candidate: str) -> tuple[Sequence[float], Sequence[float]] | None:
        """Milliseconds per round of two models, given by their digests, that were timed in turns."""
        found = self.measured.get(_versus(original, candidate), {})
        one, other = found.get("original"), found.get("candidate")
        if one is None or other is None or not one.samples or len(one.samples) != len(other.samples):
            return None
        return one.samples, other.samples

    def add_comparison(self, original: str, candidate: str, samples: tuple[Sequence[float], Sequence[float]]) -> None:
        """Keep what :meth:`comparison` gives back, so that the same database always leads to the same choice."""
        signature = _versus(original, candidate)
        self.add(
            Measurement(signature, name, tuple(found))
            for name, found in zip(("original", "candidate"), samples, strict=True)
        )


def open_read_only(path: Path) -> sqlite3.Connection:
    """A database for reading. Raises InputRejected where it is none of ours."""
    if not path.is_file():
        raise InputRejected(f"{path} is not a file")
    try:
        database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST_VALUE)
            if _check_version(database) == 0:
                raise sqlite3.DatabaseError("it is empty")
            _check_content(database)
        except BaseException:
            database.close()
            raise
        return database
    except (sqlite3.Error, OSError) as error:
        raise InputRejected(f"{path} is not a profile database: {error}") from error


def devices(path: Path) -> list[str]:
    """The devices that a database has measurements of. Raises InputRejected where it cannot be read."""
    with closing(open_read_only(path)) as database:
        rows = database.execute("select distinct device from measurements order by device limit 1000").fetchall()
        return [str(device) for (device,) in rows]


def _versus(original: str, candidate: str) -> str:
    return f"{MODELS}{original} {candidate}"


def _check_version(database: sqlite3.Connection, *, older: bool = False) -> int:
    (version,) = database.execute("pragma user_version").fetchone()
    if version not in (0, SCHEMA_VERSION) and not (older and version == 1):
        raise sqlite3.DatabaseError(f"it has schema version {version}, this program knows {SCHEMA_VERSION}")
    return int(version)


def _bring_up_to_date(database: sqlite3.Connection) -> None:
    """From version 1, which knew no days: everything counts as of the first day, so that failures are tried again."""
    _check_content(database, TABLE_1)
    with database:
        database.execute("begin immediate")
        if _check_version(database, older=True) == 1:  # no other process was faster
            database.execute("alter table measurements rename to older")
            database.execute(TABLE)
            database.execute("insert into measurements select older.*, 0 from older")
            database.execute("drop table older")
            database.execute(f"pragma user_version={SCHEMA_VERSION}")


def _check_content(database: sqlite3.Connection, table: str = TABLE) -> None:
    # SQLite writes the first two words in capitals.
    found = database.execute("select type, name, sql from sqlite_master where sql is not null").fetchall()
    if [(kind, name, str(sql).lower()) for kind, name, sql in found] != [("table", "measurements", table.lower())]:
        raise sqlite3.DatabaseError("it holds other things than the measurements of this program")
