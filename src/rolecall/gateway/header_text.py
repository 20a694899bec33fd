"""What a header of a request says, where that is kept: as its client meant it."""

from __future__ import annotations

from collections.abc import Mapping

_MOST = 200


def header_text(headers: Mapping[bytes, bytes], name: bytes) -> str | None:
    """Return a header's text, at most 200 characters of it; None where it is absent or empty.

    HTTP leaves open what bytes above ASCII mean: today's clients send UTF-8, and what is none is latin-1, as it was.
    """
    value = headers.get(name)
    if not value:
        return None
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = value.decode("latin-1")
    return text.strip()[:_MOST] or None
