# ruff: noqa: S608 - names of ours, and paths that are quoted
"""The request log as a database: the view ``requests`` over all files of a log, read once by DuckDB.

The columns that are asked for go into a table in memory, which takes a second for a million lines; so an answer and the
count of broken lines are of the same moment, however the log grows and is rotated meanwhile. From then on the
connection reads no file, writes none, and loads nothing.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rolecall.core.wording import counted
from rolecall.insight.feedback_table import load_feedback, make_feedback
from rolecall.insight.log_columns import (
    INNER,
    column_types,
    has_wrong_value,
    is_record,
    quoted,
    read_types,
    text,
    typed,
)
from rolecall.insight.log_files import open_log
from rolecall.insight.log_reader import Compression, Part
from rolecall.insight.memory_bound import bounded_memory

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from duckdb import DuckDBPyConnection

VIEW = "requests"
_LINES = f"{INNER}.lines"
_LINE_BYTES = 2**24
"""Lines may be twice as long; that much memory is taken for each thread."""
_LONG_LINE_BYTES = 2**27
"""For logs with longer lines, which prompts with many images make; they are read by one thread."""
_MAX_THREADS = 8
_ALWAYS = frozenset({"ts", "request_id"})
_BATCH_ROWS = 1000
_WORDS = re.compile(r"\w+")
_WRITES = re.compile(r'"type":"(?:DELETE|INSERT|UPDATE|MERGE\w*)_QUERY_NODE"')
_ALIAS = re.compile(r'"type":"BASE_TABLE","alias":"([^"]+)"')
_CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "allow_persistent_secrets": False,
    "python_enable_replacements": False,
    "temp_directory": "",
}


class QueryError(Exception):
    """A statement cannot be carried out; the message is the database's, and says why and where."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What a log holds: lines that are not empty, those that are no records of requests, and records with wrong values.

    ``left_out`` are the reasons why files, which look like a part of the log, are not in it.
    """

    lines: int = 0
    broken: int = 0
    wrong: int = 0
    left_out: tuple[str, ...] = ()

    def words(self) -> Iterator[str]:
        """Yield what of the log is not in what was asked of it."""
        if self.broken:
            are = "is no record of a request" if self.broken == 1 else "are no records of requests"
            yield f"{self.broken} of {counted(self.lines, 'line')} {are} (half-written or foreign), skipped"
        if self.wrong:
            have = "has" if self.wrong == 1 else "have"
            yield f"{counted(self.wrong, 'line')} {have} a value of a wrong kind, which is taken as unknown"
        yield from (f"left out: {reason}" for reason in self.left_out)


@dataclass(frozen=True, slots=True)
class Answer:
    """The columns of an answer, and its rows in batches as they are asked for."""

    columns: Sequence[str]
    batches: Iterator[list[tuple[Any, ...]]]

    def dicts(self) -> list[dict[str, Any]]:
        """Return all rows by the names of their columns."""
        return [dict(zip(self.columns, row, strict=True)) for batch in self.batches for row in batch]


class LogDatabase:
    """A log that was read: ``tally`` says what it holds. It has the columns that were asked for, and no way out."""

    def __init__(self, connection: DuckDBPyConnection, tally: Tally) -> None:
        self.tally = tally
        self._connection = connection

    def ask(self, sql: str, parameters: Sequence[Any] = ()) -> Answer:
        """Carry out a query; raises ``QueryError``, and KeyboardInterrupt for Ctrl-C."""
        with _errors():
            self._connection.execute(sql, parameters)
            columns = [column[0] for column in self._connection.description or ()]
        return Answer(columns, self._batches())

    def _batches(self) -> Iterator[list[tuple[Any, ...]]]:
        while True:
            with _errors():
                rows = self._connection.fetchmany(_BATCH_ROWS)
            if not rows:
                return
            yield rows


@contextmanager
def opened_database(
    path: Path,
    columns: Collection[str] | None = None,
    *,
    since: datetime | None = None,
    memory_mb: int = 1024,
    feedback: bool = False,
) -> Iterator[LogDatabase]:
    """Read the log at ``path``, all its files but those last written before ``since``, for queries of ``columns``.

    ``None`` stands for all columns, which take some 400 MB for a million lines. Raises FileNotFoundError if there are
    no files, OSError for one that the recorder wrote and that cannot be read, and ``QueryError`` where the memory is
    not enough. A line that is no record is counted; a file that is none is left out and told. With ``feedback`` there
    is the view of that name as well.
    """
    with ExitStack() as stack:
        found = open_log(path, stack, since)
        connection = stack.enter_context(_connection(memory_mb))
        wanted = [name for name in column_types() if columns is None or name in columns or name in _ALWAYS]
        with _errors():
            why = _load(connection, found.files, wanted)
            if feedback:
                make_feedback(connection)
                load_feedback(connection, path)
            _close(connection)
            counts = connection.execute(
                "SELECT count(*), count(*) FILTER (NOT _is_record), count(*) FILTER (_is_record AND _is_wrong) "
                f"FROM {_LINES}"
            ).fetchone()
        lines, broken, wrong = counts or (0, 0, 0)
        yield LogDatabase(connection, Tally(lines, broken, wrong, (*found.left_out, *why)))


@contextmanager
def foreign_query(path: Path, sql: str, memory_mb: int = 1024) -> Iterator[tuple[LogDatabase, Answer]]:
    """Open a log for what somebody typed, one statement that reads, and carry it out.

    Raises ``QueryError`` before the log is read if the statement is wrong, else as ``opened_database`` does.
    """
    with bounded_memory(memory_mb):
        with _errors(), _connection(memory_mb) as connection:
            columns = columns_of(connection, sql)
        with opened_database(path, columns, memory_mb=memory_mb, feedback=True) as database:
            yield database, database.ask(sql)


def columns_of(connection: DuckDBPyConnection, sql: str) -> set[str] | None:
    """Return the columns that a statement needs, None for all; raises ``QueryError`` if it does more than read."""
    import duckdb  # noqa: PLC0415 - see above

    if [each.type for each in connection.extract_statements(sql)] != [duckdb.StatementType.SELECT]:
        raise QueryError("one statement that reads is wanted: SELECT, FROM, WITH, DESCRIBE, SUMMARIZE")
    _make_empty(connection, column_types())
    make_feedback(connection)
    _close(connection)
    connection.execute(f"EXPLAIN {sql}")
    (tree,) = connection.execute("SELECT json_serialize_sql(?::VARCHAR)->'statements'", [sql]).fetchone() or ("",)
    if _WRITES.search(tree):
        raise QueryError("a statement that reads is wanted: its WITH deletes, inserts or updates")
    words = {word.lower() for word in _WORDS.findall(tree)}
    if not words.isdisjoint({"star", "query", "query_table"}) or _names_the_row(tree):
        return None
    return {name for name in column_types() if name in words}


def _names_the_row(tree: str) -> bool:
    """Whether a statement's tree has the view where a column may stand: that is a row with all columns."""
    names = "|".join(map(re.escape, {VIEW, *_ALIAS.findall(tree)}))
    return re.search(rf'"column_names":\[(?:"(?:{names})"\]|[^\]]*"{VIEW}")', tree, re.IGNORECASE) is not None


@contextmanager
def _connection(memory_mb: int) -> Iterator[DuckDBPyConnection]:
    import duckdb  # noqa: PLC0415 - 0.1 s, and never in a server

    with duckdb.connect(":memory:", config=_CONFIG) as connection:
        connection.execute(f"SET memory_limit = '{memory_mb}MB'")
        connection.execute(f"SET threads = {min(_MAX_THREADS, len(os.sched_getaffinity(0)))}")
        connection.execute("SET enable_progress_bar = false")
        with _interruptible(connection):
            yield connection


@contextmanager
def _interruptible(connection: DuckDBPyConnection) -> Iterator[None]:
    """Have Ctrl-C end a query at once: Python's handler runs only when DuckDB comes back, which can take a minute."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)  # noqa: FBT003 - its own name for it
    before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        while number := ours.recv(1):
            if number[0] == signal.SIGINT:
                connection.interrupt()

    watcher = threading.Thread(target=watch, name="interrupt", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        theirs.close()
        watcher.join()
        ours.close()


def _load(connection: DuckDBPyConnection, files: Sequence[Part], columns: Sequence[str]) -> list[str]:
    """Read what can be read of the files; return the reasons against the others."""
    import duckdb  # noqa: PLC0415 - see above

    types = column_types()
    _make_empty(connection, {name: types[name] for name in columns})
    try:
        _read(connection, files, columns, _LINE_BYTES)
    except (duckdb.IOException, duckdb.InvalidInputException):
        pass  # a file is no log, or a line is very long: they are looked at one by one
    else:
        return []
    connection.execute("SET threads = 1")
    why = []
    for file in files:
        try:
            _read(connection, [file], columns, _LONG_LINE_BYTES)
        except (duckdb.IOException, duckdb.InvalidInputException) as error:
            why.append(f"{file.name}: {str(error).splitlines()[0].replace(file.path, file.name)}")
    return why


def _make_empty(connection: DuckDBPyConnection, columns: Mapping[str, str]) -> None:
    connection.execute(f"CREATE SCHEMA {INNER}")
    typed_columns = ", ".join(f"{quoted(name)} {kind}" for name, kind in columns.items())
    connection.execute(f"CREATE TABLE {_LINES} (_is_record BOOLEAN, _is_wrong BOOLEAN, {typed_columns})")
    names = ", ".join(map(quoted, columns))
    connection.execute(f"CREATE VIEW {VIEW} AS SELECT {names} FROM {_LINES} WHERE _is_record")


def _read(connection: DuckDBPyConnection, files: Sequence[Part], columns: Sequence[str], line_bytes: int) -> None:
    """Read files into the table, all of them or none."""
    kinds: dict[Compression, list[str]] = {}
    for file in files:
        kinds.setdefault(file.compression, []).append(file.path)
    read = ", ".join(f"{quoted(name)}: '{kind}'" for name, kind in read_types(columns).items())
    options = f"format = 'newline_delimited', ignore_errors = true, maximum_object_size = {line_bytes}"
    values = ", ".join(
        [f"coalesce({is_record()}, false)", f"coalesce({has_wrong_value()}, false)", *map(typed, columns)]
    )
    sources = [
        f"SELECT {values} FROM read_json([{', '.join(map(text, paths))}], {options}, compression = '{kind}', "
        f"columns = {{{read}}})"
        for kind, paths in kinds.items()
    ]
    if sources:
        connection.execute(f"INSERT INTO {_LINES} {' UNION ALL '.join(sources)}")


def _close(connection: DuckDBPyConnection) -> None:
    """Close the connection to everything but what it has read, for good."""
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


@contextmanager
def _errors() -> Iterator[None]:
    import duckdb  # noqa: PLC0415 - see above

    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise QueryError(f"{str(error).splitlines()[0]}; --memory allows more") from None
    except duckdb.InterruptException:
        raise KeyboardInterrupt from None
    except duckdb.Error as error:
        raise QueryError(str(error).replace("LINE 1: EXPLAIN ", "LINE 1: ")) from None
    except MemoryError:
        raise QueryError("the memory is not enough; --memory allows more") from None
    except RuntimeError as error:
        if "interrupted" not in str(error).lower():
            raise
        raise KeyboardInterrupt from None
