"""Records in a DuckDB file: the table ``records``, with tags as a list, one commit for each record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb

from rolecall.vision.answers import writable
from rolecall.vision.batch_record import COLUMNS, Record, from_values, variables_text
from rolecall.vision.writers import OutputError, exists
from rolecall.vision.writers_cells import value_text

TABLE = "records"
_TYPES = {
    "tags": "VARCHAR[]",
    "discarded": "INTEGER",
    "prompt_tokens": "INTEGER",
    "completion_tokens": "INTEGER",
    "width": "INTEGER",
    "height": "INTEGER",
    "ms": "DOUBLE",
}
_KEY = ("file", "task", "version", "variables")


class DuckDbOutput:
    """A DuckDB file that this process has open; a record takes the place of the one with the same key."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        self._path = path
        if path.exists() and not resume:
            raise exists(path)
        try:
            self._database = duckdb.connect(str(path))
            self._database.execute(f"CREATE TABLE IF NOT EXISTS {TABLE} ({', '.join(map(_column, COLUMNS))})")
            self._check()
        except duckdb.Error as error:
            raise OutputError(f"{path}: {_cause(error)}") from None

    def _check(self) -> None:
        there = [name for name, *_ in self._database.execute(f"DESCRIBE {TABLE}").fetchall()]
        if there != list(COLUMNS):
            self._database.close()
            raise OutputError(f"{self._path}: its table {TABLE} has other columns; name another file")

    def records(self) -> Iterator[Record]:
        """Yield the records that are there."""
        yield from _records(self._database)

    def add(self, record: Record) -> None:
        """Write a record down."""
        values = _values(record)
        same = " AND ".join(f"{name} = ?" for name in _KEY)
        marks = ", ".join("?" * len(COLUMNS))
        try:
            self._database.begin()
            self._database.execute(f"DELETE FROM {TABLE} WHERE {same}", [values[name] for name in _KEY])  # noqa: S608
            self._database.execute(f"INSERT INTO {TABLE} VALUES ({marks})", list(values.values()))  # noqa: S608
            self._database.commit()
        except duckdb.Error as error:
            raise OutputError(f"{self._path}: {_cause(error)}") from None

    def close(self) -> None:
        """Bring all into the one file."""
        try:
            self._database.close()
        except duckdb.Error as error:
            raise OutputError(f"{self._path}: {_cause(error)}") from None


def read_database(path: Path) -> list[Record]:
    """Return the records of a file that is only read; raises ``OutputError``."""
    try:
        with duckdb.connect(str(path), read_only=True) as database:
            return list(_records(database))
    except duckdb.Error as error:
        raise OutputError(f"{path}: {_cause(error)}") from None


def _records(database: duckdb.DuckDBPyConnection) -> Iterator[Record]:
    names = ", ".join(COLUMNS)
    for row in database.execute(f"SELECT {names} FROM {TABLE}").fetchall():  # noqa: S608 - constants
        values = dict(zip(COLUMNS, row, strict=True))
        yield from_values({**values, "variables": json.loads(values["variables"])})


def _column(name: str) -> str:
    return f"{name} {_TYPES.get(name, 'VARCHAR')}"


def _values(record: Record) -> dict[str, Any]:
    values = {name: writable(getattr(record, name)) for name in COLUMNS}
    value = None if record.value is None else writable(value_text(record.value))
    return {**values, "variables": variables_text(values["variables"]), "value": value}


def _cause(error: duckdb.Error) -> str:
    words = str(error).splitlines()[0]
    if "lock" in words.lower():
        return f"another program has it open ({words})"
    if "No space left" in words or "File too large" in words or "disk" in words.lower():
        return f"the disk is full ({words}): make room and go on with --resume"
    return words
