"""What a query of the log prints: a table for people, JSON or CSV for programs."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import typer

from rolecall.cli.table import NOTHING, Column, Row, say, show, table
from rolecall.core.json_text import escaped
from rolecall.insight.log_database import Tally

_MAX_TABLE_ROWS = 1000
_NO_TITLES: Mapping[str, str] = MappingProxyType({})
_SHOWN = frozenset(map(chr, range(32, 127))) - {"\\"}

Batches = Iterable[Sequence[Sequence[Any]]]


def plain(value: Any) -> Any:
    """Return a value of the database as JSON can have it: times in ISO 8601, moments in UTC as the log has them."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float | Decimal):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, timedelta):
        return value.total_seconds()
    return _text(value)


def _text(value: Any) -> str:
    """Return what JSON has no form for as a text; bytes as DuckDB itself shows them, the unprintable in hexadecimal."""
    if isinstance(value, bytes):
        return "".join(chr(byte) if chr(byte) in _SHOWN else f"\\x{byte:02X}" for byte in value)
    return _time(value) if isinstance(value, datetime) else str(value)


def _time(value: datetime) -> str:
    if value.tzinfo is None:
        return value.isoformat()
    return value.astimezone(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def print_rows_json(columns: Sequence[str], batches: Batches) -> None:
    """Print the rows as one line, a JSON array of objects, as they come."""
    names = _unlike(columns)
    before = "["
    for row in (row for batch in batches for row in batch):
        found = dict(zip(names, map(plain, row), strict=True))
        typer.echo(before + escaped(json.dumps(found, ensure_ascii=False, separators=(",", ":"))), nl=False)
        before = ","
    typer.echo("[]" if before == "[" else "]")


def print_rows_csv(columns: Sequence[str], batches: Batches) -> None:
    """Print the rows as CSV with a head; nothing is an empty cell, lists and objects are JSON."""
    _echo_csv([columns])
    for batch in batches:
        _echo_csv([_csv_cell(plain(value)) for value in row] for row in batch)


def print_rows_table(columns: Sequence[str], batches: Batches, titles: Mapping[str, str] = _NO_TITLES) -> None:
    """Print the first rows as a table, and say if there are more; numbers stand to the right, moments in local time.

    ``titles`` are shorter words for columns. Where the terminal is narrow, cells move under their rows by full names.
    """
    rows: list[Sequence[Any]] = []
    for batch in batches:
        rows += batch
        if len(rows) > _MAX_TABLE_ROWS:
            break
    shown = rows[:_MAX_TABLE_ROWS]
    numeric = [_is_numeric([row[at] for row in shown]) for at in range(len(columns))]
    heads = [
        Column(titles.get(name, name), right=right, below=_below(name) if at else None)
        for at, (name, right) in enumerate(zip(columns, numeric, strict=True))
    ]
    cells = [Row([_cell(value) for value in row]) for row in shown]
    show(lambda width: table(heads, cells, width))
    if len(rows) > len(shown):
        say(f"only the first {_MAX_TABLE_ROWS:,} rows are shown; --json and --csv print all")


def _below(name: str) -> str:
    return f"{name} {{}}" if name.isidentifier() else "{}"  # an expression may have braces


def tell(tally: Tally) -> None:
    """Say on stderr what of the log is not in the figures."""
    if told := list(tally.words()):
        say(*told)


def _unlike(columns: Sequence[str]) -> list[str]:
    """Return the names with a number behind those that an earlier column has, lest a value be lost."""
    names: list[str] = []
    for name in columns:
        unlike, number = name, 1
        while unlike in names:
            number += 1
            unlike = f"{name}_{number}"
        names.append(unlike)
    return names


def _echo_csv(rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    typer.echo(escaped(text.getvalue()), nl=False)


def _csv_cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


def _is_numeric(values: Sequence[Any]) -> bool:
    known = [value for value in values if value is not None]
    return bool(known) and all(isinstance(value, int | float | Decimal) for value in known)


def _cell(value: Any) -> str:
    if value is None:
        return NOTHING
    if isinstance(value, datetime) and value.tzinfo is not None:
        return f"{value.astimezone():%Y-%m-%d %H:%M:%S}"
    if isinstance(value, float):
        return f"{value:.6g}" if abs(value) < 1e6 else f"{value:.0f}"
    made = plain(value)
    words = made if isinstance(made, str) else json.dumps(made, ensure_ascii=False)
    return words.replace("\n", " ")
