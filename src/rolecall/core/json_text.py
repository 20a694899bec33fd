"""A client's JSON value, as a message shows it."""

from __future__ import annotations

from json import JSONEncoder
from typing import Any

MOST_SHOWN = 60
"""Characters of a value."""

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
