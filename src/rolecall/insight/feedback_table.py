# ruff: noqa: S608 - names of ours
"""The view ``feedback`` beside ``requests``: the last word on each request, field by field."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from rolecall.insight.feedback import feedback_path
from rolecall.insight.log_columns import INNER
from rolecall.insight.log_files import open_log
from rolecall.insight.log_loading import Lines, Loading

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

FEEDBACK = "feedback"
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
_LINES = Lines(
    f"{INNER}.feedback",
    dict.fromkeys(_COLUMNS, "VARCHAR"),
    "request_id IS NOT NULL AND TRY_CAST(ts AS TIMESTAMPTZ) IS NOT NULL AND coalesce(score, label) IS NOT NULL "
    "AND (score IS NULL OR TRY_CAST(score AS DOUBLE) BETWEEN 0 AND 1)",
    {name: (kind, f"TRY_CAST({name} AS {kind})") for name, kind in _COLUMNS.items()},
)
"""A line is what somebody said if the dashboard takes it for that."""


def make_feedback(connection: DuckDBPyConnection) -> None:
    """Make the view, empty."""
    last = ", ".join(
        f"arg_max({name}, (_file, rowid)) AS {_NAMES.get(name, name)}" for name in _COLUMNS if name != "request_id"
    )
    _LINES.make(connection)
    connection.execute(
        f"CREATE VIEW {FEEDBACK} AS SELECT request_id, {last} FROM {_LINES.table} WHERE _is_record GROUP BY request_id"
    )


def load_feedback(connection: DuckDBPyConnection, log_path: Path) -> tuple[int, list[str]]:
    """Fill it from the files beside a log; there may be none, and none of them is worth a failure.

    Returns how many lines make no sense, and the reasons against files that are left out.
    """
    loading = Loading(connection, _LINES)
    with ExitStack() as stack:
        try:
            found = open_log(feedback_path(log_path), stack)
        except FileNotFoundError:
            return 0, []
        except OSError as error:
            return 0, [f"{Path(error.filename or feedback_path(log_path)).name}: {error.strerror}"]
        loading.load(found.files[::-1])  # oldest first: what was said last stands last, whatever the clock said
    broken = connection.execute(f"SELECT count(*) FROM {_LINES.table} WHERE NOT _is_record").fetchone() or (0,)
    return broken[0], [*found.left_out, *loading.left_out]
