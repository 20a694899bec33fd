# ruff: noqa: S608 - names of ours, and paths that are quoted
"""Reads the lines of a log's files into a table of DuckDB's; a file that cannot be read costs no other one."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rolecall.insight.log_columns import quoted, text
from rolecall.insight.log_reader import Part, blocks

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_LINE_BYTES = 2**24
"""Lines may be twice as long; that much memory is taken for each thread."""
_LONG_LINE_BYTES = 2**27
"""For files with longer lines, which prompts with many images make; they are read by one thread."""
_MAX_THREADS = 8


@dataclass(frozen=True, slots=True)
class Lines:
    """A table for lines: what each key of a line is read as, when a line is a record, and the columns.

    ``columns`` have a type and an expression of the keys; ``_file``, its place among those that were given, and
    ``_is_record`` are there, too.
    """

    table: str
    keys: Mapping[str, str]
    record: str
    columns: Mapping[str, tuple[str, str]]

    def make(self, connection: DuckDBPyConnection) -> None:
        """Make the table, empty."""
        columns = "".join(f", {quoted(name)} {kind}" for name, (kind, _) in self.columns.items())
        connection.execute(f"CREATE TABLE {self.table} (_file USMALLINT, _is_record BOOLEAN{columns})")


class Loading:
    """Loads files into a table; ``left_out`` are the reasons against those that are not in it."""

    def __init__(self, connection: DuckDBPyConnection, lines: Lines) -> None:
        self.left_out: list[str] = []
        self._connection = connection
        self._lines = lines
        self._files: Sequence[Part] = ()

    def load(self, files: Sequence[Part]) -> None:
        """Read all lines, those that are not empty, of what can be read of the files."""
        self._files = files
        for compression in sorted({file.compression for file in files}):
            self._load([file for file in files if file.compression == compression])
        self._leave_out_damaged()

    def _load(self, files: Sequence[Part]) -> None:
        """Read files of one compression, all at once but those against which the database has something."""
        import duckdb  # noqa: PLC0415 - 0.1 s, and never in a server

        while files:
            try:
                self._insert(files, _LINE_BYTES)
            except (duckdb.IOException, duckdb.InvalidInputException) as error:
                named = [file for file in files if re.search(rf"{re.escape(file.path)}\b", _reason(error))]
                self._load_alone(named or files)
                files = [file for file in files if named and file not in named]
            else:
                return

    def _load_alone(self, files: Sequence[Part]) -> None:
        """Read files one after the other, with more room for each line."""
        import duckdb  # noqa: PLC0415 - see above

        self._connection.execute("SET threads = 1")
        for file in files:
            try:
                self._insert([file], _LONG_LINE_BYTES)
            except duckdb.InvalidInputException:
                self.left_out.append(f"{file.name}: it has a line of more than {2 * _LONG_LINE_BYTES >> 20} MB")
            except duckdb.IOException as error:
                self.left_out.append(f"{file.name}: {_reason(error).replace(file.path, file.name)}")
        self._connection.execute(f"SET threads = {threads()}")

    def _insert(self, files: Sequence[Part], line_bytes: int) -> None:
        """Read files of one compression, all of them or none."""
        keys = ", ".join(f"{quoted(name)}: '{kind}'" for name, kind in self._lines.keys.items())
        numbers = [self._files.index(file) for file in files]
        values = "".join(f", {value}" for _, value in self._lines.columns.values())
        paths = ", ".join(text(file.path) for file in files)
        self._connection.execute(
            f"INSERT INTO {self._lines.table} SELECT {numbers}[file_index::INTEGER + 1], "
            f"coalesce({self._lines.record}, false){values} FROM read_json([{paths}], "
            f"format = 'newline_delimited', ignore_errors = true, maximum_object_size = {line_bytes}, "
            f"compression = '{files[0].compression}', columns = {{{keys}}})"
        )

    def _leave_out_damaged(self) -> None:
        """Remove what was read of compressed files that do not hold what was packed.

        The database does not compare check sums, and to do so takes as long as all its reading. So only those are
        looked at that have a line which is no record, as damage makes them.
        """
        found = self._connection.execute(f"SELECT DISTINCT _file FROM {self._lines.table} WHERE NOT _is_record")
        for (number,) in sorted(found.fetchall()):
            file = self._files[number]
            why = _damage(file) if file.compression != "none" else None
            if why is not None:
                self._connection.execute(f"DELETE FROM {self._lines.table} WHERE _file = {number}")
                self.left_out.append(f"{file.name}: {why}")


def threads() -> int:
    """Return how many threads read and count."""
    return min(_MAX_THREADS, len(os.sched_getaffinity(0)))


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0].removeprefix("IO Error: ")


def _damage(file: Part) -> str | None:
    """Return what is wrong with a compressed file; None: nothing, or nobody here can tell."""
    try:
        for _ in blocks(file):
            pass
    except OSError as error:
        return None if error.errno == errno.ENOPKG else error.strerror
    return None
