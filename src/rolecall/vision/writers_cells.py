"""A record as a row of texts, for tables."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from types import MappingProxyType
from typing import Any

from rolecall.vision.answers import writable
from rolecall.vision.batch_record import COLUMNS, Record, from_values, variables_text

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
"""How a cell begins that a spreadsheet would compute: a text in a picture must not become a program."""
_GUARDED = re.compile(r"'+[=+\-@\t\r]")
_OPTIONAL = frozenset(each.name for each in fields(Record) if each.default is None)


def value_text(value: Any) -> str:
    """Return an answer as text: a text as it is, all else as JSON."""
    return value if isinstance(value, str) else json.dumps(writable(value), ensure_ascii=False)


def to_cells(record: Record) -> list[str]:
    """Return a text for each column: words as ``a; b``, nothing for what there is not.

    What a spreadsheet would take for a formula has an apostrophe before it.
    """
    return [_cell(name, getattr(record, name)) for name in COLUMNS]


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name == "variables":
        return variables_text(writable(value))
    if name == "tags":
        value = "; ".join(word.replace(";", ",") for word in value)
    if isinstance(value, int | float):
        return str(value)
    text = writable(value_text(value)).replace("\0", "")
    return f"'{text}" if _FORMULA.match(text) else str(text)


def from_cells(cells: Sequence[str]) -> Record:
    """Return the record of a row; of a value that was no text the text. Raises ``ValueError``."""
    if len(cells) != len(COLUMNS):
        raise ValueError(f"it has {len(cells)} cells instead of {len(COLUMNS)}")
    values = {name: _value(name, cell) for name, cell in zip(COLUMNS, cells, strict=True)}
    if values["status"] == "ok" and values["value"] is None:
        values["value"] = ""
    return from_values(values)


def _value(name: str, cell: str) -> Any:
    if not cell and name in _OPTIONAL:
        return None
    if reader := _READERS.get(name):
        return reader(cell)
    return cell[1:] if _GUARDED.match(cell) else cell


def _words(cell: str) -> list[str]:
    text = cell[1:] if _GUARDED.match(cell) else cell
    return text.split("; ") if text else []


_READERS: Mapping[str, Callable[[str], Any]] = MappingProxyType(
    {
        "variables": json.loads,
        "tags": _words,
        "discarded": int,
        "prompt_tokens": int,
        "completion_tokens": int,
        "width": int,
        "height": int,
        "ms": float,
    }
)
