"""The columns of the view ``requests``: every field of a line, typed, whatever older or foreign lines hold.

A record is a line with a readable ``ts`` and a ``request_id``. Everything else is read as text first and then as what
the field is: so a value of a wrong kind is null, is counted, and costs no other value of its line.
"""

from __future__ import annotations

import types
from collections.abc import Collection
from functools import cache
from typing import Any, get_args, get_type_hints

from rolecall.gateway.recorder import RequestLine

_MOST = 10**15
"""No tokens, bytes or milliseconds (30,000 years) are more."""
_TYPES: dict[Any, str] = {str: "VARCHAR", int: "BIGINT", float: "DOUBLE", bool: "BOOLEAN", list[str]: "VARCHAR[]"}


INNER = "raw"
"""The schema of the tables behind the views: what there is to query (``SHOW TABLES``) are the views alone."""


@cache
def column_types() -> dict[str, str]:
    """Return the type of each column as DuckDB calls it, in the order of a line's keys."""
    return {
        name: "TIMESTAMP WITH TIME ZONE" if name == "ts" else _type(hint)
        for name, hint in get_type_hints(RequestLine).items()
    }


def _type(hint: Any) -> str:
    kinds = set(get_args(hint) if isinstance(hint, types.UnionType) else (hint,)) - {types.NoneType}
    return _TYPES.get(kinds.pop(), "JSON") if len(kinds) == 1 else "JSON"


def read_types(columns: Collection[str]) -> dict[str, str]:
    """Return how each column is read from the file: as text, but JSON as such, and only if it is among ``columns``."""
    return {
        name: "JSON" if kind == "JSON" else "VARCHAR"
        for name, kind in column_types().items()
        if name in columns or (kind not in {"VARCHAR", "JSON"}) or name == "request_id"
    }


def typed(name: str) -> str:
    """Return the expression of a column, made of the text that was read."""
    kind, text = column_types()[name], quoted(name)
    if kind in {"VARCHAR", "JSON"}:
        return text
    if kind == "VARCHAR[]":
        return f"TRY_CAST(TRY_CAST({text} AS JSON) AS VARCHAR[])"
    value = f"TRY_CAST({text} AS {kind})"
    if kind in {"BIGINT", "DOUBLE"}:  # NaN is no number; what nothing can measure would be all of a sum
        return f"CASE WHEN {value} BETWEEN -{_MOST} AND {_MOST} THEN {value} END"
    if name == "ts":  # what Python can hold, too
        return f"CASE WHEN {value} BETWEEN TIMESTAMPTZ '1970-01-01' AND TIMESTAMPTZ '9999-01-01' THEN {value} END"
    return value


def is_record() -> str:
    """Return the condition under which a line that was read is the record of a request."""
    return f"{typed('ts')} IS NOT NULL AND request_id IS NOT NULL"


def has_wrong_value() -> str:
    """Return the condition under which a record has a value that is not of its column's kind, and so is null."""
    checked = [name for name in column_types() if typed(name) != quoted(name) and name != "ts"]
    return " OR ".join(f"({quoted(name)} IS NOT NULL AND ({typed(name)}) IS NULL)" for name in checked)


def quoted(name: str) -> str:
    """Return a name as SQL has it."""
    return '"' + name.replace('"', '""') + '"'


def text(value: str) -> str:
    """Return a text as SQL has it."""
    return "'" + value.replace("'", "''") + "'"
