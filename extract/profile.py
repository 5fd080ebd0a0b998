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
from pathlib import Path

SCHEMA_VERSION = 1
# The only object that a database may hold: views and triggers of a stranger's would be code that runs here.
TABLE = (
    "CREATE TABLE measurements (device text, signature text, implementation text,"
    " samples text, error text, primary key (device, signature, implementation))"
)
# Bytes of one value; rows of one device.
LARGEST_VALUE, MOST_ROWS = 1 << 20, 1 << 20
# What signatures of whole models begin with.
MODELS = "models "
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
    """

    path: Path | None
    device: str
    mode: str = "native"
    warning: str = ""
    measured: dict[str, dict[str, Measurement]] = field(default_factory=dict)

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
            database = self._open(path)
        except (sqlite3.Error, OSError) as error:
            if not path.is_file() or (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
                raise
            self.warning = f"profile database {path} cannot be written: {error}"
            database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
        with closing(database):
            _check_version(database)
            _check_content(database)
            query = "select signature, implementation, samples, error from measurements where device = ? limit ?"
            return database.execute(query, (self.device, MOST_ROWS)).fetchall()

    def _open(self, path: Path) -> sqlite3.Connection:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        database = sqlite3.connect(path, timeout=LOCK_SECONDS)
        database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST_VALUE)
        try:
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
        return f"{self.mode} {signature}" if signature.startswith("kernel(") else signature

    def add(self, measurements: Iterable[Measurement]) -> None:
        """Keep measurements and write them to the file at once."""
        found = list(measurements)
        for measurement in found:
            self._keep(measurement)
        if self.path is None or self.warning:
            return
        rows = [(self.device, self._key(m.signature), m.implementation, json.dumps(m.samples), m.error) for m in found]
        try:
            with closing(self._open(self.path)) as database, database:
                database.executemany("insert or replace into measurements values (?, ?, ?, ?, ?)", rows)
        except (sqlite3.Error, OSError) as error:
            self.warning = f"profile database {self.path} cannot be written: {error}"

    def best(self, signature: str) -> Measurement | None:
        """The fastest implementation of a step, a failure if all failed, None if it was never measured."""
        found = self.measured.get(self._key(signature))
        return min(found.values(), key=lambda m: (m.seconds, m.implementation)) if found else None

    def knows(self, signature: str, implementation: str) -> bool:
        """Whether this implementation of a step was measured, or failed."""
        return implementation in self.measured.get(self._key(signature), {})

    def failure(self, signature: str, implementation: str) -> str:
        """Why this implementation of a step failed; empty where it did not."""
        found = self.measured.get(self._key(signature), {}).get(implementation)
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


def _versus(original: str, candidate: str) -> str:
    return f"{MODELS}{original} {candidate}"


def _check_version(database: sqlite3.Connection) -> int:
    (version,) = database.execute("pragma user_version").fetchone()
    if version not in (0, SCHEMA_VERSION):
        raise sqlite3.DatabaseError(f"it has schema version {version}, this program knows {SCHEMA_VERSION}")
    return int(version)


def _check_content(database: sqlite3.Connection) -> None:
    # SQLite writes the first two words in capitals.
    found = database.execute("select type, name, sql from sqlite_master where sql is not null").fetchall()
    if [(kind, name, str(sql).lower()) for kind, name, sql in found] != [("table", "measurements", TABLE.lower())]:
        raise sqlite3.DatabaseError("it holds other things than the measurements of this program")
