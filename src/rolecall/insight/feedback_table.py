# ruff: noqa: S608 - names of ours, and paths that are quoted
"""The view ``feedback`` beside ``requests``: the last word on each request, field by field."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from rolecall.insight.feedback import feedback_path
from rolecall.insight.log_columns import INNER, text
from rolecall.insight.log_files import open_log

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

FEEDBACK = "feedback"
_LINES = f"{INNER}.feedback"
_NAMES = {"ts": "given_at", "key": "given_by"}
"""What the columns are called that requests have, too: they are to be joined."""
_COLUMNS = {
    "ts": "TIMESTAMP WITH TIME ZONE",
    "request_id": "VARCHAR",
    "score": "DOUBLE",
    "label": "VARCHAR",
    "comment": "VARCHAR",
    "key": "VARCHAR",
}
_LINE_BYTES = 2**17
"""More than a comment of the longest kind takes."""


def make_feedback(connection: DuckDBPyConnection) -> None:
    """Make the view, empty."""
    columns = ", ".join(f"{name} {kind}" for name, kind in _COLUMNS.items())
    last = ", ".join(
        f"arg_max({name}, (ts, rowid)) AS {_NAMES.get(name, name)}" for name in _COLUMNS if name != "request_id"
    )
    connection.execute(f"CREATE TABLE {_LINES} ({columns})")
    connection.execute(f"CREATE VIEW {FEEDBACK} AS SELECT request_id, {last} FROM {_LINES} GROUP BY request_id")


def load_feedback(connection: DuckDBPyConnection, log_path: Path) -> None:
    """Fill it from the files beside a log; a line that makes no sense is left out. There may be no files."""
    with ExitStack() as stack:
        try:
            files = open_log(feedback_path(log_path), stack).files
        except FileNotFoundError:
            return
        read = ", ".join(f"{name}: 'VARCHAR'" for name in _COLUMNS)
        values = ", ".join(f"TRY_CAST({name} AS {kind})" for name, kind in _COLUMNS.items())
        for file in reversed(files):
            connection.execute(
                f"INSERT INTO {_LINES} SELECT {values} FROM read_json({text(file.path)}, format = 'newline_delimited', "
                f"ignore_errors = true, maximum_object_size = {_LINE_BYTES}, compression = '{file.compression}', "
                f"columns = {{{read}}}) WHERE request_id IS NOT NULL AND TRY_CAST(ts AS TIMESTAMP) IS NOT NULL"
            )
