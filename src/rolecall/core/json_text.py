"""JSON values as text: as a message shows them, and those that no text can hold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from json import JSONEncoder
from typing import Any

MOST_SHOWN = 60
"""Characters of a value."""

_HALVES = re.compile("[\ud800-\udfff]")
"""Lone surrogates: JSON can name them and Python hold them, UTF-8 cannot, so that no answer and no file can."""

_WRITER = JSONEncoder(ensure_ascii=False, default=str)


def as_json(value: Any) -> str:
    """Return a value as its client wrote it, ``true`` and not ``True``, cut to ``MOST_SHOWN`` characters.

    It is written piece by piece, so that neither a long value nor a deep one costs more than what is shown of it.
    """
    text = ""
    for piece in _WRITER.iterencode(value[:MOST_SHOWN] if isinstance(value, str) else value):
        text += piece[: MOST_SHOWN + 1]
        if len(text) > MOST_SHOWN:
            return text[: MOST_SHOWN - 1] + "…"
    return text


def is_text(text: str) -> bool:
    """Whether a string is Unicode; others hold lone surrogates: of JSON, or of a file's name that is no UTF-8."""
    return text.isascii() or not _HALVES.search(text)


def as_text(text: str) -> str:
    """Return a string with the sign for what cannot be read (U+FFFD) in place of lone surrogates."""
    return text if text.isascii() else _HALVES.sub("\ufffd", text)


def escaped(json: str) -> str:
    """Return JSON with lone surrogates as the escapes that JSON has for them."""
    return json if json.isascii() else _HALVES.sub(lambda half: f"\\u{ord(half[0]):04x}", json)


def no_text(value: Any) -> str | None:
    """Return where a JSON value has a string that `is_text` refuses, such as ``metadata.note``; None for nowhere."""
    left: list[tuple[tuple[str, ...], Any]] = [((), value)]
    while left:
        path, each = left.pop()
        if isinstance(each, str) and not is_text(each):
            return ".".join(map(as_text, path))
        if isinstance(each, Mapping):
            left += [((*path, str(key)), part) for key, item in each.items() for part in (item, key)]
        elif isinstance(each, list | tuple):
            left += [((*path, str(at)), item) for at, item in enumerate(each)]
    return None
