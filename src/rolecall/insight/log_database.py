# ruff: noqa: S608 - names of ours, and paths that are quoted
"""The request log as a database: the view ``requests`` over all files of a log, read once by DuckDB.

The columns that are asked for go into a table in memory, which takes a second for a million lines; so an answer and the
count of broken lines are of the same moment, however the log grows and is rotated meanwhile. From then on the
connection reads no file, writes none, and loads nothing.
"""

from __future__ import annotations

import re
import signal
import socket
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rolecall.core.wording import counted
from rolecall.insight.feedback_table import FEEDBACK, load_feedback, make_feedback
from rolecall.insight.local_zone import set_local_zone
from rolecall.insight.log_columns import (
    INNER,
    column_types,
    has_wrong_value,
    is_record,
    quoted,
    read_types,
    typed,
)
from rolecall.insight.log_files import open_log
from rolecall.insight.log_loading import Lines, Loading, threads
from rolecall.insight.memory_bound import bounded_memory

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from duckdb import DuckDBPyConnection

VIEW = "requests"
_LINES = f"{INNER}.lines"
_ALWAYS = frozenset({"ts", "request_id"})
_BATCH_ROWS = 1000
_WORDS = re.compile(r"\w+")
_WRITES = re.compile(r'"type":"(?:DELETE|INSERT|UPDATE|MERGE\w*)_QUERY_NODE"')
_TELLS_OF_COLUMNS = re.compile(
    r"\"class\":\"STAR\"|\"ref_type\":\"NATURAL\"|\"type\":\"PIVOT\"|\"column_name_alias\":\[[^\]]"
    r"|\b(?:information_schema|sqlite_master|(?:duckdb|pragma|pg)_\w+)\b",
    re.IGNORECASE,
)
"""Where columns count that are not named: all of them, those that two tables share, their places, their list."""
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

    ``left_out`` are the reasons why files, which look like a part of the log, are not in it; ``unheard`` are lines of
    feedback, where that is asked for, that make no sense. ``other_zone`` has the hours and days if this machine's time
    zone is none that the database knows.
    """

    lines: int = 0
    broken: int = 0
    wrong: int = 0
    left_out: tuple[str, ...] = ()
    unheard: int = 0
    other_zone: str | None = None

    def words(self) -> Iterator[str]:
        """Yield what of the log is not in what was asked of it."""
        if self.broken:
            are = "is no record of a request" if self.broken == 1 else "are no records of requests"
            yield f"{self.broken} of {counted(self.lines, 'line')} {are} (half-written or foreign), skipped"
        if self.wrong:
            have = "has" if self.wrong == 1 else "have"
            yield f"{counted(self.wrong, 'line')} {have} a value of a wrong kind, which is taken as unknown"
        if self.unheard:
            make = "makes" if self.unheard == 1 else "make"
            yield f"{counted(self.unheard, 'line')} of the feedback {make} no sense, skipped"
        if self.other_zone:
            yield f"hours and days are those of {self.other_zone}: this machine's time zone is none of the database's"
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


@dataclass(frozen=True, slots=True)
class Needs:
    """What a statement needs: columns, None for all, and whether it needs the feedback."""

    columns: frozenset[str] | None
    feedback: bool


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
    not enough. A line that is no record is counted; a file that is none is left out and told. The view ``feedback`` is
    empty but with ``feedback``.
    """
    with ExitStack() as stack:
        found = open_log(path, stack, since)
        connection = stack.enter_context(_connection(memory_mb))
        wanted = [name for name in column_types() if columns is None or name in columns or name in _ALWAYS]
        with _errors():
            zone = set_local_zone(connection)
            _make_empty(connection, wanted)
            loading = Loading(connection, _lines(wanted))
            loading.load(found.files)
            unheard, why = load_feedback(connection, path) if feedback else (0, [])
            _close(connection)
            counts = connection.execute(
                "SELECT count(*), count(*) FILTER (NOT _is_record), count(*) FILTER (_is_record AND _is_wrong) "
                f"FROM {_LINES}"
            ).fetchone()
        lines, broken, wrong = counts or (0, 0, 0)
        left_out = (*found.left_out, *loading.left_out, *why)
        yield LogDatabase(connection, Tally(lines, broken, wrong, left_out, unheard, zone))


@contextmanager
def foreign_query(path: Path, sql: str, memory_mb: int = 1024) -> Iterator[tuple[LogDatabase, Answer]]:
    """Open a log for what somebody typed, one statement that reads, and carry it out.

    Raises ``QueryError`` before the log is read if the statement is wrong, else as ``opened_database`` does.
    """
    with bounded_memory(memory_mb):
        with _errors(), _connection(memory_mb) as connection:
            needs = needs_of(connection, sql)
        with opened_database(path, needs.columns, memory_mb=memory_mb, feedback=needs.feedback) as database:
            yield database, database.ask(sql)


def needs_of(connection: DuckDBPyConnection, sql: str) -> Needs:
    """Return what a statement needs; raises ``QueryError`` if it does more than read the views."""
    import duckdb  # noqa: PLC0415 - see above

    if [each.type for each in connection.extract_statements(sql)] != [duckdb.StatementType.SELECT]:
        raise QueryError("one statement that reads is wanted: SELECT, FROM, WITH, DESCRIBE, SUMMARIZE")
    _make_empty(connection, list(column_types()))
    _close(connection)
    connection.execute(f"EXPLAIN {sql}")
    (tree,) = connection.execute("SELECT json_serialize_sql(?::VARCHAR)->'statements'", [sql]).fetchone() or ("",)
    if _WRITES.search(tree):
        raise QueryError("a statement that reads is wanted: its WITH deletes, inserts or updates")
    if f'"schema_name":"{INNER}"' in tree.lower():
        raise QueryError(f"a statement that reads the views {VIEW} and {FEEDBACK} is wanted: {INNER} is behind them")
    words = {word.lower() for word in _WORDS.findall(tree)}
    is_open = not words.isdisjoint({"query", "query_table"})
    if is_open or _TELLS_OF_COLUMNS.search(tree) or _names_the_row(tree):
        return Needs(None, is_open or FEEDBACK in words)
    return Needs(frozenset(name for name in column_types() if name in words), FEEDBACK in words)


def _names_the_row(tree: str) -> bool:
    """Whether a statement's tree has the view where a column may stand: that is a row with all columns."""
    names = "|".join(map(re.escape, {VIEW, *_ALIAS.findall(tree)}))
    return re.search(rf'"column_names":\[(?:"(?:{names})"\]|[^\]]*"{VIEW}")', tree, re.IGNORECASE) is not None


@contextmanager
def _connection(memory_mb: int) -> Iterator[DuckDBPyConnection]:
    import duckdb  # noqa: PLC0415 - 0.1 s, and never in a server

    with duckdb.connect(":memory:", config=_CONFIG) as connection:
        connection.execute(f"SET memory_limit = '{memory_mb}MB'")
        connection.execute(f"SET threads = {threads()}")
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


def _lines(columns: Sequence[str]) -> Lines:
    types = column_types()
    values = {"_is_wrong": ("BOOLEAN", f"coalesce({has_wrong_value()}, false)")}
    values.update((name, (types[name], typed(name))) for name in columns)
    return Lines(_LINES, read_types(columns), is_record(), values)


def _make_empty(connection: DuckDBPyConnection, columns: Sequence[str]) -> None:
    """Make the views, and the tables behind them."""
    connection.execute(f"CREATE SCHEMA {INNER}")
    _lines(columns).make(connection)
    names = ", ".join(map(quoted, columns))
    connection.execute(f"CREATE VIEW {VIEW} AS SELECT {names} FROM {_LINES} WHERE _is_record")
    make_feedback(connection)


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
